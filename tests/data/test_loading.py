"""Loading: a collection is found by path, in the data folders, or fetched, in that order."""

import gzip
import inspect
import shutil
import sys
from pathlib import Path
from re import escape
from types import SimpleNamespace

import pytest

from dpr.data.loading import find_data, load_collection, load_training_data, project_root


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """An empty repository as the current folder, with no data folder set from outside."""
    root = tmp_path / "project"
    for folder in ("notebooks", "data"):
        (root / folder).mkdir(parents=True)
    (root / "pyproject.toml").touch()
    monkeypatch.chdir(root)
    monkeypatch.delenv("DPR_DATA_DIR", raising=False)
    return root


@pytest.fixture
def fetched(monkeypatch, tiny_beir_folder) -> list:
    """Stand in for the download: what it was asked for, each time."""
    asked = []

    def download_beir(name, folder):
        asked.append((name, Path(folder)))
        return tiny_beir_folder

    def download_msmarco_tiny(folder):
        asked.append(("msmarco-tiny", Path(folder)))
        return write_pairs(folder / "msmarco-tiny" / "triples.tsv").parent

    downloads = SimpleNamespace(download_beir=download_beir, download_msmarco_tiny=download_msmarco_tiny)
    monkeypatch.setitem(sys.modules, "dpr.data.download", downloads)
    return asked


def write_pairs(path, more=""):
    """Write a file of one query with its positive, and make its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"asked\tanswered\n{more}")
    return path


# --- project_root ------------------------------------------------------------------------------


def test_the_project_is_found_from_any_folder_inside_it(project, monkeypatch):
    inside = project / "notebooks" / "figures"
    inside.mkdir()
    for folder in (project, project / "notebooks", inside):
        monkeypatch.chdir(folder)
        assert project_root() == project


def test_outside_of_a_project_the_current_folder_stands_in(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()  # one marker of two is not enough
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert project_root() == tmp_path / "here"


# --- find_data ---------------------------------------------------------------------------------


def test_the_set_folder_is_searched_before_the_projects_data(project, tmp_path, monkeypatch):
    assert find_data("tiny") is None
    (project / "data" / "tiny").mkdir()
    assert find_data("tiny") == project / "data" / "tiny"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("DPR_DATA_DIR", str(elsewhere))
    assert find_data("tiny") == project / "data" / "tiny"
    (elsewhere / "tiny").mkdir()
    assert find_data("tiny") == elsewhere / "tiny"


def test_a_file_is_found_like_a_folder(project):
    (project / "data" / "pairs.tsv").touch()
    assert find_data("pairs.tsv") == project / "data" / "pairs.tsv"


def test_an_empty_setting_counts_as_none(project, monkeypatch):
    monkeypatch.setenv("DPR_DATA_DIR", "")
    (project / "data" / "tiny").mkdir()
    assert find_data("tiny") == project / "data" / "tiny"


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_a_data_folder_that_is_none_is_refused_even_if_the_name_is_in_data(project, monkeypatch, kind):
    (project / "data" / "tiny").mkdir()
    wrong = project / "wrong"
    if kind == "file":
        wrong.touch()
    monkeypatch.setenv("DPR_DATA_DIR", str(wrong))
    for look in (find_data, load_collection):
        with pytest.raises(
            FileNotFoundError, match=escape(f"DPR_DATA_DIR={wrong}: no such folder; unset it or make it")
        ):
            look("tiny")


# --- load_collection ---------------------------------------------------------------------------


def test_a_path_is_read_as_a_folder_in_any_spelling(project, tiny_beir_folder, tiny_collection, monkeypatch):
    monkeypatch.chdir(tiny_beir_folder.parent)
    for path in (tiny_beir_folder, str(tiny_beir_folder), Path("tiny"), "./tiny", "tiny/"):
        assert load_collection(path).fingerprint == tiny_collection.fingerprint
        assert load_collection(path, "train").split == "train"
        assert load_collection(path).name == "tiny"


@pytest.mark.parametrize("where", ["notebooks", "."])
@pytest.mark.parametrize("name", ["mine", "nfcorpus"])
def test_a_bare_name_is_that_of_a_folder_here_or_in_the_repository_before_anything_is_fetched(
    project, tiny_beir_folder, tiny_collection, fetched, monkeypatch, where, name
):
    tiny_beir_folder.rename(project / where / name)
    monkeypatch.chdir(project / "notebooks")
    loaded = load_collection(name, "train")
    assert (loaded.name, loaded.split) == (name, "train")
    assert loaded.fingerprint == tiny_collection.fingerprint
    assert fetched == []


@pytest.mark.parametrize("where", ["data", "../set"])
def test_a_bare_name_is_looked_for_in_the_data_folders_first(
    project, tiny_beir_folder, tiny_collection, fetched, monkeypatch, where
):
    (project / "../set").mkdir()
    monkeypatch.setenv("DPR_DATA_DIR", str(project / "../set"))
    (project / "tiny").mkdir()  # would fail: nothing in it
    tiny_beir_folder.rename(project / where / "tiny")
    assert load_collection("tiny").fingerprint == tiny_collection.fingerprint
    assert fetched == []


def test_a_file_here_is_no_folder_and_the_name_is_fetched(project, fetched):
    (project / "nfcorpus").touch()
    load_collection("nfcorpus")
    assert fetched == [("nfcorpus", project / "data")]


def test_a_folder_here_that_is_called_docstrings_is_not_taken_for_them(project, fetched, monkeypatch):
    (project / "docstrings").mkdir()
    read = SimpleNamespace(load_docstrings=lambda split, kept_in: "those of packages")
    monkeypatch.setitem(sys.modules, "dpr.data.docstrings", read)
    assert load_collection("docstrings") == "those of packages"


@pytest.mark.parametrize("path", ["./gone", "gone/deeper", Path("gone"), "../gone"])
def test_a_path_that_is_no_folder_is_refused(project, fetched, path):
    with pytest.raises(
        FileNotFoundError, match=escape(f"{path}: no such folder; a path must be a folder in BEIR layout")
    ):
        load_collection(path)
    assert fetched == []


def test_a_folder_not_in_beir_layout_is_refused(project, fetched):
    (project / "data" / "half").mkdir()
    for half in ("half", "./data/half"):
        with pytest.raises(FileNotFoundError, match=r"data.half: no corpus\.jsonl; a BEIR folder holds"):
            load_collection(half)
    assert fetched == []


def test_a_name_is_read_from_the_set_folder_before_data(
    project, tiny_beir_folder, tiny_collection, fetched, monkeypatch
):
    monkeypatch.setenv("DPR_DATA_DIR", str(tiny_beir_folder.parent))
    (project / "data" / "tiny").mkdir()  # would fail: nothing in it
    loaded = load_collection("tiny", "train")
    assert loaded.fingerprint == tiny_collection.fingerprint
    assert (loaded.name, loaded.split) == ("tiny", "train")
    assert fetched == []


def test_a_name_is_read_from_data_where_nothing_is_set(project, tiny_beir_folder, tiny_collection, fetched):
    tiny_beir_folder.rename(project / "data" / "renamed")
    loaded = load_collection("renamed")
    assert (loaded.name, loaded.fingerprint) == ("renamed", tiny_collection.fingerprint)
    assert fetched == []


def test_a_name_found_nowhere_is_fetched_into_the_projects_data(
    project, fetched, tiny_collection, monkeypatch
):
    monkeypatch.chdir(project / "notebooks")
    loaded = load_collection("nfcorpus")
    assert fetched == [("nfcorpus", project / "data")]
    assert (loaded.name, loaded.fingerprint) == ("nfcorpus", tiny_collection.fingerprint)


def test_an_unknown_name_is_refused(project):
    pytest.importorskip("dpr.data.download")
    with pytest.raises(ValueError, match="no-such-collection"):
        load_collection("no-such-collection")
    assert list((project / "data").iterdir()) == []


def test_a_split_that_is_not_there_is_refused(project, tiny_beir_folder):
    with pytest.raises(ValueError, match="tiny has no split 'validation'"):
        load_collection(tiny_beir_folder, "validation")


def test_malformed_content_is_refused_by_file_and_line(project, tiny_beir_folder):
    with (tiny_beir_folder / "corpus.jsonl").open("a") as file:
        file.write("no JSON\n")
    with pytest.raises(ValueError, match=escape(f"{tiny_beir_folder / 'corpus.jsonl'}:7: not JSON")):
        load_collection(tiny_beir_folder)


def test_docstrings_are_the_embedded_collection_in_the_split_asked_for(project, fetched, monkeypatch):
    monkeypatch.setitem(
        sys.modules,
        "dpr.data.docstrings",
        SimpleNamespace(load_docstrings=lambda split, kept_in: f"the {split} part, in {kept_in.name}"),
    )
    assert load_collection("docstrings") == "the test part, in docstrings"
    assert load_collection("docstrings", "dev") == "the dev part, in docstrings"
    assert fetched == []


@pytest.mark.parametrize(
    ("module", "function", "arguments"),
    [
        ("dpr.data.docstrings", "load_docstrings", ("test", Path("data"))),
        ("dpr.data.download", "download_beir", ("scifact", Path("data"))),
        ("dpr.data.download", "download_msmarco_tiny", (Path("data"),)),
    ],
)
def test_what_stands_in_for_other_modules_here_is_called_as_they_are(module, function, arguments):
    real = getattr(pytest.importorskip(module), function)
    assert inspect.signature(real).bind(*arguments)


def test_scifact_is_found_by_name_in_the_set_folder(project, data_dir, fetched, monkeypatch):
    monkeypatch.setenv("DPR_DATA_DIR", str(data_dir))
    assert len(load_collection("scifact").passages) == 5183
    assert fetched == []


def test_a_folders_path_may_be_given_from_the_repository(tiny_beir_folder, tmp_path, monkeypatch):
    root = tmp_path / "repository"
    for name in ("notebooks", "data"):
        (root / name).mkdir(parents=True)
    (root / "pyproject.toml").touch()
    shutil.copytree(tiny_beir_folder, root / "data" / "mine")
    monkeypatch.chdir(root / "notebooks")
    assert load_collection("data/mine").name == "mine"


# --- load_training_data ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pairs.tsv", "deeper/pairs.tsv", "pairs.tsv.gz"])
def test_a_file_of_training_data_is_read_by_its_path(project, fetched, name):
    path = write_pairs(project / name)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(path.read_bytes()))
    for spelling in (name, f"./{name}", path):
        assert [e.query for e in load_training_data(spelling).examples] == ["asked"]
    assert fetched == []


def test_a_folder_with_one_tsv_file_is_read_by_its_name(project, fetched, tmp_path, monkeypatch):
    path = write_pairs(project / "data" / "mine" / "pairs.tsv")
    (path.parent / "README.md").touch()
    assert load_training_data("mine").name == "mine"
    monkeypatch.setenv("DPR_DATA_DIR", str(tmp_path / "elsewhere"))
    write_pairs(tmp_path / "elsewhere" / "mine" / "other.tsv", "more\tpositive\n")
    assert len(load_training_data("mine").examples) == 2
    assert fetched == []


@pytest.mark.parametrize("files", [(), ("a.tsv", "b.tsv"), ("a.tsv.part",)])
def test_a_folder_with_another_number_of_tsv_files_is_refused(project, files):
    (project / "data" / "mine").mkdir()
    for name in files:
        write_pairs(project / "data" / "mine" / name)
    count = sum(name.endswith(".tsv") for name in files)
    with pytest.raises(
        ValueError, match=rf"data.mine: expected one \.tsv file of training data, found {count}"
    ):
        load_training_data("mine")


def test_a_collection_and_its_split_are_read_as_training_data(
    project, tiny_beir_folder, fetched, monkeypatch
):
    monkeypatch.setenv("DPR_DATA_DIR", str(tiny_beir_folder.parent))
    for name in ("tiny/train", f"{tiny_beir_folder}/train", tiny_beir_folder / "train"):
        data = load_training_data(name)
        assert (data.name, [e.query_id for e in data.examples]) == ("tiny/train", ["t2", "t3", "t4", "t5"])
    assert [e.query_id for e in load_training_data("tiny/dev").examples] == ["t1"]
    assert fetched == []


def test_a_collection_found_nowhere_is_fetched_for_its_training_data(project, fetched):
    assert load_training_data("nfcorpus/train").name == "nfcorpus/train"
    assert fetched == [("nfcorpus", project / "data")]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tiny/test", "tiny: the test split is for evaluation"),
        ("tiny/validation", "tiny has no split 'validation'"),
        ("no-such-collection/train", "no-such-collection"),
    ],
)
def test_a_collections_split_that_is_not_to_be_trained_on_or_not_there_is_refused(
    project, tiny_beir_folder, monkeypatch, name, message
):
    monkeypatch.setenv("DPR_DATA_DIR", str(tiny_beir_folder.parent))
    with pytest.raises(ValueError, match=message):
        load_training_data(name)


def test_msmarco_tiny_is_fetched_once_into_the_projects_data(project, fetched, monkeypatch):
    monkeypatch.chdir(project / "notebooks")
    for _ in range(2):
        data = load_training_data("msmarco-tiny")
        assert (data.name, [e.query for e in data.examples]) == ("msmarco-tiny", ["asked"])
        assert fetched == [("msmarco-tiny", project / "data")]


def test_an_msmarco_tiny_that_broke_off_is_fetched_on(project, fetched):
    write_pairs(project / "data" / "msmarco-tiny" / "msmarco_triples.train.tiny.tsv.part")
    assert len(load_training_data("msmarco-tiny").examples) == 1
    assert fetched == [("msmarco-tiny", project / "data")]


@pytest.mark.parametrize("where", ["data/mine/pairs.tsv", "mine"])
def test_bad_lines_are_refused_or_skipped_as_told(project, where):
    write_pairs(project / "data" / "mine" / "pairs.tsv", "no tab\n")
    with pytest.raises(ValueError, match=r"pairs\.tsv:2: expected 2 fields.*, 0 may be skipped"):
        load_training_data(where)
    assert len(load_training_data(where, max_bad_lines=1).preparation.bad_lines) == 1


@pytest.mark.parametrize("name", ["none", "none.tsv", "./none.tsv.gz", "./none/train"])
def test_training_data_found_nowhere_is_refused(project, fetched, name):
    with pytest.raises(FileNotFoundError, match=r"none"):
        load_training_data(name)
    assert fetched == []


def test_an_unknown_name_of_training_data_is_refused_with_the_kinds_there_are(project):
    with pytest.raises(
        FileNotFoundError, match=r"no training data 'none'; known: msmarco-tiny, .*scifact/train"
    ):
        load_training_data("none")
