"""Queries a second of `build_index("exact", …)` beside FAISS's exhaustive index, alternating in one run.

    .venv/bin/python benchmarks/exact_search.py [--passages 171332] [--rounds 5]

Random unit vectors of TREC-COVID's size. Both must return the same ten best passages.
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


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
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
    print("| queries at once | exact queries/s | FAISS IndexFlatIP queries/s | ratio (min to max) |")
    print("|---:|---:|---:|---:|")
    for count in QUERIES:
        queries = unit_vectors(rng, count)
        mine, same = ours.search(queries, DEPTH)[1], theirs.search(queries, DEPTH)[1]
        assert (mine[:, :10] == same[:, :10]).all(), "the two return different passages"
        times = [
            (seconds(ours.search, queries, DEPTH), seconds(theirs.search, queries, DEPTH))
            for _ in range(given.rounds)
        ]
        ratios = sorted(t / o for o, t in times)
        rates = [count / statistics.median(column) for column in zip(*times, strict=True)]
        print(
            f"| {count:,} | {rates[0]:,.0f} | {rates[1]:,.0f} "
            f"| {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )


if __name__ == "__main__":
    main()
