"""Cross-encoders in notebooks: trainings and reranked runs that are made only once, and teachers' scores."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpr.data.collection import Collection
from dpr.data.training_data import TrainingData
from dpr.data.trec import Run, ordered_hits, read_run, write_run
from dpr.experiments.results import Result, kept_result, save_result
from dpr.experiments.workspace import Workspace
from dpr.files import check_name, read_json
from dpr.models.bi_encoder import BiEncoder
from dpr.reranking.rerank import rerank
from dpr.reranking.reranker import Reranker
from dpr.reranking.training import Pool, describe_reranker_training, train_reranker
from dpr.search.bm25 import BM25
from dpr.search.fusion import fuse_scores
from dpr.search.index import build_index
from dpr.training.negatives import mine_negatives
from dpr.training.resume import Training, keep_training, read_kept_training
from dpr.training.settings import RerankerSettings


@dataclass(frozen=True)
class KeptReranker:
    """A cross-encoder that is known by its fingerprint before its weights are there.

    Attributes:
        name: Its name.
        fingerprint: That of `Reranker.fingerprint`.
        max_length: Number of tokens at which a pair is cut.
        load: Loads the weights, or trains them.
    """

    name: str
    fingerprint: str
    max_length: int
    load: Callable[[], Reranker]


def untrained(encoder: BiEncoder, max_length: int, head: str, precision: str) -> KeptReranker:
    """A cross-encoder to start from, as `Reranker.from_encoder` makes it with seed 0."""
    made = Reranker.from_encoder(encoder, max_length, head, precision=precision)
    return KeptReranker(made.name, made.fingerprint, max_length, lambda: made)


def taught(
    space: Workspace,
    tag: str,
    start: KeptReranker,
    data: TrainingData,
    settings: RerankerSettings,
    pool: Pool | None,
) -> tuple[KeptReranker, Training]:
    """Train a cross-encoder, unless the record of this training is kept in `runs/`.

    The model is written to `models/<data>/<tag>`; if only the record is there, `load` trains it again.

    Args:
        space: The workspace to read from and write to.
        tag: The new model's name.
        start: What it starts from.
        data: The training data, with negatives.
        settings: Settings of the training.
        pool: What its checkpoint is selected by.
    """
    path, record = space.kept_training(tag), describe_reranker_training(start, data, settings, pool, [tag])

    def train() -> Any:
        folder = space.training_folder(data.name, tag, record)
        return train_reranker(start.load(), data, folder, settings, validation=pool, tags=[tag])

    def load(fingerprint: str) -> Reranker:
        made = train().reranker
        if made.fingerprint != fingerprint:
            warnings.warn(
                f"{tag} was trained again, as its weights are not kept; on this machine they are not quite "
                f"those that the kept results are of ({made.fingerprint}, not {fingerprint}).",
                stacklevel=2,
            )
        return made

    def known(fingerprint: str) -> KeptReranker:
        return KeptReranker(tag, fingerprint, start.max_length, lambda: load(fingerprint))

    kept = read_kept_training(path, record)
    if kept and "model" in kept.finished:
        return known(kept.finished["model"]), kept
    trained = train()
    fingerprint = trained.reranker.fingerprint
    keep_training(path, trained, model=fingerprint)
    return known(fingerprint), trained.without_model()


def reranked(
    space: Workspace,
    tag: str,
    reranker: KeptReranker,
    first: Run,
    collection: Collection,
    *,
    notebook: str,
    depth: int,
    seed: int | None = None,
    ablation: bool = False,
    about: Mapping[str, Any] | None = None,
) -> Result:
    """Rerank a run and save the result in `runs/`, unless it is there already.

    Args:
        space: The workspace to read from and write to.
        tag: The system's name.
        reranker: The cross-encoder.
        first: The first stage's run for the collection's queries.
        collection: The collection.
        notebook: Name of the calling notebook, without the ending.
        depth: Hits of each query that are reordered.
        seed: The seed of the cross-encoder's training.
        ablation: Whether this is a variant that is left out of the results table.
        about: Further settings of the system.
    """
    config = {"model": reranker.fingerprint, "first": first.tag, "reranked": depth, **(about or {})}
    kept = kept_result(space.runs, tag, collection, space.profile.depth, reranker.fingerprint)
    if kept and all(kept.metadata["config"].get(name) == config[name] for name in ("first", "reranked")):
        return kept
    model = reranker.load()
    queries = collection.queries_fingerprint
    name = f"{reranker.fingerprint}-{first.tag}-{collection.fingerprint}-{queries}-{depth}"
    folder = space.root / "build" / "scores" / name
    run = rerank(first, collection, model, depth=depth, tag=tag, folder=folder)
    config["pairs"] = sum(min(depth, len(hits)) for hits in first.values())
    seconds = [read_json(path, "seconds")["seconds"] for path in folder.glob("shard-*.json")]
    return save_result(
        space.runs,
        run,
        collection,
        notebook=notebook,
        config=config,
        depth=space.profile.depth,
        wall_s=sum(seconds),  # over all attempts
        seed=seed,
        ablation=ablation,
    )


def by_encoder(encoder: BiEncoder, run: Run, collection: Collection, tag: str) -> Run:
    """The hits of a run in the order of a bi-encoder's similarities, to compare a cross-encoder with.

    Args:
        encoder: The bi-encoder; each passage is encoded once.
        run: The hits.
        collection: The texts.
        tag: The name of the new run.

    Returns:
        The same hits, with the encoder's similarity for a score.
    """
    doc_ids = list(dict.fromkeys(doc_id for hits in run.values() for doc_id in hits))
    passage_emb = encoder.encode_passages([collection.by_id[doc_id].contents for doc_id in doc_ids])
    query_emb = encoder.encode_queries([collection.queries[query_id] for query_id in run])
    index = build_index("exact", passage_emb, doc_ids, encoder.config.similarity)
    every = index.search_run(list(run), query_emb, len(doc_ids), tag, None)
    return Run({q: {d: score for d, score in every[q].items() if d in hits} for q, hits in run.items()}, tag)


def teacher_run(
    space: Workspace,
    encoders: Sequence[BiEncoder],
    collection: Collection,
    queries: Mapping[str, str],
    depth: int = 100,
) -> Run:
    """What BM25 and encoders together find for queries: their rescaled scores, averaged.

    No judgement is used. A document that none of them finds has no score.

    Args:
        space: The workspace with the index and the vectors.
        encoders: The encoders.
        collection: The passages.
        queries: query_id → text.
        depth: Hits of each that are merged.
    """
    bm25 = BM25.build(collection, space.index_folder(collection))
    runs = [bm25.search(queries, depth, leave_out_own=False)]
    runs += [space.encoder_hits(encoder, collection, queries, depth) for encoder in encoders]
    return fuse_scores(runs, "teacher")


def with_teacher(
    space: Workspace,
    name: str,
    encoders: Callable[[], Sequence[BiEncoder]],
    data: TrainingData,
    collection: Collection,
    **mining: Any,
) -> TrainingData:
    """Give training queries negatives among their teacher's hits, and its scores.

    These lists are kept in `runs/<collection>/teachers/<name>.trec.gz`; a positive that the teacher does not
    find has score 0 there. Queries without a negative are left out.

    Args:
        space: The workspace to read from and write to.
        name: The name of the file.
        encoders: Loads the encoders of `teacher_run`; only called if the lists are not kept.
        data: Queries with positives.
        collection: The passages.
        **mining: Arguments of `mine_negatives`.
    """
    path = space.runs / "teachers" / f"{check_name(name, 'name')}.trec.gz"
    corpus = {passage.doc_id: passage.contents for passage in collection.passages}
    tag = f"{name}-{data.fingerprint}"
    if not path.is_file() or read_run(path).tag != tag:
        scores = teacher_run(space, encoders(), collection, {e.query_id: e.query for e in data.examples})
        mined = mine_negatives(data, corpus, scores, **mining).negatives
        lists = Run({}, tag)
        for example in data.examples:
            if drawn := mined.get(example.query_id):
                found = scores[example.query_id]
                hits = {d: found.get(d, 0.0) for d in (*example.positives, *drawn)}
                lists[example.query_id] = dict(ordered_hits(hits))
        write_run(path, lists)
    lists = read_run(path)
    data = data.with_positives(lambda e: e.positives if e.query_id in lists else {})
    negatives = {e.query_id: [d for d in lists[e.query_id] if d not in e.positives] for e in data.examples}
    return data.with_negatives(negatives, corpus).with_scores(lists)


def kept_scores(
    path: Path, lists: Mapping[str, Sequence[str]], collection: Collection, reranker: KeptReranker
) -> Run:
    """A cross-encoder's scores of lists of passages, to distil from; kept as a run file.

    Args:
        path: The file; its run's tag holds the cross-encoder's fingerprint.
        lists: query_id → doc_ids.
        collection: The texts.
        reranker: The cross-encoder, which is only loaded if these scores are not kept.
    """
    tag = f"{reranker.name}-{reranker.fingerprint}"
    if path.is_file():
        kept = read_run(path)
        if kept.tag == tag and {q: set(found) for q, found in kept.items()} == {
            q: set(doc_ids) for q, doc_ids in lists.items()
        }:
            return kept
    hits = {query_id: dict.fromkeys(doc_ids, 0.0) for query_id, doc_ids in lists.items()}
    longest = max(map(len, lists.values()))
    write_run(path, rerank(hits, collection, reranker.load(), depth=longest, tag=tag))
    return read_run(path)
