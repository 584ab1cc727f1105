"""Fine-tuning for a notebook: negatives and validation queries of a profile, trainings made once and kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from transformers import TrainerCallback

from dpr.data.collection import Collection
from dpr.data.training_data import TrainingData
from dpr.experiments.plots import plot_training
from dpr.experiments.results import Result, load_result
from dpr.experiments.workspace import Workspace
from dpr.models.bi_encoder import BiEncoder
from dpr.models.two_encoders import TwoEncoders
from dpr.search.bm25 import BM25
from dpr.training.bi_encoder import describe_training, train
from dpr.training.negatives import Mined, mine_negatives
from dpr.training.resume import Training, keep_training, read_kept_training
from dpr.training.settings import TrainingSettings

HARD_DEPTH = 3  # BM25's first hits of each validation query that `validation_sample` keeps


@dataclass(frozen=True)
class FineTuned:
    """A system that was trained, searched with, and kept.

    Attributes:
        result: On the test queries.
        training: Its history, and what it was made from.
    """

    result: Result
    training: Training


def bm25_negatives(
    space: Workspace, data: TrainingData, num_negatives: int, depth: int
) -> tuple[Mined, dict[str, str]]:
    """Hard negatives at random from BM25's first hits over the whole corpus of the train queries.

    Args:
        space: Whose collection's train split `data` is from.
        data: Queries and positives.
        num_negatives: At most so many a query.
        depth: Hits looked at.

    Returns:
        What was mined, and the corpus as doc_id → text.
    """
    corpus = space.splits()["train"]
    bm25 = BM25.build(corpus, space.index_folder(corpus))
    run = bm25.search({example.query_id: example.query for example in data.examples}, depth)
    passages = {passage.doc_id: passage.contents for passage in corpus.passages}
    mined = mine_negatives(data, passages, run, num_negatives=num_negatives, ranks=(1, depth))
    return mined, passages


def validation_sample(space: Workspace, validation: Collection, size: int | None = None) -> Collection:
    """A small collection to select by: relevant, hard and random passages.

    Args:
        space: Its profile says how many queries and passages.
        validation: The queries to select by, with all passages.
        size: Passages in the place of the profile's number: profiles that share a model need the same.

    Returns:
        The queries with all that is relevant to them, BM25's first hits, and others at random.
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
    validation: Collection,
    collection: Collection,
    *,
    notebook: str,
    callbacks: Sequence[TrainerCallback] = (),
) -> FineTuned:
    """Train, search for the test queries, and write both to `runs/`; or read what is kept of the same.

    The model lies in `models/<data>/<tag>`. It is trained at the profile's `training_length` and
    searches at its `passage_max_length`.

    Args:
        space: Where to read and write.
        tag: The system's name.
        encoder: Where to start; it stays as it is.
        data: What to learn from.
        settings: How; the seed is the result's too.
        validation: What to select by.
        collection: What to search.
        notebook: The notebook that asks, without ending.
        callbacks: More of the Trainer's callbacks.

    Raises:
        ValueError: What `train` refuses.
    """
    start = _with_passage_length(encoder, space.profile.training_length)
    path = space.kept_training(tag)
    kept = read_kept_training(path, describe_training(start, data, settings, validation, [tag]))
    if kept is not None:
        result = load_result(space.runs, tag)
        used = {"passages": collection.fingerprint, "queries": collection.queries_fingerprint}
        model = result.metadata["config"]["model"]
        if result.metadata["fingerprints"] == used and model == kept.finished["searched"]:
            return FineTuned(result, kept)
    folder = space.model_folder(data.name, tag)
    trained = train(start, data, folder, settings, validation=validation, tags=[tag], callbacks=callbacks)
    ready = _with_passage_length(trained.encoder, space.profile.passage_max_length)
    _, result = space.search_and_save(
        ready,
        collection,
        tag,
        notebook=notebook,
        ablation=True,  # in the results table a mean over seeds stands for its runs
        seed=settings.seed,
        trained_on=f"{len(data.examples):,} queries of {data.name}",
    )
    keep_training(path, trained, searched=result.metadata["config"]["model"])
    return FineTuned(result, trained)


def _with_passage_length(encoder: BiEncoder | TwoEncoders, length: int) -> BiEncoder | TwoEncoders:
    """The same weights, reading so many tokens of a passage."""
    if isinstance(encoder, TwoEncoders):
        return TwoEncoders(encoder.query, encoder.passage.with_settings(passage_max_length=length))
    return encoder.with_settings(passage_max_length=length)


class LiveCurves(TrainerCallback):
    """A figure of the training so far, drawn again in its place at each evaluation.

    Args:
        metric: The validation metric to draw; one that is evaluated.
        title: The figure's.
    """

    def __init__(self, metric: str, title: str):
        self._metric, self._title, self._handle = metric, title, None

    def on_evaluate(self, args, state, control, **_) -> None:
        """Show what was logged until now."""
        self.show(state.log_history)

    def show(self, history: Sequence[Mapping[str, float]]) -> None:
        """Show a history, in the place of what was shown before."""
        from IPython.display import display

        figure = plot_training(history, self._metric, self._title)
        if self._handle is None:
            self._handle = display(figure, display_id=True)
        else:
            self._handle.update(figure)
