"""Downloads from a local server that misbehaves on demand, and archives made to do harm."""

import hashlib
import io
import logging
import random
import re
import shutil
import socket
import stat
import threading
import warnings
import zipfile

import pytest

from dpr.data import download
from dpr.data.beir import read_beir
from dpr.data.download import BEIR_MD5, MSMARCO_TINY, download_beir, download_msmarco_tiny, extract_zip
from dpr.data.triples import read_training_tsv


@pytest.fixture
def archive(tiny_beir_folder, server, monkeypatch):
    """The bytes of tiny.zip, 400 kB of which nothing compresses; served, with its md5 in the table."""
    (tiny_beir_folder / "padding").write_bytes(random.Random(0).randbytes(400_000))
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as opened:
        for path in sorted(tiny_beir_folder.rglob("*")):
            opened.write(path, path.relative_to(tiny_beir_folder.parent))
    shutil.rmtree(tiny_beir_folder)
    server.files["tiny.zip"] = buffer.getvalue()
    monkeypatch.setitem(BEIR_MD5, "tiny", hashlib.md5(buffer.getvalue()).hexdigest())
    return buffer.getvalue()


def names_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# --- download_beir -----------------------------------------------------------------------------


def test_the_official_nfcorpus_archive_becomes_a_collection_of_3633_passages(data_dir, server, tmp_path):
    official = data_dir / "archives" / "nfcorpus.zip"
    if not official.is_file():
        pytest.skip(f"{official}: not there")
    server.files["nfcorpus.zip"] = official.read_bytes()
    server.cuts = [1_000_000]
    collection = read_beir(download_beir("nfcorpus", tmp_path, server.url))
    assert (collection.name, len(collection.passages), len(collection.queries)) == ("nfcorpus", 3633, 323)
    assert len(server.ranges) == 2


def test_a_download_reads_back_as_the_collection_and_leaves_nothing_beside(
    archive, server, tmp_path, tiny_collection
):
    folder = download_beir("tiny", tmp_path / "data", server.url)
    assert folder == tmp_path / "data" / "tiny"
    assert read_beir(folder).fingerprint == tiny_collection.fingerprint
    assert names_in(tmp_path / "data") == ["tiny"]
    assert server.ranges == [None]


def test_a_collection_that_is_there_is_not_fetched_again(archive, server, tmp_path):
    download_beir("tiny", str(tmp_path), server.url)
    assert download_beir("tiny", str(tmp_path), server.url) == tmp_path / "tiny"
    assert len(server.ranges) == 1


def test_an_archive_that_is_there_with_the_right_md5_is_not_fetched(archive, server, tmp_path):
    (tmp_path / "tiny.zip").write_bytes(archive)
    download_beir("tiny", tmp_path, server.url)
    assert server.ranges == []
    assert names_in(tmp_path) == ["tiny"]


def test_an_archive_that_is_there_with_another_md5_is_fetched_again(archive, server, tmp_path):
    (tmp_path / "tiny.zip").write_bytes(archive[:1000])
    download_beir("tiny", tmp_path, server.url)
    assert server.ranges == [None]


def test_a_download_cut_off_twice_is_continued_where_it_stopped(archive, server, tmp_path):
    server.cuts = [200_000, 100_000]
    download_beir("tiny", tmp_path, server.url)
    first, second, third = server.ranges
    assert first is None
    assert 100_000 < int(second.removeprefix("bytes=").rstrip("-")) <= 200_000
    assert 200_000 < int(third.removeprefix("bytes=").rstrip("-")) <= 300_000
    assert server.num_bytes < 2 * len(archive)


def test_a_server_error_and_a_refused_range_are_tried_again(archive, server, tmp_path):
    server.statuses = [503, 500, 416]
    (tmp_path / "tiny.zip.part").write_bytes(archive[:1000])
    download_beir("tiny", tmp_path, server.url)
    assert server.ranges == ["bytes=1000-"] * 3 + [None]


def test_a_server_that_ignores_ranges_is_read_from_the_start(archive, server, tmp_path):
    server.knows_range, server.cuts = False, [200_000]
    folder = download_beir("tiny", tmp_path, server.url)
    assert server.ranges[1].startswith("bytes=")
    assert (folder / "padding").stat().st_size == 400_000


def test_a_range_that_was_not_asked_for_is_not_appended(archive, server, tmp_path):
    server.range_shift, server.cuts = 7, [200_000]
    download_beir("tiny", tmp_path, server.url)
    assert [wanted is None for wanted in server.ranges] == [True, False, True]


def test_a_later_call_continues_what_an_earlier_one_gave_up(archive, server, tmp_path):
    server.cuts = [200_000, *[0] * download.ATTEMPTS]
    with pytest.raises(
        ConnectionError, match=r"tiny\.zip: gave up after 5 .* bytes are kept in .*tiny\.zip\.part"
    ):
        download_beir("tiny", tmp_path, server.url)
    assert names_in(tmp_path) == ["tiny.zip.part"]
    assert len(server.ranges) == 1 + download.ATTEMPTS
    server.cuts = []
    download_beir("tiny", tmp_path, server.url)
    assert server.num_bytes < 2 * len(archive)
    assert names_in(tmp_path) == ["tiny"]


def test_cuts_that_each_bring_something_new_do_not_count_as_failures(archive, server, tmp_path):
    server.cuts = [70_000] * download.ATTEMPTS
    download_beir("tiny", tmp_path, server.url)
    assert len(server.ranges) == download.ATTEMPTS + 1


def test_a_part_that_was_whole_already_is_used(archive, server, tmp_path):
    (tmp_path / "tiny.zip.part").write_bytes(archive)
    download_beir("tiny", tmp_path, server.url)
    assert (server.ranges, server.num_bytes) == ([f"bytes={len(archive)}-"], 0)


def test_a_part_longer_than_the_file_is_thrown_away(archive, server, tmp_path):
    (tmp_path / "tiny.zip.part").write_bytes(archive + b"more")
    download_beir("tiny", tmp_path, server.url)
    assert server.ranges == [f"bytes={len(archive) + 4}-", None]


def test_a_wrong_md5_names_file_and_both_sums_and_the_next_try_starts_afresh(archive, server, tmp_path):
    server.files["tiny.zip"] = archive[:-1] + b"?"
    got = hashlib.md5(server.files["tiny.zip"]).hexdigest()
    message = rf"{server.url}/tiny\.zip: got md5 {got}, expected {BEIR_MD5['tiny']}; removed"
    with pytest.raises(ValueError, match=message):
        download_beir("tiny", tmp_path, server.url)
    assert names_in(tmp_path) == []
    server.files["tiny.zip"] = archive
    download_beir("tiny", tmp_path, server.url)
    assert server.ranges == [None, None]


def at_once(download):
    """Call a function in two threads at the same moment, and return what both gave."""
    together, found = threading.Barrier(2), []

    def call():
        together.wait(timeout=10)
        found.append(download())

    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    return found


def test_of_two_downloads_at_once_one_waits_and_both_get_the_folder(archive, server, tmp_path):
    assert at_once(lambda: download_beir("tiny", tmp_path, server.url)) == [tmp_path / "tiny"] * 2
    assert (server.ranges, names_in(tmp_path)) == ([None], ["tiny"])


def test_a_file_that_is_not_on_the_server_is_an_error_at_once(archive, server, tmp_path):
    server.files.clear()
    with pytest.raises(FileNotFoundError, match=rf"{server.url}/tiny\.zip: not on the server \(404\)"):
        download_beir("tiny", tmp_path, server.url)
    assert len(server.ranges) == 1
    assert names_in(tmp_path) == []


def test_no_server_at_all_is_an_error_that_names_the_address(archive, tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(ConnectionError, match=rf"{url}/tiny\.zip: gave up after 5 attempts"):
        download_beir("tiny", tmp_path, url)


def test_an_unknown_name_is_refused_with_the_known_ones(server, tmp_path):
    with pytest.raises(
        ValueError, match=r"no BEIR collection 'cqadupstack'.*known are arguana, .*webis-touche2020"
    ):
        download_beir("cqadupstack", tmp_path, server.url)
    assert server.ranges == []


def test_the_table_has_fourteen_different_sums():
    assert len(set(BEIR_MD5.values())) == 14
    assert all(re.fullmatch(r"[0-9a-f]{32}", md5) for md5 in BEIR_MD5.values())


def test_a_download_logs_nothing(archive, server, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        download_beir("tiny", tmp_path, server.url)
    assert caplog.messages == []


# --- download_msmarco_tiny ---------------------------------------------------------------------


@pytest.fixture
def triples(server, monkeypatch):
    """The bytes of a file of 5,000 lines, served; the size and lines expected are set to its own."""
    content = "".join(f"query {n}\tpositive {n} {'x' * 40}\tnegative {n}\n" for n in range(5000)).encode()
    server.files[MSMARCO_TINY] = content
    monkeypatch.setattr(download, "MSMARCO_TINY_BYTES", len(content))
    monkeypatch.setattr(download, "MSMARCO_TINY_LINES", 5000)
    return content


def test_msmarco_tiny_is_fetched_once_and_reads_as_training_data(triples, server, tmp_path):
    for _ in range(2):
        folder = download_msmarco_tiny(str(tmp_path / "data"), server.url)
        assert folder == tmp_path / "data" / "msmarco-tiny"
    assert server.ranges == [None]
    assert names_in(folder) == [MSMARCO_TINY]
    assert (folder / MSMARCO_TINY).read_bytes() == triples
    assert len(read_training_tsv(folder / MSMARCO_TINY).examples) == 5000


def test_of_two_downloads_of_msmarco_tiny_at_once_one_waits_and_both_get_the_folder(
    triples, server, tmp_path
):
    folder = tmp_path / "msmarco-tiny"
    assert at_once(lambda: download_msmarco_tiny(tmp_path, server.url)) == [folder] * 2
    assert (server.ranges, names_in(folder)) == ([None], [MSMARCO_TINY])


def test_msmarco_tiny_cut_off_is_continued_where_it_stopped_by_this_call_or_a_later_one(
    triples, server, tmp_path
):
    server.cuts = [100_000, 70_000, *[0] * download.ATTEMPTS]
    with pytest.raises(ConnectionError, match=r"tiny\.tsv: gave up after 5 .*tiny\.tsv\.part, call again"):
        download_msmarco_tiny(tmp_path, server.url)
    assert names_in(tmp_path / "msmarco-tiny") == [f"{MSMARCO_TINY}.part"]
    server.cuts = []
    folder = download_msmarco_tiny(tmp_path, server.url)
    assert (folder / MSMARCO_TINY).read_bytes() == triples
    assert server.ranges[1].startswith("bytes=")
    assert server.num_bytes < 2 * len(triples)
    assert names_in(folder) == [MSMARCO_TINY]


@pytest.mark.parametrize("damage", ["shorter", "longer", "fewer lines"])
def test_another_file_in_the_place_of_msmarco_tiny_is_removed_and_the_next_try_starts_afresh(
    triples, server, tmp_path, damage
):
    changed = {"shorter": triples[:-9] + b"\n", "longer": b"more" + triples}
    served = changed.get(damage, triples[:-1] + b"?")  # the same size
    server.files[MSMARCO_TINY] = served
    numbers = f"got {len(served):,} bytes and {served.count(10):,} lines, not {len(triples):,} and 5,000"
    with pytest.raises(ValueError, match=rf"{server.url}/{re.escape(MSMARCO_TINY)}: {numbers}; removed"):
        download_msmarco_tiny(tmp_path, server.url)
    assert names_in(tmp_path / "msmarco-tiny") == []
    server.files[MSMARCO_TINY] = triples
    assert (download_msmarco_tiny(tmp_path, server.url) / MSMARCO_TINY).read_bytes() == triples
    assert server.ranges == [None, None]


def test_msmarco_tiny_that_is_not_on_the_server_is_an_error_at_once(triples, server, tmp_path):
    server.files.clear()
    with pytest.raises(FileNotFoundError, match=rf"{server.url}/.*tiny\.tsv: not on the server \(404\)"):
        download_msmarco_tiny(tmp_path, server.url)
    assert len(server.ranges) == 1
    assert names_in(tmp_path / "msmarco-tiny") == []


# --- extract_zip -------------------------------------------------------------------------------


def write_zip(path, members):
    """Write a zip of (name or ZipInfo, content) pairs."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for member, content in members:
            opened.writestr(member, content, compress_type=zipfile.ZIP_DEFLATED)
    return path


def with_mode(name, mode):
    member = zipfile.ZipInfo(name)
    member.external_attr = mode << 16
    return member


def test_a_zip_is_unpacked_below_a_folder_of_its_own_name(tmp_path):
    path = write_zip(
        tmp_path / "a.zip", [("set/", ""), ("set/deep/x.txt", "x"), ("set/y.txt", "y"), ("z", "z")]
    )
    assert extract_zip(path, tmp_path / "new" / "set") == tmp_path / "new" / "set"
    assert (tmp_path / "new" / "set" / "deep" / "x.txt").read_text() == "x"
    assert names_in(tmp_path / "new" / "set") == ["deep", "y.txt"]
    assert names_in(tmp_path / "new") == ["set"]


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "set/../../evil",
        "/evil",
        "C:/evil",
        "C:evil",
        "..\\evil",
        "set\\..\\..\\evil",
        "\\\\host\\share\\evil",
    ],
)
def test_no_member_lands_outside_whatever_its_name(tmp_path, name):
    path = write_zip(tmp_path / "bad.zip", [("set/good", "x"), (name, "evil")])
    extract_zip(path, tmp_path / "data" / "set")
    assert names_in(tmp_path / "data") == ["set"]
    assert names_in(tmp_path) == ["bad.zip", "data"]
    assert (tmp_path / "data" / "set" / "good").read_text() == "x"


def test_a_link_comes_out_as_a_plain_file(tmp_path):
    path = write_zip(tmp_path / "bad.zip", [(with_mode("set/link", stat.S_IFLNK | 0o777), "/")])
    extract_zip(path, tmp_path / "set")
    assert not (tmp_path / "set" / "link").is_symlink()
    assert (tmp_path / "set" / "link").read_text() == "/"


def test_a_zip_that_declares_more_than_allowed_is_refused(tmp_path):
    path = write_zip(tmp_path / "bomb.zip", [("set/zeros", bytes(1_000_000)), ("set/more", "1")])
    with pytest.raises(
        ValueError, match=r"bomb\.zip: unpacks to 1,000,001 bytes, more than the 1,000,000 allowed"
    ):
        extract_zip(path, tmp_path / "set", max_bytes=1e6)
    assert names_in(tmp_path) == ["bomb.zip"]
    extract_zip(path, tmp_path / "set", max_bytes=1_000_001)


def test_a_zip_that_declares_less_than_it_holds_is_refused(tmp_path):
    path = write_zip(tmp_path / "bomb.zip", [("set/zeros", bytes(1_000_000))])
    size = (1_000_000).to_bytes(4, "little")
    path.write_bytes(path.read_bytes().replace(size, (10).to_bytes(4, "little")))
    with pytest.raises(ValueError, match=r"bomb\.zip"):
        extract_zip(path, tmp_path / "set", max_bytes=1000)
    assert names_in(tmp_path) == ["bomb.zip"]


def test_no_damage_to_a_zip_gives_another_error_or_leaves_half_a_folder(tmp_path):
    path = write_zip(tmp_path / "a.zip", [("set/x.txt", "hello " * 200), ("set/é/y.txt", "bye " * 50)])
    good, chance, messages = path.read_bytes(), random.Random(0), []
    for _ in range(200):
        damaged = bytearray(good[: chance.choice([None, chance.randrange(len(good))])])
        for _ in range(min(3, len(damaged))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged)
        try:
            extract_zip(path, tmp_path / "set", max_bytes=1e6)
            shutil.rmtree(tmp_path / "set")
        except ValueError as error:
            messages.append(str(error))
        assert names_in(tmp_path) == ["a.zip"]
    assert len(messages) > 50
    assert all("a.zip: " in message for message in messages)


def test_a_zip_without_the_folder_is_refused(tmp_path):
    path = write_zip(tmp_path / "a.zip", [("other/x", "x")])
    with pytest.raises(ValueError, match=r"a\.zip: expected a folder set/ in it"):
        extract_zip(path, tmp_path / "set")


def test_a_folder_that_exists_is_not_written_over(tmp_path):
    path = write_zip(tmp_path / "a.zip", [("set/x", "new")])
    (tmp_path / "set").mkdir()
    with pytest.raises(ValueError, match=r"set exists already; remove it"):
        extract_zip(path, tmp_path / "set")
    assert names_in(tmp_path / "set") == []


def test_a_missing_archive_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.zip: no such file"):
        extract_zip(tmp_path / "none.zip", tmp_path / "set")
