"""TREC files: what is written is what is read, in trec_eval's order, and nothing doubtful gets through."""

import csv
import gzip
import json
import math
import re
import struct
import xml.etree.ElementTree as ElementTree
from re import escape

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dpr.data.trec import (
    Run,
    ordered_hits,
    read_qrels,
    read_run,
    read_topics,
    single,
    without_own_documents,
    write_run,
)

LARGEST = 3.4028234663852886e38  # of single precision


def in_float32(score):
    """A score through four bytes and back: single precision without numpy."""
    return struct.unpack("f", struct.pack("f", score))[0]


def in_trec_order(scores):
    """What trec_eval's two comparisons give, as two stable sorts: by doc_id's bytes, then by score."""
    by_id = sorted(scores, key=lambda doc_id: doc_id.encode("utf-8"), reverse=True)
    return sorted(by_id, key=lambda doc_id: -in_float32(scores[doc_id]))


def write_lines(path, *lines):
    """Write lines, gzipped where the name says so, and give the path back."""
    data = "".join(line + "\n" for line in lines).encode("utf-8")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=6).filter(
    lambda s: [s] == s.split()
)
plain_ids = st.text("abcXYZ019-_.", min_size=1, max_size=4)
scores = st.one_of(
    st.sampled_from(
        [0.0, -0.0, 1.0, 1.0 + 1e-9, -1.0, 1e-45, -1e-45, 1e-38, LARGEST, -LARGEST, 16777216.0, 16777217.0]
    ),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(min_value=-LARGEST, max_value=LARGEST),
)
hits = st.dictionaries(st.one_of(plain_ids, ids), scores, min_size=1, max_size=8)


def best_first(unordered):
    """The same hits, best first but with ties as they come: what `write_run` asks for."""
    return {d: unordered[d] for d in sorted(unordered, key=lambda d: -in_float32(unordered[d]))}


runs = st.dictionaries(ids, hits.map(best_first), min_size=1, max_size=4)


# --- order -------------------------------------------------------------------------------------


def test_ties_are_broken_by_doc_id_descending():
    tied = {"d10": 1.0, "d9": 1.0, "d1": 1.0, "d2": 2.0}
    assert [doc_id for doc_id, _ in ordered_hits(tied)] == ["d2", "d9", "d10", "d1"]


def test_scores_that_differ_beyond_single_precision_are_ties():
    assert [doc_id for doc_id, _ in ordered_hits({"a": 1.0 + 1e-9, "b": 1.0})] == ["b", "a"]
    assert [doc_id for doc_id, _ in ordered_hits({"a": 1.0 + 1e-6, "b": 1.0})] == ["a", "b"]


def test_a_score_in_single_precision_keeps_24_bits():
    assert single(16777217.0) == 16777216.0
    assert single(0.1) == 0.100000001490116119384765625
    assert single(1e39) == math.inf
    assert single(-1e39) == -math.inf


@given(hits)
def test_hits_come_in_the_order_of_two_plain_sorts(unordered):
    ordered = ordered_hits(unordered)
    assert [doc_id for doc_id, _ in ordered] == in_trec_order(unordered)
    assert dict(ordered) == unordered


@settings(max_examples=60)
@given(
    hits=st.dictionaries(
        st.one_of(plain_ids, ids.filter(lambda s: "\0" not in s)), scores, min_size=1, max_size=6
    )
)
def test_trec_eval_itself_gives_every_hit_the_rank_that_we_do(hits):
    pytrec_eval = pytest.importorskip("pytrec_eval")
    wanted = {str(number): {doc_id: 1} for number, doc_id in enumerate(hits)}  # one relevant hit a query
    found = pytrec_eval.RelevanceEvaluator(wanted, {"recip_rank"}).evaluate(dict.fromkeys(wanted, hits))
    rank = {doc_id: rank for rank, (doc_id, _) in enumerate(ordered_hits(hits), start=1)}
    assert {n: round(1 / measures["recip_rank"]) for n, measures in found.items()} == {
        n: rank[doc_id] for n, [doc_id] in wanted.items()
    }


def test_a_truncated_run_keeps_the_best_hits_and_the_tag():
    run = Run({"q1": {"a": 1.0, "b": 3.0, "c": 2.0, "d": 2.0}, "q2": {"a": 1.0}}, "bm25")
    cut = run.truncated(2)
    assert cut == {"q1": {"b": 3.0, "d": 2.0}, "q2": {"a": 1.0}}
    assert list(cut["q1"]) == ["b", "d"]
    assert cut.tag == "bm25"
    assert run["q1"] == {"a": 1.0, "b": 3.0, "c": 2.0, "d": 2.0}


def test_a_run_does_not_change_with_what_it_was_made_from():
    made_from = {"q": {"a": 1.0}}
    run = Run(made_from)
    made_from["q"]["b"] = 2.0
    assert run == {"q": {"a": 1.0}}
    assert run.tag == "dpr"


# --- write_run ---------------------------------------------------------------------------------


def test_a_run_file_has_six_columns_ranks_from_one_and_ties_by_doc_id_descending(tmp_path):
    write_run(tmp_path / "run.trec", {"q2": {"d1": 2.5, "a": 0.5, "b": 0.5}, "q1": {"x": -1.0}}, "mine")
    assert (tmp_path / "run.trec").read_text() == (
        "q2 Q0 d1 1 2.5 mine\nq2 Q0 b 2 0.5 mine\nq2 Q0 a 3 0.5 mine\nq1 Q0 x 1 -1.0 mine\n"
    )


def test_scores_are_written_in_the_digits_of_single_precision(tmp_path):
    write_run(tmp_path / "run.trec", {"q": {"a": 0.1}}, "mine")
    assert (tmp_path / "run.trec").read_text() == "q Q0 a 1 0.1 mine\n"


@given(run=runs, tag=ids)
@example(run={"q": {"a": 1.0 + 1e-9, "b": 1.0}}, tag="t")
@pytest.mark.parametrize("name", ["run.trec", "run.trec.gz"])
def test_a_written_run_reads_back_in_single_precision_and_trec_order(scratch, name, run, tag):
    write_run(scratch / name, run, tag)
    read = read_run(scratch / name)
    assert read.tag == tag
    assert list(read) == list(run)
    for query_id, hits in run.items():
        assert list(read[query_id]) == in_trec_order(hits)
        for doc_id, score in hits.items():
            assert in_float32(read[query_id][doc_id]) == in_float32(score)


@given(run=runs)
@pytest.mark.parametrize("name", ["run.trec", "run.trec.gz"])
def test_a_run_read_and_written_again_has_the_same_bytes(scratch, name, run):
    write_run(scratch / name, run, "mine")
    first = (scratch / name).read_bytes()
    write_run(scratch / name, read_run(scratch / name))
    assert (scratch / name).read_bytes() == first


@settings(max_examples=50)
@given(
    run=st.dictionaries(plain_ids, st.dictionaries(plain_ids, scores, min_size=1).map(best_first), min_size=1)
)
@pytest.mark.parametrize("name", ["run.trec", "run.trec.gz"])
def test_ir_measures_reads_the_same_hits_in_the_same_order(scratch, name, run):
    ir_measures = pytest.importorskip("ir_measures")
    write_run(scratch / name, run)
    ours = [(q, d, score) for q, hits in read_run(scratch / name).items() for d, score in hits.items()]
    assert [tuple(hit)[:3] for hit in ir_measures.read_trec_run(str(scratch / name))] == ours


def test_the_tag_is_the_runs_own_unless_another_is_given(tmp_path):
    run = Run({"q": {"d": 1.0}}, "own")
    for tag, expected in ((None, "own"), ("other", "other")):
        write_run(tmp_path / "run.trec", run, tag)
        assert read_run(tmp_path / "run.trec").tag == expected
    write_run(tmp_path / "run.trec", {"q": {"d": 1.0}})
    assert read_run(tmp_path / "run.trec").tag == "dpr"


@pytest.mark.parametrize(
    ("run", "tag", "message"),
    [
        ({"q": {"d": math.nan}}, "t", "query q, document d: score nan is not finite"),
        ({"q": {"d": math.inf}}, "t", "query q, document d: score inf is not finite"),
        ({"q": {"d": 2.0, "e": -math.inf}}, "t", "query q, document e: score -inf is not finite"),
        ({"q": {"d": 1e39}}, "t", "query q, document d: score 1e+39 is not finite"),
        ({"q": {"d": None}}, "t", "query q, document d: score None is not finite"),
        ({"q 1": {"d": 1.0}}, "t", "query_id 'q 1' must be a string without white space"),
        ({"": {"d": 1.0}}, "t", "query_id '' must be a string without white space"),
        ({1.5: {"d": 1.0}}, "t", "an id must be a string or a whole number, got 1.5"),
        ({"q": {"d\t1": 1.0}}, "t", "query q: doc_id 'd\\t1' must be a string without white space"),
        ({"q": {"d\u00a01": 1.0}}, "t", "query q: doc_id 'd\\xa01' must be a string without white space"),
        ({"q": {"d ": 1.0}}, "t", "query q: doc_id 'd ' must be a string without white space"),
        ({"q": {"": 1.0}}, "t", "query q: doc_id '' must be a string without white space"),
        ({"q": {None: 1.0}}, "t", "an id must be a string or a whole number, got None"),
        ({"q": {"d": 1.0}}, "my run", "tag 'my run' must be a string without white space"),
        (Run({"q": {"d": 1.0}}, ""), None, "tag '' must be a string without white space"),
        ({"q": {"d": 0.1, "e": 0.9}}, "t", "query q: the score rises with rank, 0.1 to 0.9 at e"),
        (
            {"p": {"d": 1.0}, "q": {"d": 3.0, "e": 2.0, "f": 2.5}},
            "t",
            "query q: the score rises with rank, 2.0 to 2.5",
        ),
    ],
)
def test_what_cannot_stand_in_a_run_file_is_refused_and_the_old_file_stays(tmp_path, run, tag, message):
    path = tmp_path / "run.trec"
    path.write_text("old")
    with pytest.raises(ValueError, match=escape(f"{path}: {message}")):
        write_run(path, run, tag)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@given(distances=st.lists(st.floats(min_value=0, max_value=4, width=32), min_size=2, max_size=8, unique=True))
def test_distances_nearest_first_are_never_written_as_scores(scratch, distances):
    (scratch / "distances.trec").unlink(missing_ok=True)
    nearest_first = {f"d{number}": distance for number, distance in enumerate(sorted(distances))}
    with pytest.raises(ValueError, match="the score rises with rank"):
        write_run(scratch / "distances.trec", {"q": nearest_first})
    assert not (scratch / "distances.trec").exists()


# --- read_run ----------------------------------------------------------------------------------


def test_scores_decide_the_order_and_not_the_rank_column_or_the_order_of_lines(tmp_path):
    path = write_lines(
        tmp_path / "run.trec",
        "q1 Q0 low 1 1.0 sys",
        "q2 Q0 x 1 5 sys",
        "q1 Q0 high 2 3.0 sys",
        "q1 Q0 middle 3 2.0 sys",
    )
    assert list(read_run(path)["q1"].items()) == [("high", 3.0), ("middle", 2.0), ("low", 1.0)]
    assert list(read_run(path)) == ["q1", "q2"]


def test_ties_in_a_file_are_read_by_doc_id_descending_whatever_the_ranks_say(tmp_path):
    path = write_lines(tmp_path / "run.trec", "q Q0 a 1 1 t", "q Q0 b 2 1 t", "q Q0 c 3 1 t")
    assert list(read_run(path)["q"]) == ["c", "b", "a"]


def test_columns_may_be_separated_by_tabs_and_lines_by_cr_lf(tmp_path):
    (tmp_path / "run.trec").write_bytes(b"q\tQ0\td\t0\t1.5e-3\tt\r\n\r\nq   Q0  e\t1  -.5\tt")
    assert read_run(tmp_path / "run.trec") == {"q": {"d": 0.0015, "e": -0.5}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q Q0 e 2 0.5", "expected 6 columns (query_id Q0 doc_id rank score tag), got 5"),
        ("q Q0 e 2 0.5 my tag", "expected 6 columns (query_id Q0 doc_id rank score tag), got 7"),
        ("q Q0 e 2 nan t", "score 'nan' is not a finite number"),
        ("q Q0 e 2 -inf t", "score '-inf' is not a finite number"),
        ("q Q0 e 2 1e400 t", "score '1e400' is not a finite number"),
        ("q Q0 e 2 high t", "score 'high' is not a finite number"),
        ("q Q0 d 2 0.5 t", "document d comes twice for query q"),
        ("p Q0 e 1 0.5 u", "tag u after t; one file holds one run"),
    ],
)
@pytest.mark.parametrize("name", ["run.trec", "run.trec.gz"])
def test_a_run_line_that_is_wrong_is_named(tmp_path, name, line, message):
    path = write_lines(tmp_path / name, "q Q0 d 1 1.0 t", "", line, "q Q0 z 9 0.1 t")
    with pytest.raises(ValueError, match=escape(f"{path}:3: {message}")):
        read_run(path)


@pytest.mark.parametrize(
    "lines",
    [
        ["q Q0 d 1 0.1 t", "q Q0 e 2 0.4 t"],
        ["q Q0 d 1 0.1 t", "q Q0 e 2 0.1 t", "q Q0 f 3 0.2 t"],
        ["q Q0 f 3 -0.2 t", "q Q0 d 1 -0.9 t", "q Q0 e 2 -0.5 t"],
        ["good Q0 d 1 9 t", "good Q0 e 2 8 t", "q Q0 d 10 0.1 t", "q Q0 e 9 0.05 t"],
    ],
)
def test_distances_written_as_scores_are_refused(tmp_path, lines):
    path = write_lines(tmp_path / "run.trec", *lines)
    with pytest.raises(ValueError, match=escape(f"{path}: query q: scores rise with rank")):
        read_run(path)


def test_one_hit_or_all_hits_tied_are_not_taken_for_distances(tmp_path):
    path = write_lines(tmp_path / "run.trec", "p Q0 d 1 0.1 t", "q Q0 d 1 2 t", "q Q0 e 2 2 t")
    assert read_run(path) == {"p": {"d": 0.1}, "q": {"e": 2.0, "d": 2.0}}


def test_a_score_beyond_single_precision_is_read_as_trec_eval_reads_it(tmp_path):
    path = write_lines(tmp_path / "run.trec", "q Q0 a 1 1e39 t", "q Q0 b 2 1e38 t", "q Q0 c 3 2e39 t")
    assert list(read_run(path)["q"]) == ["c", "a", "b"]


# --- read_qrels --------------------------------------------------------------------------------

field = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=6)
judgements = st.dictionaries(
    field, st.dictionaries(field, st.integers(-2, 10), min_size=1, max_size=4), min_size=1, max_size=4
)


@given(judgements)
def test_both_forms_of_judgements_read_as_the_same(scratch, qrels):
    rows = [(q, d, grade) for q, grades in qrels.items() for d, grade in grades.items()]
    trec = write_lines(scratch / "qrels.txt", *(f"{q} 0  {d} {grade}" for q, d, grade in rows))
    header = "query-id\tcorpus-id\tscore"
    beir = write_lines(scratch / "qrels.tsv", header, *(f"{q}\t{d}\t{grade}" for q, d, grade in rows))
    assert read_qrels(trec) == read_qrels(beir) == qrels


def test_judgements_may_end_their_lines_with_cr_lf_and_be_gzipped(tmp_path):
    beir = write_lines(tmp_path / "qrels.tsv.gz", "query-id\tcorpus-id\tscore\r", "q\td\t-1\r", "q\te\t2.0\r")
    assert read_qrels(beir) == {"q": {"d": -1, "e": 2}}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q e 1", "expected 4 columns, got 3 (a BEIR file begins with the header query-id corpus-id score)"),
        ("q 0 e 1 x", "expected 4 columns, got 5"),
        ("q 0 e 1.5", "relevance must be a whole number, got 1.5"),
        ("q 0 e yes", "relevance 'yes' is not a finite number"),
        ("q 0 e nan", "relevance 'nan' is not a finite number"),
        ("q 0 e inf", "relevance 'inf' is not a finite number"),
        ("q 1 d 0", "document d is judged twice for query q"),
    ],
)
def test_a_trec_judgement_that_is_wrong_is_named(tmp_path, line, message):
    path = write_lines(tmp_path / "qrels.txt", "q 0 d 1", "", line)
    with pytest.raises(ValueError, match=escape(f"{path}:3: {message}")):
        read_qrels(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("q\te", "expected 3 columns, got 2"),
        ("q e 1", "expected 3 columns, got 1"),
        ("q\t0\te\t1", "expected 3 columns, got 4"),
        ("q\te\t0.5", "relevance must be a whole number, got 0.5"),
        ("q\te\t", "relevance '' is not a finite number"),
        ("q\td\t1", "document d is judged twice for query q"),
    ],
)
def test_a_beir_judgement_that_is_wrong_is_named(tmp_path, line, message):
    path = write_lines(tmp_path / "qrels.tsv", "query-id\tcorpus-id\tscore", "q\td\t1", line)
    with pytest.raises(ValueError, match=escape(f"{path}:3: {message}")):
        read_qrels(path)


def test_a_header_alone_holds_no_judgement(tmp_path):
    path = write_lines(tmp_path / "qrels.tsv", "query-id\tcorpus-id\tscore")
    with pytest.raises(ValueError, match=escape(f"{path}: a header and no judgement")):
        read_qrels(path)


@pytest.mark.parametrize("line", ["\td\t1", "q\t\t1"])
def test_a_beir_judgement_with_an_empty_id_is_refused(tmp_path, line):
    path = write_lines(tmp_path / "qrels.tsv", "query-id\tcorpus-id\tscore", line)
    with pytest.raises(ValueError, match=escape(f"{path}:2")):
        read_qrels(path)


# --- read_topics -------------------------------------------------------------------------------

text = st.text(st.characters(exclude_categories=["Cs", "Cc", "Cn"]), min_size=1).filter(str.strip)


@given(topics=st.dictionaries(field, text, min_size=1, max_size=4))
def test_the_three_forms_of_topics_read_as_the_same(scratch, topics):
    root = ElementTree.Element("topics")
    for query_id, words in topics.items():
        topic = ElementTree.SubElement(root, "topic", number=query_id)
        ElementTree.SubElement(topic, "question").text = words
    ElementTree.ElementTree(root).write(scratch / "topics.xml", encoding="utf-8", xml_declaration=True)
    tsv = write_lines(scratch / "topics.tsv", *(f"{q}\t{words}" for q, words in topics.items()))
    lines = (json.dumps({"_id": q, "text": words, "metadata": {}}) for q, words in topics.items())
    jsonl = write_lines(scratch / "queries.jsonl", *lines)
    expected = [(q, words.strip()) for q, words in topics.items()]
    assert list(read_topics(scratch / "topics.xml").items()) == expected
    assert list(read_topics(tsv).items()) == expected
    assert list(read_topics(jsonl).items()) == expected


def test_the_field_of_a_topic_is_the_one_asked_for(tmp_path):
    path = write_lines(
        tmp_path / "topics.xml",
        "<topics task='COVIDSearch'>",
        "<topic number='1'><query>masks</query><question>do masks help</question>",
        "<narrative>\n seeking trials\n</narrative></topic></topics>",
    )
    assert read_topics(path) == {"1": "do masks help"}
    assert read_topics(path, field="query") == {"1": "masks"}
    assert read_topics(path, field="narrative") == {"1": "seeking trials"}
    with pytest.raises(
        ValueError, match=escape(f"{path}: topic 1 has no <title>; query, question or narrative?")
    ):
        read_topics(path, field="title")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("topics.xml", "<topics><topic number='1'>", ": not XML"),
        ("topics.xml", "<topics>\n\n\n<topic></topics>", ":4: not XML"),
        ("topics.xml", "<topics><query>q</query></topics>", ": no query in it"),
        (
            "topics.xml",
            "<topics><topic number='1'><question/></topic></topics>",
            ": topic 1: query 1 has no text",
        ),
        ("topics.xml", "<topics><topic><question>q</question></topic></topics>", "the query id is missing"),
        (
            "topics.xml",
            "<t>" + 2 * "<topic number='1'><question>q</question></topic>" + "</t>",
            ": topic 1: query 1 comes twice",
        ),
        ("topics.tsv", "1 no tab", ":1: expected query_id⇥text, got 1 columns"),
        ("topics.tsv", "1\tq\tr", ":1: expected query_id⇥text, got 3 columns"),
        ("topics.tsv", "\tq", ":1: the query id is missing"),
        ("topics.tsv", "1\t ", ":1: query 1 has no text"),
        ("topics.tsv", "1\tq\n1\tq", ":2: query 1 comes twice"),
        ("topics.tsv", "query-id\ttext\n1\tq", ":1: 'query-id\\ttext' looks like a header; remove the line"),
        ("topics.tsv", "qid\tquery\n1\tq", ":1: 'qid\\tquery' looks like a header; remove the line"),
        ("queries.jsonl", '{"_id": "1", "text"', ":1: not JSON"),
        ("queries.jsonl", '["1", "q"]', ":1: expected a JSON object, got list"),
        ("queries.jsonl", '{"text": "q"}', ":1: the query id is missing or no string"),
        ("queries.jsonl", '{"_id": 1, "text": "q"}', ":1: the query id is missing or no string"),
        ("queries.jsonl", '{"_id": "1"}', ":1: query 1 has no text"),
        ("queries.jsonl", '{"_id": "1", "text": ["q"]}', ":1: query 1 has no text"),
        (
            "queries.jsonl",
            '{"_id": "1", "text": "q"}\n\n{"_id": "1", "text": "r"}',
            ":3: query 1 comes twice",
        ),
    ],
)
def test_topics_that_are_wrong_are_refused_by_name(tmp_path, name, content, message):
    path = write_lines(tmp_path / name, content)
    with pytest.raises(ValueError, match=escape(str(path)) + ".*" + escape(message)):
        read_topics(path)


def test_half_a_character_in_queries_is_replaced_and_the_first_line_and_number_said(tmp_path):
    texts = ["whole", "cut \\ud83d here", "\\ud83d\\ude00 whole", "\\ude00"]
    lines = [f'{{"_id": "q{n}", "text": "{text}"}}' for n, text in enumerate(texts)]
    path = write_lines(tmp_path / "queries.jsonl", lines[0], "", *lines[1:])
    message = f"2 queries held half a character (a lone surrogate), now \ufffd; first {path}:3"
    with pytest.warns(UserWarning, match=f"^{escape(message)}$") as warned:
        topics = read_topics(path)
    assert len(warned) == 1
    assert topics == {"q0": "whole", "q1": "cut \ufffd here", "q2": "\U0001f600 whole", "q3": "\ufffd"}


@pytest.mark.filterwarnings("error")
def test_queries_of_whole_characters_give_no_warning(tmp_path):
    path = write_lines(tmp_path / "queries.jsonl", '{"_id": "q", "text": "\\ud83d\\ude00 \ufffd"}')
    assert read_topics(path) == {"q": "\U0001f600 \ufffd"}


def test_half_a_character_in_the_id_of_a_query_is_refused(tmp_path):
    path = write_lines(tmp_path / "queries.jsonl", '{"_id": "q\\ud83d", "text": "whole"}')
    with pytest.raises(ValueError, match=escape(f"{path}:1: query id 'q\\ud83d' holds half a character")):
        read_topics(path)


def test_a_query_id_with_white_space_is_refused(tmp_path):
    path = write_lines(tmp_path / "queries.jsonl", '{"_id": "q 1", "text": "do masks help"}')
    with pytest.raises(ValueError, match=escape(f"{path}:1")):
        read_topics(path)


def test_gzipped_topics_are_read_by_the_ending_before_gz(tmp_path):
    path = write_lines(tmp_path / "queries.jsonl.gz", '{"_id": "q1", "text": "do masks help"}')
    assert read_topics(path) == {"q1": "do masks help"}


# --- any file at all ---------------------------------------------------------------------------

BEIR_LINES = "query-id\tcorpus-id\tscore\nq\td\t1\nq\te\t0\n"
GOOD_FILES = [
    (read_run, "run.trec", "q Q0 d 1 2.5 t\nq Q0 e 2 1.5 t\np Q0 d 1 9 t\n"),
    (read_run, "run.trec.gz", "q Q0 d 1 2.5 t\nq Q0 e 2 1.5 t\np Q0 d 1 9 t\n"),
    (read_qrels, "qrels.txt", "q 0 d 1\nq 0 e -1\np 0 d 2\n"),
    (read_qrels, "qrels.tsv", BEIR_LINES),
    (read_topics, "topics.xml", "<topics><topic number='1'><question>masks?</question></topic></topics>"),
    (read_topics, "topics.tsv", "1\tdo masks help\n2\tis zinc good\n"),
    (read_topics, "queries.jsonl", '{"_id": "1", "text": "masks"}\n{"_id": "2", "text": "zinc"}\n'),
]
SCRAPS = [
    "",
    " ",
    "\t",
    "\n",
    "\r",
    "\x85",
    "\0",
    "\ufeff",
    "q",
    "d",
    "1",
    "-",
    ".",
    "1e39",
    "nan",
    "1_0",
    "\u0663",
]
SCRAPS += ["<", ">", "</", "&x;", "&#1;", "<!DOCTYPE a>", "<?xml version='1.0' encoding='nope'?>", "]]>"]
SCRAPS += ['"', "{", "}", "[", ",", "null", "NaN", "\\ud800"]


@st.composite
def files(draw, good):
    """A good file with up to three words or signs of it replaced, left out or put where none was."""
    tokens = re.findall(r"\w+|\W", good)
    for _ in range(draw(st.integers(0, 3))):
        place, removed = draw(st.integers(0, len(tokens))), draw(st.integers(0, 1))
        tokens[place : place + removed] = [draw(st.sampled_from(SCRAPS) | st.text(max_size=3))]
    return "".join(tokens).encode("utf-8")


@pytest.mark.parametrize(("reader", "name", "good"), GOOD_FILES, ids=[name for _, name, _ in GOOD_FILES])
@given(examples=st.data(), compressed=st.booleans())
def test_any_file_is_read_or_refused_by_name(scratch, reader, name, good, examples, compressed):
    path = scratch / f"any-{name}"
    data = examples.draw(files(good) | st.text().map(str.encode) | st.binary())
    path.write_bytes(gzip.compress(data) if compressed and path.suffix == ".gz" else data)
    try:
        read = reader(path)
    except ValueError as error:
        assert str(error).startswith(str(path))  # noqa: PT017
    else:
        assert read
        assert all(read.values())


@pytest.mark.parametrize(("reader", "name", "good"), GOOD_FILES, ids=[name for _, name, _ in GOOD_FILES])
def test_a_file_that_is_empty_missing_or_no_utf8_is_refused(tmp_path, reader, name, good):
    path = tmp_path / name
    with pytest.raises(FileNotFoundError, match=escape(str(path))):
        reader(path)
    for data, message in ((b"", "the file is empty"), (good.encode() + b"\xff", "not UTF-8")):
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
        with pytest.raises(ValueError, match=escape(str(path)) + ".*" + message):
            reader(path)


# --- real files --------------------------------------------------------------------------------


def test_trec_covid_has_50_topics_each_with_three_fields(data_dir):
    path = data_dir / "trec-covid" / "topics.covid-round5.xml"
    fields = [read_topics(path, field) for field in ("query", "question", "narrative")]
    assert [list(topics) for topics in fields] == [[str(number) for number in range(1, 51)]] * 3
    assert [topics["1"].split()[0] for topics in fields] == ["coronavirus", "what", "seeking"]
    assert read_topics(data_dir / "trec-covid" / "queries.jsonl") == fields[1]


def test_trec_covid_judgements_have_the_published_numbers(data_dir):
    beir = read_qrels(data_dir / "trec-covid" / "qrels" / "test.tsv")
    round_5 = read_qrels(data_dir / "trec-covid" / "qrels.covid-round5.txt")
    assert (len(beir), sum(map(len, beir.values()))) == (50, 66_334)
    assert (len(round_5), sum(map(len, round_5.values()))) == (50, 23_151)
    assert {grade for grades in round_5.values() for grade in grades.values()} == {-1, 0, 1, 2}


def mean_precisions(run, qrels):
    """P@20 and average precision from the order of hits alone, averaged over the judged queries."""
    at_20, average = [], []
    for query_id, grades in qrels.items():
        relevant = [grades.get(doc_id, 0) > 0 for doc_id in run[query_id]]
        at_20.append(sum(relevant[:20]) / 20)
        found = [
            sum(relevant[:rank]) / rank for rank, is_relevant in enumerate(relevant, start=1) if is_relevant
        ]
        average.append(sum(found) / sum(grade > 0 for grade in grades.values()))
    return round(sum(at_20) / len(qrels), 4), round(sum(average) / len(qrels), 4)


def test_official_runs_read_in_our_order_have_their_official_scores(data_dir):
    qrels = read_qrels(data_dir / "trec-covid" / "qrels.covid-round5.txt")
    folder = data_dir / "trec-covid" / "official-runs"
    with (folder / "leaderboard.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert len(rows) == 8
    for row in rows:
        run = read_run(folder / f"{row['tag']}.trec.gz")
        assert (run.tag, len(run)) == (row["tag"], 50)
        assert mean_precisions(run, qrels) == (float(row["P@20"]), float(row["map"]))


def test_an_official_run_written_twice_has_the_same_bytes_and_the_same_hits(data_dir, tmp_path):
    run = read_run(data_dir / "trec-covid" / "official-runs" / "bm25_bl_run5.trec.gz").truncated(100)
    assert sum(map(len, run.values())) == 5000
    for name in ("first.trec.gz", "second.trec.gz"):
        write_run(tmp_path / name, run)
    assert (tmp_path / "first.trec.gz").read_bytes() == (tmp_path / "second.trec.gz").read_bytes()
    again = read_run(tmp_path / "first.trec.gz")
    assert [(q, list(hits)) for q, hits in again.items()] == [(q, list(hits)) for q, hits in run.items()]


def test_published_runs_of_the_dl_tracks_cover_every_judged_query(data_dir):
    for year, num_queries in (("dl19", 43), ("dl20", 54)):
        judged = set(read_qrels(data_dir / "msmarco-dl" / "qrels" / f"{year}.tsv"))
        assert len(judged) == num_queries
        paths = sorted((data_dir / "msmarco-dl" / "published-runs").glob(f"{year}.*.trec.gz"))
        assert len(paths) == 6
        for path in paths:
            run = read_run(path)
            assert set(run) == judged
            assert run.tag == path.name.removeprefix(f"{year}.").removesuffix(".trec.gz")


@pytest.mark.parametrize("rank", ["-", "NaN", "n/a", "RANK"])
def test_a_rank_column_that_is_no_number_is_not_looked_at(tmp_path, rank):
    lines = f"q1 Q0 d1 {rank} 1.0 mine", f"q1 Q0 d2 {rank} 2.0 mine", "q2 Q0 d1 1 1 mine"
    (tmp_path / "x.run").write_text("\n".join(lines))
    assert read_run(tmp_path / "x.run") == {"q1": {"d2": 2.0, "d1": 1.0}, "q2": {"d1": 1.0}}
    (tmp_path / "y.run").write_text(f"q1 Q0 d1 1 1.0 mine\nq1 Q0 d2 {rank} 2.0 mine\n")
    assert list(read_run(tmp_path / "y.run")["q1"]) == ["d2", "d1"]


def test_ids_that_are_whole_numbers_become_text_and_others_are_refused():
    assert Run({1: {np.int64(7): 2.0, "8": 1.0}}) == {"1": {"7": 2.0, "8": 1.0}}
    for bad in (None, 1.0, True, ("a",)):
        with pytest.raises(ValueError, match="an id must be a string or a whole number, got"):
            Run({"q": {bad: 1.0}})


NO_SCORES = [math.nan, math.inf, -math.inf, np.float32("nan"), np.float16("inf"), "1.0", None, [1.0], 1j, ""]


@pytest.mark.parametrize("score", NO_SCORES, ids=repr)
def test_a_score_that_is_no_finite_number_is_refused_by_query_and_document(score):
    message = f"query 7, document d2: score {score!r} is not a finite number"
    with pytest.raises(ValueError, match=escape(message)):
        Run({"q": {"d1": 1.0}, 7: {"d1": 2.0, "d2": score}})


@pytest.mark.parametrize("number", [int, float, np.float16, np.float32, np.float64, np.int64, np.uint8])
def test_a_score_may_be_any_number_of_python_or_numpy(number):
    assert Run({"q": {"a": number(3), "b": number(0)}}) == {"q": {"a": 3, "b": 0}}


@pytest.mark.parametrize("hits", [None, [("q", "d", 1.0)], {"q": ["d"]}, {"q": None}, {"q": {"d"}}, "run"])
def test_what_is_no_mapping_of_mappings_is_no_run(hits):
    with pytest.raises(ValueError, match="expected query_id → doc_id → value, got"):
        Run(hits)


def test_a_run_over_a_thousand_queries_is_shown_in_a_line():
    run = Run({f"q{n}": {f"d{m}": float(m) for m in range(1000)} for n in range(1000)}, "bm25")
    assert repr(run) == "<Run bm25: 1,000 queries, 1,000,000 hits>"


@given(
    run=st.dictionaries(st.sampled_from("abcd"), st.dictionaries(st.sampled_from("abcde"), scores)),
    own=st.sets(st.sampled_from("abcx")),
    depth=st.integers(1, 5),
)
def test_a_query_that_is_a_document_loses_that_hit_alone_before_the_cut(run, own, depth):
    before = Run(run, "tag")
    found = without_own_documents(before, own, depth)
    expected = {}
    for query_id, scores in run.items():
        ordered = [d for d in in_trec_order(scores) if not (d == query_id and query_id in own)]
        expected[query_id] = {d: scores[d] for d in ordered[:depth]}
    assert {q: list(hits.items()) for q, hits in found.items()} == {
        q: list(hits.items()) for q, hits in expected.items()
    }
    assert (found.tag, before) == ("tag", run)


@pytest.mark.parametrize("number", ["\u0661", "\uff11", "1_0", "\u00b2", "0x1"])
def test_a_number_in_other_digits_than_ascii_ones_is_refused_by_file_and_line(tmp_path, number):
    judged = write_lines(tmp_path / "qrels.txt", "q 0 d 1", f"q 0 e {number}")
    with pytest.raises(ValueError, match=escape(f"{judged}:2: relevance {number!r} is not a finite number")):
        read_qrels(judged)
    run = write_lines(tmp_path / "run.trec", "q Q0 d 1 2.0 t", f"q Q0 e 2 {number} t")
    with pytest.raises(ValueError, match=escape(f"{run}:2: score {number!r} is not a finite number")):
        read_run(run)


@pytest.mark.parametrize("line", ["7\ttitle of it", "q1\tquery speed", "1\t2024", "qid7\tdocuments"])
def test_a_first_query_is_no_header(tmp_path, line):
    assert len(read_topics(write_lines(tmp_path / "topics.tsv", line, "8\tmasks"))) == 2
