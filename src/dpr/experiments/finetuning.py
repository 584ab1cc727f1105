"""Fine-tuning in notebooks: hard negatives, validation samples, and trainings that are made only once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import TrainerCallback

from dpr.data.collection import Collection
from dpr.data.training_data import TrainingData
from dpr.data.trec import Run
from dpr.experiments.plots import plot_training
from dpr.experiments.results import Result, kept_result
from dpr.experiments.workspace import Workspace
from dpr.models.bi_encoder import BiEncoder
from dpr.models.two_encoders import TwoEncoders
from dpr.search.bm25 import BM25
from dpr.training.bi_encoder import describe_training, train
from dpr.training.resume import Training, keep_training, read_kept_training
from dpr.training.settings import TrainingSettings

HARD_DEPTH = 3  # BM25's best hits that `validation_sample` keeps for each query


@dataclass(frozen=True)
class FineTuned:
    """A fine-tuned system, whose training and result are saved in `runs/`.

    Attributes:
        result: The result for the test queries.
        training: The training's record and history.
        dev: Metric → mean for dev queries; empty if none were given.
    """

    result: Result
    training: Training
    dev: dict[str, float]


def bm25_hits(space: Workspace, data: TrainingData, depth: int) -> tuple[Run, dict[str, str]]:
    """What BM25 finds for the training queries in the whole corpus, to mine hard negatives from.

    A query for which it finds positives alone, or nothing, also gets passages at random, with score 0.

    Args:
        space: The workspace whose training data it is.
        data: The training queries.
        depth: Hits per query.

    Returns:
        The run, and the corpus as doc_id → text.
    """
    corpus = space.training_splits["train"]
    bm25 = BM25.build(corpus, space.index_folder(corpus))
    run = bm25.search({example.query_id: example.query for example in data.examples}, depth)
    drawn = np.random.default_rng(space.profile.seeds[0]).permutation(corpus.doc_ids)[:depth].tolist()
    for example in data.examples:
        found = run[example.query_id]
        if found.keys() <= example.positives.keys():
            run[example.query_id] = found | {doc_id: 0.0 for doc_id in drawn if doc_id not in found}
    return run, {passage.doc_id: passage.contents for passage in corpus.passages}


def validation_sample(space: Workspace, validation: Collection, size: int | None = None) -> Collection:
    """Make a small collection to select checkpoints by, of relevant, hard and random passages.

    Args:
        space: The workspace, whose profile has the numbers of queries and passages.
        validation: The validation queries, with all passages.
        size: Number of passages instead of the profile's; profiles that share a model need the same one.

    Returns:
        The profile's number of queries, all passages relevant to them, BM25's best hits, and random passages.
    """
    size, num_queries = size or space.profile.validation_passages, space.profile.validation_queries
    bm25 = BM25.build(validation, space.index_folder(validation))
    hits = bm25.search(validation.sample(1, num_queries).queries, HARD_DEPTH)
    return validation.sample(size, num_queries, keep={doc_id for found in hits.values() for doc_id in found})


def train_and_search(
    space: Workspace,
    tag: str,
    encoder: BiEncoder | TwoEncoders,
    data: TrainingData,
    settings: TrainingSettings,
    validation: Collection | None,
    collection: Collection,
    *,
    notebook: str,
    dev: Collection | None = None,
    training_length: int | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    passage_emb: np.ndarray | None = None,
) -> FineTuned:
    """Fine-tune an encoder, search for the test queries, and save both in `runs/`, unless already there.

    The model is written to `models/<data>/<tag>`, or to a folder beside it if that holds another training.
    Passages are cut to the profile's `training_length` in training and to its `passage_max_length` in search.

    Args:
        space: The workspace to read from and write to.
        tag: The system's name.
        encoder: The encoder to start from; it is not changed.
        data: The training data.
        settings: Settings of the training; the result gets their seed.
        validation: Queries and passages to select the best checkpoint by; None: the last one is taken.
        collection: The collection to search.
        notebook: Name of the calling notebook, without the ending.
        dev: A collection whose queries are searched too, to choose between trainings; no run is saved.
        training_length: Passages are cut to this many tokens in training, in place of the profile's.
        callbacks: Further callbacks of the Trainer.
        passage_emb: Vectors [P, D] of the data's passages, where these are frozen; as in `train`.

    Raises:
        ValueError: An error of `train`.
    """
    start = with_passage_length(encoder, training_length or space.profile.training_length)
    path, record = space.kept_training(tag), describe_training(start, data, settings, validation, [tag])
    kept = read_kept_training(path, record)
    searched = kept and kept.finished.get("searched")
    result = searched and kept_result(space.runs, tag, collection, space.profile.depth, searched)
    if result and (dev is None or "dev" in kept.finished):
        return FineTuned(result, kept, kept.finished.get("dev", {}))
    folder = space.training_folder(data.name, tag, record)
    more = {"callbacks": callbacks, "passage_emb": passage_emb}
    trained = train(start, data, folder, settings, validation=validation, tags=[tag], **more)
    ready = with_passage_length(trained.encoder, space.profile.passage_max_length)
    _, result = space.search_and_save(
        ready,
        collection,
        tag,
        notebook=notebook,
        ablation=True,  # the results table shows the mean over seeds
        seed=settings.seed,
        trained_on=f"{len(data.examples):,} queries of {data.name}",
    )
    means = space.means(ready, dev) if dev else {}
    more = {"dev": means} if dev else {}
    keep_training(path, trained, searched=result.metadata["config"]["model"], **more)
    return FineTuned(result, trained.without_model(), means)


def with_passage_length(encoder: BiEncoder | TwoEncoders, length: int) -> BiEncoder | TwoEncoders:
    """The same encoder with another `passage_max_length`."""
    if isinstance(encoder, TwoEncoders):
        return TwoEncoders(encoder.query, encoder.passage.with_settings(passage_max_length=length))
    return encoder.with_settings(passage_max_length=length)


class LiveCurves(TrainerCallback):
    """Shows a figure of the training so far, and updates it in place at each evaluation.

    Args:
        metric: The validation metric to draw; the evaluations must have it.
        title: The figure's title.
    """

    def __init__(self, metric: str, title: str):
        self._metric, self._title, self._handle = metric, title, None

    def on_evaluate(self, args, state, control, **_) -> None:
        """Show the history so far."""
        self.show(state.log_history)

    def show(self, history: Sequence[Mapping[str, float]]) -> None:
        """Show a history, in place of the one shown before."""
        from IPython.display import display

        figure = plot_training(history, self._metric, self._title)
        if self._handle is None:
            self._handle = display(figure, display_id=True)
        else:
            self._handle.update(figure)
