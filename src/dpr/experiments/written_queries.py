"""Queries that models write: which models, what they learnt from, and the queries kept in `runs/`."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dpr.data.collection import Collection
from dpr.data.loading import find_data, load_training_data
from dpr.data.text import stable_hash
from dpr.data.training_data import TrainingData, merge
from dpr.experiments.workspace import Workspace
from dpr.files import check_name, crc32, read_json, read_jsonl, write_json
from dpr.generation.decoding import Decoding
from dpr.generation.generate import Generated, generate_queries, read_queries, write_queries
from dpr.generation.generator import QueryGenerator
from dpr.generation.llm import PROMPTS, CausalGenerator
from dpr.generation.training import describe_generator_training, train_generator
from dpr.generation.writer import Writer
from dpr.training.resume import Training, keep_training

COLLECTIONS = ("scifact", "nfcorpus", "squad", "trec-covid", "msmarco-dl")  # whose queries nobody may recite
PAIRS = ("medquad-pairs", "squad-triples", "msmarco-tiny")
MOST_LACKING = 0.1  # share of the passages that kept queries may lack, as documentation differs by version


@dataclass(frozen=True)
class KeptWriter:
    """A model that writes queries, and what identifies them if they are kept.

    Attributes:
        tag: The writer's name, in file names and tables.
        about: What it is made from, as JSON values.
        load: Loads the model, or trains it.
    """

    tag: str
    about: Mapping[str, Any]
    load: Callable[[], Writer]


def prompted(space: Workspace, prompt: str | None = None) -> KeptWriter:
    """The profile's language model, which writes from a prompt.

    Args:
        space: The workspace.
        prompt: A key of `PROMPTS` in place of the profile's.
    """
    writing = space.profile.writing
    lengths = {"passage_max_length": writing.passage_max_length, "query_max_length": writing.query_max_length}
    prompt = prompt or writing.prompt
    how = lengths | ({"prompt": prompt} if prompt else {})
    about = {"writer": writing.writer, **lengths, "prompt": prompt and asdict(PROMPTS[prompt])}
    tag = Path(writing.writer).name + (f"-{prompt}" if prompt != writing.prompt else "")
    return KeptWriter(tag, about, lambda: QueryGenerator.from_pretrained(writing.writer, **how))


def tuned(space: Workspace) -> KeptWriter:
    """The profile's fine-tuned writer, which is trained when its queries are not kept.

    The history of the training is kept in `runs/<collection>/training/`.

    Raises:
        ValueError: The profile names none.
    """
    writing = space.profile.writing
    if not writing.tuned:
        raise ValueError(f"profile {space.profile.name} has no writer to tune (writing.tuned)")
    settings = replace(writing.training, seed=space.profile.seeds[0])
    lengths = {"passage_max_length": writing.passage_max_length, "query_max_length": writing.query_max_length}
    about = {"writer": writing.tuned, **lengths, "sets": list(writing.sets), "most": writing.most_queries}
    about |= {"held_out": writing.held_out, "settings": json.loads(json.dumps(asdict(settings)))}
    tag = f"{Path(writing.tuned).name}-tuned"

    def load() -> Writer:
        learn, select = writer_data(space)
        start = QueryGenerator.from_pretrained(writing.tuned, precision="float32", **lengths)
        if isinstance(start, CausalGenerator):  # what it learns takes the place of examples
            config = replace(start.config, prompt="none")
            start = CausalGenerator(start.model, start.tokenizer, start.name, config)
        record = describe_generator_training(start, learn, settings, select, [tag])
        folder = space.training_folder(learn.name, tag, record)
        trained = train_generator(start, learn, folder, settings, validation=select, tags=[tag])
        keep_training(space.kept_training(tag), trained)
        return trained.generator

    return KeptWriter(tag, about, load)


def kept_history(space: Workspace, writer: KeptWriter) -> Training | None:
    """The record and history of a tuned writer's training; None if they are not kept."""
    path = space.kept_training(writer.tag)
    if not path.is_file():
        return None
    kept = read_json(path, "history", "best_step")
    return Training(kept.pop("history"), kept, path.parent)


def writer_data(space: Workspace) -> tuple[TrainingData, TrainingData]:
    """What the profile's writer is trained on, and what its checkpoint is selected by.

    Sets that the data folder lacks are left out, and so are queries that the collection's own splits ask.

    Raises:
        FileNotFoundError: None of the sets is at hand.
    """
    writing, seed, parts = space.profile.writing, space.profile.seeds[0], []
    there = [name for name in writing.sets if name == "msmarco-tiny" or find_data(name)]
    if not there:
        raise FileNotFoundError(
            f"none of the sets to train a writer on is at hand: {', '.join(writing.sets)}"
        )
    for name in there:
        part = load_training_data(name).without_queries(*space.splits.values())
        if len(part.examples) > writing.most_queries:
            _, part = part.split(writing.most_queries / len(part.examples), seed)
        parts.append(part)
    data = merge("+".join(there), *parts).with_positives(lambda example: example.positives)
    return data.split(min(0.2, writing.held_out / len(data.examples)), seed)


def sampling(space: Workspace, num_queries: int) -> Decoding:
    """How the profile's writers sample so many queries a passage."""
    writing = space.profile.writing
    return Decoding(
        "sample",
        num_queries,
        writing.query_max_length,
        top_k=writing.top_k,
        temperature=writing.temperature,
    )


def keep_queries(
    space: Workspace, writer: KeptWriter, collection: Collection, decoding: Decoding, name: str = "sampled"
) -> Generated:
    """Write queries for a collection's passages, or read those that are kept for these texts.

    They are kept in `runs/<collection>/queries/<tag>-<name>.jsonl.gz`, by the hash of the passage's text: a
    part of the collection is read from the same file, and up to a tenth of the passages may be unknown.

    Args:
        space: The workspace to read from and write to.
        writer: The writer; its model is loaded only if queries must be written.
        collection: The collection with the passages.
        decoding: How queries are written; the profile's first seed is that of sampling.
        name: The queries' name.
    """
    made_of = {**writer.about, "decoding": asdict(decoding), "seed": space.profile.seeds[0]}
    name = check_name(f"{writer.tag}-{name}", "tag and name")
    path, about = (space.runs / "queries" / f"{name}.{ending}" for ending in ("jsonl.gz", "json"))
    keys = {doc_id: text_hash(passage.contents) for doc_id, passage in collection.by_id.items()}
    if path.is_file() and about.is_file():
        kept = read_json(about, "made_of", "num_skipped", "passages_per_s", "crc32")
        if kept["made_of"] == made_of and kept["crc32"] == crc32(path):
            by_text = read_queries(path)
            written = {doc_id: by_text[key] for doc_id, key in keys.items() if key in by_text}
            lacking = len(keys) - len(written)
            if lacking <= MOST_LACKING * len(keys) or lacking <= kept["num_skipped"]:
                return Generated(written, lacking, kept["passages_per_s"])
    digest = hashlib.sha256(json.dumps([made_of, collection.fingerprint], sort_keys=True).encode())
    folder = space.root / "build" / "queries" / digest.hexdigest()[:16]
    found = generate_queries(folder, writer.load(), collection, decoding, seed=space.profile.seeds[0])
    about.unlink(missing_ok=True)  # it must never describe other queries
    write_queries(path, {keys[doc_id]: queries for doc_id, queries in found.written.items()})
    rest = {"num_skipped": found.num_skipped, "passages_per_s": found.passages_per_s, "crc32": crc32(path)}
    write_json(about, {"made_of": made_of, "collection": collection.name, **rest})
    return found


def text_hash(text: str) -> str:
    """16 hex digits by which a passage's text is known."""
    return stable_hash(text)[:16]


def known_queries(space: Workspace) -> dict[str, list[str]]:
    """Queries that people asked, to be compared with written ones: name of a set → texts.

    They are those of the profile's collection by split, and of the other collections and training sets at
    hand.
    """
    known = {f"{c.name} {split}": list(c.queries.values()) for split, c in space.splits.items()}
    for name in COLLECTIONS:
        folder = find_data(name)
        if name != space.profile.collection and folder and (folder / "queries.jsonl").is_file():
            known[name] = [record["text"] for _, record in read_jsonl(folder / "queries.jsonl")]
    for name in PAIRS:
        if find_data(name):
            known[name] = [example.query for example in load_training_data(name).examples]
    return known
