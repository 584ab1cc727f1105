"""Training a query generator to write the queries that a passage answers."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from dpr.arguments import checked
from dpr.data.training_data import TrainingData
from dpr.evaluation.metrics import score_texts
from dpr.generation.collator import IGNORED, GeneratorCollator, token_loss
from dpr.generation.decoding import Decoding
from dpr.generation.generator import QueryGenerator
from dpr.training.dataset import Record
from dpr.training.resume import MODEL, Training, check_training, train_or_resume, training_record
from dpr.training.settings import PASSAGE_GAIN, GeneratorSettings
from dpr.training.tracking import ModelKind
from dpr.training.trainer import LoggedTrainer, prepare_steps, set_dropout, training_arguments


class GeneratorTrainer(LoggedTrainer):
    """Trains a query generator on a `TrainingSequence` of passages and their queries.

    Args:
        generator: The generator, trained in place.
        data: The training data.
        folder: The folder for checkpoints; None to write none.
        settings: Settings of the training.
        validation: Held-out examples to select the best checkpoint by, of which the first positives are
            used: the query written for such a passage is compared with all held-out queries of it.
    """

    def __init__(
        self,
        generator: QueryGenerator,
        data: TrainingData,
        folder: Path | None,
        settings: GeneratorSettings,
        validation: TrainingData | None = None,
    ):
        on_cpu = generator.model.device.type == "cpu"
        sequence, steps, steps_per_epoch = prepare_steps(settings, data, 0)
        self.generator, self.validation = generator, validation
        set_dropout(generator.model, settings.dropout)
        arguments = training_arguments(settings, folder, steps, on_cpu, validation is not None)
        read_in = None
        if not settings.train_encoder:
            generator.model.get_encoder().requires_grad_(False)
            read_in = settings.precision or ("float32" if on_cpu else "bfloat16")
            used = {sequence[i].positive for i in range(len(sequence))}
            data = data.with_positives(lambda e: {d: g for d, g in e.positives.items() if d in used})
        super().__init__(
            generator.model,
            settings,
            steps_per_epoch,
            arguments,
            data_collator=GeneratorCollator(generator, data, read_in),
            train_dataset=sequence,
            eval_dataset=validation and validation.examples,
        )
        self.model_accepts_loss_kwargs = True  # so the Trainer counts the tokens of a whole step
        if validation is not None:
            first = validation.with_positives(lambda e: dict([next(iter(e.positives.items()))]))
            self._held_out = GeneratorCollator(generator, first, read_in)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The `token_loss` of a batch; also counts its tokens for the log."""
        self.tally["batches"] += 1
        self.tally["tokens"] = self.tally["tokens"] + inputs["attention_mask"].sum()
        self.tally["tokens"] += (inputs["labels"] != IGNORED).sum()
        return token_loss(model, inputs, self.settings.label_smoothing, num_items_in_batch)

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
        [(written, _)] = self.generator.generate_blocks([passages], greedy, [0])
        found = score_texts([queries[0].text for queries in written], list(references.values()))
        loss = self._held_out_loss(read)
        return found | {"loss": loss, PASSAGE_GAIN: self._held_out_loss(read[1:] + read[:1]) - loss}

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

    generator: QueryGenerator


@checked
def train_generator(
    generator: QueryGenerator,
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
        ValueError: `folder` holds another training; a validation query is also a training query;
            evaluations are asked for without `validation`; the loss is not finite; an error of
            `TrainingSequence`.
    """
    folder, config = Path(folder), generator.config
    check_training(settings, data, validation and [e.query for e in validation.examples], tags)
    trained = copy.deepcopy(generator)
    training = train_or_resume(
        folder,
        describe_generator_training(generator, data, settings, validation, tags),
        lambda checkpoints: GeneratorTrainer(trained, data, checkpoints, settings, validation),
        trained.save,
        ModelKind(
            "A query generator",
            f"It reads {config.passage_max_length} tokens of a passage; queries are cut at "
            f"{config.query_max_length}.",
            "transformers",
            "text2text-generation",
        ),
        callbacks,
    )
    device, precision = str(generator.model.device), settings.precision or generator.precision
    best = QueryGenerator.from_pretrained(folder / MODEL, device=device, precision=precision)
    best.name = folder.name
    return TrainedGenerator(**vars(training), generator=best)


def describe_generator_training(
    generator: QueryGenerator,
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
