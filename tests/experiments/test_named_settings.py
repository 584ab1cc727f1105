"""Settings by name: changed together, refused by name, and shown as rows that make the same again."""

import dataclasses
from re import escape

import pytest

from dpr.experiments.named_settings import settings_table, with_settings
from dpr.experiments.profiles import PROFILES, Profile, QueryWriting, get_profile
from dpr.training.settings import TrainingSettings

# --- settings that are changed -----------------------------------------------------------------


def test_settings_are_changed_by_name_and_with_a_dot_inside_others():
    scifact = get_profile("scifact")
    changed = with_settings(
        scifact,
        {
            "depth": 50,
            "training.batch_size": 16,
            "training.learning_rate": 1e-4,
            "writing.training.num_steps": 7,
            "triples": None,
        },
    )
    assert (changed.depth, changed.triples) == (50, None)
    assert changed.training == dataclasses.replace(scifact.training, batch_size=16, learning_rate=1e-4)
    assert changed.writing.training == dataclasses.replace(scifact.writing.training, num_steps=7)
    assert changed.writing.sets == scifact.writing.sets
    back = {
        "depth": 1000,
        "triples": "squad-triples",
        "training": scifact.training,
        "writing": scifact.writing,
    }
    assert dataclasses.replace(changed, **back) == scifact
    assert scifact is PROFILES["scifact"]
    assert (scifact.depth, scifact.training.batch_size) == (1000, TrainingSettings().batch_size)


def test_without_changes_the_settings_are_those_there_were():
    assert with_settings(PROFILES["sample"], {}) == PROFILES["sample"]


def test_a_list_stands_for_a_tuple():
    changed = with_settings(get_profile("sample"), {"seeds": [3, 4], "writing.num_queries": [1, 2, 9]})
    assert (changed.seeds, changed.writing.num_queries) == ((3, 4), (1, 2, 9))


def test_settings_that_are_only_right_together_are_changed_together():
    for names in (("log_every", "eval_every"), ("eval_every", "log_every")):
        given = {f"training.{name}": 7 for name in names}
        training = with_settings(get_profile("sample"), given).training  # 10 and 10 before
        assert (training.log_every, training.eval_every) == (7, 7)


def test_what_holds_settings_and_one_of_them_may_both_be_changed():
    given = {"training.batch_size": 16, "training": TrainingSettings(num_steps=9)}
    training = with_settings(get_profile("sample"), given).training
    assert training == TrainingSettings(num_steps=9, batch_size=16)


@pytest.mark.parametrize(
    ("name", "said", "known"),
    [
        ("dept", "dept", Profile),
        ("", "", Profile),
        ("Depth", "Depth", Profile),
        ("depth.more", "depth.more", Profile),  # a number holds no settings
        ("triples.name", "triples.name", Profile),
        ("training.batchsize", "batchsize", TrainingSettings),
        ("training.", "", TrainingSettings),
        ("writing.held", "held", QueryWriting),
    ],
)
def test_an_unknown_setting_is_refused_with_those_there_are(name, said, known):
    names = ", ".join(field.name for field in dataclasses.fields(known))
    with pytest.raises(ValueError, match=escape(f"no setting {said!r}; there are {names}") + "$"):
        with_settings(get_profile("scifact"), {name: 1})


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("depth", 0, "depth must be at least 1, got 0"),
        ("depth", "many", "depth"),
        ("query_max_length", -1, "query_max_length must be None or at least 1, got -1"),
        ("seeds", [], "seeds must be one or more"),
        ("training", {"batch_size": 16}, "training"),
        ("training.batch_size", 0, "batch_size must be"),
        ("writing.num_queries", [3, 1], "num_queries must be numbers that grow"),
    ],
)
def test_a_value_that_the_settings_refuse_is_refused(name, value, message):
    with pytest.raises(ValueError, match=escape(message)):
        with_settings(get_profile("scifact"), {name: value})


# --- settings as rows --------------------------------------------------------------------------


@pytest.mark.parametrize("start", PROFILES)
@pytest.mark.parametrize("name", [name for name in PROFILES])
def test_the_rows_of_settings_make_the_same_settings_from_any_others(start, name):
    rows = settings_table(get_profile(name))
    assert with_settings(get_profile(start), dict(rows)) == get_profile(name)


def test_every_setting_has_one_row_and_those_inside_others_have_a_dot():
    rows = settings_table(get_profile("sample"))
    names = [name for name, _ in rows]
    assert len(set(names)) == len(names)
    assert {name.split(".")[0] for name in names} == {field.name for field in dataclasses.fields(Profile)}
    found = dict(rows)
    assert (found["training.batch_size"], found["synthetic.training.num_steps"], found["seeds"]) == (
        16,
        8,
        (0,),
    )
    assert not {"training", "writing", "writing.training", "synthetic"} & set(names)
    assert settings_table(get_profile("sample").training)[0][0] == "num_epochs"
