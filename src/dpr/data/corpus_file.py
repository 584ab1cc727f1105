"""A corpus that need not fit into memory: passages in a file, read when they are asked for."""

from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from dpr.arguments import checked
from dpr.data.beir import checked_passages, passage_of
from dpr.data.collection import Passage, digest_of
from dpr.files import json_object, read_lines_at

ID_COLUMNS = ("_id", "doc_id")  # of a parquet file; the first that it has counts
ROWS = 1_024  # turned into Python objects at a time
STACKLEVEL = 6  # from `checked_passages` up to who makes a CorpusFile


class CorpusFile:
    """The passages of a file, of which only ids and places are kept in memory.

    Making one reads the file once, and checks each passage as `read_corpus` does. `encode_collection` and
    `generate_queries` take it in place of a `Collection`; a folder begun with one is finished with the other.

    Args:
        path: A file of lines `{"_id": …, "title": …, "text": …}`, such as BEIR's corpus.jsonl, not
            gzipped; or a parquet file, or a folder of them in the order of their names, with the columns
            `_id` or `doc_id`, `text` and perhaps `title`. Of a parquet file whole row groups are read.
        name: The corpus's name; by default the file's or, if that is `corpus`, its folder's.

    Attributes:
        name: The corpus's name.
        passages: All N passages, in order, read when they are asked for.
        doc_ids: The N document ids.
        fingerprint: That of a `Collection` of these passages.

    Raises:
        ValueError: The file is gzipped, a parquet file lacks a column or is damaged, pyarrow is not installed
            for one, or a line or row is refused as in `read_corpus`; the message names file and line or row,
            from 1. Reading a passage raises it if the file has changed since.
        FileNotFoundError: The file does not exist, or the folder has no parquet file.
    """

    @checked
    def __init__(self, path: Path | str, name: str | None = None):
        path = Path(path)
        if path.suffix == ".gz":
            raise ValueError(
                f"{path}: a gzipped file can only be read from its beginning; unpack it (gunzip)"
            )
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such file")
        kind = _RowGroups if path.is_dir() or path.suffix == ".parquet" else _Lines
        self.passages: PassagesOnDisk = kind(path)
        self.doc_ids: list[str] = []
        self.fingerprint: str = digest_of(self._fields())
        own = path.resolve()
        self.name: str = name or (own.parent.name if own.stem == "corpus" else own.stem)

    def _fields(self) -> Iterator[str]:
        """Id, title and text of each passage in turn; the ids are kept."""
        for passage in self.passages.scan():
            self.doc_ids.append(passage.doc_id)
            yield from passage


class PassagesOnDisk(Sequence[Passage]):
    """The passages of files; it keeps their places, so that another process it is sent to opens them itself.

    Args:
        files: The files.
    """

    def __init__(self, files: Sequence[Path]):
        self._states = {path.resolve(): _state(path) for path in files}

    @abstractmethod
    def scan(self) -> Iterator[Passage]:
        """Read and check all passages, and note their places."""

    @abstractmethod
    def _read(self, positions: Iterable[int]) -> Iterator[Passage]:
        """The passages at positions from 0; files are opened once."""

    def at(self, positions: Iterable[int]) -> Iterator[Passage]:
        """Yield the passages at positions from 0, best in ascending order.

        Raises:
            ValueError: A file has changed since its places were noted.
            FileNotFoundError: A file is gone.
        """
        for path, state in self._states.items():
            if _state(path) != state:
                raise ValueError(f"{path}: changed since it was opened; make a new CorpusFile of it")
        yield from self._read(positions)

    def __getitem__(self, index):
        found = range(len(self))[index]
        return list(self.at(found)) if isinstance(index, slice) else next(self.at([found]))

    def __iter__(self) -> Iterator[Passage]:
        return self.at(range(len(self)))


class _Lines(PassagesOnDisk):
    """The passages of a file of JSON lines, by the first bytes of its lines."""

    def __init__(self, path: Path):
        super().__init__([path])
        self._path, self._starts = path, np.empty(0, dtype=np.int64)

    def scan(self) -> Iterator[Passage]:
        starts = array("q")

        def records():
            for number, start, line in read_lines_at(self._path):
                where = f"{self._path}:{number}"
                starts.append(start)
                yield where, json_object(line, where)

        yield from checked_passages(records(), STACKLEVEL + 1)
        self._path, self._starts = self._path.resolve(), np.array(starts, dtype=np.int64)

    def _read(self, positions: Iterable[int]) -> Iterator[Passage]:
        with self._path.open("rb") as stream:
            for position in positions:
                start = int(self._starts[position])
                stream.seek(start)
                line = stream.readline().decode("utf-8" if start else "utf-8-sig")
                where = f"{self._path}: passage {position}"
                yield passage_of(json_object(line, where), where)[0]

    def __len__(self) -> int:
        return len(self._starts)


class _RowGroups(PassagesOnDisk):
    """The passages of parquet files, by the row groups that hold them."""

    def __init__(self, path: Path):
        files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not files:
            raise FileNotFoundError(
                f"{path}: a folder without *.parquet; give the path of a parquet file or of corpus.jsonl"
            )
        super().__init__(files)
        self._files = files
        self._groups: list[tuple[Path, int]] = []  # file and number in it
        self._ends = np.empty(0, dtype=np.int64)  # position after the last passage of each group

    def scan(self) -> Iterator[Passage]:
        lengths: list[int] = []
        yield from checked_passages(self._records(lengths), STACKLEVEL + 1)
        if not sum(lengths):
            raise ValueError(f"{self._files[0]}: the file is empty")
        self._ends = np.cumsum(lengths, dtype=np.int64)

    def _records(self, lengths: list[int]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Where each row stands, and the row; notes the row groups and their lengths."""
        for path in self._files:
            before = 0
            for group, table in enumerate(_tables(path)):
                batches = table.to_batches(max_chunksize=ROWS)
                rows = (row for batch in batches for row in batch.to_pylist())
                for number, row in enumerate(rows, start=before + 1):
                    yield f"{path}:{number}", row
                self._groups.append((path.resolve(), group))
                lengths.append(len(table))
                before += len(table)

    def _read(self, positions: Iterable[int]) -> Iterator[Passage]:
        def group_of(position: int) -> int:
            return int(np.searchsorted(self._ends, position, side="right"))

        for number, inside in groupby(positions, group_of):
            path, group = self._groups[number]
            start = int(self._ends[number - 1]) if number else 0
            (table,) = _tables(path, [group])
            for position in inside:
                (row,) = table.slice(int(position) - start, 1).to_pylist()
                yield passage_of(row, f"{path}: passage {position}")[0]

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0


@checked
def passages_at(passages: Sequence[Passage], positions: Iterable[int]) -> list[Passage]:
    """The passages at positions from 0, of a list or of a file, which is opened once."""
    if isinstance(passages, PassagesOnDisk):
        return list(passages.at(positions))
    return [passages[position] for position in positions]


def _state(path: Path) -> tuple[int, int]:
    """Size in bytes and time of the last change in ns."""
    try:
        found = path.stat()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    return found.st_size, found.st_mtime_ns


def _tables(path: Path, groups: Iterable[int] | None = None) -> Iterator[Any]:
    """Ids (as `_id`), titles and texts of a parquet file's row groups, or of some; a table for each.

    Raises:
        ValueError: pyarrow is not installed, the file lacks a column, or it is damaged.
    """
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise ValueError(
            f"{path}: parquet needs the package pyarrow: `pip install pyarrow`, or give corpus.jsonl"
        ) from None
    try:
        with ParquetFile(path) as file:
            there = file.schema_arrow.names
            own_id = next((name for name in ID_COLUMNS if name in there), None)
            if own_id is None or "text" not in there:
                needed = f"{' or '.join(ID_COLUMNS)} and text"
                raise ValueError(f"{path}: needs the columns {needed}, it has {', '.join(there)}")
            columns = [own_id, "text", *({"title"} & {*there})]
            for group in range(file.num_row_groups) if groups is None else groups:
                table = file.read_row_group(group, columns).select(columns)
                yield table.rename_columns(["_id", *columns[1:]])
    except ArrowInvalid as error:
        raise ValueError(f"{path}: damaged, or no parquet file ({error})") from None
