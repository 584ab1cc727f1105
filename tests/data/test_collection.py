"""Collections: one way to join texts, a fingerprint of the content, samples and dev parts by hash."""

import gzip
import hashlib
import json
import math
from dataclasses import FrozenInstanceError, replace
from re import escape

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from hypothesis import assume, given
from hypothesis import strategies as st
from made_data import DEBATES, debates

from dpr.data.audit import audit_collection
from dpr.data.beir import read_beir
from dpr.data.collection import Collection, Passage, hold_out_dev
from dpr.data.text import join_title_text, stable_hash
from dpr.data.trec import read_qrels
from dpr.evaluation.metrics import evaluate
from dpr.generation.expansion import expand
from dpr.models.bi_encoder import BiEncoder
from dpr.search.bm25 import BM25
from dpr.search.encoding import encode_collection
from dpr.search.index import build_index

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


# --- from a reader's own texts -----------------------------------------------------------------

TEXTS = ["The sea is salt.", "", "塩は海から来る"]
NUMBERED = [Passage("0", "", TEXTS[0]), Passage("1", "", ""), Passage("2", "", TEXTS[2])]


@pytest.mark.parametrize(
    "give",
    [list, tuple, np.array, iter, lambda t: pd.Series(t, index=[7, 7, 9]), lambda t: dict(enumerate(t))],
    ids=["list", "tuple", "array", "iterator", "series", "mapping"],
)
def test_texts_of_any_kind_become_passages_numbered_in_their_order(give):
    made = Collection.from_texts(give(TEXTS))
    assert made.passages == NUMBERED
    assert made.fingerprint == collection_of(NUMBERED).fingerprint
    assert (made.name, made.split, made.queries, made.qrels) == ("texts", "test", {}, {})


def test_texts_take_titles_and_ids_of_their_own_and_a_mapping_brings_its_ids():
    expected = [Passage("s7", "Sea", TEXTS[0]), Passage("8", "", ""), Passage("s9", "", TEXTS[2])]
    titles = ["Sea", None, math.nan]
    assert Collection.from_texts(TEXTS, titles=titles, ids=["s7", 8, "s9"]).passages == expected
    keyed = dict(zip(["s7", 8, "s9"], TEXTS, strict=True))
    assert Collection.from_texts(keyed, titles=pd.Series(titles), name="sea").passages == expected


def rows(**changed):
    """Columns of a table of three documents, two of them without a title."""
    titles = ["Sea", None, math.nan]
    return {"doc_id": ["a", "b", "c"], "title": titles, "text": TEXTS} | changed


def as_mappings(columns):
    """The rows of a table as mappings, where a value that is None is not there at all."""
    found = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [{name: value for name, value in row.items() if value is not None} for row in found]


def as_dataset(columns):
    """The rows as a `datasets.Dataset`, which knows no NaN among texts."""
    return Dataset.from_dict({n: [None if v != v else v for v in values] for n, values in columns.items()})


tables = pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame,
        as_dataset,
        lambda c: as_dataset(c).to_iterable_dataset(),
        as_mappings,
        lambda c: iter(as_mappings(c)),
    ],
    ids=["DataFrame", "Dataset", "IterableDataset", "mappings", "iterator"],
)


@tables
def test_a_table_of_any_kind_gives_the_same_passages_and_fingerprint(table):
    made = Collection.from_records(table(rows()))
    assert made.passages == [Passage("a", "Sea", TEXTS[0]), Passage("b", "", ""), Passage("c", "", TEXTS[2])]
    assert made.fingerprint == collection_of(made.passages).fingerprint
    assert (made.name, made.split) == ("records", "test")


@tables
def test_without_columns_for_title_and_id_a_tables_rows_are_numbered(table):
    assert Collection.from_records(table({"text": TEXTS, "year": [1, 2, 3]})).passages == NUMBERED


@tables
def test_columns_are_found_under_the_names_given(table):
    columns = {
        "pid": [4, 5, 6],
        "head": ["x", "y", "z"],
        "body": TEXTS,
        "text": ["no"] * 3,
        "title": ["no"] * 3,
    }
    made = Collection.from_records(table(columns), doc_id="pid", text="body", title="head", name="mine")
    assert [p.doc_id + p.title for p in made.passages] == ["4x", "5y", "6z"]
    assert [p.text for p in made.passages] == TEXTS


@pytest.mark.parametrize("missing", [None, math.nan, np.float32("nan"), pd.NA, pd.NaT])
def test_a_missing_title_is_empty_and_a_missing_text_is_refused_by_its_row(missing):
    title, text = ([{"text": "a"}, {"text": "b", part: missing}] for part in ("title", "text"))
    assert [p.title for p in Collection.from_records(title).passages] == ["", ""]
    with pytest.raises(
        ValueError, match=escape(f"records: row 1 (1): the text is {missing!r:.40}; it may be ''")
    ):
        Collection.from_records(text)
    with pytest.raises(ValueError, match=escape("texts: row 2 (2): the text is ")):
        Collection.from_texts(["a", "b", missing])


@tables
@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"text": "body"}, "no column 'body' for the text; they have ['doc_id', 'title', 'text']"),
        ({"title": "head"}, "no column 'head' for the title; they have ['doc_id', 'title', 'text']"),
        ({"doc_id": "id"}, "no column 'id' for the doc_id; they have ['doc_id', 'title', 'text']"),
    ],
)
def test_a_column_that_is_not_there_is_named_with_those_there_are(table, names, message):
    with pytest.raises(ValueError, match=escape(f"records have {message}")):
        Collection.from_records(table(rows()), **names)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Collection.from_texts([]), "texts: there is no text"),
        (lambda: Collection.from_texts({}), "texts: there is no text"),
        (lambda: Collection.from_texts("one"), "from_texts: texts must be Mapping | Iterable, got 'one'"),
        (lambda: Collection.from_texts(pd.DataFrame(rows())), "texts is a table, expected a list"),
        (lambda: Collection.from_texts(TEXTS, titles=["a"]), "texts: 3 texts need as many titles, got 1"),
        (lambda: Collection.from_texts(TEXTS, ids=range(4)), "texts: 3 texts need as many ids, got 4"),
        (lambda: Collection.from_texts({1: "a"}, ids=[2]), "has its own ids: leave out ids"),
        (lambda: Collection.from_texts(TEXTS, ids=[7, "7", 8]), "texts: 1 doc_id given more than once"),
        (lambda: Collection.from_texts(TEXTS, ids=["a", "b c", "d"]), "texts: passage 1: doc_id 'b c' must"),
        (lambda: Collection.from_texts(TEXTS, titles=["", 3.5, ""]), "texts: passage 1 (1): title 3.5 and"),
        (lambda: Collection.from_records([]), "records have no column 'text' for the text; they have []"),
        (lambda: Collection.from_records(pd.DataFrame({"text": []})), "records: there is no text"),
        (
            lambda: Collection.from_records([{"text": "a"}, "b"]),
            "records: row 1 is 'b', expected column name",
        ),
        (
            lambda: Collection.from_records({"text": TEXTS}),
            "from_records: records must be Iterable, got dict",
        ),
        (lambda: Collection.from_records([{"text": "a", "doc_id": 1}, {"text": "b"}]), "got None"),
    ],
)
def test_what_makes_no_collection_is_refused_in_words(make, message):
    with pytest.raises(ValueError, match=escape(message)):
        make()


@pytest.mark.parametrize("name", ["collection.tsv", "collection.tsv.gz"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_tab_separated_file_gives_ids_and_texts_and_perhaps_titles(tmp_path, name, end):
    def made(lines):
        data = end.join(lines).encode()
        (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
        return Collection.from_tsv(tmp_path / name)

    assert made(["7\tThe sea", "", 'x\t塩 "', "8\t"]).passages == [
        Passage("7", "", "The sea"),
        Passage("x", "", '塩 "'),
        Passage("8", "", ""),
    ]
    with_titles = made(["7\tSea\tis salt", "8\t\tno title"])
    assert with_titles.passages == [Passage("7", "Sea", "is salt"), Passage("8", "", "no title")]
    assert with_titles.name == "collection"
    assert Collection.from_tsv(str(tmp_path / name), name="mine").name == "mine"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("1\ta\n2\ttitle\tb\n", ":2: 3 columns, expected 2 as before"),
        ("1\tt\ta\n\n2\tb\n", ":3: 2 columns, expected 3 as before"),
        ("only a text\n", ":1: 1 columns, expected doc_id⇥text or doc_id⇥title⇥text"),
        ("1\turl\ttitle\tbody\n", ":1: 4 columns, expected doc_id⇥text or doc_id⇥title⇥text"),
        ("doc_id\ttext\n1\ta\n", r":1: 'doc_id\ttext' looks like a header; remove the line"),
        ("1\ta\n1\tb\n", ":2: doc_id 1 comes twice"),
        ("1\ta\n\tb\n", ":2: doc_id '' must be a string without white space"),
        ("1 2\ta\n", ":1: doc_id '1 2' must be a string without white space"),
        ("\n", ": the file is empty"),
    ],
)
def test_the_line_of_a_tab_separated_file_that_is_wrong_is_named(tmp_path, lines, message):
    (tmp_path / "c.tsv").write_text(lines)
    with pytest.raises(ValueError, match=escape(f"{tmp_path / 'c.tsv'}{message}")):
        Collection.from_tsv(tmp_path / "c.tsv")


def test_a_tab_separated_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=escape(f"{tmp_path / 'gone.tsv'}: no such file")):
        Collection.from_tsv(tmp_path / "gone.tsv")


ASKED = ["is the sea salt", "海"]
JUDGED = {"0": {"0": 1, "2": 0}, "1": {"2": 2}}
JUDGED_ROWS = [{"query-id": 0, "corpus-id": 0, "score": 1}, {"query-id": 0, "corpus-id": 2, "score": 0}]
JUDGED_ROWS += [{"query-id": 1, "corpus-id": 2, "score": 2}]


def write_queries(path):
    """Write ASKED as a file in the format that its ending tells."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps({"_id": str(n), "text": t}) + "\n" for n, t in enumerate(ASKED)))
    else:
        path.write_text("".join(f"{n}\t{text}\n" for n, text in enumerate(ASKED)), encoding="utf-8")
    return path


def write_qrels(path):
    """Write JUDGED in BEIR's columns for .tsv, else in TREC's."""
    beir, lines = path.suffix == ".tsv", [list(map(str, row.values())) for row in JUDGED_ROWS]
    found = ["query-id\tcorpus-id\tscore"] if beir else []
    found += ["\t".join(line) if beir else f"{line[0]} 0 {line[1]} {line[2]}" for line in lines]
    path.write_text("\n".join(found))
    return path


@pytest.mark.parametrize(
    "give",
    [
        lambda _: ASKED,
        lambda _: np.array(ASKED),
        lambda _: pd.Series(ASKED, index=["x", "y"]),
        lambda _: dict(enumerate(ASKED)),
        lambda folder: write_queries(folder / "q.tsv"),
        lambda folder: str(write_queries(folder / "q.jsonl")),
    ],
    ids=["list", "array", "series", "mapping", "tsv", "jsonl"],
)
def test_queries_are_texts_that_are_numbered_or_a_mapping_or_a_file(tmp_path, give):
    (tmp_path / "c.tsv").write_text("0\tsea", encoding="utf-8")
    for made in (
        Collection.from_texts(TEXTS, queries=give(tmp_path)),
        Collection.from_records([{"text": "sea"}], queries=give(tmp_path)),
        Collection.from_tsv(tmp_path / "c.tsv", queries=give(tmp_path)),
    ):
        assert made.queries == made.all_queries == {"0": ASKED[0], "1": ASKED[1]}


@pytest.mark.parametrize(
    "give",
    [
        lambda _: JUDGED,
        lambda _: {0: {0: 1, 2: 0}, 1: {2: np.int64(2)}},
        lambda _: pd.DataFrame(JUDGED_ROWS),
        lambda _: pd.DataFrame(JUDGED_ROWS).astype(str).astype({"score": float}),
        lambda _: Dataset.from_list(JUDGED_ROWS),
        lambda _: iter(JUDGED_ROWS),
        lambda folder: write_qrels(folder / "test.tsv"),
        lambda folder: str(write_qrels(folder / "qrels.txt")),
    ],
    ids=["mapping", "numbers", "DataFrame", "text and floats", "Dataset", "mappings", "BEIR", "TREC"],
)
def test_judgements_are_a_mapping_a_file_or_a_table_and_become_the_split_test(tmp_path, give):
    records = [{"text": text} for text in TEXTS]
    for made in (
        Collection.from_texts(TEXTS, queries=[*ASKED, "not judged"], qrels=give(tmp_path)),
        Collection.from_records(records, queries=[*ASKED, "not judged"], qrels=give(tmp_path)),
    ):
        assert made.all_qrels == {"test": JUDGED}
        assert list(made.queries) == ["0", "1"]
        by_hand = collection_of(NUMBERED, dict(enumerate(ASKED)), JUDGED)
        assert made.queries_fingerprint == by_hand.queries_fingerprint


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"queries": pd.DataFrame({"text": ASKED})},
            "queries is a table, expected a list of texts, query_id",
        ),
        ({"queries": [ASKED[0], None]}, "query 1 is None, expected a text of whole characters"),
        ({"queries": 7}, "from_texts: queries must be "),
        ({"queries": ASKED, "qrels": 7}, "from_texts: qrels must be "),
        (
            {"queries": ASKED, "qrels": {"5": {"0": 1}}},
            "texts: 1 judged test queries have no text, first '5'",
        ),
        ({"qrels": JUDGED}, "texts: 2 judged test queries have no text, first '0'"),
        (
            {"queries": ASKED, "qrels": {"0": {"d1": 1, "d0": 1}}},
            "texts: none of the 2 judged documents is among the texts: judged ids are like 'd0', those of "
            "the texts like '0'",
        ),
        ({"queries": ASKED, "qrels": {"0": {"0": 0.5}}}, "query 0, document 0: grade 0.5 is no whole number"),
        ({"queries": ASKED, "qrels": [1]}, "qrels: row 0 is 1, expected column name → value"),
        (
            {"queries": ASKED, "qrels": pd.DataFrame({"query": [0], "corpus-id": [0]})},
            "qrels need the columns query-id, corpus-id, score; they have ['query', 'corpus-id']",
        ),
        (
            {"queries": ASKED, "qrels": pd.DataFrame(JUDGED_ROWS + JUDGED_ROWS[:1])},
            "qrels: row 3: document 0 is judged twice for query 0",
        ),
        (
            {"queries": ASKED, "qrels": [{**JUDGED_ROWS[0], "query-id": math.nan}]},
            "an id must be a string or a whole number, got nan",
        ),
    ],
)
def test_queries_and_judgements_that_are_none_are_refused_in_words(given, message):
    with pytest.raises(ValueError, match=escape(message)):
        Collection.from_texts(TEXTS, **given)


@pytest.mark.parametrize("question", ["is the sea salt?", "so long a question " * 20, ""])
def test_a_question_in_the_place_of_many_is_refused_with_what_to_give(question):
    with pytest.raises(FileNotFoundError, match="no such file of queries; give texts as a list"):
        Collection.from_texts(TEXTS, queries=question)
    with pytest.raises(FileNotFoundError, match="no such file"):
        Collection.from_texts(TEXTS, queries=ASKED, qrels="gone.tsv")


# --- without any judgements --------------------------------------------------------------------

SEA = {"s1": "Salt comes from the sea.", "s2": "Bees make honey.", "s3": "the honey of bees"}


def unjudged(**changed):
    """Three texts and three queries without judgements; the query `s2` is a document."""
    return Collection.from_texts(
        SEA, queries={"q1": "where is salt from", "s2": " bees MAKE honey.", "s3": "wax"}, **changed
    )


def test_where_nothing_is_judged_all_queries_are_searched():
    made = unjudged()
    assert made.queries == made.all_queries
    assert list(made.queries) == ["q1", "s2", "s3"]
    assert made.qrels == {}
    assert made.own_documents == {"s2"}
    lines = ["q1\twhere is salt from", "s2\t bees MAKE honey.", "s3\twax"]
    expected = hashlib.sha256(b"".join(line.encode() + b"\xff" for line in lines)).hexdigest()[:16]
    assert made.queries_fingerprint == expected


def test_one_judgement_in_any_split_leaves_unjudged_queries_out_as_ever():
    made = replace(unjudged(), all_qrels={"test": {}, "train": {"q1": {"s1": 1}}})
    assert (made.queries, made.own_documents) == ({}, frozenset())
    assert list(made.with_split("train").queries) == ["q1"]
    assert made.sample(2, 2).queries == {}


def test_without_judgements_other_splits_are_refused_and_the_same_one_stays():
    made = unjudged()
    assert made.with_split("test").queries == made.queries
    with pytest.raises(ValueError, match=r"texts has no split 'dev', only \['test'\]"):
        made.with_split("dev")


def test_a_sample_without_judgements_takes_queries_and_passages_by_the_hash_of_their_ids():
    def by_hash(ids, number):
        return set(sorted(ids, key=lambda i: hashlib.sha256(i.encode()).hexdigest())[:number])

    made = unjudged()
    sample = made.sample(2, 2)
    assert set(sample.queries) == by_hash(made.queries, 2)
    assert set(sample.doc_ids) == by_hash(SEA, 2)
    assert (sample.qrels, sample.scope) == ({}, "2 of 3 passages")
    assert made.sample(1, 1, keep=["s3"]).doc_ids == ["s3"]


def test_without_judgements_an_evaluation_is_refused_in_words():
    with pytest.raises(ValueError, match="no judgements: nothing to evaluate against"):
        evaluate(unjudged().qrels, {"q1": {"s1": 1.0}})


def test_without_judgements_bm25_and_vectors_search_every_query_but_not_for_itself(tmp_path, plain_folder):
    made = unjudged()
    bm25 = BM25.build(made, tmp_path / "bm25").search(made.queries)
    assert {query_id: list(hits) for query_id, hits in bm25.items()} == {"q1": ["s1"], "s2": ["s3"], "s3": []}
    how = {"pooling": "mean", "query_max_length": 16, "passage_max_length": 16}
    encoder = BiEncoder.from_pretrained(plain_folder, "cpu", **how)
    encoded = encode_collection(tmp_path / "vectors", encoder, made)
    index = build_index("exact", encoded.vectors, encoded.doc_ids, encoder.config.similarity)
    query_emb = encoder.encode_queries(list(made.queries.values()))
    run = index.search_run(list(made.queries), query_emb, 10, "dense", made.own_documents)
    found = {query_id: sorted(hits) for query_id, hits in run.items()}
    assert found == {"q1": ["s1", "s2", "s3"], "s2": ["s1", "s3"], "s3": ["s1", "s2", "s3"]}


def test_without_judgements_an_audit_counts_the_queries_as_not_judged():
    audit = audit_collection(unjudged())
    assert (audit.num_passages, audit.num_queries, audit.num_judgements) == (3, 0, 0)
    assert audit.queries_without_judgements == ["q1", "s2", "s3"]
    assert (audit.queries_as_documents, audit.ids_as_documents) == (["s2"], ["s3"])
    assert ("queries without judgements", "3") in audit.rows()


# --- a query that is a document ----------------------------------------------------------------


def alike(one, other):
    """Whether two texts are equal but for case and white space, as a plain loop over words says."""
    return [word.lower() for word in one.split()] == [word.lower() for word in other.split()]


def own_by_hand(collection):
    """Ids of a split's queries that have id and text of a document and are not judged relevant to it."""
    own = set()
    for query_id, text in collection.all_queries.items():
        for doc_id, title, body in collection.passages:
            same = doc_id == query_id and (alike(text, body) or alike(text, f"{title} {body}"))
            relevant = any(q.get(query_id, {}).get(doc_id, 0) > 0 for q in collection.all_qrels.values())
            asked = query_id in collection.qrels or not any(map(len, collection.all_qrels.values()))
            if same and not relevant and asked:
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
