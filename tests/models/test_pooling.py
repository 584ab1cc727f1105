"""Pooling: against plain loops and sentence-transformers' own module, and blind to padding."""

import math
from re import escape

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpr.models.pooling import POOLINGS, cls_pool, layer_pool, max_pool, mean_pool, parse_pooling, pool

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
    pooled = [function(hidden, mask).item() for function in (cls_pool, mean_pool, max_pool)]
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


# --- several layers ----------------------------------------------------------------------------


def combined_by_loop(combine, layers, mask):
    """What pooling layers should give, as nested lists: layers combined token by token, then averaged."""
    pooled = []
    for text, row in enumerate(mask):
        by_token = []
        for token in (token for token, is_token in enumerate(row) if is_token):
            vectors = [layer[text][token] for layer in layers]
            if combine == "concat":
                by_token.append([value for vector in vectors for value in vector])
            else:
                share = len(layers) if combine == "mean" else 1
                by_token.append([math.fsum(column) / share for column in zip(*vectors, strict=True)])
        pooled.append([math.fsum(column) / len(by_token) for column in zip(*by_token, strict=True)])
    return pooled


@st.composite
def layered_batches(draw):
    """Token vectors [B, T, D] of each of up to five layers, and one mask."""
    num_layers, num_texts, num_tokens, dimension = (draw(st.integers(1, 5)) for _ in range(4))
    size = num_layers * num_texts * num_tokens * dimension
    flat = torch.tensor(draw(st.lists(values, min_size=size, max_size=size)), dtype=torch.float64)
    layers = flat.reshape(num_layers, num_texts, num_tokens, dimension)
    lengths = draw(st.lists(st.integers(1, num_tokens), min_size=num_texts, max_size=num_texts))
    return layers, [[1] * length + [0] * (num_tokens - length) for length in lengths]


@pytest.mark.parametrize("combine", ["sum", "mean", "concat"])
@given(batch=layered_batches())
def test_layers_are_combined_as_a_loop_over_the_tokens_combines_them(combine, batch):
    layers, mask = batch
    pooled = layer_pool(list(layers), torch.tensor(mask), combine)
    expected = torch.tensor(combined_by_loop(combine, layers.tolist(), mask), dtype=torch.float64)
    assert pooled.dtype == torch.float64
    torch.testing.assert_close(pooled, expected, rtol=1e-12, atol=1e-8)


@pytest.mark.parametrize("combine", ["sum", "mean", "concat"])
@given(batch=layered_batches(), num_more=st.integers(1, 5), garbage=values)
def test_padding_never_changes_combined_layers(combine, batch, num_more, garbage):
    layers, mask = batch[0], torch.tensor(batch[1])
    longer = torch.nn.functional.pad(layers, (0, 0, 0, num_more), value=garbage)
    longer_mask = torch.nn.functional.pad(mask, (0, num_more))
    pooled = layer_pool(list(longer), longer_mask, combine)
    torch.testing.assert_close(pooled, layer_pool(list(layers), mask, combine), rtol=1e-12, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("combine", ["sum", "mean", "concat"])
def test_combined_layers_keep_their_dtype(combine, dtype):
    layers = torch.tensor([[[[1.0, -2.0], [3.0, -4.0], [9.0, 9.0]]], [[[5.0, 0.0], [7.0, 2.0], [9.0, 9.0]]]])
    mask = [[1, 1, 0]]
    pooled = layer_pool(list(layers.to(dtype)), torch.tensor(mask), combine)
    assert pooled.dtype == dtype
    assert pooled.tolist() == combined_by_loop(combine, layers.tolist(), mask)


def test_a_gradient_reaches_every_layer_and_no_padding():
    layers = torch.ones(3, 1, 4, 1, requires_grad=True)
    layer_pool(list(layers), torch.tensor([[1, 1, 0, 0]]), "mean").sum().backward()
    assert layers.grad.flatten().tolist() == pytest.approx([1 / 6, 1 / 6, 0, 0] * 3)


# --- by name -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sum", "mean", "concat"])
@given(batch=layered_batches(), data=st.data())
def test_a_name_says_how_many_of_the_last_layers_are_combined(kind, batch, data):
    layers, mask = batch
    count = data.draw(st.integers(1, len(layers)))
    pooled = pool(f"{kind}-last-{count}", list(layers), torch.tensor(mask))
    expected = combined_by_loop(kind, layers.tolist()[len(layers) - count :], mask)
    torch.testing.assert_close(pooled, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-8)


@pytest.mark.parametrize("name", POOLINGS)
@given(batch=layered_batches())
def test_the_poolings_of_one_layer_take_the_last(name, batch):
    layers, mask = batch
    expected = torch.tensor(by_loop(name, layers[-1].tolist(), mask), dtype=torch.float64)
    for given_layers in (list(layers), [layers[-1]]):
        pooled = pool(name, given_layers, torch.tensor(mask))
        torch.testing.assert_close(pooled, expected, rtol=1e-12, atol=1e-8)


def test_more_layers_than_there_are_cannot_be_pooled():
    hidden, mask = torch.ones(1, 2, 3), torch.ones(1, 2)
    with pytest.raises(ValueError, match="sum-last-3 takes 3 layers, got 2"):
        pool("sum-last-3", [hidden, hidden], mask)


@given(kind=st.sampled_from(["sum", "mean", "concat"]), count=st.integers(1, 10**6))
def test_a_name_comes_apart_into_what_it_was_made_of(kind, count):
    assert parse_pooling(f"{kind}-last-{count}") == (kind, count)


def test_the_poolings_of_the_last_layer_alone_have_no_number_of_layers():
    assert [parse_pooling(name) for name in POOLINGS] == [("cls", 0), ("mean", 0), ("max", 0)]


@pytest.mark.parametrize(
    "name",
    [
        "last",
        "",
        "Mean",
        "mean ",
        "lasttoken",
        "max-last-2",
        "cls-last-2",
        "sum-last-0",
        "sum-last--1",
        "sum-last-04",
        "sum-last-1.5",
        "sum-last-",
        "sum-last-4\n",
        "concat-last-4-first-1",
        "sum-first-4",
        None,
        4,
        ("cls", "mean"),
    ],
)
def test_a_name_that_is_no_pooling_is_refused(name):
    message = "pooling must be one of cls, mean, max, or sum-last-4, mean-last-4, concat-last-4 or another"
    with pytest.raises(ValueError, match=escape(message) + ".*" + escape(f"got {name!r}")):
        parse_pooling(name)
    with pytest.raises(ValueError, match=escape(message)):
        pool(name, [torch.ones(1, 2, 3)], torch.ones(1, 2))
