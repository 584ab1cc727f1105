"""A grid of settings: each cell is a training of its own, made once, and dev queries choose among them."""

import gc
from copy import deepcopy
from dataclasses import replace
from re import escape

import numpy as np
import pytest
import torch

from dpr.experiments import grid_search as module
from dpr.experiments.grid_search import Grid, grid_search, settings_grid
from dpr.experiments.plots import plot_grid
from dpr.experiments.profiles import Profile
from dpr.experiments.workspace import Workspace
from dpr.models.bi_encoder import BiEncoder
from dpr.models.two_encoders import TwoEncoders
from dpr.training.bi_encoder import BiEncoderTrainer, train
from dpr.training.resume import IDENTITY, Training
from dpr.training.settings import TrainingSettings

SETTINGS = TrainingSettings(
    num_steps=2, batch_size=2, warmup_share=0.0, dropout=0.2, eval_every=1, log_every=1
)
CELLS = settings_grid(SETTINGS, {"learning_rate": (1e-3, 1e-2), "temperature": (0.05, 0.5)})
THREE = dict(list(CELLS.items())[:3])
MEASURED = ("step_s", "tokens_per_s", "memory_bytes", "eval_s")  # of the machine, not of the training


@pytest.fixture(autouse=True, scope="module")
def frozen():
    """Each training collects garbage among all that is imported, which takes longer than the training."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def tiny_collection(with_dev):
    """That with dev queries, also for `tiny_beir_folder`."""
    return with_dev


@pytest.fixture
def space(tmp_path, tiny_beir_folder):
    """A workspace over the tiny collection, with shorter passages in training."""
    profile = Profile("tiny", str(tiny_beir_folder), training_length=8, query_max_length=8, seeds=(0, 1))
    return Workspace(profile, tmp_path / "out")


@pytest.fixture
def encoder(plain_folder):
    return BiEncoder.from_pretrained(
        plain_folder, device="cpu", pooling="mean", query_max_length=8, passage_max_length=16
    )


@pytest.fixture
def searched(space, encoder):
    """Searches a grid of three cells, or one with something changed."""
    data, dev = space.training_data()

    def search(cells=THREE, validation=dev, seeds=(0,), encoder=encoder, data=data, **more) -> Grid:
        return grid_search(space, "grid", encoder, data, cells, validation, seeds=seeds, **more)

    return search


@pytest.fixture
def trained(monkeypatch):
    """The folders' names of all trainings that are begun or gone on with, in order."""
    names = []

    def counted(encoder, data, folder, *rest, **more):
        names.append(folder.name)
        return train(encoder, data, folder, *rest, **more)

    monkeypatch.setattr(module, "train", counted)
    return names


def told(training):
    """A training's history without what the machine makes of it."""
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in training.history]


def names(seed=0):
    """The names of the three trainings with a seed, in order."""
    return [f"grid-{cell}-s{seed}" for cell in THREE]


# --- the cells ---------------------------------------------------------------------------------


def test_a_grid_has_every_combination_over_the_base_settings():
    assert list(CELLS) == [
        "learning_rate=0.001,temperature=0.05",
        "learning_rate=0.001,temperature=0.5",
        "learning_rate=0.01,temperature=0.05",
        "learning_rate=0.01,temperature=0.5",
    ]
    assert CELLS["learning_rate=0.01,temperature=0.05"] == replace(
        SETTINGS, learning_rate=1e-2, temperature=0.05
    )
    [cell] = settings_grid(SETTINGS, {"precision": [None]}).values()
    assert cell == SETTINGS


def test_values_may_be_an_array_and_become_plain_numbers():
    for given in (np.array([4, 8]), list(np.array([4, 8]))):
        cells = settings_grid(SETTINGS, {"batch_size": given})
        assert list(cells) == ["batch_size=4", "batch_size=8"]
        assert {type(settings.batch_size) for settings in cells.values()} == {int}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "the grid is empty; give a setting with values to try"),
        ({"seed": (0, 1)}, "seed cannot be in the grid: the seed is luck"),
        ({"rate": (1e-5,)}, "no setting 'rate'; there are num_epochs, num_steps"),
        ({"temperature": ()}, "temperature must be a list of values to try, got ()"),
        ({"temperature": 0.05}, "temperature must be a list of values to try, got 0.05"),
        ({"schedule": "linear"}, "schedule must be a list of values to try, got 'linear'"),
        ({"batch_size": (8, 4, 8)}, "batch_size lists 8 twice"),
        ({"temperature": (0.05, 0.0)}, "temperature must be above 0, got 0.0"),
        ({"temperature": ("hot",)}, "TrainingSettings: temperature must be float, got 'hot'"),
    ],
)
def test_a_wrong_grid_is_refused(values, message):
    with pytest.raises(ValueError, match=escape(message)):
        settings_grid(SETTINGS, values)


# --- trainings ---------------------------------------------------------------------------------


def test_every_cell_starts_from_the_given_encoder_as_if_trained_alone(tmp_path, space, encoder, searched):
    before = deepcopy(encoder.model.state_dict())
    grid = searched(CELLS, seeds=(1,))
    for name, weights in encoder.model.state_dict().items():
        assert torch.equal(weights, before[name]), name
    assert encoder.config.passage_max_length == 16
    data, dev = space.training_data()
    short = encoder.with_settings(passage_max_length=8)
    for number, cell in enumerate(reversed(CELLS)):
        folder, settings = tmp_path / f"alone-{number}", replace(CELLS[cell], seed=1)
        alone, in_grid = train(short, data, folder, settings, validation=dev), grid.trainings[cell][1]
        assert told(in_grid) == told(alone)
        for part in (*IDENTITY, "best_step", "steps"):
            assert in_grid.finished[part] == alone.finished[part]
    assert len({found[1].steps[-1]["loss"] for found in grid.trainings.values()}) == 4


def test_the_seeds_and_the_length_are_those_given_or_the_profiles(searched):
    cells = {"hot": replace(SETTINGS, temperature=0.5, seed=7)}
    grid = searched(cells, seeds=None)
    assert list(grid.trainings["hot"]) == [0, 1]
    assert [t.finished["settings"]["seed"] for t in grid.trainings["hot"].values()] == [0, 1]
    assert grid.trainings["hot"][0].finished["start"]["passage_max_length"] == 8
    grid = searched(cells, seeds=[3], training_length=6)
    assert list(grid.trainings["hot"]) == [3]
    assert grid.trainings["hot"][3].finished["start"]["passage_max_length"] == 6
    assert grid.best.seed == 7


def test_no_test_query_is_searched_for(space, searched, monkeypatch):
    monkeypatch.setattr(Workspace, "collection", None)
    grid = searched({"one": SETTINGS})
    assert (grid.metric, grid.split, grid.num_queries) == ("nDCG@10", "dev", 2)
    assert {path.name for path in space.runs.iterdir()} == {"training"}


def test_two_encoders_are_trained_alike(encoder, searched):
    two = TwoEncoders(encoder, encoder.with_settings())
    grid = searched({"one": SETTINGS}, encoder=two)
    assert grid.trainings["one"][0].finished["start"]["encoders"] == 2


def test_progress_says_which_cell_of_how_many(searched, capsys):
    searched()
    shown = capsys.readouterr().err
    assert "grid: cells 3, seeds 1" in shown
    assert "3/3" in shown
    for cell in THREE:
        assert f"{cell}, seed 0" in shown


# --- what is kept ------------------------------------------------------------------------------


def test_a_second_call_trains_nothing_and_one_that_is_lost_is_trained_alone(space, searched, trained):
    first = searched()
    assert trained == names()
    assert {path.stem for path in (space.runs / "training").iterdir()} == set(names())
    assert not list(space.models.rglob("*.safetensors"))
    trained.clear()
    again = searched()
    assert trained == []
    assert again == first
    space.kept_training(names()[2]).unlink()
    third = searched()
    assert trained == [names()[2]]
    assert third.values == first.values
    for cell in THREE:
        assert told(third.trainings[cell][0]) == told(first.trainings[cell][0])


def test_a_further_cell_or_seed_is_all_that_is_trained(searched, trained):
    cells = list(THREE.items())
    searched(dict(cells[:2]))
    trained.clear()
    searched(dict(cells[1:]), seeds=(0, 1))
    assert trained == [names(1)[1], names(0)[2], names(1)[2]]


def test_changed_settings_or_validation_are_trained_anew(space, searched, trained):
    searched({"one": SETTINGS})
    searched({"one": replace(SETTINGS, learning_rate=0.5)})
    _, dev = space.training_data()
    searched({"one": SETTINGS}, validation=dev.sample(3, 2))
    assert trained == ["grid-one-s0"] * 3


def test_a_grid_killed_within_a_cell_goes_on_from_there(space, searched, trained, monkeypatch):
    whole = searched()
    for path in (space.runs / "training").iterdir():
        path.unlink()
    trained.clear()
    validate, calls = BiEncoderTrainer.validate, []

    def killed(trainer):
        calls.append(trainer.state.global_step)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return validate(trainer)

    monkeypatch.setattr(BiEncoderTrainer, "validate", killed)
    with pytest.raises(KeyboardInterrupt):
        searched()
    assert trained == names()[:2]
    assert [path.stem for path in (space.runs / "training").iterdir()] == names()[:1]
    grid = searched()
    assert trained == names()[:2] + names()[1:]
    assert calls == [1, 2, 1, 2, 2, 1, 2]  # the second cell goes on from its first step
    for cell in THREE:
        assert told(grid.trainings[cell][0]) == told(whole.trainings[cell][0])


# --- what is found -----------------------------------------------------------------------------


def made(values, cells=CELLS, metric="nDCG@10"):
    """A grid with these values: one list for each cell, one value for each seed."""

    def training(seed, value):
        steps = [{"loss": 1.0, "step": step, "step_s": 15.0} for step in (2, 4)]
        evaluations = [
            {"eval_loss": 1.0, f"eval_{metric}": found, "step": step, "eval_s": 30.0}
            for step, found in ((2, value / 2), (4, value))
        ]
        return Training([*steps, *evaluations], {"best_step": 4 if seed == 0 else 2}, None)

    trainings = {
        name: {seed: training(seed, value * (1 + seed)) for seed, value in enumerate(found)}
        for name, found in zip(cells, values, strict=True)
    }
    return Grid(dict(cells), trainings, metric, "dev", 100)


def test_the_table_has_mean_and_range_over_the_seeds_best_cell_first():
    grid = made([[0.2, 0.4], [0.6, 0.5], [0.7, 0.2], [0.1, 0.1]])  # at the best steps
    assert grid.fields == ["learning_rate", "temperature"]
    table = grid.table
    assert list(table.columns) == [
        "learning_rate",
        "temperature",
        "nDCG@10",
        "lowest",
        "highest",
        "best step",
        "minutes",
    ]
    cells = list(CELLS)
    assert list(table.index) == [cells[i] for i in (1, 2, 0, 3)]
    assert table.loc[cells[2]].tolist() == [1e-2, 0.05, pytest.approx(0.45), 0.2, 0.7, "4, 2", 4.0]
    assert list(table["nDCG@10"]) == pytest.approx([0.55, 0.45, 0.3, 0.1])
    assert grid.best_cell == cells[1]
    assert grid.best == CELLS[cells[1]]


def test_of_equally_good_cells_the_first_one_given_is_best():
    grid = made([[0.2], [0.6], [0.6], [0.1]])
    assert grid.best_cell == list(CELLS)[1] == grid.table.index[0]


def test_cells_of_ones_own_are_told_apart_by_what_differs():
    cells = {"short": replace(SETTINGS, num_steps=1), "no dropout": replace(SETTINGS, dropout=0.0)}
    table = made([[0.1], [0.2]], cells).table
    assert list(table.columns[:2]) == ["num_steps", "dropout"]
    assert table.loc["short"][:2].tolist() == [1, 0.2]
    assert made([[0.1]], {"one": SETTINGS}).fields == []


def test_pairs_are_for_two_settings_that_alone_differ():
    grid = made([[0.2], [0.6], [0.7], [0.1]])
    pairs = grid.pairs("temperature", "learning_rate")
    assert pairs == {(0.05, 1e-3): 0.2, (0.5, 1e-3): 0.6, (0.05, 1e-2): 0.7, (0.5, 1e-2): 0.1}
    with pytest.raises(ValueError, match="no setting 'heat'; there are num_epochs"):
        grid.pairs("temperature", "heat")
    with pytest.raises(ValueError, match="the cells also differ in temperature; pairs are for two"):
        grid.pairs("learning_rate", "batch_size")


def test_the_heat_map_has_each_cell_at_its_settings_and_frames_the_best():
    grid = made([[0.2], [0.6], [0.7], [0.1]])
    pairs = grid.pairs("temperature", "learning_rate")
    figure = plot_grid(pairs, ("temperature", "learning_rate"), "nDCG@10, 100 dev queries", "The answer")
    axes, colour_bar = figure.axes
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.2, 0.6], [0.7, 0.1]])
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == (
        "The answer",
        "temperature",
        "learning_rate",
    )
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.05", "0.5"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0.001", "0.01"]
    assert {text.get_position(): text.get_text() for text in axes.texts}[0, 1] == "0.700"
    assert colour_bar.get_ylabel() == "nDCG@10, 100 dev queries"
    assert [(patch.get_label(), patch.get_xy()) for patch in axes.patches] == [("best", (-0.5, 0.5))]
    assert 1_000 < len(figure._repr_png_()) < 30_000


def test_a_pair_that_was_not_tried_stays_empty_in_the_heat_map():
    axes = plot_grid({(None, 1): 0.5, ("cosine", 2): 0.25}, ("schedule", "size"), "metric", "title").axes[0]
    np.testing.assert_array_equal(axes.images[0].get_array().filled(np.nan), [[0.5, np.nan], [np.nan, 0.25]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["None", "cosine"]
    assert len(axes.texts) == 2
    with pytest.raises(ValueError, match="a heat map needs values"):
        plot_grid({}, ("x", "y"), "metric", "title")


# --- refused before anything is trained --------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"cells": {}}, "there are no cells to train; give settings by name"),
        ({"cells": {"temperature": (0.1, 0.2)}}, "cell 'temperature' must be TrainingSettings"),
        ({"seeds": ()}, "seeds must be one or more different numbers, got []"),
        ({"seeds": (1, 1)}, "seeds must be one or more different numbers, got [1, 1]"),
        (
            {"cells": {"a": SETTINGS, "b": replace(SETTINGS, seed=1)}},
            "cells 'a' and 'b' are the same settings; the seed is luck",
        ),
        (
            {"cells": {"a": SETTINGS, "b": replace(SETTINGS, metric="RR@10")}},
            "metric must be the same in all cells to compare them, got ['RR@10', 'nDCG@10']",
        ),
        (
            {"cells": {"a": SETTINGS, "b": replace(SETTINGS, batch_size=4)}},
            "batch_size must be from 2 to 3, the records of an epoch",
        ),
        ({"cells": {"a": SETTINGS, "b/c": replace(SETTINGS, num_steps=1)}}, "'grid-b/c-s0' becomes a file's"),
    ],
)
def test_a_wrong_argument_is_refused_before_the_first_training(space, searched, trained, changed, message):
    with pytest.raises(ValueError, match=escape(message)):
        searched(**changed)
    assert trained == []
    assert not space.models.exists()


def test_test_queries_and_training_queries_do_not_choose(space, searched, trained):
    with pytest.raises(ValueError, match="compared on dev queries, never on test"):
        searched(validation=space.collection("test"))
    with pytest.raises(ValueError, match="3 training queries are validation queries too"):
        searched(validation=space.collection("train"))
    assert trained == []
