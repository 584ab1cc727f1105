"""Text files read with line numbers in every error and written all or nothing; folders of shards.

A folder of numbered shards is what long work fills: stopped anywhere, only what is missing is made. Its
manifest says what the shards are made from; one process at a time writes.
"""

import fcntl
import gzip
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


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


MANIFEST, LOCK = "manifest.json", "lock"


def compare_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Refuse a folder that holds something else, or shards made otherwise."""
    path = folder / MANIFEST
    if not path.is_file():
        if folder.exists() and not (folder.is_dir() and all(_ours(entry) for entry in folder.iterdir())):
            raise ValueError(f"{folder} has no {MANIFEST}: it holds something else; name another folder")
        return
    found = json.loads(path.read_text(encoding="utf-8"))
    for field, wanted in manifest.items():
        if found.get(field) != wanted:
            raise ValueError(
                f"{path}: {field} is {found.get(field)!r}, now it would be {wanted!r}; "
                "give another folder, or delete this one"
            )


def _ours(entry: Path) -> bool:
    """Whether an entry may be what a killed process left before it had written the manifest."""
    return entry.name == LOCK or entry.name.startswith(f".{MANIFEST}.")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder, and remove what a killed one had half written."""
    with (folder / LOCK).open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another process is writing into this folder; wait for it") from None
        for left_over in folder.glob(".*"):
            left_over.unlink()
        yield


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say what a failure to write leaves behind."""
    try:
        yield
    except OSError as error:
        message = f"cannot write ({error.strerror}); the shards before are kept: make room and run again"
        raise OSError(error.errno, message, str(path)) from error
