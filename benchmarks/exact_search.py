"""Queries a second of `build_index("exact", …)` beside FAISS's exhaustive searches, alternating in one run.

    .venv/bin/python benchmarks/exact_search.py [--passages 171332] [--rounds 5]

Random unit vectors of TREC-COVID's size. All must return the same ten best passages. `faiss.knn`
searches an array, without an index, and is the quicker of the two for one query.
"""

import argparse
import os
import statistics
import time

import faiss
import numpy as np

from dpr.provenance import hardware
from dpr.search.index import build_index

DIMENSION, DEPTH = 384, 1000
QUERIES = (1, 50, 1000)


def unit_vectors(rng: np.random.Generator, count: int) -> np.ndarray:
    vectors = rng.standard_normal((count, DIMENSION), dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=171_332)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    passages = unit_vectors(rng, given.passages)
    ours = build_index("exact", passages, [str(i) for i in range(len(passages))], "dot")
    theirs = faiss.IndexFlatIP(DIMENSION)
    theirs.add(passages)
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    print(f"{given.passages:,} x {DIMENSION}, depth {DEPTH}, {hardware()}, median of {given.rounds} rounds\n")
    print("| queries at once | exact queries/s | FAISS | its queries/s | exact over it (min to max) |")
    print("|---:|---:|---|---:|---:|")
    for count in QUERIES:
        queries = unit_vectors(rng, count)
        searches = {
            "exact": lambda q=queries: ours.search(q, DEPTH),
            "IndexFlatIP": lambda q=queries: theirs.search(q, DEPTH),
            "knn": lambda q=queries: faiss.knn(q, passages, DEPTH, metric=faiss.METRIC_INNER_PRODUCT),
        }
        first = [search()[1][:, :10] for search in searches.values()]
        assert all((found == first[0]).all() for found in first), "they return different passages"
        times = [[seconds(search) for search in searches.values()] for _ in range(given.rounds)]
        mine, *columns = zip(*times, strict=True)
        for name, column in zip(list(searches)[1:], columns, strict=True):
            ratios = sorted(other / own for own, other in zip(mine, column, strict=True))
            own, other = (count / statistics.median(taken) for taken in (mine, column))
            print(
                f"| {count:,} | {own:,.0f} | {name} | {other:,.0f} "
                f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
            )


if __name__ == "__main__":
    main()
