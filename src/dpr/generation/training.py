"""Training a query generator: from a passage to the queries it answers, selected on held-out queries."""

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from dpr.data.training_data import TrainingData
from dpr.evaluation.metrics import score_texts
from dpr.generation.collator import IGNORED, GeneratorCollator, token_loss
from dpr.generation.decoding import Decoding
from dpr.generation.generator import SETTINGS, QueryGenerator
from dpr.training.dataset import Record
from dpr.training.resume import MODEL, Training, check_training, train_or_resume, training_record
from dpr.training.settings import PASSAGE_GAIN, GeneratorSettings
from dpr.training.tracking import ModelKind
from dpr.training.trainer import LoggedTrainer, prepare_steps, set_dropout, training_arguments


class GeneratorTrainer(LoggedTrainer):
    """The Trainer over a `TrainingSequence` of passages and queries.

    Args:
        generator: Trained in place.
        data: What to learn from.
        folder: Where checkpoints go; None for none.
        settings: How.
        validation: Examples to select by: the first positive of each is written a query for, which is
            compared with all held-out queries of that passage.
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
        self.model_accepts_loss_kwargs = True  # the Trainer counts the tokens of a whole step for us
        if validation is not None:
            first = validation.with_positives(lambda e: dict([next(iter(e.positives.items()))]))
            self._held_out = GeneratorCollator(generator, first, read_in)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """`token_loss`; batches and tokens are counted beside."""
        self.tally["batches"] += 1
        self.tally["tokens"] = self.tally["tokens"] + inputs["attention_mask"].sum()
        self.tally["tokens"] += (inputs["labels"] != IGNORED).sum()
        return token_loss(model, inputs, self.settings.label_smoothing, num_items_in_batch)

    def validate(self) -> dict[str, float]:
        """BLEU and ROUGE of a greedy query for each held-out query's first passage, and the loss a token.

        The `passage gain` is how much larger the loss is where each query gets the passage of another.
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
        found = score_texts([queries[0] for queries in written], list(references.values()))
        loss = self._held_out_loss(read)
        return found | {"loss": loss, PASSAGE_GAIN: self._held_out_loss(read[1:] + read[:1]) - loss}

    def _held_out_loss(self, passages: Sequence[str]) -> float:
        """The loss a token of the held-out queries, each with the passage given."""
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
        generator: The best checkpoint by the validation metric; the last weights without validation. It
            writes in the precision of its training.
    """

    generator: QueryGenerator


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
    """Train a copy of a generator, or go on with or read the training that `folder` holds.

    Args:
        generator: Where to start; it stays as it is.
        data: Queries with the passages that answer them; negatives play no part.
        folder: The training's own folder, as in `dpr.training.bi_encoder.train`.
        settings: How.
        validation: Held-out queries to select by, such as the second part of `TrainingData.split`.
        tags: Words to find the training by.
        callbacks: More of the Trainer's callbacks.

    Raises:
        ValueError: `folder` holds another training; a validation query is also a training query;
            evaluations asked for without `validation`; what `TrainingSequence` refuses; a loss that is not
            finite.
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
            (SETTINGS,),
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
    """Everything that a training is made from, as JSON values: what `training.json` holds.

    Arguments are those of `train_generator`. Two trainings with the same `IDENTITY` parts are the same one.
    """
    start = {"model": generator.name, "fingerprint": generator.fingerprint, **asdict(generator.config)}
    held_out = validation and {
        "collection": validation.name,
        "split": "held-out",
        "scope": f"{len(validation.examples):,} queries",
        "fingerprint": validation.fingerprint,
    }
    return training_record(settings, data, start, held_out, tags)
