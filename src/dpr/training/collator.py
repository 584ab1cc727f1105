"""From records to batches: padded tokens in passes, and masks of positives and of non-negatives."""

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
    """Makes a batch of records: padded tokens of queries and passages, with masks for the loss.

    All texts are tokenised once, when the collator is made, with the encoder's prompts and lengths.

    Args:
        encoder: The encoder whose tokenizers, prompts and lengths are used.
        data: The training data that the records come from.
        pass_tokens: Most tokens, padding included, in one pass through the model; a batch is split into
            passes of texts of similar length. None puts the whole batch into one pass.
        all_positives: Whether every positive of a query counts that is in the batch, or only the one of
            its record. The others are never negatives of that query.
    """

    def __init__(
        self,
        encoder: BiEncoder | TwoEncoders,
        data: TrainingData,
        pass_tokens: int | None = None,
        all_positives: bool = False,
    ):
        self.encoder, self.pass_tokens, self.all_positives = encoder, pass_tokens, all_positives
        self._text_keys, self._scores, self._missing = data.text_keys, data.scores, data.missing_score
        config, passages = encoder.config, list(data.passages.values())
        self.query_tokens = _query_tokens(encoder, data)
        found, _ = tokenize(
            encoder.passage.tokenizer, passages, config.passage_prompt, config.passage_max_length, "truncate"
        )
        self.passage_tokens = dict(zip(data.passages, found, strict=True))

    def __call__(self, records: Sequence[Record]) -> dict[str, Any]:
        """Make a batch of B queries and P passages from records; each text is in it once.

        Returns:
            `queries` and `passages`: lists of passes, each with the padded token fields [b, T] of b texts
            and `rows` [b], the positions of these texts in the batch. The passages are the positives
            followed by the hard negatives.
            `positives`: bool [B, P], the positives that count: those of the records, or with
            `all_positives` every positive in the batch.
            `not_negative`: bool [B, P], the query's positives and passages with the text of one.
            `scores`: float32 [B, P], the teacher's scores, if the data has some; NaN where unknown.
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
        batch = {
            "queries": _passes(self.encoder.query, [self.query_tokens[q] for q in rows], self.pass_tokens),
            "passages": _passes(
                self.encoder.passage, [self.passage_tokens[d] for d in by_text.values()], self.pass_tokens
            ),
            "positives": positives,
            "not_negative": not_negative,
        }
        if self._scores:
            found = [[self._scores[q].get(d, self._missing) for d in by_text.values()] for q in rows]
            batch["scores"] = torch.tensor(found, dtype=torch.float32)
        return batch


class QueryCollator:
    """Makes a batch of queries, to be compared with all passages of the data by a teacher's scores.

    Args:
        encoder: The encoder whose query tokenizer, prompt and length are used.
        data: The training data that the records come from, with a teacher's scores.
        pass_tokens: Most tokens, padding included, in one pass through the model; None: one pass.
    """

    def __init__(self, encoder: TwoEncoders, data: TrainingData, pass_tokens: int | None = None):
        self.encoder, self.data, self.pass_tokens = encoder, data, pass_tokens
        self.query_tokens = _query_tokens(encoder, data)
        self._columns = {doc_id: column for column, doc_id in enumerate(data.passages)}

    def __call__(self, records: Sequence[Record]) -> dict[str, Any]:
        """Make a batch of the B queries of records; each is in it once.

        Returns:
            `queries`: as from `Collator`. `scores`: float32 [B, P], the teacher's scores of all P passages;
            NaN where unknown. `not_negative`: bool [B, P], the query's positives; `positives`: bool [B, P],
            that of its record.
        """
        examples = {r.example.query_id: r.example for r in records}
        own = {r.example.query_id: r.positive for r in records}
        scores = torch.full((len(examples), len(self._columns)), self.data.missing_score)
        not_negative, positives = (torch.zeros(scores.shape, dtype=torch.bool) for _ in range(2))
        for row, (query_id, example) in enumerate(examples.items()):
            positives[row, self._columns[own[query_id]]] = True
            found = {d: s for d, s in self.data.scores[query_id].items() if d in self._columns}
            scores[row, [self._columns[d] for d in found]] = torch.tensor(
                list(found.values()), dtype=torch.float32
            )
            not_negative[row, [self._columns[d] for d in example.positives]] = True
        tokens = [self.query_tokens[q] for q in examples]
        queries = _passes(self.encoder.query, tokens, self.pass_tokens)
        return {"queries": queries, "scores": scores, "positives": positives, "not_negative": not_negative}


def _query_tokens(encoder: BiEncoder | TwoEncoders, data: TrainingData) -> dict[str, dict[str, np.ndarray]]:
    """Tokenise all queries with the encoder's prompt and length: query_id → token fields."""
    config, queries = encoder.config, [example.query for example in data.examples]
    found, _ = tokenize(
        encoder.query.tokenizer, queries, config.query_prompt, config.query_max_length, "truncate"
    )
    return dict(zip((e.query_id for e in data.examples), found, strict=True))


def _passes(
    encoder: BiEncoder, tokens: Sequence[dict[str, np.ndarray]], pass_tokens: int | None
) -> list[dict[str, torch.Tensor]]:
    """Split tokenised texts into padded passes, each with the `rows` of its texts."""
    groups = [list(range(len(tokens)))]
    if pass_tokens is not None:
        groups = token_batches([len(text["input_ids"]) for text in tokens], pass_tokens)
    return [{**encoder.pad([tokens[i] for i in rows]), "rows": torch.tensor(rows)} for rows in groups]
