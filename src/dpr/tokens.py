"""Texts to token ids, cut at a length or split into chunks of it."""

from collections.abc import Sequence

import numpy as np

OVERFLOWS = ("truncate", "max_chunk")
MIN_LENGTH = 3  # tokens: two special ones and one of text


def tokenize(
    tokenizer, texts: Sequence[str], prompt: str, max_length: int, overflow: str
) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """Tokenise texts with a prompt before each, or before each chunk.

    Args:
        tokenizer: A transformers tokenizer.
        texts: N texts.
        prompt: Text put before each.
        max_length: Most tokens in a row, special tokens and prompt included.
        overflow: `truncate`: one row a text, cut. `max_chunk`: as many rows as the text takes.

    Returns:
        Rows, each as field → int64 [T], and the text each row is of, int64 [rows].

    Raises:
        ValueError: An unknown overflow; a prompt that leaves no room for a chunk.
    """
    if overflow not in OVERFLOWS:
        raise ValueError(f"overflow must be one of {OVERFLOWS}, got {overflow!r}")
    if not texts:
        return [], np.empty(0, dtype=np.int64)
    if overflow == "truncate":
        found = tokenizer([prompt + text for text in texts], truncation=True, max_length=max_length)
        owners = range(len(texts))
    else:
        inserted = tokenizer(prompt, add_special_tokens=False)
        room = max_length - len(inserted["input_ids"])
        if room < MIN_LENGTH:
            raise ValueError(f"the prompt {prompt!r} leaves {room} of {max_length} tokens for a text")
        found = tokenizer(list(texts), truncation=True, max_length=room, return_overflowing_tokens=True)
        owners = found.pop("overflow_to_sample_mapping")
        if inserted["input_ids"]:  # they go after the special tokens that stand before any text
            at = tokenizer(prompt)["input_ids"].index(inserted["input_ids"][0])
            for field, rows in found.items():
                found[field] = [row[:at] + inserted[field] + row[at:] for row in rows]
    rows = [dict(zip(found, map(np.asarray, row), strict=True)) for row in zip(*found.values(), strict=True)]
    return rows, np.asarray(owners, dtype=np.int64)
