"""From passages and their queries to a generator's batches, and to the loss of a batch."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers.modeling_outputs import BaseModelOutput

from dpr.data.training_data import TrainingData
from dpr.generation.generator import QueryGenerator
from dpr.generation.llm import CausalGenerator
from dpr.models.batching import pad_batch, padding_id, tokenize
from dpr.training.dataset import Record

IGNORED = -100  # the label of padding, which the loss leaves out


class GeneratorCollator:
    """Makes a batch of records: padded passages, each only once, and the tokens of their queries as labels.

    All texts are tokenised once, when the collator is made.

    Args:
        generator: The generator whose tokenizer, prompt and lengths are used.
        data: The training data that the records come from.
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
        """Make a batch of B records, whose P different passages are in it once each.

        Returns:
            `input_ids` and `attention_mask` [P, T] of the passages; `rows` [B], the position of each
            record's passage; `labels` [B, L] with −100 at padding; `decoder_input_ids` [B, L], the token
            before each label.
        """
        place = {doc_id: row for row, doc_id in enumerate(dict.fromkeys(r.positive for r in records))}
        labels = [torch.from_numpy(self.labels[record.example.query_id]) for record in records]
        padded = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=IGNORED)
        before = self.generator.model.prepare_decoder_input_ids_from_labels(padded)
        passages = self.generator.pad([self.passages[doc_id] for doc_id in place])
        rows = torch.tensor([place[record.positive] for record in records])
        return {**passages, "rows": rows, "labels": padded, "decoder_input_ids": before}


class CausalCollator:
    """Makes a batch of records for a causal model: each is one text, of which it learns the query's tokens.

    All texts are tokenised once, when the collator is made.

    Args:
        generator: The generator whose tokenizer, prompt and lengths are used.
        data: The training data that the records come from.
    """

    def __init__(self, generator: CausalGenerator, data: TrainingData):
        self._pad_with = {"input_ids": padding_id(generator.tokenizer), "labels": IGNORED}
        self._multiple = 1 if generator.model.device.type == "cpu" else 8
        read = generator.read_tokens(list(data.passages.values()))
        self.passages = dict(zip(data.passages, read, strict=True))
        queries = generator.query_tokens([e.query for e in data.examples])
        self.queries = {e.query_id: ids for e, ids in zip(data.examples, queries, strict=True)}

    def _row(self, record: Record) -> dict[str, np.ndarray]:
        """The tokens of one text without its last one, and as labels the token after each; int64 [T]."""
        read, query = self.passages[record.positive], self.queries[record.example.query_id]
        ids = np.append(read, query[:-1])
        labels = np.append(np.full(len(read) - 1, IGNORED), query)
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": labels}

    def __call__(self, records: Sequence[Record]) -> dict[str, torch.Tensor]:
        """Make a batch of B records.

        Returns:
            `input_ids` and `attention_mask` [B, T] of prompt, passage and query, padded on the right;
            `labels` [B, T], the token after each, with −100 where that is not one of the query.
        """
        return pad_batch([self._row(record) for record in records], self._pad_with, self._multiple)


def make_collator(
    generator: QueryGenerator | CausalGenerator, data: TrainingData
) -> GeneratorCollator | CausalCollator:
    """The collator for a generator of either kind; the arguments are those of `GeneratorCollator`."""
    if isinstance(generator, CausalGenerator):
        return CausalCollator(generator, data)
    return GeneratorCollator(generator, data)


def read_passages(model: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Make the model's inputs from a batch: each passage is encoded once for all of its queries.

    Args:
        model: The generator's model.
        batch: A batch of B records, as `GeneratorCollator` makes it.

    Returns:
        `encoder_outputs` with `last_hidden_state` [B, T, D], `attention_mask` [B, T], and the batch's
        `labels` and `decoder_input_ids` [B, L].
    """
    mask, rows = batch["attention_mask"], batch["rows"]
    hidden = model.get_encoder()(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
    rest = {name: batch[name] for name in ("labels", "decoder_input_ids")}
    return {"encoder_outputs": BaseModelOutput(hidden[rows]), "attention_mask": mask[rows], **rest}


def token_loss(
    model: torch.nn.Module,
    batch: Mapping[str, torch.Tensor],
    label_smoothing: float = 0.0,
    num_tokens: torch.Tensor | int | None = None,
) -> torch.Tensor:
    """Cross-entropy of the queries' tokens; the output layer gets only these N tokens, [N, D], no padding.

    Args:
        model: The generator's model.
        batch: A batch, as the collator of `make_collator` makes it.
        label_smoothing: Share of the probability spread over all tokens.
        num_tokens: The number that the sum over tokens is divided by; by default N.

    Returns:
        The loss in nats, a scalar.
    """
    encodes = model.config.is_encoder_decoder
    inputs = read_passages(model, batch) if encodes else {**batch, "use_cache": False}
    labels = inputs.pop("labels")
    real = labels != IGNORED
    head = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: (args[0][real],))
    try:
        logits = model(**inputs).logits
    finally:
        head.remove()
    total = torch.nn.functional.cross_entropy(
        logits.float(), labels[real], label_smoothing=label_smoothing, reduction="sum"
    )
    return total / (real.sum() if num_tokens is None else num_tokens)
