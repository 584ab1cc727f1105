"""What every Trainer of ours shares: arguments, what is logged about steps, checkpoints that are whole."""

import hashlib
import json
import math
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import safetensors.torch
import torch
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from dpr.files import write_text
from dpr.training.settings import LoopSettings


class RunTrainer(Trainer):
    """The Trainer with our lines in its log, and with checkpoints that are marked once they are whole.

    A subclass counts in `tally`, for each batch, `batches` and `tokens`, and says what an evaluation is.

    Args:
        model: Trained in place.
        settings: How.
        steps_per_epoch: Optimiser steps in an epoch.
        arguments: As `training_arguments` makes them.
        **more: The Trainer's other arguments.
    """

    def __init__(
        self, model, settings: LoopSettings, steps_per_epoch: float, arguments: TrainingArguments, **more
    ):
        self.settings, self.steps_per_epoch = settings, steps_per_epoch
        super().__init__(model, arguments, **more)
        self.remove_callback(PrinterCallback)
        self.add_callback(_LastStep())
        if settings.patience:
            self.add_callback(EarlyStoppingCallback(settings.patience))
        self.tally: Counter = Counter()
        self.since = time.perf_counter()

    def extra_log(self, batches: int) -> dict[str, float]:
        """What else a subclass knows about the batches since the last line."""
        return {}

    def validate(self) -> dict[str, float]:
        """What an evaluation finds, the settings' metric among it."""
        raise NotImplementedError

    @torch.no_grad()
    def evaluate(self, *_, metric_key_prefix: str = "eval", **__) -> dict[str, float]:
        """Validate, and log what was found with the seconds it took."""
        start = time.perf_counter()
        self.model.eval()
        found = self.validate()
        found["s"] = time.perf_counter() - start
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.since += found["s"]  # an evaluation is no part of a step
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a line, with what else is known about the steps since the last one."""
        if "train_runtime" in logs:
            return  # the Trainer's last line holds nothing that the others do not
        self.state.epoch = self.state.global_step / self.steps_per_epoch
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise ValueError(
                    f"the loss at step {self.state.global_step} is {logs['loss']}; lower the learning rate, "
                    f"or train in float32"
                )
            batches, seconds = self.tally["batches"], time.perf_counter() - self.since
            logs |= self.extra_log(batches)
            logs |= {
                "examples": self.state.global_step * self.settings.batch_size * self.settings.accumulation,
                "step_s": seconds * self.settings.accumulation / batches,
                "tokens_per_s": float(self.tally["tokens"]) / seconds,
                "memory_bytes": memory_bytes(),
            }
            self.tally.clear()
            self.since = time.perf_counter()
        super().log(logs)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The weights alone, as safetensors; the Trainer's own would pickle its arguments beside them."""
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_model(self.model, f"{output_dir}/model.safetensors", {"format": "pt"})

    def _save_checkpoint(self, model, trial) -> None:
        """A checkpoint, marked as whole once it is; then older ones go."""
        super()._save_checkpoint(model, trial)
        folder = Path(self.args.output_dir)
        mark_whole(folder / f"checkpoint-{self.state.global_step}")
        remove_older(folder, self.state.best_global_step)


class _LastStep(TrainerCallback):
    """Logs the last step too."""

    def on_step_end(self, args, state, control, **_):
        control.should_log = control.should_log or state.global_step == state.max_steps


def training_arguments(
    settings: LoopSettings,
    folder: Path | None,
    steps: int,
    on_cpu: bool,
    evaluates: bool,
    kind: type[TrainingArguments] = TrainingArguments,
) -> TrainingArguments:
    """The Trainer's arguments; what orders data or counts steps is decided before them."""
    precision = settings.precision or ("float32" if on_cpu else "bfloat16")
    every = settings.eval_every or steps
    schedule, floor = {
        "linear": ("polynomial", {"lr_end": settings.learning_rate * settings.floor_share, "power": 1.0}),
        "cosine": ("cosine_with_min_lr", {"min_lr_rate": settings.floor_share}),
    }[settings.schedule]
    if settings.learning_rate == 0 or settings.floor_share == 1:  # nothing lies between it and the floor
        schedule, floor = "constant_with_warmup", {}
    arguments = kind(
        output_dir=str(folder or tempfile.gettempdir()),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        train_sampling_strategy="sequential",  # `TrainingSequence` has the order
        learning_rate=settings.learning_rate,
        lr_scheduler_type=schedule,
        lr_scheduler_kwargs=floor,
        warmup_steps=min(steps - 1, math.ceil(settings.warmup_share * steps)),
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=precision == "bfloat16",
        fp16=precision == "float16",
        activation_checkpointing=settings.activation_checkpointing,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=every,
        save_strategy="steps" if folder else "no",
        save_steps=every,
        metric_for_best_model=f"eval_{settings.metric}" if evaluates else None,
        greater_is_better=True if evaluates else None,
        restore_callback_states_from_checkpoint=True,
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,
        disable_tqdm=True,  # `tracking.FileTracker` has the bar
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=not on_cpu,
        use_cpu=on_cpu,
        seed=settings.seed,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several would split a batch and its negatives
    return arguments


def memory_bytes() -> int:
    """The most memory this process has taken so far: on a GPU of it, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


WHOLE = "whole.json"  # written last: file → SHA-256 of a checkpoint
KEPT_CHECKPOINTS = 2  # the newest ones, beside the best


def mark_whole(path: Path) -> None:
    """Note what a finished checkpoint consists of; without the note it counts as broken off."""
    digests = {file.name: _sha256(file) for file in sorted(path.iterdir())}
    write_text(path / WHOLE, json.dumps(digests, indent=1))


def remove_older(folder: Path, best_step: int | None) -> None:
    """Remove all checkpoints of a run but the newest two, that of the best step, and those two's best."""
    paths = _checkpoints(folder)
    newest = paths[-KEPT_CHECKPOINTS:]
    kept = {f"checkpoint-{step}" for step in (best_step, *map(_best_step, newest))}
    for path in paths[:-KEPT_CHECKPOINTS]:
        if path.name not in kept:
            shutil.rmtree(path)


def _best_step(path: Path) -> int | None:
    """The best step that a checkpoint knows of."""
    return json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))["best_global_step"]


def whole_checkpoints(folder: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The checkpoints that training can go on from, oldest first, and the others with what is wrong.

    One is whole where every file has the SHA-256 noted once it was complete, and the best checkpoint
    that it speaks of is whole too.
    """
    usable: list[Path] = []
    damaged: list[tuple[Path, str]] = []
    for path in _checkpoints(folder):
        reason = _damage(path)
        if not reason:
            best = _best_step(path)
            if best and f"checkpoint-{best}" not in {other.name for other in (*usable, path)}:
                reason = f"its best checkpoint, of step {best}, is damaged or missing"
        if reason:
            damaged.append((path, reason))
        else:
            usable.append(path)
    return usable, damaged


def _checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a run, oldest first."""
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def _damage(path: Path) -> str:
    """What is wrong with a checkpoint, or nothing."""
    if not (path / WHOLE).is_file():
        return "writing it was broken off"
    try:
        digests = json.loads((path / WHOLE).read_text(encoding="utf-8"))
    except ValueError:
        return f"{WHOLE} is damaged"
    for name, digest in digests.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if _sha256(path / name) != digest:
            return f"{name} is damaged"
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
