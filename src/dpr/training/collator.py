"""From records to batches: tokens, passes, and a mask of what is no negative of a query."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dpr.data.training_data import TrainingData
from dpr.models.batching import token_batches, tokenize
from dpr.models.bi_encoder import BiEncoder
from dpr.models.two_encoders import TwoEncoders
from dpr.training.dataset import Record


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
