"""Loading a collection or training data by name, from installed packages, a folder or a download."""

import os
from pathlib import Path

from dpr.arguments import checked
from dpr.data.beir import read_beir
from dpr.data.collection import Collection
from dpr.data.training_data import TrainingData
from dpr.data.triples import read_training_tsv

MARKERS = ("pyproject.toml", "notebooks")


def project_root() -> Path:
    """The nearest folder, from the current one upwards, that holds this repository; else the current one."""
    here = Path.cwd()
    return next((folder for folder in (here, *here.parents) if is_repository(folder)), here)


def is_repository(folder: Path) -> bool:
    """Whether a folder holds this repository."""
    return all((folder / marker).exists() for marker in MARKERS)


@checked
def load_collection(name_or_folder: str | Path, split: str = "test") -> Collection:
    """Load a test collection by name or from a folder in BEIR layout.

    A name is looked for in `$DPR_DATA_DIR`, in the repository's `data/`, and among the folders here and in
    the repository. A BEIR collection found nowhere is downloaded into `data/` and checked against its
    published md5.

    Args:
        name_or_folder: `docstrings` (from installed packages, nothing to download), a BEIR set (`scifact`,
            `nfcorpus`, `trec-covid`, …), or the path of a folder, relative to the current folder or the
            repository's.
        split: `train`, `dev` or `test`. If a set has no dev judgements, dev is a fixed fifth of
            the train queries. For `docstrings`, train and dev have other passages than test.

    Raises:
        FileNotFoundError: The folder does not exist or is not in BEIR layout.
        ValueError: An unknown name or split, malformed content, or a wrong md5.
    """
    name = str(name_or_folder)
    if name_or_folder == "docstrings":
        from dpr.data.docstrings import load_docstrings

        return load_docstrings(split, project_root() / "data" / "docstrings")
    places = [Path(name), project_root() / name] if name else []
    here = next((place for place in places if place.is_dir()), None)
    if isinstance(name_or_folder, Path) or os.sep in name or name.startswith("."):
        if here is None:
            raise FileNotFoundError(f"{name}: no such folder; a path must be a folder in BEIR layout")
        return read_beir(here, split)
    folder = find_data(name) or here
    if folder is None:
        from dpr.data.download import download_beir

        folder = download_beir(name, project_root() / "data")
    return read_beir(folder, split, name)


def find_data(name: str) -> Path | None:
    """Path of the file or folder `name` in `$DPR_DATA_DIR` or the repository's `data/`; None if in neither.

    Raises:
        FileNotFoundError: `$DPR_DATA_DIR` is set, but not to a folder.
    """
    places = [project_root() / "data"]
    if os.environ.get("DPR_DATA_DIR"):
        places.insert(0, Path(os.environ["DPR_DATA_DIR"]))
        if not places[0].is_dir():
            raise FileNotFoundError(f"DPR_DATA_DIR={places[0]}: no such folder; unset it or make it")
    return next((place / name for place in places if (place / name).exists()), None)


@checked
def load_training_data(name_or_file: str | Path, max_bad_lines: int = 0) -> TrainingData:
    """Load training data by name or from a file.

    Args:
        name_or_file: `msmarco-tiny` (downloaded into `data/` if it is missing); the name of a folder
            in `$DPR_DATA_DIR` or `data/` with one .tsv file, such as `squad-triples`; the path of a
            .tsv file; or a collection and its split, such as `scifact/train`.
        max_bad_lines: Most malformed lines of a .tsv file that may be skipped.

    Raises:
        FileNotFoundError: `name_or_file` is none of the above.
        ValueError: The folder does not hold exactly one .tsv file, or as in `read_training_tsv`,
            `TrainingData.from_collection` and `load_collection`.
    """
    name = str(name_or_file)
    if name.endswith((".tsv", ".tsv.gz")):
        here, there = Path(name), project_root() / name
        return read_training_tsv(here if here.is_file() else there, max_bad_lines=max_bad_lines)
    collection, slash, split = name.rpartition("/")
    if slash:
        return TrainingData.from_collection(load_collection(collection, split))
    folder = find_data(name)
    if name == "msmarco-tiny" and (folder is None or not _tsv_files(folder)):
        from dpr.data.download import download_msmarco_tiny

        folder = download_msmarco_tiny(project_root() / "data")
    if folder is None:
        raise FileNotFoundError(
            f"no training data {name!r}; known: msmarco-tiny, a folder in data/ or $DPR_DATA_DIR with a .tsv "
            f"file, a .tsv file's path, or a collection's split such as scifact/train"
        )
    files = _tsv_files(folder)
    if len(files) != 1:
        raise ValueError(f"{folder}: expected one .tsv file of training data, found {len(files)}")
    return read_training_tsv(files[0], name, max_bad_lines)


def _tsv_files(folder: Path) -> list[Path]:
    """The .tsv files in a folder, plain or gzipped."""
    return sorted([*folder.glob("*.tsv"), *folder.glob("*.tsv.gz")])
