"""A test collection: passages, queries and judgements, with a fingerprint of its content."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from dpr.arguments import check_fields_of, checked
from dpr.data.own_texts import (
    Judgements,
    Queries,
    Row,
    as_qrels,
    as_queries,
    rows_of_records,
    rows_of_texts,
    rows_of_tsv,
)
from dpr.data.text import join_title_text, normalise, stable_hash
from dpr.data.trec import Qrels, check_id, checked_qrels, checked_queries, text_id

DEV_SHARE = 5  # without dev judgements, one train query in this many becomes a dev query


class Passage(NamedTuple):
    """One document of a collection; `title` or `text` may be empty."""

    doc_id: str
    title: str
    text: str

    @property
    def contents(self) -> str:
        """The text that is indexed and encoded: `join_title_text(title, text)`."""
        return join_title_text(self.title, self.text)


@dataclass(frozen=True, eq=False)
class Collection:
    """Passages with the queries and judgements of one split; those of other splits are kept as well.

    Ids that are whole numbers become text, and a title that is None becomes empty. If no split has a
    judgement, the collection can be searched but not evaluated, and `queries` are all queries.

    Args:
        name: The collection's name.
        passages: All N documents, each with a unique `doc_id`.
        all_queries: query_id → text, for the queries of every split.
        all_qrels: split name → judgements. Each judged query of `split` must have a text.
        split: The split whose queries and judgements `queries` and `qrels` return.
        scope: Which part of the corpus is searched: "full corpus" or the size of a sample.
        expansion: How generated queries were appended to the passages (see `expand`); None if they
            were not.
        unexpanded: The collection before that; None if nothing was appended.

    Raises:
        ValueError: A doc_id comes twice, is empty or holds white space; something is no `Passage`, or its
            text is no string; the split does not exist; or a judged query has no text.
    """

    name: str
    passages: Sequence[Passage] = field(repr=False)
    all_queries: dict[str, str] = field(repr=False)
    all_qrels: dict[str, Qrels] = field(repr=False)
    split: str = "test"
    scope: str = "full corpus"
    expansion: Mapping[str, Any] | None = None
    unexpanded: "Collection | None" = field(default=None, repr=False)

    def __post_init__(self):
        check_fields_of(self)
        passages = [_checked(p, f"{self.name}: passage {i}") for i, p in enumerate(self.passages)]
        if any(checked is not given for checked, given in zip(passages, self.passages, strict=True)):
            object.__setattr__(self, "passages", passages)
        object.__setattr__(self, "all_queries", checked_queries(self.all_queries))
        all_qrels = {split: checked_qrels(qrels) for split, qrels in self.all_qrels.items()}
        object.__setattr__(self, "all_qrels", all_qrels)
        for query_id in {*self.all_queries, *(q for qrels in all_qrels.values() for q in qrels)}:
            check_id(query_id, f"{self.name}: query_id")
        for doc_id in {d for qrels in all_qrels.values() for grades in qrels.values() for d in grades}:
            check_id(doc_id, f"{self.name}: judged doc_id")
        if self.split not in self.all_qrels:
            raise ValueError(f"{self.name} has no split {self.split!r}, only {sorted(self.all_qrels)}")
        if len(self.by_id) != len(self.passages):
            raise ValueError(
                f"{self.name}: {len(self.passages) - len(self.by_id)} doc_id given more than once"
            )
        unknown = [query_id for query_id in self.qrels if query_id not in self.all_queries]
        if unknown:
            raise ValueError(
                f"{self.name}: {len(unknown)} judged {self.split} queries have no text, first {unknown[0]!r}"
            )

    @classmethod
    @checked
    def from_texts(
        cls,
        texts: Mapping | Iterable,
        *,
        titles: Iterable | None = None,
        ids: Iterable | None = None,
        queries: Queries = None,
        qrels: Judgements = None,
        name: str = "texts",
    ) -> "Collection":
        """Make a collection of texts at hand; judgements, if there are any, become the split `test`.

        Args:
            texts: N strings, which may be empty, or doc_id → text.
            titles: N titles; None and NaN become empty.
            ids: N document ids; by default the keys of a mapping, else "0", "1", … .
            queries: query_id → text, or Q texts, which get the ids "0", "1", …, or the path of a file that
                `read_topics` reads.
            qrels: query_id → doc_id → grade, or the path of a file that `read_qrels` reads, or a table with
                the columns query-id, corpus-id and score. Without any the collection can be searched only.
            name: The collection's name.

        Raises:
            ValueError: There is no text, or one is no string (the message names its row, from 0); titles or
                ids are not N, or ids are given beside a mapping; queries or judgements are none of the above;
                no judged document is among the texts; or as in `Collection`.
            FileNotFoundError: The file of queries or judgements does not exist.
        """
        return cls._of(rows_of_texts(texts, titles, ids), queries, qrels, name)

    @classmethod
    @checked
    def from_records(
        cls,
        records: Iterable,
        *,
        doc_id: str = "doc_id",
        text: str = "text",
        title: str = "title",
        queries: Queries = None,
        qrels: Judgements = None,
        name: str = "records",
    ) -> "Collection":
        """Make a collection of the rows of a table.

        Args:
            records: A pandas DataFrame, a Hugging Face `datasets.Dataset`, or mappings, column → value.
            doc_id: The column of the ids; without a column `doc_id` they are "0", "1", … .
            text: The column of the texts.
            title: The column of the titles; without a column `title` they are empty.
            queries: As in `from_texts`.
            qrels: As in `from_texts`.
            name: The collection's name.

        Raises:
            ValueError: The column of the texts is missing, or another one that was named here (the message
                names the columns there are); a record is no mapping; or as in `from_texts`.
            FileNotFoundError: As in `from_texts`.
        """
        rows = rows_of_records(records, doc_id=doc_id, title=title, text=text)
        return cls._of(rows, queries, qrels, name)

    @classmethod
    @checked
    def from_tsv(
        cls,
        path: Path | str,
        *,
        queries: Queries = None,
        qrels: Judgements = None,
        name: str | None = None,
    ) -> "Collection":
        """Make a collection of a file such as MS MARCO's collection.tsv.

        Args:
            path: A file with lines `doc_id⇥text`, or with lines `doc_id⇥title⇥text`, plain or gzipped.
            queries: As in `from_texts`.
            qrels: As in `from_texts`.
            name: The collection's name; by default the file's, without its ending.

        Raises:
            ValueError: A line has another number of columns, an id is empty, has white space or comes twice,
                or the first line is a header (the message names file and line); or as in `from_texts`.
            FileNotFoundError: A file does not exist.
        """
        rows = rows_of_tsv(path)
        return cls._of(rows, queries, qrels, name or Path(Path(path).name.removesuffix(".gz")).stem)

    @classmethod
    def _of(cls, rows: Iterable[Row], queries: Queries, qrels: Judgements, name: str) -> "Collection":
        """Make a collection of rows, with one split, `test`."""
        made = cls(name, [Passage(*row) for row in rows], as_queries(queries), {"test": as_qrels(qrels)})
        judged = {doc_id for grades in made.qrels.values() for doc_id in grades}
        if judged and not judged & made.by_id.keys():
            raise ValueError(
                f"{name}: none of the {len(judged)} judged documents is among the texts: judged ids are like "
                f"{min(judged)!r}, those of the texts like {made.passages[0].doc_id!r}"
            )
        return made

    @property
    def qrels(self) -> Qrels:
        """Judgements of this split: query_id → doc_id → grade."""
        return self.all_qrels[self.split]

    @cached_property
    def queries(self) -> dict[str, str]:
        """query_id → text of the judged queries of this split, in the order of `all_queries`.

        If nothing is judged in any split, these are all queries.
        """
        if not any(self.all_qrels.values()):
            return dict(self.all_queries)
        return {query_id: text for query_id, text in self.all_queries.items() if query_id in self.qrels}

    @cached_property
    def by_id(self) -> dict[str, Passage]:
        """doc_id → passage."""
        return {passage.doc_id: passage for passage in self.passages}

    @cached_property
    def own_documents(self) -> frozenset[str]:
        """Ids of this split's queries that are documents themselves, which their search leaves out."""
        return frozenset(q for q, text in self.queries.items() if self.holds(q, text))

    @checked
    def holds(self, query_id: str, text: str) -> bool:
        """Whether a query is itself a document: one with its id and, but for case and white space, its text.

        A document that is judged relevant to itself does not count. Equal ids alone say nothing, as
        many collections number queries and documents alike.

        Source: BEIR's evaluation of ArguAna and Quora (`ignore_identical_ids`), which compares ids alone.
        """
        passage = (self.unexpanded or self).by_id.get(query_id)
        if passage is None or normalise(text) not in map(normalise, (passage.text, passage.contents)):
            return False
        return all(qrels.get(query_id, {}).get(query_id, 0) <= 0 for qrels in self.all_qrels.values())

    @property
    def doc_ids(self) -> list[str]:
        """The N document ids, in the order of `passages`."""
        return [passage.doc_id for passage in self.passages]

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over the ids, titles and texts of all passages, in order.

        Raises:
            ValueError: A document holds half a character (a lone surrogate), which no UTF-8 has.
        """
        try:
            return digest_of(field for passage in self.passages for field in passage)
        except UnicodeEncodeError as error:
            doc_id = next(p.doc_id for p in self.passages if error.object in p)
            raise ValueError(
                f"{self.name}: document {doc_id} holds half a character (a lone surrogate, "
                f"{error.object[error.start]!a}); replace it"
            ) from None

    @cached_property
    def queries_fingerprint(self) -> str:
        """16 hex digits of SHA-256 over this split's queries and judgements; their order does not matter."""
        judged = (f"{q}\t{d}\t{grade}" for q, grades in self.qrels.items() for d, grade in grades.items())
        return digest_of([*(f"{q}\t{text}" for q, text in sorted(self.queries.items())), *sorted(judged)])

    @checked
    def with_split(self, split: str) -> "Collection":
        """The same passages with the queries and judgements of another split."""
        return replace(self, split=split)

    @checked
    def sample(self, num_passages: int, num_queries: int, keep: Iterable[str] = ()) -> "Collection":
        """Cut to a smaller collection, always the same, in which every query has a relevant passage.

        Queries that have a relevant passage, or any if nothing is judged, are chosen by the hash of their
        id. All their relevant passages are kept; other passages are added by the hash of their id up to
        `num_passages`. Scores over a sample are not comparable with the full corpus, so `scope` names
        its size.

        Args:
            num_passages: How many passages to keep; more if the relevant ones alone are more.
            num_queries: At most how many queries of this split to keep; other splits are dropped.
            keep: doc_ids to add before other passages, such as the hits of a system for the queries,
                so that the sample is not too easy to search.

        Raises:
            ValueError: One of the two numbers is below 1.
        """
        if num_passages < 1 or num_queries < 1:
            raise ValueError(
                f"sample needs at least 1 passage and 1 query, got {num_passages}, {num_queries}"
            )
        solvable = [
            q
            for q in self.queries
            if not self.qrels or any(g > 0 and d in self.by_id for d, g in self.qrels[q].items())
        ]
        query_ids = set(sorted(solvable, key=stable_hash)[:num_queries])
        qrels = {q: grades for q, grades in self.qrels.items() if q in query_ids}
        relevant = {d for grades in qrels.values() for d, grade in grades.items() if grade > 0}
        relevant &= self.by_id.keys()
        first = set(keep)
        others = sorted(
            (d for d in self.doc_ids if d not in relevant), key=lambda d: (d not in first, stable_hash(d))
        )
        kept = relevant.union(others[: max(0, num_passages - len(relevant))])
        passages = [passage for passage in self.passages if passage.doc_id in kept]
        return Collection(
            self.name,
            passages,
            {q: text for q, text in self.queries.items() if q in query_ids},
            {self.split: {q: {d: g for d, g in grades.items() if d in kept} for q, grades in qrels.items()}},
            self.split,
            f"{len(passages):,} of {len(self.passages):,} passages",
            self.expansion,
            self.unexpanded,
        )


def _checked(passage: Passage, where: str) -> Passage:
    """A passage with its id as text and without a missing title, or a ValueError that begins with `where`."""
    if not isinstance(passage, Passage):
        raise ValueError(f"{where} is {passage!r:.80}, expected Passage(doc_id, title, text)")
    doc_id, title, text = passage
    if not isinstance(doc_id, str):
        try:
            doc_id = text_id(doc_id)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    check_id(doc_id, f"{where}: doc_id")
    if type(passage.doc_id) is type(title) is type(text) is str:
        return passage
    title = "" if title is None else title
    if not isinstance(title, str) or not isinstance(text, str):
        raise ValueError(f"{where} ({doc_id}): title {title!r:.40} and text {text!r:.40} must be strings")
    return Passage(doc_id, title, text)


@checked
def hold_out_dev(train: Qrels) -> tuple[Qrels, Qrels]:
    """Hold out a fixed fifth of the queries for tuning; the same queries always give the same fifth.

    Args:
        train: Judgements of at least five queries.

    Returns:
        (train, dev): each query is in exactly one of the two, chosen by the hash of its id.

    Raises:
        ValueError: Fewer than five queries.
    """
    if len(train) < DEV_SHARE:
        raise ValueError(f"a dev part needs at least {DEV_SHARE} train queries, got {len(train)}")
    dev_ids = set(sorted(train, key=stable_hash)[: len(train) // DEV_SHARE])
    return (
        {q: grades for q, grades in train.items() if q not in dev_ids},
        {q: grades for q, grades in train.items() if q in dev_ids},
    )


def digest_of(fields: Iterable[str]) -> str:
    """16 hex digits of SHA-256 over fields, each followed by a byte that never occurs in UTF-8."""
    digest = hashlib.sha256()
    for text in fields:
        digest.update(text.encode("utf-8") + b"\xff")
    return digest.hexdigest()[:16]
