"""Encoding to disk: the vectors of encoding in memory, however often it is stopped, killed or out of room."""

import fcntl
import json
import os
import random
import shutil
from collections import namedtuple
from dataclasses import replace
from re import escape

import numpy as np
import pytest
from killing import in_children

from dpr.data.collection import Collection, Passage
from dpr.models.bi_encoder import BiEncoder
from dpr.models.two_encoders import TwoEncoders
from dpr.search.encoding import encode_collection
from dpr.search.index import build_index

PLAIN = {"pooling": "mean", "query_max_length": 8, "passage_max_length": 16}
LINE = "masks filter droplets and vaccines protect the lungs of bats while zinc shortens a cold"
WORDS = LINE.split()
KILLS = int(os.environ.get("DPR_KILLS", "6"))
COMPLETE = ["manifest.json", "timing.json", "vectors.npy"]
OF_THE_ENCODER = ("normalize", "passage_prompt", "passage_max_length", "precision")
CHUNKED = {"overflow": "max_chunk", "poolings": ["mean", "concat-last-2"], "dtype": "float16"}

# Encodes as each order tells it.
SERVER = """
import json, resource, sys
from pathlib import Path

from dpr.data.collection import Collection, Passage
from dpr.models.bi_encoder import BiEncoder
from dpr.search.encoding import encode_collection
from killing import serve

encoder = BiEncoder.from_pretrained(Path(sys.argv[1]), device="cpu", **json.loads(sys.argv[2]))

def encode(order):
    collection = Collection("made", [Passage(*passage) for passage in order["passages"]], {}, {"test": {}})
    if order["file_bytes"]:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_bytes"], hard))
    encode_collection(order["folder"], encoder, collection, **order["settings"])
    return "done"

serve(encode, lambda order: len(list(Path(order["folder"]).glob("shard-??????.json"))))
"""


@pytest.fixture(scope="module")
def in_a_child(plain_folder):
    """`encode_collection` in another process: "done", the signal that killed it, or its error."""
    with in_children(SERVER, str(plain_folder), json.dumps(PLAIN)) as ask:

        def encode(folder, collection, kill_before=0, kill_after=(), file_bytes=0, **settings):
            kills = {"kill_before": kill_before, "kill_after": kill_after, "file_bytes": file_bytes}
            return ask(folder=str(folder), passages=collection.passages, settings=settings, **kills)

        yield encode


@pytest.fixture
def encoder(plain_folder) -> BiEncoder:
    """The tiny model with lengths 8 and 16."""
    return BiEncoder.from_pretrained(plain_folder, device="cpu", **PLAIN)


def made(num_passages, longest=40):
    """A collection of passages of up to so many words, in no order of length."""
    texts = [" ".join((WORDS * 9)[i % 16 : i % 16 + 1 + i * 7 % longest]) for i in range(num_passages)]
    return Collection("made", [Passage(f"d{i}", "", text) for i, text in enumerate(texts)], {}, {"test": {}})


def texts_of(collection):
    """What is encoded of each passage."""
    return [passage.contents for passage in collection.passages]


def contents(folder):
    """File names with their bytes."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def shards(folder):
    """Which complete shards there are, and when each was written."""
    complete = sorted(path.with_suffix(".npy") for path in folder.glob("shard-??????.json"))
    return {path.name: path.stat().st_mtime_ns for path in complete}


def watch(encoder, most=10**9):
    """Count the rows that the model is given from now on; it fails when they are more than `most`."""
    rows = []

    def note(model, args, kwargs):
        rows.append(len(kwargs["input_ids"]))
        if sum(rows) > most:
            raise RuntimeError("stopped")

    hook = encoder.model.register_forward_pre_hook(note, with_kwargs=True)
    return rows, hook


def stop_after(most, folder, encoder, collection, **settings):
    """Encode until the model fails, which it does after so many passages."""
    hook = watch(encoder, most)[1]
    with pytest.raises(RuntimeError, match="stopped"):
        encode_collection(folder, encoder, collection, **settings)
    hook.remove()


# --- what is encoded ---------------------------------------------------------------------------


@pytest.mark.parametrize("shard_size", [1, 5, 23, 1000, None])
def test_vectors_on_disk_are_those_in_memory(encoder, tmp_path, shard_size):
    collection = made(23)
    encoded = encode_collection(tmp_path / "new" / "vectors", encoder, collection, shard_size=shard_size)
    expected = encoder.encode_passages(texts_of(collection))
    assert (encoded.rows.dtype, encoded.rows.shape) == (np.float32, (23, 16))
    np.testing.assert_allclose(encoded.vectors, expected, rtol=0, atol=1e-5)
    assert (encoded.doc_ids, encoded.chunks) == (collection.doc_ids, False)
    assert encoded.folder == tmp_path / "new" / "vectors"
    assert sorted(contents(encoded.folder)) == COMPLETE


def test_vectors_stay_on_disk_and_are_encoded_once(encoder, tmp_path):
    collection = made(9)
    rows, _ = watch(encoder)
    first = encode_collection(tmp_path, encoder, collection)
    before = contents(tmp_path)
    second = encode_collection(str(tmp_path), encoder, collection)
    assert sum(rows) == 9
    assert contents(tmp_path) == before
    for encoded in (first, second):
        assert isinstance(encoded.rows, np.memmap)
        assert isinstance(encoded.vectors, np.memmap)
        assert encoded.rows.filename == tmp_path / "vectors.npy"
    np.testing.assert_array_equal(second.rows, first.rows)
    assert (second.doc_ids, second.columns) == (first.doc_ids, first.columns)


def test_half_the_bytes_are_the_same_vectors_rounded(encoder, tmp_path):
    single = encode_collection(tmp_path / "single", encoder, made(23), shard_size=5)
    half = encode_collection(tmp_path / "half", encoder, made(23), shard_size=5, dtype="float16")
    assert half.rows.dtype == np.float16
    np.testing.assert_array_equal(half.rows, single.rows.astype(np.float16))


def test_a_batch_has_no_more_tokens_than_asked_for(encoder, tmp_path):
    rows, _ = watch(encoder)
    passages = [Passage(f"d{i}", "", "zinc " * 30) for i in range(10)]
    collection = Collection("alike", passages, {}, {"test": {}})
    encode_collection(tmp_path, encoder, collection, batch_tokens=3 * 16, shard_size=5)
    assert sorted(rows) == [2, 2, 3, 3]


@pytest.mark.parametrize("shard_size", [1, 5, 23])
def test_chunks_on_disk_are_those_in_memory_each_with_its_document(encoder, tmp_path, shard_size):
    collection = made(23)
    encoded = encode_collection(
        tmp_path, encoder, collection, overflow="max_chunk", shard_size=shard_size, batch_tokens=50
    )
    vectors, owners = encoder.encode_chunks(texts_of(collection))
    assert encoded.chunks
    assert encoded.doc_ids == [collection.doc_ids[owner] for owner in owners]
    assert len(encoded.doc_ids) > 40
    np.testing.assert_allclose(encoded.vectors, vectors, rtol=0, atol=1e-5)
    assert sorted(contents(tmp_path)) == sorted([*COMPLETE, "owners.npy"])


def test_poolings_lie_side_by_side_and_are_told_apart(encoder, tmp_path):
    poolings = ["max", "concat-last-2", "cls"]
    encoded = encode_collection(tmp_path, encoder, made(23), poolings=poolings, shard_size=5)
    assert encoded.rows.shape == (23, 64)
    assert list(encoded.columns) == poolings
    for pooling in poolings:
        expected = encoder.with_settings(pooling=pooling).encode_passages(texts_of(made(23)))
        np.testing.assert_allclose(encoded.of(pooling), expected, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(encoded.vectors, encoded.of("max"))
    with pytest.raises(ValueError, match=escape(f"{tmp_path} has the poolings {poolings}, not 'mean'") + "$"):
        encoded.of("mean")


def test_a_pair_of_encoders_encodes_with_its_passage_side(encoder, tmp_path):
    passage = encoder.with_settings(pooling="cls", passage_prompt="passage: ")
    encoded = encode_collection(tmp_path, TwoEncoders(encoder, passage), made(9))
    np.testing.assert_allclose(encoded.vectors, passage.encode_passages(texts_of(made(9))), rtol=0, atol=1e-5)
    assert list(encoded.columns) == ["cls"]
    np.testing.assert_array_equal(encode_collection(tmp_path, passage, made(9)).rows, encoded.rows)


@pytest.mark.parametrize("overflow", ["truncate", "max_chunk"])
def test_what_is_encoded_can_be_searched(encoder, tmp_path, overflow):
    collection = made(23)
    encoded = encode_collection(tmp_path, encoder, collection, overflow=overflow, dtype="float16")
    index = build_index("exact", encoded.vectors, encoded.doc_ids, "cosine", chunks=encoded.chunks)
    queries = encoder.with_settings(query_max_length=16).encode_queries(texts_of(collection)[:4])
    run = index.search_run(collection.doc_ids[:4], queries, 5, "tiny", frozenset())
    assert all(len(hits) == 5 and hits[doc_id] > 0.999 for doc_id, hits in run.items())


def test_the_speed_is_that_of_all_attempts_together(encoder, tmp_path):
    stop_after(12, tmp_path, encoder, made(23), shard_size=5)
    for path in tmp_path.glob("shard-*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": 1000}))
    encoded = encode_collection(tmp_path, encoder, made(23), shard_size=5)
    seconds = json.loads((tmp_path / "timing.json").read_text())["seconds"]
    assert 2000 < seconds < 3000
    assert encoded.texts_per_s == 23 / seconds
    assert encode_collection(tmp_path, encoder, made(23), shard_size=5).texts_per_s == encoded.texts_per_s
    assert encoded.texts_per_s > 0


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("field", "changed"),
    [
        ("passage_max_length", {"passage_max_length": 12}),
        ("normalize", {"normalize": True}),
        ("model", {"passage_prompt": "passage: "}),
        ("num_passages", {"passages": made(22).passages}),
        ("collection", {"passages": made(24).passages[1:]}),
        ("precision", {"precision": "bfloat16"}),
        ("poolings", {"poolings": ["cls"]}),
        ("poolings", {"poolings": ["mean", "cls"]}),
        ("overflow", {"overflow": "max_chunk"}),
        ("dtype", {"dtype": "float16"}),
        ("shard_size", {"shard_size": 4}),
        ("batch_tokens", {"batch_tokens": 99}),
    ],
)
def test_a_folder_of_another_model_collection_or_setting_is_refused(
    encoder, plain_folder, tmp_path, field, changed, complete
):
    if complete:
        encode_collection(tmp_path, encoder, made(23), shard_size=5)
    else:
        stop_after(12, tmp_path, encoder, made(23), shard_size=5)
    before = contents(tmp_path)
    settings = {"shard_size": 5, **changed}
    collection = replace(made(23), passages=settings.pop("passages", made(23).passages))
    loaded = {name: settings.pop(name) for name in changed if name in OF_THE_ENCODER}
    other = BiEncoder.from_pretrained(plain_folder, device="cpu", **{**PLAIN, **loaded})
    message = (
        escape(f"{tmp_path / 'manifest.json'}: {field} is ") + ".*, now it would be .*; give another folder"
    )
    with pytest.raises(ValueError, match=message):
        encode_collection(tmp_path, other, collection, **settings)
    assert contents(tmp_path) == before


def test_vectors_of_another_format_are_refused(encoder, tmp_path):
    encode_collection(tmp_path, encoder, made(9))
    about = json.loads((tmp_path / "manifest.json").read_text())
    found = {**about, "format": 17}, {name: about[name] for name in about if name != "format"}
    for changed in found:
        (tmp_path / "manifest.json").write_text(json.dumps(changed))
        message = f"format is {changed.get('format')}, now it would be {about['format']};"
        with pytest.raises(ValueError, match=message):
            encode_collection(tmp_path, encoder, made(9))


def test_poolings_in_another_order_are_refused(encoder, tmp_path):
    encode_collection(tmp_path, encoder, made(9), poolings=["mean", "cls"])
    with pytest.raises(ValueError, match="poolings is "):
        encode_collection(tmp_path, encoder, made(9), poolings=["cls", "mean"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "dtype must be one of ('float32', 'float16'), got 'int8'"),
        ({"overflow": "cut"}, "overflow must be one of ('truncate', 'max_chunk'), got 'cut'"),
        ({"poolings": ["last"]}, "got 'last'"),
        ({"poolings": ["sum-last-3"]}, "sum-last-3: tiny-bert has 2 layers, not 3"),
        ({"batch_tokens": -1}, "batch_tokens must be at least 1, got -1"),
        ({"batch_tokens": 0}, "batch_tokens must be at least 1, got 0"),
        ({"shard_size": -1}, "shard_size must be at least 1, got -1"),
        ({"shard_size": 0}, "shard_size must be at least 1, got 0"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_and_leaves_the_folder_free(encoder, tmp_path, settings, message):
    with pytest.raises(ValueError, match=escape(message)):
        encode_collection(tmp_path / "vectors", encoder, made(9), **settings)
    assert encode_collection(tmp_path / "vectors", encoder, made(9)).rows.shape == (9, 16)


def test_a_folder_that_holds_something_else_is_refused(encoder, tmp_path):
    (tmp_path / "chapter.md").write_text("years of work")
    with pytest.raises(ValueError, match=escape(f"{tmp_path} has no manifest.json: it holds something else")):
        encode_collection(tmp_path, encoder, made(9))
    assert contents(tmp_path) == {"chapter.md": b"years of work"}


def test_a_folder_that_another_process_encodes_into_is_refused(encoder, tmp_path):
    stop_after(12, tmp_path, encoder, made(23), shard_size=5)
    (tmp_path / ".shard-000002.npy.dpr-0123abcd.npy").write_text("being written")
    with (tmp_path / "lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        before = contents(tmp_path)
        message = escape(f"{tmp_path}: another process is writing into this folder; wait for it")
        with pytest.raises(ValueError, match=message):
            encode_collection(tmp_path, encoder, made(23), shard_size=5)
    assert contents(tmp_path) == before
    encode_collection(tmp_path, encoder, made(23), shard_size=5)
    assert sorted(contents(tmp_path)) == COMPLETE


# --- stopped and taken up again ----------------------------------------------------------------


@pytest.mark.parametrize("most", [0, 4, 5, 12, 22])
def test_after_an_error_only_what_is_missing_is_encoded(encoder, tmp_path, most):
    whole = encode_collection(tmp_path / "whole", encoder, made(23), shard_size=5)
    stop_after(most, tmp_path / "stopped", encoder, made(23), shard_size=5)
    kept = shards(tmp_path / "stopped")
    assert list(kept) == [f"shard-{number:06}.npy" for number in range(most // 5)]
    rows, _ = watch(encoder)
    encoded = encode_collection(tmp_path / "stopped", encoder, made(23), shard_size=5)
    assert sum(rows) == 23 - 5 * len(kept)
    np.testing.assert_array_equal(encoded.rows, whole.rows)
    assert sorted(contents(tmp_path / "stopped")) == COMPLETE


def all_but_assembled(in_a_child, folder, collection, file_bytes, **settings):
    """Encode every shard and no more: the vectors of them all are larger than a file may be."""
    outcome = in_a_child(folder, collection, file_bytes=file_bytes, **settings)
    assert outcome[0] == "OSError"
    return outcome


@pytest.mark.parametrize("missing", [[0], [3], [1, 2], [0, 4]])
def test_shards_missing_anywhere_are_encoded_again_and_no_others(encoder, in_a_child, tmp_path, missing):
    settings = {"shard_size": 5, "overflow": "max_chunk"}
    whole = encode_collection(tmp_path / "whole", encoder, made(25), **settings)
    owners = np.load(tmp_path / "whole" / "owners.npy")
    all_but_assembled(in_a_child, tmp_path / "stopped", made(25), 2000, **settings)
    assert len(shards(tmp_path / "stopped")) == 5
    for number in missing:
        (tmp_path / "stopped" / f"shard-{number:06}.npy").unlink()
    rows, _ = watch(encoder)
    encoded = encode_collection(tmp_path / "stopped", encoder, made(25), **settings)
    assert sum(rows) == np.isin(owners // 5, missing).sum()
    np.testing.assert_array_equal(encoded.rows, whole.rows)
    assert encoded.doc_ids == whole.doc_ids


@pytest.mark.parametrize("name", ["shard-000002.npy", "shard-000002.owners.npy"])
@pytest.mark.parametrize("damage", ["cut", "emptied", "overwritten", "flipped", "lost"])
def test_a_damaged_shard_is_named_and_without_it_the_rest_is_kept(
    encoder, in_a_child, tmp_path, name, damage
):
    settings = {"shard_size": 5, "overflow": "max_chunk"}
    whole = encode_collection(tmp_path / "whole", encoder, made(25), **settings)
    folder = tmp_path / "stopped"
    all_but_assembled(in_a_child, folder, made(25), 2000, **settings)
    written, shard = (folder / name).read_bytes(), folder / "shard-000002.npy"
    damaged = {"cut": written[:-4], "emptied": b"", "overwritten": b"\0" * len(written)}
    damaged["flipped"] = written[:-3] + bytes([written[-3] ^ 1]) + written[-2:]
    if damage == "lost":
        (folder / "shard-000002.owners.npy").unlink()
    else:
        (folder / name).write_bytes(damaged[damage])
    kept = shards(folder)
    message = escape(f"{shard}: damaged; delete it and run again, the rest is kept")
    with pytest.raises(ValueError, match=message):
        encode_collection(folder, encoder, made(25), **settings)
    assert shards(folder) == kept
    assert not (folder / "vectors.npy").exists()
    shard.unlink()
    rows, _ = watch(encoder)
    encoded = encode_collection(folder, encoder, made(25), **settings)
    assert sum(rows) == (np.load(tmp_path / "whole" / "owners.npy") // 5 == 2).sum()
    np.testing.assert_array_equal(encoded.rows, whole.rows)
    assert encoded.doc_ids == whole.doc_ids


def test_shards_that_a_killed_process_left_beside_the_whole_are_removed(encoder, tmp_path):
    encode_collection(tmp_path, encoder, made(9))
    before = contents(tmp_path)
    for name in ("shard-000000.npy", "shard-000000.owners.npy"):
        (tmp_path / name).write_text("left over")
    encode_collection(tmp_path, encoder, made(9))
    assert contents(tmp_path) == before


def test_files_of_others_that_are_named_like_shards_stay(encoder, tmp_path):
    stop_after(12, tmp_path, encoder, made(23), shard_size=5)
    theirs = ["shard-000000.npy.bak", "shard-000099.npy", "shard-notes.txt"]
    for name in theirs:
        (tmp_path / name).write_text("theirs")
    for _ in range(2):
        encode_collection(tmp_path, encoder, made(23), shard_size=5)
        assert sorted(contents(tmp_path)) == sorted([*COMPLETE, *theirs])


def flip(path, at):
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[at] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["vectors.npy", "owners.npy"])
@pytest.mark.parametrize("at", [0, 200, -1])
def test_a_flipped_bit_of_what_is_complete_is_named(encoder, tmp_path, name, at):
    encode_collection(tmp_path, encoder, made(9), overflow="max_chunk")
    flip(tmp_path / name, at)
    before = contents(tmp_path)
    message = f"{tmp_path / name}: damaged; delete the folder {tmp_path} and encode again"
    with pytest.raises(ValueError, match=escape(message)):
        encode_collection(tmp_path, encoder, made(9), overflow="max_chunk")
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["manifest.json", "timing.json"])
@pytest.mark.parametrize("text", ["", '{"seconds": 1', "[]", "\0" * 9])
def test_a_damaged_description_is_named(encoder, tmp_path, name, text):
    encode_collection(tmp_path, encoder, made(9))
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=escape(f"{tmp_path / name}: damaged")):
        encode_collection(tmp_path, encoder, made(9))


def test_vectors_that_lost_their_timing_are_read_and_their_speed_is_unknown(encoder, tmp_path):
    whole = encode_collection(tmp_path, encoder, made(9), overflow="max_chunk")
    (tmp_path / "timing.json").unlink()
    before = contents(tmp_path)
    rows, _ = watch(encoder)
    encoded = encode_collection(tmp_path, encoder, made(9), overflow="max_chunk")
    assert rows == []
    assert np.isnan(encoded.texts_per_s)
    assert encoded.doc_ids == whole.doc_ids
    np.testing.assert_array_equal(encoded.rows, whole.rows)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("changed", [np.zeros((8, 16), np.float32), np.zeros((9, 16), np.float16)])
def test_vectors_of_another_shape_or_type_than_the_manifest_says_are_named(encoder, tmp_path, changed):
    encode_collection(tmp_path, encoder, made(9))
    (tmp_path / "timing.json").unlink()  # and with it the checksum
    np.save(tmp_path / "vectors.npy", changed)
    message = escape(f"{tmp_path / 'vectors.npy'}: {changed.dtype} {changed.shape} is not what manifest.json")
    with pytest.raises(ValueError, match=message):
        encode_collection(tmp_path, encoder, made(9))


# --- killed ------------------------------------------------------------------------------------


def test_hidden_files_of_others_stay(encoder, tmp_path):
    encode_collection(tmp_path, encoder, made(5))
    (tmp_path / "vectors.npy").unlink()
    (tmp_path / ".env").write_text("theirs")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    encode_collection(tmp_path, encoder, made(5))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".env", ".ipynb_checkpoints", *COMPLETE]


def test_killed_again_and_again_it_ends_with_the_same_bytes(in_a_child, tmp_path):
    collection, chance = made(24 * KILLS), random.Random(KILLS)
    folder, settings = tmp_path / "killed", {"shard_size": 2, **CHUNKED}
    assert in_a_child(tmp_path / "whole", collection, **settings) == "done"
    kept = {}
    for _ in range(KILLS):
        moment = chance.randint(1, 4), chance.uniform(0, 0.01)  # more shards, and then seconds
        assert in_a_child(folder, collection, kill_after=moment, **settings) == "signal 9"
        assert kept.items() <= shards(folder).items()
        assert len(shards(folder)) > len(kept)
        kept = shards(folder)
    assert in_a_child(folder, collection, **settings) == "done"
    whole, killed = contents(tmp_path / "whole"), contents(folder)
    assert sorted(killed) == sorted(whole) == sorted([*COMPLETE, "owners.npy"])
    for name in ("vectors.npy", "owners.npy", "manifest.json"):
        assert killed[name] == whole[name]


def test_killed_before_any_of_its_file_operations_it_ends_with_the_same_bytes(in_a_child, tmp_path):
    collection, settings = made(5), {"shard_size": 3, "overflow": "max_chunk"}
    assert in_a_child(tmp_path / "whole", collection, **settings) == "done"
    whole, outcomes = contents(tmp_path / "whole"), {}
    for number in range(1, 1000):
        folder = tmp_path / f"{number}"
        if in_a_child(folder, collection, kill_before=number, **settings) == "done":
            break
        outcomes[number] = in_a_child(folder, collection, **settings)
        if outcomes[number] == "done":
            ended = contents(folder)
            ended.pop("lock", None)  # a kill between the last shard's removal and its own may leave it
            outcomes[number] = sorted(ended) == sorted(whole)
            outcomes[number] &= all(ended[name] == whole[name] for name in ("vectors.npy", "owners.npy"))
    assert number > 30
    assert {number: outcome for number, outcome in outcomes.items() if outcome is not True} == {}


# --- no room -----------------------------------------------------------------------------------


def test_a_shard_that_cannot_be_written_is_named_and_those_before_are_kept(in_a_child, tmp_path):
    texts = [" ".join((WORDS * 9)[: 10 * number]) for number in range(1, 13)]  # chunks: more and more
    passages = [Passage(f"d{number}", "", text) for number, text in enumerate(texts)]
    collection = Collection("growing", passages, {}, {"test": {}})
    folder, settings = tmp_path / "full", {"shard_size": 2, "overflow": "max_chunk"}
    assert in_a_child(tmp_path / "whole", collection, **settings) == "done"
    error, message, file = in_a_child(folder, collection, file_bytes=1000, **settings)
    kept = shards(folder)
    assert 2 <= len(kept) <= 5
    assert (error, file) == ("OSError", str(folder / f"shard-{len(kept):06}.npy"))
    assert "the shards before are kept: make room and run again" in message
    assert not list(folder.glob(".*"))
    assert in_a_child(folder, collection, file_bytes=1000, **settings)[0] == "OSError"
    assert shards(folder) == kept
    assert in_a_child(folder, collection, **settings) == "done"
    for name in ("vectors.npy", "owners.npy"):
        assert contents(folder)[name] == contents(tmp_path / "whole")[name]


@pytest.mark.parametrize("overflow", ["truncate", "max_chunk"])
def test_vectors_that_cannot_be_put_together_are_named_and_all_shards_kept(in_a_child, tmp_path, overflow):
    folder, settings = tmp_path / "full", {"shard_size": 4, "overflow": overflow}
    assert in_a_child(tmp_path / "whole", made(25), **settings) == "done"
    error, message, file = all_but_assembled(in_a_child, folder, made(25), 1500, **settings)
    assert (error, file) == ("OSError", str(folder / "vectors.npy"))
    assert "the shards before are kept: make room and run again" in message
    kept = shards(folder)
    assert len(kept) == 7
    assert not list(folder.glob(".*"))
    assert all_but_assembled(in_a_child, folder, made(25), 1500, **settings)[2] == file
    assert shards(folder) == kept
    assert in_a_child(folder, made(25), **settings) == "done"
    assert sorted(contents(folder)) == sorted(contents(tmp_path / "whole"))
    assert contents(folder)["vectors.npy"] == contents(tmp_path / "whole")["vectors.npy"]


def test_owners_that_cannot_be_put_together_are_named_and_all_shards_kept(in_a_child, tmp_path):
    collection = Collection(
        "long", [Passage(f"d{i}", "", "zinc " * 230) for i in range(12)], {}, {"test": {}}
    )
    settings = {"shard_size": 1, "overflow": "max_chunk", "dtype": "float16"}
    error, message, file = all_but_assembled(in_a_child, tmp_path, collection, 1300, **settings)
    assert len(shards(tmp_path)) == 12
    assert (error, file) == ("OSError", str(tmp_path / "owners.npy"))
    assert "make room and run again" in message
    assert in_a_child(tmp_path, collection, **settings) == "done"


@pytest.mark.parametrize(
    ("settings", "row_bytes"),
    [({}, 64), ({"dtype": "float16"}, 32), ({"poolings": ["cls", "concat-last-2"]}, 192)],
)
def test_too_little_room_is_refused_before_anything_is_encoded(
    encoder, tmp_path, monkeypatch, settings, row_bytes
):
    def leave(free):
        usage = namedtuple("usage", ["total", "used", "free"])(10**12, 0, free)
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)

    settings |= {"shard_size": 5}
    rows, _ = watch(encoder)
    leave(2 * 23 * row_bytes - 1)  # once in shards, once put together
    with pytest.raises(OSError, match=r"encoding needs 0 MiB, 0 MiB are free") as caught:
        encode_collection(tmp_path, encoder, made(23), **settings)
    assert caught.value.filename == str(tmp_path)
    assert (rows, shards(tmp_path)) == ([], {})
    leave(2 * 23 * row_bytes)
    stop_after(12, tmp_path, encoder, made(23), **settings)
    leave((2 * 23 - 10) * row_bytes - 1)  # two shards are there
    with pytest.raises(OSError, match="are free"):
        encode_collection(tmp_path, encoder, made(23), **settings)
    leave((2 * 23 - 10) * row_bytes)
    assert len(encode_collection(tmp_path, encoder, made(23), **settings).rows) == 23


@pytest.mark.parametrize("passage", [Passage("bad", "cut \ud83d", "here"), Passage("bad", "", "\ude00")])
def test_half_a_character_is_named_by_its_document_before_anything_is_written(encoder, tmp_path, passage):
    collection = Collection("halves", [Passage("good", "", "masks"), passage], {}, {"test": {}})
    with pytest.raises(ValueError, match="halves: document bad holds half a character"):
        encode_collection(tmp_path / "new", encoder, collection)
    assert list(tmp_path.iterdir()) == []
