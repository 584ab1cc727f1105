"""Shards made on Ray: the bytes of one process, whatever is killed, and whoever begins or ends."""

import json
import os
import signal
import subprocess
import sys
import time
from re import escape

import pytest

from dpr.data.collection import Collection, Passage
from dpr.data.corpus_file import CorpusFile
from dpr.generation.decoding import Decoding
from dpr.generation.endpoint import EndpointWriter
from dpr.generation.generate import generate_queries
from dpr.generation.generator import QueryGenerator
from dpr.models.bi_encoder import BiEncoder
from dpr.models.two_encoders import TwoEncoders
from dpr.search.encoding import encode_collection

LINE = "masks filter droplets and vaccines protect the lungs of bats while zinc shortens a cold"
WORDS = LINE.split()
HOW = {"overflow": "max_chunk", "poolings": ["mean", "concat-last-2"], "dtype": "float16", "shard_size": 5}
PLAIN = {"pooling": "mean", "query_max_length": 8, "passage_max_length": 16}
DECODING = Decoding(num_queries=2, max_length=4)

# Encodes a corpus on a Ray of its own, with a second's rest before each batch.
ALONE = """
import sys, time

from dpr.data.corpus_file import CorpusFile
from dpr.models.bi_encoder import BiEncoder
from dpr.search.encoding import encode_collection

model, corpus, folder = sys.argv[1:]
how = {"pooling": "mean", "query_max_length": 8, "passage_max_length": 16}
encoder = BiEncoder.from_pretrained(model, device="cpu", **how)
encoder.model.register_forward_pre_hook(lambda module, args: time.sleep(1))
encode_collection(folder, encoder, CorpusFile(corpus), shard_size=5, engine="ray", workers=2)
"""


@pytest.fixture(scope="module")
def cluster():
    """A cluster of two nodes with two CPUs each, to which this process is connected."""
    if os.environ.get("RAY_ADDRESS"):
        pytest.skip("RAY_ADDRESS is set: these tests start clusters of their own")
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    ray = pytest.importorskip("ray", reason="needs Ray: pip install 'ray[data]'")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    made.add_node(num_cpus=2)
    ray.init(address=made.address, logging_level="ERROR", log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def encoder(plain_folder) -> BiEncoder:
    return BiEncoder.from_pretrained(plain_folder, device="cpu", **PLAIN)


@pytest.fixture
def generator(t5_folder) -> QueryGenerator:
    lengths = {"passage_max_length": 10, "query_max_length": 6}
    return QueryGenerator.from_pretrained(t5_folder, device="cpu", **lengths)


def made(num_passages):
    """Passages of 1 to 40 words, in no order of length."""
    texts = [" ".join((WORDS * 9)[i % 15 : i % 15 + 1 + i * 7 % 40]) for i in range(num_passages)]
    return Collection("made", [Passage(f"d{i}", "", text) for i, text in enumerate(texts)], {}, {"test": {}})


def on_disk(collection, path):
    """The same passages as a corpus in a file."""
    lines = [json.dumps({"_id": p.doc_id, "title": p.title, "text": p.text}) for p in collection.passages]
    path.write_text("\n".join(lines))
    return CorpusFile(path)


def contents(folder):
    """File names with their bytes; only the seconds that shards took may differ."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"} | {
        "manifest.json": (folder / "manifest.json").read_bytes()
    }


def whole_shards(folder):
    """The names of the shards that are whole."""
    return sorted(path.stem for path in folder.glob("shard-*.json"))


def stop(encoder, folder, most):
    """Have the model refuse a batch once there are so many whole shards."""

    def refuse(module, args):
        if len(list(folder.glob("shard-*.json"))) >= most:
            raise ValueError(f"stopped after {most} shards")

    return encoder.model.register_forward_pre_hook(refuse)


def test_what_one_process_began_is_finished_on_ray_though_a_worker_is_killed(cluster, encoder, tmp_path):
    collection = made(33)
    whole = encode_collection(tmp_path / "whole", encoder, collection, **HOW)
    stopping = stop(encoder, tmp_path / "begun", 2)
    with pytest.raises(ValueError, match="stopped after 2 shards"):
        encode_collection(tmp_path / "begun", encoder, collection, **HOW)
    stopping.remove()
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "begun").glob("shard-*.npy")}
    assert len(kept) == 4  # vectors and owners
    killed, seen = tmp_path / "killed", tmp_path / "seen"
    seen.mkdir()

    def die_once(module, args):
        for path, when in kept.items():
            if path.stat().st_mtime_ns == when:
                (seen / path.name).touch()
        if not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    encoder.model.register_forward_pre_hook(die_once)
    corpus = on_disk(collection, tmp_path / "made.jsonl")
    pair = TwoEncoders(encoder.with_settings(pooling="mean"), encoder)
    finished = encode_collection(tmp_path / "begun", pair, corpus, engine="ray", workers=2, **HOW)
    assert killed.exists()
    assert len(list(seen.iterdir())) == 4
    assert contents(tmp_path / "begun") == contents(tmp_path / "whole")
    assert finished.doc_ids == whole.doc_ids
    assert encoder.model.device.type == "cpu"


def test_a_workers_error_is_raised_and_what_ray_began_one_process_finishes(cluster, encoder, tmp_path):
    collection = made(33)
    encode_collection(tmp_path / "whole", encoder, collection, **HOW)
    stopping = stop(encoder, tmp_path / "begun", 3)
    with pytest.raises(ValueError, match=r"^stopped after 3 shards$") as raised:
        encode_collection(tmp_path / "begun", encoder, collection, engine="ray", workers=3, **HOW)
    assert type(raised.value) is ValueError
    stopping.remove()
    kept = whole_shards(tmp_path / "begun")
    assert 3 <= len(kept) < 7
    rows = []
    encoder.model.register_forward_pre_hook(
        lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    found = encode_collection(tmp_path / "begun", encoder, collection, **HOW)
    assert sum(rows) < len(found.rows) - 5 * (len(kept) - 1)
    assert contents(tmp_path / "begun") == contents(tmp_path / "whole")


def test_queries_drawn_on_ray_are_those_of_one_process(cluster, generator, tmp_path):
    collection = made(20)
    how = {"seed": 3, "min_words": 6, "shard_size": 4}
    corpus = on_disk(collection, tmp_path / "made.jsonl")
    here = generate_queries(tmp_path / "here", generator, collection, DECODING, **how)
    there = generate_queries(tmp_path / "ray", generator, corpus, DECODING, engine="ray", workers=2, **how)
    assert there.written == here.written
    assert there.num_skipped == here.num_skipped > 0
    assert contents(tmp_path / "ray") == contents(tmp_path / "here")
    assert len(contents(tmp_path / "ray")) > 3
    again = generate_queries(tmp_path / "ray", generator, collection, DECODING, **how)
    assert again.written == here.written


def test_more_workers_than_the_cluster_can_hold_are_refused(cluster, encoder, tmp_path):
    message = "4 workers need 5 CPUs, the Ray cluster has 4; give fewer workers"
    with pytest.raises(ValueError, match=escape(message)):
        encode_collection(tmp_path, encoder, made(9), engine="ray", workers=4)


def test_after_a_killed_driver_a_second_run_makes_only_what_is_missing(
    cluster, encoder, plain_folder, tmp_path
):
    corpus, folder = on_disk(made(40), tmp_path / "made.jsonl"), tmp_path / "vectors"
    encode_collection(tmp_path / "whole", encoder, corpus, shard_size=5)
    alone = [sys.executable, "-c", ALONE, str(plain_folder), str(tmp_path / "made.jsonl"), str(folder)]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    first = subprocess.Popen(alone, **quiet)
    until = time.monotonic() + 300
    while len(whole_shards(folder)) < 2 and first.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    first.kill()
    printed, kept, note = first.communicate()[0], whole_shards(folder), tmp_path / "note"
    assert 2 <= len(kept) < 8, printed
    others = [line for line in printed.splitlines() if line.strip() and "passages: " not in line]
    assert [line for line in others if "Set ray log level" not in line] == []

    def count(module, args, kwargs):
        with note.open("a") as stream:
            stream.write("." * len(kwargs["input_ids"]))

    encoder.model.register_forward_pre_hook(count, with_kwargs=True)
    encode_collection(folder, encoder, corpus, shard_size=5, engine="ray", workers=2)
    assert 0 < len(note.read_text()) <= 40 - 5 * len(kept)
    assert contents(folder) == contents(tmp_path / "whole")


# --- what needs no Ray -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"engine": "spark"}, "engine must be one of ('local', 'ray'), got 'spark'"),
        ({"workers": 2}, "workers must be at least 1 and are for engine 'ray', got 2 for 'local'"),
        ({"engine": "ray", "workers": 0}, "workers must be at least 1 and are for engine 'ray', got 0"),
    ],
)
def test_an_engine_that_cannot_be_is_refused_before_anything_is_written(
    encoder, generator, tmp_path, how, message
):
    with pytest.raises(ValueError, match=escape(message)):
        encode_collection(tmp_path / "vectors", encoder, made(9), **how)
    with pytest.raises(ValueError, match=escape(message)):
        generate_queries(tmp_path / "queries", generator, made(9), DECODING, **how)
    assert not list(tmp_path.iterdir())


def test_without_ray_the_message_says_what_to_install(encoder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        ValueError, match=escape("engine 'ray' needs the package ray: `pip install 'ray[data]'`")
    ):
        encode_collection(tmp_path / "vectors", encoder, made(9), engine="ray")


def test_a_writer_without_a_model_stays_in_its_process(tmp_path):
    pytest.importorskip("ray", reason="needs Ray: pip install 'ray[data]'")
    writer = EndpointWriter("m", "http://127.0.0.1:1/v1", tmp_path / "journal")
    with pytest.raises(
        ValueError, match="engine 'ray' sends a model to its workers, a EndpointWriter has none"
    ):
        generate_queries(tmp_path / "queries", writer, made(9), DECODING, engine="ray")
    assert not (tmp_path / "queries").exists()
