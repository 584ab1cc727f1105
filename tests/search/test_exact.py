"""The exhaustive search on its own: neither bar, threads, blocks nor device change what is found."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpr.search import exact
from dpr.search.exact import exact_topk, exact_topk_torch, to_device


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
@pytest.mark.parametrize("most", [4, 512])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_few_hits_of_many_passages_have_a_bar_that_serves(depth, most, monkeypatch):
    monkeypatch.setattr(exact, "MAX_STEP", most)
    rng = np.random.default_rng(depth)
    passages = rng.normal(size=(100 * exact.SAMPLE, 8)).astype(np.float32)
    queries = rng.normal(size=(20, 8)).astype(np.float32)
    of_all = counting(monkeypatch, "_of_all")
    np.testing.assert_array_equal(exact_topk(queries, passages, depth)[1], plain(queries, passages, depth))
    assert sum(of_all) == 0


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


# --- equal scores ------------------------------------------------------------------------------


def repeated(seed, num_different, times, dimension=3, largest=9):
    """Passages of whole numbers, whose products are exact in single precision, each several times over."""
    rng = np.random.default_rng(seed)
    different = rng.integers(-largest, largest + 1, size=(num_different, dimension))
    return rng.permutation(np.repeat(different, times, axis=0)).astype(np.float32)


def assert_plain(queries, passages, depth):
    """Positions and scores are those of a stable sort: of equal scores the smaller positions, in order."""
    scores, positions = exact_topk(queries, passages, depth)
    np.testing.assert_array_equal(positions, plain(queries, passages, depth))
    np.testing.assert_array_equal(scores, np.take_along_axis(queries @ passages.T, positions, 1))


@pytest.mark.usefixtures("small_sample")
def test_of_equal_scores_at_the_edge_the_smaller_positions_stay():
    @given(
        seed=st.integers(0, 10**6),
        num_queries=st.integers(1, 9),
        num_different=st.integers(1, 200),
        times=st.integers(1, 5),
        data=st.data(),
    )
    def check(seed, num_queries, num_different, times, data):
        passages = repeated(seed, num_different, times)
        queries = np.random.default_rng(seed).integers(-5, 6, size=(num_queries, 3)).astype(np.float32)
        assert_plain(queries, passages, data.draw(st.integers(1, len(passages)), label="depth"))

    check()


@pytest.mark.usefixtures("small_sample")
@pytest.mark.parametrize("depth", [10, 31, 100])
@pytest.mark.parametrize("path", ["bar", "all"])
def test_either_way_keeps_the_smaller_positions(path, depth, monkeypatch):
    monkeypatch.setattr(exact, "SAMPLE", 256)
    monkeypatch.setattr(exact, "FEW_QUERIES", 2 if path == "bar" else 20)
    passages = repeated(depth, 700, 3)
    queries = np.random.default_rng(depth).integers(-5, 6, size=(12, 3)).astype(np.float32)
    cut = np.sort(-queries @ passages.T, axis=1)[:, depth - 1 : depth + 1]
    assert (cut[:, 0] == cut[:, 1]).sum() > 3  # scores that are equal inside and outside
    by_bar, of_all = counting(monkeypatch, "_above_a_bar"), counting(monkeypatch, "_of_all")
    assert_plain(queries, passages, depth)
    if path == "bar":
        assert (sum(by_bar), sum(of_all) < 12) == (12, True)
    else:
        assert (sum(by_bar), sum(of_all)) == (0, 12)


# --- threads -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_sample")
@pytest.mark.parametrize("threads", [1, 2, 3, 7])
@pytest.mark.parametrize("num_queries", [5, 40, 200])
def test_passages_shared_out_among_threads_are_all_looked_at(num_queries, threads, monkeypatch):
    monkeypatch.setattr(exact, "_num_threads", lambda: threads)
    rng = np.random.default_rng(num_queries)
    passages = rng.normal(size=(1_999, 8)).astype(np.float32)
    queries = rng.normal(size=(num_queries, 8)).astype(np.float32)
    shares = counting(monkeypatch, "_candidates")
    np.testing.assert_array_equal(exact_topk(queries, passages, 20)[1], plain(queries, passages, 20))
    assert shares == [num_queries] * threads
    repeats = repeated(num_queries, 500, 4, dimension=8)
    assert_plain(queries.round(), repeats, 30)


@pytest.mark.usefixtures("small_sample")
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_many_queries_are_shared_out_instead(threads, monkeypatch):
    monkeypatch.setattr(exact, "_num_threads", lambda: threads)
    monkeypatch.setattr(exact, "MANY_QUERIES", 10)
    shares = counting(monkeypatch, "_candidates")
    queries = np.random.default_rng(0).integers(-5, 6, size=(31, 8)).astype(np.float32)
    assert_plain(queries, repeated(0, 500, 4, dimension=8), 30)
    assert (len(shares), sum(shares)) == (threads, 31)


@pytest.mark.usefixtures("small_sample")
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("num_queries", [1, 2, 3, 19])
def test_queries_without_a_bar_are_shared_out_too(num_queries, threads, monkeypatch):
    monkeypatch.setattr(exact, "_num_threads", lambda: threads)
    monkeypatch.setattr(exact, "BLOCK_SCORES", 1)
    by_bar = counting(monkeypatch, "_above_a_bar")
    queries = np.random.default_rng(1).integers(-5, 6, size=(num_queries, 3)).astype(np.float32)
    assert_plain(queries, repeated(1, 25, 4), 20)
    assert by_bar == []


# --- on a torch device -------------------------------------------------------------------------


@pytest.fixture(params=[(65_536, 1_024), (70, 3), (7, 1), (1, 100)], ids=lambda b: "x".join(map(str, b)))
def torch_blocks(request, monkeypatch):
    """Passages and queries on the device at once: all of them, or a few."""
    monkeypatch.setattr(exact, "GPU_PASSAGES", request.param[0])
    monkeypatch.setattr(exact, "GPU_QUERIES", request.param[1])


@pytest.mark.usefixtures("torch_blocks")
@pytest.mark.parametrize("depth", [1, 10, 71, 230])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("scaled", [True, False])
def test_torch_finds_what_a_sort_finds(depth, dtype, scaled, tmp_path):
    rng = np.random.default_rng(depth)
    np.save(tmp_path / "passages.npy", rng.normal(size=(230, 8)).astype(dtype))
    passages = np.load(tmp_path / "passages.npy", mmap_mode="r")
    queries = rng.normal(size=(11, 8)).astype(np.float32)
    scale = rng.uniform(0.1, 10, size=230).astype(np.float32) if scaled else None
    whole = passages.astype(np.float64) * (scale[:, None] if scaled else 1)
    scores, positions = exact_topk_torch(queries, passages, depth, scale, "cpu")
    assert (scores.dtype, positions.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(positions, plain(queries, whole, depth))
    true = np.take_along_axis(queries.astype(np.float64) @ whole.T, positions, 1)
    np.testing.assert_allclose(scores, true, rtol=1e-5, atol=1e-5)
    held = exact_topk_torch(queries, to_device(passages, scale, "cpu"), depth, None, "cpu")
    np.testing.assert_array_equal(held, (scores, positions))


@pytest.mark.usefixtures("torch_blocks")
def test_torch_leaves_any_of_equal_scores_at_the_edge_and_orders_them_by_position():
    @given(
        seed=st.integers(0, 10**6), num_different=st.integers(1, 60), times=st.integers(1, 4), data=st.data()
    )
    def check(seed, num_different, times, data):
        passages = repeated(seed, num_different, times)
        queries = np.random.default_rng(seed).integers(-5, 6, size=(4, 3)).astype(np.float32)
        depth = data.draw(st.integers(1, len(passages)), label="depth")
        scores, positions = exact_topk_torch(queries, passages, depth, None, "cpu")
        true = queries @ passages.T
        np.testing.assert_array_equal(scores, -np.sort(-true, axis=1)[:, :depth])
        np.testing.assert_array_equal(scores, np.take_along_axis(true, positions, 1))
        np.testing.assert_array_equal(np.lexsort((positions, -scores)), np.tile(np.arange(depth), (4, 1)))
        assert all(len(set(row)) == depth for row in positions.tolist())

    check()


def test_torch_finds_nothing_for_no_query():
    passages = np.ones((9, 4), dtype=np.float32)
    scores, positions = exact_topk_torch(passages[:0], passages, 5, None, "cpu")
    assert scores.shape == positions.shape == (0, 5)
