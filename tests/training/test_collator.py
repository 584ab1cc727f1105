"""Batches of training data: an order that is a pure function of the position, tokens, and the mask."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dpr.data.training_data import Example, TrainingData
from dpr.models.bi_encoder import BiEncoder
from dpr.models.two_encoders import TwoEncoders
from dpr.training.collator import Collator
from dpr.training.dataset import Record, TrainingSequence

LINE = "masks filter droplets and vaccines protect the lungs of bats while zinc shortens a cold"


def data_of(*examples, **texts):
    """Training data of these examples; a passage whose text is not given has one of its own."""
    named = {doc_id: f"text of {doc_id}" for e in examples for doc_id in (*e.positives, *e.negatives)}
    return TrainingData("made", examples, {**named, **texts})


def numbered(count, num_negatives=0):
    """As many examples, each with a positive and so many negatives of its own: `p0`, `n0-0` and so on."""
    return data_of(
        *(
            Example(f"q{n}", f"query {n}", {f"p{n}": 1}, tuple(f"n{n}-{i}" for i in range(num_negatives)))
            for n in range(count)
        )
    )


def epochs_of(sequence, per_epoch):
    """All records, a list for each epoch."""
    records = [sequence[i] for i in range(len(sequence))]
    return [records[at : at + per_epoch] for at in range(0, len(records), per_epoch)]


# --- TrainingSequence --------------------------------------------------------------------------


def test_each_epoch_takes_every_query_once_in_another_order():
    data = numbered(8)
    epochs = epochs_of(TrainingSequence(data, batch_size=4, num_batches=40, seed=0), 8)
    assert len(epochs) == 20
    orders = [tuple(record.example.query_id for record in epoch) for epoch in epochs]
    assert all(sorted(order) == sorted(e.query_id for e in data.examples) for order in orders)
    assert len(set(orders)) == 20
    batches = {frozenset(order[:4]) for order in orders}
    assert len(batches) > 10  # not the same queries side by side again and again
    assert all(record.positive == record.example.query_id.replace("q", "p") for record in epochs[0])


def test_what_does_not_fill_a_batch_is_left_to_another_epoch():
    sequence = TrainingSequence(numbered(8), batch_size=3, num_batches=40, seed=0)
    assert (sequence.batches_per_epoch, len(sequence)) == (2, 120)
    left_out = Counter()
    for epoch in epochs_of(sequence, 6):
        queries = {record.example.query_id for record in epoch}
        assert len(queries) == 6
        left_out.update({f"q{n}" for n in range(8)} - queries)
    assert set(left_out) == {f"q{n}" for n in range(8)}


def test_the_order_is_that_of_the_seed():
    def order(seed, num_batches=5):
        sequence = TrainingSequence(numbered(9, 3), 4, num_batches, seed)
        return [sequence[i] for i in range(len(sequence))]

    assert order(3) == order(3)
    assert order(3) != order(4)
    assert order(3, num_batches=9)[: 5 * 4] == order(3)


@given(positions=st.lists(st.integers(0, 59), min_size=1, max_size=15), num_negatives=st.integers(0, 3))
@pytest.mark.parametrize("queries_per_passage", [None, 2])
def test_a_record_depends_on_its_position_alone(queries_per_passage, positions, num_negatives):
    examples = (
        Example(f"q{n}", f"query {n}", {f"p{i}": 1 + i % 2 for i in range(n + 1)}, tuple("abcd"[: n + 1]))
        for n in range(7)
    )
    data = data_of(*examples)
    in_order = TrainingSequence(data, 3, 20, 0, num_negatives, queries_per_passage)
    expected = [in_order[i] for i in range(60)]
    anew = TrainingSequence(data, 3, 20, 0, num_negatives, queries_per_passage)
    assert [anew[i] for i in positions] == [expected[i] for i in positions]


def test_positives_are_taken_in_turn_highest_grades_first_and_at_random_within_a_grade():
    grades = {"a": 1, "b": 3, "c": 1, "d": 3, "e": 2}
    data = data_of(
        Example("q0", "one", grades), Example("q1", "two", grades), Example("q2", "three", {"a": 1})
    )
    taken = {"q0": "", "q1": "", "q2": ""}
    for seed in (0, 1):
        sequence = TrainingSequence(data, 3, 40, seed)
        for i in range(len(sequence)):
            taken[sequence[i].example.query_id] += sequence[i].positive
    assert taken["q2"] == "a" * 80
    turns = {q: [taken[q][at : at + 5] for at in range(0, 80, 5)] for q in ("q0", "q1")}
    for of_query in turns.values():
        for turn in of_query:
            assert (set(turn[:2]), turn[2], set(turn[3:])) == ({"b", "d"}, "e", {"a", "c"})
        assert len(set(of_query[:8])) > 1  # another order in another turn,
        assert of_query[:8] != of_query[8:]  # with another seed
    assert turns["q0"] != turns["q1"]  # and for another query


@pytest.mark.parametrize(
    ("num_negatives", "expected"),
    [
        (0, [(), (), (), ()]),
        (1, [("a",), ("b",), ("c",), ("a",)]),
        (2, [("a", "b"), ("c", "a"), ("b", "c"), ("a", "b")]),
        (3, [("a", "b", "c")] * 4),
        (9, [("a", "b", "c")] * 4),
    ],
)
def test_negatives_are_taken_in_turn_from_the_first(num_negatives, expected):
    data = data_of(Example("q0", "one", {"p": 1}, ("a", "b", "c")), Example("q1", "two", {"p": 1}))
    sequence = TrainingSequence(data, 2, 4, 0, num_negatives)
    records = [sequence[i] for i in range(8)]
    assert [r.negatives for r in records if r.example.query_id == "q0"] == expected
    assert [r.negatives for r in records if r.example.query_id == "q1"] == [()] * 4


SHARED = data_of(  # a has two queries, b one, c five
    Example("q0", "zero", {"a": 2, "c": 1}, ("x",)),
    Example("q1", "one", {"c": 1}, ("a",)),
    Example("q2", "two", {"b": 1, "c": 1}),
    Example("q3", "three", {"c": 3}, ("b", "x")),
    Example("q4", "four", {"c": 1, "a": 1}),
)
QUERIES_OF = {"a": {"q0", "q4"}, "b": {"q2"}, "c": {"q0", "q1", "q2", "q3", "q4"}}


@pytest.mark.parametrize(("queries_per_passage", "per_epoch"), [(1, 3), (2, 5), (3, 6), (5, 8), (9, 8)])
def test_an_epoch_over_passages_takes_each_once_with_so_many_of_its_queries_in_turn(
    queries_per_passage, per_epoch
):
    sequence = TrainingSequence(SHARED, per_epoch, 30, 0, 1, queries_per_passage)
    assert sequence.batches_per_epoch == 1
    taken = {doc_id: [] for doc_id in QUERIES_OF}
    orders = set()
    for epoch in epochs_of(sequence, per_epoch):
        order = tuple(dict.fromkeys(record.positive for record in epoch))
        assert sorted(order) == ["a", "b", "c"]
        assert [r.positive for r in epoch] == sorted((r.positive for r in epoch), key=order.index)  # in a row
        orders.add(order)
        for record in epoch:
            assert record.positive in record.example.positives
            taken[record.positive].append(record.example.query_id)
    assert len(orders) > 2
    for doc_id, queries in QUERIES_OF.items():
        assert len(taken[doc_id]) == 30 * min(queries_per_passage, len(queries))
        for at in range(0, len(taken[doc_id]) - len(queries), len(queries)):
            assert set(taken[doc_id][at : at + len(queries)]) == queries  # each before one comes again


def test_an_epoch_over_passages_is_that_of_the_seed_and_its_negatives_those_of_the_query():
    def records(seed):
        sequence = TrainingSequence(SHARED, 4, 12, seed, num_negatives=1, queries_per_passage=2)
        return [sequence[i] for i in range(len(sequence))]

    assert records(0) == records(0)
    orders = set()
    for seed in range(5):
        sequence = TrainingSequence(SHARED, 3, 5, seed, queries_per_passage=1)
        orders.add(tuple(r.example.query_id for r in (sequence[i] for i in range(15)) if r.positive == "c"))
    assert len(orders) > 2
    assert {(r.example.query_id, *r.negatives) for r in records(0)} == {
        ("q0", "x"),
        ("q1", "a"),
        ("q2",),
        ("q3", "b"),
        ("q3", "x"),
        ("q4",),
    }
    with pytest.raises(
        ValueError, match="batch_size must be from 2 to 5, the records of an epoch of made, got 6"
    ):
        TrainingSequence(SHARED, 6, 1, 0, queries_per_passage=2)


def test_a_position_outside_of_the_run_is_refused():
    sequence = TrainingSequence(numbered(4), batch_size=2, num_batches=3, seed=0)
    assert len(list(sequence)) == 6
    for position in (-1, 6):
        with pytest.raises(IndexError, match=str(position)):
            sequence[position]


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((1, 1, 0), "batch_size must be from 2 to 4, the records of an epoch of made, got 1"),
        ((5, 1, 0), "batch_size must be from 2 to 4, the records of an epoch of made, got 5"),
        ((2, 0, 0), "num_batches must be at least 1, got 0"),
        ((2, 1, -1), "num_negatives must be at least 0, got -1"),
    ],
)
def test_numbers_out_of_range_are_refused(numbers, message):
    batch_size, num_batches, num_negatives = numbers
    with pytest.raises(ValueError, match=message):
        TrainingSequence(numbered(4), batch_size, num_batches, 0, num_negatives)


# --- Collator ----------------------------------------------------------------------------------


def load(folder, **settings):
    """The tiny model with the lengths 8 and 12, or as told."""
    plain = {"pooling": "mean", "query_max_length": 8, "passage_max_length": 12}
    return BiEncoder.from_pretrained(folder, device="cpu", **{**plain, **settings})


@pytest.fixture(scope="module")
def encoder(plain_folder) -> BiEncoder:
    """With a prompt on either side."""
    return load(plain_folder, query_prompt="ask: ", passage_prompt="say: ")


DATA = data_of(
    Example("q0", "zinc", {"p0": 2, "other": 1}, ("n0", "n1")),
    Example("q1", f"do {LINE}", {"p1": 1}),
    Example("q2", "where do bats live", {"p2": 1}, ("n1",)),
    p0="masks",
    p1=f"{LINE} {LINE}",
    p2="zinc shortens a cold",
    n0="a cold " * 5,
    n1="droplets protect",
)
RECORDS = [
    Record(DATA.examples[2], "p2", ("n1",)),
    Record(DATA.examples[0], "p0", ("n0", "n1")),
    Record(DATA.examples[1], "p1", ()),
    Record(DATA.examples[0], "other", ("n1",)),
]
QUERIES = [DATA.examples[n].query for n in (2, 0, 1)]
PASSAGES = [DATA.passages[doc_id] for doc_id in ("p2", "p0", "p1", "other", "n1", "n0")]


def assert_tokens(batch, tokenizer, texts, prompt, max_length):
    """The fields of a pass are what the tokenizer itself makes of these texts."""
    expected = tokenizer(
        [prompt + text for text in texts],
        padding=True,
        truncation=True,
        max_length=max_length,
        return_tensors="pt",
    )
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "rows"} == {*expected, "rows"}
    for field, tensor in expected.items():
        assert torch.equal(batch[field], tensor), field


def test_a_batch_holds_the_tokenizers_tokens_of_queries_positives_and_then_negatives_each_once(encoder):
    batch = Collator(encoder, DATA)(RECORDS)
    (queries,), (passages,) = batch["queries"], batch["passages"]
    assert_tokens(queries, encoder.tokenizer, QUERIES, "ask: ", 8)
    assert_tokens(passages, encoder.tokenizer, PASSAGES, "say: ", 12)
    assert (queries["rows"].tolist(), passages["rows"].tolist()) == ([0, 1, 2], [0, 1, 2, 3, 4, 5])
    assert (queries["input_ids"].shape[1], passages["input_ids"].shape[1]) == (8, 12)  # some texts are cut
    assert (queries["attention_mask"] == 0).any()  # and some padded
    assert (passages["attention_mask"] == 0).any()


def test_each_of_two_encoders_has_its_own_tokenizer_prompt_and_length(plain_folder):
    query = load(plain_folder, query_max_length=7, query_prompt="ask: ", passage_prompt="no: ")
    passage = load(plain_folder, passage_max_length=9, query_prompt="no: ", passage_prompt="say: ")
    passage.tokenizer.pad_token_id, query.tokenizer.truncation_side = 7, "left"
    batch = Collator(TwoEncoders(query, passage), DATA)(RECORDS)
    (queries,), (passages,) = batch["queries"], batch["passages"]
    assert_tokens(queries, query.tokenizer, QUERIES, "ask: ", 7)
    assert_tokens(passages, passage.tokenizer, PASSAGES, "say: ", 9)


@pytest.mark.parametrize(
    ("pass_tokens", "num_passes"), [(1, (3, 6)), (12, (3, 5)), (16, (2, 5)), (24, (1, 3)), (1000, (1, 1))]
)
def test_passes_hold_each_text_once_and_no_more_tokens_than_told(encoder, pass_tokens, num_passes):
    whole = Collator(encoder, DATA)(RECORDS)
    batch = Collator(encoder, DATA, pass_tokens)(RECORDS)
    assert torch.equal(batch["positives"], whole["positives"])
    for side in ("queries", "passages"):
        (together,) = whole[side]
        rows = [row for each in batch[side] for row in each["rows"].tolist()]
        assert sorted(rows) == together["rows"].tolist()
        for each in batch[side]:
            size, longest = each["input_ids"].shape
            assert size == 1 or size * longest <= pass_tokens
            assert each["attention_mask"].sum(dim=1).max() == longest
            for field, tensor in each.items():
                if field != "rows":
                    assert torch.equal(tensor, together[field][each["rows"], :longest]), field
    assert (len(batch["queries"]), len(batch["passages"])) == num_passes


@pytest.mark.parametrize("all_positives", [False, True])
def test_other_positives_of_a_query_and_copies_are_no_negatives_of_it_and_those_of_others_are(
    encoder, all_positives
):
    one = Example("q0", "one", {"p0": 2, "more": 1}, ("n",))
    two = Example("q1", "two", {"p1": 1, "p0": 1}, ("more", "copy"))
    data = data_of(one, two, p1="weiße Maus", copy=" WEISSE  maus")
    collator = Collator(encoder, data, all_positives=all_positives)
    batch = collator([Record(one, "p0", ("n",)), Record(two, "p1", ("more", "copy"))])
    not_negative = [
        [True, False, False, True],  # p0, p1 and its copy, n, more
        [True, True, False, False],
    ]
    own = [[True, False, False, False], [False, True, False, False]]
    assert batch["not_negative"].tolist() == not_negative
    assert batch["positives"].tolist() == (not_negative if all_positives else own)
    shown = [data.passages[doc_id] for doc_id in ("p0", "p1", "n", "more")]
    assert_tokens(batch["passages"][0], encoder.tokenizer, shown, "say: ", 12)


words = st.sampled_from(["a", "A", "b", "b  b", "B b", "c", "d", "e"])


@given(
    texts=st.lists(words, min_size=4, max_size=8),
    numbers=st.lists(st.integers(0, 2), min_size=1, max_size=5),
    all_positives=st.booleans(),
    draw=st.data(),
)
def test_the_masks_are_what_a_plain_loop_says_is_relevant(encoder, texts, numbers, all_positives, draw):
    passages = {f"d{n}": text for n, text in enumerate(texts)}
    doc_ids = st.lists(st.sampled_from(sorted(passages)), min_size=1, max_size=3, unique=True)
    examples = [
        Example(f"q{n}", f"query {n}", dict.fromkeys(draw.draw(doc_ids), 1), tuple(draw.draw(doc_ids)))
        for n in range(3)
    ]
    records = [
        Record(e, draw.draw(st.sampled_from(list(e.positives))), e.negatives[: draw.draw(st.integers(0, 2))])
        for e in (examples[n] for n in numbers)
    ]
    shown, queries = [], []
    for doc_id in [r.positive for r in records] + [d for r in records for d in r.negatives]:
        text = " ".join(passages[doc_id].lower().split())
        if text not in shown:
            shown.append(text)
    for record in records:
        if record.example not in queries:
            queries.append(record.example)
    positives, not_negative = [], []
    for query in queries:
        relevant = {" ".join(passages[d].lower().split()) for d in query.positives}
        taken = {" ".join(passages[r.positive].lower().split()) for r in records if r.example is query}
        not_negative.append([text in relevant for text in shown])
        positives.append([text in (relevant if all_positives else taken) for text in shown])
    batch = Collator(encoder, data_of(*examples, **passages), all_positives=all_positives)(records)
    assert batch["not_negative"].tolist() == not_negative
    assert batch["positives"].tolist() == positives
    sides = {"queries": [q.query for q in queries], "passages": shown}
    for (side, expected), prompt in zip(sides.items(), ("ask: ", "say: "), strict=True):
        (tokens,) = batch[side]
        rows = encoder.tokenizer([prompt + text for text in expected], padding=True, return_tensors="pt")
        assert torch.equal(tokens["input_ids"], rows["input_ids"])


def test_batches_of_a_run_give_the_texts_of_their_records(encoder):
    data = numbered(5, num_negatives=3)
    sequence = TrainingSequence(data, batch_size=2, num_batches=4, seed=0, num_negatives=2)
    loader = torch.utils.data.DataLoader(sequence, batch_size=2, collate_fn=Collator(encoder, data))
    batches = list(loader)
    assert len(batches) == 4
    for number, batch in enumerate(batches):
        records = [sequence[2 * number], sequence[2 * number + 1]]
        doc_ids = [r.positive for r in records] + [d for r in records for d in r.negatives]
        texts = [data.passages[doc_id] for doc_id in doc_ids]
        assert_tokens(batch["passages"][0], encoder.tokenizer, texts, "say: ", 12)
        assert_tokens(batch["queries"][0], encoder.tokenizer, [r.example.query for r in records], "ask: ", 8)
        for mask in ("positives", "not_negative"):
            assert batch[mask].tolist() == np.eye(2, 6, dtype=bool).tolist()
