"""The package as a whole: what imports what, what is public, and what is written about it."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dpr

LAYERS = (  # from the top; a module imports from its own layer and those below
    {"report", "notebooks", "finetuning", "doc2query", "writer", "generator_data"},
    {"workspace", "plots", "analysis", "significance", "results", "claims"},
    {
        "sanity",
        "training",
        "run_folder",
        "generator_training",
        "tracking",
        "trainer",
        "run_trainer",
        "checkpoint_files",
        "negatives",
    },
    {
        "bm25",
        "generation",
        "shards",
        "expansion",
        "ann",
        "memory",
        "index",
        "engines",
        "exact",
        "exact_torch",
        "encoding",
    },
    {
        "collator",
        "losses",
        "generator_collator",
        "generator",
        "decoding",
        "learnt_tokenizer",
        "two_encoders",
        "encoder",
        "checkpoint",
        "batches",
        "pooling",
        "tokens",
    },
    {"evaluation", "text_scores", "audit", "loading", "profiles", "published", "java"},
    {
        "training_settings",
        "training_sources",
        "training_data",
        "docstrings",
        "download",
        "beir",
        "collection",
        "topics",
        "trec",
        "files",
        "provenance",
    },
)
UPWARD = {("collection", "audit")}  # `Collection.audit` imports its report when it is called
HEAVY = (
    "torch",
    "transformers",
    "sentence_transformers",
    "pyserini",
    "faiss",
    "matplotlib",
    "pandas",
    "ranx",
)
PICKLING = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
MODULES = {path.stem: ast.parse(path.read_text("utf-8")) for path in Path(dpr.__file__).parent.glob("*.py")}
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


def imports_within(name):
    """The modules of this package that a module imports."""
    parts = (full.split(".") for full in imported(MODULES[name]))
    return {part[1] for part in parts if part[0] == "dpr" and len(part) > 1} & set(MODULES)


def layer_of(name):
    """Where a module stands, 0 the top."""
    return next(number for number, layer in enumerate(LAYERS) if name in layer)


def definitions(body, prefix):
    """Public functions, classes and methods, with their dotted names."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield f"{prefix}.{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from definitions(node.body, f"{prefix}.{node.name}")


PUBLIC = dict(pair for name, tree in MODULES.items() for pair in definitions(tree.body, name))

# --- layers ------------------------------------------------------------------------------------


def test_every_module_has_one_layer():
    placed = [name for layer in LAYERS for name in layer]
    assert sorted(placed) == sorted(set(MODULES) - {"__init__"})


@pytest.mark.parametrize("name", sorted(set(MODULES) - {"__init__"}))
def test_imports_point_down(name):
    upward = {other for other in imports_within(name) if layer_of(other) < layer_of(name)}
    assert upward == {above for below, above in UPWARD if below == name}


def test_no_module_imports_itself_in_a_circle():
    needs = {
        name: imports_within(name) - {above for below, above in UPWARD if below == name} for name in MODULES
    }
    assert any(needs.values())
    while needs:
        ready = {name for name, others in needs.items() if not others}
        assert ready, f"in a circle: {sorted(needs)}"
        needs = {name: others - ready for name, others in needs.items() if name not in ready}


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
def test_every_module_says_what_it_is_for(name):
    module = importlib.import_module("dpr" if name == "__init__" else f"dpr.{name}")
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
    assert {"pooling.mean_pool", "index.Index.search", "encoder.BiEncoder.encode_queries"} <= set(of_arrays)
    assert [name for name, node in of_arrays.items() if not SHAPE.search(ast.get_docstring(node) or "")] == []


def test_no_debug_switch_is_left_on():
    switches = ("detect_anomaly", "CUDA_LAUNCH_BLOCKING", "use_deterministic_algorithms", "TORCH_LOGS")
    notebooks = (Path(dpr.__file__).parents[2] / "notebooks").glob("*.ipynb")
    for path in (*Path(dpr.__file__).parent.glob("*.py"), *notebooks):
        text = path.read_text(encoding="utf-8")
        assert not [switch for switch in switches if switch in text], path.name
