"""Passages encoded to disk in numbered shards: stopped anywhere and started again, only the rest is encoded.

A shard is written under a temporary name and renamed, and its bytes depend on nothing but its passages
and the manifest's settings, so the vectors are the same however often the work was interrupted. When
all shards are there they become one array, which is read as a memory map.
"""

import fcntl
import io
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from errno import ENOSPC
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dpr.collection import Collection
from dpr.encoder import BiEncoder
from dpr.files import atomic_path, read_jsonl, write_text
from dpr.two_encoders import TwoEncoders

CPU_SHARD, GPU_SHARD = 1_024, 16_384  # passages
FORMAT = 1


@dataclass(frozen=True)
class Encoded:
    """The vectors of a collection's passages, on disk.

    Attributes:
        folder: Where they are.
        rows: float32 or float16 [rows, ΣD], memory-mapped; the columns of every pooling side by side.
        doc_ids: The document of each row: each once in the collection's order, and with chunks as
            often as it has chunks.
        columns: Pooling → its columns in `rows`.
        chunks: Whether a document may have several rows.
        texts_per_s: Passages encoded a second, over all attempts.
    """

    folder: Path
    rows: np.ndarray
    doc_ids: list[str]
    columns: dict[str, slice]
    chunks: bool
    texts_per_s: float

    @property
    def vectors(self) -> np.ndarray:
        """[rows, D] of the first pooling, memory-mapped."""
        return self.of(next(iter(self.columns)))

    def of(self, pooling: str) -> np.ndarray:
        """[rows, D] of one pooling, memory-mapped.

        Raises:
            ValueError: Not encoded with that pooling.
        """
        if pooling not in self.columns:
            raise ValueError(f"{self.folder} has the poolings {list(self.columns)}, not {pooling!r}")
        return self.rows[:, self.columns[pooling]]


def encode_collection(
    folder: Path | str,
    encoder: BiEncoder | TwoEncoders,
    collection: Collection,
    *,
    poolings: Sequence[str] | None = None,
    overflow: str = "truncate",
    dtype: str = "float32",
    shard_size: int | None = None,
    batch_tokens: int | None = None,
) -> Encoded:
    """Encode a collection's passages into a folder, or only what is missing of them there.

    While the shards are put together the disk holds them twice; in memory there are two shards.

    Args:
        folder: One for each encoder, collection and setting; made where missing.
        encoder: Its passage side encodes.
        collection: N passages.
        poolings: Several poolings from one pass through the model; by default the encoder's own.
        overflow: What becomes of a passage beyond the encoder's length: `truncate`, or `max_chunk`
            for as many rows as it takes.
        dtype: `float32` or `float16` on disk.
        shard_size: Passages in a shard: what an interruption can cost. By default 1,024, on a GPU
            16,384.
        batch_tokens: See `BiEncoder.encode_blocks`.

    Raises:
        ValueError: The folder holds vectors of another model, collection or setting, which the
            message names; another process is encoding into it; a damaged shard; an unknown dtype,
            overflow or pooling.
        OSError: The disk is full; shards already written stay.
    """
    folder, encoder = Path(folder), encoder.passage
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype must be 'float32' or 'float16', got {dtype!r}")
    on_cpu = encoder.model.device.type == "cpu"
    poolings = list(poolings or [encoder.config.pooling])
    manifest = {
        "format": FORMAT,
        "passage_max_length": encoder.config.passage_max_length,
        "normalize": encoder.config.normalize,
        "model": encoder.passage_fingerprint,
        "num_passages": len(collection.passages),
        "collection": collection.fingerprint,
        "poolings": {pooling: encoder.dimension_of(pooling) for pooling in poolings},
        "overflow": overflow,
        "dtype": dtype,
        "precision": encoder.precision,
        "shard_size": shard_size or (CPU_SHARD if on_cpu else GPU_SHARD),
        "batch_tokens": batch_tokens or encoder.batch_tokens,
    }
    _claim(folder, manifest)
    if not (folder / "vectors.npy").is_file():
        with _locked(folder):
            _encode_missing(folder, encoder, collection, manifest)
            _assemble(folder, manifest)
    for path in folder.glob("shard-*.npy"):
        path.unlink()
    return _open(folder, manifest, collection.doc_ids)


def _claim(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest into a new folder, or compare it with the one that is there."""
    path = folder / "manifest.json"
    if not path.is_file():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} has no manifest.json: it holds something else; name another folder")
        write_text(path, json.dumps(manifest, indent=1) + "\n")
    found = json.loads(path.read_text(encoding="utf-8"))
    for field, wanted in manifest.items():
        if found.get(field) != wanted:
            raise ValueError(
                f"{path}: {field} is {found.get(field)!r}, now it would be {wanted!r}; "
                "encode into another folder, or delete this one"
            )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder, and remove what a killed one had half written."""
    with (folder / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another process is encoding into this folder; wait for it") from None
        for left_over in folder.glob(".*.npy"):
            left_over.unlink()
        yield


def _shards(folder: Path, manifest: dict[str, Any]) -> list[tuple[Path, range]]:
    """Each shard's file and passages."""
    count, size = manifest["num_passages"], manifest["shard_size"]
    starts = range(0, count, size)
    return [
        (folder / f"shard-{number:06}.npy", range(start, min(start + size, count)))
        for number, start in enumerate(starts)
    ]


def _encode_missing(folder: Path, encoder: BiEncoder, collection: Collection, manifest) -> None:
    """Encode and write each shard that is not there."""
    shards = _shards(folder, manifest)
    missing = [(path, rows) for path, rows in shards if not path.is_file()]
    _check_space(folder, manifest, len(shards) - len(missing))
    blocks = ([collection.passages[i].contents for i in rows] for _, rows in missing)
    count = manifest["num_passages"]
    done = count - sum(len(rows) for _, rows in missing)
    with tqdm(total=count, initial=done, desc=f"{encoder.name}: passages", unit="text") as bar:
        encoded = encoder.encode_blocks(
            blocks,
            overflow=manifest["overflow"],
            poolings=list(manifest["poolings"]),
            batch_tokens=manifest["batch_tokens"],
            progress=bar.update,
        )
        start = time.perf_counter()
        for (path, rows), (vectors, owners) in zip(missing, encoded, strict=True):
            seconds = time.perf_counter() - start
            with _writing(path):
                with (folder / "timing.jsonl").open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps({"texts": len(rows), "encode_s": round(seconds, 3)}) + "\n")
                if manifest["overflow"] == "max_chunk":
                    _save(path.with_suffix(".owners.npy"), owners + rows.start)
                _save(path, vectors.astype(manifest["dtype"], copy=False))
            start = time.perf_counter()


def _check_space(folder: Path, manifest: dict[str, Any], num_done: int) -> None:
    """Refuse to begin what cannot end."""
    row_bytes = sum(manifest["poolings"].values()) * np.dtype(manifest["dtype"]).itemsize
    done = min(num_done * manifest["shard_size"], manifest["num_passages"])
    needed = (2 * manifest["num_passages"] - done) * row_bytes  # once in shards, once put together
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            ENOSPC, f"encoding needs {needed / 2**20:,.0f} MiB, {free / 2**20:,.0f} MiB are free", str(folder)
        )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Say what a failure to write leaves behind."""
    try:
        yield
    except OSError as error:
        message = f"cannot write ({error.strerror}); the shards before are kept: make room and run again"
        raise OSError(error.errno, message, str(path)) from error


def _save(path: Path, array: np.ndarray) -> None:
    """Write an array all or nothing; through a stream, which reports a full disk, as mapping does not."""
    stream = io.BytesIO()
    np.save(stream, array)
    with atomic_path(path) as temporary:
        temporary.write_bytes(stream.getbuffer())


def _assemble(folder: Path, manifest: dict[str, Any]) -> None:
    """Put the shards together in order."""
    paths = [path for path, _ in _shards(folder, manifest)]
    if manifest["overflow"] == "max_chunk":
        _save(
            folder / "owners.npy", np.concatenate([_load(path.with_suffix(".owners.npy")) for path in paths])
        )
    shape = (sum(len(_load(path)) for path in paths), sum(manifest["poolings"].values()))
    header = {"descr": np.dtype(manifest["dtype"]).str, "fortran_order": False, "shape": shape}
    vectors = folder / "vectors.npy"
    with _writing(vectors), atomic_path(vectors) as temporary, temporary.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for path in paths:
            stream.write(np.ascontiguousarray(_load(path)).data)


def _load(path: Path) -> np.ndarray:
    """A shard, memory-mapped."""
    try:
        return np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: damaged ({error}); delete it and run again, the rest is kept") from None


def _open(folder: Path, manifest: dict[str, Any], doc_ids: list[str]) -> Encoded:
    """What is in a complete folder."""
    chunks = manifest["overflow"] == "max_chunk"
    if chunks:
        doc_ids = [doc_ids[i] for i in np.load(folder / "owners.npy")]
    ends = np.cumsum(list(manifest["poolings"].values())).tolist()
    starts = [0, *ends[:-1]]
    columns = {p: slice(a, b) for p, a, b in zip(manifest["poolings"], starts, ends, strict=True)}
    timed = [record for _, record in read_jsonl(folder / "timing.jsonl")]
    texts_per_s = sum(t["texts"] for t in timed) / sum(t["encode_s"] for t in timed)
    return Encoded(folder, _load(folder / "vectors.npy"), doc_ids, columns, chunks, texts_per_s)
