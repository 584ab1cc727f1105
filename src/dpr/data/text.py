"""Joining, comparing and repairing texts, and a fixed order of texts that looks random."""

import hashlib

import ftfy

# Leaves quotes, ligatures and character widths as they are, so that texts match the searched passages
MENDING = ftfy.TextFixerConfig(
    uncurl_quotes=False, fix_latin_ligatures=False, fix_character_width=False, normalization=None
)


def mend(text: str) -> str:
    """Repair wrongly decoded text as ftfy does, HTML entities included, but keep quotes and ligatures.

    >>> mend("what is a cafÃ©"), mend("“quoted”")
    ('what is a café', '“quoted”')
    """
    return ftfy.fix_text(text, MENDING)


def query_key(text: str) -> str:
    """The form in which queries are compared: repaired by `mend`, then normalised."""
    return normalise(mend(text))


def join_title_text(title: str, text: str) -> str:
    """Join a title and a text with one space; if one of them is blank, return the other.

    >>> join_title_text("Masks", "They work."), join_title_text("Masks", " ")
    ('Masks They work.', 'Masks')
    """
    return " ".join(part for part in (title.strip(), text.strip()) if part)


def normalise(text: str) -> str:
    r"""The text case-folded, with single spaces: the form in which queries and texts are compared.

    >>> normalise(" Add\n two  ")
    'add two'
    """
    return " ".join(text.casefold().split())


def stable_hash(text: str) -> str:
    """A hash of a text; sorting by it looks random but is the same on every machine and Python version."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
