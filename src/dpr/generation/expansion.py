"""Document expansion: clean and filter queries, and append them to the passages they were written for."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dpr.arguments import checked
from dpr.data.collection import Collection, Passage
from dpr.data.text import UNSPACED, normalise
from dpr.models.bi_encoder import BiEncoder

WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation; scripts without spaces by character.

    >>> words("Vitamin-D, B12?")
    ['vitamin', 'd', 'b12']
    """
    return WORD.findall(text.lower())


@checked
def without_duplicates(queries: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Drop queries without words, and repeats within a passage whatever their case and white space.

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


@checked
def encoder_scores(
    encoder: BiEncoder, collection: Collection, passage_emb: np.ndarray, queries: Mapping[str, Sequence[str]]
) -> dict[str, list[float]]:
    """Score how well each query fits its passage: the cosine of their vectors from a bi-encoder.

    Args:
        encoder: The bi-encoder, which encodes the queries.
        collection: The collection with the N passages.
        passage_emb: Vectors of the passages by the same encoder, [N, D], in the collection's order.
        queries: doc_id → queries.

    Returns:
        doc_id → the score of each query, from −1 to 1.
    """
    rows = {doc_id: row for row, doc_id in enumerate(collection.doc_ids)}
    owners = [rows[doc_id] for doc_id, found in queries.items() for _ in found]
    query_emb = encoder.encode_queries([query for found in queries.values() for query in found])
    passages = np.asarray(passage_emb)[owners].astype(np.float32)
    lengths = np.linalg.norm(query_emb, axis=1) * np.linalg.norm(passages, axis=1)
    cosines = iter((np.einsum("nd,nd->n", query_emb, passages) / lengths).tolist())
    return {doc_id: [next(cosines) for _ in found] for doc_id, found in queries.items()}


@checked
def best_share(
    queries: Mapping[str, Sequence[str]], scores: Mapping[str, Sequence[float]], share: float
) -> tuple[dict[str, list[str]], float]:
    """Keep the queries that fit their passage best: the best share of all queries of all passages together.

    Args:
        queries: doc_id → queries.
        scores: doc_id → the score of each query, larger for a better fit.
        share: The share to keep, above 0 and at most 1; ties at the bound are kept too.

    Returns:
        doc_id → the queries kept, in their order (a passage may have none left), and the lowest score kept.

    Raises:
        ValueError: A share out of range, no query, or a number of scores that is not that of the queries.

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


@checked
def copied_terms(collection: Collection, num_queries: int, terms_per_query: int) -> dict[str, list[str]]:
    """A baseline without new words: make "queries" from the rarest words of each passage.

    Expansion with them only changes how often a passage has its own words. What a generator gains beyond
    that comes from something else.

    Args:
        collection: The collection with the passages, among which words are counted as rare or not.
        num_queries: Queries per passage; fewer if it has too few words.
        terms_per_query: Words per query; the first query has the rarest words.

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


@checked
def expand(
    collection: Collection,
    queries: Mapping[str, Sequence[str]],
    num_queries: int | None = None,
    original: bool = True,
) -> Collection:
    """Append queries to the passages of a collection, after the original text.

    Args:
        collection: The collection to expand; it is not changed.
        queries: doc_id → queries; passages without queries keep their text.
        num_queries: Append only the first so many queries of each passage; None for all.
        original: Whether the original text is kept. Without it a passage has only its queries, and is
            empty if it has none.

    Returns:
        A collection with the expanded passages and the same queries and judgements; its `expansion` says
        what it was made from.

    Raises:
        ValueError: Queries for documents that the collection lacks, or a number below 1.
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
    return replace(
        collection, passages=passages, expansion=made_of, unexpanded=collection.unexpanded or collection
    )


@dataclass(frozen=True)
class ExpansionAudit:
    """Statistics of the queries written for a collection.

    Attributes:
        num_queries: Number of all queries.
        duplicate_share: Share of the queries that have no word or repeat an earlier one of their passage.
        new_word_share: Share of the words in the other queries, counted once per passage, that are not in
            the passage; 0 if there are no other queries.
        words_per_query: Mean number of words in the other queries; 0 if there are none.
    """

    num_queries: int
    duplicate_share: float
    new_word_share: float
    words_per_query: float


@checked
def audit_queries(collection: Collection, queries: Mapping[str, Sequence[str]]) -> ExpansionAudit:
    """Count duplicates, new words and lengths of written queries.

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
