"""BM25 search over a collection, by Lucene through pyserini."""

import errno
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from dpr.arguments import checked
from dpr.data.collection import Collection, Passage
from dpr.data.text import SURROGATE
from dpr.data.trec import Run, checked_queries, without_own_documents
from dpr.evaluation.metrics import evaluate, split_metric
from dpr.files import MARKER, atomic_folder, changed, locked, read_json, settle, write_text
from dpr.search.java import start_jvm
from dpr.search.lucene import LuceneIndex

K1, B = 0.9, 0.4  # Anserini's defaults, which the published figures use
K1_GRID = (0.6, 0.9, 1.2, 1.6, 2.0)
B_GRID = (0.2, 0.4, 0.6, 0.75, 0.9)
MANIFEST = "dpr-index.json"
BATCH = 10_000
SOON = 2  # seconds that a search takes before a progress bar is shown


@dataclass(frozen=True)
class Tuning:
    """Result of a grid search over k1 and b.

    Attributes:
        grid: (k1, b) → mean of the metric on the tuning queries.
        metric: The metric's name.
        k1: k1 of the best pair; of equally good pairs, the first one tried.
        b: b of the best pair.
        split: The split whose queries were used.
        num_queries: Number of these queries.
    """

    grid: dict[tuple[float, float], float]
    metric: str
    k1: float
    b: float
    split: str
    num_queries: int


class BM25:
    """A Lucene index over title and text in one field, and its searcher.

    Create one with `BM25.build`. The folder stores the fingerprint of the indexed passages, so an index
    of other passages is never searched by mistake.

    Attributes:
        folder: Folder of the index.
        collection: The indexed collection.
        num_documents: Number of documents in the Lucene index.
        num_bytes: Size of the Lucene index on disk.
        reused: Whether `build` opened an existing index instead of making one.
    """

    def __init__(self, folder: Path, collection: Collection, reused: bool):
        self.folder, self.collection, self.reused = folder, collection, reused
        try:
            self._lucene = LuceneIndex(folder / "lucene", (p.doc_id for p in _with_text(collection)))
        except OSError as error:
            raise RuntimeError(f"{folder}: Lucene cannot read it; remove it and build again") from error
        self.num_documents = self._lucene.num_documents
        self.num_bytes: int = sum(path.stat().st_size for path in (folder / "lucene").iterdir())

    @classmethod
    @checked
    def build(cls, collection: Collection, folder: Path | str) -> "BM25":
        """Index a collection, or open the index in `folder` if it holds exactly these passages.

        Texts go through Lucene's English analysis (Porter stems, stop words) as Anserini sets it.
        Documents with neither title nor text are left out. An index of other passages, by another
        pyserini version or with a file missing is replaced; if the process is killed meanwhile, the old
        index stays whole. A second process that builds the same index waits for the first.

        Args:
            collection: The passages to index.
            folder: The index's folder; created if it is missing.

        Raises:
            ValueError: No passage has text, or `folder` holds something other than such an index.
            RuntimeError: Lucene holds another number of documents than it was given or cannot read the
                index, or there is no Java 21 or newer.
            OSError: The index cannot be written.
        """
        folder = Path(folder).resolve()  # Java resolves relative paths from the folder it was started in
        documents = _with_text(collection)
        if not documents:
            raise ValueError(f"{collection.name}: no passage with a text to index")
        made_by = {"fingerprint": collection.fingerprint, "pyserini": version("pyserini")}
        with locked(folder.parent / f".{folder.name}.lock", wait=True):
            settle(folder)
            whole = not (folder / MARKER).exists() or not changed(folder)
            reused = whole and _read_manifest(folder) == made_by
            if not reused:
                with atomic_folder(folder, "a BM25 index") as fresh:
                    _index(documents, fresh / "lucene")
                    write_text(fresh / MANIFEST, json.dumps(made_by))
        index = cls(folder, collection, reused)
        if index.num_documents != len(documents):
            raise RuntimeError(
                f"{folder}: Lucene holds {index.num_documents:,} documents, the collection has "
                f"{len(documents):,} with text; remove the folder and build again"
            )
        return index

    @checked
    def search(
        self,
        queries: Mapping[str, str],
        depth: int = 1000,
        k1: float = K1,
        b: float = B,
        leave_out_own: bool = True,
    ) -> Run:
        """Rank documents for each query.

        Args:
            queries: query_id → text.
            depth: Most hits per query; there are fewer if fewer documents share a term with the query.
            k1: Term-frequency saturation, 0 or more.
            b: Length normalisation, from 0 to 1.
            leave_out_own: Whether a query that is itself a document (`Collection.holds`) does not get
                that document as a hit.

        Returns:
            A run tagged `bm25` that includes every query, with hits in trec_eval's order.

        Raises:
            ValueError: No mapping of texts; depth below 1, k1 below 0, or b outside 0 to 1.

        Source: Robertson and Zaragoza 2009, equation 3.15, as Lucene's BM25Similarity computes it.
        """
        if depth < 1 or not 0 <= k1 < math.inf or not 0 <= b <= 1:
            raise ValueError(f"depth ≥ 1, k1 ≥ 0 and 0 ≤ b ≤ 1 are needed, got {depth}, {k1}, {b}")
        queries = checked_queries(queries)
        own = [q for q, text in queries.items() if leave_out_own and self.collection.holds(q, text)]
        found = self._lucene.search(list(queries.values()), depth + bool(own), k1, b)
        bar = tqdm(found, "BM25", len(queries), unit="query", delay=SOON)
        run = Run({}, "bm25")
        run.update(zip(queries, bar, strict=True))
        return without_own_documents(run, own, depth) if own else run

    @checked
    def tune(
        self,
        dev: Collection,
        k1_grid: Sequence[float] = K1_GRID,
        b_grid: Sequence[float] = B_GRID,
        metric: str = "nDCG@10",
    ) -> Tuning:
        """Try every k1 with every b on queries reserved for tuning.

        Args:
            dev: The indexed collection with the queries of its dev or train split.
            k1_grid: Values of k1 to try.
            b_grid: Values of b to try.
            metric: The metric to maximise.

        Raises:
            ValueError: The split is `test`, or the passages are not the indexed ones.
        """
        if dev.split == "test":
            raise ValueError("k1 and b are tuned on dev or train queries, never on test: load split='dev'")
        indexed = self.collection.fingerprint
        if dev.fingerprint != indexed:
            raise ValueError(f"the index holds passages {indexed}, {dev.name} has {dev.fingerprint}")
        grid = {}
        pairs = [(k1, b) for k1 in k1_grid for b in b_grid]
        for k1, b in tqdm(pairs, desc=f"BM25 on {len(dev.queries)} {dev.split} queries", unit="setting"):
            run = self.search(dev.queries, split_metric(metric)[1] or 1000, k1, b)
            grid[k1, b] = evaluate(dev.qrels, run, [metric]).means[metric]
        k1, b = max(grid, key=grid.__getitem__)
        return Tuning(grid, metric, k1, b, dev.split, len(dev.queries))


@checked
def analyse(text: str) -> list[str]:
    """The terms of a text as Lucene indexes and searches them: lower case, no stop words, Porter stems.

    Half a character (a lone surrogate), which Java does not take, counts as `�`.

    >>> analyse("The encoders are searching")
    ['encod', 'search']
    """
    start_jvm()
    from pyserini.analysis import Analyzer, get_lucene_analyzer

    return Analyzer(get_lucene_analyzer()).analyze(SURROGATE.sub("\ufffd", text))


def _with_text(collection: Collection) -> list[Passage]:
    """The passages that are indexed."""
    return [passage for passage in collection.passages if passage.contents]


def _index(documents: Sequence, folder: Path) -> None:
    """Write a Lucene index of passages with text; an OSError if that fails, as on a full disk."""
    start_jvm()
    from jnius import JavaException
    from pyserini.index.lucene import LuceneIndexer

    try:
        indexer = LuceneIndexer(str(folder), threads=os.cpu_count() or 1)
        with tqdm(total=len(documents), desc="Lucene index", unit="doc") as bar:
            for start in range(0, len(documents), BATCH):
                batch = documents[start : start + BATCH]
                indexer.add_batch_dict([{"id": p.doc_id, "contents": p.contents} for p in batch])
                bar.update(len(batch))
        indexer.close()
    except JavaException as error:
        raise OSError(errno.EIO, f"Lucene cannot write the index ({error})", str(folder)) from error


def _read_manifest(folder: Path) -> dict | None:
    """What the index in a folder was made from; None if the folder is missing or empty."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        return read_json(folder / MANIFEST)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder} is no index of ours ({error}); choose another folder or remove it"
        ) from None
