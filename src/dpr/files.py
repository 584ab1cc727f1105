"""Files: read with line numbers in every error, written all or nothing, and folders that long work fills."""

import fcntl
import gzip
import json
import os
import shutil
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

MANIFEST, LOCK = "manifest.json", "lock"


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to it when the block ends without an error.

    Args:
        path: The file to make or replace; missing parent folders are made.

    Yields:
        A path in the same folder for the caller to write. After an error it is removed and a
        file already at `path` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path | str, *markers: str) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that takes its place when the block ends without an error.

    Args:
        path: The folder to make or replace; missing parent folders are made.
        *markers: Files of which a folder of this kind holds one: what lacks them is not replaced.

    Yields:
        An empty folder for the caller to fill. After an error it is removed, and what is at `path`
        stays as it was.

    Raises:
        ValueError: `path` is there, not empty, and has none of the `markers`.
    """
    path = Path(path)
    known = any((path / marker).is_file() for marker in markers)
    if path.exists() and not known and not (path.is_dir() and not any(path.iterdir())):
        raise ValueError(f"{path} has no {' or '.join(markers)}: it holds something else and is not replaced")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o755)
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically; gzipped, with the same bytes each time, where `path` ends in .gz."""
    data = text.encode("utf-8")
    if Path(path).suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def read_lines(path: Path | str) -> Iterator[tuple[int, str]]:
    """Yield the number (from 1) and text of each line that is not blank, without its line end.

    Args:
        path: A UTF-8 file, plain or (by the name's .gz) gzipped.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not UTF-8, a damaged gzip stream, or no line at all; names file and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    number, empty = 0, True
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
        try:
            for number, raw in enumerate(stream, start=1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if line.strip():
                    empty = False
                    yield number, line
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}:{number}: not UTF-8 ({error.reason}); convert the file") from None
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path}:{number + 1}: damaged gzip file ({error}); fetch it again") from None
    if empty:
        raise ValueError(f"{path}: the file is empty")


def read_jsonl(path: Path | str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the line number (from 1) and the object of each line of a JSON-lines file.

    Raises:
        ValueError: A line is not a JSON object; names file and line. See also `read_lines`.
    """
    for number, line in read_lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: not JSON ({error})") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path}:{number}: expected a JSON object, got {type(record).__name__}")
        yield number, record


class ShardFolder:
    """A folder of numbered files that long work fills: stopped anywhere, only what is missing is made.

    A manifest beside the shards says what they are made from. Beside each shard lie its seconds.

    Args:
        folder: Made by `open_for_writing`, where it is missing.
        manifest: What the shards are made from, as JSON values.
        num_items: N, of all shards together.
        shard_size: Items in a shard.
        ending: Of a shard's file, as `.npy`.

    Attributes:
        items: Each shard's file → the positions of its items, in order.

    Raises:
        ValueError: The folder holds something else, or shards made otherwise; names the field.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], num_items: int, shard_size: int, ending: str):
        self.folder, self.manifest, self.num_items = folder, manifest, num_items
        starts = range(0, num_items, shard_size)
        self.items = {
            folder / f"shard-{number:06}{ending}": range(start, min(start + shard_size, num_items))
            for number, start in enumerate(starts)
        }
        self._compare_manifest()

    def _compare_manifest(self) -> None:
        """Refuse a folder that holds something else, or shards made otherwise."""
        path = self.folder / MANIFEST
        if not path.is_file():
            entries = list(self.folder.iterdir()) if self.folder.is_dir() else []
            left_by_a_kill = [e for e in entries if e.name == LOCK or e.name.startswith(f".{MANIFEST}.")]
            if (self.folder.exists() and not self.folder.is_dir()) or len(left_by_a_kill) < len(entries):
                raise ValueError(
                    f"{self.folder} has no {MANIFEST}: it holds something else; name another folder"
                )
            return
        found = json.loads(path.read_text(encoding="utf-8"))
        for field, wanted in self.manifest.items():
            if found.get(field) != wanted:
                raise ValueError(
                    f"{path}: {field} is {found.get(field)!r}, now it would be {wanted!r}; "
                    "give another folder, or delete this one"
                )

    @contextmanager
    def open_for_writing(self) -> Iterator[None]:
        """Keep other processes out, remove what a killed one had half written, and write the manifest.

        Raises:
            ValueError: Another process is writing into the folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = "another process is writing into this folder; wait for it"
                raise ValueError(f"{self.folder}: {message}") from None
            for left_over in self.folder.glob(".*"):
                left_over.unlink()
            self._compare_manifest()
            write_text(self.folder / MANIFEST, json.dumps(self.manifest, indent=1) + "\n")
            yield

    def fill(
        self,
        missing: Mapping[Path, range],
        make: Callable[[Callable[[int], object]], Iterator[Any]],
        save: Callable[[Path, range, Any], None],
        label: str,
        unit: str,
    ) -> None:
        """Make shards one after the other and write each as soon as it is there, under a progress bar.

        Args:
            missing: The part of `items` to make.
            make: Gives the content of each of these in turn; it is handed a function to call with the
                number of items newly done.
            save: Writes a shard's content, all or nothing, given its file and items.
            label: What the bar says.
            unit: What an item is.

        Raises:
            OSError: Writing failed; the shards before are kept.
        """
        done = self.num_items - sum(map(len, missing.values()))
        with tqdm(total=self.num_items, initial=done, desc=label, unit=unit) as bar:
            start = time.perf_counter()
            for (path, items), content in zip(missing.items(), make(bar.update), strict=True):
                seconds = time.perf_counter() - start
                with writing(path):
                    write_text(path.with_suffix(".json"), json.dumps({"seconds": seconds}))
                    save(path, items, content)
                start = time.perf_counter()

    def seconds(self) -> float:
        """What all shards took, over all attempts."""
        texts = (path.with_suffix(".json").read_text(encoding="utf-8") for path in self.items)
        return sum(json.loads(text)["seconds"] for text in texts)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in an error what a failure to write `path` leaves behind."""
    try:
        yield
    except OSError as error:
        message = f"cannot write ({error.strerror}); the shards before are kept: make room and run again"
        raise OSError(error.errno, message, str(path)) from error
