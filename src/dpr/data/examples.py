"""From judged pairs to training examples: each query once, its texts mended, copies told apart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dpr.data.text import mend, normalise

KEPT_SAMPLES = 20  # mended texts kept to look at


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


class Mender:
    """Mends texts and remembers those it changed."""

    def __init__(self):
        self.changed: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        """The text, mended as `mend` does."""
        better = mend(text)
        if better != text:
            self.changed[text] = better
        return better


def gather_examples(
    rows: Sequence[tuple[str, str, str, int]],
    passages: Mapping[str, str],
    mended: Mender,
    bad_lines: tuple[str, ...] = (),
) -> tuple[list[Example], dict[str, str], Preparation]:
    """Examples from rows of query_id, query, doc_id and grade, all texts mended.

    Args:
        rows: A row for each judged pair; those above 0 are positives, others negatives.
        passages: doc_id → text.
        mended: What mended the texts, for the record.
        bad_lines: What was skipped on the way, for the record.

    Returns:
        One example for each query, the passages that the rows name, and what was done on the way.
    """
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
    return examples, {doc_id: passages[doc_id] for doc_id in keys}, preparation
