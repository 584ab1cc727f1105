"""Doc2query for a notebook: what generators learn from, generators and their queries kept, BM25 over them."""

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property

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
from dpr.files import write_text
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
    """Queries with the passages that answer them, to learn from and to select by.

    Two profiles that name the same sets, their own training data among them, get the same data, so one
    generator serves both.

    Args:
        space: Its training set comes first, unless it is among `sets`.
        sets: Names of sets of pairs or triples, or `<collection>/train`; those that the data folder lacks
            are left out.
        most_queries: Of each set of pairs or triples in `sets` at most so many queries, at random.
        held_out: Queries to select by, taken from all sets at random; at most a fifth.

    Returns:
        What to learn from, what to select by, and the sets left out. No dev or test query of a collection
        that is named is in either.
    """
    own, _ = space.training_data()
    names = list(sets) if own.name in sets else [own.name, *sets]
    there = [name for name in names if name == own.name or find_data(name.removesuffix("/train"))]
    evaluated = [space.collection(split) for split in space.splits() if split != "train"]
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
    data = data.with_positives(lambda example: example.positives)  # passages of queries left out go
    learn, select = data.split(min(0.2, held_out / len(data.examples)), seed)
    return learn, select, [name for name in names if name not in there]


def fold_of(text: str) -> int:
    """Which of two folds a text belongs to, 0 or 1; copies, case and white space aside, to the same one.

    >>> fold_of("Masks work."), fold_of("masks  work."), fold_of("Zinc helps.")
    (1, 1, 0)
    """
    return int(stable_hash(normalise(text)), 16) % 2


def split_in_folds(
    collection: Collection, learn: TrainingData, select: TrainingData
) -> list[tuple[TrainingData, TrainingData]]:
    """Split training data by folds of its passages, where it has passages of the collection.

    A generator that has learnt a passage's own training queries writes them again from memory. The first
    one gets nothing of the passages of fold 0, and so can write for those; the second nothing of fold 1.

    Args:
        collection: What will be expanded.
        learn: What to learn from.
        select: What to select by.

    Returns:
        For each fold what to learn from, the other fold's, and what to select by, its own. Without a passage
        in common one pair, as given.

    Raises:
        ValueError: A fold with nothing to learn from or to select by.
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
    """A query generator that is trained once, and whose queries are written once and kept in `runs/`.

    The history lies in `runs/<collection>/training/<tag>.json`, queries in `runs/<collection>/queries/`;
    both are read again as long as settings, data and start are the same, also where the model is not at
    hand. Where it is needed and not there, it is trained anew.

    Args:
        space: Where to read and write; the model lies in `models/<data>/<tag>`.
        tag: The training's name.
        start: What is trained; it stays as it is.
        data: What to learn from.
        settings: How.
        validation: What to select by.
        callbacks: More of the Trainer's callbacks.

    Raises:
        ValueError: What `train_generator` refuses.
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
        """Its history, and what it was made from."""
        path = self.space.kept_training(self.tag)
        record = describe_generator_training(
            self.start, self.data, self.settings, self.validation, [self.tag]
        )
        kept = read_kept_training(path, record)
        if kept is None:
            keep_training(path, self._trained)
        return kept or self._trained

    @cached_property
    def _trained(self) -> TrainedGenerator:
        """The generator itself: trained, or read where that is finished."""
        folder = self.space.model_folder(self.data.name, self.tag)
        how = {"validation": self.validation, "tags": [self.tag], "callbacks": self.callbacks}
        return train_generator(self.start, self.data, folder, self.settings, **how)

    def write(
        self, name: str, collection: Collection, decoding: Decoding, overflow: str = "truncate"
    ) -> Generated:
        """Queries for a collection's passages, sampled by the profile's first seed.

        Args:
            name: Of the file `<tag>-<name>.jsonl.gz`.
            collection: N passages.
            decoding: How.
            overflow: As `generate_queries` takes it.
        """
        made_of = {
            **{part: self.training.finished[part] for part in IDENTITY},
            "collection": collection.fingerprint,
            "decoding": asdict(decoding),
            "overflow": overflow,
            "sampling_seed": self.space.profile.seeds[0],
        }
        path = self.space.runs / "queries" / f"{self.tag}-{name}.jsonl.gz"
        about = path.with_name(f"{self.tag}-{name}.json")
        if path.is_file() and about.is_file():
            kept = json.loads(about.read_text(encoding="utf-8"))
            if kept["made_of"] == made_of:
                return Generated(read_queries(path), kept["num_skipped"], kept["passages_per_s"])
        digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
        folder, seed = self.space.root / "build" / "queries" / digest, made_of["sampling_seed"]
        generator = self._trained.generator
        found = generate_queries(folder, generator, collection, decoding, seed=seed, overflow=overflow)
        about.unlink(missing_ok=True)  # never beside queries made otherwise
        write_queries(path, found.queries)
        rest = {"num_skipped": found.num_skipped, "passages_per_s": found.passages_per_s}
        write_text(about, json.dumps({"made_of": made_of, **rest}, indent=1) + "\n")
        return found


def write_by_other_fold(
    generators: Sequence[KeptGenerator],
    name: str,
    collection: Collection,
    decoding: Decoding,
    overflow: str = "truncate",
) -> Generated:
    """Queries for a collection's passages, each by the generator that has not learnt from that passage.

    Args:
        generators: One, or two trained on what `split_in_folds` gives, in that order.
        name: As `KeptGenerator.write` takes it, like the rest.
        collection: N passages.
        decoding: How.
        overflow: What becomes of a passage beyond the generator's length.
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
    """BM25 over an expanded collection, its k1 and b chosen on dev queries.

    Attributes:
        result: On the test queries.
        run: At full depth.
        tuning: k1 and b tried on dev by nDCG@10; None where there is no dev part to these passages.
        dev: Means on the dev queries with those, to choose among variants by; empty without tuning.
        index_bytes: Of the Lucene index.
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
    """Index expanded passages, tune k1 and b on dev, search for the test queries, and write the result.

    The result is one over the original collection, whose documents are ranked; what was indexed is in its
    settings.

    Args:
        space: Where indexes and results go.
        collection: The original, with the test queries.
        expanded: Made from it by `expand`, or the original itself.
        tag: The system's name.
        notebook: The notebook that asks, without ending.
        k1_grid: Values of k1 to try.
        b_grid: Values of b to try.
        ablation: Left out of the results table.
        written_by: What wrote the queries, in words, for the results table.

    Raises:
        ValueError: `expanded` has other documents.
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
