"""The data that a notebook reads and the folders that it writes to, by its profile."""

import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from dpr.data.collection import Collection
from dpr.data.loading import load_collection, load_training_data, project_root
from dpr.data.training_data import TrainingData, as_collection
from dpr.data.trec import Run
from dpr.experiments.profiles import PROFILES, Profile, get_profile
from dpr.experiments.results import Result, save_result
from dpr.files import check_name
from dpr.models.bi_encoder import BiEncoder
from dpr.models.two_encoders import TwoEncoders
from dpr.provenance import hardware
from dpr.search.encoding import Encoded, encode_collection
from dpr.search.index import build_index

PACKAGES = ("torch", "transformers", "sentence-transformers", "pyserini", "ranx", "numpy")


@dataclass(frozen=True)
class Workspace:
    """The data and the folders of one profile.

    Args:
        profile: The profile; `Workspace.open` takes its name instead.
        root: The folder that contains `runs/`, `models/` and `build/`.
    """

    profile: Profile
    root: Path

    @classmethod
    def open(cls, profile: str, output: str = "") -> "Workspace":
        """Make the workspace of the profile with a name.

        Args:
            profile: The profile's name or a folder, as `get_profile` takes it.
            output: The folder to write everything to; empty for the repository itself.
        """
        return cls(get_profile(profile), Path(output) if output else project_root())

    @property
    def known(self) -> bool:
        """Whether the profile is one of `PROFILES`, whose data is known, and not somebody's folder."""
        return self.profile.name in PROFILES

    @cached_property
    def splits(self) -> dict[str, Collection]:
        """The uncut collection with the queries of each split: split → collection; read only once."""
        name = self.profile.collection
        if name == "docstrings":  # here the test split has its own passages
            train = load_collection(name, "train")
            return {"train": train, "dev": train.with_split("dev"), "test": load_collection(name)}
        whole = load_collection(name)
        return {split: whole.with_split(split) for split in whole.all_qrels}

    def collection(self, split: str = "test") -> Collection:
        """A split of the profile's collection, cut to the profile's size.

        Raises:
            ValueError: The collection has no such split.
        """
        if split not in self.splits:
            raise ValueError(f"{self.profile.collection} has no split {split!r}, only {sorted(self.splits)}")
        if split not in self._cut:
            whole, size = self.splits[split], self.profile.num_passages
            num_queries = self.profile.num_queries or len(whole.queries)
            self._cut[split] = whole if size is None else whole.sample(size, num_queries)
        return self._cut[split]

    @cached_property
    def _cut(self) -> dict[str, Collection]:
        """Split → collection, for the splits cut so far."""
        return {}

    def training_data(self, training_set: str | None = None) -> tuple[TrainingData, Collection]:
        """Load the training data, and the collection to select checkpoints by.

        Args:
            training_set: `train` or the name of a set of triples; by default `Profile.training_set`.

        Returns:
            The training data without dev and test queries, and the uncut dev split. For a set of triples
            the second is instead 200 queries (a fifth, if that is less) held out of the set, with all its
            passages.

        Raises:
            ValueError: The collection has no train or dev judgements of its own.
        """
        training_set, splits = training_set or self.profile.training_set, self.splits
        own = training_set == "train"
        lacking = [split for split in ("train", "dev") if own and split not in splits]
        if lacking:
            raise ValueError(
                f"{self.profile.collection} has no {' and no '.join(lacking)} judgements to learn from: "
                "it needs qrels/train.tsv of five queries or more"
            )
        data = TrainingData.from_collection(splits["train"]) if own else load_training_data(training_set)
        data = data.without_queries(*(splits[split] for split in splits if split != "train"))
        if own:
            return data, splits["dev"]
        data, held_out = data.split(min(0.2, 200 / len(data.examples)), self.profile.seeds[0])
        return data, as_collection(held_out)

    @property
    def runs(self) -> Path:
        """The folder of results, `runs/<collection>`."""
        return self.root / "runs" / Path(self.profile.collection).name

    @property
    def models(self) -> Path:
        """The folder of checkpoints, `models`."""
        return self.root / "models"

    def model_folder(self, training_set: str, tag: str) -> Path:
        """The folder of the training with a tag on a training set: `models/<training set>/<tag>`."""
        return (
            self.models
            / check_name(training_set.replace("/", "-"), "the training set")
            / check_name(tag, "tag")
        )

    def kept_training(self, tag: str) -> Path:
        """The file with the record and history of a training: `runs/<collection>/training/<tag>.json`."""
        return self.runs / "training" / f"{check_name(tag, 'tag')}.json"

    def index_folder(self, collection: Collection) -> Path:
        """The folder of the Lucene index of a collection's passages."""
        name = check_name(collection.name.replace("/", "-"), "the collection")
        return self.root / "build" / "indexes" / f"{name}-{collection.fingerprint}"

    def passage_vectors(
        self,
        encoder: BiEncoder | TwoEncoders,
        collection: Collection,
        poolings: Sequence[str] | None = None,
        overflow: str = "truncate",
    ) -> Encoded:
        """Encode a collection's passages, or read their vectors if the same encoder wrote them before.

        Args:
            encoder: The encoder, whose passage side is used.
            collection: The collection to encode.
            poolings: The poolings to compute in one pass; by default only the encoder's own.
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
        """Search a collection exhaustively with an encoder, and save the result in `runs/`.

        The search time that is saved includes encoding the queries, but not the passages.

        Args:
            encoder: The encoder, whose own pooling and similarity are used.
            collection: The collection with passages and queries.
            tag: The system's name.
            notebook: Name of the calling notebook, without the ending.
            poolings: The poolings to encode passages with in one pass; must include the encoder's own.
            overflow: `truncate`, or `max_chunk` to score a passage by its best chunk.
            ablation: Whether this is a variant that is left out of the results table.
            seed: The seed of the encoder's training, if it was trained with several.
            trained_on: What the encoder was fine-tuned on, in words, for the table's caption.

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
        query_ids, depth = list(collection.queries), self.profile.depth
        run = index.search_run(query_ids, query_emb, depth, tag, collection.own_documents)
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


def environment() -> list[tuple[str, str]]:
    """What a notebook is executed on: (name, value) rows of hardware, Python and package versions."""
    rows = [("hardware", hardware()), ("Python", platform.python_version())]
    for package in PACKAGES:
        try:
            rows.append((package, version(package)))
        except PackageNotFoundError:
            rows.append((package, "not installed"))
    return rows
