"""Claims: what holds is remembered, what fails raises, and what could not fail is refused."""

import math
from pathlib import Path
from re import escape

import pytest

from dpr.experiments.claims import Claims, quoted


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
    check, unseen = Claims(), Claims(strict=False)
    message = escape(f"claim failed: it holds: {message}") + "$"
    for claim in (check, check.data, unseen):  # one about the code raises an error whatever the data
        with pytest.raises(AssertionError, match=message):
            claim("it holds", value, **bounds)
    assert check.rows == unseen.rows == []
    with pytest.warns(UserWarning, match=message):
        unseen.data("it holds", value, **bounds)
    [(_, _, bounds_shown)] = unseen.rows
    assert bounds_shown.endswith(": not so here")


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("bounds", [{}, {"low": -math.inf}, {"high": math.inf}])
def test_a_claim_without_a_bound_is_refused(bounds, strict):
    check = Claims(strict)
    for claim in (check, check.data):
        with pytest.raises(ValueError, match="claim 'anything' has no bound: it could not fail"):
            claim("anything", 0.5, **bounds)
    assert check.rows == []


def test_claims_keep_their_order_and_each_collector_its_own():
    first, second = Claims(), Claims()
    first("b", 1, low=0)
    second("c", 1, low=0)
    first.data("d", 3, low=0)
    first("a", 2, low=0)
    assert [claim for claim, _, _ in first.rows] == ["b", "d", "a"]
    assert [claim for claim, _, _ in second.rows] == ["c"]


def test_on_data_nobody_knows_a_claim_about_it_that_fails_is_remembered_as_not_so_here_with_a_warning():
    check = Claims(strict=False)
    with pytest.warns(
        UserWarning, match="claim failed: cls is worse: got 0.1, expected at least 0.2"
    ) as told:
        check.data("cls is worse", 0.1, low=0.2)
    assert [Path(warning.filename).name for warning in told] == ["test_claims.py"]  # the caller
    check.data("and this holds", 1, low=1)
    assert check.rows == [
        ("cls is worse", "0.1", "at least 0.2: not so here"),
        ("and this holds", "1", "at least 1"),
    ]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("strict", [True, False])
def test_a_claim_about_the_data_that_holds_is_remembered_like_any_other(strict):
    check = Claims(strict)
    check("it holds", 0.5, low=0.25, high=0.5)
    check.data("it holds", 0.5, low=0.25, high=0.5)
    assert check.rows == [("it holds", "0.5", "0.25 to 0.5")] * 2


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "a [link](javascript:alert(1)) and ![one](x)",
        "`code` *and* __more__ | a | table |",
        "# no heading\n\n- no list\n\n    no code",
        "&lt;b&gt; stays as it is, as do $x^2$ and \\\\(y\\\\)",
    ],
)
def test_a_quoted_text_is_shown_sign_by_sign(text):
    from html.parser import HTMLParser

    from nbconvert.filters.markdown import markdown2html

    shown, tags = [], []
    parser = HTMLParser()
    parser.handle_data = shown.append
    parser.handle_starttag = lambda tag, attributes: tags.append(tag)
    parser.feed(markdown2html(f"> {quoted(text)}"))
    assert set(tags) <= {"blockquote", "p"}
    assert "".join(shown).split() == text.split()
