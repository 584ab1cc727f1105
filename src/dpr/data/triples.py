"""Training data from .tsv files of (query, positive) pairs or (query, positive, negatives) rows."""

import re
from collections.abc import Sequence
from pathlib import Path

from dpr.arguments import checked
from dpr.data.examples import Mender, gather_examples
from dpr.data.text import normalise, stable_hash
from dpr.data.training_data import TrainingData
from dpr.data.trec import is_header
from dpr.files import read_lines

ID = re.compile(r"[\w.:/-]*\d[\w.:/-]*", re.ASCII)


@checked
def read_training_tsv(path: Path | str, name: str = "", max_bad_lines: int = 0) -> TrainingData:
    """Read lines of `query⇥positive`, or `query⇥positive⇥negative…`, without a header.

    Equal texts become one passage. A query's id is `q` and its line number. MS MARCO "tiny" has this format.

    Args:
        path: A UTF-8 file, plain or gzipped.
        name: The data's name; by default the file's name without its ending.
        max_bad_lines: Most bad lines that may be skipped. A line is bad if it has another number of
            fields than the first line, an empty field, a carriage return inside, or a negative that equals
            the positive, or if it is a header.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: More than `max_bad_lines` lines are bad (the message names file, line and reason), or
            all fields are ids instead of texts, as in MS MARCO's `qidpidtriples`.
    """
    rows: list[tuple[str, str, str, int]] = []
    only_ids = True
    passages: dict[str, str] = {}
    bad: list[str] = []
    columns, mended = 0, Mender()
    for number, line in read_lines(path):
        fields = [mended(part).strip() for part in line.split("\t")]
        columns = columns or len(fields)
        reason = "it looks like a header" if number == 1 and is_header(fields) else ""
        if "\r" in line:
            reason = "a carriage return inside it: end lines with a line feed"
        reason = reason or _what_is_wrong(fields, columns)
        if reason:
            bad.append(f"{path}:{number}: {reason}")
            if len(bad) > max_bad_lines:
                raise ValueError(
                    f"{bad[0]}; {len(bad)} bad lines, {max_bad_lines} may be skipped (max_bad_lines)"
                )
            continue
        query, *texts = fields
        only_ids = only_ids and all(map(ID.fullmatch, fields))
        for position, text in enumerate(texts):
            doc_id = f"p{stable_hash(text)[:16]}"
            passages[doc_id] = text
            rows.append((f"q{number}", query, doc_id, int(position == 0)))
    if rows and only_ids:
        raise ValueError(
            f"{path}: its columns are ids such as {rows[0][1]}, not texts; put the texts of queries and "
            f"passages in their place first"
        )
    name = name or Path(path).name.removesuffix(".gz").removesuffix(".tsv")
    return TrainingData(name, *gather_examples(rows, passages, mended, tuple(bad)))


def _what_is_wrong(fields: Sequence[str], columns: int) -> str:
    """Why a line of a training file cannot be used; an empty text if it can."""
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
