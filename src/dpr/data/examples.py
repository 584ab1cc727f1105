"""From judged pairs to training examples, one per query; the repairs and duplicates are recorded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dpr.data.text import mend, normalise

KEPT_SAMPLES = 20  # mended texts kept as samples


@dataclass(frozen=True)
class Example:
    """A query with its positive and negative passages.

    Attributes:
        query_id: The query's id; for data from a .tsv file, `q` and the line number.
        query: Its text.
        positives: doc_id → grade, which is above 0; highest grades first.
        negatives: doc_ids of passages given or mined as negatives, hardest first.
    """

    query_id: str
    query: str
    positives: Mapping[str, int]
    negatives: tuple[str, ...] = ()


@dataclass(frozen=True)
class Preparation:
    """What was changed or skipped when training data was made from its source.

    Attributes:
        bad_lines: The skipped lines, each as file, line number and reason.
        num_mended: Number of texts that ftfy repaired.
        mended: Up to `KEPT_SAMPLES` of these texts, as (before, after).
        duplicate_queries: Number of queries merged into an earlier query with the same text.
        duplicate_passages: Number of passages with the text of an earlier one, ignoring case and white
            space.
        dropped_queries: Texts of training queries left out because they are also evaluation queries.
    """

    bad_lines: tuple[str, ...] = ()
    num_mended: int = 0
    mended: tuple[tuple[str, str], ...] = ()
    duplicate_queries: int = 0
    duplicate_passages: int = 0
    dropped_queries: tuple[str, ...] = ()


class Mender:
    """Repairs texts with `mend` and remembers those that changed."""

    def __init__(self):
        self.changed: dict[str, str] = {}

    def __call__(self, text: str) -> str:
        """Return the text as repaired by `mend`."""
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
    """Group rows of (query_id, query, doc_id, grade) into one example per query.

    Args:
        rows: One row per judged pair; passages graded above 0 are positives, others negatives.
        passages: doc_id → text.
        mended: The `Mender` that has repaired all texts; its changes are recorded.
        bad_lines: Lines that were skipped, to be recorded.

    Returns:
        One example for each query that has a positive, the passages that the rows name, and a record
        of the changes. Negatives with the text of a positive of the same query are left out.
    """
    keys = {doc_id: normalise(passages[doc_id]) for _, _, doc_id, _ in rows}  # all are mended already
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
        bad_lines=bad_lines,
        num_mended=len(mended.changed),
        mended=tuple(mended.changed.items())[:KEPT_SAMPLES],
        duplicate_queries=sum(len(ids) - 1 for ids in sources.values()),
        duplicate_passages=len(keys) - len(set(keys.values())),
    )
    return examples, {doc_id: passages[doc_id] for doc_id in keys}, preparation
