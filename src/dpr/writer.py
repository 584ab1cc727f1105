"""A query generator and what it writes, made once and kept."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from transformers import TrainerCallback

from dpr.collection import Collection
from dpr.decoding import Decoding
from dpr.files import write_text
from dpr.generation import Generated, generate_queries, read_queries, write_queries
from dpr.generator import QueryGenerator
from dpr.generator_data import half_of
from dpr.generator_training import describe_generator_run, train_generator
from dpr.run_folder import FINISHED, IDENTITY, MODEL, keep_run, read_kept, training_minutes
from dpr.training_data import TrainingData
from dpr.training_settings import GeneratorSettings
from dpr.workspace import Workspace


class Writer:
    """A query generator that is trained once, and whose queries are written once and kept in `runs/`.

    The history lies in `runs/<collection>/training/<tag>.json`, queries in `runs/<collection>/queries/`;
    both are read again as long as settings, data and start are the same, also where the model is not at
    hand. Where it is needed and not there, it is trained anew.

    Args:
        space: Where to read and write; the model lies in `models/<data>/<tag>`.
        tag: The run's name.
        start: What is trained; it stays as it is.
        data: What to learn from.
        settings: How.
        validation: What to select by.
        callbacks: More of the Trainer's callbacks.

    Attributes:
        tag: The run's name.
        history: What was logged in training, a mapping a line.
        finished: Settings, fingerprints, steps and machine: `training.json` of the model.

    Raises:
        ValueError: What `train_generator` refuses.
    """

    def __init__(
        self,
        space: Workspace,
        tag: str,
        start: QueryGenerator,
        data: TrainingData,
        settings: GeneratorSettings,
        validation: TrainingData,
        callbacks: Sequence[TrainerCallback] = (),
    ):
        self.tag, self._space = tag, space
        self._run = start, data, settings, validation, callbacks
        self._generator: QueryGenerator | None = None
        path = space.runs / "training" / f"{tag}.json"
        kept = read_kept(path, describe_generator_run(start, data, settings, validation, [tag]))
        if kept is None:
            self._train()
            keep_run(path, self.finished, self.history)
        else:
            self.history: list[dict[str, Any]] = kept.pop("history")
            self.finished: dict[str, Any] = kept

    def _train(self) -> None:
        """Train, or read the finished model."""
        start, data, settings, validation, callbacks = self._run
        folder = self._space.model_folder(data.name, self.tag)
        trained = train_generator(
            start, data, folder, settings, validation=validation, tags=[self.tag], callbacks=callbacks
        )
        self._generator, self.history = trained.generator, trained.history
        self.finished = json.loads((folder / MODEL / FINISHED).read_text(encoding="utf-8"))

    @property
    def minutes(self) -> float:
        """What the training took, evaluations included."""
        return training_minutes(self.history)

    @property
    def best(self) -> dict[str, float]:
        """The evaluation of the checkpoint taken: loss, BLEU and ROUGE as `eval_…`."""
        best_step = self.finished["best_step"]
        return next(line for line in self.history if "eval_loss" in line and line["step"] == best_step)

    def write(
        self, name: str, collection: Collection, decoding: Decoding, overflow: str = "truncate"
    ) -> Generated:
        """Queries for a collection's passages, sampled by the profile's first seed.

        Args:
            name: Of the file `<tag>-<name>.jsonl.gz`.
            collection: N passages.
            decoding: How.
            overflow: As `generate_queries` takes it.
        """
        made_of = {
            **{part: self.finished[part] for part in IDENTITY},
            "collection": collection.fingerprint,
            "decoding": asdict(decoding),
            "overflow": overflow,
            "sampling_seed": self._space.profile.seeds[0],
        }
        path = self._space.runs / "queries" / f"{self.tag}-{name}.jsonl.gz"
        about = path.with_name(f"{self.tag}-{name}.json")
        if path.is_file() and about.is_file():
            kept = json.loads(about.read_text(encoding="utf-8"))
            if kept["made_of"] == made_of:
                return Generated(read_queries(path), kept["num_skipped"], kept["passages_per_s"])
        if self._generator is None:
            self._train()
        digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
        folder = self._space.root / "build" / "queries" / digest
        seed = made_of["sampling_seed"]
        found = generate_queries(folder, self._generator, collection, decoding, seed=seed, overflow=overflow)
        path.parent.mkdir(parents=True, exist_ok=True)
        about.unlink(missing_ok=True)  # never beside queries of another run
        write_queries(path, found.queries)
        rest = {"num_skipped": found.num_skipped, "passages_per_s": found.passages_per_s}
        write_text(about, json.dumps({"made_of": made_of, **rest}, indent=1) + "\n")
        return found


def write_apart(
    writers: Sequence[Writer],
    name: str,
    collection: Collection,
    decoding: Decoding,
    overflow: str = "truncate",
) -> Generated:
    """Queries for a collection's passages, each by the writer that has not learnt from that passage.

    Args:
        writers: One, or two trained on what `learn_apart` gives, in that order.
        name: As `Writer.write` takes it, like the rest.
        collection: N passages.
        decoding: How.
        overflow: What becomes of a passage beyond the generator's length.
    """
    if len(writers) == 1:
        return writers[0].write(name, collection, decoding, overflow)
    queries, skipped, seconds = {}, 0, 0.0
    for half, writer in enumerate(writers):
        passages = [p for p in collection.passages if half_of(p.contents) == half]
        found = writer.write(name, replace(collection, passages=passages), decoding, overflow)
        queries |= found.queries
        skipped += found.num_skipped
        seconds += len(found.queries) / found.passages_per_s
    ordered = {doc_id: queries[doc_id] for doc_id in collection.doc_ids if doc_id in queries}
    return Generated(ordered, skipped, len(ordered) / seconds)
