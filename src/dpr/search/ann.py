"""Approximate compared with exact search: recall, speed and build time; and the memory that indexes take."""

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np

from dpr.arguments import checked
from dpr.data.collection import Collection
from dpr.evaluation.metrics import evaluate
from dpr.search.engines import (
    PQ_CENTROIDS,
    SEARCH_SETTINGS,
    SETTINGS,
    Vectors,
    centroids,
    chosen_settings,
    num_lists,
    sample_size,
)
from dpr.search.index import Index, build_index
from dpr.search.vector_shards import BLOCK

METRIC = "nDCG@10"
MANY_VECTORS = 2_000  # from so many on, the default grid has codes of a byte for each dimension
EQUAL = 1e-5  # scores that differ by less than this share of the exact score count as equal
Grid = Sequence[tuple[str, dict[str, int]]]


@dataclass(frozen=True)
class AnnResult:
    """One kind of index with one choice of settings, compared with exact search.

    Attributes:
        kind: Kind of index, as in `build_index`.
        settings: All settings of the index.
        exhaustive: Whether it compares every vector, so that only rounding and compression cause misses.
        recall_10: Share of the ten best passages of exact search that it finds, mean over queries.
        recall_100: The same for the hundred best passages.
        ndcg: nDCG@10 against the collection's judgements, mean over queries.
        ndcg_change: `ndcg` minus that of exact search.
        build_s: Seconds to build the index.
        bytes_per_vector: Size of vectors, codes, ids and links, in memory or on disk, divided by N.
        queries_per_s: Queries per second with all queries given at once, median over rounds.
        speedup: Time of exact search divided by this index's time, median over rounds.
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
    """Kinds and settings worth comparing for N vectors of D dimensions; hnswlib only if installed.

    hnswlib's `ef_search` is never below the depth, so its smallest values are left out.
    """
    wide = [16, 32, 64, 128, 256]
    probes = [p for p in (1, 2, 4, 8, 16, 32, 64) if p < num_lists(count)]
    divisors = (4, 1) if count >= MANY_VECTORS else (4,)  # the finest codes take long to learn
    codes = [dimension // d for d in divisors if not dimension % d]
    return [
        ("faiss-flat", {}),
        ("faiss-sqfp16", {}),
        *(("faiss-hnsw", {"ef_search": ef}) for ef in wide),
        *(("hnswlib", {"ef_search": ef}) for ef in wide[2:] if find_spec("hnswlib")),
        *(("faiss-ivf", {"num_probes": p}) for p in probes),
        *(("faiss-ivfpq", {"code_bytes": c, "num_probes": p}) for c in codes for p in probes[-3:]),
    ]


@checked
def ann_report(
    collection: Collection,
    passage_emb: Vectors,
    query_emb: np.ndarray,
    similarity: str,
    grid: Grid | None = None,
    depth: int = 100,
    rounds: int = 5,
) -> list[AnnResult]:
    """Compare kinds of index and their settings with exact search in recall, nDCG@10, speed and size.

    For recall@k a passage counts as found if its true similarity reaches that of the k-th best passage,
    so passages of equal similarity can replace each other. True similarities are computed from the
    vectors, whatever scores an index gives. Each round times exact search, then the other index.

    Args:
        collection: Gives the judgements, and the ids of N passages and Q queries in the rows' order.
        passage_emb: float [N, D], an array or `VectorShards`.
        query_emb: float [Q, D].
        similarity: `cosine` or `dot`, whichever the encoder was trained for.
        grid: (kind, settings) pairs to measure; by default `default_grid`. Neighbours that differ only in
            `SEARCH_SETTINGS` share one index.
        depth: Hits per query, at least 100, as `recall_100` needs them.
        rounds: How often each search is timed, at least 1.

    Returns:
        One result per setting: exact search first, then the grid in its order.

    Raises:
        ValueError: `depth` or `rounds` is too small, the numbers of vectors do not fit the collection, or
            as in `build_index`.

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
    how = (query_ids, query_emb, depth)
    baseline = evaluate(collection.qrels, exact.search_run(*how, "exact", collection.own_documents), [METRIC])
    results, index, built = [], exact, ("exact", {})
    for kind, settings in [("exact", {}), *(grid or default_grid(*passage_emb.shape))]:
        steering = {name: value for name, value in settings.items() if name in SEARCH_SETTINGS}
        lasting = {name: value for name, value in settings.items() if name not in SEARCH_SETTINGS}
        if (kind, lasting) != built:
            index, build_s = _built(kind, passage_emb, doc_ids, similarity, lasting)
            built = (kind, lasting)
        index.with_search(**{**_steering_defaults(kind), **steering})
        found = index.search(query_emb, depth)[1]
        run = index.search_run(*how, "approximate", collection.own_documents)
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
    """For each kind except exact, its quickest result with at least that recall@10; None if there is none."""
    kinds = dict.fromkeys(result.kind for result in results if result.kind != "exact")
    good = sorted((r for r in results if r.recall_10 >= recall_10), key=lambda r: -r.queries_per_s)
    return {kind: next((r for r in good if r.kind == kind), None) for kind in kinds}


def pareto(results: Sequence[AnnResult]) -> list[AnnResult]:
    """The Pareto front of recall@10 and queries per second, by rising recall.

    A result is left out if another one is at least as good in both and better in one.
    """
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
    """Build an index; return it and the seconds it took."""
    start = time.perf_counter()
    index = build_index(kind, passage_emb, doc_ids, similarity, **settings)
    return index, time.perf_counter() - start


def _steering_defaults(kind: str) -> dict[str, int]:
    return {name: value for name, value in SETTINGS[kind].items() if name in SEARCH_SETTINGS}


def _seconds(index: Index, query_emb: np.ndarray, depth: int) -> float:
    """Seconds that one search for all queries takes."""
    start = time.perf_counter()
    index.search(query_emb, depth)
    return time.perf_counter() - start


def _similarities(query_emb, passage_emb, positions: np.ndarray, similarity: str) -> np.ndarray:
    """The true similarity of each found passage, float64 [Q, K]; minus infinity if none was found."""
    rows = np.empty(positions.shape)
    for query, found, out in zip(query_emb, positions, rows, strict=True):
        passages = np.asarray(passage_emb[found], dtype=np.float64)
        out[:] = passages @ query.astype(np.float64)
        if similarity == "cosine":
            out /= np.linalg.norm(passages, axis=1) * np.linalg.norm(query)
        out[found < 0] = -np.inf
    return rows


def _recall(best: np.ndarray, true: np.ndarray, cutoff: int) -> float:
    """Mean recall@`cutoff`, from the scores [Q, K] of exact search and the true ones [Q, K] of the hits."""
    cutoff = min(cutoff, best.shape[1])
    last = best[:, cutoff - 1 : cutoff].astype(np.float64)
    reached = (true[:, :cutoff] >= last - EQUAL * np.abs(last)).sum(axis=1)
    return float(np.minimum(reached, cutoff).mean() / cutoff)


FLOAT32, FLOAT16, INT32, INT64 = 4, 2, 4, 8


@checked
def plan_memory(num_passages: int, dim: int, **settings: int) -> dict[str, int]:
    """Bytes of vectors, codes, ids and links for each kind of index, with its default settings.

    The upper levels of graphs count with their expected size. The passages' texts and what building and
    searching need in addition are not counted.

    Args:
        num_passages: N, at least 1.
        dim: D, at least 1.
        **settings: Settings that replace the defaults of the kinds that have them, such as `m=16`.

    Returns:
        Kind → bytes; with those of float32 vectors for `exact` and `faiss-opq`, which may stay on disk
        (float16 takes half). Kinds that would learn from too few passages are missing.

    Raises:
        ValueError: A size is below 1, or no kind knows a setting.

    Source: the file formats of FAISS 1.15 and hnswlib 0.8; Malkov and Yashunin 2018, section 4, for the
    levels.

    >>> plan_memory(8_841_823, 384)["faiss-sqfp16"] / 2**30  # MS MARCO, GiB
    6.324...
    """
    return {
        kind: round(_bytes(kind, chosen, num_passages, dim))
        for kind, chosen in _plannable(num_passages, dim, settings)
    }


@checked
def plan_building(num_passages: int, dim: int, **settings: int) -> dict[str, int]:
    """Bytes of memory that `build_index` takes at most, for each kind, if the vectors are memory-mapped.

    It is what the process holds by itself: the index, twice where it grows by copying; what it learns from,
    three times; two blocks of vectors; and 128 bytes a passage while ids and lengths are checked. The ids
    themselves, and pages of files, which the system takes back when it needs them, are not counted.

    Args:
        num_passages: N, at least 1.
        dim: D, at least 1.
        **settings: As in `plan_memory`.

    Raises:
        ValueError: As in `plan_memory`.

    >>> plan_building(8_841_823, 384)["faiss-opq"] / 2**30  # MS MARCO, GiB
    5.466...
    """
    block = min(num_passages, BLOCK) * dim * FLOAT32
    bytes_of = {}
    for kind, chosen in _plannable(num_passages, dim, settings):
        learnt = sample_size(kind, chosen, num_passages) if "num_lists" in chosen else 0
        stays = num_passages * dim * FLOAT32 if kind in ("exact", "faiss-opq") else 0  # on disk
        grown = _bytes(kind, chosen, num_passages, dim) - stays
        bytes_of[kind] = round(128 * num_passages + 2 * block + 3 * learnt * dim * FLOAT32 + 2 * grown)
    return bytes_of


def _plannable(num_passages: int, dim: int, settings: dict[str, int]) -> Iterator[tuple[str, dict[str, int]]]:
    """Each kind that can be built, and its settings."""
    if num_passages < 1 or dim < 1:
        raise ValueError(f"num_passages and dim must be at least 1, got {num_passages} and {dim}")
    unknown = set(settings) - {name for known in SETTINGS.values() for name in known}
    if unknown:
        raise ValueError(f"no kind has the settings {sorted(unknown)}")
    for kind, defaults in SETTINGS.items():
        given = {name: value for name, value in settings.items() if name in defaults}
        if num_passages >= centroids(kind, given):
            yield kind, chosen_settings(kind, given, num_passages, dim)


def _bytes(kind: str, settings: dict[str, int], count: int, dim: int) -> float:
    """Expected bytes of one kind of index with these settings."""
    vectors = count * dim * FLOAT32
    if kind == "faiss-sqfp16":
        return count * dim * FLOAT16
    if kind in ("faiss-hnsw", "hnswlib"):
        m = settings["m"]
        upper_levels = count / (m - 1)  # over all nodes: one node in m reaches each next level
        if kind == "faiss-hnsw":
            links = (2 * m * count + m * upper_levels) * INT32
            return vectors + links + count * (INT32 + INT64)  # each node's level and offset
        links = ((2 * m + 1) * count + (m + 1) * upper_levels) * INT32
        return vectors + links + count * (INT32 + INT64)  # each node's number of levels and label
    if "num_lists" in settings:
        centroids = settings["num_lists"] * dim * FLOAT32
        if kind == "faiss-ivf":
            return vectors + count * INT64 + centroids
        codes = count * (settings["code_bytes"] + INT64) + centroids + PQ_CENTROIDS * dim * FLOAT32
        return codes + dim * dim * FLOAT32 + vectors if kind == "faiss-opq" else codes  # with the rotation
    return vectors
