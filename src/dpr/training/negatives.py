"""Hard negatives: mined from any run, and audited for passages that are relevant after all."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dpr.data.text import normalise, stable_hash
from dpr.data.training_data import TrainingData
from dpr.data.trec import Qrels, ordered_hits

SAMPLING = ("top", "random")
SHINGLE = 3  # words; near-duplicates are told by the share of such sequences that two passages have in common


@dataclass(frozen=True)
class Mined:
    """Hard negatives, and what was left out on the way.

    Attributes:
        negatives: query_id → doc_ids, hardest first; a query without any is missing.
        left_out: Reason → candidates: `positive`, `margin`, `cross-encoder`.
        short: Queries that have fewer than asked for.
    """

    negatives: dict[str, tuple[str, ...]]
    left_out: dict[str, int]
    short: list[str]


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
    """Take negatives of each training query from what a system finds for it.

    All positives of a query are left out, and passages with the text of one.

    Args:
        data: Queries and positives; negatives they have already play no part.
        passages: doc_id → text of what was searched.
        run: By BM25, the base model, the model itself, …; of the training queries.
        num_negatives: At most so many a query.
        ranks: First and last rank looked at, from 1. Starting below the top avoids relevant passages
            that nobody judged.
        max_share: Only passages that score below this share of the query's best positive in the run
            (0.95 in NV-Retriever); a query none of whose positives is in the run gets none.
        sampling: `top`, the best of what is left, or `random` among it.
        seed: For `random`; another query's choice does not depend on it.
        cross_encoder: A sentence-transformers CrossEncoder, or what else has its `predict`, to read
            query and passage together.
        max_cross_score: Only passages that it scores below this; needs `cross_encoder`.

    Raises:
        ValueError: A number or name out of range; a found passage without text; no query of the data in
            the run; a share of scores that are not above 0.

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
    if not any(example.query_id in run for example in data.examples):
        raise ValueError(f"the run's {len(run)} queries and those of {data.name} have none in common")
    left_out: Counter = Counter({"positive": 0, "margin": 0, "cross-encoder": 0})
    negatives: dict[str, tuple[str, ...]] = {}
    for example in data.examples:
        hits = ordered_hits(run.get(example.query_id, {}))
        unknown = [d for d, _ in hits[first - 1 : last] if not passages.get(d, "").strip()]
        if unknown:
            raise ValueError(f"query {example.query_id}: the run names {unknown[0]}, which has no text")
        relevant = {normalise(data.passages[doc_id]) for doc_id in example.positives}
        candidates = [
            (doc_id, score)
            for doc_id, score in hits[first - 1 : last]
            if doc_id not in example.positives and normalise(passages[doc_id]) not in relevant
        ]
        left_out["positive"] += len(hits[first - 1 : last]) - len(candidates)
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
    """The score that negatives stay below."""
    if not max_share > 0:
        raise ValueError(f"max_share must be above 0, got {max_share}")
    if not positive_scores:
        return -np.inf
    if max(positive_scores) <= 0:
        raise ValueError(f"query {query_id}: a share of a score that is not above 0 ({max(positive_scores)})")
    return max_share * max(positive_scores)


@dataclass(frozen=True)
class NegativesAudit:
    """What mined negatives turn out to be.

    Attributes:
        num_negatives: How many there are.
        num_judged: How many of these the judgements know.
        num_relevant: How many they call relevant: false negatives.
        near_duplicates: (query_id, doc_id) of negatives that nearly are one of the query's positives.
        samples: (query, positive, negative) as texts, to read.
    """

    num_negatives: int
    num_judged: int
    num_relevant: int
    near_duplicates: list[tuple[str, str]]
    samples: list[tuple[str, str, str]]

    @property
    def false_share(self) -> float:
        """The share of negatives that are called relevant; a lower bound, as most are not judged."""
        return self.num_relevant / self.num_negatives


def audit_negatives(
    data: TrainingData,
    passages: Mapping[str, str],
    negatives: Mapping[str, Sequence[str]],
    qrels: Qrels,
    *,
    near: float = 0.5,
    num_samples: int = 10,
) -> NegativesAudit:
    """Hold negatives against judgements that mining did not know, and against the positives' texts.

    Args:
        data: The queries that negatives were mined for.
        passages: doc_id → text.
        negatives: As `Mined.negatives`.
        qrels: Judgements, more than the positives of `data` where there are any; {} without.
        near: Passages that share this much of their three-word sequences (Jaccard) are near-duplicates.
        num_samples: Rows to read, spread over the queries.

    Raises:
        ValueError: No negatives.

    Source: Broder 1997, On the resemblance and containment of documents (shingles).
    """
    pairs = [(e, doc_id) for e in data.examples for doc_id in negatives.get(e.query_id, ())]
    if not pairs:
        raise ValueError("no negatives to audit")
    grades = [qrels.get(example.query_id, {}).get(doc_id) for example, doc_id in pairs]
    positives = {
        e.query_id: [shingles(data.passages[d]) for d in e.positives]
        for e in data.examples
        if e.query_id in negatives
    }
    duplicates = [
        (e.query_id, doc_id)
        for e, doc_id in pairs
        if any(jaccard(shingles(passages[doc_id]), text) >= near for text in positives[e.query_id])
    ]
    spread = np.linspace(0, len(pairs) - 1, min(num_samples, len(pairs))).astype(int)
    samples = [
        (e.query, data.passages[next(iter(e.positives))], passages[doc_id])
        for e, doc_id in (pairs[i] for i in spread)
    ]
    return NegativesAudit(
        len(pairs),
        sum(grade is not None for grade in grades),
        sum(grade is not None and grade > 0 for grade in grades),
        duplicates,
        samples,
    )


def shingles(text: str) -> set[tuple[str, ...]]:
    """The sequences of three words in a text; of a shorter one the words themselves."""
    words = normalise(text).split()
    return {tuple(words[i : i + SHINGLE]) for i in range(max(1, len(words) - SHINGLE + 1))}


def jaccard(one: set, other: set) -> float:
    """The share of what two sets have together that is in both.

    >>> jaccard({1, 2}, {2, 3})
    0.3333333333333333
    """
    return len(one & other) / len(one | other)
