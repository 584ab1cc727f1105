"""The parts of a collection from a reader's own texts: lists, tables and tab-separated files."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dpr.data.trec import BEIR_HEADER, Qrels, check_id, is_header, read_qrels, read_topics, text_id
from dpr.files import read_lines

Queries = Mapping[Any, str] | Sequence[str] | Path | str | None
Judgements = Mapping[Any, Mapping[Any, int]] | Iterable | Path | str | None
Row = tuple[str | int, str, str]  # doc_id, title, text
COLUMNS = {"doc_id": "doc_id", "title": "title", "text": "text"}  # where they are looked for unless told
ABSENT = {"None", "nan", "<NA>", "NaT"}  # how None, NaN and the missing values of pandas print


def rows_of_texts(texts: Mapping | Iterable, titles: Iterable | None, ids: Iterable | None) -> list[Row]:
    """Rows of N texts with their titles and ids; without ids the texts are numbered from 0.

    Raises:
        ValueError: There is no text, one is no string, `titles` or `ids` are not as many, or a mapping is
            given with `ids`, or a table for the texts.
    """
    if _names_in(texts) is not None:
        raise ValueError("texts is a table, expected a list or doc_id → text; from_records takes a table")
    if isinstance(texts, Mapping):
        if ids is not None:
            raise ValueError("texts is doc_id → text, which has its own ids: leave out ids")
        ids, texts = texts.keys(), texts.values()
    return _rows(ids, titles, list(texts), "texts")


def rows_of_records(records: Iterable, **names: str) -> list[Row]:
    """Rows of a table or of mappings.

    Args:
        records: A DataFrame, a Dataset of Hugging Face, or mappings of column name → value.
        **names: For `doc_id`, `title` and `text` the name of its column.

    Raises:
        ValueError: There is no column for the text, or none of the name that was given for another part; a
            record is no mapping; there is no record; or a text is no string.
    """
    there, column = _columns(records, "records")
    for part, name in names.items():
        if name not in there and (part == "text" or name != COLUMNS[part]):
            raise ValueError(f"records have no column {name!r} for the {part}; they have {there}")
    ids, titles, texts = (column(names[part]) if names[part] in there else None for part in COLUMNS)
    return _rows(ids, titles, texts, "records")


def rows_of_tsv(path: Path | str) -> list[Row]:
    """Rows of a file with lines `doc_id⇥text`, or with lines `doc_id⇥title⇥text`.

    Raises:
        ValueError: A line has another number of columns than the first or than 2 or 3, an id is not one or
            comes twice, or the first line is a header; the message names file and line.
        FileNotFoundError: The file does not exist.
    """
    rows: dict[str, Row] = {}
    width = 0
    for number, line in read_lines(path):
        columns = line.split("\t")
        width = width or len(columns)
        if width not in (2, 3) or len(columns) != width:
            expected = f"{width} as before" if width in (2, 3) else "doc_id⇥text or doc_id⇥title⇥text"
            raise ValueError(f"{path}:{number}: {len(columns)} columns, expected {expected}")
        if number == 1 and is_header(columns):
            raise ValueError(f"{path}:1: {line!r} looks like a header; remove the line")
        check_id(columns[0], f"{path}:{number}: doc_id")
        if columns[0] in rows:
            raise ValueError(f"{path}:{number}: doc_id {columns[0]} comes twice")
        rows[columns[0]] = (columns[0], columns[1] if width == 3 else "", columns[-1])
    return list(rows.values())


def as_queries(queries: Queries) -> Mapping[Any, str]:
    """query_id → text from such a mapping, from texts (numbered from 0), or from a file of topics.

    Raises:
        ValueError: A table is given, or as in `read_topics`.
        FileNotFoundError: A text is given that is no file's path.
    """
    if queries is None or isinstance(queries, Mapping):
        return queries or {}
    if isinstance(queries, str | Path):
        if not os.path.isfile(queries):
            raise FileNotFoundError(
                f"{str(queries)!r:.80}: no such file of queries; give texts as a list, or query_id → text"
            )
        return read_topics(queries)
    if _names_in(queries) is not None:
        raise ValueError("queries is a table, expected a list of texts, query_id → text or a file's path")
    return {str(number): text for number, text in enumerate(queries)}


def as_qrels(qrels: Judgements) -> Qrels:
    """query_id → doc_id → grade from such a mapping, a file, or a table with the columns of BEIR's files.

    Raises:
        ValueError: A column is missing, a pair is judged twice, an id is none, or as in `read_qrels`.
        FileNotFoundError: The file does not exist.
    """
    if qrels is None or isinstance(qrels, Mapping):
        return qrels or {}
    if isinstance(qrels, str | Path):
        return read_qrels(qrels)
    there, column = _columns(qrels, "qrels")
    if not set(BEIR_HEADER) <= set(there):
        raise ValueError(f"qrels need the columns {', '.join(BEIR_HEADER)}; they have {there}")
    found: Qrels = {}
    for row, (query_id, doc_id, grade) in enumerate(zip(*map(column, BEIR_HEADER), strict=True)):
        grades = found.setdefault(text_id(query_id), {})
        if text_id(doc_id) in grades:
            raise ValueError(f"qrels: row {row}: document {doc_id} is judged twice for query {query_id}")
        grades[text_id(doc_id)] = grade
    return found


def _names_in(table: Any) -> list | None:
    """Names of the columns of a Dataset or DataFrame; None for what has no columns."""
    names = getattr(table, "column_names", None)
    names = getattr(table, "columns", None) if names is None else names
    return None if names is None else list(names)


def _columns(table: Iterable, what: str) -> tuple[list, Callable[[str], list]]:
    """The names of a table's columns, and a function that gives the values of one; also of mappings."""
    names = _names_in(table)
    if names is not None:
        return names, lambda name: list(table[name])
    rows = list(table)
    for number, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(f"{what}: row {number} is {row!r:.60}, expected column name → value")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return names, lambda name: [row.get(name) for row in rows]


def _rows(ids: Iterable | None, titles: Iterable | None, texts: list, what: str) -> list[Row]:
    """Rows of texts that are strings; a missing title is empty, and missing ids are numbers from 0."""
    parts = {
        "ids": list(range(len(texts)) if ids is None else ids),
        "titles": [""] * len(texts) if titles is None else list(titles),
    }
    for name, part in parts.items():
        if len(part) != len(texts):
            raise ValueError(f"{what}: {len(texts)} texts need as many {name}, got {len(part)}")
    if not texts:
        raise ValueError(f"{what}: there is no text")
    for row, (doc_id, text) in enumerate(zip(parts["ids"], texts, strict=True)):
        if not isinstance(text, str):
            raise ValueError(f"{what}: row {row} ({doc_id!r:.40}): the text is {text!r:.40}; it may be ''")
    titles = ["" if not isinstance(t, str) and str(t) in ABSENT else t for t in parts["titles"]]
    return list(zip(parts["ids"], titles, texts, strict=True))
