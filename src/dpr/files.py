"""Reading files with line numbers in errors, writing them all or nothing, and resumable folders of shards."""

import fcntl
import gzip
import json
import os
import re
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
# Names that `atomic_path` writes under; a killed process leaves them, and nobody else makes such names
TEMPORARY_FILE = re.compile(r"\..+(\.\w+)\.\w{8}\1")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to it when the block ends without an error.

    Args:
        path: The file to make or replace; missing parent folders are made.

    Yields:
        A path in the same folder for the caller to write. After an error the temporary file is
        removed and a file already at `path` stays as it was.
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
    """Yield a temporary folder beside `path` that replaces it when the block ends without an error.

    Args:
        path: The folder to make or replace; missing parent folders are made.
        *markers: File names; a folder that is not empty is replaced only if it holds one of these.

    Yields:
        An empty folder for the caller to fill. After an error it is removed, and `path` stays as
        it was.

    Raises:
        ValueError: `path` exists, is not an empty folder, and has none of the `markers`.
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


def remove_temporary(folder: Path, *folders: str) -> None:
    """Remove what a killed process left half written in a folder, and nothing else.

    Args:
        folder: Where `atomic_path` wrote files.
        *folders: Names of folders in it that `atomic_folder` wrote.
    """
    for entry in folder.glob(".*"):
        if entry.is_file() and TEMPORARY_FILE.fullmatch(entry.name):
            entry.unlink()
        elif entry.is_dir() and any(re.fullmatch(rf"\.+{name}(\.\w{{8}})+", entry.name) for name in folders):
            shutil.rmtree(entry)


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically, gzipped if `path` ends in .gz; equal texts give equal bytes."""
    data = text.encode("utf-8")
    if Path(path).suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def read_lines(path: Path | str) -> Iterator[tuple[int, str]]:
    """Yield the number (from 1) and text of each line that is not blank, without its line end.

    Args:
        path: A UTF-8 file, gzipped if its name ends in .gz.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not UTF-8 or a damaged gzip file (the message names file and line), or
            all its lines are blank.
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
    """Yield the line number (from 1) and the object of each non-blank line of a JSON-lines file.

    Raises:
        ValueError: A line is not a JSON object; the message names file and line. See also `read_lines`.
    """
    for number, line in read_lines(path):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}:{number}: not JSON ({error})") from None
        if not isinstance(record, dict):
            raise ValueError(f"{path}:{number}: expected a JSON object, got {type(record).__name__}")
        yield number, record


def read_json(path: Path | str) -> Any:
    """Read a JSON file.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is damaged; the message names it.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, not JSON ({error})") from None


class ShardFolder:
    """A folder of numbered files (shards); work that was interrupted goes on with the missing ones.

    A manifest in the folder records what the shards are made from. A small file beside each shard
    records the seconds it took.

    Args:
        folder: The folder; `open_for_writing` creates it if it is missing.
        manifest: What the shards are made from: field → JSON value.
        num_items: N, the number of items in all shards together.
        shard_size: Items per shard; the last shard may have fewer.
        ending: Ending of a shard's file name, such as `.npy`.

    Attributes:
        items: Path of each shard → range of the positions of its items; shards in order.

    Raises:
        ValueError: The folder holds other files and no manifest, or its manifest differs from
            `manifest`; the message names the field.
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
        """Raise ValueError if the folder holds something else or its manifest differs."""
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
        """Lock the folder, remove temporary files of a killed process, and write the manifest.

        Raises:
            ValueError: Another process is writing into the folder, or its manifest differs.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOCK).open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = "another process is writing into this folder; wait for it"
                raise ValueError(f"{self.folder}: {message}") from None
            remove_temporary(self.folder)
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
        """Make shards one after the other and write each as soon as it is made, with a progress bar.

        Args:
            missing: The entries of `items` that are still to be made.
            make: Yields the content of each missing shard in turn. It receives a function to call
                with the number of items it has newly done.
            save: Receives a shard's path, items and content, and writes the content all or nothing.
            label: Text of the progress bar.
            unit: Name of one item on the progress bar.

        Raises:
            OSError: Writing failed; shards written earlier are kept.
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
        """Seconds that making all shards took, over all attempts."""
        texts = (path.with_suffix(".json").read_text(encoding="utf-8") for path in self.items)
        return sum(json.loads(text)["seconds"] for text in texts)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """If writing `path` fails, raise an OSError which says that earlier shards are kept."""
    try:
        yield
    except OSError as error:
        message = f"cannot write ({error.strerror}); the shards before are kept: make room and run again"
        raise OSError(error.errno, message, str(path)) from error
