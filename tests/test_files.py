"""Files: errors that name file and line, and writes that happen whole or not at all."""

import gzip
import json
import time
from re import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpr.files import atomic_folder, atomic_path, read_jsonl, read_lines, remove_temporary, write_text

# A line may hold anything but the two characters that end one.
LINES = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n")), max_size=8)


def folder_content(folder):
    """File names with their bytes."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- atomic_path -------------------------------------------------------------------------------


def test_a_file_appears_only_when_its_block_ends(tmp_path):
    path = tmp_path / "run.trec"
    with atomic_path(path) as temporary:
        temporary.write_text("whole")
        assert temporary.parent == path.parent
        assert not path.exists()
    assert folder_content(tmp_path) == {"run.trec": b"whole"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "run.trec"
    path.write_text("old")

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_text("half of the n")
            raise error

    with pytest.raises(error):
        write_half()
    assert folder_content(tmp_path) == {"run.trec": b"old"}


def test_an_error_in_a_first_write_leaves_an_empty_folder(tmp_path):
    def write_half():
        with atomic_path(tmp_path / "run.trec") as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert folder_content(tmp_path) == {}


def test_missing_parent_folders_are_made(tmp_path):
    write_text(str(tmp_path / "runs" / "tiny" / "bm25.trec"), "text")
    assert (tmp_path / "runs" / "tiny" / "bm25.trec").read_text() == "text"


def test_a_written_file_can_be_read_by_others(tmp_path):
    write_text(tmp_path / "run.trec", "text")
    assert (tmp_path / "run.trec").stat().st_mode & 0o777 == 0o644


# --- atomic_folder -----------------------------------------------------------------------------


def write_folder(path, *markers):
    """Make or replace a folder with one new file."""
    with atomic_folder(path, *markers) as temporary:
        (temporary / "new").write_text("new")
        assert temporary.parent == path.parent


@pytest.mark.parametrize("marker", ["index.json", "deep/encoder.json"])
def test_a_folder_with_any_of_the_markers_is_replaced_whole(tmp_path, marker):
    path = tmp_path / "made"
    (path / marker).parent.mkdir(parents=True)
    (path / marker).write_text("old")
    (path / "left-over").write_text("old")
    write_folder(path, "modules.json", "index.json", "deep/encoder.json")
    assert folder_content(path) == {"new": b"new"}
    assert path.stat().st_mode & 0o777 == 0o755
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("old", ["nothing", "an empty folder"])
def test_a_folder_is_made_where_there_is_nothing(tmp_path, old):
    path = tmp_path / "deep" / "made"
    if old == "an empty folder":
        path.mkdir(parents=True)
    write_folder(path, "index.json")
    assert folder_content(path) == {"new": b"new"}


@pytest.mark.parametrize("name", ["modules.json/file", "other.json"])
def test_a_folder_with_none_of_the_markers_is_refused_and_both_are_named(tmp_path, name):
    path = tmp_path / "mine"
    (path / name).parent.mkdir(parents=True)
    (path / name).write_text("years of work")
    message = f"{path} has no modules.json or index.json: it holds something else and is not replaced"
    with pytest.raises(ValueError, match=escape(message)):
        write_folder(path, "modules.json", "index.json")
    assert (path / name).read_text() == "years of work"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path, error):
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "index.json").write_text("old")

    def write_half():
        with atomic_folder(tmp_path / "made", "index.json") as temporary:
            (temporary / "new").write_text("half of the n")
            raise error

    with pytest.raises(error):
        write_half()
    assert folder_content(tmp_path / "made") == {"index.json": b"old"}
    assert list(tmp_path.iterdir()) == [tmp_path / "made"]


# --- write_text --------------------------------------------------------------------------------


@given(text=st.text(st.characters(exclude_categories=["Cs"])))
@pytest.mark.parametrize("name", ["text.txt", "text.txt.gz"])
def test_written_text_is_utf8_byte_for_byte(scratch, name, text):
    write_text(scratch / name, text)
    data = (scratch / name).read_bytes()
    assert (gzip.decompress(data) if name.endswith(".gz") else data) == text.encode("utf-8")


def test_a_gzipped_text_has_the_same_bytes_at_any_time_of_day(tmp_path, monkeypatch):
    write_text(tmp_path / "first.gz", "same text\n")
    monkeypatch.setattr(time, "time", lambda: 1_000_000_000.0)
    write_text(tmp_path / "second.gz", "same text\n")
    assert (tmp_path / "first.gz").read_bytes() == (tmp_path / "second.gz").read_bytes()


# --- read_lines --------------------------------------------------------------------------------


@given(lines=LINES, end=st.sampled_from(["\n", "\r\n"]), closed=st.booleans())
@pytest.mark.parametrize("name", ["lines.txt", "lines.txt.gz"])
def test_lines_come_back_with_their_numbers_whatever_ends_them(scratch, name, lines, end, closed):
    write_text(scratch / name, end.join(lines) + (end if closed else ""))
    expected = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    if expected:
        assert list(read_lines(scratch / name)) == expected
    else:
        with pytest.raises(ValueError, match="the file is empty"):
            list(read_lines(scratch / name))


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1e"])
def test_a_unicode_separator_inside_a_line_does_not_end_it(tmp_path, mark):
    (tmp_path / "file.txt").write_bytes(f"one{mark}still one\ntwo\n".encode())
    assert list(read_lines(tmp_path / "file.txt")) == [(1, f"one{mark}still one"), (2, "two")]


def test_white_space_at_the_ends_of_a_line_is_kept(tmp_path):
    (tmp_path / "file.tsv").write_bytes(b"\t a \t\r\n")
    assert list(read_lines(tmp_path / "file.tsv")) == [(1, "\t a \t")]


@pytest.mark.parametrize("name", ["file.txt", "file.txt.gz"])
def test_the_line_that_is_not_utf8_is_named(tmp_path, name):
    data = "good\n\nbad é\n".encode("latin-1")
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(ValueError, match=escape(f"{tmp_path / name}:3: not UTF-8")):
        list(read_lines(tmp_path / name))


def test_a_gzip_file_cut_anywhere_is_refused_and_named(tmp_path):
    path = tmp_path / "cut.gz"
    whole = gzip.compress(b"one\ntwo\nthree\n")
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=escape(f"{path}:") + r"\d+: damaged gzip file"):
            list(read_lines(path))


def test_a_large_gzip_file_cut_in_half_is_refused_after_the_lines_before_the_cut(tmp_path):
    path = tmp_path / "cut.gz"
    text = "".join(f"line {number} {number * 7919 % 104729}\n" for number in range(1, 20_001))
    whole = gzip.compress(text.encode())
    path.write_bytes(whole[: len(whole) // 2])
    read = []

    def collect():
        read.extend(read_lines(path))

    with pytest.raises(ValueError, match=escape(f"{path}:") + r"\d{4,5}: damaged gzip file"):
        collect()
    assert len(read) > 1000
    assert read == list(enumerate(text.splitlines(), start=1))[: len(read)]


def test_a_flipped_bit_of_a_gzip_file_never_changes_a_line(tmp_path):
    path = tmp_path / "flipped.gz"
    whole = gzip.compress(b"one\ntwo\nthree\n", mtime=0)
    harmless = set()
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert list(read_lines(path)) == [(1, "one"), (2, "two"), (3, "three")]
            harmless.add(bit // 8)
        except ValueError as error:
            assert str(error).startswith(f"{path}:")  # noqa: PT017
    assert harmless <= {
        3,
        4,
        5,
        6,
        7,
        8,
        9,
        len(whole) - 9,
    }  # flags, date, system; the bits that fill up a byte


def test_text_under_a_gz_name_is_refused(tmp_path):
    (tmp_path / "text.gz").write_text("not compressed\n")
    with pytest.raises(ValueError, match=escape(f"{tmp_path / 'text.gz'}:1: damaged gzip file")):
        list(read_lines(tmp_path / "text.gz"))


@pytest.mark.parametrize("data", [b"", b"\n", b" \r\n\t\n\n"])
@pytest.mark.parametrize("name", ["empty.txt", "empty.txt.gz"])
def test_a_file_without_a_line_is_refused(tmp_path, name, data):
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(ValueError, match=escape(f"{tmp_path / name}: the file is empty")):
        list(read_lines(tmp_path / name))


def test_a_missing_file_or_a_folder_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=escape(f"{tmp_path / 'gone.txt'}: no such file")):
        list(read_lines(tmp_path / "gone.txt"))
    with pytest.raises(FileNotFoundError, match=escape(f"{tmp_path}: no such file")):
        list(read_lines(tmp_path))


# --- read_jsonl --------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(records=st.lists(st.dictionaries(st.text(), VALUES, max_size=3), min_size=1, max_size=4))
def test_any_json_objects_come_back_with_their_line_numbers(scratch, records):
    write_text(scratch / "records.jsonl", "\n\n".join(json.dumps(record) for record in records))
    assert list(read_jsonl(scratch / "records.jsonl")) == [(2 * i + 1, r) for i, r in enumerate(records)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"_id": "a"', "not JSON"),
        ("{'_id': 'a'}", "not JSON"),
        ('{"_id": "a"} {"_id": "b"}', "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[1, 2]", "expected a JSON object, got list"),
        ('"text"', "expected a JSON object, got str"),
        ("null", "expected a JSON object, got NoneType"),
    ],
)
def test_the_line_that_is_no_json_object_is_named(tmp_path, line, message):
    path = tmp_path / "records.jsonl"
    path.write_text(f'{{"_id": "first"}}\n\n{line}\n')
    with pytest.raises(ValueError, match=escape(f"{path}:3: {message}")):
        list(read_jsonl(path))


def test_the_line_with_a_number_too_long_for_python_is_named(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"_id": ' + "1" * 5000 + "}\n")
    with pytest.raises(ValueError, match=escape(f"{path}:1: not JSON")):
        list(read_jsonl(path))


def test_only_what_was_half_written_under_our_names_is_removed(tmp_path):
    with atomic_path(tmp_path / "data.json") as temporary:
        left = temporary
    left.write_text("half")
    (tmp_path / ".shard-000001.owners.npy.0123abc_.npy").write_text("half")
    (tmp_path / ".model.0123abc_").mkdir()
    (tmp_path / "..model.0123abc_.4567def_").mkdir()
    theirs = [".env", ".gitignore", ".notes.txt", ".data.json.short.json", ".other.0123abc_", "data.json"]
    for name in theirs:
        (tmp_path / name).write_text("theirs")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    remove_temporary(tmp_path, "model")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*theirs, ".ipynb_checkpoints"])
