"""Exact search: against plain sorts and faiss, larger always better, whatever the block size."""

import json
import tracemalloc
from re import escape

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpr.data.trec import ordered_hits, read_run, write_run
from dpr.files import MARKER
from dpr.search import exact as module
from dpr.search.index import KINDS, Index, build_index


def exact_index(passage_emb, doc_ids, similarity):
    """The index under test."""
    return build_index("exact", passage_emb, doc_ids, similarity)


SMALL = st.integers(-3, 3)  # products and sums of these are exact in single precision


def ids(number):
    """As many ids as passages."""
    return [f"d{i}" for i in range(number)]


def asked(number):
    """As many ids as queries, none of them a passage's."""
    return [f"q{i}" for i in range(number)]


def normals(seed, *shape):
    """Random vectors of many lengths, so that dot and cosine rank differently."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * rng.uniform(0.1, 10, size=(shape[0], 1))).astype(np.float32)


def scores_in_float64(passage_emb, query_emb, similarity):
    """Every score [Q, N], by one matrix product in double precision."""
    passages, queries = np.asarray(passage_emb, dtype=np.float64), np.asarray(query_emb, dtype=np.float64)
    if similarity == "cosine":
        passages = passages / np.sqrt((passages**2).sum(axis=1, keepdims=True))
        queries = queries / np.sqrt((queries**2).sum(axis=1, keepdims=True))
    return queries @ passages.T


@st.composite
def searches(draw):
    """Passages [N, D] and queries [Q, D] of small whole numbers, no row all 0, and a depth."""
    num_passages, num_queries, dimension = draw(st.integers(1, 12)), draw(st.integers(0, 5)), 3
    row = st.lists(SMALL, min_size=dimension, max_size=dimension).filter(any)
    passages = draw(st.lists(row, min_size=num_passages, max_size=num_passages))
    queries = draw(st.lists(row, min_size=num_queries, max_size=num_queries))
    depth = draw(st.integers(1, num_passages + 3))
    return (
        np.array(passages, dtype=np.float32),
        np.array(queries, dtype=np.float32).reshape(num_queries, dimension),
        depth,
    )


@pytest.fixture(params=[(16_384, 512), (4, 2), (1, 1), (3, 5)], ids=lambda blocks: "x".join(map(str, blocks)))
def blocks(request, monkeypatch):
    """Passages and queries scored at once: all of them, or a few."""
    for name in ("MIN_BLOCK", "MAX_BLOCK"):
        monkeypatch.setattr(module, name, request.param[0])
    monkeypatch.setattr(module, "QUERY_BLOCK", request.param[1])


# --- what is found -----------------------------------------------------------------------------


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_the_best_passages_are_found_best_first(similarity):
    @given(searches())
    def check(search):
        passages, queries, depth = search
        scores, positions = exact_index(passages, ids(len(passages)), similarity).search(queries, depth)
        kept = min(depth, len(passages))
        assert scores.shape == positions.shape == (len(queries), kept)
        assert (scores.dtype, positions.dtype) == (np.float32, np.int64)
        expected = scores_in_float64(passages, queries, similarity)
        best = -np.sort(-expected, axis=1)[:, :kept]
        np.testing.assert_allclose(scores, best, rtol=0, atol=1e-6 if similarity == "cosine" else 0)
        np.testing.assert_allclose(np.take_along_axis(expected, positions, 1), scores, rtol=0, atol=1e-6)
        assert all(len(set(row)) == kept for row in positions.tolist())
        assert (np.diff(scores, axis=1) <= 0).all()

    check()


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("depth", [1, 5, 40, 100])
def test_positions_are_those_of_argsort(similarity, depth):
    passages, queries = normals(0, 40, 8), normals(1, 7, 8)
    expected = scores_in_float64(passages, queries, similarity)
    order = np.argsort(-expected, axis=1)[:, :depth]
    scores, positions = exact_index(passages, ids(40), similarity).search(queries, depth)
    np.testing.assert_array_equal(positions, order)
    np.testing.assert_allclose(scores, np.take_along_axis(expected, order, 1), rtol=1e-5, atol=1e-5)


def test_dot_and_cosine_rank_vectors_of_different_lengths_differently():
    passages, queries = np.array([[1, 0], [3, 3]], np.float32), np.array([[2, 0]], np.float32)
    found = {s: exact_index(passages, ["a", "b"], s).search(queries, 2) for s in ("cosine", "dot")}
    assert found["cosine"][1].tolist() == [[0, 1]]
    assert found["cosine"][0][0].tolist() == pytest.approx([1.0, 0.5**0.5])
    assert found["dot"][1].tolist() == [[1, 0]]
    assert found["dot"][0].tolist() == [[6.0, 2.0]]


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_faiss_finds_the_same(similarity, monkeypatch):
    faiss = pytest.importorskip("faiss")
    monkeypatch.setattr(module, "MAX_BLOCK", 100)
    monkeypatch.setattr(module, "MIN_BLOCK", 100)
    passages, queries = normals(2, 1000, 16), normals(3, 20, 16)
    ours = exact_index(passages, ids(1000), similarity).search(queries, 50)
    if similarity == "cosine":
        faiss.normalize_L2(passages)
        faiss.normalize_L2(queries)
    flat = faiss.IndexFlatIP(16)
    flat.add(passages)
    scores, positions = flat.search(queries, 50)
    np.testing.assert_array_equal(ours[1], positions)
    np.testing.assert_allclose(ours[0], scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_the_nearest_passage_comes_first_and_not_the_farthest(similarity):
    angles = np.linspace(0, np.pi, 9)
    passages = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    scores, positions = exact_index(passages, ids(9), similarity).search(passages[:1], 9)
    assert positions[0].tolist() == list(range(9))
    np.testing.assert_allclose(scores[0], np.cos(angles), rtol=0, atol=1e-6)


def test_the_length_of_a_vector_does_not_count_under_cosine():
    passages, queries = normals(4, 30, 5), normals(5, 4, 5)
    lengths = np.random.default_rng(6).uniform(0.01, 100, size=(30, 1)).astype(np.float32)
    scores, positions = exact_index(passages, ids(30), "cosine").search(queries, 30)
    longer = exact_index(passages * lengths, ids(30), "cosine").search(queries * 7, 30)
    np.testing.assert_array_equal(longer[1], positions)
    np.testing.assert_allclose(longer[0], scores, rtol=0, atol=1e-6)
    assert abs(scores).max() <= 1 + 1e-6


# --- what goes in ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_vectors_of_any_precision_are_searched_in_single(similarity, dtype):
    passages, queries = normals(7, 50, 6).astype(dtype), normals(8, 3, 6).astype(dtype)
    scores, positions = exact_index(passages, ids(50), similarity).search(queries, 10)
    expected = scores_in_float64(passages, queries, similarity)
    order = np.argsort(-expected, axis=1)[:, :10]
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(positions, order)
    np.testing.assert_allclose(scores, np.take_along_axis(expected, order, 1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_memory_map_is_searched_block_by_block_and_never_copied(tmp_path, monkeypatch, similarity):
    monkeypatch.setattr(module, "MAX_BLOCK", 256)
    monkeypatch.setattr(module, "MIN_BLOCK", 256)
    np.save(tmp_path / "passages.npy", normals(9, 16_384, 32))
    mapped = np.load(tmp_path / "passages.npy", mmap_mode="r")
    queries = normals(10, 2, 32)
    tracemalloc.start()
    index = exact_index(mapped, ids(len(mapped)), similarity)
    scores, positions = index.search(queries, 10)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    doc_ids_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert index._engine.vectors is mapped
    assert peak_bytes - doc_ids_bytes < mapped.nbytes
    whole = exact_index(np.array(mapped), ids(len(mapped)), similarity).search(queries, 10)
    np.testing.assert_array_equal(positions, whole[1])
    np.testing.assert_array_equal(scores, whole[0])


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_searching_leaves_the_vectors_as_they_were(similarity):
    passages, queries = normals(11, 9, 4), normals(12, 3, 4)
    before = passages.copy(), queries.copy()
    exact_index(passages, ids(9), similarity).search(queries, 5)
    np.testing.assert_array_equal(passages, before[0])
    np.testing.assert_array_equal(queries, before[1])


def test_no_query_gives_no_hit():
    index = exact_index(normals(13, 9, 4), ids(9), "cosine")
    scores, positions = index.search(np.empty((0, 4), dtype=np.float32), 5)
    assert scores.shape == positions.shape == (0, 5)
    assert index.search_run([], np.empty((0, 4), dtype=np.float32), 5, "mine") == {}


@pytest.mark.parametrize(
    ("shape", "doc_ids", "similarity", "message"),
    [
        ((2, 3), ["a", "b"], "euclidean", "similarity must be one of ('cosine', 'dot'), got 'euclidean'"),
        ((2, 3), ["a", "b"], None, "build_index: similarity must be str, got None"),
        ((0, 3), [], "dot", "passage_emb must be [N, D] with N and D above 0, got shape (0, 3)"),
        ((2, 0), ["a", "b"], "dot", "passage_emb must be [N, D] with N and D above 0, got shape (2, 0)"),
        ((3,), ["a", "b", "c"], "dot", "passage_emb must be [N, D] with N and D above 0, got shape (3,)"),
        ((2, 3, 1), ["a", "b"], "dot", "passage_emb must be [N, D] with N and D above 0"),
        ((2, 3), ["a"], "dot", "2 vectors need as many doc_ids, got 1"),
        ((2, 3), ["a", "b", "c"], "dot", "2 vectors need as many doc_ids, got 3"),
        ((2, 3), ["a", "b", "b"], "dot", "2 vectors need as many doc_ids, got 3"),
        ((2, 3), ["a", "a"], "dot", "2 vectors need as many distinct doc_ids, got 1; documents in several"),
    ],
)
def test_vectors_ids_and_similarities_that_do_not_fit_are_refused(shape, doc_ids, similarity, message):
    with pytest.raises(ValueError, match=escape(message)):
        exact_index(np.ones(shape, dtype=np.float32), doc_ids, similarity)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.usefixtures("blocks")
def test_values_that_are_not_finite_are_refused_by_row(similarity, value):
    vectors = np.ones((9, 3), dtype=np.float32)
    index = exact_index(vectors, ids(9), similarity)
    vectors = vectors.copy()
    vectors[[6, 8], 1] = value
    with pytest.raises(ValueError, match="passage_emb: row 6 holds NaN or infinity"):
        exact_index(vectors, ids(9), similarity)
    with pytest.raises(ValueError, match="query_emb: row 6 holds NaN or infinity"):
        index.search(vectors, 1)


@pytest.mark.usefixtures("blocks")
def test_a_zero_vector_has_no_cosine_but_a_dot_product():
    vectors = np.ones((9, 3), dtype=np.float32)
    vectors[7] = 0
    with pytest.raises(ValueError, match="passage_emb: row 7 is a zero vector"):
        exact_index(vectors, ids(9), "cosine")
    with pytest.raises(ValueError, match="query_emb: row 7 is a zero vector"):
        exact_index(vectors[:2], ids(2), "cosine").search(vectors, 1)
    scores, positions = exact_index(vectors, ids(9), "dot").search(vectors[6:8], 9)
    assert scores.tolist() == [[3.0] * 8 + [0.0], [0.0] * 9]
    assert positions[0, -1] == 7


@pytest.mark.parametrize("shape", [(4,), (2, 3), (1, 4, 1)])
def test_queries_of_another_shape_are_refused(shape):
    index = exact_index(normals(14, 9, 4), ids(9), "dot")
    with pytest.raises(ValueError, match=escape(f"query_emb must be [rows, 4], got shape {shape}")):
        index.search(np.ones(shape, dtype=np.float32), 1)


@pytest.mark.parametrize("depth", [0, -1])
def test_a_depth_below_one_is_refused(depth):
    index = exact_index(normals(15, 9, 4), ids(9), "dot")
    with pytest.raises(ValueError, match=f"depth must be at least 1, got {depth}"):
        index.search(normals(16, 1, 4), depth)


# --- runs --------------------------------------------------------------------------------------


def test_a_run_names_each_hit_and_the_system():
    passages = np.array([[1, 0], [0, 2], [3, 0]], dtype=np.float32)
    queries = np.array([[1, 0.25], [0.5, 1]], dtype=np.float32)
    run = exact_index(passages, ["a", "b", "c"], "dot").search_run(["q2", "q1"], queries, 2, "mine")
    assert run == {"q2": {"c": 3.0, "a": 1.0}, "q1": {"b": 2.0, "c": 1.5}}
    assert (list(run), list(run["q2"]), run.tag) == (["q2", "q1"], ["c", "a"], "mine")


@pytest.mark.usefixtures("blocks")
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_hits_with_equal_scores_come_in_trec_order(similarity, tmp_path):
    passages = np.array([[0, 1], [1, 0], [0, 1], [1, 0], [0, 1], [1, 0]], dtype=np.float32)
    doc_ids = ["d10", "d9", "d2", "d1", "d11", "d90"]
    index = exact_index(passages, doc_ids, similarity)
    run = index.search_run(["q"], np.array([[2, 0]], dtype=np.float32), 6, "mine")
    assert list(run["q"]) == ["d90", "d9", "d1", "d2", "d11", "d10"]
    assert list(run["q"].items()) == ordered_hits(run["q"])
    write_run(tmp_path / "run.trec", run)
    assert {q: list(hits) for q, hits in read_run(tmp_path / "run.trec").items()} == {"q": list(run["q"])}


def test_another_number_of_query_ids_than_of_vectors_is_refused():
    index = exact_index(normals(17, 9, 4), ids(9), "dot")
    with pytest.raises(ValueError, match=r"1 query ids \(1 different\) for 2 vectors"):
        index.search_run(["q"], normals(18, 2, 4), 1, "mine")


@given(searches(), st.sampled_from(["cosine", "dot"]))
def test_a_run_can_always_be_written(scratch, search, similarity):
    passages, queries, depth = search
    run = exact_index(passages, ids(len(passages)), similarity).search_run(
        asked(len(queries)), queries, depth, "t"
    )
    write_run(scratch / "run.trec", run)  # refuses scores that rise with rank
    assert (scratch / "run.trec").read_text().count("\n") == len(queries) * min(depth, len(passages))


# --- chunks ------------------------------------------------------------------------------------


def chunked(seed, num_documents, most, dimension=6):
    """Rows of documents of one to so many chunks, in no order, and the document of each."""
    rng = np.random.default_rng(seed)
    owners = rng.permutation(np.repeat(np.arange(num_documents), rng.integers(1, most + 1, num_documents)))
    return normals(seed, len(owners), dimension), [f"d{owner}" for owner in owners]


def best_chunks(passage_emb, doc_ids, query_emb, similarity, depth):
    """Each query's best documents by a loop over all chunks: the largest score of each document."""
    best = []
    for row in scores_in_float64(passage_emb, query_emb, similarity):
        hits = {}
        for doc_id, score in zip(doc_ids, row.tolist(), strict=True):
            hits[doc_id] = max(score, hits.get(doc_id, -np.inf))
        best.append(dict(sorted(hits.items(), key=lambda hit: -hit[1])[:depth]))
    return best


def assert_best_chunks(index, passage_emb, query_emb, depth):
    """The index's run has the documents of the loop, in its order, with its scores."""
    run = index.search_run(asked(len(query_emb)), query_emb, depth, "t")
    expected = best_chunks(passage_emb, index.doc_ids, query_emb, index.similarity, depth)
    assert list(run) == asked(len(query_emb))
    for hits, best in zip(run.values(), expected, strict=True):
        assert list(hits) == list(best)
        assert list(hits.values()) == pytest.approx(list(best.values()), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("kind", ["exact", "faiss-hnsw"])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("depth", [1, 5, 39, 40])
def test_a_document_has_the_score_of_its_best_chunk(kind, similarity, depth):
    passages, doc_ids = chunked(0, 40, 9)
    settings = {} if kind == "exact" else {"ef_search": 1000, "m": 64}
    index = build_index(kind, passages, doc_ids, similarity, chunks=True, **settings)
    assert len(doc_ids) > 150
    assert_best_chunks(index, passages, normals(1, 7, 6), depth)


@pytest.mark.parametrize("kind", ["exact", "faiss-ivf"])
def test_one_document_with_all_the_best_chunks_does_not_push_the_others_out(kind):
    passages, doc_ids = chunked(2, 12, 3)
    near = normals(3, 1, 6) + normals(4, 150, 6) / 1000
    passages, doc_ids = np.concatenate([passages, near]), [*doc_ids, *["near"] * 150]
    settings = {} if kind == "exact" else {"num_lists": 4, "num_probes": 4}
    index = build_index(kind, passages, doc_ids, "cosine", chunks=True, **settings)
    assert_best_chunks(index, passages, np.concatenate([normals(3, 1, 6), normals(5, 4, 6)]), 5)


@pytest.mark.parametrize("depth", [12, 13, 1000])
def test_a_depth_beyond_the_documents_gives_each_of_them_once(depth):
    passages, doc_ids = chunked(6, 12, 5)
    index = build_index("exact", passages, doc_ids, "dot", chunks=True)
    assert_best_chunks(index, passages, normals(7, 3, 6), depth)
    run = index.search_run(["q"], normals(7, 1, 6), depth, "t")
    assert sorted(run["q"]) == sorted(set(doc_ids))


def test_documents_of_which_an_index_reaches_no_chunk_are_left_out():
    passages, doc_ids = chunked(8, 60, 9)
    index = build_index("faiss-ivf", passages, doc_ids, "dot", chunks=True, num_lists=6, num_probes=1)
    queries = normals(9, 5, 6)
    run = index.search_run(asked(5), queries, 60, "t")
    reached = [{doc_ids[i] for i in row if i >= 0} for row in index.search(queries, len(doc_ids))[1].tolist()]
    assert [set(hits) for hits in run.values()] == reached
    assert max(map(len, reached)) < 60


@given(searches(), st.sampled_from(["cosine", "dot"]), st.data())
def test_whatever_the_chunks_scores_are_those_of_a_loop(search, similarity, data):
    passages, queries, depth = search
    documents = st.lists(st.sampled_from("abc"), min_size=len(passages), max_size=len(passages))
    doc_ids = data.draw(documents, label="doc_ids")
    index = build_index("exact", passages, doc_ids, similarity, chunks=True)
    run = index.search_run(asked(len(queries)), queries, depth, "t")
    best = best_chunks(passages, doc_ids, queries, similarity, 3)
    for hits, scores in zip(run.values(), best, strict=True):
        assert len(hits) == min(depth, len(set(doc_ids)))
        assert list(hits.values()) == pytest.approx(list(scores.values())[:depth], rel=0, abs=1e-6)
        assert hits == pytest.approx({doc_id: scores[doc_id] for doc_id in hits}, rel=0, abs=1e-6)


def test_documents_with_one_row_each_need_no_chunks_and_may_have_them():
    passages, queries = normals(10, 30, 6), normals(11, 4, 6)
    plain, chunks = (
        build_index("exact", passages, ids(30), "dot", chunks=chunks).search_run(asked(4), queries, 9, "t")
        for chunks in (False, True)
    )
    assert plain == chunks
    assert [list(hits) for hits in plain.values()] == [list(hits) for hits in chunks.values()]


def test_an_index_says_whether_it_has_chunks_and_searches_rows_either_way():
    passages, doc_ids = chunked(12, 9, 4)
    index = build_index("exact", passages, doc_ids, "dot", chunks=True)
    assert (index.chunks, index.doc_ids) == (True, doc_ids)
    assert not exact_index(passages, ids(len(passages)), "dot").chunks
    rows = exact_index(passages, ids(len(passages)), "dot").search(normals(13, 3, 6), 7)
    for ours, theirs in zip(index.search(normals(13, 3, 6), 7), rows, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("kind", ["exact", "faiss-flat"])
def test_a_saved_index_still_has_its_chunks(kind, tmp_path):
    passages, doc_ids = chunked(14, 20, 5)
    build_index(kind, passages, doc_ids, "cosine", chunks=True).save(tmp_path / "chunks")
    loaded = Index.load(tmp_path / "chunks")
    assert (loaded.chunks, loaded.doc_ids) == (True, doc_ids)
    assert_best_chunks(loaded, passages, normals(15, 3, 6), 9)
    build_index(kind, passages, ids(len(passages)), "cosine").save(tmp_path / "rows")
    assert not Index.load(tmp_path / "rows").chunks


# --- queries that are documents ----------------------------------------------------------------

EXHAUSTIVE = {  # settings with which each kind looks at every vector
    "exact": {},
    "faiss-flat": {},
    "faiss-sqfp16": {},
    "faiss-hnsw": {"ef_search": 320},
    "faiss-ivf": {"num_lists": 4, "num_probes": 4},
    "faiss-ivfpq": {"num_lists": 4, "num_probes": 4, "code_bytes": 3},
    "faiss-opq": {"num_lists": 4, "num_probes": 4, "code_bytes": 3, "rescored": 300},
    "hnswlib": {"ef_search": 320},
}


def index_of_all(kind, passage_emb, doc_ids, similarity, chunks=False):
    """An index that looks at every vector; the test is skipped if its package is not installed."""
    if kind == "hnswlib":
        pytest.importorskip("hnswlib")
    return build_index(kind, passage_emb, doc_ids, similarity, chunks=chunks, **EXHAUSTIVE[kind])


def without_itself(run, query_ids, depth):
    """The ids of each query's hits, best first, without the query's own id, then cut: a plain loop."""
    kept = {}
    for query_id, hits in run.items():
        others = [d for d in hits if d != query_id or query_id not in query_ids]
        kept[query_id] = others[:depth]
    return kept


def test_every_kind_is_among_those_tried_with_queries_that_are_documents():
    assert list(EXHAUSTIVE) == list(KINDS)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("kind", EXHAUSTIVE)
def test_a_query_that_is_a_document_gets_as_many_other_hits_as_asked_for(kind, similarity):
    passages = normals(20, 300, 6)
    index = index_of_all(kind, passages, ids(300), similarity)
    query_ids = ["d7", "q1", "d250", "d3", "q2"]
    queries = np.concatenate([passages[[7]], normals(21, 1, 6), passages[[250, 3]], passages[[9]]])
    own = frozenset({"d7", "d250", "unasked", "d9"})
    whole = index.search_run(query_ids, queries, 300, "t", frozenset())
    for depth in (1, 2, 10, 299, 300, 1000):
        found = index.search_run(query_ids, queries, depth, "mine", own)
        expected = without_itself(whole, own, depth)
        assert {q: list(hits) for q, hits in found.items()} == expected
        assert found.tag == "mine"
        for query_id, hits in found.items():
            assert hits == pytest.approx({d: whole[query_id][d] for d in hits}, rel=1e-5, abs=1e-5)
    assert all(query_id in whole[query_id] for query_id in own & set(query_ids))
    assert index.search_run(query_ids, queries, 10, "mine", set()) == whole_cut(whole, 10)


def whole_cut(run, depth):
    """The best hits of each query, with scores as near as two searches of different depth give them."""
    return {q: pytest.approx(dict(list(hits.items())[:depth]), rel=1e-5, abs=1e-5) for q, hits in run.items()}


@pytest.mark.parametrize("kind", ["exact", "faiss-flat", "faiss-hnsw"])
def test_with_chunks_all_of_the_querys_own_document_are_left_out(kind):
    passages, doc_ids = chunked(22, 25, 4)
    near = normals(23, 1, 6) + normals(24, 90, 6) / 1000  # all of one document, and nearest to its query
    passages, doc_ids = np.concatenate([passages, near]), [*doc_ids, *["near"] * 90]
    index = index_of_all(kind, passages, doc_ids, "cosine", chunks=True)
    queries = np.concatenate([normals(23, 1, 6), normals(25, 2, 6)])
    query_ids, own = ["near", "d1", "d2"], frozenset({"near", "d1"})
    for depth in (1, 5, 25, 26):
        run = index.search_run(query_ids, queries, depth, "t", own)
        best = best_chunks(passages, doc_ids, queries, "cosine", 1000)
        for query_id, scores in zip(query_ids, best, strict=True):
            left = {d: s for d, s in scores.items() if d != query_id or query_id not in own}
            assert run[query_id] == pytest.approx(dict(list(left.items())[:depth]), rel=0, abs=1e-5)


def test_a_query_far_from_the_document_it_is_gets_no_hit_less():
    passages = np.eye(4, dtype=np.float32)
    index = exact_index(passages, ids(4), "dot")
    queries = np.array([[0, 4, 3, 2]], dtype=np.float32)
    assert index.search_run(["d0"], queries, 2, "t", {"d0"}) == {"d0": {"d1": 4.0, "d2": 3.0}}
    assert index.search_run(["d0"], queries, 9, "t", {"d0"}) == {"d0": {"d1": 4.0, "d2": 3.0, "d3": 2.0}}


def test_shared_ids_of_which_nothing_is_said_give_one_warning_and_leave_out_nothing():
    index = exact_index(np.eye(3, dtype=np.float32), ["b", "c", "7"], "dot")
    queries = np.eye(3, dtype=np.float32)
    message = "2 queries have the id of a document, first '7': if they are these documents, pass own_docum"
    with pytest.warns(UserWarning, match=f"^{message}") as warned:
        run = index.search_run(["7", "q", "c"], queries, 3, "t")
    assert len(warned) == 1
    assert warned[0].filename == __file__
    assert run["7"] == {"b": 1.0, "c": 0.0, "7": 0.0}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("own_documents", [frozenset(), {"other"}, {"c"}, frozenset("cb")])
def test_with_the_documents_named_or_none_of_them_there_is_no_warning(own_documents):
    index = exact_index(np.eye(3, dtype=np.float32), ["a", "b", "c"], "dot")
    run = index.search_run(["c", "q"], np.eye(3, dtype=np.float32)[:2], 3, "t", own_documents)
    assert ("c" in run["c"]) is ("c" not in own_documents)
    assert len(run["q"]) == 3


@pytest.mark.filterwarnings("error")
def test_ids_that_are_not_shared_give_no_warning():
    index = exact_index(np.eye(3, dtype=np.float32), ["a", "b", "c"], "dot")
    assert len(index.search_run(["q", "r"], np.eye(3, dtype=np.float32)[:2], 2, "t")) == 2


def test_a_query_id_that_comes_twice_is_refused():
    index = exact_index(np.eye(3, dtype=np.float32), ids(3), "dot")
    with pytest.raises(ValueError, match=r"2 query ids \(1 different\) for 2 vectors"):
        index.search_run(["q", "q"], np.eye(3, dtype=np.float32)[:2], 1, "t")


# --- ids ---------------------------------------------------------------------------------------


def test_ids_that_are_whole_numbers_become_text():
    index = build_index("exact", np.eye(3, dtype=np.float32), np.array([5, 6, 7]), "dot")
    assert index.doc_ids == ["5", "6", "7"]


@pytest.mark.parametrize("bad", ["a\nb", " ", "", "two words"])
def test_an_id_that_no_run_file_could_hold_is_refused(bad):
    with pytest.raises(ValueError, match=r"doc_ids: row 1: .* must be a string without white space"):
        build_index("exact", np.eye(3, dtype=np.float32), ["a", bad, "c"], "dot")


# --- damaged on disk ---------------------------------------------------------------------------

FILES = {  # of an index with its kind
    "exact": ["doc_ids.txt", "index.json", "scale.npy", "vectors.npy"],
    "faiss-flat": ["doc_ids.txt", "index.bin", "index.json"],
}


@pytest.fixture(params=FILES)
def saved(request, tmp_path):
    """The folder of a saved index."""
    build_index(request.param, normals(19, 30, 4), ids(30), "cosine").save(tmp_path / "index")
    return tmp_path / "index"


def files_of(folder):
    """The names of an index's files, but for the marker."""
    return sorted(path.name for path in folder.iterdir() if path.name != MARKER)


def assert_refused(folder, name, error=ValueError):
    """Loading the index fails, and the message names the file."""
    with pytest.raises(error, match=escape(f"{folder}") + ".*" + escape(name)):
        Index.load(folder)


def test_an_index_that_lost_a_file_is_refused_and_the_file_named(saved):
    assert files_of(saved) in FILES.values()
    for name in files_of(saved):
        whole = (saved / name).read_bytes()
        (saved / name).unlink()
        assert_refused(saved, name, FileNotFoundError if name == "index.json" else ValueError)
        (saved / name).write_bytes(whole)
    assert len(Index.load(saved).doc_ids) == 30


@pytest.mark.parametrize("at", [0, 7, 0.3, 0.6, -1])
def test_an_index_with_a_flipped_bit_is_refused_and_the_file_named(saved, at):
    for name in files_of(saved):
        whole = (saved / name).read_bytes()
        damaged = bytearray(whole)
        damaged[int(at * len(whole)) if isinstance(at, float) else at] ^= 1
        (saved / name).write_bytes(damaged)
        assert_refused(saved, name)
        (saved / name).write_bytes(whole)


def test_no_flipped_bit_of_what_an_index_says_about_itself_is_believed(saved):
    whole = (saved / "index.json").read_bytes()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        (saved / "index.json").write_bytes(damaged)
        with pytest.raises(ValueError, match=escape(f"{saved}")):
            Index.load(saved)


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_an_index_with_a_cut_file_is_refused_and_the_file_named(saved, share):
    for name in files_of(saved):
        whole = (saved / name).read_bytes()
        (saved / name).write_bytes(whole[: int(share * len(whole))])
        assert_refused(saved, name)
        (saved / name).write_bytes(whole)


def test_an_index_with_one_id_more_is_refused(saved):
    with (saved / "doc_ids.txt").open("a") as stream:
        stream.write("d30\n")
    assert_refused(saved, "doc_ids.txt")


@pytest.mark.parametrize("field", ["format", "kind", "similarity", "rows", "dimension", "settings", "crc32"])
def test_an_index_that_lacks_a_field_is_refused(saved, field):
    about = json.loads((saved / "index.json").read_text())
    del about[field]
    (saved / "index.json").write_text(json.dumps(about))
    assert_refused(saved, "index.json")
