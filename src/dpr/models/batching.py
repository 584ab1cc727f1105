"""From texts to batches: token ids cut or split at a length, batches of like length, padding, threads."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

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


def token_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group texts of like length so that no batch, padded, holds more than so many tokens.

    Args:
        lengths: Tokens of each of N texts.
        batch_tokens: Most tokens in a batch, padding included; a longer text is a batch of its own.

    Returns:
        Positions in `lengths`, longest texts first, each once; the same for the same input.

    Raises:
        ValueError: `batch_tokens` below 1.

    >>> token_batches([2, 9, 3, 2], batch_tokens=6)
    [[1], [2, 0], [3]]
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens must be at least 1, got {batch_tokens}")
    batches: list[list[int]] = []
    longest = 0
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or (len(batches[-1]) + 1) * longest > batch_tokens:
            batches.append([])
            longest = max(1, lengths[position])
        batches[-1].append(position)
    return batches


def pad_batch(
    tokens: Sequence[dict[str, np.ndarray]], pad_with: dict[str, int], multiple: int = 1
) -> dict[str, torch.Tensor]:
    """Pad tokenised texts on the right to the longest, one tensor a field.

    Args:
        tokens: B texts, each field → int64 [T] of that text.
        pad_with: Field → what to pad it with, where that is not 0.
        multiple: Pad to a multiple of so many tokens; 8 suits a GPU's tensor cores.

    Returns:
        Field → int64 [B, T].
    """
    longest = max(len(text["input_ids"]) for text in tokens)
    shape = (len(tokens), -(-longest // multiple) * multiple)
    padded = {}
    for field in tokens[0]:
        rows = np.full(shape, pad_with.get(field, 0), dtype=np.int64)
        for row, text in zip(rows, tokens, strict=True):
            row[: len(text[field])] = text[field]
        padded[field] = torch.from_numpy(rows)
    return padded


def compute_blocks(
    blocks: Iterable[Any],
    tokenize_block: Callable[[Any], tuple[list[dict[str, np.ndarray]], np.ndarray]],
    compute: Callable[[list[dict[str, np.ndarray]], tuple[int, int]], Sequence[Any]],
    *,
    batch_tokens: int,
    device: str,
    extra_tokens: int = 0,
    progress: Callable[[int], object] = lambda texts: None,
) -> Iterator[tuple[list[Any], np.ndarray]]:
    """Take blocks of texts through a model one by one, the next block tokenised meanwhile.

    Rows of like length share a batch. On a CPU each core takes batches of its own, computing with that core
    alone: quicker than all cores on one batch.

    Args:
        blocks: Blocks of texts; several hundred in each let texts of like length find each other.
        tokenize_block: Gives the rows of a block and the text that each is of, as `tokenize` does.
        compute: Gives one result for each row of a batch, told the numbers of block and batch.
        batch_tokens: Tokens in a batch, padding included.
        device: The kind of device the model is on, `cpu` or `cuda`.
        extra_tokens: What a row costs beyond its own tokens, such as those that will be written for it.
        progress: Called with the number of texts newly begun.

    Yields:
        For each block the results of its rows, in order, and int64 [rows], the text that each is of.
    """
    with workers(device) as threads, ThreadPoolExecutor(1) as ahead:
        tokenised = one_ahead(ahead.submit(tokenize_block, block) for block in blocks)
        for number, (rows, owners) in enumerate(tokenised):
            batches = token_batches([len(row["input_ids"]) + extra_tokens for row in rows], batch_tokens)
            begun = np.diff(owners, prepend=-1)
            found: list[Any] = [None] * len(rows)
            inputs = ([rows[i] for i in batch] for batch in batches)
            places = ((number, batch) for batch in range(len(batches)))
            for batch, results in zip(batches, threads.map(compute, inputs, places), strict=True):
                for i, result in zip(batch, results, strict=True):
                    found[i] = result
                progress(int(begun[batch].sum()))
            yield found, owners


@contextmanager
def workers(device: str) -> Iterator[ThreadPoolExecutor]:
    """Threads that each take batches: on a CPU one a core, computing with that core alone."""
    num_threads = torch.get_num_threads()
    if device == "cpu":
        threads = ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,))
    else:
        threads = ThreadPoolExecutor(1)
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)
        torch.set_num_threads(num_threads)


def one_ahead(futures: Iterator[Future]) -> Iterator:
    """The results of futures, each asked for when the one before it is handed out."""
    waiting = next(futures, None)
    while waiting is not None:
        following = next(futures, None)
        yield waiting.result()
        waiting = following
