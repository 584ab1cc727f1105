"""Queries for a whole collection, written to disk in numbered shards: stopped anywhere, the rest is made.

A shard is a file of JSON lines, `{"doc_id": …, "queries": […]}`. It is written under a temporary name and
renamed, and depends on nothing but its passages, its number and the manifest, so the queries are the same
however often the work was interrupted.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tqdm import tqdm

from dpr.data.collection import Collection
from dpr.files import MANIFEST, compare_manifest, locked, read_jsonl, write_text, writing
from dpr.generation.decoding import Decoding
from dpr.generation.generator import QueryGenerator

SHARD = 256  # passages
FORMAT = 1


@dataclass(frozen=True)
class Generated:
    """The queries written for a collection.

    Attributes:
        queries: doc_id → its queries, in the order written; passages left out are missing.
        num_skipped: Passages left out because their text is too short.
        passages_per_s: Passages a second, over all attempts.
    """

    queries: dict[str, list[str]]
    num_skipped: int
    passages_per_s: float


def generate_queries(
    folder: Path | str,
    generator: QueryGenerator,
    collection: Collection,
    decoding: Decoding,
    *,
    seed: int = 0,
    overflow: str = "truncate",
    min_words: int = 5,
    shard_size: int = SHARD,
) -> Generated:
    """Write queries for a collection's passages into a folder, or only what is missing of them there.

    Args:
        folder: One for each generator, collection and setting; made where missing.
        generator: Reads `passage_max_length` tokens of a passage.
        collection: N passages.
        decoding: How queries are written.
        seed: Of sampling; each shard has a random state of its own.
        overflow: What becomes of a passage beyond the generator's length: `truncate`, or `max_chunk` for
            `num_queries` queries for each part of it.
        min_words: Passages whose text, without its title, has fewer words are left out.
        shard_size: Passages in a shard: what an interruption can cost.

    Raises:
        ValueError: The folder holds queries made otherwise, which the message names; another process is
            writing into it; a damaged shard; a size below 1; no passage that is long enough.
    """
    folder = Path(folder)
    if shard_size < 1:
        raise ValueError(f"shard_size must be at least 1, got {shard_size}")
    passages = [p for p in collection.passages if len(p.text.split()) >= min_words]
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
    compare_manifest(folder, manifest)
    folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(passages), shard_size)
    shards = {folder / f"shard-{n:06}.jsonl": (n, start) for n, start in enumerate(starts)}
    with locked(folder):
        compare_manifest(folder, manifest)
        write_text(folder / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        missing = {path: where for path, where in shards.items() if not path.is_file()}
        blocks = {path: passages[start : start + shard_size] for path, (_, start) in missing.items()}
        _write_missing(generator, decoding, missing, blocks, seed, overflow, len(passages))
    queries: dict[str, list[str]] = {}
    seconds = 0.0
    for path, (_, start) in shards.items():
        found = read_queries(path)
        expected = [p.doc_id for p in passages[start : start + shard_size]]
        if list(found) != expected:
            raise ValueError(f"{path}: damaged, it lacks passages; delete it and run again, the rest is kept")
        queries |= found
        seconds += json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))["generate_s"]
    return Generated(queries, len(collection.passages) - len(passages), len(passages) / seconds)


def _write_missing(generator, decoding, missing, blocks, seed, overflow, count) -> None:
    """Write each shard that is not there, its seconds first."""
    done = count - sum(map(len, blocks.values()))
    with tqdm(total=count, initial=done, desc=f"{generator.name}: queries", unit="passage") as bar:
        written = generator.generate_blocks(
            ([passage.contents for passage in block] for block in blocks.values()),
            decoding,
            [_shard_seed(seed, number) for number, _ in missing.values()],
            overflow,
            progress=bar.update,
        )
        start = time.perf_counter()
        for (path, block), (rows, owners) in zip(blocks.items(), written, strict=True):
            queries: dict[str, list[str]] = {passage.doc_id: [] for passage in block}
            for found, owner in zip(rows, owners, strict=True):
                queries[block[owner].doc_id] += found
            with writing(path):
                seconds = {"generate_s": time.perf_counter() - start}
                write_text(path.with_suffix(".json"), json.dumps(seconds))
                write_queries(path, queries)
            start = time.perf_counter()


def _shard_seed(seed: int, number: int) -> int:
    """Another seed for each shard of each run."""
    return seed * 1_000_003 + number


def write_queries(path: Path | str, queries: Mapping[str, Sequence[str]]) -> None:
    """Write queries as JSON lines, gzipped where `path` ends in .gz."""
    lines = (
        json.dumps({"doc_id": doc_id, "queries": list(found)}, ensure_ascii=False)
        for doc_id, found in queries.items()
    )
    write_text(path, "".join(f"{line}\n" for line in lines))


def read_queries(path: Path | str) -> dict[str, list[str]]:
    """Read what `write_queries` wrote: doc_id → queries.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A line that is no such object, or a doc_id twice; names file and line.
    """
    queries: dict[str, list[str]] = {}
    for number, record in read_jsonl(path):
        doc_id, found = record.get("doc_id"), record.get("queries")
        if not isinstance(doc_id, str) or not isinstance(found, list):
            raise ValueError(f"{path}:{number}: expected a doc_id and a list of queries")
        if not all(isinstance(query, str) for query in found) or doc_id in queries:
            raise ValueError(f"{path}:{number}: queries must be texts, and each doc_id come once")
        queries[doc_id] = found
    return queries
