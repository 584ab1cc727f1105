"""Dense passage retrieval: collections, BM25, bi-encoders, rerankers, training, TREC runs and evaluation.

Each public name is imported on first use, so `import dpr` is quick and loads no model library.
"""

import importlib

_HOMES = {
    "BM25": "search.bm25",
    "BiEncoder": "models.bi_encoder",
    "Collection": "data.collection",
    "CorpusFile": "data.corpus_file",
    "Decoding": "generation.decoding",
    "DistillationSettings": "training.settings",
    "GeneratorSettings": "training.settings",
    "Index": "search.index",
    "Passage": "data.collection",
    "QueryGenerator": "generation.generator",
    "Reranker": "reranking.reranker",
    "RerankerSettings": "training.settings",
    "Run": "data.trec",
    "TrainingData": "data.training_data",
    "TrainingSettings": "training.settings",
    "TwoEncoders": "models.two_encoders",
    "VectorShards": "search.vector_shards",
    "Workspace": "experiments.workspace",
    "ann_report": "search.ann",
    "audit_negatives": "training.negatives",
    "build_index": "search.index",
    "compare": "evaluation.significance",
    "encode_collection": "search.encoding",
    "evaluate": "evaluation.metrics",
    "expand": "generation.expansion",
    "fuse": "search.fusion",
    "fuse_scores": "search.fusion",
    "generate_queries": "generation.generate",
    "in_batch_negatives_loss": "training.losses",
    "kl_divergence_loss": "training.distillation",
    "load_collection": "data.loading",
    "load_training_data": "data.loading",
    "margin_mse_loss": "training.distillation",
    "merge_parts": "search.fusion",
    "mine_negatives": "training.negatives",
    "plan_building": "search.ann",
    "plan_memory": "search.ann",
    "qrels_from_answers": "data.answers",
    "read_answers": "data.answers",
    "read_qrels": "data.trec",
    "read_run": "data.trec",
    "read_topics": "data.trec",
    "rerank": "reranking.rerank",
    "train": "training.bi_encoder",
    "train_generator": "generation.training",
    "train_reranker": "reranking.training",
    "write_run": "data.trec",
}
__all__ = list(_HOMES)


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"dpr has no {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(f"dpr.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
