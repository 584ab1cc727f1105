"""Searching vectors: every index states its similarity, and a larger score is always better."""

import warnings
from collections.abc import Sequence, Set
from pathlib import Path

import numpy as np

from dpr.arguments import checked
from dpr.data.trec import Run, check_id, ordered_hits, text_id, without_own_documents
from dpr.files import CHECKSUM, atomic_folder, crc32, read_json, read_lines, settle, write_json, write_text
from dpr.models.checkpoint import SIMILARITIES
from dpr.search.engines import (
    SEARCH_SETTINGS,
    SETTINGS,
    ExactEngine,
    FaissEngine,
    HnswlibEngine,
    RescoredEngine,
    Vectors,
    check_setting,
    chosen_settings,
)
from dpr.search.vector_shards import BLOCK

KINDS = tuple(SETTINGS)
UNIT = 1e-6  # how far a length may be from 1 to count as 1
FORMAT = 3
MOST_HALF = float(np.finfo(np.float16).max)


class Index:
    """Passage vectors that can be searched; create one with `build_index` or `Index.load`.

    Attributes:
        kind: One of `KINDS`.
        similarity: `cosine` or `dot`. Scores are this similarity of query and row or, for kinds that
            compress vectors, an estimate of it.
        settings: The kind's settings and their values.
        doc_ids: The document ids of the N rows, in the order of the vectors.
        chunks: Whether a document may have several rows.
        dimension: D, the length of a vector.
        num_bytes: Bytes that vectors and links take, in memory or on disk.
    """

    def __init__(
        self, kind, similarity, settings: dict[str, int], doc_ids: list[str], chunks: bool, dimension, engine
    ):
        self.kind, self.similarity, self.settings = kind, similarity, settings
        self.doc_ids, self.chunks, self.dimension, self._engine = doc_ids, chunks, dimension, engine
        self.num_bytes: int = engine.num_bytes

    @property
    def exhaustive(self) -> bool:
        """Whether a search compares every vector, so that only compression or rounding can cause misses."""
        if "num_probes" in self.settings:
            return self.settings["num_probes"] >= self.settings["num_lists"]
        return "ef_search" not in self.settings

    @checked
    def search(self, query_emb: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the most similar rows, which are passages or chunks of them, for each query.

        Args:
            query_emb: float [Q, D]; Q may be 0.
            depth: K, the number of rows to find, at least 1; more than N counts as N.

        Returns:
            Scores float32 [Q, min(K, N)], falling along each row, larger is better, and
            positions in `doc_ids`, int64 of the same shape. If an approximate FAISS index finds fewer,
            the other positions are -1 and their scores minus infinity.

        Raises:
            ValueError: A wrong shape or dtype, a depth below 1, a value that is not finite, a zero
                vector under cosine, or a hnswlib index that finds too few rows.
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

    @checked
    def search_run(
        self,
        query_ids: Sequence[str | int],
        query_emb: np.ndarray,
        depth: int,
        tag: str,
        own_documents: Set[str | int] | None = None,
    ) -> Run:
        """Search, and return a run of each query's best documents, in trec_eval's order.

        A document with several chunks has the score of its best chunk.

        Args:
            query_ids: Q different ids.
            query_emb: float [Q, D].
            depth: Most documents per query.
            tag: The run's tag.
            own_documents: Ids of queries that are documents themselves and do not get the document with
                their id as a hit: `Collection.own_documents`. `frozenset()` leaves out nothing. With
                None nothing is left out either, but queries with a document's id give a warning.

        Raises:
            ValueError: The numbers of ids and vectors differ, or an id comes twice; see also `search`.
        """
        query_ids = [text_id(query_id) for query_id in query_ids]
        if len(query_ids) != len(query_emb) or len(set(query_ids)) != len(query_ids):
            different = len(set(query_ids))
            raise ValueError(
                f"{len(query_ids)} query ids ({different} different) for {len(query_emb)} vectors"
            )
        own = frozenset(map(text_id, own_documents or ())) & set(query_ids)
        shared = set(query_ids).intersection(self.doc_ids) if own_documents is None else ()
        if shared:
            warnings.warn(
                f"{len(shared)} queries have the id of a document, first {min(shared)!r}: if they are these "
                "documents, pass own_documents=collection.own_documents, else own_documents=frozenset()",
                stacklevel=3,
            )
        found = self._documents(query_emb, depth + bool(own))
        run = Run({q: dict(ordered_hits(hits)) for q, hits in zip(query_ids, found, strict=True)}, tag)
        return without_own_documents(run, own, depth) if own else run

    def _documents(self, query_emb: np.ndarray, depth: int) -> list[dict[str, float]]:
        """The `depth` best documents for each query; with chunks, searched deeper until there are enough."""
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

    @checked
    def with_search(self, **settings: int) -> "Index":
        """Change how widely this index searches from now on, and return it.

        Args:
            **settings: `ef_search`, `num_probes` or `rescored`, whichever the kind has.

        Raises:
            ValueError: The kind lacks the setting, it cannot be changed after building, or it is not a count.
        """
        for name, value in settings.items():
            if name not in SEARCH_SETTINGS or name not in self.settings:
                allowed = [n for n in self.settings if n in SEARCH_SETTINGS]
                raise ValueError(f"{self.kind}: {name} cannot be changed after building, only {allowed}")
            check_setting(self.kind, name, value)
            self._engine.set(name, value)
            self.settings[name] = value
        return self

    @checked
    def save(self, folder: Path | str) -> None:
        """Write the index to a folder, all or nothing; an earlier index there is replaced.

        Raises:
            ValueError: `folder` holds something that is not an index.
        """
        about = {
            "format": FORMAT,
            "kind": self.kind,
            "similarity": self.similarity,
            "rows": len(self.doc_ids),
        }
        with atomic_folder(folder, "an index of vectors") as fresh:
            self._engine.save(fresh)
            write_text(fresh / "doc_ids.txt", "".join(f"{doc_id}\n" for doc_id in self.doc_ids))
            about |= {"chunks": self.chunks, "dimension": self.dimension, "settings": self.settings}
            about["crc32"] = {path.name: crc32(path) for path in sorted(fresh.iterdir())}
            write_json(fresh / "index.json", about)

    @classmethod
    @checked
    def load(cls, folder: Path | str) -> "Index":
        """Read a saved index and check that no file of it has changed.

        The vectors of an exact index stay on disk as a memory map.

        Raises:
            FileNotFoundError: There is no index in `folder`.
            ValueError: The index has another format or is damaged; the message names the file.
        """
        folder = Path(folder)
        settle(folder.resolve())
        if not (folder / "index.json").is_file():
            raise FileNotFoundError(f"{folder}: no index.json; build_index(…).save(folder) writes one")
        about = read_json(folder / "index.json", "format")
        if about["format"] != FORMAT:
            raise ValueError(f"{folder}: format {about['format']}, expected {FORMAT}; build it again")
        about = read_json(folder / "index.json", CHECKSUM)
        for name, checksum in about["crc32"].items():
            if not (folder / name).is_file() or crc32(folder / name) != checksum:
                raise ValueError(f"{folder / name}: missing or damaged; build the index again")
        kind, settings = about["kind"], about["settings"]
        if kind == "exact":
            engine = ExactEngine.load(folder)
        elif kind == "hnswlib":
            engine = HnswlibEngine.load(folder, about["dimension"])
        elif kind == "faiss-opq":
            engine = RescoredEngine.load(folder, settings["rescored"])
        else:
            engine = FaissEngine.load(folder)
        doc_ids = [line for _, line in read_lines(folder / "doc_ids.txt")]
        index = cls(kind, about["similarity"], settings, doc_ids, about["chunks"], about["dimension"], engine)
        return index.with_search(**{n: v for n, v in settings.items() if n in SEARCH_SETTINGS})


@checked
def build_index(
    kind: str,
    passage_emb: Vectors,
    doc_ids: Sequence[str | int],
    similarity: str,
    *,
    chunks: bool = False,
    **settings: int,
) -> Index:
    """Make passage vectors searchable, exhaustively or approximately.

    Under cosine the vectors are scaled to length 1, so that every engine ranks by cosine, whatever
    distance it computes inside.

    Args:
        kind: `exact` (ours), `faiss-flat`, `faiss-sqfp16` (half precision), `faiss-hnsw`, `faiss-ivf`,
            `faiss-ivfpq` (compressed), `faiss-opq` (compressed after a learnt rotation; candidates are
            scored anew with `passage_emb`), or `hnswlib` (an optional package). FAISS's kinds except HNSW
            and OPQ use a GPU if FAISS sees one.
        passage_emb: float32 or float16 [N, D], finite, an array or `VectorShards`. It is read block by
            block; `exact` and `faiss-opq` keep it without a copy, so memory maps stay on disk.
        doc_ids: N ids without white space, in the order of the rows; distinct unless `chunks`. Whole
            numbers become text.
        similarity: `cosine` or `dot`, whichever the encoder was trained for (`encoder.config.similarity`).
        chunks: Whether a document may have several rows; `search_run` ranks it by its best one.
        **settings: `m`, `ef_construction` and `ef_search` for the two graphs (HNSW); `num_lists` and
            `num_probes` for inverted lists; `code_bytes`, the bytes per vector, for `faiss-ivfpq` and
            `faiss-opq`; `rescored`, how many candidates per hit `faiss-opq` scores anew.

    Raises:
        ValueError: An unknown kind, similarity or setting; a wrong shape or dtype; ids that do not fit
            the rows or repeat; values not finite, also in half precision for `faiss-sqfp16`; a zero vector
            under cosine; too few vectors for the kind to learn from; or hnswlib is not installed.

    Source: Malkov and Yashunin 2018 (HNSW); Jégou, Douze and Schmid 2011 (inverted lists, product
    quantisation); Ge, He, Ke and Sun 2013 (rotation before it).
    """
    if kind not in SETTINGS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity must be one of {SIMILARITIES}, got {similarity!r}")
    if passage_emb.ndim != 2 or 0 in passage_emb.shape:
        raise ValueError(f"passage_emb must be [N, D] with N and D above 0, got shape {passage_emb.shape}")
    count, dimension = passage_emb.shape
    doc_ids = [text_id(doc_id) for doc_id in doc_ids]
    for row, doc_id in enumerate(doc_ids):
        check_id(doc_id, f"doc_ids: row {row}:")
    if len(doc_ids) != count:
        raise ValueError(f"{count} vectors need as many doc_ids, got {len(doc_ids)}")
    if not chunks and len(set(doc_ids)) != count:
        raise ValueError(
            f"{count} vectors need as many distinct doc_ids, got {len(set(doc_ids))}; "
            "documents in several rows need chunks=True"
        )
    lengths = checked_lengths(passage_emb, "passage_emb", similarity, dimension)
    chosen = chosen_settings(kind, settings, count, dimension)
    if kind == "faiss-sqfp16" and similarity == "dot" and _beyond_half(passage_emb):
        raise ValueError(f"{kind}: a value is beyond the {MOST_HALF:,.0f} of half precision; use faiss-flat")
    scaled = similarity == "cosine" and np.abs(lengths - 1).max() > UNIT
    scale = (1 / lengths).astype(np.float32) if scaled else None
    if kind == "exact":
        engine = ExactEngine(passage_emb, scale)
    elif kind == "hnswlib":
        engine = HnswlibEngine.build(passage_emb, scale, chosen)
    else:
        builder = RescoredEngine if kind == "faiss-opq" else FaissEngine
        engine = builder.build(kind, passage_emb, scale, chosen)
    return Index(kind, similarity, chosen, doc_ids, chunks, dimension, engine)


def _beyond_half(vectors: Vectors) -> bool:
    """Whether half precision cannot hold a value."""
    starts = range(0, len(vectors), BLOCK)
    return any(np.abs(vectors[start : start + BLOCK]).max() > MOST_HALF for start in starts)


def checked_lengths(vectors: Vectors, name: str, similarity: str, dimension: int) -> np.ndarray:
    """Check that vectors can be compared, and return their lengths, float32 [N].

    Args:
        vectors: float [N, D].
        name: Name of the vectors in error messages.
        similarity: `cosine` or `dot`; under `cosine` no vector may be zero.
        dimension: The D that the vectors must have.

    Raises:
        ValueError: Another shape, no float dtype, or (the message names the row) NaN, infinity or a zero
            vector under cosine.
    """
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        raise ValueError(f"{name} must be [rows, {dimension}], got shape {vectors.shape}")
    if vectors.dtype not in (np.float16, np.float32, np.float64):
        raise ValueError(f"{name} must be float16, float32 or float64, got {vectors.dtype}")
    lengths = np.empty(len(vectors), dtype=np.float32)
    for start in range(0, len(vectors), BLOCK):
        block = np.asarray(vectors[start : start + BLOCK], dtype=np.float32)
        lengths[start : start + BLOCK] = np.sqrt(np.einsum("nd,nd->n", block, block))
    if not np.isfinite(lengths).all():
        raise ValueError(f"{name}: row {int(np.argmin(np.isfinite(lengths)))} holds NaN or infinity")
    if similarity == "cosine" and not lengths.all():
        raise ValueError(f"{name}: row {int(np.argmin(lengths))} is a zero vector: it has no cosine")
    return lengths
