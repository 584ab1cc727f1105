"""The collections whose runs the site shows, with their texts where they are on this machine."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dpr.data.collection import Collection
from dpr.data.loading import find_data, load_collection
from dpr.experiments.profiles import PROFILES
from dpr.experiments.report import COLLECTIONS
from dpr.experiments.results import load_results
from dpr.experiments.workspace import Workspace


@dataclass(frozen=True)
class Source:
    """The runs of one collection that the site shows.

    Attributes:
        runs: `runs/<collection>`.
        title: The collection's name, as shown.
        collection: Its texts and judgements; None if they are not on this machine.
        sample: Whether the runs are those of `make run`.
        private: Whether texts are shown whatever their licence.
    """

    runs: Path
    title: str
    collection: Collection | None
    sample: bool = False
    private: bool = False


def find_sources(root: Path, folders: Sequence[str] = (), private: bool = False) -> list[Source]:
    """The collections with runs in a repository: those committed or made there, and that of `make run`.

    Args:
        root: The repository.
        folders: Collections that are not in the data folder: folders in BEIR layout, whose runs are in
            `runs/<its name>`.
        private: Whether the site is not for publishing, so that texts are shown whatever their licence.

    Raises:
        FileNotFoundError: One of `folders` does not exist or has no runs.
        ValueError: A damaged result or collection.
    """
    sources, places = [], {Path(folder).name: Path(folder) for folder in folders}
    found = sorted({path.parent for path in (root / "runs").glob("*/*.trec.gz")})
    if lost := places.keys() - {runs.name for runs in found}:
        raise FileNotFoundError(f"{root / 'runs'}: no runs of {', '.join(sorted(lost))}")
    for runs in found:
        split = next(iter(load_results(runs, ablations=True).values())).metadata["split"]
        place = places.get(runs.name) or (runs.name if find_data(runs.name) else None)
        collection = load_collection(place, split) if place else None
        sources.append(Source(runs, COLLECTIONS.get(runs.name, runs.name), collection, private=private))
    order = {name: number for number, name in enumerate(COLLECTIONS)}
    sources.sort(key=lambda source: order.get(source.runs.name, len(order)))
    sample = PROFILES["sample"]
    runs = root / "build" / "sample" / "runs" / sample.collection
    if list(runs.glob("*.trec.gz")):
        collection = Workspace(sample, root).collection()
        sources.append(Source(runs, f"{sample.collection} (sample)", collection, sample=True))
    return sources
