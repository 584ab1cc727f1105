"""Metrics of a run against judgements, computed by ranx, and of generated texts against references."""

import os
import tempfile
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dpr.arguments import checked
from dpr.data.trec import Qrels, checked_hits, checked_qrels, ordered_hits

WHOLE = ("nDCG", "RR", "AP", "bpref")  # metrics that can take all hits
METRICS = ("nDCG@10", "RR@10", "R@100", "R@1000", "AP@1000", "P@10", "judged@10")
RANX_NAMES = {
    "nDCG": "ndcg",
    "RR": "reciprocal_rank",
    "R": "recall",
    "AP": "average_precision",
    "P": "precision",
}


@dataclass(frozen=True)
class Evaluation:
    """A run's metrics.

    Attributes:
        means: metric → mean over all judged queries, from 0 to 1.
        per_query: metric → query_id → value, for every judged query.
        num_queries: Number of judged queries, by which each mean is divided.
        num_missing: Number of judged queries for which the run has no hit; each counts as 0.
    """

    means: dict[str, float]
    per_query: dict[str, dict[str, float]] = field(repr=False)
    num_queries: int
    num_missing: int


@checked
def evaluate(
    qrels: Qrels,
    run: Mapping[str, Mapping[str, float]],
    metrics: Sequence[str] = METRICS,
    *,
    own_documents: Set[str] = frozenset(),
    judged_only: bool = False,
) -> Evaluation:
    """Score a run against judgements as trec_eval does, but over all judged queries.

    Hits are ordered by `ordered_hits`, whatever their order in `run`. A judged query without hits
    counts as 0; queries without judgements are left out. Grades below 0 count as 0, in bpref as no
    judgement. The gain in nDCG is the grade, as in trec_eval, and not 2^grade − 1.

    Args:
        qrels: Judgements of at least one query.
        run: query_id → doc_id → score, larger is better; ids that are whole numbers, here and in
            `qrels`, become text. It should be as deep as the cutoffs: R@1000 of
            a run with 100 hits per query means nothing.
        metrics: Names with a cutoff: nDCG@k, RR@k, R@k, AP@k, P@k, and judged@k, the share of the
            k best hits that have a judgement. nDCG, RR, AP and bpref alone take all hits. MAP is AP.
        own_documents: Ids of queries that are documents themselves, whose hit with the query's id is
            left out: `Collection.own_documents`, for a run whose search did not leave them out.
        judged_only: Whether hits without a judgement are left out before ranks are counted.

    Raises:
        ValueError: There are no judgements, or a grade is no whole number; a metric is unknown; no query of
            the run is judged; an id is neither text nor a whole number; or a score is not finite.

    Source: Järvelin and Kekäläinen 2002 (nDCG); Buckley and Voorhees 2004 (bpref); Sakai 2007
    (judged_only); https://github.com/usnistgov/trec_eval.

    >>> evaluate({"q1": {"a": 1}, "q2": {"b": 1}}, {"q1": {"a": 2.0, "b": 1.0}}, ["RR@10"]).means
    {'RR@10': 0.5}
    """
    if not qrels:
        raise ValueError("no judgements: nothing to evaluate against")
    cutoffs = {metric: split_metric(metric) for metric in metrics}
    qrels, run = checked_qrels(qrels), checked_hits(run)
    if not any(q in run for q in qrels):
        raise ValueError(f"the run's {len(run)} queries and the {len(qrels)} judged ones have none in common")
    ranked = {q: [doc_id for doc_id, _ in ordered_hits(run[q])] for q in qrels if q in run}
    for query_id, docs in ranked.items():
        own = query_id if query_id in own_documents else None
        ranked[query_id] = [d for d in docs if d != own and (d in qrels[query_id] or not judged_only)]
    ranked = {q: docs for q, docs in ranked.items() if docs}
    graded = {q: docs for q, docs in ranked.items() if qrels[q]}  # ranx refuses empty judgements
    by_ranx = {metric: cutoff for metric, cutoff in cutoffs.items() if cutoff[0] in RANX_NAMES}
    values = _ranx_per_query(qrels, graded, by_ranx)
    per_query = {}
    for metric, (name, k) in cutoffs.items():
        if name == "judged":
            found = {
                q: sum(d in qrels[q] for d in docs[:k]) / min(k, len(docs)) for q, docs in ranked.items()
            }
        elif name == "bpref":
            found = {q: _bpref(qrels[q], docs) for q, docs in ranked.items()}
        else:
            found = values[metric]
        per_query[metric] = {q: float(found.get(q, 0.0)) for q in qrels}
    means = {metric: sum(scores.values()) / len(qrels) for metric, scores in per_query.items()}
    return Evaluation(means, per_query, len(qrels), len(qrels) - len(ranked))


def split_metric(metric: str) -> tuple[str, int]:
    """Split a metric such as `nDCG@10` into its name and cutoff; the cutoff 0 stands for all hits.

    Raises:
        ValueError: The name is unknown, or the cutoff is not a whole number of at least 1.

    >>> split_metric("nDCG@10"), split_metric("MAP")
    (('nDCG', 10), ('AP', 0))
    """
    name, at, cutoff = str(metric).partition("@")
    name = "AP" if name == "MAP" else name
    if not at and name in WHOLE:
        return name, 0
    if name not in (*RANX_NAMES, "judged") or not (cutoff.isascii() and cutoff.isdecimal() and int(cutoff)):
        known = ", ".join([*(f"{n}@k" for n in (*RANX_NAMES, "judged")), *WHOLE])
        raise ValueError(f"unknown metric {metric!r}; known are {known}, with k of at least 1")
    return name, int(cutoff)


def _bpref(grades: Mapping[str, int], docs: Sequence[str]) -> float:
    """Bpref as trec_eval computes it; ranx's divides by 0 if all judged documents are relevant."""
    num_relevant = sum(grade > 0 for grade in grades.values())
    bound = min(num_relevant, sum(grade == 0 for grade in grades.values()))
    above, total = 0, 0.0
    for grade in (grades[d] for d in docs if d in grades):
        if grade > 0:
            total += 1 - min(above, num_relevant) / bound if above else 1
        above += grade == 0
    return total / num_relevant if num_relevant else 0.0


def _ranx_per_query(
    qrels: Qrels, ranked: Mapping[str, Sequence[str]], cutoffs: Mapping[str, tuple[str, int]]
) -> dict[str, dict[str, float]]:
    """Values that ranx computes for queries with hits: metric → query_id → value.

    ranx gets arrays, because the code it compiles for arrays is cached on disk. For its own classes Qrels
    and Run it would compile again in each process.
    """
    if not cutoffs or not ranked:
        return {metric: {} for metric in cutoffs}
    longest = max(map(len, ranked.values()))
    deepest = max(k or longest for _, k in cutoffs.values())
    # Per query, rows of (document, grade): documents numbered by falling grade, −1 if unjudged or absent
    judged = np.full((len(ranked), max(len(qrels[q]) for q in ranked), 2), (-1.0, 0.0))
    hits = np.full((len(ranked), min(deepest, longest), 2), -1.0)
    for row, (query_id, docs) in enumerate(ranked.items()):
        grades = sorted(qrels[query_id].items(), key=lambda item: -item[1])
        numbers = {doc_id: number for number, (doc_id, _) in enumerate(grades)}
        judged[row, : len(grades)] = [(number, grade) for number, (_, grade) in enumerate(grades)]
        found = docs[:deepest]
        hits[row, : len(found), 0] = [numbers.get(doc_id, -1) for doc_id in found]
    # ranx imports ir_datasets, which makes a folder in the home folder and fails if it cannot
    os.environ.setdefault("IR_DATASETS_HOME", str(Path(tempfile.gettempdir()) / "ir_datasets"))
    import ranx  # takes two seconds

    values = {m: getattr(ranx.metrics, RANX_NAMES[name])(judged, hits, k) for m, (name, k) in cutoffs.items()}
    return {metric: dict(zip(ranked, found, strict=True)) for metric, found in values.items()}


ROUGE = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}


@checked
def score_texts(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Score N generated texts, each against one or more references.

    BLEU is computed over the corpus: n-gram counts are summed over all texts before dividing, so it is
    not a mean over texts or batches. ROUGE is the mean over texts of the best F1 with any reference.

    Args:
        texts: N generated texts.
        references: For each text a list of at least one reference; the lists may differ in length.

    Returns:
        `BLEU`, `ROUGE-1`, `ROUGE-2` and `ROUGE-L`, each from 0 to 100.

    Raises:
        ValueError: The numbers of texts and lists differ or are 0, or a text has no list of references.

    Source: Post 2018, A call for clarity in reporting BLEU scores; Lin 2004, ROUGE.
    """
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    if len(texts) != len(references) or not len(texts):
        raise ValueError(f"got {len(texts)} texts and references for {len(references)}")
    without = [number for number, found in enumerate(references) if isinstance(found, str) or not found]
    if without:
        raise ValueError(f"text {without[0]} needs a list of references with at least one")
    most = max(map(len, references))
    columns = [[found[i] if i < len(found) else None for found in references] for i in range(most)]
    scores = {"BLEU": sacrebleu.corpus_bleu(list(texts), columns).score}
    scorer = RougeScorer(list(ROUGE.values()))
    found = [scorer.score_multi(refs, text) for text, refs in zip(texts, references, strict=True)]
    for name, theirs in ROUGE.items():
        scores[name] = 100 * sum(score[theirs].fmeasure for score in found) / len(found)
    return scores
