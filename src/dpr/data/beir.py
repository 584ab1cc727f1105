"""The BEIR folder layout: corpus.jsonl, queries.jsonl, qrels/<split>.tsv."""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dpr.arguments import checked
from dpr.data.collection import DEV_SHARE, Collection, Passage, hold_out_dev
from dpr.data.text import SURROGATE
from dpr.data.trec import check_id, read_qrels, read_topics
from dpr.files import read_jsonl


@checked
def read_beir(folder: Path | str, split: str = "test", name: str | None = None) -> Collection:
    """Read a collection from a folder in BEIR's layout.

    If there are train but no dev judgements, a fixed fifth of the train queries becomes the dev split.
    Without a folder qrels, the collection has the split `test` without judgements, and a warning says so.

    Args:
        folder: A folder with corpus.jsonl, queries.jsonl and qrels/<split>.tsv files, plain or gzipped.
        split: `train`, `dev` or `test`.
        name: The collection's name; by default the folder's name.

    Raises:
        FileNotFoundError: A file of the layout is missing; the message lists the expected files.
        ValueError: Malformed content (the message names file and line), or a split that does not exist.

    Source: https://github.com/beir-cellar/beir/wiki/Load-your-custom-dataset
    """
    folder = Path(folder)
    qrels_files = sorted([*(folder / "qrels").glob("*.tsv"), *(folder / "qrels").glob("*.tsv.gz")])
    unjudged = not (folder / "qrels").exists()
    files = {}
    for file in ("corpus.jsonl", "queries.jsonl"):
        there = [path for path in (folder / file, folder / f"{file}.gz") if path.is_file()]
        if not there or not (qrels_files or unjudged):
            missing = "qrels/*.tsv" if there else file
            raise FileNotFoundError(
                f"{folder}: no {missing}; "
                "a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/<split>.tsv, each perhaps as .gz"
            )
        files[file] = there[0]
    all_qrels = {path.name.split(".")[0]: read_qrels(path) for path in qrels_files}
    if unjudged:
        message = "no folder qrels: without judgements it can be searched but not evaluated"
        warnings.warn(f"{folder}: {message}", stacklevel=3)
        all_qrels = {"test": {}}
    if "dev" not in all_qrels and len(all_qrels.get("train", ())) >= DEV_SHARE:
        all_qrels["train"], all_qrels["dev"] = hold_out_dev(all_qrels["train"])
    return Collection(
        name or folder.resolve().name,
        read_corpus(files["corpus.jsonl"]),
        read_topics(files["queries.jsonl"]),
        all_qrels,
        split,
    )


@checked
def read_corpus(path: Path | str) -> list[Passage]:
    """Read passages from lines of `{"_id": …, "title": …, "text": …}`, where the title is optional.

    Half a character (a lone surrogate, as of an emoji that was cut) becomes `�`, with a warning.

    Raises:
        ValueError: A line is not a JSON object, a field is missing or not a string, or an id is empty,
            holds white space or half a character or comes twice; the message names file and line.
        FileNotFoundError: The file does not exist.
    """
    records = ((f"{path}:{number}", record) for number, record in read_jsonl(path))
    return list(checked_passages(records, stacklevel=4))


def checked_passages(records: Iterable[tuple[str, Mapping[str, Any]]], stacklevel: int) -> Iterator[Passage]:
    """Yield the passages of a corpus's records, as `read_corpus` checks and mends them.

    Args:
        records: Where each record stands, and the record: its id, its title (None if it has none) and text.
        stacklevel: Of the warning of mended passages, as `warnings.warn` counts.

    Raises:
        ValueError: As in `read_corpus`; the message begins with where the record stands.
    """
    seen: set[str] = set()
    halves: list[str] = []
    for where, record in records:
        passage, mended = passage_of(record, where)
        if passage.doc_id in seen:
            raise ValueError(f"{where}: _id {passage.doc_id} comes twice")
        seen.add(passage.doc_id)
        if mended:
            halves.append(where)
        yield passage
    if halves:
        message = f"{len(halves)} documents held half a character (a lone surrogate), now \ufffd"
        warnings.warn(f"{message}; first {halves[0]}", stacklevel=stacklevel)


def passage_of(record: Mapping[str, Any], where: str) -> tuple[Passage, bool]:
    """The passage of one record, and whether it held half a character.

    Raises:
        ValueError: A field is missing or no string, or the id is none; the message begins with `where`.
    """
    doc_id, text = record.get("_id"), record.get("text")
    title = "" if record.get("title") is None else record["title"]
    for field, value in (("_id", doc_id), ("title", title), ("text", text)):
        if not isinstance(value, str):
            what = "is missing" if value is None else f"is {type(value).__name__}"
            raise ValueError(f"{where}: {field} {what}, expected a string")
    check_id(doc_id, f"{where}: _id")
    if not SURROGATE.search(f"{title} {text}"):
        return Passage(doc_id, title, text), False
    return Passage(doc_id, *(SURROGATE.sub("\ufffd", part) for part in (title, text))), True
