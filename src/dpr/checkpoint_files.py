"""Checkpoints of a training run on disk: which are whole, and which to keep."""

import hashlib
import json
import shutil
from pathlib import Path

from dpr.files import write_text

WHOLE = "whole.json"  # written last: file → SHA-256 of a checkpoint
KEPT_CHECKPOINTS = 2  # the newest ones, beside the best


def mark_whole(path: Path) -> None:
    """Note what a finished checkpoint consists of; without the note it counts as broken off."""
    digests = {file.name: _sha256(file) for file in sorted(path.iterdir())}
    write_text(path / WHOLE, json.dumps(digests, indent=1))


def remove_older(folder: Path, best_step: int | None) -> None:
    """Remove all checkpoints of a run but the newest two, that of the best step, and those two's best."""
    paths = _checkpoints(folder)
    newest = paths[-KEPT_CHECKPOINTS:]
    kept = {f"checkpoint-{step}" for step in (best_step, *map(_best_step, newest))}
    for path in paths[:-KEPT_CHECKPOINTS]:
        if path.name not in kept:
            shutil.rmtree(path)


def _best_step(path: Path) -> int | None:
    """The best step that a checkpoint knows of."""
    return json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))["best_global_step"]


def whole_checkpoints(folder: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """The checkpoints that training can go on from, oldest first, and the others with what is wrong.

    One is whole where every file has the SHA-256 noted once it was complete, and the best checkpoint
    that it speaks of is whole too.
    """
    usable: list[Path] = []
    damaged: list[tuple[Path, str]] = []
    for path in _checkpoints(folder):
        reason = _damage(path)
        if not reason:
            best = _best_step(path)
            if best and f"checkpoint-{best}" not in {other.name for other in (*usable, path)}:
                reason = f"its best checkpoint, of step {best}, is damaged or missing"
        if reason:
            damaged.append((path, reason))
        else:
            usable.append(path)
    return usable, damaged


def _checkpoints(folder: Path) -> list[Path]:
    """All checkpoints of a run, oldest first."""
    return sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def _damage(path: Path) -> str:
    """What is wrong with a checkpoint, or nothing."""
    if not (path / WHOLE).is_file():
        return "writing it was broken off"
    try:
        digests = json.loads((path / WHOLE).read_text(encoding="utf-8"))
    except ValueError:
        return f"{WHOLE} is damaged"
    for name, digest in digests.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if _sha256(path / name) != digest:
            return f"{name} is damaged"
    return ""


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
