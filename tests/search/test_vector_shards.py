"""Vectors in several arrays against the one array they make up."""

import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpr.search.ann import plan_building
from dpr.search.index import KINDS, Index, build_index
from dpr.search.vector_shards import VectorShards, open_array, save_rows

SIZES = (3, 0, 5, 1, 8)
WHOLE = np.random.default_rng(0).normal(size=(sum(SIZES), 4)).astype(np.float32)
SHARDS = VectorShards(np.split(WHOLE, np.cumsum(SIZES)[:-1]))
BOUNDS = st.none() | st.integers(-20, 20)


@given(BOUNDS, BOUNDS, st.none() | st.integers(1, 7))
def test_a_slice_is_that_of_the_whole_array(start, stop, step):
    np.testing.assert_array_equal(SHARDS[start:stop:step], WHOLE[start:stop:step])


@given(st.lists(st.lists(st.integers(-17, 16), min_size=2, max_size=2), max_size=5))
def test_positions_give_what_they_give_in_the_whole_array(rows):
    rows = np.array(rows, dtype=np.int64).reshape(-1, 2)
    np.testing.assert_array_equal(SHARDS[rows], WHOLE[rows])


def test_it_has_the_measures_of_the_whole_array():
    assert (len(SHARDS), SHARDS.shape, SHARDS.size) == (17, (17, 4), WHOLE.size)
    assert (SHARDS.ndim, SHARDS.dtype, SHARDS.nbytes) == (2, WHOLE.dtype, WHOLE.nbytes)


def test_a_slice_of_one_part_is_no_copy():
    assert np.shares_memory(SHARDS[4:7], SHARDS.parts[2])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "needs at least one array"),
        ([WHOLE, WHOLE[:, :3]], r"part 1 is float32 (17, 3), expected float32 [rows, 4] as part 0"),
        ([WHOLE, WHOLE.astype(np.float16)], r"part 1 is float16 (17, 4), expected float32 [rows, 4]"),
        ([WHOLE[0]], r"part 0 is float32 (4,)"),
    ],
)
def test_parts_that_do_not_fit_are_refused(parts, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        VectorShards(parts)


# --- on disk -----------------------------------------------------------------------------------


def test_a_folders_shards_are_opened_in_order_without_owners_as_memory_maps(tmp_path):
    for number, part in enumerate(SHARDS.parts):
        np.save(tmp_path / f"shard-{number:06}.npy", part)
    np.save(tmp_path / "shard-000000.owners.npy", np.arange(3))
    save_rows(tmp_path / "more.npy", SHARDS)
    opened = VectorShards.open(tmp_path, tmp_path / "more.npy")
    np.testing.assert_array_equal(opened[:], np.concatenate([WHOLE, WHOLE]))
    assert isinstance(opened.parts[0], np.memmap)
    np.save(tmp_path / "vectors.npy", WHOLE[:2])  # what the shards are joined into
    np.testing.assert_array_equal(VectorShards.open(tmp_path)[:], WHOLE[:2])


def test_rows_are_written_as_numpy_writes_them(tmp_path, monkeypatch):
    monkeypatch.setattr("dpr.search.vector_shards.BLOCK", 4)
    np.save(tmp_path / "numpys.npy", WHOLE)
    for number, vectors in enumerate((SHARDS, WHOLE, np.asfortranarray(WHOLE))):
        save_rows(tmp_path / f"{number}.npy", vectors)
        assert (tmp_path / f"{number}.npy").read_bytes() == (tmp_path / "numpys.npy").read_bytes()


def test_a_place_without_vectors_and_a_cut_file_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere: no such file, and no folder with vectors"):
        VectorShards.open(tmp_path / "nowhere")
    np.save(tmp_path / "cut.npy", WHOLE)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "cut.npy").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"cut\.npy: damaged"):
        open_array(tmp_path / "cut.npy")


# --- indexes over shards -----------------------------------------------------------------------


def made(count, dimension=16, ties=False):
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(20, dimension))
    vectors = centres[rng.integers(0, 20, count)] + rng.normal(scale=0.3, size=(count, dimension))
    return (vectors.round() if ties else vectors).astype(np.float32)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_index_over_shards_is_that_over_one_array(kind, similarity, tmp_path):
    if kind == "hnswlib":
        pytest.importorskip("hnswlib")
    vectors = made(1200)
    shards = VectorShards(np.split(vectors, [100, 101, 700]))
    ids = [f"d{i}" for i in range(1200)]
    whole, sharded = (build_index(kind, given, ids, similarity) for given in (vectors, shards))
    sharded.save(tmp_path / "index")
    for index in (sharded, Index.load(tmp_path / "index")):
        for found, expected in zip(
            index.search(vectors[:50], 20), whole.search(vectors[:50], 20), strict=True
        ):
            np.testing.assert_array_equal(found, expected)
    assert sharded.num_bytes == whole.num_bytes


@pytest.mark.parametrize(("count", "queries", "depth"), [(300, 3, 40), (20_000, 3, 100), (20_000, 60, 100)])
def test_exact_search_over_shards_keeps_ties_across_them_in_order(count, queries, depth):
    vectors = made(count, ties=True)
    shards = VectorShards(np.array_split(vectors, 7))
    index = build_index("exact", shards, [str(i) for i in range(count)], "dot")
    scores, positions = index.search(vectors[:queries], depth)
    true = vectors[:queries].astype(np.float64) @ vectors.astype(np.float64).T
    order = np.argsort(-true, axis=1, kind="stable")[:, :depth]
    assert (np.diff(np.take_along_axis(true, order, 1)) == 0).any()
    np.testing.assert_array_equal(positions, order)
    np.testing.assert_allclose(scores, np.take_along_axis(true, order, 1), rtol=1e-6)


def test_half_precision_is_refused_by_a_value_in_the_last_shard():
    vectors = made(400)
    vectors[-1, 0] = 1e6
    shards = VectorShards(np.split(vectors, [200]))
    with pytest.raises(ValueError, match="beyond the 65,504 of half precision"):
        build_index("faiss-sqfp16", shards, [str(i) for i in range(400)], "dot")


BUILT = """
import sys, threading, time
from pathlib import Path
import numpy as np
import faiss, dpr.search.exact
from dpr.search.index import build_index
from dpr.search.vector_shards import VectorShards

def own():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024

def watch():
    while True:
        most[0] = max(most[0], own())
        time.sleep(0.005)

kind, folder = sys.argv[1:]
vectors = VectorShards.open(folder)
small = VectorShards([np.array(vectors[:3000])])
build_index(kind, small, range(3000), "cosine")  # what the libraries take once
ids = [str(i) for i in range(len(vectors))]
before, most = own(), [0]
threading.Thread(target=watch, daemon=True).start()
build_index(kind, vectors, ids, "cosine")
print(most[0] - before)
"""


@pytest.mark.parametrize("kind", ["exact", "faiss-sqfp16", "faiss-opq"])
def test_building_from_shards_takes_no_more_memory_than_planned(kind, tmp_path):
    count, dimension = 160_000, 128  # 78 MiB
    for number in range(10):
        np.save(tmp_path / f"shard-{number:06}.npy", made(count // 10, dimension))
    done = subprocess.run(
        [sys.executable, "-c", BUILT, kind, tmp_path], stdout=subprocess.PIPE, text=True, check=True
    )
    planned = plan_building(count, dimension)[kind]
    assert 0.2 * planned < int(done.stdout) <= planned
