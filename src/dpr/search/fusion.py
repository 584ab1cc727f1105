"""Merging the rankings of several systems, or of one over the parts of a collection, into one."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from dpr.arguments import checked
from dpr.data.trec import Run, checked_hits, ordered_hits


@checked
def fuse(runs: Sequence[Mapping[str, Mapping[str, float]]], tag: str, k: int = 60) -> Run:
    """Merge rankings by reciprocal-rank fusion: a document's score is the sum of 1 / (k + rank).

    Args:
        runs: Two or more runs over the same queries; only ranks matter, not the scale of scores.
        tag: The name of the merged run.
        k: Added to every rank; a larger k gives the first ranks less weight.

    Returns:
        The merged run, in trec_eval's order; a query missing from one run keeps the hits of the others.

    Raises:
        ValueError: Fewer than two runs, k not above 0, or a score that is not a finite number.

    Source: Cormack, Clarke and Büttcher 2009.
    """
    if not k > 0:
        raise ValueError(f"k must be above 0, got {k}")

    def by_rank(hits: Mapping[str, float]) -> dict[str, float]:
        return {doc_id: 1 / (k + rank) for rank, (doc_id, _) in enumerate(ordered_hits(hits), start=1)}

    return _sum(runs, tag, by_rank)


@checked
def fuse_scores(runs: Sequence[Mapping[str, Mapping[str, float]]], tag: str) -> Run:
    """Merge rankings by their scores: a document's score is the mean of its rescaled scores.

    Each run's scores for a query are rescaled so that its last hit gets 0 and its first 1; a document that is
    no hit of a run gets 0 there. Unlike `fuse` this keeps how far apart documents are, as a teacher should.

    Args:
        runs: Two or more runs over the same queries, each searched to one depth.
        tag: The name of the merged run.

    Returns:
        The merged run, in trec_eval's order; a query missing from one run keeps the hits of the others.

    Raises:
        ValueError: Fewer than two runs, or a score that is not a finite number.

    Source: Bruch, Gai and Ingber 2023, An analysis of fusion functions for hybrid retrieval (convex
    combination), with equal weights.
    """

    def rescaled(hits: Mapping[str, float]) -> dict[str, float]:
        low, high = min(hits.values(), default=0.0), max(hits.values(), default=0.0)
        if low == high:
            return dict.fromkeys(hits, 1 / len(runs))
        return {doc_id: (score - low) / (high - low) / len(runs) for doc_id, score in hits.items()}

    return _sum(runs, tag, rescaled)


@checked
def merge_parts(runs: Sequence[Mapping[str, Mapping[str, float]]], tag: str, depth: int) -> Run:
    """Merge one system's hits in the parts of a collection: the best by score, as if all were searched.

    Only of documents that score alike at the last place others may be kept than by one search, which goes by
    their positions.

    Args:
        runs: The run of each part, such as one machine's shards, searched at least to `depth`. Scores must
            mean the same in all of them: similarities do, but BM25 counts each part's words.
        tag: The name of the merged run.
        depth: Most documents per query.

    Returns:
        The merged run, in trec_eval's order; a query has the hits of the parts that found some.

    Raises:
        ValueError: There is no run, `depth` is below 1, a document is a query's hit in two parts, or a score
            is not a finite number.
    """
    if not runs or depth < 1:
        raise ValueError(f"needs a list of runs and a depth of at least 1, got {len(runs)} and {depth}")
    runs = [checked_hits(run) for run in runs]
    merged = Run({}, tag)
    for query_id in dict.fromkeys(query_id for run in runs for query_id in run):
        parts = [run.get(query_id, {}) for run in runs]
        hits = {doc_id: score for part in parts for doc_id, score in part.items()}
        if len(hits) < sum(map(len, parts)):
            twice = Counter(doc_id for part in parts for doc_id in part).most_common(1)[0][0]
            raise ValueError(f"query {query_id}: document {twice} is in two runs: they are no parts")
        merged[query_id] = dict(ordered_hits(hits)[:depth])
    return merged


def _sum(
    runs: Sequence[Mapping[str, Mapping[str, float]]],
    tag: str,
    rescale: Callable[[Mapping[str, float]], Mapping[str, float]],
) -> Run:
    """Merge runs by the sum of a document's rescaled scores."""
    if isinstance(runs, Mapping) or len(runs) < 2:
        raise ValueError(
            f"fusion needs a list of at least two runs, got {len(runs)} in {type(runs).__name__}"
        )
    runs = [checked_hits(run) for run in runs]
    merged = Run({}, tag)
    for query_id in dict.fromkeys(query_id for run in runs for query_id in run):
        scores: Counter[str] = Counter()
        for run in runs:
            scores.update(rescale(run.get(query_id, {})))
        if scores:
            merged[query_id] = dict(ordered_hits(scores))
    return merged
