"""Document expansion: queries made clean, chosen, and appended to the passages they were written for."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dpr.data.collection import Collection, Passage
from dpr.data.text import normalise
from dpr.models.bi_encoder import BiEncoder

WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation.

    >>> words("Vitamin-D, B12?")
    ['vitamin', 'd', 'b12']
    """
    return WORD.findall(text.lower())


def without_duplicates(queries: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Each passage's queries once, case and white space aside, in their order; empty ones left out.

    >>> without_duplicates({"d1": ["what is zinc", "What is  zinc", "", "is zinc good"]})
    {'d1': ['what is zinc', 'is zinc good']}
    """
    kept = {}
    for doc_id, found in queries.items():
        first: dict[str, str] = {}
        for query in found:
            if words(query):
                first.setdefault(normalise(query), query)
        kept[doc_id] = list(first.values())
    return kept


def encoder_scores(
    encoder: BiEncoder, collection: Collection, passage_emb: np.ndarray, queries: Mapping[str, Sequence[str]]
) -> dict[str, list[float]]:
    """How well each query fits its passage: the cosine that a bi-encoder gives the two.

    Args:
        encoder: Encodes the queries.
        collection: Whose passages.
        passage_emb: [N, D], their vectors by this encoder, in the collection's order.
        queries: doc_id → queries.

    Returns:
        doc_id → one score a query, from −1 to 1.
    """
    rows = {doc_id: row for row, doc_id in enumerate(collection.doc_ids)}
    owners = [rows[doc_id] for doc_id, found in queries.items() for _ in found]
    query_emb = encoder.encode_queries([query for found in queries.values() for query in found])
    passages = np.asarray(passage_emb)[owners].astype(np.float32)
    lengths = np.linalg.norm(query_emb, axis=1) * np.linalg.norm(passages, axis=1)
    cosines = iter((np.einsum("nd,nd->n", query_emb, passages) / lengths).tolist())
    return {doc_id: [next(cosines) for _ in found] for doc_id, found in queries.items()}


def cross_encoder_scores(
    cross_encoder: Any, collection: Collection, queries: Mapping[str, Sequence[str]]
) -> dict[str, list[float]]:
    """How well each query fits its passage by a model that reads both together.

    Args:
        cross_encoder: A sentence-transformers CrossEncoder, or what else has its `predict`.
        collection: Whose passages.
        queries: doc_id → queries.

    Returns:
        doc_id → one score a query.

    Source: Gospodinov, MacAvaney and Macdonald 2023, Doc2Query--: when less is more.
    """
    pairs = [(q, collection.by_id[d].contents) for d, found in queries.items() for q in found]
    scores = iter(np.asarray(cross_encoder.predict(pairs)).tolist() if pairs else [])
    return {doc_id: [next(scores) for _ in found] for doc_id, found in queries.items()}


def best_share(
    queries: Mapping[str, Sequence[str]], scores: Mapping[str, Sequence[float]], share: float
) -> tuple[dict[str, list[str]], float]:
    """The queries that fit their passage best: those among the best share of all queries of all passages.

    Args:
        queries: doc_id → queries.
        scores: doc_id → one score a query, larger for a better fit.
        share: What to keep, above 0 and at most 1.

    Returns:
        The queries kept, in their order (a passage may have none left), and the score they reach.

    Raises:
        ValueError: A share out of range, no query, other numbers of scores than of queries.

    Source: Gospodinov, MacAvaney and Macdonald 2023, Doc2Query--: when less is more.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must be above 0 and at most 1, got {share}")
    for doc_id, found in queries.items():
        if len(scores.get(doc_id, ())) != len(found):
            raise ValueError(f"{doc_id} has {len(found)} queries and {len(scores.get(doc_id, ()))} scores")
    ordered = sorted((score for doc_id in queries for score in scores.get(doc_id, ())), reverse=True)
    if not ordered:
        raise ValueError("no query to choose from")
    bound = ordered[math.ceil(share * len(ordered)) - 1]
    kept = {
        doc_id: [q for q, score in zip(found, scores.get(doc_id, ()), strict=True) if score >= bound]
        for doc_id, found in queries.items()
    }
    return kept, bound


def copied_terms(collection: Collection, num_queries: int, terms_per_query: int) -> dict[str, list[str]]:
    """A baseline that knows no new word: "queries" of each passage's own rarest words.

    Expansion with them only weighs terms anew, so what a generator gains beyond it comes from elsewhere.

    Args:
        collection: Whose passages; document frequencies are of its N passages.
        num_queries: Queries a passage, as far as its words go.
        terms_per_query: Words in each: the rarest in the first query, and so on.

    Raises:
        ValueError: A number below 1.
    """
    if num_queries < 1 or terms_per_query < 1:
        raise ValueError(f"numbers must be at least 1, got {num_queries} and {terms_per_query}")
    terms = {passage.doc_id: dict.fromkeys(words(passage.contents)) for passage in collection.passages}
    frequency = Counter(word for found in terms.values() for word in found)
    queries = {}
    for doc_id, found in terms.items():
        rarest = sorted(found, key=lambda word: frequency[word])[: num_queries * terms_per_query]
        queries[doc_id] = [
            " ".join(rarest[i : i + terms_per_query]) for i in range(0, len(rarest), terms_per_query)
        ]
    return queries


def expand(
    collection: Collection,
    queries: Mapping[str, Sequence[str]],
    num_queries: int | None = None,
    original: bool = True,
) -> Collection:
    """A collection whose passages carry queries: the original text first, then the queries.

    Args:
        collection: Stays as it is.
        queries: doc_id → queries; passages without any stay as they are.
        num_queries: At most so many a passage, the first ones; None for all.
        original: Whether the original text is kept; without it a passage is its queries alone, and one
            without queries is empty.

    Returns:
        The same documents, queries and judgements; `expansion` says from what it was made.

    Raises:
        ValueError: Queries for documents that are not in the collection; a number below 1.
    """
    if num_queries is not None and num_queries < 1:
        raise ValueError(f"num_queries must be None or at least 1, got {num_queries}")
    unknown = [doc_id for doc_id in queries if doc_id not in collection.by_id]
    if unknown:
        raise ValueError(
            f"{collection.name} lacks {len(unknown)} documents with queries, first {unknown[0]!r}"
        )
    passages, digest = [], hashlib.sha256()
    for passage in collection.passages:
        added = list(queries.get(passage.doc_id, ()))[:num_queries]
        digest.update(repr((passage.doc_id, added)).encode())
        title, text = (passage.title, passage.text) if original else ("", "")
        passages.append(Passage(passage.doc_id, title, " ".join(part for part in (text, *added) if part)))
    made_of = {
        "passages": collection.fingerprint,
        "queries": digest.hexdigest()[:16],
        "num_queries": num_queries,
        "original": original,
    }
    return replace(collection, passages=passages, expansion=made_of)


@dataclass(frozen=True)
class ExpansionAudit:
    """What written queries are like.

    Attributes:
        num_queries: All of them.
        duplicate_share: Those that the same passage had before, or that are empty.
        new_word_share: Words of the others, each once a passage, that the passage does not have; 0 without
            any.
        words_per_query: Mean, of the others; 0 without any.
    """

    num_queries: int
    duplicate_share: float
    new_word_share: float
    words_per_query: float


def audit_queries(collection: Collection, queries: Mapping[str, Sequence[str]]) -> ExpansionAudit:
    """Count repeats and new words of queries.

    Raises:
        ValueError: No query.
    """
    total = sum(map(len, queries.values()))
    clean = without_duplicates(queries)
    kept = sum(map(len, clean.values()))
    if not total:
        raise ValueError(f"no query for any passage of {collection.name}")
    new = different = length = 0
    for doc_id, found in clean.items():
        own = set(words(collection.by_id[doc_id].contents))
        used = {word for query in found for word in words(query)}
        new, different = new + len(used - own), different + len(used)
        length += sum(len(words(query)) for query in found)
    return ExpansionAudit(total, 1 - kept / total, new / max(1, different), length / max(1, kept))
