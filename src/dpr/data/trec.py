"""TREC runs and judgements: one reader and one writer, ordered as trec_eval orders.

A run file has six columns, `query_id Q0 doc_id rank score tag`. Whatever wrote it, hits count in
the order of score and then doc_id, both descending, with scores compared in single precision:
that is what trec_eval does, so a file means the same to every tool.

Source: https://github.com/usnistgov/trec_eval (form_res_rels.c, get_trec_results.c).
"""

import math
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np

from dpr.files import read_jsonl, read_lines, write_text

Qrels = dict[str, dict[str, int]]
BEIR_HEADER = ["query-id", "corpus-id", "score"]


class Run(dict[str, dict[str, float]]):
    """A ranking for each query: `run[query_id][doc_id]` is a score, larger is better.

    Args:
        hits: The scores; queries and documents in any order.
        tag: The system's name, the sixth column of a run file.
    """

    def __init__(self, hits: Mapping[str, Mapping[str, float]], tag: str = "dpr"):
        super().__init__({query_id: dict(scores) for query_id, scores in hits.items()})
        self.tag = tag

    def truncated(self, depth: int) -> "Run":
        """Keep the best `depth` hits of each query."""
        return Run({q: dict(ordered_hits(scores)[:depth]) for q, scores in self.items()}, self.tag)


def ordered_hits(scores: Mapping[str, float]) -> list[tuple[str, float]]:
    """Sort one query's hits by score, then doc_id, both descending, as trec_eval does.

    Args:
        scores: doc_id → score; compared in float32, trec_eval's precision.

    Returns:
        (doc_id, score) pairs, best first.

    >>> ordered_hits({"a": 1.0, "b": 2.0, "c": 1.0})
    [('b', 2.0), ('c', 1.0), ('a', 1.0)]
    """
    return sorted(scores.items(), key=lambda hit: (single(hit[1]), hit[0]), reverse=True)


def write_run(path: Path | str, run: Mapping[str, Mapping[str, float]], tag: str | None = None) -> None:
    """Write a run file, best hit first, ranks from 1, scores in the digits of single precision.

    Args:
        path: The file; gzipped where it ends in .gz. Written atomically.
        run: Scores by query and document, each query's hits in the order the system ranked them.
        tag: The system's name; by default the run's own.

    Raises:
        ValueError: A score is not finite, an id or the tag is empty or holds white space, or a
            score rises with rank: a sign that distances were taken for scores. Systems that
            return hits unordered sort them with `ordered_hits` first.
    """
    tag = tag or getattr(run, "tag", "dpr")
    check_id(tag, f"{path}: tag")
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


def read_run(path: Path | str) -> Run:
    """Read a run file of any system; the rank column is not trusted, scores decide.

    Returns:
        Each query's hits in trec_eval's order, with the file's tag.

    Raises:
        ValueError: A line has not six columns, a score is no finite number, a document comes
            twice for a query, a file holds two tags, or scores rise with the rank column
            throughout a query (distances written as scores); names file and line.
        FileNotFoundError: No such file.
    """
    hits: dict[str, dict[str, float]] = {}
    ranks: dict[str, dict[str, int]] = {}
    tag = None
    for number, line in read_lines(path):
        columns = line.split()
        if len(columns) != 6:
            raise ValueError(
                f"{path}:{number}: expected 6 columns (query_id Q0 doc_id rank score tag), got {len(columns)}"
            )
        query_id, _, doc_id, rank, score, line_tag = columns
        scores = hits.setdefault(query_id, {})
        if doc_id in scores:
            raise ValueError(f"{path}:{number}: document {doc_id} comes twice for query {query_id}")
        scores[doc_id] = _number(score, f"{path}:{number}: score")
        ranks.setdefault(query_id, {})[doc_id] = int(_number(rank, f"{path}:{number}: rank"))
        if tag not in (None, line_tag):
            raise ValueError(f"{path}:{number}: tag {line_tag} after {tag}; one file holds one run")
        tag = line_tag
    for query_id, scores in hits.items():
        _refuse_distances(path, query_id, scores, ranks[query_id])
    return Run({q: dict(ordered_hits(scores)) for q, scores in hits.items()}, tag)


def _refuse_distances(
    path: Path | str, query_id: str, scores: dict[str, float], ranks: dict[str, int]
) -> None:
    """Refuse a query whose scores never fall and somewhere rise from rank to rank."""
    if len(set(ranks.values())) < len(ranks):
        return  # a rank column that says nothing
    by_rank = [scores[doc_id] for doc_id in sorted(ranks, key=ranks.__getitem__)]
    if len(by_rank) > 1 and by_rank[0] < by_rank[-1] and all(a <= b for a, b in pairwise(by_rank)):
        raise ValueError(
            f"{path}: query {query_id}: scores rise with rank, from {by_rank[0]} to {by_rank[-1]}; "
            "these look like distances: negate them"
        )


def read_qrels(path: Path | str) -> Qrels:
    """Read judgements, TREC's four columns or BEIR's three with a header.

    Args:
        path: `query_id iteration doc_id relevance` separated by white space, or tab-separated
            under the header `query-id corpus-id score`.

    Returns:
        qrels[query_id][doc_id] = relevance; grades as in the file, −1 included.

    Raises:
        ValueError: Wrong column count, a grade that is no whole number, or a pair judged twice;
            names file and line.
        FileNotFoundError: No such file.
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


def single(score: float) -> np.float32:
    """The score as trec_eval holds it, in single precision; infinite where that overflows."""
    with np.errstate(over="ignore"):
        return np.float32(score)


def _number(text: str, where: str) -> float:
    """Read a finite number or say where it is not one."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{where} {text!r} is not a finite number")
    return value


def check_id(value: str, where: str) -> None:
    """Refuse what cannot stand in a column of a run file.

    Raises:
        ValueError: No string, empty, or with white space; begins with `where`.
    """
    if not isinstance(value, str) or not value or value.split() != [value]:
        raise ValueError(f"{where} {value!r} must be a string without white space")


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
