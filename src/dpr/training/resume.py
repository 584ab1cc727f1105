"""The folder of a training run: claimed, gone on with after a kill, read once it is finished."""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
from transformers import TrainerCallback, TrainerState

from dpr.data.training_data import TrainingData
from dpr.files import atomic_folder, write_text
from dpr.provenance import git_commit, hardware
from dpr.training.settings import LoopSettings
from dpr.training.tracking import HISTORY, RUN, FileTracker, Kind, model_card
from dpr.training.trainer import RunTrainer, whole_checkpoints

MODEL, CHECKPOINTS, FINISHED = "model", "checkpoints", "training.json"
# What makes two runs the same run; the rest of run.json says where and when it was made
IDENTITY = ("settings", "data", "start", "validation")


def run_record(
    settings: LoopSettings,
    data: TrainingData,
    start: Mapping[str, Any],
    validation: Mapping[str, Any] | None,
    tags: Sequence[str],
) -> dict[str, Any]:
    """Everything that a run is made from, as JSON values: what `run.json` holds.

    Args:
        settings: How it trains.
        data: What from.
        start: The model it starts from.
        validation: What it selects by.
        tags: Words to find the run by.
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
    return json.loads(json.dumps(record))  # tuples become lists, as they will be when read back


def finish_run(
    folder: Path,
    run: Mapping[str, Any],
    make_trainer: Callable[[Path], RunTrainer],
    save: Callable[[Path], None],
    markers: Sequence[str],
    kind: Kind,
    callbacks: Sequence[TrainerCallback] = (),
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Train in a folder, from its last whole checkpoint if there is one; nothing, where it is finished.

    Args:
        folder: The run's own; see `dpr.training.bi_encoder.train` for what it gets.
        run: As `run_record` makes it.
        make_trainer: Called with the folder for checkpoints, where there is something to train.
        save: Writes the trained model into a folder.
        markers: Files of which a model's folder holds one.
        kind: What kind of model it is, for the model card.
        callbacks: More of the Trainer's callbacks.

    Returns:
        The history, a mapping a line, and `training.json`: the run with its best and last step.

    Raises:
        ValueError: `folder` holds another run, or something else.
    """
    _claim(folder, run)
    if not (folder / MODEL).is_dir():
        _train(folder, make_trainer(folder / CHECKPOINTS), save, markers, kind, callbacks)
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    for left in folder.glob(".*"):  # half written, by a kill
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    lines = (folder / HISTORY).read_text(encoding="utf-8").splitlines()
    finished = json.loads((folder / MODEL / FINISHED).read_text(encoding="utf-8"))
    return [json.loads(line) for line in lines], finished


def keep_run(path: Path, finished: Mapping[str, Any], history: Sequence[Mapping[str, Any]], **more) -> None:
    """Write what lasts of a finished run to one file, without its weights.

    Args:
        path: Its folder is made where missing.
        finished: `training.json`.
        history: A mapping a line.
        **more: Further fields.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = {**more, **finished, "history": history}
    write_text(path, json.dumps(lines, indent=1, ensure_ascii=False) + "\n")


def read_kept(path: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `keep_run` wrote, if it is of this run; None if it is of another, or not there.

    Args:
        path: The file.
        run: As `run_record` makes it.
    """
    if not path.is_file():
        return None
    kept = json.loads(path.read_text(encoding="utf-8"))
    return None if any(kept[part] != run[part] for part in IDENTITY) else kept


def training_minutes(history: Sequence[Mapping[str, Any]]) -> float:
    """What a run took, evaluations included, by its history."""
    seconds, last = 0.0, 0
    for line in history:
        if "loss" in line:
            seconds += line["step_s"] * (line["step"] - last)
            last = line["step"]
        seconds += line.get("eval_s", 0.0)
    return seconds / 60


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


def _train(folder, trainer, save, markers, kind, callbacks) -> None:
    """Train from the last whole checkpoint, if there is one, and write the result to `model/`."""
    checkpoints = folder / CHECKPOINTS
    for callback in (FileTracker(folder), *callbacks):
        trainer.add_callback(callback)
    newest = _newest(checkpoints)
    if newest is not None and _out_of_patience(newest, trainer.settings):
        trainer.state = TrainerState.load_from_json(f"{newest}/trainer_state.json")
    else:
        trainer.train(resume_from_checkpoint=newest)
    state = trainer.state
    best_step = state.best_global_step or state.global_step
    if best_step != state.global_step:
        best = checkpoints / f"checkpoint-{best_step}" / "model.safetensors"
        safetensors.torch.load_model(trainer.model, best)
    run = json.loads((folder / RUN).read_text(encoding="utf-8"))
    finished = {"best_step": best_step, "steps": state.global_step, **run}
    with atomic_folder(folder / MODEL, *markers) as fresh:
        save(fresh)
        write_text(fresh / FINISHED, json.dumps(finished, indent=1, ensure_ascii=False) + "\n")
        write_text(fresh / "README.md", model_card(folder.name, kind, finished, state.log_history))


def _out_of_patience(checkpoint: str, settings: LoopSettings) -> bool:
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
