"""The data that a notebook reads and the folders that it writes to, by its profile."""

import hashlib
import json
import platform
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dpr.data.audit import token_lengths
from dpr.data.collection import Collection
from dpr.data.loading import is_repository, load_collection, load_training_data, project_root
from dpr.data.training_data import TrainingData, as_collection
from dpr.data.trec import Run
from dpr.evaluation.metrics import evaluate
from dpr.experiments.named_settings import with_settings
from dpr.experiments.profiles import PROFILES, Profile, get_profile, without_judgements_to_learn_from
from dpr.experiments.results import Result, kept_result, save_result
from dpr.files import atomic_path, check_name, read_json
from dpr.models.bi_encoder import BiEncoder
from dpr.models.two_encoders import TwoEncoders
from dpr.provenance import hardware
from dpr.search.bm25 import BM25, K1, B
from dpr.search.encoding import Encoded, encode_collection
from dpr.search.index import Index, build_index
from dpr.training.resume import IDENTITY
from dpr.training.tracking import RECORD

QUERY_LENGTHS = (64, 128, 256, 512)  # tokens; the shortest that cuts few queries is chosen
FEW = 0.01  # share of the queries
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
    def open(cls, profile: str, output: str = "", settings: Mapping[str, Any] | None = None) -> "Workspace":
        """Make the workspace of the profile with a name.

        What took hours to make is not made again: trainings and written queries that the repository keeps for
        the collection are copied to `output`, and read from there as long as data and settings are the same.
        A collection without train judgements learns from those of `docstrings`.

        Args:
            profile: The profile's name, a folder or a BEIR set, as `get_profile` takes it.
            output: The folder to write everything to; empty for the repository, or for the current folder
                outside of it.
            settings: Settings of the profile to change, as `with_settings` takes them.

        Raises:
            ValueError: An unknown profile or setting.
        """
        chosen, settings = get_profile(profile), settings or {}
        space = cls(with_settings(chosen, settings), Path(output) if output else project_root())
        learns_from_own = space.profile.training_set == "train"
        if chosen.name not in PROFILES and learns_from_own and space.lacks_train_judgements:
            space = cls(with_settings(without_judgements_to_learn_from(chosen), settings), space.root)
        space._bring_kept()
        return space

    @property
    def known(self) -> bool:
        """Whether the profile is one of `PROFILES`, unchanged, so that its data and figures are known."""
        return PROFILES.get(self.profile.name) == self.profile

    @cached_property
    def splits(self) -> dict[str, Collection]:
        """The uncut collection with the queries of each split: split → collection; read only once.

        Raises:
            ValueError: The collection has no judgements.
        """
        name = self.profile.collection
        if name == "docstrings":  # here the test split has its own passages
            train = load_collection(name, "train")
            return {"train": train, "dev": train.with_split("dev"), "test": load_collection(name)}
        whole = load_collection(name)
        if not any(whole.all_qrels.values()):
            raise ValueError(
                f"{name} has no judgements, by which these notebooks measure; notebook 10 searches without"
            )
        return {split: whole.with_split(split) for split in whole.all_qrels}

    @property
    def lacks_train_judgements(self) -> bool:
        """Whether the collection has no train and dev judgements to learn from and to select by."""
        return not {"train", "dev"} <= self.splits.keys()

    @property
    def mines_negatives(self) -> bool:
        """Whether the training data comes from judgements, so that hard negatives can be mined for it."""
        return self.profile.training_set.rpartition("/")[2] == "train"

    @cached_property
    def training_splits(self) -> dict[str, Collection]:
        """`train` and `dev` of the collection whose judgements are learnt from; uncut."""
        name, _, _ = self.profile.training_set.rpartition("/")
        if not name:
            return {split: self.splits[split] for split in ("train", "dev") if split in self.splits}
        whole = load_collection(name, "train")
        return {"train": whole, "dev": whole.with_split("dev")}

    @cached_property
    def lengths(self) -> dict[str, int]:
        """Tokens that queries and passages are cut at: the keyword arguments of `BiEncoder.from_pretrained`.

        If the profile leaves the length of queries open, it is the shortest of `QUERY_LENGTHS` that cuts at
        most a hundredth of the collection's queries, and no more than the first encoder was made for.

        Warns:
            UserWarning: More than a hundredth of the queries are cut.
        """
        profile, chosen = self.profile, self.profile.query_max_length
        encoder = BiEncoder.from_pretrained(profile.encoders[0])
        texts = [text for part in self.splits.values() for text in part.queries.values()]
        counts = token_lengths(texts, encoder.tokenizer)
        if chosen is None:
            enough = (n for n in QUERY_LENGTHS if (counts > n).mean() <= FEW)
            chosen = min(next(enough, QUERY_LENGTHS[-1]), encoder.config.query_max_length)
        cut = float((counts > chosen).mean())
        if cut > FEW:
            warnings.warn(
                f"{cut:.1%} of the queries of {profile.collection} are cut at {chosen} tokens; "
                "the setting query_max_length says where",
                stacklevel=3,
            )
        return {"query_max_length": chosen, "passage_max_length": profile.passage_max_length}

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
            training_set: The name of a set of triples; by default `Profile.training_set`.

        Returns:
            The training data without dev and test queries, and the uncut dev split. For a set of triples
            the second is instead 200 queries (a fifth, if that is less) held out of the set, with all its
            passages.

        Raises:
            ValueError: The collection that is learnt from has no train or dev judgements.
        """
        judged = self.mines_negatives and training_set in (None, self.profile.training_set)
        evaluated = [part for split, part in self.splits.items() if split != "train"]
        if judged:
            lacking = [split for split in ("train", "dev") if split not in self.training_splits]
            if lacking:
                raise ValueError(
                    f"{self.profile.collection} has no {' and no '.join(lacking)} judgements to learn from: "
                    "it needs qrels/train.tsv of five queries or more"
                )
            data, dev = (
                TrainingData.from_collection(self.training_splits["train"]),
                self.training_splits["dev"],
            )
            return data.without_queries(*evaluated, dev), dev
        data = load_training_data(training_set or self.profile.training_set).without_queries(*evaluated)
        data, held_out = data.split(min(0.2, 200 / len(data.examples)), self.profile.seeds[0])
        return data, as_collection(held_out)

    @property
    def runs(self) -> Path:
        """The folder of results, `runs/<collection>`."""
        return self.root / "runs" / Path(self.profile.collection).name

    def _bring_kept(self) -> None:
        """Copy to `runs` what the repository keeps of trainings, queries and scores, unless it is there."""
        repository = next((f for f in (project_root(), Path(__file__).parents[3]) if is_repository(f)), None)
        kept = repository and repository / "runs" / self.runs.name
        if not kept or not kept.is_dir() or kept.resolve() == self.runs.resolve():
            return
        trainings = sorted((kept / "training").glob("*.json"))
        files = [*trainings, *sorted((kept / "queries").glob("*")), *sorted((kept / "teachers").glob("*"))]
        files += [path for training in trainings for path in kept.glob(f"{training.stem}.*")]
        for path in files:
            target = self.runs / path.relative_to(kept)
            if not target.exists():
                with atomic_path(target) as temporary:
                    shutil.copyfile(path, temporary)

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

    def training_folder(self, training_set: str, tag: str, record: Mapping[str, Any]) -> Path:
        """The folder for a training: `model_folder`, or one beside it if that holds another training.

        Args:
            training_set: As in `model_folder`.
            tag: As in `model_folder`.
            record: What the training is made from, as `describe_training` gives it.
        """
        folder, identity = self.model_folder(training_set, tag), {part: record[part] for part in IDENTITY}
        if not (folder / RECORD).is_file() or identity.items() <= read_json(folder / RECORD).items():
            return folder
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
        return folder.with_name(f"{tag}-{digest}")

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

    def encoder_hits(
        self, encoder: BiEncoder, collection: Collection, queries: Mapping[str, str], depth: int
    ) -> Run:
        """What an encoder finds for any queries, exhaustively; a document of the query's own id stays.

        Args:
            encoder: The encoder.
            collection: The passages.
            queries: query_id → text.
            depth: Hits per query.
        """
        encoded = self.passage_vectors(encoder, collection)
        index = build_index("exact", encoded.vectors, encoded.doc_ids, encoder.config.similarity)
        query_emb = encoder.encode_queries(list(queries.values()))
        return index.search_run(list(queries), query_emb, depth, encoder.name, frozenset())

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
        encoded, config = self.passage_vectors(encoder, collection, poolings, overflow), encoder.config
        index = build_index(
            "exact", encoded.of(config.pooling), encoded.doc_ids, config.similarity, chunks=encoded.chunks
        )
        start = time.perf_counter()
        run = self._run(encoder, collection, index, tag)
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

    def _run(self, encoder: BiEncoder | TwoEncoders, collection: Collection, index: Index, tag: str) -> Run:
        """Encode a collection's queries and search for them at the profile's depth."""
        query_emb = encoder.encode_queries(list(collection.queries.values()))
        depth, itself = self.profile.depth, collection.own_documents
        return index.search_run(list(collection.queries), query_emb, depth, tag, itself)

    def means(self, encoder: BiEncoder | TwoEncoders, collection: Collection) -> dict[str, float]:
        """Metric → mean of searching a collection exhaustively with an encoder; no run is saved.

        Args:
            encoder: The encoder, whose own pooling and similarity are used.
            collection: The collection with passages and queries, such as a dev split.
        """
        encoded, similarity = self.passage_vectors(encoder, collection), encoder.config.similarity
        index = build_index("exact", encoded.vectors, encoded.doc_ids, similarity)
        return evaluate(collection.qrels, self._run(encoder, collection, index, "not-saved")).means

    def dense(self, encoder: BiEncoder, notebook: str, ablation: bool = False) -> Result:
        """The result of an encoder by its own name for the test queries: the kept one, or a new one.

        Args:
            encoder: The encoder.
            notebook: Name of the calling notebook, without the ending, for a new one.
            ablation: As in `search_and_save`.
        """
        collection, depth = self.collection(), self.profile.depth
        kept = kept_result(self.runs, encoder.name, collection, depth, encoder.fingerprint)
        if kept:
            return kept
        _, made = self.search_and_save(
            encoder, collection, encoder.name, notebook=notebook, ablation=ablation
        )
        return made

    def bm25(self, notebook: str) -> Result:
        """The result of BM25 with default k1 and b for the test queries: the kept one, or a new one.

        Args:
            notebook: Name of the calling notebook, without the ending, for a new one.
        """
        collection, depth = self.collection(), self.profile.depth
        kept = kept_result(self.runs, "bm25", collection, depth)
        if kept:
            return kept
        index = BM25.build(collection, self.index_folder(collection))
        start = time.perf_counter()
        run = index.search(collection.queries, depth)
        return save_result(
            self.runs,
            run,
            collection,
            notebook=notebook,
            config={
                "k1": K1,
                "b": B,
                "fields": "title and text in one",
                "analysis": "Lucene English, Porter",
            },
            depth=depth,
            wall_s=time.perf_counter() - start,
            index_bytes=index.num_bytes,
        )


def environment() -> list[tuple[str, str]]:
    """What a notebook is executed on: (name, value) rows of hardware, Python and package versions."""
    rows = [("hardware", hardware()), ("Python", platform.python_version())]
    for package in PACKAGES:
        try:
            rows.append((package, version(package)))
        except PackageNotFoundError:
            rows.append((package, "not installed"))
    return rows
