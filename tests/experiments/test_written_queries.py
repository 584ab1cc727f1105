"""Writers and their queries: loaded or trained only if needed, kept by the text of each passage."""

import json
import shutil
from dataclasses import replace
from re import escape

import pytest
from made_models import save_checkpoint
from made_writers import save_causal

from dpr.data.collection import Passage
from dpr.experiments.profiles import Profile, QueryWriting
from dpr.experiments.workspace import Workspace
from dpr.experiments.written_queries import (
    keep_queries,
    kept_history,
    known_queries,
    prompted,
    sampling,
    text_hash,
    tuned,
    writer_data,
)
from dpr.generation.generate import read_queries, write_queries
from dpr.generation.llm import CausalGenerator
from dpr.generation.writer import Query
from dpr.training.settings import GeneratorSettings

SHORT = GeneratorSettings(num_steps=2, batch_size=2, learning_rate=1e-2, eval_every=1, log_every=1)


@pytest.fixture
def tiny_collection(with_dev):
    """That with dev queries, also for `tiny_beir_folder`."""
    return with_dev


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny causal model and a tiny T5 on disk."""
    folder = tmp_path_factory.mktemp("writers")
    save_causal(folder / "causal", "llama")
    save_checkpoint(folder / "t5", "t5", decoder_start_token_id=0)
    return folder


@pytest.fixture
def space(tmp_path, tiny_beir_folder, folders, monkeypatch):
    """A workspace whose writer is the causal model, and whose tuned one is the T5."""
    pairs = tmp_path / "data" / "pairs"
    pairs.mkdir(parents=True)
    lines = [f"question {n}\tanswer {n} is this\n" for n in range(12)]
    (pairs / "pairs.tsv").write_text("".join([*lines, "Do masks  help\tYes.\n"]))
    monkeypatch.setenv("DPR_DATA_DIR", str(tmp_path / "data"))
    writing = QueryWriting(
        writer=str(folders / "causal"),
        tuned=str(folders / "t5"),
        passage_max_length=12,
        query_max_length=6,
        num_queries=(1, 3),
        sets=("pairs", "others"),
        most_queries=10,
        held_out=3,
        training=SHORT,
    )
    return Workspace(Profile("tiny", str(tiny_beir_folder), depth=6, writing=writing), tmp_path / "out")


def never():
    raise AssertionError("the model was loaded again")


def test_queries_are_written_once_and_read_without_the_model(space):
    writer, collection = prompted(space), space.collection()
    assert writer.tag == "causal"
    first = keep_queries(space, writer, collection, sampling(space, 3))
    assert all(len(found) == 3 for found in first.queries.values())
    assert first.num_skipped == len(collection.passages) - len(first.queries)
    shutil.rmtree(space.root / "build")
    assert keep_queries(space, replace(writer, load=never), collection, sampling(space, 3)) == first
    kept = read_queries(space.runs / "queries" / "causal-sampled.jsonl.gz")
    for doc_id, found in first.written.items():
        texts = [query.text for query in kept[text_hash(collection.by_id[doc_id].contents)]]
        assert texts == [query.text for query in found]


def test_a_part_of_the_collection_and_a_changed_document_are_read_too(space):
    writer, collection = prompted(space), space.collection()
    first = keep_queries(space, writer, collection, sampling(space, 3))
    some = collection.sample(3, 1)
    again = keep_queries(space, replace(writer, load=never), some, sampling(space, 3))
    assert again.queries == {d: q for d, q in first.queries.items() if d in some.by_id}
    more = [Passage(f"n{n}", "", f"a text that nobody wrote for, number {n}") for n in range(9)]
    mixed = replace(collection, passages=[*collection.passages, *more])
    with pytest.raises(AssertionError, match="loaded again"):
        keep_queries(space, replace(writer, load=never), mixed, sampling(space, 3))


@pytest.mark.parametrize("changed", ["decoding", "prompt", "length"])
def test_queries_made_otherwise_are_written_anew(space, changed):
    collection, decoding = space.collection(), sampling(space, 3)
    first = keep_queries(space, prompted(space), collection, decoding)
    if changed == "decoding":
        decoding = replace(decoding, temperature=0.5)
    else:
        field = {"prompt": "none"} if changed == "prompt" else {"passage_max_length": 4}
        writing = replace(space.profile.writing, **field)
        space = replace(space, profile=replace(space.profile, writing=writing))
    other = keep_queries(space, prompted(space), collection, decoding)
    assert other.queries != first.queries
    assert keep_queries(space, replace(prompted(space), load=never), collection, decoding) == other


@pytest.mark.parametrize("damage", ["flipped", "cut", "other queries"])
def test_saved_queries_that_have_changed_are_written_again(space, damage):
    writer, collection, decoding = prompted(space), space.collection(), sampling(space, 3)
    written = keep_queries(space, writer, collection, decoding)
    path = space.runs / "queries" / "causal-sampled.jsonl.gz"
    whole = path.read_bytes()
    if damage == "other queries":
        write_queries(path, {key: [Query("other")] for key in read_queries(path)})
    else:
        flipped = bytes([whole[-9] ^ 1]) + whole[-8:]
        path.write_bytes(whole[:-9] + flipped if damage == "flipped" else whole[:-9])
    assert keep_queries(space, writer, collection, decoding).queries == written.queries
    assert path.read_bytes() == whole


@pytest.mark.parametrize("text", ['{"made_of": {', "{}"])
def test_a_damaged_description_of_what_was_written_is_named(space, text):
    keep_queries(space, prompted(space), space.collection(), sampling(space, 3))
    about = space.runs / "queries" / "causal-sampled.json"
    about.write_text(text)
    with pytest.raises(ValueError, match=escape(f"{about}: damaged")):
        keep_queries(space, prompted(space), space.collection(), sampling(space, 3))


def test_a_name_that_would_lead_out_of_the_folder_is_refused(space):
    with pytest.raises(ValueError, match=escape("tag and name 'causal-../x' becomes a file's name")):
        keep_queries(space, prompted(space), space.collection(), sampling(space, 3), "../x")


def test_another_prompt_has_a_tag_of_its_own(space):
    assert prompted(space, "good-bad").tag == "causal-good-bad"
    assert prompted(space, "good-bad").about["prompt"] != prompted(space).about["prompt"]
    loaded = prompted(space, "good-bad").load()
    assert isinstance(loaded, CausalGenerator)
    assert (loaded.config.prompt, loaded.config.passage_max_length) == ("good-bad", 12)


def test_a_writer_learns_from_the_sets_at_hand_but_from_no_query_of_the_collection(space):
    learn, select = writer_data(space)
    asked = {e.query for part in (learn, select) for e in part.examples}
    assert asked <= {f"question {n}" for n in range(12)}
    assert (len(asked), len(select.examples)) == (10, 2)
    assert learn.name == "pairs"
    writing = replace(space.profile.writing, sets=("others",))
    alone = replace(space, profile=replace(space.profile, writing=writing))
    with pytest.raises(FileNotFoundError, match="none of the sets to train a writer on is at hand: others"):
        writer_data(alone)


def test_a_tuned_writer_is_trained_if_it_must_write_and_its_history_is_kept(space):
    writer, collection = tuned(space), space.collection()
    assert kept_history(space, writer) is None
    first = keep_queries(space, writer, collection, sampling(space, 2))
    history = kept_history(space, writer)
    assert writer.tag == "t5-tuned"
    assert history.best["step"] == history.best_step
    assert {"eval_BLEU", "eval_ROUGE-L", "eval_passage gain"} <= history.best.keys()
    shutil.rmtree(space.models)
    assert keep_queries(space, replace(writer, load=never), collection, sampling(space, 2)) == first
    none = replace(space, profile=replace(space.profile, writing=QueryWriting()))
    with pytest.raises(ValueError, match=escape("profile tiny has no writer to tune (writing.tuned)")):
        tuned(none)


def test_a_causal_model_is_tuned_without_examples(space, folders):
    settings = replace(SHORT, lora_rank=2)
    writing = replace(space.profile.writing, tuned=str(folders / "causal"), training=settings)
    space = replace(space, profile=replace(space.profile, writing=writing))
    loaded = tuned(space).load()
    assert isinstance(loaded, CausalGenerator)
    assert loaded.config.prompt == "none"


def test_known_queries_are_those_of_all_splits_and_sets_at_hand(space, tmp_path):
    known = known_queries(space)
    collection = space.collection()
    assert set(known) == {"tiny train", "tiny dev", "tiny test"}
    texts = [text for found in known.values() for text in found]
    assert set(texts) == {collection.all_queries[q] for qs in collection.all_qrels.values() for q in qs}
    (tmp_path / "data" / "nfcorpus").mkdir()
    lines = [json.dumps({"_id": "1", "text": "is zinc good"}), json.dumps({"_id": "2", "text": "salt"})]
    (tmp_path / "data" / "nfcorpus" / "queries.jsonl").write_text("\n".join(lines))
    shutil.copytree(tmp_path / "data" / "pairs", tmp_path / "data" / "medquad-pairs")
    known = known_queries(space)
    assert known["nfcorpus"] == ["is zinc good", "salt"]
    assert "Do masks  help" in known["medquad-pairs"]
