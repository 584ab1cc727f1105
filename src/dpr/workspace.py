"""Where a notebook reads and writes, from its profile."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dpr.collection import Collection
from dpr.encoder import BiEncoder
from dpr.encoding import Encoded, encode_collection
from dpr.loading import load_collection, project_root
from dpr.profiles import Profile, get_profile
from dpr.results import hardware
from dpr.two_encoders import TwoEncoders

PACKAGES = ("torch", "transformers", "sentence-transformers", "pyserini", "ranx", "numpy")


@dataclass(frozen=True)
class Workspace:
    """Folders and data of one profile.

    Args:
        profile: The profile, or by `Workspace.open` its name.
        root: The folder that holds `runs/`, `models/` and `build/`.
    """

    profile: Profile
    root: Path

    @classmethod
    def open(cls, profile: str, output: str = "") -> "Workspace":
        """The workspace of a profile's name.

        Args:
            profile: As `get_profile` takes it.
            output: The folder for everything written; empty for the repository itself.
        """
        return cls(get_profile(profile), Path(output) if output else project_root())

    def collection(self, split: str = "test") -> Collection:
        """The profile's collection, cut to the profile's size."""
        whole = load_collection(self.profile.collection, split)
        if self.profile.num_passages is None:
            return whole
        return whole.sample(self.profile.num_passages, self.profile.num_queries or len(whole.queries))

    def splits(self) -> list[str]:
        """The splits that the collection has."""
        if self.profile.collection == "docstrings":  # its test part has passages of its own
            return ["train", "dev", "test"]
        return list(load_collection(self.profile.collection).all_qrels)

    @property
    def runs(self) -> Path:
        """`runs/<collection>`, where results go."""
        return self.root / "runs" / Path(self.profile.collection).name

    @property
    def models(self) -> Path:
        """`models`, where checkpoints go."""
        return self.root / "models"

    def index_folder(self, collection: Collection) -> Path:
        """Where the Lucene index of these passages lies."""
        return self.root / "build" / "indexes" / f"{collection.name}-{collection.fingerprint}"

    def passage_vectors(
        self,
        encoder: BiEncoder | TwoEncoders,
        collection: Collection,
        poolings: Sequence[str] | None = None,
        overflow: str = "truncate",
    ) -> Encoded:
        """The passages' vectors, encoded once and kept by model, settings and collection.

        Args:
            encoder: Its passage side encodes.
            collection: What to encode.
            poolings: Several poolings from one pass; by default the encoder's own.
            overflow: `truncate` or `max_chunk`; see `encode_collection`.
        """
        what = "+".join([*(poolings or []), *([overflow] if overflow != "truncate" else [])])
        name = "-".join(filter(None, [collection.fingerprint, encoder.passage.fingerprint, what]))
        folder = self.root / "build" / "vectors" / name
        return encode_collection(folder, encoder, collection, poolings=poolings, overflow=overflow)


def environment() -> list[tuple[str, str]]:
    """What a notebook ran on: machine, Python, package versions; one (name, value) a row."""
    rows = [("hardware", hardware()), ("Python", platform.python_version())]
    for package in PACKAGES:
        try:
            rows.append((package, version(package)))
        except PackageNotFoundError:
            rows.append((package, "not installed"))
    return rows
