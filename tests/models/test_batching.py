"""Texts as tokens, cut or split; batches of them, none over its budget; threads that leave no trace."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, pairwise
from re import escape

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from made_models import FRAMES, WORDS, chunks_by_hand, make_tokenizer

from dpr.models.batching import (
    OVERFLOWS,
    checked_texts,
    one_ahead,
    pad_batch,
    padding_id,
    token_batches,
    tokenize,
    workers,
)

LENGTHS = st.lists(st.integers(0, 40), max_size=60)
BUDGETS = st.integers(1, 120)


# --- token_batches -----------------------------------------------------------------------------


@given(LENGTHS, BUDGETS)
def test_every_text_is_in_one_batch_and_none_is_empty(lengths, batch_tokens):
    batches = token_batches(lengths, batch_tokens)
    assert sorted(chain(*batches)) == list(range(len(lengths)))
    assert all(batches)


@given(LENGTHS, BUDGETS)
@example([0, 0, 0], 2)
def test_no_batch_when_padded_is_over_the_budget_but_a_single_text(lengths, batch_tokens):
    for batch in token_batches(lengths, batch_tokens):
        assert len(batch) == 1 or len(batch) * max(1, *(lengths[i] for i in batch)) <= batch_tokens


@given(LENGTHS, BUDGETS)
def test_a_batch_is_full_before_the_next_begins(lengths, batch_tokens):
    for batch, _ in pairwise(token_batches(lengths, batch_tokens)):
        assert (len(batch) + 1) * max(1, *(lengths[i] for i in batch)) > batch_tokens


@given(LENGTHS, BUDGETS)
def test_the_longest_come_first_and_equals_in_the_order_given(lengths, batch_tokens):
    order = list(chain(*token_batches(lengths, batch_tokens)))
    assert order == sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))


@given(LENGTHS, BUDGETS)
def test_batches_are_the_same_for_lengths_counted_by_numpy(lengths, batch_tokens):
    assert token_batches(np.array(lengths, dtype=np.int64), batch_tokens) == token_batches(
        lengths, batch_tokens
    )


@pytest.mark.parametrize("batch_tokens", [0, -1])
def test_a_budget_of_nothing_is_refused(batch_tokens):
    with pytest.raises(ValueError, match=f"batch_tokens must be at least 1, got {batch_tokens}"):
        token_batches([3], batch_tokens)


# --- pad_batch ---------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=9), min_size=1, max_size=5))
@pytest.mark.parametrize("multiple", [1, 4, 8])
def test_texts_are_padded_on_the_right_as_torch_pads_them(multiple, texts):
    fields = {"input_ids": 7, "attention_mask": 0, "token_type_ids": 3}
    tokens = [{field: np.array(text) + n for n, field in enumerate(fields)} for text in texts]
    padded = pad_batch(tokens, {"input_ids": 7, "token_type_ids": 3}, multiple)
    longest = max(map(len, texts))
    assert list(padded) == list(fields)
    for field, pad_with in fields.items():
        columns = [torch.from_numpy(text[field]) for text in tokens]
        expected = torch.nn.utils.rnn.pad_sequence(columns, batch_first=True, padding_value=pad_with)
        assert padded[field].dtype == torch.int64
        assert padded[field][:, :longest].tolist() == expected.tolist()
        assert padded[field].shape[1] in range(longest, longest + multiple)
        assert padded[field].shape[1] % multiple == 0
        assert (padded[field][:, longest:] == pad_with).all()


def test_padding_leaves_the_texts_as_they_were():
    tokens = [{"input_ids": np.array([1])}, {"input_ids": np.array([2, 3])}]
    padded = pad_batch(tokens, {})["input_ids"]
    padded += 5
    assert [text["input_ids"].tolist() for text in tokens] == [[1], [2, 3]]


# --- workers -----------------------------------------------------------------------------------


@pytest.fixture
def three_threads():
    """Let torch have three threads, whatever the machine, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def threads_now():
    """What torch computes with here, and in a thread that begins now."""
    with ThreadPoolExecutor(1) as pool:
        return torch.get_num_threads(), pool.submit(torch.get_num_threads).result()


@pytest.mark.usefixtures("three_threads")
def test_on_a_cpu_as_many_batches_run_at_once_as_there_are_threads_each_on_one():
    together = threading.Barrier(3)

    def meet(_):
        together.wait(timeout=30)
        return torch.get_num_threads()

    with workers("cpu") as pool:
        assert list(pool.map(meet, range(3))) == [1, 1, 1]


@pytest.mark.usefixtures("three_threads")
def test_on_another_device_batches_run_one_by_one_on_all_threads():
    with workers("cuda") as pool:
        assert len(set(pool.map(lambda _: threading.get_ident(), range(20)))) == 1
        assert pool.submit(torch.get_num_threads).result() == 3
    assert threads_now() == (3, 3)


@pytest.mark.usefixtures("three_threads")
def test_torch_has_its_threads_back_afterwards():
    with workers("cpu") as pool:
        list(pool.map(torch.ones, range(9)))
    assert threads_now() == (3, 3)


@pytest.mark.usefixtures("three_threads")
def test_after_an_error_waiting_batches_are_dropped_and_torch_has_its_threads_back():
    waiting, began = [], threading.Barrier(4)

    def hold_the_thread():
        began.wait(timeout=30)
        for _ in range(10_000):
            if waiting[-1].cancelled():
                return
            threading.Event().wait(0.001)

    def fail():
        with workers("cpu") as pool:
            for _ in range(3):
                pool.submit(hold_the_thread)
            waiting.extend(pool.submit(torch.ones, 1) for _ in range(2))
            began.wait(timeout=30)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert [future.cancelled() for future in waiting] == [True, True]
    assert threads_now() == (3, 3)


# --- one_ahead ---------------------------------------------------------------------------------


def futures_of(results, asked):
    """Futures that are done, each noted when it is asked for."""
    for result in results:
        asked.append(result)
        future = Future()
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
        yield future


@given(st.lists(st.integers(), max_size=6))
def test_results_come_in_order_each_once(results):
    assert list(one_ahead(futures_of(results, []))) == results


def test_one_result_is_asked_for_ahead_and_no_more():
    asked = []
    results = one_ahead(futures_of("abcd", asked))
    assert asked == []
    for number, result in enumerate(results):
        assert result == "abcd"[number]
        assert asked == list("abcd"[: number + 2])


def test_an_error_comes_where_its_result_would_have():
    results = one_ahead(futures_of(["a", ValueError("second"), "c"], []))
    assert next(results) == "a"
    with pytest.raises(ValueError, match=escape("second")):
        next(results)


# --- tokenize ----------------------------------------------------------------------------------

TEXT = " ".join(WORDS)
FAST = [kind for kind in FRAMES if kind != "characters in Python"]  # a second to make
PROMPTS = ["", "passage: ", "passage:", "zinc", " "]


def as_lists(rows):
    """Rows of arrays as rows of plain lists, once their dtype is the right one."""
    assert {field.dtype for row in rows for field in row.values()} <= {np.dtype(np.int64)}
    return [{name: field.tolist() for name, field in row.items()} for row in rows]


def fields_of(kind, row):
    """A row made by hand, with the fields alone that the tokenizer gives."""
    return {name: row[name] for name in make_tokenizer(kind)("zinc")}


@pytest.mark.parametrize("max_length", [18, 40])
@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("kind", FRAMES)
def test_a_chunk_is_the_prompts_tokens_and_the_next_of_the_text_in_their_frame(kind, prompt, max_length):
    texts = ["zinc", "Do masks help?", TEXT * 3, "a", TEXT]
    rows, owners = tokenize(make_tokenizer(kind), texts, prompt, max_length, "max_chunk")
    expected = [chunks_by_hand(kind, text, prompt, max_length) for text in texts]
    assert as_lists(rows) == [fields_of(kind, row) for chunks in expected for row in chunks]
    assert owners.tolist() == [i for i, chunks in enumerate(expected) for _ in chunks]
    assert max(map(len, expected)) > 1


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("kind", FRAMES)
def test_a_text_that_fits_is_one_chunk_with_the_tokens_it_has_when_cut(kind, prompt):
    texts = ["zinc", "Do masks help?", "a", "", "bats!"]
    tokenizer = make_tokenizer(kind)
    cut, chunks = (tokenize(tokenizer, texts, prompt, 40, overflow) for overflow in OVERFLOWS)
    assert as_lists(chunks[0]) == as_lists(cut[0])
    assert chunks[1].tolist() == cut[1].tolist() == [0, 1, 2, 3, 4]
    for text, row in zip(texts, as_lists(cut[0]), strict=True):
        if len(tokenizer(prompt + text)["input_ids"]):
            assert row == dict(tokenizer(prompt + text))


@given(
    texts=st.lists(st.text("aAz !é口", min_size=1), min_size=1, max_size=4),
    prompt=st.text("aA :", max_size=4),
)
@pytest.mark.parametrize("kind", FAST)
def test_chunks_are_those_made_by_hand_whatever_the_texts(kind, texts, prompt):
    rows, owners = tokenize(make_tokenizer(kind), texts, prompt, 14, "max_chunk")
    expected = [chunks_by_hand(kind, text, prompt, 14) for text in texts]
    assert as_lists(rows) == [fields_of(kind, row) for chunks in expected for row in chunks]
    assert owners.tolist() == [i for i, chunks in enumerate(expected) for _ in chunks]


@pytest.mark.parametrize("overflow", OVERFLOWS)
@pytest.mark.parametrize("kind", FRAMES)
def test_a_prompt_leaves_room_for_one_token_or_is_refused(kind, overflow):
    tokenizer, (before, after) = make_tokenizer(kind), FRAMES[kind]
    prompt_ids = tokenizer("passage:", add_special_tokens=False)["input_ids"]
    enough = len(before) + len(prompt_ids) + 1 + len(after)
    texts = [TEXT, "bats"]
    rows, owners = tokenize(tokenizer, texts, "passage:", enough, overflow)
    for owner, text in enumerate(texts):
        of = [row["input_ids"] for row, number in zip(rows, owners, strict=True) if number == owner]
        tokens = tokenizer("passage:" + text, add_special_tokens=False)["input_ids"]
        first = [*prompt_ids, tokens[len(prompt_ids)]]
        assert of[0].tolist() == [*(i for i, _ in before), *first, *(i for i, _ in after)]
        assert len(of) == (1 if overflow == "truncate" else len(tokens) - len(prompt_ids))
    message = f"the prompt 'passage:' leaves no room for a text in {enough - 1} tokens; shorten it"
    for texts in (["bats"], [""], [TEXT]):
        with pytest.raises(ValueError, match=escape(message)):
            tokenize(tokenizer, texts, "passage:", enough - 1, overflow)


@pytest.mark.parametrize("overflow", OVERFLOWS)
@pytest.mark.parametrize("prompt", ["", "passage: " * 99])
def test_no_texts_have_no_rows_whatever_the_prompt(prompt, overflow):
    rows, owners = tokenize(make_tokenizer("bytes"), [], prompt, 8, overflow)
    assert (rows, owners.tolist(), owners.dtype) == ([], [], np.int64)


@pytest.mark.parametrize("overflow", OVERFLOWS)
@pytest.mark.parametrize("kind", FRAMES)
def test_empty_texts_alone_are_their_marks_or_a_token_of_padding_that_counts(kind, overflow):
    before, after = FRAMES[kind]
    rows, owners = tokenize(make_tokenizer(kind), ["", ""], "", 8, overflow)
    marks = [*before, *after] or [(3, 0)]
    row = {
        "input_ids": [token for token, _ in marks],
        "attention_mask": [1] * len(marks),
        "token_type_ids": [segment for _, segment in marks],
    }
    assert as_lists(rows) == [fields_of(kind, row)] * 2
    assert owners.tolist() == [0, 1]


def test_a_row_is_padded_with_the_tokenizers_own_token_or_one_that_it_has():
    from transformers import PreTrainedTokenizerFast

    backend = make_tokenizer("no marks, no padding").backend_tokenizer
    for named, token in (
        ({"pad_token": "s", "eos_token": "</s>"}, backend.token_to_id("s")),
        ({"pad_token": "<pad>"}, 0),
        ({"eos_token": "</s>"}, 3),
        ({}, 0),
    ):
        assert padding_id(PreTrainedTokenizerFast(tokenizer_object=backend, **named)) == token


# --- checked_texts -----------------------------------------------------------------------------


def test_texts_come_as_a_list_from_an_array_or_a_column():
    texts = ["one", "two"]
    column = pd.DataFrame({"text": ["zero", *texts]}).drop(index=0)["text"]
    arrays = np.array(texts), np.array(texts, dtype=object)
    for several in (texts, tuple(texts), *arrays, column, iter(texts)):
        assert checked_texts(several) == texts


@pytest.mark.parametrize("bad", [None, float("nan"), 3, b"bytes"])
def test_a_text_that_is_missing_is_named_by_its_position(bad):
    with pytest.raises(ValueError, match=r"text 2 of 3 is .*, expected a string"):
        checked_texts(["one", "two", bad])
    with pytest.raises(ValueError, match="expected a list of texts, got one string"):
        checked_texts("one")
