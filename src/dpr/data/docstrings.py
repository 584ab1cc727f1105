"""A collection that needs no download: docstrings of installed packages, with first sentences as queries.

A passage is the docstring of a public function or class without its first sentence, and that
sentence is the query. The sources are parsed, never imported. The test split and the training
splits come from different packages.
"""

import ast
import json
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from dpr.data.collection import Collection, Passage, hold_out_dev
from dpr.data.text import SURROGATE, normalise, stable_hash
from dpr.data.trec import Qrels
from dpr.files import read_lines, write_text

TEST_PACKAGES = ("networkx", "numpy", "sympy")
TRAIN_PACKAGES = ("pandas", "scipy", "sklearn", "torch", "transformers")
DISTRIBUTIONS = {"sklearn": "scikit-learn"}  # packages whose distribution has another name
MIN_QUERY_WORDS, MAX_QUERY_WORDS = 4, 40
MIN_BODY_WORDS, MAX_BODY_WORDS = 20, 200

# Modules and folders left out: tests, copies of other projects, and code that depends on Python's version.
LEFT_OUT = {
    *("tests", "test", "testing", "_testing", "testing_utils", "_testutils", "conftest", "benchmarks"),
    *("_vendor", "externals", "array_api_compat", "array_api_extra", "cobyqa", "pyprima", "_uarray"),
    *("_pep440", "_appdirs", "_pyinstaller", "distutils"),
}
# Also left out: torch's internals, to save time; transformers' models, whose docstrings are nearly the same.
LEFT_OUT_MODULES = ("torch._", "transformers.models")

# Applied in this order to a docstring whose lines are stripped; plain prose remains.
MARKUP = tuple(
    (re.compile(pattern, re.MULTILINE | re.DOTALL | re.IGNORECASE), replacement)
    for pattern, replacement in (
        (r"^```.*?^```$", ""),  # fenced code
        (r"^>>>.*?(?=\n\n|\Z)", ""),  # doctests with their output
        # See Also and References quote the first sentences of other docstrings
        (r"^(see also|references)\n[-=~]{3,}$.*?(?=^[^\n]+\n[-=~]{3,}$|\Z)", ""),
        (r"^([^\n]+)\n([-=~^*])\2{2,}$", r"\n\1:\n"),  # an underlined heading
        (r"^(examples?|explanation):$", ""),
        (r"^\.\. [\w-]+ ?::[^\n]*$", "\n"),  # a directive's line; its content stays
        (r"^[-=]+( +[-=]+)+$", ""),  # a horizontal line of a table
        (r"``([^`]+)``", r"\1"),
        (r"(?::[\w:]+:)?`[~!]?([^`<]+?)(?:\s*<[^>`]*>)?`_{0,2}", r"\1"),  # such as :func:`~numpy.mean` or `x`
        (r"\s?\[\w+\]_", ""),  # a citation such as [1]_
    )
)
SENTENCE_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!etc\.)(?<! vs\.)(?<! al\.)\s+(?=\W*[A-Z0-9])")
NO_QUERY = re.compile(
    r"[^A-Z]|[\w.]+\(|See |Note|TODO|WARN"
    r"|.*([,;:]$|e\.g$|::|->|# |[=<>{}|\\$]|https?:|[Dd]eprecat|\b[Aa]lias\b)"
)


class Documented(NamedTuple):
    """A passage and its query: a docstring's first sentence is the query, the rest is the passage's text."""

    passage: Passage
    query: str


def load_docstrings(split: str = "test", kept_in: Path | None = None) -> Collection:
    """Build the collection from the installed packages; other versions of them give other passages.

    About 4,000 files are parsed in about ten seconds, unless `kept_in` holds the result for the same
    package versions.

    Args:
        split: `test` gives the passages of `TEST_PACKAGES`; `train` and `dev` give those of
            `TRAIN_PACKAGES`, without any whose query or text is also in the test packages.
        kept_in: Folder that caches what was parsed; None to parse once per process instead.

    Returns:
        A collection in which each passage has a query. `qrels` gives grade 1 to the passages whose
        docstring begins with the query, and to passages with the same text as one of these.

    Raises:
        ValueError: An unknown split.
        FileNotFoundError: One of the packages is not installed.
    """
    if split not in ("train", "dev", "test"):
        raise ValueError(f"docstrings has no split {split!r}, only train, dev and test")
    documented = _read_packages(TEST_PACKAGES, kept_in)
    if split != "test":
        seen = {normalise(text) for item in documented for text in (item.query, item.passage.text)}
        documented = tuple(
            item
            for item in _read_packages(TRAIN_PACKAGES, kept_in)
            if seen.isdisjoint((normalise(item.query), normalise(item.passage.text)))
        )
    queries, qrels = judge(documented)
    all_qrels = {"test": qrels}
    if split != "test":
        train, dev = hold_out_dev(qrels)
        all_qrels = {"train": train, "dev": dev}
    return Collection("docstrings", [item.passage for item in documented], queries, all_qrels, split)


@cache
def _read_packages(names: tuple[str, ...], kept_in: Path | None) -> tuple[Documented, ...]:
    """Read installed packages, or what `kept_in` holds of them; done once per process."""
    folders = []
    for name in names:
        spec = find_spec(name)  # for a top-level package this executes none of its code
        if spec is None or spec.origin is None:
            raise FileNotFoundError(f"the docstrings collection needs the package {name}; install it")
        folders.append(Path(spec.origin).parent)
    if kept_in is None:
        return tuple(item for folder in folders for item in read_package(folder))
    installed = [f"{folder} {version(DISTRIBUTIONS.get(folder.name, folder.name))}" for folder in folders]
    made_by = "\n".join([*installed, sys.version, Path(__file__).read_text(encoding="utf-8")])
    path = kept_in / f"{'-'.join(names)}-{stable_hash(made_by)[:16]}.jsonl"
    kept = _read_kept(path)
    if kept is not None:
        return kept
    read = tuple(item for folder in folders for item in read_package(folder))
    try:
        rows = (json.dumps([*item.passage, item.query]) + "\n" for item in read)
        write_text(path, f"{len(read)}\n{''.join(rows)}")
    except OSError as error:
        warnings.warn(f"{path}: not kept ({error.strerror}), so it is read anew each time", stacklevel=3)
    return read


def _read_kept(path: Path) -> tuple[Documented, ...] | None:
    """Read what was kept; None if it is missing or damaged."""
    if not path.is_file():
        return None
    try:
        count, *rows = (json.loads(line) for _, line in read_lines(path))
        read = tuple(Documented(Passage(*passage), query) for *passage, query in rows)
    except (TypeError, ValueError):
        return None
    return read if len(read) == count else None


def read_package(folder: Path | str) -> list[Documented]:
    """Take a passage and a query from each public top-level function and class of a package.

    Args:
        folder: The package's folder, named like the package. All its modules are read, except
            `LEFT_OUT`, `LEFT_OUT_MODULES`, tests and files that this Python cannot parse.

    Returns:
        The usable docstrings, sorted by `doc_id`, the object's dotted path. The title is the names
        of package and object.
    """
    folder = Path(folder)
    found: dict[str, Documented] = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder.parent).with_suffix("").parts
        module = ".".join(parts).removesuffix(".__init__")
        if (
            LEFT_OUT.intersection(parts)
            or module.startswith(LEFT_OUT_MODULES)
            or not all(part.isidentifier() and not part.startswith("test_") for part in parts)
        ):
            continue
        for name, docstring in _public_docstrings(path):
            query, text = split_docstring(SURROGATE.sub("\ufffd", docstring))
            passage = Passage(f"{module}.{name}", f"{folder.name}.{name}", text)
            if (
                len(text.split()) >= MIN_BODY_WORDS
                and is_query(query)
                and normalise(query) not in normalise(passage.contents)
            ):
                found[passage.doc_id] = Documented(passage, query)
    return [found[doc_id] for doc_id in sorted(found)]


def _public_docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the name and raw docstring of each public function and class at a module's top level."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about invalid escapes in the packages' strings
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):  # also for undecodable text; null bytes: ValueError before 3.11.4
        return  # packages hold templates and files for other Python versions
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name[0] != "_":
            docstring = ast.get_docstring(node, clean=False)
            if docstring:
                yield node.name, docstring


def split_docstring(docstring: str) -> tuple[str, str]:
    """Split a docstring into its first sentence and the rest, as plain prose.

    Doctests, fenced code, directive and underline lines, reST markup and the sections See Also
    and References are removed, and white space becomes single spaces.

    Returns:
        (sentence, text): the sentence without its full stop, and at most `MAX_BODY_WORDS` words of the
        rest. Both are "" if the docstring begins with a directive.

    >>> split_docstring('''Add two numbers. Both are `int`.
    ...
    ...     >>> add(1, 2)
    ...     3
    ... ''')
    ('Add two numbers', 'Both are int.')
    """
    text = "\n".join(line.strip() for line in docstring.strip().splitlines())
    if text.startswith(".. "):
        return "", ""
    for pattern, replacement in MARKUP:
        text = pattern.sub(replacement, text)
    first, _, rest = text.strip().partition("\n\n")
    sentence, *after = SENTENCE_END.split(" ".join(first.split()), maxsplit=1)
    words = " ".join([*after, rest]).split()
    return sentence.removesuffix("."), " ".join(words[:MAX_BODY_WORDS])


def is_query(sentence: str) -> bool:
    """Whether a sentence is prose of 4 to 40 words, not a signature, code, a notice or a lead-in."""
    num_words = len(sentence.split())
    return MIN_QUERY_WORDS <= num_words <= MAX_QUERY_WORDS and NO_QUERY.match(sentence) is None


def judge(documented: Iterable[Documented]) -> tuple[dict[str, str], Qrels]:
    """Make queries of the first sentences; the passages they come from are relevant.

    Args:
        documented: Passages in the order of the collection.

    Returns:
        (queries, qrels): equal sentences are one query, whose id is `q:` and the `doc_id` of the first
        passage it comes from. Grade 1 goes to all passages it comes from and to passages with the same
        text as one of these.
    """
    same_text: dict[str, list[str]] = {}
    same_query: dict[str, list[Documented]] = {}
    for item in documented:
        same_text.setdefault(normalise(item.passage.text), []).append(item.passage.doc_id)
        same_query.setdefault(normalise(item.query), []).append(item)
    queries: dict[str, str] = {}
    qrels: Qrels = {}
    for sources in same_query.values():
        query_id = f"q:{sources[0].passage.doc_id}"
        queries[query_id] = sources[0].query
        qrels[query_id] = {d: 1 for source in sources for d in same_text[normalise(source.passage.text)]}
    return queries, qrels
