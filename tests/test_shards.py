"""Folders of shards: only what is missing is made, and what has changed is named."""

from re import escape

import pytest

from dpr.files import write_text
from dpr.shards import ShardFolder


def fill(folder, num_items=5, manifest=None, made=None):
    """Fill a folder of shards of two numbers each; `made` notes the shards that were missing."""
    shards = ShardFolder(folder, manifest or {"of": "numbers"}, num_items, 2, ".txt")
    with shards.open_for_writing():
        missing = {path: rows for path, rows in shards.items.items() if not shards.is_made(path)}
        if made is not None:
            made.extend(missing)

        def make(progress):
            yield from (" ".join(map(str, rows)) for rows in missing.values())

        shards.fill(missing, make, lambda path, rows, text: write_text(path, text), "numbers", "number")
    return shards


def test_shards_are_made_once_and_only_those_that_are_missing(tmp_path):
    made = []
    shards = fill(tmp_path / "shards", made=made)
    assert [path.read_text() for path in shards.items] == ["0 1", "2 3", "4"]
    assert made == list(shards.items)
    assert shards.seconds() > 0
    for lost in ("shard-000001.txt", "shard-000001.json"):
        (tmp_path / "shards" / lost).unlink()
        made.clear()
        fill(tmp_path / "shards", made=made)
        assert [path.name for path in made] == ["shard-000001.txt"]
    assert not (tmp_path / "shards" / "lock").exists()


@pytest.mark.parametrize("at", [0, 1, -1])
def test_a_shard_that_has_changed_is_named_and_made_again_once_it_is_deleted(tmp_path, at):
    path = list(fill(tmp_path).items)[1]
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=escape(f"{path}: damaged; delete it and run again")):
        fill(tmp_path)
    path.unlink()
    fill(tmp_path)
    assert path.read_text() == "2 3"


def test_the_seconds_are_unknown_once_a_shard_has_lost_them(tmp_path):
    shards = fill(tmp_path)
    (tmp_path / "shard-000001.json").unlink()
    assert shards.seconds() != shards.seconds()


@pytest.mark.parametrize("text", ["", "{", "[]", '"of"'])
def test_a_damaged_manifest_is_named(tmp_path, text):
    fill(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=escape(f"{tmp_path / 'manifest.json'}: damaged")):
        fill(tmp_path)


def test_shards_go_into_a_folder_that_holds_only_what_a_kill_left(tmp_path):
    (tmp_path / "lock").write_text("")
    (tmp_path / ".shard-000009.txt.dpr-0123abcd.txt").write_text("half")
    fill(tmp_path)
    assert not list(tmp_path.glob(".*"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".env").write_text("theirs")
    with pytest.raises(ValueError, match=escape(f"{tmp_path / 'other'} has no manifest.json")):
        fill(tmp_path / "other")
    assert [path.read_text() for path in (tmp_path / "other").iterdir()] == ["theirs"]
