"""Training a query generator to write the queries that a passage answers."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from transformers import TrainerCallback

from dpr.arguments import checked
from dpr.data.training_data import TrainingData
from dpr.evaluation.metrics import score_texts
from dpr.generation.adapters import add_adapters, merge_adapters
from dpr.generation.collator import IGNORED, make_collator, token_loss
from dpr.generation.decoding import Decoding
from dpr.generation.generator import QueryGenerator
from dpr.generation.llm import CausalGenerator
from dpr.training.dataset import Record
from dpr.training.resume import MODEL, Training, check_training, train_or_resume, training_record
from dpr.training.settings import PASSAGE_GAIN, GeneratorSettings
from dpr.training.tracking import ModelKind
from dpr.training.trainer import LoggedTrainer, prepare_steps, set_dropout, training_arguments


class GeneratorTrainer(LoggedTrainer):
    """Trains a query generator on a `TrainingSequence` of passages and their queries.

    Args:
        generator: The generator, trained in place; with `lora_rank` it has adapters at the end.
        data: The training data.
        folder: The folder for checkpoints; None to write none.
        settings: Settings of the training.
        validation: Held-out examples to select the best checkpoint by, of which the first positives are
            used: the query written for such a passage is compared with all held-out queries of it.
    """

    def __init__(
        self,
        generator: QueryGenerator | CausalGenerator,
        data: TrainingData,
        folder: Path | None,
        settings: GeneratorSettings,
        validation: TrainingData | None = None,
    ):
        on_cpu = generator.model.device.type == "cpu"
        sequence, steps, steps_per_epoch = prepare_steps(settings, data, 0)
        self.generator, self.validation = generator, validation
        set_dropout(generator.model, settings.dropout)
        if settings.lora_rank:
            add_adapters(generator.model, settings.lora_rank, settings.seed)
        arguments = training_arguments(settings, folder, steps, on_cpu, validation is not None)
        super().__init__(
            generator.model,
            settings,
            steps_per_epoch,
            arguments,
            data_collator=make_collator(generator, data),
            train_dataset=sequence,
            eval_dataset=validation and validation.examples,
        )
        self.model_accepts_loss_kwargs = True  # so the Trainer counts the tokens of a whole step
        if validation is not None:
            first = validation.with_positives(lambda e: dict([next(iter(e.positives.items()))]))
            self._held_out = make_collator(generator, first)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The `token_loss` of a batch; also counts its tokens for the log."""
        self.tally["batches"] += 1
        self.tally["tokens"] = self.tally["tokens"] + inputs["attention_mask"].sum()
        if "decoder_input_ids" in inputs:
            self.tally["tokens"] += (inputs["labels"] != IGNORED).sum()
        return token_loss(model, inputs, self.settings.label_smoothing, num_items_in_batch)

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save the weights, of adapters and frozen weights only the adapters."""
        if not self.settings.lora_rank:
            return super()._save(output_dir, state_dict)
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        trained = {name: w.detach() for name, w in self.model.named_parameters() if w.requires_grad}
        safetensors.torch.save_file(trained, f"{output_dir}/model.safetensors", {"format": "pt"})

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: torch.nn.Module | None = None
    ) -> None:
        """Load the weights that `_save` saved; the Trainer's method warns of all that are frozen."""
        if not self.settings.lora_rank:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        file = f"{resume_from_checkpoint}/model.safetensors"
        safetensors.torch.load_model(self.model, file, strict=False)

    def validate(self) -> dict[str, float]:
        """BLEU and ROUGE of greedy queries for the held-out passages, the loss per token and `passage gain`.

        `passage gain` says how much larger the loss is if each query gets the passage of another query.
        """
        examples = self.validation.examples
        read = [next(iter(example.positives)) for example in examples]
        references: dict[str, list[str]] = {doc_id: [] for doc_id in read}
        for example in examples:
            for doc_id in references.keys() & example.positives.keys():
                references[doc_id].append(example.query)
        greedy = Decoding("greedy", max_length=self.generator.config.query_max_length)
        passages = [self.validation.passages[doc_id] for doc_id in references]
        if isinstance(self.generator, CausalGenerator):
            self.generator.forget_read()
        [(written, _)] = self.generator.generate_blocks([passages], greedy, [0])
        found = score_texts([queries[0].text for queries in written], list(references.values()))
        loss = self._held_out_loss(read)
        return found | {"loss": loss, PASSAGE_GAIN: self._held_out_loss(read[1:] + read[:1]) - loss}

    def save_trained(self, folder: Path) -> None:
        """Write the generator into a folder, with its adapters merged into the weights."""
        if self.settings.lora_rank:
            merge_adapters(self.generator.model)
        self.generator.save(folder)

    def _held_out_loss(self, passages: Sequence[str]) -> float:
        """The mean loss per token of the held-out queries, given the doc_id of a passage for each."""
        pairs = zip(self.validation.examples, passages, strict=True)
        records = [Record(example, doc_id, ()) for example, doc_id in pairs]
        total = count = 0.0
        for at in range(0, len(records), self.settings.batch_size):
            batch = self._prepare_inputs(self._held_out(records[at : at + self.settings.batch_size]))
            with self.compute_loss_context_manager():
                total += float(token_loss(self.model, batch, num_tokens=1))
            count += float((batch["labels"] != IGNORED).sum())
        return total / count


@dataclass(frozen=True)
class TrainedGenerator(Training):
    """A finished training of a generator.

    Attributes:
        generator: The generator with the weights of the best checkpoint; without validation, the last
            weights. It writes in the precision of the settings, or else in that of the start.
    """

    generator: QueryGenerator | CausalGenerator


@checked
def train_generator(
    generator: QueryGenerator | CausalGenerator,
    data: TrainingData,
    folder: Path | str,
    settings: GeneratorSettings,
    *,
    validation: TrainingData | None = None,
    tags: Sequence[str] = (),
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainedGenerator:
    """Train a copy of a generator, or resume or read the training that `folder` holds.

    Args:
        generator: The generator to start from; it is not changed.
        data: Queries with the passages that answer them; negatives are ignored.
        folder: The training's own folder, as in `dpr.training.bi_encoder.train`.
        settings: Settings of the training.
        validation: Held-out queries to select the best checkpoint by, such as the second part of
            `TrainingData.split`.
        tags: Words to find the training by.
        callbacks: Further callbacks of the Trainer.

    Raises:
        ValueError: The generator's weights are not in float32; `folder` holds another training; a validation
            query is also a training query; evaluations are asked for without `validation`; the loss is not
            finite; an error of `TrainingSequence`.
    """
    folder, config, causal = Path(folder), generator.config, isinstance(generator, CausalGenerator)
    if generator.model.dtype != torch.float32:
        raise ValueError(
            f"{generator.name} has weights in {generator.precision}, training needs float32: load it with "
            f"precision='float32'; the settings' precision says how training computes"
        )
    check_training(settings, data, validation and [e.query for e in validation.examples], tags)
    training = train_or_resume(
        folder,
        describe_generator_training(generator, data, settings, validation, tags),
        lambda checkpoints: GeneratorTrainer(
            copy.deepcopy(generator), data, checkpoints, settings, validation
        ),
        ModelKind(
            "A query generator",
            f"It reads {config.passage_max_length} tokens of a passage; queries are cut at "
            f"{config.query_max_length}.",
            "transformers",
            "text-generation" if causal else "text2text-generation",
        ),
        callbacks,
    )
    device, precision = str(generator.model.device), settings.precision or generator.precision
    best = type(generator).from_pretrained(folder / MODEL, device=device, precision=precision)
    best.name = folder.name
    return TrainedGenerator(**vars(training), generator=best)


def describe_generator_training(
    generator: QueryGenerator | CausalGenerator,
    data: TrainingData,
    settings: GeneratorSettings,
    validation: TrainingData | None,
    tags: Sequence[str],
) -> dict[str, Any]:
    """Describe everything that a training is made from, as JSON values: the content of `training.json`.

    The arguments are those of `train_generator`. Trainings whose `IDENTITY` parts agree are the same one.
    """
    start = {"model": generator.name, "fingerprint": generator.fingerprint, **asdict(generator.config)}
    held_out = validation and {
        "collection": validation.name,
        "split": "held-out",
        "scope": f"{len(validation.examples):,} queries",
        "fingerprint": validation.fingerprint,
    }
    return training_record(settings, data, start, held_out, tags)
