"""Training: the weights of a plain loop, however often it is stopped, killed or its files are damaged."""

import gc
import json
import math
import os
import random
import shutil
import sys
import warnings
from copy import deepcopy
from dataclasses import asdict, astuple, replace
from importlib.metadata import version
from re import escape, fullmatch

import numpy as np
import pytest
import torch
from killing import in_children
from made_data import debates
from sentence_transformers import SentenceTransformer
from transformers import TrainerCallback
from transformers.trainer_pt_utils import safe_globals

from dpr.data.collection import Collection, Passage
from dpr.data.examples import Example
from dpr.data.training_data import TrainingData
from dpr.files import locked
from dpr.models.bi_encoder import BiEncoder
from dpr.models.two_encoders import TwoEncoders
from dpr.training.bi_encoder import search_validation, train
from dpr.training.dataset import TrainingSequence
from dpr.training.resume import keep_training, read_kept_training
from dpr.training.settings import TrainingSettings
from dpr.training.tracking import NeptuneTracker

KILLS = int(os.environ.get("DPR_KILLS", "3"))
TOPICS = ["masks", "sunlight", "viruses", "hands", "bats", "zinc", "lungs", "soap", "water", "milk"]
TOPICS += ["snow", "salt"]
# Queries are cut before their last word, so that those to validate with are those to train with
LENGTHS = {"pooling": "mean", "query_max_length": 6, "passage_max_length": 32}
SHORT = {"num_steps": 6, "batch_size": 4, "num_negatives": 2, "learning_rate": 3e-3, "log_every": 1}
MEASURED = ("step_s", "tokens_per_s", "memory_bytes", "eval_s")  # of the machine, not of the run
LOGGED = ("loss", "in_batch_accuracy", "chance_loss", "grad_norm")
RUN_FILES = ["history.jsonl", "model", "tensorboard", "training.json"]

# Trains as each order tells it.
SERVER = """
import gc, json, os, sys
from pathlib import Path

import tensorboardX

from dpr.data.collection import Collection, Passage
from dpr.data.examples import Example
from dpr.data.training_data import TrainingData
from dpr.models.bi_encoder import BiEncoder
from dpr.training.bi_encoder import search_validation, train
from dpr.training.settings import TrainingSettings
from killing import serve

encoder = BiEncoder.from_pretrained(Path(sys.argv[1]), device="cpu", **json.loads(sys.argv[2]))
examples, passages, queries, qrels = json.loads(sys.argv[3])
data = TrainingData("made", [Example(*example) for example in examples], passages)
held_out = Collection("held", [Passage(d, "", text) for d, text in passages.items()], queries, qrels, "dev")
search_validation(encoder, held_out)  # the metrics are compiled once for all children
gc.freeze()

def attempt(order):
    try:
        train(encoder, data, order["folder"], TrainingSettings(**order["settings"]), validation=held_out)
    except ValueError as error:
        return ["ValueError", str(error)]
    return "done"

def work(order):
    if not order.get("at_once"):
        return attempt(order)
    read, write = os.pipe()
    if not os.fork():
        os.write(write, json.dumps(attempt(order)).encode())
        os._exit(0)
    mine = attempt(order)
    return [mine, json.loads(os.read(read, 10_000))]

def num_lines(order):
    path = Path(order["folder"], "history.jsonl")
    return path.read_text().count("\\n") if path.exists() else 0

serve(work, num_lines)
"""


@pytest.fixture(autouse=True, scope="module")
def frozen():
    """Each run collects garbage among all that is imported, which takes longer than the run."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def encoder(plain_folder) -> BiEncoder:
    """The tiny model, which every run copies."""
    return BiEncoder.from_pretrained(plain_folder, device="cpu", **LENGTHS)


@pytest.fixture(scope="module")
def two(plain_folder) -> TwoEncoders:
    """Two models of other weights, the query's with a prompt."""
    query = BiEncoder.from_pretrained(plain_folder, device="cpu", **LENGTHS, query_prompt="on ")
    with torch.no_grad():
        for weights in query.model.parameters():
            weights.mul_(0.99)
    return TwoEncoders(query, BiEncoder.from_pretrained(plain_folder, device="cpu", **LENGTHS))


def made(relevant="good"):
    """Twelve queries that are taught "bad" against "good", and six that ask for either.

    A third of the queries have two positives, one of them another query's own; two passages are copies;
    there are none to two negatives.
    """
    passages = {}
    for i, topic in enumerate(TOPICS):
        passages[f"good{i}"] = f"{topic} are good for {TOPICS[i - 1]}" + " and more" * (i % 4)
        passages[f"bad{i}"] = f"{topic} are bad for {TOPICS[i - 5]}" + " or less" * (i % 3)
    passages["bad11"] = passages["bad3"].upper()
    examples = []
    for i, topic in enumerate(TOPICS):
        positives = {f"bad{i}": 2} | ({f"bad{i + 1}": 1} if i % 3 == 0 else {})
        negatives = (f"good{i}", f"good{(i + 1) % 12}")[: i % 3]
        examples.append(Example(f"q{i}", f"{topic} are good for us", positives, negatives))
    queries = {f"v{i}": f"{topic} are good for them" for i, topic in enumerate(TOPICS[:6])}
    judged = {f"v{i}": {f"{relevant}{i}": 2, f"{relevant}{i + 6}": 1} for i in range(6)}
    searched = [Passage(doc_id, "", text) for doc_id, text in passages.items()]
    held_out = Collection("held", searched, queries, {"dev": judged}, "dev")
    return TrainingData("made", examples, passages), held_out


def run(encoder, folder, relevant="good", validation=True, callbacks=(), tags=(), **changed):
    """Train on what is made, six short steps or as told."""
    data, held_out = made(relevant)
    settings = TrainingSettings(**{**SHORT, **changed})
    held_out = held_out if validation else None
    return train(encoder, data, folder, settings, validation=held_out, callbacks=callbacks, tags=tags)


def weights(folder):
    """The bytes of the final weights."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.glob("model/**/*.safetensors"))}


def told(history):
    """A history without what the machine makes of it."""
    return [{name: value for name, value in line.items() if name not in MEASURED} for line in history]


def read_history(folder):
    """The lines of history.jsonl."""
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def values(history, name):
    """The values of one field, in order."""
    return [line[name] for line in history if name in line]


def vectors(encoder, model, texts, max_length):
    """Mean-pooled vectors of a batch, by the tokenizer and the transformer alone."""
    tokens = encoder.tokenizer(
        texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt"
    )
    mask = tokens["attention_mask"][:, :, None]
    return (model(**tokens).last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)


# --- the oracle: a plain loop ------------------------------------------------------------------


def plain_batch(records, data, every_positive):
    """The queries and passages of a batch, each text once, and who is whose: [B, P] counted, relevant."""
    examples = {r.example.query_id: r.example for r in records}
    doc_ids = [r.positive for r in records] + [d for r in records for d in r.negatives]
    texts = list({data.passages[d].lower(): data.passages[d] for d in reversed(doc_ids)}.values())[::-1]
    keys = [text.lower() for text in texts]
    relevant = [
        [k in {data.passages[d].lower() for d in e.positives} for k in keys] for e in examples.values()
    ]
    taken = {(r.example.query_id, data.passages[r.positive].lower()) for r in records}
    counted = relevant if every_positive else [[(q, key) in taken for key in keys] for q in examples]
    return [e.query for e in examples.values()], texts, torch.tensor(counted), torch.tensor(relevant)


def plain_loss(scores, counted, relevant):
    """The mean over rows, and a row's positives, of its share among itself and what is not relevant."""
    rows = []
    for row, own, known in zip(scores, counted, relevant, strict=True):
        against = row[~known].exp().sum()
        terms = [-torch.log(score.exp() / (score.exp() + against)) for score in row[own]]
        if terms:
            rows.append(torch.stack(terms).mean())
    return torch.stack(rows).mean()


def plain_run(encoder, data, settings, rates):
    """What a run without dropout logs and ends with, by AdamW and clipping in a loop over the batches."""
    sides = [deepcopy(encoder.query.model).eval()]
    sides.append(deepcopy(encoder.passage.model).eval() if encoder.query is not encoder.passage else sides[0])
    named = [item for model in dict.fromkeys(sides) for item in model.named_parameters()]
    plain = [p for name, p in named if "bias" in name or "LayerNorm" in name]
    decayed = [p for name, p in named if not ("bias" in name or "LayerNorm" in name)]
    optimizer = torch.optim.AdamW([{"params": plain, "weight_decay": 0.0}, {"params": decayed}])
    optimizer.param_groups[1]["weight_decay"] = settings.weight_decay
    count, accumulation, lines = settings.batch_size, settings.accumulation, []
    order = (settings.seed, settings.num_negatives, settings.queries_per_passage)
    sequence = TrainingSequence(data, count, len(rates) * accumulation, *order)
    for step, rate in enumerate(rates):
        found = []
        for batch in range(step * accumulation, (step + 1) * accumulation):
            records = [sequence[i] for i in range(batch * count, (batch + 1) * count)]
            queries, texts, counted, relevant = plain_batch(records, data, settings.all_positives)
            queries = [encoder.config.query_prompt + query for query in queries]
            query_emb = vectors(encoder.query, sides[0], queries, encoder.config.query_max_length)
            passage_emb = vectors(encoder.passage, sides[1], texts, encoder.config.passage_max_length)
            if encoder.config.similarity == "cosine":
                query_emb = query_emb / query_emb.norm(dim=1, keepdim=True)
                passage_emb = passage_emb / passage_emb.norm(dim=1, keepdim=True)
            scores = query_emb @ passage_emb.T / settings.temperature
            loss = plain_loss(scores, counted, relevant)
            if settings.symmetric:
                loss = (loss + plain_loss(scores.T, counted.T, relevant.T)) / 2
            (loss / accumulation).backward()
            right = [bool(known[row.argmax()]) for row, known in zip(scores, relevant, strict=True)]
            found.append((loss.item(), np.mean(right), math.log(len(texts))))
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in named], settings.max_grad_norm).item()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        lines.append([*np.mean(found, axis=0), norm])
    return np.array(lines), sides


SYMMETRIC_DOT = {"similarity": "dot", "temperature": 3.0, "symmetric": True}
ALL_POSITIVES = {"queries_per_passage": 2, "batch_size": 7, "all_positives": True, "symmetric": True}


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("encoder", {}),
        ("encoder", {"schedule": "cosine", "weight_decay": 0.5, "max_grad_norm": 100.0, "seed": 3}),
        ("encoder", {"num_negatives": 0, "symmetric": True, "temperature": 0.5, "batch_size": 5}),
        ("encoder", {"num_steps": None, "num_epochs": 3, "accumulation": 2, "warmup_share": 0.0}),
        ("encoder", {"queries_per_passage": 2, "batch_size": 7}),
        ("encoder", SYMMETRIC_DOT),
        ("encoder", {"pass_tokens": 30, "gradient_caching": True}),
        ("two", {"pass_tokens": 30, "gradient_caching": True, "accumulation": 2}),
        ("two", {"activation_checkpointing": True, **SYMMETRIC_DOT}),
        ("two", ALL_POSITIVES),
    ],
)
def test_a_training_is_a_plain_loop_step_for_step(request, tmp_path, kind, changed):
    encoder, changed = request.getfixturevalue(kind), dict(changed)
    if "similarity" in changed:
        similarity = changed.pop("similarity")
        sides = [side.with_settings(similarity=similarity) for side in (encoder.query, encoder.passage)]
        encoder = TwoEncoders(*sides) if kind == "two" else sides[0]
    changed = {"learning_rate": 3e-5, "dropout": 0.0, **changed}
    trained = run(encoder, tmp_path / "run", validation=False, **changed)
    settings, rates = TrainingSettings(**{**SHORT, **changed}), values(trained.history, "learning_rate")
    lines, sides = plain_run(encoder, made()[0], settings, rates)
    logged = [[line[name] for name in LOGGED] for line in trained.history]
    np.testing.assert_allclose(logged, lines, rtol=1e-4, atol=1e-5)
    moved = 0.0
    for side, expected in zip((trained.encoder.query, trained.encoder.passage), sides, strict=True):
        start = (encoder.query if expected is sides[0] else encoder.passage).model.state_dict()
        for name, tensor in side.model.state_dict().items():
            if not name.endswith("key.bias"):  # softmax does not see it: its gradient is rounding
                difference = (tensor - expected.state_dict()[name]).abs().max().item()
                assert difference < 1e-6, name
                moved = max(moved, (tensor - start[name]).abs().max().item())
    assert moved > 3e-5


@pytest.mark.parametrize(
    ("changed", "steps"),
    [
        ({"num_epochs": 3}, 9),
        ({"num_epochs": 3, "accumulation": 2}, 4),
        ({"num_epochs": 2, "batch_size": 5}, 4),
        ({"num_epochs": 1.5, "batch_size": 12}, 2),
        ({"num_epochs": 0.01}, 1),
        ({"num_epochs": 2, "queries_per_passage": 2, "batch_size": 5}, 6),
        ({"num_epochs": 3, "num_steps": 2, "accumulation": 3}, 2),
    ],
)
def test_steps_come_from_epochs_batches_and_accumulation(encoder, tmp_path, changed, steps):
    changed = {"num_steps": None, **changed}
    trained = run(encoder, tmp_path / "run", validation=False, **changed)
    size = changed.get("batch_size", 4) * changed.get("accumulation", 1)
    per_epoch = (
        (16 if "queries_per_passage" in changed else 12)
        // changed.get("batch_size", 4)
        / changed.get("accumulation", 1)
    )
    assert values(trained.history, "step") == list(range(1, steps + 1))
    assert values(trained.history, "examples") == [step * size for step in range(1, steps + 1)]
    assert values(trained.history, "epoch") == [step / per_epoch for step in range(1, steps + 1)]
    assert (trained.best_step, trained.folder) == (steps, tmp_path / "run")


def test_a_line_of_the_history_is_the_mean_over_its_steps(encoder, tmp_path):
    each = run(encoder, tmp_path / "each", validation=False, dropout=0.1).history
    pairs = run(encoder, tmp_path / "pairs", validation=False, dropout=0.1, log_every=2).history
    assert values(pairs, "step") == [2, 4, 6]
    for name in ("loss", "in_batch_accuracy"):
        expected = np.reshape(values(each, name), (3, 2)).mean(axis=1)
        np.testing.assert_allclose(values(pairs, name), expected, rtol=1e-6)
    for name in ("learning_rate", "grad_norm"):  # of the last step
        assert values(pairs, name) == values(each, name)[1::2]


def test_tokens_are_counted_without_padding(encoder, tmp_path):
    trained = run(encoder, tmp_path / "run", validation=False, num_steps=1, accumulation=2)
    data, _ = made()
    sequence, count = TrainingSequence(data, 4, 2, 0, 2), 0
    for start in (0, 4):
        queries, texts, *_ = plain_batch([sequence[i] for i in range(start, start + 4)], data, False)
        count += sum(len(ids) for ids in encoder.tokenizer(texts)["input_ids"]) + 6 * len(queries)
    line = trained.history[0]
    assert round(line["tokens_per_s"] * line["step_s"], 6) == count
    assert line["memory_bytes"] > 10**8 or torch.cuda.is_available()


@pytest.mark.parametrize("log_every", [4, 10])
def test_the_last_step_is_always_in_the_history(encoder, tmp_path, log_every):
    trained = run(encoder, tmp_path / "run", validation=False, log_every=log_every)
    assert trained.history[-1]["step"] == 6


def test_the_same_settings_give_the_same_bytes_and_another_seed_others(encoder, tmp_path):
    found = {}
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        torch.manual_seed(len(name))  # what was drawn before does not count
        found[name] = run(encoder, tmp_path / name, eval_every=2, seed=seed)
    assert weights(tmp_path / "one") == weights(tmp_path / "again")
    assert told(found["one"].history) == told(found["again"].history)
    assert weights(tmp_path / "one") != weights(tmp_path / "other")


def test_dropout_is_drawn_from_the_seed(encoder, tmp_path):
    found = {}
    for seed in (0, 5):
        begun = Stop()
        run(encoder, tmp_path / f"{seed}", validation=False, num_steps=1, seed=seed, callbacks=[begun])
        found[seed] = begun.seed
    assert found == {0: 0, 5: 5}


@pytest.mark.parametrize("kind", ["encoder", "two"])
def test_the_encoder_that_is_passed_in_stays_as_it_was(request, tmp_path, kind):
    encoder = request.getfixturevalue(kind)
    rates = [m.p for m in encoder.query.model.modules() if isinstance(m, torch.nn.Dropout)]
    before = (encoder.fingerprint, encoder.name, encoder.config)
    trained = run(encoder, tmp_path / "run", dropout=0.0)
    assert (encoder.fingerprint, encoder.name, encoder.config) == before
    assert [m.p for m in encoder.query.model.modules() if isinstance(m, torch.nn.Dropout)] == rates
    assert trained.encoder.fingerprint != encoder.fingerprint
    assert not any(p.grad is not None for p in encoder.passage.model.parameters())


@pytest.mark.filterwarnings("error:.*have the id of a document")
@pytest.mark.parametrize("kind", ["encoder", "two"])
def test_a_query_to_validate_with_that_is_a_document_does_not_count_itself(request, kind):
    encoder, validation = request.getfixturevalue(kind), debates("dev")
    passage_emb = encoder.passage.encode_passages([p.contents for p in validation.passages])
    query_emb = encoder.query.encode_queries(list(validation.queries.values()))
    passage_emb /= np.linalg.norm(passage_emb, axis=1, keepdims=True)
    ranks = []
    for vector, (query_id, grades) in zip(query_emb, validation.qrels.items(), strict=True):
        scores = dict(zip(validation.doc_ids, (passage_emb @ vector).tolist(), strict=True))
        [opposite] = grades
        ranks.append(sum(s > scores[opposite] for d, s in scores.items() if d != query_id) + 1)
    expected = sum(1 / rank for rank in ranks if rank <= 10) / 12
    assert search_validation(encoder, validation)["RR@10"] == pytest.approx(expected)


def test_evaluations_leave_training_untouched(encoder, tmp_path):
    without = run(encoder, tmp_path / "without", validation=False)
    often = run(encoder, tmp_path / "often", "bad", eval_every=1)
    lines = [line for line in told(often.history) if "loss" in line]
    assert lines == told(without.history)
    assert len(often.history) == 12


def test_half_precision_trains_close_to_full_and_leaves_no_trace(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    losses = {}
    for name, precision in (("full", None), ("half", "bfloat16"), ("after", "float32")):
        trained = run(encoder, tmp_path / name, validation=False, precision=precision, learning_rate=1e-3)
        losses[name] = np.array(values(trained.history, "loss"))
        assert {p.dtype for p in trained.encoder.model.parameters()} == {torch.float32}
    assert 1e-6 < abs(losses["half"] - losses["full"]).max() < 0.1
    np.testing.assert_array_equal(losses["after"], losses["full"])


# --- what is kept ------------------------------------------------------------------------------


def ndcg_at_10(encoder, held_out):
    """The mean nDCG@10 of the whole collection, by the definition."""
    queries = encoder.encode_queries(list(held_out.queries.values()))
    passages = encoder.encode_passages([p.text for p in held_out.passages])
    unit = [v / np.linalg.norm(v, axis=1, keepdims=True) for v in (queries, passages)]
    scores = dict(zip(held_out.queries, unit[0] @ unit[1].T, strict=True))
    found = []
    for query_id, grades in held_out.qrels.items():
        order = np.argsort(-scores[query_id], kind="stable")[:10]
        gains = [grades.get(held_out.doc_ids[i], 0) for i in order]
        ideal = sorted(grades.values(), reverse=True)
        discount = 1 / np.log2(np.arange(10) + 2)
        found.append(np.dot(gains, discount) / np.dot(ideal, discount[: len(ideal)]))
    return np.mean(found)


@pytest.mark.parametrize("kind", ["encoder", "two"])
@pytest.mark.parametrize("relevant", ["good", "bad"])
def test_the_model_folder_holds_the_best_evaluation(request, tmp_path, kind, relevant):
    encoder = request.getfixturevalue(kind)
    trained = run(encoder, tmp_path / "run", relevant, eval_every=2, num_steps=8)
    scores = dict(
        zip(values(trained.history, "step")[2::3], values(trained.history, "eval_nDCG@10"), strict=True)
    )
    assert list(scores) == [2, 4, 6, 8]
    assert trained.best_step == max(scores, key=scores.get)
    if relevant == "good":  # which is unlearned: the best is the first
        assert trained.best_step == 2
        assert scores[2] > scores[8] + 0.05
    else:
        assert trained.best_step > 2
    read = type(encoder).from_pretrained(tmp_path / "run" / "model", device="cpu")
    for found in (read, trained.encoder):
        assert ndcg_at_10(found, made(relevant)[1]) == pytest.approx(scores[trained.best_step], abs=1e-6)
        assert found.config == encoder.config
    assert read.fingerprint == trained.encoder.fingerprint
    assert trained.encoder.name == "run"


def test_another_metric_picks_another_checkpoint(encoder, tmp_path):
    for metric in ("RR@10", "R@100"):
        trained = run(encoder, tmp_path / metric, "bad", eval_every=2, metric=metric)
        found = values(trained.history, f"eval_{metric}")
        assert trained.best_step == 2 * (found.index(max(found)) + 1)
    assert (found, trained.best_step) == ([1.0] * 3, 2)  # all found from the start


def test_without_validation_the_last_weights_are_kept(encoder, tmp_path):
    last = run(encoder, tmp_path / "last", validation=False)
    best = run(encoder, tmp_path / "best", eval_every=2)
    assert (last.best_step, best.best_step) == (6, 2)
    assert last.encoder.fingerprint != best.encoder.fingerprint
    at_the_end = run(encoder, tmp_path / "end")  # evaluated at the end alone
    assert at_the_end.encoder.fingerprint == last.encoder.fingerprint
    assert values(at_the_end.history, "eval_loss") == values(best.history, "eval_loss")[-1:]


def test_patience_stops_after_so_many_evaluations_without_a_better_one(encoder, tmp_path):
    trained = run(encoder, tmp_path / "run", eval_every=2, patience=2, num_steps=20)
    assert trained.best_step == 2
    assert trained.history[-1]["step"] == 6


def test_sentence_transformers_reads_the_model_alike(encoder, two, tmp_path):
    texts = ["", "masks are good for us", "zinc " * 50]
    run(encoder, tmp_path / "one", validation=False)
    ours = BiEncoder.from_pretrained(tmp_path / "one" / "model", device="cpu")
    theirs = SentenceTransformer(str(tmp_path / "one" / "model"), device="cpu")
    np.testing.assert_allclose(ours.encode_passages(texts), theirs.encode(texts), rtol=0, atol=1e-5)
    trained = run(two, tmp_path / "two", validation=False)
    for side in ("query", "passage"):
        theirs = SentenceTransformer(str(tmp_path / "two" / "model" / side), device="cpu")
        ours = getattr(trained.encoder, side).encode_passages(texts)
        np.testing.assert_allclose(ours, theirs.encode(texts), rtol=0, atol=1e-5)


# --- stopped and gone on with ------------------------------------------------------------------


class Stop(TrainerCallback):
    """Fails at one event of one step, and notes the step and the seed that training begins with."""

    def __init__(self, event="", step=-1):
        self.event, self.step, self.begun, self.seed = event, step, None, None

    def _at(self, event, step):
        if (event, step) == (self.event, self.step):
            raise RuntimeError("stopped")

    def on_train_begin(self, args, state, control, **_):
        self.begun, self.seed = state.global_step, torch.initial_seed()

    def on_step_begin(self, args, state, control, **_):
        self._at("step", state.global_step)

    def on_evaluate(self, args, state, control, **_):
        self._at("evaluation", state.global_step)

    def on_save(self, args, state, control, **_):
        self._at("checkpoint", state.global_step)

    def on_train_end(self, args, state, control, **_):
        self._at("end", state.global_step)


def stop(encoder, folder, event, step, **changed):
    """Train until an error at that event of that step."""
    with pytest.raises(RuntimeError, match="stopped"):
        run(encoder, folder, callbacks=[Stop(event, step)], **changed)


LONG = {"eval_every": 2, "accumulation": 2, "dropout": 0.1, "learning_rate": 5e-3, "seed": 2}


@pytest.fixture(scope="module")
def whole(encoder, tmp_path_factory):
    """The folder of a run that nothing stopped."""
    return run(encoder, tmp_path_factory.mktemp("runs") / "whole", tags=("one", "two"), **LONG).folder


@pytest.fixture(scope="module")
def stopped(encoder, tmp_path_factory):
    """The folder of the same run stopped in its last step; the better checkpoint is the first."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    stop(encoder, folder, "step", 5, **LONG)
    assert checkpoints(folder) == ["checkpoint-2", "checkpoint-4"]
    return folder


def checkpoints(folder):
    """The names of the checkpoints there are."""
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def go_on(encoder, folder, whole, begins, **changed):
    """Go on with a run from that step, and see that it ends as the one that nothing stopped."""
    begun = Stop()
    trained = run(encoder, folder, callbacks=[begun], **{**LONG, **changed})
    assert begun.begun == begins
    assert weights(folder) == weights(whole)
    assert told(read_history(folder)) == told(read_history(whole)) == told(trained.history)
    assert sorted(path.name for path in folder.iterdir()) == RUN_FILES
    return trained


@pytest.mark.parametrize(
    ("event", "step", "begins"),
    [
        ("step", 0, 0),
        ("evaluation", 2, 0),
        ("checkpoint", 2, 2),
        ("step", 3, 2),
        ("step", 4, 4),
        ("evaluation", 6, 4),
        ("checkpoint", 6, 6),
        ("end", 6, 6),
    ],
)
def test_a_stopped_run_goes_on_from_its_last_checkpoint_to_the_same_end(
    encoder, whole, tmp_path, event, step, begins
):
    stop(encoder, tmp_path / "whole", event, step, **LONG)
    assert not (tmp_path / "whole" / "model").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        go_on(encoder, tmp_path / "whole", whole, begins)


def test_a_pair_of_encoders_goes_on_too(two, tmp_path):
    changed = {"pass_tokens": 30, "gradient_caching": True, "schedule": "cosine"}
    whole = run(two, tmp_path / "whole", **{**LONG, **changed}).folder
    stop(two, tmp_path / "stopped", "step", 5, **{**LONG, **changed})
    go_on(two, tmp_path / "stopped", whole, 4, **changed)


def test_a_training_stopped_again_and_again_ends_the_same(encoder, whole, tmp_path):
    for step in (1, 3, 5):
        stop(encoder, tmp_path / "run", "step", step, **LONG)
    go_on(encoder, tmp_path / "run", whole, 4)


def test_patience_counts_across_a_stop(encoder, tmp_path):
    changed = {"eval_every": 2, "patience": 2, "num_steps": 20}
    stop(encoder, tmp_path / "run", "step", 5, **changed)
    trained = run(encoder, tmp_path / "run", **changed)
    assert (trained.best_step, trained.history[-1]["step"]) == (2, 6)


@pytest.mark.parametrize("event", ["checkpoint", "end"])
def test_a_training_that_patience_ended_is_not_gone_on_with(encoder, tmp_path, event):
    changed = {"eval_every": 2, "patience": 2, "num_steps": 20}
    stop(encoder, tmp_path / "run", event, 6, **changed)
    assert run(encoder, tmp_path / "run", **changed).history[-1]["step"] == 6


# --- killed ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def in_a_child(plain_folder):
    """`train` in another process: "done", the signal that killed it, or its error."""
    data, held_out = made()
    content = [[astuple(e) for e in data.examples], data.passages, held_out.all_queries, held_out.all_qrels]
    with in_children(SERVER, str(plain_folder), json.dumps(LENGTHS), json.dumps(content)) as ask:

        def train_there(folder, kill_before=0, kill_after=(), at_once=False, **changed):
            settings = {**SHORT, "eval_every": 2, "dropout": 0.1, **changed}
            how = {"kill_before": kill_before, "kill_after": kill_after, "at_once": at_once}
            return ask(folder=str(folder), settings=settings, **how)

        yield train_there


@pytest.fixture(scope="module")
def whole_child(in_a_child, tmp_path_factory):
    """The folder of a run in another process that nothing killed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    assert in_a_child(folder) == "done"
    return folder


def assert_alike(folder, whole):
    """Both runs ended with the same bytes and told the same."""
    assert weights(folder) == weights(whole)
    assert told(read_history(folder)) == told(read_history(whole))


def test_killed_again_and_again_it_ends_with_the_same_bytes(in_a_child, tmp_path):
    chance, changed = random.Random(KILLS), {"num_steps": 10 + 10 * KILLS, "eval_every": 5}
    assert in_a_child(tmp_path / "whole", **changed) == "done"
    for _ in range(KILLS):
        moment = chance.randint(4, 10), chance.uniform(0, 0.04)  # lines of the history, and then seconds
        assert in_a_child(tmp_path / "killed", kill_after=moment, **changed) == "signal 9"
    assert len(read_history(tmp_path / "killed")) < len(read_history(tmp_path / "whole"))
    assert in_a_child(tmp_path / "killed", **changed) == "done"
    assert_alike(tmp_path / "killed", tmp_path / "whole")


def test_killed_before_any_of_its_file_operations_it_ends_with_the_same_bytes(
    in_a_child, whole_child, tmp_path
):
    between, outcomes = max(1, 90 // KILLS), {}
    for number in range(5 + random.Random(KILLS).randrange(between), 10_000, between):
        folder = tmp_path / f"{number}"
        if in_a_child(folder, kill_before=number) == "done":
            break
        outcomes[number] = in_a_child(folder)
        if outcomes[number] == "done":
            assert_alike(folder, whole_child)
        shutil.rmtree(folder)
    assert number > 150
    assert {number: outcome for number, outcome in outcomes.items() if outcome != "done"} == {}


def test_killed_while_it_writes_its_description_it_begins_again(in_a_child, whole_child, tmp_path):
    folder = tmp_path / "run"
    for number in range(1, 6):
        assert in_a_child(folder, kill_before=number) == "signal 9"
        if folder.exists() and any(folder.iterdir()):
            break
    assert not (folder / "training.json").exists()
    assert in_a_child(folder) == "done"
    assert_alike(folder, whole_child)


@pytest.mark.parametrize(
    "left",
    [
        "checkpoints/checkpoint-6/model.safetensors",
        ".model.dpr-0123abcd/README.md",
        ".history.jsonl.dpr-0123abcd.jsonl",
    ],
)
def test_what_a_kill_leaves_half_written_is_removed(in_a_child, whole_child, tmp_path, left):
    folder = shutil.copytree(whole_child, tmp_path / "run")
    (folder / left).parent.mkdir(parents=True, exist_ok=True)
    (folder / left).write_text("half")
    assert in_a_child(folder) == "done"
    assert sorted(path.name for path in folder.iterdir()) == RUN_FILES


def test_hidden_files_of_others_stay(in_a_child, whole_child, tmp_path):
    folder = shutil.copytree(whole_child, tmp_path / "run")
    (folder / ".git").mkdir()
    (folder / ".env").write_text("theirs")
    assert in_a_child(folder) == "done"
    assert sorted(path.name for path in folder.iterdir()) == [".env", ".git", *RUN_FILES]


# --- at once -----------------------------------------------------------------------------------


def test_of_two_processes_that_train_in_a_folder_at_once_one_does_and_the_other_is_told(
    in_a_child, whole_child, tmp_path
):
    folder = tmp_path / "run"
    outcomes = in_a_child(folder, at_once=True)
    refused = ["ValueError", f"{folder}: another process is writing into this folder; wait for it"]
    assert sorted(outcomes, key=str) in (["done", "done"], [refused, "done"])
    assert_alike(folder, whole_child)
    assert sorted(path.name for path in folder.iterdir()) == RUN_FILES


def test_a_folder_in_which_another_process_trains_is_refused_until_it_is_done(encoder, whole, tmp_path):
    with locked(tmp_path / "run" / "lock"):
        message = escape(f"{tmp_path / 'run'}: another process is writing into this folder")
        with pytest.raises(ValueError, match=message):
            run(encoder, tmp_path / "run", **LONG)
        assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]
    go_on(encoder, tmp_path / "run", whole, 0)


# --- damaged -----------------------------------------------------------------------------------


DAMAGES = {
    "cut": ("optimizer.pt", lambda path: path.write_bytes(path.read_bytes()[:-100]), "is damaged"),
    "emptied": ("trainer_state.json", lambda path: path.write_bytes(b""), "is damaged"),
    "removed": ("scheduler.pt", lambda path: path.unlink(), "is missing"),
    "unmarked": ("whole.json", lambda path: path.unlink(), "writing it was broken off"),
}


def damage(folder, how):
    """Damage a checkpoint, and tell what the warning is to say."""
    name, change, reason = DAMAGES[how]
    change(folder / name)
    return escape(f"{folder}: " + (reason if how == "unmarked" else f"{name} {reason}"))


@pytest.mark.parametrize("how", DAMAGES)
def test_from_a_damaged_checkpoint_it_falls_back_to_the_one_before(encoder, whole, stopped, tmp_path, how):
    folder = shutil.copytree(stopped, tmp_path / "whole")
    reason = damage(folder / "checkpoints" / "checkpoint-4", how)
    with pytest.warns(UserWarning, match=reason + "; going on from checkpoint-2$"):
        go_on(encoder, folder, whole, 2)


@pytest.mark.parametrize("how", ["cut", "unmarked"])
def test_without_its_best_checkpoint_it_begins_again(encoder, whole, stopped, tmp_path, how):
    folder = shutil.copytree(stopped, tmp_path / "whole")
    reason = damage(folder / "checkpoints" / "checkpoint-2", how)
    with pytest.warns(UserWarning, match="going on from the start") as caught:
        go_on(encoder, folder, whole, 0)
    first, second = (str(w.message) for w in caught if "going on" in str(w.message))
    assert escape(first).startswith(reason)
    assert "checkpoint-4: its best checkpoint, of step 2, is damaged or missing; going on" in second


def test_with_every_checkpoint_damaged_it_begins_again(encoder, whole, stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "whole")
    for how, name in zip(("cut", "removed"), checkpoints(folder), strict=True):
        damage(folder / "checkpoints" / name, how)
    with pytest.warns(UserWarning, match="going on from the start$"):
        go_on(encoder, folder, whole, 0)


def test_from_a_checkpoint_with_a_damaged_mark_it_falls_back_too(encoder, whole, stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "whole")
    (folder / "checkpoints" / "checkpoint-4" / "whole.json").write_text('{"model')
    with pytest.warns(UserWarning, match="going on from checkpoint-2$"):
        go_on(encoder, folder, whole, 2)


@pytest.mark.parametrize("name", ["training.json", "model/training.json"])
@pytest.mark.parametrize("text", ["", '{"settings": {', "[]", '{"settings": {}}'])
def test_a_finished_run_with_a_damaged_record_is_refused_and_the_file_named(
    encoder, whole, tmp_path, name, text
):
    folder = shutil.copytree(whole, tmp_path / "whole")
    (folder / name).write_text(text)
    before = files(folder)
    with pytest.raises(ValueError, match=escape(f"{folder / name}: damaged")):
        run(encoder, folder, **LONG)
    assert files(folder) == before


def test_a_stopped_run_with_a_damaged_record_is_refused_and_the_file_named(encoder, stopped, tmp_path):
    folder = shutil.copytree(stopped, tmp_path / "whole")
    (folder / "training.json").write_text('{"settings": {')
    before = files(folder)
    with pytest.raises(ValueError, match=escape(f"{folder / 'training.json'}: damaged")):
        run(encoder, folder, **LONG)
    assert files(folder) == before


def test_a_finished_run_with_a_damaged_history_is_refused_and_the_line_named(encoder, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "whole")
    lines = (folder / "history.jsonl").read_text().splitlines()
    (folder / "history.jsonl").write_text("\n".join([*lines[:3], lines[3][:-9], *lines[4:]]))
    with pytest.raises(ValueError, match=escape(f"{folder / 'history.jsonl'}:4: not JSON")):
        run(encoder, folder, **LONG)


def test_a_kept_training_comes_back_and_a_damaged_one_is_named(encoder, whole, tmp_path):
    trained = run(encoder, whole, **LONG)
    path, record = tmp_path / "deep" / "tag.json", json.loads((whole / "training.json").read_text())
    assert read_kept_training(path, record) is None
    keep_training(path, trained, searched="model")
    kept = read_kept_training(path, record)
    assert (kept.history, kept.folder) == (trained.history, path.parent)
    assert kept.finished == {**trained.finished, "searched": "model"}
    assert read_kept_training(path, {**record, "data": {}}) is None
    whole_text = path.read_text()
    lacking = json.dumps({name: value for name, value in json.loads(whole_text).items() if name != "history"})
    for text in ("", whole_text[:-9], "[]", lacking):
        path.write_text(text)
        with pytest.raises(ValueError, match=escape(f"{path}: damaged")):
            read_kept_training(path, record)


def test_only_the_newest_checkpoints_and_the_best_are_kept(encoder, tmp_path):
    stop(encoder, tmp_path / "first", "end", 10, eval_every=2, num_steps=10)
    assert checkpoints(tmp_path / "first") == ["checkpoint-10", "checkpoint-2", "checkpoint-8"]
    stop(encoder, tmp_path / "none", "end", 6, validation=False)
    assert checkpoints(tmp_path / "none") == ["checkpoint-6"]


def test_a_copy_that_someone_made_of_a_checkpoint_stays_through_a_whole_training(encoder, tmp_path):
    changed = {"eval_every": 2, "num_steps": 10}
    stop(encoder, tmp_path / "run", "step", 3, **changed)
    there = tmp_path / "run" / "checkpoints"
    theirs = shutil.copytree(there / "checkpoint-2", there / "checkpoint-2-backup")
    (there / "notes.txt").write_text("theirs")
    before = files(theirs)
    stop(encoder, tmp_path / "run", "end", 10, **changed)
    kept = ["checkpoint-10", "checkpoint-2", "checkpoint-2-backup", "checkpoint-8", "notes.txt"]
    assert checkpoints(tmp_path / "run") == kept
    run(encoder, tmp_path / "run", **changed)
    assert checkpoints(tmp_path / "run") == ["checkpoint-2-backup", "notes.txt"]
    assert files(theirs) == before


def test_nothing_is_pickled_but_the_trainers_own_states(stopped):
    files = [path for path in stopped.rglob("*") if path.is_file()]
    states = [path for path in files if path.suffix in (".pt", ".pth")]
    assert {path.name for path in states} == {"optimizer.pt", "scheduler.pt", "rng_state.pth"}
    assert not [path for path in files if path.name == "training_args.bin"]
    for path in states:
        with safe_globals():  # lets arrays of numpy through, which the random state has
            assert torch.load(path, weights_only=True)
    for path in set(files) - set(states):
        content = path.read_bytes()
        assert content[:2] not in (b"PK", b"\x80\x02", b"\x80\x04", b"\x80\x05")
        assert path.suffix in (".json", ".jsonl", ".safetensors") or path.parent.name == "tensorboard"


# --- a finished run ----------------------------------------------------------------------------


def test_a_finished_run_is_read_and_not_made_again(encoder, whole):
    found = [path for path in whole.rglob("*") if path.is_file()]
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in found}
    begun = Stop()
    trained = run(encoder, str(whole), callbacks=[begun], tags=["other"], **LONG)
    assert begun.begun is None
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in found} == before
    assert sorted(path.name for path in whole.iterdir()) == RUN_FILES
    assert (trained.history, trained.best_step, trained.folder) == (read_history(whole), 2, whole)
    read = BiEncoder.from_pretrained(whole / "model", device="cpu")
    assert (trained.encoder.fingerprint, trained.encoder.name) == (read.fingerprint, "whole")


def test_reading_a_finished_run_changes_nothing_whatever_others_put_there(encoder, whole, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "whole")
    (folder / "checkpoints").mkdir()
    (folder / ".git").mkdir()
    theirs = (".git/config", ".env", "checkpoints/checkpoint-2-backup", "model/notes.txt", "notes.dpr-1.txt")
    for name in theirs:
        (folder / name).write_text("theirs")
    found = [folder, *folder.rglob("*")]
    before = {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in found}
    trained = run(encoder, folder, **LONG)
    assert trained.history == read_history(whole)
    found = [folder, *folder.rglob("*")]
    assert {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in found} == before


def test_a_training_says_all_that_it_was_made_from_with_types(encoder, whole):
    data, held_out = made()
    about = json.loads((whole / "training.json").read_text())
    assert about["settings"] == asdict(TrainingSettings(**{**SHORT, **LONG}))
    assert about["data"] == {"name": "made", "num_queries": 12, "fingerprint": data.fingerprint}
    start = {**asdict(encoder.config), "fingerprint": encoder.fingerprint}
    assert about["start"] == {**start, "model": "tiny-bert", "encoders": 1}
    assert about["validation"] == {
        "collection": "held",
        "split": "dev",
        "scope": "full corpus",
        "passages": held_out.fingerprint,
        "queries": held_out.queries_fingerprint,
    }
    assert about["tags"] == ["one", "two"]
    assert fullmatch(r"[0-9a-f]{12}\+?|unknown", about["commit"])
    assert about["versions"]["torch"] == version("torch")
    finished = json.loads((whole / "model" / "training.json").read_text())
    assert finished == {"best_step": 2, "steps": 6, **about}


def test_the_model_card_says_data_settings_result_and_commit(encoder, whole):
    card = (whole / "model" / "README.md").read_text()
    best = next(line for line in read_history(whole) if line["step"] == 2 and "eval_loss" in line)
    assert card.startswith("---\nlibrary_name: sentence-transformers\n")
    for part in (
        "# whole\n",
        "`tiny-bert` on `made` (12 queries)",
        f"commit `{json.loads((whole / 'training.json').read_text())['commit']}`, 6 steps",
        "weights of step 2.",
        "Pooling mean, similarity cosine, queries cut at 6 tokens and passages at 32; 1 encoder.",
        f"| nDCG@10 | {best['eval_nDCG@10']:.4f} |",
        "| settings/learning_rate | 0.005 |",
        f"| data/fingerprint | {made()[0].fingerprint} |",
        f"| start/fingerprint | {encoder.fingerprint} |",
    ):
        assert part in card


def test_training_goes_on_without_neptune(encoder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "neptune", None)
    with pytest.warns(UserWarning, match="neptune-client==1.14.0.post2") as caught:
        trained = run(encoder, tmp_path / "run", validation=False, callbacks=[NeptuneTracker()])
    assert len([w for w in caught if "Neptune" in str(w.message)]) == 1
    assert len(trained.history) == 6


# --- what is refused ---------------------------------------------------------------------------


def files(folder):
    """Every file under a folder, with its bytes."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize(
    ("part", "changed", "told"),
    [
        ("settings", {"learning_rate": 1e-3}, "learning_rate 0.005, not 0.001"),
        ("settings", {"seed": 1, "batch_size": 6}, "batch_size 4, not 6; seed 2, not 1"),
        ("data", {"queries": 11}, "num_queries 12, not 11; fingerprint "),
        ("start", {"query_max_length": 7}, "query_max_length 6, not 7"),
        ("validation", {"relevant": "bad"}, "queries "),
        ("validation", {"validation": False}, "collection 'held', not None"),
    ],
)
def test_a_folder_with_another_run_is_refused_and_left_alone(
    encoder, whole, stopped, tmp_path, part, changed, told, finished
):
    folder, changed = shutil.copytree(whole if finished else stopped, tmp_path / "run"), dict(changed)
    data, held_out = made(changed.pop("relevant", "good"))
    data = replace(data, examples=data.examples[: changed.pop("queries", 12)])
    if part == "start":
        encoder, changed = encoder.with_settings(**changed), {}
    if part == "validation" and "validation" in changed:  # which also needs another setting
        held_out, changed = None, {"eval_every": 0}
        text = (folder / "training.json").read_text()
        (folder / "training.json").write_text(text.replace('"eval_every": 2', '"eval_every": 0'))
    before, settings = files(folder), TrainingSettings(**{**SHORT, **LONG, **changed})
    message = escape(f"{folder} holds a training with other {part}: ") + ".*" + escape(told)
    with pytest.raises(ValueError, match=message):
        train(encoder, data, folder, settings, validation=held_out)
    assert files(folder) == before


@pytest.mark.parametrize("name", ["chapter.md", ".git/config", "checkpoints/checkpoint-2/weights"])
def test_a_folder_that_holds_something_else_is_refused(encoder, tmp_path, name):
    path = tmp_path / "mine" / name
    path.parent.mkdir(parents=True)
    path.write_text("years of work")
    with pytest.raises(ValueError, match=escape(f"{tmp_path / 'mine'} is not empty and holds no training")):
        run(encoder, tmp_path / "mine")
    assert files(tmp_path) == {path: b"years of work"}


@pytest.mark.parametrize("left", [(), ("lock", ".training.json.dpr-0123abcd.json")])
def test_a_folder_that_is_empty_or_holds_only_what_a_kill_left_becomes_a_run(encoder, tmp_path, left):
    for name in left:
        (tmp_path / name).write_text("")
    assert run(encoder, tmp_path, validation=False).best_step == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == RUN_FILES


@pytest.mark.parametrize("asked", ["masks are good for us", " Masks ARE\tgood for us "])
def test_a_validation_query_in_training_is_refused(encoder, tmp_path, asked):
    data, held_out = made()
    held_out = replace(held_out, all_queries={**held_out.all_queries, "v0": asked})
    message = "1 training queries are validation queries too, first 'masks are good for us'"
    with pytest.raises(ValueError, match=escape(message)):
        train(encoder, data, tmp_path / "run", TrainingSettings(**SHORT), validation=held_out)
    assert not (tmp_path / "run").exists()
    spared = data.without_queries(held_out)
    assert train(encoder, spared, tmp_path / "run", TrainingSettings(**SHORT), validation=held_out)


def test_the_test_split_is_no_validation(encoder, tmp_path):
    data, held_out = made()
    held_out = replace(held_out, all_qrels={"test": held_out.qrels}, split="test")
    with pytest.raises(ValueError, match="the test split is for evaluation"):
        train(encoder, data, tmp_path / "run", TrainingSettings(**SHORT), validation=held_out)


@pytest.mark.parametrize("changed", [{"eval_every": 2}, {"patience": 1}])
def test_evaluations_without_validation_are_refused(encoder, tmp_path, changed):
    with pytest.raises(ValueError, match="eval_every and patience need validation"):
        run(encoder, tmp_path / "run", validation=False, **changed)
    assert not (tmp_path / "run").exists()


def test_tags_in_one_string_are_refused(encoder, tmp_path):
    with pytest.raises(ValueError, match=escape("tags must be Sequence[str], got 'one two'")):
        run(encoder, tmp_path / "run", tags="one two")
    assert not (tmp_path / "run").exists()


def test_a_batch_larger_than_the_data_is_refused(encoder, tmp_path):
    with pytest.raises(
        ValueError, match="batch_size must be from 2 to 12, the records of an epoch of made, got 13"
    ):
        run(encoder, tmp_path / "run", batch_size=13)


def test_a_loss_that_is_not_finite_ends_the_run(encoder, tmp_path):
    broken = deepcopy(encoder)
    with torch.no_grad():
        broken.model.encoder.layer[1].output.dense.bias[0] = torch.nan
    message = "the loss at step 2 is nan; lower the learning rate, or train in float32"
    with pytest.raises(ValueError, match=message):
        run(broken, tmp_path / "run", validation=False, log_every=2)
    assert not (tmp_path / "run" / "model").exists()
