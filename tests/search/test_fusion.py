"""Fusion by ranks and by scores: a plain loop, by hand and by ranx."""

import math
from re import escape

import numpy as np
import pytest
import ranx
from hypothesis import given
from hypothesis import strategies as st

from dpr.data.trec import ordered_hits
from dpr.search.fusion import fuse, fuse_scores, merge_parts
from dpr.search.index import build_index

fused_hits = st.dictionaries(
    st.sampled_from("abcdefg"), st.sampled_from([2.0, 1.0, 0.5, 0.0, -1e6]), min_size=0, max_size=7
)
fused_runs = st.lists(
    st.dictionaries(st.sampled_from(["q1", "q2", "q3"]), fused_hits), min_size=2, max_size=4
)


@given(runs=fused_runs, k=st.sampled_from([1, 60]))
def test_fusion_is_a_plain_loop_over_ranks(runs, k):
    expected = {}
    for run in runs:
        for query_id, scores in run.items():
            docs = sorted(sorted(scores, reverse=True), key=lambda d: -scores[d])  # ties: greater id first
            for rank, doc_id in enumerate(docs, start=1):
                merged = expected.setdefault(query_id, {})
                merged[doc_id] = merged.get(doc_id, 0) + 1 / (k + rank)
    found = fuse(runs, "merged", k)
    assert found.tag == "merged"
    assert set(found) == set(expected)
    for query_id, scores in expected.items():
        assert found[query_id] == pytest.approx(scores, abs=1e-12)
        assert list(found[query_id].items()) == ordered_hits(found[query_id])


def test_fusion_is_that_of_ranx():
    draw = np.random.default_rng(0)
    runs = [
        {f"q{i}": {f"d{d}": float(n) for n, d in enumerate(draw.permutation(40)[:20])} for i in range(5)}
        for _ in range(3)
    ]
    theirs = ranx.fuse([ranx.Run(run) for run in runs], method="rrf", norm=None, params={"k": 60}).to_dict()
    found = fuse(runs, "t")
    assert set(found) == set(theirs)
    for query_id, scores in theirs.items():
        assert found[query_id] == pytest.approx(scores, abs=1e-12)


def test_fusion_by_hand():
    first = {"q": {"a": 9.0, "b": 8.0}, "only-first": {"x": 1.0, "y": 0.5}}
    second = {"q": {"b": 0.3, "c": 0.2, "a": 0.1}}
    found = fuse([first, second], "rrf")
    expected = {"b": 1 / 62 + 1 / 61, "a": 1 / 61 + 1 / 63, "c": 1 / 62}
    assert list(found["q"]) == ["b", "a", "c"]
    assert found["q"] == pytest.approx(expected)
    assert found["only-first"] == pytest.approx({"x": 1 / 61, "y": 1 / 62})


def test_only_ranks_count_in_fusion_and_runs_stay_as_they_were():
    first, second = {"q": {"a": 2.0, "b": 1.0}}, {"q": {"b": 5.0, "c": 4.0}}
    stretched = {"q": {"a": 1e6, "b": -1e6}}
    assert fuse([first, second], "t") == fuse([stretched, second], "t")
    assert first == {"q": {"a": 2.0, "b": 1.0}}
    assert list(first["q"]) == ["a", "b"]


def test_documents_tied_after_fusion_come_in_trec_evals_order():
    found = fuse([{"q": {"a": 2.0, "b": 1.0}}, {"q": {"b": 2.0, "a": 1.0}}], "t")
    assert list(found["q"]) == ["b", "a"]


@pytest.mark.parametrize("runs", [[], [{"q": {"a": 1.0}}]])
def test_fusion_needs_two_runs(runs):
    with pytest.raises(ValueError, match=f"at least two runs, got {len(runs)}"):
        fuse(runs, "t")


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, "1.0", None])
@pytest.mark.parametrize("position", [0, 1, 2])
def test_a_score_that_is_no_finite_number_is_not_fused(position, score):
    runs = [{"q": {"a": 1.0}}, {"q": {"b": 1.0}}, {"r": {"a": 1.0}}]
    runs[position] = {**runs[position], "s": {"c": 1.0, "d": score}}
    message = f"query s, document d: score {score!r} is not a finite number"
    with pytest.raises(ValueError, match=escape(message)):
        fuse(runs, "t")


@pytest.mark.parametrize("k", [0, -1])
def test_a_constant_that_is_not_above_zero_is_refused(k):
    with pytest.raises(ValueError, match=f"k must be above 0, got {k}"):
        fuse([{"q": {"a": 1.0}}, {"q": {"b": 1.0}}], "t", k)


def test_runs_by_name_are_no_list_of_runs():
    runs = {"bm25": {"q": {"a": 1.0}}, "dense": {"q": {"b": 1.0}}}
    with pytest.raises(ValueError, match=r"runs must be Sequence.*, got dict"):
        fuse(runs, "t")


def test_ids_that_are_whole_numbers_are_fused_with_those_in_text():
    found = fuse([{1: {7: 2.0, 8: 1.0}}, {"1": {"8": 2.0}}], "t")
    assert found == {"1": {"8": pytest.approx(1 / 62 + 1 / 61), "7": pytest.approx(1 / 61)}}
    assert list(found["1"]) == ["8", "7"]


def test_fusion_by_scores_is_that_of_ranx():
    draw = np.random.default_rng(1)
    runs = [
        {f"q{i}": {f"d{d}": float(draw.normal()) for d in draw.permutation(40)[:20]} for i in range(5)}
        for _ in range(3)
    ]
    how = {"method": "wsum", "norm": "min-max", "params": {"weights": [1 / 3] * 3}}
    theirs = ranx.fuse([ranx.Run(run) for run in runs], **how).to_dict()
    found = fuse_scores(runs, "t")
    assert set(found) == set(theirs)
    for query_id, scores in theirs.items():
        assert found[query_id] == pytest.approx(scores, abs=1e-6)
        assert list(found[query_id].items()) == ordered_hits(found[query_id])


def test_fusion_by_scores_by_hand():
    first = {"q": {"a": 9.0, "b": 8.0, "c": 5.0}, "one": {"x": -3.0}}
    second = {"q": {"b": 0.3, "d": 0.1}}
    found = fuse_scores([first, second], "t")
    assert found["q"] == pytest.approx({"b": (0.75 + 1) / 2, "a": 1 / 2, "c": 0, "d": 0})
    assert list(found["q"]) == ["b", "a", "d", "c"]
    assert found["one"] == {"x": 1 / 2}
    with pytest.raises(ValueError, match="at least two runs, got 1"):
        fuse_scores([first], "t")


# --- parts of a collection ---------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 7, 40, 1000])
def test_merged_parts_are_the_run_of_a_search_of_all(depth):
    rng = np.random.default_rng(0)
    passages, queries = (np.float32(rng.integers(-64, 64, size=(n, 8)) / 16) for n in (90, 6))
    passages[40] = passages[3]  # a tie across parts; sums of these numbers are exact
    doc_ids, query_ids = [f"d{i}" for i in range(90)], [f"q{i}" for i in range(6)]

    def searched(rows):
        index = build_index("exact", passages[rows], [doc_ids[i] for i in rows], "dot")
        return index.search_run(query_ids, queries, depth, "part")

    whole = searched(np.arange(90))
    merged = merge_parts([searched(rows) for rows in np.split(np.arange(90), [20, 41])], "merged", depth)
    assert merged.tag == "merged"
    assert list(merged) == query_ids
    for query_id, hits in whole.items():
        assert list(merged[query_id]) == list(hits)
        assert merged[query_id] == pytest.approx(hits, rel=1e-5)


def test_a_query_has_the_hits_of_the_parts_that_know_it():
    assert merge_parts([{"q": {"a": 1.0}}, {"p": {"b": 2}}], "t", 5) == {"q": {"a": 1.0}, "p": {"b": 2.0}}


@pytest.mark.parametrize(
    ("runs", "depth", "message"),
    [
        ([], 5, "needs a list of runs and a depth of at least 1, got 0 and 5"),
        ({"q": {"a": 1.0}}, 5, "runs must be Sequence"),
        ([{"q": {"a": 1.0}}], 0, "a depth of at least 1, got 1 and 0"),
        ([{"q": {"a": 1.0}}, {"q": {"b": 1.0, "a": 3.0}}], 5, "query q: document a is in two runs"),
    ],
)
def test_what_are_no_parts_is_refused(runs, depth, message):
    with pytest.raises(ValueError, match=escape(message)):
        merge_parts(runs, "t", depth)
