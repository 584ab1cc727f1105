"""Every public function called with a wrong argument in each place: refused in words, or taken."""

import warnings

import numpy as np
import pytest

import dpr
from dpr.data.collection import Collection, Passage
from dpr.generation.decoding import Decoding
from dpr.training.settings import (
    DistillationSettings,
    GeneratorSettings,
    RerankerSettings,
    TrainingSettings,
)

WRONG = {
    "None": None,
    "a number": 7,
    "a negative number": -1,
    "a fraction": 1.5,
    "NaN": float("nan"),
    "text": "text",
    "an empty text": "",
    "bytes": b"bytes",
    "an empty list": [],
    "a list of None": [None],
    "a list of numbers": [1, 2],
    "a tuple of tuples": (("d1", "", "text"),),
    "an empty mapping": {},
    "a mapping of None": {"q1": None},
    "a mapping of mappings of text": {"q1": {"d1": "high"}},
    "a mapping of lists": {"q1": [1]},
    "an array": np.zeros((2, 3)),
    "an array of text": np.array(["a", "b"]),
    "an object": object(),
    "a function": len,
}


@pytest.fixture(scope="module")
def calls(tmp_path_factory, plain_folder, t5_folder):
    """name → a function and arguments that it accepts."""
    folder = tmp_path_factory.mktemp("right")
    how = {"query_max_length": 8, "passage_max_length": 16}
    tiny_encoder = dpr.BiEncoder.from_pretrained(plain_folder, "cpu", pooling="mean", **how)
    tiny_generator = dpr.QueryGenerator.from_pretrained(t5_folder, "cpu", **how)
    tiny_reranker = dpr.Reranker.from_encoder(tiny_encoder, 24)
    tiny_reranker.save(folder / "reranker")
    passages = [Passage(f"d{i}", f"title {i}", f"the text of passage {i} about bees") for i in range(8)]
    queries = {f"q{i}": f"which passage is {i}" for i in range(6)}
    qrels = {f"q{i}": {f"d{i}": 1} for i in range(6)}
    collection = Collection(
        "tiny", passages, queries, dict.fromkeys(("train", "dev", "test"), qrels), "train"
    )
    data = dpr.TrainingData.from_collection(collection)
    run = {q: {f"d{i}": 1.0 / (i + 1) for i in range(8)} for q in queries}
    emb = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    index = dpr.build_index("exact", emb, collection.doc_ids, "cosine")
    bm25 = dpr.BM25.build(collection, folder / "bm25")
    texts = {d.doc_id: d.contents for d in passages}
    mined = dpr.mine_negatives(data, texts, run, num_negatives=1).negatives
    made = {"greedy": Decoding("greedy", max_length=3)}
    dpr.write_run(folder / "run.trec", run)
    (folder / "qrels.txt").write_text("q1 0 d1 1\n")
    (folder / "answers.jsonl").write_text('{"_id": "q1", "answers": ["bees"]}\n')
    (folder / "topics.tsv").write_text("q1\tbees\n")
    (folder / "t.tsv").write_text("what do bees eat\tnectar of flowers\n")
    (folder / "beir" / "qrels").mkdir(parents=True)
    (folder / "beir" / "corpus.jsonl").write_text('{"_id": "d1", "text": "bees"}\n')
    (folder / "beir" / "queries.jsonl").write_text('{"_id": "q1", "text": "bees"}\n')
    (folder / "beir" / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    index.save(folder / "index")
    small = {"num_steps": 1, "batch_size": 2}
    return {
        "BM25.build": (dpr.BM25.build, {"collection": collection, "folder": folder / "bm25"}),
        "BM25.search": (bm25.search, {"queries": queries, "depth": 3, "k1": 0.9, "b": 0.4}),
        "BM25.tune": (bm25.tune, {"dev": collection, "k1_grid": (0.9,), "b_grid": (0.4,), "metric": "RR@10"}),
        "Collection": (
            Collection,
            {"name": "c", "passages": passages, "all_queries": queries, "all_qrels": {"test": qrels}},
        ),
        "Collection.from_texts": (
            Collection.from_texts,
            {
                "texts": ["bees", "wax"],
                "titles": ["", None],
                "ids": ["d1", "d2"],
                "queries": {"q1": "bees"},
                "qrels": {"q1": {"d1": 1}},
                "name": "mine",
            },
        ),
        "Collection.from_records": (
            Collection.from_records,
            {
                "records": [{"id": "d1", "body": "bees", "head": "wax"}],
                "doc_id": "id",
                "text": "body",
                "title": "head",
                "queries": {"q1": "bees"},
                "qrels": [{"query-id": "q1", "corpus-id": "d1", "score": 1}],
                "name": "mine",
            },
        ),
        "Collection.from_tsv": (
            Collection.from_tsv,
            {
                "path": folder / "topics.tsv",
                "queries": folder / "topics.tsv",
                "qrels": {"q1": {"q1": 1}},
                "name": "mine",
            },
        ),
        "Collection.with_split": (collection.with_split, {"split": "test"}),
        "Collection.sample": (collection.sample, {"num_passages": 3, "num_queries": 2, "keep": ["d1"]}),
        "Collection.holds": (collection.holds, {"query_id": "q1", "text": "bees"}),
        "CorpusFile": (dpr.CorpusFile, {"path": folder / "beir" / "corpus.jsonl", "name": "mine"}),
        "Decoding": (Decoding, {"method": "sample", "num_queries": 2, "top_p": 0.9, "temperature": 1.0}),
        "DistillationSettings": (
            DistillationSettings,
            {"num_epochs": 1.0, "teacher_temperature": 0.1, "frozen_passages": True},
        ),
        "GeneratorSettings": (
            GeneratorSettings,
            {"num_epochs": 1.0, "batch_size": 2, "label_smoothing": 0.1},
        ),
        "TrainingSettings": (
            TrainingSettings,
            {"num_steps": 1, "batch_size": 2, "learning_rate": 0.1, "precision": "float32", "seed": 0},
        ),
        "Run": (dpr.Run, {"hits": run, "tag": "t"}),
        "Run.truncated": (dpr.Run(run).truncated, {"depth": 2}),
        "Index.search": (index.search, {"query_emb": emb[:2], "depth": 2}),
        "Index.search_run": (
            index.search_run,
            {"query_ids": ["q1", "q2"], "query_emb": emb[:2], "depth": 2, "tag": "t", "own_documents": set()},
        ),
        "Index.load": (dpr.Index.load, {"folder": folder / "index"}),
        "TrainingData.split": (data.split, {"share": 0.5, "seed": 0}),
        "TrainingData.from_collection": (dpr.TrainingData.from_collection, {"collection": collection}),
        "TrainingData.with_negatives": (data.with_negatives, {"negatives": mined, "passages": texts}),
        "BiEncoder.from_pretrained": (
            dpr.BiEncoder.from_pretrained,
            {"name_or_folder": plain_folder, "pooling": "mean", **how},
        ),
        "BiEncoder.encode_queries": (tiny_encoder.encode_queries, {"queries": ["bees"], "batch_tokens": 64}),
        "BiEncoder.encode_passages": (tiny_encoder.encode_passages, {"passages": ["bees"]}),
        "BiEncoder.encode_chunks": (tiny_encoder.encode_chunks, {"passages": ["bees"]}),
        "QueryGenerator.generate": (
            tiny_generator.generate,
            {"passages": ["bees"], "decoding": made["greedy"], "seed": 0},
        ),
        "Reranker.from_encoder": (
            dpr.Reranker.from_encoder,
            {"encoder": tiny_encoder, "max_length": 24, "head": "cls", "seed": 0, "precision": "float32"},
        ),
        "Reranker.from_pretrained": (
            dpr.Reranker.from_pretrained,
            {
                "name_or_folder": folder / "reranker",
                "max_length": 24,
                "precision": "float32",
            },
        ),
        "Reranker.predict": (
            tiny_reranker.predict,
            {"pairs": [("bees", "wax")], "overflow": "truncate", "batch_tokens": 64},
        ),
        "RerankerSettings": (
            RerankerSettings,
            {"num_epochs": 1.0, "loss": "mse", "num_negatives": 2, "label_temperature": 0.5},
        ),
        "TwoEncoders": (dpr.TwoEncoders, {"query": tiny_encoder, "passage": tiny_encoder}),
        "ann_report": (
            dpr.ann_report,
            {
                "collection": collection,
                "passage_emb": emb,
                "query_emb": emb[:6],
                "similarity": "cosine",
                "grid": [("exact", {})],
                "depth": 100,
                "rounds": 1,
            },
        ),
        "audit_negatives": (
            dpr.audit_negatives,
            {"data": data, "passages": texts, "negatives": mined, "qrels": qrels},
        ),
        "build_index": (
            dpr.build_index,
            {"kind": "exact", "passage_emb": emb, "doc_ids": collection.doc_ids, "similarity": "dot"},
        ),
        "compare": (
            dpr.compare,
            {"qrels": qrels, "runs": {"a": run, "b": run}, "baseline": "a", "metric": "RR@10"},
        ),
        "encode_collection": (
            dpr.encode_collection,
            {
                "folder": folder / "vectors",
                "encoder": tiny_encoder,
                "collection": collection,
                "shard_size": 4,
                "engine": "local",
                "workers": None,
            },
        ),
        "VectorShards": (dpr.VectorShards, {"parts": [np.eye(3, dtype=np.float32)]}),
        "evaluate": (dpr.evaluate, {"qrels": qrels, "run": run, "metrics": ["RR@10"]}),
        "expand": (dpr.expand, {"collection": collection, "queries": {"d1": ["bees"]}, "num_queries": 1}),
        "fuse": (dpr.fuse, {"runs": [run, run], "tag": "t", "k": 60}),
        "fuse_scores": (dpr.fuse_scores, {"runs": [run, run], "tag": "t"}),
        "generate_queries": (
            dpr.generate_queries,
            {
                "folder": folder / "written",
                "generator": tiny_generator,
                "collection": collection,
                "decoding": made["greedy"],
                "seed": 0,
                "engine": "local",
                "workers": None,
            },
        ),
        "load_collection": (dpr.load_collection, {"name_or_folder": folder / "beir", "split": "test"}),
        "load_training_data": (
            dpr.load_training_data,
            {"name_or_file": folder / "t.tsv", "max_bad_lines": 0},
        ),
        "merge_parts": (dpr.merge_parts, {"runs": [run], "tag": "t", "depth": 3}),
        "mine_negatives": (
            dpr.mine_negatives,
            {
                "data": data,
                "passages": texts,
                "run": run,
                "num_negatives": 1,
                "ranks": (1, 5),
                "max_share": 0.9,
            },
        ),
        "plan_building": (dpr.plan_building, {"num_passages": 100_000, "dim": 64}),
        "plan_memory": (dpr.plan_memory, {"num_passages": 100_000, "dim": 64}),
        "qrels_from_answers": (
            dpr.qrels_from_answers,
            {"collection": collection, "answers": {"q1": ["bees"]}, "titles": {"q1": "title 1"}},
        ),
        "read_answers": (dpr.read_answers, {"path": folder / "answers.jsonl"}),
        "read_qrels": (dpr.read_qrels, {"path": folder / "qrels.txt"}),
        "read_run": (dpr.read_run, {"path": folder / "run.trec"}),
        "read_topics": (dpr.read_topics, {"path": folder / "topics.tsv", "field": "query"}),
        "rerank": (
            dpr.rerank,
            {
                "run": run,
                "collection": collection,
                "reranker": tiny_reranker,
                "depth": 2,
                "tag": "t",
                "overflow": "max_chunk",
                "batch_tokens": 64,
            },
        ),
        "train": (
            dpr.train,
            {
                "encoder": tiny_encoder,
                "data": data,
                "folder": folder / "t",
                "settings": TrainingSettings(**small),
            },
        ),
        "train_generator": (
            dpr.train_generator,
            {
                "generator": tiny_generator,
                "data": data,
                "folder": folder / "g",
                "settings": GeneratorSettings(**small),
            },
        ),
        "train_reranker": (
            dpr.train_reranker,
            {
                "reranker": tiny_reranker,
                "data": data.with_negatives(mined, texts),
                "folder": folder / "r",
                "settings": RerankerSettings(**small),
            },
        ),
        "write_run": (dpr.write_run, {"path": folder / "w.trec", "run": run, "tag": "t"}),
    }


SLOW = {
    "train",
    "train_generator",
    "train_reranker",
}  # right arguments train a model; wrong ones must not get that far


def test_every_public_function_is_called_here(calls):
    called = {name.split(".")[0] for name in calls}
    losses = {"in_batch_negatives_loss", "kl_divergence_loss", "margin_mse_loss"}
    assert set(dpr.__all__) - called <= {"Workspace", "Passage", "BiEncoder"} | losses


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_a_wrong_argument_is_taken_or_refused_in_words(calls, tmp_path, monkeypatch, wrong):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    bad = []
    for name, (function, right) in calls.items():
        for argument in right:
            if name in SLOW and argument in ("folder",):
                continue
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    function(**{**right, argument: wrong})
            except (ValueError, FileNotFoundError) as error:
                if not str(error).strip():
                    bad.append(f"{name}({argument}): {type(error).__name__} without words")
            except Exception as error:
                bad.append(f"{name}({argument}): {type(error).__name__}: {error}"[:200])
    assert not bad, "\n".join(bad)
