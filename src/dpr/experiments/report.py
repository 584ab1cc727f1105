"""Writes the README's tables and figure from the files in runs/: `python -m dpr.experiments.report`."""

import re
import sys
from pathlib import Path

import numpy as np

from dpr.data.loading import project_root
from dpr.evaluation.significance import smallest_difference
from dpr.experiments.published import PUBLISHED, published
from dpr.experiments.results import Result, load_results
from dpr.files import atomic_path, write_text

COLLECTIONS = {"scifact": "SciFact", "nfcorpus": "NFCorpus"}  # those the README shows, in this order
BASELINE = "bm25"
COLUMNS = ("nDCG@10", "RR@10", "R@100")
FIGURE = "runs/results.png"
BROAD_TRAINING = "all-"  # start of the names of encoders trained on a billion pairs
SAID = {  # field of a result's settings → sentence in the caption
    "tuned_on": "`{}` was tuned on {}.",
    "trained_on": "`{}` was fine-tuned on {}.",
    "written_by": "The queries of `{}` were written by {}.",
}
NOTES = {True: "¹", False: ""}


def results_table(folder: Path) -> str:
    """A markdown table of the systems in `runs/<collection>`, best nDCG@10 first, with its caption.

    Raises:
        FileNotFoundError: The folder has no run.
        ValueError: The folder's runs were not all made over the same passages and queries.
    """
    results = load_results(folder)
    made_of = {tuple(r.metadata["fingerprints"].values()) for r in results.values()}
    if len(made_of) > 1:
        raise ValueError(f"{folder}: runs over different passages or queries; run the notebooks again")
    lines = [
        f"| system | {' | '.join(COLUMNS)} | published nDCG@10 | queries/s | index MiB | run | notebook |",
        f"|---|{'---:|' * (len(COLUMNS) + 3)}---|---|",
    ]
    lines += [_row(result) for result in results.values()]
    return "\n".join([*lines, "", _caption(results)])


def _row(result: Result) -> str:
    """The row of one system."""
    means, theirs = result.evaluation.means, published(result.collection, result.system)
    full = result.metadata["scope"] == "full corpus"
    values = " | ".join(f"{means[metric]:.4f}" for metric in COLUMNS)
    seeds = [found[COLUMNS[0]] for found in result.metadata.get("seeds", {}).values()]
    if seeds:
        values = values.replace(" |", f" ({min(seeds):.4f}–{max(seeds):.4f}) |", 1)
    run = f"runs/{result.collection}/{result.system}.trec.gz"
    notebook, index_bytes = result.metadata["notebook"], result.metadata.get("index_bytes")
    cost = "– | –"
    if index_bytes is not None:
        per_s = result.metadata["num_queries"] / result.metadata["wall_s"]
        cost = f"{per_s:,.0f} | {index_bytes / 2**20:.1f}"
    return (
        f"| {result.system}{NOTES[BROAD_TRAINING in result.system]} | {values} "
        f"| {f'{theirs.value:.4f}' if theirs and full else '–'} | {cost} "
        f"| [run]({run}) | [{notebook[:2]}](notebooks/{notebook}.ipynb) |"
    )


def _caption(results: dict[str, Result]) -> str:
    """The caption of a table: queries, scope, depth, hardware and the smallest provable difference."""
    metadata = next(iter(results.values())).metadata
    depth = " or ".join(str(d) for d in sorted({r.metadata["depth"] for r in results.values()}))
    caption = (
        f"{metadata['num_queries']} {metadata['split']} queries, {metadata['scope']}, "
        f"depth {depth}, {', '.join(sorted({r.metadata['hardware'] for r in results.values()}))}. "
        "Queries/s: all at once, encoding them included."
    )
    smallest = {system: value for system, value in smallest_provable(results).items() if value > 0}
    if smallest:
        caption += (
            f" The smallest true nDCG@10 difference from {BASELINE} that these queries would show (paired, "
            f"two-sided 0.05, power 0.8): {min(smallest.values()):.3f} to {max(smallest.values()):.3f}, "
            "by system."
        )
    if any(BROAD_TRAINING in system for system in results):
        caption += " ¹ Trained on a billion pairs, MS MARCO and SQuAD among them, by its authors."
    if any(r.metadata.get("seeds") for r in results.values()):
        caption += (
            " In parentheses the lowest and highest of several training seeds, of which the mean is shown."
        )
    for field, sentence in SAID.items():
        told = {system: result.metadata["config"].get(field) for system, result in results.items()}
        caption += "".join(f" {sentence.format(system, what)}" for system, what in told.items() if what)
    return caption


def smallest_provable(results: dict[str, Result], metric: str = "nDCG@10") -> dict[str, float]:
    """System other than the baseline → smallest true difference from it that the queries would show."""
    if BASELINE not in results:
        return {}
    base = results[BASELINE].evaluation.per_query[metric]
    return {
        system: smallest_difference(
            np.array([result.evaluation.per_query[metric][q] - base[q] for q in base])
        )
        for system, result in results.items()
        if system != BASELINE
    }


def readme_sections(root: Path) -> dict[str, str]:
    """Marker → text to put between `<!-- marker:begin -->` and `<!-- marker:end -->` in the README."""
    tables = [f"### {title}\n\n{results_table(root / 'runs' / name)}" for name, title in COLLECTIONS.items()]
    return {"results": "\n\n".join(tables), "expected": expected_table("trec-covid")}


def expected_table(collection: str) -> str:
    """A markdown table of the values that others published for a collection."""
    rows = [
        f"| {system} | {metric} | {theirs.value:.4f} | {theirs.source} |"
        for (name, system, metric), theirs in PUBLISHED.items()
        if name == collection
    ]
    return "\n".join(["| system | metric | published | source |", "|---|---|---:|---|", *rows])


def fill(readme: str, sections: dict[str, str]) -> str:
    """Replace the text between the markers of each section.

    Raises:
        ValueError: A marker is missing.
    """
    for marker, text in sections.items():
        begin, end = f"<!-- {marker}:begin -->", f"<!-- {marker}:end -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(readme):
            raise ValueError(f"README.md has no markers {begin} … {end}")
        readme = pattern.sub(lambda _, t=f"{begin}\n{text}\n{end}": t, readme)
    return readme


def draw(root: Path) -> None:
    """Draw the README's figure: every system on every collection, with the published values."""
    from matplotlib.figure import Figure

    from dpr.experiments.plots import plot_systems

    figure = Figure(figsize=(10, 3.2), layout="constrained")
    for axes, (name, title) in zip(
        np.atleast_1d(figure.subplots(1, len(COLLECTIONS))), COLLECTIONS.items(), strict=True
    ):
        results = load_results(root / "runs" / name)
        values = {s: np.array(list(r.evaluation.per_query["nDCG@10"].values())) for s, r in results.items()}
        full = [s for s, r in results.items() if r.metadata["scope"] == "full corpus"]
        theirs = {s: published(name, s).value for s in full if published(name, s)}
        plot_systems(values, theirs, "nDCG@10, mean and 95 % interval", title, axes)
    with atomic_path(root / FIGURE) as temporary:
        figure.savefig(temporary, format="png", dpi=110, metadata={"Software": None})


def main() -> None:
    """Fill the README's tables from runs/ and draw its figure."""
    sys.stdout.reconfigure(errors="replace")  # a terminal may know only ASCII
    root = project_root()
    readme = root / "README.md"
    try:
        text = fill(readme.read_text(encoding="utf-8"), readme_sections(root))
        draw(root)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    write_text(readme, text)
    print(f"wrote {readme.name} and {FIGURE}")


if __name__ == "__main__":
    main()
