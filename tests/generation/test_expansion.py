"""Expansion by hand on a collection small enough to count."""

from dataclasses import replace

import pytest

from dpr.data.collection import Passage
from dpr.generation.expansion import (
    best_share,
    copied_terms,
    expand,
    passing,
    without_duplicates,
    words,
)
from dpr.search.bm25 import BM25

QUERIES = {"d1": ["do masks work", "what filters air"], "d3": ["why wash hands", "soap", "viruses"]}


def test_an_expanded_passage_has_its_text_first_and_then_its_queries(tiny_collection):
    expanded = expand(tiny_collection, QUERIES, num_queries=2)
    assert expanded.by_id["d1"] == Passage(
        "d1", "Masks", "Masks filter droplets. do masks work what filters air"
    )
    assert expanded.by_id["d3"].contents == "Handwashing removes viruses. why wash hands soap"
    assert expanded.by_id["d2"] == tiny_collection.by_id["d2"]
    assert expanded.doc_ids == tiny_collection.doc_ids
    assert expanded.queries == tiny_collection.queries
    assert expanded.all_qrels == tiny_collection.all_qrels
    assert expanded.fingerprint != tiny_collection.fingerprint
    assert tiny_collection.by_id["d1"].text == "Masks filter droplets."


def test_without_the_original_a_passage_is_its_queries_alone(tiny_collection):
    expanded = expand(tiny_collection, QUERIES, original=False)
    assert expanded.by_id["d3"] == Passage("d3", "", "why wash hands soap viruses")
    assert expanded.by_id["d2"].contents == ""


def test_an_expanded_collection_says_what_it_was_made_of(tiny_collection):
    first = expand(tiny_collection, QUERIES, 1).expansion
    assert first["passages"] == tiny_collection.fingerprint
    assert (first["num_queries"], first["original"]) == (1, True)
    others = [
        expand(tiny_collection, QUERIES, 2),
        expand(tiny_collection, {"d1": ["do masks"]}, 1),
        expand(tiny_collection, {"d1": ["do masks work"], "d3": ["why"]}, 1),
    ]
    assert len({first["queries"], *(other.expansion["queries"] for other in others)}) == 4
    assert expand(tiny_collection, {**QUERIES, "d1": ["do masks work"]}, 1).expansion == first
    assert others[0].with_split("train").expansion == others[0].expansion
    assert others[0].sample(3, 1).expansion == others[0].expansion
    assert tiny_collection.expansion is None


def test_bm25_finds_a_document_by_a_word_that_only_its_query_has(tiny_collection, tmp_path):
    plain = BM25.build(tiny_collection, tmp_path / "plain").search({"q": "soap"}, 5)
    expanded = expand(tiny_collection, QUERIES)
    found = BM25.build(expanded, tmp_path / "expanded").search({"q": "soap"}, 5)
    assert not plain["q"]
    assert list(found["q"]) == ["d3"]


@pytest.mark.parametrize(
    ("queries", "num_queries", "message"),
    [
        ({"d9": ["a"], "d8": []}, None, "tiny lacks 2 documents with queries, first 'd9'"),
        (QUERIES, 0, "num_queries must be None or at least 1, got 0"),
    ],
)
def test_queries_that_cannot_be_added_are_refused(tiny_collection, queries, num_queries, message):
    with pytest.raises(ValueError, match=message):
        expand(tiny_collection, queries, num_queries)


def test_duplicates_go_and_the_order_stays():
    found = without_duplicates({"d1": ["a b", "c", "A  B", " ", "d?", "c", "!"], "d2": []})
    assert found == {"d1": ["a b", "c", "d?"], "d2": []}
    found = without_duplicates({"d1": ["A, b!", "c", "a"]}, but=["a b", "C?"])
    assert found == {"d1": ["a"]}


def test_words_are_letters_and_digits_in_lower_case():
    assert words("Covid-19: SARS_CoV2’s — naïve!") == ["covid", "19", "sars", "cov2", "s", "naïve"]


def test_the_best_share_is_of_all_queries_of_all_passages():
    scores = {"d1": [0.9, 0.1], "d3": [0.2, 0.8, 0.7]}
    kept, bound = best_share(QUERIES, scores, 0.6)
    assert kept == {"d1": ["do masks work"], "d3": ["soap", "viruses"]}
    assert bound == 0.7
    assert best_share(QUERIES, scores, 1.0) == (QUERIES, 0.1)
    kept, bound = best_share(QUERIES, scores, 0.01)
    assert (kept, bound) == ({"d1": ["do masks work"], "d3": []}, 0.9)


@pytest.mark.parametrize(
    ("queries", "scores", "share", "message"),
    [
        (QUERIES, {"d1": [1, 2], "d3": [1, 2, 3]}, 0, "share must be above 0 and at most 1, got 0"),
        (QUERIES, {"d1": [1, 2], "d3": [1, 2, 3]}, 1.1, "share must be above 0 and at most 1"),
        (QUERIES, {"d1": [1, 2]}, 0.5, "d3 has 3 queries and 0 scores"),
        ({"d1": []}, {}, 0.5, "no query to choose from"),
    ],
)
def test_what_cannot_be_chosen_from_is_refused(queries, scores, share, message):
    with pytest.raises(ValueError, match=message):
        best_share(queries, scores, share)


def test_the_queries_that_pass_stay_in_order():
    passes = {"d1": [False, True], "d3": [True, False, True]}
    kept = passing(QUERIES, passes)
    assert kept == {"d1": QUERIES["d1"][1:], "d3": [QUERIES["d3"][0], QUERIES["d3"][2]]}
    assert passing({"d1": ["a"]}, {"d1": [False]}) == {"d1": []}


def test_copied_terms_are_a_passages_own_rarest_words(tiny_collection):
    passages = [
        Passage("d1", "zinc", "zinc helps the cold"),
        Passage("d2", "", "the cold helps"),
        Passage("d3", "", "the sun the sun"),
        Passage("d4", "", ""),
    ]
    collection = replace(tiny_collection, passages=passages, all_qrels={"test": {"q1": {"d1": 1}}})
    assert copied_terms(collection, num_queries=2, terms_per_query=2) == {
        "d1": ["zinc helps", "cold the"],
        "d2": ["cold helps", "the"],
        "d3": ["sun the"],
        "d4": [],
    }
    assert copied_terms(collection, 1, 1)["d1"] == ["zinc"]
    with pytest.raises(ValueError, match="at least 1, got 0 and 2"):
        copied_terms(collection, 0, 2)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("信濃川は長い。", "信 濃 川 は 長 い"),
        ("東京Tower、333m", "東 京 tower 333m"),
        ("蜜蜂，采蜜！", "蜜 蜂 采 蜜"),
        ("Was ist Zink?", "was ist zink"),
        ("꿀벌은 꿀을", "꿀벌은 꿀을"),
        ("ผึ้ง", "ผ ึ ้ ง"),
        ("。、！？…", ""),
    ],
)
def test_words_of_scripts_without_spaces_are_single_characters(text, expected):
    assert words(text) == expected.split()


def test_terms_without_spaces_are_copied_by_character(tiny_collection):
    passages = [Passage("d1", "", "川は長い"), Passage("d2", "", "川は深い")]
    collection = replace(tiny_collection, passages=passages, all_qrels={"test": {"q1": {"d1": 1}}})
    assert copied_terms(collection, 1, 1) == {"d1": ["長"], "d2": ["深"]}


def test_a_collection_expanded_twice_keeps_both_lots_of_queries(tiny_collection):
    first = expand(tiny_collection, {"d1": ["do masks work"]})
    second = expand(first, {"d1": ["what filters air"]})
    assert second.by_id["d1"].text == "Masks filter droplets. do masks work what filters air"
    assert second.expansion["passages"] == first.fingerprint
