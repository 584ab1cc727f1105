"""Folders of numbered files, the shards: work that was interrupted goes on with those that are missing."""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from dpr.files import LOCK, TEMPORARY, crc32, locked, read_json, remove_abandoned, write_text

MANIFEST = "manifest.json"


class ShardFolder:
    """A folder of numbered files (shards); work that was interrupted goes on with the missing ones.

    A manifest in the folder records what the shards are made from. A small file beside each shard
    records the seconds it took and its checksum; a shard without it counts as missing.

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
            left_by_a_kill = [e for e in entries if e.name == LOCK or TEMPORARY.fullmatch(e.name)]
            if (self.folder.exists() and not self.folder.is_dir()) or len(left_by_a_kill) < len(entries):
                raise ValueError(
                    f"{self.folder} has no {MANIFEST}: it holds something else; name another folder"
                )
            return
        found = read_json(path)
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
        with locked(self.folder / LOCK):
            remove_abandoned(self.folder)
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
        with self.bar(missing, label, unit) as bar:
            write_shards(missing, make(bar.update), save)

    def bar(self, missing: Mapping[Path, range], label: str, unit: str) -> tqdm:
        """The progress bar of making the missing shards, over the items of all shards."""
        done = self.num_items - sum(map(len, missing.values()))
        return tqdm(total=self.num_items, initial=done, desc=label, unit=unit)

    def is_made(self, path: Path) -> bool:
        """Whether a shard is there, whole.

        Raises:
            ValueError: Its content has changed since it was written; the message names the file.
        """
        about = path.with_suffix(".json")
        if not (path.is_file() and about.is_file()):
            return False
        if read_json(about, "crc32")["crc32"] != _crc32(path):
            raise ValueError(f"{path}: damaged; delete it and run again, the rest is kept")
        return True

    def files(self) -> list[Path]:
        """All files that shards may have; others in the folder are not ours."""
        return [file for path in self.items for file in (*_content(path), path.with_suffix(".json"))]

    def seconds(self) -> float:
        """Seconds that making all shards took, over all attempts; NaN if that was lost."""
        paths = [path.with_suffix(".json") for path in self.items]
        known = all(path.is_file() for path in paths)
        return sum(read_json(path, "seconds")["seconds"] for path in paths) if known else math.nan


def write_shards(
    missing: Mapping[Path, range], contents: Iterable[Any], save: Callable[[Path, range, Any], None]
) -> None:
    """Write each shard as soon as its content is made, and beside it the seconds that took and its checksum.

    Args:
        missing: Path of each shard → its items.
        contents: The content of each shard, in turn.
        save: As in `ShardFolder.fill`.

    Raises:
        OSError: Writing failed; shards written earlier are kept.
    """
    start = time.perf_counter()
    for (path, items), content in zip(missing.items(), contents, strict=True):
        seconds = time.perf_counter() - start
        with writing(path):
            save(path, items, content)
            about = {"seconds": seconds, "crc32": _crc32(path)}
            write_text(path.with_suffix(".json"), json.dumps(about))
        start = time.perf_counter()


def _content(path: Path) -> list[Path]:
    """The files that a shard's content may be in."""
    return [path, path.with_suffix(f".owners{path.suffix}")]


def _crc32(path: Path) -> int:
    """The checksum of a shard's content."""
    return crc32(*filter(Path.is_file, _content(path)))


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """If writing `path` fails, raise an OSError which says that earlier shards are kept."""
    try:
        yield
    except OSError as error:
        message = f"cannot write ({error.strerror}); the shards before are kept: make room and run again"
        raise OSError(error.errno, message, str(path)) from error
