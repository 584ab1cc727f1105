"""The BEIR folder layout: corpus.jsonl, queries.jsonl, qrels/<split>.tsv."""

import warnings
from pathlib import Path

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
    passages: dict[str, Passage] = {}
    halves: list[str] = []
    for number, record in read_jsonl(path):
        doc_id, text = record.get("_id"), record.get("text")
        title = "" if record.get("title") is None else record["title"]
        for field, value in (("_id", doc_id), ("title", title), ("text", text)):
            if not isinstance(value, str):
                what = "is missing" if value is None else f"is {type(value).__name__}"
                raise ValueError(f"{path}:{number}: {field} {what}, expected a string")
        check_id(doc_id, f"{path}:{number}: _id")
        if doc_id in passages:
            raise ValueError(f"{path}:{number}: _id {doc_id} comes twice")
        if SURROGATE.search(f"{title} {text}"):
            halves.append(f"{path}:{number}")
            title, text = (SURROGATE.sub("\ufffd", field) for field in (title, text))
        passages[doc_id] = Passage(doc_id, title, text)
    if halves:
        message = f"{len(halves)} documents held half a character (a lone surrogate), now \ufffd"
        warnings.warn(f"{message}; first {halves[0]}", stacklevel=3)
    return list(passages.values())
