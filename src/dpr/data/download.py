"""Downloading data: interrupted downloads are resumed, files are checked, archives unpacked safely."""

import errno
import hashlib
import lzma
import time
import zipfile
import zlib
from pathlib import Path

import requests
from tqdm import tqdm

from dpr.files import errors_of, locked, temporary_folder

BEIR_URL = "https://public.ukp.informatik.tu-darmstadt.de/thakur/BEIR/datasets"
BEIR_MD5 = {
    "trec-covid": "ce62140cb23feb9becf6270d0d1fe6d1",
    "nfcorpus": "a89dba18a62ef92f7d323ec890a0d38d",
    "arguana": "8ad3e3c2a5867cdced806d6503f29b99",
    "scidocs": "38121350fc3a4d2f48850f6aff52e4a9",
    "scifact": "5f7d1de60b170fc8027bb7898e2efca1",
    "msmarco": "444067daf65d982533ea17ebd59501e4",
    "nq": "d4d3d2e48787a744b6f6e691ff534307",
    "hotpotqa": "f412724f78b0d91183a0e86805e16114",
    "fiqa": "17918ed23cd04fb15047f73e6c3bd9d9",
    "webis-touche2020": "46f650ba5a527fc69e0a6521c5a23563",
    "quora": "18fb154900ba42a600f84b839c173167",
    "dbpedia-entity": "c2a39eb420a3164af735795df012ac2c",
    "fever": "5a818580227bfb4b35bb6fa46d9b6c03",
    "climate-fever": "8b66f0a9126c521bae2bde127b4dc99d",
}  # cqadupstack is not here: its archive holds twelve collections
MSMARCO_TINY_URL = "https://storage.googleapis.com/unicamp-dl/ia368dd_2023s1/msmarco"
MSMARCO_TINY = "msmarco_triples.train.tiny.tsv"
MSMARCO_TINY_BYTES, MSMARCO_TINY_LINES = 8_076_179, 11_000
ATTEMPTS = 5  # requests in a row without a new byte, after which a download is given up
BACKOFF_S = 0.5  # seconds to wait after a failure; doubled with each failure in a row without a new byte
TIMEOUT_S = (10, 60)  # seconds to wait for the connection; for the next byte
CHUNK_BYTES = 64 * 1024
# What zipfile raises if an archive is damaged; OSError comes from seeking to before its start
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    OSError,
    RuntimeError,
    UnicodeDecodeError,
)


def download_beir(name: str, folder: Path | str, base_url: str = BEIR_URL) -> Path:
    """Download a BEIR collection into `folder/name`, unless that folder exists.

    An interrupted download is kept as `name.zip.part` and continued, in this call or a later one.
    If `folder` already holds `name.zip` with the right md5, that is used. The archive is removed after
    unpacking.

    Args:
        name: A key of `BEIR_MD5`.
        folder: The folder of all collections; created if it is missing.
        base_url: URL under which `name.zip` is found.

    Returns:
        `folder/name`, in BEIR layout.

    Raises:
        ValueError: An unknown name; a wrong md5 (the download is removed); see also `extract_zip`.
        FileNotFoundError: The server has no such file.
        ConnectionError: `ATTEMPTS` requests in a row failed without bringing a new byte.

    Source: https://github.com/beir-cellar/beir (its table of datasets, with md5)
    """
    if name not in BEIR_MD5:
        raise ValueError(f"no BEIR collection {name!r} to download; known are {', '.join(sorted(BEIR_MD5))}")
    target, part = Path(folder) / name, Path(folder) / f"{name}.zip.part"
    if target.is_dir():
        return target
    with locked(Path(folder) / f".{name}.lock", wait=True):
        if target.is_dir():  # by now
            return target
        archive, url = Path(folder) / f"{name}.zip", f"{base_url}/{name}.zip"
        if not archive.is_file() or _md5(archive) != BEIR_MD5[name]:
            _download(url, archive, part)
        found = _md5(archive)
        if found != BEIR_MD5[name]:
            archive.unlink()
            raise ValueError(
                f"{url}: got md5 {found}, expected {BEIR_MD5[name]}; removed, the file there is another now"
            )
        extract_zip(archive, target)
        archive.unlink()
    return target


def download_msmarco_tiny(folder: Path | str, base_url: str = MSMARCO_TINY_URL) -> Path:
    """Download the 11,000 triples of MS MARCO "tiny" into `folder/msmarco-tiny`, unless they are there.

    An interrupted download is kept as a `.part` file and continued. No checksum was published, so
    the file's size and number of lines are checked instead.

    Args:
        folder: The folder of all data; created if it is missing.
        base_url: URL under which the file is found.

    Returns:
        `folder/msmarco-tiny`, which holds the file.

    Raises:
        ValueError: The size or number of lines is wrong; the download is removed.
        FileNotFoundError: The server has no such file.
        ConnectionError: As in `download_beir`.

    Source: the course's notebooks (query, positive, negative; no header).
    """
    target = Path(folder) / "msmarco-tiny"
    if (target / MSMARCO_TINY).is_file():
        return target
    with locked(target / ".lock", wait=True):
        if (target / MSMARCO_TINY).is_file():  # by now
            return target
        part, fetched = (target / f"{MSMARCO_TINY}{ending}" for ending in (".part", ".fetched"))
        _download(f"{base_url}/{MSMARCO_TINY}", fetched, part)
        data = fetched.read_bytes()
        if (len(data), data.count(b"\n")) != (MSMARCO_TINY_BYTES, MSMARCO_TINY_LINES):
            fetched.unlink()
            raise ValueError(
                f"{base_url}/{MSMARCO_TINY}: got {len(data):,} bytes and {data.count(10):,} lines, not "
                f"{MSMARCO_TINY_BYTES:,} and {MSMARCO_TINY_LINES:,}; removed, the file there is another now"
            )
        fetched.replace(target / MSMARCO_TINY)
    return target


def _md5(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()


def _download(url: str, target: Path, part: Path) -> None:
    """Download `url` into `part`, with as many requests as needed, then rename it to `target`."""
    furthest = failures = 0
    while True:
        try:
            _fetch_rest(url, part)
            break
        except requests.RequestException as error:
            size = part.stat().st_size if part.exists() else 0
            failures = 0 if size > furthest else failures + 1
            furthest = max(size, furthest)
            if failures >= ATTEMPTS:
                raise ConnectionError(
                    f"{url}: gave up after {failures} attempts in a row that brought nothing new ({error}); "
                    f"{size:,} bytes are kept in {part}, call again to go on from there"
                ) from error
            time.sleep(BACKOFF_S * 2**failures)
    part.replace(target)


def _fetch_rest(url: str, part: Path) -> None:
    """Request the bytes that `part` lacks and append them; start over if the server cannot continue."""
    size = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={size}-"} if size else {})}
    with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT_S) as response:
        if response.status_code in (404, 410):
            raise FileNotFoundError(f"{url}: not on the server ({response.status_code})")
        content_range = response.headers.get("Content-Range", "")
        if response.status_code == 416 and content_range == f"bytes */{size}":
            return  # `part` is complete already
        if response.status_code == 416 or (
            response.status_code == 206 and f"bytes {size}-" not in content_range
        ):
            part.unlink(missing_ok=True)
            raise requests.RequestException(
                f"cannot continue at byte {size:,}, {content_range or 'no range given'}"
            )
        response.raise_for_status()
        if response.status_code != 206:
            size = 0
        total = (
            size + int(response.headers["Content-Length"]) if "Content-Length" in response.headers else None
        )
        with (
            part.open("ab" if size else "wb") as file,
            tqdm(total=total, initial=size, desc=url.rsplit("/", 1)[-1], unit="B", unit_scale=True) as bar,
        ):
            for chunk in response.iter_content(CHUNK_BYTES):
                with errors_of(part):
                    file.write(chunk)
                bar.update(len(chunk))


def extract_zip(archive: Path | str, folder: Path | str, max_bytes: float = 20e9) -> Path:
    """Unpack the archive's top folder, which must have the name of `folder`, to `folder`, all or nothing.

    The files are written to a temporary folder beside `folder` and moved at the end.

    Args:
        archive: A zip file.
        folder: The folder to create; it must not exist yet.
        max_bytes: Largest total size of the unpacked files.

    Returns:
        `folder`.

    Raises:
        FileNotFoundError: The archive does not exist.
        ValueError: `folder` exists; the archive cannot be unpacked, has no such top folder or is larger than
            `max_bytes`.
        OSError: It cannot be written; the error names `folder`.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise FileNotFoundError(f"{archive}: no such file")
    if folder.exists():
        raise ValueError(f"{folder} exists already; remove it to unpack {archive.name} again")
    with temporary_folder(folder) as temporary:
        try:
            with zipfile.ZipFile(archive) as opened:
                total = sum(member.file_size for member in opened.infolist())  # zipfile unpacks no byte more
                if total > max_bytes:
                    raise ValueError(
                        f"{archive}: unpacks to {total:,} bytes, more than the {max_bytes:,.0f} allowed"
                    )
                opened.extractall(temporary)  # zipfile writes nothing outside; links become files
        except UNREADABLE as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:
                raise OSError(
                    error.errno, f"cannot unpack into it ({error.strerror})", str(folder)
                ) from error
            raise ValueError(f"{archive}: cannot be unpacked ({error}); if damaged, fetch it again") from None
        top = temporary / folder.name
        if not top.is_dir():
            raise ValueError(f"{archive}: expected a folder {folder.name}/ in it, got none")
        top.rename(folder)
    return folder
