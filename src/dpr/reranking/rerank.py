"""Reranking: the first hits of a run in the order of a cross-encoder's scores."""

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dpr.arguments import checked
from dpr.data.collection import Collection
from dpr.data.trec import Run, checked_hits, ordered_hits
from dpr.files import atomic_path
from dpr.models.batching import OVERFLOWS
from dpr.reranking.reranker import Reranker
from dpr.shards import ShardFolder

CPU_SHARD, GPU_SHARD = 1_024, 32_768  # pairs per shard
FORMAT = 1


@checked
def rerank(
    run: Mapping[str, Mapping[str, float]],
    collection: Collection,
    reranker: Reranker,
    *,
    depth: int = 100,
    tag: str | None = None,
    overflow: str = "truncate",
    folder: Path | str | None = None,
    batch_tokens: int | None = None,
) -> Run:
    """Order the first hits of each query by a cross-encoder.

    Args:
        run: The first stage's hits; their scores are not used beyond their order.
        collection: The collection with the queries' and documents' texts.
        reranker: The cross-encoder.
        depth: Hits of each query that are reordered; those below keep their order, below the others.
        tag: The name of the new run; by default the first stage's and the reranker's.
        overflow: What happens to a pair beyond the reranker's length, as in `Reranker.predict`: `truncate`
            cuts it, `max_chunk` scores a document by the best of its chunks.
        folder: A folder for the scores of this run, reranker and depth only; after an interruption, those
            already there are kept. None: they are kept in memory alone.
        batch_tokens: Most tokens per batch, padding included.

    Returns:
        The new run: the cross-encoder's raw scores and, below `depth`, scores that fall by at least 1 a hit.

    Raises:
        ValueError: A query or document that the collection lacks, a depth below 1, a score that is not
            finite, or a folder that holds other scores; the message names it.
        OSError: The disk is full; shards already written are kept.
    """
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    tag = tag or f"{getattr(run, 'tag', 'run')}-{reranker.name}"
    hits = {query_id: ordered_hits(scores) for query_id, scores in checked_hits(run).items()}
    keys = [(query_id, doc_id) for query_id, found in hits.items() for doc_id, _ in found[:depth]]
    pairs = texts_of(keys, collection)
    scores = _scores(pairs, reranker, overflow, folder and Path(folder), batch_tokens)
    bad = np.flatnonzero(~np.isfinite(scores))
    if len(bad):
        query_id, doc_id = keys[bad[0]]
        raise ValueError(
            f"query {query_id}, document {doc_id}: {reranker.name}'s score in {reranker.precision} is "
            f"{scores[bad[0]]}; use precision='float32'"
        )
    found: dict[str, dict[str, float]] = {query_id: {} for query_id in hits}
    for (query_id, doc_id), score in zip(keys, scores.tolist(), strict=True):
        found[query_id][doc_id] = score
    reranked = Run({}, tag)
    for query_id, old in hits.items():
        ordered = dict(ordered_hits(found[query_id]))
        for doc_id, _ in old[depth:]:
            ordered[doc_id] = float(np.floor(min(ordered.values()))) - 1
        reranked[query_id] = ordered
    return reranked


def texts_of(keys: Iterable[tuple[str, str]], collection: Collection) -> list[tuple[str, str]]:
    """The texts of pairs of query_id and doc_id.

    Raises:
        ValueError: The collection lacks a query or a document; the message names the first.
    """
    pairs = []
    for query_id, doc_id in keys:
        if query_id not in collection.queries:
            raise ValueError(f"query {query_id} of the run is not among {collection.name}'s queries")
        if doc_id not in collection.by_id:
            raise ValueError(f"query {query_id}: its hit {doc_id} is not a document of {collection.name}")
        pairs.append((collection.queries[query_id], collection.by_id[doc_id].contents))
    return pairs


def _scores(
    pairs: Sequence[tuple[str, str]],
    reranker: Reranker,
    overflow: str,
    folder: Path | None,
    batch_tokens: int | None,
) -> np.ndarray:
    """Score pairs in memory, or in a folder of shards of which those at hand are kept."""
    if folder is None:
        return reranker.predict(pairs, overflow, batch_tokens)
    if overflow not in OVERFLOWS:
        raise ValueError(f"overflow must be one of {OVERFLOWS}, got {overflow!r}")
    on_cpu = reranker.model.device.type == "cpu"
    batch_tokens = reranker.batch_tokens if batch_tokens is None else batch_tokens
    manifest = {
        "format": FORMAT,
        "model": reranker.fingerprint,
        "precision": reranker.precision,
        "max_length": reranker.max_length,
        "overflow": overflow,
        "batch_tokens": batch_tokens,
        "pairs": hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16],
    }
    shards = ShardFolder(folder, manifest, len(pairs), CPU_SHARD if on_cpu else GPU_SHARD, ".npy")
    with shards.open_for_writing():
        missing = {path: rows for path, rows in shards.items.items() if not shards.is_made(path)}
        blocks = ([pairs[i] for i in rows] for rows in missing.values())

        def save(path: Path, _: range, scores: np.ndarray) -> None:
            stream = io.BytesIO()
            np.save(stream, scores)
            with atomic_path(path) as temporary:
                temporary.write_bytes(stream.getbuffer())

        shards.fill(
            missing,
            lambda progress: reranker.predict_blocks(blocks, overflow, batch_tokens, progress),
            save,
            f"{reranker.name}: pairs",
            "pair",
        )
    return np.concatenate([np.empty(0, dtype=np.float32), *(np.load(path) for path in shards.items)])
