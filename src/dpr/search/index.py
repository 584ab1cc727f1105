"""Searching vectors: every index says its similarity, and larger is always better."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from dpr.data.trec import Run, ordered_hits
from dpr.files import atomic_folder, read_lines, write_text
from dpr.models.checkpoint import SIMILARITIES
from dpr.search.engines import (
    BATCH,
    SEARCH_SETTINGS,
    SETTINGS,
    ExactEngine,
    FaissEngine,
    HnswlibEngine,
    check_setting,
    chosen_settings,
)

KINDS = tuple(SETTINGS)
UNIT = 1e-6  # how far a length may be from 1 to count as 1
FORMAT = 2


class Index:
    """Passage vectors that can be searched; made by `build_index` or `Index.load`.

    Attributes:
        kind: One of `KINDS`.
        similarity: `cosine` or `dot`; queries are brought to it, and scores are it, or for the
            kinds that compress vectors an estimate of it.
        settings: The kind's settings.
        doc_ids: The ids of the N rows, in the order of the vectors.
        chunks: Whether a document may have several rows.
        dimension: D.
        num_bytes: What vectors and links take, in memory or on disk.
    """

    def __init__(
        self, kind, similarity, settings: dict[str, int], doc_ids: list[str], chunks: bool, dimension, engine
    ):
        self.kind, self.similarity, self.settings = kind, similarity, settings
        self.doc_ids, self.chunks, self.dimension, self._engine = doc_ids, chunks, dimension, engine
        self.num_bytes: int = engine.num_bytes

    @property
    def exhaustive(self) -> bool:
        """Whether a search looks at every vector, so that only compression or rounding can make it miss."""
        if "num_probes" in self.settings:
            return self.settings["num_probes"] >= self.settings["num_lists"]
        return "ef_search" not in self.settings

    def search(self, query_emb: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the most similar rows of each query: passages, or chunks of them.

        Args:
            query_emb: float [Q, D]; Q may be 0.
            depth: K, at least 1; a depth beyond N gives N.

        Returns:
            Scores float32 [Q, min(K, N)], falling along each row, larger is better, and
            positions in `doc_ids`, int64 of the same shape. Where an approximate index found fewer, the
            position is -1 and the score minus infinity.

        Raises:
            ValueError: A wrong shape or dtype, a depth below 1, values not finite, a zero vector
                under cosine.
        """
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        lengths = checked_lengths(query_emb, "query_emb", self.similarity, self.dimension)
        kept = min(depth, len(self.doc_ids))
        if not len(query_emb):
            return np.empty((0, kept), dtype=np.float32), np.empty((0, kept), dtype=np.int64)
        queries = np.asarray(query_emb, dtype=np.float32)
        if self.similarity == "cosine":
            queries = queries / lengths[:, None]
        scores, positions = self._engine.search(queries, kept)
        return scores.astype(np.float32, copy=False), positions

    def search_run(self, query_ids: Sequence[str], query_emb: np.ndarray, depth: int, tag: str) -> Run:
        """The best documents as a run: doc_ids in trec_eval's order, tagged with the system's name.

        A document with several chunks has the score of its best one.

        Raises:
            ValueError: Another number of ids than of vectors; see also `search`.
        """
        if len(query_ids) != len(query_emb):
            raise ValueError(f"{len(query_ids)} query ids for {len(query_emb)} vectors")
        found = self._documents(query_emb, depth)
        return Run({q: dict(ordered_hits(hits)) for q, hits in zip(query_ids, found, strict=True)}, tag)

    def _documents(self, query_emb: np.ndarray, depth: int) -> list[dict[str, float]]:
        """Each query's best documents; among chunks, as deep as it takes to find so many."""
        wanted = min(depth, len(set(self.doc_ids)))
        while True:
            found = []
            for scores, positions in zip(*self.search(query_emb, depth), strict=True):
                hits: dict[str, float] = {}
                for position, score in zip(positions.tolist(), scores.tolist(), strict=True):
                    if position >= 0 and len(hits) < wanted:
                        hits.setdefault(self.doc_ids[position], score)
                found.append(hits)
            if (
                not self.chunks
                or depth >= len(self.doc_ids)
                or min(map(len, found), default=wanted) == wanted
            ):
                return found
            depth *= 2

    def with_search(self, **settings: int) -> "Index":
        """The same index, searched wider or narrower from now on.

        Args:
            **settings: Those of the kind's settings that only steer the search.

        Raises:
            ValueError: A setting that this kind does not have or that only counts when building.
        """
        for name, value in settings.items():
            if name not in SEARCH_SETTINGS or name not in self.settings:
                allowed = [n for n in self.settings if n in SEARCH_SETTINGS]
                raise ValueError(f"{self.kind}: {name} cannot be changed after building, only {allowed}")
            check_setting(self.kind, name, value)
            self._engine.set(name, value)
            self.settings[name] = value
        return self

    def save(self, folder: Path | str) -> None:
        """Write the index to a folder, all or nothing; an earlier index there is replaced.

        Raises:
            ValueError: `folder` holds something that is no index.
        """
        about = {"format": FORMAT, "kind": self.kind, "similarity": self.similarity}
        with atomic_folder(folder, "index.json") as fresh:
            self._engine.save(fresh)
            write_text(fresh / "doc_ids.txt", "".join(f"{doc_id}\n" for doc_id in self.doc_ids))
            about |= {"chunks": self.chunks, "dimension": self.dimension, "settings": self.settings}
            write_text(fresh / "index.json", json.dumps(about, indent=1))

    @classmethod
    def load(cls, folder: Path | str) -> "Index":
        """Read what `save` wrote; the vectors of an exact index stay on disk, mapped.

        Raises:
            FileNotFoundError: No index there.
            ValueError: An index of another format.
        """
        folder = Path(folder)
        if not (folder / "index.json").is_file():
            raise FileNotFoundError(f"{folder}: no index.json; build_index(…).save(folder) writes one")
        about = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if about.get("format") != FORMAT:
            raise ValueError(f"{folder}: format {about.get('format')}, expected {FORMAT}; build it again")
        kind, settings = about["kind"], about["settings"]
        if kind == "exact":
            engine = ExactEngine.load(folder)
        elif kind == "hnswlib":
            engine = HnswlibEngine.load(folder, about["dimension"])
        else:
            engine = FaissEngine.load(folder)
        doc_ids = [line for _, line in read_lines(folder / "doc_ids.txt")]
        index = cls(kind, about["similarity"], settings, doc_ids, about["chunks"], about["dimension"], engine)
        return index.with_search(**{n: v for n, v in settings.items() if n in SEARCH_SETTINGS})


def build_index(
    kind: str,
    passage_emb: np.ndarray,
    doc_ids: Sequence[str],
    similarity: str,
    *,
    chunks: bool = False,
    **settings: int,
) -> Index:
    """Make passage vectors searchable, exhaustively or approximately.

    Under cosine the vectors are scaled to length 1, so that every engine ranks by it, whatever
    distance it computes inside.

    Args:
        kind: `exact` (ours), `faiss-flat`, `faiss-sqfp16` (half precision), `faiss-hnsw`, `faiss-ivf`,
            `faiss-ivfpq` (compressed), or `hnswlib`, which is optional. FAISS's run on a GPU where
            FAISS sees one, HNSW excepted.
        passage_emb: float32 or float16 [N, D], finite. `exact` holds it, not a copy: a memory map
            stays on disk.
        doc_ids: N ids without white space, in the order of the rows; distinct, but for chunks.
        similarity: The one the encoder was trained for, `encoder.config.similarity`.
        chunks: Whether a document may have several rows; `search_run` ranks it by its best one.
        **settings: `m`, `ef_construction`, `ef_search` for the graphs; `num_lists`, `num_probes` for
            the inverted lists, and `code_bytes` a vector for `faiss-ivfpq`.

    Raises:
        ValueError: An unknown kind, similarity or setting; a wrong shape or dtype; ids that do not fit
            the rows or repeat; values not finite; a zero vector under cosine; too few vectors for
            what the kind has to learn; hnswlib missing.

    Source: Malkov and Yashunin 2018 (HNSW); Jégou, Douze and Schmid 2011 (inverted lists, product
    quantisation).
    """
    if kind not in SETTINGS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity must be one of {SIMILARITIES}, got {similarity!r}")
    if passage_emb.ndim != 2 or 0 in passage_emb.shape:
        raise ValueError(f"passage_emb must be [N, D] with N and D above 0, got shape {passage_emb.shape}")
    count, dimension = passage_emb.shape
    if len(doc_ids) != count:
        raise ValueError(f"{count} vectors need as many doc_ids, got {len(doc_ids)}")
    if not chunks and len(set(doc_ids)) != count:
        raise ValueError(
            f"{count} vectors need as many distinct doc_ids, got {len(set(doc_ids))}; "
            "documents in several rows need chunks=True"
        )
    lengths = checked_lengths(passage_emb, "passage_emb", similarity, dimension)
    chosen = chosen_settings(kind, settings, count, dimension)
    scaled = similarity == "cosine" and np.abs(lengths - 1).max() > UNIT
    scale = (1 / lengths).astype(np.float32) if scaled else None
    if kind == "exact":
        engine = ExactEngine(passage_emb, scale)
    elif kind == "hnswlib":
        engine = HnswlibEngine.build(_blocks(passage_emb, scale), dimension, count, chosen)
    else:
        engine = FaissEngine.build(kind, _blocks(passage_emb, scale), dimension, count, chosen)
    return Index(kind, similarity, chosen, list(doc_ids), chunks, dimension, engine)


def checked_lengths(vectors: np.ndarray, name: str, similarity: str, dimension: int) -> np.ndarray:
    """The length of each vector, float32 [N], after refusing what cannot be compared.

    Args:
        vectors: float [N, D].
        name: What an error calls them.
        similarity: Under `cosine` a zero vector is refused.
        dimension: D as it must be.

    Raises:
        ValueError: Another shape, no floats, NaN or infinity, a zero vector under cosine; names the row.
    """
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise ValueError(f"{name} must be [rows, {dimension}], got shape {vectors.shape}")
    if vectors.dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(f"{name} must be float16, float32 or float64, got {vectors.dtype}")
    lengths = np.empty(len(vectors), dtype=np.float32)
    for start in range(0, len(vectors), BATCH):
        block = np.asarray(vectors[start : start + BATCH], dtype=np.float32)
        lengths[start : start + BATCH] = np.sqrt(np.einsum("nd,nd->n", block, block))
    if not np.isfinite(lengths).all():
        raise ValueError(f"{name}: row {int(np.argmin(np.isfinite(lengths)))} holds NaN or infinity")
    if similarity == "cosine" and not lengths.all():
        raise ValueError(f"{name}: row {int(np.argmin(lengths))} is a zero vector: it has no cosine")
    return lengths


def _blocks(vectors: np.ndarray, scale: np.ndarray | None) -> Iterator[np.ndarray]:
    """Blocks of float32 vectors, scaled."""
    for start in range(0, len(vectors), BATCH):
        block = np.asarray(vectors[start : start + BATCH], dtype=np.float32)
        yield np.ascontiguousarray(block if scale is None else block * scale[start : start + BATCH, None])
