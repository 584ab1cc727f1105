"""Systems that a notebook trains once: searched with, kept, and read only where they are the same."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from re import escape

import nbformat
import numpy as np
import pytest
from nbclient import NotebookClient

from dpr.evaluation.metrics import evaluate
from dpr.experiments.finetuning import (
    HARD_DEPTH,
    FineTuned,
    bm25_hits,
    train_and_search,
    validation_sample,
)
from dpr.experiments.named_settings import settings_table
from dpr.experiments.profiles import Profile
from dpr.experiments.results import load_result
from dpr.experiments.workspace import Workspace
from dpr.models.bi_encoder import BiEncoder
from dpr.models.two_encoders import TwoEncoders
from dpr.search.bm25 import BM25
from dpr.training.negatives import mine_negatives
from dpr.training.resume import Training
from dpr.training.settings import TrainingSettings

SETTINGS = TrainingSettings(num_steps=2, batch_size=2, learning_rate=1e-2, eval_every=1, log_every=1)
TAG = "tiny-ft"


@pytest.fixture
def tiny_collection(with_dev):
    """That with dev queries, also for `tiny_beir_folder`."""
    return with_dev


@pytest.fixture
def space(tmp_path, tiny_beir_folder):
    """A workspace over the tiny collection, with short passages in training and longer ones in search."""
    profile = Profile(
        "tiny",
        str(tiny_beir_folder),
        training_length=8,
        passage_max_length=16,
        query_max_length=8,
        validation_passages=5,
        validation_queries=1,
    )
    return Workspace(profile, tmp_path / "out")


@pytest.fixture
def encoder(plain_folder):
    return BiEncoder.from_pretrained(
        plain_folder, device="cpu", pooling="mean", query_max_length=8, passage_max_length=16
    )


@pytest.fixture
def made(space, encoder):
    """Makes the run, or one with something changed."""
    data, dev = space.training_data()
    collection = space.collection()

    def make(
        encoder=encoder, settings=SETTINGS, validation=dev, collection=collection, tag=TAG, **more
    ) -> FineTuned:
        more["notebook"] = "04_finetune_biencoder"
        return train_and_search(space, tag, encoder, data, settings, validation, collection, **more)

    return make


def forget_model(space):
    shutil.rmtree(space.models)


def test_a_system_is_trained_searched_with_and_kept(space, made):
    run = made()
    assert [line["step"] for line in run.training.history if "loss" in line] == [1, 2]
    assert run.training.finished["steps"] == 2
    assert run.result.metadata["ablation"]
    assert run.result.metadata["seed"] == 0
    assert run.result.metadata["config"]["trained_on"] == "3 queries of tiny/train"
    loaded = load_result(space.runs, TAG)
    assert loaded.evaluation.means == pytest.approx(run.result.evaluation.means, abs=1e-5)
    again = evaluate(space.collection().qrels, loaded.run(), ["nDCG@10"]).means["nDCG@10"]
    assert again == pytest.approx(run.result.evaluation.means["nDCG@10"], abs=1e-6)


def test_it_is_trained_at_one_length_and_searches_at_another(space, made, encoder):
    run = made()
    assert run.training.finished["start"]["passage_max_length"] == 8
    assert run.result.metadata["config"]["passage_max_length"] == 16
    assert encoder.config.passage_max_length == 16
    saved = BiEncoder.from_pretrained(space.model_folder("tiny/train", TAG) / "model")
    assert saved.config.passage_max_length == 8
    ready = saved.with_settings(passage_max_length=16)
    assert run.result.metadata["config"]["model"] == ready.fingerprint


def test_a_shorter_training_length_takes_the_place_of_the_profiles(made):
    assert made(training_length=6).training.finished["start"]["passage_max_length"] == 6


def test_dev_queries_are_searched_too_if_asked_and_the_means_are_kept(space, made):
    dev = space.collection("dev")
    assert made().dev == {}
    found = made(dev=dev)  # the training is read, the search is made
    ready = BiEncoder.from_pretrained(space.model_folder("tiny/train", TAG) / "model", passage_max_length=16)
    sides = (
        ready.encode_queries(list(dev.queries.values())),
        ready.encode_passages([passage.contents for passage in dev.passages]),
    )
    queries, passages = (side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides)
    rows = zip(dev.queries, (queries @ passages.T).tolist(), strict=True)
    run = {q: dict(zip(dev.doc_ids, row, strict=True)) for q, row in rows}
    assert found.dev["nDCG@10"] == pytest.approx(evaluate(dev.qrels, run).means["nDCG@10"], abs=1e-6)
    forget_model(space)
    assert made(dev=dev).dev == found.dev
    assert made().dev == found.dev
    assert not space.models.exists()
    assert not list(space.runs.glob("*dev*"))


def test_the_same_training_is_read_without_its_model(space, made):
    first = made()
    forget_model(space)
    second = made()
    assert not space.models.exists()
    assert second.training.history == first.training.history
    searched = first.result.metadata["config"]["model"]
    assert second.training.finished == {**first.training.finished, "searched": searched}
    assert second.training.minutes == first.training.minutes > 0
    assert second.result.metadata == first.result.metadata


@pytest.mark.parametrize(
    "changed",
    [
        {"settings": replace(SETTINGS, seed=1)},
        {"settings": replace(SETTINGS, learning_rate=2e-2)},
        {"validation": None},
        {"collection": None},
        {"encoder": None},
    ],
    ids=["seed", "rate", "validation", "collection", "model"],
)
def test_another_training_is_made_again(space, made, encoder, tiny_collection, changed):
    made()
    forget_model(space)
    if "validation" in changed:
        _, dev = space.training_data()
        changed = {"validation": dev.sample(3, 2)}
    if "collection" in changed:
        changed = {"collection": space.collection().sample(5, 2)}
    if "encoder" in changed:
        changed = {"encoder": encoder.with_settings(pooling="cls")}
    again = made(**changed)
    assert space.models.exists()
    kept = json.loads((space.runs / "training" / f"{TAG}.json").read_text())
    assert kept["settings"]["seed"] == again.training.finished["settings"]["seed"]
    assert kept["searched"] == again.result.metadata["config"]["model"]


def test_a_result_that_another_model_made_is_made_again(space, made, encoder):
    made()
    forget_model(space)
    other = encoder.with_settings(pooling="cls")
    space.search_and_save(other, space.collection(), TAG, notebook="other")
    run = made()
    assert run.result.metadata["notebook"] == "04_finetune_biencoder"
    assert load_result(space.runs, TAG).metadata["config"]["model"] != other.fingerprint


@pytest.mark.parametrize(
    ("ending", "damage"), [(".trec.gz", "flipped"), (".csv", "flipped"), (".csv", "lost"), (".json", "cut")]
)
def test_with_a_damaged_result_it_is_searched_again_and_not_trained(space, made, monkeypatch, ending, damage):
    first = made()
    path = space.runs / f"{TAG}{ending}"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes(data if damage == "flipped" else data[: len(data) // 2])
    again = made()
    assert again.training.history == first.training.history
    assert load_result(space.runs, TAG).run() == first.result.run() == again.result.run()
    trained = (space.model_folder("tiny/train", TAG) / "training.json").stat().st_mtime_ns
    forget_model(space)
    assert made().result.metadata == again.result.metadata
    assert trained < path.stat().st_mtime_ns


def test_a_training_that_a_repository_keeps_is_read_at_another_output(
    tmp_path, space, made, encoder, tiny_beir_folder, monkeypatch
):
    first = made()
    (space.root / "notebooks").mkdir()
    (space.root / "pyproject.toml").touch()
    monkeypatch.chdir(space.root / "notebooks")
    settings = dict(settings_table(space.profile))
    other = Workspace.open(str(tiny_beir_folder), str(tmp_path / "other"), settings)
    assert other.profile == space.profile
    data, dev = other.training_data()
    collection = other.collection()
    again = train_and_search(other, TAG, encoder, data, SETTINGS, dev, collection, notebook="other")
    assert again.result.metadata == first.result.metadata
    assert again.result.path == tmp_path / "other" / "runs" / "tiny" / f"{TAG}.trec.gz"
    assert again.training.history == first.training.history
    assert not other.models.exists()
    changed = replace(SETTINGS, learning_rate=2e-2)
    trained = train_and_search(other, TAG, encoder, data, changed, dev, collection, notebook="other")
    assert other.models.exists()
    assert trained.training.finished["settings"]["learning_rate"] == 2e-2
    assert load_result(space.runs, TAG).metadata == first.result.metadata  # the repository's stays as it was


def test_a_training_with_other_settings_lies_beside_and_neither_is_made_twice(space, made):
    def models():
        return {path: path.stat().st_mtime_ns for path in space.models.rglob("model/training.json")}

    first, changed = made(), replace(SETTINGS, learning_rate=2e-2)
    before = models()
    second = made(settings=changed)
    both = models()
    assert (len(before), len(both)) == (1, 2)
    assert before.items() <= both.items()
    assert first.training.folder == space.model_folder("tiny/train", TAG) != second.training.folder
    assert second.training.folder.name.startswith(f"{TAG}-")
    for settings, made_before in ((SETTINGS, first), (changed, second)):
        again = made(settings=settings)
        assert again.training.history == made_before.training.history
        assert again.result.metadata["config"] == made_before.result.metadata["config"]
        assert models() == both


@pytest.mark.parametrize("text", ['{"settings": {', "{}"])
def test_a_damaged_kept_training_is_named(space, made, text):
    made()
    space.kept_training(TAG).write_text(text)
    with pytest.raises(ValueError, match=escape(f"{space.kept_training(TAG)}: damaged")):
        made()


def test_two_encoders_are_made_and_read_alike(space, made, encoder):
    other = encoder.with_settings()
    first = made(encoder=TwoEncoders(encoder, other))
    assert first.training.finished["start"]["encoders"] == 2
    assert first.result.metadata["config"]["passage_max_length"] == 16
    forget_model(space)
    assert made(encoder=TwoEncoders(encoder, other)).result.metadata == first.result.metadata


def test_minutes_are_those_of_steps_and_evaluations():
    history = [
        {"loss": 1.0, "step": 10, "step_s": 3.0},
        {"eval_loss": 1.0, "step": 10, "eval_s": 12.0},
        {"loss": 1.0, "step": 15, "step_s": 3.6},
    ]
    assert Training(history, {}, Path()).minutes == pytest.approx((30 + 12 + 18) / 60)


def test_hits_come_from_the_whole_corpus_for_every_training_query(space):
    data, _ = space.training_data()
    hits, corpus = bm25_hits(space, data, depth=4)
    assert corpus == {passage.doc_id: passage.contents for passage in space.collection().passages}
    assert set(hits) == {example.query_id for example in data.examples}
    assert max(map(len, hits.values())) <= 4
    mined = mine_negatives(data, corpus, hits, num_negatives=2, ranks=(1, 4))
    assert mined.negatives


def test_a_query_that_finds_its_answer_alone_gets_passages_at_random(space):
    data, _ = space.training_data()
    first, second, *others = data.examples
    alone = replace(first, query=data.passages[next(iter(first.positives))])
    nothing = replace(second, query="qqqq")
    data = replace(data, examples=[alone, nothing, *others])
    corpus = space.training_splits["train"]
    plain = BM25.build(corpus, space.index_folder(corpus)).search(
        {e.query_id: e.query for e in data.examples}, 1
    )
    assert plain[alone.query_id].keys() <= alone.positives.keys()
    assert not plain[nothing.query_id]
    hits, texts = bm25_hits(space, data, depth=1)
    assert {q: dict(list(found.items())[: len(plain[q])]) for q, found in hits.items()} == plain
    assert set(hits[nothing.query_id].values()) == {0.0}
    hits, texts = bm25_hits(space, data, depth=len(texts))
    mined = mine_negatives(data, texts, hits, num_negatives=2, ranks=(1, len(texts)))
    assert {len(mined.negatives[e.query_id]) for e in (alone, nothing)} == {2}


def test_hits_for_queries_of_another_collection_come_from_its_own_corpus(space, tiny_beir_folder, tmp_path):
    other = Path(shutil.copytree(tiny_beir_folder, tmp_path / "other"))
    lines = (other / "corpus.jsonl").read_text().splitlines(keepends=True)
    (other / "corpus.jsonl").write_text("".join(lines).replace("Two doses", "Two or three doses"))
    learner = Workspace(replace(space.profile, training_set=f"{other}/train"), space.root)
    data, _ = learner.training_data()
    hits, corpus = bm25_hits(learner, data, depth=4)
    assert corpus["d4"] == "Vaccines Two or three doses protect better than one."
    assert space.collection().by_id["d4"].contents not in corpus.values()
    assert set(hits) == {example.query_id for example in data.examples} == {"t1", "t2", "t4"}
    by_hand = BM25.build(learner.training_splits["train"], tmp_path / "index")
    found = {query_id: {d: s for d, s in scores.items() if s > 0} for query_id, scores in hits.items()}
    assert found == by_hand.search({e.query_id: e.query for e in data.examples}, 4)


def test_the_sample_holds_what_is_relevant_and_what_bm25_finds_first(space):
    _, dev = space.training_data()
    asked = {query_id: "masks, two doses, zinc" for query_id in dev.queries}
    dev = replace(dev, all_queries={**dev.all_queries, **asked})
    smallest = validation_sample(Workspace(replace(space.profile, validation_passages=4), space.root), dev)
    [(query_id, grades)] = smallest.qrels.items()
    assert set(smallest.doc_ids) == {"d1", "d4", "d6"} | set(grades)
    sample = validation_sample(space, dev)
    assert len(sample.passages) == 5
    assert list(sample.queries) == [query_id]
    hits = BM25.build(dev, space.index_folder(dev)).search(sample.queries, HARD_DEPTH)
    assert len(hits[query_id]) == HARD_DEPTH
    assert {*hits[query_id], *dev.qrels[query_id]} <= set(sample.doc_ids)
    assert sample.fingerprint == validation_sample(space, dev).fingerprint


def test_profiles_with_samples_of_other_sizes_share_one_of_a_given_size(space):
    _, dev = space.training_data()
    other = Workspace(
        replace(space.profile, validation_passages=space.profile.validation_passages + 1), space.root
    )
    assert validation_sample(space, dev).fingerprint != validation_sample(other, dev).fingerprint
    assert validation_sample(space, dev, 5).fingerprint == validation_sample(other, dev, 5).fingerprint


def test_live_curves_are_one_figure_drawn_again():
    source = """
from types import SimpleNamespace
from dpr.experiments.finetuning import LiveCurves
history = []
curves = LiveCurves("nDCG@10", "a run")
for step in (1, 2, 3):
    history += [
        {"loss": 1 / step, "learning_rate": 1e-5, "grad_norm": 1.0, "chance_loss": 2.0, "step": step},
        {"eval_loss": 1.0, "eval_chance_loss": 2.0, "eval_nDCG@10": step / 10, "step": step},
    ]
    curves.on_evaluate(None, SimpleNamespace(log_history=history), None)
curves.show(history)
"""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)])
    NotebookClient(notebook, kernel_name="python3", timeout=120).execute()
    [output] = notebook.cells[0].outputs
    assert "image/png" in output["data"]
