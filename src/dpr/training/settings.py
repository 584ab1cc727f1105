"""The settings of a training run."""

import math
from dataclasses import dataclass
from typing import ClassVar

PRECISIONS = ("float32", "bfloat16", "float16")
SCHEDULES = ("linear", "cosine")
VALIDATION_METRICS = ("nDCG@10", "RR@10", "R@100")
TEXT_METRICS = ("BLEU", "ROUGE-1", "ROUGE-2", "ROUGE-L")
PASSAGE_GAIN = "passage gain"


@dataclass(frozen=True)
class LoopSettings:
    """How any of our models is trained: what the loop does, whatever the loss.

    Args:
        num_epochs: Passes over the queries, or passages; ignored where `num_steps` is given.
        num_steps: Optimiser steps, in the place of `num_epochs`.
        batch_size: Records in a batch, each a query with a passage.
        queries_per_passage: An epoch takes each passage with so many of its queries; None for each
            query with one of its passages. For queries with many positives.
        learning_rate: At its highest, after the warm-up.
        schedule: `linear` or `cosine`, from there down to the floor.
        warmup_share: Share of the steps over which the learning rate rises from 0.
        floor_share: What the learning rate falls to, as a share of the highest; above 0.
        weight_decay: AdamW's, on weights other than biases and layer norms.
        max_grad_norm: Gradients are scaled down to this norm.
        accumulation: Batches a step.
        precision: `float32`, `bfloat16` or `float16`; the weights stay in float32. None: bfloat16 on a
            GPU, else float32.
        dropout: Sets every dropout rate of the model; None leaves its own.
        activation_checkpointing: Compute activations again for the gradient, by layers of the model: less
            memory, one more forward pass of time.
        eval_every: Steps between evaluations, each with a checkpoint; 0 for the end only.
        log_every: Steps between lines of the history; a divisor of `eval_every`.
        metric: The validation metric that picks the checkpoint.
        patience: Evaluations without a better one after which training stops; None for never.
        seed: Of order, choice and dropout.

    Raises:
        ValueError: A value outside its range; names field and value.
    """

    METRICS: ClassVar[tuple[str, ...]]

    num_epochs: float = 1.0
    num_steps: int | None = None
    batch_size: int = 32
    queries_per_passage: int | None = None
    learning_rate: float = 3e-5
    schedule: str = "linear"
    warmup_share: float = 0.1
    floor_share: float = 0.05
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    accumulation: int = 1
    precision: str | None = None
    dropout: float | None = None
    activation_checkpointing: bool = False
    eval_every: int = 0
    log_every: int = 10
    metric: str = ""
    patience: int | None = None
    seed: int = 0

    def __post_init__(self):
        for name, low, high in (
            ("num_epochs", 0, math.inf),
            ("floor_share", 0, 1),
            ("max_grad_norm", 0, math.inf),
        ):
            if not low < getattr(self, name) <= high:
                raise ValueError(
                    f"{name} must be above {low:g} and at most {high}, got {getattr(self, name)}"
                )
        for name, low in (
            ("batch_size", 2),
            ("accumulation", 1),
            ("eval_every", 0),
            ("log_every", 1),
            ("weight_decay", 0),
            ("learning_rate", 0),
        ):
            if not getattr(self, name) >= low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("num_steps", "queries_per_passage", "patience"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be None or at least 1, got {getattr(self, name)}")
        for name in ("warmup_share", "dropout"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)}")
        for name, known in (
            ("schedule", SCHEDULES),
            ("metric", self.METRICS),
            ("precision", (None, *PRECISIONS)),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        if self.eval_every % self.log_every:
            raise ValueError(
                f"log_every must divide eval_every, got {self.log_every} and {self.eval_every}: a run that "
                f"goes on from a checkpoint would log other averages"
            )


@dataclass(frozen=True)
class TrainingSettings(LoopSettings):
    """How a bi-encoder is trained: what `LoopSettings` says, and the contrastive loss.

    The records of a batch share their passages as negatives; with `accumulation` those of the batches of a
    step stay apart.

    Args:
        all_positives: Whether all positives of a query in a batch count; by default one a record.
        num_negatives: Hard negatives a query, as far as the data has them.
        temperature: What similarities are divided by in the loss.
        symmetric: Whether passages also choose among the queries of the batch.
        pass_tokens: Tokens that go through the model at once; None: a whole batch on a GPU, 2,048 on a CPU.
        gradient_caching: Keep the activations of one pass at a time, computed again when its gradient
            is due: the memory of a pass for any batch size, one more forward pass of time.
        metric: Which of nDCG@10, RR@10 and R@100 over the validation pool picks the checkpoint.

    Raises:
        ValueError: A value outside its range; names field and value.

    Source: Gao et al. 2021, Scaling deep contrastive learning batch size (gradient caching).
    """

    METRICS = VALIDATION_METRICS

    all_positives: bool = False
    num_negatives: int = 1
    temperature: float = 0.05
    symmetric: bool = False
    pass_tokens: int | None = None
    gradient_caching: bool = False
    metric: str = "nDCG@10"

    def __post_init__(self):
        super().__post_init__()
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.num_negatives < 0:
            raise ValueError(f"num_negatives must be at least 0, got {self.num_negatives}")
        if self.pass_tokens is not None and self.pass_tokens < 1:
            raise ValueError(f"pass_tokens must be None or at least 1, got {self.pass_tokens}")


@dataclass(frozen=True)
class GeneratorSettings(LoopSettings):
    """How a query generator is trained: what `LoopSettings` says, and the cross-entropy of its tokens.

    Args:
        label_smoothing: Share of the probability spread over all tokens.
        train_encoder: Whether the side that reads is trained too. Otherwise each passage is read once, before
            training: quicker, and what the encoder knows of passages stays.
        metric: What picks the checkpoint: ROUGE-L, ROUGE-1, ROUGE-2 or BLEU of greedy queries, or
            `passage gain`, how much larger the loss of the held-out queries is with each other's passages.
            The first four also rise when a generator learns by heart how queries begin; the last only with
            what it takes from a passage, which is what expansion needs.

    Raises:
        ValueError: A value outside its range; names field and value.
    """

    METRICS = (*TEXT_METRICS, PASSAGE_GAIN)

    label_smoothing: float = 0.0
    train_encoder: bool = True
    metric: str = "ROUGE-L"

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing must be at least 0 and below 1, got {self.label_smoothing}")
