"""The full-size task, small: `trec-covid` from servers of the same layouts, a model of the same shape."""

import hashlib
import io
import zipfile
from dataclasses import replace
from functools import partial

import pytest

from dpr.data import download
from dpr.evaluation.significance import compare_per_query
from dpr.experiments.finetuning import train_and_search, validation_sample
from dpr.experiments.profiles import PROFILES
from dpr.experiments.results import load_results, save_mean_of_seeds, save_result
from dpr.experiments.workspace import Workspace
from dpr.models.bi_encoder import BiEncoder
from dpr.models.checkpoint import save_random
from dpr.search.bm25 import BM25
from dpr.search.fusion import fuse

WORDS = ["masks", "vitamin", "virus", "dose", "bats", "zinc", "cold", "skin", "soap", "droplets"]
NUM_TRIPLES = 60


@pytest.fixture
def net(server, monkeypatch, tmp_path, tiny_beir_folder):
    """A server with both data sets, and a current folder without any."""
    (tiny_beir_folder / "qrels" / "train.tsv").unlink()  # TREC-COVID has test judgements alone
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        for path in sorted(tiny_beir_folder.rglob("*.*")):
            opened.write(path, f"trec-covid/{path.relative_to(tiny_beir_folder)}")
    lines = [
        f"what is {WORDS[n % 10]} {n}\tabout {WORDS[n % 10]} {n}\tabout {WORDS[(n + 1) % 10]} {n}\n"
        for n in range(NUM_TRIPLES - 1)
    ]
    triples = "".join(
        [*lines, "Do masks help\tMasks do.\tZinc does.\n"]
    ).encode()  # a test query is among them
    server.files |= {"trec-covid.zip": archive.getvalue(), download.MSMARCO_TINY: triples}
    monkeypatch.setitem(download.BEIR_MD5, "trec-covid", hashlib.md5(archive.getvalue()).hexdigest())
    monkeypatch.setattr(download, "MSMARCO_TINY_BYTES", len(triples))
    monkeypatch.setattr(download, "MSMARCO_TINY_LINES", NUM_TRIPLES)
    for name in ("download_beir", "download_msmarco_tiny"):
        monkeypatch.setattr(download, name, partial(getattr(download, name), base_url=server.url))
    monkeypatch.delenv("DPR_DATA_DIR", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return server


@pytest.fixture
def profile(tmp_path):
    """`trec-covid` as it is, but for sizes: a plain checkpoint of 12 layers with random weights."""
    small = {"num_hidden_layers": 12, "hidden_size": 48, "num_attention_heads": 12, "intermediate_size": 96}
    save_random(tmp_path / "MiniLM-small", "all-MiniLM-L6-v2", 0, **small)
    whole = PROFILES["trec-covid"]
    steps = {"num_steps": 3, "batch_size": 8, "eval_every": 3, "log_every": 1}
    return replace(
        whole,
        base_model=str(tmp_path / "MiniLM-small"),
        training=replace(whole.training, **steps),
        validation_passages=20,
        validation_queries=5,
        seeds=(0, 1),
    )


def test_the_whole_path_from_downloads_to_a_tested_difference(net, profile, tmp_path):
    space = Workspace(profile, tmp_path / "out")
    collection = space.collection()
    bm25 = BM25.build(collection, space.index_folder(collection)).search(collection.queries, profile.depth)
    save_result(space.runs, bm25, collection, notebook="02_bm25", config={}, depth=profile.depth, wall_s=1.0)
    data, held_out = space.training_data()
    assert len(data.examples) + len(held_out.queries) == NUM_TRIPLES - 1
    assert data.preparation.dropped_queries == ("Do masks help",)
    assert all(len(example.negatives) == 1 for example in data.examples)
    lengths = {"query_max_length": profile.query_max_length, "passage_max_length": profile.passage_max_length}
    base = BiEncoder.from_pretrained(profile.base_model, device="cpu", pooling="mean", **lengths)
    sample = validation_sample(space, held_out)
    runs = [
        train_and_search(
            space,
            f"{base.name}-ft-s{seed}",
            base,
            data,
            replace(profile.training, seed=seed),
            sample,
            collection,
            notebook="04_finetune_biencoder",
        )
        for seed in profile.seeds
    ]
    mean = save_mean_of_seeds(f"{base.name}-ft", [run.result for run in runs])
    fused = fuse([bm25, mean.run()], tag="fused")
    results = load_results(space.runs)
    assert set(results) == {"bm25", f"{base.name}-ft"}
    per_query = {system: result.evaluation.per_query["nDCG@10"] for system, result in results.items()}
    [comparison] = compare_per_query(per_query, "bm25")
    assert comparison.mean == pytest.approx(mean.evaluation.means["nDCG@10"])
    assert set(fused) == set(collection.queries)
    assert runs[0].training.finished["data"]["name"] == "msmarco-tiny"
    assert runs[0].training.finished["start"]["pooling"] == "mean"
    assert sorted(path.name for path in (tmp_path / "here" / "data").iterdir()) == [
        "msmarco-tiny",
        "trec-covid",
    ]
