"""Evaluation: trec_eval's values query by query, averaged over every judged query."""

import csv
import math
import struct
from collections import Counter
from re import escape

import ir_measures
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr.data.trec import Run, read_qrels, read_run
from dpr.evaluation.metrics import METRICS, evaluate, score_texts
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
    theirs = pytrec_eval.RelevanceEvaluator(qrels, TREC_MEASURES).evaluate(answered)
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
