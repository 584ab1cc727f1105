"""Exact search: the best of all passages for each query, by matrix products over blocks.

To spend nearly all time on the products, most scores are only compared once, with a bar. The bar is a
score for each query that somewhat more than `depth` passages should beat, estimated from a sample of
the passages; only passages above it are kept and ordered. If fewer than `depth` passages beat it, or
far too many, all scores of that query are ordered, so the result is exact whatever the sample was.

The work is divided among threads, by queries or, if these are few, by passages. Each thread's products
are single-threaded, so that products, comparing and ordering all keep every core busy.
"""

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from itertools import pairwise

import numpy as np
import torch

QUERY_BLOCK = 512  # queries scored at once by a thread
MANY_QUERIES = 256  # queries per thread from which threads divide the queries, not the passages
BLOCK_SCORES = 2**19  # scores computed at once by a thread (2 MiB)
MIN_BLOCK, MAX_BLOCK = 1_024, 16_384  # passages in a block
FEW_QUERIES = 4  # up to this number, ordering all scores is quicker than taking a sample
SAMPLE = 4_096  # passages in the sample, or somewhat more
MAX_STEP = 512  # at least one passage in so many is in the sample
MOST_CANDIDATES = (
    16  # times the depth or, if it is larger, the step; a bar that more passages beat is too low
)
GPU_PASSAGES = 65_536  # passages on a GPU at once
GPU_QUERIES = 1_024  # queries scored on a GPU at once


def exact_topk(
    query_emb: np.ndarray, passage_emb: np.ndarray, depth: int, scale: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find the passages with the largest dot products, without the whole matrix of scores in memory.

    Besides the vectors, each thread holds a block of scores and a block of vectors as float32 (up to 29
    MiB at 384 dimensions). For each of at most `QUERY_BLOCK` queries it holds candidates of 20 bytes, mostly
    twice the depth (20 MiB at depth 1000), at most `MOST_CANDIDATES` × depth or, if more, `MAX_STEP`.
    Without a bar, each thread holds N scores of 12 bytes for each of a few queries.

    Args:
        query_emb: float32 [Q, D].
        passage_emb: float32 or float16 [N, D]; a memory map is read block by block.
        depth: K, from 1 to N.
        scale: float32 [N], factors for the scores of each passage, such as 1 / length for cosine.

    Returns:
        Scores float32 [Q, K], falling along each row, and positions int64 [Q, K] in `passage_emb`;
        among equal scores the smaller position comes first.
    """
    scores = np.empty((len(query_emb), depth), dtype=np.float32)
    positions = np.empty((len(query_emb), depth), dtype=np.int64)
    unanswered = np.arange(len(query_emb))  # rows of query_emb without a result yet
    if len(unanswered) > FEW_QUERIES and len(passage_emb) >= max(4 * SAMPLE, MOST_CANDIDATES * depth):
        by_queries = len(unanswered) >= MANY_QUERIES * _num_threads()
        num_blocks = max(_num_threads() if by_queries else 1, math.ceil(len(unanswered) / QUERY_BLOCK))
        with _threads() as threads:
            for_passages, over_queries = (None, threads.map) if by_queries else (threads, map)
            search = partial(
                _above_a_bar, passage_emb=passage_emb, depth=depth, scale=scale, threads=for_passages
            )
            blocks = np.array_split(unanswered, num_blocks)
            for rows, (done, *found) in zip(
                blocks, over_queries(search, (query_emb[r] for r in blocks)), strict=True
            ):
                scores[rows[done]], positions[rows[done]] = found
                unanswered = np.setdiff1d(unanswered, rows[done])
    search = partial(_of_all, passage_emb=passage_emb, depth=depth, scale=scale)
    queries_at_once = max(FEW_QUERIES, BLOCK_SCORES // len(passage_emb))
    if len(unanswered) <= queries_at_once:
        scores[unanswered], positions[unanswered] = search(query_emb[unanswered])
        return scores, positions
    num_rounds = math.ceil(len(unanswered) / queries_at_once / _num_threads())
    groups = np.array_split(unanswered, num_rounds * _num_threads())
    with _threads() as threads:
        for rows, best in zip(groups, threads.map(search, (query_emb[rows] for rows in groups)), strict=True):
            scores[rows], positions[rows] = best
    return scores, positions


def _of_all(queries, passage_emb, depth: int, scale):
    """The `depth` best passages of a few queries, from all N scores; memory speed is the limit."""
    scores = np.empty((len(queries), len(passage_emb)), dtype=np.float32)
    for start, block in _score_blocks(queries, passage_emb, MAX_BLOCK, scale, 0, len(passage_emb)):
        scores[:, start : start + block.shape[1]] = block
    best = np.empty((len(queries), depth), np.float32), np.empty((len(queries), depth), np.int64)
    for i, (row, found) in enumerate(_worth_ordering(scores, depth)):
        best[0][i : i + 1], best[1][i : i + 1] = _best(row[None, found], found[None], depth)
    return best


def _worth_ordering(scores: np.ndarray, depth: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Each row of the scores [Q, N], and the positions in it among which its `depth` best are."""
    step = _step(scores.shape[1])
    for row, bar in zip(scores, _bar_of(scores[:, ::step], scores.shape[1], depth), strict=True):
        found = np.flatnonzero(row > bar)
        yield row, found if len(found) >= depth else np.arange(len(row))


def _above_a_bar(queries, passage_emb, depth: int, scale, threads: ThreadPoolExecutor | None):
    """Rows of the queries whose bar was set well, and scores and positions of their `depth` best passages.

    If `threads` are given, the passages are divided among them.
    """
    bar = _bar(queries, passage_emb, depth, scale)
    most = MOST_CANDIDATES * max(depth, _step(len(passage_emb)))
    edges = np.linspace(0, len(passage_emb), (_num_threads() if threads else 1) + 1).astype(int).tolist()
    parts = list(pairwise(edges))
    collect = partial(_candidates, queries, passage_emb, scale, bar, most * len(queries))
    kept = [candidates for part in (threads.map if threads else map)(collect, parts) for candidates in part]
    if any(candidates is None for candidates in kept):  # far too many passages beat the bars
        return np.empty(0, dtype=np.int64), np.empty((0, depth)), np.empty((0, depth))
    rows, positions, values = (np.concatenate(column) for column in zip(*kept, strict=True))
    counts = np.bincount(rows, minlength=len(queries))
    counts[(counts < depth) | (counts > most)] = 0
    good = np.flatnonzero(counts[rows])
    order = good[np.argsort(rows[good], kind="stable")]
    rows, positions, values = rows[order], positions[order], values[order]
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((len(queries), max(counts.max(), depth)), -np.inf, dtype=np.float32)
    where = np.zeros(table.shape, dtype=np.int64)
    table[rows, places], where[rows, places] = values, positions
    done = np.flatnonzero(counts)
    return done, *_best(table[done], where[done], depth)


def _candidates(queries, passage_emb, scale, bar: np.ndarray, most: int, part: tuple[int, int]) -> list:
    """Rows, positions and scores above the bar in one part of the passages, per block; [None] if too many."""
    kept, num_kept = [], 0
    size = min(max(BLOCK_SCORES // len(queries), MIN_BLOCK), MAX_BLOCK)
    for start, block in _score_blocks(queries, passage_emb, size, scale, *part):
        flat = np.flatnonzero(block > bar)
        rows, columns = np.divmod(flat, block.shape[1])
        kept.append((rows, columns + start, block[rows, columns]))
        num_kept += len(flat)
        if num_kept > most:
            return [None]
    return kept


def _bar(queries, passage_emb, depth: int, scale) -> np.ndarray:
    """For each query a score [Q, 1] that, judging by a sample, somewhat more than `depth` passages beat."""
    step = _step(len(passage_emb))
    sample = np.asarray(passage_emb[::step], dtype=np.float32)
    scores = queries @ sample.T
    if scale is not None:
        scores *= scale[::step]
    return _bar_of(scores, len(passage_emb), depth)


def _step(count: int) -> int:
    """One of so many of N = `count` passages is in the sample."""
    return max(1, min(count // SAMPLE, MAX_STEP))


def _bar_of(sample: np.ndarray, count: int, depth: int) -> np.ndarray:
    """The bar [Q, 1] from the scores [Q, S] of a sample of N = `count` passages."""
    expected = depth * sample.shape[1] / count  # number of the best `depth` in the sample
    rank = math.ceil(expected + 4 * math.sqrt(expected) + 4)  # four standard deviations more
    kth = max(0, sample.shape[1] - rank)
    return np.partition(sample, kth, axis=1)[:, kth : kth + 1]


def _score_blocks(
    queries, passage_emb, size: int, scale, first: int, end: int
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each block's first position and scores [Q, size]; all blocks use the same array."""
    out = np.empty(len(queries) * size, dtype=np.float32)
    for start in range(first, end, size):
        passages = np.asarray(passage_emb[start : min(start + size, end)], dtype=np.float32)
        scores = out[: len(queries) * len(passages)].reshape(len(queries), len(passages))
        np.matmul(queries, passages.T, out=scores)
        if scale is not None:
            scores *= scale[start : start + len(passages)]
        yield start, scores


def _best(scores: np.ndarray, positions: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """The `depth` largest scores of each row, in order; among equal scores the smaller position first.

    Score and position become one integer that sorts in this order: the upper half holds the score's bits,
    inverted so that larger scores come first, and the lower half the position.
    """
    bits = _ascending(np.ascontiguousarray(scores + np.float32(0)).view(np.int32))  # turns -0.0 into 0.0
    keys = (~bits).astype(np.int64) << 32 | positions
    if keys.shape[1] > depth:
        keys = np.partition(keys, depth - 1, axis=1)[:, :depth]
    keys.sort(axis=1)
    return _ascending(~(keys >> 32).astype(np.int32)).view(np.float32), keys & 0xFFFFFFFF


def _ascending(bits: np.ndarray) -> np.ndarray:
    """Turn a float32's bits into an int32 that sorts like the float; a second call turns them back."""
    return bits ^ (bits >> 31 & 0x7FFFFFFF)


def _num_threads() -> int:
    return os.cpu_count() or 1


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Yield an executor with one thread per core; meanwhile, each matrix product uses one thread only."""
    with _libraries().limit(limits=1, user_api="blas"), ThreadPoolExecutor(_num_threads()) as threads:
        yield threads


@cache
def _libraries():
    """The controller of the libraries that compute NumPy's products."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


@torch.inference_mode()
def to_device(vectors: np.ndarray, scale: np.ndarray | None, device: str) -> torch.Tensor:
    """Vectors times their scale as float32 on a torch device: [N, D]."""
    made = torch.empty(vectors.shape, dtype=torch.float32, device=device)
    for start in range(0, len(vectors), GPU_PASSAGES):
        part = slice(start, start + GPU_PASSAGES)
        block = np.array(vectors[part], dtype=np.float32)
        made[part] = torch.from_numpy(block if scale is None else block * scale[part, None])
    return made


def exact_topk_torch(
    query_emb: np.ndarray,
    passage_emb: np.ndarray | torch.Tensor,
    depth: int,
    scale: np.ndarray | None,
    device: str,
) -> tuple[np.ndarray, np.ndarray]:
    """Do the same as `exact_topk` on a torch device.

    The device holds the queries and a block of passages as float32, one block of scores (256 MiB), and
    the best hits so far, 12 bytes each.

    Args:
        query_emb: float32 [Q, D].
        passage_emb: float32 or float16 [N, D]; a memory map is read block by block, once. Or what
            `to_device` made of all of them, for many searches.
        depth: K, from 1 to N.
        scale: float32 [N], factors for the scores of each passage; not for a tensor, which has them.
        device: A torch device name.

    Returns:
        Scores float32 [Q, K], falling along each row, and positions int64 [Q, K]. Among equal scores the
        smaller position comes first, but if they share the last place, any of them may be kept.
    """
    queries = torch.from_numpy(np.ascontiguousarray(query_emb, dtype=np.float32)).to(device)
    best = torch.empty((len(queries), 0), device=device)
    where = torch.empty((len(queries), 0), dtype=torch.int64, device=device)
    for start in range(0, len(passage_emb), GPU_PASSAGES):
        passages = passage_emb[start : start + GPU_PASSAGES]
        if not isinstance(passages, torch.Tensor):
            factors = None if scale is None else scale[start : start + GPU_PASSAGES]
            passages = to_device(passages, factors, device)
        found = [
            (rows @ passages.T).topk(min(depth, len(passages)), dim=1) for rows in queries.split(GPU_QUERIES)
        ]
        best = torch.cat([best, torch.cat([scores for scores, _ in found])], dim=1)
        where = torch.cat([where, torch.cat([positions for _, positions in found]) + start], dim=1)
        best, kept = best.topk(min(depth, best.shape[1]), dim=1)
        where = where.gather(1, kept)
    scores, positions = best.cpu().numpy(), where.cpu().numpy()
    order = np.lexsort((positions, -scores), axis=1)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(positions, order, 1)
