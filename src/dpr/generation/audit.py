"""What written queries are worth looking at for: repeats, new words, recited queries, the way back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.sparse import csr_matrix

from dpr.arguments import checked
from dpr.data.collection import Collection
from dpr.generation.expansion import without_duplicates, words
from dpr.models.bi_encoder import BiEncoder
from dpr.search.bm25 import BM25, analyse
from dpr.search.index import build_index

NEAR = 0.8  # Jaccard similarity of the words of two queries
BLOCK = 1_000  # queries compared with all known ones at once
ASKING = frozenset(
    words(
        "about am any can could did do does from had has have how i its may me might much my our should so "
        "some than them we were what when where which who whom whose why would you your"
    )
)


@dataclass(frozen=True)
class QueryAudit:
    """Statistics of the queries written for a collection.

    Attributes:
        num_queries: Number of all queries.
        duplicate_share: Share of the queries that have no word or repeat an earlier one of their passage.
        words_per_query: Mean number of words in the other queries; 0 if there are none.
        new_word_share: Share of the words in the other queries, counted once per passage, that are not in
            the passage; 0 if there are no other queries.
        unrelated_share: Share of the other queries that share no term with their passage, stop words and
            words that only ask left out; 0 if there are no other queries.
    """

    num_queries: int
    duplicate_share: float
    words_per_query: float
    new_word_share: float
    unrelated_share: float


@checked
def audit_queries(collection: Collection, queries: Mapping[str, Sequence[str]]) -> QueryAudit:
    """Count repeats, lengths, new words and queries that have nothing to do with their passage.

    Raises:
        ValueError: No query.
    """
    total = sum(map(len, queries.values()))
    if not total:
        raise ValueError(f"no query for any passage of {collection.name}")
    clean = without_duplicates(queries)
    kept = sum(map(len, clean.values()))
    new = different = length = unrelated = 0
    for doc_id, found in clean.items():
        text = collection.by_id[doc_id].contents
        own, terms = set(words(text)), set(analyse(text))
        used = {word for query in found for word in words(query)}
        new, different = new + len(used - own), different + len(used)
        length += sum(len(words(query)) for query in found)
        unrelated += sum(terms.isdisjoint(analyse(_what_is_asked(query))) for query in found)
    shares = (length / max(1, kept), new / max(1, different), unrelated / max(1, kept))
    return QueryAudit(total, 1 - kept / total, *shares)


def _what_is_asked(query: str) -> str:
    """A query without the words that only ask."""
    return " ".join(word for word in words(query) if word not in ASKING)


@dataclass(frozen=True)
class Recitation:
    """How many written queries were asked by somebody before.

    Attributes:
        num_queries: Number of written queries.
        exact: Set of known queries → number of written ones that are in it word for word.
        near: The same for those that nearly are: their words have a Jaccard similarity of at least `NEAR`.
        share: Share of the written queries that are in any set, word for word or nearly.
        samples: Some of them, as (written query, known query, set).
        flags: Whether it is so, for each written query.
    """

    num_queries: int
    exact: dict[str, int]
    near: dict[str, int]
    share: float
    samples: list[tuple[str, str, str]] = field(repr=False)
    flags: list[bool] = field(repr=False)


@checked
def recitation(written: Sequence[str], known: Mapping[str, Sequence[str]]) -> Recitation:
    """Compare written queries with known ones, in lower case and without punctuation.

    Args:
        written: Queries that a model wrote.
        known: Name of a set → its queries, such as training, dev and test queries of collections.

    Raises:
        ValueError: No written query.
    """
    if not written:
        raise ValueError("no written query to compare")
    ours = [words(query) for query in written]
    exact, near, samples, recited = {}, {}, [], np.zeros(len(ours), dtype=bool)
    for name, queries in known.items():
        texts = list(queries)
        theirs = [words(query) for query in texts]
        places = {" ".join(found): at for at, found in enumerate(theirs) if found}
        same = np.array([places.get(" ".join(found), -1) for found in ours])
        nearest, similarity = _nearest(ours, theirs)
        alike = (similarity >= NEAR) & (same < 0)
        exact[name], near[name] = int((same >= 0).sum()), int(alike.sum())
        recited |= alike | (same >= 0)
        samples += [
            (written[i], texts[same[i] if same[i] >= 0 else nearest[i]], name)
            for i in np.flatnonzero(alike | (same >= 0))[:3]
        ]
    return Recitation(len(ours), exact, near, float(recited.mean()), samples, recited.tolist())


def _nearest(ours: Sequence[list[str]], theirs: Sequence[list[str]]) -> tuple[np.ndarray, np.ndarray]:
    """For each of N word lists, the position of the likest of M others, and their Jaccard similarity, [N]."""
    one, other = ([set(found) for found in lists] for lists in (ours, theirs))
    place = {word: at for at, word in enumerate(sorted(set().union(*one, *other)))}

    def matrix(sets: Sequence[set[str]]) -> csr_matrix:
        columns = [place[word] for found in sets for word in found]
        ends = np.cumsum([0, *map(len, sets)])
        return csr_matrix((np.ones(len(columns), np.float32), columns, ends), (len(sets), len(place)))

    one, other = matrix(one), matrix(other)
    nearest, best = np.full(len(ours), -1), np.zeros(len(ours))
    sizes = np.asarray(other.sum(1))[:, 0]
    if not len(theirs):
        return nearest, best
    for start in range(0, len(ours), BLOCK):
        rows = one[start : start + BLOCK]
        shared = (rows @ other.T).toarray()
        union = np.asarray(rows.sum(1)) + sizes - shared
        similarity = shared / np.maximum(union, 1)
        nearest[start : start + BLOCK] = similarity.argmax(1)
        best[start : start + BLOCK] = similarity.max(1)
    return nearest, best


@checked
def found_by_bm25(bm25: BM25, queries: Mapping[str, Sequence[str]], depth: int = 10) -> dict[str, list[bool]]:
    """The way back: whether BM25 finds, for each query, the passage that it was written for.

    Args:
        bm25: The index of the passages.
        queries: doc_id → queries.
        depth: Among how many hits the passage must be.

    Source: Dai et al. 2023, Promptagator: few-shot dense retrieval from 8 examples (round-trip filtering).
    """
    asked = {f"{at} {doc_id}": q for doc_id, found in queries.items() for at, q in enumerate(found)}
    hits = bm25.search(asked, depth, leave_out_own=False)
    return {d: [d in hits[f"{at} {d}"] for at in range(len(found))] for d, found in queries.items()}


@checked
def found_by_encoder(
    encoder: BiEncoder,
    collection: Collection,
    passage_emb: np.ndarray,
    queries: Mapping[str, Sequence[str]],
    depth: int = 10,
) -> tuple[dict[str, list[bool]], dict[str, list[float]]]:
    """The way back by a bi-encoder, and how well each query fits its passage.

    Args:
        encoder: The bi-encoder, which encodes the queries.
        collection: The collection with the N passages.
        passage_emb: Vectors of the passages by the same encoder, [N, D], in the collection's order.
        queries: doc_id → queries.
        depth: Among how many hits the passage must be.

    Returns:
        doc_id → for each query whether its passage is among the hits; doc_id → the score of each query, the
        cosine of its vector and that of its passage.
    """
    rows = {doc_id: row for row, doc_id in enumerate(collection.doc_ids)}
    owners = [rows[doc_id] for doc_id, found in queries.items() for _ in found]
    query_emb = encoder.encode_queries([query for found in queries.values() for query in found])
    own = np.asarray(passage_emb)[owners].astype(np.float32)
    lengths = np.linalg.norm(query_emb, axis=1) * np.linalg.norm(own, axis=1)
    cosines = iter((np.einsum("nd,nd->n", query_emb, own) / lengths).tolist())
    index = build_index("exact", passage_emb, collection.doc_ids, encoder.config.similarity)
    _, hits = index.search(query_emb, depth)
    found = iter((hits == np.asarray(owners)[:, None]).any(1).tolist())
    scores = {doc_id: [next(cosines) for _ in asked] for doc_id, asked in queries.items()}
    return {doc_id: [next(found) for _ in asked] for doc_id, asked in queries.items()}, scores
