"""Evaluation: trec_eval's values query by query, averaged over every judged query."""

import csv
import math
import os
import struct
import subprocess
import sys
from collections import Counter
from re import escape

import ir_measures
import numpy as np
import pytest
import pytrec_eval
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from made_data import debates

from dpr.data.trec import Run, read_qrels, read_run
from dpr.evaluation.metrics import METRICS, evaluate, score_texts, split_metric
from dpr.training.settings import TEXT_METRICS

OFFICIAL_RUNS = (
    "DoRA_MSMARCO_1k",
    "UPrrf93-wt-r5",
    "bm25_bl_run5",
    "covidex.r5.2s",
    "covidex.r5.d2q.2s",
    "r5.d2q.fusion1",
    "r5.fusion1",
    "udel_fang_nir",
)
OFFICIAL_NAMES = {"bpref": "bpref", "nDCG@20": "ndcg@20", "P@20": "P@20", "AP@1000": "map"}
TREC_NAMES = {
    "nDCG@10": "ndcg_cut_10",
    "R@100": "recall_100",
    "R@1000": "recall_1000",
    "AP@1000": "map_cut_1000",
    "P@10": "P_10",
    "nDCG": "ndcg",
    "RR": "recip_rank",
    "AP": "map",
    "MAP": "map",
    "bpref": "bpref",
}
TREC_MEASURES = {
    "ndcg_cut.10",
    "recall.100,1000",
    "map_cut.1000",
    "P.10",
    "recip_rank",
    "ndcg",
    "map",
    "bpref",
}

doc_ids = st.sampled_from([f"d{number}" for number in range(14)])
query_ids = st.sampled_from(["q1", "q2", "q3", "q4"])
grades = st.dictionaries(doc_ids, st.integers(-1, 3), min_size=1)  # below -1 trec_eval's code crashes
hits = st.dictionaries(doc_ids, st.sampled_from([3.0, 2.0, 1.0 + 1e-9, 1.0, 0.0, -1.0]))


def tie_free(scores):
    """Scores that fall from hit to hit in trec_eval's order, found by two plain sorts."""
    by_id = sorted(scores, reverse=True)
    ordered = sorted(by_id, key=lambda doc_id: -struct.unpack("f", struct.pack("f", scores[doc_id]))[0])
    return {doc_id: -float(rank) for rank, doc_id in enumerate(ordered)}


# --- against other programs --------------------------------------------------------------------


@settings(max_examples=120)
@given(
    qrels=st.dictionaries(query_ids, grades, min_size=1),
    run=st.dictionaries(query_ids, hits),
)
def test_every_query_gets_the_values_of_trec_eval_and_ir_measures(qrels, run):
    if not qrels.keys() & run.keys():
        with pytest.raises(ValueError, match="none in common"):
            evaluate(qrels, run)
        return
    ours = evaluate(qrels, run, [*METRICS, *TREC_NAMES]).per_query
    answered = {q: scores for q, scores in run.items() if scores}
    some = {q: judged for q, judged in qrels.items() if max(judged.values()) >= 0}  # else its nDCG hangs
    theirs = pytrec_eval.RelevanceEvaluator(some, TREC_MEASURES).evaluate(answered)
    for metric, name in TREC_NAMES.items():
        expected = {q: theirs.get(q, {}).get(name, 0.0) for q in qrels}
        assert ours[metric] == pytest.approx(expected, abs=1e-12), metric
    first = {q: theirs.get(q, {}).get("recip_rank", 0.0) for q in qrels}
    assert ours["RR@10"] == pytest.approx({q: rr if rr > 0.099 else 0.0 for q, rr in first.items()})
    # these two measures of ir_measures break ties otherwise, so they get none
    untied = {q: tie_free(scores) for q, scores in answered.items()}
    for metric, measure in (("RR@10", ir_measures.RR @ 10), ("judged@10", ir_measures.Judged @ 10)):
        expected = dict.fromkeys(qrels, 0.0)
        expected |= {m.query_id: m.value for m in ir_measures.iter_calc([measure], qrels, untied)}
        assert ours[metric] == pytest.approx(expected, abs=1e-12), metric


@pytest.fixture(scope="module")
def official_qrels(data_dir):
    return read_qrels(data_dir / "trec-covid" / "qrels.covid-round5.txt")


@pytest.mark.parametrize("tag", OFFICIAL_RUNS)
def test_a_run_of_trec_covid_gets_its_official_scores(data_dir, official_qrels, tag):
    folder = data_dir / "trec-covid" / "official-runs"
    with (folder / "leaderboard.csv").open(encoding="utf-8") as stream:
        [official] = [row for row in csv.DictReader(stream) if row["tag"] == tag]
    found = evaluate(official_qrels, read_run(folder / f"{tag}.trec.gz"), list(OFFICIAL_NAMES))
    expected = {metric: float(official[name]) for metric, name in OFFICIAL_NAMES.items()}
    assert found.means == pytest.approx(expected, abs=1e-4)
    assert (found.num_queries, found.num_missing) == (50, 0)


# --- by hand -----------------------------------------------------------------------------------


def test_ndcg_takes_the_grade_as_gain_and_the_logarithm_of_rank_plus_one():
    qrels = {"q": {"a": 3, "b": 2, "c": 1, "d": 0, "e": 2}}
    run = {"q": {"c": 5.0, "a": 4.0, "x": 3.0, "b": 2.0}}
    gain = 1 / math.log2(2) + 3 / math.log2(3) + 0 + 2 / math.log2(5)
    ideal = 3 / math.log2(2) + 2 / math.log2(3) + 2 / math.log2(4) + 1 / math.log2(5)
    assert evaluate(qrels, run, ["nDCG@10"]).means["nDCG@10"] == pytest.approx(gain / ideal, abs=1e-12)
    gain, ideal = 1 + 3 / math.log2(3), 3 + 2 / math.log2(3)
    assert evaluate(qrels, run, ["nDCG@2"]).means["nDCG@2"] == pytest.approx(gain / ideal, abs=1e-12)


def test_the_other_metrics_are_what_their_definitions_give():
    qrels = {"q": {"a": 1, "b": 2, "c": 1, "n": 0, "m": -1}}
    run = {"q": {"x": 6.0, "a": 5.0, "n": 4.0, "m": 3.0, "b": 2.0}}
    expected = {
        "RR@10": 1 / 2,
        "RR@1": 0,
        "R@10": 2 / 3,
        "R@2": 1 / 3,
        "AP@10": (1 / 2 + 2 / 5) / 3,
        "AP@3": (1 / 2) / 3,
        "P@10": 2 / 10,  # of ten places, though five hits came
        "P@2": 1 / 2,
        "judged@10": 4 / 5,  # of the hits that came: c is judged and not found, x found and not judged
        "judged@2": 1 / 2,
    }
    assert evaluate(qrels, run, list(expected)).means == pytest.approx(expected)


def test_a_hit_beyond_the_cutoff_counts_for_nothing():
    run = {"q": {f"d{rank:02}": -float(rank) for rank in range(1, 12)}}
    found = evaluate({"q": {"d11": 1}}, run).means
    assert {m: v for m, v in found.items() if m.endswith("@10")} == {
        "nDCG@10": 0,
        "RR@10": 0,
        "P@10": 0,
        "judged@10": 0,
    }
    assert found["R@100"] == 1
    assert found["AP@1000"] == pytest.approx(1 / 11)


# --- what the mean is over ---------------------------------------------------------------------


def test_a_judged_query_without_hits_counts_as_zero_in_the_mean():
    qrels = {"q1": {"a": 1}, "q2": {"b": 1}, "q3": {"c": 1}, "q4": {"d": 1}}
    found = evaluate(qrels, {"q1": {"a": 1.0}, "q2": {}, "q3": {"c": 1.0}})
    for metric in ("nDCG@10", "RR@10", "R@100", "R@1000", "AP@1000", "judged@10"):
        assert found.means[metric] == 0.5
        assert found.per_query[metric] == {"q1": 1.0, "q2": 0.0, "q3": 1.0, "q4": 0.0}
    assert (found.num_queries, found.num_missing) == (4, 2)


def test_queries_without_judgements_are_left_out():
    found = evaluate({"q1": {"a": 1}}, {"q1": {"a": 1.0}, "q2": {"b": 1.0}})
    assert set(found.per_query["RR@10"]) == {"q1"}
    assert found.means["RR@10"] == 1.0
    assert (found.num_queries, found.num_missing) == (1, 0)


def test_a_query_with_nothing_relevant_counts_as_zero():
    qrels = {"q1": {"a": 0, "b": -1}, "q2": {"a": 1}, "q3": {}}
    found = evaluate(qrels, {query_id: {"a": 2.0, "b": 1.0} for query_id in qrels})
    assert found.per_query["nDCG@10"] == {"q1": 0.0, "q2": 1.0, "q3": 0.0}
    assert found.means["AP@1000"] == pytest.approx(1 / 3)
    assert found.per_query["judged@10"] == {"q1": 1.0, "q2": 0.5, "q3": 0.0}


@given(grades, hits.filter(len))
def test_grades_below_zero_count_as_zero(grades, scores):
    lowered = {d: grade or -7 for d, grade in grades.items()}
    raised = {d: max(0, grade) for d, grade in grades.items()}
    assert evaluate({"q": lowered}, {"q": scores}) == evaluate({"q": raised}, {"q": scores})


# --- hits that are left out --------------------------------------------------------------------

BY_IR_MEASURES = {
    "nDCG@10": ir_measures.nDCG @ 10,
    "R@100": ir_measures.R @ 100,
    "AP@1000": ir_measures.AP @ 1000,
    "P@10": ir_measures.P @ 10,
    "RR": ir_measures.RR,
    "bpref": ir_measures.Bpref,
}


def of_ir_measures(qrels, run):
    """Means over all judged queries, which count as 0 without hits: metric → mean."""
    totals = dict.fromkeys(BY_IR_MEASURES, 0.0)
    names = {measure: name for name, measure in BY_IR_MEASURES.items()}
    for found in ir_measures.iter_calc(list(names), qrels, {q: hits for q, hits in run.items() if hits}):
        totals[names[found.measure]] += found.value
    return {name: total / len(qrels) for name, total in totals.items()}


def drawn_run(query_ids, docs, seed):
    """For each query all documents in an order of their own, without ties."""
    rng = np.random.default_rng(seed)
    return {q: {d: float(rank) for rank, d in enumerate(rng.permutation(docs))} for q in query_ids}


@pytest.mark.parametrize("seed", range(4))
def test_a_query_that_is_a_document_is_scored_as_if_that_hit_had_been_removed(seed):
    collection = debates()
    run = drawn_run(collection.queries, collection.doc_ids, seed)
    for query_id in ("zoos-pro", "cars-con"):  # as a search would find it: itself first
        run[query_id][query_id] = 99.0
    removed = {q: {d: s for d, s in hits.items() if d != q} for q, hits in run.items()}
    found = evaluate(collection.qrels, run, list(BY_IR_MEASURES), own_documents=collection.own_documents)
    assert found.means == pytest.approx(of_ir_measures(collection.qrels, removed))
    assert found == evaluate(collection.qrels, removed, list(BY_IR_MEASURES))
    assert found.means["nDCG@10"] > evaluate(collection.qrels, run).means["nDCG@10"]


@given(
    qrels=st.dictionaries(st.sampled_from(["d1", "d2", "q"]), grades, min_size=1),
    run=st.dictionaries(st.sampled_from(["d1", "d2", "q"]), hits, min_size=1),
    own=st.sets(st.sampled_from(["d1", "d2", "d3", "q", "unknown"])),
    judged_only=st.booleans(),
)
def test_what_is_left_out_counts_as_if_the_run_never_had_it(qrels, run, own, judged_only):
    by_hand = {}
    for query_id, scores in run.items():
        by_hand[query_id] = {}
        for doc_id, score in scores.items():
            itself = doc_id == query_id and query_id in own
            if not itself and (not judged_only or doc_id in qrels.get(query_id, {})):
                by_hand[query_id][doc_id] = score
    assume(qrels.keys() & run.keys())
    asked = [*METRICS, *TREC_NAMES]
    found = evaluate(qrels, run, asked, own_documents=frozenset(own), judged_only=judged_only)
    assert found == evaluate(qrels, by_hand, asked)


def test_without_the_hits_that_nobody_judged_the_ranks_close_up():
    qrels = {"q": {"good": 2, "fair": 1, "bad": 0}, "r": {"good": 1}}
    run = {"q": {"x": 5.0, "bad": 4.0, "y": 3.0, "good": 2.0}, "r": {"x": 1.0}}
    found = evaluate(qrels, run, ["RR@10", "P@2", "AP@1000", "judged@10"], judged_only=True)
    assert found.per_query["RR@10"] == {"q": 1 / 2, "r": 0.0}
    assert found.per_query["P@2"] == {"q": 1 / 2, "r": 0.0}
    assert found.per_query["AP@1000"] == {"q": 1 / 2 / 2, "r": 0.0}
    assert found.per_query["judged@10"] == {"q": 1.0, "r": 0.0}
    assert (found.num_queries, found.num_missing) == (2, 1)
    assert evaluate(qrels, run, ["RR@10"]).per_query["RR@10"] == {"q": 1 / 4, "r": 0.0}


@pytest.mark.parametrize("judged_only", [True, False])
def test_bpref_is_the_same_whether_or_not_unjudged_hits_are_left_out(judged_only):
    qrels = {"q": {"a": 1, "b": 1, "n": 0, "m": 0}}
    run = {"q": {"x": 6.0, "n": 5.0, "a": 4.0, "y": 3.0, "b": 2.0}}
    found = evaluate(qrels, run, ["bpref"], judged_only=judged_only).means["bpref"]
    assert found == pytest.approx((1 - 1 / 2) * 2 / 2)
    assert of_ir_measures(qrels, run)["bpref"] == pytest.approx(found)


# --- runs without hits -------------------------------------------------------------------------


@pytest.mark.parametrize("run", [{"q1": {}, "q2": {}}, {"q1": {}}, {"q2": {}, "other": {"a": 1.0}}])
def test_a_run_that_finds_nothing_scores_nothing(run):
    qrels = {"q1": {"a": 1, "b": 0}, "q2": {"c": 2}}
    found = evaluate(qrels, run, [*METRICS, *TREC_NAMES])
    assert set(found.means.values()) == {0.0}
    assert found.per_query["nDCG@10"] == {"q1": 0.0, "q2": 0.0}
    assert (found.num_queries, found.num_missing) == (2, 2)


def test_a_query_whose_only_hit_is_itself_counts_as_one_without_hits():
    found = evaluate({"a": {"b": 1}, "b": {"a": 1}}, {"a": {"a": 1.0}}, own_documents={"a", "b"})
    assert set(found.means.values()) == {0.0}
    assert (found.num_queries, found.num_missing) == (2, 2)


# --- numbers and names -------------------------------------------------------------------------


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, np.float32("nan"), "1.0", None, [1.0]])
@pytest.mark.parametrize("judged", [True, False])
def test_a_score_that_is_no_finite_number_is_refused_by_query_and_document(judged, score):
    run = {"q": {"a": 1.0}, "r" if judged else "other": {"a": 1.0, "b": score}}
    message = f"query {'r' if judged else 'other'}, document b: score {score!r} is not a finite number"
    with pytest.raises(ValueError, match=escape(message)):
        evaluate({"q": {"a": 1}, "r": {"a": 1}}, run)


@pytest.mark.parametrize("grade", [0.5, math.nan, math.inf, -math.inf, "1", "", None, [1], np.float32(1.5)])
def test_a_grade_that_is_no_whole_number_is_refused_by_query_and_document(grade):
    message = f"query q, document b: grade {grade!r} is no whole number"
    with pytest.raises(ValueError, match=escape(message)):
        evaluate({"r": {"a": 1}, "q": {"a": 1, "b": grade}}, {"r": {"a": 1.0}})


@pytest.mark.parametrize("number", [int, float, np.int64, np.float32])
def test_a_grade_may_be_a_whole_number_of_any_type(number):
    qrels = {"q": {"a": 3, "b": 1, "c": 0}}
    typed = {"q": {doc_id: number(grade) for doc_id, grade in qrels["q"].items()}}
    run = {"q": {"b": 3.0, "c": 2.0, "a": 1.0}}
    assert evaluate(typed, run, [*METRICS, *TREC_NAMES]) == evaluate(qrels, run, [*METRICS, *TREC_NAMES])


@pytest.mark.parametrize(
    ("metric", "parts"),
    [
        ("nDCG@10", ("nDCG", 10)),
        ("MAP@10", ("AP", 10)),
        ("AP@1000", ("AP", 1000)),
        ("MAP", ("AP", 0)),
        ("AP", ("AP", 0)),
        ("nDCG", ("nDCG", 0)),
        ("RR", ("RR", 0)),
        ("bpref", ("bpref", 0)),
        ("judged@7", ("judged", 7)),
        ("P@010", ("P", 10)),
    ],
)
def test_a_metric_is_a_name_and_a_cutoff(metric, parts):
    assert split_metric(metric) == parts


@given(grades, hits.filter(len), st.integers(1, 15))
def test_map_is_another_name_of_ap_with_a_cutoff_and_without(grades, scores, k):
    found = evaluate({"q": grades}, {"q": scores}, [f"MAP@{k}", f"AP@{k}", "MAP", "AP"]).means
    assert list(found) == [f"MAP@{k}", f"AP@{k}", "MAP", "AP"]
    assert (found[f"MAP@{k}"], found["MAP"]) == (found[f"AP@{k}"], found["AP"])


@pytest.mark.parametrize("metric", ["nDCG", "RR", "AP"])
def test_a_metric_without_cutoff_reaches_as_deep_as_the_run(metric):
    run = {"q": {f"d{rank:04}": -float(rank) for rank in range(1, 2001)}, "r": {"a": 1.0}}
    qrels = {"q": {"d1999": 1}, "r": {"a": 1}}
    found = evaluate(qrels, run, [metric, f"{metric}@1998", f"{metric}@1999"]).per_query
    expected = 1 / math.log2(2000) if metric == "nDCG" else 1 / 1999
    assert found[metric] == pytest.approx({"q": expected, "r": 1.0})
    assert found[f"{metric}@1999"] == found[metric]
    assert found[f"{metric}@1998"] == {"q": 0.0, "r": 1.0}


def test_an_evaluation_of_a_thousand_queries_is_shown_in_a_line():
    run = drawn_run([f"q{n}" for n in range(1000)], ["a", "b"], 0)
    found = evaluate({query_id: {"a": 1} for query_id in run}, run)
    assert len(repr(found)) < 300
    assert "per_query" not in repr(found)
    assert "num_queries=1000" in repr(found)


# --- order -------------------------------------------------------------------------------------


def test_scores_decide_the_order_and_not_the_order_of_the_dict():
    qrels = {"q": {"good": 2, "fair": 1}}
    upward = {"q": {"bad": 1.0, "fair": 2.0, "good": 3.0}}
    downward = {"q": dict(reversed(upward["q"].items()))}
    assert evaluate(qrels, upward) == evaluate(qrels, downward)
    found = evaluate(qrels, upward).means
    assert found["nDCG@10"] == found["RR@10"] == 1.0  # every metric reads the same order
    reversed_scores = {"q": {"bad": 3.0, "fair": 2.0, "good": 1.0}}
    assert evaluate(qrels, reversed_scores).means["RR@10"] == 0.5
    assert evaluate(qrels, reversed_scores).means["P@10"] == found["P@10"]


def test_among_equal_scores_the_greater_doc_id_comes_first():
    run = {"q": {"a": 1.0, "b": 1.0}}
    assert evaluate({"q": {"b": 1}}, run, ["RR@10"]).means["RR@10"] == 1.0
    assert evaluate({"q": {"a": 1}}, run, ["RR@10"]).means["RR@10"] == 0.5


def test_evaluating_changes_neither_judgements_nor_run():
    qrels, run = {"q": {"a": -1, "b": 1}}, Run({"q": {"a": 1.0, "b": 2.0}}, "tag")
    evaluate(qrels, run)
    assert qrels == {"q": {"a": -1, "b": 1}}
    assert list(run["q"].items()) == [("a", 1.0), ("b", 2.0)]
    assert run.tag == "tag"


def test_the_metrics_asked_for_come_in_their_order():
    asked = ["judged@5", "R@7", "nDCG@3"]
    assert list(evaluate({"q": {"a": 1}}, {"q": {"a": 1.0}}, asked).means) == asked
    assert tuple(evaluate({"q": {"a": 1}}, {"q": {"a": 1.0}}).means) == METRICS


# --- errors ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "metric",
    [
        "P",
        "R",
        "judged",
        "bpref@10",
        "nDCG@",
        "nDCG@0",
        "nDCG@１０",
        "nDCG@ten",
        "ndcg@10",
        "MRR@10",
        "@10",
        "R@-1",
        "R@1.5",
        "P@10@5",
    ],
)
def test_a_metric_we_do_not_have_is_refused_by_name(metric):
    with pytest.raises(ValueError, match=escape(f"unknown metric {metric!r}; known are nDCG@k, RR@k")):
        evaluate({"q": {"a": 1}}, {"q": {"a": 1.0}}, ["RR@10", metric])


def test_no_judgements_are_refused():
    with pytest.raises(ValueError, match="no judgements"):
        evaluate({}, {"q": {"a": 1.0}})


@pytest.mark.parametrize("run", [{}, {"q2": {}}, {"1": {"a": 1.0}}])
def test_a_run_over_other_queries_is_refused(run):
    with pytest.raises(ValueError, match=f"the run's {len(run)} queries and the 1 judged ones"):
        evaluate({"q1": {"a": 1}}, run)


def test_a_query_judged_by_nothing_counts_as_zero_even_alone():
    found = evaluate({"q": {}}, {"q": {"a": 1.0}}, ["nDCG@10", "judged@10"])
    assert found.means == {"nDCG@10": 0.0, "judged@10": 0.0}


TEXTS = ["what is the cause of asthma in young children", "how many doses protect against measles today"]
REFERENCES = [
    ["what is the cause of asthma in children", "why do children get asthma"],
    ["how many doses of the vaccine protect against measles"],
]


def grams(text, n):
    words = text.split()
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def plain_bleu(texts, references):
    """Papineni et al. 2002, equation 3: clipped counts over the corpus, brevity by the nearest length."""
    logs, length, wanted = [], 0, 0
    for n in range(1, 5):
        right = total = 0
        for text, refs in zip(texts, references, strict=True):
            most = Counter()
            for ref in refs:
                most |= grams(ref, n)
            right += (grams(text, n) & most).total()
            total += grams(text, n).total()
        logs.append(math.log(right / total))
    for text, refs in zip(texts, references, strict=True):
        length += len(text.split())
        wanted += min((abs(len(r.split()) - len(text.split())), len(r.split())) for r in refs)[1]
    return 100 * min(1, math.exp(1 - wanted / length)) * math.exp(sum(logs) / 4)


def plain_rouge(text, refs, n):
    best = 0.0
    for ref in refs:
        both = (grams(text, n) & grams(ref, n)).total()
        if both:
            precision, recall = both / grams(text, n).total(), both / grams(ref, n).total()
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


def plain_rouge_l(text, refs):
    best = 0.0
    for ref in refs:
        a, b = text.split(), ref.split()
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        best = max(best, 2 * table[-1][-1] / (len(a) + len(b)))
    return best


def test_scores_are_those_of_plain_counts():
    scores = score_texts(TEXTS, REFERENCES)
    assert tuple(scores) == TEXT_METRICS
    assert scores["BLEU"] == pytest.approx(plain_bleu(TEXTS, REFERENCES))
    for n in (1, 2):
        mean = sum(plain_rouge(t, r, n) for t, r in zip(TEXTS, REFERENCES, strict=True)) / 2
        assert scores[f"ROUGE-{n}"] == pytest.approx(100 * mean)
    mean = sum(plain_rouge_l(t, r) for t, r in zip(TEXTS, REFERENCES, strict=True)) / 2
    assert scores["ROUGE-L"] == pytest.approx(100 * mean)


def test_bleu_is_of_the_corpus_and_no_mean_over_texts():
    one_by_one = [score_texts([t], [r])["BLEU"] for t, r in zip(TEXTS, REFERENCES, strict=True)]
    assert abs(score_texts(TEXTS, REFERENCES)["BLEU"] - sum(one_by_one) / 2) > 1


def test_the_same_text_scores_100_and_another_0():
    same = score_texts([TEXTS[0]], [["other words entirely", TEXTS[0]]])
    assert all(value == pytest.approx(100) for value in same.values())
    assert score_texts(["a b c d e"], [["v w x y z"]])["ROUGE-L"] == 0


@pytest.mark.parametrize(
    ("texts", "references", "message"),
    [
        (["a"], [], "got 1 texts and references for 0"),
        ([], [], "got 0 texts"),
        (["a", "b"], [["a"], []], "text 1 needs a list of references"),
        (["a", "b"], [["a"], "b"], "text 1 needs a list of references"),
    ],
)
def test_what_cannot_be_scored_is_refused(texts, references, message):
    with pytest.raises(ValueError, match=message):
        score_texts(texts, references)


def test_ids_that_are_whole_numbers_meet_judgements_in_text():
    found = evaluate({"1": {"10": 1}}, {1: {10: 1.0, 11: 2.0}}, ["RR@10"])
    assert found.per_query == {"RR@10": {"1": 0.5}}
    assert evaluate({1: {10: 1}}, {"1": {"10": 1.0}}, ["RR@10"]).means == {"RR@10": 1.0}


def test_a_home_folder_that_cannot_be_written_to_stops_no_evaluation(tmp_path):
    (tmp_path / "file").touch()  # below a file no folder can be made, whoever asks
    program = "from dpr import evaluate; print(evaluate({'q': {'d': 1}}, {'q': {'d': 1.0}}, ['RR@10']).means)"
    env = {name: value for name, value in os.environ.items() if name != "IR_DATASETS_HOME"}
    env |= {"HOME": str(tmp_path / "file" / "home")}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "{'RR@10': 1.0}", done.stderr
