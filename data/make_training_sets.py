"""Make the training sets `squad-triples` and `medquad-pairs` from the files of SQuAD 1.1 and MedQuAD.

    python data/make_training_sets.py squad-triples PATH/dev-v1.1.json
    python data/make_training_sets.py medquad-pairs PATH/MedQuAD

They are written to `squad-triples/triples.train.tsv` and `medquad-pairs/pairs.tsv` beside this script, where
`load_training_data` finds them. data/README.md says where the files come from and under which licence.
"""

import argparse
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from dpr.files import read_json, write_text

LONGEST_ANSWER = 1500  # characters of an answer from MedQuAD


def squad_triples(path: Path, seed: int = 0) -> tuple[list[tuple[str, str, str]], int]:
    """Give each question of a SQuAD 1.1 file its paragraph and another one of the article without an answer.

    The other paragraph is drawn from those of the article in which no answer to the question occurs,
    compared in lower case. A question without such a paragraph is left out. At the end the triples are
    shuffled. White space, tabs and line ends included, becomes single spaces. A question that is asked
    twice gives two triples.

    Args:
        path: The JSON file, such as `dev-v1.1.json`.
        seed: Selects the paragraphs and the order.

    Returns:
        The triples (question, paragraph, other paragraph), and how many questions were left out.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It is not in SQuAD 1.1's layout (the message names file and field), a question has no
            answer, or every question is left out.
    """
    rng, triples, left_out = random.Random(seed), [], 0
    for a, article in enumerate(_field(read_json(path, "data"), "data", list, f"{path}:")):
        at = f"{path}: data[{a}]"
        paragraphs = _field(article, "paragraphs", list, at)
        at = f"{at}.paragraphs"
        texts = [_text(paragraph, "context", f"{at}[{p}]") for p, paragraph in enumerate(paragraphs)]
        lowered = [text.lower() for text in texts]
        for p, paragraph in enumerate(paragraphs):
            for q, question in enumerate(_field(paragraph, "qas", list, f"{at}[{p}]")):
                here = f"{at}[{p}].qas[{q}]"
                query = _text(question, "question", here)
                answers = _field(question, "answers", list, here)
                if not answers:
                    raise ValueError(f"{here}.answers is empty: SQuAD 1.1 answers all, 2.0 does not")
                found = {_text(a, "text", f"{here}.answers[{n}]").lower() for n, a in enumerate(answers)}
                others = [
                    text
                    for text, lower in zip(texts, lowered, strict=True)
                    if text != texts[p] and not any(answer in lower for answer in found)
                ]
                if others:
                    triples.append((query, texts[p], rng.choice(others)))
                left_out += not others
    if not triples:
        raise ValueError(f"{path}: no question has a paragraph of its article without its answers")
    rng.shuffle(triples)
    return triples, left_out


def medquad_pairs(folder: Path) -> tuple[list[tuple[str, str]], int]:
    """Pair the questions of MedQuAD with their answers, in the order of folders, files and questions.

    White space becomes single spaces. Of an answer longer than `LONGEST_ANSWER` characters, those are
    kept, less what stands after the last space in them. Pairs that are there twice stay.

    Args:
        folder: A clone of MedQuAD: folders of .xml files.

    Returns:
        The pairs (question, answer), and how many questions were left out because they have no answer,
        as those of MedQuAD's folders 10 to 12, whose answers are not free.

    Raises:
        FileNotFoundError: The folder does not exist, or no folder in it holds .xml files.
        ValueError: A file is not in MedQuAD's layout (the message names file and field), or no question
            has an answer.
    """
    paths = sorted(folder.glob("*/*.xml"), key=lambda path: (path.parent.name, path.name))
    if not paths:
        raise FileNotFoundError(f"{folder}: no folder with .xml files in it; give a clone of MedQuAD")
    pairs, left_out = [], 0
    for path in paths:
        try:
            document = ElementTree.parse(path).getroot()
        except ElementTree.ParseError as error:
            raise ValueError(f"{path}: not XML ({error})") from None
        if document.find("QAPairs") is None:
            raise ValueError(f"{path}: <{document.tag}> has no <QAPairs>: not a file of MedQuAD")
        for number, pair in enumerate(document.iterfind("QAPairs/QAPair"), start=1):
            question, answer = (_content(pair.find(tag)) for tag in ("Question", "Answer"))
            if not question:
                raise ValueError(f"{path}: <QAPair> {number} has no <Question>, or an empty one")
            if len(answer) > LONGEST_ANSWER:
                answer = answer[:LONGEST_ANSWER].rsplit(" ", 1)[0]
            if answer:
                pairs.append((question, answer))
            left_out += not answer
    if not pairs:
        raise ValueError(f"{folder}: none of {left_out:,} questions has an <Answer>")
    return pairs, left_out


def _field(record: Any, name: str, kind: type, where: str) -> Any:
    """A field of a JSON object, which must be there and of this type."""
    value = record.get(name) if isinstance(record, dict) else None
    if not isinstance(value, kind):
        what = f"got {type(value).__name__}" if value is not None else "which is missing"
        raise ValueError(f"{where} needs a field {name!r} with a {kind.__name__}, {what}")
    return value


def _text(record: Any, name: str, where: str) -> str:
    """A field that holds a text, with single spaces between its words."""
    text = " ".join(_field(record, name, str, where).split())
    if not text:
        raise ValueError(f"{where} has an empty field {name!r}")
    return text


def _content(element: ElementTree.Element | None) -> str:
    """The text in an XML element, with single spaces between its words; empty if there is no element."""
    return "" if element is None else " ".join("".join(element.itertext()).split())


SETS = {
    "squad-triples": (
        squad_triples,
        "triples.train.tsv",
        "as no other paragraph of the article is without an answer",
    ),
    "medquad-pairs": (medquad_pairs, "pairs.tsv", "as they have no answer"),
}


def main(arguments: Sequence[str] | None = None, into: Path = Path(__file__).parent) -> None:
    """The command line; the sets are written into folders in `into`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("set", choices=SETS)
    parser.add_argument("source", type=Path, help="the file or the folder to make it from")
    given = parser.parse_args(arguments)
    make, name, why = SETS[given.set]
    try:
        rows, left_out = make(given.source)
        target = into / given.set / name
        write_text(target, "".join("\t".join(row) + "\n" for row in rows))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{target}: lines {len(rows):,}; questions left out {left_out:,}, {why}")


if __name__ == "__main__":
    main()
