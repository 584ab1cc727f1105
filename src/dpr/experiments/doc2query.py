"""Doc2query in notebooks: training data, generators and queries that are made once, and BM25 search."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

from transformers import TrainerCallback

from dpr.data.collection import Collection
from dpr.data.examples import Example
from dpr.data.loading import find_data, load_collection, load_training_data
from dpr.data.text import normalise, stable_hash
from dpr.data.training_data import TrainingData, merge
from dpr.data.trec import Run
from dpr.evaluation.metrics import evaluate
from dpr.experiments.results import Result, save_result
from dpr.experiments.workspace import Workspace
from dpr.files import check_name, crc32, read_json, write_json
from dpr.generation.decoding import Decoding
from dpr.generation.generate import Generated, generate_queries, read_queries, write_queries
from dpr.generation.generator import QueryGenerator
from dpr.generation.training import TrainedGenerator, describe_generator_training, train_generator
from dpr.search.bm25 import BM25, K1, B, Tuning
from dpr.training.resume import IDENTITY, Training, keep_training, read_kept_training
from dpr.training.settings import GeneratorSettings


def generator_data(
    space: Workspace, sets: Sequence[str], most_queries: int, held_out: int
) -> tuple[TrainingData, TrainingData, list[str]]:
    """Collect queries and the passages that answer them, for training and for selecting checkpoints.

    Profiles get the same data from the same arguments if `sets` has the training sets of all of them, so
    one generator serves them all.

    Args:
        space: The workspace, whose training set is added in front if it is not among `sets`.
        sets: Names of sets of pairs or triples, or `<collection>/train`; sets that the data folder lacks
            are left out.
        most_queries: Most queries to take from each set of pairs or triples in `sets`, chosen at random.
        held_out: Number of queries to hold out at random from all sets together; at most a fifth of them.

    Returns:
        (training data, held-out data, names of the sets left out). Neither part has a dev or test query of
        the profile's collection or of those in `sets`.
    """
    own, _ = space.training_data()
    names = list(sets) if own.name in sets else [own.name, *sets]
    there = [name for name in names if name == own.name or find_data(name.removesuffix("/train"))]
    evaluated = [space.collection(split) for split in space.splits if split != "train"]
    seed, parts = space.profile.seeds[0], []
    for name in there:
        if name == own.name:
            part = own
        elif name.endswith("/train"):
            whole = load_collection(name.removesuffix("/train"), "train")
            evaluated += [whole.with_split(split) for split in whole.all_qrels if split != "train"]
            part = TrainingData.from_collection(whole)
        else:
            part = load_training_data(name)
            if len(part.examples) > most_queries:
                _, part = part.split(most_queries / len(part.examples), seed)
        parts.append(part)
    data = merge("+".join(there), *(part.without_queries(*evaluated) for part in parts))
    data = data.with_positives(lambda example: example.positives)  # drops the passages of queries left out
    learn, select = data.split(min(0.2, held_out / len(data.examples)), seed)
    return learn, select, [name for name in names if name not in there]


def fold_of(text: str) -> int:
    """The fold of a text, 0 or 1; texts that differ only in case and white space share a fold.

    >>> fold_of("Masks work."), fold_of("masks  work."), fold_of("Zinc helps.")
    (1, 1, 0)
    """
    return int(stable_hash(normalise(text)), 16) % 2


def split_in_folds(
    collection: Collection, learn: TrainingData, select: TrainingData
) -> list[tuple[TrainingData, TrainingData]]:
    """Split training data into two folds by passage, if it has passages of the collection to expand.

    A generator that was trained on the queries of a passage may write them again from memory. So the first
    of two generators is trained without the passages of fold 0 and writes queries for these; the second is
    trained without those of fold 1.

    Args:
        collection: The collection to expand.
        learn: The training data.
        select: The held-out data to select checkpoints by.

    Returns:
        For each fold, the part of `learn` in the other fold and the part of `select` in this one. If no
        passage is in the collection, only the pair (`learn`, `select`).

    Raises:
        ValueError: A part is empty.
    """
    to_expand = {normalise(passage.contents) for passage in collection.passages}
    if to_expand.isdisjoint(map(normalise, learn.passages.values())):
        return [(learn, select)]

    def part(data: TrainingData, fold: int) -> TrainingData:
        def keep(example: Example) -> dict[str, int]:
            positives = example.positives.items()
            return {d: grade for d, grade in positives if fold_of(data.passages[d]) == fold}

        return data.with_positives(keep)

    return [(part(learn, 1 - fold), part(select, fold)) for fold in (0, 1)]


@dataclass(eq=False)
class KeptGenerator:
    """A query generator that is trained once, and whose queries are written once and saved in `runs/`.

    The history is saved in `runs/<collection>/training/<tag>.json`, queries in `runs/<collection>/queries/`.
    Both are read from there as long as settings, data and starting model are the same, even if the trained
    model is missing. The model is only trained again if it is missing and needed.

    Args:
        space: The workspace to read from and write to; the model goes to `models/<data>/<tag>`.
        tag: The training's name.
        start: The generator to start from; it is not changed.
        data: The training data.
        settings: Settings of the training.
        validation: Held-out queries to select the best checkpoint by.
        callbacks: Further callbacks of the Trainer.

    Raises:
        ValueError: An error of `train_generator`.
    """

    space: Workspace
    tag: str
    start: QueryGenerator
    data: TrainingData
    settings: GeneratorSettings
    validation: TrainingData
    callbacks: Sequence[TrainerCallback] = ()

    def __post_init__(self):
        _ = self.training

    @cached_property
    def training(self) -> Training:
        """The training's record and history, read from `runs/` or made by training."""
        path = self.space.kept_training(self.tag)
        kept = read_kept_training(path, self._record)
        if kept is None:
            keep_training(path, self._trained)
        return kept or self._trained

    @cached_property
    def _record(self) -> dict[str, Any]:
        """What the training is made from."""
        return describe_generator_training(self.start, self.data, self.settings, self.validation, [self.tag])

    @cached_property
    def _trained(self) -> TrainedGenerator:
        """The training with the generator itself, which is read if its training is finished."""
        folder = self.space.training_folder(self.data.name, self.tag, self._record)
        how = {"validation": self.validation, "tags": [self.tag], "callbacks": self.callbacks}
        return train_generator(self.start, self.data, folder, self.settings, **how)

    def write(
        self, name: str, collection: Collection, decoding: Decoding, overflow: str = "truncate"
    ) -> Generated:
        """Write queries for a collection's passages with the profile's first seed, or read the saved ones.

        Args:
            name: The queries' name; they are saved as `<tag>-<name>.jsonl.gz`.
            collection: The collection with the passages.
            decoding: The settings for writing queries.
            overflow: How to treat passages that are too long, as in `generate_queries`.
        """
        made_of = {
            **{part: self.training.finished[part] for part in IDENTITY},
            "collection": collection.fingerprint,
            "decoding": asdict(decoding),
            "overflow": overflow,
            "sampling_seed": self.space.profile.seeds[0],
        }
        check_name(f"{self.tag}-{name}", "tag and name")
        path = self.space.runs / "queries" / f"{self.tag}-{name}.jsonl.gz"
        about = path.with_name(f"{self.tag}-{name}.json")
        if path.is_file() and about.is_file():
            kept = read_json(about, "made_of", "num_skipped", "passages_per_s")
            if kept["made_of"] == made_of and kept.get("crc32") in (None, crc32(path)):
                return Generated(read_queries(path), kept["num_skipped"], kept["passages_per_s"])
        digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
        folder, seed = self.space.root / "build" / "queries" / digest, made_of["sampling_seed"]
        generator = self._trained.generator
        found = generate_queries(folder, generator, collection, decoding, seed=seed, overflow=overflow)
        about.unlink(missing_ok=True)  # it must never describe other queries
        write_queries(path, found.queries)
        rest = {"num_skipped": found.num_skipped, "passages_per_s": found.passages_per_s}
        rest["crc32"] = crc32(path)
        write_json(about, {"made_of": made_of, **rest})
        return found


def write_by_other_fold(
    generators: Sequence[KeptGenerator],
    name: str,
    collection: Collection,
    decoding: Decoding,
    overflow: str = "truncate",
) -> Generated:
    """Write queries for each passage of a collection with the generator not trained on that passage.

    Args:
        generators: One generator, or two trained on the folds of `split_in_folds`, in the same order.
        name: The queries' name, as in `KeptGenerator.write`.
        collection: The collection with the passages.
        decoding: The settings for writing queries.
        overflow: How to treat passages that are too long, as in `generate_queries`.
    """
    if len(generators) == 1:
        return generators[0].write(name, collection, decoding, overflow)
    queries, skipped, seconds = {}, 0, 0.0
    for fold, generator in enumerate(generators):
        passages = [p for p in collection.passages if fold_of(p.contents) == fold]
        found = generator.write(name, replace(collection, passages=passages), decoding, overflow)
        queries |= found.queries
        skipped += found.num_skipped
        seconds += len(found.queries) / found.passages_per_s
    ordered = {doc_id: queries[doc_id] for doc_id in collection.doc_ids if doc_id in queries}
    return Generated(ordered, skipped, len(ordered) / seconds)


@dataclass(frozen=True)
class TunedBM25:
    """BM25 over an expanded collection, with k1 and b tuned on dev queries.

    Attributes:
        result: The result for the test queries.
        run: The run at full depth.
        tuning: The values of k1 and b tried and their nDCG@10 on dev; None if there are no dev queries.
        dev: Metric → mean on the dev queries with the best k1 and b; empty if there are no dev queries.
        index_bytes: Size of the Lucene index.
    """

    result: Result
    run: Run
    tuning: Tuning | None
    dev: dict[str, float]
    index_bytes: int


def search_and_save_bm25(
    space: Workspace,
    collection: Collection,
    expanded: Collection,
    tag: str,
    *,
    notebook: str,
    k1_grid: Sequence[float],
    b_grid: Sequence[float],
    ablation: bool = True,
    written_by: str | None = None,
) -> TunedBM25:
    """Index expanded passages, tune k1 and b on dev, search for the test queries, and save the result.

    The result counts as one over the original collection, as the same documents are ranked. Its settings
    say how the passages were expanded.

    Args:
        space: The workspace where the index and the result are saved.
        collection: The original collection, with the test queries.
        expanded: The collection that `expand` made from it, or the original itself.
        tag: The system's name.
        notebook: Name of the calling notebook, without the ending.
        k1_grid: Values of k1 to try.
        b_grid: Values of b to try.
        ablation: Whether the result is left out of the results table.
        written_by: What wrote the queries, in words, for the table's caption.

    Raises:
        ValueError: `expanded` has other documents than `collection`.
    """
    if expanded.doc_ids != collection.doc_ids:
        raise ValueError(f"{tag}: the expanded collection has other documents than {collection.name}")
    bm25 = BM25.build(expanded, space.index_folder(expanded))
    tuning, dev, k1, b = None, {}, K1, B
    if "dev" in expanded.all_qrels:
        asked = expanded.with_split("dev")
        tuning = bm25.tune(asked, k1_grid, b_grid)
        k1, b = tuning.k1, tuning.b
        dev = evaluate(asked.qrels, bm25.search(asked.queries, space.profile.depth, k1, b)).means
    start = time.perf_counter()
    run = Run(bm25.search(collection.queries, space.profile.depth, k1, b), tag)
    config = {"k1": k1, "b": b, "expansion": expanded.expansion and dict(expanded.expansion)}
    if written_by:
        config["written_by"] = written_by
    if tuning:
        config["tuned_on"] = f"{tuning.num_queries} {tuning.split} queries"
    result = save_result(
        space.runs,
        run,
        collection,
        notebook=notebook,
        config=config,
        depth=space.profile.depth,
        wall_s=time.perf_counter() - start,
        index_bytes=bm25.num_bytes,
        ablation=ablation,
    )
    return TunedBM25(result, run, tuning, dev, bm25.num_bytes)
