"""Passages a second that a causal language model writes queries for, beside `model.generate`, alternating.

    .venv/bin/python benchmarks/generation.py [--passages 48] [--rounds 3] [--queries 1] [--model NAME]

NFCorpus's passages, spread over the collection, at 256 tokens, after three examples; up to 32 new tokens, in
the same precision. The plain loop gives `model.generate` batches of 8, in the collection's order, with the
examples in front of each passage. Greedily (`--queries 1`) both must write the same queries, but for
bfloat16's rounding; with more, both sample, and only the speed is compared.
"""

import argparse
import statistics
import time

import torch
from transformers import AutoModelForCausalLM

from dpr import load_collection
from dpr.generation.decoding import Decoding
from dpr.generation.llm import PROMPTS, CausalGenerator
from dpr.models.bi_encoder import PRECISIONS
from dpr.models.checkpoint import find_checkpoint
from dpr.provenance import hardware

BATCH, LENGTH = 8, 32


@torch.inference_mode()
def plain_loop(model, tokenizer, texts: list[str], num_queries: int, longest: int) -> list[list[str]]:
    prompt, written = PROMPTS["examples"], []
    tokenizer.padding_side = "left"
    cut = [tokenizer.decode(ids[:longest]) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    how = {"do_sample": True, "temperature": 0.7, "top_k": 10, "num_return_sequences": num_queries}
    for start in range(0, len(texts), BATCH):
        asked = [f"{prompt.before} {text}{prompt.after}" for text in cut[start : start + BATCH]]
        found = tokenizer(asked, padding=True, return_tensors="pt")
        ids = model.generate(
            **found,
            max_new_tokens=LENGTH,
            stop_strings=["\n"],
            tokenizer=tokenizer,
            **(how if num_queries > 1 else {"do_sample": False}),
        )
        new = tokenizer.batch_decode(ids[:, found["input_ids"].shape[1] :], skip_special_tokens=True)
        queries = [" ".join(text.split("\n")[0].split()) for text in new]
        written += [queries[i : i + num_queries] for i in range(0, len(queries), num_queries)]
    return written


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--passages", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--queries", type=int, default=1)
    parser.add_argument("--model", default="gemma-3-270m")
    given = parser.parse_args()
    passages = load_collection("nfcorpus").passages
    chosen = passages[:: max(1, len(passages) // given.passages)][: given.passages]
    texts = [" ".join(passage.contents.split()) for passage in chosen]
    writer = CausalGenerator.from_pretrained(given.model)
    peer = AutoModelForCausalLM.from_pretrained(
        find_checkpoint(given.model), dtype=PRECISIONS[writer.precision]
    )
    method = "greedy" if given.queries == 1 else "sample"
    decoding = Decoding(method, given.queries, LENGTH, top_k=10, temperature=0.7)
    longest = writer.config.passage_max_length
    runs = {
        "CausalGenerator": lambda: writer.generate(texts, decoding),
        "plain loop": lambda: plain_loop(peer, writer.tokenizer, texts, given.queries, longest),
    }
    written = {name: run() for name, run in runs.items()}
    same = sum(a == b for a, b in zip(*written.values(), strict=True)) / len(texts)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(given.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    print(f"{hardware()}, {writer.precision}; {len(texts)} passages, {given.queries} queries each, ", end="")
    print(f"{given.rounds} rounds" + (f"; the same query for {same:.0%}" if method == "greedy" else ""))
    for name, found in times.items():
        print(f"{name:>16}: {len(texts) / statistics.median(found):.2f} passages/s")
    ratios = [b / a for a, b in zip(*times.values(), strict=True)]
    print(f"{'ratio':>16}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")


if __name__ == "__main__":
    main()
