"""Looking into runs: differences query by query and lengths rank by rank, on a collection made by hand."""

import math

import numpy as np
import pytest

from dpr.data.collection import Collection, Passage
from dpr.evaluation.analysis import QueryDifference, length_by_rank, query_differences


@pytest.fixture
def worded_collection() -> Collection:
    """Documents of 1 to 5 words and one of 15; three queries."""
    return Collection(
        name="worded",
        passages=[
            Passage("w1", "", "one"),
            Passage("w2", "Title", "two"),
            Passage("w3", "", "one two three"),
            Passage("w4", "A title", "one two"),
            Passage("w5", "", "one two three four five"),
            Passage("w15", "", " ".join(f"word{n}" for n in range(1, 16))),
        ],
        all_queries={"q1": "first", "q2": "second", "q3": "third"},
        all_qrels={
            "test": {
                "q1": {"w1": 1, "w4": 2, "w5": 0},
                "q2": {"w15": 1, "w3": -1},
                "q3": {"gone": 3, "w2": 1},
            }
        },
    )


# --- query_differences -------------------------------------------------------------------------


def test_every_judged_query_comes_with_what_both_runs_make_of_it(worded_collection):
    first = {"q1": {"w4": 2.0, "w1": 1.0}, "q2": {"w3": 2.0, "w15": 1.0}, "q9": {"w1": 1.0}}
    second = {"q1": {"w5": 3.0, "w2": 2.0, "w4": 1.0}, "q2": {"w15": 1.0}}
    rows = query_differences(worded_collection, first, second, "RR@10")
    twelve = "word1 word2 word3 word4 word5 word6 word7 word8 word9 word10 word11 word12 …"
    assert rows == [
        QueryDifference("q1", "first", 1 - 1 / 3, 1.0, 1 / 3, "A title", 1, 3),
        QueryDifference("q3", "third", 0.0, 0.0, 0.0, "–", None, None),
        QueryDifference("q2", "second", -0.5, 0.5, 1.0, twelve, 2, 1),
    ]


def test_queries_with_equal_differences_come_by_id(worded_collection):
    run = {query_id: {"w1": 1.0} for query_id in ("q3", "q1", "q2")}
    rows = query_differences(worded_collection, run, run)
    assert [(row.query_id, row.difference) for row in rows] == [("q1", 0.0), ("q2", 0.0), ("q3", 0.0)]


def test_swapping_the_runs_turns_every_difference_around(worded_collection):
    first = {"q1": {"w4": 2.0}, "q2": {"w3": 2.0, "w15": 1.0}}
    second = {"q1": {"w1": 1.0}, "q2": {"w15": 1.0}}
    there = {row.query_id: row for row in query_differences(worded_collection, first, second)}
    for row in query_differences(worded_collection, second, first):
        assert row.difference == -there[row.query_id].difference
        assert (row.first_rank, row.second_rank) == (
            there[row.query_id].second_rank,
            there[row.query_id].first_rank,
        )


def test_a_rank_is_found_by_score_with_ties_as_trec_eval_breaks_them(worded_collection):
    unordered = {"q2": {"w1": 1.0, "w15": 1.0, "w5": 1.0, "w2": 3.0}}  # w2, then w5, w15, w1
    rows = query_differences(worded_collection, unordered, {"q2": {"w1": 1.0}}, "RR@10")
    [row] = [row for row in rows if row.query_id == "q2"]
    assert (row.first_rank, row.first) == (3, 1 / 3)
    assert (row.second_rank, row.second) == (None, 0.0)


def test_differences_are_refused_where_evaluate_refuses(worded_collection):
    run = {"q1": {"w1": 1.0}}
    with pytest.raises(ValueError, match="unknown metric 'MRR@10'"):
        query_differences(worded_collection, run, run, "MRR@10")
    with pytest.raises(ValueError, match="none in common"):
        query_differences(worded_collection, run, {"q9": {"w1": 1.0}})


# --- length_by_rank ----------------------------------------------------------------------------


def test_lengths_are_medians_over_queries_at_each_rank(worded_collection):
    run = {
        "q1": {"w1": 1.0, "w5": 3.0, "w3": 2.0},  # 5, 3, 1 words
        "q2": {"w15": 2.0, "w2": 1.0},  # 15, 2 words
        "q3": {"w4": 1.0},  # 4 words
    }
    by_rank, of_all, of_relevant = length_by_rank(worded_collection, run, depth=5)
    np.testing.assert_array_equal(by_rank, [5, 2.5, 1, math.nan, math.nan])
    assert of_all == 3.5  # of 1, 2, 3, 4, 5 and 15
    assert of_relevant == 3.0  # w1, w2, w4 and w15, title included: 1, 2, 4, 15


def test_lengths_are_looked_at_down_to_the_depth_only(worded_collection):
    run = {"q1": {"w1": 3.0, "w2": 2.0, "w3": 1.0}}
    by_rank, _, _ = length_by_rank(worded_collection, run, depth=2)
    np.testing.assert_array_equal(by_rank, [1, 2])
    assert len(length_by_rank(worded_collection, run)[0]) == 20


def test_a_query_without_hits_does_not_move_the_lengths(worded_collection):
    run = {"q1": {"w1": 3.0, "w5": 2.0}}
    with_empty = {"q2": {}, **run}
    np.testing.assert_array_equal(
        length_by_rank(worded_collection, run)[0], length_by_rank(worded_collection, with_empty)[0]
    )


@pytest.mark.parametrize("run", [{}, {"q1": {}, "q2": {}}])
def test_a_run_without_hits_has_no_lengths(worded_collection, run):
    with pytest.raises(ValueError, match="the run has no hits"):
        length_by_rank(worded_collection, run)


def test_a_query_that_nothing_answers_is_listed_too():
    passages = [Passage("a", "A title", "text")]
    collection = Collection("none", passages, {"q": "one", "r": "two"}, {"test": {"q": {"a": 1}, "r": {}}})
    rows = query_differences(collection, {"q": {"a": 1.0}, "r": {"a": 1.0}}, {"q": {"a": 1.0}})
    assert [(row.query_id, row.relevant) for row in rows] == [("q", "A title"), ("r", "–")]


def test_a_hit_outside_the_collection_is_refused(worded_collection):
    with pytest.raises(ValueError, match=r"not in .*: a run over other documents"):
        length_by_rank(worded_collection, {"q1": {"zz": 1.0}})


def test_documents_without_spaces_are_as_long_as_their_characters():
    passages = [
        Passage("ja", "蜂", "蜂は花の蜜を吸う。"),
        Passage("th", "", "ผึ้ง"),
        Passage("en", "", "bees eat nectar"),
        Passage("both", "", "iPS細胞 and bees"),
    ]
    collection = Collection("made", passages, {"q": "bees"}, {"test": {"q": {"ja": 1, "en": 1}}})
    run = {"q": {"ja": 4.0, "th": 3.0, "en": 2.0, "both": 1.0}}
    by_rank, of_all, of_relevant = length_by_rank(collection, run, depth=4)
    np.testing.assert_array_equal(by_rank, [10, 4, 3, 5])
    assert (of_all, of_relevant) == (4.5, 6.5)


def test_a_relevant_document_without_title_is_shown_by_its_first_words_in_any_script():
    text = "蜂は花の蜜を吸う。冬は巣の中にいる。"
    collection = Collection("made", [Passage("d", "", text)], {"q": "蜂"}, {"test": {"q": {"d": 1}}})
    run = {"q": {"d": 1.0}}
    assert query_differences(collection, run, run)[0].relevant == f"{text[:12]} …"
