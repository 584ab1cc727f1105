"""Reading and writing TREC runs and judgements, with hits in the order of trec_eval.

A run file has six columns, `query_id Q0 doc_id rank score tag`. Whatever the order in the file, hits
are ordered by score and then doc_id, both descending, with scores compared in single precision.
trec_eval does the same, so a file means the same to every tool.

Source: https://github.com/usnistgov/trec_eval (form_res_rels.c, get_trec_results.c).
"""

import math
import re
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from dpr.arguments import checked
from dpr.data.text import SURROGATE
from dpr.files import read_jsonl, read_lines, write_text

Qrels = dict[str, dict[str, int]]
NUMBERS = (float, int, np.floating, np.integer)
# Names of columns, also with "id" behind them
HEADERS = {"query", "queries", "question", "topic", "text", "title", "passage", "document", "doc", "corpus"}
HEADERS |= {"pos", "positive", "neg", "negative", "anchor", "id", "qid", "pid", "did"}
BEIR_HEADER = ["query-id", "corpus-id", "score"]


class Run(dict[str, dict[str, float]]):
    """A ranking for each query: `run[query_id][doc_id]` is a score, larger is better.

    Args:
        hits: query_id → doc_id → score, in any order; ids that are whole numbers become text.
        tag: The system's name, the sixth column of a run file.

    Raises:
        ValueError: An id is neither text nor a whole number, or a score is not a finite number; the
            message names query and document.
    """

    def __init__(self, hits: Mapping[str, Mapping[str, float]], tag: str = "dpr"):
        super().__init__(checked_hits(hits))
        self.tag = tag

    def __repr__(self) -> str:
        return f"<Run {self.tag}: {len(self):,} queries, {sum(map(len, self.values())):,} hits>"

    @checked
    def truncated(self, depth: int) -> "Run":
        """Keep the best `depth` hits of each query, in trec_eval's order."""
        return Run({q: dict(ordered_hits(scores)[:depth]) for q, scores in self.items()}, self.tag)


def without_own_documents(run: Run, query_ids: Collection[str], depth: int) -> Run:
    """Leave out the document that a query is itself, which has the query's id, then cut to a depth.

    Args:
        run: A run that was searched one hit deeper than `depth`.
        query_ids: Ids of the queries that are documents, such as `Collection.own_documents`.
        depth: Most hits per query to keep.
    """
    own = set(query_ids)
    hits = {q: {d: s for d, s in found.items() if d != q or q not in own} for q, found in run.items()}
    return Run(hits, run.tag).truncated(depth)


def ordered_hits(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """Sort one query's hits by score, then doc_id, both descending, as trec_eval does.

    Args:
        scores: doc_id → score; compared in float32, trec_eval's precision.

    Returns:
        (doc_id, score) pairs, best first.

    >>> ordered_hits({"a": 1.0, "b": 2.0, "c": 1.0})
    [('b', 2.0), ('c', 1.0), ('a', 1.0)]
    """
    with np.errstate(over="ignore"):
        rounded = np.fromiter(scores.values(), np.float64, len(scores)).astype(np.float32).tolist()
    return [(doc_id, scores[doc_id]) for _, doc_id in sorted(zip(rounded, scores, strict=True), reverse=True)]


@checked
def write_run(path: Path | str, run: Mapping[str, Mapping[str, float]], tag: str | None = None) -> None:
    """Write a run file, best hit first, with ranks from 1 and scores in single precision.

    Args:
        path: The file, gzipped if it ends in .gz; written atomically.
        run: query_id → doc_id → score; each query's hits in the order in which the system ranked them.
        tag: The system's name; by default the tag of the run.

    Raises:
        ValueError: A score is not finite, an id or the tag is empty or holds white space, or a
            score rises with rank, a sign that distances were taken for scores. Hits that are not
            in order must be sorted with `ordered_hits` first.
    """
    tag = tag or getattr(run, "tag", "dpr")
    check_id(tag, f"{path}: tag")
    try:
        run = with_text_ids(run)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    lines = []
    for query_id, scores in run.items():
        check_id(query_id, f"{path}: query_id")
        previous = math.inf
        for doc_id, score in scores.items():
            check_id(doc_id, f"{path}: query {query_id}: doc_id")
            if not np.isfinite(single(score)):
                raise ValueError(f"{path}: query {query_id}, document {doc_id}: score {score} is not finite")
            if single(score) > single(previous):
                raise ValueError(
                    f"{path}: query {query_id}: the score rises with rank, {previous} to {score} at "
                    f"{doc_id}; larger must be better (distances? negate them) and hits best first"
                )
            previous = score
        for rank, (doc_id, score) in enumerate(ordered_hits(scores), start=1):
            lines.append(f"{query_id} Q0 {doc_id} {rank} {single(score)!s} {tag}\n")
    write_text(path, "".join(lines))


@checked
def read_run(path: Path | str) -> Run:
    """Read a run file of any system; hits are ordered by score, not by the rank column.

    Returns:
        The run, with each query's hits in trec_eval's order and the file's tag.

    Raises:
        ValueError: A line does not have six columns, a score is not a finite number, a document comes
            twice for a query, the file holds two tags, or the scores of a query rise with the
            rank (distances written as scores); the message names the file and the line or query.
        FileNotFoundError: The file does not exist.
    """
    hits: dict[str, dict[str, float]] = {}
    ranks: dict[str, dict[str, float]] = {}
    tag, name = None, str(path)  # a path becomes text slowly, and each line's place is named
    for number, line in read_lines(path):
        columns = line.split()
        if len(columns) != 6:
            raise ValueError(
                f"{path}:{number}: expected 6 columns (query_id Q0 doc_id rank score tag), got {len(columns)}"
            )
        query_id, _, doc_id, rank, score, line_tag = columns
        if query_id not in hits:
            hits[query_id], ranks[query_id] = {}, {}
        scores = hits[query_id]
        if doc_id in scores:
            raise ValueError(f"{path}:{number}: document {doc_id} comes twice for query {query_id}")
        scores[doc_id] = _number(score, f"{name}:{number}: score")
        ranks[query_id][doc_id] = _rank(rank)
        if line_tag != tag and tag is not None:
            raise ValueError(f"{path}:{number}: tag {line_tag} after {tag}; one file holds one run")
        tag = line_tag
    for query_id, scores in hits.items():
        _refuse_distances(path, query_id, scores, ranks[query_id])
    return Run({q: dict(ordered_hits(scores)) for q, scores in hits.items()}, tag)


def _refuse_distances(
    path: Path | str, query_id: str, scores: dict[str, float], ranks: dict[str, float]
) -> None:
    """Raise ValueError if a query's scores never fall, and somewhere rise, from rank to rank."""
    if len(set(ranks.values())) < len(ranks) or any(map(math.isnan, ranks.values())):
        return  # the rank column gives no order
    by_rank = [scores[doc_id] for doc_id in sorted(ranks, key=ranks.__getitem__)]
    if len(by_rank) > 1 and by_rank[0] < by_rank[-1] and all(a <= b for a, b in pairwise(by_rank)):
        raise ValueError(
            f"{path}: query {query_id}: scores rise with rank, from {by_rank[0]} to {by_rank[-1]}; "
            "these look like distances: negate them"
        )


@checked
def read_qrels(path: Path | str) -> Qrels:
    """Read judgements in TREC's four columns, or in BEIR's three columns with a header.

    Args:
        path: A file with the columns `query_id iteration doc_id relevance` separated by white space,
            or with the header `query-id corpus-id score` and columns separated by tabs.

    Returns:
        qrels[query_id][doc_id] = relevance; grades as in the file, negative ones included.

    Raises:
        ValueError: A wrong number of columns, a grade that is not a whole number, or a pair judged twice
            (the message names file and line); or no judgement at all.
        FileNotFoundError: The file does not exist.
    """
    qrels: Qrels = {}
    beir = False
    for number, line in read_lines(path):
        if number == 1 and line.split("\t") == BEIR_HEADER:
            beir = True
            continue
        columns = line.split("\t") if beir else line.split()
        if len(columns) != (3 if beir else 4):
            raise ValueError(
                f"{path}:{number}: expected {3 if beir else 4} columns, got {len(columns)}"
                + ("" if beir else f" (a BEIR file begins with the header {' '.join(BEIR_HEADER)})")
            )
        query_id, doc_id, grade = columns[0], columns[-2], columns[-1]
        check_id(query_id, f"{path}:{number}: query_id")
        check_id(doc_id, f"{path}:{number}: doc_id")
        relevance = _number(grade, f"{path}:{number}: relevance")
        if relevance != int(relevance):
            raise ValueError(f"{path}:{number}: relevance must be a whole number, got {grade}")
        grades = qrels.setdefault(query_id, {})
        if doc_id in grades:
            raise ValueError(f"{path}:{number}: document {doc_id} is judged twice for query {query_id}")
        grades[doc_id] = int(relevance)
    if not qrels:
        raise ValueError(f"{path}: a header and no judgement")
    return qrels


def is_header(columns: Iterable[str]) -> bool:
    """Whether all columns of a line are names that columns of queries and passages usually have."""
    names = [re.sub(r"[\W_]+", "", column.casefold()) for column in columns]
    return all(name in HEADERS or name.removesuffix("id") in HEADERS for name in names)


def single(score: float) -> np.float32:
    """The score in single precision, as trec_eval stores it; infinite if it overflows."""
    with np.errstate(over="ignore"):
        return np.float32(score)


def _rank(text: str) -> float:
    """A rank as a number, or NaN where the column holds something else, as some systems write."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def _number(text: str, where: str) -> float:
    """Parse a finite number in ASCII digits, or raise a ValueError that begins with `where`."""
    try:
        value = float(text) if text.isascii() and "_" not in text else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where} {text!r} is not a finite number")
    return value


def text_id(value: str | int) -> str:
    """Give an id as text; a whole number, as pandas columns and FAISS rows hold it, becomes its digits.

    Raises:
        ValueError: Neither a string nor a whole number.

    >>> text_id(7), text_id("7")
    ('7', '7')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"an id must be a string or a whole number, got {value!r}")


def with_text_ids(nested: Mapping[Any, Mapping[Any, Any]]) -> dict[str, dict[str, Any]]:
    """Copy a run or judgements, query_id → doc_id → value, with `text_id` of every id.

    Raises:
        ValueError: It is not such a mapping of mappings, an id is neither text nor a whole number, or two
            ids become the same text.
    """
    if not isinstance(nested, Mapping) or not all(isinstance(docs, Mapping) for docs in nested.values()):
        raise ValueError(f"expected query_id → doc_id → value, got {nested!r:.80}")
    found = {text_id(q): {text_id(d): value for d, value in docs.items()} for q, docs in nested.items()}
    if sum(map(len, found.values())) < sum(map(len, nested.values())) or len(found) < len(nested):
        raise ValueError("two ids are the same once whole numbers become text, such as 7 and '7'")
    return found


def checked_qrels(qrels: Mapping[Any, Mapping[Any, Any]]) -> Qrels:
    """Copy judgements, with `text_id` of every id.

    Raises:
        ValueError: A grade is not a whole number; the message names query and document.
    """
    qrels = with_text_ids(qrels)
    for query_id, grades in qrels.items():
        for doc_id, grade in grades.items():
            if not isinstance(grade, NUMBERS) or isinstance(grade, bool) or grade != grade // 1:
                raise ValueError(f"query {query_id}, document {doc_id}: grade {grade!r} is no whole number")
    return {q: {d: int(grade) for d, grade in grades.items()} for q, grades in qrels.items()}


def checked_hits(hits: Mapping[Any, Mapping[Any, Any]]) -> dict[str, dict[str, float]]:
    """Copy a run, with `text_id` of every id.

    Raises:
        ValueError: A score is not a finite number, so that the order of hits would depend on chance; the
            message names query and document.
    """
    hits = with_text_ids(hits)
    for query_id, scores in hits.items():
        for doc_id, score in scores.items():
            try:
                finite = isinstance(score, NUMBERS) and math.isfinite(score) and not isinstance(score, bool)
            except OverflowError:  # a whole number beyond any float
                finite = False
            if not finite:
                raise ValueError(
                    f"query {query_id}, document {doc_id}: score {score!r} is not a finite number"
                )
    return hits


def checked_queries(queries: Mapping[Any, str]) -> dict[str, str]:
    """Copy queries, query_id → text, with `text_id` of every id.

    Raises:
        ValueError: It is no mapping, or a text is no string or holds half a character.
    """
    if not isinstance(queries, Mapping):
        raise ValueError(f"queries must be query_id → text, got {type(queries).__name__}")
    for query_id, text in queries.items():
        if not isinstance(text, str) or SURROGATE.search(text):
            raise ValueError(f"query {query_id} is {text!a:.80}, expected a text of whole characters")
    found = {text_id(query_id): text for query_id, text in queries.items()}
    if len(found) < len(queries):
        raise ValueError("two query ids are the same once whole numbers become text, such as 7 and '7'")
    return found


def check_id(value: str, where: str) -> None:
    """Check that a value can be written as a column of a run file.

    Raises:
        ValueError: Not a string, empty, or with white space or half a character; the message begins
            with `where`.
    """
    if not isinstance(value, str) or value.split() != [value]:
        raise ValueError(f"{where} {value!r} must be a string without white space")
    if SURROGATE.search(value):
        raise ValueError(f"{where} {value!a} holds half a character (a lone surrogate)")


@checked
def read_topics(path: Path | str, field: str = "question") -> dict[str, str]:
    """Read queries from TREC-COVID's XML, from `query_id⇥text` lines, or from BEIR's jsonl.

    Args:
        path: The file; the ending .xml or .jsonl tells its format, any other means tab-separated lines.
        field: For XML, the child of a topic that holds the query: `query`, `question` or `narrative`.

    Returns:
        query_id → text, in the file's order.

    Raises:
        ValueError: Malformed XML, JSON or columns, a missing field, an id that comes twice, or no query.
        FileNotFoundError: The file does not exist.
    """
    path = Path(path)
    ending = Path(path.name.removesuffix(".gz")).suffix
    topics: dict[str, str] = {}
    halves: list[str] = []
    for where, query_id, text in _topic_records(path, ending, field):
        if not isinstance(query_id, str) or not query_id:
            raise ValueError(f"{where}: the query id is missing or no string")
        check_id(query_id, f"{where}: query id")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{where}: query {query_id} has no text")
        if query_id in topics:
            raise ValueError(f"{where}: query {query_id} comes twice")
        if SURROGATE.search(text):
            halves.append(where)
        topics[query_id] = SURROGATE.sub("\ufffd", text.strip())
    if not topics:
        raise ValueError(f"{path}: no query in it")
    if halves:
        message = f"{len(halves)} queries held half a character (a lone surrogate), now \ufffd"
        warnings.warn(f"{message}; first {halves[0]}", stacklevel=3)
    return topics


def _topic_records(path: Path, ending: str, field: str):
    """Yield (place in the file, query_id, text) for each query of a file in any of the three formats."""
    if ending == ".xml":
        lines = dict(read_lines(path))
        text = "\n".join(lines.get(number, "") for number in range(1, max(lines) + 1))
        try:
            root = ElementTree.fromstring(text)
        except ElementTree.ParseError as error:
            raise ValueError(f"{path}:{error.position[0]}: not XML ({error})") from None
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
            if number == 1 and is_header(columns):
                raise ValueError(f"{path}:1: {line!r} looks like a header; remove the line")
            yield f"{path}:{number}", *columns
