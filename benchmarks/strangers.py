"""How search changes as strangers' documents are added, and approximate search over everything at hand.

    DPR_DATA_DIR=… .venv/bin/python benchmarks/strangers.py

All collections that are at hand are encoded once (into `build/strangers`, an hour on two cores) and searched
together, each from its own shard. SciFact's and NFCorpus's test queries are asked of their own documents, and
then of these among more and more of the others', in a fixed order. A stranger may answer a query, and nobody
has judged it: what is lost is an upper bound.
"""

import csv

from dpr import Collection, load_collection
from dpr.data.loading import find_data

ASKED = ("scifact", "nfcorpus")
FOLDERS = ("msmarco-dl", "squad", "trec-covid-mini")


def collections_at_hand() -> dict[str, Collection]:
    """Name → collection: BEIR folders, answers of MedQuAD, docstrings."""
    found = {name: load_collection(name) for name in ASKED}
    found |= {name: load_collection(name, split_of(name)) for name in FOLDERS}
    with (find_data("medquad-pairs") / "pairs.tsv").open(encoding="utf-8", newline="") as lines:
        answers = dict.fromkeys(row[1] for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    found["medquad"] = Collection.from_texts(list(answers))
    for split in ("test", "train"):
        found[f"docstrings-{split}"] = load_collection("docstrings", split)
    return found


def split_of(name: str) -> str:
    return sorted(path.stem for path in (find_data(name) / "qrels").glob("*.tsv"))[-1]
