"""Training a cross-encoder: each loss by a plain loop, selection by a pool, and going on after a kill."""

import copy
import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from dpr.data.collection import Collection, Passage
from dpr.data.examples import Example
from dpr.data.training_data import TrainingData
from dpr.models.bi_encoder import BiEncoder
from dpr.reranking.reranker import HEADS, Reranker
from dpr.reranking.training import PairCollator, Pool, train_reranker
from dpr.training.dataset import Record, TrainingSequence
from dpr.training.settings import RERANKING_LOSSES, RerankerSettings

TOPICS = ["masks", "sunlight", "viruses", "hands", "bats", "zinc", "lungs", "soap"]
SHORT = RerankerSettings(
    num_steps=6, batch_size=4, learning_rate=3e-3, log_every=1, dropout=0.0, num_negatives=2
)


def passage(topic):
    return f"{topic} are what this text is about" + " and more is said of it here" * (topic == "zinc") * 5


def made(topics=TOPICS, negatives=3):
    """A question a topic, whose passage has grade 2, and other topics' passages as negatives."""
    examples = []
    for n, topic in enumerate(topics):
        others = [TOPICS[(n + step) % len(TOPICS)] for step in range(1, negatives + 1)]
        examples.append(Example(f"q-{topic}", f"what is it about {topic}", {topic: 2}, tuple(others)))
    return TrainingData("made", examples, {topic: passage(topic) for topic in TOPICS})


DATA = made()
SCORES = {e.query_id: {d: 2.5 if d in e.positives else 0.1 * len(d) for d in TOPICS} for e in DATA.examples}


@pytest.fixture(scope="module", params=HEADS)
def reranker(plain_folder, request):
    how = {"pooling": "mean", "query_max_length": 8, "passage_max_length": 16}
    return Reranker.from_encoder(BiEncoder.from_pretrained(plain_folder, "cpu", **how), 24, request.param)


@pytest.fixture(scope="module")
def pool():
    queries = {f"dev-{t}": f"is it about {t}" for t in TOPICS[:4]}
    qrels = {f"dev-{t}": {t: 1, TOPICS[-1]: 0} for t in TOPICS[:4]}
    passages = [Passage(t, "", passage(t)) for t in TOPICS]
    collection = Collection("made", passages, queries, {"dev": qrels, "test": qrels}, "dev")
    run = {q: {t: -float(n) for n, t in enumerate(TOPICS[:6])} for q in queries}
    return Pool(collection, run)


# --- losses ------------------------------------------------------------------------------------


def shares(values):
    """The softmax of some numbers."""
    parts = [math.exp(value - max(values)) for value in values]
    return [part / sum(parts) for part in parts]


def expected_loss(kind, lists, labels):
    """The mean loss of lists of scores with the positive first, by its formula in float64."""
    terms = []
    for found, wanted in zip(lists, labels, strict=True):
        if kind == "listwise":
            terms.append(-sum(w * math.log(s) for w, s in zip(shares(wanted), shares(found), strict=True)))
        elif kind == "margin_mse":
            gaps = zip(found[1:], wanted[1:], strict=True)
            terms += [((found[0] - z) - (wanted[0] - label)) ** 2 for z, label in gaps]
        elif kind == "mse":
            terms += [(z - label) ** 2 for z, label in zip(found, wanted, strict=True)]
        else:
            signs = [1 if label > 0 else -1 for label in wanted]
            terms += [math.log1p(math.exp(-sign * z)) for sign, z in zip(signs, found, strict=True)]
    return sum(terms) / len(terms)


@pytest.mark.parametrize("kind", RERANKING_LOSSES)
@pytest.mark.parametrize("taught", [False, True])
def test_the_first_loss_is_that_of_a_plain_loop(reranker, tmp_path, kind, taught):
    if taught and kind == "binary_cross_entropy":
        return
    data = DATA.with_scores(SCORES) if taught else DATA
    settings = replace(SHORT, num_steps=1, loss=kind, label_temperature=0.7)
    trained = train_reranker(reranker, data, tmp_path / "run", settings)
    sequence = TrainingSequence(data, 4, 1, 0, 2)
    lists, labels = [], []
    for record in [sequence[i] for i in range(4)]:
        doc_ids = [record.positive, *record.negatives]
        pairs = [(record.example.query, data.passages[d]) for d in doc_ids]
        lists.append(reranker.predict(pairs).astype(np.float64).tolist())
        known = SCORES[record.example.query_id] if taught else record.example.positives
        labels.append([known.get(d, 0) / 0.7 for d in doc_ids])
    assert trained.steps[0]["loss"] == pytest.approx(expected_loss(kind, lists, labels), rel=1e-4)


@pytest.mark.parametrize("kind", RERANKING_LOSSES)
def test_every_loss_teaches_which_passage_is_about_the_topic(reranker, tmp_path, kind):
    settings = replace(SHORT, num_steps=80, loss=kind, label_temperature=1.0, log_every=40, batch_size=8)
    best = train_reranker(reranker, DATA, tmp_path / "run", settings).reranker
    for reader, least in ((reranker, 0), (best, 7)):
        right = 0
        for example in DATA.examples:
            doc_ids = [*example.positives, *example.negatives]
            scores = reader.predict([(example.query, DATA.passages[d]) for d in doc_ids])
            right += int(scores.argmax() == 0)
        assert right >= least
    assert right > 0


def test_the_mse_on_raw_scores_is_what_a_classifier_with_one_label_does_by_itself(plain_folder):
    """And so what a training gets that names no loss."""
    how = {"pooling": "mean", "query_max_length": 8, "passage_max_length": 16}
    encoder = BiEncoder.from_pretrained(plain_folder, "cpu", **how)
    reranker = Reranker.from_encoder(encoder, 24, "cls")
    rows = [reranker.tokenizer(e.query, passage(t)) for e in DATA.examples for t in TOPICS[:1]]
    batch = reranker.tokenizer.pad({k: [row[k] for row in rows] for k in rows[0]}, return_tensors="pt")
    labels = torch.tensor([1.0, *[0.0] * (len(rows) - 1)])
    reranker.model.eval()
    with torch.inference_mode():
        out = reranker.model(**batch, labels=labels)
    expected = ((out.logits[:, 0] - labels) ** 2).mean()
    assert float(out.loss) == pytest.approx(float(expected), rel=1e-5)


# --- batches -----------------------------------------------------------------------------------


def test_labels_are_scores_of_the_teacher_or_else_grades(reranker):
    example = Example("q", "zinc", {"zinc": 3, "soap": 1}, ("bats", "masks"))
    data = TrainingData("made", [example], {topic: passage(topic) for topic in TOPICS})
    record = Record(example, "soap", ("bats", "masks"))
    for scores, wanted in (
        (None, [1.0, 0.0, 0.0]),
        ({"q": {"soap": 0.5, "bats": -1.0}}, [0.5, -1.0, 0.25]),
    ):
        taught = data.with_scores(scores, missing_score=0.25) if scores else data
        batch = PairCollator(taught, replace(SHORT, label_temperature=0.5))([record])
        assert batch["features"] == [["zinc"], [[passage(t) for t in ("soap", "bats", "masks")]]]
        assert batch["labels"][0].tolist() == [2 * label for label in wanted]


def test_margins_repeat_the_negatives_of_a_query_with_fewer():
    settings = replace(SHORT, loss="margin_mse", num_negatives=3, label_temperature=1.0)
    records = [
        Record(e, next(iter(e.positives)), e.negatives[: 1 + n]) for n, e in enumerate(DATA.examples[:2])
    ]
    batch = PairCollator(DATA, settings)(records)
    assert batch["labels"].tolist() == [[2.0] * 3] * 2
    first, second = records
    assert [column[0] for column in batch["features"][2:]] == [passage(first.negatives[0])] * 3
    assert [column[1] for column in batch["features"][2:]] == [
        passage(second.negatives[i]) for i in (0, 1, 0)
    ]


# --- the pool ----------------------------------------------------------------------------------


def test_what_is_measured_on_the_pool_is_what_a_plain_loop_finds(reranker, pool):
    found = pool.measure(reranker)
    gains, losses, right, half, scores = [], [], [], [], []
    for query_id, hits in pool.run.items():
        row = {}
        for doc_id in hits:
            pair = (pool.collection.queries[query_id], pool.collection.by_id[doc_id].contents)
            [row[doc_id]] = reranker.predict([pair]).tolist()
            relevant = pool.collection.qrels[query_id].get(doc_id, 0) > 0
            losses.append(math.log1p(math.exp(-row[doc_id] if relevant else row[doc_id])))
            right.append((row[doc_id] > 0) == relevant)
            half.append((row[doc_id] > 0.5) == relevant)
            scores.append(row[doc_id])
        ranks = sorted(row, key=row.get, reverse=True)
        topic = query_id.removeprefix("dev-")
        gains.append(1 / math.log2(2 + ranks.index(topic)))
    assert found["nDCG@10"] == pytest.approx(np.mean(gains), abs=1e-6)
    assert found["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert (found["accuracy"], found["accuracy_half"]) == (np.mean(right), np.mean(half))
    assert found["score_mean"] == pytest.approx(np.mean(scores), abs=1e-6)
    assert found["score_std"] == pytest.approx(np.std(scores), abs=1e-6)


def test_the_checkpoint_is_the_best_of_the_pool(reranker, pool, tmp_path):
    settings = replace(SHORT, eval_every=2, learning_rate=1e-2)
    trained = train_reranker(reranker, DATA, tmp_path / "run", settings, validation=pool)
    each = [line["eval_nDCG@10"] for line in trained.evaluations]
    assert len(each) == 3
    assert trained.best["eval_nDCG@10"] == max(each)
    assert pool.measure(trained.reranker)["nDCG@10"] == pytest.approx(max(each), abs=1e-6)
    assert trained.reranker.name == "run"


def test_a_pool_is_of_judged_queries_that_are_not_for_testing(pool):
    with pytest.raises(ValueError, match="the test split is for evaluation"):
        Pool(pool.collection.with_split("test"), pool.run)
    with pytest.raises(ValueError, match="1 of 5 queries of the pool are not judged"):
        Pool(pool.collection, {**pool.run, "other": {}})
    with pytest.raises(ValueError, match="its hit d9 is not a document"):
        Pool(pool.collection, {"dev-masks": {"d9": 1.0}})
    other = Pool(pool.collection, {q: dict(list(hits.items())[:5]) for q, hits in pool.run.items()})
    assert other.fingerprint != pool.fingerprint


# --- the folder --------------------------------------------------------------------------------


class Stop(TrainerCallback):
    """Breaks a training off after some steps."""

    def __init__(self, after):
        self.after = after

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.after:
            raise KeyboardInterrupt


def test_an_interrupted_training_ends_as_one_that_was_not(reranker, pool, tmp_path):
    settings = replace(SHORT, eval_every=2)
    whole = train_reranker(reranker, DATA, tmp_path / "whole", settings, validation=pool)
    with pytest.raises(KeyboardInterrupt):
        train_reranker(reranker, DATA, tmp_path / "again", settings, validation=pool, callbacks=[Stop(5)])
    resumed = train_reranker(reranker, DATA, tmp_path / "again", settings, validation=pool)
    assert resumed.reranker.fingerprint == whole.reranker.fingerprint
    assert [line["loss"] for line in resumed.steps] == [line["loss"] for line in whole.steps]
    read = train_reranker(reranker, DATA, tmp_path / "again", settings, validation=pool)
    assert read.history == resumed.history
    assert not list((tmp_path / "again").glob("checkpoints/*"))
    with pytest.raises(ValueError, match=r"holds a training with other settings: .*loss"):
        train_reranker(reranker, DATA, tmp_path / "again", replace(settings, loss="mse"), validation=pool)


def test_the_reranker_given_is_not_changed(reranker, tmp_path):
    before = reranker.fingerprint
    trained = train_reranker(reranker, DATA, tmp_path / "run", SHORT)
    assert reranker.fingerprint == before != trained.reranker.fingerprint


def test_a_training_leaves_nothing_of_it_in_memory(reranker, pool, tmp_path):
    class Watch(TrainerCallback):
        def on_train_end(self, args, state, control, model=None, optimizer=None, **_):
            self.seen = [weakref.ref(part) for part in (model, getattr(optimizer, "optimizer", optimizer))]

    watch = Watch()
    settings = replace(SHORT, eval_every=3)
    train_reranker(reranker, DATA, tmp_path / "run", settings, validation=pool, callbacks=[watch])
    assert [part() for part in watch.seen] == [None, None]


# --- what must be a mistake --------------------------------------------------------------------


def test_what_a_loss_cannot_compare_is_refused(reranker, pool, tmp_path):
    alone = replace(DATA, examples=[replace(DATA.examples[0], negatives=()), *DATA.examples[1:]])
    with pytest.raises(ValueError, match="query q-masks has no negative; add some with mine_negatives"):
        train_reranker(reranker, alone, tmp_path / "run", SHORT)
    taught = DATA.with_scores(SCORES)
    with pytest.raises(ValueError, match="binary_cross_entropy needs judgements alone"):
        train_reranker(reranker, taught, tmp_path / "run", replace(SHORT, loss="binary_cross_entropy"))
    partly = DATA.with_scores({q: {"masks": 1.0} for q in SCORES})
    with pytest.raises(ValueError, match="query q-masks has no score for sunlight"):
        train_reranker(reranker, partly, tmp_path / "run", SHORT)
    train_reranker(
        reranker, replace(partly, missing_score=0.0), tmp_path / "run", replace(SHORT, num_steps=1)
    )
    asked = replace(DATA, examples=[replace(DATA.examples[0], query="is it about masks"), *DATA.examples[1:]])
    with pytest.raises(ValueError, match="1 training queries are validation queries too"):
        train_reranker(reranker, asked, tmp_path / "other", SHORT, validation=pool)
    with pytest.raises(ValueError, match="eval_every and patience need validation"):
        train_reranker(reranker, DATA, tmp_path / "other", replace(SHORT, eval_every=2))


def test_a_training_whose_model_reads_no_pairs_is_refused(reranker, tmp_path):
    blind = copy.deepcopy(reranker)
    with torch.no_grad():
        head = blind.container[1] if len(blind.container) > 1 else blind.model.classifier
        for weights in head.parameters():
            weights.zero_()
    with pytest.raises(ValueError, match="the same swapped one score"):
        train_reranker(blind, DATA, tmp_path / "run", SHORT)
    assert not (tmp_path / "run").exists()
