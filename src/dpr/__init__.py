"""Dense passage retrieval, measured: collections, BM25, bi-encoders, TREC runs, evaluation.

Names are loaded on first use, so `import dpr` is quick and brings no model library.
"""

import importlib

_HOMES = {
    "BM25": "bm25",
    "BiEncoder": "encoder",
    "Collection": "collection",
    "Decoding": "decoding",
    "GeneratorSettings": "training_settings",
    "Index": "index",
    "Passage": "collection",
    "QueryGenerator": "generator",
    "Run": "trec",
    "TrainingData": "training_data",
    "TrainingSettings": "training_settings",
    "TwoEncoders": "two_encoders",
    "Workspace": "workspace",
    "ann_report": "ann",
    "audit_negatives": "negatives",
    "build_index": "index",
    "compare": "significance",
    "encode_collection": "encoding",
    "evaluate": "evaluation",
    "expand": "expansion",
    "fuse": "significance",
    "generate_queries": "generation",
    "in_batch_negatives_loss": "losses",
    "load_collection": "loading",
    "load_training_data": "loading",
    "mine_negatives": "negatives",
    "plan_memory": "memory",
    "read_qrels": "trec",
    "read_run": "trec",
    "read_topics": "topics",
    "train": "training",
    "train_generator": "generator_training",
    "write_run": "trec",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"dpr has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"dpr.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
