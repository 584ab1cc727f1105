"""Judgements made from answers: a passage whose text holds an answer to a query is relevant to it."""

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from dpr.arguments import checked
from dpr.data.collection import Collection
from dpr.data.trec import Qrels, check_id, checked_qrels, text_id
from dpr.files import read_jsonl


@dataclass(frozen=True)
class AnswerQrels:
    """Judgements made from answers, and the answer that each of them rests on.

    Attributes:
        qrels: query_id → doc_id → 1, for every query with answers, documents in the collection's order. A
            query whose answers no passage holds has none, and counts as 0 in `evaluate`.
        matched: query_id → doc_id → the query's first answer that the passage holds, as it was given.
        within_titles: Whether only passages of the query's own article were looked at.
    """

    qrels: Qrels = field(repr=False)
    matched: dict[str, dict[str, str]] = field(repr=False)
    within_titles: bool

    @property
    def queries_without_match(self) -> list[str]:
        """Ids of the queries none of whose answers was found."""
        return [query_id for query_id, grades in self.qrels.items() if not grades]


class Agreement(NamedTuple):
    """How far judgements agree with others, over the queries that both have.

    Attributes:
        precision: Share of our relevant pairs of query and document that are relevant in the gold
            judgements too, from 0 to 1; NaN if there is none.
        recall: Share of the relevant pairs of the gold judgements that are relevant in ours; likewise.
        num_relevant: Number of our relevant pairs.
        num_gold: Number of relevant pairs in the gold judgements.
        num_queries: Number of queries that both judge.
        num_without: Number of these queries without a relevant document in our judgements.
    """

    precision: float
    recall: float
    num_relevant: int
    num_gold: int
    num_queries: int
    num_without: int


class _Spaces(dict):
    """Character code → what `str.translate` writes for it, so that spaces stand between all tokens."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        kind = unicodedata.category(character)[0]
        self[code] = character if kind in "LNM" else " " if kind in "ZC" else f" {character} "
        return self[code]


SPACES = _Spaces()


def answer_tokens(text: str) -> list[str]:
    """The tokens in which answers are looked for: runs of letters, digits and marks, and single other signs.

    The text is brought to Unicode's NFD and lower-cased; white space and control characters are left out.

    Source: `SimpleTokenizer` and `has_answer`, https://github.com/facebookresearch/DPR.

    >>> answer_tokens("Levi's: $1,000")
    ['levi', "'", 's', ':', '$', '1', ',', '000']
    """
    return unicodedata.normalize("NFD", text).translate(SPACES).lower().split()


@checked
def qrels_from_answers(
    collection: Collection,
    answers: Mapping[Any, Sequence[str]],
    titles: Mapping[Any, str] | None = None,
) -> AnswerQrels:
    """Judge each passage relevant, with grade 1, whose text holds an answer to the query.

    An answer is held if its `answer_tokens` come one after the other among those of the passage's text. The
    passage's title is not looked at, nor are queries that were appended to the passage (`expand`).

    Args:
        collection: The passages; their judgements, if there are any, play no part.
        answers: query_id → one or more answers, each of which is enough. Other queries get no judgements.
        titles: query_id → title of the article that the question is about: only passages with exactly this
            title can be relevant, which leaves out many that name the answer by chance. By default all can.

    Raises:
        ValueError: There are no answers; a query is not in the collection, its answers are not one or more
            strings, or one of them has no token; or, with `titles`, a query has no title or one that no
            passage has. The message names the query.

    Source: Karpukhin et al. 2020, Dense Passage Retrieval, section 5 (top-k accuracy); Lerner et al. 2022,
    ViQuAE (answers within the article).
    """
    passages = (collection.unexpanded or collection).passages
    phrases = _phrases(answers, collection)
    rows_of = _rows([passage.title] for passage in passages)
    titles = None if titles is None else _titles(titles, phrases, rows_of)
    texts = [f" {' '.join(answer_tokens(passage.text))} " for passage in passages]
    rows_with = _rows(set(text.split()) for text in texts)
    matched = {}
    for query_id, of_query in phrases.items():
        found: dict[int, str] = {}
        for answer, phrase in of_query.items():
            rows = min((rows_with.get(token, set()) for token in phrase.split()), key=len)  # the rarest
            rows = rows if titles is None else rows & rows_of[titles[query_id]]
            for row in rows:
                if phrase in texts[row]:
                    found.setdefault(row, answer)
        matched[query_id] = {passages[row].doc_id: found[row] for row in sorted(found)}
    qrels = {query_id: dict.fromkeys(found, 1) for query_id, found in matched.items()}
    return AnswerQrels(qrels, matched, titles is not None)


def _rows(keys: Iterable[Iterable[str]]) -> dict[str, set[int]]:
    """Key → the rows that have it, from 0, of the keys of each row."""
    rows: dict[str, set[int]] = {}
    for row, of_row in enumerate(keys):
        for key in of_row:
            rows.setdefault(key, set()).add(row)
    return rows


def _phrases(answers: Mapping[Any, Sequence[str]], collection: Collection) -> dict[str, dict[str, str]]:
    """query_id → answer → its tokens between spaces, or a ValueError that names the query."""
    if not answers:
        raise ValueError("no answers: expected query_id → one or more answers")
    phrases: dict[str, dict[str, str]] = {}
    for query_id, of_query in _with_text_ids(answers, "answers").items():
        if query_id not in collection.all_queries:
            raise ValueError(
                f"query {query_id!r:.60} has answers but is not in {collection.name}: give the answers of "
                "this collection's queries only"
            )
        _refuse_unless_answers(of_query, f"query {query_id}: answers")
        phrases[query_id] = {answer: f" {' '.join(answer_tokens(answer))} " for answer in of_query}
    return phrases


def _with_text_ids(given: Mapping[Any, Any], what: str) -> dict[str, Any]:
    """Copy query_id → value with `text_id` of every id, or raise a ValueError if two become the same."""
    found = {text_id(query_id): value for query_id, value in given.items()}
    if len(found) < len(given):
        raise ValueError(f"{what}: two query ids are the same as text, such as 7 and '7'")
    return found


def _refuse_unless_answers(answers: Any, where: str) -> None:
    """Raise ValueError, which begins with `where`, if these are not one or more texts with a token each."""
    several = isinstance(answers, Sequence) and not isinstance(answers, str | bytes)
    if not several or not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"{where} are {answers!r:.60}, expected a list of strings")
    if not answers:
        raise ValueError(f"{where}: the list is empty; leave out queries without an answer")
    blank = [answer for answer in answers if not answer_tokens(answer)]
    if blank:
        raise ValueError(f"{where}: {blank[0]!r:.60} has no letter, digit or other sign; leave it out")


def _titles(titles: Mapping[Any, str], queries: Iterable[str], known: Mapping[str, Any]) -> dict[str, str]:
    """query_id → title, or a ValueError that names one of `queries` without, or with a title not `known`."""
    found = _with_text_ids(titles, "titles")
    for query_id in queries:
        if query_id not in found:
            raise ValueError(f"query {query_id} has answers but no title: add it, or give no titles at all")
        if not isinstance(found[query_id], str) or found[query_id] not in known:
            raise ValueError(
                f"query {query_id}: no passage has the title {found[query_id]!r:.80}; titles must be equal, "
                "case and spaces included"
            )
    return found


@checked
def read_answers(path: Path | str) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Read lines of `{"_id": …, "answers": […], "title": …}`, where the title is optional.

    Args:
        path: A UTF-8 file, gzipped if its name ends in .gz.

    Returns:
        query_id → answers, and query_id → title of the article that the question is about; queries whose
        title is missing or empty are not in the second.

    Raises:
        ValueError: A line is not a JSON object; an id is no string, is empty, holds white space or comes
            twice; answers are not a list of one or more strings that each have a token; or a title is no
            string. The message names file, line and field.
        FileNotFoundError: The file does not exist.
    """
    answers: dict[str, list[str]] = {}
    titles: dict[str, str] = {}
    for number, record in read_jsonl(path):
        where, query_id, title = f"{path}:{number}", record.get("_id"), record.get("title")
        check_id(query_id, f"{where}: _id")
        if query_id in answers:
            raise ValueError(f"{where}: _id {query_id} comes twice")
        if "answers" not in record:
            raise ValueError(f"{where}: answers is missing, expected a list of strings")
        _refuse_unless_answers(record["answers"], f"{where}: answers")
        if not isinstance(title, str | None):
            raise ValueError(f"{where}: title is {type(title).__name__}, expected a string")
        answers[query_id] = record["answers"]
        if title:
            titles[query_id] = title
    return answers, titles


@checked
def agreement(qrels: Mapping[Any, Mapping[Any, int]], gold: Mapping[Any, Mapping[Any, int]]) -> Agreement:
    """Compare the relevant pairs (grade above 0) of judgements with those of others, such as human ones.

    Args:
        qrels: query_id → doc_id → grade, such as `AnswerQrels.qrels`.
        gold: The judgements that are taken as right; queries that only one of the two has are left out.

    Raises:
        ValueError: The two have no query in common, or a grade is no whole number.

    >>> agreement({"q1": {"a": 1, "b": 1}}, {"q1": {"a": 1}})[:2]
    (0.5, 1.0)
    """
    qrels, gold = checked_qrels(qrels), checked_qrels(gold)
    common = [query_id for query_id in qrels if query_id in gold]
    if not common:
        raise ValueError(f"{len(qrels)} queries and the {len(gold)} of gold have none in common")
    ours, theirs = ({(q, d) for q in common for d, g in of[q].items() if g > 0} for of in (qrels, gold))
    both = len(ours & theirs)
    return Agreement(
        precision=both / len(ours) if ours else math.nan,
        recall=both / len(theirs) if theirs else math.nan,
        num_relevant=len(ours),
        num_gold=len(theirs),
        num_queries=len(common),
        num_without=len(common) - len({query_id for query_id, _ in ours}),
    )
