"""Approximate search beside exact search: what it misses, costs and saves, and what memory an index takes."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from dpr.data.collection import Collection
from dpr.evaluation.metrics import evaluate
from dpr.search.engines import PQ_CENTROIDS, SEARCH_SETTINGS, SETTINGS, chosen_settings, num_lists
from dpr.search.index import Index, build_index

METRIC = "nDCG@10"
EQUAL = 1e-5  # scores closer than this, relative to the exact one, are equal but for rounding
Grid = Sequence[tuple[str, dict[str, int]]]


@dataclass(frozen=True)
class AnnResult:
    """One kind of index with one choice of settings, measured beside exact search.

    Attributes:
        kind: As `build_index` takes it.
        settings: All its settings.
        exhaustive: Whether it compares every vector, so that only rounding and compression can miss.
        recall_10: Share of the ten best passages of exact search that it finds, mean over queries.
        recall_100: The same of the hundred best.
        ndcg: nDCG@10 against the collection's judgements, mean over queries.
        ndcg_change: nDCG@10 less that of exact search.
        build_s: Seconds to build it.
        bytes_per_vector: Vectors, codes, ids and links, in memory or on disk.
        queries_per_s: All queries given at once, median of the rounds.
        speedup: queries_per_s over that of exact search, median of the rounds' ratios.
    """

    kind: str
    settings: dict[str, int]
    exhaustive: bool
    recall_10: float
    recall_100: float
    ndcg: float
    ndcg_change: float
    build_s: float
    bytes_per_vector: float
    queries_per_s: float
    speedup: float

    @property
    def name(self) -> str:
        """Kind and settings in one line."""
        return " ".join([self.kind, *(f"{name}={value}" for name, value in self.settings.items())])


def default_grid(count: int, dimension: int) -> Grid:
    """Kinds and settings worth comparing for N vectors of D dimensions; hnswlib where installed.

    hnswlib looks as far as the depth at least, so its narrowest settings are left out.
    """
    wide = [16, 32, 64, 128, 256]
    probes = [p for p in (1, 2, 4, 8, 16, 32, 64) if p < num_lists(count)]
    codes = [dimension // d for d in (4, 1) if not dimension % d]
    return [
        ("faiss-flat", {}),
        ("faiss-sqfp16", {}),
        *(("faiss-hnsw", {"ef_search": ef}) for ef in wide),
        *(("hnswlib", {"ef_search": ef}) for ef in wide[2:] if find_spec("hnswlib")),
        *(("faiss-ivf", {"num_probes": p}) for p in probes),
        *(("faiss-ivfpq", {"code_bytes": c, "num_probes": p}) for c in codes for p in probes[-3:]),
    ]


def ann_report(
    collection: Collection,
    passage_emb: np.ndarray,
    query_emb: np.ndarray,
    similarity: str,
    grid: Grid | None = None,
    depth: int = 100,
    rounds: int = 5,
) -> list[AnnResult]:
    """Measure kinds of index and their settings; the first row is always exact search.

    Recall counts a passage as found when its true similarity reaches that of the last of the exact
    ones, so that passages of equal score may stand for each other; it is computed from the vectors,
    whatever scores an index gives. Each round times exact search and the other in turn.

    Args:
        collection: Judgements, and the ids of N passages and Q queries in the rows' order.
        passage_emb: float [N, D].
        query_emb: float [Q, D].
        similarity: The one the encoder was trained for.
        grid: (kind, settings) to measure; by default `default_grid`. What differs only in how wide it
            searches is built once.
        depth: Hits a query, at least 100 for `recall_100`.
        rounds: Times each search is timed.

    Returns:
        One result a row, exact search first, then in the grid's order.

    Raises:
        ValueError: A depth below 100, no round, other numbers of rows; what `build_index` refuses.

    Source: Aumüller, Bernhardsson and Faithfull 2020, ANN-Benchmarks, section 2 (recall by distance).
    """
    if depth < 100 or rounds < 1:
        raise ValueError(f"depth must be at least 100 and rounds at least 1, got {depth} and {rounds}")
    query_ids, doc_ids = list(collection.queries), collection.doc_ids
    if (len(passage_emb), len(query_emb)) != (len(doc_ids), len(query_ids)):
        raise ValueError(
            f"{len(passage_emb)} and {len(query_emb)} vectors for {len(doc_ids)} passages and "
            f"{len(query_ids)} queries"
        )
    exact, build_s = _built("exact", passage_emb, doc_ids, similarity, {})
    best = exact.search(query_emb, depth)[0]
    baseline = evaluate(collection.qrels, exact.search_run(query_ids, query_emb, depth, "exact"), [METRIC])
    results, index, built = [], exact, ("exact", {})
    for kind, settings in [("exact", {}), *(grid or default_grid(*passage_emb.shape))]:
        steering = {name: value for name, value in settings.items() if name in SEARCH_SETTINGS}
        lasting = {name: value for name, value in settings.items() if name not in SEARCH_SETTINGS}
        if (kind, lasting) != built:
            index, build_s = _built(kind, passage_emb, doc_ids, similarity, lasting)
            built = (kind, lasting)
        index.with_search(**{**_steering_defaults(kind), **steering})
        found = index.search(query_emb, depth)[1]
        run = index.search_run(query_ids, query_emb, depth, "approximate")
        ndcg = evaluate(collection.qrels, run, [METRIC]).means[METRIC]
        times = [
            (_seconds(exact, query_emb, depth), _seconds(index, query_emb, depth)) for _ in range(rounds)
        ]
        true = _similarities(query_emb, passage_emb, found, similarity)
        results.append(
            AnnResult(
                kind,
                dict(index.settings),
                index.exhaustive,
                _recall(best, true, 10),
                _recall(best, true, 100),
                ndcg,
                ndcg - baseline.means[METRIC],
                build_s,
                index.num_bytes / len(passage_emb),
                len(query_emb) / statistics.median(mine for _, mine in times),
                statistics.median(theirs / mine for theirs, mine in times),
            )
        )
    return results


def reaching(results: Sequence[AnnResult], recall_10: float) -> dict[str, AnnResult | None]:
    """For each kind but exact its quickest setting with that recall, or None where none has it."""
    kinds = dict.fromkeys(result.kind for result in results if result.kind != "exact")
    good = sorted((r for r in results if r.recall_10 >= recall_10), key=lambda r: -r.queries_per_s)
    return {kind: next((r for r in good if r.kind == kind), None) for kind in kinds}


def pareto(results: Sequence[AnnResult]) -> list[AnnResult]:
    """Those that no other beats in both recall@10 and queries a second, by rising recall."""
    kept = [
        r
        for r in results
        if not any(
            (o.recall_10, o.queries_per_s) != (r.recall_10, r.queries_per_s)
            and o.recall_10 >= r.recall_10
            and o.queries_per_s >= r.queries_per_s
            for o in results
        )
    ]
    return sorted(kept, key=lambda r: r.recall_10)


def _built(kind: str, passage_emb, doc_ids, similarity: str, settings) -> tuple[Index, float]:
    """An index and the seconds it took to build."""
    start = time.perf_counter()
    index = build_index(kind, passage_emb, doc_ids, similarity, **settings)
    return index, time.perf_counter() - start


def _steering_defaults(kind: str) -> dict[str, int]:
    return {name: value for name, value in SETTINGS[kind].items() if name in SEARCH_SETTINGS}


def _seconds(index: Index, query_emb: np.ndarray, depth: int) -> float:
    """How long one search for all queries takes."""
    start = time.perf_counter()
    index.search(query_emb, depth)
    return time.perf_counter() - start


def _similarities(query_emb, passage_emb, positions: np.ndarray, similarity: str) -> np.ndarray:
    """The true similarity of each found passage, float64 [Q, K]; minus infinity where none was found."""
    rows = np.empty(positions.shape)
    for query, found, out in zip(query_emb, positions, rows, strict=True):
        passages = np.asarray(passage_emb[found], dtype=np.float64)
        out[:] = passages @ query.astype(np.float64)
        if similarity == "cosine":
            out /= np.linalg.norm(passages, axis=1) * np.linalg.norm(query)
        out[found < 0] = -np.inf
    return rows


def _recall(best: np.ndarray, true: np.ndarray, cutoff: int) -> float:
    """Share of the `cutoff` best scores [Q, K] that the found ones [Q, K] reach, mean over queries."""
    cutoff = min(cutoff, best.shape[1])
    last = best[:, cutoff - 1 : cutoff].astype(np.float64)
    reached = (true[:, :cutoff] >= last - EQUAL * np.abs(last)).sum(axis=1)
    return float(np.minimum(reached, cutoff).mean() / cutoff)


FLOAT32, FLOAT16, INT32, INT64 = 4, 2, 4, 8


def plan_memory(num_passages: int, dim: int, **settings: int) -> dict[str, int]:
    """Bytes of vectors, codes, ids and links for each kind of index, under its default settings.

    The graphs' upper levels are taken at their expected size. Not counted are what searching and
    building hold besides, and the passages themselves.

    Args:
        num_passages: N, at least 1.
        dim: D, at least 1.
        **settings: Settings of some kinds to use in place of the defaults, as `m=16`, `code_bytes=48`.

    Returns:
        Kind → bytes; `exact` with float32 vectors, which may stay on disk (float16 takes half).

    Raises:
        ValueError: A size below 1, a setting no kind has, too few passages to learn from.

    Source: the file formats of FAISS 1.15 and hnswlib 0.8; Malkov and Yashunin 2018, section 4, for the
    levels.

    >>> plan_memory(8_841_823, 384)["faiss-sqfp16"] / 2**30  # MS MARCO, GiB
    6.324...
    """
    if num_passages < 1 or dim < 1:
        raise ValueError(f"num_passages and dim must be at least 1, got {num_passages} and {dim}")
    unknown = set(settings) - {name for known in SETTINGS.values() for name in known}
    if unknown:
        raise ValueError(f"no kind has the settings {sorted(unknown)}")
    bytes_of = {}
    for kind, defaults in SETTINGS.items():
        given = {name: value for name, value in settings.items() if name in defaults}
        chosen = chosen_settings(kind, given, num_passages, dim)
        bytes_of[kind] = round(_bytes(kind, chosen, num_passages, dim))
    return bytes_of


def _bytes(kind: str, settings: dict[str, int], count: int, dim: int) -> float:
    """Bytes of one kind."""
    vectors = count * dim * FLOAT32
    if kind == "faiss-sqfp16":
        return count * dim * FLOAT16
    if kind in ("faiss-hnsw", "hnswlib"):
        m = settings["m"]
        upper_levels = count / (m - 1)  # of all nodes together: one in m climbs to each next level
        if kind == "faiss-hnsw":
            links = (2 * m * count + m * upper_levels) * INT32
            return vectors + links + count * (INT32 + INT64)  # each node's level and offset
        links = ((2 * m + 1) * count + (m + 1) * upper_levels) * INT32
        return vectors + links + count * (INT32 + INT64)  # each node's number of levels and label
    if "num_lists" in settings:
        centroids = settings["num_lists"] * dim * FLOAT32
        if kind == "faiss-ivf":
            return vectors + count * INT64 + centroids
        return count * (settings["code_bytes"] + INT64) + centroids + PQ_CENTROIDS * dim * FLOAT32
    return vectors
