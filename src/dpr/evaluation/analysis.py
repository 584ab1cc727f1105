"""Analysing a run: on which queries it beats another run, and whether it prefers long documents."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from dpr.arguments import checked
from dpr.data.collection import Collection
from dpr.data.text import first_words, segments
from dpr.data.trec import checked_hits, ordered_hits
from dpr.evaluation.metrics import evaluate


class QueryDifference(NamedTuple):
    """One query's metric in two runs, and where each ranks its best relevant document.

    Attributes:
        query_id: The query's id.
        query: Its text.
        difference: The metric of the first run minus that of the second.
        first: The metric of the first run.
        second: The metric of the second run.
        relevant: The title (or first words) of the highest-graded relevant document; "–" if there is
            none or the corpus does not hold it.
        first_rank: That document's rank in the first run, from 1; None if it is not among the hits.
        second_rank: The same for the second run.
    """

    query_id: str
    query: str
    difference: float
    first: float
    second: float
    relevant: str
    first_rank: int | None
    second_rank: int | None


@checked
def query_differences(
    collection: Collection,
    first: Mapping[str, Mapping[str, float]],
    second: Mapping[str, Mapping[str, float]],
    metric: str = "nDCG@10",
) -> list[QueryDifference]:
    """Compare two runs on every judged query; the first run's largest wins come first.

    Args:
        collection: Queries, judgements and texts.
        first: A run.
        second: The run it is compared with.
        metric: The metric to compare.

    Raises:
        ValueError: As in `evaluate`.
    """
    first, second = checked_hits(first), checked_hits(second)
    values = [evaluate(collection.qrels, run, [metric]).per_query[metric] for run in (first, second)]
    rows = []
    for query_id, text in collection.queries.items():
        relevant = {d: grade for d, grade in collection.qrels[query_id].items() if grade > 0}
        best = max(relevant, key=lambda doc_id: (relevant[doc_id], doc_id), default="")
        passage = collection.by_id.get(best)
        shown = "–" if passage is None else passage.title or first_words(passage.text, 12)
        mine, theirs = values[0][query_id], values[1][query_id]
        ranks = [_rank(run.get(query_id, {}), best) for run in (first, second)]
        rows.append(QueryDifference(query_id, text, mine - theirs, mine, theirs, shown, *ranks))
    return sorted(rows, key=lambda row: (-row.difference, row.query_id))


@checked
def length_by_rank(
    collection: Collection, run: Mapping[str, Mapping[str, float]], depth: int = 20
) -> tuple[np.ndarray, float, float]:
    """Give the median document length at each rank, to see whether a system prefers long documents.

    Args:
        collection: The documents and judgements.
        run: A run over the collection's queries.
        depth: How many ranks to look at.

    Returns:
        Three median numbers of words (`segments`): of the hits at each rank, float [depth], NaN at ranks
        where no query has a hit; of the collection's documents; and of its relevant documents, counted
        once per judgement.

    Raises:
        ValueError: No query of the run has a hit, or a hit is not in the collection.
    """
    run = checked_hits(run)
    words = {p.doc_id: len(segments(p.contents)) for p in collection.passages}
    lengths = np.full((len(run), depth), np.nan)
    for row, scores in enumerate(run.values()):
        docs = [d for d, _ in ordered_hits(scores)[:depth]]
        if not words.keys() >= set(docs):
            raise ValueError(f"a hit of the run is not in {collection.name}: a run over other documents?")
        lengths[row, : len(docs)] = [words[d] for d in docs]
    if np.isnan(lengths).all():
        raise ValueError("the run has no hits")
    kept = ~np.isnan(lengths).all(axis=0)
    by_rank = np.full(depth, np.nan)
    by_rank[kept] = np.nanmedian(lengths[:, kept], axis=0)
    relevant = [
        words[d] for grades in collection.qrels.values() for d, g in grades.items() if g > 0 and d in words
    ]
    return by_rank, float(np.median(list(words.values()))), float(np.median(relevant))


def _rank(scores: Mapping[str, float], doc_id: str) -> int | None:
    """A document's rank, from 1; None if it is not among the hits."""
    docs = [d for d, _ in ordered_hits(scores)]
    return docs.index(doc_id) + 1 if doc_id in scores else None
