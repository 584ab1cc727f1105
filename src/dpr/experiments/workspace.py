"""Where a notebook reads and writes, from its profile."""

import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dpr.data.collection import Collection
from dpr.data.loading import load_collection, load_training_data, project_root
from dpr.data.training_data import TrainingData, as_collection
from dpr.data.trec import Run
from dpr.experiments.profiles import Profile, get_profile
from dpr.experiments.results import Result, save_result
from dpr.models.bi_encoder import BiEncoder
from dpr.models.two_encoders import TwoEncoders
from dpr.provenance import hardware
from dpr.search.encoding import Encoded, encode_collection
from dpr.search.index import build_index

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

    def splits(self) -> dict[str, Collection]:
        """The whole collection by split, its passages read once."""
        return _splits(self.profile.collection)

    def collection(self, split: str = "test") -> Collection:
        """The profile's collection, cut to the profile's size."""
        return _cut(self.profile, split)

    def training_data(self, training_set: str | None = None) -> tuple[TrainingData, Collection]:
        """What to train on, without the queries of the dev and test splits, and what to select by.

        Args:
            training_set: As `Profile.training_set`, which it is by default.

        Returns:
            The data, and the dev split whole; of a set of triples 200 queries (a fifth, where it is
            small) are held out of the data in its place, to be searched for over all of its passages.
        """
        training_set, splits = training_set or self.profile.training_set, self.splits()
        own = training_set == "train"
        data = TrainingData.from_collection(splits["train"]) if own else load_training_data(training_set)
        data = data.without_queries(*(splits[split] for split in splits if split != "train"))
        if own:
            return data, splits["dev"]
        data, held_out = data.split(min(0.2, 200 / len(data.examples)), self.profile.seeds[0])
        return data, as_collection(held_out)

    @property
    def runs(self) -> Path:
        """`runs/<collection>`, where results go."""
        return self.root / "runs" / Path(self.profile.collection).name

    @property
    def models(self) -> Path:
        """`models`, where checkpoints go."""
        return self.root / "models"

    def model_folder(self, training_set: str, tag: str) -> Path:
        """Where a training lies, by the name of its data and its own: `models/<data>/<tag>`."""
        return self.models / training_set.replace("/", "-") / tag

    def kept_training(self, tag: str) -> Path:
        """The file with what lasts of a training: `runs/<collection>/training/<tag>.json`."""
        return self.runs / "training" / f"{tag}.json"

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
        what = "+".join([*(poolings or [encoder.passage.config.pooling]), overflow])
        name = f"{collection.fingerprint}-{encoder.passage.passage_fingerprint}-{what}"
        folder = self.root / "build" / "vectors" / name
        return encode_collection(folder, encoder, collection, poolings=poolings, overflow=overflow)

    def search_and_save(
        self,
        encoder: BiEncoder | TwoEncoders,
        collection: Collection,
        tag: str,
        *,
        notebook: str,
        poolings: Sequence[str] | None = None,
        overflow: str = "truncate",
        ablation: bool = False,
        seed: int | None = None,
        trained_on: str | None = None,
    ) -> tuple[Run, Result]:
        """Search a collection exhaustively with an encoder, and write the result to `runs/`.

        The seconds written are those of encoding the queries and searching.

        Args:
            encoder: Its pooling and similarity are used.
            collection: Passages and queries.
            tag: The system's name.
            notebook: The notebook that asks, without ending.
            poolings: Several poolings to encode in one pass, the encoder's own among them.
            overflow: `truncate`, or `max_chunk` to score a passage by its best chunk.
            ablation: A variant shown to make a point, left out of the results table.
            seed: Of the encoder's training, if that is one of several.
            trained_on: What the encoder was fine-tuned on here, in words, for the results table.

        Returns:
            The run at the profile's depth, and the result as `save_result` gives it.
        """
        encoded = self.passage_vectors(encoder, collection, poolings, overflow)
        config = encoder.config
        index = build_index(
            "exact", encoded.of(config.pooling), encoded.doc_ids, config.similarity, chunks=encoded.chunks
        )
        start = time.perf_counter()
        query_emb = encoder.encode_queries(list(collection.queries.values()))
        run = index.search_run(list(collection.queries), query_emb, self.profile.depth, tag)
        wall_s = time.perf_counter() - start
        about = {**asdict(config), "overflow": overflow, "model": encoder.fingerprint, "search": index.kind}
        if trained_on:
            about["trained_on"] = trained_on
        result = save_result(
            self.runs,
            run,
            collection,
            notebook=notebook,
            config=about,
            depth=self.profile.depth,
            wall_s=wall_s,
            index_bytes=index.num_bytes,
            ablation=ablation,
            seed=seed,
        )
        return run, result


@cache
def _splits(collection: str) -> dict[str, Collection]:
    """The whole collection by split, read once a process."""
    if collection == "docstrings":  # its test part has passages of its own
        train = load_collection(collection, "train")
        return {"train": train, "dev": train.with_split("dev"), "test": load_collection(collection)}
    whole = load_collection(collection)
    return {split: whole.with_split(split) for split in whole.all_qrels}


@cache
def _cut(profile: Profile, split: str) -> Collection:
    """A split of the profile's collection, cut to the profile's size once a process."""
    splits = _splits(profile.collection)
    if split not in splits:
        raise ValueError(f"{profile.collection} has no split {split!r}, only {sorted(splits)}")
    if profile.num_passages is None:
        return splits[split]
    whole = splits[split]
    return whole.sample(profile.num_passages, profile.num_queries or len(whole.queries))


def environment() -> list[tuple[str, str]]:
    """What a notebook ran on: machine, Python, package versions; one (name, value) a row."""
    rows = [("hardware", hardware()), ("Python", platform.python_version())]
    for package in PACKAGES:
        try:
            rows.append((package, version(package)))
        except PackageNotFoundError:
            rows.append((package, "not installed"))
    return rows
