"""From training data to batches: which record comes when, tokens, and what is no negative of a query."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from dpr.batches import token_batches
from dpr.encoder import BiEncoder
from dpr.tokens import tokenize
from dpr.training_data import Example, TrainingData
from dpr.two_encoders import TwoEncoders


@dataclass(frozen=True)
class Record:
    """One query with its passages of one epoch.

    Attributes:
        example: What it is made from.
        positive: The doc_id of the positive of this epoch.
        negatives: doc_ids of the hard negatives of this epoch.
    """

    example: Example
    positive: str
    negatives: tuple[str, ...]


class TrainingSequence(Dataset):
    """The records of a whole training run, in order: a pure function of data, seed and position.

    As nothing depends on what came before, a run that starts again at a batch sees what it would have
    seen. Each epoch has another random order; what does not fill a batch is left to another epoch.

    An epoch takes each query once, with one of its positives: in turn, highest grades first and at
    random within a grade. Where queries have many positives (NFCorpus: 43), it can take each passage
    once instead, with so many of its queries in turn: many queries for the price of one passage.

    Args:
        data: Examples and passages.
        batch_size: Records in a batch.
        num_batches: Batches in the whole run.
        seed: Of order and choice.
        num_negatives: Hard negatives a record, in turn from the first on; a query with fewer gives
            those it has.
        queries_per_passage: Records a passage in an epoch over passages; None for one over queries.

    Raises:
        ValueError: More records in a batch than in an epoch, or a number out of range.
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
        """The number of the example and the positive of each record of an epoch, in order."""
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
        """The positive that a query has in an epoch; in each round through them another order."""
        doc_ids, grades = zip(*self.data.examples[number].positives.items(), strict=True)
        turn, place = divmod(epoch, len(doc_ids))
        shuffled = np.random.default_rng([self.seed, number, turn]).permutation(len(doc_ids))
        return doc_ids[sorted(shuffled, key=lambda i: -grades[i])[place]]


class Collator:
    """Makes a batch of records: padded tokens of queries and passages, and a mask of what is no negative.

    All texts are tokenised once, when it is made, each side with the prompt and the length of the
    encoder's settings.

    Args:
        encoder: Whose tokenizer, prompts and lengths to use.
        data: Where the records come from.
        pass_tokens: Most tokens, padding included, that go through the model at once; a batch is split
            into passes of texts of like length. None for the whole batch in one.
        all_positives: Whether every positive of a query that is in a batch counts, not that of its
            record alone; the others are no negatives in either case.
    """

    def __init__(
        self,
        encoder: BiEncoder | TwoEncoders,
        data: TrainingData,
        pass_tokens: int | None = None,
        all_positives: bool = False,
    ):
        self.encoder, self.pass_tokens, self.all_positives = encoder, pass_tokens, all_positives
        self._text_keys = data.text_keys
        config, doc_ids = encoder.config, list(data.passages)
        queries = [example.query for example in data.examples]
        passages = list(data.passages.values())
        found, _ = tokenize(
            encoder.query.tokenizer, queries, config.query_prompt, config.query_max_length, "truncate"
        )
        self.query_tokens = dict(zip((e.query_id for e in data.examples), found, strict=True))
        found, _ = tokenize(
            encoder.passage.tokenizer, passages, config.passage_prompt, config.passage_max_length, "truncate"
        )
        self.passage_tokens = dict(zip(doc_ids, found, strict=True))

    def __call__(self, records: Sequence[Record]) -> dict[str, Any]:
        """Put records into a batch of B queries and P passages, each text once.

        Returns:
            `queries` and `passages`: passes, each with the padded fields [b, T] and `rows` [b], the
            places of its texts; passages are the positives and then the hard negatives.
            `positives`: bool [B, P], the positives that count: those of the records, or with
            `all_positives` every one in the batch.
            `not_negative`: bool [B, P], passages that are positives of the query, or copies of one.
        """
        examples = {r.example.query_id: r.example for r in records}
        doc_ids = [r.positive for r in records] + [d for r in records for d in r.negatives]
        by_text: dict[str, str] = {}
        for doc_id in doc_ids:
            by_text.setdefault(self._text_keys[doc_id], doc_id)
        columns = {key: column for column, key in enumerate(by_text)}
        rows = {query_id: row for row, query_id in enumerate(examples)}
        not_negative = torch.zeros(len(rows), len(columns), dtype=torch.bool)
        for query_id, example in examples.items():
            keys = {self._text_keys[doc_id] for doc_id in example.positives}
            not_negative[rows[query_id], [columns[key] for key in keys if key in columns]] = True
        positives = not_negative
        if not self.all_positives:
            positives = torch.zeros_like(not_negative)
            for record in records:
                positives[rows[record.example.query_id], columns[self._text_keys[record.positive]]] = True
        return {
            "queries": self._passes(self.encoder.query, [self.query_tokens[q] for q in rows]),
            "passages": self._passes(
                self.encoder.passage, [self.passage_tokens[d] for d in by_text.values()]
            ),
            "positives": positives,
            "not_negative": not_negative,
        }

    def _passes(
        self, encoder: BiEncoder, tokens: Sequence[dict[str, np.ndarray]]
    ) -> list[dict[str, torch.Tensor]]:
        """Padded passes with the rows they stand for."""
        groups = [list(range(len(tokens)))]
        if self.pass_tokens is not None:
            groups = token_batches([len(text["input_ids"]) for text in tokens], self.pass_tokens)
        return [{**encoder.pad([tokens[i] for i in rows]), "rows": torch.tensor(rows)} for rows in groups]
