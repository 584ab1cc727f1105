"""The exhaustive search on its own: the bar from a sample never changes what is found."""

import numpy as np
import pytest

from dpr import exact
from dpr.exact import exact_topk


def plain(queries, passages, depth):
    """Positions by a stable sort of all scores in double precision."""
    return np.argsort(-(queries.astype(np.float64) @ passages.astype(np.float64).T), axis=1, kind="stable")[
        :, :depth
    ]


@pytest.fixture
def small_sample(monkeypatch):
    """Let small collections take the way of large ones."""
    monkeypatch.setattr(exact, "SAMPLE", 32)
    monkeypatch.setattr(exact, "FEW_QUERIES", 2)
    monkeypatch.setattr(exact, "MIN_BLOCK", 50)
    monkeypatch.setattr(exact, "MAX_BLOCK", 70)


def counting(monkeypatch, name):
    """Note the queries of each call of one of the module's functions."""
    calls, original = [], getattr(exact, name)
    monkeypatch.setattr(
        exact,
        name,
        lambda queries, *args, **kwargs: calls.append(len(queries)) or original(queries, *args, **kwargs),
    )
    return calls


@pytest.mark.usefixtures("small_sample")
@pytest.mark.parametrize("depth", [1, 7, 60])
@pytest.mark.parametrize("num_queries", [3, 20, 300])
def test_a_bar_from_a_sample_finds_what_a_sort_finds(depth, num_queries, monkeypatch):
    rng = np.random.default_rng(depth)
    passages = rng.normal(size=(2_000, 8)).astype(np.float32)
    queries = rng.normal(size=(num_queries, 8)).astype(np.float32)
    by_bar = counting(monkeypatch, "_above_a_bar")
    scores, positions = exact_topk(queries, passages, depth)
    np.testing.assert_array_equal(positions, plain(queries, passages, depth))
    np.testing.assert_allclose(scores, np.take_along_axis(queries @ passages.T, positions, 1), rtol=1e-5)
    assert sum(by_bar) == num_queries


@pytest.mark.usefixtures("small_sample")
@pytest.mark.parametrize("best_at", ["in the sample", "beside it"])
def test_a_sample_that_misleads_changes_nothing(best_at, monkeypatch):
    passages = np.random.default_rng(0).normal(scale=0.01, size=(2_000, 4)).astype(np.float32)
    step = len(passages) // exact.SAMPLE
    chosen = slice(0, None, step) if best_at == "in the sample" else slice(1, None, 2)
    passages[chosen, 0] += np.linspace(1, 2, len(passages[chosen]), dtype=np.float32)
    queries = np.tile(np.eye(4, dtype=np.float32)[0], (5, 1))
    of_all = counting(monkeypatch, "_of_all")
    np.testing.assert_array_equal(exact_topk(queries, passages, 40)[1], plain(queries, passages, 40))
    assert sum(of_all) == 5  # the bar was too high, or too low


@pytest.mark.usefixtures("small_sample")
def test_passages_that_are_all_alike_are_still_found():
    passages = np.ones((500, 4), dtype=np.float32)
    scores, positions = exact_topk(np.ones((9, 4), dtype=np.float32), passages, 10)
    assert (scores == 4).all()
    assert all(len(set(row)) == 10 for row in positions.tolist())


@pytest.mark.usefixtures("small_sample")
def test_a_scale_counts_in_the_sample_and_in_the_scores():
    rng = np.random.default_rng(1)
    passages = rng.normal(size=(2_000, 8)).astype(np.float32)
    lengths = rng.uniform(0.1, 10, size=2_000).astype(np.float32)
    queries = rng.normal(size=(20, 8)).astype(np.float32)
    scores, positions = exact_topk(queries, passages * lengths[:, None], 10, scale=1 / lengths)
    np.testing.assert_array_equal(positions, plain(queries, passages, 10))
    true = np.take_along_axis(queries @ passages.T, positions, 1)
    np.testing.assert_allclose(scores, true, rtol=1e-4)


@pytest.mark.usefixtures("small_sample")
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_does_not_count(threads, monkeypatch):
    monkeypatch.setattr(exact, "_num_threads", lambda: threads)
    rng = np.random.default_rng(2)
    passages, queries = (
        rng.normal(size=(999, 8)).astype(np.float16),
        rng.normal(size=(11, 8)).astype(np.float32),
    )
    np.testing.assert_array_equal(exact_topk(queries, passages, 9)[1], plain(queries, passages, 9))
