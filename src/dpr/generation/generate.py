"""Queries for a whole collection, written to disk in numbered shards, so that the work can be resumed.

A shard is a file of JSON lines, `{"doc_id": …, "queries": […], "log_probabilities": […]}`. It is written
under a temporary name and then renamed. It depends only on its passages, its number and the manifest, so the
queries are the same however often the work was interrupted.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dpr.arguments import checked
from dpr.data.collection import Collection, Passage
from dpr.data.corpus_file import CorpusFile, passages_at
from dpr.data.text import segments
from dpr.files import read_jsonl, write_text
from dpr.generation.decoding import Decoding
from dpr.generation.writer import ModelWriter, Query, Writer
from dpr.shards import ShardFolder
from dpr.shards_on_ray import check_engine, fill_missing

SHARD = 256  # passages
FORMAT = 1


@dataclass(frozen=True)
class Generated:
    """The queries written for a collection.

    Attributes:
        written: doc_id → its queries, in the order written; skipped passages are missing.
        num_skipped: Number of passages skipped because their text is too short.
        passages_per_s: Passages per second of one process, over all attempts.
    """

    written: dict[str, list[Query]] = field(repr=False)
    num_skipped: int
    passages_per_s: float

    @property
    def queries(self) -> dict[str, list[str]]:
        """doc_id → the texts of its queries."""
        return {doc_id: [query.text for query in found] for doc_id, found in self.written.items()}


@checked
def generate_queries(
    folder: Path | str,
    generator: Writer,
    collection: Collection | CorpusFile,
    decoding: Decoding,
    *,
    seed: int = 0,
    overflow: str = "truncate",
    min_words: int = 5,
    shard_size: int = SHARD,
    engine: str = "local",
    workers: int | None = None,
) -> Generated:
    """Write queries for a collection's passages into a folder, or only those that are missing there.

    With Ray, workers write at the same time, and the queries are the same as far as their machines compute
    the same; see also `encode_collection`.

    Args:
        folder: The folder for this generator, collection and these settings; made if it is missing.
        generator: The generator, which reads a passage up to its own limit.
        collection: The collection with the passages.
        decoding: The settings for writing queries.
        seed: Seed of sampling; each shard has its own random state.
        overflow: How to treat passages longer than the generator reads: `truncate` cuts them, `max_chunk`
            splits them and writes `num_queries` queries for each chunk.
        min_words: Passages whose text, without the title, has fewer words are skipped; in scripts
            without spaces between words, each character counts as one.
        shard_size: Passages in a shard; an interruption loses at most one shard, with Ray one per worker.
        engine: `local` or `ray`, as in `encode_collection`.
        workers: Number of Ray's workers, as in `encode_collection`.

    Raises:
        ValueError: The folder holds queries made with other settings, which the message names; another
            process is writing into it; a damaged shard; a size below 1; no passage is long enough; an engine
            that cannot be, or Ray with a generator that has no model to send, such as an `EndpointWriter`.
        RuntimeError: One of Ray's workers died again and again; shards already written are kept.
    """
    check_engine(engine, workers)
    if engine == "ray" and not isinstance(generator, ModelWriter):
        kind = type(generator).__name__
        raise ValueError(f"engine 'ray' sends a model to its workers, a {kind} has none; use engine='local'")
    folder = Path(folder)
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1, got {shard_size}")
    words = (len(segments(passage.text)) for passage in collection.passages)
    kept = np.flatnonzero([number >= min_words for number in words])  # positions in the collection
    if not len(kept):
        raise ValueError(f"{collection.name}: no passage has {min_words} words (min_words)")
    manifest = {
        "format": FORMAT,
        "generator": generator.fingerprint,
        "precision": generator.precision,
        "decoding": asdict(decoding),
        "seed": seed,
        "overflow": overflow,
        "min_words": min_words,
        "collection": collection.fingerprint,
        "num_passages": len(kept),
        "shard_size": shard_size,
    }
    shards = ShardFolder(folder, manifest, len(kept), shard_size, ".jsonl")
    with shards.open_for_writing():
        missing = {path: rows for path, rows in shards.items.items() if not shards.is_made(path)}
        work = _Writing(generator, collection.passages, kept, decoding, manifest)
        fill_missing(shards, missing, work, f"{generator.name}: queries", "passage", engine, workers)
    written: dict[str, list[Query]] = {}
    doc_ids = collection.doc_ids
    for path, rows in shards.items.items():
        found = read_queries(path)
        if list(found) != [doc_ids[kept[i]] for i in rows]:
            raise ValueError(f"{path}: damaged, it lacks passages; delete it and run again, the rest is kept")
        written |= found
    return Generated(written, len(doc_ids) - len(kept), len(kept) / shards.seconds())


@dataclass
class _Writing:
    """Writes shards of queries for the passages at the positions that are kept, int64 [num_passages]."""

    generator: Writer
    passages: Sequence[Passage]
    kept: np.ndarray
    decoding: Decoding
    manifest: dict[str, Any]

    @property
    def device(self) -> str:
        return str(self.generator.model.device)

    def move(self, device: str) -> None:
        self.generator.move(device)

    def make(
        self, items: Iterable[range], progress: Callable[[int], object]
    ) -> Iterator[tuple[list[list[Query]], np.ndarray]]:
        items, seed, size = list(items), self.manifest["seed"], self.manifest["shard_size"]
        blocks = ([p.contents for p in self._of(rows)] for rows in items)
        seeds = [_shard_seed(seed, rows.start // size) for rows in items]
        overflow = self.manifest["overflow"]
        return self.generator.generate_blocks(blocks, self.decoding, seeds, overflow, progress=progress)

    def save(self, path: Path, items: range, content: tuple[list[list[Query]], np.ndarray]) -> None:
        doc_ids = [passage.doc_id for passage in self._of(items)]
        written: dict[str, list[Query]] = {doc_id: [] for doc_id in doc_ids}
        for queries, owner in zip(*content, strict=True):
            written[doc_ids[owner]] += queries
        write_queries(path, written)

    def _of(self, items: range) -> list[Passage]:
        return passages_at(self.passages, self.kept[items.start : items.stop])


def _shard_seed(seed: int, number: int) -> int:
    """A different seed for each combination of sampling seed and shard."""
    return seed * 1_000_003 + number


@checked
def write_queries(path: Path | str, queries: Mapping[str, Sequence[Query]]) -> None:
    """Write queries as JSON lines, one per passage, gzipped if `path` ends in .gz.

    Log probabilities are rounded to three digits; a passage whose queries have none gets no such field.
    """
    lines = []
    for doc_id, found in queries.items():
        record = {"doc_id": doc_id, "queries": [query.text for query in found]}
        known = [round(query.log_probability, 3) for query in found]
        if known and not any(map(math.isnan, known)):
            record["log_probabilities"] = known
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_text(path, "".join(lines))


@checked
def read_queries(path: Path | str) -> dict[str, list[Query]]:
    """Read what `write_queries` wrote: doc_id → queries.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A line of another form or a repeated doc_id; the message names file and line.
    """
    queries: dict[str, list[Query]] = {}
    for number, record in read_jsonl(path):
        doc_id, found = record.get("doc_id"), record.get("queries")
        if not isinstance(doc_id, str) or not isinstance(found, list):
            raise ValueError(f"{path}:{number}: expected a doc_id and a list of queries")
        if not all(isinstance(query, str) for query in found) or doc_id in queries:
            raise ValueError(f"{path}:{number}: queries must be texts, and each doc_id come once")
        known = record.get("log_probabilities", [math.nan] * len(found))
        if not isinstance(known, list) or len(known) != len(found):
            raise ValueError(f"{path}:{number}: log_probabilities must be a list, one for each query")
        queries[doc_id] = [Query(*pair) for pair in zip(found, known, strict=True)]
    return queries
