"""Keeping track of a training run: files, TensorBoard, a progress bar, Neptune, and the model card."""

import csv
import io
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm
from transformers import TrainerCallback

from dpr.files import write_text
from dpr.training.settings import PASSAGE_GAIN, TEXT_METRICS, VALIDATION_METRICS

RUN, HISTORY = "run.json", "history.jsonl"
SELECTING_METRICS = (*VALIDATION_METRICS, *TEXT_METRICS, PASSAGE_GAIN)


class FileTracker(TrainerCallback):
    """Writes the history as JSON lines and CSV and for TensorBoard, and shows a progress bar.

    The files always hold the whole history, of earlier parts of a run too.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path):
        self._folder, self._writer, self._bar = folder, None, None

    def on_train_begin(self, args, state, control, **_) -> None:
        """Open the bar and TensorBoard's file, at the step that is gone on from."""
        from tensorboardX import SummaryWriter

        self._writer = SummaryWriter(
            str(self._folder / "tensorboard"), purge_step=state.global_step + 1 if state.global_step else None
        )
        run = (self._folder / RUN).read_text(encoding="utf-8")
        self._writer.add_text("run", f"```\n{run}\n```")
        self._bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,
            desc=self._folder.name,
            unit="step",
            smoothing=0.1,
        )

    def on_step_end(self, args, state, control, **_) -> None:
        """Move the bar."""
        self._bar.update()

    def on_log(self, args, state, control, logs=None, **_) -> None:
        """Write everything known so far."""
        history = state.log_history
        write_text(self._folder / HISTORY, "".join(json.dumps(line) + "\n" for line in history))
        columns = list(dict.fromkeys(name for line in history for name in line))
        table = io.StringIO()
        writer = csv.DictWriter(table, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        write_text(self._folder / "history.csv", table.getvalue())
        for name, value in logs.items():
            self._writer.add_scalar(
                f"validation/{name[5:]}" if name.startswith("eval_") else f"train/{name}",
                value,
                state.global_step,
            )
        if "loss" in logs:
            rate = args.per_device_train_batch_size * args.gradient_accumulation_steps / logs["step_s"]
            self._bar.set_postfix_str(
                f"loss {logs['loss']:.3f}, lr {logs['learning_rate']:.1e}, {rate:.0f} examples/s",
                refresh=False,
            )

    def on_train_end(self, args, state, control, **_) -> None:
        """Close both."""
        self._bar.close()
        self._writer.close()


class NeptuneTracker(TrainerCallback):
    """Sends a run to Neptune: every setting under its own type, tags as a list, a series a metric.

    Neptune's hosted service ended on 5 March 2026, so `offline` is the default: files that a server
    of one's own can be given. Where the package (`pip install neptune-client==1.14.0.post2`) or what
    Neptune needs is missing, one warning says so and training goes on.

    Args:
        mode: Neptune's: `offline`, `debug`, `async`, `sync` or `read-only`.
        project: Neptune's name of the project.
    """

    def __init__(self, mode: str = "offline", project: str | None = None):
        self._mode, self._project, self._run = mode, project, None

    def on_train_begin(self, args, state, control, **_) -> None:
        """Open a Neptune run and send what `run.json` says."""
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
        run = json.loads((Path(args.output_dir).parent / RUN).read_text(encoding="utf-8"))
        self._run["sys/tags"].add(run.pop("tags"))
        for path, value in flatten(run).items():
            self._run[path] = value

    def on_log(self, args, state, control, logs=None, **_) -> None:
        """Append each value to its series."""
        if self._run is not None:
            for name, value in logs.items():
                self._run[f"history/{name}"].append(value, step=state.global_step)

    def on_train_end(self, args, state, control, **_) -> None:
        """Wait until everything is sent."""
        if self._run is not None:
            self._run.stop()


def flatten(nested: Mapping[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """One path for each value of nested settings, its type kept; what is None is left out.

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


class Kind(NamedTuple):
    """What a model card says of the kind of model.

    Attributes:
        what: In words, with its article.
        reads: What it makes of texts, a sentence.
        library: What loads it.
        pipeline: The hub's word for its task.
    """

    what: str
    reads: str
    library: str
    pipeline: str


def model_card(
    name: str, kind: Kind, finished: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
) -> str:
    """The README.md of a trained model: what it is, from which data and settings, and how it did.

    Args:
        name: The model's name.
        kind: What kind of model it is.
        finished: What `finish_run` writes as `training.json`.
        history: The lines logged.
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
            f"{validation['pool']}:\n\n| metric | value |\n|---|---:|",
            *(f"| {k[5:]} | {v:.4f} |" for k, v in best.items() if k[5:] in SELECTING_METRICS),
        ]
    lines += ["", "## Settings and fingerprints", "", "| | |", "|---|---|"]
    shown = {part: finished[part] for part in ("settings", "data", "start", "validation", "versions")}
    lines += [
        f"| {path} | {value} |" for path, value in flatten({k: v for k, v in shown.items() if v}).items()
    ]
    return "\n".join(lines) + "\n"
