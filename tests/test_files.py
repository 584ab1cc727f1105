"""Files: errors that name file and line, writes that happen whole or not at all, and only ours removed."""

import errno
import fcntl
import gzip
import json
import os
import resource
import shutil
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from re import escape

import pytest
from hypothesis import given
from hypothesis import strategies as st
from killing import everything, in_children

from dpr import files
from dpr.files import (
    MARKER,
    atomic_folder,
    atomic_path,
    changed,
    check_name,
    errors_of,
    locked,
    read_json,
    read_jsonl,
    read_lines,
    remove_abandoned,
    settle,
    temporary_folder,
    write_text,
)

# A line may hold anything but the two characters that end one.
LINES = st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n")), max_size=8)
THING = "a thing"  # the kind of the folders here

# Writes what each order tells it.
SERVER = """
import os, sys
from pathlib import Path

from dpr.files import atomic_folder, atomic_path, locked
from killing import serve

def write(order):
    folder, text = Path(order["folder"]), order["text"]
    if order["what"] == "file":
        with atomic_path(folder / "made.txt") as temporary:
            temporary.write_text(text)
    else:
        with atomic_folder(folder / "made", "a thing") as temporary:
            (temporary / "one").write_text(text)
            (temporary / "deep").mkdir()
            (temporary / "deep" / "two").write_text(text)

def work(order):
    if order["what"] == "lock":
        with locked(folder := Path(order["folder"]) / "lock"):
            os.kill(os.getpid(), 9)
    writers = []
    for number in range(order["writers"]):
        pid = os.fork()
        if not pid:
            try:
                write({**order, "text": f"{number}"})
            except Exception as error:
                os._exit(0 if isinstance(error, OSError | ValueError) else 1)
            os._exit(0)
        writers.append(pid)
    if not writers:
        write(order)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in writers] or "done"

serve(work)
"""


@pytest.fixture(scope="module")
def in_a_child():
    """Writes in another process: "done", the signal that killed it, or its error."""
    with in_children(SERVER) as ask:

        def write(folder, what, text="new", kill_before=0, writers=0):
            return ask(folder=str(folder), what=what, text=text, kill_before=kill_before, writers=writers)

        yield write


def folder_content(folder):
    """File names with their bytes, but for the marker."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != MARKER}


@contextmanager
def umask(mask):
    """Set the mode bits that new files do not get."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def held(path):
    """Hold a file or folder's lock, as a process does that writes it."""
    handle = os.open(path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    yield
    os.close(handle)


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


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_a_new_file_has_the_mode_of_any_new_file(tmp_path, mask, mode):
    with umask(mask):
        write_text(tmp_path / "run.trec", "text")
    assert stat.S_IMODE((tmp_path / "run.trec").stat().st_mode) == mode


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444, 0o755])
def test_a_replaced_file_keeps_its_mode(tmp_path, mode):
    (tmp_path / "secret.json").write_text("old")
    (tmp_path / "secret.json").chmod(mode)
    write_text(tmp_path / "secret.json", "new")
    assert (tmp_path / "secret.json").read_text() == "new"
    assert stat.S_IMODE((tmp_path / "secret.json").stat().st_mode) == mode


@pytest.mark.parametrize("there", [True, False])
def test_a_link_stays_a_link_and_what_it_points_to_is_written(tmp_path, there):
    (tmp_path / "large").mkdir()
    target, link = tmp_path / "large" / "run.trec", tmp_path / "run.trec"
    if there:
        target.write_text("old")
    link.symlink_to(Path("large") / "run.trec")
    with atomic_path(link) as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path / "large"
    assert link.is_symlink()
    assert (target.is_symlink(), target.read_text()) == (False, "new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["large", "run.trec", "run.trec"]


def test_a_pipe_is_written_into(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()), daemon=True)
    reader.start()
    write_text(tmp_path / "pipe", "through the pipe")
    reader.join(timeout=10)
    assert read == ["through the pipe"]
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)
    assert [path.name for path in tmp_path.iterdir()] == ["pipe"]


def device(folder, real):
    """A device like a real one; root, who could replace that, gets a new one."""
    if os.getuid():
        return Path(real)
    os.mknod(folder / "device", stat.S_IFCHR | 0o666, os.stat(real).st_rdev)
    return folder / "device"


def test_a_device_is_written_into_and_stays_one(tmp_path):
    path, link = device(tmp_path, "/dev/null"), tmp_path / "link"
    link.symlink_to(path)
    for name in (path, link):
        write_text(name, "nobody reads this")
        assert stat.S_ISCHR(path.stat().st_mode)
        assert path.stat().st_rdev == os.stat("/dev/null").st_rdev
    assert link.is_symlink()


def test_a_full_device_is_named(tmp_path):
    path = device(tmp_path, "/dev/full")
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_text(path, "text")
    assert caught.value.filename == str(path)
    assert stat.S_ISCHR(path.stat().st_mode)


def test_a_folder_in_place_of_a_file_is_refused_and_named(tmp_path):
    (tmp_path / "mine").mkdir()
    message = escape(f"{tmp_path / 'mine'} is a folder; give the name of a file")
    with pytest.raises(ValueError, match=message):
        write_text(tmp_path / "mine", "text")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_an_error_of_writing_names_the_file_asked_for(tmp_path, monkeypatch):
    path = tmp_path / "run.trec"
    path.write_text("old")

    def refuse(old, new, **_):
        raise PermissionError(errno.EACCES, "Permission denied", old, None, new)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", refuse)
        patched.setattr(os, "rename", refuse)
        with pytest.raises(PermissionError) as caught:
            write_text(path, "new")
    assert (caught.value.filename, caught.value.filename2) == (str(path), None)
    assert folder_content(tmp_path) == {"run.trec": b"old"}


def test_a_file_beyond_the_allowed_size_is_named_and_the_old_one_stays(tmp_path):
    (tmp_path / "run.trec").write_text("old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # Python ignores the signal that comes with it
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            write_text(tmp_path / "run.trec", "new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.filename == str(tmp_path / "run.trec")
    assert folder_content(tmp_path) == {"run.trec": b"old"}


def test_only_errors_of_temporary_and_nameless_files_are_given_the_name():
    named = []
    for filename in (None, "/tmp/.run.trec.dpr-0123abcd.trec", b"/tmp/.run.dpr-0123abcd", "/tmp/other.trec"):
        with pytest.raises(FileNotFoundError) as caught, errors_of("run.trec"):
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", filename)
        named.append(caught.value.filename)
    assert named == ["run.trec", "run.trec", "run.trec", "/tmp/other.trec"]


def test_the_next_write_of_a_file_removes_what_killed_processes_left_of_it(in_a_child, tmp_path):
    outcomes = set()
    for number in range(1, 100):
        outcome = in_a_child(tmp_path, "file", kill_before=number)
        outcomes.add((outcome, len(list(tmp_path.glob(".made.txt.dpr-????????.txt")))))
        if outcome == "done":
            break
    assert outcomes >= {("signal 9", 0), ("signal 9", 1), ("done", 0)}
    assert folder_content(tmp_path) == {"made.txt": b"new"}


def test_what_a_living_process_writes_stays(tmp_path):
    path = tmp_path / "run.trec"
    with atomic_path(path) as temporary:
        temporary.write_text("slow")
        write_text(path, "quick")
        assert path.read_text() == "quick"
        assert temporary.read_text() == "slow"
    assert folder_content(tmp_path) == {"run.trec": b"slow"}


def test_only_abandoned_files_of_the_same_name_go(tmp_path):
    left = {name: tmp_path / f".{name}.dpr-0123abcd.trec" for name in ("run.trec", "other.trec")}
    left["held"] = tmp_path / ".run.trec.dpr-4567cdef.trec"
    for path in left.values():
        path.write_text("half")
    with held(left["held"]):
        write_text(tmp_path / "run.trec", "whole")
        assert sorted(folder_content(tmp_path)) == [
            ".other.trec.dpr-0123abcd.trec",
            left["held"].name,
            "run.trec",
        ]
    write_text(tmp_path / "run.trec", "whole")
    assert sorted(folder_content(tmp_path)) == [".other.trec.dpr-0123abcd.trec", "run.trec"]


def test_only_what_was_half_written_under_our_names_is_removed(tmp_path):
    for name in (
        ".data.json.dpr-0123abcd.json",
        ".shard-000001.owners.npy.dpr-89ab0123.npy",
        ".x.dpr-00000000",
    ):
        (tmp_path / name).write_text("half")
    (tmp_path / ".model.dpr-0123abcd" / "deep").mkdir(parents=True)
    (tmp_path / ".model.dpr-0123abcd" / "deep" / "weights").write_text("half")
    theirs = [
        ".env",
        ".gitignore",
        ".notes.dpr-draft.txt",
        ".data.dpr-0123ABCD",
        ".data.dpr-0123abc",
        "data.json",
    ]
    theirs += ["data.dpr-0123abcd", ".data.json.0123abc_.json", ".data.dpr-0123abcdef", ".dpr-0123abcd"]
    for name in theirs:
        (tmp_path / name).write_text("theirs")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    for name, target in ((".link.dpr-0123abcd", "data.json"), (".link.dpr-4567cdef", ".ipynb_checkpoints")):
        (tmp_path / name).symlink_to(target)
    os.mkfifo(tmp_path / ".pipe.dpr-0123abcd")
    remove_abandoned(tmp_path)
    kept = [*theirs, ".ipynb_checkpoints", ".link.dpr-0123abcd", ".link.dpr-4567cdef", ".pipe.dpr-0123abcd"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)


@pytest.mark.parametrize("name", ["[ab]*?.trec", "é" * 120 + ".trec", "x" * 255])
def test_a_name_of_any_form_and_length_is_written_and_tidied_up(tmp_path, name):
    (tmp_path / ".a.trec.dpr-0123abcd").write_text("of another name")
    for text in ("old", "new"):
        with atomic_path(tmp_path / name) as temporary:
            temporary.write_text(text)
            left = temporary
        left.write_text("half")
    write_text(tmp_path / name, "newest")
    assert folder_content(tmp_path) == {name: b"newest", ".a.trec.dpr-0123abcd": b"of another name"}


# --- atomic_folder -----------------------------------------------------------------------------


def write_folder(path, text="new", kind=THING):
    """Make or replace a folder with two files, one of them deeper."""
    with atomic_folder(path, kind) as temporary:
        (temporary / "one").write_text(text)
        (temporary / "deep").mkdir()
        (temporary / "deep" / "two").write_text(text)


def texts_of(path):
    """The texts of the two files."""
    return {(path / name).read_text() for name in ("one", "deep/two")}


def assert_whole(path, *texts, beside=()):
    """The folder holds one of these texts in both files, and the folder above nothing else."""
    assert sorted(str(p.relative_to(path)) for p in path.rglob("*")) == [MARKER, "deep", "deep/two", "one"]
    assert [{text} for text in texts if texts_of(path) == {text}]
    assert sorted(p.name for p in path.parent.iterdir()) == sorted([path.name, *beside])


def test_a_folder_of_the_same_kind_is_replaced_whole(tmp_path):
    with atomic_folder(tmp_path / "made", THING) as temporary:
        (temporary / "left-over").write_text("old")
        (temporary / "empty").mkdir()
    with atomic_folder(tmp_path / "made", THING) as temporary:
        assert (temporary.parent, list(temporary.iterdir())) == (tmp_path, [])
        (temporary / "new").write_text("new")
        assert (tmp_path / "made" / "left-over").read_text() == "old"
    assert folder_content(tmp_path / "made") == {"new": b"new"}
    assert list(tmp_path.iterdir()) == [tmp_path / "made"]


@pytest.mark.parametrize("old", ["nothing", "an empty folder"])
def test_a_folder_is_made_where_there_is_nothing(tmp_path, old):
    path = tmp_path / "deep" / "made"
    if old == "an empty folder":
        path.mkdir(parents=True)
    write_folder(str(path))
    assert_whole(path, "new")


def test_the_marker_says_the_kind_and_the_size_of_every_file(tmp_path):
    write_folder(tmp_path / "made", "four")
    about = read_json(tmp_path / "made" / MARKER)
    assert about == {"kind": THING, "sizes": {"deep": None, "deep/two": 4, "one": 4}}
    assert not changed(tmp_path / "made")


@pytest.mark.parametrize("name", [MARKER, "one", "deep/two"])
@pytest.mark.parametrize("damage", ["lost", "cut", "longer"])
def test_a_folder_with_a_file_lost_or_of_another_size_is_not_whole(tmp_path, name, damage):
    write_folder(tmp_path / "made", "four")
    path = tmp_path / "made" / name
    if damage == "lost":
        path.unlink()
    else:
        path.write_text(path.read_text()[:-2] if damage == "cut" else path.read_text() + "\n")
    if name != MARKER:
        assert changed(tmp_path / "made") == [name]
    elif damage == "lost":
        with pytest.raises(FileNotFoundError, match=escape(str(path))):
            changed(tmp_path / "made")
    elif damage == "longer":  # by white space
        assert changed(tmp_path / "made") == []
    else:
        with pytest.raises(ValueError, match=escape(f"{path}: damaged, not JSON")):
            changed(tmp_path / "made")


def test_a_folder_may_hold_more_than_its_files_and_is_whole(tmp_path):
    write_folder(tmp_path / "made")
    (tmp_path / "made" / "notes").write_text("theirs")
    assert not changed(tmp_path / "made")
    shutil.rmtree(tmp_path / "made" / "deep")
    assert sorted(changed(tmp_path / "made")) == ["deep", "deep/two"]


def test_a_folder_within_one_is_the_same_temporary_one(tmp_path):
    with atomic_folder(tmp_path / "made", THING) as outer, atomic_folder(outer, "a part") as inner:
        assert inner == outer
        (inner / "new").write_text("new")
    assert folder_content(tmp_path / "made") == {"new": b"new"}
    assert read_json(tmp_path / "made" / MARKER)["kind"] == THING
    write_folder(tmp_path / "made")


def only_one(marker):
    """Write other text into the marker of a folder."""
    return lambda path: (path / MARKER).write_text(marker)


def with_file(name):
    """Put one more file into a folder."""

    def add(path):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("years of work")

    return add


OTHERS = {  # what makes a folder one that is not replaced, and what the error says
    "no marker": (lambda path: (path / MARKER).unlink(), "{path} holds something else than a thing"),
    "another kind": (
        lambda path: write_folder(path, "old", "a poem"),
        "{path} holds something else than a thing",
    ),
    "a thesis": (with_file("thesis.tex"), "{path} also holds thesis.tex (1 names)"),
    "a repository": (with_file(".git/config"), "{path} also holds .git (2 names)"),
    "a notebook's copies": (with_file(".ipynb_checkpoints/a.ipynb"), "{path} also holds .ipynb_checkpoints"),
    "a file deep inside": (with_file("deep/deeper/notes"), "{path} also holds deep/deeper (2 names)"),
    "an empty marker": (only_one(""), "{path}/.dpr.json: damaged, not JSON"),
    "a cut marker": (only_one('{"kind": "a thing", "si'), "{path}/.dpr.json: damaged, not JSON"),
    "a list as marker": (only_one("[]"), "{path}/.dpr.json: damaged, expected a JSON object, got list"),
    "a marker without sizes": (
        only_one('{"kind": "a thing"}'),
        "{path}/.dpr.json: damaged, it lacks the field sizes",
    ),
    "a marker without kind": (
        only_one('{"sizes": {}}'),
        "{path}/.dpr.json: damaged, it lacks the field kind",
    ),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_folder_that_is_not_wholly_ours_is_refused_named_and_left_alone(tmp_path, other):
    path, (change, message) = tmp_path / "mine", OTHERS[other]
    if other != "another kind":
        write_folder(path, "old")
    change(path)
    before = everything(tmp_path)
    with pytest.raises(ValueError, match=escape(message.format(path=path))):
        write_folder(path)
    assert everything(tmp_path) == before


def test_what_others_put_there_during_the_block_is_not_lost(tmp_path):
    write_folder(tmp_path / "made", "old")

    def write():
        with atomic_folder(tmp_path / "made", THING) as temporary:
            (temporary / "one").write_text("new")
            (tmp_path / "made" / "thesis.tex").write_text("years of work")

    with pytest.raises(ValueError, match=r"also holds thesis\.tex"):
        write()
    assert (tmp_path / "made" / "thesis.tex").read_text() == "years of work"
    assert texts_of(tmp_path / "made") == {"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_a_file_in_place_of_a_folder_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine").write_text("years of work")
    with pytest.raises(ValueError, match=escape(f"{tmp_path / 'mine'} holds something else than a thing")):
        write_folder(tmp_path / "mine")
    assert folder_content(tmp_path) == {"mine": b"years of work"}


@pytest.mark.parametrize("name", [".", "..", "deep/..", "absolute", "link"])
def test_the_current_folder_and_those_above_are_refused_before_anything_changes(tmp_path, monkeypatch, name):
    path = tmp_path / "made"
    write_folder(path, "old")
    (tmp_path / "link").symlink_to(path)
    (tmp_path / ".made.old.dpr").mkdir()
    (tmp_path / ".made.dpr-0123abcd").mkdir()
    monkeypatch.chdir(path / "deep" if name == ".." else path)
    before = everything(tmp_path)
    asked = {"absolute": path, "link": tmp_path / "link"}.get(name, name)
    with pytest.raises(ValueError, match=escape(f"{asked} is or holds the current folder")):
        write_folder(asked)
    assert everything(tmp_path) == before


def test_a_link_to_a_folder_stays_one_and_what_it_points_to_is_replaced(tmp_path):
    (tmp_path / "disk").mkdir()
    path, link = tmp_path / "disk" / "made", tmp_path / "made"
    link.symlink_to(path)
    for text in ("first", "second"):
        write_folder(link, text)
        assert link.is_symlink()
        assert_whole(path, text)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "made"]


@pytest.mark.parametrize("mode", [0o700, 0o750, 0o777])
def test_a_replaced_folder_keeps_its_mode(tmp_path, mode):
    write_folder(tmp_path / "made", "old")
    (tmp_path / "made").chmod(mode)
    write_folder(tmp_path / "made")
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == mode
    with umask(0o027):
        write_folder(tmp_path / "fresh")
    assert stat.S_IMODE((tmp_path / "fresh").stat().st_mode) == 0o750


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path, error):
    write_folder(tmp_path / "made", "old")
    before = everything(tmp_path)

    def write_half():
        with atomic_folder(tmp_path / "made", THING) as temporary:
            (temporary / "new").write_text("half of the n")
            raise error

    with pytest.raises(error):
        write_half()
    assert everything(tmp_path) == before


def test_an_error_of_writing_a_folder_names_it(tmp_path):
    write_folder(tmp_path / "made", "old")

    def write_nothing():
        with atomic_folder(tmp_path / "made", THING) as temporary:
            temporary.rmdir()
            (temporary / "file").write_text("text")

    with pytest.raises(FileNotFoundError) as caught:
        write_nothing()
    assert Path(caught.value.filename).parent.name.startswith(".made.dpr-")  # the error is of a file within
    with pytest.raises(OSError, match="No space left") as caught, atomic_folder(tmp_path / "made", THING):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "made")
    assert_whole(tmp_path / "made", "old")


def test_an_old_folder_moved_aside_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    write_folder(tmp_path / "made", "old")
    before, rename = everything(tmp_path), os.rename

    def refuse(old, new, **how):
        if Path(new).name == "made" and ".dpr-" in Path(old).name:
            raise PermissionError(errno.EACCES, "Permission denied", str(old), None, str(new))
        rename(old, new, **how)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", refuse)
        with pytest.raises(PermissionError) as caught:
            write_folder(tmp_path / "made")
    assert caught.value.filename == str(tmp_path / "made")
    assert everything(tmp_path) == before


@pytest.mark.parametrize("then", ["settled", "written again"])
def test_killed_before_any_of_its_file_operations_a_folder_is_the_old_or_the_new_one(
    in_a_child, tmp_path, then
):
    found = []
    for number in range(1, 100):
        folder = tmp_path / f"{number}"
        write_folder(folder / "made", "old")
        outcome = in_a_child(folder, "folder", kill_before=number)
        gone = not (folder / "made").exists()
        if then == "settled":
            settle(folder / "made")
            assert_whole(folder / "made", "old", "new")
            found.append((gone, *texts_of(folder / "made")))
        else:
            write_folder(folder / "made", "newest")
            assert_whole(folder / "made", "newest")
            found.append((gone, "newest"))
        if outcome == "done":
            break
        assert outcome == "signal 9"
    assert number > 10
    if then == "settled":  # it also died between the two renames, and after the second
        assert sorted(set(found)) == [(False, "new"), (False, "old"), (True, "old")]
        assert [text for _, text in found] == sorted((text for _, text in found), reverse=True)
    else:
        assert {gone for gone, _ in found} == {False, True}


def test_an_old_folder_half_removed_is_never_moved_back(tmp_path):
    write_folder(tmp_path / "made", "new")
    (tmp_path / ".made.old.dpr" / "deep").mkdir(parents=True)
    settle(tmp_path / "made")
    assert_whole(tmp_path / "made", "new")


def test_an_old_folder_is_not_moved_back_while_a_process_is_about_to_rename(tmp_path):
    write_folder(tmp_path / "made", "old")
    (tmp_path / "made").rename(tmp_path / ".made.old.dpr")
    (tmp_path / ".made.dpr-0123abcd").mkdir()
    with held(tmp_path / ".made.dpr-0123abcd"):
        settle(tmp_path / "made")
        assert not (tmp_path / "made").exists()
    settle(tmp_path / "made")
    assert_whole(tmp_path / "made", "old")


def test_settling_leaves_the_folders_of_others_alone(tmp_path):
    for name in ("made", "made2"):
        write_folder(tmp_path / name, "old")
        (tmp_path / f".{name}.dpr-0123abcd").mkdir()
    shutil.copytree(tmp_path / "made2", tmp_path / ".made2.old.dpr")
    beside = [".made2.dpr-0123abcd", ".made2.old.dpr", "made2"]
    settle(tmp_path / "made")
    assert_whole(tmp_path / "made", "old", beside=beside)
    settle(tmp_path / "gone" / "missing")


def test_of_processes_that_write_a_folder_at_once_one_result_is_there_whole(in_a_child, tmp_path):
    for number in range(20):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        if number % 2:
            write_folder(folder / "made", "old")
        assert in_a_child(folder, "folder", writers=2) == [0, 0]  # done, or refused
        settle(folder / "made")
        assert_whole(folder / "made", "0", "1")


def test_a_temporary_folder_is_removed_at_the_end_and_with_it_those_of_killed_processes(tmp_path):
    (tmp_path / ".set.dpr-0123abcd").mkdir()
    (tmp_path / ".other.dpr-0123abcd").mkdir()
    with temporary_folder(tmp_path / "set") as folder:
        (folder / "file").write_text("text")
        assert sorted(path.name for path in tmp_path.iterdir()) == [".other.dpr-0123abcd", folder.name]
    assert [path.name for path in tmp_path.iterdir()] == [".other.dpr-0123abcd"]


# --- locked ------------------------------------------------------------------------------------


def test_a_lock_is_there_while_it_is_held_and_gone_afterwards(tmp_path):
    path = tmp_path / "deep" / "lock"
    for _ in range(2):
        with locked(path):
            assert path.is_file()
        assert list(path.parent.iterdir()) == []
    with pytest.raises(RuntimeError), locked(path):
        raise RuntimeError
    assert list(path.parent.iterdir()) == []


def test_a_lock_that_another_holds_is_refused_and_the_folder_named(tmp_path):
    message = escape(f"{tmp_path}: another process is writing into this folder; wait for it")
    with locked(tmp_path / "lock"):
        with pytest.raises(ValueError, match=message), locked(tmp_path / "lock"):
            pass
        assert (tmp_path / "lock").is_file()
    with locked(tmp_path / "lock"):
        pass


def test_one_that_waits_gets_the_lock_when_it_is_free(tmp_path, capfd):
    order = []

    def wait():
        with locked(tmp_path / "lock", wait=True):
            order.append("second")

    with locked(tmp_path / "lock", wait=True):
        waiting = threading.Thread(target=wait)
        waiting.start()
        while f"{tmp_path}: waiting for another process" not in capfd.readouterr().err:
            time.sleep(0.001)
        order.append("first")
    waiting.join(timeout=10)
    assert order == ["first", "second"]
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_frees_its_lock(in_a_child, tmp_path):
    assert in_a_child(tmp_path, "lock") == "signal 9"
    assert (tmp_path / "lock").is_file()
    with locked(tmp_path / "lock"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_no_two_hold_a_lock_at_once(tmp_path):
    holding, most = set(), []

    def work(number):
        for _ in range(50):
            with locked(tmp_path / "lock", wait=True):
                holding.add(number)
                most.append(len(holding))
                time.sleep(0)
                holding.discard(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert set(most) == {1}
    assert list(tmp_path.iterdir()) == []


# --- check_name --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["../x", "../../x", "", ".", "..", ".x", "a/b", "/a", "a\\b", "a\nb", "a\x00b", "a\x1fb", None, 7]
)
def test_a_name_that_is_no_files_is_refused(name):
    with pytest.raises(ValueError, match=escape(f"tag {name!r} becomes a file's name")):
        check_name(name, "tag")


@pytest.mark.parametrize(
    "name",
    ["bm25", "minilm-ft-seed0", "all-MiniLM-L6-v2", "d2q+bm25_k1=0.9", "two words", "größe", "a.b..c", "-x"],
)
def test_a_usual_name_is_given_back(name):
    assert check_name(name, "tag") == name


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


def test_a_gzip_file_that_unpacks_to_far_more_than_its_size_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_LINE", 1000)
    lines = [f"{number % 7}" for number in range(100_000)]
    write_text(tmp_path / "bomb.gz", "\n".join(lines))
    most = 200 * (tmp_path / "bomb.gz").stat().st_size  # under the size itself
    assert 2000 < most < 200_000
    read = []
    message = escape(f"{tmp_path / 'bomb.gz'}:{most // 2 + 1}: unpacks to more than 200 times its size")
    with pytest.raises(ValueError, match=message):
        read.extend(read_lines(tmp_path / "bomb.gz"))
    monkeypatch.setattr(files, "MOST_RATIO", 1000)
    assert [line for _, line in read_lines(tmp_path / "bomb.gz")] == lines


def test_a_small_file_may_unpack_to_two_of_the_longest_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_LINE", 1000)
    monkeypatch.setattr(files, "MOST_RATIO", 2)
    longest = "x" * 999 + "\n"
    write_text(tmp_path / "small.gz", longest * 2)
    assert len(list(read_lines(tmp_path / "small.gz"))) == 2
    write_text(tmp_path / "small.gz", longest * 2 + "y")
    message = f"{tmp_path / 'small.gz'}:3: unpacks to more than 2 times its size"
    with pytest.raises(ValueError, match=escape(message)):
        list(read_lines(tmp_path / "small.gz"))


@pytest.mark.parametrize("name", ["endless.txt", "endless.txt.gz"])
def test_an_endless_line_is_refused_before_it_is_all_read(tmp_path, monkeypatch, name):
    monkeypatch.setattr(files, "MOST_LINE", 1000)
    write_text(tmp_path / name, "x" * 999 + "\nshort\n" + "y" * 100_000)
    message = f"{tmp_path / name}:3: a line of more than 1,000 bytes"
    with pytest.raises(ValueError, match=escape(message)):
        list(read_lines(tmp_path / name))
    write_text(tmp_path / name, "x" * 999 + "\n" + "y" * 1000)
    assert [len(line) for _, line in read_lines(tmp_path / name)] == [999, 1000]


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


# --- read_json ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "damaged, not JSON"),
        (b'{"a": 1', "damaged, not JSON"),
        (b"\0" * 20, "damaged, not JSON"),
        (b'{"a": "\xe9"}', "damaged, not JSON"),
        (b"[" * 100_000, "damaged, not JSON"),
        (b'{"a": ' + b"1" * 5000 + b"}", "damaged, not JSON"),
        (b"[1, 2]", "damaged, expected a JSON object, got list"),
        (b"null", "damaged, expected a JSON object, got NoneType"),
        (b'{"a": 1, "c": 2}', "damaged, it lacks the field b"),
    ],
)
def test_a_file_that_is_not_the_json_object_wanted_is_named(tmp_path, data, message):
    (tmp_path / "about.json").write_bytes(data)
    with pytest.raises(ValueError, match=escape(f"{tmp_path / 'about.json'}: {message}")):
        read_json(tmp_path / "about.json", "a", "b", "c")


def test_a_json_object_comes_back_whole(tmp_path):
    write_text(tmp_path / "about.json", '{"a": null, "b": [1, "é"]}')
    assert read_json(str(tmp_path / "about.json"), "b", "a") == {"a": None, "b": [1, "é"]}
    with pytest.raises(FileNotFoundError, match=escape(f"{tmp_path / 'gone.json'}: no such file")):
        read_json(tmp_path / "gone.json")


# --- where there are no locks ------------------------------------------------------------------


WINDOWS = """
import sys
from pathlib import Path

from transformers import EncoderDecoderModel, Trainer  # their libraries look at the system's name

sys.modules["fcntl"] = sys.modules["resource"] = None  # which Windows lacks

import dpr
import numpy as np
from dpr import files

assert files.fcntl is None
for name in dpr.__all__:
    getattr(dpr, name)
folder = Path(sys.argv[1])
(folder / ".file.txt.dpr-0123abcd.txt").write_text("perhaps another process writes it")
for text in ("old", "new"):
    files.write_text(folder / "file.txt", text)
    with files.atomic_folder(folder / "made", "a thing") as fresh:
        (fresh / "file.txt").write_text(text)
    dpr.build_index("exact", np.eye(3, dtype=np.float32), ["a", "b", "c"], "dot").save(folder / "index")
with files.locked(folder / "lock"), files.locked(folder / "lock", wait=True):
    with files.temporary_folder(folder / "temporary"):
        pass
files.remove_abandoned(folder)
files.settle(folder / "made")
assert dpr.Index.load(folder / "index").doc_ids == ["a", "b", "c"]
"""


def test_without_locks_every_name_imports_and_files_and_folders_are_written(tmp_path):
    command = [sys.executable, "-c", WINDOWS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".file.txt.dpr-0123abcd.txt",
        "file.txt",
        "index",
        "made",
    ]
    assert (tmp_path / "file.txt").read_text() == (tmp_path / "made" / "file.txt").read_text() == "new"
