"""Reading files with line numbers in errors, writing files and folders all or nothing, and locks.

Only names that this module makes itself are ever removed, and only folders that it marked are replaced.
Nothing is flushed to the disk: after a power cut (not after a kill) the newest files may be missing or empty.
"""

import gzip
import io
import json
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows has no such locks: there, two processes must not write the same things
    fcntl = None

MOST_LINE = 2**26  # bytes in a line: 64 MiB
MOST_RATIO = 200  # how many times larger than a gzip file its content may be; texts and runs reach 20
LOCK = "lock"  # the name of the lock file in a folder that long work fills
CHECKSUM = "own_crc32"
MARKER = ".dpr.json"  # in each folder that `atomic_folder` writes: its kind, and names and sizes in it
TEMPORARY = re.compile(r"\..*\.dpr-[0-9a-f]{8}(\..*)?")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`, renamed to it when the block ends without an error.

    A file that is replaced keeps its mode, and a link keeps pointing to it. A device or a pipe is not
    replaced but written into.

    Args:
        path: The file to make or replace; missing parent folders are made.

    Yields:
        A path in the same folder for the caller to write. After an error the temporary file is
        removed and a file already at `path` stays as it was.

    Raises:
        ValueError: `path` is a folder.
        OSError: It cannot be written; the error names `path`.
    """
    special = Path(path).exists() and not Path(path).is_file()
    target = Path(path) if special else Path(path).resolve()
    if target.is_dir():
        raise ValueError(f"{path} is a folder; give the name of a file")
    folder = Path(tempfile.gettempdir()) if special else target.parent
    with errors_of(path):
        folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder, target.name)
        with _claimed(folder, target.name, target.suffix) as temporary:
            yield temporary
            if special:
                target.write_bytes(temporary.read_bytes())
                return
            if target.exists():
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            temporary.replace(target)


@contextmanager
def atomic_folder(path: Path | str, kind: str) -> Iterator[Path]:
    """Yield a temporary folder beside `path` that replaces it when the block ends without an error.

    A folder already there is replaced only if it holds nothing but what this wrote into it. It is moved
    aside, and removed after the new one is in its place. If the process is killed between the two renames,
    `settle` moves it back. Within another such block, the temporary folder of that one is yielded.

    Args:
        path: The folder to make or replace; missing parent folders are made.
        kind: What the folder holds, in words; only a folder of the same kind is replaced.

    Yields:
        An empty folder for the caller to fill. After an error it is removed, and `path` stays as
        it was.

    Raises:
        ValueError: `path` is the current folder or holds something else; the message names it.
        OSError: It cannot be written; the error names `path`.
    """
    if TEMPORARY.fullmatch(Path(path).name):
        yield Path(path)
        return
    target = Path(path).resolve()
    if Path.cwd().is_relative_to(target):
        raise ValueError(f"{path} is or holds the current folder, which cannot be replaced; name another")
    with errors_of(path):
        with locked(_swap_lock(target), wait=True):
            settle(target)
            _refuse_others(path, kind)
        with _claimed(target.parent, target.name, None) as temporary:
            yield temporary
            sizes = {str(e.relative_to(temporary)): _size(e) for e in sorted(temporary.rglob("*"))}
            write_json(temporary / MARKER, {"kind": kind, "sizes": sizes})
            with locked(_swap_lock(target), wait=True):
                _refuse_others(path, kind)
                _swap(temporary, target)


def _swap(new: Path, target: Path) -> None:
    """Put a folder in the place of another one, if there is one, which is moved aside and then removed."""
    if target.exists():
        new.chmod(stat.S_IMODE(target.stat().st_mode))
        shutil.rmtree(_aside(target), ignore_errors=True)
        target.rename(_aside(target))
    try:
        new.rename(target)
    finally:
        if not target.exists() and _aside(target).exists():
            _aside(target).rename(target)
    shutil.rmtree(_aside(target), ignore_errors=True)


@contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path` and remove it at the end; those of killed processes go too."""
    with errors_of(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(path.parent, path.name)
        with _claimed(path.parent, path.name, None) as temporary:
            yield temporary


def settle(folder: Path) -> None:
    """End what a killed `atomic_folder` left: move the old folder back, or remove it and temporary ones."""
    remove_abandoned(folder.parent, folder.name)
    if fcntl:
        _remove_unless_locked(_swap_lock(folder))
    aside = _aside(folder)
    if not aside.exists():
        return
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
    elif fcntl is None or not any(folder.parent.glob(f"{_prefix(folder.name)}*")):  # none is about to rename
        aside.rename(folder)


def changed(folder: Path) -> list[str]:
    """The names in a folder that `atomic_folder` wrote which are missing or have another size by now.

    Raises:
        FileNotFoundError: It has no `MARKER`.
        ValueError: Its `MARKER` is damaged.
    """
    sizes = read_json(folder / MARKER, "sizes")["sizes"]
    return [n for n, size in sizes.items() if not (folder / n).exists() or _size(folder / n) != size]


def _size(entry: Path) -> int | None:
    """The bytes of a file; None for a folder."""
    return None if entry.is_dir() else entry.stat().st_size


def _aside(folder: Path) -> Path:
    """Where a folder is moved while another takes its place."""
    return folder.with_name(f".{folder.name}.old.dpr")


def _swap_lock(folder: Path) -> Path:
    """The lock of the one process that puts a folder in the place of another."""
    return folder.with_name(f".{folder.name}.swap.dpr")


def _prefix(name: str) -> str:
    """How the temporary names for a name begin, as a pattern for `glob`; they fit into 255 bytes."""
    return re.sub(r"([*?[])", r"[\1]", f".{name[:60]}.dpr-")


def _refuse_others(path: Path | str, kind: str) -> None:
    """Raise ValueError if a folder holds anything that `atomic_folder` did not write into it as this kind."""
    path = Path(path)
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    about = read_json(path / MARKER, "kind", "sizes") if (path / MARKER).is_file() else {}
    if about.get("kind") != kind:
        raise ValueError(f"{path} holds something else than {kind} and is not replaced; name another folder")
    others = {str(entry.relative_to(path)) for entry in path.rglob("*")}.difference(about["sizes"], [MARKER])
    if others:
        raise ValueError(
            f"{path} also holds {min(others)} ({len(others)} names), which was not written with it: move it "
            "away or name another folder; nothing was changed"
        )


@contextmanager
def _claimed(folder: Path, name: str, suffix: str | None) -> Iterator[Path]:
    """Make a file (a folder if `suffix` is None) with a temporary name, and remove it at the end.

    It is locked meanwhile, so that `remove_abandoned` of another process leaves it alone.
    """
    while True:
        path = folder / f".{name[:60]}.dpr-{secrets.token_hex(4)}{suffix or ''}"
        if suffix is None:
            path.mkdir()
            try:
                handle = os.open(path, os.O_RDONLY) if fcntl else -1
            except FileNotFoundError:
                continue  # another process took it for abandoned before it was locked
        else:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if fcntl is None:
            if handle >= 0:
                os.close(handle)
            break
        fcntl.flock(handle, fcntl.LOCK_EX)
        if _is_at(handle, path):
            break
        os.close(handle)
    try:
        yield path
    finally:
        if suffix is None:
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
        if fcntl:
            os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    """Whether an open file or folder is the one at a path."""
    try:
        return path.stat().st_ino == os.fstat(handle).st_ino
    except FileNotFoundError:
        return False


def remove_abandoned(folder: Path, name: str = "") -> None:
    """Remove the temporary files and folders in a folder whose process was killed, and nothing else.

    Args:
        folder: The folder; it may be missing.
        name: Only those that were to get this name; empty for all.
    """
    if fcntl is None:
        return
    for entry in folder.glob(f"{_prefix(name)}*" if name else ".*.dpr-*"):
        if TEMPORARY.fullmatch(entry.name) and not entry.is_symlink():
            _remove_unless_locked(entry)


def _remove_unless_locked(entry: Path) -> None:
    """Remove a file or folder, holding its lock meanwhile, unless another process holds that lock."""
    try:
        handle = os.open(entry, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.is_file():
            entry.unlink(missing_ok=True)
    except BlockingIOError:
        return
    finally:
        os.close(handle)


@contextmanager
def errors_of(path: Path | str) -> Iterator[None]:
    """Make OSErrors of temporary files, and those without a name, errors of `path`."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        if error.filename is None or TEMPORARY.fullmatch(Path(os.fsdecode(error.filename)).name):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Hold a lock file, which is removed at the end; the lock ends with the process, whatever ends it.

    Args:
        path: The lock file; its folder is made if it is missing.
        wait: Whether to wait for another process that holds it.

    Raises:
        ValueError: Another process holds it, and `wait` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        yield
        return
    while True:
        with path.open("a") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    message = "another process is writing into this folder; wait for it"
                    raise ValueError(f"{path.parent}: {message}") from None
                print(f"{path.parent}: waiting for another process", file=sys.stderr)
                fcntl.flock(stream, fcntl.LOCK_EX)
            if _is_at(stream.fileno(), path):
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return


def check_name(name: str, what: str) -> str:
    """Check that a name can be part of a path, and return it.

    Raises:
        ValueError: It is no string, is empty, begins with a dot, or holds a separator or a control character.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*", name):
        raise ValueError(
            f"{what} {name!r} becomes a file's name: it cannot be empty, begin with a dot or hold / or \\"
        )
    return name


def write_text(path: Path | str, text: str) -> None:
    """Write UTF-8 text atomically, gzipped if `path` ends in .gz; equal texts give equal bytes."""
    data = text.encode("utf-8")
    if Path(path).suffix == ".gz":
        data = gzip.compress(data, mtime=0)
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def read_lines(path: Path | str) -> Iterator[tuple[int, str]]:
    """Yield the number (from 1) and text of each line that is not blank, as `read_lines_at` does."""
    for number, _, line in read_lines_at(path):
        yield number, line


def read_lines_at(path: Path | str) -> Iterator[tuple[int, int, str]]:
    """Yield number (from 1), first byte and text of each line that is not blank, without its line end.

    Args:
        path: A UTF-8 file, gzipped if its name ends in .gz.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is not UTF-8 or a damaged gzip file, a line is longer than `MOST_LINE` bytes,
            or the file unpacks to more than `MOST_RATIO` times its size (the message names file and
            line); or all its lines are blank.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    number, empty, read = 0, True, 0
    bound = max(MOST_RATIO * path.stat().st_size, 2 * MOST_LINE)
    unpacked = io.BufferedReader(gzip.GzipFile(path)) if path.suffix == ".gz" else path.open("rb")
    with unpacked as stream:
        try:
            for number, raw in enumerate(iter(partial(stream.readline, MOST_LINE + 1), b""), start=1):
                read += len(raw)
                if len(raw) > MOST_LINE or read > bound:
                    what = f"a line of more than {MOST_LINE:,} bytes"
                    if len(raw) <= MOST_LINE:
                        what = f"unpacks to more than {MOST_RATIO} times its size"
                    raise ValueError(f"{path}:{number}: {what}: not a file of this kind")
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
                if line.strip():
                    empty = False
                    yield number, read - len(raw), line
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
        yield number, json_object(line, f"{path}:{number}")


def json_object(line: str, where: str) -> dict[str, Any]:
    """The JSON object that a line holds.

    Raises:
        ValueError: It is not a JSON object; the message begins with `where`.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error})") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: expected a JSON object, got {type(record).__name__}")
    return record


def write_json(path: Path | str, content: Mapping[str, Any]) -> None:
    """Write a JSON object with its own checksum, `CHECKSUM`, which `read_json` compares and leaves out."""
    sealed = {**content, CHECKSUM: _crc32_of(content)}
    write_text(path, json.dumps(sealed, indent=1, ensure_ascii=False) + "\n")


def _crc32_of(content: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(json.loads(json.dumps(content)), sort_keys=True).encode())


def read_json(path: Path | str, *fields: str) -> dict[str, Any]:
    """Read a file that holds one JSON object; if it has its own checksum, that is compared.

    Args:
        path: The file.
        *fields: Fields that the object must have.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: The file is damaged or lacks a field; the message names both.
    """
    path = Path(path)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: damaged, not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: damaged, expected a JSON object, got {type(found).__name__}")
    missing = [field for field in fields if field not in found]
    if missing:
        raise ValueError(f"{path}: damaged, it lacks the field {missing[0]}")
    if CHECKSUM in found and found.pop(CHECKSUM) != _crc32_of(found):
        raise ValueError(f"{path}: damaged, its content is not what was written")
    return found


def crc32(*paths: Path) -> int:
    """The checksum of one file, or of several one after the other."""
    value = 0
    for path in paths:
        with path.open("rb") as stream:
            while block := stream.read(2**20):
                value = zlib.crc32(block, value)
    return value
