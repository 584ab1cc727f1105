"""Training a bi-encoder: transformers' Trainer with our batches, our loss and selection by retrieval.

Each training has its own folder: it is resumed from there after a kill, and read from there once finished.
"""

import copy
import ctypes
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint
from transformers import TrainerCallback

from dpr.arguments import checked
from dpr.data.collection import Collection
from dpr.data.training_data import TrainingData
from dpr.evaluation.metrics import evaluate
from dpr.models.bi_encoder import BiEncoder
from dpr.models.two_encoders import TwoEncoders
from dpr.search.index import build_index
from dpr.training import processes
from dpr.training.collator import Collator, QueryCollator
from dpr.training.dataset import TrainingSequence
from dpr.training.distillation import kl_divergence_loss, margin_mse_loss
from dpr.training.losses import in_batch_logits, in_batch_negatives_loss
from dpr.training.resume import MODEL, Training, check_training, train_or_resume, training_record
from dpr.training.settings import VALIDATION_METRICS, DistillationSettings, TrainingSettings
from dpr.training.tracking import ModelKind
from dpr.training.trainer import LoggedTrainer, prepare_steps, set_dropout, training_arguments

CPU_PASS_TOKENS = 2_048
CHECKED_VECTORS, SAME_VECTOR = 4, 0.02  # of those that a caller gives; bfloat16 and repaired texts differ
M_MMAP_THRESHOLD, LARGE_BYTES = -3, 2**20  # for glibc's mallopt: blocks from 1 MiB on get their own map


class Pair(torch.nn.Module):
    """Both sides of an encoder as one module that turns padded passes into vectors.

    Args:
        encoder: The encoder, trained in place; a transformer that serves both sides is registered once.
        caching: Keep the activations of only one pass at a time; see `TrainingSettings.gradient_caching`.
        passage_emb: The vectors of all passages, [P, D], if passages are frozen.
    """

    def __init__(
        self,
        encoder: BiEncoder | TwoEncoders,
        caching: bool = False,
        passage_emb: torch.Tensor | None = None,
    ):
        super().__init__()
        self.encoder, self.caching = encoder, caching
        self.register_buffer("passage_emb", passage_emb, persistent=False)
        self.transformers = torch.nn.ModuleList(dict.fromkeys((encoder.query.model, encoder.passage.model)))

    def forward(self, queries: list[dict], passages: list[dict] | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed the queries, [B, D], and passages, [P, D], of a batch, in float32; None: frozen passages."""
        query_emb = self._embed(self.encoder.query, queries)
        if passages is None:
            return query_emb, self.passage_emb
        return query_emb, self._embed(self.encoder.passage, passages)

    def _embed(self, encoder: BiEncoder, passes: list[dict]) -> torch.Tensor:
        """Embed all passes of one side; the vectors are in the order of the batch.

        Of several processes each embeds a part, and gets the others' vectors without a gradient.
        """
        num_rows = sum(len(batch["rows"]) for batch in passes)
        shares = processes.own_rows(passes)
        vectors = [torch.empty((0, encoder.dimension), device=encoder.model.device)]
        for batch in shares:
            fields = {field: tensor for field, tensor in batch.items() if field != "rows"}
            if self.caching and torch.is_grad_enabled():
                vectors.append(
                    checkpoint(lambda fields: encoder.embed(fields)[0], fields, use_reentrant=False)
                )
            else:
                vectors.append(encoder.embed(fields)[0])
        rows = torch.cat([passes[0]["rows"][:0], *(batch["rows"] for batch in shares)])
        if processes.count() > 1:
            return processes.gather(torch.cat(vectors), rows, num_rows)
        return torch.cat(vectors)[torch.argsort(rows)]

    def activation_checkpointing_enable(self, **how) -> None:
        """Turn on activation checkpointing in every transformer; the Trainer calls this."""
        for transformer in self.transformers:
            transformer.activation_checkpointing_enable(**how)


class BiEncoderTrainer(LoggedTrainer):
    """Trains a bi-encoder on a `TrainingSequence`; transformers' Trainer does each optimiser step.

    Args:
        encoder: The encoder, trained in place.
        data: The training data.
        folder: The folder for checkpoints; None to write none.
        settings: Settings of the training.
        validation: Queries and passages to select the best checkpoint by; None to select none.
        loss: A function with the arguments of `in_batch_negatives_loss`.
        passage_emb: Vectors of the data's passages, as in `train`.

    Raises:
        ValueError: Fewer than two validation queries, fewer queries in a batch than processes, an error of
            `check_teacher` or of `TrainingSequence`.
    """

    def __init__(
        self,
        encoder: BiEncoder | TwoEncoders,
        data: TrainingData,
        folder: Path | None,
        settings: TrainingSettings,
        validation: Collection | None = None,
        loss: Callable[..., torch.Tensor] = in_batch_negatives_loss,
        passage_emb: np.ndarray | None = None,
    ):
        check_teacher(settings, data, encoder)
        self.encoder, self.validation, self._loss = encoder, validation, loss
        on_cpu = encoder.passage.model.device.type == "cpu"
        pass_tokens = settings.pass_tokens or (CPU_PASS_TOKENS if on_cpu else None)
        sequence, steps, steps_per_epoch = prepare_steps(settings, data, settings.num_negatives, True)
        frozen = freeze_passages(encoder, data, passage_emb) if is_frozen(settings) else None
        pair = Pair(encoder, settings.gradient_caching, frozen)
        set_dropout(pair, settings.dropout)
        if settings.gradient_caching and on_cpu and sys.platform == "linux":
            # Else the few blocks that a pass keeps pin the heap around them: 6.1 GiB, not 1.4, at batch 512
            getattr(ctypes.CDLL(None), "mallopt", lambda *_: 0)(M_MMAP_THRESHOLD, LARGE_BYTES)
        held_out = None
        if validation is not None:
            held_out = TrainingData.from_collection(validation)
            if len(held_out.examples) < 2:
                raise ValueError(
                    f"validation needs two queries with an answer or more, {held_out.name} has 1"
                )
            size = min(settings.batch_size, len(held_out.examples))
            self._held_out = TrainingSequence(held_out, size, len(held_out.examples) // size, 0, 0)
            self._held_out_size, self._held_out_collator = size, Collator(encoder, held_out, pass_tokens)
        super().__init__(
            pair,
            settings,
            steps_per_epoch,
            training_arguments(settings, folder, steps, on_cpu, validation is not None),
            data_collator=QueryCollator(encoder, data, pass_tokens)
            if frozen is not None
            else Collator(encoder, data, pass_tokens, settings.all_positives),
            train_dataset=sequence,
            eval_dataset=held_out and held_out.examples,
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of a batch, a teacher's if it has scores; in training it is also counted for the log."""
        queries, passages = model(inputs["queries"], inputs.get("passages"))
        how = {"similarity": self.encoder.config.similarity, "temperature": self.settings.temperature}
        chance = math.log(len(passages))
        masks = {name: inputs[name] for name in ("positives", "not_negative")}
        if "scores" in inputs:
            loss = self._taught_loss(queries, passages, inputs["scores"], masks, how)
            with torch.no_grad():  # of similarities that are all the same
                none, dot = torch.zeros_like(queries), how | {"similarity": "dot"}
                chance = self._taught_loss(none, passages, inputs["scores"], masks, dot)
        else:
            loss = self._loss(queries, passages, symmetric=self.settings.symmetric, **how, **masks)
        if self.model.training:
            with torch.no_grad():
                best = in_batch_logits(queries, passages, **how).argmax(dim=1, keepdim=True)
                right = inputs["not_negative"].gather(1, best).float().mean()
            read = (*inputs["queries"], *inputs.get("passages", ()))
            tokens = [batch["attention_mask"] for batch in read]
            self.tally["batches"] += 1
            self.tally["chance"] = self.tally["chance"] + chance
            self.tally["right"] = self.tally["right"] + right  # a tensor, left on the device
            self.tally["tokens"] = self.tally["tokens"] + sum(mask.sum() for mask in tokens)
        return loss

    def _taught_loss(self, queries, passages, scores, masks, how) -> torch.Tensor:
        """The loss against a teacher's scores, with the contrastive loss if the settings give it a weight."""
        settings, positives = self.settings, masks["positives"]
        taught = {"teacher_temperature": settings.teacher_temperature, **how}
        if settings.loss == "margin_mse":
            loss = margin_mse_loss(queries, passages, scores, positives & ~scores.isnan(), **taught)
        else:
            loss = kl_divergence_loss(queries, passages, scores, **taught)
        if settings.contrastive_weight:
            loss = loss + settings.contrastive_weight * self._loss(queries, passages, **how, **masks)
        return loss

    def validate(self) -> dict[str, float]:
        """Metrics of searching for the validation queries, their loss, and the loss of chance, ln B."""
        found = search_validation(self.encoder, self.validation)
        losses = []
        for at in range(0, len(self._held_out), self._held_out_size):
            records = [self._held_out[i] for i in range(at, at + self._held_out_size)]
            batch = self._prepare_inputs(self._held_out_collator(records))
            with self.compute_loss_context_manager():
                losses.append(float(self.compute_loss(self.model, batch)))
        return found | {"loss": sum(losses) / len(losses), "chance_loss": math.log(self._held_out_size)}

    def save_trained(self, folder: Path) -> None:
        """Write the encoder into a folder."""
        self.encoder.save(folder)

    def extra_log(self, batches: int) -> dict[str, float]:
        """The loss of chance, ln of a batch's passages, and the share of queries with a positive first."""
        return {
            "chance_loss": float(self.tally["chance"]) / batches,
            "in_batch_accuracy": float(self.tally["right"]) / batches,
        }


def is_frozen(settings: TrainingSettings) -> bool:
    """Whether only the query encoder is trained."""
    return isinstance(settings, DistillationSettings) and settings.frozen_passages


def freeze_passages(encoder: TwoEncoders, data: TrainingData, passage_emb: np.ndarray | None) -> torch.Tensor:
    """Stop the training of a passage encoder, and get the vectors of all passages, float32 [P, D].

    Args:
        encoder: The encoders, whose passage encoder is changed in place.
        data: The passages.
        passage_emb: Their vectors, if they are at hand; some are compared with the encoder's own.

    Raises:
        ValueError: `passage_emb` holds other vectors.
    """
    encoder.passage.model.requires_grad_(False)
    texts = list(data.passages.values())
    if passage_emb is None:
        passage_emb = encoder.encode_passages(texts)
    else:
        passage_emb = np.asarray(passage_emb, dtype=np.float32)
        some = np.linspace(0, len(texts) - 1, min(CHECKED_VECTORS, len(texts))).astype(int)
        own = encoder.encode_passages([texts[i] for i in some])
        same = passage_emb.shape == (len(texts), own.shape[1])
        if not same or not np.allclose(_unit(passage_emb[some]), _unit(own), atol=SAME_VECTOR):
            raise ValueError(
                f"passage_emb [{', '.join(map(str, passage_emb.shape))}] must be {encoder.name}'s vectors of "
                f"the {len(texts)} passages of {data.name}, in their order"
            )
    return torch.from_numpy(passage_emb).to(encoder.passage.model.device)


def _unit(vectors: np.ndarray) -> np.ndarray:
    """The vectors with length 1."""
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def check_teacher(settings: TrainingSettings, data: TrainingData, encoder: BiEncoder | TwoEncoders) -> None:
    """Refuse a teacher's scores without `DistillationSettings`, and these without what they need.

    Raises:
        ValueError: Only one of the two is there, or one transformer serves both sides of which one is frozen.
    """
    if is_frozen(settings) and encoder.query.model is encoder.passage.model:
        raise ValueError(f"{encoder.name} is one encoder; frozen passages need TwoEncoders with a copy of it")
    if isinstance(settings, DistillationSettings) and not data.scores:
        raise ValueError(f"{data.name} has no scores to distil from; add them with TrainingData.with_scores")
    if data.scores and not isinstance(settings, DistillationSettings):
        raise ValueError(f"{data.name} has a teacher's scores; train on it with DistillationSettings")


def search_validation(encoder: BiEncoder | TwoEncoders, validation: Collection) -> dict[str, float]:
    """Search a collection exhaustively; the means of `VALIDATION_METRICS` with its graded judgements."""
    texts = [passage.contents for passage in validation.passages]
    passage_emb, _ = next(encoder.passage.encode_blocks([texts], "passages"))
    index = build_index("exact", passage_emb, validation.doc_ids, encoder.config.similarity)
    query_emb, _ = next(encoder.query.encode_blocks([list(validation.queries.values())], "queries"))
    run = index.search_run(list(validation.queries), query_emb, 100, "validation", validation.own_documents)
    return evaluate(validation.qrels, run, VALIDATION_METRICS).means


@dataclass(frozen=True)
class Trained(Training):
    """A finished training of a bi-encoder.

    Attributes:
        encoder: The encoder with the weights of the best checkpoint; without validation, the last weights.
    """

    encoder: BiEncoder | TwoEncoders


@checked
def train(
    encoder: BiEncoder | TwoEncoders,
    data: TrainingData,
    folder: Path | str,
    settings: TrainingSettings,
    *,
    validation: Collection | None = None,
    tags: Sequence[str] = (),
    callbacks: Sequence[TrainerCallback] = (),
    passage_emb: np.ndarray | None = None,
) -> Trained:
    """Fine-tune a copy of an encoder, or resume or read the training that `folder` holds.

    Args:
        encoder: The encoder to start from; it is not changed. Its settings (pooling, similarity, lengths,
            prompts) are used in training and saved with the result.
        data: The training data.
        folder: The training's own folder. It gets `training.json` (every setting and fingerprint),
            `history.jsonl`, `tensorboard/`, `checkpoints/` during training, and at the end `model/`, a
            sentence-transformers folder with a model card.
        settings: Settings of the training.
        validation: Queries to select the best checkpoint by, and the passages to search; trainings that
            are to be compared need the same ones.
        tags: Words to find the training by.
        callbacks: Further callbacks of the Trainer, such as `dpr.training.tracking.NeptuneTracker`.
        passage_emb: With frozen passages, the vectors of `data.passages` in their order, [P, D], if they are
            at hand; else they are computed.

    Raises:
        ValueError: `folder` holds another training; a validation query is also a training query;
            evaluations are asked for without `validation`; the loss is not finite; `passage_emb` without
            frozen passages; an error of `check_teacher` or of `TrainingSequence`.
    """
    folder = Path(folder)
    check_teacher(settings, data, encoder)
    if passage_emb is not None and not is_frozen(settings):
        raise ValueError("passage_emb is for frozen passages; these settings train the passage encoder")
    check_training(settings, data, None if validation is None else validation.queries.values(), tags)
    training = train_or_resume(
        folder,
        describe_training(encoder, data, settings, validation, tags),
        lambda checkpoints: BiEncoderTrainer(
            copy.deepcopy(encoder), data, checkpoints, settings, validation, passage_emb=passage_emb
        ),
        ModelKind(
            "A bi-encoder",
            _reads(encoder),
            "sentence-transformers",
            "sentence-similarity",
        ),
        callbacks,
    )
    device = str(encoder.passage.model.device)
    best = type(encoder).from_pretrained(folder / MODEL, device=device, precision=encoder.precision)
    best.name = folder.name
    return Trained(**vars(training), encoder=best)


def _reads(encoder: BiEncoder | TwoEncoders) -> str:
    """How a bi-encoder reads texts, as sentences for its model card."""
    config = encoder.config
    return (
        f"Pooling {config.pooling}, similarity {config.similarity}, queries cut at {config.query_max_length} "
        f"tokens and passages at {config.passage_max_length}; "
        f"{'2 encoders' if isinstance(encoder, TwoEncoders) else '1 encoder'}."
    )


def describe_training(
    encoder: BiEncoder | TwoEncoders,
    data: TrainingData,
    settings: TrainingSettings,
    validation: Collection | None,
    tags: Sequence[str],
) -> dict[str, Any]:
    """Describe everything that a training is made from, as JSON values: the content of `training.json`.

    The arguments are those of `train`. Trainings whose `IDENTITY` parts agree are the same one.
    """
    start = {
        "model": encoder.name,
        "encoders": 2 if isinstance(encoder, TwoEncoders) else 1,
        "fingerprint": encoder.fingerprint,
        **asdict(encoder.config),
    }
    searched = validation and {
        "collection": validation.name,
        "split": validation.split,
        "scope": validation.scope,
        "passages": validation.fingerprint,
        "queries": validation.queries_fingerprint,
    }
    return training_record(settings, data, start, searched, tags)
