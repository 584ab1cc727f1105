"""BM25 over expanded passages, tuned and kept like any other system."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from dpr.bm25 import BM25, K1, B, Tuning
from dpr.collection import Collection
from dpr.evaluation import evaluate
from dpr.results import Result, save_result
from dpr.trec import Run
from dpr.workspace import Workspace


@dataclass(frozen=True)
class Expanded:
    """BM25 over an expanded collection.

    Attributes:
        result: On the test queries.
        run: At full depth.
        tuning: k1 and b tried on dev by nDCG@10; None where there is no dev part to these passages.
        dev: Means on the dev queries with those, to choose among variants by; empty without tuning.
        index_bytes: Of the Lucene index.
    """

    result: Result
    run: Run
    tuning: Tuning | None
    dev: dict[str, float]
    index_bytes: int


def search_expanded(
    space: Workspace,
    collection: Collection,
    expanded: Collection,
    tag: str,
    *,
    notebook: str,
    k1_grid: Sequence[float],
    b_grid: Sequence[float],
    ablation: bool = True,
    written_by: str | None = None,
) -> Expanded:
    """Index expanded passages, tune k1 and b on dev, search the test queries, and keep the result.

    The result is one over the original collection, whose documents are ranked; what was indexed is in its
    settings.

    Args:
        space: Where indexes and results go.
        collection: The original, with the test queries.
        expanded: Made from it by `expand`, or the original itself.
        tag: The system's name.
        notebook: The notebook that asks, without ending.
        k1_grid: Values of k1 to try.
        b_grid: Values of b to try.
        ablation: Left out of the results table.
        written_by: What wrote the queries, in words, for the results table.

    Raises:
        ValueError: `expanded` has other documents.
    """
    if expanded.doc_ids != collection.doc_ids:
        raise ValueError(f"{tag}: the expanded collection has other documents than {collection.name}")
    bm25 = BM25.build(expanded, space.index_folder(expanded))
    tuning, dev, k1, b = None, {}, K1, B
    if "dev" in expanded.all_qrels:
        asked = expanded.with_split("dev")
        tuning = bm25.tune(asked, k1_grid, b_grid)
        k1, b = tuning.k1, tuning.b
        dev = evaluate(asked.qrels, bm25.search(asked.queries, space.profile.depth, k1, b)).means
    start = time.perf_counter()
    run = Run(bm25.search(collection.queries, space.profile.depth, k1, b), tag)
    config = {"k1": k1, "b": b, "expanded": expanded.expanded and dict(expanded.expanded)}
    if written_by:
        config["written_by"] = written_by
    if tuning:
        config["tuned_on"] = f"{tuning.num_queries} {tuning.split} queries"
    result = save_result(
        space.runs,
        run,
        collection,
        notebook=notebook,
        config=config,
        depth=space.profile.depth,
        wall_s=time.perf_counter() - start,
        index_bytes=bm25.num_bytes,
        ablation=ablation,
    )
    return Expanded(result, run, tuning, dev, bm25.num_bytes)
