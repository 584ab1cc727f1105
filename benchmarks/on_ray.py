"""Passages a second encoded by workers on a Ray of this machine, beside one process, alternating.

    .venv/bin/python benchmarks/on_ray.py [--passages 1000] [--rounds 3] [--workers 2]

A sample of NFCorpus's passages at 256 tokens, all-MiniLM-L6-v2 in float32, in shards of 100;
both write the same files. Ray's start and end and the sending of the model are part of its time.
"""

import argparse
import os
import statistics
import tempfile
import time
from importlib.metadata import version

import numpy as np

from dpr import BiEncoder, encode_collection, load_collection
from dpr.provenance import hardware

SHARD = 100


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passages", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    given = parser.parse_args()
    part = load_collection("nfcorpus").sample(given.passages, 1)
    encoder = BiEncoder.from_pretrained("all-MiniLM-L6-v2", passage_max_length=256, precision="float32")
    ways = {"one process": {}, f"Ray, {given.workers} workers": {"engine": "ray", "workers": given.workers}}
    times: dict[str, list[float]] = {name: [] for name in ways}
    vectors = {}
    for _ in range(given.rounds):
        for name, how in ways.items():
            with tempfile.TemporaryDirectory() as folder:
                start = time.perf_counter()
                encoded = encode_collection(folder, encoder, part, shard_size=SHARD, **how)
                times[name].append(time.perf_counter() - start)
                vectors[name] = np.array(encoded.vectors)
    size = len(part.passages)
    gap = np.abs(np.subtract(*vectors.values())).max()
    print(
        f"{size} passages, {hardware()}, Ray {version('ray')}, median of {given.rounds} rounds; ",
        end="",
    )
    print(f"largest gap of a number in the vectors {gap:.1e}\n\n| | s | passages/s |\n|---|---:|---:|")
    for name, found in times.items():
        print(f"| {name} | {statistics.median(found):.1f} | {size / statistics.median(found):.1f} |")
    ratios = sorted(a / b for a, b in zip(*times.values(), strict=True))
    print(f"\nratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
