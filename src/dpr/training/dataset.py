"""The order of a training's records, which depends only on the data, the seed and the position."""

from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset

from dpr.data.examples import Example
from dpr.data.training_data import TrainingData


@dataclass(frozen=True)
class Record:
    """One query with the passages that it has in one epoch.

    Attributes:
        example: The example that the record is made from.
        positive: doc_id of the positive used in this epoch.
        negatives: doc_ids of the hard negatives used in this epoch.
    """

    example: Example
    positive: str
    negatives: tuple[str, ...]


class TrainingSequence(Dataset):
    """All records of a training in order; each depends only on the data, the seed and its position.

    No record depends on those before it, so a training resumed at some batch sees the same records as one
    that was never interrupted. Each epoch has its own random order and drops the records that do not fill
    a batch.

    An epoch takes each query once, with one of its positives. Over the epochs the positives of a query take
    turns: highest grades first, in random order within a grade. Where queries have many positives
    (NFCorpus: 43), an epoch can instead take each passage once with several of its queries, which also
    take turns. The model then encodes one passage for many queries.

    Args:
        data: Examples and passages.
        batch_size: Records in a batch.
        num_batches: Batches in the whole training.
        seed: Seed of the order of records and the choice of positives.
        num_negatives: Hard negatives per record. Over the epochs those of a query take turns, the first
            ones first; a query with fewer gives all it has.
        queries_per_passage: None for epochs over queries. A number for epochs over passages: the most
            records that each passage has in an epoch.

    Raises:
        ValueError: A batch of fewer than 2 records or more than an epoch has, or a number out of range.
    """

    def __init__(
        self,
        data: TrainingData,
        batch_size: int,
        num_batches: int,
        seed: int,
        num_negatives: int = 1,
        queries_per_passage: int | None = None,
    ):
        numbers = {"num_batches": num_batches, "num_negatives": num_negatives}
        numbers |= {} if queries_per_passage is None else {"queries_per_passage": queries_per_passage}
        for name, number in numbers.items():
            if number < (name != "num_negatives"):
                raise ValueError(f"{name} must be at least {int(name != 'num_negatives')}, got {number}")
        self.data, self.seed, self.num_negatives = data, seed, num_negatives
        self.queries_per_passage = queries_per_passage
        self._queries_of: dict[str, list[int]] = {}
        for number, example in enumerate(data.examples):
            for doc_id in example.positives:
                self._queries_of.setdefault(doc_id, []).append(number)
        per_epoch = len(self._pairs(0))
        if not 2 <= batch_size <= per_epoch:
            raise ValueError(
                f"batch_size must be from 2 to {per_epoch}, the records of an epoch of {data.name}, got "
                f"{batch_size}"
            )
        self.batches_per_epoch = per_epoch // batch_size
        self._per_epoch = self.batches_per_epoch * batch_size
        self._length = num_batches * batch_size
        self._current: tuple[int, list[tuple[int, str]]] = (-1, [])

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> Record:
        if not 0 <= position < self._length:
            raise IndexError(position)
        epoch, place = divmod(position, self._per_epoch)
        if self._current[0] != epoch:
            self._current = (epoch, self._pairs(epoch))
        number, positive = self._current[1][place]
        example = self.data.examples[number]
        count = min(self.num_negatives, len(example.negatives))
        negatives = tuple(
            example.negatives[(epoch * count + i) % len(example.negatives)] for i in range(count)
        )
        return Record(example, positive, negatives)

    def _pairs(self, epoch: int) -> list[tuple[int, str]]:
        """The records of an epoch in order, each as (position of its example, doc_id of its positive)."""
        rng = np.random.default_rng([self.seed, epoch])
        if self.queries_per_passage is None:
            return [(n, self._positive(n, epoch)) for n in rng.permutation(len(self.data.examples)).tolist()]
        pairs = []
        doc_ids = list(self._queries_of)
        for place in rng.permutation(len(doc_ids)).tolist():
            numbers = self._queries_of[doc_ids[place]]
            count = min(self.queries_per_passage, len(numbers))
            shuffled = np.random.default_rng([self.seed, place]).permutation(len(numbers))
            turn = (np.arange(count) + epoch * count) % len(numbers)
            pairs += [(numbers[i], doc_ids[place]) for i in shuffled[turn]]
        return pairs

    def _positive(self, number: int, epoch: int) -> str:
        """The positive of a query in an epoch; each round through its positives has a new random order."""
        doc_ids, grades = zip(*self.data.examples[number].positives.items(), strict=True)
        turn, place = divmod(epoch, len(doc_ids))
        shuffled = np.random.default_rng([self.seed, number, turn]).permutation(len(doc_ids))
        return doc_ids[sorted(shuffled, key=lambda i: -grades[i])[place]]
