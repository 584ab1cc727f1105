"""Hits in bulk are those that pyserini gives one by one: documents, scores and order, ties included."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr.data.collection import Collection, Passage
from dpr.data.loading import load_collection
from dpr.data.trec import ordered_hits
from dpr.search.bm25 import BM25
from dpr.search.lucene import _without_ties

WORDS = ["apple", "grape", "lemon", "melon"]


def one_by_one(index, queries, depth, k1, b):
    """The same search by pyserini's searcher."""
    from pyserini.search.lucene import LuceneSearcher

    searcher = LuceneSearcher(str(index.folder / "lucene"))
    searcher.set_bm25(k1, b)
    found = searcher.batch_search(list(queries.values()), list(queries), k=depth, threads=2)
    hits = {q: {hit.docid: float(hit.score) for hit in found.get(q) or ()} for q in queries}
    return {q: ordered_hits(scores) for q, scores in hits.items()}


def in_order(run):
    return {q: list(hits.items()) for q, hits in run.items()}


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """An index of 300 documents of which most score alike, with ids in an order that is not Lucene's."""
    texts = [" ".join(WORDS[: 1 + i % 4]) for i in range(300)]
    ids = [f"{'é' if i % 3 else '一' if i % 2 else '😀'}{(i * 37) % 300}" for i in range(300)]
    passages = [Passage(doc_id, "", text) for doc_id, text in zip(ids, texts, strict=True)]
    collection = Collection("alike", passages, {"q": "apple"}, {"test": {"q": {ids[0]: 1}}})
    return BM25.build(collection, tmp_path_factory.mktemp("alike") / "index")


@pytest.mark.parametrize("depth", [1, 7, 59, 60, 74, 75, 76, 150, 284, 299, 300, 1000])
def test_of_documents_that_score_alike_the_same_are_found_in_the_same_order(alike, depth):
    queries = {"1": "apple", "2": "grape lemon", "3": "melon apple apple", "4": "plum", "5": ""}
    run = alike.search(queries, depth, leave_out_own=False)
    assert in_order(run) == one_by_one(alike, queries, depth, 0.9, 0.4)
    assert len(run["1"]) == min(depth, 300)
    assert run["4"] == run["5"] == {}


@given(
    scores=st.lists(st.integers(0, 400), min_size=0, max_size=300),
    step=st.sampled_from([1e-5, 3e-5, 1e-4, 0.1]),
)
@settings(max_examples=300, deadline=None)
def test_ties_are_told_apart_as_the_plain_loop_does(scores, step):
    falling = np.sort(np.array(scores, dtype=np.float64) * step)[::-1].astype(np.float32)
    expected, num_tied = [], 0
    for score in falling:
        rounded = np.float32(np.floor(np.float64(score) * 10_000 + 0.5) / 10_000)
        num_tied = 0 if not expected or expected[-1] - rounded > np.float32(1e-4) else num_tied + 1
        expected.append(rounded - np.float32(1e-6) * np.float32(num_tied) if num_tied else rounded)
    assert _without_ties(falling).tolist() == [float(score) for score in expected]


def test_many_queries_on_all_threads_keep_their_own_hits(alike):
    queries = {str(i): " ".join(WORDS[j] for j in range(4) if i >> j & 1) for i in range(400)}
    run = alike.search(queries, 20)
    assert list(run) == list(queries)
    alone = {q: alike.search({"alone": text}, 20)["alone"] for q, text in list(queries.items())[:16]}
    assert in_order(run) == {q: list(alone[str(int(q) % 16)].items()) for q in queries}


@pytest.mark.parametrize("name", ["scifact", "nfcorpus"])
@pytest.mark.parametrize(("depth", "k1", "b"), [(1000, 0.9, 0.4), (10, 2.0, 0.75)])
def test_real_queries_find_what_pyserini_finds(data_dir, tmp_path, name, depth, k1, b):
    collection = load_collection(data_dir / name)
    queries = dict(list(collection.all_queries.items())[:300])
    index = BM25.build(collection, tmp_path / "index")
    run = index.search(queries, depth, k1, b, leave_out_own=False)
    assert in_order(run) == one_by_one(index, queries, depth, k1, b)
