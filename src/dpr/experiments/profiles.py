"""Profiles: settings of the same notebooks, from two cores without network to the full task on a GPU."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from dpr.arguments import check_fields_of
from dpr.data.download import BEIR_MD5
from dpr.data.loading import find_data, project_root
from dpr.training.settings import (
    DistillationSettings,
    GeneratorSettings,
    RerankerSettings,
    TrainingSettings,
    check_fields,
)

DISTILLATION = DistillationSettings(
    batch_size=64, learning_rate=1e-4, dropout=0.0, precision="bfloat16", frozen_passages=True
)
FILTERS = ("all", "way back", "likely")  # of written queries to train on


@dataclass(frozen=True)
class QueryWriting:
    """Settings for writing the queries that expand passages, or that a bi-encoder is trained on.

    Args:
        writer: The language model that writes from a prompt, or a T5-like checkpoint that was trained to.
        prompt: A key of `generation.llm.PROMPTS`; None for the writer's own.
        passage_max_length: Passages are cut to this many tokens.
        query_max_length: Most tokens in a query.
        top_k: Each token is drawn from this many of the likeliest.
        temperature: Below 1, likely tokens are drawn more often.
        num_queries: The numbers of queries per passage to compare, in ascending order; the last is written.
        tuned: A checkpoint that is trained to write, for comparison; None: none is.
        sets: Names of the sets that it learns from.
        most_queries: Most queries to take from each of `sets`, chosen at random.
        held_out: Number of queries held out from training to select the best checkpoint by.
        training: Settings of its training; its seed is replaced by the profile's.
        tuned_queries: Queries per passage that it writes.

    Raises:
        ValueError: `num_queries` is empty or not ascending.
    """

    writer: str = "gemma-3-270m"
    prompt: str | None = None
    passage_max_length: int = 256
    query_max_length: int = 32
    top_k: int = 10
    temperature: float = 0.7
    num_queries: tuple[int, ...] = (1, 2, 5)
    tuned: str | None = None
    sets: tuple[str, ...] = ("medquad-pairs", "squad-triples")
    most_queries: int = 2000
    held_out: int = 200
    training: GeneratorSettings = field(default_factory=GeneratorSettings)
    tuned_queries: int = 5

    def __post_init__(self):
        check_fields_of(self)
        if not self.num_queries or list(self.num_queries) != sorted(set(self.num_queries)):
            raise ValueError(f"num_queries must be numbers that grow, got {self.num_queries}")


@dataclass(frozen=True)
class SyntheticTraining:
    """Settings for training a bi-encoder on written queries.

    Args:
        filters: The filters to compare: `all` (none), `way back` and `likely`; dev queries choose.
        most_queries: Most queries to train on, chosen at random from those that a filter leaves.
        held_out: Queries held out to select the checkpoint by.
        share: Share of the queries that filtering by log probability or by the encoder keeps.
        negatives: Hard negatives mined for each query from BM25's hits.
        depth: They are mined from this many hits.
        passage_max_length: Passages are cut to this many tokens in training.
        training: Settings of the training; its seed is replaced by each of the profile's.
        most_distilled: Most queries, of any filter, to teach the query encoder with.
        distillation: Settings of that; the seed is replaced too.
    """

    filters: tuple[str, ...] = ("way back",)
    most_queries: int = 6000
    held_out: int = 200
    share: float = 0.5
    negatives: int = 4
    depth: int = 50
    passage_max_length: int = 128
    training: TrainingSettings = field(default_factory=TrainingSettings)
    most_distilled: int = 25_000
    distillation: DistillationSettings = DISTILLATION

    def __post_init__(self):
        check_fields_of(self)
        sizes = (
            "most_queries",
            "held_out",
            "negatives",
            "depth",
            "passage_max_length",
            "most_distilled",
        )
        check_fields(self, "at least 1", lambda v: v >= 1, *sizes)
        check_fields(self, "above 0 and at most 1", lambda v: 0 < v <= 1, "share")
        check_fields(self, f"some of {FILTERS}", lambda v: v and set(v) <= set(FILTERS), "filters")


@dataclass(frozen=True)
class Reranking:
    """Settings for training cross-encoders and for reranking with them.

    Args:
        ready: A trained cross-encoder, by name or folder, to rerank with as it is; None: none is.
        max_length: Number of tokens at which a pair of query and passage is cut.
        depth: Hits of BM25 that are reranked for each test query.
        deeper: The larger number of hits that this is compared with.
        deeper_queries: Test queries of that comparison.
        pool_queries: Judged queries that checkpoints are selected by.
        pool_depth: Hits of BM25 that are reranked for each of these.
        negatives: Negatives drawn for each training query from its teacher's hits.
        most_queries: Most queries to train on, of the written ones and of the judged ones each.
        written: Settings of training on written queries with a teacher's scores.
        judged: Settings of training on judgements; its seed is replaced by each of the profile's.
        first_rate: The learning rate of trainings on judgements that start from no other training.
        most_distilled: Most written queries that the cross-encoder scores to teach the bi-encoder.
        distillation: Settings of that; its seed is replaced, and for comparison its loss.
    """

    ready: str | None = None
    max_length: int = 192
    depth: int = 100
    deeper: int = 1000
    deeper_queries: int = 10
    pool_queries: int = 60
    pool_depth: int = 20
    negatives: int = 10
    most_queries: int = 2000
    written: RerankerSettings = field(default_factory=RerankerSettings)
    judged: RerankerSettings = field(default_factory=RerankerSettings)
    first_rate: float = 1e-4
    most_distilled: int = 800
    distillation: DistillationSettings = field(default_factory=DistillationSettings)

    def __post_init__(self):
        check_fields_of(self)
        sizes = ("depth", "deeper", "deeper_queries", "pool_queries", "pool_depth", "negatives")
        more = ("most_queries", "most_distilled")
        check_fields(self, "at least 1", lambda v: v >= 1, "max_length", *sizes, *more)
        check_fields(self, "above 0", lambda v: v > 0, "first_rate")


@dataclass(frozen=True)
class Profile:
    """All settings that a notebook takes from its parameter `PROFILE`.

    Args:
        name: The profile's name, which is the value of `PROFILE`.
        collection: The collection's name, or a folder in BEIR layout, as `load_collection` takes it.
        training_set: What the bi-encoder is fine-tuned on: `train` for the collection's own train
            judgements, `<collection>/train` for those of another one, or the name of a set of triples.
        base_model: The checkpoint that fine-tuning starts from.
        encoders: Trained bi-encoders to measure; the first one is examined more closely.
        larger_encoders: Further ones, measured only where they are at hand, as they take long on a CPU.
        depth: Hits per query in a search; the saved run has fewer.
        query_max_length: Queries are cut to this many tokens; None: `Workspace.lengths` chooses by the data.
        passage_max_length: Passages are cut to this many tokens in search.
        training: Settings of fine-tuning; its seed is replaced by each of `seeds`.
        training_length: Passages are cut to this many tokens in training; fewer than in search is quicker.
        hard_negatives: Whether hits of BM25 are used as hard negatives; triples always keep their own.
        validation_passages: Passages searched in validation; more if the relevant ones alone are more.
        validation_queries: Queries searched for in validation.
        factors: Whether to also fine-tune with one factor changed at a time, which takes an hour on a CPU.
        triples: Name of a set of triples about other texts. Encoders trained on it show search without
            the collection's own judgements; skipped if the data folder lacks the set.
        larger: Name of a larger set of passages for approximate search; skipped if it is not at hand.
        writing: Settings for the queries that models write for passages.
        synthetic: Settings for training on such queries.
        reranking: Settings for cross-encoders.
        seeds: Seeds of fine-tuning, one training for each; the first one also seeds everything else.
        num_passages: The collection is cut to this many passages; None keeps all.
        num_queries: Each split is cut to this many queries, if `num_passages` is given; None keeps all.

    Raises:
        ValueError: A size below 1, or no seed or encoder; the message names the field.
    """

    name: str
    collection: str
    training_set: str = "train"
    base_model: str = "all-MiniLM-L6-v2"
    encoders: tuple[str, ...] = ("all-MiniLM-L6-v2",)
    larger_encoders: tuple[str, ...] = ()
    depth: int = 1000
    query_max_length: int | None = 64
    passage_max_length: int = 256
    training: TrainingSettings = field(default_factory=TrainingSettings)
    training_length: int = 128
    hard_negatives: bool = True
    validation_passages: int = 1000
    validation_queries: int = 200
    factors: bool = False
    triples: str | None = None
    larger: str | None = None
    writing: QueryWriting = field(default_factory=QueryWriting)
    synthetic: SyntheticTraining = field(default_factory=SyntheticTraining)
    reranking: Reranking = field(default_factory=Reranking)
    seeds: tuple[int, ...] = (0, 1, 2)
    num_passages: int | None = None
    num_queries: int | None = None

    def __post_init__(self):
        check_fields_of(self)
        sizes = (
            "depth",
            "passage_max_length",
            "training_length",
            "validation_passages",
            "validation_queries",
        )
        check_fields(self, "at least 1", lambda v: v >= 1, *sizes)
        limits = ("query_max_length", "num_passages", "num_queries")
        check_fields(self, "None or at least 1", lambda v: v is None or v >= 1, *limits)
        check_fields(self, "one or more", lambda v: len(v) > 0, "seeds", "encoders")


SMALL_WRITING = QueryWriting(
    tuned="gemma-3-270m",
    held_out=64,
    training=GeneratorSettings(
        num_steps=60,
        batch_size=16,
        learning_rate=3e-4,
        lora_rank=16,
        precision="bfloat16",
        metric="passage gain",
        eval_every=30,
    ),
)
SMALL_SYNTHETIC = SyntheticTraining(
    filters=("way back",),
    training=TrainingSettings(
        num_steps=80, batch_size=64, learning_rate=2e-5, eval_every=30, dropout=0.0, precision="bfloat16"
    ),
)

TEACHING = RerankerSettings(batch_size=8, learning_rate=1e-4, dropout=0.0, precision="bfloat16", log_every=10)
SMALL_RERANKING = Reranking(
    written=replace(TEACHING, num_epochs=1.0, eval_every=100),
    judged=replace(TEACHING, num_steps=100, learning_rate=5e-5, eval_every=50),
    distillation=DistillationSettings(
        num_epochs=1.0,
        batch_size=16,
        learning_rate=2e-5,
        num_negatives=3,
        dropout=0.0,
        precision="bfloat16",
        teacher_temperature=1.0,
    ),
)
QUICK = replace(
    TEACHING, batch_size=4, num_negatives=2, precision="float32", num_steps=4, eval_every=4, log_every=2
)
SAMPLE_RERANKING = Reranking(
    max_length=64,
    depth=4,
    deeper=16,
    deeper_queries=5,
    pool_queries=15,
    pool_depth=4,
    negatives=4,
    most_queries=32,
    written=replace(QUICK, num_steps=8),
    judged=QUICK,
    most_distilled=32,
    distillation=DistillationSettings(
        num_steps=4,
        batch_size=8,
        learning_rate=2e-5,
        num_negatives=3,
        dropout=0.0,
        log_every=2,
        teacher_temperature=1.0,
    ),
)
SMOKE_RERANKING = replace(
    SAMPLE_RERANKING,
    max_length=48,
    deeper=10,
    pool_queries=6,
    pool_depth=3,
    written=replace(QUICK, num_steps=2, eval_every=2, log_every=1),
    judged=replace(QUICK, num_steps=2, eval_every=2, log_every=1),
    most_distilled=16,
    distillation=replace(SAMPLE_RERANKING.distillation, num_steps=2, batch_size=4, log_every=1),
)

PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            "sample",
            "docstrings",
            training=TrainingSettings(num_steps=30, batch_size=16, eval_every=10, dropout=0.0),
            training_length=64,
            validation_passages=200,
            validation_queries=100,
            passage_max_length=128,
            writing=QueryWriting(num_queries=(1, 5)),
            synthetic=SyntheticTraining(
                passage_max_length=64,
                training=TrainingSettings(num_steps=8, batch_size=8, eval_every=8, log_every=4, dropout=0.0),
                most_distilled=200,
                distillation=replace(DISTILLATION, num_steps=8, batch_size=16, log_every=4),
            ),
            reranking=SAMPLE_RERANKING,
            num_passages=1000,
            num_queries=200,
            seeds=(0,),
        ),
        Profile(
            "smoke",
            "docstrings",
            training=TrainingSettings(num_steps=4, batch_size=8, eval_every=2, log_every=1, dropout=0.0),
            training_length=32,
            validation_passages=50,
            validation_queries=10,
            factors=True,
            passage_max_length=64,
            writing=QueryWriting(num_queries=(5,)),
            synthetic=SyntheticTraining(
                held_out=20,
                passage_max_length=32,
                training=TrainingSettings(num_steps=4, batch_size=8, eval_every=2, log_every=1, dropout=0.0),
                most_distilled=100,
                distillation=replace(DISTILLATION, num_steps=4, batch_size=8, log_every=1),
            ),
            reranking=SMOKE_RERANKING,
            num_passages=300,
            num_queries=40,
            seeds=(0,),
        ),
        Profile(
            "scifact",
            "scifact",
            larger_encoders=("all-mpnet-base-v2",),
            training=TrainingSettings(
                num_epochs=5, eval_every=20, log_every=5, dropout=0.0, precision="bfloat16"
            ),
            training_length=200,
            validation_passages=600,
            validation_queries=100,
            factors=True,
            triples="squad-triples",
            larger="msmarco-dl",
            writing=SMALL_WRITING,
            synthetic=SMALL_SYNTHETIC,
            reranking=SMALL_RERANKING,
        ),
        Profile(
            "nfcorpus",
            "nfcorpus",
            larger_encoders=("all-mpnet-base-v2",),
            training=TrainingSettings(
                num_steps=200,
                batch_size=288,
                queries_per_passage=6,
                all_positives=True,
                symmetric=True,
                learning_rate=5e-5,
                eval_every=50,
                dropout=0.0,
                precision="bfloat16",
            ),
            training_length=200,
            hard_negatives=False,
            validation_queries=100,
            triples="squad-triples",
            writing=replace(SMALL_WRITING, num_queries=(1, 5, 10, 20)),
            synthetic=SMALL_SYNTHETIC,
            reranking=SMALL_RERANKING,
        ),
        Profile(
            "trec-covid",
            "trec-covid",
            training_set="msmarco-tiny",
            base_model="microsoft/MiniLM-L12-H384-uncased",
            encoders=("all-MiniLM-L12-v2", "all-mpnet-base-v2"),
            training=TrainingSettings(num_epochs=10, batch_size=128, learning_rate=5e-5, eval_every=80),
            writing=QueryWriting(
                writer="Qwen/Qwen3-1.7B-Base",
                num_queries=(1, 5, 10),
                tuned="t5-base",
                sets=("msmarco-tiny",),
                most_queries=20_000,
                training=GeneratorSettings(num_epochs=3, learning_rate=1e-4, eval_every=200),
                tuned_queries=10,
            ),
            synthetic=SyntheticTraining(
                most_queries=100_000,
                training=TrainingSettings(num_epochs=1, batch_size=128, learning_rate=2e-5, eval_every=80),
            ),
            reranking=Reranking(
                ready="cross-encoder/ms-marco-MiniLM-L6-v2",
                max_length=256,
                pool_queries=200,
                pool_depth=50,
                most_queries=100_000,
                written=replace(TEACHING, num_epochs=1.0, batch_size=32, num_negatives=7, eval_every=500),
                judged=replace(TEACHING, num_epochs=1.0, batch_size=32, num_negatives=1, eval_every=80),
                most_distilled=50_000,
                distillation=DistillationSettings(
                    num_epochs=1.0, batch_size=64, num_negatives=5, teacher_temperature=1.0
                ),
            ),
        ),
    )
}


# What the authors of an encoder trained it on, as far as it bears on what is measured here
TRAINED_ON = dict.fromkeys(
    ("all-MiniLM-L6-v2", "all-MiniLM-L12-v2", "all-mpnet-base-v2"),
    "a billion pairs, MS MARCO and SQuAD among them",
)


def get_profile(name: str) -> Profile:
    """Get the profile with a name, or make one for another collection.

    Args:
        name: `sample`, `scifact`, `nfcorpus`, `trec-covid` or `smoke` (for tests); or a folder in BEIR
            layout, by its path or its name in the data folder; or the name of another BEIR set. These get
            the settings of `scifact`, except `factors`, `larger_encoders`, `triples`, `larger` and `writing`;
            the length of queries and of training on written queries is left to the data.

    Raises:
        ValueError: `name` is none of these.
    """
    if name in PROFILES:
        return PROFILES[name]
    places = [Path(name), project_root() / name, find_data(name) if name else None]
    somewhere = "/" in name or name in BEIR_MD5 or any(place and place.is_dir() for place in places)
    if somewhere and Path(name).name not in ("", ".."):  # results are kept by the folder's name
        plain = {"factors": False, "larger_encoders": (), "triples": None, "larger": None}
        plain |= {"query_max_length": None, "writing": QueryWriting()}
        once = replace(SMALL_SYNTHETIC.training, num_steps=None, num_epochs=1.0)
        plain["synthetic"] = replace(SMALL_SYNTHETIC, training=once)  # as long as there are queries
        return replace(PROFILES["scifact"], name=name, collection=name, **plain)
    raise ValueError(
        f"unknown profile {name!r}; known: {', '.join(PROFILES)}, a folder in BEIR layout, a BEIR set"
    )


def without_judgements_to_learn_from(profile: Profile) -> Profile:
    """The profile of a collection without train judgements: it learns from docstrings, as `sample` does."""
    sample = PROFILES["sample"]
    parts = ("training", "training_length", "validation_passages", "validation_queries", "synthetic")
    taken = {part: getattr(sample, part) for part in (*parts, "reranking", "seeds")}
    return replace(profile, training_set="docstrings/train", **taken)
