"""Cross-encoders in notebooks: trainings, reranked runs and teachers' scores are made once and read again."""

import json
import shutil
from dataclasses import replace

import pytest

from dpr.data.trec import Run
from dpr.evaluation.metrics import evaluate
from dpr.experiments import reranking as module
from dpr.experiments.profiles import Profile
from dpr.experiments.reranking import (
    by_encoder,
    kept_scores,
    reranked,
    taught,
    teacher_run,
    untrained,
    with_teacher,
)
from dpr.experiments.workspace import Workspace
from dpr.files import read_json, write_json
from dpr.models.bi_encoder import BiEncoder
from dpr.reranking.rerank import rerank
from dpr.reranking.reranker import Reranker
from dpr.reranking.training import Pool
from dpr.search.bm25 import BM25
from dpr.search.fusion import fuse_scores
from dpr.training.negatives import mine_negatives
from dpr.training.settings import RerankerSettings

SETTINGS = RerankerSettings(
    num_steps=2, batch_size=2, num_negatives=1, learning_rate=1e-2, eval_every=1, log_every=1
)
HOW = {"notebook": "09_reranking", "depth": 2}


@pytest.fixture
def tiny_collection(with_dev):
    """That with dev queries, also for `tiny_beir_folder`."""
    return with_dev


@pytest.fixture
def space(tmp_path, tiny_beir_folder):
    return Workspace(Profile("tiny", str(tiny_beir_folder), query_max_length=8), tmp_path / "out")


@pytest.fixture
def encoder(plain_folder):
    how = {"pooling": "mean", "query_max_length": 8, "passage_max_length": 16}
    return BiEncoder.from_pretrained(plain_folder, "cpu", **how)


@pytest.fixture
def start(encoder):
    return untrained(encoder, 24, "segments", "float32")


@pytest.fixture
def lesson(space):
    """Training data with negatives, and a pool."""
    data, dev = space.training_data()
    run = {e.query_id: {d: 1.0 / n for n, d in enumerate(dev.doc_ids, 1)} for e in data.examples}
    texts = {p.doc_id: p.contents for p in dev.passages}
    negatives = mine_negatives(data, texts, run, num_negatives=2).negatives
    pool = Pool(dev, {q: {d: 1.0 / n for n, d in enumerate(dev.doc_ids, 1)} for q in dev.qrels})
    return data.with_negatives(negatives, texts), pool


@pytest.fixture
def trainings(monkeypatch):
    """The tags of the trainings that are made or read from their folder."""
    made = []

    def train_reranker(*given, **more):
        made.append(more["tags"][0])
        return original(*given, **more)

    original = module.train_reranker
    monkeypatch.setattr(module, "train_reranker", train_reranker)
    return made


def test_a_cross_encoder_is_trained_once_and_loaded_only_if_it_is_needed(space, start, lesson, trainings):
    data, pool = lesson
    kept, training = taught(space, "ce", start, data, SETTINGS, pool)
    assert (kept.name, kept.max_length, trainings) == ("ce", 24, ["ce"])
    assert "reranker" not in vars(training)  # or each training that is compared stays in memory
    assert kept.fingerprint == kept.load().fingerprint != start.fingerprint
    again, read = taught(space, "ce", start, data, SETTINGS, pool)
    assert (again.fingerprint, read.history) == (kept.fingerprint, training.history)
    assert len(trainings) == 2  # that of `load`, which found the model
    shutil.rmtree(space.models)
    lost, _ = taught(space, "ce", start, data, SETTINGS, pool)
    assert len(trainings) == 2
    assert lost.load().fingerprint == kept.fingerprint  # trained anew, to the same weights
    taught(space, "ce", start, data, replace(SETTINGS, loss="mse"), pool)
    assert len(trainings) == 4


def test_weights_that_another_machine_would_have_made_are_told(space, start, lesson):
    data, pool = lesson
    kept, _ = taught(space, "ce", start, data, SETTINGS, pool)
    path = space.kept_training("ce")
    write_json(path, read_json(path, "model") | {"model": "0" * 16})
    other, _ = taught(space, "ce", start, data, SETTINGS, pool)
    with pytest.warns(UserWarning, match=f"ce was trained again.*{kept.fingerprint}, not {'0' * 16}"):
        assert other.load().fingerprint == kept.fingerprint


def test_a_second_training_starts_from_a_first_whose_weights_are_gone(space, start, lesson, trainings):
    data, pool = lesson
    first, _ = taught(space, "one", start, data, SETTINGS, pool)
    second, _ = taught(space, "two", first, data, SETTINGS, pool)
    shutil.rmtree(space.models)
    first, _ = taught(space, "one", start, data, SETTINGS, pool)
    again, _ = taught(space, "two", first, data, SETTINGS, pool)
    assert again.fingerprint == second.fingerprint
    assert trainings == ["one", "one", "two"]


def test_a_reranked_run_is_kept_for_this_model_first_stage_and_depth(space, start, monkeypatch):
    collection = space.collection()
    first = Run({"q1": {"d1": 3.0, "d2": 2.0, "d5": 1.0}, "q2": {"d6": 2.0, "d2": 1.0}}, "first")
    result = reranked(space, "ce", start, first, collection, **HOW, about={"trained_on": "nothing"})
    expected = rerank(first, collection, start.load(), depth=2)
    assert {q: list(hits) for q, hits in result.run().items()} == {q: list(h) for q, h in expected.items()}
    assert result.evaluation.means["nDCG@10"] == evaluate(collection.qrels, expected).means["nDCG@10"]
    config = result.metadata["config"]
    assert (config["model"], config["first"], config["reranked"]) == (start.fingerprint, "first", 2)
    assert (config["pairs"], config["trained_on"]) == (4, "nothing")
    [shard] = (space.root / "build" / "scores").glob("*/shard-*.json")
    assert result.metadata["wall_s"] == pytest.approx(json.loads(shard.read_text())["seconds"], abs=1e-4)
    asked = []
    monkeypatch.setattr(module, "rerank", lambda *given, **more: asked.append(more["depth"]) or expected)
    assert reranked(space, "ce", start, first, collection, **HOW).metadata == result.metadata
    assert not asked
    reranked(space, "ce", start, first, collection, **{**HOW, "depth": 1})
    reranked(space, "ce", start, Run(first, "other"), collection, **HOW)
    reranked(space, "ce", replace(start, fingerprint="0" * 16), Run(first, "other"), collection, **HOW)
    assert asked == [1, 2, 2]


def test_the_order_of_a_bi_encoder_is_that_of_its_similarities(space, encoder):
    collection = space.collection()
    run = Run({"q1": {"d1": 3.0, "d2": 2.0, "d5": 1.0}, "q2": {"d6": 2.0}}, "first")
    found = by_encoder(encoder, run, collection, "again")
    assert found.tag == "again"
    for query_id, hits in run.items():
        [query] = encoder.encode_queries([collection.queries[query_id]])
        expected = {}
        for doc_id in hits:
            [passage] = encoder.encode_passages([collection.by_id[doc_id].contents])
            expected[doc_id] = query @ passage / (query @ query * (passage @ passage)) ** 0.5
        assert found[query_id] == pytest.approx(expected, abs=1e-5)
        assert list(found[query_id]) == sorted(expected, key=expected.get, reverse=True)


def test_a_teacher_is_bm25_and_the_encoders(space, encoder):
    collection, queries = space.collection(), {"w1": "which animal carries viruses", "w2": "zinc for a cold"}
    found = teacher_run(space, [encoder], collection, queries, depth=3)
    bm25 = BM25.build(collection, space.root / "other-index").search(queries, 3)
    emb = encoder.encode_passages([p.contents for p in collection.passages])
    emb /= (emb**2).sum(axis=1, keepdims=True) ** 0.5
    query_emb = encoder.encode_queries(list(queries.values()))
    query_emb /= (query_emb**2).sum(axis=1, keepdims=True) ** 0.5
    dense = {}
    for query_id, vector in zip(queries, query_emb, strict=True):
        scores = dict(zip(collection.doc_ids, (emb @ vector).tolist(), strict=True))
        dense[query_id] = {d: scores[d] for d in sorted(scores, key=scores.get, reverse=True)[:3]}
    for query_id, hits in fuse_scores([bm25, dense], "both").items():
        assert found[query_id] == pytest.approx(hits, abs=1e-5)


def test_lists_drawn_from_a_teachers_hits_are_kept(space, encoder, lesson):
    data, dev = space.training_data()
    loaded = []
    mining = {"num_negatives": 2, "ranks": (1, 6), "seed": 0}

    def encoders():
        loaded.append(1)
        return [encoder]

    taught_data = with_teacher(space, "lists", encoders, data, dev, **mining)
    scores = teacher_run(space, [encoder], dev, {e.query_id: e.query for e in data.examples})
    texts = {p.doc_id: p.contents for p in dev.passages}
    expected = mine_negatives(data, texts, scores, **mining).negatives
    for example in taught_data.examples:
        assert example.negatives == expected[example.query_id]
        for doc_id in (*example.positives, *example.negatives):
            known = scores[example.query_id].get(doc_id, 0.0)
            assert taught_data.scores[example.query_id][doc_id] == pytest.approx(known, abs=1e-6)
    again = with_teacher(space, "lists", encoders, data, dev, **mining)
    assert (again.fingerprint, loaded) == (taught_data.fingerprint, [1])
    fewer, _ = data.split(0.34, 0)
    assert len(with_teacher(space, "lists", encoders, fewer, dev, **mining).examples) == 2
    assert len(loaded) == 2


def test_a_cross_encoders_scores_of_lists_are_kept(space, start, monkeypatch, tmp_path):
    collection, lists = space.collection(), {"q1": ["d1", "d4"], "q2": ["d2"]}
    path = tmp_path / "teachers" / "ce.trec.gz"
    found = kept_scores(path, lists, collection, start)
    for query_id, doc_ids in lists.items():
        pairs = [(collection.queries[query_id], collection.by_id[d].contents) for d in doc_ids]
        expected = dict(zip(doc_ids, start.load().predict(pairs).tolist(), strict=True))
        assert found[query_id] == pytest.approx(expected, abs=1e-5)
    monkeypatch.setattr(Reranker, "predict", None)
    assert kept_scores(path, lists, collection, start) == found
    for other in (replace(start, fingerprint="0" * 16), replace(start, name="other")):
        with pytest.raises(TypeError):
            kept_scores(path, lists, collection, other)
    with pytest.raises(TypeError):
        kept_scores(path, {**lists, "q2": ["d2", "d3"]}, collection, start)
