"""Training a bi-encoder: one folder a run, gone on with after a kill, read once it is finished."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from dpr.checkpoint import MARKERS
from dpr.collection import Collection
from dpr.encoder import BiEncoder
from dpr.run_folder import MODEL, finish_run, run_record
from dpr.tracking import Kind
from dpr.trainer import BiEncoderTrainer
from dpr.training_data import TrainingData, query_key
from dpr.training_settings import TrainingSettings
from dpr.two_encoders import TwoEncoders


@dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
        encoder: The best checkpoint by the validation metric; the last weights without validation.
        history: What was logged, a mapping a line, in order; evaluations have `eval_…` fields.
        best_step: The step `encoder` is of.
        folder: Where all of it lies.
    """

    encoder: BiEncoder | TwoEncoders
    history: list[dict[str, Any]]
    best_step: int
    folder: Path


def train(
    encoder: BiEncoder | TwoEncoders,
    data: TrainingData,
    folder: Path | str,
    settings: TrainingSettings,
    *,
    validation: Collection | None = None,
    tags: Sequence[str] = (),
    callbacks: Sequence[TrainerCallback] = (),
) -> Trained:
    """Fine-tune a copy of an encoder, or go on with or read the run that `folder` holds.

    Args:
        encoder: Where to start; it stays as it is. Its settings (pooling, similarity, lengths, prompts)
            are trained for and saved with the result.
        data: What to learn from.
        folder: The run's own folder. It gets `run.json` (every setting and fingerprint), `history.jsonl`
            and `.csv`, `tensorboard/`, while it trains `checkpoints/`, and at the end `model/`, a
            sentence-transformers folder with a model card.
        settings: How.
        validation: Queries to select by, with the pool of passages to search; the same pool for every
            setting that is to be compared.
        tags: Words to find the run by.
        callbacks: More of the Trainer's callbacks, such as `dpr.tracking.NeptuneTracker`.

    Raises:
        ValueError: `folder` holds another run; a validation query is also a training query; evaluations
            asked for without `validation`; what `TrainingSequence` refuses; a loss that is not finite.
    """
    folder = Path(folder)
    if isinstance(tags, str):
        raise ValueError(f"tags must be a list of words, got the string {tags!r}")
    if validation is None and (settings.eval_every or settings.patience):
        raise ValueError("eval_every and patience need validation, a collection to evaluate on")
    if validation is not None:
        asked = {query_key(text) for text in validation.queries.values()}
        both = [e.query for e in data.examples if query_key(e.query) in asked]
        if both:
            raise ValueError(f"{len(both)} training queries are validation queries too, first {both[0]!r}")
    run = describe_run(encoder, data, settings, validation, tags)
    trained = copy.deepcopy(encoder)  # shares nothing with the caller's
    history, finished = finish_run(
        folder,
        run,
        lambda checkpoints: BiEncoderTrainer(trained, data, checkpoints, settings, validation),
        trained.save,
        (*MARKERS, *(f"query/{marker}" for marker in MARKERS)),
        Kind("A bi-encoder", _reads(encoder), "sentence-transformers", "sentence-similarity"),
        callbacks,
    )
    kind = TwoEncoders if isinstance(encoder, TwoEncoders) else BiEncoder
    device = str(encoder.passage.model.device)
    best = kind.from_pretrained(folder / MODEL, device=device, precision=encoder.precision)
    best.name = folder.name
    return Trained(best, history, finished["best_step"], folder)


def _reads(encoder: BiEncoder | TwoEncoders) -> str:
    """What a bi-encoder makes of texts, for its card."""
    config = encoder.config
    return (
        f"Pooling {config.pooling}, similarity {config.similarity}, queries cut at {config.query_max_length} "
        f"tokens and passages at {config.passage_max_length}; "
        f"{'2 encoders' if isinstance(encoder, TwoEncoders) else '1 encoder'}."
    )


def describe_run(
    encoder: BiEncoder | TwoEncoders,
    data: TrainingData,
    settings: TrainingSettings,
    validation: Collection | None,
    tags: Sequence[str],
) -> dict[str, Any]:
    """Everything that a run is made from, as JSON values: what `run.json` holds.

    Arguments are those of `train`. Two runs with the same `IDENTITY` parts are the same run.
    """
    start = {
        "model": encoder.name,
        "encoders": 2 if isinstance(encoder, TwoEncoders) else 1,
        "fingerprint": encoder.fingerprint,
        **asdict(encoder.config),
    }
    pool = validation and {
        "collection": validation.name,
        "split": validation.split,
        "pool": validation.pool,
        "passages": validation.fingerprint,
        "queries": validation.queries_fingerprint,
    }
    return run_record(settings, data, start, pool, tags)
