"""Settings of a training run: what can be is taken, what cannot is refused by name, value and range."""

from dataclasses import FrozenInstanceError, replace
from re import escape

import pytest

from dpr.training.settings import TrainingSettings

ABOVE_0 = "must be above 0"
SHARE = "must be at least 0 and below 1"
PRECISIONS = "(None, 'float32', 'bfloat16', 'float16')"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_epochs": 0}, f"num_epochs {ABOVE_0}, got 0"),
        ({"num_epochs": -1.5}, f"num_epochs {ABOVE_0}, got -1.5"),
        ({"num_epochs": float("nan")}, f"num_epochs {ABOVE_0}, got nan"),
        ({"temperature": 0.0}, "temperature must be above 0, got 0.0"),
        ({"temperature": -0.05}, "temperature must be above 0, got -0.05"),
        ({"max_grad_norm": 0}, f"max_grad_norm {ABOVE_0}, got 0"),
        ({"floor_share": 0}, "floor_share must be above 0 and at most 1, got 0"),
        ({"floor_share": 1.1}, "floor_share must be above 0 and at most 1, got 1.1"),
        ({"batch_size": 1}, "batch_size must be at least 2, got 1"),
        ({"num_negatives": -1}, "num_negatives must be at least 0, got -1"),
        ({"accumulation": 0}, "accumulation must be at least 1, got 0"),
        ({"eval_every": -5}, "eval_every must be at least 0, got -5"),
        ({"log_every": 0}, "log_every must be at least 1, got 0"),
        ({"weight_decay": -0.1}, "weight_decay must be at least 0, got -0.1"),
        ({"learning_rate": -1e-9}, "learning_rate must be at least 0, got -1e-09"),
        ({"num_steps": 0}, "num_steps must be None or at least 1, got 0"),
        ({"queries_per_passage": 0}, "queries_per_passage must be None or at least 1, got 0"),
        ({"pass_tokens": 0}, "pass_tokens must be None or at least 1, got 0"),
        ({"patience": 0}, "patience must be None or at least 1, got 0"),
        ({"warmup_share": 1.0}, f"warmup_share {SHARE}, got 1.0"),
        ({"warmup_share": -0.1}, f"warmup_share {SHARE}, got -0.1"),
        ({"dropout": 1}, f"dropout {SHARE}, got 1"),
        ({"dropout": -0.5}, f"dropout {SHARE}, got -0.5"),
        ({"schedule": "step"}, "schedule must be one of ('linear', 'cosine'), got 'step'"),
        ({"metric": "loss"}, "metric must be one of ('nDCG@10', 'RR@10', 'R@100'), got 'loss'"),
        ({"precision": "int8"}, f"precision must be one of {PRECISIONS}, got 'int8'"),
        ({"eval_every": 25}, "log_every must divide eval_every, got 10 and 25"),
        ({"eval_every": 5}, "log_every must divide eval_every, got 10 and 5"),
    ],
)
def test_a_value_outside_its_range_is_refused_by_name(changed, message):
    with pytest.raises(ValueError, match="^" + escape(message) + "(:|$)"):
        TrainingSettings(**changed)
    with pytest.raises(ValueError, match=escape(message)):
        replace(TrainingSettings(), **changed)


@pytest.mark.parametrize(
    "changed",
    [
        {"num_epochs": 1e-6, "temperature": 1e-6, "max_grad_norm": float("inf"), "floor_share": 1},
        {"batch_size": 2, "num_negatives": 0, "accumulation": 1, "weight_decay": 0, "learning_rate": 0},
        {"num_steps": 1, "queries_per_passage": 1, "pass_tokens": 1, "patience": 1, "log_every": 1},
        {"warmup_share": 0, "dropout": 0, "schedule": "cosine", "metric": "R@100", "precision": "float16"},
        {"warmup_share": 0.999, "dropout": 0.999, "eval_every": 30, "log_every": 15},
        {"num_steps": None, "queries_per_passage": None, "pass_tokens": None, "patience": None},
    ],
)
def test_a_value_at_the_edge_of_its_range_is_taken(changed):
    settings = TrainingSettings(**changed)
    assert {name: getattr(settings, name) for name in changed} == changed


@pytest.mark.parametrize("name", ["weight_decay", "learning_rate"])
def test_what_is_no_number_is_refused(name):
    with pytest.raises(ValueError, match=name):
        TrainingSettings(**{name: float("nan")})


def test_settings_stay_as_they_are_made():
    with pytest.raises(FrozenInstanceError):
        TrainingSettings().seed = 1
