"""The package as a whole: what imports what, what is public, and what is written about it."""

import ast
import graphlib
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dpr

LAYERS = (  # from the top; a module imports from its own folder and those below
    "book",
    "experiments",
    "reranking",
    "generation",
    "training",
    "search",
    "evaluation",
    "models",
    "data",
    "provenance",
    "shards_on_ray",
    "shards",
    "files",
    "arguments",
)
APART = ({"models", "evaluation"}, {"reranking", "generation"})  # neighbours that do not import each other
HEAVY = (
    "torch",
    "transformers",
    "sentence_transformers",
    "pyserini",
    "faiss",
    "matplotlib",
    "pandas",
    "ranx",
    "ray",
    "pyarrow",
)
PICKLING = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
PACKAGE = Path(dpr.__file__).parent
MODULES = {  # dotted name within the package → its syntax tree
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip("."): ast.parse(
        path.read_text("utf-8")
    )
    for path in sorted(PACKAGE.rglob("*.py"))
}
SHAPE = re.compile(r"\[\w+(, \w+)*\]|one value a |see also `")


def imported(tree):
    """The full names of all modules imported anywhere in a module, at its top or in a function."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def imports_within():
    """Each module of this package → the modules of it that it imports."""
    return {
        name: {full.removeprefix("dpr.") for full in imported(tree)} & set(MODULES) - {name}
        for name, tree in MODULES.items()
        if name
    }


def definitions(body, prefix):
    """Public functions, classes and methods, with their dotted names."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield f"{prefix}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node.body, f"{prefix}.{node.name}")


PUBLIC = dict(pair for name, tree in MODULES.items() for pair in definitions(tree.body, name))

# --- layers ------------------------------------------------------------------------------------


def test_imports_point_down_and_never_in_a_circle():
    needs = imports_within()
    assert len(needs) > 50
    assert "data.text" in needs["data.collection"]
    for name, others in needs.items():
        folder = name.split(".")[0]
        neighbours = next((group for group in APART if folder in group), set())
        below = set(LAYERS[LAYERS.index(folder) :]) - (neighbours - {folder})
        assert not [other for other in others if other.split(".")[0] not in below], name
    list(graphlib.TopologicalSorter(needs).static_order())


def test_nothing_below_the_experiments_knows_notebooks_profiles_or_where_runs_lie():
    for name, tree in MODULES.items():
        if not name.startswith(("book", "experiments")):
            nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
            texts = [node.value for node in nodes if isinstance(node.value, str)]
            assert not [text for text in texts if re.search(r"\bruns/|\bnotebook 0\d", text)], name


def test_a_folder_says_what_it_holds_and_nothing_else():
    folders = {name for name in MODULES if "." not in name and (PACKAGE / name).is_dir() and name}
    assert folders == set(LAYERS) - {"provenance", "shards_on_ray", "shards", "files", "arguments"}
    for name in folders:
        assert len(MODULES[name].body) == 1, name
        assert ast.get_docstring(MODULES[name]), name


def test_nothing_is_pickled():
    for name, tree in MODULES.items():
        roots = {full.split(".")[0] for full in imported(tree)}
        assert not roots & PICKLING, name
        called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        keywords = {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
        assert not (called | keywords) & {"to_pickle", "read_pickle", "allow_pickle"}, name
        torch_files = {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "torch"
            and node.attr in ("save", "load")
        }
        assert not torch_files, name


# --- the package's own names -------------------------------------------------------------------


def test_importing_the_package_brings_no_model_library():
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, dpr; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert "dpr" in loaded
    assert not set(HEAVY) & set(loaded)


def test_every_public_name_resolves_in_the_module_it_is_said_to_live_in():
    assert dpr.__all__ == sorted(dpr.__all__)
    assert dir(dpr) == dpr.__all__
    for name, home in dpr._HOMES.items():
        public = getattr(dpr, name)
        assert (public.__name__, public.__module__) == (name, f"dpr.{home}")
        assert public.__doc__.strip()


def test_an_unknown_name_is_refused_with_those_there_are():
    with pytest.raises(AttributeError, match=r"dpr has no 'Faiss'; it has BM25, BiEncoder, Collection"):
        _ = dpr.Faiss
    with pytest.raises(ImportError, match="cannot import name 'Faiss'"):
        exec("from dpr import Faiss")


@pytest.mark.parametrize("name", sorted(MODULES))
def test_every_module_can_be_imported_and_says_what_it_is_for(name):
    module = importlib.import_module(f"dpr.{name}".rstrip("."))
    assert module.__doc__.strip()


# --- docstrings --------------------------------------------------------------------------------


def test_every_public_function_class_and_method_has_a_docstring():
    assert len(PUBLIC) > 100
    assert [name for name, node in PUBLIC.items() if not ast.get_docstring(node)] == []


def takes_or_gives_an_array(node):
    """Whether a function's signature names a NumPy array or a tensor."""
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    annotations = [argument.annotation for argument in arguments] + [node.returns]
    words = " ".join(ast.unparse(annotation) for annotation in annotations if annotation)
    return bool(re.search(r"ndarray|Tensor\b", words))


def test_every_public_function_of_arrays_says_their_shape():
    functions = {name: node for name, node in PUBLIC.items() if isinstance(node, ast.FunctionDef)}
    of_arrays = {name: node for name, node in functions.items() if takes_or_gives_an_array(node)}
    assert {
        "models.pooling.mean_pool",
        "search.index.Index.search",
        "models.bi_encoder.BiEncoder.encode_queries",
    } <= set(of_arrays)
    assert [name for name, node in of_arrays.items() if not SHAPE.search(ast.get_docstring(node) or "")] == []


def test_no_debug_switch_is_left_on():
    switches = ("detect_anomaly", "CUDA_LAUNCH_BLOCKING", "use_deterministic_algorithms", "TORCH_LOGS")
    notebooks = (PACKAGE.parents[1] / "notebooks").glob("*.ipynb")
    for path in (*PACKAGE.rglob("*.py"), *notebooks):
        text = path.read_text(encoding="utf-8")
        assert not [switch for switch in switches if switch in text], path.name
