"""Counts of a collection's contents and possible problems, to look at before anything is measured."""

from dataclasses import dataclass, field

import ftfy.badness
import numpy as np

from dpr.arguments import checked
from dpr.data.collection import Collection
from dpr.data.text import normalise

PERCENTILES = (50, 90, 99, 100)


@dataclass(frozen=True)
class Audit:
    """What was counted in one collection; lists hold the ids behind a count.

    Attributes:
        num_passages: Documents in the corpus.
        empty: Documents with neither title nor text; BM25 leaves them out.
        title_only: Documents with a title but no text; they are searched by their title.
        duplicate_texts: Documents with the same contents as an earlier document.
        num_queries: Judged queries of the split.
        num_judgements: Judgements of the split.
        num_relevant: Judgements with a grade above 0.
        negative_grades: (query_id, doc_id) pairs graded below 0; evaluation counts the grade as 0.
        judged_without_document: doc_ids that are judged but not in the corpus.
        queries_without_judgements: Ids of queries without judgements in any split.
        queries_without_relevant: Ids of judged queries without a grade above 0; their nDCG is 0.
        queries_as_documents: Ids of this split's queries that are documents themselves, with the same id and
            text; their searches leave that document out (`Collection.own_documents`).
        ids_as_documents: Ids of queries that are also the id of a document with another text.
        texts_as_documents: Ids of queries whose text is that of a document with another id.
        queries_in_two_splits: Ids of this split's queries whose text, ignoring case and white space, is
            also a query of another split: training on one split would show queries of the other.
        mojibake: Documents whose contents look wrongly decoded (ftfy's heuristic).
        token_lengths: Percentile → length of a document in tokens, special tokens included; empty
            if no tokenizer was given.
        max_length: Number of tokens at which documents are cut; None if it was not given.
        share_cut: Share of documents longer than `max_length`, from 0 to 1; None without it.
        fingerprint: The collection's content fingerprint.
    """

    num_passages: int
    empty: list[str] = field(repr=False)
    title_only: list[str] = field(repr=False)
    duplicate_texts: list[str] = field(repr=False)
    num_queries: int
    num_judgements: int
    num_relevant: int
    negative_grades: list[tuple[str, str]] = field(repr=False)
    judged_without_document: list[str] = field(repr=False)
    queries_without_judgements: list[str] = field(repr=False)
    queries_without_relevant: list[str] = field(repr=False)
    queries_as_documents: list[str] = field(repr=False)
    ids_as_documents: list[str] = field(repr=False)
    texts_as_documents: list[str] = field(repr=False)
    queries_in_two_splits: list[str] = field(repr=False)
    mojibake: list[str] = field(repr=False)
    token_lengths: dict[int, int]
    max_length: int | None
    share_cut: float | None
    fingerprint: str

    def rows(self) -> list[tuple[str, str]]:
        """Rows for a table: what was counted, and the count as text."""
        counted = [
            ("documents", self.num_passages),
            ("… empty", len(self.empty)),
            ("… title only", len(self.title_only)),
            ("… with a text seen before", len(self.duplicate_texts)),
            ("… suspected mojibake", len(self.mojibake)),
            ("judged queries", self.num_queries),
            ("… none of whose documents is relevant", len(self.queries_without_relevant)),
            ("… whose text another split has too", len(self.queries_in_two_splits)),
            ("… that are a document themselves, by id and text", len(self.queries_as_documents)),
            ("… with the id of a document, but another text", len(self.ids_as_documents)),
            ("… with the text of a document, but another id", len(self.texts_as_documents)),
            ("queries without judgements", len(self.queries_without_judgements)),
            ("judgements", self.num_judgements),
            ("… relevant", self.num_relevant),
            ("… with a negative grade", len(self.negative_grades)),
            ("… of documents not in the corpus", len(self.judged_without_document)),
        ]
        rows = [(what, f"{count:,}") for what, count in counted]
        rows += [(f"tokens, {p}th percentile", f"{length:,}") for p, length in self.token_lengths.items()]
        if self.share_cut is not None:
            rows.append((f"cut at {self.max_length} tokens", f"{self.share_cut:.1%}"))
        return [*rows, ("fingerprint", self.fingerprint)]


@checked
def audit_collection(collection: Collection, tokenizer=None, max_length: int | None = None) -> Audit:
    """Count documents and judgements that can cause problems, such as empty or duplicate documents.

    Args:
        collection: The collection to examine; judgements are those of its split.
        tokenizer: A transformers tokenizer to measure token lengths; without it `token_lengths` is empty.
        max_length: Number of tokens at which a document is cut, special tokens included; needs `tokenizer`.

    Raises:
        ValueError: `max_length` is given without a tokenizer.
    """
    if max_length is not None and tokenizer is None:
        raise ValueError("max_length counts tokens: give the tokenizer too")
    contents = {passage.doc_id: passage.contents for passage in collection.passages}
    first_with: dict[str, str] = {}
    duplicates = [d for d, text in contents.items() if text and first_with.setdefault(text, d) != d]
    judged = [(q, d, grade) for q, grades in collection.qrels.items() for d, grade in grades.items()]
    own, by_text = collection.own_documents, _ids_by_text(collection)
    judged_anywhere = {q for qrels in collection.all_qrels.values() for q in qrels}
    lengths = token_lengths(contents.values(), tokenizer) if tokenizer is not None else np.array([])
    return Audit(
        num_passages=len(contents),
        empty=[d for d, text in contents.items() if not text],
        title_only=[p.doc_id for p in collection.passages if p.title.strip() and not p.text.strip()],
        duplicate_texts=duplicates,
        num_queries=len(collection.qrels),
        num_judgements=len(judged),
        num_relevant=sum(grade > 0 for _, _, grade in judged),
        negative_grades=[(q, d) for q, d, grade in judged if grade < 0],
        judged_without_document=sorted({d for _, d, _ in judged if d not in contents}),
        queries_without_judgements=[q for q in collection.all_queries if q not in judged_anywhere],
        queries_without_relevant=[q for q, g in collection.qrels.items() if max(g.values(), default=0) <= 0],
        queries_as_documents=sorted(own),
        ids_as_documents=[q for q in collection.queries if q in contents and q not in own],
        texts_as_documents=[
            q for q, text in collection.queries.items() if by_text.get(normalise(text), set()) - {q}
        ],
        queries_in_two_splits=_shared_queries(collection),
        mojibake=[d for d, text in contents.items() if ftfy.badness.is_bad(text)],
        token_lengths={p: int(np.percentile(lengths, p)) for p in PERCENTILES} if len(lengths) else {},
        max_length=max_length,
        share_cut=float((lengths > max_length).mean()) if max_length is not None else None,
        fingerprint=collection.fingerprint,
    )


def token_lengths(texts, tokenizer) -> np.ndarray:
    """Count the tokens of each of N texts, special tokens included, without cutting: int [N]."""
    encoded = tokenizer(
        list(texts), truncation=False, padding=False, return_attention_mask=False, verbose=False
    )
    return np.array([len(ids) for ids in encoded["input_ids"]])


def _ids_by_text(collection: Collection) -> dict[str, set[str]]:
    """Normalised text, with and without the title, → ids of the documents that have it."""
    found: dict[str, set[str]] = {}
    for passage in collection.passages:
        for text in (passage.text, passage.contents):
            found.setdefault(normalise(text), set()).add(passage.doc_id)
    return found


def _shared_queries(collection: Collection) -> list[str]:
    """Ids of this split's queries whose normalised text is also a query of another split."""
    others = {
        normalise(collection.all_queries[query_id])
        for split, qrels in collection.all_qrels.items()
        if split != collection.split
        for query_id in qrels
        if query_id in collection.all_queries
    }
    return [q for q, text in collection.queries.items() if normalise(text) in others]
