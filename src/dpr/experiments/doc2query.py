"""BM25 over expanded collections, tuned on dev queries."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from dpr.data.collection import Collection
from dpr.data.trec import Run
from dpr.evaluation.metrics import evaluate
from dpr.experiments.results import Result, save_result
from dpr.experiments.workspace import Workspace
from dpr.search.bm25 import BM25, K1, B, Tuning


@dataclass(frozen=True)
class TunedBM25:
    """BM25 over an expanded collection, with k1 and b tuned on dev queries.

    Attributes:
        result: The result for the test queries.
        run: The run at full depth.
        tuning: The values of k1 and b tried and their nDCG@10 on dev; None if there are no dev queries.
        dev: Metric → mean on the dev queries with the best k1 and b; empty if there are no dev queries.
        index_bytes: Size of the Lucene index.
    """

    result: Result
    run: Run
    tuning: Tuning | None
    dev: dict[str, float]
    index_bytes: int


def search_and_save_bm25(
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
) -> TunedBM25:
    """Index expanded passages, tune k1 and b on dev, search for the test queries, and save the result.

    The result counts as one over the original collection, as the same documents are ranked. Its settings
    say how the passages were expanded.

    Args:
        space: The workspace where the index and the result are saved.
        collection: The original collection, with the test queries.
        expanded: The collection that `expand` made from it, or the original itself.
        tag: The system's name.
        notebook: Name of the calling notebook, without the ending.
        k1_grid: Values of k1 to try.
        b_grid: Values of b to try.
        ablation: Whether the result is left out of the results table.
        written_by: What wrote the queries, in words, for the table's caption.

    Raises:
        ValueError: `expanded` has other documents than `collection`.
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
    config = {"k1": k1, "b": b, "expansion": expanded.expansion and dict(expanded.expansion)}
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
    return TunedBM25(result, run, tuning, dev, bm25.num_bytes)
