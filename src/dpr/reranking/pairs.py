"""Pairs of query and passage as one input each: tokens, segment ids, and chunks of long passages."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def checked_pairs(pairs: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """Give pairs as a list of tuples.

    Raises:
        ValueError: A pair is not a query and a passage, both strings; names its position.
    """
    found = []
    for position, pair in enumerate(pairs):
        if isinstance(pair, str) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise ValueError(f"pair {position} is {pair!r:.80}, expected a query and a passage")
        found.append(tuple(pair))
    return found


def tokenize_pairs(
    tokenizer: Any, pairs: Sequence[tuple[str, str]], max_length: int, overflow: str = "truncate"
) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """Tokenise pairs as one input each, with segment ids if the tokenizer gives them.

    Args:
        tokenizer: A transformers tokenizer.
        pairs: N pairs of query and passage.
        max_length: Most tokens per row, special tokens included.
        overflow: As in `Reranker.predict`.

    Returns:
        The rows, each as field → int64 [T], and the position of each row's pair, int64 [rows].

    Raises:
        ValueError: A tokenizer that cannot split, as one written in Python.
    """
    if not pairs:
        return [], np.empty(0, dtype=np.int64)
    queries, passages = map(list, zip(*pairs, strict=True))
    if overflow == "truncate":
        found = dict(tokenizer(queries, passages, truncation=True, max_length=max_length, padding=False))
        owners = range(len(pairs))
    else:
        if not tokenizer.is_fast:
            raise ValueError(f"{type(tokenizer).__name__} cannot split passages; use overflow='truncate'")
        room = (max_length - tokenizer.num_special_tokens_to_add(pair=True)) // 2
        spans = tokenizer(queries, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        queries = [
            query if len(offsets) <= room else query[: offsets[room - 1][1]]
            for query, offsets in zip(queries, spans["offset_mapping"], strict=True)
        ]
        how = {"truncation": "only_second", "max_length": max_length, "return_overflowing_tokens": True}
        found = dict(tokenizer(queries, passages, padding=False, **how))
        owners = found.pop("overflow_to_sample_mapping")
    rows = [
        dict(zip(found, (np.asarray(field, dtype=np.int64) for field in row), strict=True))
        for row in zip(*found.values(), strict=True)
    ]
    return rows, np.asarray(owners, dtype=np.int64)


def without_segments(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch, each field [B, T], with 0 for every segment id, as where they are not passed on."""
    return {**batch, "token_type_ids": torch.zeros_like(batch["input_ids"])}
