"""What both of our Trainers share: their arguments, their log and their checks of checkpoints."""

import json
import math
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch.utils.data import DataLoader
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from dpr.data.training_data import TrainingData
from dpr.files import read_json, write_text
from dpr.models.bi_encoder import fast_precision
from dpr.training import processes
from dpr.training.dataset import TrainingSequence
from dpr.training.settings import LoopSettings

try:
    import resource
except ImportError:  # Windows
    resource = None

WHOLE = "whole.json"  # written last into a checkpoint: name of each file → its bytes
STATE = "trainer_state.json"
KEPT_CHECKPOINTS = 3  # the newest one, the best one, and one to fall back to


class LoggedTrainer(Trainer):
    """The Trainer with more fields in its log and with a mark on every complete checkpoint.

    A subclass adds each batch to `tally["batches"]` and its tokens to `tally["tokens"]`, and defines
    `validate` and `save_trained`.

    Args:
        model: The model, trained in place.
        settings: Settings of the training.
        steps_per_epoch: Optimiser steps in an epoch.
        arguments: The Trainer's arguments, as `training_arguments` makes them.
        **more: Further keyword arguments of the Trainer.
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

    def get_train_dataloader(self) -> DataLoader:
        """The batches, all of them in every process; the Trainer would deal them out."""
        if processes.count() == 1:
            return super().get_train_dataloader()
        return DataLoader(
            self.train_dataset,
            batch_size=self.args.per_device_train_batch_size,
            collate_fn=self.data_collator,
            pin_memory=self.args.dataloader_pin_memory,
        )

    def extra_log(self, batches: int) -> dict[str, float]:
        """More fields for a line of the log, about the `batches` batches since the line before."""
        return {}

    def validate(self) -> dict[str, float]:
        """Evaluate the model; the values returned by name include the settings' metric."""
        raise NotImplementedError

    def save_trained(self, folder: Path) -> None:
        """Write the trained model into a folder, as it is loaded from."""
        raise NotImplementedError

    @torch.no_grad()
    def evaluate(self, *_, metric_key_prefix: str = "eval", **__) -> dict[str, float]:
        """Validate, and log the values found and the seconds it took."""
        start = time.perf_counter()
        self.model.eval()
        found = self.validate()
        found["s"] = time.perf_counter() - start
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self.since += found["s"]  # the time of an evaluation does not count as that of a step
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a line; one about training steps also gets examples, speed, memory and `extra_log`."""
        if "train_runtime" in logs:
            return  # the Trainer's summary holds nothing that the other lines lack
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
        """Save only the weights, as safetensors; the Trainer's method would also pickle its arguments."""
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_model(self.model, f"{output_dir}/model.safetensors", {"format": "pt"})

    def _save_checkpoint(self, model, trial) -> None:
        """Save a checkpoint, write the sizes of its files to mark it as complete, and remove the oldest."""
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        try:
            super()._save_checkpoint(model, trial)
        except (
            OSError,
            RuntimeError,
            safetensors.SafetensorError,
        ) as error:  # torch's say nothing of a full disk
            free = shutil.disk_usage(self.args.output_dir).free
            message = f"cannot write a checkpoint ({error}), {free / 2**20:,.0f} MiB are free"
            raise OSError(
                getattr(error, "errno", None), f"{message}; earlier ones are kept", str(folder)
            ) from error
        processes.wait()  # for the files of the others
        if not processes.is_first():
            return
        sizes = {file.name: file.stat().st_size for file in sorted(folder.iterdir())}
        write_text(folder / WHOLE, json.dumps(sizes, indent=1))
        there = checkpoints_in(folder.parent)
        kept = (folder.name, f"checkpoint-{self.state.best_global_step}")
        for checkpoint in [c for c in there if c.name not in kept][: max(0, len(there) - KEPT_CHECKPOINTS)]:
            shutil.rmtree(checkpoint)


class _LastStep(TrainerCallback):
    """Makes the Trainer log the last step too."""

    def on_step_end(self, args, state, control, **_):
        control.should_log = control.should_log or state.global_step == state.max_steps


def prepare_steps(
    settings: LoopSettings, data: TrainingData, num_negatives: int, divided: bool = False
) -> tuple[TrainingSequence, int, float]:
    """The records of a training, its number of optimiser steps, and the steps in an epoch.

    Args:
        settings: Settings of the training.
        data: The training data.
        num_negatives: Negatives of each record.
        divided: Whether the model embeds its share of a batch, as `dpr.training.processes` needs it.

    Raises:
        ValueError: There are several processes, for a model that has no shares or for fewer queries.
    """
    if processes.count() > 1 and not divided:
        raise ValueError("only bi-encoders are trained in several processes; start this without torchrun")
    if settings.batch_size < processes.count():
        raise ValueError(
            f"batch_size {settings.batch_size} must be at least the {processes.count()} processes: it is "
            "what they train on together"
        )
    how = (settings.seed, num_negatives, settings.queries_per_passage)
    batches_per_epoch = TrainingSequence(data, settings.batch_size, 1, *how).batches_per_epoch
    steps_per_epoch = batches_per_epoch / settings.accumulation
    steps = settings.num_steps or max(1, round(settings.num_epochs * steps_per_epoch))
    sequence = TrainingSequence(data, settings.batch_size, steps * settings.accumulation, *how)
    return sequence, steps, steps_per_epoch


def set_dropout(model: torch.nn.Module, rate: float | None) -> None:
    """Set every dropout rate of a model; None keeps the model's own rates."""
    if rate is not None:
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = rate
            for name, value in vars(module).items():  # such as that of T5's attention
                if name.endswith("dropout") and isinstance(value, float):
                    setattr(module, name, rate)


def training_arguments(
    settings: LoopSettings,
    folder: Path | None,
    steps: int,
    on_cpu: bool,
    evaluates: bool,
    kind: type[TrainingArguments] = TrainingArguments,
) -> TrainingArguments:
    """Turn settings into the Trainer's arguments; `prepare_steps` gives the number of steps."""
    precision = settings.precision or ("float32" if on_cpu else "bfloat16")
    if on_cpu and precision == "bfloat16" and fast_precision("cpu") != "bfloat16":
        warnings.warn(
            "This processor does not compute with bfloat16, and imitating it takes many times as long: the "
            "training computes in float32.",
            stacklevel=2,
        )
        precision = "float32"
    every = settings.eval_every or steps
    schedule, floor = {
        "linear": ("polynomial", {"lr_end": settings.learning_rate * settings.floor_share, "power": 1.0}),
        "cosine": ("cosine_with_min_lr", {"min_lr_rate": settings.floor_share}),
    }[settings.schedule]
    if settings.learning_rate == 0 or settings.floor_share == 1:  # the rate cannot fall
        schedule, floor = "constant_with_warmup", {}
    arguments = kind(
        output_dir=str(folder or tempfile.gettempdir()),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        train_sampling_strategy="sequential",  # `TrainingSequence` decides the order
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
        disable_tqdm=True,  # `tracking.FileTracker` shows the progress bar
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=not on_cpu,
        ddp_broadcast_buffers=False,  # they are the same in every process
        use_cpu=on_cpu,
        seed=settings.seed,
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs would split a batch and its negatives
    return arguments


def memory_bytes() -> int:
    """Peak memory of this process so far, in bytes: of the GPU if there is one, else of the machine.

    On Windows, which does not say it, 0.
    """
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if resource is None:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def checkpoints_in(folder: Path) -> list[Path]:
    """The checkpoints in a folder, oldest first; no other names, such as `checkpoint-2-backup`."""
    paths = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(paths, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def usable_checkpoint(folder: Path) -> tuple[Path | None, list[tuple[Path, str]]]:
    """Find the newest checkpoint that training can resume from, and all damaged ones with the reason.

    A checkpoint is usable if every file has the size noted when it was complete, and if the best checkpoint
    that it names is usable too.

    Args:
        folder: The folder with all checkpoints of a training.
    """
    usable: list[Path] = []
    damaged: list[tuple[Path, str]] = []
    for path in checkpoints_in(folder):
        reason = _damage(path)
        if not reason:
            best = read_json(path / STATE, "best_global_step")["best_global_step"]
            if best and f"checkpoint-{best}" not in {other.name for other in (*usable, path)}:
                reason = f"its best checkpoint, of step {best}, is damaged or missing"
        if reason:
            damaged.append((path, reason))
        else:
            usable.append(path)
    return (usable[-1] if usable else None), damaged


def _damage(path: Path) -> str:
    """What is wrong with a checkpoint, in words; empty if nothing is."""
    if not (path / WHOLE).is_file():
        return "writing it was broken off"
    try:
        sizes = read_json(path / WHOLE)
    except ValueError:
        return f"{WHOLE} is damaged"
    for name, size in sizes.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if (path / name).stat().st_size != size:
            return f"{name} is damaged"
    try:
        read_json(path / STATE, "best_global_step")
    except ValueError:
        return f"{STATE} is damaged"
    return ""
