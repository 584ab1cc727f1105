"""Passages a second that queries are written for, beside a plain loop over `model.generate`, alternating.

    .venv/bin/python benchmarks/generation.py [--passages 256] [--rounds 5] [--model FOLDER]

NFCorpus's passages, spread over the collection, at 128 tokens, greedy queries of up to 24. The plain loop
takes batches of 16 in the collection's order, on all cores. The model is all-MiniLM-L6-v2 warm-started with
two decoder layers and not trained: it rarely ends a query, so both write full lengths. `--model` takes a
trained one. Both must write the same queries.
"""

import argparse
import statistics
import time

import torch

from dpr import load_collection
from dpr.generation.decoding import Decoding
from dpr.generation.generator import QueryGenerator
from dpr.provenance import hardware

LENGTHS = {"passage_max_length": 128, "query_max_length": 24}
BATCH = 16


@torch.inference_mode()
def plain_loop(generator: QueryGenerator, texts: list[str]) -> list[list[str]]:
    written = []
    for start in range(0, len(texts), BATCH):
        found = generator.tokenizer(
            texts[start : start + BATCH],
            truncation=True,
            max_length=LENGTHS["passage_max_length"],
            padding=True,
            return_tensors="pt",
        ).to(generator.model.device)
        ids = generator.model.generate(
            input_ids=found["input_ids"],
            attention_mask=found["attention_mask"],
            do_sample=False,
            max_new_tokens=LENGTHS["query_max_length"],
        )
        decoded = generator.tokenizer.batch_decode(ids, skip_special_tokens=True)
        written += [[" ".join(text.split())] for text in decoded]
    return written


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passages", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--model")
    given = parser.parse_args()
    passages = load_collection("nfcorpus").passages
    texts = [passage.contents for passage in passages[:: max(1, len(passages) // given.passages)]]
    if given.model:
        generator = QueryGenerator.from_pretrained(given.model, precision="float32", **LENGTHS)
    else:
        generator = QueryGenerator.warm_started("all-MiniLM-L6-v2", num_decoder_layers=2, **LENGTHS)
    generator.model.eval()
    greedy = Decoding("greedy", max_length=LENGTHS["query_max_length"])
    runs = {
        "QueryGenerator": lambda: generator.generate(texts, greedy),
        "plain loop": lambda: plain_loop(generator, texts),
    }
    written = {name: run() for name, run in runs.items()}
    same = sum(a == b for a, b in zip(*written.values(), strict=True)) / len(texts)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(given.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    print(f"{hardware()}; {len(texts)} passages, {given.rounds} rounds; the same queries for {same:.1%}")
    for name, found in times.items():
        print(f"{name:>16}: {len(texts) / statistics.median(found):.1f} passages/s")
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    print(f"{'ratio':>16}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
