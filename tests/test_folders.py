"""Folders that public functions write: replaced all or nothing where only they wrote, else left alone."""

import itertools
import shutil
from re import escape

import numpy as np
import pytest
from killing import everything, in_children

from dpr.data.collection import Collection, Passage
from dpr.files import MARKER
from dpr.generation.generator import QueryGenerator
from dpr.models.bi_encoder import BiEncoder
from dpr.models.checkpoint import save_random
from dpr.models.two_encoders import TwoEncoders
from dpr.search.bm25 import BM25
from dpr.search.index import Index, build_index

LENGTHS = {"query_max_length": 6, "passage_max_length": 12}
KINDS = {  # each way to write a folder → the kind it is of
    "index": "an index of vectors",
    "encoder": "an encoder",
    "encoder in our form": "an encoder",
    "two encoders": "two encoders",
    "random": "a random checkpoint",
    "generator": "a query generator",
    "BM25": "a BM25 index",
}
THEIRS = (
    "index.json",
    "modules.json",
    "config.json",
    "encoder.json",
    "dpr-index.json",
    "query_generator.json",
)

# Saves an index or an encoder, as each order tells it.
SERVER = """
import sys

import numpy as np

from dpr.models.bi_encoder import BiEncoder
from dpr.models.two_encoders import TwoEncoders
from dpr.search.index import build_index
from killing import serve

lengths = {"query_max_length": 6, "passage_max_length": 12}
encoder = BiEncoder.from_pretrained(sys.argv[1], device="cpu", pooling="mean", **lengths)
made = {
    "index": build_index("exact", np.eye(3, dtype=np.float32), ["a", "b", "new"], "dot"),
    "encoder": encoder,
    "two encoders": TwoEncoders(encoder, encoder.with_settings(passage_prompt="new")),
}

def save(order):
    made[order["what"]].save(order["folder"] + "/made")
    return "done"

serve(save)
"""


def index_of(*doc_ids):
    """An index of as many vectors as ids."""
    return build_index("exact", np.eye(len(doc_ids), dtype=np.float32), doc_ids, "dot")


@pytest.fixture(scope="module")
def encoder(plain_folder):
    """The tiny model."""
    return BiEncoder.from_pretrained(plain_folder, device="cpu", pooling="mean", **LENGTHS)


@pytest.fixture(scope="module")
def savers(plain_folder, t5_folder, encoder):
    """Each way to write a folder; BM25 with texts that change, as it keeps an index of the same ones."""
    count = itertools.count()

    def build(folder):
        passages = [Passage("d1", "", f"apple {next(count)}")]
        BM25.build(Collection("fruit", passages, {}, {"test": {}}), folder)

    return {
        "index": index_of("a", "b", "c").save,
        "encoder": encoder.save,
        "encoder in our form": encoder.with_settings(pooling="sum-last-2").save,
        "two encoders": TwoEncoders(encoder, encoder.with_settings(passage_prompt="p: ")).save,
        "random": lambda folder: save_random(folder, plain_folder, 0, num_hidden_layers=1),
        "generator": QueryGenerator.from_pretrained(t5_folder, device="cpu", **LENGTHS).save,
        "BM25": build,
    }


@pytest.fixture(scope="module")
def saved(savers, tmp_path_factory):
    """What each of them writes, to copy."""
    folder = tmp_path_factory.mktemp("saved")
    for name, save in savers.items():
        save(folder / name)
    return folder


def names(folder):
    """Every path under a folder."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- replaced or refused -----------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_what_was_saved_is_replaced_and_nothing_lies_beside(savers, saved, tmp_path, name):
    assert sorted(path.name for path in saved.iterdir()) == sorted(KINDS)
    folder = shutil.copytree(saved / name, tmp_path / "made")
    before = everything(folder)
    savers[name](str(folder))
    assert {path.parent for path in folder.rglob(MARKER)} >= {folder}
    if name != "BM25":  # whose files are named by how often it wrote
        assert names(folder) == list(before)
    assert everything(folder) != before
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize("name", KINDS)
def test_work_of_others_is_refused_and_left_alone_whatever_its_files_are_called(savers, tmp_path, name):
    folder = tmp_path / "mine"
    (folder / "query").mkdir(parents=True)
    for file in (*THEIRS, "query/modules.json", "thesis.tex"):
        (folder / file).write_text('{"format": 3}')
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=escape(f"{folder}")):
        savers[name](folder)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("file", ["thesis.tex", ".git/config"])
def test_what_was_saved_with_work_of_others_beside_it_is_refused_and_left_alone(
    savers, saved, tmp_path, name, file
):
    folder = shutil.copytree(saved / name, tmp_path / "mine")
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text("years of work")
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=escape(f"{folder} also holds {file.split('/')[0]}")):
        savers[name](folder)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("name", KINDS)
def test_what_another_one_saved_is_refused_and_left_alone(savers, saved, tmp_path, name):
    others = [other for other in KINDS if KINDS[other] != KINDS[name]]
    assert len(others) >= len(KINDS) - 2
    for other in others:
        folder = shutil.copytree(saved / other, tmp_path / other)
        before = everything(folder)
        with pytest.raises(ValueError, match=escape(f"{folder}")):
            savers[name](folder)
        assert everything(folder) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(others)


@pytest.mark.parametrize("name", KINDS)
def test_the_current_folder_is_refused_and_left_alone(savers, saved, tmp_path, monkeypatch, name):
    folder = shutil.copytree(saved / name, tmp_path / "mine")
    monkeypatch.chdir(folder)
    before = everything(tmp_path)
    with pytest.raises(ValueError, match="is or holds the current folder"):
        savers[name](".")
    assert everything(tmp_path) == before


# --- killed ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_a_child(plain_folder):
    """Saves in another process: "done" or the signal that killed it."""
    with in_children(SERVER, str(plain_folder)) as ask:
        yield ask


@pytest.mark.parametrize(("what", "step"), [("index", 1), ("encoder", 4), ("two encoders", 11)])
def test_killed_before_any_of_its_file_operations_a_saver_leaves_the_old_or_the_new(
    in_a_child, encoder, tmp_path, what, step
):
    made = {
        "index": index_of("a", "b", "old"),
        "encoder": encoder.with_settings(pooling="sum-last-2"),
        "two encoders": TwoEncoders(encoder, encoder),
    }[what]
    read = {
        "index": lambda folder: Index.load(folder).doc_ids,
        "encoder": lambda folder: BiEncoder.from_pretrained(folder, "cpu").config.pooling,
        "two encoders": lambda folder: TwoEncoders.from_pretrained(folder, "cpu").config.passage_prompt,
    }[what]
    old, new = tmp_path / "old" / "made", tmp_path / "new"
    made.save(old)
    assert in_a_child(folder=str(new), what=what) == "done"
    found = [read(old)]
    for number in range(1, 1000, step):
        folder = tmp_path / f"{number}"
        shutil.copytree(old, folder / "made")
        outcome = in_a_child(folder=str(folder), what=what, kill_before=number)
        there = folder / "made" if (folder / "made").exists() else folder / ".made.old.dpr"
        assert names(there) in (names(old), names(new / "made"))
        found.append(read(there))
        made.save(folder / "made")
        assert names(folder / "made") == names(old)
        assert [path.name for path in folder.iterdir()] == ["made"]
        shutil.rmtree(folder)
        if outcome == "done":
            break
        assert outcome == "signal 9"
    assert number > 15
    assert found[-1] == read(new / "made") != found[0]
    assert [value == found[0] for value in found] == sorted((v == found[0] for v in found), reverse=True)
