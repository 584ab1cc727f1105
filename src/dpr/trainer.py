"""transformers' Trainer with our batches, our loss, selection by retrieval and checkpoints that are whole."""

import math
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
from torch.utils.checkpoint import checkpoint
from transformers import EarlyStoppingCallback, PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from dpr.checkpoint_files import mark_whole, remove_older
from dpr.collator import Collator, TrainingSequence
from dpr.collection import Collection
from dpr.encoder import BiEncoder
from dpr.evaluation import evaluate
from dpr.index import build_index
from dpr.losses import in_batch_logits, in_batch_negatives_loss
from dpr.training_data import TrainingData
from dpr.training_settings import VALIDATION_METRICS, TrainingSettings
from dpr.training_sources import from_collection
from dpr.two_encoders import TwoEncoders

CPU_PASS_TOKENS = 2_048


class Pair(torch.nn.Module):
    """Both sides of an encoder as one module: padded passes in, vectors out.

    Args:
        encoder: Trained in place; where one transformer serves both sides it is one here too.
        caching: Keep the activations of one pass at a time; see `TrainingSettings.gradient_caching`.
    """

    def __init__(self, encoder: BiEncoder | TwoEncoders, caching: bool = False):
        super().__init__()
        self.encoder, self.caching = encoder, caching
        self.transformers = torch.nn.ModuleList(dict.fromkeys((encoder.query.model, encoder.passage.model)))

    def forward(self, queries: list[dict], passages: list[dict]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embed a batch as `Collator` makes it: [B, D] and [B + M, D], in float32."""
        return self._embed(self.encoder.query, queries), self._embed(self.encoder.passage, passages)

    def _embed(self, encoder: BiEncoder, passes: list[dict]) -> torch.Tensor:
        """The vectors of all passes, in the order of the batch."""
        vectors = []
        for batch in passes:
            fields = {field: tensor for field, tensor in batch.items() if field != "rows"}
            if self.caching and torch.is_grad_enabled():
                vectors.append(
                    checkpoint(lambda fields: encoder.embed(fields)[0], fields, use_reentrant=False)
                )
            else:
                vectors.append(encoder.embed(fields)[0])
        order = torch.cat([batch["rows"] for batch in passes])
        return torch.cat(vectors)[torch.argsort(order)]

    def activation_checkpointing_enable(self, **how) -> None:
        """What the Trainer calls: hand it on to the transformers."""
        for transformer in self.transformers:
            transformer.activation_checkpointing_enable(**how)


class BiEncoderTrainer(Trainer):
    """The Trainer over a `TrainingSequence`; everything else about a step is transformers'.

    Args:
        encoder: Trained in place.
        data: What to learn from.
        folder: Where checkpoints go; None for none.
        settings: How.
        validation: What to select by, if anything.
        loss: Takes the arguments of `in_batch_negatives_loss`, which it is by default.

    Raises:
        ValueError: Fewer than two validation queries; what `TrainingSequence` refuses.
    """

    def __init__(
        self,
        encoder: BiEncoder | TwoEncoders,
        data: TrainingData,
        folder: Path | None,
        settings: TrainingSettings,
        validation: Collection | None = None,
        loss: Callable[..., torch.Tensor] = in_batch_negatives_loss,
    ):
        self.encoder, self.settings, self.validation, self._loss = encoder, settings, validation, loss
        on_cpu = encoder.passage.model.device.type == "cpu"
        pass_tokens = settings.pass_tokens or (CPU_PASS_TOKENS if on_cpu else None)
        how = (settings.seed, settings.num_negatives, settings.queries_per_passage)
        batches_per_epoch = TrainingSequence(data, settings.batch_size, 1, *how).batches_per_epoch
        self._steps_per_epoch = batches_per_epoch / settings.accumulation
        steps = settings.num_steps or max(1, round(settings.num_epochs * self._steps_per_epoch))
        sequence = TrainingSequence(data, settings.batch_size, steps * settings.accumulation, *how)
        pair = Pair(encoder, settings.gradient_caching)
        if settings.dropout is not None:
            for module in pair.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = settings.dropout
        held_out = None
        if validation is not None:
            held_out = from_collection(validation)
            if len(held_out.examples) < 2:
                raise ValueError(
                    f"validation needs two queries with an answer or more, {held_out.name} has 1"
                )
            size = min(settings.batch_size, len(held_out.examples))
            self._held_out = TrainingSequence(held_out, size, len(held_out.examples) // size, 0, 0)
            self._held_out_size, self._held_out_collator = size, Collator(encoder, held_out, pass_tokens)
        super().__init__(
            pair,
            _arguments(settings, folder, steps, on_cpu, validation is not None),
            data_collator=Collator(encoder, data, pass_tokens, settings.all_positives),
            train_dataset=sequence,
            eval_dataset=held_out and held_out.examples,
        )
        self.remove_callback(PrinterCallback)
        self.add_callback(_LastStep())
        if settings.patience:
            self.add_callback(EarlyStoppingCallback(settings.patience))
        self._tally: Counter = Counter()
        self._since = time.perf_counter()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The contrastive loss of a batch; its in-batch accuracy and tokens are counted beside."""
        queries, passages = model(inputs["queries"], inputs["passages"])
        how = {"similarity": self.encoder.config.similarity, "temperature": self.settings.temperature}
        masks = {name: inputs[name] for name in ("positives", "not_negative")}
        loss = self._loss(queries, passages, symmetric=self.settings.symmetric, **how, **masks)
        if self.model.training:
            with torch.no_grad():
                best = in_batch_logits(queries, passages, **how).argmax(dim=1, keepdim=True)
                right = masks["not_negative"].gather(1, best).float().mean()
            tokens = [batch["attention_mask"] for side in ("queries", "passages") for batch in inputs[side]]
            self._tally["batches"] += 1
            self._tally["chance"] = self._tally["chance"] + math.log(len(passages))
            self._tally["right"] = self._tally["right"] + right  # stays on the device
            self._tally["tokens"] = self._tally["tokens"] + sum(mask.sum() for mask in tokens)
        return loss

    @torch.no_grad()
    def evaluate(self, *_, metric_key_prefix: str = "eval", **__) -> dict[str, float]:
        """Search the validation pool, and the loss of the held-out queries beside chance, ln B."""
        start = time.perf_counter()
        self.model.eval()
        found = search_pool(self.encoder, self.validation)
        losses = []
        for at in range(0, len(self._held_out), self._held_out_size):
            records = [self._held_out[i] for i in range(at, at + self._held_out_size)]
            batch = self._prepare_inputs(self._held_out_collator(records))
            with self.compute_loss_context_manager():
                losses.append(float(self.compute_loss(self.model, batch)))
        found |= {"loss": sum(losses) / len(losses), "chance_loss": math.log(self._held_out_size)}
        found["s"] = time.perf_counter() - start
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in found.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        self._since += found["s"]  # an evaluation is no part of a step
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a line, with what else is known about the steps since the last one."""
        if "train_runtime" in logs:
            return  # the Trainer's last line holds nothing that the others do not
        self.state.epoch = self.state.global_step / self._steps_per_epoch
        if "loss" in logs:
            if not math.isfinite(logs["loss"]):
                raise ValueError(
                    f"the loss at step {self.state.global_step} is {logs['loss']}; lower the learning rate, "
                    f"or train in float32"
                )
            batches, seconds = self._tally["batches"], time.perf_counter() - self._since
            logs |= {
                "chance_loss": self._tally["chance"] / batches,
                "in_batch_accuracy": float(self._tally["right"]) / batches,
                "examples": self.state.global_step * self.settings.batch_size * self.settings.accumulation,
                "step_s": seconds * self.settings.accumulation / batches,
                "tokens_per_s": float(self._tally["tokens"]) / seconds,
                "memory_bytes": memory_bytes(),
            }
            self._tally.clear()
            self._since = time.perf_counter()
        super().log(logs)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """The weights alone, as safetensors; the Trainer's own would pickle its arguments beside them."""
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.contiguous() for name, tensor in self.model.state_dict().items()}
        safetensors.torch.save_file(weights, str(Path(output_dir) / "model.safetensors"), {"format": "pt"})

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


def _arguments(
    settings: TrainingSettings, folder: Path | None, steps: int, on_cpu: bool, evaluates: bool
) -> TrainingArguments:
    """The Trainer's arguments; what orders data or counts steps is decided before them."""
    precision = settings.precision or ("float32" if on_cpu else "bfloat16")
    every = settings.eval_every or steps
    kind, floor = {
        "linear": ("polynomial", {"lr_end": settings.learning_rate * settings.floor_share, "power": 1.0}),
        "cosine": ("cosine_with_min_lr", {"min_lr_rate": settings.floor_share}),
    }[settings.schedule]
    if settings.learning_rate == 0 or settings.floor_share == 1:  # nothing lies between it and the floor
        kind, floor = "constant_with_warmup", {}
    arguments = TrainingArguments(
        output_dir=str(folder or tempfile.gettempdir()),
        max_steps=steps,
        per_device_train_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.accumulation,
        train_sampling_strategy="sequential",  # `TrainingSequence` has the order
        learning_rate=settings.learning_rate,
        lr_scheduler_type=kind,
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


def search_pool(encoder: BiEncoder | TwoEncoders, pool: Collection) -> dict[str, float]:
    """Search a collection exhaustively: the mean of each of `VALIDATION_METRICS`, with graded judgements."""
    texts = [passage.contents for passage in pool.passages]
    passage_emb, _ = next(encoder.passage.encode_blocks([texts], "passages"))
    index = build_index("exact", passage_emb, pool.doc_ids, encoder.config.similarity)
    query_emb, _ = next(encoder.query.encode_blocks([list(pool.queries.values())], "queries"))
    run = index.search_run(list(pool.queries), query_emb, 100, "validation")
    return evaluate(pool.qrels, run, VALIDATION_METRICS).means


def memory_bytes() -> int:
    """The most memory this process has taken so far: on a GPU of it, else of the machine."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
