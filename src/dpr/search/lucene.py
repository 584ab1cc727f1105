"""A Lucene index opened for searching, whose hits come to Python in one piece instead of one by one.

pyserini converts each hit into an object, with the document's stored text: two thirds of the time of a
search and a kilobyte a hit. Here Lucene's own result is written as one text by the Jackson library, which
Anserini carries, and read by numpy. Scores and order are those of Anserini's searcher.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dpr.search.java import start_jvm

MOST_WORDS = 2**20  # different words in a query; Lucene gives up on one of more than 1,024 by itself
BLOCK = 32  # queries of a thread at once
SPARE = 16  # hits more than asked for, to see whether the last one ties
FIELD, ID = "contents", "id"  # as Anserini names them
STEP, LOWER, TIE = 1e4, np.float32(1e-6), np.float32(1e-4)


class LuceneIndex:
    """An index that pyserini wrote, opened for searching.

    Args:
        folder: Folder of the index.
        doc_ids: The ids of all its documents, in any order.

    Attributes:
        num_documents: Number of documents that Lucene holds.

    Raises:
        OSError: Lucene cannot read the folder.
    """

    def __init__(self, folder: Path, doc_ids: Iterable[str]):
        start_jvm()
        from jnius import JavaException, autoclass, find_javaclass
        from pyserini.analysis import get_lucene_analyzer

        self._analyzer = get_lucene_analyzer()
        self._generator = autoclass("io.anserini.search.query.BagOfWordsQueryGenerator")()
        autoclass("org.apache.lucene.search.IndexSearcher").setMaxClauseCount(MOST_WORDS)
        path = autoclass("java.nio.file.Paths").get(str(folder))
        try:
            directory = autoclass("org.apache.lucene.store.FSDirectory").open(path)
            self._reader = autoclass("org.apache.lucene.index.DirectoryReader").open(directory)
        except JavaException as error:
            raise OSError(f"{folder}: Lucene cannot read it ({error})") from error
        self._doc_ids = sorted(doc_ids)  # by code points, as Lucene sorts their bytes
        self.num_documents: int = self._reader.numDocs()
        self._mapper = autoclass("com.fasterxml.jackson.databind.ObjectMapper")()
        array = autoclass("com.fasterxml.jackson.annotation.JsonFormat$Shape").ARRAY
        shape = autoclass("com.fasterxml.jackson.annotation.JsonFormat$Value").forShape(array)
        left_out = autoclass("com.fasterxml.jackson.annotation.JsonIgnoreProperties$Value")
        for name in ("ScoreDoc", "FieldDoc"):  # a hit is written as [score, number]
            override = self._mapper.configOverride(find_javaclass(f"org.apache.lucene.search.{name}"))
            override.setFormat(shape)
            override.setIgnorals(left_out.forIgnoredProperties("fields", "shardIndex"))

    def search(self, texts: Sequence[str], depth: int, k1: float, b: float) -> Iterator[dict[str, float]]:
        """The best documents of each text, on all cores.

        Args:
            texts: The queries' texts.
            depth: Most documents of each.
            k1: Term-frequency saturation.
            b: Length normalisation.

        Yields:
            doc_id → score for each text, in trec_eval's order.
        """
        import jnius

        searcher, _ = self._searcher(k1, b), self._places  # which is made before there are threads

        def block(start: int) -> list[dict[str, float]]:
            try:
                return self._best(searcher, texts[start : start + BLOCK], depth)
            finally:
                jnius.detach()  # this thread, from Java

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for found in threads.map(block, range(0, len(texts), BLOCK)):
                yield from found

    @cached_property
    def _places(self) -> np.ndarray:
        """The place of each document, by Lucene's number, among the ids in order: int64 [N]."""
        from jnius import autoclass

        kind = autoclass("org.apache.lucene.search.SortField$Type").STRING_VAL
        by_id = autoclass("org.apache.lucene.search.SortField")(ID, kind)
        order = autoclass("org.apache.lucene.search.Sort")(by_id)
        everything = autoclass("org.apache.lucene.search.MatchAllDocsQuery")()
        found = self._searcher(1.0, 0.0).search(everything, self.num_documents, order)
        places = np.empty(self.num_documents, dtype=np.int64)
        places[self._hits([found])[0][:, 1].astype(np.int64)] = np.arange(self.num_documents)
        return places

    def _searcher(self, k1: float, b: float) -> Any:
        """Lucene's searcher with BM25 of these settings."""
        from jnius import autoclass

        by_reader = "(Lorg/apache/lucene/index/IndexReader;)V"
        searcher = autoclass("org.apache.lucene.search.IndexSearcher")(self._reader, signature=by_reader)
        searcher.setSimilarity(autoclass("org.apache.lucene.search.similarities.BM25Similarity")(k1, b))
        return searcher

    def _best(self, searcher: Any, texts: Sequence[str], depth: int) -> list[dict[str, float]]:
        """The best documents of each text: of those alike at the last rank, the first by id are kept."""
        queries = [self._generator.buildQuery(FIELD, self._analyzer, text) for text in texts]
        asked = min(depth + SPARE, self.num_documents)
        found = self._hits([searcher.search(query, asked) for query in queries])
        found = [self._past_ties(searcher, *pair, depth) for pair in zip(queries, found, strict=True)]
        rows = np.repeat(np.arange(len(found)), list(map(len, found)))
        scores, numbers = np.concatenate(found).T
        places = self._places[numbers.astype(np.int64)]
        order = np.lexsort((places, -scores, rows))
        firsts = np.searchsorted(rows, rows)  # where each hit's query begins
        order = order[np.arange(len(rows)) - firsts < depth]
        rows, places, scores = rows[order], places[order], scores[order].astype(np.float32)
        edges = np.searchsorted(rows, np.arange(len(found) + 1)).tolist()
        for start, end in pairwise(edges):
            scores[start:end] = _without_ties(scores[start:end])
        order = np.lexsort((-places, -scores, rows))  # trec_eval's
        ids = [self._doc_ids[place] for place in places[order].tolist()]
        hits = list(zip(ids, scores[order].tolist(), strict=True))
        return [dict(hits[start:end]) for start, end in pairwise(edges)]

    def _past_ties(self, searcher: Any, query: Any, hits: np.ndarray, depth: int) -> np.ndarray:
        """A query's hits [K, 2], asked for anew until the last one scores less than that at `depth`."""
        asked = min(depth + SPARE, self.num_documents)
        while len(hits) == asked < self.num_documents and hits[-1, 0] == hits[depth - 1, 0]:
            asked = min(2 * asked, self.num_documents)
            [hits] = self._hits([searcher.search(query, asked)])
        return hits

    def _hits(self, found: Sequence[Any]) -> list[np.ndarray]:
        """Each of Lucene's `TopDocs` as float64 [K, 2]: scores and document numbers."""
        texts = [self._mapper.writeValueAsString(one) for one in found]
        listed = [text[text.index("[") : text.index("]]") if "]]" in text else None] for text in texts]
        lengths = [text.count(",") + 1 if "," in text else 0 for text in listed]
        numbers = ",".join(text for text, length in zip(listed, lengths, strict=True) if length)
        numbers = np.fromstring(numbers.translate(dict.fromkeys(map(ord, '[]}"'))), sep=",")
        return [part.reshape(-1, 2) for part in np.split(numbers, np.cumsum(lengths)[:-1])]


def _without_ties(scores: np.ndarray) -> np.ndarray:
    """Scores as Anserini's `ScoreTiesAdjusterReranker` gives them: with four decimals, and no two alike.

    Args:
        scores: float32 [K], falling.
    """
    adjusted = (np.floor(scores.astype(np.float64) * STEP + 0.5) / STEP).astype(np.float32)
    begin = 0
    for i in (np.flatnonzero(adjusted[:-1] - adjusted[1:] <= TIE) + 1).tolist():
        if i < begin:  # within the tie before
            continue
        begin = i
        while begin < len(adjusted) and adjusted[begin - 1] - adjusted[begin] <= TIE:
            adjusted[begin] -= LOWER * np.float32(begin - i + 1)
            begin += 1
    return adjusted
