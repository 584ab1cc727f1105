"""Reranking a run: the order by a plain loop, the hits below, and going on after an interruption."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from dpr.models.bi_encoder import BiEncoder
from dpr.reranking.rerank import rerank
from dpr.reranking.reranker import Reranker
from dpr.shards import MANIFEST

RUN = {
    "q1": {"d1": 9.0, "d2": 8.0, "d3": 7.0, "d4": 6.0, "d5": 5.0},
    "q2": {"d6": 0.3, "d2": 0.2},
}


@pytest.fixture(scope="module")
def reranker(plain_folder):
    how = {"pooling": "mean", "query_max_length": 8, "passage_max_length": 16}
    return Reranker.from_encoder(BiEncoder.from_pretrained(plain_folder, "cpu", **how), 24, "cls")


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_the_order_is_that_of_a_plain_loop(reranker, tiny_collection, depth):
    run = rerank(RUN, tiny_collection, reranker, depth=depth)
    assert list(run) == ["q1", "q2"]
    for query_id, hits in RUN.items():
        scores = {}
        for doc_id in list(hits)[:depth]:
            pair = (tiny_collection.queries[query_id], tiny_collection.by_id[doc_id].contents)
            [scores[doc_id]] = reranker.predict([pair]).tolist()
        best = sorted(scores, key=scores.get, reverse=True)
        assert list(run[query_id]) == best + list(hits)[depth:]
        found = list(run[query_id].values())
        assert found[: len(best)] == pytest.approx([scores[doc_id] for doc_id in best], abs=1e-5)
        assert all(np.float32(a) > np.float32(b) for a, b in pairwise(found))


def test_only_the_order_of_the_first_stage_counts(reranker, tiny_collection):
    squeezed = {q: {d: 100 + s / 1000 for d, s in reversed(hits.items())} for q, hits in RUN.items()}
    assert rerank(squeezed, tiny_collection, reranker, depth=2) == rerank(
        RUN, tiny_collection, reranker, depth=2
    )


def test_a_query_without_hits_stays_without(reranker, tiny_collection):
    assert rerank({"q1": {}, "q2": RUN["q2"]}, tiny_collection, reranker)["q1"] == {}
    assert rerank({}, tiny_collection, reranker) == {}


def test_the_tag_tells_both_stages(reranker, tiny_collection):
    assert rerank(RUN, tiny_collection, reranker).tag == f"run-{reranker.name}"
    assert rerank(RUN, tiny_collection, reranker, tag="mine").tag == "mine"


def test_unknown_queries_and_documents_are_named(reranker, tiny_collection):
    with pytest.raises(ValueError, match="query q9 of the run is not among tiny's queries"):
        rerank({"q9": {"d1": 1.0}}, tiny_collection, reranker)
    with pytest.raises(ValueError, match="query q1: its hit d9 is not a document of tiny"):
        rerank({"q1": {"d9": 1.0}}, tiny_collection, reranker)
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        rerank(RUN, tiny_collection, reranker, depth=0)


def test_a_score_that_is_not_finite_is_named(reranker, tiny_collection):
    bias = reranker.model.classifier.bias
    kept = bias.detach().clone()
    with torch.no_grad():
        bias.fill_(1e30)
    broken = Reranker(reranker.container, "broken", 24, "float16")
    broken._is_checked = True
    with torch.no_grad():
        bias.fill_(float("inf"))
    with pytest.raises(ValueError, match="query q1, document d1: broken's score in float16 is inf"):
        rerank(RUN, tiny_collection, broken)
    with torch.no_grad():
        bias.copy_(kept)


def test_scores_are_kept_and_only_what_is_missing_is_scored(reranker, tiny_collection, tmp_path, monkeypatch):
    monkeypatch.setattr("dpr.reranking.rerank.CPU_SHARD", 2)
    whole = rerank(RUN, tiny_collection, reranker, folder=tmp_path / "scores")
    for query_id, hits in rerank(RUN, tiny_collection, reranker).items():  # other batches
        assert whole[query_id] == pytest.approx(hits, abs=1e-5)
    shards = sorted((tmp_path / "scores").glob("shard-*.npy"))
    assert len(shards) == 4
    asked = []
    pad = reranker.pad
    monkeypatch.setattr(reranker, "pad", lambda tokens: asked.append(len(tokens)) or pad(tokens))
    assert rerank(RUN, tiny_collection, reranker, folder=tmp_path / "scores") == whole
    assert not asked
    shards[1].unlink()
    assert rerank(RUN, tiny_collection, reranker, folder=tmp_path / "scores") == whole
    assert sum(asked) == 2


def test_a_folder_of_other_scores_is_refused(reranker, tiny_collection, tmp_path):
    rerank(RUN, tiny_collection, reranker, folder=tmp_path / "scores", depth=2)
    with pytest.raises(ValueError, match=f"{MANIFEST}: pairs is .*give another folder"):
        rerank(RUN, tiny_collection, reranker, folder=tmp_path / "scores", depth=3)
    other = Reranker(reranker.container, "other", 20, "float32")
    with pytest.raises(ValueError, match=f"{MANIFEST}: model is"):
        rerank(RUN, tiny_collection, other, folder=tmp_path / "scores", depth=2)
    (tmp_path / "scores" / "shard-000000.npy").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"shard-000000\.npy: damaged"):
        rerank(RUN, tiny_collection, reranker, folder=tmp_path / "scores", depth=2)
