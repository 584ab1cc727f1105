"""BEIR folders: a good one is read whole, a bad one is refused by file and line."""

import json
import shutil
from re import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpr.data.beir import read_beir, read_corpus
from dpr.data.collection import Passage
from dpr.data.loading import load_collection
from dpr.data.trec import read_qrels
from dpr.files import write_text

# --- read_beir ---------------------------------------------------------------------------------


def test_a_folder_reads_back_as_the_collection_it_was_written_from(tiny_beir_folder, tiny_collection):
    read = read_beir(tiny_beir_folder)
    assert read.name == "tiny"
    assert read.split == "test"
    assert read.scope == "full corpus"
    assert read.passages == tiny_collection.passages
    assert read.all_queries == tiny_collection.all_queries
    assert read.qrels == tiny_collection.qrels
    assert read.fingerprint == tiny_collection.fingerprint
    assert read.queries_fingerprint == tiny_collection.queries_fingerprint


def test_a_folder_may_be_given_as_text_with_another_name(tiny_beir_folder):
    assert read_beir(str(tiny_beir_folder), name="other").name == "other"


def test_the_name_is_the_folders_even_from_inside_it(tiny_beir_folder, monkeypatch):
    monkeypatch.chdir(tiny_beir_folder)
    assert read_beir(".").name == "tiny"


def test_a_set_without_dev_judgements_gives_a_fifth_of_its_train_queries_to_dev(
    tiny_beir_folder, tiny_collection
):
    train, dev = read_beir(tiny_beir_folder, "train"), read_beir(tiny_beir_folder, "dev")
    assert (len(train.queries), len(dev.queries)) == (4, 1)
    assert {**train.qrels, **dev.qrels} == tiny_collection.all_qrels["train"]


def test_a_set_with_dev_judgements_keeps_its_train_queries_whole(tiny_beir_folder, tiny_collection):
    (tiny_beir_folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    assert read_beir(tiny_beir_folder, "train").qrels == tiny_collection.all_qrels["train"]
    assert read_beir(tiny_beir_folder, "dev").qrels == {"q1": {"d1": 1}}


def test_a_set_with_test_judgements_only_has_no_dev(tiny_beir_folder):
    (tiny_beir_folder / "qrels" / "train.tsv").unlink()
    with pytest.raises(ValueError, match=r"tiny has no split 'dev', only \['test'\]"):
        read_beir(tiny_beir_folder, "dev")


@pytest.mark.parametrize("missing", ["corpus.jsonl", "queries.jsonl"])
def test_a_missing_file_is_named_with_the_layout(tiny_beir_folder, missing):
    (tiny_beir_folder / missing).unlink()
    message = f"{tiny_beir_folder}: no {missing}; a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/"
    with pytest.raises(FileNotFoundError, match=escape(message)):
        read_beir(tiny_beir_folder)


def test_missing_judgements_are_named_with_the_layout(tiny_beir_folder):
    for path in (tiny_beir_folder / "qrels").iterdir():
        path.unlink()
    with pytest.raises(
        FileNotFoundError, match=escape(f"{tiny_beir_folder}: no qrels/*.tsv; a BEIR folder holds")
    ):
        read_beir(tiny_beir_folder)


def test_a_folder_without_a_folder_of_judgements_is_read_for_search_with_one_warning(
    tiny_beir_folder, tiny_collection
):
    shutil.rmtree(tiny_beir_folder / "qrels")
    message = f"{tiny_beir_folder}: no folder qrels: without judgements it can be searched but not evaluated"
    for read in (read_beir, load_collection):
        with pytest.warns(UserWarning, match=f"^{escape(message)}$") as warned:
            found = read(tiny_beir_folder)
        assert len(warned) == 1
        assert found.fingerprint == tiny_collection.fingerprint
        assert found.queries == tiny_collection.all_queries
        assert (found.split, found.all_qrels) == ("test", {"test": {}})


def test_a_folder_without_judgements_has_no_split_but_test(tiny_beir_folder):
    shutil.rmtree(tiny_beir_folder / "qrels")
    with (
        pytest.warns(UserWarning, match="no folder qrels"),
        pytest.raises(ValueError, match=r"tiny has no split 'train', only \['test'\]"),
    ):
        read_beir(tiny_beir_folder, "train")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("missing", ["corpus.jsonl", "queries.jsonl"])
def test_a_folder_without_judgements_that_lacks_more_is_refused_as_ever(tiny_beir_folder, missing):
    shutil.rmtree(tiny_beir_folder / "qrels")
    (tiny_beir_folder / missing).unlink()
    with pytest.raises(FileNotFoundError, match=escape(f"{tiny_beir_folder}: no {missing}; a BEIR folder")):
        read_beir(tiny_beir_folder)


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=escape(f"{tmp_path / 'gone'}: no corpus.jsonl")):
        read_beir(tmp_path / "gone")


def test_a_split_that_is_not_there_is_refused(tiny_beir_folder):
    with pytest.raises(ValueError, match=r"tiny has no split 'validation', only \['dev', 'test', 'train'\]"):
        read_beir(tiny_beir_folder, "validation")


def test_a_judged_query_without_text_is_refused(tiny_beir_folder):
    with (tiny_beir_folder / "qrels" / "test.tsv").open("a") as file:
        file.write("q9\td1\t1\n")
    with pytest.raises(ValueError, match="tiny: 1 judged test queries have no text, first 'q9'"):
        read_beir(tiny_beir_folder)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("corpus.jsonl", b'{"_id": "d7", "text"', ":7: not JSON"),
        ("corpus.jsonl", b'{"_id": "d1", "text": "again"}', ":7: _id d1 comes twice"),
        ("corpus.jsonl", b'{"_id": "d7", "text": "\xe9"}', ":7: not UTF-8"),
        ("queries.jsonl", b'{"_id": "q1", "text": "again"}', ":8: query q1 comes twice"),
        ("queries.jsonl", b'{"_id": "q9", "text": " "}', ":8: query q9 has no text"),
        ("queries.jsonl", b"\xff", ":8: not UTF-8"),
        ("qrels/test.tsv", b"q1\td1\t1", ":6: document d1 is judged twice for query q1"),
        ("qrels/train.tsv", b"t1\td1\tyes", ":7: relevance 'yes' is not a finite number"),
    ],
)
def test_the_line_of_a_folder_that_is_wrong_is_named(tiny_beir_folder, name, line, message):
    with (tiny_beir_folder / name).open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(ValueError, match=escape(f"{tiny_beir_folder / name}{message}")):
        read_beir(tiny_beir_folder)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "qrels/train.tsv"])
def test_an_empty_file_of_a_folder_is_named(tiny_beir_folder, name):
    (tiny_beir_folder / name).write_bytes(b"\n")
    with pytest.raises(ValueError, match=escape(f"{tiny_beir_folder / name}: the file is empty")):
        read_beir(tiny_beir_folder)


def test_a_set_with_few_train_queries_can_still_be_read_for_testing(tiny_beir_folder, tiny_collection):
    (tiny_beir_folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nt1\td3\t1\n")
    assert read_beir(tiny_beir_folder).qrels == tiny_collection.qrels


# --- read_corpus -------------------------------------------------------------------------------

ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=5).filter(
    lambda s: [s] == s.split()
)
passage_lists = st.lists(
    st.builds(Passage, ids, st.text(), st.text()), min_size=1, max_size=4, unique_by=lambda p: p.doc_id
)


@given(passages=passage_lists, ascii_only=st.booleans())
@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz"])
def test_passages_come_back_as_written_in_order(scratch, name, passages, ascii_only):
    records = [{"_id": p.doc_id, "title": p.title, "text": p.text, "metadata": {}} for p in passages]
    text = "".join(json.dumps(record, ensure_ascii=ascii_only) + "\n" for record in records)
    write_text(scratch / name, text)
    assert read_corpus(scratch / name) == passages


def test_a_title_may_be_left_out_and_a_text_may_be_empty(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"_id": "d1", "text": "no title"}\n{"_id": "d2", "title": "no text", "text": ""}\n')
    assert read_corpus(path) == [Passage("d1", "", "no title"), Passage("d2", "no text", "")]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"text": "a"}, "_id is missing, expected a string"),
        ({"_id": 7, "text": "a"}, "_id is int, expected a string"),
        ({"_id": "d7"}, "text is missing, expected a string"),
        ({"_id": "d7", "text": None}, "text is missing, expected a string"),
        ({"_id": "d7", "text": ["a"]}, "text is list, expected a string"),
        ({"_id": "d7", "title": 3.5, "text": "a"}, "title is float, expected a string"),
        ({"_id": "", "text": "a"}, "_id '' must be a string without white space"),
        ({"_id": "d 7", "text": "a"}, "_id 'd 7' must be a string without white space"),
        ({"_id": "d7\n", "text": "a"}, "_id 'd7\\n' must be a string without white space"),
        ({"_id": "d\u30007", "text": "a"}, "_id 'd\\u30007' must be a string without white space"),
        ({"_id": "d1", "text": "another"}, "_id d1 comes twice"),
        ({"_id": "d\ud83d", "text": "a"}, "_id 'd\\ud83d' holds half a character (a lone surrogate)"),
        (["d7", "a"], "expected a JSON object, got list"),
    ],
)
def test_the_passage_that_is_wrong_is_named(tmp_path, record, message):
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"_id": "d1", "text": "good"}\n\n' + json.dumps(record) + "\n")
    with pytest.raises(ValueError, match=escape(f"{path}:3: {message}")):
        read_corpus(path)


@given(
    data=st.one_of(
        st.binary(),
        st.text(st.characters(exclude_categories=["Cs"])).map(str.encode),
        st.lists(
            st.dictionaries(
                st.sampled_from(["_id", "title", "text"]),
                st.one_of(st.text(max_size=3), st.none(), st.integers(), st.lists(st.none())),
            ).map(json.dumps)
        ).map(lambda lines: "\n".join(lines).encode()),
    )
)
def test_any_corpus_file_is_read_or_refused_by_name(scratch, data):
    path = scratch / "any.jsonl"
    path.write_bytes(data)
    try:
        passages = read_corpus(path)
    except ValueError as error:
        assert str(error).startswith(str(path))  # noqa: PT017
    else:
        assert len({p.doc_id for p in passages}) == len(passages) > 0
        assert all(isinstance(field, str) for passage in passages for field in passage)


def test_a_corpus_that_is_missing_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=escape(f"{tmp_path / 'corpus.jsonl'}: no such file")):
        read_corpus(tmp_path / "corpus.jsonl")


def test_half_a_character_in_documents_is_replaced_and_the_first_line_and_number_said(tmp_path):
    path = tmp_path / "corpus.jsonl"
    records = [
        '{"_id": "whole", "title": "\\ud83d\\ude00", "text": "an emoji of two halves"}',
        '{"_id": "text", "title": "whole", "text": "cut \\ud83d here"}',
        '{"_id": "title", "title": "\\ude00\\ud83d", "text": "whole"}',
        '{"_id": "both", "title": "x\\udfff", "text": "\\ud800"}',
    ]
    path.write_text("\n".join([records[0], "", *records[1:]]), encoding="utf-8")
    message = f"3 documents held half a character (a lone surrogate), now \ufffd; first {path}:3"
    with pytest.warns(UserWarning, match=f"^{escape(message)}$") as warned:
        passages = read_corpus(path)
    assert len(warned) == 1
    assert passages == [
        Passage("whole", "\U0001f600", "an emoji of two halves"),
        Passage("text", "whole", "cut \ufffd here"),
        Passage("title", "\ufffd\ufffd", "whole"),
        Passage("both", "x\ufffd", "\ufffd"),
    ]
    assert "\n".join(field for p in passages for field in p).encode("utf-8")


@pytest.mark.filterwarnings("error")
def test_documents_of_whole_characters_give_no_warning(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d", "text": "\\ud83d\\ude00 \ufffd"}', encoding="utf-8")
    assert read_corpus(tmp_path / "corpus.jsonl") == [Passage("d", "", "\U0001f600 \ufffd")]


def test_a_folder_with_half_characters_has_a_fingerprint_and_reads_alike_each_time(tiny_beir_folder):
    for name in ("corpus", "queries"):
        path = tiny_beir_folder / f"{name}.jsonl"
        path.write_text(path.read_text().replace("vitamin", "vita\\ud83dmin"), encoding="utf-8")
    with pytest.warns(UserWarning, match="half a character") as warned:
        first, again = read_beir(tiny_beir_folder), read_beir(tiny_beir_folder)
    assert [str(w.message).split(":")[-1] for w in warned] == ["2", "2", "2", "2"]
    assert first.by_id["d2"].text == "Sunlight makes vita\ufffdmin D in the skin."
    assert first.queries["q2"] == "where does vita\ufffdmin D come from"
    assert first.fingerprint == again.fingerprint


# --- real collections --------------------------------------------------------------------------


def num_judgements(qrels):
    """Judged pairs."""
    return sum(map(len, qrels.values()))


def test_scifact_has_its_published_size(data_dir):
    scifact = read_beir(data_dir / "scifact")
    assert (len(scifact.passages), len(scifact.queries), num_judgements(scifact.qrels)) == (5183, 300, 339)
    assert len(scifact.all_queries) == 1109
    assert num_judgements(read_qrels(data_dir / "scifact" / "qrels" / "train.tsv")) == 919


def test_nfcorpus_has_its_published_size(data_dir):
    nfcorpus = read_beir(data_dir / "nfcorpus")
    assert (len(nfcorpus.passages), len(nfcorpus.queries), num_judgements(nfcorpus.qrels)) == (
        3633,
        323,
        12_334,
    )
    judgements = {split: num_judgements(qrels) for split, qrels in nfcorpus.all_qrels.items()}
    assert judgements == {"dev": 11_385, "test": 12_334, "train": 110_575}


def test_ms_marco_dl_has_two_splits_and_none_called_test(data_dir):
    folder = data_dir / "msmarco-dl"
    sizes = []
    for split in ("dl19", "dl20"):
        collection = read_beir(folder, split)
        sizes.append((len(collection.passages), len(collection.queries), num_judgements(collection.qrels)))
    assert sizes == [(30_005, 43, 4337), (30_005, 54, 5148)]
    with pytest.raises(ValueError, match=r"msmarco-dl has no split 'test', only \['dl19', 'dl20'\]"):
        read_beir(folder)


def test_a_title_that_is_null_is_none(tmp_path):
    lines = '{"_id": "d1", "title": null, "text": "zinc"}', '{"_id": "d2", "text": "iron"}'
    (tmp_path / "corpus.jsonl").write_text("\n".join(lines))
    assert read_corpus(tmp_path / "corpus.jsonl") == [Passage("d1", "", "zinc"), Passage("d2", "", "iron")]
