"""Texts: joined, compared, mended, and put into an order that looks random but is always the same."""

import hashlib

import ftfy

# Mends wrongly decoded text only: quotes, ligatures and widths are left as the searched passages have them
MENDING = ftfy.TextFixerConfig(
    uncurl_quotes=False, fix_latin_ligatures=False, fix_character_width=False, normalization=None
)


def mend(text: str) -> str:
    """Undo wrong decoding, as far as ftfy can tell, and nothing else.

    >>> mend("what is a cafÃ©"), mend("“quoted”")
    ('what is a café', '“quoted”')
    """
    return ftfy.fix_text(text, MENDING)


def query_key(text: str) -> str:
    """What queries are told apart by: their words once mended, case and white space aside."""
    return normalise(mend(text))


def join_title_text(title: str, text: str) -> str:
    """Join a title and a text with one space; either alone where the other is empty.

    >>> join_title_text("Masks", "They work."), join_title_text("Masks", " ")
    ('Masks They work.', 'Masks')
    """
    return " ".join(part for part in (title.strip(), text.strip()) if part)


def normalise(text: str) -> str:
    r"""A text with case and white space evened out: in this form queries and texts are told apart.

    >>> normalise(" Add\n two  ")
    'add two'
    """
    return " ".join(text.casefold().split())


def stable_hash(text: str) -> str:
    """A key that orders texts as if at random, alike on every machine and Python."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
