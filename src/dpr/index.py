"""Searching vectors: every index says its similarity, and larger is always better."""

from collections.abc import Sequence

import numpy as np

from dpr.checkpoint import SIMILARITIES
from dpr.trec import Run, ordered_hits

PASSAGE_BLOCK = 16_384  # passages scored at once
QUERY_BLOCK = 512


class ExactIndex:
    """Exhaustive search: every query against every passage, by blocked matrix products.

    Args:
        passage_emb: float [N, D], one row a passage; finite. Held, not copied, when float32 (a
            memory map stays on disk).
        doc_ids: N distinct ids, in the order of the rows.
        similarity: `cosine` (rows and queries are scaled to length 1 here) or `dot`: the one the
            encoder was trained for, `encoder.config.similarity`.

    Raises:
        ValueError: No vectors, a wrong shape, ids that do not fit the rows or repeat, an unknown
            similarity, values that are not finite, or a zero vector under cosine.
    """

    def __init__(self, passage_emb: np.ndarray, doc_ids: Sequence[str], similarity: str):
        if similarity not in SIMILARITIES:
            raise ValueError(f"similarity must be one of {SIMILARITIES}, got {similarity!r}")
        if passage_emb.ndim != 2 or 0 in passage_emb.shape:
            raise ValueError(
                f"passage_emb must be [N, D] with N and D above 0, got shape {passage_emb.shape}"
            )
        if len(doc_ids) != len(passage_emb) or len(set(doc_ids)) != len(doc_ids):
            raise ValueError(
                f"{len(passage_emb)} vectors need as many distinct doc_ids, got {len(set(doc_ids))}"
            )
        self.passage_emb, self.doc_ids, self.similarity = passage_emb, list(doc_ids), similarity
        for start in range(0, len(passage_emb), PASSAGE_BLOCK):
            self._prepared(passage_emb[start : start + PASSAGE_BLOCK], "passage_emb", start)

    def search(self, query_emb: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """The `depth` most similar passages of each query.

        Args:
            query_emb: float [Q, D]; Q may be 0.
            depth: K, at least 1; a depth beyond N gives all N.

        Returns:
            Scores float32 [Q, min(K, N)], falling along each row, larger is better under either
            similarity, and the rows' positions in `passage_emb`, int64 of the same shape.

        Raises:
            ValueError: A wrong shape, a depth below 1, values not finite, a zero vector under cosine.
        """
        if query_emb.ndim != 2 or query_emb.shape[1] != self.passage_emb.shape[1]:
            raise ValueError(
                f"query_emb must be [Q, {self.passage_emb.shape[1]}], got shape {query_emb.shape}"
            )
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        kept = min(depth, len(self.passage_emb))
        scores = np.empty((len(query_emb), kept), dtype=np.float32)
        positions = np.empty((len(query_emb), kept), dtype=np.int64)
        for start in range(0, len(query_emb), QUERY_BLOCK):
            rows = slice(start, start + QUERY_BLOCK)
            scores[rows], positions[rows] = self._search_block(
                self._prepared(query_emb[rows], "query_emb", start), kept
            )
        return scores, positions

    def search_run(self, query_ids: Sequence[str], query_emb: np.ndarray, depth: int, tag: str) -> Run:
        """`search` as a run: doc_ids in trec_eval's order, tagged with the system's name.

        Raises:
            ValueError: Another number of ids than of vectors; see also `search`.
        """
        if len(query_ids) != len(query_emb):
            raise ValueError(f"{len(query_ids)} query ids for {len(query_emb)} vectors")
        scores, positions = self.search(query_emb, depth)
        hits = (
            {self.doc_ids[i]: s for i, s in zip(row_positions.tolist(), row_scores.tolist(), strict=True)}
            for row_scores, row_positions in zip(scores, positions, strict=True)
        )
        return Run({q: dict(ordered_hits(scored)) for q, scored in zip(query_ids, hits, strict=True)}, tag)

    def _prepared(self, block: np.ndarray, name: str, first_row: int) -> np.ndarray:
        """A block as float32, scaled to length 1 under cosine; refuses what has no direction."""
        block = np.asarray(block, dtype=np.float32)
        norms = np.linalg.norm(block, axis=1, keepdims=True)
        if not np.isfinite(norms).all():
            row = first_row + int(np.argmin(np.isfinite(norms)))
            raise ValueError(f"{name}: row {row} holds NaN or infinity")
        if self.similarity == "dot":
            return block
        if not norms.all():
            raise ValueError(f"{name}: row {first_row + int(np.argmin(norms))} is a zero vector: no cosine")
        return block / norms

    def _search_block(self, queries: np.ndarray, kept: int) -> tuple[np.ndarray, np.ndarray]:
        """Best `kept` of all passages for a block of queries, keeping a running best over blocks."""
        best = np.empty((len(queries), 0), dtype=np.float32)
        where = np.empty((len(queries), 0), dtype=np.int64)
        for start in range(0, len(self.passage_emb), PASSAGE_BLOCK):
            block = self._prepared(self.passage_emb[start : start + PASSAGE_BLOCK], "passage_emb", start)
            scores = queries @ block.T  # [Q, block]
            found = _top(scores, kept)
            best = np.hstack([best, np.take_along_axis(scores, found, axis=1)])
            where = np.hstack([where, found + start])
            merged = _top(best, kept)
            best, where = np.take_along_axis(best, merged, 1), np.take_along_axis(where, merged, 1)
        order = np.argsort(-best, axis=1, kind="stable")
        return np.take_along_axis(best, order, 1), np.take_along_axis(where, order, 1)


def _top(scores: np.ndarray, kept: int) -> np.ndarray:
    """Columns of the `kept` largest of each row, in no order."""
    if scores.shape[1] <= kept:
        return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    return np.argpartition(scores, scores.shape[1] - kept, axis=1)[:, -kept:]
