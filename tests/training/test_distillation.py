"""Distillation: the loss by a plain loop and sentence-transformers', and training by a teacher's scores."""

import math
from dataclasses import replace
from re import escape

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_data import data_of
from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, MarginMSELoss
from sentence_transformers.util import pairwise_cos_sim, pairwise_dot_score

from dpr.data.examples import Example
from dpr.models.bi_encoder import BiEncoder
from dpr.models.two_encoders import TwoEncoders
from dpr.training.bi_encoder import train
from dpr.training.collator import Collator
from dpr.training.dataset import TrainingSequence
from dpr.training.distillation import kl_divergence_loss, margin_mse_loss
from dpr.training.losses import in_batch_negatives_loss
from dpr.training.settings import DistillationSettings, TrainingSettings

NAN = math.nan
LENGTHS = {"pooling": "mean", "query_max_length": 8, "passage_max_length": 12}


def vectors(seed, *counts):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(count, 5)).astype(np.float32).astype(np.float64) for count in counts]


def loss_of(queries, passages, scores, similarity="dot", temperature=1.0, teacher_temperature=1.0):
    tensors = [torch.tensor(values, dtype=torch.float32) for values in (queries, passages, scores)]
    how = {"temperature": temperature, "teacher_temperature": teacher_temperature}
    return kl_divergence_loss(*tensors, similarity=similarity, **how)


def shares(scores):
    """The softmax of some numbers, in float64."""
    largest = max(scores)
    parts = [math.exp(score - largest) for score in scores]
    return [part / sum(parts) for part in parts]


@given(
    seed=st.integers(0, 1000),
    size=st.tuples(st.integers(1, 4), st.integers(2, 6)),
    cosine=st.booleans(),
    temperature=st.sampled_from([0.05, 0.5]),
    teacher_temperature=st.sampled_from([0.05, 1.0, 7.0]),
    unknown=st.lists(st.booleans(), min_size=24, max_size=24),
)
def test_the_loss_is_a_plain_loop(seed, size, cosine, temperature, teacher_temperature, unknown):
    queries, passages = vectors(seed, *size)
    scores = np.random.default_rng(seed).uniform(0, 1, size)
    hidden = np.array(unknown[: scores.size]).reshape(size)
    hidden[:, :2] = False  # two are always known
    scores[hidden] = NAN
    terms = []
    for query, row in zip(queries, scores, strict=True):
        known = [j for j in range(len(row)) if not math.isnan(row[j])]
        found = [float(query @ passages[j]) for j in known]
        if cosine:
            lengths = [np.linalg.norm(query) * np.linalg.norm(passages[j]) for j in known]
            found = [value / length for value, length in zip(found, lengths, strict=True)]
        student = shares([value / temperature for value in found])
        teacher = shares([row[j] / teacher_temperature for j in known])
        terms.append(sum(t * (math.log(t) - math.log(s)) for t, s in zip(teacher, student, strict=True) if t))
    similarity = "cosine" if cosine else "dot"
    loss = loss_of(queries, passages, scores, similarity, temperature, teacher_temperature)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(sum(terms) / len(terms), rel=1e-4, abs=1e-5)


@pytest.mark.parametrize(
    ("similarity", "theirs"), [("dot", pairwise_dot_score), ("cosine", pairwise_cos_sim)]
)
def test_over_lists_of_its_own_it_is_the_loss_of_sentence_transformers(similarity, theirs):
    queries, *columns = (torch.tensor(v, dtype=torch.float32) for v in vectors(3, 4, 4, 4, 4))
    taught = torch.rand((4, 3), generator=torch.Generator().manual_seed(0))
    peer = DistillKLDivLoss(None, theirs, student_temperature=0.5, teacher_temperature=0.2)
    expected = peer.compute_loss_from_embeddings([queries, *columns], taught) / 0.5**2  # it scales its loss
    scores = torch.full((4, 12), NAN)
    for row in range(4):
        scores[row, [row, 4 + row, 8 + row]] = taught[row]
    how = {"similarity": similarity, "temperature": 0.5, "teacher_temperature": 0.2}
    torch.testing.assert_close(kl_divergence_loss(queries, torch.cat(columns), scores, **how), expected)


@given(
    seed=st.integers(0, 1000),
    size=st.tuples(st.integers(1, 4), st.integers(2, 6)),
    cosine=st.booleans(),
    temperature=st.sampled_from([0.05, 0.5]),
    teacher_temperature=st.sampled_from([0.05, 1.0, 7.0]),
    unknown=st.lists(st.booleans(), min_size=24, max_size=24),
    several=st.lists(st.booleans(), min_size=24, max_size=24),
)
def test_the_loss_of_margins_is_a_plain_loop(
    seed, size, cosine, temperature, teacher_temperature, unknown, several
):
    queries, passages = vectors(seed, *size)
    scores = np.random.default_rng(seed).uniform(0, 1, size)
    hidden = np.array(unknown[: scores.size]).reshape(size)
    hidden[:, :2] = False
    scores[hidden] = NAN
    positives = np.array(several[: scores.size]).reshape(size) & ~hidden
    positives[:, 1] = True
    terms = []
    for query, row, relevant in zip(queries, scores, positives, strict=True):
        found = [float(query @ passage) for passage in passages]
        if cosine:
            lengths = [np.linalg.norm(query) * np.linalg.norm(passage) for passage in passages]
            found = [value / length for value, length in zip(found, lengths, strict=True)]
        for p in np.flatnonzero(relevant):
            for n in range(len(row)):
                if n != p and not math.isnan(row[n]):
                    student = (found[p] - found[n]) / temperature
                    terms.append((student - (row[p] - row[n]) / teacher_temperature) ** 2)
    tensors = [torch.tensor(values, dtype=torch.float32) for values in (queries, passages, scores)]
    how = {"temperature": temperature, "teacher_temperature": teacher_temperature}
    loss = margin_mse_loss(*tensors, torch.tensor(positives), similarity="cosine" if cosine else "dot", **how)
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(sum(terms) / len(terms), rel=1e-3, abs=1e-4)


def test_over_lists_of_its_own_the_loss_of_margins_is_that_of_sentence_transformers():
    queries, *columns = (torch.tensor(v, dtype=torch.float32) for v in vectors(3, 4, 4, 4, 4))
    taught = torch.rand((4, 3), generator=torch.Generator().manual_seed(0))
    expected = MarginMSELoss(None, pairwise_dot_score).compute_loss_from_embeddings(
        [queries, *columns], taught[:, :1] - taught[:, 1:]
    )
    scores, positives = torch.full((4, 12), NAN), torch.eye(4, 12, dtype=torch.bool)
    for row in range(4):
        scores[row, [row, 4 + row, 8 + row]] = taught[row]
    how = {"similarity": "dot", "temperature": 1.0, "teacher_temperature": 1.0}
    found = margin_mse_loss(queries, torch.cat(columns), scores, positives, **how)
    torch.testing.assert_close(found, expected)


def test_margins_need_a_positive_whose_score_is_known():
    query, passages = (torch.tensor(v, dtype=torch.float32) for v in vectors(1, 1, 3))
    how = {"similarity": "dot", "temperature": 1.0, "teacher_temperature": 1.0}
    for scores, positives in (
        ([[1.0, 2.0, 3.0]], [[False, False, False]]),
        ([[NAN, 2.0, 3.0]], [[True, False, False]]),
        ([[1.0, 2.0, 3.0]], [[True, False]]),
    ):
        with pytest.raises(ValueError, match="one or more per query whose scores are known"):
            margin_mse_loss(query, passages, torch.tensor(scores), torch.tensor(positives), **how)


def test_gradients_are_those_of_finite_differences_and_end_at_the_teacher():
    query, passages = (torch.tensor(v) for v in vectors(1, 1, 4))
    scores = torch.tensor([[0.3, NAN, 0.9, -0.2]])
    passages.requires_grad_()
    how = {"similarity": "cosine", "temperature": 0.3, "teacher_temperature": 0.5}
    before = float(kl_divergence_loss(query, passages, scores, **how))
    kl_divergence_loss(query, passages, scores, **how).backward()
    slope = passages.grad.clone()
    assert not slope[1].any()  # of which nothing is known
    moved = passages.detach().clone()
    moved[2, 0] += 1e-2
    change = float(kl_divergence_loss(query, moved, scores, **how)) - before
    assert change / 1e-2 == pytest.approx(float(slope[2, 0]), rel=0.1)
    optimiser = torch.optim.SGD([passages], lr=1.0)
    for _ in range(500):
        optimiser.zero_grad()
        kl_divergence_loss(query, passages, scores, **how).backward()
        optimiser.step()
    gaps = (
        torch.nn.functional.cosine_similarity(query, passages)[[0, 2, 3]] / 0.3 - scores[0, [0, 2, 3]] / 0.5
    )
    assert float(gaps.std()) == pytest.approx(0, abs=1e-3)  # equal but for a constant


@pytest.mark.parametrize(
    ("scores", "teacher_temperature", "message"),
    [
        ([[1.0, 2.0]], 1.0, "scores must be (2, 3), got (1, 2)"),
        ([[1.0, 2.0, 3.0], [NAN, NAN, 1.0]], 1.0, "fewer than two passages with a known score"),
        ([[1.0, 2.0, 3.0], [math.inf, 0.0, 1.0]], 1.0, "a score is infinite"),
        ([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], 0.0, "teacher_temperature must be above 0, got 0.0"),
    ],
)
def test_what_makes_no_sense_is_refused(scores, teacher_temperature, message):
    with pytest.raises(ValueError, match=escape(message)):
        loss_of(*vectors(0, 2, 3), scores, teacher_temperature=teacher_temperature)


TAUGHT = data_of(
    Example("q0", "masks", {"p0": 1}, ("p1",)),
    Example("q1", "bats", {"p1": 1}),
    Example("q2", "zinc", {"p2": 1}),
    p3="TEXT OF P0",
).with_scores(
    {"q0": {"p0": 2.0, "p1": 0.5, "far": 9.0}, "q1": {"p2": 1.0}, "q2": {"p0": 3}, "other": {"p0": 1}}
)


def test_scores_are_kept_for_the_queries_and_are_part_of_what_data_is():
    assert set(TAUGHT.scores) == {"q0", "q1", "q2"}
    plain = replace(TAUGHT, scores={})
    found = {plain.fingerprint, TAUGHT.fingerprint, replace(TAUGHT, missing_score=0.0).fingerprint}
    other = {
        query_id: {d: s + (d == "p2") for d, s in hits.items()} for query_id, hits in TAUGHT.scores.items()
    }
    assert len(found | {plain.with_scores(other).fingerprint}) == 4
    turned = {q: dict(reversed(hits.items())) for q, hits in TAUGHT.scores.items()}
    assert plain.with_scores(turned).fingerprint == TAUGHT.fingerprint
    learn, held_out = TAUGHT.split(0.34, 0)
    assert learn.scores == held_out.scores == TAUGHT.scores
    with pytest.raises(ValueError, match="query q1 has no score"):
        plain.with_scores({"q0": {"p0": 1.0}, "q2": {"p0": 1.0}})
    with pytest.raises(ValueError, match="query q0, document p0: score nan is not a finite number"):
        plain.with_scores({"q0": {"p0": NAN}})


@pytest.mark.parametrize("missing", [NAN, 0.25])
def test_a_batch_has_the_scores_of_its_passages(plain_folder, missing):
    encoder = BiEncoder.from_pretrained(plain_folder, device="cpu", **LENGTHS)
    data = replace(TAUGHT, missing_score=missing)
    sequence = TrainingSequence(data, 3, 1, 0)
    records = sorted((sequence[i] for i in range(3)), key=lambda record: record.example.query_id)
    batch = Collator(encoder, data)(records)
    expected = [[2.0, 0.5, missing], [missing, missing, 1.0], [3.0, missing, missing]]  # p0, p1, p2
    torch.testing.assert_close(batch["scores"], torch.tensor(expected), equal_nan=True)
    assert "scores" not in Collator(encoder, replace(data, scores={}))(records)


SETTINGS = DistillationSettings(
    num_steps=8, batch_size=3, learning_rate=5e-3, log_every=1, num_negatives=1, dropout=0.0, warmup_share=0.0
)


def test_a_bi_encoder_learns_the_order_of_its_teacher(plain_folder, tmp_path):
    encoder = BiEncoder.from_pretrained(plain_folder, device="cpu", **LENGTHS)
    data = replace(TAUGHT, missing_score=0.0)
    trained = train(encoder, data, tmp_path / "whole", SETTINGS)
    first, *_, last = [line for line in trained.history if "loss" in line]
    texts = [data.passages[f"p{n}"] for n in range(3)]
    [query_emb] = [v for v, _ in encoder.encode_blocks([["masks", "bats", "zinc"]], "queries")]
    [passage_emb] = [v for v, _ in encoder.encode_blocks([texts], "passages")]
    scores = [[2.0, 0.5, 0.0], [0.0, 0.0, 1.0], [3.0, 0.0, 0.0]]
    similarity = encoder.config.similarity
    expected = loss_of(query_emb, passage_emb, scores, similarity, 0.05, 0.05)
    assert first["loss"] == pytest.approx(float(expected), rel=1e-3)
    flat = loss_of(query_emb * 0, passage_emb, scores, "dot", 0.05, 0.05)
    assert first["chance_loss"] == pytest.approx(float(flat), rel=1e-4)
    assert last["loss"] < 0.5 * first["loss"]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_margins_are_learnt_alone_and_beside_the_contrastive_loss(plain_folder, tmp_path, frozen, weight):
    encoder = two_of(plain_folder) if frozen else BiEncoder.from_pretrained(plain_folder, "cpu", **LENGTHS)
    settings = replace(
        SETTINGS,
        loss="margin_mse",
        contrastive_weight=weight,
        frozen_passages=frozen,
        teacher_temperature=1.0,
    )
    settings, data = replace(settings, teacher_temperature=1.0), replace(TAUGHT, missing_score=0.0)
    trained = train(encoder, data, tmp_path / "run", settings)
    first, *_, last = trained.steps
    doc_ids = list(data.passages) if frozen else ["p0", "p1", "p2"]
    query_emb = torch.tensor(encoder.encode_queries(["masks", "bats", "zinc"]))
    passage_emb = torch.tensor(encoder.encode_passages([data.passages[d] for d in doc_ids]))
    scores = torch.tensor([[data.scores[q].get(d, 0.0) for d in doc_ids] for q in ("q0", "q1", "q2")])
    record = TrainingSequence(data, 3, 1, 0)
    own = {record[i].example.query_id: record[i].positive for i in range(3)}
    positives = torch.tensor([[d == own[q] for d in doc_ids] for q in ("q0", "q1", "q2")])
    how = {"similarity": encoder.config.similarity, "temperature": 0.05}
    expected = margin_mse_loss(query_emb, passage_emb, scores, positives, teacher_temperature=1.0, **how)
    if weight:
        relevant = torch.tensor([[d in e.positives for d in doc_ids] for e in data.examples])
        masks = {"positives": positives, "not_negative": relevant}
        expected = expected + weight * in_batch_negatives_loss(query_emb, passage_emb, **how, **masks)
    assert first["loss"] == pytest.approx(float(expected), rel=1e-3)
    assert last["loss"] < first["loss"]


def test_a_teacher_needs_settings_for_it_and_they_need_a_teacher(plain_folder, tmp_path):
    encoder = BiEncoder.from_pretrained(plain_folder, device="cpu", **LENGTHS)
    plain = replace(TAUGHT, scores={})
    with pytest.raises(ValueError, match=r"made has no scores to distil from; add them with .*with_scores"):
        train(encoder, plain, tmp_path / "a", SETTINGS)
    with pytest.raises(
        ValueError, match="made has a teacher's scores; train on it with DistillationSettings"
    ):
        train(encoder, TAUGHT, tmp_path / "a", TrainingSettings(num_steps=1, batch_size=3))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"loss": "mse"}, "loss must be one of ('kl_divergence', 'margin_mse'), got 'mse'"),
        ({"contrastive_weight": -1.0}, "contrastive_weight must be at least 0, got -1.0"),
        ({"teacher_temperature": 0.0}, "teacher_temperature must be above 0, got 0.0"),
        ({"symmetric": True}, "symmetric must be False in distillation, got True"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=escape(message)):
        DistillationSettings(**wrong)


def two_of(folder):
    return TwoEncoders(*(BiEncoder.from_pretrained(folder, device="cpu", **LENGTHS) for _ in range(2)))


def weights_of(encoder):
    return {name: weights.clone() for name, weights in encoder.model.state_dict().items()}


FROZEN = replace(SETTINGS, frozen_passages=True)


def test_with_frozen_passages_the_query_encoder_alone_learns_to_rank_all_of_them(plain_folder, tmp_path):
    encoder, data = two_of(plain_folder), replace(TAUGHT, missing_score=0.0)
    texts, before = list(data.passages.values()), weights_of(encoder.passage)
    passage_emb = encoder.encode_passages(texts)
    trained = train(encoder, data, tmp_path / "computed", FROZEN)
    first, *_, last = [line for line in trained.history if "loss" in line]
    query_emb = encoder.encode_queries(["masks", "bats", "zinc"])
    scores = [[data.scores[q].get(doc_id, 0.0) for doc_id in data.passages] for q in ("q0", "q1", "q2")]
    expected = loss_of(query_emb, passage_emb, scores, encoder.config.similarity, 0.05, 0.05)
    assert len(data.passages) == 4
    assert first["loss"] == pytest.approx(float(expected), rel=1e-3)
    assert last["loss"] < 0.9 * first["loss"]
    after = {side: weights_of(getattr(trained.encoder, side)) for side in ("query", "passage")}
    assert all(torch.equal(before[name], after["passage"][name]) for name in before)
    assert not all(torch.equal(before[name], after["query"][name]) for name in before)
    assert trained.encoder.passage.passage_fingerprint == encoder.passage.passage_fingerprint
    given = train(encoder, data, tmp_path / "given", FROZEN, passage_emb=passage_emb)
    same = weights_of(given.encoder.query)
    assert all(torch.equal(after["query"][name], same[name]) for name in same)


def test_frozen_passages_need_a_query_encoder_of_its_own_and_their_own_vectors(plain_folder, tmp_path):
    encoder = two_of(plain_folder)
    data = replace(TAUGHT, missing_score=0.0)
    shared = TwoEncoders(encoder.query, encoder.query)
    for one in (encoder.query, shared):
        with pytest.raises(ValueError, match="frozen passages need TwoEncoders"):
            train(one, data, tmp_path / "one", FROZEN)
    passage_emb = encoder.encode_passages(list(data.passages.values()))
    for wrong in (passage_emb[::-1], passage_emb[:2], passage_emb[:, :3]):
        with pytest.raises(
            ValueError, match=r"must be .*'s vectors of the 4 passages of made, in their order"
        ):
            train(encoder, data, tmp_path / "wrong", FROZEN, passage_emb=wrong)
    with pytest.raises(ValueError, match="passage_emb is for frozen passages"):
        train(encoder, data, tmp_path / "not-frozen", SETTINGS, passage_emb=passage_emb)
