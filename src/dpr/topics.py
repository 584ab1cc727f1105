"""Queries from topic files: TREC-COVID's XML, tab-separated lines, BEIR's jsonl."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

from dpr.files import read_jsonl, read_lines
from dpr.trec import check_id


def read_topics(path: Path | str, field: str = "question") -> dict[str, str]:
    """Read queries from TREC-COVID's XML, from `query_id⇥text` lines, or from BEIR's jsonl.

    Args:
        path: The file; its ending (.xml, .jsonl, or else tab-separated) tells the form.
        field: For XML, which child of a topic is the query: `query`, `question` or `narrative`.

    Returns:
        query_id → text, in the file's order.

    Raises:
        ValueError: Malformed XML, JSON or columns, a missing field, an id given twice.
        FileNotFoundError: No such file.
    """
    path = Path(path)
    ending = Path(path.name.removesuffix(".gz")).suffix
    topics: dict[str, str] = {}
    for where, query_id, text in _topic_records(path, ending, field):
        if not isinstance(query_id, str) or not query_id:
            raise ValueError(f"{where}: the query id is missing or no string")
        check_id(query_id, f"{where}: query id")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{where}: query {query_id} has no text")
        if query_id in topics:
            raise ValueError(f"{where}: query {query_id} comes twice")
        topics[query_id] = text.strip()
    if not topics:
        raise ValueError(f"{path}: no query in it")
    return topics


def _topic_records(path: Path, ending: str, field: str):
    """Yield (place, query_id, text) from each topic of a file of any of the three forms."""
    if ending == ".xml":
        text = "\n".join(line for _, line in read_lines(path))
        try:
            root = ElementTree.fromstring(text)
        except ElementTree.ParseError as error:
            raise ValueError(f"{path}: not XML ({error})") from None
        for topic in root.iter("topic"):
            number = topic.get("number")
            if topic.find(field) is None:
                raise ValueError(f"{path}: topic {number} has no <{field}>; query, question or narrative?")
            yield f"{path}: topic {number}", number, "".join(topic.find(field).itertext())
    elif ending == ".jsonl":
        for number, record in read_jsonl(path):
            yield f"{path}:{number}", record.get("_id"), record.get("text")
    else:
        for number, line in read_lines(path):
            columns = line.split("\t")
            if len(columns) != 2:
                raise ValueError(f"{path}:{number}: expected query_id⇥text, got {len(columns)} columns")
            yield f"{path}:{number}", *columns
