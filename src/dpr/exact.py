"""The best of all passages for each query, by blocked matrix products.

A block's scores are compared with each query's worst kept score, and only those above it are looked
at again; so nearly all the time goes into the products. Blocks are shared out among threads, each
with single-threaded products of its own, which keeps every core busy in products and selection alike.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

QUERY_BLOCK = 256  # queries scored at once
BLOCK_SCORES = 2**20  # scores a thread computes at once, 4 MiB
MIN_BLOCK, MAX_BLOCK = 2_048, 32_768  # passages in a block


def exact_topk(
    query_emb: np.ndarray, passage_emb: np.ndarray, depth: int, scale: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find the passages with the largest dot products, the whole matrix of scores never in memory.

    Beyond the vectors a thread needs one block of scores and its mask (5 MiB), the block as float32
    where it is not, and (depth + block) candidates of 12 bytes for each of at most 256 queries:
    less than 64 MiB at depth 1000 and 384 dimensions.

    Args:
        query_emb: float32 [Q, D].
        passage_emb: float32 or float16 [N, D]; a memory map is read block by block.
        depth: K, from 1 to N.
        scale: float32 [N], multiplied into the scores of each passage, as 1 / length for cosine.

    Returns:
        Scores float32 [Q, K], falling along each row, and positions int64 [Q, K] in `passage_emb`;
        of equal scores the smaller position comes first.
    """
    scores = np.empty((len(query_emb), depth), dtype=np.float32)
    positions = np.empty((len(query_emb), depth), dtype=np.int64)
    num_threads = os.cpu_count() or 1
    with _one_thread_a_product(), ThreadPoolExecutor(num_threads) as pool:
        for start in range(0, len(query_emb), QUERY_BLOCK):
            rows = slice(start, start + QUERY_BLOCK)
            queries = np.ascontiguousarray(query_emb[rows])
            block = min(max(BLOCK_SCORES // len(queries), MIN_BLOCK), MAX_BLOCK)
            starts = range(0, len(passage_emb), block)
            shares = [starts[i::num_threads] for i in range(num_threads) if i < len(starts)]
            parts = list(pool.map(lambda s: _scan(queries, passage_emb, s, block, depth, scale), shares))  # noqa: B023
            scores[rows], positions[rows] = _merge(parts, depth)
    return scores, positions


def _scan(queries, passage_emb, starts: range, block: int, depth: int, scale):
    """Candidates of some blocks: scores and positions [Q, C], C ≤ depth + block, padded with -inf."""
    best = _Candidates(len(queries), depth, block)
    out = np.empty((len(queries), block), dtype=np.float32)
    for start in starts:
        passages = np.asarray(passage_emb[start : start + block], dtype=np.float32)
        scores = np.matmul(queries, passages.T, out=out[:, : len(passages)])  # [Q, block]
        if scale is not None:
            scores *= scale[start : start + block]
        best.add(scores, start)
    return best.scores[:, : best.width], best.positions[:, : best.width]


class _Candidates:
    """The scores of each query that may still be among its best, with room for one more block."""

    def __init__(self, num_queries: int, depth: int, block: int):
        self.depth = depth
        self.scores = np.full((num_queries, depth + block), -np.inf, dtype=np.float32)
        self.positions = np.zeros((num_queries, depth + block), dtype=np.int64)
        self.used = np.zeros(num_queries, dtype=np.int64)
        self.worst = np.full((num_queries, 1), -np.inf, dtype=np.float32)

    @property
    def width(self) -> int:
        """Columns in use."""
        return int(self.used.max())

    def add(self, scores: np.ndarray, start: int) -> None:
        """Take in the scores [Q, block] of the passages from `start` on."""
        flat = np.flatnonzero(scores > self.worst)
        rows, columns = np.divmod(flat, scores.shape[1])
        counts = np.bincount(rows, minlength=len(scores))
        if (self.used + counts).max() > self.scores.shape[1]:
            self._keep_best()
        firsts = np.cumsum(counts) - counts
        places = np.arange(len(flat)) - np.repeat(firsts - self.used, counts)
        self.scores[rows, places] = scores[rows, columns]
        self.positions[rows, places] = columns + start
        self.used += counts
        if self.width >= 2 * self.depth:
            self._keep_best()

    def _keep_best(self) -> None:
        """Drop all but the best `depth` of each query and raise the bar to the worst of these."""
        if self.width <= self.depth:
            return
        width = self.width
        order = np.argpartition(self.scores[:, :width], width - self.depth, axis=1)[:, -self.depth :]
        self.scores[:, : self.depth] = np.take_along_axis(self.scores[:, :width], order, 1)
        self.positions[:, : self.depth] = np.take_along_axis(self.positions[:, :width], order, 1)
        self.scores[:, self.depth : width] = -np.inf
        self.used = np.minimum(self.used, self.depth)
        full = self.used == self.depth
        self.worst[full, 0] = self.scores[full, : self.depth].min(axis=1)


def _merge(parts, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """The best of all threads' candidates, in order."""
    scores = np.hstack([scores for scores, _ in parts])
    positions = np.hstack([positions for _, positions in parts])
    if scores.shape[1] > depth:
        kept = np.argpartition(scores, scores.shape[1] - depth, axis=1)[:, -depth:]
        scores, positions = np.take_along_axis(scores, kept, 1), np.take_along_axis(positions, kept, 1)
    order = np.lexsort((positions, -scores), axis=1)
    return np.take_along_axis(scores, order, 1), np.take_along_axis(positions, order, 1)


@cache
def _thread_pools():
    """The libraries that NumPy's products run in."""
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _one_thread_a_product():
    """Hold products to one thread each while ours run side by side."""
    return _thread_pools().limit(limits=1, user_api="blas")
