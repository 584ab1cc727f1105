"""Training data: one example a query however it is stored, and nothing of the evaluation in it."""

import gzip
import hashlib
import json
from dataclasses import replace
from re import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpr.data.beir import read_beir
from dpr.data.collection import Collection, Passage
from dpr.data.examples import Example
from dpr.data.loading import load_collection, load_training_data
from dpr.data.text import normalise
from dpr.data.training_data import TrainingData, as_collection, merge
from dpr.data.trec import read_qrels
from dpr.data.triples import read_training_tsv


def data_of(*examples, **texts):
    """Training data of these examples, with `text of …` for each passage whose text is not given."""
    named = {doc_id for e in examples for doc_id in (*e.positives, *e.negatives)}
    return TrainingData("made", examples, {**{d: f"text of {d}" for d in sorted(named)}, **texts})


def numbered(count):
    """As many examples, each with one positive."""
    return data_of(*(Example(f"q{n}", f"query {n}", {f"d{n}": 1}) for n in range(count)))


def collection_of(queries, qrels, texts, split="train"):
    """A collection with one split."""
    return Collection(
        "made", [Passage(d, "", text) for d, text in texts.items()], queries, {split: qrels}, split
    )


def in_words(data):
    """The examples with texts in the place of ids: (query, {positive: grade}, [negatives])."""
    return [
        (
            e.query,
            {data.passages[d]: grade for d, grade in e.positives.items()},
            [data.passages[d] for d in e.negatives],
        )
        for e in data.examples
    ]


@pytest.fixture
def read(tmp_path):
    """Write a text as a file and read it as training data."""

    def write_and_read(text, **options):
        (tmp_path / "made.tsv").write_text(text, encoding="utf-8")
        return read_training_tsv(tmp_path / "made.tsv", **options)

    return write_and_read


# --- from_collection ---------------------------------------------------------------------------


def test_judgements_become_positives_highest_grade_first_and_negatives():
    passages = [
        Passage("one", "Title", "text one"),
        Passage("two", "", "text two"),
        Passage("three", "", "text three"),
        Passage("zero", "", "text zero"),
        Passage("below", "Only a title", ""),
        Passage("copy", "", "Text  TWO"),
        Passage("empty", "", " \n"),
        Passage("nobody", "", "judged for no query"),
    ]
    qrels = {
        "t1": {"below": -1, "one": 1, "zero": 0, "two": 2, "copy": 0, "three": 1, "gone": 2, "empty": 2},
        "t2": {"zero": 1},
        "without-text": {"empty": 1, "gone": 1},
        "without-relevant": {"one": 0},
    }
    data = TrainingData.from_collection(
        Collection("made", passages, {q: f"query {q}" for q in qrels}, {"dev": qrels}, "dev")
    )
    assert data.examples == [
        Example("t1", "query t1", {"two": 2, "one": 1, "three": 1}, ("zero", "below")),
        Example("t2", "query t2", {"zero": 1}),
    ]
    assert list(data.examples[0].positives) == ["two", "one", "three"]
    assert data.name == "made/dev"
    assert data.preparation.duplicate_passages == 1
    assert (data.passages["one"], data.passages["below"]) == ("Title text one", "Only a title")
    assert "nobody" not in data.passages


def test_one_query_under_two_ids_is_one_example_with_the_higher_of_two_grades():
    qrels = {"a": {"d1": 1, "d2": 0, "d3": 0}, "b": {"d1": 2, "d2": 1}, "c": {"d3": 1}}
    texts = {d: d for d in ("d1", "d2", "d3")}
    data = TrainingData.from_collection(
        collection_of({"a": "Do masks", "b": " do  MASKS", "c": "other"}, qrels, texts)
    )
    assert data.examples == [
        Example("a", "Do masks", {"d1": 2, "d2": 1}, ("d3",)),
        Example("c", "other", {"d3": 1}),
    ]
    assert data.preparation.duplicate_queries == 1


def test_the_test_split_is_not_trained_on(tiny_collection):
    with pytest.raises(ValueError, match="tiny: the test split is for evaluation; train on another one"):
        TrainingData.from_collection(tiny_collection)
    assert len(TrainingData.from_collection(tiny_collection.with_split("train")).examples) == 5


def test_a_collection_that_nothing_can_be_learned_from_is_refused():
    with pytest.raises(ValueError, match="made/train: no training example"):
        TrainingData.from_collection(collection_of({"t": "query"}, {"t": {"d": 0}}, {"d": "text"}))


# --- read_training_tsv -------------------------------------------------------------------------


def test_a_query_written_for_several_passages_has_all_of_them_as_positives(tiny_collection):
    written = {"d1": ["do masks help", "  ", "what filters air"], "d3": ["Do masks  help"], "d2": []}
    data = TrainingData.from_queries("written", tiny_collection, written)
    assert [(e.query, dict(e.positives), e.negatives) for e in data.examples] == [
        ("do masks help", {"d1": 1, "d3": 1}, ()),
        ("what filters air", {"d1": 1}, ()),
    ]
    assert data.passages == {d: tiny_collection.by_id[d].contents for d in ("d1", "d3")}
    judged = replace(tiny_collection, all_qrels={"test": {"q1": {"d2": 1}}})
    other = TrainingData.from_queries("written", judged, written)
    assert other.fingerprint == data.fingerprint  # judgements are not read
    with pytest.raises(ValueError, match="tiny lacks 1 documents with queries, first 'd99'"):
        TrainingData.from_queries("written", tiny_collection, {"d99": ["zinc"]})
    with pytest.raises(ValueError, match="written: no training example"):
        TrainingData.from_queries("written", tiny_collection, {"d1": [""]})


@pytest.mark.parametrize("columns", [2, 3, 4])
def test_a_line_is_a_query_its_positive_and_as_many_negatives_as_given(read, columns):
    names = ["positive", "negative", "other"][: columns - 1]
    rows = [[f"query {n}", *(f"{name} {n}" for name in names)] for n in range(3)]
    data = read("".join("\t".join(row) + "\n" for row in rows))
    assert in_words(data) == [(row[0], {row[1]: 1}, row[2:]) for row in rows]
    assert [e.query_id for e in data.examples] == ["q1", "q2", "q3"]
    assert data.name == "made"
    assert read("a\tb\n", name="pairs").name == "pairs"


def test_a_query_given_again_is_one_example_with_all_its_positives_and_negatives(read):
    data = read("who\tfirst\tbad\nother\tbad\tfirst\n WHO \tsecond\tFIRST\nwho\tfirst\tworse\n")
    assert in_words(data) == [
        ("who", {"first": 1, "second": 1}, ["bad", "worse"]),
        ("other", {"bad": 1}, ["first"]),
    ]
    assert [e.query_id for e in data.examples] == ["q1", "q2"]
    assert data.preparation.duplicate_queries == 2


def test_equal_texts_are_one_passage_and_texts_alike_but_for_case_are_counted(read):
    data = read("a\tsame\tone\nb\tone\tSame\nc\tother\t same\n")
    assert sorted(data.passages.values()) == ["Same", "one", "other", "same"]
    assert data.preparation.duplicate_passages == 1


@pytest.mark.parametrize("name", ["made.tsv", "made.tsv.gz"])
def test_byte_order_mark_line_ends_and_blank_lines_are_no_content(tmp_path, name):
    content = "\ufeffasked\tpositive\r\n\r\n  \nother\t second \r\n".encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    data = read_training_tsv(tmp_path / name)
    assert in_words(data) == [("asked", {"positive": 1}, []), ("other", {"second": 1}, [])]
    assert [e.query_id for e in data.examples] == ["q1", "q4"]
    assert data.preparation.bad_lines == ()


BAD_LINES = {
    "query\tpositive": "expected 3 fields as in the first line, found 2",
    "query": "expected 3 fields as in the first line, found 1",
    "query\tpositive\tnegative\tmore": "expected 3 fields as in the first line, found 4",
    "\tpositive\tnegative": "field 1 is empty",
    "query\t \t": "field 2, 3 is empty",
    "query\tthe same\t THE  same": "the negative is the positive",
}


@pytest.mark.parametrize("bad", BAD_LINES)
def test_a_bad_line_is_skipped_where_allowed_and_otherwise_named_by_file_line_and_reason(read, tmp_path, bad):
    text = f"good\tone\ttwo\n\n{bad}\nlast\tthree\tfour\n"
    where = f"{tmp_path / 'made.tsv'}:3: {BAD_LINES[bad]}"
    with pytest.raises(ValueError, match=escape(f"{where}; 1 bad lines, 0 may be skipped (max_bad_lines)")):
        read(text)
    data = read(text, max_bad_lines=1)
    assert data.preparation.bad_lines == (where,)
    assert [e.query_id for e in data.examples] == ["q1", "q4"]
    assert sorted(data.passages.values()) == ["four", "one", "three", "two"]


def test_one_bad_line_more_than_allowed_is_an_error_that_names_the_first(read):
    text = "good\tone\nbad\ngood\ttwo\nworse\n"
    assert len(read(text, max_bad_lines=2).preparation.bad_lines) == 2
    with pytest.raises(ValueError, match=r"made\.tsv:2: .*; 2 bad lines, 1 may be skipped"):
        read(text, max_bad_lines=1)


def test_a_file_without_tabs_or_without_a_good_line_is_refused(read, tmp_path):
    with pytest.raises(ValueError, match=r"made\.tsv:1: expected query, positive .* by tabs; found no tab"):
        read("one\ntwo\n")
    with pytest.raises(ValueError, match="made: no training example"):
        read("one\ntwo\n", max_bad_lines=2)
    with pytest.raises(FileNotFoundError, match=r"none\.tsv: no such file"):
        read_training_tsv(tmp_path / "none.tsv")


words = st.sampled_from(["a", "A", "b", "b  b", "B b", "c", "d"])


@given(rows=st.lists(st.tuples(words, words, words), min_size=1, max_size=12))
def test_any_file_becomes_what_a_plain_loop_makes_of_it(scratch, rows):
    path = scratch / "random.tsv"
    path.write_text("".join("\t".join(row) + "\n" for row in [("z", "y", "x"), *rows]))
    data = read_training_tsv(path, max_bad_lines=len(rows))
    queries, positives, negatives, bad = {"z": "z"}, {"z": ["y"]}, {"z": ["x"]}, 0
    for query, positive, negative in rows:
        if normalise(positive) == normalise(negative):
            bad += 1
            continue
        key = normalise(query)
        queries.setdefault(key, query)
        positives.setdefault(key, []).append(positive)
        negatives.setdefault(key, []).append(negative)
    expected = []
    for key, query in queries.items():
        relevant = {normalise(text) for text in positives[key]}
        others = [text for text in negatives[key] if normalise(text) not in relevant]
        expected.append((query, dict.fromkeys(positives[key], 1), list(dict.fromkeys(others))))
    assert in_words(data) == expected
    assert len(data.preparation.bad_lines) == bad
    used = {text for _, *texts in [("z", "y", "x"), *rows] for text in texts} & set(data.passages.values())
    assert data.preparation.duplicate_passages == len(used) - len({normalise(text) for text in used})
    assert data.preparation.duplicate_queries == len(rows) + 1 - bad - len(queries)


def test_the_name_of_a_gzipped_file_is_without_both_endings(tmp_path):
    (tmp_path / "pairs.tsv.gz").write_bytes(gzip.compress(b"asked\tpositive\n"))
    assert read_training_tsv(tmp_path / "pairs.tsv.gz").name == "pairs"


# --- files of ids ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [
        ["121352\t2912791\t7282917", "634306\t3947\t2"],
        ["q12\tD1234\tD99", "q7\tD8\tD1"],
        ["MED-10\tMED-2427"],
        ["1090270\tmarco_doc_17_3", "65\tmarco_doc_09_1"],
        ["t-7\thttp://made.up/doc/7.html"],
        ["q1\tD1234"] * 3,
    ],
)
def test_a_file_of_ids_is_refused_by_name_and_first_query(read, tmp_path, rows):
    first = rows[0].split("\t")[0]
    message = f"{tmp_path / 'made.tsv'}: its columns are ids such as {first}, not texts; put the texts"
    with pytest.raises(ValueError, match=escape(message)):
        read("\n".join(rows))


@pytest.mark.parametrize(
    "rows",
    [
        ["蜂は何を食べるか\t蜂は花の蜜を吸う。\t川は長い。"],
        ["蜂2匹\t蜂は花の蜜を2回吸う。"],
        ["蜜蜂吃什么\t蜜蜂采蜜。"],
        ["ผึ้งกินอะไร\tผึ้งดูดน้ำหวาน"],
        ["bees\tnectar\tsalt"],
        ["B12\tvitamin"],
        ["2 + 2\t4"],
        ["1912\tthe year of 1,000 storms"],
        ["q12\tD1234\tD99", "q13\tD1\tsome text"],
        ["some text\tD1", "q13\tD2"],
    ],
)
def test_a_file_with_a_text_in_it_is_read_however_short_or_without_spaces(read, rows):
    expected = [(query, {positive: 1}, others) for query, positive, *others in (r.split("\t") for r in rows)]
    assert in_words(read("\n".join(rows))) == expected


def test_bad_lines_do_not_make_texts_of_ids(read):
    with pytest.raises(ValueError, match=r"made\.tsv: its columns are ids such as q1, not texts"):
        read("q1\tD1\na line without a tab\nq2\tD2\n", max_bad_lines=1)


# --- mending -----------------------------------------------------------------------------------


def test_wrongly_decoded_text_is_mended_counted_and_shown(read):
    data = read("what is a cafÃ©\tthe cityâ€™s cafÃ©\tfine\nwhat is tea\tthe cityâ€™s cafÃ©\tcafÃ©\n")
    assert in_words(data) == [
        ("what is a café", {"the city’s café": 1}, ["fine"]),
        ("what is tea", {"the city’s café": 1}, ["café"]),
    ]
    assert data.preparation.num_mended == 3  # a text once, however often it is named
    assert set(data.preparation.mended) == {
        ("what is a cafÃ©", "what is a café"),
        ("the cityâ€™s cafÃ©", "the city’s café"),
        ("cafÃ©", "café"),
    }


@pytest.mark.parametrize(
    "text", ["“curly” and ‘curly’", "ﬁne ligatures", "Ｗｉｄｅ", "e\u0301 in two parts", "Å"]
)
def test_text_that_is_only_unusual_is_left_alone(read, text):
    data = read(f"{text}?\t{text}\n")
    assert in_words(data) == [(f"{text}?", {text: 1}, [])]
    assert (data.preparation.num_mended, data.preparation.mended) == (0, ())


def test_all_mended_texts_are_counted_and_twenty_shown():
    texts = {f"d{n}": f"cafÃ© {n}" for n in range(25)}
    preparation = TrainingData.from_collection(
        collection_of({"t": "q"}, {"t": dict.fromkeys(texts, 1)}, texts)
    ).preparation
    assert preparation.num_mended == 25
    assert preparation.mended == tuple((f"cafÃ© {n}", f"café {n}") for n in range(20))


def test_queries_alike_once_mended_are_one_example(read):
    data = read("what is a cafÃ©\tone\nwhat is a café\ttwo\n")
    assert in_words(data) == [("what is a café", {"one": 1, "two": 1}, [])]


@pytest.mark.parametrize("bad", ["\ufeff\ttext", "query\t\ufeff", "query\t\x01\x02"])
def test_a_text_of_which_mending_leaves_nothing_makes_a_bad_line(read, bad):
    data = read(f"good\tone\n{bad}\n", max_bad_lines=1)
    assert in_words(data) == [("good", {"one": 1}, [])]
    assert len(data.preparation.bad_lines) == 1


@pytest.mark.parametrize(
    "text",
    [
        "in HTML write &lt;b&gt; and &amp;amp; for an ampersand",
        "&#8220;quoted&#8221; &eacute;t&eacute;",
        "“curly” and ‘single’",
        "ﬁrst ﬂoor",
        "Ｗｉｄｅ ｶﾅ",
        "e\u0301 in two parts",
        "蜂は花の蜜を吸う。",
    ],
)
def test_a_passage_is_trained_on_as_it_is_searched(text):
    passages = [Passage("with", "On text", text), Passage("without", "", f" {text}\n")]
    qrels = {"t": {"with": 1, "without": 0}}
    collection = Collection("made", passages, {"t": f"{text}?"}, {"train": qrels}, "train")
    data = TrainingData.from_collection(collection)
    assert data.passages == {p.doc_id: p.contents for p in passages}
    assert in_words(data) == [(f"{text}?", {f"On text {text}": 1}, [text])]
    assert data.preparation.num_mended == 0


@pytest.mark.parametrize(
    ("asked", "dropped"),
    [
        ("what is a café", True),
        ("What  is a CAFÃ©", True),
        ("what is a cafe", False),
        ("what is a cafÃ©?", False),
    ],
)
def test_a_query_is_left_out_if_only_one_side_was_decoded_wrongly(asked, dropped):
    for query in ("what is a cafÃ©", "what is a café"):
        data = data_of(Example("q1", query, {"a": 1}), Example("q2", "other", {"a": 1}))
        test = collection_of({"t": asked}, {"t": {"d": 1}}, {"d": "d"}, "test")
        rest = data.without_queries(test)
        assert [e.query_id for e in rest.examples] == (["q2"] if dropped else ["q1", "q2"])


def test_a_passage_decoded_wrongly_has_the_key_of_the_right_one_and_is_no_negative_of_it():
    data = data_of(Example("q1", "one", {"a": 1}), Example("q2", "two", {"b": 1}), a="a café", b="A cafÃ©")
    assert data.text_keys["a"] == data.text_keys["b"]
    with pytest.raises(ValueError, match="query q1: b is a positive of it and not a negative"):
        data.with_negatives({"q1": ["b"]}, data.passages)


def test_queries_alike_but_for_decoding_are_one_when_sets_are_merged():
    first = data_of(Example("q1", "what is a café", {"a": 1}))
    second = data_of(Example("q1", "What is a cafÃ©", {"b": 1}))
    assert in_words(merge("both", first, second)) == [
        ("what is a café", {"text of a": 1, "text of b": 1}, [])
    ]


def test_training_data_of_a_thousand_examples_is_shown_in_a_line():
    assert len(repr(numbered(1000))) < 300
    assert repr(numbered(1000)) == "TrainingData(name='made')"


# --- TrainingData ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        ([], "made: no training example"),
        (
            [Example("q1", "one", {"d": 1}), Example("q1", "two", {"d": 1})],
            r"q1 \('two'\) is in two examples",
        ),
        (
            [Example("q1", "One", {"d": 1}), Example("q2", " oNe", {"d": 1})],
            r"q2 \(' oNe'\) is in two examples",
        ),
        ([Example("q1", "one", {}, ("d",))], "made: query q1 has no positive, or one graded 0"),
        ([Example("q1", "one", {"none": 1})], "made: query q1 names none, which has no text"),
        ([Example("q1", "one", {"blank": 1})], "made: query q1 names blank, which has no text"),
        ([Example("q1", "one", {"d": 1}, ("none",))], "made: query q1 names none, which has no text"),
    ],
)
def test_training_data_that_breaks_a_promise_is_refused(examples, message):
    with pytest.raises(ValueError, match=message):
        TrainingData("made", examples, {"d": "text", "blank": " \n"})


def test_passages_of_the_same_words_share_a_key():
    data = data_of(
        Example("q", "query", dict.fromkeys("abc", 1)), a="Two  words", b="two WORDS ", c="twowords"
    )
    assert data.text_keys["a"] == data.text_keys["b"] != data.text_keys["c"]
    assert list(data.text_keys) == ["a", "b", "c"]


# --- fingerprint -------------------------------------------------------------------------------


def test_the_fingerprint_is_sha256_over_each_query_and_its_passages_with_grades():
    data = data_of(
        Example("q", "Été", {"a": 2, "b": 1}, ("c",)), Example("r", "two", {"c": 1}), a="A", b="B", c="\ud800"
    )
    assert len(data.fingerprint) == 16
    parts = ["Été", [[2, "A"], [1, "B"]], ["\ud800"]], ["two", [[1, "\ud800"]], []]
    assert data.fingerprint == hashlib.sha256("".join(map(json.dumps, parts)).encode()).hexdigest()[:16]


BEFORE = data_of(
    Example("q1", "one", {"a": 2, "b": 1}, ("c", "d")), Example("q2", "two", {"c": 1}), e="another text"
)


@pytest.mark.parametrize(
    "first",
    [
        Example("q1", "other", {"a": 2, "b": 1}, ("c", "d")),
        Example("q1", "one", {"a": 2, "e": 1}, ("c", "d")),
        Example("q1", "one", {"a": 3, "b": 1}, ("c", "d")),
        Example("q1", "one", {"a": 2}, ("b", "c", "d")),
        Example("q1", "one", {"a": 2, "b": 1}, ("c", "e")),
        Example("q1", "one", {"a": 2, "b": 1}, ("d", "c")),
        Example("q1", "one", {"a": 2, "b": 1}, ("c",)),
    ],
)
def test_the_fingerprint_changes_with_a_query_a_positive_a_grade_or_a_negative(first):
    assert replace(BEFORE, examples=[first, BEFORE.examples[1]]).fingerprint != BEFORE.fingerprint


def test_the_fingerprint_changes_with_a_text_and_the_order_and_not_with_names():
    assert replace(BEFORE, passages={**BEFORE.passages, "d": "new"}).fingerprint != BEFORE.fingerprint
    assert replace(BEFORE, examples=BEFORE.examples[::-1]).fingerprint != BEFORE.fingerprint
    renamed = {f"new {doc_id}": text for doc_id, text in BEFORE.passages.items()}
    examples = [
        Example(
            f"new {e.query_id}",
            e.query,
            {f"new {d}": grade for d, grade in e.positives.items()},
            tuple(f"new {d}" for d in e.negatives),
        )
        for e in BEFORE.examples
    ]
    assert TrainingData("other", examples, renamed).fingerprint == BEFORE.fingerprint


def test_a_query_that_reads_like_a_passage_with_its_grade_has_a_fingerprint_of_its_own():
    texts = {"a": "text", "b": "other", "c": "last"}
    two = data_of(Example("q1", "one", {"a": 1}), Example("q2", "1 other", {"c": 1}), **texts)
    one = data_of(Example("q1", "one", {"a": 1, "b": 1, "c": 1}), **texts)
    assert one.fingerprint != two.fingerprint


# --- without_queries ---------------------------------------------------------------------------


def test_queries_that_are_evaluated_on_are_left_out_and_named_whatever_case_and_space():
    data = replace(
        data_of(
            *(
                Example(f"q{n}", text, {"d": 1})
                for n, text in enumerate(["Do  MASKS help", "two", "three", "4"])
            )
        ),
        preparation=replace(BEFORE.preparation, num_mended=9, dropped_queries=("before",)),
    )
    test = collection_of(
        {"a": "do masks help ", "b": "other"}, {"a": {"d": 1}, "b": {"d": 1}}, {"d": "d"}, "test"
    )
    dev = collection_of({"c": "THREE", "unjudged": "two"}, {"c": {"d": 1}}, {"d": "d"}, "dev")
    rest = data.without_queries(test, dev)
    assert [e.query for e in rest.examples] == ["two", "4"]
    assert rest.preparation.dropped_queries == ("before", "Do  MASKS help", "three")
    assert rest.preparation.num_mended == 9
    assert len(data.examples) == 4
    assert [e.query for e in data.without_queries(dev).without_queries(test).examples] == ["two", "4"]


def test_only_the_queries_of_the_split_that_is_evaluated_are_left_out(tiny_collection):
    train = TrainingData.from_collection(tiny_collection.with_split("train"))
    assert train.without_queries(tiny_collection).examples == train.examples
    with pytest.raises(ValueError, match="tiny/train: no training example"):
        train.without_queries(tiny_collection.with_split("train"))


def test_a_query_wrongly_decoded_in_training_and_test_alike_is_left_out():
    queries = {"t": "what is a cafÃ©", "u": "other", "q": "what is a cafÃ©"}
    qrels = {"train": {"t": {"d": 1}, "u": {"d": 1}}, "test": {"q": {"d": 1}}}
    collection = Collection("made", [Passage("d", "", "text")], queries, qrels, "train")
    rest = TrainingData.from_collection(collection).without_queries(collection.with_split("test"))
    assert [e.query for e in rest.examples] == ["other"]


# --- split -------------------------------------------------------------------------------------


@given(
    queries=st.lists(
        st.text("abAB ", min_size=1).filter(str.strip), min_size=3, max_size=30, unique_by=normalise
    ),
    share=st.floats(0.01, 0.99),
    seed=st.integers(0, 3),
    random=st.randoms(use_true_random=False),
)
def test_a_split_is_a_partition_by_query_whatever_the_order_and_the_ids(queries, share, seed, random):
    def data_in(order):
        return data_of(*(Example(f"q{n}", text, {f"d {normalise(text)}": 1}) for n, text in enumerate(order)))

    count = round(share * len(queries))
    if not 0 < count < len(queries):
        with pytest.raises(ValueError, match="leaves a part empty"):
            data_in(queries).split(share, seed)
        return
    train, held_out = data_in(queries).split(share, seed)
    assert len(held_out.examples) == count
    assert sorted(e.query for e in (*train.examples, *held_out.examples)) == sorted(queries)
    assert [e.query for e in train.examples] == [q for q in queries if q in {e.query for e in train.examples}]
    assert train.passages == held_out.passages == data_in(queries).passages
    shuffled = random.sample(queries, len(queries))
    assert {e.query for e in data_in(shuffled).split(share, seed)[1].examples} == {
        e.query for e in held_out.examples
    }


def test_all_rows_of_a_query_are_held_out_together(read):
    rows = [
        (f"Query {n % 40}" if n < 40 else f" query  {n % 40}", f"positive {n}", f"negative {n}")
        for n in range(80)
    ]
    data = read("".join("\t".join(row) + "\n" for row in rows))
    train, held_out = data.split(0.25, 0)
    assert (len(train.examples), len(held_out.examples)) == (30, 10)
    assert not {normalise(e.query) for e in train.examples} & {normalise(e.query) for e in held_out.examples}
    assert all(len(e.positives) == len(e.negatives) == 2 for e in (*train.examples, *held_out.examples))


def test_queries_are_held_out_by_the_hash_of_seed_and_text_so_another_seed_holds_out_others():
    held_out = [{e.query for e in numbered(100).split(0.2, seed)[1].examples} for seed in (0, 1)]
    for seed, queries in enumerate(held_out):
        by_hash = sorted(
            (f"query {n}" for n in range(100)), key=lambda q: hashlib.sha256(f"{seed} {q}".encode()).digest()
        )
        assert queries == set(by_hash[:20])
    assert len(held_out[0] & held_out[1]) < 12


@pytest.mark.parametrize("share", [0, 1, 0.1, 0.9, -0.5, 1.5])
def test_a_split_that_leaves_a_part_empty_is_refused(share):
    with pytest.raises(ValueError, match=f"a share of {share} of 3 queries leaves a part empty"):
        numbered(3).split(share, 0)


# --- with_negatives ----------------------------------------------------------------------------


def test_mined_negatives_take_the_place_of_those_there_are():
    data = data_of(Example("q1", "one", {"a": 1}, ("old",)), Example("q2", "two", {"b": 1}, ("old",)))
    mined = data.with_negatives(
        {"q1": ("b", "new"), "unknown": ("x",)}, {"new": "new text", "b": data.passages["b"]}
    )
    assert [e.negatives for e in mined.examples] == [("b", "new"), ()]
    assert [e.positives for e in mined.examples] == [{"a": 1}, {"b": 1}]
    assert mined.passages["new"] == "new text"
    assert [e.negatives for e in data.examples] == [("old",), ("old",)]
    assert "new" not in data.passages


@pytest.mark.parametrize("negative", ["a", "b", "copy"])
def test_a_positive_or_a_copy_of_one_under_another_id_is_refused_as_negative(negative):
    data = data_of(Example("q1", "one", {"a": 2, "b": 1}), Example("q2", "two", {"c": 1}))
    passages = {**data.passages, "copy": f" {data.passages['b'].upper()}"}
    with pytest.raises(ValueError, match=f"query q1: {negative} is a positive of it and not a negative"):
        data.with_negatives({"q1": ["c", negative]}, passages)
    assert data.with_negatives({"q2": [negative]}, passages).examples[1].negatives == (negative,)


@pytest.mark.parametrize("passages", [{}, {"new": " "}])
def test_a_mined_negative_without_text_is_refused(passages):
    with pytest.raises(ValueError, match="query q0 names new, which has no text"):
        numbered(2).with_negatives({"q0": ["new"]}, passages)


def test_the_text_of_a_positive_stays_as_it_was_mended():
    texts = {"a": "a cafÃ©", "b": "other"}
    data = TrainingData.from_collection(
        collection_of({"t": "one", "u": "two"}, {"t": {"a": 1}, "u": {"b": 1}}, texts)
    )
    assert data.with_negatives({"u": ["a"]}, texts).passages["a"] == "a café"


# --- as_collection -----------------------------------------------------------------------------


def test_training_data_as_a_collection_is_searched_over_all_its_passages_and_reads_back_alike():
    data = data_of(
        Example("q1", "one", {"a": 2, "b": 1}, ("c",)), Example("q2", "two", {"c": 1}), z="unnamed"
    )
    collection = as_collection(data)
    assert (collection.name, collection.split) == ("made", "dev")
    assert {d: passage.contents for d, passage in collection.by_id.items()} == data.passages
    assert collection.queries == {"q1": "one", "q2": "two"}
    assert collection.qrels == {"q1": {"a": 2, "b": 1}, "q2": {"c": 1}}
    assert TrainingData.from_collection(collection).examples == [
        replace(e, negatives=()) for e in data.examples
    ]
    assert as_collection(data, "held-out").split == "held-out"


# --- real data ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "queries", "examples", "dropped", "positives"),
    [("scifact", 809, 807, 2, 1.135), ("nfcorpus", 2590, 2576, 4, 42.86)],
)
def test_few_training_queries_are_test_queries_too_and_they_are_dropped(
    data_dir, name, queries, examples, dropped, positives
):
    test = read_beir(data_dir / name)
    qrels = read_qrels(data_dir / name / "qrels" / "train.tsv")  # before a dev part is held out
    data = TrainingData.from_collection(replace(test, all_qrels={"train": qrels}, split="train"))
    assert (len(qrels), len(data.examples)) == (queries, examples)
    assert data.preparation.duplicate_queries == queries - examples
    assert sum(len(e.positives) for e in data.examples) / examples == pytest.approx(positives, abs=0.005)
    by_hand = {" ".join(text.lower().split()) for text in test.queries.values()}
    rest = data.without_queries(test)
    assert len(rest.preparation.dropped_queries) == dropped == len(data.examples) - len(rest.examples)
    assert not by_hand & {" ".join(e.query.lower().split()) for e in rest.examples}


def test_squad_triples_have_10554_lines_and_each_question_once(data_dir, monkeypatch):
    monkeypatch.setenv("DPR_DATA_DIR", str(data_dir))
    data = load_training_data("squad-triples")
    assert (data.name, data.preparation.bad_lines) == ("squad-triples", ())
    assert len(data.examples) == 10_554 - data.preparation.duplicate_queries == 10_513
    assert data.preparation.num_mended == 1
    assert all(e.negatives for e in data.examples)
    train, held_out = data.split(0.1, 0)
    assert (len(train.examples), len(held_out.examples)) == (9_462, 1_051)
    assert len(as_collection(held_out).passages) == len(data.passages) == 2_067


def test_no_dev_or_test_query_is_left_among_those_of_scifact(data_dir):
    train, dev, test = (load_collection(data_dir / "scifact", split) for split in ("train", "dev", "test"))
    rest = TrainingData.from_collection(train).without_queries(dev, test)
    others = {normalise(text) for part in (dev, test) for text in part.queries.values()}
    assert not others & {normalise(e.query) for e in rest.examples}
    assert rest.preparation.dropped_queries


# --- several sets as one -----------------------------------------------------------------------


def test_a_query_of_several_sets_keeps_what_each_says_of_it():
    first = TrainingData("one", [Example("q1", "What is zinc?", {"d1": 1}, ("d2",))], {"d1": "a", "d2": "b"})
    second = TrainingData(
        "two",
        [Example("q1", "what is  ZINC?", {"d1": 2}), Example("q2", "why", {"d1": 2})],
        {"d1": "c"},
    )
    whole = merge("both", first, second)
    assert whole.name == "both"
    assert whole.passages == {"0-d1": "a", "0-d2": "b", "1-d1": "c"}
    assert [(e.query_id, e.query) for e in whole.examples] == [("0-q1", "What is zinc?"), ("1-q2", "why")]
    assert list(whole.examples[0].positives.items()) == [("1-d1", 2), ("0-d1", 1)]
    assert whole.examples[0].negatives == ("0-d2",)
    with pytest.raises(ValueError, match="none: no training example"):
        merge("none")


@pytest.mark.parametrize("header", ["query\tpositive\tnegative", "Question\tpos\tneg", "qid\tdoc\tdoc"])
def test_a_header_is_a_bad_line_and_no_query(tmp_path, header):
    path = tmp_path / "triples.tsv"
    path.write_text(f"{header}\ndo masks help\tthey filter\tzinc\n")
    with pytest.raises(ValueError, match=escape(f"{path}:1: it looks like a header; 1 bad lines")):
        read_training_tsv(path)
    assert [e.query for e in read_training_tsv(path, max_bad_lines=1).examples] == ["do masks help"]


def test_lines_that_end_with_a_bare_carriage_return_are_not_taken_for_one(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_bytes(b"do masks help\tthey filter\rdoes zinc help\tby a day\ris it far\tno\n")
    with pytest.raises(ValueError, match=escape(f"{path}:1: a carriage return inside it")):
        read_training_tsv(path)
