"""What a generator learns from, and BM25 over expanded passages: tuned on dev, reported on test."""

import json
import shutil
from dataclasses import replace
from re import escape

import pytest

from dpr.data.examples import Example
from dpr.data.training_data import TrainingData, as_collection
from dpr.evaluation.metrics import evaluate
from dpr.experiments.doc2query import (
    KeptGenerator,
    fold_of,
    generator_data,
    search_and_save_bm25,
    split_in_folds,
    write_by_other_fold,
)
from dpr.experiments.profiles import Profile
from dpr.experiments.results import load_result
from dpr.experiments.workspace import Workspace
from dpr.generation.decoding import Decoding
from dpr.generation.expansion import expand
from dpr.generation.generate import write_queries
from dpr.generation.generator import QueryGenerator
from dpr.search.bm25 import BM25, K1, B
from dpr.training.settings import GeneratorSettings

QUERIES = {"d4": ["zinc and vaccines"], "d5": ["where does sunlight come from"]}
SHORT = GeneratorSettings(num_steps=2, batch_size=2, learning_rate=1e-2, eval_every=1, log_every=1)
SAMPLED = Decoding("sample", 3, 6)
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


def test_a_generator_learns_from_all_sets_there_are_but_no_evaluation_query(space, tmp_path, monkeypatch):
    pairs = tmp_path / "data" / "pairs"
    pairs.mkdir(parents=True)
    lines = [f"question {n}\tanswer {n}\n" for n in range(12)]
    (pairs / "pairs.tsv").write_text(
        "".join([*lines, "Do masks  help\tYes.\n", "what do masks filter\tAir.\n"])
    )
    monkeypatch.setenv("DPR_DATA_DIR", str(tmp_path / "data"))
    learn, select, missing = generator_data(space, ["pairs", "others"], most_queries=100, held_out=100)
    assert missing == ["others"]
    assert learn.name == "tiny/train+pairs"
    asked = {e.query for part in (learn, select) for e in part.examples}
    assert asked == {
        *(f"question {n}" for n in range(12)),
        *(space.collection().all_queries[q] for q in ("t1", "t2", "t4")),
    }
    assert not {e.query for e in learn.examples} & {e.query for e in select.examples}
    assert len(select.examples) == 3  # a fifth of 15
    learn, select, _ = generator_data(space, ["pairs"], most_queries=7, held_out=2)
    fewer = {e.query for part in (learn, select) for e in part.examples}
    assert len(fewer & {f"question {n}" for n in range(12)}) >= 5  # 7 of the pairs, two may be left out
    assert fewer >= {space.collection().all_queries[q] for q in ("t1", "t2", "t4")}
    assert len(fewer) <= 3 + 7


def test_two_collections_that_name_each_other_share_the_data_without_eithers_queries(
    space, tmp_path, monkeypatch, tiny_beir_folder
):
    other = tmp_path / "data" / "other"
    shutil.copytree(tiny_beir_folder, other)
    lines = [json.loads(line) for line in (other / "queries.jsonl").read_text().splitlines()]
    for line in lines:  # its dev and test queries are other than those of tiny
        line["text"] = line["text"] if line["_id"].startswith("t") else f"{line['text']} again"
    asked = [line["text"] for line in lines if not line["_id"].startswith("t")]
    lines.append({"_id": "t9", "text": asked[0].upper()})  # also asked in evaluation
    (other / "queries.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with (other / "qrels" / "train.tsv").open("a") as stream:
        stream.write("t9\td1\t1\n")
    shutil.copytree(tiny_beir_folder, tmp_path / "data" / "tiny")
    monkeypatch.setenv("DPR_DATA_DIR", str(tmp_path / "data"))
    sets = ["tiny/train", "other/train"]
    made = [
        generator_data(Workspace(Profile(name, name), tmp_path / "out"), sets, most_queries=1, held_out=1)
        for name in ("tiny", "other")
    ]
    (learn, select, _), (again, select_again, _) = made
    assert learn.name == "tiny/train+other/train"
    assert (learn.fingerprint, select.fingerprint) == (again.fingerprint, select_again.fingerprint)
    used = {e.query.lower() for e in (*learn.examples, *select.examples)}
    assert used
    assert not used & {text.lower() for text in asked}


def made(passages):
    """Those passages, each asked for by two queries, as training data and as a collection."""
    examples = [
        Example(f"q{n}-{way[:4]}", f"{way} {text}", {f"d{n}": 1, f"d{(n + 1) % len(passages)}": 1})
        for n, text in enumerate(passages)
        for way in ("what about", "tell me of")
    ]
    data = TrainingData("made", examples, {f"d{n}": text for n, text in enumerate(passages)})
    return data, as_collection(data)


TEXTS = [f"text number {n} says this and that" for n in range(12)]


def test_what_is_learnt_and_what_is_selected_by_are_of_different_folds():
    data, collection = made(TEXTS)
    learn, select = data.split(0.3, 0)
    pairs = split_in_folds(collection, learn, select)
    assert {fold_of(text) for text in TEXTS} == {0, 1}
    assert fold_of(f" {TEXTS[0].upper()} ") == fold_of(TEXTS[0])
    for fold, (learnt, selected) in enumerate(pairs):
        assert {fold_of(text) for text in learnt.passages.values()} == {1 - fold}
        assert {fold_of(text) for text in selected.passages.values()} == {fold}
    for whole, parts in ((learn, [p[0] for p in pairs]), (select, [p[1] for p in pairs])):
        found = [(e.query_id, d) for part in parts for e in part.examples for d in e.positives]
        assert sorted(found) == sorted((e.query_id, d) for e in whole.examples for d in e.positives)


def test_without_a_passage_in_common_all_is_learnt_from():
    data, _ = made(TEXTS)
    learn, select = data.split(0.3, 0)
    _, elsewhere = made(["another text altogether"])
    assert split_in_folds(elsewhere, learn, select) == [(learn, select)]


def test_each_passage_is_written_for_by_the_writer_that_has_not_seen_it(space, plain_folder):
    data, collection = made(TEXTS)
    pairs = split_in_folds(collection, *data.split(0.3, 0))
    start = QueryGenerator.warm_started(
        plain_folder, 1, device="cpu", passage_max_length=12, query_max_length=6
    )
    writers = [
        KeptGenerator(space, f"w-{fold}", start, learn, SHORT, select)
        for fold, (learn, select) in enumerate(pairs)
    ]
    found = write_by_other_fold(writers, "sampled", collection, SAMPLED)
    assert list(found.queries) == collection.doc_ids
    for fold, writer in enumerate(writers):
        own = [p for p in collection.passages if fold_of(p.contents) == fold]
        alone = writer.write("again", replace(collection, passages=own), SAMPLED)
        assert {d: found.queries[d] for d in alone.queries} == alone.queries
    assert found.passages_per_s > 0
    assert (
        write_by_other_fold(writers[:1], "whole", collection, SAMPLED).queries.keys() == found.queries.keys()
    )


@pytest.fixture
def writer(space, plain_folder):
    """Makes the writer, or one with other settings."""
    lengths = {"passage_max_length": 12, "query_max_length": 6}
    start = QueryGenerator.warm_started(plain_folder, 1, device="cpu", **lengths)
    learn, select, _ = generator_data(space, [], most_queries=1, held_out=1)

    def make(settings=SHORT, tag="tiny-writer", callbacks=()):
        return KeptGenerator(space, tag, start, learn, settings, select, callbacks)

    return make


class Refuses:
    """Stands where training would be called, which must not be."""

    def __call__(self, *args, **kwargs):
        raise AssertionError("trained again")


def test_a_writer_and_its_queries_are_made_once_and_read_without_the_model(space, writer, monkeypatch):
    first = writer()
    collection = space.collection()
    written = first.write("sampled", collection, SAMPLED)
    assert set(written.queries) | {"d1"} >= {
        p.doc_id for p in collection.passages if len(p.text.split()) >= 5
    }
    assert all(len(found) == 3 for found in written.queries.values())
    assert first.training.best["step"] == first.training.best_step
    shutil.rmtree(space.models)
    shutil.rmtree(space.root / "build" / "queries")
    monkeypatch.setattr("dpr.experiments.doc2query.train_generator", Refuses())
    again = writer()
    assert again.training.history == first.training.history
    assert again.training.finished == first.training.finished
    assert again.training.minutes == first.training.minutes > 0
    assert again.write("sampled", collection, SAMPLED) == written


@pytest.mark.parametrize("damage", ["flipped", "cut", "other queries"])
def test_saved_queries_that_have_changed_are_written_again(space, writer, damage):
    written = writer().write("sampled", space.collection(), SAMPLED)
    path = space.runs / "queries" / "tiny-writer-sampled.jsonl.gz"
    whole = path.read_bytes()
    if damage == "other queries":
        write_queries(path, {doc_id: ["other"] for doc_id in written.queries})
    else:
        flipped = bytes([whole[-9] ^ 1]) + whole[-8:]
        path.write_bytes(whole[:-9] + flipped if damage == "flipped" else whole[:-9])
    assert writer().write("sampled", space.collection(), SAMPLED).queries == written.queries
    assert path.read_bytes() == whole


@pytest.mark.parametrize("name", ["training/tiny-writer.json", "queries/tiny-writer-sampled.json"])
@pytest.mark.parametrize("text", ['{"made_of": {', "{}"])
def test_a_damaged_description_of_what_a_writer_made_is_named(space, writer, name, text):
    writer().write("sampled", space.collection(), SAMPLED)
    (space.runs / name).write_text(text)
    with pytest.raises(ValueError, match=escape(f"{space.runs / name}: damaged")):
        writer().write("sampled", space.collection(), SAMPLED)


def test_a_writer_whose_tag_or_queries_name_would_lead_out_of_its_folder_is_refused(space, writer):
    with pytest.raises(ValueError, match=escape("tag '../../x' becomes a file's name")):
        writer(tag="../../x")
    with pytest.raises(ValueError, match=escape("tag and name 'tiny-writer-../x' becomes a file's name")):
        writer().write("../x", space.collection(), SAMPLED)


@pytest.mark.parametrize(
    "changed", [{"decoding": replace(SAMPLED, top_k=3)}, {"overflow": "max_chunk"}, {"fewer": True}]
)
def test_queries_made_otherwise_are_written_anew(space, writer, changed):
    collection = space.collection()
    first = writer().write("sampled", collection, SAMPLED)
    if changed.pop("fewer", False):
        collection = collection.sample(3, 1)
    shutil.rmtree(space.models)  # it is trained again for them
    how = {"decoding": SAMPLED} | changed
    other = writer().write("sampled", collection, **how)
    assert other != first  # its speed is another, if nothing else
    assert writer().write("sampled", collection, **how) == other


def test_a_writer_with_other_settings_is_trained_anew(space, writer):
    first = writer()
    shutil.rmtree(space.models)
    other = writer(replace(SHORT, learning_rate=2e-2))
    assert other.training.finished["settings"]["learning_rate"] == 2e-2
    assert other.training.history != first.training.history
