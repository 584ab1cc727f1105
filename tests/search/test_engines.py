"""Every kind of index: what it finds, what it keeps on disk, what it refuses."""

import importlib.util
import sys

import faiss
import numpy as np
import pytest

from dpr.files import read_json, write_json
from dpr.search.engines import _rotation, num_lists
from dpr.search.index import KINDS, Index, build_index

GRAPHS = ("faiss-hnsw", "hnswlib")
SMALL = {
    "faiss-ivf": {"num_lists": 8, "num_probes": 8},
    "faiss-ivfpq": {"num_lists": 8, "num_probes": 8, "code_bytes": 8},
    "faiss-opq": {"num_lists": 8, "num_probes": 8, "code_bytes": 8},
}
LOSSLESS = ("exact", "faiss-flat", *GRAPHS, "faiss-ivf")  # with all lists probed
needs_hnswlib = pytest.mark.skipif(
    importlib.util.find_spec("hnswlib") is None, reason="hnswlib is not installed (it needs a compiler)"
)
each_kind = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=needs_hnswlib if kind == "hnswlib" else ()) for kind in KINDS]
)


@pytest.fixture(scope="module")
def vectors():
    """Passages [N, D] in clusters, of many lengths, and queries near some of them."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 16))
    passages = centres[rng.integers(0, 40, size=600)] + rng.normal(scale=0.4, size=(600, 16))
    passages *= rng.uniform(0.5, 2, size=(600, 1))
    queries = passages[:20] + rng.normal(scale=0.1, size=(20, 16))
    return passages.astype(np.float32), queries.astype(np.float32)


def build(kind, passages, similarity="cosine", **settings):
    doc_ids = [f"d{i}" for i in range(len(passages))]
    return build_index(kind, passages, doc_ids, similarity, **{**SMALL.get(kind, {}), **settings})


def recall(found, expected):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found, expected, strict=True)])


@each_kind
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_every_kind_ranks_by_the_similarity_it_was_given(kind, similarity, vectors):
    passages, queries = vectors
    scores, positions = build(kind, passages, similarity).search(queries, 10)
    p, q = passages.astype(np.float64), queries.astype(np.float64)
    if similarity == "cosine":
        p, q = p / np.linalg.norm(p, axis=1)[:, None], q / np.linalg.norm(q, axis=1)[:, None]
    true = q @ p.T
    best = np.argsort(-true, axis=1)[:, :10]
    assert (np.diff(scores, axis=1) <= 0).all()
    assert scores.dtype == np.float32
    if kind == "faiss-ivfpq":  # 16 dimensions in 8 bytes: an estimate
        assert recall(positions, best) > 0.6
        return
    assert recall(positions, best) >= (0.99 if kind in LOSSLESS else 0.97)
    tolerance = 1e-5 if kind != "faiss-sqfp16" else 1e-2
    np.testing.assert_allclose(scores, np.take_along_axis(true, positions, 1), rtol=1e-3, atol=tolerance)


@each_kind
def test_a_saved_index_searches_alike(kind, vectors, tmp_path):
    passages, queries = vectors
    index = build(kind, passages)
    index.save(tmp_path / "index")
    index.save(tmp_path / "index")  # over an earlier one
    loaded = Index.load(tmp_path / "index")
    for ours, theirs in zip(index.search(queries, 20), loaded.search(queries, 20), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert (loaded.kind, loaded.similarity, loaded.settings) == (kind, "cosine", index.settings)
    assert loaded.doc_ids == index.doc_ids
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


@each_kind
def test_depth_beyond_the_passages_and_no_query_are_fine(kind, vectors):
    passages, queries = vectors
    index = build(kind, passages)
    scores, positions = index.search(queries[:2], 10_000)
    assert scores.shape == positions.shape == (2, 600)
    assert index.search(queries[:0], 5)[0].shape == (0, 5)
    run = index.search_run(["q1", "q2"], queries[:2], 10_000, "t")
    assert len(run["q1"]) == (positions[0] >= 0).sum() > 100


def test_passages_that_an_index_did_not_reach_are_marked_and_left_out_of_the_run(vectors):
    passages, queries = vectors
    index = build("faiss-ivf", passages, num_probes=1)
    scores, positions = index.search(queries, 600)
    missing = positions < 0
    assert missing.any()
    assert np.isneginf(scores[missing]).all()
    run = index.search_run([str(i) for i in range(20)], queries, 600, "t")
    assert [len(hits) for hits in run.values()] == (~missing).sum(axis=1).tolist()


def test_searching_wider_finds_more(vectors):
    passages, queries = vectors
    best = build("exact", passages).search(queries, 10)[1]
    index = build("faiss-ivf", passages, num_probes=1)
    narrow = recall(index.search(queries, 10)[1], best)
    assert recall(index.with_search(num_probes=8).search(queries, 10)[1], best) > narrow
    assert index.settings["num_probes"] == 8


@each_kind
def test_a_search_of_every_vector_says_so(kind, vectors, tmp_path):
    index = build(kind, vectors[0], **({"num_probes": 8, "num_lists": 8} if "ivf" in kind else {}))
    assert index.exhaustive == (kind not in GRAPHS)
    index.save(tmp_path / "index")
    assert Index.load(tmp_path / "index").exhaustive == index.exhaustive


@pytest.mark.parametrize("kind", ["faiss-ivf", "faiss-ivfpq", "faiss-opq"])
def test_lists_are_all_searched_from_as_many_probes_on(kind, vectors):
    index = build(kind, vectors[0], num_lists=8, num_probes=7)
    assert not index.exhaustive
    for num_probes, exhaustive in ((8, True), (9, True), (7, False)):
        assert index.with_search(num_probes=num_probes).exhaustive == exhaustive
    assert build("faiss-ivf", vectors[0][:40], num_lists=0).exhaustive  # one list


@each_kind
def test_bytes_are_counted(kind, vectors):
    passages, _ = vectors
    index = build(kind, passages / np.linalg.norm(passages, axis=1, keepdims=True))
    per_vector = index.num_bytes / len(passages)
    full = 4 * 16
    expected = {"exact": full, "faiss-flat": full, "faiss-sqfp16": full / 2}
    if kind in expected:
        assert per_vector == pytest.approx(expected[kind], abs=4.5)
    elif kind == "faiss-ivfpq":
        assert 8 + 8 <= per_vector < full
    else:
        assert full <= per_vector < 8 * full


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("annoy", {}, "kind must be one of"),
        ("exact", {"m": 8}, "exact has no setting"),
        ("faiss-hnsw", {"m": 0}, "m must be a whole number of at least 1"),
        ("faiss-ivf", {"num_lists": 2.5}, "num_lists must be int, got 2.5"),
        ("faiss-ivf", {"num_lists": 601}, "learns 601 centroids .* got 600"),
        ("faiss-ivfpq", {"code_bytes": 7}, "code_bytes must divide 16"),
    ],
)
def test_kinds_and_settings_that_cannot_be_are_refused(kind, settings, message, vectors):
    with pytest.raises(ValueError, match=message):
        build(kind, vectors[0], **settings)


def test_too_few_vectors_to_learn_from_are_refused(vectors):
    with pytest.raises(ValueError, match="faiss-ivfpq learns 256 centroids and needs as many vectors"):
        build("faiss-ivfpq", vectors[0][:200])


def test_a_setting_that_only_counts_when_building_cannot_be_changed(vectors):
    with pytest.raises(ValueError, match="m cannot be changed after building"):
        build("faiss-hnsw", vectors[0]).with_search(m=8)


def test_integers_are_no_vectors():
    with pytest.raises(ValueError, match="must be float16, float32 or float64, got int64"):
        build_index("exact", np.ones((2, 3), dtype=np.int64), ["a", "b"], "dot")


def test_a_folder_with_something_else_is_not_replaced_and_not_read(vectors, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else than an index of vectors"):
        build("exact", vectors[0]).save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no index.json; build_index"):
        Index.load(tmp_path)


def test_an_index_of_another_format_is_refused(vectors, tmp_path):
    build("exact", vectors[0]).save(tmp_path / "index")
    about = tmp_path / "index" / "index.json"
    write_json(about, read_json(about) | {"format": 1})
    with pytest.raises(ValueError, match="format 1, expected 3"):
        Index.load(tmp_path / "index")


def test_without_hnswlib_the_error_says_how_to_get_it(vectors, monkeypatch):
    monkeypatch.setitem(sys.modules, "hnswlib", None)
    with pytest.raises(
        ValueError, match=r"pip install hnswlib` with a C\+\+ compiler .* or use 'faiss-hnsw'"
    ):
        build("hnswlib", vectors[0])


def test_lists_grow_with_the_root_of_the_passages_and_never_starve():
    assert num_lists(171_332) == 1655
    assert num_lists(600) == 15
    assert num_lists(10) == 1


# --- codes whose candidates are scored anew ----------------------------------------------------


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_candidates_are_scored_with_the_vectors_and_with_all_of_them_nothing_is_missed(vectors, similarity):
    passages, queries = vectors
    index = build("faiss-opq", passages, similarity, rescored=1)
    exact = build("exact", passages, similarity)
    scores, positions = index.search(queries, 10)
    true = exact.search(queries, len(passages))
    for query in range(len(queries)):
        score_of = dict(zip(true[1][query].tolist(), true[0][query].tolist(), strict=True))
        expected = [score_of[position] for position in positions[query].tolist()]
        np.testing.assert_allclose(scores[query], expected, rtol=1e-5, atol=1e-5)
    few = recall(positions, true[1][:, :10])
    found = index.with_search(rescored=60).search(queries, 10)  # 600 candidates, every vector
    assert few < recall(found[1], true[1][:, :10]) == 1
    np.testing.assert_array_equal(found[1], true[1][:, :10])


def test_among_equal_candidates_the_smaller_position_comes_first(vectors):
    passages = np.concatenate([vectors[0], vectors[0]])
    _, positions = build("faiss-opq", passages, rescored=60).search(vectors[0][:30], 20)
    assert (positions[:, 0] == np.arange(30)).all()
    assert (positions[:, 1] == np.arange(30) + 600).all()


def test_the_rotation_keeps_lengths_and_gives_each_part_of_a_code_the_same_variance():
    spread = np.repeat([9.0, 4.0, 1.0, 0.25], 2)
    sample = np.random.default_rng(0).normal(size=(5000, 8)) * np.sqrt(spread)
    turned = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]
    rotation = _rotation((sample @ turned).astype(np.float32), 2)
    matrix = faiss.vector_to_array(rotation.A).reshape(8, 8)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(8), atol=1e-5)
    variances = (sample @ turned @ matrix.T).var(axis=0)
    assert np.prod(variances[:4]) == pytest.approx(np.prod(variances[4:]), rel=0.2)
    assert np.prod(variances) == pytest.approx(np.prod(spread), rel=0.2)  # the axes are principal


def test_constant_vectors_have_a_rotation():
    index = build("faiss-opq", np.ones((600, 16), dtype=np.float32))
    assert (index.search(np.ones((1, 16), dtype=np.float32), 3)[1] >= 0).all()
