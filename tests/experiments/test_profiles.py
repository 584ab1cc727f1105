"""Profiles: one knob, refused where it makes no sense."""

import dataclasses
from re import escape

import pytest

from dpr.experiments.profiles import PROFILES, Profile, get_profile

SIZES = (
    "depth",
    "query_max_length",
    "passage_max_length",
    "training_length",
    "validation_passages",
    "validation_queries",
)
LIMITS = ("num_passages", "num_queries")


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
def test_a_path_gets_the_settings_of_scifact(path):
    expected = dataclasses.replace(
        get_profile("scifact"), name=path, collection=path, factors=False, triples=None
    )
    assert get_profile(path) == expected


@pytest.mark.parametrize("name", ["unknown", "", "SciFact", "scifact "])
def test_an_unknown_name_is_refused_with_the_known_ones(name):
    message = f"unknown profile {name!r}; known: sample, smoke, scifact, nfcorpus, trec-covid"
    with pytest.raises(ValueError, match=escape(message)):
        get_profile(name)


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


def test_a_profile_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_profile("scifact").depth = 10
