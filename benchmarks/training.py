"""A training step of ours beside one of sentence-transformers' trainer, alternating in one run.

    .venv/bin/python benchmarks/training.py [--steps 12] [--rounds 5] [--batch 32] [--data squad-triples]
    .venv/bin/python benchmarks/training.py --random-l12 --precision bfloat16 --batch 256   # for a GPU
    .venv/bin/python benchmarks/training.py --memory   # gradient caching, batch 512

The same triples, model, batch size, lengths, temperature, optimiser and dropout; there
MultipleNegativesRankingLoss, here our in-batch loss, both with the given hard negative. What is timed are
whole steps of either Trainer.
"""

import argparse
import logging
import statistics
import tempfile
import time
from dataclasses import replace

import torch
from datasets import Dataset
from encoding import random_l12
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer
from sentence_transformers.sentence_transformer import losses
from sentence_transformers.sentence_transformer.training_args import SentenceTransformerTrainingArguments
from transformers import PrinterCallback, TrainerCallback

from dpr import BiEncoder, TrainingSettings, load_training_data
from dpr.models.checkpoint import find_checkpoint
from dpr.provenance import hardware
from dpr.training.bi_encoder import BiEncoderTrainer
from dpr.training.trainer import memory_bytes

LENGTH = 128  # tokens, of queries and passages alike, as sentence-transformers has one length
WARM_UP = 2  # steps


class Clock(TrainerCallback):
    """Seconds of the steps after the first few."""

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == WARM_UP:
            self.start = time.perf_counter()

    def on_step_end(self, args, state, control, **_):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if state.global_step == state.max_steps:
            self.step_s = (time.perf_counter() - self.start) / (state.max_steps - WARM_UP)


def ours(path, data, settings) -> float:
    encoder = BiEncoder.from_pretrained(path, query_max_length=LENGTH, passage_max_length=LENGTH)
    trainer, clock = BiEncoderTrainer(encoder, data, None, settings), Clock()
    trainer.add_callback(clock)
    trainer.train()
    return clock.step_s


def theirs(path, data, settings) -> float:
    model, clock = SentenceTransformer(path), Clock()
    model.max_seq_length = LENGTH
    rows = Dataset.from_list(
        [
            {
                "anchor": e.query,
                "positive": data.passages[next(iter(e.positives))],
                "negative": data.passages[e.negatives[0]],
            }
            for e in data.examples
            if e.negatives
        ]
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = SentenceTransformerTrainingArguments(
            folder,
            max_steps=settings.num_steps,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            bf16=settings.precision == "bfloat16",
            fp16=settings.precision == "float16",
            logging_steps=settings.log_every,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        loss = losses.MultipleNegativesRankingLoss(model, scale=1 / settings.temperature)
        trainer = SentenceTransformerTrainer(model, arguments, train_dataset=rows, loss=loss)
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(clock)
        trainer.train()
    return clock.step_s


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--data", default="squad-triples")
    parser.add_argument("--precision", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--random-l12", action="store_true")
    parser.add_argument("--memory", action="store_true")
    given = parser.parse_args()
    logging.getLogger("transformers").setLevel(logging.ERROR)
    data = load_training_data(given.data)
    settings = TrainingSettings(
        num_steps=given.steps + WARM_UP, batch_size=given.batch, precision=given.precision, log_every=5
    )
    if given.memory:
        settings = replace(settings, num_steps=1, batch_size=512, gradient_caching=True)
        encoder = BiEncoder.from_pretrained("all-MiniLM-L6-v2", passage_max_length=LENGTH)
        BiEncoderTrainer(encoder, data, None, settings).train()
        print(
            f"batch 512 with a hard negative each, {LENGTH} tokens: {memory_bytes() / 2**30:.2f} GiB at most"
        )
        return
    with tempfile.TemporaryDirectory() as folder:
        path = random_l12(folder) if given.random_l12 else find_checkpoint("all-MiniLM-L6-v2")
        times = [(ours(path, data, settings), theirs(path, data, settings)) for _ in range(given.rounds)]
    print(
        f"{data.name}, batch {given.batch} with a hard negative each, {LENGTH} tokens, {given.precision}, "
        f"{hardware()}, median of {given.rounds} rounds of {given.steps} steps\n\n"
        "| | examples/s |\n|---|---:|"
    )
    for name, column in zip(("dpr", "sentence-transformers"), zip(*times, strict=True), strict=True):
        print(f"| {name} | {given.batch / statistics.median(column):.1f} |")
    ratios = sorted(theirs_s / ours_s for ours_s, theirs_s in times)
    print(f"\nratio {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    epoch_s = len(data.examples) / given.batch * statistics.median(step_s for step_s, _ in times)
    print(f"an epoch over {data.name}: {epoch_s:.0f} s")


if __name__ == "__main__":
    main()
