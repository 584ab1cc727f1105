"""Encoding passages to disk in numbered shards; after an interruption only the missing ones are encoded.

A shard is written under a temporary name and renamed. Its bytes depend only on its passages and the
manifest's settings, so the vectors are the same however often the work was interrupted. Once complete,
the shards are joined into one array, which is read as a memory map.
"""

import io
import json
import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from errno import ENOSPC
from pathlib import Path
from typing import Any

import numpy as np

from dpr.arguments import checked
from dpr.data.collection import Collection, Passage
from dpr.data.corpus_file import CorpusFile, passages_at
from dpr.files import atomic_path, crc32, read_json, write_text
from dpr.models.batching import OVERFLOWS
from dpr.models.bi_encoder import BiEncoder
from dpr.models.sending import after_sending, before_sending
from dpr.models.two_encoders import TwoEncoders
from dpr.search.vector_shards import VectorShards, open_array, save_rows
from dpr.shards import MANIFEST, ShardFolder, writing
from dpr.shards_on_ray import check_engine, fill_missing

CPU_SHARD, GPU_SHARD = 1_024, 16_384  # passages per shard
DTYPES = ("float32", "float16")
VECTORS, OWNERS, TIMING = "vectors.npy", "owners.npy", "timing.json"
FORMAT = 1


@dataclass(frozen=True)
class Encoded:
    """The vectors of a collection's passages, on disk.

    Attributes:
        folder: Folder of the files.
        rows: float32 or float16 [rows, ΣD], memory-mapped; the columns of every pooling side by side.
        doc_ids: Id of each row's document, in the collection's order; with chunks, once per chunk.
        columns: Pooling → its columns in `rows`.
        chunks: Whether a document may have several rows.
        texts_per_s: Passages that one process encoded per second, over all attempts; NaN if that was lost.
    """

    folder: Path
    rows: np.ndarray = field(repr=False)
    doc_ids: list[str] = field(repr=False)
    columns: dict[str, slice]
    chunks: bool
    texts_per_s: float

    @property
    def vectors(self) -> np.ndarray:
        """Vectors [rows, D] of the first pooling, memory-mapped."""
        return self.of(next(iter(self.columns)))

    def of(self, pooling: str) -> np.ndarray:
        """Vectors [rows, D] of one pooling, memory-mapped.

        Raises:
            ValueError: The passages were not encoded with that pooling.
        """
        if pooling not in self.columns:
            raise ValueError(f"{self.folder} has the poolings {list(self.columns)}, not {pooling!r}")
        return self.rows[:, self.columns[pooling]]


@checked
def encode_collection(
    folder: Path | str,
    encoder: BiEncoder | TwoEncoders,
    collection: Collection | CorpusFile,
    *,
    poolings: Sequence[str] | None = None,
    overflow: str = "truncate",
    dtype: str = "float32",
    shard_size: int | None = None,
    batch_tokens: int | None = None,
    engine: str = "local",
    workers: int | None = None,
) -> Encoded:
    """Encode a collection's passages into a folder; shards that are already there are kept.

    While the shards are joined, the disk holds all vectors twice; memory holds two shards. With Ray, workers
    encode at the same time, each as one process does, and the vectors are the same as far as their machines
    compute the same; what one engine began the other can finish. On several machines, the folder and a
    `CorpusFile` must lie at the same path for all, and this package be installed.

    Args:
        folder: A folder for this encoder, collection and settings only; created if it is missing.
        encoder: The encoder; of `TwoEncoders` the one for passages.
        collection: N passages. Each of Ray's workers holds those of a `Collection`, but not a `CorpusFile`'s.
        poolings: Poolings to compute in one pass through the model; by default the encoder's own.
        overflow: What happens to a passage beyond the encoder's length: `truncate` cuts it,
            `max_chunk` splits it into as many rows as needed.
        dtype: Number format on disk, `float32` or `float16`.
        shard_size: Passages per shard, and the most that an interruption can lose. By default 1,024,
            on a GPU 16,384.
        batch_tokens: See `BiEncoder.encode_blocks`.
        engine: `local` encodes in this process. `ray` encodes in several: in the cluster that `ray.init` or
            RAY_ADDRESS names, else in one of this machine, which is shut down at the end.
        workers: Number of Ray's workers, each on a GPU or, if there is none, one core; by default all.

    Raises:
        ValueError: The folder holds vectors of another model, collection or setting (the message names
            which), another process is encoding into it, a shard is damaged, there are no passages, a dtype,
            overflow, pooling, size or engine is invalid, a vector is not finite, a `CorpusFile` has changed,
            Ray is not installed, or its cluster has too few CPUs or GPUs.
        OSError: The disk is full; shards already written are kept.
        RuntimeError: One of Ray's workers died again and again; shards already written are kept.
    """
    check_engine(engine, workers)
    folder, encoder = Path(folder), encoder.passage
    on_cpu = encoder.model.device.type == "cpu"
    poolings = list(poolings or [encoder.config.pooling])
    shard_size = (CPU_SHARD if on_cpu else GPU_SHARD) if shard_size is None else shard_size
    batch_tokens = encoder.batch_tokens if batch_tokens is None else batch_tokens
    for name, value, known in (("dtype", dtype, DTYPES), ("overflow", overflow, OVERFLOWS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {known}, got {value!r}")
    sizes = {"shard_size": shard_size, "batch_tokens": batch_tokens, "passages": len(collection.passages)}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    manifest = {
        "format": FORMAT,
        "passage_max_length": encoder.config.passage_max_length,
        "normalize": encoder.config.normalize,
        "model": encoder.passage_fingerprint,
        "num_passages": len(collection.passages),
        "collection": collection.fingerprint,
        "poolings": [[pooling, encoder.dimension_of(pooling)] for pooling in poolings],
        "overflow": overflow,
        "dtype": dtype,
        "precision": encoder.precision,
        "shard_size": shard_size,
        "batch_tokens": batch_tokens,
    }
    shards = ShardFolder(folder, manifest, len(collection.passages), shard_size, ".npy")
    if not (folder / VECTORS).is_file() or any(map(Path.exists, shards.files())):
        with shards.open_for_writing():
            if not (folder / VECTORS).is_file():
                missing = {path: rows for path, rows in shards.items.items() if not shards.is_made(path)}
                _check_space(shards, sum(map(len, missing.values())))
                work = _Encoding(encoder, collection.passages, manifest)
                fill_missing(shards, missing, work, f"{encoder.name}: passages", "text", engine, workers)
                _assemble(shards)
            for path in shards.files():
                path.unlink(missing_ok=True)
    return _open(folder, manifest, collection.doc_ids)


@dataclass
class _Encoding:
    """Encodes and writes shards of passages; with chunks, a second file holds each row's passage."""

    encoder: BiEncoder
    passages: Sequence[Passage]
    manifest: dict[str, Any]

    def __getstate__(self) -> dict[str, Any]:
        before_sending()
        return vars(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        after_sending(self.encoder.model)

    @property
    def device(self) -> str:
        return str(self.encoder.model.device)

    def move(self, device: str) -> None:
        self.encoder.model.to(device)

    def make(
        self, items: Iterable[range], progress: Callable[[int], object]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        blocks = ([p.contents for p in passages_at(self.passages, rows)] for rows in items)
        return self.encoder.encode_blocks(
            blocks,
            overflow=self.manifest["overflow"],
            poolings=[pooling for pooling, _ in self.manifest["poolings"]],
            batch_tokens=self.manifest["batch_tokens"],
            progress=progress,
        )

    def save(self, path: Path, items: range, content: tuple[np.ndarray, np.ndarray]) -> None:
        vectors, owners = content
        with np.errstate(over="ignore"):
            kept = vectors.astype(self.manifest["dtype"], copy=False)
        bad = np.flatnonzero(~np.isfinite(kept).all(axis=1))
        if len(bad):
            doc_id = self.passages[items.start + int(owners[bad[0]])].doc_id
            raise ValueError(
                f"{path.parent}: the vector of document {doc_id}, computed in {self.manifest['precision']}, "
                f"is not finite in {self.manifest['dtype']}; use float32"
            )
        if self.manifest["overflow"] == "max_chunk":
            _save(path.with_suffix(".owners.npy"), owners + items.start)
        _save(path, kept)


def _check_space(shards: ShardFolder, num_missing: int) -> None:
    """Raise OSError if the disk has too little space for the missing shards and the joined array."""
    row_bytes = _width(shards.manifest) * np.dtype(shards.manifest["dtype"]).itemsize
    needed = (shards.num_items + num_missing) * row_bytes  # the joined array and the missing shards
    free = shutil.disk_usage(shards.folder).free
    if free < needed:
        message = f"encoding needs {needed / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free"
        raise OSError(ENOSPC, message, str(shards.folder))


def _save(path: Path, array: np.ndarray) -> None:
    """Write an array all or nothing, through a stream: unlike a memory map, it reports a full disk."""
    stream = io.BytesIO()
    np.save(stream, array)
    with atomic_path(path) as temporary:
        temporary.write_bytes(stream.getbuffer())


def _assemble(shards: ShardFolder) -> None:
    """Join the shards in order into one array file."""
    folder, manifest = shards.folder, shards.manifest
    if manifest["overflow"] == "max_chunk":
        owners = np.concatenate([open_array(path.with_suffix(".owners.npy")) for path in shards.items])
        with writing(folder / OWNERS):
            _save(folder / OWNERS, owners)
    vectors = folder / VECTORS
    with writing(vectors), atomic_path(vectors) as temporary:
        save_rows(temporary, VectorShards([open_array(path) for path in shards.items]))
        about = {"seconds": shards.seconds(), "crc32": crc32(temporary)}
        if manifest["overflow"] == "max_chunk":
            about["crc32_owners"] = crc32(folder / OWNERS)
        write_text(folder / TIMING, json.dumps(about))


def _width(manifest: dict[str, Any]) -> int:
    """ΣD, the number of columns of all poolings together."""
    return sum(dimension for _, dimension in manifest["poolings"])


def _open(folder: Path, manifest: dict[str, Any], doc_ids: list[str]) -> Encoded:
    """Open the vectors in a complete folder; without its `TIMING`, speed and checksums are unknown."""
    chunks = manifest["overflow"] == "max_chunk"
    about = read_json(folder / TIMING, "seconds") if (folder / TIMING).is_file() else {"seconds": math.nan}
    for name, checksum in ((VECTORS, "crc32"), (OWNERS, "crc32_owners")):
        if checksum in about and about[checksum] != crc32(folder / name):
            raise ValueError(f"{folder / name}: damaged; delete the folder {folder} and encode again")
    if chunks:
        doc_ids = [doc_ids[i] for i in open_array(folder / OWNERS)]
    ends = np.cumsum([dimension for _, dimension in manifest["poolings"]]).tolist()
    columns = {
        pooling: slice(end - dimension, end)
        for (pooling, dimension), end in zip(manifest["poolings"], ends, strict=True)
    }
    vectors = open_array(folder / VECTORS)
    if vectors.shape != (len(doc_ids), _width(manifest)) or vectors.dtype != manifest["dtype"]:
        raise ValueError(
            f"{folder / VECTORS}: {vectors.dtype} {vectors.shape} is not what {MANIFEST} says; delete the "
            "folder and encode again"
        )
    return Encoded(folder, vectors, doc_ids, columns, chunks, manifest["num_passages"] / about["seconds"])
