"""A folder of numbered shards that long work fills: stopped anywhere, only what is missing is made.

Its manifest says what the shards are made from; one process at a time writes.
"""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
