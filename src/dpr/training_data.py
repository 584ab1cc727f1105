"""Training data of a bi-encoder: queries, each with positive and negative passages.

However it is stored, data becomes one form: a query once, all its positives and negatives with it. So a
query can not stand on both sides of a split, and a batch can tell which passages are no negatives of it.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import ftfy

from dpr.collection import Collection, Passage, normalise, stable_hash
from dpr.files import read_lines

KEPT_SAMPLES = 20  # mended texts and bad lines kept to look at
# Mends wrongly decoded text only: quotes, ligatures and widths are left as the searched passages have them
MENDING = ftfy.TextFixerConfig(
    uncurl_quotes=False, fix_latin_ligatures=False, fix_character_width=False, normalization=None
)


@dataclass(frozen=True)
class Example:
    """A query with what is known about passages for it.

    Attributes:
        query_id: The query's id; of a file, `q` and the line.
        query: Its text.
        positives: doc_id → grade, above 0, highest grades first.
        negatives: doc_ids of passages given or mined as negatives, hardest first.
    """

    query_id: str
    query: str
    positives: Mapping[str, int]
    negatives: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preparation:
    """What was done to the source on the way.

    Attributes:
        num_rows: Pairs of a query and a passage read.
        bad_lines: The lines skipped, each with file, number and reason.
        num_mended: Texts that ftfy changed.
        mended: Some of them, as (before, after).
        duplicate_queries: Queries that had come before; their passages went to the first.
        duplicate_passages: Passages whose text, case and white space aside, an earlier one has.
        dropped_queries: Training queries left out because they are evaluation queries too.
    """

    num_rows: int = 0
    bad_lines: tuple[str, ...] = ()
    num_mended: int = 0
    mended: tuple[tuple[str, str], ...] = ()
    duplicate_queries: int = 0
    duplicate_passages: int = 0
    dropped_queries: tuple[str, ...] = ()


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


def from_collection(collection: Collection) -> TrainingData:
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
    mended = _Mender()
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
    return _gather(f"{collection.name}/{collection.split}", rows, passages, mended)


def read_training_tsv(path: Path | str, name: str = "", max_bad_lines: int = 0) -> TrainingData:
    """Read lines of `query⇥positive`, or `query⇥positive⇥negative…`, without a header.

    Equal texts are one passage. The id of a query is `q` and its line. MS MARCO "tiny" has this form.

    Args:
        path: A UTF-8 file, plain or gzipped.
        name: The data's name; by default the file's, without ending.
        max_bad_lines: Lines that may be skipped: those with another number of fields than the first
            line, with an empty field, or whose negative is their positive.

    Raises:
        FileNotFoundError: No such file.
        ValueError: More bad lines than that: names file, line and reason.
    """
    rows: list[tuple[str, str, str, int]] = []
    passages: dict[str, str] = {}
    bad: list[str] = []
    columns, mended = 0, _Mender()
    for number, line in read_lines(path):
        fields = [mended(part).strip() for part in line.split("\t")]
        columns = columns or len(fields)
        reason = _what_is_wrong(fields, columns)
        if reason:
            bad.append(f"{path}:{number}: {reason}")
            if len(bad) > max_bad_lines:
                raise ValueError(
                    f"{bad[0]}; {len(bad)} bad lines, {max_bad_lines} may be skipped (max_bad_lines)"
                )
            continue
        query, *texts = fields
        for position, text in enumerate(texts):
            doc_id = f"p{stable_hash(text)[:16]}"
            passages[doc_id] = text
            rows.append((f"q{number}", query, doc_id, int(position == 0)))
    name = name or Path(path).name.removesuffix(".gz").removesuffix(".tsv")
    return _gather(name, rows, passages, mended, tuple(bad))


def _what_is_wrong(fields: Sequence[str], columns: int) -> str:
    """Why a line of a training file cannot be used, or nothing."""
    if columns < 2:
        return "expected query, positive and perhaps negatives, separated by tabs; found no tab"
    if len(fields) != columns:
        return f"expected {columns} fields as in the first line, found {len(fields)}"
    empty = [str(position) for position, part in enumerate(fields, start=1) if not part]
    if empty:
        return f"field {', '.join(empty)} is empty"
    if normalise(fields[1]) in {normalise(part) for part in fields[2:]}:
        return "the negative is the positive"
    return ""


class _Mender:
    """Mends texts and remembers those it changed."""

    def __init__(self):
        self.changed: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        better = mend(text)
        if better != text:
            self.changed[text] = better
        return better


def mend(text: str) -> str:
    """Undo wrong decoding, as far as ftfy can tell, and nothing else.

    >>> mend("what is a cafÃ©"), mend("“quoted”")
    ('what is a café', '“quoted”')
    """
    return ftfy.fix_text(text, MENDING)


def query_key(text: str) -> str:
    """What queries are told apart by: their words once mended, case and white space aside."""
    return normalise(mend(text))


def _gather(
    name: str,
    rows: Sequence[tuple[str, str, str, int]],
    passages: Mapping[str, str],
    mended: _Mender,
    bad_lines: tuple[str, ...] = (),
) -> TrainingData:
    """Examples from rows of query_id, query, doc_id and grade, all texts mended."""
    keys = {doc_id: normalise(passages[doc_id]) for _, _, doc_id, _ in rows}
    queries: dict[str, Example] = {}
    judged: dict[str, dict[str, int]] = {}
    sources: dict[str, set[str]] = {}
    for query_id, query, doc_id, grade in rows:
        key = normalise(query)
        queries.setdefault(key, Example(query_id, query, {}))
        sources.setdefault(key, set()).add(query_id)
        grades = judged.setdefault(key, {})
        grades[doc_id] = max(grade, grades.get(doc_id, grade))
    examples = []
    for key, example in queries.items():
        ordered = sorted(judged[key].items(), key=lambda item: -item[1])
        positives = {doc_id: grade for doc_id, grade in ordered if grade > 0}
        relevant = {keys[doc_id] for doc_id in positives}
        negatives = tuple(d for d, grade in ordered if grade <= 0 and keys[d] not in relevant)
        if positives:
            examples.append(replace(example, positives=positives, negatives=negatives))
    preparation = Preparation(
        num_rows=len(rows),
        bad_lines=bad_lines,
        num_mended=len(mended.changed),
        mended=tuple(mended.changed.items())[:KEPT_SAMPLES],
        duplicate_queries=sum(len(ids) - 1 for ids in sources.values()),
        duplicate_passages=len(keys) - len(set(keys.values())),
    )
    return TrainingData(name, examples, {doc_id: passages[doc_id] for doc_id in keys}, preparation)
