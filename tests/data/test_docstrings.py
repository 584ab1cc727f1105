"""The embedded collection: what is taken from docstrings, what is not, and that it stays the same."""

import importlib.metadata
import subprocess
import sys
from textwrap import dedent, indent

import pytest

from dpr.data import docstrings
from dpr.data.collection import Passage
from dpr.data.docstrings import (
    MAX_BODY_WORDS,
    MIN_BODY_WORDS,
    TEST_PACKAGES,
    TRAIN_PACKAGES,
    Documented,
    is_query,
    judge,
    load_docstrings,
    normalise,
    read_package,
    split_docstring,
)

# The packages in requirements.txt and what they give; a new pin there needs a new record here.
VERSIONS = {
    "networkx": "3.6.1",
    "numpy": "2.4.6",
    "pandas": "3.1.1",
    "scikit-learn": "1.9.1",
    "scipy": "1.17.1",
    "sympy": "1.14.0",
    "torch": "2.13.0",
    "transformers": "5.23.0",
}
RECORDED = {  # split → passages, queries, fingerprint, queries_fingerprint
    "test": (3121, 3011, "408c136cc1697357", "2dbdf2aee67decec"),
    "train": (4822, 3726, "36c9aebb7b60742a", "45a42c89b5816271"),
    "dev": (4822, 931, "36c9aebb7b60742a", "ea8bb01009f1217d"),
}
BODY = " ".join(f"word{n}" for n in range(MIN_BODY_WORDS))


@pytest.fixture(scope="module")
def collections():
    return {split: load_docstrings(split) for split in ("test", "train", "dev")}


@pytest.fixture(scope="module")
def other_process():
    """The test part's fingerprints in a process of its own, and the packages that are imported there."""
    code = dedent("""
        import sys
        from dpr.data import docstrings
        test = docstrings.load_docstrings()
        docstrings.read_package = lambda folder: []  # to find the others is enough
        docstrings._read_packages(docstrings.TRAIN_PACKAGES, None)
        packages = {*docstrings.TEST_PACKAGES, *docstrings.TRAIN_PACKAGES}
        print(test.fingerprint, test.queries_fingerprint, *packages.intersection(sys.modules))
    """)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return result.stdout.split()


def write_module(path, **texts):
    """Write a module of functions, each with a docstring."""
    path.parent.mkdir(parents=True, exist_ok=True)
    functions = (f'def {name}():\n    """{text}"""\n\n\n' for name, text in texts.items())
    path.write_text("".join(functions), encoding="utf-8")


# --- the whole collection ----------------------------------------------------------------------


@pytest.mark.parametrize("split", RECORDED)
def test_the_pinned_packages_give_the_recorded_collection(collections, split):
    for package, recorded in VERSIONS.items():
        installed = importlib.metadata.version(package).split("+")[0]
        if installed != recorded:
            pytest.skip(f"{package} {installed} is installed, the record is for {recorded}")
    collection = collections[split]
    sizes = len(collection.passages), len(collection.queries)
    assert (*sizes, collection.fingerprint, collection.queries_fingerprint) == RECORDED[split]


def test_another_process_gives_the_same(collections, other_process):
    test = collections["test"]
    assert other_process[:2] == [test.fingerprint, test.queries_fingerprint]


def test_passages_are_in_the_order_of_their_ids_which_hold_no_white_space(collections):
    for collection in collections.values():
        assert collection.doc_ids == sorted(collection.doc_ids)
        assert all(name.split() == [name] for name in [*collection.doc_ids, *collection.all_queries])


def test_no_relevant_passage_holds_its_query(collections):
    for collection in collections.values():
        for query_id, grades in collection.qrels.items():
            query = normalise(collection.queries[query_id])
            assert all(query not in normalise(collection.by_id[doc_id].contents) for doc_id in grades)


def test_every_query_has_a_relevant_passage_and_every_passage_a_query(collections):
    for collection in collections.values():
        judgements = [grades for qrels in collection.all_qrels.values() for grades in qrels.values()]
        assert all(judgements)
        assert {grade for grades in judgements for grade in grades.values()} == {1}
        assert {doc_id for grades in judgements for doc_id in grades} == set(collection.doc_ids)


def test_no_passage_and_no_query_is_in_both_parts(collections):
    test, train = collections["test"], collections["train"]
    for texts in (
        lambda collection: collection.doc_ids,
        lambda collection: [normalise(passage.text) for passage in collection.passages],
        lambda collection: [normalise(query) for query in collection.all_queries.values()],
    ):
        assert set(texts(test)).isdisjoint(texts(train))


def test_train_and_dev_share_passages_and_no_query(collections):
    train, dev = collections["train"], collections["dev"]
    assert train.fingerprint == dev.fingerprint
    assert set(train.queries).isdisjoint(dev.queries)
    assert set(train.all_qrels) == {"train", "dev"}
    assert len(dev.queries) == len(train.all_queries) // 5


def test_every_package_gives_passages_of_the_promised_length(collections):
    for split, packages in (("test", TEST_PACKAGES), ("train", TRAIN_PACKAGES)):
        passages = collections[split].passages
        assert {passage.doc_id.split(".")[0] for passage in passages} == set(packages)
        lengths = [len(passage.text.split()) for passage in passages]
        assert min(lengths) == MIN_BODY_WORDS
        assert max(lengths) == MAX_BODY_WORDS


def test_a_well_known_docstring_is_taken_apart_as_expected(collections):
    passage = collections["test"].by_id["numpy.lib._function_base_impl.average"]
    assert passage.title == "numpy.average"
    assert passage.text.startswith("Parameters: a : array_like Array containing data to be averaged.")
    query = collections["test"].queries[f"q:{passage.doc_id}"]
    assert query == "Compute the weighted average along the specified axis"


def test_nothing_is_imported(other_process):
    assert other_process[2:] == ["numpy"]  # dpr.data.trec's own import


def test_another_split_is_refused():
    with pytest.raises(ValueError, match="docstrings has no split 'validation', only train, dev and test"):
        load_docstrings("validation")


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(docstrings, "TEST_PACKAGES", ("no_such_package",))
    with pytest.raises(FileNotFoundError, match="needs the package no_such_package"):
        load_docstrings()


def test_what_was_read_is_kept_and_read_again_as_long_as_the_packages_are_the_same(monkeypatch, tmp_path):
    read = []
    items = [
        Documented(Passage("numpy.é", "numpy.é", "a\ud800b"), "a query"),
        Documented(Passage("b", "", "c"), "q"),
    ]
    monkeypatch.setattr(docstrings, "read_package", lambda folder: read.append(folder.name) or items)
    for _ in range(2):
        docstrings._read_packages.cache_clear()
        assert docstrings._read_packages(("numpy", "sklearn"), tmp_path) == (*items, *items)
    assert read == ["numpy", "sklearn"]
    monkeypatch.setattr(docstrings, "version", lambda name: f"another {name}")
    docstrings._read_packages.cache_clear()
    assert docstrings._read_packages(("numpy", "sklearn"), tmp_path) == (*items, *items)
    assert read == ["numpy", "sklearn"] * 2
    assert len(list(tmp_path.iterdir())) == 2
    docstrings._read_packages.cache_clear()


@pytest.mark.parametrize("kept_bytes", [0, 9, -30])
def test_what_was_kept_and_is_damaged_is_read_anew(monkeypatch, tmp_path, kept_bytes):
    items = tuple(Documented(Passage(f"d{n}", "title", "some text"), "a query") for n in range(3))
    monkeypatch.setattr(docstrings, "read_package", lambda folder: items)
    whole = None
    for _ in range(3):
        docstrings._read_packages.cache_clear()
        assert docstrings._read_packages(("numpy",), tmp_path) == items
        [kept] = tmp_path.iterdir()
        whole = whole or kept.read_bytes()
        assert kept.read_bytes() == whole
        kept.write_bytes(whole[:kept_bytes])
    docstrings._read_packages.cache_clear()


def test_where_nothing_can_be_written_a_warning_says_so_and_the_packages_are_read(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    items = (Documented(Passage("a", "", "b"), "q"),)
    monkeypatch.setattr(docstrings, "read_package", lambda folder: items)
    docstrings._read_packages.cache_clear()
    with pytest.warns(UserWarning, match="not kept .* read anew each time"):
        assert docstrings._read_packages(("numpy",), tmp_path / "file") == items
    docstrings._read_packages.cache_clear()


def test_a_train_passage_with_a_query_or_text_of_the_test_part_is_left_out(monkeypatch):
    test = Documented(Passage("a.f", "a.f", "the text"), "The query of it")
    kept = [Documented(Passage(f"b.k{n}", "b.k", f"text {n}"), f"A query of {n}") for n in range(5)]
    same_query = Documented(Passage("b.q", "b.q", "another text"), "the QUERY  of it")
    same_text = Documented(Passage("b.t", "b.t", "The  text"), "Another query of it")
    parts = {TEST_PACKAGES: (test,), TRAIN_PACKAGES: (*kept, same_query, same_text)}
    monkeypatch.setattr(docstrings, "_read_packages", lambda names, kept_in: parts[names])
    assert load_docstrings("train").doc_ids == [item.passage.doc_id for item in kept]


# --- read_package ------------------------------------------------------------------------------


def test_public_functions_and_classes_of_a_module_are_taken(tmp_path):
    path = tmp_path / "fake" / "_private" / "part.py"
    write_module(
        path, seen=f"Find what was seen.\n\n    {BODY}", _unseen=f"Find what was not seen.\n\n    {BODY}"
    )
    path.write_text(
        path.read_text()
        + f'class Thing:\n    """Hold one thing only.\n\n    {BODY}\n    """\n\n'
        + f'    def method(self):\n        """Do what methods do. {BODY}"""\n\n\n'
        + f'async def wait():\n    """Wait for other things. {BODY.capitalize()}"""\n'
    )
    assert read_package(tmp_path / "fake") == [
        Documented(Passage("fake._private.part.Thing", "fake.Thing", BODY), "Hold one thing only"),
        Documented(Passage("fake._private.part.seen", "fake.seen", BODY), "Find what was seen"),
        Documented(
            Passage("fake._private.part.wait", "fake.wait", BODY.capitalize()), "Wait for other things"
        ),
    ]


@pytest.mark.parametrize(
    "path",
    [
        "tests/a.py",
        "test_a.py",
        "conftest.py",
        "a/_vendor/b.py",
        "externals/b.py",
        "benchmarks/c.py",
        "a-b.py",
    ],
)
def test_tests_and_copies_of_other_projects_are_left_out(tmp_path, path):
    write_module(tmp_path / "fake" / path, f=f"Find what was seen.\n\n{BODY}")
    assert read_package(tmp_path / "fake") == []


def test_a_packages_own_module_has_the_packages_name(tmp_path):
    write_module(tmp_path / "fake" / "__init__.py", f=f"Find what was seen.\n\n{BODY}")
    write_module(tmp_path / "fake" / "sub" / "__init__.py", f=f"Find what was lost.\n\n{BODY}")
    assert [item.passage.doc_id for item in read_package(tmp_path / "fake")] == ["fake.f", "fake.sub.f"]


@pytest.mark.parametrize("content", [b"def f(:\n", b"x = '\xff'\n", b"\x00", b"# coding: no-such\n"])
def test_a_file_that_does_not_parse_is_skipped(tmp_path, content):
    write_module(tmp_path / "fake" / "good.py", f=f"Find what was seen.\n\n{BODY}")
    (tmp_path / "fake" / "bad.py").write_bytes(content)
    assert [item.passage.doc_id for item in read_package(tmp_path / "fake")] == ["fake.good.f"]


def test_invalid_escapes_in_a_docstring_raise_no_warning(tmp_path, recwarn):
    write_module(tmp_path / "fake" / "a.py", f=f"Find what was seen.\n\n{BODY} \\d")
    assert len(read_package(tmp_path / "fake")) == 1
    assert len(recwarn) == 0


@pytest.mark.parametrize(
    "text",
    [
        "Find what was seen.\n\nToo short a text.",
        f"Too short.\n\n{BODY}",
        f"Find what was seen.\n\n{BODY} find WHAT\nwas   seen.",
        f".. deprecated:: 1.0\n    Use another one instead.\n\n{BODY}",
        f"f(x, y) and what it returns\n\n{BODY}",
    ],
)
def test_a_docstring_without_query_or_text_or_with_the_query_in_the_text_is_skipped(tmp_path, text):
    write_module(tmp_path / "fake" / "a.py", f=text)
    assert read_package(tmp_path / "fake") == []


# --- split_docstring, is_query, judge ----------------------------------------------------------


def test_a_numpydoc_docstring_becomes_plain_prose():
    docstring = """
    Scale `x` as :func:`~fake.rescale` does [1]_, e.g. Fahrenheit.  The rest
    of the paragraph is text.

    .. versionadded:: 1.2

    Parameters
    ----------
    x : int
        The ``x`` of it.

    See Also
    --------
    rescale : Scale back what was scaled.

    Examples
    --------
    Some prose.

    >>> scale(1)
    2

    >>> for x in range(2):
    ...     scale(x)

    References
    ----------
    .. [1] Nobody, "Scaling".
    """
    assert split_docstring(docstring) == (
        "Scale x as fake.rescale does, e.g. Fahrenheit",
        "The rest of the paragraph is text. Parameters: x : int The x of it. Some prose.",
    )
    assert split_docstring(dedent(docstring)) == split_docstring(indent(docstring, "\t"))


def test_fenced_code_goes():
    assert split_docstring("Load the model.\n\nExample:\n\n```python\nload()\n```\n\nDone.") == (
        "Load the model",
        "Done.",
    )


def test_a_long_text_is_cut():
    assert split_docstring(f"Say it.\n\n{'word ' * 500}")[1] == " ".join(["word"] * MAX_BODY_WORDS)


@pytest.mark.parametrize(
    "sentence",
    [
        "Compute the weighted average along the specified axis",
        "Return True if and only if G is k-edge-connected",
        "Is this a graph?",
    ],
)
def test_a_sentence_is_a_query(sentence):
    assert is_query(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "",
        "Only three words",
        "word " * 41,
        "Long " * 41,
        "lower case at its beginning",
        "average(a, axis) of an array",
        "Alias for another function here",
        "This is an alias of another",
        "This function is deprecated since long",
        "See the other function there",
        "Takes one of the following:",
        "Sets x = y for all",
        ".. math:: with some words here",
        "Read more at https://example.org/ about this",
    ],
)
def test_signatures_notices_and_lead_ins_are_no_queries(sentence):
    assert not is_query(sentence)


def test_equal_texts_share_relevance_and_equal_sentences_are_one_query():
    documented = [
        Documented(Passage("p.a", "p.a", "Same  text"), "First query of all"),
        Documented(Passage("p.b", "p.b", "same text"), "Second query of all"),
        Documented(Passage("p.c", "p.c", "other text"), "first  Query of all"),
        Documented(Passage("p.d", "p.d", "third text"), "Third query of all"),
    ]
    queries, qrels = judge(documented)
    assert queries == {
        "q:p.a": "First query of all",
        "q:p.b": "Second query of all",
        "q:p.d": "Third query of all",
    }
    assert qrels == {
        "q:p.a": {"p.a": 1, "p.b": 1, "p.c": 1},
        "q:p.b": {"p.a": 1, "p.b": 1},
        "q:p.d": {"p.d": 1},
    }


def test_functions_with_one_docstring_text_share_relevance_in_a_package(tmp_path):
    write_module(
        tmp_path / "fake" / "a.py",
        f=f"Find what was seen.\n\n{BODY}",
        g=f"Find what was lost.\n\n{BODY}",
        h=f"Find what was sold.\n\n{BODY} more",
    )
    _, qrels = judge(read_package(tmp_path / "fake"))
    shared = {"fake.a.f": 1, "fake.a.g": 1}
    assert qrels == {"q:fake.a.f": shared, "q:fake.a.g": shared, "q:fake.a.h": {"fake.a.h": 1}}
