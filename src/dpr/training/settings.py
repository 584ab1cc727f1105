"""The settings of a training."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from dpr.arguments import check_fields_of

PRECISIONS = ("float32", "bfloat16", "float16")
SCHEDULES = ("linear", "cosine")
VALIDATION_METRICS = ("nDCG@10", "RR@10", "R@100")
DISTILLATION_LOSSES = ("kl_divergence", "margin_mse")
RERANKING_LOSSES = ("binary_cross_entropy", "mse", "margin_mse", "listwise")
RERANKING_METRICS = ("nDCG@10", "RR@10")
TEXT_METRICS = ("BLEU", "ROUGE-1", "ROUGE-2", "ROUGE-L")
PASSAGE_GAIN = "passage gain"


def check_fields(settings: Any, rule: str, holds: Callable[[Any], bool], *names: str) -> None:
    """Refuse settings in which a field breaks a rule.

    Args:
        settings: Anything with these fields.
        rule: What a value must be, in words.
        holds: Whether a value is that.
        *names: The fields to look at.

    Raises:
        ValueError: A value breaks the rule; names field, rule and value.
    """
    for name in names:
        if not holds(getattr(settings, name)):
            raise ValueError(f"{name} must be {rule}, got {getattr(settings, name)!r}")


@dataclass(frozen=True)
class LoopSettings:
    """Settings of the training loop, which every kind of model shares whatever its loss.

    Args:
        num_epochs: Passes over the queries or passages, above 0; ignored if `num_steps` is given.
        num_steps: Optimiser steps, instead of `num_epochs`.
        batch_size: Records in a batch, each a query with a passage; at least 2.
        queries_per_passage: Useful where queries have many positives: an epoch takes each passage with up
            to this many of its queries. None: an epoch takes each query with one of its passages.
        learning_rate: The highest learning rate, reached after the warm-up.
        schedule: How the learning rate falls from there to its floor: `linear` or `cosine`.
        warmup_share: Share of the steps over which the learning rate rises from 0.
        floor_share: The final learning rate as a share of the highest; above 0.
        weight_decay: AdamW's weight decay; biases and layer norms have none.
        max_grad_norm: Largest gradient norm; larger gradients are scaled down to it.
        accumulation: Batches per optimiser step.
        precision: `float32`, `bfloat16` or `float16`; the weights stay in float32. None: bfloat16 on a
            GPU, else float32. A processor without bfloat16 in hardware computes in float32 instead of it,
            with a warning.
        dropout: Every dropout rate of the model; None keeps the model's own rates.
        activation_checkpointing: Compute the activations of each layer again for its gradient: less
            memory for the time of one more forward pass.
        eval_every: Steps between evaluations, each with a checkpoint; 0 for the end only.
        log_every: Steps between lines of the history; a divisor of `eval_every`.
        metric: The validation metric that picks the checkpoint.
        patience: Evaluations in a row without an improvement after which training stops; None: never.
        seed: Seed of record order, choice of positives and dropout.

    Raises:
        ValueError: A value outside its range; the message names field and value.
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
        check_fields_of(self)
        check_fields(self, "above 0", lambda v: v > 0, "num_epochs", "max_grad_norm")
        check_fields(self, "above 0 and at most 1", lambda v: 0 < v <= 1, "floor_share")
        check_fields(self, "at least 0", lambda v: v >= 0, "eval_every", "weight_decay", "learning_rate")
        check_fields(self, "at least 1", lambda v: v >= 1, "accumulation", "log_every")
        check_fields(self, "at least 2", lambda v: v >= 2, "batch_size")
        optional = ("num_steps", "queries_per_passage", "patience")
        check_fields(self, "None or at least 1", lambda v: v is None or v >= 1, *optional)
        shares = ("warmup_share", "dropout")
        check_fields(self, "at least 0 and below 1", lambda v: v is None or 0 <= v < 1, *shares)
        for name, known in (
            ("schedule", SCHEDULES),
            ("metric", self.METRICS),
            ("precision", (None, *PRECISIONS)),
        ):
            check_fields(self, f"one of {known}", known.__contains__, name)
        if self.eval_every % self.log_every:
            raise ValueError(
                f"log_every must divide eval_every, got {self.log_every} and {self.eval_every}: a training "
                f"that goes on from a checkpoint would log other averages"
            )


@dataclass(frozen=True)
class TrainingSettings(LoopSettings):
    """Settings of a bi-encoder's training: those of `LoopSettings` and of the contrastive loss.

    The records of a batch use each other's passages as negatives. With `accumulation`, each batch of a step
    uses only its own passages.

    Args:
        all_positives: Whether all positives of a query in the batch count; otherwise only its record's.
        num_negatives: Hard negatives per query; a query with fewer gives all it has.
        temperature: The loss divides similarities by it; above 0.
        symmetric: Whether the loss also compares each passage with all queries of the batch.
        pass_tokens: Most tokens in one pass through the model; None: the whole batch on a GPU, 2,048
            on a CPU.
        gradient_caching: Keep the activations of only one pass at a time and compute them again for its
            gradient: any batch size in the memory of one pass, for the time of one more forward pass.
        metric: Which validation metric picks the checkpoint: nDCG@10, RR@10 or R@100.

    Raises:
        ValueError: A value outside its range; the message names field and value.

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
        check_fields(self, "above 0", lambda v: v > 0, "temperature")
        check_fields(self, "at least 0", lambda v: v >= 0, "num_negatives")
        check_fields(self, "None or at least 1", lambda v: v is None or v >= 1, "pass_tokens")


@dataclass(frozen=True)
class DistillationSettings(TrainingSettings):
    """Settings of a bi-encoder's training by a teacher's scores (`TrainingData.with_scores`).

    The loss is one of `dpr.training.distillation` over all passages of the batch whose score for the query
    is known, alone or beside the contrastive loss. It has no symmetric form.

    Args:
        loss: `kl_divergence` or `margin_mse`.
        contrastive_weight: The contrastive loss is added with this weight; 0: it plays no part.
        teacher_temperature: The teacher's scores are divided by it before their softmax; above 0.
        frozen_passages: Train only the query encoder of `TwoEncoders`. The vectors of passages stay, and with
            them every index; each query is compared with all passages of the data, none is encoded again,
            and hard negatives play no part.

    Raises:
        ValueError: A value outside its range; the message names field and value.
    """

    loss: str = "kl_divergence"
    contrastive_weight: float = 0.0
    teacher_temperature: float = 0.05
    frozen_passages: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_fields(self, f"one of {DISTILLATION_LOSSES}", DISTILLATION_LOSSES.__contains__, "loss")
        check_fields(self, "at least 0", lambda v: v >= 0, "contrastive_weight")
        check_fields(self, "above 0", lambda v: v > 0, "teacher_temperature")
        check_fields(self, "False in distillation", lambda v: not v, "symmetric")


@dataclass(frozen=True)
class GeneratorSettings(LoopSettings):
    """Settings of a query generator's training: those of `LoopSettings` and of the cross-entropy loss.

    Args:
        label_smoothing: Share of the probability that the loss spreads over all tokens.
        lora_rank: The rank of the adapters that are trained in place of the weights, one on each linear
            layer but the output layer, and added to the weights at the end; see
            `dpr.generation.adapters.add_adapters`. They want a learning rate some ten times higher. None:
            the weights themselves are trained.
        metric: What picks the checkpoint: ROUGE-L, ROUGE-1, ROUGE-2 or BLEU of greedy queries, or
            `passage gain`: how much larger the loss of held-out queries is with other queries' passages.
            The first four also rise when a generator only learns how queries begin; the last rises only
            with what it takes from the passage, which is what expansion needs.

    Raises:
        ValueError: A value outside its range; the message names field and value.
    """

    METRICS = (*TEXT_METRICS, PASSAGE_GAIN)

    label_smoothing: float = 0.0
    lora_rank: int | None = None
    metric: str = "ROUGE-L"

    def __post_init__(self):
        super().__post_init__()
        check_fields(self, "at least 0 and below 1", lambda v: 0 <= v < 1, "label_smoothing")
        check_fields(self, "None or at least 1", lambda v: v is None or v >= 1, "lora_rank")


@dataclass(frozen=True)
class RerankerSettings(LoopSettings):
    """Settings of a cross-encoder's training: those of `LoopSettings` and of its loss.

    A record is a query with one of its positives and some of its negatives; see
    `dpr.reranking.training.train_reranker`.

    Args:
        loss: What the scores z of a query's passages are held against. `binary_cross_entropy`: a sigmoid of
            each z against relevant or not. `mse`: each z against its label. `margin_mse`: how much larger the
            positive's z is than each negative's, against the same difference of labels. `listwise`: the
            softmax over the z against that of the labels.
        num_negatives: Negatives of each record; `margin_mse` repeats those of a query with fewer.
        label_temperature: Labels are divided by it; above 0. In `listwise` a smaller one makes the softmax of
            the labels sharper. It plays no part in `binary_cross_entropy`.
        metric: What picks the checkpoint, over the validation pool: nDCG@10 or RR@10.

    Raises:
        ValueError: A value outside its range; the message names field and value.

    Source: Hofstätter et al. 2020, Improving efficient neural ranking models with cross-architecture
    knowledge distillation (MarginMSE); Cao et al. 2007, Learning to rank (the listwise loss, ListNet's).
    """

    METRICS = RERANKING_METRICS

    loss: str = "listwise"
    num_negatives: int = 3
    label_temperature: float = 0.1
    metric: str = "nDCG@10"

    def __post_init__(self):
        super().__post_init__()
        check_fields(self, f"one of {RERANKING_LOSSES}", RERANKING_LOSSES.__contains__, "loss")
        check_fields(self, "at least 1", lambda v: v >= 1, "num_negatives")
        check_fields(self, "above 0", lambda v: v > 0, "label_temperature")
