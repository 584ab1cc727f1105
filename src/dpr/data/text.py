"""Joining, comparing, counting and repairing texts, and a fixed order of texts that looks random."""

import hashlib
import re

import ftfy

# Leaves quotes, ligatures, widths and HTML as they are, so that texts match the searched passages
MENDING = ftfy.TextFixerConfig(
    unescape_html=False,
    uncurl_quotes=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    normalization=None,
)
# Scripts without spaces between words: Thai, Lao, Burmese and Khmer; Japanese kana and Chinese characters
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007"
    "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uff66-\uff9f\U00020000-\U0003ffff"
)
SEGMENT = re.compile(rf"[{UNSPACED}]|[^\s{UNSPACED}]+")
SURROGATE = re.compile("[\ud800-\udfff]")


def mend(text: str) -> str:
    """Repair wrongly decoded text as ftfy does, and nothing else: HTML, quotes and ligatures stay.

    >>> mend("what is a cafÃ©"), mend("“&lt;b&gt;”")
    ('what is a café', '“&lt;b&gt;”')
    """
    return ftfy.fix_text(text, MENDING)


def text_key(text: str) -> str:
    """The form in which texts are compared: repaired by `mend`, then normalised."""
    return normalise(mend(text))


def segments(text: str) -> list[str]:
    """Split a text where it has white space, and between the characters of scripts without spaces.

    >>> segments("Bees eat nectar."), segments("東京 2024年")
    (['Bees', 'eat', 'nectar.'], ['東', '京', '2024', '年'])
    """
    return SEGMENT.findall(text)


def first_words(text: str, count: int) -> str:
    """The beginning of a text up to its first so many `segments`, with … if it goes on.

    >>> first_words("Bees eat nectar.", 2), first_words("Salt", 2)
    ('Bees eat …', 'Salt')
    """
    ends = [match.end() for match in SEGMENT.finditer(text)]
    return " ".join(text.split()) if len(ends) <= count else " ".join(text[: ends[count - 1]].split()) + " …"


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
