"""Pairs a second that a cross-encoder scores, beside `CrossEncoder.predict` at its defaults, alternating.

    .venv/bin/python benchmarks/reranking.py [--queries 6] [--rounds 3] [--precision float32]

BM25's first 100 hits of SciFact's queries at 256 tokens, by a cross-encoder of all-MiniLM-L6-v2's shape. What
its scores are worth plays no part; they must agree to 1e-5 in float32.
"""

import argparse
import statistics
import tempfile
import time

import numpy as np
from sentence_transformers import CrossEncoder

from dpr import BM25, BiEncoder, Reranker, load_collection
from dpr.provenance import hardware

DEPTH, LENGTH = 100, 256


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--queries", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precision", default="float32")
    given = parser.parse_args()
    collection = load_collection("scifact")
    queries = dict(list(collection.queries.items())[: given.queries])
    with tempfile.TemporaryDirectory() as folder:
        run = BM25.build(collection, f"{folder}/index").search(queries, DEPTH)
        pairs = [(queries[q], collection.by_id[d].contents) for q, hits in run.items() for d in hits]
        encoder = BiEncoder.from_pretrained("all-MiniLM-L6-v2")
        reranker = Reranker.from_encoder(encoder, LENGTH, "cls", precision=given.precision)
        reranker.save(f"{folder}/model")
        peer = CrossEncoder(f"{folder}/model")
    runs = {"Reranker": lambda: reranker.predict(pairs), "CrossEncoder.predict": lambda: peer.predict(pairs)}
    scores = {name: run() for name, run in runs.items()}
    gap = np.abs(scores["Reranker"] - scores["CrossEncoder.predict"]).max()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(given.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    print(f"{hardware()}, Reranker in {given.precision}; {len(pairs)} pairs, {given.rounds} rounds; ", end="")
    print(f"largest gap between two scores {gap:.1e}")
    for name, found in times.items():
        print(f"{name:>20}: {len(pairs) / statistics.median(found):.1f} pairs/s")
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    print(f"{'ratio':>20}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
