"""Document expansion: clean and filter queries, and append them to the passages they were written for."""

import hashlib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from dpr.arguments import checked
from dpr.data.collection import Collection, Passage
from dpr.data.text import UNSPACED, normalise

WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation; scripts without spaces by character.

    >>> words("Vitamin-D, B12?")
    ['vitamin', 'd', 'b12']
    """
    return WORD.findall(text.lower())


@checked
def without_duplicates(queries: Mapping[str, Sequence[str]], but: Sequence[str] = ()) -> dict[str, list[str]]:
    """Drop queries without words, and repeats within a passage whatever their case and white space.

    Args:
        queries: doc_id → queries.
        but: Queries to drop too, such as the examples of a prompt, whatever their case and punctuation.

    >>> without_duplicates({"d1": ["what is zinc", "What is  zinc", "", "is zinc good", "Salt?"]}, ["salt"])
    {'d1': ['what is zinc', 'is zinc good']}
    """
    kept, dropped = {}, {"", *(" ".join(words(query)) for query in but)}
    for doc_id, found in queries.items():
        first: dict[str, str] = {}
        for query in found:
            if " ".join(words(query)) not in dropped:
                first.setdefault(normalise(query), query)
        kept[doc_id] = list(first.values())
    return kept


@checked
def passing(
    queries: Mapping[str, Sequence[str]], passes: Mapping[str, Sequence[bool]]
) -> dict[str, list[str]]:
    """Keep the queries that pass a test, such as the way back; a passage may have none left.

    Args:
        queries: doc_id → queries.
        passes: doc_id → for each query whether it passes.
    """
    return {d: [q for q, ok in zip(found, passes[d], strict=True) if ok] for d, found in queries.items()}


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
