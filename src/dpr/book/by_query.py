"""The page of results by query: what it reads, as scripts that work from a folder and from a server alike."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpr.data.collection import Collection
from dpr.data.text import first_words
from dpr.data.trec import Run
from dpr.experiments.results import Result, fits
from dpr.files import write_text

METRIC = "nDCG@10"
SHOWN = 10  # hits of each system whose texts are shown
LONGEST_TEXT = 600  # characters
FEW_WORDS = 12  # of a text that may not be published
# Whether the texts of a collection may be published with the site, and on what terms
LICENCES = {
    "docstrings": (True, "the texts are under the licences of their packages, BSD-3-Clause or Apache-2.0"),
    "scifact": (True, "Wadden et al. 2020, CC BY-NC 2.0"),
    "nfcorpus": (False, "its licence is for academic use and does not speak of publishing"),
    "msmarco-dl": (False, "MS MARCO is for non-commercial research and does not speak of publishing"),
}
UNKNOWN = (False, "nothing is known here of its licence")


def write_results_by_query(
    folder: Path, results: Mapping[str, Result], collection: Collection | None, private: bool = False
) -> dict[str, Any]:
    """Write what the page shows of one collection.

    `<name>.js` has the queries with the metric of every system, `<name>/<number>.js` the hits of one query,
    with texts. They call `dprBook.add(name, content)`.

    Args:
        folder: The folder of the scripts.
        results: The systems' results, variants included; shown are those over the same as most are.
        collection: The passages, queries and judgements that the runs are of; without it, or if it is another
            one than that, ids are shown in place of texts, and no judgements.
        private: Whether the site is not for publishing, so that texts are shown whatever their licence.

    Returns:
        What the overview says of the collection: `name`, `queries`, `systems` and `texts`.

    Raises:
        ValueError: A damaged run.
    """
    results = over_the_same(results)
    first = next(iter(results.values()))
    name, query_ids = first.collection, list(first.evaluation.per_query[METRIC])
    known = collection is not None and fits(first, collection)
    texts, queries, told = _texts(name, collection if known else None, private)
    qrels = collection.qrels if known else {}
    relevant = {q: {d: grade for d, grade in qrels[q].items() if grade > 0} for q in qrels}
    hits = {system: _first_documents(result.run()) for system, result in results.items()}
    content = {
        "name": name,
        "metric": METRIC,
        "told": told,
        "queries": [[q, queries.get(q, ""), len(relevant[q]) if known else None] for q in query_ids],
        "systems": [_system(result, query_ids) for result in results.values()],
    }
    write_script(folder / f"{name}.js", name, content)
    for number, query_id in enumerate(query_ids):
        found = {system: lists.get(query_id, []) for system, lists in hits.items()}
        shown = _query(found, relevant.get(query_id), texts)
        write_script(folder / name / f"{number}.js", f"{name}/{number}", shown)
    return {"name": name, "queries": len(query_ids), "systems": len(results), "texts": told}


def over_the_same(results: Mapping[str, Result]) -> dict[str, Result]:
    """Those results that are over the same passages, queries and judgements as most are."""
    over = {system: tuple(result.metadata["fingerprints"].values()) for system, result in results.items()}
    [(most, _)] = Counter(over.values()).most_common(1)
    return {system: result for system, result in results.items() if over[system] == most}


def _texts(
    name: str, collection: Collection | None, private: bool
) -> tuple[dict[str, list[str]], dict[str, str], str]:
    """doc_id → title and text, query_id → text, as far as they may be shown, and a sentence on that."""
    if collection is None:
        return {}, {}, "This collection was not at hand when the site was made: ids alone are shown."
    free, terms = (True, "this site is not for publishing") if private else LICENCES.get(name, UNKNOWN)
    if free:
        texts = {p.doc_id: [p.title, _cut(p.text)] for p in collection.passages}
        return texts, collection.queries, f"Texts are shown up to {LONGEST_TEXT} characters: {terms}."
    texts = {p.doc_id: [first_words(p.contents, FEW_WORDS), ""] for p in collection.passages}
    queries = {q: first_words(text, FEW_WORDS) for q, text in collection.queries.items()}
    return texts, queries, f"Only the first {FEW_WORDS} words of a text are shown: {terms}."


def _cut(text: str) -> str:
    """A text, or its beginning up to a word's end."""
    if len(text) <= LONGEST_TEXT:
        return text
    return text[:LONGEST_TEXT].rsplit(None, 1)[0] + " …"


def _first_documents(run: Run) -> dict[str, list[str]]:
    """query_id → doc_ids, best first, as a run that was read has them."""
    return {query_id: list(hits) for query_id, hits in run.items()}


def _system(result: Result, query_ids: list[str]) -> dict[str, Any]:
    """A system's name, whether it is a variant, its mean, and the metric of each query."""
    values = result.evaluation.per_query[METRIC]
    return {
        "name": result.system,
        "variant": bool(result.metadata["ablation"]),
        "mean": round(result.evaluation.means[METRIC], 4),
        "values": [round(values[query_id], 4) for query_id in query_ids],
    }


def _query(
    found: Mapping[str, list[str]],
    relevant: Mapping[str, int] | None,
    texts: Mapping[str, list[str]],
) -> dict[str, Any]:
    """The documents of one query as [id, grade, title, text], and each system's hits as positions among them.

    Without judgements the grade is null. Title and text are there for documents that are shown: the first
    hits and those that are relevant.
    """
    grades = relevant or {}
    shown = {*grades, *(doc_id for doc_ids in found.values() for doc_id in doc_ids[:SHOWN])}
    every = list(dict.fromkeys([*grades, *(doc_id for doc_ids in found.values() for doc_id in doc_ids)]))
    position = {doc_id: number for number, doc_id in enumerate(every)}
    documents = [
        [doc_id, None if relevant is None else grades.get(doc_id, 0)]
        + (texts[doc_id] if doc_id in shown and doc_id in texts else [])
        for doc_id in every
    ]
    return {
        "documents": documents,
        "runs": {system: [position[d] for d in doc_ids] for system, doc_ids in found.items()},
    }


def write_script(path: Path, key: str, content: Any) -> None:
    """Write a script that hands its content to the page; only ASCII, so that it reads alike everywhere."""
    handed = json.dumps(content, separators=(",", ":"))
    write_text(path, f"dprBook.add({json.dumps(key)},{handed});\n")
