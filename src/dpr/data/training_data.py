"""Training data of a bi-encoder: queries, each with positive and negative passages.

Whatever the source, each query occurs once, with all its positives and negatives. So no query can be on
both sides of a split, and a batch can tell which passages must not serve as negatives of a query.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from dpr.arguments import check_fields_of, checked
from dpr.data.collection import Collection, Passage
from dpr.data.examples import Example, Mender, Preparation, gather_examples
from dpr.data.text import normalise, stable_hash, text_key
from dpr.data.trec import checked_hits


@dataclass(frozen=True, eq=False)
class TrainingData:
    """One example for each query, and the text of every passage that the examples name.

    Args:
        name: Where the data comes from.
        examples: Each has a positive, and no two have the same normalised query.
        passages: doc_id → text, title included.
        preparation: What was changed or skipped when the data was made.
        scores: query_id → doc_id → a teacher's score, to distil from; empty without a teacher.
        missing_score: The score of a passage that a query's `scores` lack; NaN: unknown.

    Raises:
        ValueError: There is no example, a query or query_id occurs twice, an example has no positive, or
            a query or passage has no text.
    """

    name: str
    examples: Sequence[Example] = field(repr=False)
    passages: Mapping[str, str] = field(repr=False)
    preparation: Preparation = field(default_factory=Preparation, repr=False)
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict, repr=False)
    missing_score: float = field(default=math.nan, repr=False)

    def __post_init__(self):
        check_fields_of(self)
        if not self.examples:
            raise ValueError(f"{self.name}: no training example")
        seen: set[str] = set()
        for example in self.examples:
            for key in (example.query_id, f" {normalise(example.query)}"):
                if key in seen:
                    raise ValueError(
                        f"{self.name}: {example.query_id} ({example.query!r}) is in two examples"
                    )
                seen.add(key)
            if not example.query.strip():
                raise ValueError(f"{self.name}: query {example.query_id} has no text")
            if not example.positives or min(example.positives.values()) <= 0:
                raise ValueError(f"{self.name}: query {example.query_id} has no positive, or one graded 0")
            for doc_id in (*example.positives, *example.negatives):
                if not self.passages.get(doc_id, "").strip():
                    raise ValueError(
                        f"{self.name}: query {example.query_id} names {doc_id}, which has no text"
                    )

    @classmethod
    @checked
    def from_collection(cls, collection: Collection) -> "TrainingData":
        """Make training data from the judgements of a collection's split.

        Grades above 0 are positives, others negatives. Judged documents that the corpus lacks or that
        have no text are left out, as are queries that then have no positive.

        Args:
            collection: The collection, with the split to train on, such as `train`.

        Raises:
            ValueError: The split is `test`, or nothing is left.
        """
        if collection.split == "test":
            raise ValueError(f"{collection.name}: the test split is for evaluation; train on another one")
        mended = Mender()
        judged = dict.fromkeys(doc_id for grades in collection.qrels.values() for doc_id in grades)
        texts = {d: mended(collection.by_id[d].contents) for d in judged if d in collection.by_id}
        passages = {doc_id: text for doc_id, text in texts.items() if text.strip()}
        queries = {query_id: mended(text) for query_id, text in collection.queries.items()}
        rows = [
            (query_id, queries[query_id], doc_id, grade)
            for query_id, grades in collection.qrels.items()
            for doc_id, grade in grades.items()
            if doc_id in passages
        ]
        return cls(f"{collection.name}/{collection.split}", *gather_examples(rows, passages, mended))

    @classmethod
    @checked
    def from_queries(
        cls, name: str, collection: Collection, queries: Mapping[str, Sequence[str]]
    ) -> "TrainingData":
        """Make training data from queries that were written for passages; no judgement is read.

        A query written for several passages has all of them as positives.

        Args:
            name: Name of the data.
            collection: The collection with the passages.
            queries: doc_id → its queries. Those without text are left out, as are passages without text.

        Raises:
            ValueError: A document that the collection lacks, or nothing is left.
        """
        unknown = [doc_id for doc_id in queries if doc_id not in collection.by_id]
        if unknown:
            raise ValueError(
                f"{collection.name} lacks {len(unknown)} documents with queries, first {unknown[0]!r}"
            )
        mended = Mender()
        texts = {doc_id: mended(collection.by_id[doc_id].contents) for doc_id in queries}
        passages = {doc_id: text for doc_id, text in texts.items() if text.strip()}
        rows = [
            (f"{doc_id}-{at}", mended(query), doc_id, 1)
            for doc_id in passages
            for at, query in enumerate(queries[doc_id])
            if query.strip()
        ]
        return cls(name, *gather_examples(rows, passages, mended))

    @cached_property
    def text_keys(self) -> dict[str, str]:
        """doc_id → hash of the passage's `text_key`, by which passages are compared."""
        return {doc_id: stable_hash(text_key(text)) for doc_id, text in self.passages.items()}

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over all queries, the texts (and grades) of their passages, and scores."""
        digest = hashlib.sha256()
        for e in self.examples:
            positives = [(grade, self.passages[doc_id]) for doc_id, grade in e.positives.items()]
            negatives = [self.passages[doc_id] for doc_id in e.negatives]
            digest.update(json.dumps([e.query, positives, negatives]).encode("ascii"))
            if self.scores:
                scores = {
                    doc_id: self.scores[e.query_id][doc_id] for doc_id in sorted(self.scores[e.query_id])
                }
                digest.update(json.dumps([scores, str(self.missing_score)]).encode("ascii"))
        return digest.hexdigest()[:16]

    @checked
    def without_queries(self, *collections: Collection) -> "TrainingData":
        """Leave out queries that, compared by `text_key`, are also queries of one of the collections.

        Args:
            *collections: Collections, each with the split that is used for evaluation.

        Returns:
            The other queries; `preparation.dropped_queries` lists those left out.

        Raises:
            ValueError: Nothing is left.
        """
        asked = {text_key(text) for collection in collections for text in collection.queries.values()}
        dropped = tuple(e.query for e in self.examples if text_key(e.query) in asked)
        known = replace(self.preparation, dropped_queries=self.preparation.dropped_queries + dropped)
        kept = [e for e in self.examples if text_key(e.query) not in asked]
        return replace(self, examples=kept, preparation=known)

    @checked
    def split(self, share: float, seed: int) -> tuple["TrainingData", "TrainingData"]:
        """Hold out a share of the queries with their examples.

        Args:
            share: Share of the queries to hold out, between 0 and 1.
            seed: Selects which queries are held out; the order of the examples does not matter.

        Returns:
            (train, held_out): no query is in both; both keep all passages.

        Raises:
            ValueError: The share leaves one of the two empty.
        """
        count = round(share * len(self.examples))
        if not 0 < count < len(self.examples):
            raise ValueError(
                f"a share of {share} of {len(self.examples)} queries leaves a part empty; give one between 0 "
                f"and 1"
            )
        keys = {e.query_id: stable_hash(f"{seed} {normalise(e.query)}") for e in self.examples}
        held_out = set(sorted(keys, key=keys.__getitem__)[:count])
        return (
            replace(self, examples=[e for e in self.examples if e.query_id not in held_out]),
            replace(self, examples=[e for e in self.examples if e.query_id in held_out]),
        )

    @checked
    def with_positives(self, keep: Callable[[Example], Mapping[str, int]]) -> "TrainingData":
        """Keep some of the positives of each query, and only the passages that examples still name.

        Args:
            keep: Returns the positives that an example keeps; if there are none, the query is dropped.

        Raises:
            ValueError: Nothing is left.
        """
        changed = [replace(e, positives=dict(keep(e))) for e in self.examples]
        kept = [e for e in changed if e.positives]
        named = {doc_id for e in kept for doc_id in (*e.positives, *e.negatives)}
        return replace(
            self, examples=kept, passages={d: text for d, text in self.passages.items() if d in named}
        )

    @checked
    def with_negatives(
        self, negatives: Mapping[str, Sequence[str]], passages: Mapping[str, str]
    ) -> "TrainingData":
        """Replace the negatives of all queries by others, such as mined ones.

        Args:
            negatives: query_id → doc_ids, hardest first; a query without an entry gets no negatives.
            passages: doc_id → text of these negatives.

        Raises:
            ValueError: A negative has no text or has the text of a positive of the same query, or
                `negatives` has none of the queries.
        """
        if not any(e.query_id in negatives for e in self.examples):
            raise ValueError(f"the negatives are of {len(negatives)} queries, none of them of {self.name}")
        found = {doc_id for doc_ids in negatives.values() for doc_id in doc_ids}
        texts = {**{doc_id: passages[doc_id] for doc_id in found if doc_id in passages}, **self.passages}
        examples = [replace(e, negatives=tuple(negatives.get(e.query_id, ()))) for e in self.examples]
        changed = replace(self, examples=examples, passages=texts)
        for example in examples:
            own = {changed.text_keys[doc_id] for doc_id in example.positives}
            for doc_id in example.negatives:
                if changed.text_keys[doc_id] in own:
                    raise ValueError(
                        f"query {example.query_id}: {doc_id} is a positive of it and not a negative"
                    )
        return changed

    @checked
    def with_scores(
        self, scores: Mapping[str, Mapping[str, float]], missing_score: float = math.nan
    ) -> "TrainingData":
        """Add a teacher's scores, from which a bi-encoder learns how passages compare.

        Args:
            scores: query_id → doc_id → score, such as a run; larger is better.
            missing_score: The score of a passage that a query's scores lack, such as one that was not found.
                NaN: unknown, and left out of the loss.

        Raises:
            ValueError: A query has no score, or a score is not a finite number.
        """
        scores = checked_hits(scores)
        for example in self.examples:
            if not scores.get(example.query_id):
                raise ValueError(f"{self.name}: query {example.query_id} has no score")
        kept = {e.query_id: scores[e.query_id] for e in self.examples}
        return replace(self, scores=kept, missing_score=missing_score)


@checked
def as_collection(data: TrainingData, split: str = "dev") -> Collection:
    """Turn training data into a collection whose queries are searched over all its passages.

    Args:
        data: The training data, such as the held-out part of a split, which keeps all passages.
        split: Name of the collection's only split.
    """
    return Collection(
        data.name,
        [Passage(doc_id, "", text) for doc_id, text in data.passages.items()],
        {e.query_id: e.query for e in data.examples},
        {split: {e.query_id: dict(e.positives) for e in data.examples}},
        split,
    )


@checked
def merge(name: str, *parts: TrainingData) -> TrainingData:
    """Merge several data sets; a query that is in several keeps all its positives and negatives.

    Scores of a teacher are left out; add those for the merged data.

    Args:
        name: Name of the merged data.
        *parts: The data sets. Each id gets its part's number in front, since two sets may share ids.

    Raises:
        ValueError: No data set is given.
    """
    examples: dict[str, Example] = {}
    passages: dict[str, str] = {}
    for number, part in enumerate(parts):
        passages |= {f"{number}-{doc_id}": text for doc_id, text in part.passages.items()}
        for e in part.examples:
            first = examples.get(text_key(e.query), Example(f"{number}-{e.query_id}", e.query, {}))
            positives = {**first.positives, **{f"{number}-{d}": g for d, g in e.positives.items()}}
            negatives = (*first.negatives, *(f"{number}-{d}" for d in e.negatives))
            ordered = dict(sorted(positives.items(), key=lambda item: -item[1]))
            examples[text_key(e.query)] = replace(first, positives=ordered, negatives=negatives)
    return TrainingData(name, list(examples.values()), passages)
