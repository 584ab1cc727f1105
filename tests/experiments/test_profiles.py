"""Profiles: one knob, refused where it makes no sense."""

import dataclasses
from re import escape

import pytest

from dpr.experiments.profiles import (
    PROFILES,
    TRAINED_ON,
    Profile,
    QueryWriting,
    SyntheticTraining,
    get_profile,
    without_judgements_to_learn_from,
)

SIZES = ("depth", "passage_max_length", "training_length", "validation_passages", "validation_queries")
LIMITS = ("query_max_length", "num_passages", "num_queries")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty repository whose notebooks folder is the current one, with no data folder set from outside."""
    for name in ("notebooks", "data"):
        (tmp_path / "project" / name).mkdir(parents=True)
    (tmp_path / "project" / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path / "project" / "notebooks")
    monkeypatch.delenv("DPR_DATA_DIR", raising=False)
    return tmp_path / "project"


def is_plain(profile, name):
    """Whether a profile is that of `scifact` without what only `scifact` has, over the collection `name`."""
    own = {"factors": False, "larger_encoders": (), "triples": None, "larger": None}
    own |= {"query_max_length": None, "writing": QueryWriting()}
    synthetic = PROFILES["scifact"].synthetic
    once = dataclasses.replace(synthetic.training, num_steps=None, num_epochs=1.0)
    own["synthetic"] = dataclasses.replace(synthetic, training=once)
    return profile == dataclasses.replace(PROFILES["scifact"], name=name, collection=name, **own)


@pytest.mark.parametrize("name", PROFILES)
def test_a_known_profile_is_found_by_its_name(name):
    assert get_profile(name) is PROFILES[name]
    assert get_profile(name).name == name


def test_the_small_profiles_need_no_download():
    for name in ("sample", "smoke"):
        profile = get_profile(name)
        assert profile.collection == "docstrings"
        assert (profile.encoders, profile.base_model) == (("all-MiniLM-L6-v2",), "all-MiniLM-L6-v2")
        assert profile.num_passages
        assert profile.num_queries


def test_a_collection_with_published_figures_is_never_cut():
    for name in ("scifact", "nfcorpus", "trec-covid"):
        assert (get_profile(name).num_passages, get_profile(name).num_queries) == (None, None)
        assert get_profile(name).depth == 1000


@pytest.mark.parametrize("path", ["my/folder", "./folder", "/somewhere/else"])
def test_a_path_gets_the_settings_of_scifact_without_what_only_scifact_has(path):
    assert is_plain(get_profile(path), path)


@pytest.mark.parametrize(
    "where", ["notebooks/mine", "mine", "data/mine", "../elsewhere/mine"], ids=["here", "root", "data", "set"]
)
def test_a_folders_name_is_enough_here_in_the_repository_in_data_and_in_the_set_folder(
    project, monkeypatch, where
):
    (project / "../elsewhere").mkdir()
    monkeypatch.setenv("DPR_DATA_DIR", str(project / "../elsewhere"))
    with pytest.raises(ValueError, match="unknown profile 'mine'"):
        get_profile("mine")
    (project / where).mkdir()
    assert is_plain(get_profile("mine"), "mine")


def test_a_file_here_is_no_profile(project):
    (project / "notebooks" / "mine").touch()
    with pytest.raises(ValueError, match="unknown profile 'mine'"):
        get_profile("mine")


def test_a_profile_is_meant_where_a_folder_has_its_name(project):
    (project / "notebooks" / "sample").mkdir()
    assert get_profile("sample") is PROFILES["sample"]


@pytest.mark.parametrize("name", ["arguana", "fiqa", "quora"])
def test_the_name_of_another_beir_set_is_enough(project, name):
    assert is_plain(get_profile(name), name)
    assert list((project / "data").iterdir()) == []  # nothing is fetched before it is needed


@pytest.mark.parametrize("name", ["unknown", "", "SciFact", "scifact ", "ArguAna"])
def test_an_unknown_name_is_refused_with_the_known_ones(project, name):
    message = (
        f"unknown profile {name!r}; known: sample, smoke, scifact, nfcorpus, trec-covid, "
        "a folder in BEIR layout, a BEIR set"
    )
    with pytest.raises(ValueError, match=escape(message)):
        get_profile(name)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_it_is_declared_what_the_encoders_of_a_profile_were_trained_on(profile):
    assert set(profile.encoders) <= TRAINED_ON.keys()


@pytest.mark.parametrize("value", [0, -1])
@pytest.mark.parametrize("field", SIZES + LIMITS)
def test_a_size_below_one_is_refused_by_name(field, value):
    must = "must be None or at least 1" if field in LIMITS else f"must be at least 1, got {value}"
    with pytest.raises(ValueError, match=f"{field} {must}"):
        Profile("mine", "scifact", **{field: value})


@pytest.mark.parametrize("field", SIZES + LIMITS)
def test_the_smallest_size_is_one(field):
    assert getattr(Profile("mine", "scifact", **{field: 1}), field) == 1


@pytest.mark.parametrize("field", ["seeds", "encoders"])
def test_a_profile_needs_a_seed_and_an_encoder(field):
    with pytest.raises(ValueError, match=r"must be one or more, got \(\)"):
        Profile("mine", "scifact", **{field: ()})


@pytest.mark.parametrize("numbers", [(), (5, 1), (1, 1)])
def test_numbers_of_queries_that_do_not_grow_are_refused(numbers):
    with pytest.raises(ValueError, match=escape(f"num_queries must be numbers that grow, got {numbers}")):
        QueryWriting(num_queries=numbers)


@pytest.mark.parametrize(
    ("field", "value"),
    [("most_queries", 0), ("depth", 0), ("share", 0.0), ("share", 1.1), ("filters", ()), ("filters", ("x",))],
)
def test_settings_for_training_on_written_queries_are_checked(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        SyntheticTraining(**{field: value})


def test_a_profile_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_profile("scifact").depth = 10


def test_without_judgements_it_is_learnt_from_docstrings_as_sample_does_and_nothing_else_changes():
    arguana = dataclasses.replace(get_profile("arguana"), validation_queries=7)
    sample = get_profile("sample")
    changed = without_judgements_to_learn_from(arguana)
    parts = ("training", "training_length", "validation_passages", "validation_queries", "synthetic")
    parts = (*parts, "reranking", "seeds")
    assert changed.training_set == "docstrings/train"
    for part in parts:
        assert getattr(changed, part) == getattr(sample, part) != getattr(arguana, part)
    own = {part: getattr(arguana, part) for part in (*parts, "training_set")}
    assert dataclasses.replace(changed, **own) == arguana
