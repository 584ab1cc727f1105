"""Results as files in runs/<collection>/: a run, a description of how it was made, and its metrics."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dpr.data.collection import Collection
from dpr.data.trec import Run, read_run, write_run
from dpr.evaluation.metrics import METRICS, Evaluation, evaluate
from dpr.files import check_name, crc32, read_json, read_lines, write_json, write_text
from dpr.provenance import git_commit, hardware

WRITERS = "`save_result` writes runs, in notebooks 02, 04, 05, 06, 07, 08 and 09"
KEPT_DEPTH = 100  # hits per query in the saved run file; the .csv has metrics of deeper ranks


@dataclass(frozen=True)
class Result:
    """The result of one system on one collection, as saved in `runs/`.

    Attributes:
        system: The system's name, which is also the run's tag and the files' name without its ending.
        collection: The collection's name.
        metadata: How the run was made; `save_result` lists the fields.
        evaluation: Metrics per query, over the full depth.
        path: The run file; `run()` reads it.
    """

    system: str
    collection: str
    metadata: dict[str, Any]
    evaluation: Evaluation
    path: Path

    def run(self) -> Run:
        """Read the saved run: every judged query, with at most `KEPT_DEPTH` hits, or none."""
        found = read_run(self.path)
        judged = next(iter(self.evaluation.per_query.values()))  # a file has no line for a query without hits
        return Run({query_id: found.get(query_id, {}) for query_id in judged}, found.tag)


def save_result(
    folder: Path | str,
    run: Run,
    collection: Collection,
    *,
    notebook: str,
    config: Mapping[str, Any],
    depth: int,
    wall_s: float,
    index_bytes: int | None = None,
    seed: int | None = None,
    ablation: bool = False,
) -> Result:
    """Write `<tag>.trec.gz` (the best 100 hits), `<tag>.json` and `<tag>.csv` (per-query metrics).

    `queries_as_documents` in the .json says how many queries are documents themselves, and how many of
    these have themselves as a hit: 0 unless the search was told not to leave them out.

    Args:
        folder: `runs/<collection>`; made if it is missing.
        run: The run at its full depth; its tag names the system.
        collection: The searched collection; its split, scope and fingerprints are recorded.
        notebook: Name of the notebook that made the run, without the ending.
        config: The system's settings and, for a model, its fingerprint; JSON values.
        depth: Number of hits asked for per query.
        wall_s: Seconds that the search took, encoding of queries included.
        index_bytes: Size of the searched index; None if no index is searched, as in a fusion.
        seed: The random seed, if the result depends on one.
        ablation: Whether this is a variant that is left out of the results table.

    Raises:
        ValueError: An error of `write_run` or `evaluate`, or a tag that cannot be a file's name.
    """
    evaluation, own = evaluate(collection.qrels, run, METRICS), collection.own_documents
    metadata = {
        "system": run.tag,
        "collection": collection.name,
        "split": collection.split,
        "scope": collection.scope,
        "depth": depth,
        "config": dict(config),
        "fingerprints": {"passages": collection.fingerprint, "queries": collection.queries_fingerprint},
        "metrics": {metric: round(mean, 6) for metric, mean in evaluation.means.items()},
        "num_queries": evaluation.num_queries,
        "num_missing": evaluation.num_missing,
        "queries_as_documents": {"all": len(own), "in_run": sum(q in run.get(q, ()) for q in own)},
        "seed": seed,
        "ablation": ablation,
        "notebook": notebook,
        "wall_s": round(wall_s, 4),
        "index_bytes": index_bytes,
        "made": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": git_commit(),
        "hardware": hardware(),
    }
    return _write(Path(folder), run.truncated(KEPT_DEPTH), metadata, evaluation)


def save_mean_of_seeds(
    system: str, results: Sequence[Result], about: Mapping[str, Any] | None = None
) -> Result:
    """Write the result of a system trained with several seeds: each metric of each query is their mean.

    The run file is that of the first seed; `seeds` in the metadata has the metrics of every seed.

    Args:
        system: The system's name; its files are written beside those of the seeds.
        results: One result per seed, over the same queries.
        about: Further settings of the system, added to those of the first seed.

    Raises:
        ValueError: No result, a result without a seed, or results over different passages, queries or depths.
    """
    if not results or any(result.metadata["seed"] is None for result in results):
        raise ValueError(f"{system}: a mean over seeds needs results that each have a seed")
    first = results[0]
    for part in ("fingerprints", "num_queries", "depth"):
        if any(result.metadata[part] != first.metadata[part] for result in results):
            raise ValueError(f"{system}: the seeds' results have other {part}")
    per_query = {
        metric: {q: sum(r.evaluation.per_query[metric][q] for r in results) / len(results) for q in found}
        for metric, found in first.evaluation.per_query.items()
    }
    means = {metric: sum(found.values()) / len(found) for metric, found in per_query.items()}
    evaluation = Evaluation(means, per_query, first.evaluation.num_queries, first.evaluation.num_missing)
    metadata = {
        **first.metadata,
        "system": system,
        "config": {**first.metadata["config"], **(about or {})},
        "metrics": {metric: round(mean, 6) for metric, mean in means.items()},
        "seed": None,
        "seeds": {str(r.metadata["seed"]): r.metadata["metrics"] for r in results},
        "ablation": False,
    }
    return _write(first.path.parent, Run(first.run(), system), metadata, evaluation)


def _write(folder: Path, run: Run, metadata: dict[str, Any], evaluation: Evaluation) -> Result:
    """Write the three files of a result; the .json, written last, has the checksums of the others."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["query_id", *METRICS])
    for query_id in next(iter(evaluation.per_query.values())):
        writer.writerow([query_id, *(f"{evaluation.per_query[m][query_id]:.6g}" for m in METRICS)])
    check_name(run.tag, "the run's tag")
    path, csv_path, json_path = (folder / f"{run.tag}{ending}" for ending in (".trec.gz", ".csv", ".json"))
    write_run(path, run)
    write_text(csv_path, table.getvalue())
    metadata = {**metadata, "crc32": {file.name: crc32(file) for file in (path, csv_path)}}
    write_json(json_path, metadata)
    return Result(run.tag, metadata["collection"], metadata, evaluation, path)


def load_result(folder: Path | str, system: str) -> Result:
    """Read the files of one system.

    Raises:
        FileNotFoundError: A file is missing; the message says what writes runs.
        ValueError: A file is damaged or not the one that the .json was written with, the .csv is malformed,
            or its means are not those in the .json.
    """
    folder = Path(folder)
    check_name(system, "the system")
    paths = {ending: folder / f"{system}{ending}" for ending in (".trec.gz", ".json", ".csv")}
    for path in paths.values():
        if not path.is_file():
            raise FileNotFoundError(f"{path}: missing; {WRITERS}")
    fields = ("collection", "metrics", "num_queries", "num_missing", "ablation", "fingerprints", "config")
    metadata = read_json(paths[".json"], *fields)
    for name, checksum in metadata.get("crc32", {}).items():
        if not (folder / name).is_file() or crc32(folder / name) != checksum:
            raise ValueError(f"{folder / name}: not the file that {system}.json was written with; run again")
    per_query = _read_table(paths[".csv"], metadata["num_queries"])
    means = {metric: sum(values.values()) / len(values) for metric, values in per_query.items()}
    for metric, mean in means.items():
        if not abs(mean - metadata["metrics"][metric]) <= 1e-5:
            raise ValueError(
                f"{paths['.csv']}: mean {metric} is {mean:.6f}, {paths['.json'].name} says otherwise"
            )
    evaluation = Evaluation(means, per_query, metadata["num_queries"], metadata["num_missing"])
    return Result(system, metadata["collection"], metadata, evaluation, paths[".trec.gz"])


def fits(result: Result, collection: Collection) -> bool:
    """Whether a result is over exactly these passages, queries and judgements."""
    used = {"passages": collection.fingerprint, "queries": collection.queries_fingerprint}
    return result.metadata["fingerprints"] == used


def kept_result(
    folder: Path | str, system: str, collection: Collection, depth: int, model: str | None = None
) -> Result | None:
    """The result kept for a system; None if there is none, it is damaged, or it is of something else.

    Args:
        folder: `runs/<collection>`.
        system: The system's name.
        collection: The passages, queries and judgements that it must be over.
        depth: The number of hits a query that it must have been searched to.
        model: The fingerprint of the encoder that it must be by.
    """
    try:
        result = load_result(folder, system)
    except (FileNotFoundError, ValueError):  # a damaged one is made again, as a missing one
        return None
    same = fits(result, collection) and result.metadata["depth"] == depth
    return result if same and model in (None, result.metadata["config"].get("model")) else None


def _read_table(path: Path, num_queries: int) -> dict[str, dict[str, float]]:
    """Read the per-query metrics from a .csv: metric → query_id → value."""
    per_query: dict[str, dict[str, float]] = {metric: {} for metric in METRICS}
    for number, line in read_lines(path):
        row = next(csv.reader([line]))
        if number == 1 and row != ["query_id", *METRICS]:
            raise ValueError(f"{path}:1: expected the columns query_id, {', '.join(METRICS)}")
        if len(row) != len(METRICS) + 1 or row[0] in per_query[METRICS[0]]:
            raise ValueError(f"{path}:{number}: expected {len(METRICS) + 1} columns and each query once")
        if number > 1:
            for metric, value in zip(METRICS, row[1:], strict=True):
                try:
                    per_query[metric][row[0]] = float(value)
                except ValueError:
                    raise ValueError(f"{path}:{number}: {metric} {value!r} is not a number") from None
    if len(per_query[METRICS[0]]) != num_queries:
        raise ValueError(f"{path}: {len(per_query[METRICS[0]])} queries, its .json says {num_queries}")
    return per_query


def load_results(folder: Path | str, ablations: bool = False) -> dict[str, Result]:
    """Read all systems in `runs/<collection>`, best nDCG@10 first; ablations only if asked for.

    Raises:
        FileNotFoundError: The folder has no run.
    """
    systems = [path.name.removesuffix(".trec.gz") for path in sorted(Path(folder).glob("*.trec.gz"))]
    if not systems:
        raise FileNotFoundError(f"{folder}: no runs; {WRITERS}")
    results = [load_result(folder, system) for system in systems]
    kept = [result for result in results if ablations or not result.metadata["ablation"]]
    return {r.system: r for r in sorted(kept, key=lambda r: (-r.evaluation.means["nDCG@10"], r.system))}
