"""Texts a second of `BiEncoder.encode_passages` beside `SentenceTransformer.encode`, alternating in one run.

    .venv/bin/python benchmarks/encoding.py [--passages 600] [--rounds 5]
    .venv/bin/python benchmarks/encoding.py --random-l12 --precision bfloat16   # for a GPU

NFCorpus's passages, spread over the collection, at 256 tokens; both libraries at their defaults. The
vectors must agree to a cosine of 0.9999 (0.999 in half precision). With `--random-l12` the model has
MiniLM-L12's shape and random weights, which serve for speed, and sentence-transformers is measured in
float32 and float16.
"""

import argparse
import statistics
import tempfile
import time

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

from dpr import BiEncoder, load_collection
from dpr.models.checkpoint import find_checkpoint, save_random
from dpr.provenance import hardware

MAX_LENGTH = 256


def random_l12(folder: str) -> str:
    """Write a sentence-transformers folder of MiniLM-L12's shape with random weights."""
    save_random(f"{folder}/plain", "all-MiniLM-L6-v2", seed=0, num_hidden_layers=12)
    parts = [Transformer(f"{folder}/plain", max_seq_length=MAX_LENGTH), Pooling(384, "mean"), Normalize()]
    SentenceTransformer(modules=parts).save(f"{folder}/l12", create_model_card=False)
    return f"{folder}/l12"


def seconds(function) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passages", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=["float32", "float16", "bfloat16"])
    parser.add_argument("--random-l12", action="store_true")
    given = parser.parse_args()
    passages = load_collection("nfcorpus").passages
    texts = [passage.contents for passage in passages[:: max(1, len(passages) // given.passages)]]
    with tempfile.TemporaryDirectory() as folder:
        path = random_l12(folder) if given.random_l12 else find_checkpoint("all-MiniLM-L6-v2")
        ours = BiEncoder.from_pretrained(path, precision=given.precision)
        kinds = (torch.float32, torch.float16) if given.random_l12 else (torch.float32,)
        theirs = {str(k)[6:]: SentenceTransformer(path, model_kwargs={"dtype": k}) for k in kinds}
    runs = {f"BiEncoder, {ours.precision}": lambda: ours.encode_passages(texts)}
    runs |= {
        f"SentenceTransformer, {kind}": lambda model=model: model.encode(texts)
        for kind, model in theirs.items()
    }
    vectors = [run() for run in runs.values()]  # the first round warms up
    cosine = np.sum(vectors[0] * vectors[1], axis=1).min()
    assert cosine >= (0.9999 if ours.precision == "float32" else 0.999), f"smallest cosine {cosine}"
    times = [[seconds(run) for run in runs.values()] for _ in range(given.rounds)]
    print(
        f"{len(texts):,} passages of NFCorpus, {MAX_LENGTH} tokens, {hardware()}, median of {given.rounds} "
        f"rounds; smallest cosine between the two {cosine:.7f}\n"
    )
    print("| | texts/s | BiEncoder's over it (min to max) |\n|---|---:|---:|")
    for name, column in zip(runs, zip(*times, strict=True), strict=True):
        ratios = sorted(t / round_[0] for t, round_ in zip(column, times, strict=True))
        rate = len(texts) / statistics.median(column)
        print(
            f"| {name} | {rate:.1f} | {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) |"
        )


if __name__ == "__main__":
    main()
