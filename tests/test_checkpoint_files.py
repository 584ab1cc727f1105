"""Checkpoint files: which can be gone on from, and which are kept for it."""

import json

import pytest

from dpr.checkpoint_files import mark_whole, remove_older, whole_checkpoints


def write_checkpoint(folder, step, best=None):
    """A checkpoint as training leaves it, with made-up weights."""
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "model.safetensors").write_bytes(bytes([step]) * 99)
    (path / "trainer_state.json").write_text(json.dumps({"best_global_step": best}))
    mark_whole(path)
    return path


def names(folder):
    """The names of what a folder holds."""
    return sorted(path.name for path in folder.iterdir())


def test_whole_checkpoints_come_oldest_first(tmp_path):
    paths = [write_checkpoint(tmp_path, step) for step in (9, 10, 100)]
    assert whole_checkpoints(tmp_path) == (paths, [])
    assert whole_checkpoints(tmp_path / "none") == ([], [])


def test_a_mark_changes_nothing_else(tmp_path):
    path = write_checkpoint(tmp_path, 1)
    assert names(path) == ["model.safetensors", "trainer_state.json", "whole.json"]
    assert (path / "model.safetensors").read_bytes() == b"\1" * 99
    assert set(json.loads((path / "whole.json").read_text())) == {"model.safetensors", "trainer_state.json"}


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("model.safetensors", b"\2" * 98, "model.safetensors is damaged"),
        ("model.safetensors", b"\2" * 98 + b"\3", "model.safetensors is damaged"),
        ("model.safetensors", None, "model.safetensors is missing"),
        ("trainer_state.json", b"", "trainer_state.json is damaged"),
        ("whole.json", None, "writing it was broken off"),
        ("whole.json", b'{"model', "whole.json is damaged"),
    ],
)
def test_a_damaged_checkpoint_is_told_with_what_is_wrong(tmp_path, name, content, reason):
    first, second = (write_checkpoint(tmp_path, step, 1) for step in (1, 2))
    if content is None:
        (second / name).unlink()
    else:
        (second / name).write_bytes(content)
    assert whole_checkpoints(tmp_path) == ([first], [(second, reason)])


def test_a_checkpoint_is_as_whole_as_the_best_one_it_speaks_of(tmp_path):
    paths = {s: write_checkpoint(tmp_path, s, b) for s, b in ((1, 1), (2, 1), (3, 3), (4, 3), (5, 2))}
    assert whole_checkpoints(tmp_path) == (list(paths.values()), [])
    (paths[1] / "model.safetensors").write_bytes(b"")
    usable, damaged = whole_checkpoints(tmp_path)
    assert usable == [paths[3], paths[4]]
    assert damaged == [
        (paths[1], "model.safetensors is damaged"),
        (paths[2], "its best checkpoint, of step 1, is damaged or missing"),
        (paths[5], "its best checkpoint, of step 2, is damaged or missing"),
    ]


@pytest.mark.parametrize(
    ("best", "kept"),
    [(None, [9, 10]), (2, [2, 9, 10]), (9, [9, 10]), (10, [9, 10])],
)
def test_the_newest_two_and_the_best_are_kept(tmp_path, best, kept):
    for step in (1, 2, 9, 10):
        write_checkpoint(tmp_path, step, best)
    remove_older(tmp_path, best)
    assert names(tmp_path) == sorted(f"checkpoint-{step}" for step in kept)


def test_the_only_checkpoint_is_kept(tmp_path):
    write_checkpoint(tmp_path, 1)
    remove_older(tmp_path, None)
    assert names(tmp_path) == ["checkpoint-1"]


def test_with_the_newest_damaged_the_one_before_can_still_be_gone_on_from(tmp_path):
    paths = [write_checkpoint(tmp_path, step, best) for step, best in ((2, 2), (4, 2), (6, 6))]
    remove_older(tmp_path, 6)
    (paths[2] / "model.safetensors").write_bytes(b"")
    assert paths[1] in whole_checkpoints(tmp_path)[0]
