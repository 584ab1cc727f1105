"""From passages and their queries to a generator's batches, each passage read once."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutput

from dpr.collator import Record
from dpr.generator import QueryGenerator
from dpr.tokens import tokenize
from dpr.training_data import TrainingData

IGNORED = -100  # the label of padding, which the loss leaves out


class GeneratorCollator:
    """Makes a batch of records: padded passages, and as labels the tokens of their queries.

    All texts are tokenised once, when it is made.

    Args:
        generator: Whose tokenizer, prompt and lengths to use.
        data: Where the records come from.
    """

    def __init__(self, generator: QueryGenerator, data: TrainingData):
        self.generator = generator
        config, tokenizer = generator.config, generator.tokenizer
        texts = list(data.passages.values())
        rows, _ = tokenize(tokenizer, texts, config.prompt, config.passage_max_length, "truncate")
        self.passages = dict(zip(data.passages, rows, strict=True))
        end = generator.model.generation_config.eos_token_id
        found = tokenizer([e.query for e in data.examples], add_special_tokens=False)["input_ids"]
        self.labels = {
            e.query_id: np.asarray([*ids[: config.query_max_length - 1], end])
            for e, ids in zip(data.examples, found, strict=True)
        }

    def __call__(self, records: Sequence[Record]) -> dict[str, torch.Tensor]:
        """Put B records into a batch.

        Returns:
            `input_ids` and `attention_mask` [P, T] of the passages, each once; `rows` [B], the passage of
            each record; `labels` [B, L] with −100 at padding, and `decoder_input_ids` [B, L], what stands
            before each label.
        """
        place = {doc_id: row for row, doc_id in enumerate(dict.fromkeys(r.positive for r in records))}
        labels = [torch.from_numpy(self.labels[record.example.query_id]) for record in records]
        padded = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        before = self.generator.model.prepare_decoder_input_ids_from_labels(padded)
        passages = self.generator.pad([self.passages[doc_id] for doc_id in place])
        rows = torch.tensor([place[record.positive] for record in records])
        return {**passages, "rows": rows, "labels": padded, "decoder_input_ids": before}


def read_passages(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What a model is given for a collator's batch: each passage read once for all of its queries.

    Args:
        model: The generator's.
        batch: As `GeneratorCollator` makes it.

    Returns:
        `encoder_outputs` with `last_hidden_state` [B, T, D], `attention_mask` [B, T], and the labels.
    """
    mask, rows = batch["attention_mask"], batch["rows"]
    hidden = model.get_encoder()(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
    rest = {name: batch[name] for name in ("labels", "decoder_input_ids")}
    return {"encoder_outputs": BaseModelOutput(hidden[rows]), "attention_mask": mask[rows], **rest}
