"""Training data of a bi-encoder: queries, each with positive and negative passages.

However it is stored, data becomes one form: a query once, all its positives and negatives with it. So a
query can not stand on both sides of a split, and a batch can tell which passages are no negatives of it.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from dpr.data.collection import Collection, Passage
from dpr.data.examples import Example, Mender, Preparation, gather_examples
from dpr.data.text import normalise, query_key, stable_hash


@dataclass(frozen=True, eq=False)
class TrainingData:
    """Examples, one a query, and the text of every passage they name.

    Args:
        name: Where it comes from.
        examples: No two with the same normalised query; each with a positive.
        passages: doc_id → text, title included.
        preparation: What was done to the source.

    Raises:
        ValueError: No example, a query or query_id twice, an example without a positive, a passage
            without text.
    """

    name: str
    examples: Sequence[Example]
    passages: Mapping[str, str]
    preparation: Preparation = field(default_factory=Preparation)

    def __post_init__(self):
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
    def from_collection(cls, collection: Collection) -> "TrainingData":
        """Training data from the judgements of a collection's split.

        Grades above 0 are positives, others negatives. Judged documents that the corpus lacks or that
        have no text are left out, and queries that are left without a positive.

        Args:
            collection: With the split to train on, such as `train`.

        Raises:
            ValueError: The split `test`; nothing left.
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

    @cached_property
    def text_keys(self) -> dict[str, str]:
        """doc_id → a key that passages of the same text, case and white space aside, share."""
        return {doc_id: stable_hash(normalise(text)) for doc_id, text in self.passages.items()}

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over all queries, and passages by their roles and grades (SHA-256)."""
        digest = hashlib.sha256()
        for e in self.examples:
            positives = [(grade, self.passages[doc_id]) for doc_id, grade in e.positives.items()]
            negatives = [self.passages[doc_id] for doc_id in e.negatives]
            digest.update(json.dumps([e.query, positives, negatives]).encode("ascii"))
        return digest.hexdigest()[:16]

    def without_queries(self, *collections: Collection) -> "TrainingData":
        """Leave out the queries that are asked, in the same normalised words, of one of some collections.

        Args:
            *collections: With the splits that are evaluated on.

        Returns:
            The rest; `preparation.dropped_queries` names what was left out.

        Raises:
            ValueError: Nothing is left.
        """
        asked = {query_key(text) for collection in collections for text in collection.queries.values()}
        dropped = tuple(e.query for e in self.examples if query_key(e.query) in asked)
        known = replace(self.preparation, dropped_queries=self.preparation.dropped_queries + dropped)
        kept = [e for e in self.examples if query_key(e.query) not in asked]
        return replace(self, examples=kept, preparation=known)

    def split(self, share: float, seed: int) -> tuple["TrainingData", "TrainingData"]:
        """Hold out a share of the queries, with all that belongs to them.

        Args:
            share: Of the queries, between 0 and 1.
            seed: Another seed holds out other queries; the order of the examples does not matter.

        Returns:
            (train, held_out), no query in both.

        Raises:
            ValueError: A share that leaves one of the two empty.
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

    def with_positives(self, keep: Callable[[Example], Mapping[str, int]]) -> "TrainingData":
        """Keep some of the positives of each query, and only the passages that are still named.

        Args:
            keep: What an example keeps of its positives; where that is nothing, the query goes.

        Raises:
            ValueError: Nothing is left.
        """
        changed = [replace(e, positives=dict(keep(e))) for e in self.examples]
        kept = [e for e in changed if e.positives]
        named = {doc_id for e in kept for doc_id in (*e.positives, *e.negatives)}
        return replace(
            self, examples=kept, passages={d: text for d, text in self.passages.items() if d in named}
        )

    def with_negatives(
        self, negatives: Mapping[str, Sequence[str]], passages: Mapping[str, str]
    ) -> "TrainingData":
        """Put other negatives, such as mined ones, in the place of those there are.

        Args:
            negatives: query_id → doc_ids, hardest first; a query that is missing gets none.
            passages: doc_id → text of these.

        Raises:
            ValueError: A negative with the text of a positive of the same query, or without text; no
                negative for any query.
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


def as_collection(data: TrainingData, split: str = "dev") -> Collection:
    """The queries of training data as a collection to search, over all of its passages.

    Args:
        data: Such as the held-out part of a split, whose passages are those of the whole.
        split: What to call the split.
    """
    return Collection(
        data.name,
        [Passage(doc_id, "", text) for doc_id, text in data.passages.items()],
        {e.query_id: e.query for e in data.examples},
        {split: {e.query_id: dict(e.positives) for e in data.examples}},
        split,
    )


def merge(name: str, *parts: TrainingData) -> TrainingData:
    """Several sets as one; a query that is in several keeps all its positives and negatives.

    Args:
        name: The name of the whole.
        *parts: Ids get the part's number before them, as two sets may use the same.

    Raises:
        ValueError: No part.
    """
    examples: dict[str, Example] = {}
    passages: dict[str, str] = {}
    for number, part in enumerate(parts):
        passages |= {f"{number}-{doc_id}": text for doc_id, text in part.passages.items()}
        for e in part.examples:
            first = examples.get(query_key(e.query), Example(f"{number}-{e.query_id}", e.query, {}))
            positives = {**first.positives, **{f"{number}-{d}": g for d, g in e.positives.items()}}
            negatives = (*first.negatives, *(f"{number}-{d}" for d in e.negatives))
            ordered = dict(sorted(positives.items(), key=lambda item: -item[1]))
            examples[query_key(e.query)] = replace(first, positives=ordered, negatives=negatives)
    return TrainingData(name, list(examples.values()), passages)
