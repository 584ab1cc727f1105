"""Judgements from answers: the pairs that a plain loop over tokens finds, and nothing that is no answer."""

import json
import math
import unicodedata
from dataclasses import replace
from re import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpr.data.answers import (
    Agreement,
    AnswerQrels,
    agreement,
    answer_tokens,
    qrels_from_answers,
    read_answers,
)
from dpr.data.beir import read_beir
from dpr.data.collection import Collection, Passage
from dpr.evaluation.metrics import evaluate

HELD = [  # an answer, and a text that holds it
    ("Paris", "He lived in paris."),
    ("café", "The CAFE\u0301 was shut."),
    ("1,000", "It cost $1,000."),
    ("Levi's Stadium", "at Levi's\n\tStadium in"),
    ("U.S.", "the u . s . army"),
    ("%", "10% of them"),
    ("golden anniversary", 'its "golden anniversary"'),
    ("Пчёлы", "ПЧЕ\u0308ЛЫ ищут"),
    ("ΟΔΟΣ", "η οδος εδώ"),
    ("ผึ้ง", "ผึ้ง"),
    ("½", "a ½ of it"),
    ("case", "snake_case"),
    ("soft hyphen", "soft\u00adhyphen"),
    ("a b a c", "a b a b a c"),
]
NOT_HELD = [  # an answer, and a text that only seems to hold it
    ("cat", "They concatenate."),
    ("cat", "They like cats."),
    ("cafe", "The café was shut."),
    ("café", "The cafe was shut."),
    ("1000", "It cost 1,000."),
    ("10", "It cost 100 or 1,010."),
    ("1,0", "It cost 1,000."),
    ("US", "the U.S. army"),
    ("Denver Broncos", "Denver, Broncos"),
    ("Levi’s", "at Levi's"),
    ("straße", "STRASSE"),
    ("Paris", ""),
    ("a b a c", "a b a"),
]


def tokens_by_hand(text):
    """Tokens by a loop over characters."""
    found, word = [], ""
    for character in [*unicodedata.normalize("NFD", text), " "]:
        kind = unicodedata.category(character)
        if kind[0] in ("L", "N", "M"):
            word += character
            continue
        found += [word, "" if kind[0] in ("Z", "C") else character]
        word = ""
    return [token.lower() for token in found if token]


def holds(text, answer):
    """Whether the answer's tokens begin somewhere in the text's; both are tokens."""
    return any(text[start : start + len(answer)] == answer for start in range(len(text) - len(answer) + 1))


def found_by_hand(collection, answers, titles=None):
    """query_id → doc_id → first answer held, from every pair of query and passage."""
    texts = [(passage, tokens_by_hand(passage.text)) for passage in collection.passages]
    found = {query_id: {} for query_id in answers}
    for query_id, of_query in answers.items():
        wanted = [(answer, tokens_by_hand(answer)) for answer in of_query]
        for passage, text in texts:
            held = [answer for answer, tokens in wanted if holds(text, tokens)]
            if held and (titles is None or passage.title == titles[query_id]):
                found[query_id][passage.doc_id] = held[0]
    return found


def one_passage(text, title=""):
    """A collection of one passage, `d1`, and one query, `q1`, without judgements."""
    return Collection("one", [Passage("d1", title, text)], {"q1": "which?"}, {"test": {}})


@pytest.fixture
def zoo() -> Collection:
    """Two articles that name the same animals."""
    passages = [
        Passage("b1", "Bees", "Bees eat nectar."),
        Passage("b2", "Bees", "A bear eats honey, and bees."),
        Passage("e1", "Bears", "A bear eats fish."),
        Passage("e2", "Bears", "Nectar is too little for bears."),
    ]
    return Collection("zoo", passages, {"q1": "what do bees eat", "q2": "what eats honey"}, {"test": {}})


# --- tokens and matches ------------------------------------------------------------------------


@pytest.mark.parametrize(("answer", "text"), HELD, ids=ascii)
def test_a_passage_that_holds_the_answer_is_relevant(answer, text):
    found = qrels_from_answers(one_passage(text), {"q1": [answer]})
    assert found == AnswerQrels({"q1": {"d1": 1}}, {"q1": {"d1": answer}}, within_titles=False)
    assert found.queries_without_match == []


@pytest.mark.parametrize(("answer", "text"), NOT_HELD, ids=ascii)
def test_a_passage_that_only_seems_to_hold_the_answer_is_not(answer, text):
    found = qrels_from_answers(one_passage(text), {"q1": [answer]})
    assert found == AnswerQrels({"q1": {}}, {"q1": {}}, within_titles=False)
    assert found.queries_without_match == ["q1"]


marked = st.text(
    st.sampled_from("aAbé\u0301\u0308İΣσς1½,.'_ \n\u00a0\u00ad\u200b\x1f東각ﬁ😀\ud800"), max_size=12
)


@given(st.one_of(marked, st.text(max_size=12)))
def test_tokens_are_those_of_a_loop_over_characters(text):
    assert answer_tokens(text) == tokens_by_hand(text)


@given(marked, st.lists(marked.filter(answer_tokens), min_size=1, max_size=3))
def test_matches_are_those_of_pyserinis_copy_of_the_published_code(text, answers):
    published = pytest.importorskip("pyserini.eval.evaluate_dpr_retrieval")
    expected = published.has_answers(text, answers, published.SimpleTokenizer())
    assert bool(qrels_from_answers(one_passage(text), {"q1": answers}).qrels["q1"]) is expected


few = st.lists(st.sampled_from(["a", "B", "ab", ",", "1"]), max_size=6).map(" ".join)


@given(
    texts=st.lists(st.tuples(st.sampled_from(["", "x", "X"]), few), min_size=1, max_size=5),
    answers=st.lists(st.lists(few.filter(answer_tokens), min_size=1, max_size=3), min_size=1, max_size=3),
    data=st.data(),
)
def test_pairs_are_those_of_a_loop_over_all_queries_and_passages(texts, answers, data):
    passages = [Passage(f"d{row}", title, text) for row, (title, text) in enumerate(texts)]
    answers = {f"q{number}": of_query for number, of_query in enumerate(answers)}
    collection = Collection("made", passages, dict.fromkeys(answers, "which?"), {"test": {}})
    titles = {q: data.draw(st.sampled_from([p.title for p in passages])) for q in answers}
    for of_query in (None, titles):
        found = qrels_from_answers(collection, answers, of_query)
        assert found.matched == found_by_hand(collection, answers, of_query)
        assert {q: dict.fromkeys(docs, 1) for q, docs in found.matched.items()} == found.qrels
        assert all(list(docs) == sorted(docs) for docs in found.qrels.values())  # the collection's order


# --- alternatives, titles and what is judged -----------------------------------------------------


def test_any_answer_is_enough_and_the_first_one_held_is_kept(zoo):
    answers = {"q1": ["nectar", "Honey", "fish"], "q2": ["a bear", "bear", "bears"]}
    found = qrels_from_answers(zoo, answers)
    assert found.matched == {
        "q1": {"b1": "nectar", "b2": "Honey", "e1": "fish", "e2": "nectar"},
        "q2": {"b2": "a bear", "e1": "a bear", "e2": "bears"},
    }
    assert found.qrels == {"q1": {"b1": 1, "b2": 1, "e1": 1, "e2": 1}, "q2": {"b2": 1, "e1": 1, "e2": 1}}


def test_with_titles_only_passages_of_the_querys_article_are_relevant(zoo):
    answers = {"q1": ["nectar"], "q2": ["bear"]}
    found = qrels_from_answers(zoo, answers, {"q1": "Bees", "q2": "Bears", "q3": "of no matter"})
    assert found.qrels == {"q1": {"b1": 1}, "q2": {"e1": 1}}
    assert found.within_titles is True
    assert qrels_from_answers(zoo, answers, {"q1": "Bears", "q2": "Bees"}).qrels == {
        "q1": {"e2": 1},
        "q2": {"b2": 1},
    }


def test_an_answer_in_the_title_alone_is_none():
    assert qrels_from_answers(one_passage("They eat nectar.", "Bees"), {"q1": ["bees"]}).qrels == {"q1": {}}


def test_an_answer_in_an_appended_query_alone_is_none(zoo):
    longer = [passage._replace(text=f"{passage.text} who likes wax") for passage in zoo.passages]
    expanded = replace(zoo, passages=longer, expansion={"num_queries": 1}, unexpanded=zoo)
    answers = {"q1": ["wax"], "q2": ["honey"]}
    assert qrels_from_answers(expanded, answers).qrels == {"q1": {}, "q2": {"b2": 1}}


def test_a_query_whose_answers_no_passage_holds_counts_as_0_and_one_without_answers_not_at_all(zoo):
    found = qrels_from_answers(zoo, {"q1": ["wax"]})
    run = {"q1": {"b1": 1.0}, "q2": {"b2": 1.0}}
    assert evaluate(found.qrels, run, ["RR@10"]).per_query == {"RR@10": {"q1": 0.0}}
    found = qrels_from_answers(zoo, {"q1": ["wax"], "q2": ["honey"]})
    assert evaluate(found.qrels, run, ["RR@10"]).means == {"RR@10": 0.5}
    assert replace(zoo, all_qrels={"test": found.qrels}).queries == zoo.queries


def test_judgements_that_are_there_and_other_splits_play_no_part(tiny_collection):
    found = qrels_from_answers(tiny_collection, {"t1": ["viruses"], "q1": ["droplets"]})
    assert found.qrels == {"t1": {"d3": 1}, "q1": {"d1": 1}}


def test_ids_that_are_whole_numbers_become_text():
    collection = Collection("one", [Passage("d1", "x", "bees")], {7: "which?"}, {"test": {}})
    assert qrels_from_answers(collection, {7: ["bees"]}, {7: "x"}).qrels == {"7": {"d1": 1}}


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({}, "no answers: expected query_id → one or more answers"),
        ({"q1": ["a"], "q9": ["b"]}, "query 'q9' has answers but is not in zoo: give the answers of this"),
        ({"q1": ["a"], "q2": "nectar"}, "query q2: answers are 'nectar', expected a list of strings"),
        ({"q1": ["a"], "q2": ["b", None]}, "query q2: answers are ['b', None], expected a list of strings"),
        ({"q1": ["a"], "q2": []}, "query q2: answers: the list is empty; leave out queries without an"),
        ({"q1": ["a", " \u200b"]}, r"query q1: answers: ' \u200b' has no letter, digit or other sign; leave"),
        ({1.5: ["a"]}, "an id must be a string or a whole number, got 1.5"),
        ({7: ["a"], "7": ["a"]}, "answers: two query ids are the same as text, such as 7 and '7'"),
    ],
)
def test_answers_that_must_be_a_mistake_are_refused_by_query(zoo, answers, message):
    with pytest.raises(ValueError, match=f"^{escape(message)}"):
        qrels_from_answers(zoo, answers)


@pytest.mark.parametrize(
    ("titles", "message"),
    [
        ({}, "query q1 has answers but no title: add it, or give no titles at all"),
        ({"q1": "Bees"}, "query q2 has answers but no title: add it, or give no titles at all"),
        ({"q1": "Bees", "q2": "bears"}, "query q2: no passage has the title 'bears'; titles must be equal"),
        ({"q1": "Bees", "q2": "Bears "}, "query q2: no passage has the title 'Bears '; titles must be equal"),
        ({"q1": "Bees", "q2": None}, "query q2: no passage has the title None; titles must be equal"),
        ({"q1": "Bees", "q2": []}, "query q2: no passage has the title []; titles must be equal"),
        ({7: "Bees", "7": "Bees"}, "titles: two query ids are the same as text, such as 7 and '7'"),
    ],
)
def test_a_missing_or_unknown_title_is_refused_by_query(zoo, titles, message):
    with pytest.raises(ValueError, match=f"^{escape(message)}"):
        qrels_from_answers(zoo, {"q1": ["nectar"], "q2": ["bear"]}, titles)


# --- files ---------------------------------------------------------------------------------------


def test_a_file_gives_answers_and_the_titles_that_are_there(tmp_path):
    lines = [
        {"_id": "q1", "answers": ["Paris", "paris"], "title": "France"},
        {"_id": "q2", "answers": ["1,000"], "title": None, "more": 1},
        {"_id": "q3", "answers": ["%"], "title": ""},
        {"_id": "q4", "answers": ["é"]},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n\n", encoding="utf-8")
    answers, titles = read_answers(tmp_path / "a.jsonl")
    assert answers == {"q1": ["Paris", "paris"], "q2": ["1,000"], "q3": ["%"], "q4": ["é"]}
    assert titles == {"q1": "France"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[]", "expected a JSON object, got list"),
        ('{"answers": ["a"]}', "_id None must be a string without white space"),
        ('{"_id": 7, "answers": ["a"]}', "_id 7 must be a string without white space"),
        ('{"_id": "q1", "answers": ["a"]}', "_id q1 comes twice"),
        ('{"_id": "q2"}', "answers is missing, expected a list of strings"),
        ('{"_id": "q2", "answers": "a"}', "answers are 'a', expected a list of strings"),
        ('{"_id": "q2", "answers": null}', "answers are None, expected a list of strings"),
        ('{"_id": "q2", "answers": ["a", 7]}', "answers are ['a', 7], expected a list of strings"),
        ('{"_id": "q2", "answers": []}', "answers: the list is empty; leave out queries without an answer"),
        ('{"_id": "q2", "answers": ["a", " "]}', "answers: ' ' has no letter, digit or other sign"),
        ('{"_id": "q2", "answers": ["a"], "title": 7}', "title is int, expected a string"),
    ],
)
def test_a_bad_line_is_refused_by_file_line_and_field(tmp_path, line, message):
    path = tmp_path / "answers.jsonl"
    path.write_text(f'{{"_id": "q1", "answers": ["a"]}}\n\n{line}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=f"^{escape(f'{path}:3: {message}')}"):
        read_answers(path)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=escape(f"{tmp_path / 'gone.jsonl'}: no such file")):
        read_answers(tmp_path / "gone.jsonl")


# --- agreement -----------------------------------------------------------------------------------


def test_agreement_counts_relevant_pairs_over_the_queries_that_both_judge():
    ours = {"q1": {"a": 1, "b": 1, "c": 0}, "q2": {}, "q3": {"a": 1}, "q4": {"a": 1}}
    gold = {"q1": {"a": 2, "c": 1, "d": 0}, "q2": {"a": 1, "b": 1}, "q3": {"a": -1}, "q5": {"a": 1}}
    assert agreement(ours, gold) == Agreement(
        precision=1 / 3, recall=1 / 4, num_relevant=3, num_gold=4, num_queries=3, num_without=1
    )


def test_a_share_of_no_pairs_is_no_number():
    found = agreement({"q1": {}}, {"q1": {"a": 0}})
    assert math.isnan(found.precision)
    assert math.isnan(found.recall)
    assert found[2:] == (0, 0, 1, 1)


def test_judgements_without_a_query_in_common_are_refused():
    with pytest.raises(ValueError, match=r"^1 queries and the 2 of gold have none in common"):
        agreement({"q1": {"a": 1}}, {"q2": {"a": 1}, "q3": {"a": 1}})
    with pytest.raises(ValueError, match=r"query q1, document a: grade 0.5 is no whole number"):
        agreement({"q1": {"a": 0.5}}, {"q1": {"a": 1}})


# --- real questions ------------------------------------------------------------------------------


def test_a_part_of_squad_has_the_pairs_of_a_loop(data_dir):
    squad = read_beir(data_dir / "squad")
    answers, titles = read_answers(data_dir / "squad" / "answers.jsonl")
    part = replace(squad, passages=squad.passages[::6])
    answers = {query_id: answers[query_id] for query_id in list(answers)[::170]}
    for of_query in (None, titles):
        expected = found_by_hand(part, answers, of_query)
        assert qrels_from_answers(part, answers, of_query).matched == expected
        assert sum(map(len, expected.values())) > 10


def test_all_of_squad_but_one_paragraph_holds_the_answer_and_so_do_many_others(data_dir):
    squad = read_beir(data_dir / "squad")
    answers, titles = read_answers(data_dir / "squad" / "answers.jsonl")
    anywhere, within = (qrels_from_answers(squad, answers, of_query) for of_query in (None, titles))
    for found, num_relevant in ((anywhere, 141_975), (within, 29_668)):
        shares = (10_569 / num_relevant, 10_569 / 10_570)
        assert agreement(found.qrels, squad.qrels) == (*shares, num_relevant, 10_570, 10_570, 0)
    assert all(within.qrels[q].keys() <= anywhere.qrels[q].keys() for q in answers)
