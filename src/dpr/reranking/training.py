"""Training a cross-encoder on lists of passages, with sentence-transformers' losses."""

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from dpr.arguments import checked
from dpr.data.collection import Collection
from dpr.data.training_data import TrainingData
from dpr.data.trec import ordered_hits
from dpr.evaluation.metrics import evaluate
from dpr.reranking.rerank import texts_of
from dpr.reranking.reranker import Reranker, check_pairs
from dpr.training.dataset import Record
from dpr.training.resume import MODEL, Training, check_training, train_or_resume, training_record
from dpr.training.settings import RERANKING_METRICS, RerankerSettings
from dpr.training.tracking import ModelKind
from dpr.training.trainer import LoggedTrainer, prepare_steps, set_dropout, training_arguments


@dataclass(frozen=True, eq=False)
class Pool:
    """A fixed set of judged queries with the hits to order: what a training's checkpoint is selected by.

    Args:
        collection: The texts, and the judgements of a split that is not for testing.
        run: The first stage's hits of some of its queries, as many as are to be reranked.

    Raises:
        ValueError: The split is `test`, a query is not judged, or the collection lacks a query or document.
    """

    collection: Collection
    run: Mapping[str, Mapping[str, float]]

    def __post_init__(self):
        if self.collection.split == "test":
            raise ValueError(f"{self.collection.name}: the test split is for evaluation; select by another")
        unjudged = [query_id for query_id in self.run if query_id not in self.collection.qrels]
        if unjudged or not self.run:
            raise ValueError(
                f"{len(unjudged)} of {len(self.run)} queries of the pool are not judged in "
                f"{self.collection.name}/{self.collection.split}, first {unjudged[:1]}"
            )
        texts_of(self.keys, self.collection)

    @cached_property
    def keys(self) -> list[tuple[str, str]]:
        """(query_id, doc_id) of every hit."""
        return [(q, doc_id) for q, hits in self.run.items() for doc_id, _ in ordered_hits(hits)]

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over the texts of all hits, in order, and their grades."""
        grades = [self.collection.qrels[q].get(doc_id, 0) for q, doc_id in self.keys]
        content = [self.keys, texts_of(self.keys, self.collection), grades]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def measure(self, reranker: Reranker) -> dict[str, float]:
        """What a reranker makes of the pool.

        Returns:
            `RERANKING_METRICS` over its queries. Over its pairs, where what nobody judged counts as not
            relevant: `loss`, the binary cross-entropy; `accuracy`, the share on the right side of score 0,
            where a sigmoid is a half; `accuracy_half`, the same of score 0.5, where a score that was trained
            to be 0 or 1 is undecided; `score_mean` and `score_std`.
        """
        blocks = [texts_of(self.keys, self.collection)]
        [scores] = reranker.predict_blocks(blocks)
        run: dict[str, dict[str, float]] = {}
        for (query_id, doc_id), score in zip(self.keys, scores.tolist(), strict=True):
            run.setdefault(query_id, {})[doc_id] = score
        qrels = {query_id: self.collection.qrels[query_id] for query_id in self.run}
        found = dict(evaluate(qrels, run, RERANKING_METRICS).means)
        relevant = np.array([qrels[q].get(doc_id, 0) > 0 for q, doc_id in self.keys])
        loss = np.logaddexp(0, np.where(relevant, -scores, scores)).mean()
        return found | {
            "loss": float(loss),
            "accuracy": float(((scores > 0) == relevant).mean()),
            "accuracy_half": float(((scores > 0.5) == relevant).mean()),
            "score_mean": float(scores.mean()),
            "score_std": float(scores.std()),
        }


class PairCollator:
    """Makes a batch of records into the columns that a loss of sentence-transformers takes.

    Args:
        data: The training data that the records come from.
        settings: Settings of the training.
    """

    def __init__(self, data: TrainingData, settings: RerankerSettings):
        self.data, self.settings = data, settings

    def __call__(self, records: Sequence[Record]) -> dict[str, Any]:
        """Make a batch of B records.

        Returns:
            `features`: for `margin_mse` the queries, the positives and each of the `num_negatives` columns
            of negatives; for `listwise` the queries and each one's list of passages; else the queries and
            passages of all pairs. `labels`: for `margin_mse` float32 [B, negatives], differences; for
            `listwise` a list of float32 [passages]; else float32 [pairs].
        """
        queries, lists, labels = [], [], []
        for record in records:
            doc_ids = (record.positive, *record.negatives)
            if self.settings.loss == "margin_mse":
                given = record.negatives
                doc_ids = (
                    record.positive,
                    *(given[i % len(given)] for i in range(self.settings.num_negatives)),
                )
            queries.append(record.example.query)
            lists.append([self.data.passages[doc_id] for doc_id in doc_ids])
            labels.append(torch.tensor(self._labels(record, doc_ids), dtype=torch.float32))
        if self.settings.loss == "listwise":
            return {"features": [queries, lists], "labels": labels}
        if self.settings.loss == "margin_mse":
            found = torch.stack(labels)
            columns = [list(column) for column in zip(*lists, strict=True)]
            return {"features": [queries, *columns], "labels": found[:, :1] - found[:, 1:]}
        every = [query for query, passages in zip(queries, lists, strict=True) for _ in passages]
        return {"features": [every, [text for found in lists for text in found]], "labels": torch.cat(labels)}

    def _labels(self, record: Record, doc_ids: Sequence[str]) -> list[float]:
        """The label of each passage of a record: a teacher's score, or else its grade."""
        grades = record.example.positives
        if self.settings.loss == "binary_cross_entropy":
            return [float(doc_id in grades) for doc_id in doc_ids]
        if self.data.scores:
            known = self.data.scores[record.example.query_id]
            found = [known.get(doc_id, self.data.missing_score) for doc_id in doc_ids]
        else:
            found = [grades.get(doc_id, 0) for doc_id in doc_ids]
        return [label / self.settings.label_temperature for label in found]


def _loss(reranker: Reranker, settings: RerankerSettings) -> torch.nn.Module:
    """The loss of sentence-transformers that the settings name."""
    from sentence_transformers.cross_encoder import losses

    kinds = {
        "binary_cross_entropy": losses.BinaryCrossEntropyLoss,
        "mse": losses.MSELoss,
        "margin_mse": losses.MarginMSELoss,
        "listwise": losses.ListNetLoss,
    }
    return kinds[settings.loss](reranker.container)


class RerankerTrainer(LoggedTrainer):
    """Trains a cross-encoder on a `TrainingSequence`; transformers' Trainer does each optimiser step.

    Args:
        reranker: The cross-encoder, trained in place.
        data: The training data.
        folder: The folder for checkpoints; None to write none.
        settings: Settings of the training.
        validation: The pool to select the best checkpoint by; None to select none.

    Raises:
        ValueError: An error of `check_lists` or of `TrainingSequence`.
    """

    def __init__(
        self,
        reranker: Reranker,
        data: TrainingData,
        folder: Path | None,
        settings: RerankerSettings,
        validation: Pool | None = None,
    ):
        check_lists(data, settings)
        on_cpu = reranker.model.device.type == "cpu"
        sequence, steps, steps_per_epoch = prepare_steps(settings, data, settings.num_negatives)
        self.reranker, self.validation, self._loss = reranker, validation, _loss(reranker, settings)
        set_dropout(reranker.model, settings.dropout)
        reranker.container.max_seq_length = reranker.max_length  # the loss tokenises with it
        super().__init__(
            reranker.container,
            settings,
            steps_per_epoch,
            training_arguments(settings, folder, steps, on_cpu, validation is not None),
            data_collator=PairCollator(data, settings),
            train_dataset=sequence,
            eval_dataset=validation and validation.keys,
        )
        reranker.container.register_forward_pre_hook(self._count)

    def _count(self, _, inputs) -> None:
        """Count the tokens of a pass for the log."""
        if self.model.training:
            self.tally["tokens"] = self.tally["tokens"] + inputs[0]["attention_mask"].sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of a batch."""
        self.tally["batches"] += 1
        return self._loss(inputs["features"], inputs["labels"])

    def validate(self) -> dict[str, float]:
        """What the cross-encoder makes of the validation pool; see `Pool.measure`."""
        return self.validation.measure(self.reranker)

    def save_trained(self, folder: Path) -> None:
        """Write the cross-encoder into a folder."""
        self.reranker.save(folder)


def check_lists(data: TrainingData, settings: RerankerSettings) -> None:
    """Refuse training data that a loss cannot compare.

    Raises:
        ValueError: A query without negatives; a teacher's scores for `binary_cross_entropy`, which needs
            judgements; or a passage of a query without its teacher's score.
    """
    if data.scores and settings.loss == "binary_cross_entropy":
        raise ValueError(f"{data.name} has a teacher's scores; binary_cross_entropy needs judgements alone")
    for example in data.examples:
        if not example.negatives:
            raise ValueError(
                f"{data.name}: query {example.query_id} has no negative; add some with mine_negatives and "
                f"TrainingData.with_negatives"
            )
        if data.scores and np.isnan(data.missing_score):
            known = data.scores[example.query_id]
            unknown = [d for d in (*example.positives, *example.negatives) if d not in known]
            if unknown:
                raise ValueError(f"{data.name}: query {example.query_id} has no score for {unknown[0]}")


@dataclass(frozen=True)
class TrainedReranker(Training):
    """A finished training of a cross-encoder.

    Attributes:
        reranker: The cross-encoder with the weights of the best checkpoint; without validation, the last.
    """

    reranker: Reranker


@checked
def train_reranker(
    reranker: Reranker,
    data: TrainingData,
    folder: Path | str,
    settings: RerankerSettings,
    *,
    validation: Pool | None = None,
    tags: Sequence[str] = (),
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainedReranker:
    """Fine-tune a copy of a cross-encoder, or resume or read the training that `folder` holds.

    Each record is a query with one of its positives and `num_negatives` of its negatives. Their labels are a
    teacher's scores if the data has some (`TrainingData.with_scores`), else their grades, 0 for a negative.

    Args:
        reranker: The cross-encoder to start from, such as `Reranker.from_encoder` makes; it is not changed.
        data: The training data; every query has negatives.
        folder: The training's own folder, as in `dpr.training.bi_encoder.train`.
        settings: Settings of the training.
        validation: The pool to select the best checkpoint by; trainings that are to be compared need the
            same one.
        tags: Words to find the training by.
        callbacks: Further callbacks of the Trainer.

    Raises:
        ValueError: `folder` holds another training; a validation query is also a training query;
            evaluations are asked for without `validation`; the loss is not finite; the model does not read
            pairs (`check_pairs`); an error of `check_lists` or of `TrainingSequence`.
    """
    folder = Path(folder)
    check_lists(data, settings)
    check_pairs(reranker)
    asked = validation and [validation.collection.queries[query_id] for query_id in validation.run]
    check_training(settings, data, asked, tags)
    training = train_or_resume(
        folder,
        describe_reranker_training(reranker, data, settings, validation, tags),
        lambda checkpoints: RerankerTrainer(copy.deepcopy(reranker), data, checkpoints, settings, validation),
        ModelKind(
            "A cross-encoder",
            f"It reads {reranker.max_length} tokens of a pair; its raw score is larger for a better passage.",
            "sentence-transformers",
            "text-ranking",
        ),
        callbacks,
    )
    device = str(reranker.model.device)
    best = Reranker.from_pretrained(folder / MODEL, device=device, precision=reranker.precision)
    best.name = folder.name
    return TrainedReranker(**vars(training), reranker=best)


def describe_reranker_training(
    reranker: Reranker,
    data: TrainingData,
    settings: RerankerSettings,
    validation: Pool | None,
    tags: Sequence[str],
) -> dict[str, Any]:
    """Describe everything that a training is made from, as JSON values: the content of `training.json`.

    The arguments are those of `train_reranker`. Trainings whose `IDENTITY` parts agree are the same one.
    """
    start = {
        "model": reranker.name,
        "fingerprint": reranker.fingerprint,
        "max_length": reranker.max_length,
    }
    pool = validation and {
        "collection": validation.collection.name,
        "split": validation.collection.split,
        "scope": f"{len(validation.keys):,} hits of {len(validation.run):,} queries",
        "fingerprint": validation.fingerprint,
    }
    return training_record(settings, data, start, pool, tags)
