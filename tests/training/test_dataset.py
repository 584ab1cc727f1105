"""The order of records: a pure function of the position, whatever was asked for before."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_data import data_of, numbered

from dpr.data.examples import Example
from dpr.training.dataset import TrainingSequence


def epochs_of(sequence, per_epoch):
    """All records, a list for each epoch."""
    records = [sequence[i] for i in range(len(sequence))]
    return [records[at : at + per_epoch] for at in range(0, len(records), per_epoch)]


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
