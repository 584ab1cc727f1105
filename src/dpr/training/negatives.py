"""Hard negatives: mined from the hits of any run, and audited for passages that are relevant."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np

from dpr.arguments import checked
from dpr.data.text import normalise, segments, stable_hash, text_key
from dpr.data.training_data import TrainingData
from dpr.data.trec import Qrels, checked_hits, ordered_hits

SAMPLING = ("top", "random")
SHINGLE = 3  # words in a sequence; near-duplicate passages share many of their sequences


@dataclass(frozen=True)
class Mined:
    """Mined hard negatives, and what mining left out.

    Attributes:
        negatives: query_id → doc_ids, hardest first; queries without negatives are missing.
        left_out: Reason (`positive`, `query`, `empty`, `margin`, `cross-encoder`) → number of candidates
            left out for it.
        short: query_ids of the queries with fewer negatives than asked for.
    """

    negatives: dict[str, tuple[str, ...]] = field(repr=False)
    left_out: dict[str, int]
    short: list[str] = field(repr=False)


@checked
def mine_negatives(
    data: TrainingData,
    passages: Mapping[str, str],
    run: Mapping[str, Mapping[str, float]],
    *,
    num_negatives: int,
    ranks: tuple[int, int] = (1, 100),
    max_share: float | None = None,
    sampling: str = "random",
    seed: int = 0,
    cross_encoder: Any = None,
    max_cross_score: float | None = None,
) -> Mined:
    """Take the negatives of each training query from the hits of a search for it.

    The positives of a query are left out, and so are passages with the same text as one of them (by
    `text_key`), the query itself where it is a passage, by id or text, and passages without text.

    Args:
        data: Queries and positives; negatives that `data` already has are ignored.
        passages: doc_id → text of every passage that was searched.
        run: Hits for the training queries, by BM25, the base model, the model in training or another system.
        num_negatives: Most negatives per query.
        ranks: First and last rank to take hits from, counted from 1. A first rank below the top avoids
            relevant passages that nobody judged.
        max_share: Take only passages that score below this share of the query's best positive in the run
            (0.95 in NV-Retriever). A query without any positive in the run gets no negatives.
        sampling: `top` takes the best of the hits that are left, `random` any of them.
        seed: Seed of `random`; each query has its own random state.
        cross_encoder: A sentence-transformers CrossEncoder, or anything with the same `predict`, which
            scores a query and a passage together.
        max_cross_score: Take only passages that `cross_encoder` scores below this; needs `cross_encoder`.

    Raises:
        ValueError: A number or name out of range; a hit that `passages` lacks; no query of the data in the
            run; a best positive whose score is not above 0, so that a share of it means nothing.

    Source: Xiong et al. 2021, ANCE (negatives from the model); Moreira et al. 2024, NV-Retriever, section
    4 (`max_share`).
    """
    first, last = ranks
    if num_negatives < 1 or not 1 <= first <= last:
        raise ValueError(
            f"num_negatives must be at least 1 and ranks 1 ≤ first ≤ last, got {num_negatives}, {ranks}"
        )
    if sampling not in SAMPLING:
        raise ValueError(f"sampling must be one of {SAMPLING}, got {sampling!r}")
    if (cross_encoder is None) != (max_cross_score is None):
        raise ValueError("cross_encoder and max_cross_score go together")
    run = checked_hits(run)
    if not any(example.query_id in run for example in data.examples):
        raise ValueError(f"the run's {len(run)} queries and those of {data.name} have none in common")
    left_out: Counter = Counter({"positive": 0, "query": 0, "empty": 0, "margin": 0, "cross-encoder": 0})
    key_of = cache(lambda doc_id: text_key(passages[doc_id]))
    negatives: dict[str, tuple[str, ...]] = {}
    for example in data.examples:
        hits = ordered_hits(run.get(example.query_id, {}))
        unknown = [d for d, _ in hits[first - 1 : last] if d not in passages]
        if unknown:
            raise ValueError(
                f"query {example.query_id}: the run names {unknown[0]}, which is not among the passages"
            )
        relevant = {text_key(data.passages[doc_id]) for doc_id in example.positives}
        own, candidates = text_key(example.query), []
        for doc_id, score in hits[first - 1 : last]:
            key = key_of(doc_id)
            if doc_id in example.positives or key in relevant:
                left_out["positive"] += 1
            elif doc_id == example.query_id or key == own:
                left_out["query"] += 1
            elif not key:
                left_out["empty"] += 1
            else:
                candidates.append((doc_id, score))
        if max_share is not None:
            bound = _bound(example.query_id, [s for d, s in hits if d in example.positives], max_share)
            kept = [(doc_id, score) for doc_id, score in candidates if score < bound]
            left_out["margin"] += len(candidates) - len(kept)
            candidates = kept
        doc_ids = [doc_id for doc_id, _ in candidates]
        if cross_encoder is not None and doc_ids:
            scores = cross_encoder.predict([(example.query, passages[doc_id]) for doc_id in doc_ids])
            kept_ids = [d for d, score in zip(doc_ids, scores, strict=True) if score < max_cross_score]
            left_out["cross-encoder"] += len(doc_ids) - len(kept_ids)
            doc_ids = kept_ids
        if sampling == "random" and len(doc_ids) > num_negatives:
            rng = np.random.default_rng([seed, int(stable_hash(example.query_id)[:8], 16)])
            chosen = np.sort(rng.choice(len(doc_ids), num_negatives, replace=False))
            doc_ids = [doc_ids[i] for i in chosen]
        if doc_ids:
            negatives[example.query_id] = tuple(doc_ids[:num_negatives])
    short = [e.query_id for e in data.examples if len(negatives.get(e.query_id, ())) < num_negatives]
    return Mined(negatives, dict(left_out), short)


def _bound(query_id: str, positive_scores: Sequence[float], max_share: float) -> float:
    """The score that a query's negatives must stay below; −∞ without a positive in the run."""
    if not max_share > 0:
        raise ValueError(f"max_share must be above 0, got {max_share}")
    if not positive_scores:
        return -np.inf
    if max(positive_scores) <= 0:
        raise ValueError(f"query {query_id}: a share of a score that is not above 0 ({max(positive_scores)})")
    return max_share * max(positive_scores)


@dataclass(frozen=True)
class NegativesAudit:
    """What an audit of mined negatives found.

    Attributes:
        num_negatives: Number of negatives, summed over the queries.
        num_relevant: How many of them are judged relevant: false negatives.
        near_duplicates: (query_id, doc_id) of each negative that nearly repeats a positive of its query.
        samples: Texts to read, each as (query, positive, negative).
    """

    num_negatives: int
    num_relevant: int
    near_duplicates: list[tuple[str, str]] = field(repr=False)
    samples: list[tuple[str, str, str]] = field(repr=False)

    @property
    def false_share(self) -> float:
        """Share of the negatives that are judged relevant; a lower bound, as most are not judged."""
        return self.num_relevant / self.num_negatives


@checked
def audit_negatives(
    data: TrainingData,
    passages: Mapping[str, str],
    negatives: Mapping[str, Sequence[str]],
    qrels: Qrels,
    *,
    near: float = 0.5,
    num_samples: int = 10,
) -> NegativesAudit:
    """Compare negatives with judgements that mining did not use, and with the texts of the positives.

    Args:
        data: The queries that negatives were mined for.
        passages: doc_id → text.
        negatives: query_id → doc_ids, as `Mined.negatives`.
        qrels: Judgements, if possible more than the positives of `data`; {} if there are none.
        near: Jaccard similarity of three-word sequences from which two passages are near-duplicates.
        num_samples: Most samples to return, spread evenly over the negatives.

    Raises:
        ValueError: No negatives, or one that `passages` lacks.

    Source: Broder 1997, On the resemblance and containment of documents (shingles).
    """
    pairs = [(e, doc_id) for e in data.examples for doc_id in negatives.get(e.query_id, ())]
    if not pairs:
        raise ValueError("no negatives to audit")
    unknown = [doc_id for _, doc_id in pairs if doc_id not in passages]
    if unknown:
        raise ValueError(f"{len(unknown)} negatives are not among the passages, first {unknown[0]!r}")
    grades = [qrels.get(example.query_id, {}).get(doc_id) for example, doc_id in pairs]
    used = {d for e, _ in pairs for d in e.positives}
    positives = {doc_id: shingles(data.passages[doc_id]) for doc_id in used}
    drawn = {doc_id: shingles(passages[doc_id]) for doc_id in {doc_id for _, doc_id in pairs}}
    duplicates = [
        (e.query_id, doc_id)
        for e, doc_id in pairs
        if any(jaccard(drawn[doc_id], positives[d]) >= near for d in e.positives)
    ]
    spread = np.linspace(0, len(pairs) - 1, min(num_samples, len(pairs))).astype(int)
    samples = [
        (e.query, data.passages[next(iter(e.positives))], passages[doc_id])
        for e, doc_id in (pairs[i] for i in spread)
    ]
    return NegativesAudit(
        len(pairs),
        sum(grade is not None and grade > 0 for grade in grades),
        duplicates,
        samples,
    )


def shingles(text: str) -> set[tuple[str, ...]]:
    """All sequences of three `segments` of a text; a shorter text gives one sequence of all of them."""
    words = segments(normalise(text))
    return {tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}


def jaccard(one: set, other: set) -> float:
    """Jaccard similarity of two sets: the size of their intersection divided by that of their union.

    >>> jaccard({1, 2}, {2, 3})
    0.3333333333333333
    """
    both = len(one & other)
    return both / (len(one) + len(other) - both)
