"""Pooling: against plain loops and sentence-transformers' own module, and blind to padding."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpr.pooling import POOLINGS, cls_pool, max_pool, mean_pool

values = st.floats(-1e6, 1e6, allow_subnormal=False)


def by_loop(name, hidden, mask):
    """What a pooling should give, as nested lists: one text, one dimension, one token at a time."""
    pooled = []
    for vectors, row in zip(hidden, mask, strict=True):
        kept = [vector for vector, is_token in zip(vectors, row, strict=True) if is_token]
        kept = kept[:1] if name == "cls" else kept
        reduce = max if name == "max" else lambda column: math.fsum(column) / len(column)
        pooled.append([reduce(column) for column in zip(*kept, strict=True)])
    return pooled


@st.composite
def batches(draw):
    """Token vectors [B, T, D] and how many tokens each of the B texts has, as lists."""
    num_texts, num_tokens, dimension = (draw(st.integers(1, 4)) for _ in range(3))
    vector = st.lists(values, min_size=dimension, max_size=dimension)
    text = st.lists(vector, min_size=num_tokens, max_size=num_tokens)
    hidden = draw(st.lists(text, min_size=num_texts, max_size=num_texts))
    lengths = draw(st.lists(st.integers(1, num_tokens), min_size=num_texts, max_size=num_texts))
    return hidden, [[1] * length + [0] * (num_tokens - length) for length in lengths]


@pytest.mark.parametrize("name", POOLINGS)
@given(batch=batches())
def test_a_pooled_vector_is_what_a_loop_over_the_tokens_gives(name, batch):
    hidden, mask = batch
    pooled = POOLINGS[name](torch.tensor(hidden, dtype=torch.float64), torch.tensor(mask))
    expected = torch.tensor(by_loop(name, hidden, mask), dtype=torch.float64)
    torch.testing.assert_close(pooled, expected, rtol=1e-12, atol=1e-8)


@pytest.mark.parametrize("name", ["mean", "max"])
@given(tokens=st.lists(st.tuples(values, st.booleans()), min_size=1).filter(lambda t: any(m for _, m in t)))
def test_a_token_masked_out_anywhere_does_not_count(name, tokens):
    hidden, mask = [[[value] for value, _ in tokens]], [[int(is_token) for _, is_token in tokens]]
    pooled = POOLINGS[name](torch.tensor(hidden, dtype=torch.float64), torch.tensor(mask))
    assert pooled.item() == pytest.approx(by_loop(name, hidden, mask)[0][0], rel=1e-12, abs=1e-8)


@pytest.mark.parametrize("name", POOLINGS)
@given(batch=batches(), num_more=st.integers(1, 5), garbage=values)
def test_padding_never_changes_a_pooled_vector(name, batch, num_more, garbage):
    hidden, mask = torch.tensor(batch[0], dtype=torch.float64), torch.tensor(batch[1])
    longer = torch.nn.functional.pad(hidden, (0, 0, 0, num_more), value=garbage)
    longer_mask = torch.nn.functional.pad(mask, (0, num_more))
    pooled = POOLINGS[name](hidden, mask)
    torch.testing.assert_close(POOLINGS[name](longer, longer_mask), pooled, rtol=1e-12, atol=1e-8)


@pytest.mark.parametrize("name", POOLINGS)
def test_sentence_transformers_pools_the_same(name):
    from sentence_transformers.sentence_transformer.modules import Pooling

    torch.manual_seed(0)
    hidden = torch.randn(5, 7, 3)
    mask = (torch.arange(7) < torch.tensor([[7], [1], [4], [2], [6]])).long()
    theirs = Pooling(3, name)({"token_embeddings": hidden.clone(), "attention_mask": mask})
    torch.testing.assert_close(POOLINGS[name](hidden, mask), theirs["sentence_embedding"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", POOLINGS)
def test_the_dtype_is_kept(name, dtype):
    hidden, mask = torch.tensor([[[1.0, -2.0], [3.0, -4.0], [9.0, 9.0]]]), torch.tensor([[1, 1, 0]])
    pooled = POOLINGS[name](hidden.to(dtype), mask)
    assert pooled.dtype == dtype
    assert pooled.tolist() == by_loop(name, hidden.tolist(), mask.tolist())


def test_a_mean_within_half_precision_does_not_overflow_on_the_way():
    hidden = torch.full((1, 512, 1), 200.0, dtype=torch.float16)
    assert mean_pool(hidden, torch.ones(1, 512, dtype=torch.long)).item() == 200.0


@pytest.mark.parametrize("mask_dtype", [torch.bool, torch.int32, torch.float32])
def test_a_mask_of_any_dtype_means_the_same(mask_dtype):
    hidden, mask = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]]).to(mask_dtype)
    pooled = [pool(hidden, mask).item() for pool in (cls_pool, mean_pool, max_pool)]
    assert pooled == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("name", POOLINGS)
def test_pooling_leaves_its_input_as_it_was(name):
    hidden, mask = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]])
    POOLINGS[name](hidden, mask)
    assert hidden.flatten().tolist() == [1.0, 3.0, 9.0]
    assert mask.flatten().tolist() == [1, 1, 0]


@pytest.mark.parametrize(
    ("name", "shares"), [("cls", [1, 0, 0, 0]), ("mean", [1 / 3, 1 / 3, 1 / 3, 0]), ("max", [0, 1, 0, 0])]
)
def test_a_gradient_reaches_the_tokens_that_count_and_no_padding(name, shares):
    hidden = torch.tensor([[[1.0], [3.0], [2.0], [9.0]]], requires_grad=True)
    POOLINGS[name](hidden, torch.tensor([[1, 1, 1, 0]])).sum().backward()
    assert hidden.grad.flatten().tolist() == pytest.approx(shares)
