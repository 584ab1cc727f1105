"""From texts to batches: tokenising, cutting or splitting, grouping by length, padding, and threads."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

OVERFLOWS = ("truncate", "max_chunk")
MIN_LENGTH = 3  # tokens in a text: two special ones and one of its own


def checked_texts(texts: Iterable[str]) -> list[str]:
    """Give texts as a list, from a list, an array or a pandas column.

    Raises:
        ValueError: One string instead of several, or a value that is no string; names its position.
    """
    if isinstance(texts, str):
        raise ValueError("expected a list of texts, got one string")
    texts = list(texts)
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"text {position} of {len(texts)} is {text!r}, expected a string")
    return texts


def tokenize(
    tokenizer, texts: Sequence[str], prompt: str, max_length: int, overflow: str, special: bool = True
) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
    """Tokenise texts, with a prompt before each text or, if texts are split, before each chunk.

    A text that fits is one chunk, with the tokens that it has when it is cut. A text without a token, as an
    empty one is to a tokenizer without special tokens, becomes one token of padding that counts.

    Args:
        tokenizer: A transformers tokenizer.
        texts: N texts.
        prompt: Text put before each text or chunk.
        max_length: Most tokens per row, special tokens and prompt included.
        overflow: `truncate` cuts each text to one row; `max_chunk` splits it into as many rows as needed.
        special: Whether the tokenizer's special tokens are put around each row.

    Returns:
        The rows, each as field → int64 [T], and the position of each row's text, int64 [rows].

    Raises:
        ValueError: An unknown overflow, or a prompt that leaves no room for a text.
    """
    if overflow not in OVERFLOWS:
        raise ValueError(f"overflow must be one of {OVERFLOWS}, got {overflow!r}")
    if not texts:
        return [], np.empty(0, dtype=np.int64)
    whole = [prompt + text for text in texts]
    prompt_ids = tokenizer(prompt, add_special_tokens=False)["input_ids"] if prompt else []
    room = max_length - special * tokenizer.num_special_tokens_to_add() - len(prompt_ids)
    if room < 1:
        raise ValueError(
            f"the prompt {prompt!r} leaves no room for a text in {max_length} tokens; shorten it"
        )
    if overflow == "truncate":
        found = tokenizer(whole, truncation=True, max_length=max_length, add_special_tokens=special)
        owners = range(len(texts))
    else:
        found, owners = _chunks(tokenizer, whole, prompt_ids, max_length, special)
    rows = [
        dict(zip(found, (np.asarray(field, dtype=np.int64) for field in row), strict=True))
        for row in zip(*found.values(), strict=True)
    ]
    for row in rows:
        if not len(row["input_ids"]):
            row.update({field: np.zeros(1, dtype=np.int64) for field in row})
            row["input_ids"][0], row["attention_mask"][0] = padding_id(tokenizer), 1
    return rows, np.asarray(owners, dtype=np.int64)


def _chunks(
    tokenizer, texts: Sequence[str], prompt_ids: list[int], max_length: int, add_special: bool
) -> tuple[dict[str, list[list[int]]], list[int]]:
    """Split tokenised texts, prompt included, into rows; the position of each row's text.

    The tokens of the prompt are those that a text shares with the prompt alone: the last may have become
    part of the text's first word.
    """
    found = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    special = set(tokenizer.all_special_ids)
    plain = (i for i, tokens in enumerate(found) if tokens and special.isdisjoint(tokens))
    sample = next((texts[i] for i in plain), "a")
    body, framed = (tokenizer(sample, add_special_tokens=add, verbose=False) for add in (False, add_special))
    size, ids = len(body["input_ids"]), framed["input_ids"]
    at = next((i for i in range(len(ids) - size + 1) if ids[i : i + size] == body["input_ids"]), None)
    if at is None:
        raise ValueError(f"{type(tokenizer).__name__} changes a text's tokens beside special ones: no chunks")
    rows: dict[str, list[list[int]]] = {field: [] for field in framed}
    owners: list[int] = []
    for owner, tokens in enumerate(found):
        pairs = enumerate(zip(prompt_ids, tokens, strict=False))
        kept = next((i for i, (one, other) in pairs if one != other), min(len(prompt_ids), len(tokens)))
        room = max_length - (len(ids) - size) - kept
        for start in range(kept, max(len(tokens), kept + 1), room):
            row = tokens[:kept] + tokens[start : start + room]
            rows["input_ids"].append([*ids[:at], *row, *ids[at + size :]])
            for field in rows.keys() - {"input_ids"}:
                inside = framed[field][at : at + size] or body[field] or [int(field == "attention_mask")]
                values = [*framed[field][:at], *(inside[:1] * len(row)), *framed[field][at + size :]]
                rows[field].append(values)
            owners.append(owner)
    return rows, owners


def padding_id(tokenizer) -> int:
    """The token that fills rows up; one that has none can take any, as the attention mask hides it."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in known if token is not None)


def token_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group texts of similar length into batches of at most `batch_tokens` tokens, padding included.

    Args:
        lengths: Number of tokens of each of N texts.
        batch_tokens: Most tokens per batch, padding included; a longer text is a batch of its own.

    Returns:
        Batches of positions in `lengths`, longest texts first; each position occurs once.

    Raises:
        ValueError: `batch_tokens` is below 1.

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
    """Pad tokenised texts on the right to the length of the longest, giving one tensor per field.

    Args:
        tokens: B texts, each as field → int64 [T], where T is that text's length.
        pad_with: Field → value to pad it with; other fields are padded with 0.
        multiple: The padded length is a multiple of this; 8 suits a GPU's tensor cores.

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
    """Compute a model's results for blocks of texts one by one; the next block is tokenised meanwhile.

    Rows of similar length share a batch. On a CPU each core computes a batch of its own, which is quicker
    than all cores working on one batch.

    Args:
        blocks: Blocks of texts; with several hundred texts each, rows of similar length can share a batch.
        tokenize_block: Returns the rows of a block and the position of each row's text, as `tokenize` does.
        compute: Receives a batch of rows and (number of the block, number of the batch in it), and
            returns one result per row.
        batch_tokens: Most tokens per batch, padding included.
        device: The kind of device that the model is on, `cpu` or `cuda`.
        extra_tokens: Tokens to count for each row beyond its own, such as those to be generated for it.
        progress: Called after each batch with the number of texts whose first row was in it.

    Yields:
        For each block the results of its rows, in order, and the position in the block of each row's
        text, int64 [rows].
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
    """Yield an executor of threads for batches: on a CPU one thread per core, each using one core."""
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
    """Yield the results of futures in order; the next one is requested before the current one is awaited."""
    waiting = next(futures, None)
    while waiting is not None:
        following = next(futures, None)
        yield waiting.result()
        waiting = following
