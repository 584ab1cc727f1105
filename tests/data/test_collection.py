"""Collections: one way to join texts, a fingerprint of the content, samples and dev parts by hash."""

import hashlib
import math
from dataclasses import FrozenInstanceError, replace
from re import escape

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from made_data import DEBATES, debates

from dpr.data.beir import read_beir
from dpr.data.collection import Collection, Passage, hold_out_dev
from dpr.data.text import join_title_text, stable_hash
from dpr.data.trec import read_qrels
from dpr.generation.expansion import expand

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
doc_ids = st.text("ab\u00e9", min_size=1)
passage_lists = st.lists(st.builds(Passage, doc_ids, texts, texts), max_size=4, unique_by=lambda p: p.doc_id)


def collection_of(passages, queries=None, qrels=None):
    """A collection of these passages with one split, `test`."""
    return Collection("made", passages, queries or {}, {"test": qrels or {}})


def numbered_collection(num_passages=60, num_queries=12):
    """Query qN has passages dN and dN+1 relevant and dN+20 judged not relevant; passages in order."""
    queries = {f"q{n}": f"query {n}" for n in range(num_queries)}
    qrels = {f"q{n}": {f"d{n}": 1, f"d{n + 1}": 2, f"d{n + 20}": 0} for n in range(num_queries)}
    passages = [Passage(f"d{n}", f"title {n}", f"text {n}") for n in range(num_passages)]
    return Collection("numbered", passages, queries, {"test": qrels, "train": {"q0": {"d0": 1}}})


# --- join_title_text ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("title", "text", "joined"),
    [
        ("Masks", "They work.", "Masks They work."),
        (" Masks \n", "\tThey work. ", "Masks They work."),
        ("Masks", "", "Masks"),
        ("Masks", " \n", "Masks"),
        ("", "They work.", "They work."),
        (" ", "", ""),
        ("two  words", "in  here", "two  words in  here"),
    ],
)
def test_title_and_text_are_joined_by_one_space(title, text, joined):
    assert join_title_text(title, text) == joined
    assert Passage("d", title, text).contents == joined


@given(title=texts, text=texts)
def test_a_join_never_glues_doubles_or_loses_anything(title, text):
    joined = join_title_text(title, text)
    head, tail = title.strip(), text.strip()
    assert joined == joined.strip()
    assert joined.startswith(head)
    assert joined.endswith(tail)
    if head and tail:
        assert len(joined) == len(head) + 1 + len(tail)
        assert joined[len(head)] == " "
        assert not joined[len(head) - 1].isspace()
        assert not joined[len(head) + 1].isspace()
    else:
        assert joined == (head or tail)


# --- fingerprints ------------------------------------------------------------------------------


def test_the_fingerprint_is_sha256_over_every_field_closed_by_a_byte_utf8_never_holds():
    passages = [Passage("d1", "Masks", "Été"), Passage("d2", "", "")]
    expected = hashlib.sha256(b"d1\xffMasks\xff\xc3\x89t\xc3\xa9\xffd2\xff\xff\xff").hexdigest()[:16]
    assert collection_of(passages).fingerprint == expected


@given(first=passage_lists, second=passage_lists)
def test_two_collections_share_a_fingerprint_only_if_all_passages_are_equal(first, second):
    assert collection_of(first).fingerprint == collection_of(list(first)).fingerprint
    assume(first != second)
    assert collection_of(first).fingerprint != collection_of(second).fingerprint


@given(passages=passage_lists.filter(bool), data=st.data())
def test_a_changed_field_or_a_moved_character_changes_the_fingerprint(passages, data):
    number = data.draw(st.integers(0, len(passages) - 1))
    passage = passages[number]
    changed = [
        passage._replace(doc_id=passage.doc_id + "x" * 9),
        passage._replace(title=passage.title + "x"),
        passage._replace(text=passage.text + " "),
    ]
    if passage.title:
        changed.append(passage._replace(title=passage.title[:-1], text=passage.title[-1] + passage.text))
    for other in changed:
        others = [*passages[:number], other, *passages[number + 1 :]]
        assert collection_of(others).fingerprint != collection_of(passages).fingerprint


def test_the_fingerprint_depends_on_order_but_not_on_name_split_or_queries(tiny_collection):
    assert len(tiny_collection.fingerprint) == 16
    backwards = replace(tiny_collection, passages=tiny_collection.passages[::-1])
    assert backwards.fingerprint != tiny_collection.fingerprint
    for same in (replace(tiny_collection, name="other"), tiny_collection.with_split("train")):
        assert same.fingerprint == tiny_collection.fingerprint


def test_half_a_character_in_a_text_is_named_by_its_document():
    halved = collection_of([Passage("d", "", "whole"), Passage("e", "cut \ud83d", "here")])
    with pytest.raises(ValueError, match=r"document e holds half a character .*ud83d.*; replace it"):
        _ = halved.fingerprint


def test_the_queries_fingerprint_does_not_depend_on_order(tiny_collection):
    queries = dict(reversed(tiny_collection.all_queries.items()))
    qrels = {q: dict(reversed(g.items())) for q, g in reversed(tiny_collection.qrels.items())}
    reordered = replace(tiny_collection, all_queries=queries, all_qrels={"test": qrels})
    assert list(reordered.queries) != list(tiny_collection.queries)
    assert reordered.queries_fingerprint == tiny_collection.queries_fingerprint


@pytest.mark.parametrize(
    ("queries", "qrels"),
    [
        ({"q1": "do masks work", "q2": "where"}, {"q1": {"d1": 1}, "q2": {"d2": 1}}),
        ({"q1": "do masks help", "q2": "where"}, {"q1": {"d1": 2}, "q2": {"d2": 1}}),
        ({"q1": "do masks help", "q2": "where"}, {"q1": {"d3": 1}, "q2": {"d2": 1}}),
        ({"q1": "do masks help", "q2": "where"}, {"q1": {"d1": 1, "d3": 0}, "q2": {"d2": 1}}),
        ({"q1": "do masks help", "q2": "where"}, {"q1": {"d1": 1}}),
        ({"q1": "do masks help", "q2": "where"}, {"q2": {"d1": 1}, "q1": {"d2": 1}}),
        ({"q1": "where", "q2": "do masks help"}, {"q1": {"d1": 1}, "q2": {"d2": 1}}),
    ],
)
def test_the_queries_fingerprint_changes_with_a_text_a_grade_or_a_judgement(queries, qrels):
    before = collection_of([], {"q1": "do masks help", "q2": "where"}, {"q1": {"d1": 1}, "q2": {"d2": 1}})
    assert collection_of([], queries, qrels).queries_fingerprint != before.queries_fingerprint


def test_an_unjudged_query_does_not_change_the_queries_fingerprint():
    judged = collection_of([], {"q1": "do masks help"}, {"q1": {"d1": 1}})
    with_more = collection_of([], {"q0": "not judged", "q1": "do masks help"}, {"q1": {"d1": 1}})
    assert with_more.queries_fingerprint == judged.queries_fingerprint


def test_a_stable_hash_is_the_published_sha256():
    assert stable_hash("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# --- Collection --------------------------------------------------------------------------------


def test_a_collection_gives_the_queries_and_judgements_of_its_split(tiny_collection):
    assert tiny_collection.split == "test"
    assert tiny_collection.queries == {"q1": "do masks help", "q2": "where does vitamin D come from"}
    assert tiny_collection.qrels == {"q1": {"d1": 2, "d3": 1, "d6": 0}, "q2": {"d2": 1}}
    assert tiny_collection.doc_ids == ["d1", "d2", "d3", "d4", "d5", "d6"]
    assert tiny_collection.by_id["d3"].contents == "Handwashing removes viruses."
    assert tiny_collection.scope == "full corpus"


def test_another_split_has_the_same_passages_and_its_own_queries(tiny_collection):
    tiny_collection.queries  # noqa: B018  what was computed for one split must not show in the other
    train = tiny_collection.with_split("train")
    assert train.passages is tiny_collection.passages
    assert list(train.queries) == ["t1", "t2", "t3", "t4", "t5"]
    assert train.qrels["t3"] == {"d5": 1}
    assert train.queries_fingerprint != tiny_collection.queries_fingerprint
    assert tiny_collection.split == "test"


def test_a_split_that_is_not_there_is_refused(tiny_collection):
    with pytest.raises(ValueError, match=r"tiny has no split 'dev', only \['test', 'train'\]"):
        tiny_collection.with_split("dev")


def test_a_doc_id_given_twice_is_refused():
    with pytest.raises(ValueError, match="made: 1 doc_id given more than once"):
        collection_of([Passage("d1", "", "a"), Passage("d2", "", "b"), Passage("d1", "", "c")])


def test_a_judged_query_without_text_is_refused():
    with pytest.raises(ValueError, match="made: 2 judged test queries have no text, first 'q2'"):
        collection_of([Passage("d", "", "a")], {"q1": "a"}, {"q1": {"d": 1}, "q2": {"d": 1}, "q3": {"d": 1}})


def test_a_collection_cannot_be_changed_in_place(tiny_collection):
    with pytest.raises(FrozenInstanceError):
        tiny_collection.split = "train"


def with_numbers(convert):
    """A collection whose ids are numbers, each as `convert` gives it."""
    passages = [Passage(convert(10), "Salt", "from the sea"), Passage(convert(11), None, "the sea is deep")]
    queries = {convert(1): "where salt is from", convert(2): "how deep is the sea"}
    qrels = {convert(1): {convert(10): 1}, convert(2): {convert(11): 2, convert(10): 0}}
    return collection_of(passages, queries, qrels)


@pytest.mark.parametrize("number", [int, np.int64, np.uint8])
def test_ids_that_are_whole_numbers_become_their_digits_everywhere(number):
    numbered, texts = with_numbers(number), with_numbers(str)
    assert numbered.doc_ids == ["10", "11"]
    assert list(numbered.by_id) == ["10", "11"]
    assert (numbered.all_queries, numbered.all_qrels) == (texts.all_queries, texts.all_qrels)
    assert numbered.fingerprint == texts.fingerprint
    assert numbered.queries_fingerprint == texts.queries_fingerprint
    assert numbered.by_id["11"] == Passage("11", "", "the sea is deep")


@pytest.mark.parametrize("doc_id", ["a\nb", "a\r", " a", "two words", "a\tb", "a\u3000b", "\u2028", "", " "])
def test_a_doc_id_with_white_space_or_of_nothing_is_refused_by_its_place(doc_id):
    passages = [Passage("good", "", "text"), Passage(doc_id, "", "text")]
    with pytest.raises(ValueError, match=escape(f"made: passage 1: doc_id {doc_id!r} must be a string")):
        collection_of(passages)


@pytest.mark.parametrize("doc_id", [None, 1.0, True, b"d", ("d",)])
def test_a_doc_id_that_is_neither_text_nor_a_whole_number_is_refused(doc_id):
    with pytest.raises(ValueError, match=escape(f"string or a whole number, got {doc_id!r}")):
        collection_of([Passage(doc_id, "", "text")])


@pytest.mark.parametrize(
    ("passage", "message"),
    [
        (("d", "title", "text"), "made: passage 1 is ('d', 'title', 'text'), expected Passage("),
        ("text", "made: passage 1 is 'text', expected Passage("),
        (Passage("d", "", None), "made: passage 1 (d): title '' and text None must be strings"),
        (Passage("d", 3.5, "text"), "made: passage 1 (d): title 3.5 and text 'text' must be strings"),
    ],
)
def test_what_is_no_passage_of_strings_is_refused_by_its_place(passage, message):
    with pytest.raises(ValueError, match=escape(message)):
        collection_of([Passage("good", "", "text"), passage])


@pytest.mark.parametrize("grade", [0.5, math.nan, math.inf, "1", None, [1], 1j])
@pytest.mark.parametrize("split", ["test", "train"])
def test_a_grade_that_is_no_whole_number_is_refused_in_any_split(split, grade):
    qrels = {"test": {"q": {"d": 1}}, "train": {"q": {"d": 1}}} | {split: {"q": {"c": 1, "d": grade}}}
    with pytest.raises(ValueError, match=escape(f"query q, document d: grade {grade!r} is no whole number")):
        Collection("made", [Passage("d", "", "text")], {"q": "query"}, qrels)


@pytest.mark.parametrize("text", [None, 3, ["query"], "cut \ud83d"])
def test_a_query_that_is_no_whole_text_is_refused(text):
    with pytest.raises(ValueError, match=escape(f"query r is {text!a}, expected a text of whole characters")):
        collection_of([], {"q": "query", "r": text})


def test_a_collection_of_a_thousand_documents_is_shown_in_a_line():
    numbered = numbered_collection(num_passages=1000, num_queries=500)
    for shown in (numbered, numbered.sample(900, 100), replace(numbered, unexpanded=numbered)):
        assert repr(shown).startswith("Collection(name='numbered', split='test'")
        assert len(repr(shown)) < 300


# --- a query that is a document ----------------------------------------------------------------


def alike(one, other):
    """Whether two texts are equal but for case and white space, as a plain loop over words says."""
    return [word.lower() for word in one.split()] == [word.lower() for word in other.split()]


def own_by_hand(collection):
    """Ids of the judged queries that have id and text of a document and are not judged relevant to it."""
    own = set()
    for query_id, text in collection.all_queries.items():
        for doc_id, title, body in collection.passages:
            same = doc_id == query_id and (alike(text, body) or alike(text, f"{title} {body}"))
            relevant = any(q.get(query_id, {}).get(doc_id, 0) > 0 for q in collection.all_qrels.values())
            if same and not relevant and query_id in collection.qrels:
                own.add(query_id)
    return own


few = st.sampled_from(["a", "b", "c"])
sayings = st.sampled_from(["", "Bees", "bees ", "eat", "Bees eat", " bees\n EAT", "bees eat bees"])
judged = st.dictionaries(few, st.dictionaries(few, st.integers(-1, 2)))


@given(
    passages=st.lists(st.builds(Passage, few, sayings, sayings), max_size=3, unique_by=lambda p: p.doc_id),
    queries=st.fixed_dictionaries(dict.fromkeys("abc", sayings)),
    test=judged,
    train=judged,
)
def test_the_queries_that_are_documents_are_those_a_plain_loop_finds(passages, queries, test, train):
    collection = Collection("made", passages, queries, {"test": test, "train": train})
    for split in ("test", "train"):
        of_split = collection.with_split(split)
        assert of_split.own_documents == own_by_hand(of_split)


@pytest.mark.parametrize(
    ("query_id", "text", "own"),
    [
        ("zoos-pro", DEBATES["zoos"][0], True),
        ("zoos-pro", f"  {DEBATES['zoos'][0].upper()}\n", True),
        ("zoos-pro", f"on ZOOS\t{DEBATES['zoos'][0]}", True),
        ("zoos-pro", f"{DEBATES['zoos'][0]} On zoos", False),
        ("zoos-pro", DEBATES["zoos"][0].rstrip("."), False),
        ("zoos-pro", "On zoos", False),
        ("zoos-pro", "", False),
        ("zoos-con", DEBATES["zoos"][0], False),
        ("other", DEBATES["zoos"][0], False),
        ("other", "", False),
    ],
)
def test_a_query_is_a_document_if_both_id_and_text_say_so(query_id, text, own):
    assert debates().holds(query_id, text) is own


@pytest.mark.parametrize(("grade", "own"), [(2, False), (1, False), (0, True), (-1, True)])
@pytest.mark.parametrize("split", ["test", "train"])
def test_a_document_that_is_judged_relevant_to_itself_may_be_found(split, grade, own):
    whole = debates()
    qrels = {"test": whole.qrels, "train": {}}
    changed = replace(whole, all_qrels={**qrels, split: {**qrels[split], "pets-con": {"pets-con": grade}}})
    if split == "test":
        assert ("pets-con" in changed.own_documents) is own
    assert changed.holds("pets-con", whole.all_queries["pets-con"]) is own
    assert changed.own_documents >= set(whole.queries) - {"pets-con"}


@pytest.mark.parametrize("original", [True, False])
def test_a_query_stays_a_document_when_other_queries_are_written_for_it(original):
    whole = debates()
    written = {"zoos-pro": ["what do zoos do"], "cars-con": [whole.all_queries["pets-pro"]]}
    expanded = expand(whole, written, original=original)
    assert expanded.own_documents == whole.own_documents == set(whole.doc_ids)
    assert expanded.sample(12, 5).own_documents == set(expanded.sample(12, 5).queries)
    assert not expanded.holds("zoos-pro", "what do zoos do")


def test_a_sample_and_another_split_say_which_of_their_queries_are_documents():
    whole = debates()
    parts = {"test": ("zoos-pro", "cars-pro", "pets-con"), "dev": ("sugar-pro", "new")}
    qrels = {split: {q: {"zoos-con": 1} for q in query_ids} for split, query_ids in parts.items()}
    made = replace(whole, all_queries={**whole.all_queries, "new": "new"}, all_qrels=qrels)
    assert made.own_documents == set(parts["test"])
    assert made.with_split("dev").own_documents == {"sugar-pro"}
    for num_passages in range(1, 13):
        sample = made.sample(num_passages, 2)
        assert sample.own_documents == set(sample.queries) & set(sample.doc_ids)


# --- sample ------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_queries", [1, 3, 12, 50])
@pytest.mark.parametrize("num_passages", [1, 10, 25, 60, 500])
def test_a_sample_keeps_every_relevant_passage_and_no_more_queries_than_asked(num_passages, num_queries):
    whole = numbered_collection()
    sample = whole.sample(num_passages, num_queries)
    relevant = {d for q in sample.queries for d, grade in whole.qrels[q].items() if grade > 0}
    assert len(sample.queries) == min(num_queries, 12)
    assert set(sample.queries) == set(sample.qrels)
    assert relevant <= set(sample.doc_ids)
    assert len(sample.passages) == min(60, max(num_passages, len(relevant)))
    assert sample.scope == f"{len(sample.passages)} of 60 passages"
    assert sample.passages == [passage for passage in whole.passages if passage.doc_id in sample.by_id]
    for query_id, grades in sample.qrels.items():
        assert sample.queries[query_id] == whole.queries[query_id]
        assert grades == {d: g for d, g in whole.qrels[query_id].items() if d in sample.by_id}


def test_a_sample_is_the_same_each_time_and_whatever_the_order_of_passages_and_queries():
    whole = numbered_collection()
    shuffled = replace(
        whole,
        passages=whole.passages[::-1],
        all_queries=dict(reversed(whole.all_queries.items())),
        all_qrels={"test": dict(reversed(whole.qrels.items()))},
    )
    first, again, other = whole.sample(20, 4), whole.sample(20, 4), shuffled.sample(20, 4)
    assert first.fingerprint == again.fingerprint
    assert first.queries_fingerprint == again.queries_fingerprint == other.queries_fingerprint
    assert set(first.passages) == set(other.passages)


def test_a_larger_sample_holds_the_smaller_one():
    whole = numbered_collection()
    assert set(whole.sample(30, 4).queries) > set(whole.sample(30, 3).queries)
    assert set(whole.sample(30, 3).doc_ids) > set(whole.sample(15, 3).doc_ids)


def test_a_sample_is_taken_by_the_hash_of_ids_and_not_from_the_front():
    sample = numbered_collection().sample(20, 3)
    assert list(sample.queries) == sorted(
        sorted((f"q{n}" for n in range(12)), key=lambda q: hashlib.sha256(q.encode()).digest())[:3],
        key=lambda q: int(q[1:]),
    )
    assert set(sample.doc_ids) != {f"d{n}" for n in range(20)}


def test_a_sample_has_only_its_split_and_a_pool_with_thousands_separated():
    sample = numbered_collection(num_passages=2500).sample(1200, 2)
    assert list(sample.all_qrels) == ["test"]
    assert sample.all_queries == sample.queries
    assert sample.scope == "1,200 of 2,500 passages"


@pytest.mark.parametrize(("num_passages", "num_queries"), [(0, 1), (1, 0), (-5, 3)])
def test_a_sample_of_nothing_is_refused(tiny_collection, num_passages, num_queries):
    with pytest.raises(
        ValueError, match=f"at least 1 passage and 1 query, got {num_passages}, {num_queries}"
    ):
        tiny_collection.sample(num_passages, num_queries)


def test_a_relevant_document_missing_from_the_corpus_takes_no_passages_place():
    passages = [Passage(f"d{n}", "", f"text {n}") for n in range(9)]
    whole = collection_of(passages, {"q": "query"}, {"q": {"gone1": 1, "gone2": 1, "d3": 1}})
    assert len(whole.sample(5, 1).passages) == 5


def test_a_sample_leaves_out_a_query_that_nothing_answers():
    passages = [Passage(f"d{n}", "", f"text {n}") for n in range(9)]
    whole = collection_of(passages, {"q": "query", "r": "other"}, {"q": {"d1": 0, "d2": 0}, "r": {"d3": 1}})
    assert list(whole.sample(1, 2).queries) == ["r"]


@pytest.mark.parametrize("num_passages", [1, 8, 12, 30, 60, 99])
def test_passages_to_keep_come_after_the_relevant_ones_and_before_others_by_hash(num_passages):
    whole = numbered_collection()
    keep = [f"d{n}" for n in range(40, 50)]
    sample = whole.sample(num_passages, 3, keep=iter([*keep, "gone", *keep]))
    relevant = {d for q in sample.queries for d, grade in whole.qrels[q].items() if grade > 0}
    by_hash = sorted(set(whole.doc_ids) - relevant, key=lambda d: hashlib.sha256(d.encode()).hexdigest())
    others = [d for d in by_hash if d in keep] + [d for d in by_hash if d not in keep]
    assert set(sample.doc_ids) == relevant | set(others[: max(0, num_passages - len(relevant))])
    assert sample.queries == whole.sample(num_passages, 3).queries
    assert sample.passages == [passage for passage in whole.passages if passage.doc_id in sample.by_id]


# --- hold_out_dev ------------------------------------------------------------------------------

trains = st.dictionaries(
    texts, st.dictionaries(texts, st.integers(-1, 2), min_size=1, max_size=2), min_size=5
)


@given(train=trains, random=st.randoms(use_true_random=False))
def test_a_dev_part_is_a_fifth_a_partition_and_independent_of_order(train, random):
    rest, dev = hold_out_dev(train)
    assert {**rest, **dev} == train
    assert not set(rest) & set(dev)
    assert len(dev) == math.floor(len(train) / 5)
    shuffled = list(train.items())
    random.shuffle(shuffled)
    assert hold_out_dev(dict(shuffled)) == (rest, dev)


def test_a_dev_part_is_not_simply_the_first_queries():
    train = {f"q{n:03}": {"d": 1} for n in range(100)}
    dev = [int(query_id[1:]) for query_id in hold_out_dev(train)[1]]
    assert len(dev) == 20
    assert 30 < sum(dev) / 20 < 70
    assert dev != list(range(0, 100, 5))


@pytest.mark.parametrize("num_queries", [0, 4])
def test_a_dev_part_of_too_few_queries_is_refused(num_queries):
    with pytest.raises(ValueError, match=f"at least 5 train queries, got {num_queries}"):
        hold_out_dev({f"q{n}": {"d": 1} for n in range(num_queries)})


def test_scifact_gives_161_of_its_809_train_queries_to_dev(data_dir):
    published = read_qrels(data_dir / "scifact" / "qrels" / "train.tsv")
    train, dev = (read_beir(data_dir / "scifact", split) for split in ("train", "dev"))
    assert (len(published), len(train.queries), len(dev.queries)) == (809, 648, 161)
    assert {**train.qrels, **dev.qrels} == published
    assert train.fingerprint == dev.fingerprint
