"""Merging the rankings of several systems into one."""

from collections import Counter
from collections.abc import Mapping, Sequence

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
    if isinstance(runs, Mapping) or len(runs) < 2:
        raise ValueError(
            f"fusion needs a list of at least two runs, got {len(runs)} in {type(runs).__name__}"
        )
    if not k > 0:
        raise ValueError(f"k must be above 0, got {k}")
    runs = [checked_hits(run) for run in runs]
    merged = Run({}, tag)
    for query_id in dict.fromkeys(query_id for run in runs for query_id in run):
        scores: Counter[str] = Counter()
        for run in runs:
            for rank, (doc_id, _) in enumerate(ordered_hits(run.get(query_id, {})), start=1):
                scores[doc_id] += 1 / (k + rank)
        if scores:
            merged[query_id] = dict(ordered_hits(scores))
    return merged
