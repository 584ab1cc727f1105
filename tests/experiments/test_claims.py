"""Claims: what holds is remembered, what fails raises, and what could not fail is refused."""

import math
from re import escape

import pytest

from dpr.experiments.claims import Claims


@pytest.mark.parametrize(
    ("value", "bounds", "row"),
    [
        (0.5, {"low": 0.5}, ("0.5", "at least 0.5")),
        (0.5, {"high": 0.5}, ("0.5", "at most 0.5")),
        (0.5, {"low": 0.25, "high": 0.5}, ("0.5", "0.25 to 0.5")),
        (0.25, {"low": 0.25, "high": 0.5}, ("0.25", "0.25 to 0.5")),
        (3, {"low": 3, "high": 3}, ("3", "3")),
        (True, {"low": 1}, ("1", "at least 1")),
        (0.67891234, {"low": 0.6784, "high": 0.6794}, ("0.6789", "0.6784 to 0.6794")),
    ],
)
def test_a_claim_that_holds_is_remembered_with_both_bounds_included(value, bounds, row):
    check = Claims()
    check("it holds", value, **bounds)
    assert check.rows == [("it holds", *row)]


@pytest.mark.parametrize(
    ("value", "bounds", "message"),
    [
        (0.4999, {"low": 0.5}, "got 0.4999, expected at least 0.5"),
        (0.5001, {"high": 0.5}, "got 0.5001, expected at most 0.5"),
        (0.9, {"low": 0.25, "high": 0.5}, "got 0.9, expected 0.25 to 0.5"),  # too good is wrong too
        (0.1, {"low": 0.25, "high": 0.5}, "got 0.1, expected 0.25 to 0.5"),
        (2, {"low": 3, "high": 3}, "got 2, expected 3"),
        (False, {"low": 1}, "got 0, expected at least 1"),
        (math.nan, {"low": 0}, "got nan, expected at least 0"),
        (math.nan, {"high": 0}, "got nan, expected at most 0"),
        (0.7, {"low": 0.8, "high": 0.6}, "got 0.7, expected 0.8 to 0.6"),
        (0.0, {"low": math.nan}, "got 0, expected at least nan"),
    ],
)
def test_a_claim_that_fails_raises_with_value_and_bounds_and_is_not_remembered(value, bounds, message):
    check = Claims()
    with pytest.raises(AssertionError, match=escape(f"claim failed: it holds: {message}") + "$"):
        check("it holds", value, **bounds)
    assert check.rows == []


@pytest.mark.parametrize("bounds", [{}, {"low": -math.inf}, {"high": math.inf}])
def test_a_claim_without_a_bound_is_refused(bounds):
    check = Claims()
    with pytest.raises(ValueError, match="claim 'anything' has no bound: it could not fail"):
        check("anything", 0.5, **bounds)
    assert check.rows == []


def test_claims_keep_their_order_and_each_collector_its_own():
    first, second = Claims(), Claims()
    first("b", 1, low=0)
    second("c", 1, low=0)
    first("a", 2, low=0)
    assert [claim for claim, _, _ in first.rows] == ["b", "a"]
    assert [claim for claim, _, _ in second.rows] == ["c"]
