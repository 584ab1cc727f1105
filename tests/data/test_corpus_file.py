"""Passages in a file: those that `read_corpus` reads, checked alike, without holding the texts."""

import json
import pickle
import sys
import tracemalloc
from re import escape

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpr.data.beir import read_corpus
from dpr.data.collection import Collection, Passage
from dpr.data.corpus_file import CorpusFile, passages_at
from dpr.files import write_text

TEXTS = ["masks filter droplets", "ä € 𝄞 \u2028 東京", 'a "quoted"\ttext', "", "  zinc ", "x" * 5000]
LINES = [
    *(json.dumps({"_id": f"d{i}", "title": f"T{i}", "text": text}) for i, text in enumerate(TEXTS)),
    json.dumps({"_id": "ünïcode", "text": "no title"}, ensure_ascii=False),
    json.dumps({"_id": "none", "title": None, "text": "none", "metadata": {"url": "x"}}),
]


def of(passages):
    """A collection of these passages."""
    return Collection("made", passages, {}, {"test": {}})


def same(found, passages):
    """Whether a CorpusFile has just these passages, read in every way."""
    order = [len(passages) - 1, 0, 0, len(passages) // 2]
    assert list(found.passages) == list(passages)
    assert [found.passages[i] for i in range(len(found.passages))] == list(passages)
    assert found.passages[-1] == passages[-1]
    assert found.passages[1:4] == list(passages[1:4])
    assert passages_at(found.passages, np.array(order)) == [passages[i] for i in order]
    assert passages_at(passages, np.array(order)) == [passages[i] for i in order]
    assert found.doc_ids == [passage.doc_id for passage in passages]
    assert found.fingerprint == of(passages).fingerprint
    with pytest.raises(IndexError):
        found.passages[len(passages)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\n\n \n"])
@pytest.mark.parametrize("start", ["", "\ufeff", "\n", "\ufeff\n"])
def test_the_passages_of_a_file_are_those_of_read_corpus(tmp_path, start, end):
    path = tmp_path / "corpus.jsonl"
    path.write_bytes((start + end.join(LINES)).encode())
    same(CorpusFile(path), read_corpus(path))
    same(CorpusFile(str(path)), read_corpus(path))


def test_half_a_character_is_replaced_with_the_same_warning(tmp_path):
    path = tmp_path / "corpus.jsonl"
    half = json.dumps({"_id": "h", "title": "cut \ud83d", "text": "\ude00 emoji"})
    path.write_text("\n".join([*LINES, half]))
    with pytest.warns(UserWarning, match="half a character") as expected:
        passages = read_corpus(path)
    with pytest.warns(UserWarning, match="half a character") as warned:
        found = CorpusFile(path)
    assert str(warned[0].message) == str(expected[0].message)
    assert warned[0].filename == expected[0].filename == __file__
    same(found, passages)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        '"text"',
        '{"_id": "a"}',
        '{"text": "a"}',
        '{"_id": 7, "text": "a"}',
        '{"_id": "a b", "text": "a"}',
        '{"_id": "", "text": "a"}',
        '{"_id": "d1", "text": "comes twice"}',
        '{"_id": "a", "title": 3, "text": "a"}',
        '{"_id": "a", "text": ["a"]}',
        '{"_id": "a\\ud83d", "text": "a"}',
    ],
)
def test_a_line_is_refused_as_read_corpus_refuses_it(tmp_path, line):
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join([*LINES, "", line]))
    with pytest.raises(ValueError, match=escape(f"{path}:{len(LINES) + 2}: ")) as expected:
        read_corpus(path)
    with pytest.raises(ValueError, match=f"^{escape(str(expected.value))}$"):
        CorpusFile(path)


def test_a_file_that_is_missing_empty_or_gzipped_is_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    write_text(tmp_path / "corpus.jsonl.gz", "\n".join(LINES))
    with pytest.raises(FileNotFoundError, match=escape(f"{tmp_path / 'none.jsonl'}: no such file")):
        CorpusFile(tmp_path / "none.jsonl")
    with pytest.raises(ValueError, match="the file is empty"):
        CorpusFile(tmp_path / "empty.jsonl")
    with pytest.raises(ValueError, match=r"corpus\.jsonl\.gz: a gzipped file .* unpack it"):
        CorpusFile(tmp_path / "corpus.jsonl.gz")
    with pytest.raises(FileNotFoundError, match=escape(f"{tmp_path}: a folder without *.parquet")):
        CorpusFile(tmp_path)


def test_the_name_is_the_folders_of_a_corpus_and_else_the_files(tmp_path, monkeypatch):
    (tmp_path / "mine").mkdir()
    for file in ("corpus.jsonl", "wiki.jsonl"):
        (tmp_path / "mine" / file).write_text("\n".join(LINES))
    assert CorpusFile(tmp_path / "mine" / "corpus.jsonl").name == "mine"
    assert CorpusFile(tmp_path / "mine" / "wiki.jsonl").name == "wiki"
    assert CorpusFile(tmp_path / "mine" / "wiki.jsonl", "other").name == "other"
    monkeypatch.chdir(tmp_path / "mine")
    found = CorpusFile("corpus.jsonl")
    assert found.name == "mine"
    monkeypatch.chdir(tmp_path)
    assert found.passages[0].doc_id == "d0"


def test_a_file_that_has_changed_is_not_read_any_more(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(LINES))
    found = CorpusFile(path)
    path.write_text("\n".join(LINES[::-1]))
    with pytest.raises(ValueError, match=escape(f"{path}: changed since it was opened; make a new")):
        found.passages[0]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=escape(f"{path}: no such file")):
        list(found.passages)


def test_texts_are_neither_held_nor_sent_to_other_processes(tmp_path):
    path = tmp_path / "corpus.jsonl"
    lines = (json.dumps({"_id": f"d{i}", "text": f"{i} zinc " * 500}) + "\n" for i in range(5000))
    with path.open("w") as stream:
        stream.writelines(lines)
    size = path.stat().st_size
    tracemalloc.start()
    found = CorpusFile(path)
    texts = sum(len(passage.text) for passage in found.passages)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert texts > 0.9 * size
    assert peak < size / 10
    sent = pickle.dumps(found.passages)
    assert len(sent) < size / 100
    assert pickle.loads(sent)[4321] == found.passages[4321]


# --- parquet -----------------------------------------------------------------------------------


def parquet(path, passages, **how):
    """Write passages as a parquet file with the columns of BEIR's."""
    columns = dict(zip(("_id", "title", "text"), zip(*passages, strict=True), strict=True))
    pq.write_table(pa.table(columns), path, **how)


@pytest.mark.parametrize("row_group_size", [1, 3, 100])
def test_a_parquet_file_and_a_folder_of_them_hold_the_same_passages(tmp_path, row_group_size):
    passages = [Passage(f"d{i}", f"T{i}" * (i % 2), text) for i, text in enumerate(TEXTS * 2)]
    (tmp_path / "corpus").mkdir()
    parquet(tmp_path / "one.parquet", passages, row_group_size=row_group_size)
    for number, part in enumerate((passages[:5], passages[5:])):
        parquet(tmp_path / "corpus" / f"{number}.parquet", part, row_group_size=row_group_size)
    same(CorpusFile(tmp_path / "one.parquet"), passages)
    same(CorpusFile(tmp_path / "corpus"), passages)
    assert CorpusFile(tmp_path / "corpus").name == tmp_path.name
    sent = pickle.loads(pickle.dumps(CorpusFile(tmp_path / "corpus").passages))
    assert list(sent) == passages


def test_a_parquet_file_may_lack_titles_and_call_its_ids_doc_id(tmp_path):
    table = pa.table({"more": [1, 2], "text": ["a", "b"], "doc_id": ["d1", "d2"]})
    pq.write_table(table, tmp_path / "a.parquet")
    same(CorpusFile(tmp_path / "a.parquet"), [Passage("d1", "", "a"), Passage("d2", "", "b")])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"_id": ["a", "b"]}, ": needs the columns _id or doc_id and text, it has _id"),
        ({"id": ["a"], "text": ["b"]}, ": needs the columns _id or doc_id and text, it has id, text"),
        ({"_id": ["a", "a"], "text": ["b", "c"]}, ":2: _id a comes twice"),
        ({"_id": ["a", None], "text": ["b", "c"]}, ":2: _id is missing, expected a string"),
        ({"_id": [1], "text": ["b"]}, ":1: _id is int, expected a string"),
        ({"_id": ["a", "b"], "text": ["b", None]}, ":2: text is missing, expected a string"),
        ({"_id": pa.array([], pa.string()), "text": pa.array([], pa.string())}, ": the file is empty"),
    ],
)
def test_a_row_or_column_that_cannot_be_is_named(tmp_path, columns, message):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=1)
    with pytest.raises(ValueError, match=f"^{escape(str(path) + message)}$"):
        CorpusFile(path)


def test_an_id_in_two_files_of_a_folder_is_refused(tmp_path):
    for name in ("a", "b"):
        parquet(tmp_path / f"{name}.parquet", [Passage("d1", "", "text")])
    with pytest.raises(ValueError, match=escape(f"{tmp_path / 'b.parquet'}:1: _id d1 comes twice")):
        CorpusFile(tmp_path)


def test_what_is_no_parquet_file_or_has_no_pyarrow_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_text("text")
    with pytest.raises(ValueError, match=escape(f"{tmp_path / 'a.parquet'}: damaged, or no parquet file")):
        CorpusFile(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"parquet needs the package pyarrow: `pip install pyarrow`"):
        CorpusFile(tmp_path / "a.parquet")
