"""The folder of a training: claimed at its start, resumed after a kill, read once it is finished."""

import gc
import json
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
from transformers import TrainerCallback, TrainerState

from dpr.data.text import text_key
from dpr.data.training_data import TrainingData
from dpr.files import (
    LOCK,
    TEMPORARY,
    atomic_folder,
    locked,
    read_json,
    read_jsonl,
    remove_abandoned,
    settle,
    write_json,
    write_text,
)
from dpr.provenance import git_commit, hardware
from dpr.training import processes
from dpr.training.settings import LoopSettings
from dpr.training.tracking import HISTORY, RECORD, FileTracker, ModelKind, model_card, tensorboard
from dpr.training.trainer import LoggedTrainer, checkpoints_in, usable_checkpoint

MODEL, CHECKPOINTS = "model", "checkpoints"
FINISHED = "finished"  # told to the other processes in place of a checkpoint
# Trainings that agree in these parts are the same one; the rest says where and by which code it was made
IDENTITY = ("settings", "data", "start", "validation")


@dataclass(frozen=True)
class Training:
    """A finished training.

    Attributes:
        history: The logged lines in order, each as field → value; evaluations have `eval_…` fields.
        finished: The training's record with `steps` and `best_step`: `training.json` in `model/`.
        folder: The training's folder.
    """

    history: list[dict[str, Any]] = field(repr=False)
    finished: dict[str, Any]
    folder: Path

    @property
    def best_step(self) -> int:
        """The step whose weights the saved model has."""
        return self.finished["best_step"]

    @property
    def best(self) -> dict[str, float]:
        """The evaluation at `best_step`, as `eval_…` fields."""
        return next(e for e in self.evaluations if e["step"] == self.best_step)

    @property
    def evaluations(self) -> list[dict[str, float]]:
        """The lines of the history that are evaluations."""
        return [line for line in self.history if "eval_loss" in line]

    @property
    def steps(self) -> list[dict[str, float]]:
        """The lines of the history that are about training steps."""
        return [line for line in self.history if "loss" in line]

    @property
    def minutes(self) -> float:
        """Minutes that the training took, evaluations included, computed from its history."""
        seconds = sum(line["eval_s"] for line in self.evaluations)
        last = 0
        for line in self.steps:
            seconds += line["step_s"] * (line["step"] - last)
            last = line["step"]
        return seconds / 60

    def without_model(self) -> "Training":
        """The record and the history alone: who keeps these does not keep the weights in memory."""
        return Training(self.history, self.finished, self.folder)


def check_training(
    settings: LoopSettings, data: TrainingData, validation_queries: Iterable[str] | None, tags: Sequence[str]
) -> None:
    """Refuse arguments of a training that must be a mistake.

    Raises:
        ValueError: Evaluations are asked for without validation queries; a validation query is also a
            training query; tags are one string instead of a list.
    """
    if isinstance(tags, str):
        raise ValueError(f"tags must be a list of words, got the string {tags!r}")
    if validation_queries is None:
        if settings.eval_every or settings.patience:
            raise ValueError("eval_every and patience need validation, queries to evaluate on")
        return
    asked = {text_key(text) for text in validation_queries}
    both = [e.query for e in data.examples if text_key(e.query) in asked]
    if both:
        raise ValueError(f"{len(both)} training queries are validation queries too, first {both[0]!r}")


def training_record(
    settings: LoopSettings,
    data: TrainingData,
    start: Mapping[str, Any],
    validation: Mapping[str, Any] | None,
    tags: Sequence[str],
) -> dict[str, Any]:
    """Describe everything that a training is made from, as JSON values: the content of `training.json`.

    Args:
        settings: Settings of the training.
        data: The training data.
        start: A description of the model that it starts from.
        validation: A description of what its checkpoint is selected by; None without validation.
        tags: Words to find the training by.
    """
    record = {
        "settings": asdict(settings),
        "data": {"name": data.name, "num_queries": len(data.examples), "fingerprint": data.fingerprint},
        "start": start,
        "validation": validation,
        "tags": list(tags),
        "commit": git_commit(),
        "hardware": hardware(),
        "versions": {p: version(p) for p in ("torch", "transformers", "accelerate")},
    }
    return json.loads(json.dumps(record))  # turns tuples into lists, as in a record read back


def train_or_resume(
    folder: Path,
    record: Mapping[str, Any],
    make_trainer: Callable[[Path], LoggedTrainer],
    kind: ModelKind,
    callbacks: Sequence[TrainerCallback] = (),
) -> Training:
    """Train in a folder, from its last complete checkpoint if there is one, or read a finished training.

    Args:
        folder: The training's own folder; see `dpr.training.bi_encoder.train` for what it gets.
        record: The training's record, as `training_record` makes it.
        make_trainer: Makes the trainer, given the folder for checkpoints; only called if training is needed.
            What nobody else holds of it and of its model is out of memory afterwards.
        kind: The kind of model that is trained.
        callbacks: Further callbacks of the Trainer.

    Raises:
        ValueError: `folder` holds another training, or something else; or another process trains in it.
    """
    if processes.is_first():
        trained = _lead(folder, record, make_trainer, kind, callbacks)
        if not trained:
            processes.from_first(FINISHED)
    else:
        newest = processes.from_first()
        if newest != FINISHED:
            _run(make_trainer(folder / CHECKPOINTS), newest)
    processes.wait()
    gc.collect()  # a trainer refers to itself, and so holds its weights, gradients and optimiser
    return Training(
        [line for _, line in read_jsonl(folder / HISTORY)],
        read_json(folder / MODEL / RECORD, *IDENTITY, "steps", "best_step"),
        folder,
    )


def _lead(folder, record, make_trainer, kind, callbacks) -> bool:
    """Train in a folder unless it holds the finished training; whether that was needed."""
    entries = folder.iterdir() if folder.is_dir() else ()
    others = [entry.name for entry in entries if entry.name != LOCK or entry.is_dir()]
    if others and not (folder / RECORD).is_file() and not all(map(TEMPORARY.fullmatch, others)):
        raise ValueError(f"{folder} is not empty and holds no training; give another folder")
    trained = False
    if not _is_finished(folder, record):
        with locked(folder / LOCK):
            remove_abandoned(folder)
            settle((folder / MODEL).resolve())
            if not _is_finished(folder, record):  # by now
                _claim(folder, record)
                if not (folder / MODEL).is_dir():
                    trained = True
                    _train(folder, make_trainer(folder / CHECKPOINTS), kind, callbacks)
                for checkpoint in checkpoints_in(folder / CHECKPOINTS):
                    shutil.rmtree(checkpoint, ignore_errors=True)
                if (folder / CHECKPOINTS).is_dir() and not any((folder / CHECKPOINTS).iterdir()):
                    (folder / CHECKPOINTS).rmdir()
    return trained


def _is_finished(folder: Path, record: Mapping[str, Any]) -> bool:
    """Whether the folder holds this training, finished and tidied up."""
    if not (folder / MODEL).is_dir() or not (folder / RECORD).is_file():
        return False
    half_written = any(TEMPORARY.fullmatch(entry.name) for entry in folder.iterdir())
    if half_written or checkpoints_in(folder / CHECKPOINTS):
        return False
    _claim(folder, record)
    return True


def keep_training(path: Path, training: Training, **more) -> None:
    """Write the record and the history of a finished training, without its weights, to one file.

    Args:
        path: The file; its folder is made if it is missing.
        training: The finished training.
        **more: Further fields to write into the file.
    """
    lines = {**more, **training.finished, "history": training.history}
    write_json(path, lines)


def read_kept_training(path: Path, record: Mapping[str, Any]) -> Training | None:
    """Read what `keep_training` wrote, if it belongs to the training described by a record.

    Args:
        path: The file.
        record: The training's record, as `training_record` makes it.

    Returns:
        The training, with the file's folder as `folder` and the further fields among `finished`; None if
        there is no such file or if it belongs to another training.
    """
    if not path.is_file():
        return None
    kept = read_json(path, *IDENTITY, "history", "steps", "best_step")
    if any(kept[part] != record[part] for part in IDENTITY):
        return None
    return Training(kept.pop("history"), kept, path.parent)


def _claim(folder: Path, record: Mapping[str, Any]) -> None:
    """Write the record into the folder, or check that the record there is of the same training."""
    if not (folder / RECORD).is_file():
        write_text(folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        return
    there = read_json(folder / RECORD, *IDENTITY)
    for part in IDENTITY:
        if there[part] != record[part]:
            old, new = there[part] or {}, record[part] or {}
            other = [
                f"{k} {old.get(k)!r}, not {new.get(k)!r}" for k in {**old, **new} if old.get(k) != new.get(k)
            ]
            raise ValueError(
                f"{folder} holds a training with other {part}: {'; '.join(other)}; give another folder, or "
                f"remove this one"
            )


def _train(folder, trainer, kind, callbacks) -> None:
    """Train from the last complete checkpoint, if there is one, and write the result to `model/`."""
    checkpoints = folder / CHECKPOINTS
    newest = _newest(checkpoints)
    for callback in (FileTracker(folder), tensorboard(folder, newest), *callbacks):
        trainer.add_callback(callback)
    _run(trainer, processes.from_first(newest and str(newest)))
    state = trainer.state
    best_step = state.best_global_step or state.global_step
    if best_step != state.global_step:
        best = checkpoints / f"checkpoint-{best_step}" / "model.safetensors"
        frozen = any(not weights.requires_grad for weights in trainer.model.parameters())
        safetensors.torch.load_model(trainer.model, best, strict=not frozen)  # frozen ones may not be in it
    record = read_json(folder / RECORD)
    finished = {"best_step": best_step, "steps": state.global_step, **record}
    with atomic_folder(folder / MODEL, kind.what.lower()) as fresh:
        trainer.save_trained(fresh)
        write_text(fresh / RECORD, json.dumps(finished, indent=1, ensure_ascii=False) + "\n")
        write_text(fresh / "README.md", model_card(folder.name, kind, finished, state.log_history))


def _run(trainer: LoggedTrainer, newest: str | None) -> None:
    """Train from a checkpoint or from the start, in every process, unless patience had ended there."""
    if newest is not None and _out_of_patience(newest, trainer.settings):
        trainer.state = TrainerState.load_from_json(f"{newest}/trainer_state.json")
    else:
        trainer.train(resume_from_checkpoint=newest)


def _out_of_patience(checkpoint: str, settings: LoopSettings) -> bool:
    """Whether training had already stopped early at a checkpoint; the Trainer itself would go on."""
    callbacks = TrainerState.load_from_json(f"{checkpoint}/trainer_state.json").stateful_callbacks
    stopping = callbacks.get("EarlyStoppingCallback")
    return bool(stopping) and stopping["attributes"]["early_stopping_patience_counter"] >= settings.patience


def _newest(checkpoints: Path) -> Path | None:
    """The newest usable checkpoint, or None; warns of damaged ones and deletes them."""
    newest, damaged = usable_checkpoint(checkpoints)
    for path, reason in damaged:
        where = newest.name if newest else "the start"
        warnings.warn(f"{path}: {reason}; going on from {where}", stacklevel=4)
        shutil.rmtree(path)
    return newest
