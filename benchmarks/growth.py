"""How time and memory grow with the number of vectors: writing shards, building from them, searching.

    .venv/bin/python benchmarks/growth.py [--passages 171332] [--doublings 3] [--folder build/growth]

Vectors with structure (clusters of clusters, of length 1) are written as numbered shards, 2 GiB for the
largest. Each kind of index has a process of its own, which reads the shards as memory maps; its memory is
the most that it takes in addition, pages of files aside. Growth is time over time, divided by vectors over
vectors.
"""

import argparse
import math
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from dpr.files import atomic_path
from dpr.provenance import hardware
from dpr.search.ann import plan_building
from dpr.search.index import Index, build_index
from dpr.search.vector_shards import VectorShards

DIMENSION, SHARD, QUERIES, DEPTH = 384, 16_384, 100, 100
AWAY = 2**40  # the seed of the queries, which no shard has
KINDS = ("exact", "faiss-sqfp16", "faiss-opq")


def structured(count: int, seed: int) -> np.ndarray:
    """Unit vectors float32 [n, D] around 2,000 centres, which lie around 50: much as embeddings do."""
    made = np.random.default_rng(0)
    coarse = made.standard_normal((50, DIMENSION), dtype=np.float32)
    centres = coarse[made.integers(0, 50, 2_000)] + made.standard_normal((2_000, DIMENSION), dtype=np.float32)
    rng = np.random.default_rng([1, seed])
    noise = rng.standard_normal((count, DIMENSION), dtype=np.float32)
    vectors = centres[rng.integers(0, len(centres), count)] + noise
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def write(folder: Path, count: int) -> None:
    """Write as many vectors in shards."""
    for number, start in enumerate(range(0, count, SHARD)):
        with atomic_path(folder / f"shard-{number:06}.npy") as temporary, temporary.open("wb") as stream:
            np.save(stream, structured(min(SHARD, count - start), start))


def build(kind: str, folder: Path) -> Index:
    """Build an index from the shards."""
    vectors = VectorShards.open(folder)
    return build_index(kind, vectors, range(len(vectors)), "dot")


class Memory(threading.Thread):
    """Watches the process's own memory, pages of files aside."""

    def __init__(self):
        super().__init__(daemon=True)
        self.before = self.most = self.now()
        self.start()

    def run(self) -> None:
        while True:
            self.most = max(self.most, self.now())
            time.sleep(0.02)

    @staticmethod
    def now() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


def measured(action):
    """What an action returns, its seconds, and the MiB that it takes at most beside what was there."""
    memory, start = Memory(), time.perf_counter()
    made = action()
    return made, (time.perf_counter() - start, (memory.most - memory.before) / 2**20)


def stage(name: str, folder: Path, count: int) -> None:
    """Write, or build an index of one kind and search it; print a row for each: seconds, MiB, recall@100."""
    if name == "write":
        print(name, *measured(lambda: write(folder, count))[1], math.nan)
        return
    index, taken = measured(lambda: build(name, folder))
    print(f"build:{name}", *taken, math.nan)
    queries = structured(QUERIES, AWAY)
    (_, found), taken = measured(lambda: index.search(queries, DEPTH))
    best = build("exact", folder).search(queries, DEPTH)[1]
    pairs = zip(found, best, strict=True)
    print(f"search:{name}", *taken, np.mean([len(np.intersect1d(*pair)) / DEPTH for pair in pairs]))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passages", type=int, default=171_332)
    parser.add_argument("--doublings", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("build/growth"))
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.stage:
        return stage(given.stage, given.folder, given.passages)
    print(f"D {DIMENSION}, {QUERIES} queries at once, depth {DEPTH}, {hardware()}\n")
    print(
        "| stage | vectors | s | growth | MiB | planned | recall@100 |\n|---|---:|---:|---:|---:|---:|---:|"
    )
    before: dict[str, float] = {}
    for count in (given.passages << doubling for doubling in range(given.doublings + 1)):
        folder = given.folder / str(count)
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("write", *KINDS):
            again = ["--stage", name, "--folder", str(folder), "--passages", str(count)]
            made = subprocess.run(
                [sys.executable, __file__, *again], check=True, stdout=subprocess.PIPE, text=True
            )
            for line in made.stdout.splitlines():
                what, *numbers = line.split()
                seconds, most, recall = map(float, numbers)
                growth = seconds / before[what] / 2 if what in before else math.nan
                planned = plan_building(count, DIMENSION)[name] / 2**20 if "build" in what else math.nan
                before[what] = seconds
                row = (
                    f"| {what.replace(':', ' ')} | {count:,} | {seconds:.2f} | {growth:.2f} | {most:,.0f} | "
                )
                print((row + f"{planned:,.0f} | {recall:.3f} |").replace("nan", ""), flush=True)
        for path in folder.glob("shard-*.npy"):
            path.unlink()


if __name__ == "__main__":
    main()
