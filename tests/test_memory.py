"""Planned sizes: those of indexes that were built, and those worked out by hand."""

import numpy as np
import pytest

from dpr.engines import SETTINGS
from dpr.index import build_index
from dpr.memory import plan_memory


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize(("count", "dim"), [(2_000, 96), (6_000, 32)])
def test_a_planned_size_is_the_measured_one(kind, count, dim):
    if kind == "hnswlib":
        pytest.importorskip("hnswlib")
    given = {"m": 8, "ef_construction": 8, "code_bytes": 16}
    settings = {name: value for name, value in given.items() if name in SETTINGS[kind]}
    vectors = np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)
    index = build_index(kind, vectors, [str(i) for i in range(count)], "dot", **settings)
    assert plan_memory(count, dim, **settings)[kind] == pytest.approx(index.num_bytes, rel=0.02)


def test_vectors_take_four_bytes_a_dimension_and_half_precision_two():
    plan = plan_memory(100_000_000, 384)
    assert plan["exact"] == plan["faiss-flat"] == 100_000_000 * 384 * 4
    assert plan["faiss-sqfp16"] == 100_000_000 * 384 * 2
    assert plan["faiss-ivfpq"] == 100_000_000 * (96 + 8) + 40_000 * 384 * 4 + 256 * 384 * 4
    assert list(plan) == list(SETTINGS)


@pytest.mark.parametrize(("count", "dim"), [(0, 384), (1_000, 0), (-1, 384)])
def test_a_size_below_one_is_refused(count, dim):
    with pytest.raises(ValueError, match="num_passages and dim must be at least 1"):
        plan_memory(count, dim)


def test_a_setting_that_no_kind_has_is_refused():
    with pytest.raises(ValueError, match=r"no kind has the settings \['probes'\]"):
        plan_memory(1_000, 384, probes=3)


def test_too_few_passages_to_learn_from_are_refused():
    with pytest.raises(ValueError, match="faiss-ivfpq learns 256 centroids"):
        plan_memory(100, 384)
