"""doc2query for a notebook: what a generator learns from, and BM25 over expanded passages, tuned on dev."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from dpr.bm25 import BM25, K1, B, Tuning
from dpr.collection import Collection
from dpr.loading import find_data, load_training_data
from dpr.results import Result, save_result
from dpr.training_data import TrainingData, merge
from dpr.trec import Run
from dpr.workspace import Workspace


def generator_data(
    space: Workspace, sets: Sequence[str], held_out: int
) -> tuple[TrainingData, TrainingData, list[str]]:
    """Queries with the passages that answer them, to learn from and to select by.

    Args:
        space: Its training set comes first, without the queries of dev and test.
        sets: Names of other sets; those that the data folder lacks are left out.
        held_out: Queries to select by, taken from all sets at random; at most a fifth.

    Returns:
        What to learn from, what to select by, and the sets left out.
    """
    first, _ = space.training_data()
    there = [name for name in sets if find_data(name)]
    evaluated = [space.collection(split) for split in space.splits() if split != "train"]
    others = [load_training_data(name).without_queries(*evaluated) for name in there]
    whole = merge("+".join([first.name, *there]), first, *others)
    learn, select = whole.split(min(0.2, held_out / len(whole.examples)), space.profile.seeds[0])
    return learn, select, [name for name in sets if name not in there]


@dataclass(frozen=True)
class Expanded:
    """BM25 over an expanded collection.

    Attributes:
        result: On the test queries.
        run: At full depth.
        tuning: k1 and b tried on dev; None where there is no dev part to these passages.
        index_bytes: Of the Lucene index.
    """

    result: Result
    run: Run
    tuning: Tuning | None
    index_bytes: int

    @property
    def dev_value(self) -> float:
        """The tuned metric on dev, to choose among variants by; 0 where nothing was tuned."""
        return max(self.tuning.grid.values()) if self.tuning else 0.0


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

    Raises:
        ValueError: `expanded` has other documents.
    """
    if expanded.doc_ids != collection.doc_ids:
        raise ValueError(f"{tag}: the expanded collection has other documents than {collection.name}")
    bm25 = BM25.build(expanded, space.index_folder(expanded))
    tuning, k1, b = None, K1, B
    if "dev" in expanded.all_qrels:
        tuning = bm25.tune(expanded.with_split("dev"), k1_grid, b_grid)
        k1, b = tuning.k1, tuning.b
    start = time.perf_counter()
    run = Run(bm25.search(collection.queries, space.profile.depth, k1, b), tag)
    config = {"k1": k1, "b": b, "expanded": expanded.expanded and dict(expanded.expanded)}
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
    return Expanded(result, run, tuning, bm25.num_bytes)
