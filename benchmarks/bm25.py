"""Queries a second of `BM25.search` beside pyserini's own `batch_search` and bm25s, alternating in one run.

    .venv/bin/python benchmarks/bm25.py [--collection nfcorpus] [--queries 600] [--rounds 3]
    .venv/bin/python benchmarks/bm25.py --memory    # 7,000 queries at depth 1000, this process alone

Both of Lucene must return the same hits, scores and order. bm25s (`pip install bm25s PyStemmer`) is measured
where it is installed; it has its own analysis, so its hits differ.
"""

import argparse
import importlib.util
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable

from dpr import BM25, load_collection
from dpr.data.trec import ordered_hits
from dpr.provenance import hardware
from dpr.search.bm25 import K1, B

DEPTHS = (100, 1000)


def one_by_one(index: BM25, queries: dict[str, str], depth: int) -> dict[str, dict[str, float]]:
    """pyserini's hits, converted one by one."""
    from pyserini.search.lucene import LuceneSearcher

    searcher = LuceneSearcher(str(index.folder / "lucene"))
    searcher.set_bm25(K1, B)
    found = searcher.batch_search(list(queries.values()), list(queries), depth, os.cpu_count() or 1)
    hits = {q: {hit.docid: float(hit.score) for hit in found.get(q) or ()} for q in queries}
    return {q: dict(ordered_hits(scores)) for q, scores in hits.items()}


def by_bm25s(texts: list[str]) -> Callable[[dict[str, str], int], object]:
    """A search by bm25s over these passages."""
    import bm25s
    import Stemmer

    stem = Stemmer.Stemmer("porter")
    made = bm25s.BM25(k1=K1, b=B, backend="numba")
    made.index(bm25s.tokenize(texts, stopwords="en", stemmer=stem, show_progress=False), show_progress=False)

    def search(queries: dict[str, str], depth: int) -> object:
        asked = bm25s.tokenize(list(queries.values()), stopwords="en", stemmer=stem, show_progress=False)
        return made.retrieve(asked, k=depth, n_threads=os.cpu_count() or 1, show_progress=False)

    return search


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--collection", default="nfcorpus")
    parser.add_argument("--queries", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    given = parser.parse_args()
    collection = load_collection(given.collection)
    with tempfile.TemporaryDirectory() as folder:
        index = BM25.build(collection, folder)
        if given.memory:
            texts = list(collection.all_queries.values())
            start = time.perf_counter()
            run = index.search({str(i): texts[i % len(texts)] for i in range(7_000)}, 1000)
            seconds, most = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(f"{run}: {seconds:.0f} s, {most / 2**20:.2f} GiB at most, all of the process")
            return
        queries = dict(list(collection.all_queries.items())[: given.queries])
        runs = {
            "BM25.search": lambda depth: index.search(queries, depth, leave_out_own=False),
            "pyserini's batch_search": lambda depth: one_by_one(index, queries, depth),
        }
        if importlib.util.find_spec("bm25s"):
            peer = by_bm25s([p.contents for p in collection.passages])
            runs["bm25s"] = lambda depth: peer(queries, depth)
        print(f"{len(queries)} queries of {collection.name}, {hardware()}, median of {given.rounds} rounds\n")
        print("| depth | | queries/s | BM25.search's over it (min to max) |\n|---:|---|---:|---:|")
        for depth in DEPTHS:
            found = [run(depth) for run in runs.values()]  # which also warms up
            assert found[0] == found[1], "the two return different hits"
            assert all(list(a) == list(b) for a, b in zip(found[0].values(), found[1].values(), strict=True))
            del found
            times: list[list[float]] = []
            for _ in range(given.rounds):
                times.append([])
                for run in runs.values():
                    start = time.perf_counter()
                    run(depth)
                    times[-1].append(time.perf_counter() - start)
            for name, column in zip(runs, zip(*times, strict=True), strict=True):
                ratios = sorted(t / row[0] for t, row in zip(column, times, strict=True))
                shown = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
                print(f"| {depth:,} | {name} | {len(queries) / statistics.median(column):.0f} | {shown} |")


if __name__ == "__main__":
    main()
