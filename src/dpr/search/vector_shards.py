"""Vectors that lie in several arrays or files, used as one array that is never in memory as a whole."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dpr.arguments import checked

BLOCK = 65_536  # rows written or converted at once


class VectorShards:
    """The rows of several arrays, one array after the other.

    `build_index` takes it in place of an array: every kind reads it block by block.

    Args:
        parts: Arrays or memory maps [n, D] of one dtype, in order.

    Attributes:
        shape: (N, D), where N is the sum of all n.
        dtype: Dtype of all parts.

    Raises:
        ValueError: There is no part, or one has another shape or dtype than the first; names its position.
    """

    ndim = 2

    @checked
    def __init__(self, parts: Sequence[np.ndarray]):
        if not parts:
            raise ValueError("VectorShards needs at least one array")
        first = parts[0]
        for number, part in enumerate(parts):
            if part.ndim != 2 or part.shape[1:] != first.shape[1:] or part.dtype != first.dtype:
                wanted = f"{first.dtype} [rows, {first.shape[-1]}]"
                raise ValueError(f"part {number} is {part.dtype} {part.shape}, expected {wanted} as part 0")
        self.parts = list(parts)
        self._edges = np.cumsum([0, *map(len, parts)])
        self.shape, self.dtype = (int(self._edges[-1]), first.shape[1]), first.dtype

    @classmethod
    @checked
    def open(cls, *places: Path | str) -> "VectorShards":
        """Open .npy files as memory maps: those named and, of a folder, its vectors or shards.

        Args:
            *places: Files, or folders with vectors.npy, as `encode_collection` makes them, or with
                `shard-*.npy`; the rows come in the order of the places.

        Raises:
            FileNotFoundError: A place does not exist, or a folder has no vectors.
            ValueError: A file is damaged (the message names it), or as in `VectorShards`.
        """
        return cls([open_array(path) for place in places for path in _files(Path(place))])

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def size(self) -> int:
        """Number of values, N × D."""
        return self.shape[0] * self.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of all vectors, in memory or on disk."""
        return self.size * self.dtype.itemsize

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """Rows of a slice [n, D], without a copy if they are in one part, or of an array of positions.

        Args:
            rows: A slice that goes upwards, or positions int [...]; negative ones count from the end.
        """
        if isinstance(rows, slice):
            wanted = range(*rows.indices(len(self)))
            found = [self._of_part(number, wanted) for number in range(len(self.parts))]
            found = [part for part in found if len(part)] or found[:1]
            return found[0] if len(found) == 1 else np.concatenate(found)
        positions = np.where(rows < 0, rows + len(self), rows)
        out = np.empty((*positions.shape, self.shape[1]), dtype=self.dtype)
        owners = np.searchsorted(self._edges, positions, side="right") - 1
        for number in np.unique(owners):
            here = owners == number
            out[here] = self.parts[number][positions[here] - self._edges[number]]
        return out

    def _of_part(self, number: int, wanted: range) -> np.ndarray:
        """The wanted rows that are in one part."""
        start, end = self._edges[number : number + 2].tolist()
        skipped = max(0, -(-(start - wanted.start) // wanted.step))
        first, last = wanted.start + skipped * wanted.step, min(end, wanted.stop)
        return self.parts[number][first - start : max(first, last) - start : wanted.step]


def _files(place: Path) -> list[Path]:
    """The files of one place, in order."""
    for whole in (place, place / "vectors.npy"):
        if whole.is_file():
            return [whole]
    found = sorted(path for path in place.glob("shard-*.npy") if not path.name.endswith(".owners.npy"))
    if not found:
        raise FileNotFoundError(f"{place}: no such file, and no folder with vectors.npy or shard-*.npy")
    return found


def open_array(path: Path) -> np.ndarray:
    """Open an array file as a memory map, of the shape in the file: [n, D].

    Raises:
        ValueError: It is damaged.
    """
    try:
        return np.load(path, mmap_mode="r")
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path}: damaged ({error}); delete it and run again, the rest is kept") from None


def save_rows(path: Path, vectors: np.ndarray | VectorShards) -> None:
    """Write vectors [N, D] as one .npy file, block by block; a full disk raises OSError."""
    header = {"descr": vectors.dtype.str, "fortran_order": False, "shape": tuple(vectors.shape)}
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        for start in range(0, len(vectors), BLOCK):
            stream.write(np.ascontiguousarray(vectors[start : start + BLOCK]).data)
