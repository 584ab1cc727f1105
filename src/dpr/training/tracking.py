"""Records of a training: history files, TensorBoard, a progress bar, Neptune and the model card."""

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from dpr.files import read_json, write_text
from dpr.training.settings import PASSAGE_GAIN, TEXT_METRICS, VALIDATION_METRICS

RECORD, HISTORY = "training.json", "history.jsonl"
SELECTING_METRICS = (*VALIDATION_METRICS, *TEXT_METRICS, PASSAGE_GAIN)


class FileTracker(TrainerCallback):
    """Writes the history as JSON lines and shows a progress bar.

    The file always holds the whole history; after resuming, also that of the time before.

    Args:
        folder: The training's folder.
    """

    def __init__(self, folder: Path):
        self._folder, self._bar = folder, None

    def on_train_begin(self, args, state, control, **_) -> None:
        """Open the bar at the step that training starts or resumes from."""
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self._folder.name,
            unit="step",
            smoothing=0.1,
        )

    def on_step_end(self, args, state, control, **_) -> None:
        """Move the bar by one step."""
        self._bar.update()

    def on_log(self, args, state, control, logs=None, **_) -> None:
        """Write the whole history so far, and show the latest loss in the bar."""
        write_text(self._folder / HISTORY, "".join(json.dumps(line) + "\n" for line in state.log_history))
        if "loss" in logs:
            rate = args.per_device_train_batch_size * args.gradient_accumulation_steps / logs["step_s"]
            self._bar.set_postfix_str(
                f"loss {logs['loss']:.3f}, lr {logs['learning_rate']:.1e}, {rate:.0f} examples/s",
                refresh=False,
            )

    def on_train_end(self, args, state, control, **_) -> None:
        """Close the bar."""
        self._bar.close()


def tensorboard(folder: Path, checkpoint: Path | None) -> TensorBoardCallback:
    """Make a callback that writes the history for TensorBoard into `folder/tensorboard`.

    Args:
        folder: The training's folder.
        checkpoint: The checkpoint that training resumes from, if any; values already written for later
            steps are hidden.
    """
    from tensorboardX import SummaryWriter

    first = int(checkpoint.name.rpartition("-")[2]) + 1 if checkpoint else None
    return TensorBoardCallback(SummaryWriter(str(folder / "tensorboard"), purge_step=first))


class NeptuneTracker(TrainerCallback):
    """Sends a training to Neptune: settings with their types, tags as a list, one series per metric.

    Neptune's hosted service ended on 5 March 2026, so the default is `offline`: it writes files that can
    be sent to one's own server later. If the package (`pip install neptune-client==1.14.0.post2`) or
    something that Neptune needs is missing, a warning says so and training continues without it.

    Args:
        mode: Neptune's connection mode: `offline`, `debug`, `async`, `sync` or `read-only`.
        project: The project's name in Neptune.
    """

    def __init__(self, mode: str = "offline", project: str | None = None):
        self._mode, self._project, self._run = mode, project, None

    def on_train_begin(self, args, state, control, **_) -> None:
        """Start recording in Neptune and send the content of `training.json`."""
        try:
            import neptune
            from neptune.exceptions import NeptuneException
        except ImportError:
            warnings.warn(
                "Neptune is left out: pip install neptune-client==1.14.0.post2 brings it", stacklevel=2
            )
            return
        try:
            self._run = neptune.init_run(mode=self._mode, project=self._project)
        except NeptuneException as error:
            lines = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines()
            first = next((line.strip() for line in lines if line.strip(" -")), "")
            warnings.warn(f"Neptune is left out: {type(error).__name__}: {first}", stacklevel=2)
            return
        record = read_json(Path(args.output_dir).parent / RECORD)
        self._run["sys/tags"].add(record.pop("tags"))
        for path, value in flatten(record).items():
            self._run[path] = value

    def on_log(self, args, state, control, logs=None, **_) -> None:
        """Append each logged value to the series of its metric."""
        if self._run is not None:
            for name, value in logs.items():
                self._run[f"history/{name}"].append(value, step=state.global_step)

    def on_train_end(self, args, state, control, **_) -> None:
        """Stop recording in Neptune, once everything is sent."""
        if self._run is not None:
            self._run.stop()


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """Flatten nested settings to path → value; values keep their types, and None is left out.

    >>> flatten({"settings": {"lr": 3e-5, "patience": None}, "data": "scifact"})
    {'settings/lr': 3e-05, 'data': 'scifact'}
    """
    flat: dict[str, str | int | float | bool] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        elif value is not None:
            flat[f"{prefix}{name}"] = value
    return flat


class ModelKind(NamedTuple):
    """What trainings and model cards need to know about a kind of model.

    Attributes:
        what: Its name with an article, such as "A bi-encoder".
        reads: How it reads texts, as a sentence.
        library: The library that loads it.
        pipeline: The name of its task on the Hugging Face hub.
    """

    what: str
    reads: str
    library: str
    pipeline: str


def model_card(
    name: str, kind: ModelKind, finished: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> str:
    """The README.md of a trained model: what it is, its data and settings, and its validation metrics.

    Args:
        name: The model's name.
        kind: The kind of model.
        finished: The training's record with `steps` and `best_step`.
        history: The lines that the training logged.
    """
    start, data, validation = finished["start"], finished["data"], finished["validation"]
    lines = [
        "---",
        f"library_name: {kind.library}",
        f"pipeline_tag: {kind.pipeline}",
        f"tags: [{kind.library}, dense-passage-retrieval]",
        "---",
        f"# {name}",
        "",
        f"{kind.what} fine-tuned from `{start['model']}` on `{data['name']}` ({data['num_queries']:,} "
        f"queries) by `dpr` at commit `{finished['commit']}`, {finished['steps']:,} steps on "
        f"{finished['hardware']}; these are the weights of step {finished['best_step']:,}.",
        "",
        kind.reads,
    ]
    if validation:
        best = next(line for line in history if line["step"] == finished["best_step"] and "eval_loss" in line)
        lines += [
            "",
            f"## Validation\n\nThe {validation['split']} queries of `{validation['collection']}`, "
            f"{validation['scope']}:\n\n| metric | value |\n|---|---:|",
            *(f"| {k[5:]} | {v:.4f} |" for k, v in best.items() if k[5:] in SELECTING_METRICS),
        ]
    lines += ["", "## Settings and fingerprints", "", "| | |", "|---|---|"]
    shown = {part: finished[part] for part in ("settings", "data", "start", "validation", "versions")}
    lines += [
        f"| {path} | {value} |" for path, value in flatten({k: v for k, v in shown.items() if v}).items()
    ]
    return "\n".join(lines) + "\n"
