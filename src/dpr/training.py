"""Training a bi-encoder: one folder a run, gone on with after a kill, read once it is finished."""

import copy
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
from transformers import TrainerCallback, TrainerState

from dpr.checkpoint import MARKERS
from dpr.checkpoint_files import whole_checkpoints
from dpr.collection import Collection
from dpr.encoder import BiEncoder
from dpr.files import atomic_folder, write_text
from dpr.provenance import git_commit, hardware
from dpr.tracking import HISTORY, RUN, FileTracker, model_card
from dpr.trainer import BiEncoderTrainer
from dpr.training_data import TrainingData, query_key
from dpr.training_settings import TrainingSettings
from dpr.two_encoders import TwoEncoders

MODEL, CHECKPOINTS, FINISHED = "model", "checkpoints", "training.json"
# What makes two runs the same run; the rest of run.json says where and when it was made
IDENTITY = ("settings", "data", "start", "validation")


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
    _claim(folder, run)
    if not (folder / MODEL).is_dir():
        _train(copy.deepcopy(encoder), data, folder, settings, validation, callbacks)
    for left in (folder / CHECKPOINTS, *folder.glob(f".{MODEL}.*")):  # by a kill at the very end
        shutil.rmtree(left, ignore_errors=True)
    lines = (folder / HISTORY).read_text(encoding="utf-8").splitlines()
    kind = TwoEncoders if isinstance(encoder, TwoEncoders) else BiEncoder
    device = str(encoder.passage.model.device)
    best = kind.from_pretrained(folder / MODEL, device=device, precision=encoder.precision)
    best.name = folder.name
    finished = json.loads((folder / MODEL / FINISHED).read_text(encoding="utf-8"))
    return Trained(best, [json.loads(line) for line in lines], finished["best_step"], folder)


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
    described = {
        "settings": asdict(settings),
        "data": {"name": data.name, "num_queries": len(data.examples), "fingerprint": data.fingerprint},
        "start": {
            "model": encoder.name,
            "encoders": 2 if isinstance(encoder, TwoEncoders) else 1,
            "fingerprint": encoder.fingerprint,
            **asdict(encoder.config),
        },
        "validation": validation
        and {
            "collection": validation.name,
            "split": validation.split,
            "pool": validation.pool,
            "passages": validation.fingerprint,
            "queries": validation.queries_fingerprint,
        },
        "tags": list(tags),
        "commit": git_commit(),
        "hardware": hardware(),
        "versions": {p: version(p) for p in ("torch", "transformers", "accelerate")},
    }
    return json.loads(json.dumps(described))  # tuples become lists, as they will be when read back


def _claim(folder: Path, run: Mapping[str, Any]) -> None:
    """Write `run.json`, or see that what is there describes the same run."""
    if not (folder / RUN).is_file():
        for half in folder.glob(f".{RUN}.*"):
            half.unlink()
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no training run; give another folder")
        write_text(folder / RUN, json.dumps(run, indent=1, ensure_ascii=False) + "\n")
        return
    there = json.loads((folder / RUN).read_text(encoding="utf-8"))
    for part in IDENTITY:
        if there[part] != run[part]:
            old, new = there[part] or {}, run[part] or {}
            other = [
                f"{k} {old.get(k)!r}, not {new.get(k)!r}" for k in {**old, **new} if old.get(k) != new.get(k)
            ]
            raise ValueError(
                f"{folder} holds a run with other {part}: {'; '.join(other)}; give another folder, or remove "
                f"this one"
            )


def _train(encoder, data, folder, settings, validation, callbacks) -> None:
    """Train from the last whole checkpoint, if there is one, and write the result to `model/`."""
    checkpoints = folder / CHECKPOINTS
    trainer = BiEncoderTrainer(encoder, data, checkpoints, settings, validation)
    for callback in (FileTracker(folder), *callbacks):
        trainer.add_callback(callback)
    newest = _newest(checkpoints)
    if newest is not None and _out_of_patience(newest, settings):
        trainer.state = TrainerState.load_from_json(f"{newest}/trainer_state.json")
    else:
        trainer.train(resume_from_checkpoint=newest)
    state = trainer.state
    best_step = state.best_global_step or state.global_step
    if best_step != state.global_step:
        weights = checkpoints / f"checkpoint-{best_step}" / "model.safetensors"
        trainer.model.load_state_dict(safetensors.torch.load_file(weights))
    run = json.loads((folder / RUN).read_text(encoding="utf-8"))
    finished = {"best_step": best_step, "steps": state.global_step, **run}
    with atomic_folder(folder / MODEL, *MARKERS, *(f"query/{marker}" for marker in MARKERS)) as fresh:
        encoder.save(fresh)
        write_text(fresh / FINISHED, json.dumps(finished, indent=1, ensure_ascii=False) + "\n")
        write_text(fresh / "README.md", model_card(folder.name, finished, state.log_history))


def _out_of_patience(checkpoint: str, settings: TrainingSettings) -> bool:
    """Whether training had ended there; the Trainer would go on."""
    stopping = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json").stateful_callbacks.get(
        "EarlyStoppingCallback"
    )
    return bool(stopping) and stopping["attributes"]["early_stopping_patience_counter"] >= settings.patience


def _newest(checkpoints: Path) -> str | None:
    """The last checkpoint to go on from; damaged ones are named and removed."""
    usable, damaged = whole_checkpoints(checkpoints)
    for path, reason in damaged:
        warnings.warn(
            f"{path}: {reason}; going on from {usable[-1].name if usable else 'the start'}", stacklevel=4
        )
        shutil.rmtree(path)
    return str(usable[-1]) if usable else None
