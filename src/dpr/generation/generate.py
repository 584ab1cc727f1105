"""Queries for a whole collection, written to disk in numbered shards, so that the work can be resumed.

A shard is a file of JSON lines, `{"doc_id": …, "queries": […], "log_probabilities": […]}`. It is written
under a temporary name and then renamed. It depends only on its passages, its number and the manifest, so the
queries are the same however often the work was interrupted.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from dpr.arguments import checked
from dpr.data.collection import Collection
from dpr.data.text import segments
from dpr.files import read_jsonl, write_text
from dpr.generation.decoding import Decoding
from dpr.generation.writer import Query, Writer
from dpr.shards import ShardFolder

SHARD = 256  # passages
FORMAT = 1


@dataclass(frozen=True)
class Generated:
    """The queries written for a collection.

    Attributes:
        written: doc_id → its queries, in the order written; skipped passages are missing.
        num_skipped: Number of passages skipped because their text is too short.
        passages_per_s: Passages per second, over all attempts.
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
    collection: Collection,
    decoding: Decoding,
    *,
    seed: int = 0,
    overflow: str = "truncate",
    min_words: int = 5,
    shard_size: int = SHARD,
) -> Generated:
    """Write queries for a collection's passages into a folder, or only those that are missing there.

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
        shard_size: Passages in a shard; an interruption loses at most one shard.

    Raises:
        ValueError: The folder holds queries made with other settings, which the message names; another
            process is writing into it; a damaged shard; a size below 1; no passage is long enough.
    """
    folder = Path(folder)
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1, got {shard_size}")
    passages = [p for p in collection.passages if len(segments(p.text)) >= min_words]
    if not passages:
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
        "num_passages": len(passages),
        "shard_size": shard_size,
    }
    shards = ShardFolder(folder, manifest, len(passages), shard_size, ".jsonl")
    with shards.open_for_writing():
        seeds = {path: _shard_seed(seed, number) for number, path in enumerate(shards.items)}
        missing = {path: rows for path, rows in shards.items.items() if not shards.is_made(path)}

        def write(progress):
            blocks = ([passages[i].contents for i in rows] for rows in missing.values())
            return generator.generate_blocks(
                blocks, decoding, [seeds[path] for path in missing], overflow, progress=progress
            )

        def save(path, rows, found):
            written: dict[str, list[Query]] = {passages[i].doc_id: [] for i in rows}
            for queries, owner in zip(*found, strict=True):
                written[passages[rows.start + owner].doc_id] += queries
            write_queries(path, written)

        shards.fill(missing, write, save, f"{generator.name}: queries", "passage")
    written: dict[str, list[Query]] = {}
    for path, rows in shards.items.items():
        found = read_queries(path)
        if list(found) != [passages[i].doc_id for i in rows]:
            raise ValueError(f"{path}: damaged, it lacks passages; delete it and run again, the rest is kept")
        written |= found
    return Generated(written, len(collection.passages) - len(passages), len(passages) / shards.seconds())


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
