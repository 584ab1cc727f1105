"""BM25 over expanded passages: tuned on dev, reported on test."""

from dataclasses import replace

import pytest

from dpr.evaluation.metrics import evaluate
from dpr.experiments.doc2query import search_and_save_bm25
from dpr.experiments.profiles import Profile
from dpr.experiments.results import load_result
from dpr.experiments.workspace import Workspace
from dpr.generation.expansion import expand
from dpr.search.bm25 import BM25, K1, B

QUERIES = {"d4": ["zinc and vaccines"], "d5": ["where does sunlight come from"]}
GRID = {"k1_grid": (0.5, 1.5), "b_grid": (0.2, 0.8)}


@pytest.fixture
def tiny_collection(with_dev):
    """That with dev queries, also for `tiny_beir_folder`."""
    return with_dev


@pytest.fixture
def space(tmp_path, tiny_beir_folder):
    return Workspace(Profile("tiny", str(tiny_beir_folder), depth=6), tmp_path / "out")


def test_an_expanded_collection_is_tuned_on_dev_and_searched_for_the_test_queries(space):
    collection = space.collection()
    expanded = expand(collection, QUERIES)
    how = {"notebook": "06_doc2query", "written_by": "a small model"}
    found = search_and_save_bm25(space, collection, expanded, "bm25-d2q", **how, **GRID)
    bm25 = BM25.build(expanded, space.index_folder(expanded))
    tuning = bm25.tune(expanded.with_split("dev"), **GRID)
    assert found.tuning.grid == tuning.grid
    on_dev = bm25.search(expanded.with_split("dev").queries, 6, tuning.k1, tuning.b)
    assert found.dev == evaluate(expanded.all_qrels["dev"], on_dev).means
    assert found.dev["nDCG@10"] == pytest.approx(max(tuning.grid.values()))
    assert found.run == bm25.search(collection.queries, 6, tuning.k1, tuning.b)
    assert found.index_bytes == bm25.num_bytes
    kept = load_result(space.runs, "bm25-d2q")
    assert kept.metadata["fingerprints"]["passages"] == collection.fingerprint
    config = kept.metadata["config"]
    assert config["expansion"] == expanded.expansion
    assert config["written_by"] == "a small model"
    assert (config["k1"], config["b"], config["tuned_on"]) == (tuning.k1, tuning.b, "2 dev queries")
    assert kept.metadata["ablation"]


def test_the_original_is_searched_alike(space):
    collection = space.collection()
    found = search_and_save_bm25(space, collection, collection, "plain", notebook="06_doc2query", **GRID)
    assert found.result.metadata["config"]["expansion"] is None


def test_without_dev_queries_the_defaults_stand(space):
    collection = space.collection()
    alone = replace(collection, all_qrels={"test": collection.qrels})
    found = search_and_save_bm25(space, alone, expand(alone, QUERIES), "d2q", notebook="06_doc2query", **GRID)
    assert found.tuning is None
    assert found.dev == {}
    assert (found.result.metadata["config"]["k1"], found.result.metadata["config"]["b"]) == (K1, B)
    assert "tuned_on" not in found.result.metadata["config"]


def test_other_documents_are_refused(space):
    collection = space.collection()
    fewer = collection.sample(3, 2)
    with pytest.raises(ValueError, match="d2q: the expanded collection has other documents than tiny"):
        search_and_save_bm25(space, collection, fewer, "d2q", notebook="06_doc2query", **GRID)
