"""The loss: an explicit softmax over passages in float64, sentence-transformers, and finite differences."""

import math
import warnings
from re import escape

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.util import cos_sim, dot_score

from dpr.training.losses import in_batch_logits, in_batch_negatives_loss


def share_missed(own, others):
    """−ln of the share that exp(own) has of the sum of it and exp(others); the largest is taken out first."""
    largest = max([own, *others])
    return math.log(sum(math.exp(score - largest) for score in [own, *others])) + largest - own


def mean_loss(scores, positives, not_negative):
    """The mean over rows that have positives, and over those, each alone against the row's negatives."""
    rows = []
    for i, row in enumerate(scores):
        negatives = [s for j, s in enumerate(row) if not positives[i][j] and not not_negative[i][j]]
        terms = [share_missed(s, negatives) for j, s in enumerate(row) if positives[i][j]]
        if terms:
            rows.append(sum(terms) / len(terms))
    return sum(rows) / len(rows)


def loss_by_hand(queries, passages, similarity, temperature, positives, not_negative, symmetric):
    """The loss in float64 and plain loops, over passages and, where symmetric, over queries."""
    scores = np.empty((len(queries), len(passages)))
    for i, query in enumerate(queries):
        for j, passage in enumerate(passages):
            scores[i, j] = np.dot(query, passage) / temperature
            if similarity == "cosine":
                scores[i, j] /= math.sqrt(np.dot(query, query) * np.dot(passage, passage))
    loss = mean_loss(scores, positives, not_negative)
    return (loss + mean_loss(scores.T, positives.T, not_negative.T)) / 2 if symmetric else loss


def vectors(seed, *counts, dimension=5):
    """Arrays of random vectors of differing lengths, float32 numbers held in float64."""
    rng = np.random.default_rng(seed)
    made = (rng.normal(size=(count, dimension)) * rng.uniform(0.5, 2, (count, 1)) for count in counts)
    return [array.astype(np.float32).astype(np.float64) for array in made]


def loss_of(queries, passages, similarity="dot", temperature=1.0, **options):
    """Our loss of two tensors, or of two arrays in float32; masks may be arrays too."""
    tensors = (v if torch.is_tensor(v) else torch.tensor(v, dtype=torch.float32) for v in (queries, passages))
    options = {k: torch.tensor(v) if isinstance(v, np.ndarray | list) else v for k, v in options.items()}
    return in_batch_negatives_loss(*tensors, similarity=similarity, temperature=temperature, **options)


# --- the value ---------------------------------------------------------------------------------


@given(
    num_queries=st.integers(1, 6),
    num_passages=st.integers(1, 9),
    similarity=st.sampled_from(["cosine", "dot"]),
    temperature=st.sampled_from([0.02, 0.3, 0.9]),
    symmetric=st.booleans(),
    own_only=st.booleans(),
    masked=st.sampled_from([None, 0.2, 0.7, 1.0]),
    seed=st.integers(0, 10**6),
)
def test_the_loss_is_the_softmax_written_out(
    num_queries, num_passages, similarity, temperature, symmetric, own_only, masked, seed
):
    num_passages += num_queries if own_only else 0
    queries, passages = vectors(seed, num_queries, num_passages)
    rng = np.random.default_rng(seed)
    positives = np.eye(num_queries, num_passages, dtype=bool)
    options = {"symmetric": symmetric}
    if not own_only:
        positives = rng.random((num_queries, num_passages)) < 0.3
        positives[range(num_queries), rng.integers(0, num_passages, num_queries)] = True
        options["positives"] = positives
    not_negative = np.zeros_like(positives)
    if masked is not None:
        options["not_negative"] = not_negative = rng.random(positives.shape) < masked
    expected = loss_by_hand(queries, passages, similarity, temperature, positives, not_negative, symmetric)
    loss = loss_of(queries, passages, similarity, temperature, **options)
    assert (loss.dtype, loss.shape) == (torch.float32, ())
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_the_softmax_is_over_passages_and_only_the_symmetric_form_adds_the_one_over_queries():
    queries, passages = [[2.0, 0.0], [5.0, 5.0]], [[1.0, 0.0], [0.0, 1.0]]  # scores 2, 0 and 5, 5
    over_passages = (math.log(1 + math.exp(-2)) + math.log(2)) / 2
    over_queries = (math.log(1 + math.exp(3)) + math.log(1 + math.exp(-5))) / 2
    assert loss_of(queries, passages).item() == pytest.approx(over_passages, abs=1e-6)
    symmetric = loss_of(queries, passages, symmetric=True).item()
    assert symmetric == pytest.approx((over_passages + over_queries) / 2, abs=1e-6)
    assert over_queries > 3 * over_passages


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_chance_is_ln_of_the_number_of_passages(similarity):
    same = np.ones((7, 5))
    assert loss_of(same[:4], same, similarity, 0.5).item() == pytest.approx(math.log(7), abs=1e-6)
    symmetric = loss_of(same[:4], same, similarity, 0.5, symmetric=True).item()
    assert symmetric == pytest.approx((math.log(7) + math.log(4)) / 2, abs=1e-6)


@pytest.mark.parametrize(("similarity", "theirs"), [("cosine", cos_sim), ("dot", dot_score)])
@pytest.mark.parametrize("num_hard", [0, 1, 2])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_loss_is_that_of_sentence_transformers(similarity, theirs, num_hard, symmetric):
    columns = [torch.tensor(v, dtype=torch.float32) for v in vectors(num_hard, *[6] * (2 + num_hard))]
    how = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    reference = MultipleNegativesRankingLoss(
        None, scale=20.0, similarity_fct=theirs, **(how if symmetric else {})
    )
    expected = reference.compute_loss_from_embeddings(columns, None)
    ours = loss_of(columns[0], torch.cat(columns[1:]), similarity, 1 / 20, symmetric=symmetric)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_cosine_does_not_depend_on_lengths_and_dot_does():
    queries, passages = vectors(0, 3, 5)
    longer = passages * np.arange(1, 6)[:, None]
    for similarity, alike in (("cosine", True), ("dot", False)):
        losses = [loss_of(3 * queries, p, similarity, 0.5).item() for p in (passages, longer)]
        assert (losses[0] == pytest.approx(losses[1], abs=1e-5)) is alike


def test_the_logits_are_similarities_by_temperature():
    queries, passages = torch.tensor([[3.0, 4.0], [0.0, 2.0]]), torch.tensor([[5.0, 0.0], [-4.0, 3.0]])
    cosine = in_batch_logits(queries, passages, similarity="cosine", temperature=0.1)
    torch.testing.assert_close(cosine, torch.tensor([[6.0, 0.0], [0.0, 6.0]]))
    dot = in_batch_logits(queries, passages, similarity="dot", temperature=2)
    torch.testing.assert_close(dot, torch.tensor([[7.5, 0.0], [0.0, 3.0]]))


# --- several positives, and what is left out ---------------------------------------------------


def test_each_positive_of_a_query_has_a_term_in_which_the_others_play_no_part():
    queries, passages = vectors(1, 2, 5)
    positives = [[True, False, True, False, False], [False, True, False, False, False]]
    without = [loss_of(queries[:1], passages[[own, 1, 3, 4]]).item() for own in (0, 2)]
    alone = loss_of(queries[1:], passages[[1, 0, 2, 3, 4]]).item()
    expected = ((without[0] + without[1]) / 2 + alone) / 2
    assert loss_of(queries, passages, positives=positives).item() == pytest.approx(expected, abs=1e-6)


def test_a_passage_that_is_no_negative_of_any_query_counts_as_not_there():
    queries, passages = vectors(2, 4, 7)
    not_negative = torch.zeros(4, 7, dtype=torch.bool)
    not_negative[:, 5] = True
    left = loss_of(queries, passages, not_negative=not_negative)
    torch.testing.assert_close(left, loss_of(queries, np.delete(passages, 5, axis=0)))
    assert left < loss_of(queries, passages) - 1e-3


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_query_that_has_no_negatives_has_neither_loss_nor_gradient(symmetric):
    tensors = [torch.tensor(v, dtype=torch.float32, requires_grad=True) for v in vectors(3, 3, 5)]
    loss = loss_of(*tensors, not_negative=torch.ones(3, 5, dtype=torch.bool), symmetric=symmetric)
    loss.backward()
    assert loss.item() == 0
    assert all((tensor.grad == 0).all() for tensor in tensors)


def test_a_passage_left_out_has_no_gradient():
    queries, passages = (torch.tensor(v, dtype=torch.float32) for v in vectors(4, 2, 4))
    passages.requires_grad_()
    not_negative = [[False, False, True, False], [False, False, True, True]]
    loss_of(queries, passages, "cosine", 0.5, not_negative=not_negative).backward()
    assert (passages.grad.norm(dim=1) > 1e-2).tolist() == [True, True, False, True]


def test_the_masks_are_left_as_they_were():
    positives, not_negative = (
        torch.eye(2, 3, dtype=torch.bool),
        torch.tensor([[True, False, True], [False] * 3]),
    )
    before = positives.clone(), not_negative.clone()
    loss_of(*vectors(5, 2, 3), positives=positives, not_negative=not_negative, symmetric=True)
    assert torch.equal(positives, before[0])
    assert torch.equal(not_negative, before[1])


# --- gradients and precision -------------------------------------------------------------------


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_gradients_are_the_finite_differences_of_the_softmax_written_out(similarity, symmetric):
    arrays = vectors(6, 3, 5, dimension=4)
    positives = np.array([[1, 0, 0, 0, 1], [0, 1, 0, 0, 0], [1, 0, 0, 0, 0]], dtype=bool)
    not_negative = np.array([[1, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 1, 0, 0, 0]], dtype=bool)
    tensors = [torch.tensor(v, dtype=torch.float32, requires_grad=True) for v in arrays]
    masks = {"positives": positives, "not_negative": not_negative}
    loss_of(*tensors, similarity, 0.5, symmetric=symmetric, **masks).backward()
    for array, tensor in zip(arrays, tensors, strict=True):
        expected = np.empty_like(array)
        for place in np.ndindex(array.shape):
            kept, losses = array[place], []
            for step in (1e-5, -1e-5):
                array[place] = kept + step
                losses.append(loss_by_hand(*arrays, similarity, 0.5, positives, not_negative, symmetric))
            array[place] = kept
            expected[place] = (losses[0] - losses[1]) / 2e-5
        np.testing.assert_allclose(tensor.grad.numpy(), expected, rtol=1e-3, atol=1e-5)
        assert np.abs(expected).max() > 0.05


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_half_precision_vectors_are_compared_in_float32(dtype, similarity):
    queries, passages = (torch.tensor(v, dtype=dtype) for v in vectors(7, 8, 12, dimension=64))
    half, full = (
        in_batch_logits(q, p, similarity=similarity, temperature=0.05)
        for q, p in ((queries, passages), (queries.float(), passages.float()))
    )
    assert half.dtype == torch.float32
    assert torch.equal(half, full)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_under_autocast_the_loss_is_that_of_float32(similarity):
    queries, passages = (torch.tensor(v, dtype=torch.float32) for v in vectors(8, 8, 12, dimension=64))
    with torch.autocast("cpu", torch.bfloat16):
        assert (queries @ passages.T).dtype == torch.bfloat16
        inside = loss_of(queries, passages, similarity, 0.05, symmetric=True)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, loss_of(queries, passages, similarity, 0.05, symmetric=True))


@pytest.mark.parametrize("symmetric", [False, True])
def test_large_dot_products_do_not_overflow(symmetric):
    queries, passages = (1e4 * v for v in vectors(9, 4, 6))
    tensors = [torch.tensor(v, dtype=torch.float32, requires_grad=True) for v in (queries, passages)]
    not_negative = np.random.default_rng(9).random((4, 6)) < 0.7
    loss = loss_of(*tensors, not_negative=not_negative, symmetric=symmetric)
    loss.backward()
    masks = np.eye(4, 6, dtype=bool), not_negative
    expected = loss_by_hand(queries, passages, "dot", 1.0, *masks, symmetric)
    assert expected > 1e6  # exp of it is far beyond what float32 holds
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert all(torch.isfinite(tensor.grad).all() for tensor in tensors)


# --- warnings and errors -----------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1, 20.0])
def test_cosine_without_a_temperature_warns_where_the_loss_is_called(temperature):
    message = f"cosine divided by a temperature of {temperature} cannot tell passages apart; use 0.01 to 0.1"
    with pytest.warns(UserWarning, match=escape(message)) as caught:
        in_batch_negatives_loss(torch.eye(3), torch.eye(3), similarity="cosine", temperature=temperature)
    assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.parametrize(("similarity", "temperature"), [("cosine", 0.99), ("dot", 1), ("dot", 20.0)])
def test_no_other_temperature_warns(similarity, temperature):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss_of(torch.eye(3), torch.eye(3), similarity, temperature)


@pytest.mark.parametrize("function", [in_batch_negatives_loss, in_batch_logits])
@pytest.mark.parametrize(
    ("queries", "passages", "change", "message"),
    [
        ((3,), (3, 4), {}, "expected query_emb [B, D] and passage_emb [P, D], got (3,) and (3, 4)"),
        ((), (), {}, "got () and ()"),
        ((3, 4), (3, 4, 1), {}, "got (3, 4) and (3, 4, 1)"),
        ((3, 4), (3, 5), {}, "got (3, 4) and (3, 5)"),
        ((0, 4), (2, 4), {}, "got 0 queries and 2 passages"),
        ((2, 4), (0, 4), {}, "got 2 queries and 0 passages"),
        ((2, 4), (3, 4), {"similarity": "l2"}, "similarity must be one of ('cosine', 'dot'), got 'l2'"),
        ((2, 4), (3, 4), {"temperature": 0}, "temperature must be above 0, got 0"),
        ((2, 4), (3, 4), {"temperature": -0.1}, "temperature must be above 0, got -0.1"),
        ((2, 4), (3, 4), {"temperature": math.nan}, "temperature must be above 0, got nan"),
    ],
)
def test_vectors_and_settings_that_do_not_fit_are_refused(function, queries, passages, change, message):
    with pytest.raises(ValueError, match=escape(message)):
        function(
            torch.ones(queries), torch.ones(passages), **{"similarity": "dot", "temperature": 1.0, **change}
        )


@pytest.mark.parametrize(
    ("num_passages", "masks", "message"),
    [
        (2, {}, "3 queries need as many passages or more, got 2"),
        (4, {"positives": torch.ones(3, 3)}, "positives must be (3, 4), got (3, 3)"),
        (4, {"not_negative": torch.ones(3, 3)}, "not_negative must be (3, 4), got (3, 3)"),
        (4, {"not_negative": torch.ones(4)}, "not_negative must be (3, 4), got (4,)"),
        (2, {"positives": torch.tensor([[1, 1], [0, 0], [1, 0]])}, "a query of the batch has no positive"),
    ],
)
def test_masks_that_do_not_fit_are_refused(num_passages, masks, message):
    with pytest.raises(ValueError, match=escape(message)):
        loss_of(
            torch.ones(3, 4), torch.ones(num_passages, 4), **{name: m.bool() for name, m in masks.items()}
        )
