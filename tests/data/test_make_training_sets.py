"""The script that makes `squad-triples` and `medquad-pairs`, on files in their sources' layouts."""

import importlib.util
import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from xml.sax.saxutils import escape

import pytest

from dpr.data.loading import load_training_data
from dpr.files import read_jsonl, read_lines

SCRIPT = Path(__file__).parents[2] / "data" / "make_training_sets.py"


@pytest.fixture(scope="module")
def script():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("make_training_sets", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def asked(question, *answers):
    """A question of SQuAD 1.1 with its answers."""
    return {"id": "5", "question": question, "answers": [{"text": a, "answer_start": 0} for a in answers]}


def article(title, *paragraphs):
    """An article of SQuAD 1.1: each paragraph is its text and then its questions."""
    made = [{"context": context, "qas": list(questions)} for context, *questions in paragraphs]
    return {"title": title, "paragraphs": made}


def write_squad(folder, *articles):
    """A file in SQuAD 1.1's layout."""
    path = folder / "dev-v1.1.json"
    path.write_text(json.dumps({"data": list(articles), "version": "1.1"}), encoding="utf-8")
    return path


RHINE = article(
    "Rhine",
    ("The Rhine\n is 1,230 km  long.", asked(" How long\tis the Rhine? ", "1,230 km", "1230 km")),
    ("It ends in the North Sea.", asked("Where does it end?", "the north sea", "North Sea")),
    ("Near THE NORTH SEA it has a delta, 1230 KM from its source.", asked("What has it there?", "a delta")),
)
BASEL = article("Basel", ("Basel lies on the Rhine.", asked("Where is Basel?", "on the Rhine", "Rhine")))
LONG = "The Rhine is 1,230 km long."
DELTA = "Near THE NORTH SEA it has a delta, 1230 KM from its source."


# --- SQuAD -------------------------------------------------------------------------------------


def test_the_other_paragraph_is_of_the_same_article_and_holds_no_answer_in_any_case(script, tmp_path):
    triples, left_out = script.squad_triples(write_squad(tmp_path, RHINE, BASEL))
    delta = next(t for t in triples if t[0] == "What has it there?")
    assert delta[1] == DELTA
    assert delta[2] in (LONG, "It ends in the North Sea.")
    assert sorted(t for t in triples if t is not delta) == [
        ("How long is the Rhine?", LONG, "It ends in the North Sea."),
        ("Where does it end?", "It ends in the North Sea.", LONG),
    ]
    assert left_out == 1  # Basel's article has no other paragraph


def test_a_paragraph_with_the_text_of_the_own_one_is_never_the_other(script, tmp_path):
    same = article("A", ("One text.", asked("Which?", "none of these")), ("One  text.",), ("Another.",))
    assert script.squad_triples(write_squad(tmp_path, same)) == ([("Which?", "One text.", "Another.")], 0)


def test_a_seed_selects_paragraphs_and_order_and_a_question_asked_twice_stays(script, tmp_path):
    many = [(f"Paragraph {n}.", asked("Which number?", f"{n}."), asked("Which?", f"{n}.")) for n in range(30)]
    path = write_squad(tmp_path, article("Numbers", *many))
    triples, _ = script.squad_triples(path, seed=1)
    assert script.squad_triples(path, seed=1)[0] == triples
    assert len(triples) == 60
    other, _ = script.squad_triples(path, seed=2)
    assert sorted(t[:2] for t in other) == sorted(t[:2] for t in triples)
    assert [t[:2] for t in other] != [t[:2] for t in triples]  # the order
    assert sorted(other) != sorted(triples)  # the paragraphs


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected a JSON object"),
        ('{"data": ', "not JSON"),
        ('{"version": "1.1"}', "lacks the field data"),
        ('{"data": {}}', ": needs a field 'data' with a list, got dict"),
        ('{"data": ["Rhine"]}', ": data[0] needs a field 'paragraphs' with a list, which is missing"),
        (
            '{"data": [{"paragraphs": [{"context": " "}]}]}',
            ": data[0].paragraphs[0] has an empty field 'context'",
        ),
        (
            '{"data": [{"paragraphs": [{"context": "a b"}]}]}',
            ": data[0].paragraphs[0] needs a field 'qas' with a list, which is missing",
        ),
        (
            '{"data": [{"paragraphs": [{"context": "a b", "qas": [{"question": 3}]}]}]}',
            ": data[0].paragraphs[0].qas[0] needs a field 'question' with a str, got int",
        ),
        (
            '{"data": [{"paragraphs": [{"context": "a b", "qas": [{"question": "c", "answers": []}]}]}]}',
            ": data[0].paragraphs[0].qas[0].answers is empty: SQuAD 1.1 answers all, 2.0 does not",
        ),
        (
            '{"data": [{"paragraphs": [{"context": "a b", "qas": [{"question": "c", "answers": [{}]}]}]}]}',
            ": data[0].paragraphs[0].qas[0].answers[0] needs a field 'text' with a str, which is missing",
        ),
        ('{"data": []}', ": no question has a paragraph of its article without its answers"),
    ],
)
def test_a_file_that_is_not_squad_is_refused_with_the_place_and_field(script, tmp_path, content, message):
    path = tmp_path / "dev.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        script.squad_triples(path)
    assert str(error.value).startswith(str(path))


def test_a_missing_squad_file_is_named(script, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"dev-v1\.1\.json: no such file"):
        script.squad_triples(tmp_path / "dev-v1.1.json")


def test_the_squad_folder_as_json_gives_the_very_bytes_of_squad_triples(script, data_dir, tmp_path):
    folder, questions = data_dir / "squad", defaultdict(list)
    answers = {row["_id"]: row["answers"] for _, row in read_jsonl(folder / "answers.jsonl")}
    queries = {row["_id"]: row["text"] for _, row in read_jsonl(folder / "queries.jsonl")}
    for number, line in read_lines(folder / "qrels" / "test.tsv"):
        if number > 1:
            query_id, doc_id, _ = line.split("\t")
            questions[doc_id].append(asked(queries[query_id], *answers[query_id]))
    articles = defaultdict(list)
    for _, row in read_jsonl(folder / "corpus.jsonl"):
        articles[row["title"]].append((row["text"], *questions[row["_id"]]))
    path = write_squad(tmp_path, *(article(title, *of) for title, of in articles.items()))
    script.main(["squad-triples", str(path)], tmp_path)
    (at_hand,) = (data_dir / "squad-triples").glob("*.tsv")
    assert (tmp_path / "squad-triples" / at_hand.name).read_bytes() == at_hand.read_bytes()


# --- MedQuAD -----------------------------------------------------------------------------------


def document(*pairs):
    """A file in MedQuAD's layout; the answer None is none, as where the answers are not free."""
    inside = "".join(
        f'\t<QAPair pid="{number}">\n\t\t<Question qid="1-{number}" qtype="information">{escape(question)}'
        f"</Question>\n\t\t<Answer>{escape(answer or '')}</Answer>\n\t</QAPair>\n"
        for number, (question, answer) in enumerate(pairs, start=1)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<Document id="0000001" source="CDC" url="http://cdc.gov/a">\n'
        f"<!--a comment--><Focus>Gout</Focus>\n<QAPairs>\n{inside}</QAPairs>\n</Document>\n"
    )


def write_medquad(folder, **files):
    """A folder in MedQuAD's layout, of `folder__file` names and texts."""
    for name, text in files.items():
        path = folder.joinpath(*f"{name}.xml".split("__"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def test_pairs_come_in_the_order_of_folders_files_and_questions_and_copies_stay(script, tmp_path):
    folder = write_medquad(
        tmp_path / "MedQuAD",
        **{
            "9_CDC_QA__0000001": document(("What is gout ?", "A disease.")),
            "1_CancerGov_QA__0000024_2": document(
                ("What is (are) larynx & pharynx ?", "Two\n    organs.  <5 cm")
            ),
            "1_CancerGov_QA__0000024_10": document(
                ("Is it\trare ?", "No –\nit is not."), ("Is it rare ?", "No.")
            ),
            "10_MPlus_ADAM_QA__0000001": document(("What is flu ?", None), ("Is flu rare ?", " \n ")),
            "9_CDC_QA__0000003": document(("What is gout ?", "A disease.")),
        },
    )
    (folder / "readme.xml").write_text("not in a folder")
    assert script.medquad_pairs(folder) == (
        [
            ("Is it rare ?", "No – it is not."),
            ("Is it rare ?", "No."),
            ("What is (are) larynx & pharynx ?", "Two organs. <5 cm"),
            ("What is gout ?", "A disease."),
            ("What is gout ?", "A disease."),
        ],
        2,
    )


@pytest.mark.parametrize(
    ("answer", "kept"),
    [
        ("a" * 1500, "a" * 1500),
        ("a" * 1501, "a" * 1500),
        ("a" * 1490 + " " + "b" * 9, "a" * 1490 + " " + "b" * 9),
        ("a" * 1490 + " " + "b" * 10, "a" * 1490),
        (
            "a" * 1490 + " " + "b" * 9 + " c",
            "a" * 1490,
        ),  # so the sets at hand were cut: a whole last word goes
        ("a" * 1490 + "  " + "b" * 9, "a" * 1490 + " " + "b" * 9),  # counted after spaces are made single
    ],
)
def test_an_answer_is_cut_at_the_last_space_of_its_first_1500_characters(script, tmp_path, answer, kept):
    folder = write_medquad(tmp_path, **{"1_CancerGov_QA__1": document(("What ?", answer))})
    assert script.medquad_pairs(folder)[0] == [("What ?", kept)]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<Document><QAPairs>", ": not XML ("),
        ("<Documents></Documents>", ": <Documents> has no <QAPairs>: not a file of MedQuAD"),
        (
            "<Document><QAPairs><QAPair><Answer>A disease.</Answer></QAPair></QAPairs></Document>",
            ": <QAPair> 1 has no <Question>, or an empty one",
        ),
        (
            "<Document><QAPairs><QAPair><Question/><Answer>A.</Answer></QAPair></QAPairs></Document>",
            ": <QAPair> 1 has no <Question>, or an empty one",
        ),
    ],
)
def test_a_file_that_is_not_of_medquad_is_refused_with_its_name_and_the_field(script, tmp_path, text, told):
    write_medquad(tmp_path, **{"9_CDC_QA__0000001": document(("What ?", "A.")), "9_CDC_QA__0000003": text})
    where = tmp_path / "9_CDC_QA" / "0000003.xml"
    with pytest.raises(ValueError, match=re.escape(f"{where}{told}")):
        script.medquad_pairs(tmp_path)


def test_a_folder_without_answers_or_without_files_is_refused(script, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"MedQuAD: no folder with \.xml files in it"):
        script.medquad_pairs(tmp_path / "MedQuAD")
    write_medquad(tmp_path, **{"10_MPlus_ADAM_QA__0000001": document(("What ?", None), ("Is it rare ?", ""))})
    with pytest.raises(ValueError, match=r"none of 2 questions has an <Answer>"):
        script.medquad_pairs(tmp_path)


def test_the_pairs_at_hand_written_as_xml_come_back_in_the_same_bytes(script, data_dir, tmp_path):
    (at_hand,) = (data_dir / "medquad-pairs").glob("*.tsv")
    rows = [line.split("\t") for _, line in read_lines(at_hand)]
    files = {f"1_CancerGov_QA__{n:07d}": document(*rows[n : n + 500]) for n in range(0, len(rows), 500)}
    script.main(["medquad-pairs", str(write_medquad(tmp_path / "MedQuAD", **files))], tmp_path)
    assert (tmp_path / "medquad-pairs" / at_hand.name).read_bytes() == at_hand.read_bytes()


# --- the command line --------------------------------------------------------------------------


def test_sets_are_read_by_their_names_once_they_are_made(script, tmp_path, monkeypatch, capsys):
    path = write_squad(tmp_path, RHINE, BASEL)
    folder = write_medquad(tmp_path / "MedQuAD", **{"9_CDC_QA__1": document(("What ?", "A."), ("Who ?", ""))})
    into = tmp_path / "data"
    script.main(["squad-triples", str(path)], into)
    script.main(["medquad-pairs", str(folder)], into)
    told = capsys.readouterr().out.splitlines()
    assert told == [
        f"{into / 'squad-triples' / 'triples.train.tsv'}: lines 3; questions left out 1, "
        "as no other paragraph of the article is without an answer",
        f"{into / 'medquad-pairs' / 'pairs.tsv'}: lines 1; questions left out 1, as they have no answer",
    ]
    monkeypatch.setenv("DPR_DATA_DIR", str(into))
    triples, pairs = load_training_data("squad-triples"), load_training_data("medquad-pairs")
    assert sorted(e.query for e in triples.examples) == [
        "How long is the Rhine?",
        "What has it there?",
        "Where does it end?",
    ]
    assert [len(e.negatives) for e in triples.examples] == [1, 1, 1]
    assert [(e.query, list(e.negatives)) for e in pairs.examples] == [("What ?", [])]


def test_a_refused_file_leaves_the_set_that_was_there(script, tmp_path):
    into = tmp_path / "data"
    script.main(["squad-triples", str(write_squad(tmp_path, RHINE))], into)
    made = into / "squad-triples" / "triples.train.tsv"
    before = made.read_bytes()
    with pytest.raises(SystemExit, match=r"error: .*no question has a paragraph"):
        script.main(["squad-triples", str(write_squad(tmp_path, BASEL))], into)
    assert list(made.parent.iterdir()) == [made]
    assert made.read_bytes() == before


def test_the_script_runs_by_itself_and_ends_with_one_line_on_a_mistake(tmp_path):
    command = [sys.executable, str(SCRIPT), "medquad-pairs", str(tmp_path / "nowhere")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        f"error: {tmp_path / 'nowhere'}: no folder with .xml files in it; give a clone of MedQuAD\n"
    )
