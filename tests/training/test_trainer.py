"""One step of training: passes, gradients, learning rates and evaluations beside what they should be."""

import gc
import json
import math
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from made_models import ARCHITECTURES, make_model

from dpr.data.training_data import TrainingData
from dpr.models.bi_encoder import BiEncoder
from dpr.models.two_encoders import TwoEncoders
from dpr.training.bi_encoder import BiEncoderTrainer, Pair
from dpr.training.collator import Collator
from dpr.training.dataset import TrainingSequence
from dpr.training.losses import in_batch_negatives_loss
from dpr.training.settings import TrainingSettings
from dpr.training.trainer import set_dropout, training_arguments, usable_checkpoint


@pytest.fixture(autouse=True, scope="module")
def frozen():
    """Each run collects garbage among all that is imported, which takes longer than the run."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def encoder(plain_folder) -> BiEncoder:
    """The tiny model with lengths 16 and 32."""
    return BiEncoder.from_pretrained(
        plain_folder, device="cpu", pooling="mean", query_max_length=16, passage_max_length=32
    )


@pytest.fixture
def two(encoder) -> TwoEncoders:
    """Two models, the query's with other weights."""
    query = deepcopy(encoder)
    with torch.no_grad():
        for weights in query.model.parameters():
            weights.mul_(0.9)
    return TwoEncoders(query, encoder)


@pytest.fixture
def data(tiny_collection):
    """Five queries, three of them with hard negatives, two of these with two."""
    found = TrainingData.from_collection(tiny_collection.with_split("train"))
    texts = {passage.doc_id: passage.contents for passage in tiny_collection.passages}
    return found.with_negatives({"t1": ["d2", "d4"], "t2": ["d2", "d6"], "t3": ["d2"]}, texts)


@pytest.fixture
def held_out(tiny_collection):
    """Seven queries, one with two positives of other grades, that search all six passages."""
    judged = tiny_collection.all_qrels
    return replace(tiny_collection, all_qrels={"dev": {**judged["train"], **judged["test"]}}, split="dev")


def trainer(encoder, data, validation=None, **changed):
    """A trainer without a folder."""
    settings = {"batch_size": 2, "log_every": 1, "dropout": 0.0, **changed}
    return BiEncoderTrainer(encoder, data, None, TrainingSettings(**settings), validation)


# --- passes and gradients ----------------------------------------------------------------------


def step(encoder, data, pass_tokens=None, caching=False, layers=False, dropout=0.0, negatives=2):
    """The loss and gradients of one batch of all queries, and how often models and layers were called."""
    encoder = deepcopy(encoder)
    pair, calls = Pair(encoder, caching).train(), {"models": 0, "layers": 0, "passes": 0}
    if layers:
        pair.activation_checkpointing_enable()
    for module in pair.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout

    def count(name):
        return lambda *_: calls.update({name: calls[name] + 1})

    for model in pair.transformers:
        model.register_forward_hook(count("models"))
        for layer in model.encoder.layer:
            layer.attention.register_forward_hook(count("layers"))
    sequence = TrainingSequence(data, len(data.examples), 1, 0, negatives)
    batch = Collator(encoder, data, pass_tokens)([sequence[i] for i in range(len(sequence))])
    calls["passes"] = len(batch["queries"]) + len(batch["passages"])
    torch.manual_seed(0)
    query_emb, passage_emb = pair(batch["queries"], batch["passages"])
    masks = {name: batch[name] for name in ("positives", "not_negative")}
    how = {"similarity": "cosine", "temperature": 0.05, **masks}
    loss = in_batch_negatives_loss(query_emb, passage_emb, **how)
    loss.backward()
    grads = {name: p.grad for name, p in pair.named_parameters() if p.grad is not None}
    return loss.item(), grads, calls


def assert_same_gradients(found, expected, tolerance):
    """Two steps have the same loss and gradients."""
    assert found[0] == pytest.approx(expected[0], abs=tolerance)
    assert found[1].keys() == expected[1].keys()
    assert max(grad.abs().max() for grad in expected[1].values()) > 0.1
    for name, grad in expected[1].items():
        np.testing.assert_allclose(found[1][name], grad, rtol=1e-5, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("kind", ["encoder", "two"])
@pytest.mark.parametrize("negatives", [0, 2])
@pytest.mark.parametrize("how", [{}, {"caching": True}, {"layers": True}, {"caching": True, "layers": True}])
def test_gradients_of_passes_are_those_of_the_plain_batch(request, data, kind, negatives, how):
    encoder = request.getfixturevalue(kind)
    plain = step(encoder, data, negatives=negatives)
    passes = step(encoder, data, 24, negatives=negatives, **how)
    assert (plain[2]["passes"], passes[2]["passes"]) == (2, 5)
    assert_same_gradients(passes, plain, 1e-5)


@pytest.mark.parametrize("kind", ["encoder", "two"])
@pytest.mark.parametrize("how", [{"caching": True}, {"layers": True}])
def test_what_is_computed_again_has_the_same_dropout(request, data, kind, how):
    encoder = request.getfixturevalue(kind)
    dropped = step(encoder, data, 24, dropout=0.3)
    assert_same_gradients(step(encoder, data, 24, dropout=0.3, **how), dropped, 1e-6)
    assert abs(dropped[0] - step(encoder, data, 24)[0]) > 1e-3


@pytest.mark.parametrize(
    ("how", "models", "layers"),
    [({}, 1, 2), ({"caching": True}, 2, 4), ({"layers": True}, 1, 4)],
)
def test_each_pass_or_layer_is_computed_a_second_time_for_its_gradient(encoder, data, how, models, layers):
    calls = step(encoder, data, 24, **how)[2]
    assert (calls["models"], calls["layers"]) == (models * calls["passes"], layers * calls["passes"])


def test_nothing_is_computed_again_without_gradients(encoder, data):
    calls = []
    encoder.model.register_forward_hook(lambda *_: calls.append(1))
    batch = Collator(encoder, data, 24)([TrainingSequence(data, 2, 1, 0)[i] for i in range(2)])
    with torch.no_grad():
        found = Pair(encoder, caching=True).eval()(batch["queries"], batch["passages"])
    assert len(calls) == len(batch["queries"]) + len(batch["passages"])
    assert not any(vectors.requires_grad for vectors in found)


@pytest.mark.parametrize("pass_tokens", [1, 24, 40, None])
def test_vectors_come_in_the_order_of_the_batch(two, data, pass_tokens):
    sequence = TrainingSequence(data, 5, 1, 0, 0)
    records = [sequence[i] for i in range(5)]
    batch = Collator(two, data, pass_tokens)(records)
    query_emb, passage_emb = Pair(two).eval()(batch["queries"], batch["passages"])
    queries = two.encode_queries([r.example.query for r in records])
    passages = two.encode_passages([data.passages[r.positive] for r in records])
    np.testing.assert_allclose(query_emb.detach(), queries, rtol=0, atol=1e-5)
    np.testing.assert_allclose(passage_emb.detach(), passages, rtol=0, atol=1e-5)


def test_one_transformer_for_both_sides_is_trained_once(encoder, two):
    assert len(Pair(encoder).transformers) == 1
    assert len(Pair(TwoEncoders(encoder, encoder.with_settings(pooling="cls"))).transformers) == 1
    assert len(Pair(two).transformers) == 2


@pytest.mark.parametrize(("dropout", "expected"), [(None, 0.1), (0.0, 0.0), (0.3, 0.3)])
def test_dropout_is_set_everywhere_or_left(two, data, dropout, expected):
    trainer(two, data, dropout=dropout)
    for side in (two.query, two.passage):
        rates = {module.p for module in side.model.modules() if isinstance(module, torch.nn.Dropout)}
        assert rates == {expected}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_dropout_a_model_in_training_computes_what_it_does_after_it(architecture):
    ids = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    if architecture in ("t5", "bart"):
        ids["decoder_input_ids"] = torch.tensor([[0, 9]])
    model = make_model(architecture)
    outputs = {}
    for rate in (0.5, 0.0):
        set_dropout(model, rate)
        outputs[rate] = [model.train(mode)(**ids)[0] for mode in (True, False)]
    assert not torch.equal(*outputs[0.5])
    assert torch.equal(*outputs[0.0])


# --- the learning rate -------------------------------------------------------------------------


def curve(encoder, data, **changed):
    """The learning rate of each step of a run."""
    made = trainer(encoder, data, num_negatives=0, **changed)
    made.train()
    return np.array([line["learning_rate"] for line in made.state.log_history if "loss" in line])


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(
    ("steps", "warmup_share", "floor_share", "accumulation"),
    [(20, 0.25, 0.05, 1), (10, 0.0, 0.5, 1), (8, 0.3, 0.1, 2), (12, 0.99, 0.1, 1)],
)
def test_the_learning_rate_rises_over_the_warm_up_and_falls_to_its_floor(
    encoder, data, schedule, steps, warmup_share, floor_share, accumulation
):
    how = {"schedule": schedule, "warmup_share": warmup_share, "floor_share": floor_share}
    rates = curve(encoder, data, num_steps=steps, learning_rate=2e-3, accumulation=accumulation, **how)
    warm = min(steps - 1, math.ceil(warmup_share * steps))
    assert len(rates) == steps
    assert rates.max() == pytest.approx(2e-3)
    top = rates.argmax()
    assert warm - 1 <= top <= warm
    rise = np.diff(rates[: top + 1])
    np.testing.assert_allclose(rise, 2e-3 / max(warm, 1), rtol=0.3)
    np.testing.assert_allclose(rise, rise[:1].repeat(len(rise)), rtol=1e-6)
    down = (rates[top:] - 2e-3 * floor_share) / (2e-3 * (1 - floor_share))  # from 1 to about 0
    if schedule == "cosine":
        down = 1 - np.arccos(np.clip(2 * down - 1, -1, 1)) / np.pi
    fall = -np.diff(down)
    np.testing.assert_allclose(fall, fall[:1].repeat(len(fall)), rtol=1e-4)
    assert -1e-9 <= down[-1] <= (fall[0] * 1.001 if len(fall) else 1)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_floor_at_the_top_keeps_the_learning_rate(encoder, data, schedule):
    rates = curve(encoder, data, num_steps=6, learning_rate=1e-3, floor_share=1, schedule=schedule)
    np.testing.assert_allclose(rates[1:], 1e-3)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_a_learning_rate_of_0_changes_no_weight(encoder, data, schedule):
    before = encoder.fingerprint
    assert not curve(encoder, data, num_steps=3, learning_rate=0, schedule=schedule).any()
    assert encoder.fingerprint == before


# --- evaluation --------------------------------------------------------------------------------


def plain_metrics(encoder, held_out):
    """NDCG@10, RR@10 and R@100 over the whole collection, by their definitions."""
    passages = encoder.encode_passages([passage.contents for passage in held_out.passages])
    passages = passages / np.linalg.norm(passages, axis=1, keepdims=True)
    found = []
    for query_id, text in held_out.queries.items():
        grades = held_out.qrels[query_id]
        query = encoder.encode_queries([text])[0]
        order = np.argsort(-(passages @ query), kind="stable")
        gains = np.array([grades.get(held_out.doc_ids[i], 0) for i in order])
        discounts = 1 / np.log2(np.arange(2, len(gains) + 2))
        ideal = np.sort(gains)[::-1] @ discounts
        found.append([gains @ discounts / ideal, 1 / (1 + (gains > 0).argmax()), 1.0])
    return dict(zip(("eval_nDCG@10", "eval_RR@10", "eval_R@100"), np.mean(found, axis=0), strict=True))


def plain_eval_loss(encoder, held_out, size, temperature):
    """The mean over batches of each query's own passage's share among the passages of the batch."""
    examples = TrainingData.from_collection(held_out)
    sequence, losses = TrainingSequence(examples, size, len(examples.examples) // size, 0, 0), []
    for start in range(0, len(sequence), size):
        records = [sequence[i] for i in range(start, start + size)]
        doc_ids = list(dict.fromkeys(record.positive for record in records))
        sides = [
            encoder.encode_queries([record.example.query for record in records]),
            encoder.encode_passages([examples.passages[doc_id] for doc_id in doc_ids]),
        ]
        sides = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides]
        scores = np.exp(sides[0] @ sides[1].T / temperature)
        for row, record in zip(scores, records, strict=True):
            own = row[doc_ids.index(record.positive)]
            others = sum(s for s, d in zip(row, doc_ids, strict=True) if d not in record.example.positives)
            losses.append(-np.log(own / (own + others)))
    return np.mean(losses)


@pytest.mark.parametrize("kind", ["encoder", "two"])
@pytest.mark.parametrize(("batch_size", "temperature"), [(2, 0.05), (3, 0.5), (5, 0.05)])
def test_an_evaluation_is_a_plain_search_and_a_plain_loss(
    request, data, held_out, kind, batch_size, temperature
):
    encoder = request.getfixturevalue(kind)
    found = trainer(encoder, data, held_out, batch_size=batch_size, temperature=temperature).evaluate()
    for name, value in plain_metrics(encoder, held_out).items():
        assert found[name] == pytest.approx(value, abs=1e-6)
    assert 0 < found["eval_nDCG@10"] < 1
    expected = plain_eval_loss(encoder, held_out, batch_size, temperature)
    assert found["eval_loss"] == pytest.approx(expected, rel=1e-4)
    assert found["eval_chance_loss"] == math.log(batch_size)


def test_what_is_searched_is_the_same_for_every_batch_size_and_model_length(encoder, data, held_out):
    doc_ids = held_out.doc_ids
    seen = []
    original = encoder.encode_blocks
    encoder.encode_blocks = lambda blocks, side: seen.append((side, len(blocks[0]))) or original(blocks, side)
    for batch_size in (2, 5):
        trainer(encoder, data, held_out, batch_size=batch_size).evaluate()
    assert seen == [("passages", len(doc_ids)), ("queries", 7)] * 2


def test_an_evaluation_is_without_dropout(encoder, data, held_out):
    made = trainer(encoder, data, held_out, dropout=0.5)
    found = []
    for _ in range(2):
        made.model.train()
        metrics = made.evaluate()
        found.append({name: value for name, value in metrics.items() if name != "eval_s"})
    assert found[0] == found[1]
    quiet = trainer(encoder, data, held_out, dropout=0.0).evaluate()
    assert found[0]["eval_loss"] == quiet["eval_loss"]


def test_with_fewer_queries_than_a_batch_all_are_one_batch(encoder, data, tiny_collection):
    small = replace(tiny_collection, all_qrels={"dev": tiny_collection.qrels}, split="dev")
    found = trainer(encoder, data, small, batch_size=5).evaluate()
    assert found["eval_chance_loss"] == math.log(2)
    assert found["eval_loss"] == pytest.approx(plain_eval_loss(encoder, small, 2, 0.05), rel=1e-4)


def write_checkpoint(folder, step, best=None):
    """A checkpoint as training leaves it, with made-up weights."""
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "model.safetensors").write_bytes(bytes([step]) * 99)
    (path / "trainer_state.json").write_text(json.dumps({"best_global_step": best}))
    sizes = {file.name: file.stat().st_size for file in path.iterdir()}
    (path / "whole.json").write_text(json.dumps(sizes))
    return path


def test_the_newest_whole_checkpoint_is_taken(tmp_path):
    paths = [write_checkpoint(tmp_path, step) for step in (9, 10, 100)]
    assert usable_checkpoint(tmp_path) == (paths[-1], [])
    assert usable_checkpoint(tmp_path / "none") == (None, [])


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("model.safetensors", b"\2" * 98, "model.safetensors is damaged"),
        ("model.safetensors", None, "model.safetensors is missing"),
        ("trainer_state.json", b"", "trainer_state.json is damaged"),
        ("whole.json", None, "writing it was broken off"),
        ("whole.json", b'{"model', "whole.json is damaged"),
        ("trainer_state.json", b"\0" * len('{"best_global_step": 1}'), "trainer_state.json is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_told_with_what_is_wrong(tmp_path, name, content, reason):
    first, second = (write_checkpoint(tmp_path, step, 1) for step in (1, 2))
    if content is None:
        (second / name).unlink()
    else:
        (second / name).write_bytes(content)
    assert usable_checkpoint(tmp_path) == (first, [(second, reason)])


def test_a_checkpoint_is_as_whole_as_the_best_one_it_speaks_of(tmp_path):
    paths = {s: write_checkpoint(tmp_path, s, b) for s, b in ((1, 1), (2, 1), (3, 3), (4, 3), (5, 2))}
    assert usable_checkpoint(tmp_path) == (paths[5], [])
    (paths[1] / "model.safetensors").write_bytes(b"")
    newest, damaged = usable_checkpoint(tmp_path)
    assert newest == paths[4]
    assert damaged == [
        (paths[1], "model.safetensors is damaged"),
        (paths[2], "its best checkpoint, of step 1, is damaged or missing"),
        (paths[5], "its best checkpoint, of step 2, is damaged or missing"),
    ]


# --- precision ---------------------------------------------------------------------------------


def test_bfloat16_is_computed_where_the_hardware_does_and_else_float32(monkeypatch):
    settings = TrainingSettings(num_steps=2, precision="bfloat16")
    for hardware in ("avx512_bf16", "amx_bf16"):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=hardware: {has: True})
        assert training_arguments(settings, None, 2, True, False).bf16
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    with pytest.warns(UserWarning, match="This processor does not compute with bfloat16"):
        arguments = training_arguments(settings, None, 2, True, False)
    assert not arguments.bf16
    assert not training_arguments(replace(settings, precision="float32"), None, 2, True, False).bf16
