"""Answers in words and checked claims, for the notebooks."""

import html
import math
import re
import warnings


def say(markdown: str) -> None:
    """Show an answer in markdown below a cell, with numbers computed in that cell."""
    from IPython.display import Markdown, display

    display(Markdown(markdown))


def quoted(text: str) -> str:
    r"""A text of a collection as markdown shows it sign by sign: nothing in it becomes HTML or markdown.

    >>> quoted("is 1 < 2\nor *not*?")
    'is 1 &lt; 2 or \\*not\\*?'
    """
    return re.sub(r"([\\`*_\[\]$|~#])", r"\\\1", html.escape(" ".join(text.split()), quote=False))


class Claims:
    """Checks claims when called, and records them in `rows`.

    A claim about the code is called as `check(…)` and must always hold. A claim about the data, which may be
    otherwise in another collection, is called as `check.data(…)`.

    Args:
        strict: Whether a claim about the data that fails raises an error. If not, as on a collection that
            nobody has seen before, it is recorded as "not so here", with a warning.

    >>> check = Claims()
    >>> check("half is between a third and one", 0.5, low=0.3, high=1)
    >>> check.rows
    [('half is between a third and one', '0.5', '0.3 to 1')]
    """

    def __init__(self, strict: bool = True):
        self._strict = strict
        self.rows: list[tuple[str, str, str]] = []

    def __call__(self, claim: str, value: float, low: float = -math.inf, high: float = math.inf) -> None:
        """Check that `value` lies from `low` to `high`, both included.

        Args:
            claim: The claim in words.
            value: The measured value; a bool counts as 1 or 0.
            low: Smallest value for which the claim holds.
            high: Largest value for which it holds; an unexplained gain is an error too.

        Raises:
            AssertionError: The value is outside the bounds or NaN; the message names all of them.
            ValueError: Neither bound is given.
        """
        self._record(claim, value, low, high, True)

    def data(self, claim: str, value: float, low: float = -math.inf, high: float = math.inf) -> None:
        """Check a claim about the data; the arguments are those of a call.

        Raises:
            AssertionError: As in a call, if the claims are strict.
            ValueError: Neither bound is given.
        """
        self._record(claim, value, low, high, self._strict)

    def _record(self, claim: str, value: float, low: float, high: float, strict: bool) -> None:
        """Record a claim; raise an error if it fails and `strict`, else warn."""
        if low == -math.inf and high == math.inf:
            raise ValueError(f"claim {claim!r} has no bound: it could not fail")
        bounds = f"{low:g} to {high:g}"
        if high == math.inf:
            bounds = f"at least {low:g}"
        elif low == -math.inf:
            bounds = f"at most {high:g}"
        elif low == high:
            bounds = f"{low:g}"
        if not low <= value <= high:
            message = f"claim failed: {claim}: got {value:.6g}, expected {bounds}"
            if strict:
                raise AssertionError(message)
            warnings.warn(message, stacklevel=3)
            bounds += ": not so here"
        self.rows.append((claim, f"{float(value):.4g}", bounds))
