"""The audit of written queries, held against plain loops over words and judgements."""

from dataclasses import replace

import numpy as np
import pytest

from dpr.data.collection import Passage
from dpr.generation.audit import (
    NEAR,
    audit_queries,
    found_by_bm25,
    found_by_encoder,
    recitation,
)
from dpr.generation.expansion import copied_terms, words
from dpr.models.bi_encoder import BiEncoder
from dpr.search.bm25 import BM25
from dpr.search.index import build_index

QUERIES = {"d1": ["do masks work", "what is zinc"], "d3": ["soap", "viruses", "masks"]}


def test_copied_terms_bring_no_new_word_and_are_all_related(tiny_collection):
    audit = audit_queries(tiny_collection, copied_terms(tiny_collection, 3, 2))
    assert (audit.new_word_share, audit.duplicate_share) == (0, 0)


def test_the_audit_counts_repeats_and_new_words(tiny_collection):
    audit = audit_queries(tiny_collection, {"d1": ["do masks work", "Do masks  work", "", "masks"], "d2": []})
    assert audit.num_queries == 4
    assert audit.duplicate_share == 0.5
    assert audit.new_word_share == pytest.approx(2 / 3)  # do, work of do, masks, work
    assert audit.words_per_query == 2
    empty = audit_queries(tiny_collection, {"d1": ["", "?"]})
    assert (empty.duplicate_share, empty.new_word_share, empty.words_per_query) == (1, 0, 0)
    assert empty.unrelated_share == 0
    with pytest.raises(ValueError, match="no query for any passage of tiny"):
        audit_queries(tiny_collection, {"d1": []})


@pytest.mark.parametrize(
    ("query", "related"),
    [
        ("do bats sleep", True),
        ("which BAT?", True),  # by its stem
        ("what do they do in the night and what should I do", False),  # only words that ask, and stop words
        ("are cats asleep", False),
        ("which of them, and why", False),
    ],
)
def test_a_query_is_related_to_its_passage_by_a_term_that_says_something(tiny_collection, query, related):
    passages = [Passage("d1", "", "What do bats do? They sleep, and I should know which of them, and why.")]
    collection = replace(tiny_collection, passages=passages, all_qrels={"test": {"q1": {"d1": 1}}})
    assert audit_queries(collection, {"d1": [query]}).unrelated_share == (0 if related else 1)


def test_queries_without_spaces_are_audited_by_character(tiny_collection):
    passages = [Passage("d1", "", "川は長い"), Passage("d2", "", "川は深い")]
    collection = replace(tiny_collection, passages=passages, all_qrels={"test": {"q1": {"d1": 1}}})
    found = audit_queries(collection, {"d1": ["川は長いか", "川は長いか", "。"]})
    assert (found.num_queries, found.words_per_query) == (3, 5)
    assert found.duplicate_share == pytest.approx(2 / 3)
    assert found.new_word_share == pytest.approx(1 / 5)  # か


def recited_by_hand(written, known):
    """Which written queries a set holds word for word, and which nearly, by two plain loops."""
    exact, near = set(), set()
    for at, query in enumerate(written):
        for other in known:
            one, two = words(query), words(other)
            if one and one == two:
                exact.add(at)
            elif one and two and len({*one} & {*two}) / len({*one} | {*two}) >= NEAR:
                near.add(at)
    return exact, near - exact


def test_recitation_is_what_two_loops_over_all_pairs_find():
    draw = np.random.default_rng(0)
    pool = [
        "masks",
        "help",
        "against",
        "zinc",
        "colds",
        "bats",
        "sleep",
        "long",
        "why",
        "do",
        "soap",
        "kill",
        "the",
        "virus",
    ]
    make = [" ".join(draw.choice(pool, draw.integers(1, 8))) for _ in range(600)]
    written, sets = make[:200], {"one": make[200:420], "two": make[400:], "none": []}
    found = recitation(written, sets)
    recited = set()
    for name, known in sets.items():
        exact, near = recited_by_hand(written, known)
        assert (found.exact[name], found.near[name]) == (len(exact), len(near)), name
        recited |= exact | near
    assert 0 < len(recited) < 200
    assert found.share == len(recited) / 200
    assert {at for at, flag in enumerate(found.flags) if flag} == recited
    assert found.num_queries == 200
    for query, known, name in found.samples:
        assert query in written
        assert known in sets[name]


@pytest.mark.parametrize(
    ("written", "known", "exact", "near"),
    [
        ("Do masks WORK?", "do masks work", 1, 0),
        ("do masks really work well", "do masks work really", 0, 1),
        ("work masks do", "do masks work", 0, 1),  # in another order
        ("do masks work", "do masks fail", 0, 0),
        ("?", "!", 0, 0),
    ],
)
def test_case_and_punctuation_do_not_hide_a_recitation(written, known, exact, near):
    found = recitation([written], {"set": [known]})
    assert (found.exact["set"], found.near["set"]) == (exact, near)
    assert found.share == (exact or near)


def test_nothing_written_cannot_be_compared():
    with pytest.raises(ValueError, match="no written query"):
        recitation([], {"set": ["a"]})


def test_a_query_leads_back_by_bm25_if_its_passage_is_among_the_hits(tiny_collection, tmp_path):
    bm25 = BM25.build(tiny_collection, tmp_path / "index")
    asked = {**QUERIES, "d2": []}
    for depth in (1, 3):
        found = found_by_bm25(bm25, asked, depth)
        assert found == {d: [d in bm25.search({"q": q}, depth)["q"] for q in qs] for d, qs in asked.items()}
    assert {ok for flags in found.values() for ok in flags} == {True, False}


def test_a_query_leads_back_by_the_encoder_and_fits_by_its_cosine(tiny_collection, plain_folder):
    encoder = BiEncoder.from_pretrained(
        plain_folder, device="cpu", pooling="mean", query_max_length=8, passage_max_length=16
    )
    passage_emb = encoder.encode_passages([p.contents for p in tiny_collection.passages])
    back, scores = found_by_encoder(encoder, tiny_collection, passage_emb, {**QUERIES, "d2": []}, depth=2)
    assert list(back) == list(scores) == ["d1", "d3", "d2"]
    index = build_index("exact", passage_emb, tiny_collection.doc_ids, "cosine")
    for doc_id, found in QUERIES.items():
        passage = passage_emb[tiny_collection.doc_ids.index(doc_id)]
        for query, score, ok in zip(found, scores[doc_id], back[doc_id], strict=True):
            [vector] = encoder.encode_queries([query])
            cosine = vector @ passage / np.linalg.norm(vector) / np.linalg.norm(passage)
            assert score == pytest.approx(float(cosine), abs=1e-5)
            _, [hits] = index.search(vector[None], 2)
            assert ok == (doc_id in [tiny_collection.doc_ids[i] for i in hits])
