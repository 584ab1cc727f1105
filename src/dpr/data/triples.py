"""Where training data comes from: files of triples and pairs, and the judgements of a collection."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from dpr.data.collection import Collection
from dpr.data.text import mend, normalise, stable_hash
from dpr.data.training_data import Example, Preparation, TrainingData
from dpr.files import read_lines

KEPT_SAMPLES = 20  # mended texts kept to look at


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
