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

    Each epoch takes all queries in another random order; what does not fill a batch is left to another
    epoch. A query's epochs take its positives in turn, highest grades first and at random within a
    grade, and its negatives in turn from the first given on. As nothing depends on what came before, a
    run that starts again at a batch sees what it would have seen.

    Args:
        data: Examples and passages.
        batch_size: Records in a batch.
        num_batches: Batches in the whole run.
        seed: Of order and choice.
        num_negatives: Hard negatives a record; a query with fewer gives those it has.

    Raises:
        ValueError: More records in a batch than queries, or a number out of range.
    """

    def __init__(
        self, data: TrainingData, batch_size: int, num_batches: int, seed: int, num_negatives: int = 1
    ):
        if not 2 <= batch_size <= len(data.examples):
            raise ValueError(
                f"batch_size must be from 2 to {len(data.examples)}, the queries of {data.name}, got "
                f"{batch_size}"
            )
        if num_batches < 1 or num_negatives < 0:
            raise ValueError(
                f"num_batches must be at least 1 and num_negatives at least 0, got {num_batches} and "
                f"{num_negatives}"
            )
        self.data, self.seed, self.num_negatives = data, seed, num_negatives
        self.batches_per_epoch = len(data.examples) // batch_size
        self._per_epoch = self.batches_per_epoch * batch_size
        self._length = num_batches * batch_size
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, np.int64))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, position: int) -> Record:
        if not 0 <= position < self._length:
            raise IndexError(position)
        epoch, place = divmod(position, self._per_epoch)
        if self._order[0] != epoch:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.data.examples))
            self._order = (epoch, order)
        number = int(self._order[1][place])
        example = self.data.examples[number]
        # another order of the positives in each round through them
        turn, at = divmod(epoch, len(example.positives))
        shuffled = np.random.default_rng([self.seed, number, turn]).permutation(len(example.positives))
        grades = list(example.positives.values())
        doc_ids = list(example.positives)
        positive = doc_ids[sorted(shuffled, key=lambda i: -grades[i])[at]]
        count = min(self.num_negatives, len(example.negatives))
        negatives = tuple(
            example.negatives[(epoch * count + i) % len(example.negatives)] for i in range(count)
        )
        return Record(example, positive, negatives)


class Collator:
    """Makes a batch of records: padded tokens of queries and passages, and a mask of what is no negative.

    All texts are tokenised once, when it is made, each side with the prompt and the length of the
    encoder's settings.

    Args:
        encoder: Whose tokenizer, prompts and lengths to use.
        data: Where the records come from.
        pass_tokens: Most tokens, padding included, that go through the model at once; a batch is split
            into passes of texts of like length. None for the whole batch in one.
    """

    def __init__(self, encoder: BiEncoder | TwoEncoders, data: TrainingData, pass_tokens: int | None = None):
        self.encoder, self.pass_tokens = encoder, pass_tokens
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
        """Put B records with M hard negatives in all into a batch.

        Returns:
            `queries` and `passages`: passes, each with the padded fields [b, T] and `rows` [b], the
            places of its texts; passages are the B positives and then the M negatives.
            `not_negative`: bool [B, B + M], passages that are positives of the query, or copies of one.
        """
        doc_ids = [r.positive for r in records] + [d for r in records for d in r.negatives]
        keys = [self._text_keys[doc_id] for doc_id in doc_ids]
        not_negative = torch.zeros(len(records), len(doc_ids), dtype=torch.bool)
        for row, record in enumerate(records):
            relevant = {self._text_keys[doc_id] for doc_id in record.example.positives}
            not_negative[row] = torch.tensor([key in relevant for key in keys])
        queries = [self.query_tokens[r.example.query_id] for r in records]
        passages = [self.passage_tokens[doc_id] for doc_id in doc_ids]
        return {
            "queries": self._passes(self.encoder.query, queries),
            "passages": self._passes(self.encoder.passage, passages),
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
