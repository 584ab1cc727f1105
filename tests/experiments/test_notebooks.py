"""The notebooks as documents, by rule; and as programs, run whole on the smallest profile."""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import nbformat
import papermill
import pytest

from dpr.experiments import notebooks
from dpr.experiments.notebooks import (
    SAMPLE_SECONDS,
    clean,
    execute_notebook,
    extract_figures,
    main,
    parameters_of,
    set_parameters,
)
from dpr.experiments.results import WRITERS, load_results
from dpr.files import locked

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
NUMBERS = ["00", "01", "02", "03", "04", "05", "06", "07", "08", "09", "10"]
TEMPLATE = "10"  # on one's own texts, without a profile
PARAMETERS = {number: ["PROFILE", "OUTPUT", "SETTINGS"] for number in NUMBERS}
PARAMETERS[TEMPLATE] = ["FOLDER", "OUTPUT", "ENCODER", "DEPTH"]
REVIEWED = Path(__file__).with_name("reviewed_sentences.txt")
MAX_BYTES, MAX_CELLS = 300_000, 45
MAX_CELL_LINES, MAX_FUNCTION_LINES = 25, 12
MACHINE_PATH = re.compile(r"(?<![\w.:/-])/(?:home|root|tmp|work|Users|mnt|opt)/")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path):
    return nbformat.read(path, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def small_notebook(*sources: str, parameters: str = 'PROFILE = "smoke"  # a comment\nCOUNT = 1  # how many'):
    cells = [nbformat.v4.new_markdown_cell("# 00 Test\n\n*Rendered not yet*")]
    cells.append(nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    return nbformat.v4.new_notebook(cells=cells + [nbformat.v4.new_code_cell(source) for source in sources])


def test_there_are_notebooks():
    assert [path.name[:2] for path in NOTEBOOKS] == NUMBERS
    assert list(SAMPLE_SECONDS) == NUMBERS


@each_notebook
def test_the_first_cell_asks_answers_and_says_what_it_ran_on(path):
    first = read(path).cells[0]
    number, title = path.stem.split("_", 1)
    assert first.source.startswith(f"# {number} {title.replace('_', ' ').capitalize().replace('Bm', 'BM')}")
    for part in ("**Question.**", "**Answer.**", "Reads "):
        assert part in first.source
    where = "" if number == TEMPLATE else "on `scifact` "
    assert re.search(rf"^\*Rendered {where}in [\d.]+ minutes on .+\.\*$", first.source, re.MULTILINE)


@each_notebook
def test_the_second_cell_holds_literal_parameters_with_a_comment_each(path):
    cell = read(path).cells[1]
    assert cell.metadata.get("tags") == ["parameters"]
    for line, statement in zip(cell.source.splitlines(), ast.parse(cell.source).body, strict=True):
        assert isinstance(statement, ast.Assign)
        assert statement.targets[0].id.isupper()
        ast.literal_eval(statement.value)
        assert "  # " in line
    values = {
        name: ast.literal_eval(match.group(3)) for name, (_, match) in parameters_of(read(path)).items()
    }
    expected = PARAMETERS[path.name[:2]]
    assert list(values)[: len(expected)] == expected
    assert ("PROFILE" in values) == (path.name[:2] != TEMPLATE)
    first_ones = {"PROFILE": "scifact", "OUTPUT": "", "SETTINGS": {}, "FOLDER": ""}
    assert {name: values[name] for name in first_ones.keys() & values} == {
        name: value for name, value in first_ones.items() if name in values
    }


@each_notebook
def test_a_notebook_with_a_profile_opens_its_workspace_with_output_and_settings(path):
    source = "\n".join(cell.source for cell in code_cells(read(path)))
    assert (source.count("Workspace.open(PROFILE, OUTPUT, SETTINGS)") == 1) == (path.name[:2] != TEMPLATE)
    assert ("Claims(strict=space.known)" in source) == (path.name[:2] != TEMPLATE)


@each_notebook
def test_cells_were_run_once_in_order_from_a_fresh_kernel(path):
    counts = [cell.execution_count for cell in code_cells(read(path))]
    assert counts == list(range(1, len(counts) + 1))


@each_notebook
def test_outputs_hold_no_error_no_standard_error_no_widget_and_no_machine_path(path):
    notebook = read(path)
    assert "widgets" not in notebook.metadata
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr"
            assert not any("widget" in kind for kind in output.get("data", {}))
            text = {kind: data for kind, data in output.get("data", {}).items() if kind != "image/png"}
            assert not MACHINE_PATH.search(json.dumps([text, output.get("text", "")]))


@each_notebook
def test_a_notebook_is_small_enough_to_read_on_github(path):
    assert path.stat().st_size <= MAX_BYTES
    assert len(read(path).cells) <= MAX_CELLS


@each_notebook
def test_cells_are_short_and_define_no_class_and_no_long_function(path):
    for cell in code_cells(read(path)):
        assert len(cell.source.splitlines()) <= MAX_CELL_LINES
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, ast.ClassDef)
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES


@each_notebook
def test_there_is_more_to_read_than_to_run_and_claims_are_checked(path):
    notebook = read(path)
    sources = [cell.source for cell in code_cells(notebook)]
    assert sum(len(CHECK.findall(source)) for source in sources) >= 3
    assert "check.rows" in sources[-1]
    questions = [c for c in notebook.cells if c.cell_type == "markdown" and c.source.startswith("## ")]
    assert len(questions) >= 4
    assert questions[-1].source.startswith("## Claims checked")
    assert all(question.source.splitlines()[0].endswith("?") for question in questions[:-1])


def test_the_notebooks_said_to_write_runs_are_those_that_do():
    writes = re.compile(r"\b(?:save_result|search_and_save\w*|save_mean_of_seeds|train_and_search)\(")
    found = [p.name[:2] for p in NOTEBOOKS if any(writes.search(cell.source) for cell in code_cells(read(p)))]
    assert re.findall(r"\b\d\d\b", WRITERS) == found


# --- sentences that no check stands below --------------------------------------------------------

CHECK = re.compile(r"\bcheck(?:\.data)?\(")
NUMBER = re.compile(r"(?<![\w@.-])\d")  # not that of a name, such as BM25, GPT-2 or nDCG@10
COMPARISON = re.compile(
    r"\b(?:better|best|worse|worst|more|most|less|least|fewer|fewest|larger|largest|smaller|smallest|higher"
    r"|highest|lower|lowest|faster|fastest|slower|slowest|quicker|quickest|longer|longest|shorter|shortest"
    r"|than|half|twice|all|none|never|always|every)\b",
    re.IGNORECASE,
)
NO_CLAIM = re.compile(r"`[^`]*`|\$[^$]*\$|\]\([^)]*\)|notebooks? \d\d(?:(?:, | and )\d\d)*", re.IGNORECASE)


def sentences(markdown: str) -> list[str]:
    """The sentences of a Markdown text, without headings, formulas set apart, and questions."""
    text = re.sub(r"\$\$.*?\$\$", "", re.sub(r"^#.*$", "", markdown, flags=re.MULTILINE), flags=re.DOTALL)
    found = []
    for block in re.split(r"\n\s*\n|^[-*] ", text, flags=re.MULTILINE):
        ends = re.sub(r"([.!?][*)”\"]*)\s+(?=[*`“\"(\[]*[A-Z])", r"\1\n", " ".join(block.split()))
        found += [sentence for sentence in ends.splitlines() if not re.search(r"\?[*)”\"]*$", sentence)]
    return found


def unchecked_sentences(notebook) -> list[str]:
    """Sentences with a number or a comparison, and no `check` in the cells between them and the next text.

    Those are left out of the first cell that say what is read and written, and where it was rendered.
    """
    found, pending = [], []
    for position, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            text = (
                cell.source
                if position
                else re.sub(r"^(?:Reads |\*Rendered ).*$", "", cell.source, flags=re.M)
            )
            found += pending
            plain = {sentence: NO_CLAIM.sub("", sentence) for sentence in sentences(text)}
            pending = [s for s, said in plain.items() if NUMBER.search(said) or COMPARISON.search(said)]
        elif CHECK.search(cell.source):
            pending = []
    return [*found, *pending]


def to_review() -> list[str]:
    """A line for each such sentence of the notebooks, in their order: `05: sentence`."""
    found = [f"{path.name[:2]}: {s}" for path in NOTEBOOKS for s in unchecked_sentences(read(path))]
    return list(dict.fromkeys(found))


def test_every_sentence_with_a_number_or_a_comparison_is_checked_below_or_was_reviewed():
    reviewed = REVIEWED.read_text(encoding="utf-8").splitlines() if REVIEWED.is_file() else []
    new = [line for line in to_review() if line not in reviewed]
    print(f"to read, and to check by a cell or add to {REVIEWED.name}:", *new, sep="\n")
    assert new == []


def test_no_sentence_was_reviewed_that_is_gone():
    reviewed = REVIEWED.read_text(encoding="utf-8").splitlines() if REVIEWED.is_file() else []
    gone = [line for line in reviewed if line not in to_review()]
    print(f"no notebook has these any more, remove them from {REVIEWED.name}:", *gone, sep="\n")
    assert gone == []


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("One. Two!  Three", ["One.", "Two!", "Three"]),
        ("One goes\nover lines. Two.\n\nThree", ["One goes over lines.", "Two.", "Three"]),
        ("## How many?\nTwo.\n\n# Title 2\n\nThree.", ["Two.", "Three."]),
        ("**Answer.** It is so.", ["**Answer.**", "It is so."]),
        ("**It is so.** *Here* too. `code` as well.", ["**It is so.**", "*Here* too. `code` as well."]),
        ("(In brackets.) “Said.” Done.", ["(In brackets.)", "“Said.”", "Done."]),
        ("At 0.5 of it, as in Devlin et al. 2019.", ["At 0.5 of it, as in Devlin et al. 2019."]),
        ("Is it so? It is. **Why not?**", ["It is."]),
        ("- first. Then\n- second", ["first.", "Then", "second"]),
        ("With\n\n$$a + 1.\n\nB$$\n\nset apart.", ["With", "set apart."]),
        ("", []),
    ],
)
def test_a_text_is_cut_into_its_sentences(markdown, expected):
    assert sentences(markdown) == expected


@pytest.mark.parametrize(
    ("sentence", "is_claim"),
    [
        ("It is off by 3 %.", True),
        ("It is 0.5.", True),
        ("From −1 to 1.", True),
        ("Here the sum is better.", True),
        ("The Largest one.", True),
        ("It never fails.", True),
        ("A cat is quicker than a dog.", True),
        ("It is small.", False),
        ("BM25, T5, GPT-2 and nDCG@10 are names.", False),
        ("Set `depth = 3`, or `all`.", False),
        ("With $k_1 > 2$ in it.", False),
        ("Notebook 05 shows it, and notebooks 02, 04 and 07 do.", False),
        ("See [notebook 04](04_finetune_biencoder.ipynb) for it.", False),
        ("Notebook 05 shows 3 of them.", True),
        ("Smallish halls are an exception.", False),
    ],
)
def test_a_sentence_is_looked_at_if_it_has_a_number_or_a_comparison(sentence, is_claim):
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_markdown_cell("# 00"), nbformat.v4.new_markdown_cell(sentence)]
    )
    assert unchecked_sentences(notebook) == [sentence] * is_claim


def test_a_sentence_is_checked_by_the_code_before_the_next_text_and_by_no_other():
    text, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    first = (
        "# 00 All\n\n**Answer.** All is well. Fine.\n\nReads 3 files; writes all.\n\n*Rendered in 1 minute.*"
    )
    cells = [
        text(first),
        code("a = 1"),
        text("## Is it more?\n\nIt is more. Reads 3 files."),
        code("b = 2"),
        code('check("more", b, low=2)'),
        text("It is less. A plain one."),
        code("recheck(3); checked(4); check.rows"),
        text("It is most."),
        text("It is best."),
        code('for x in y:\n    check.data("best", x, low=2)'),
        text("At the end 5."),
    ]
    found = ["All is well.", "It is less.", "It is most.", "At the end 5."]
    assert unchecked_sentences(nbformat.v4.new_notebook(cells=cells)) == found


# --- the start on Colab --------------------------------------------------------------------------


def bootstrap(path) -> str:
    """The code of the third cell."""
    return read(path).cells[2].source


def test_all_notebooks_begin_with_the_same_bootstrap():
    [source] = {bootstrap(path) for path in NOTEBOOKS}
    assert source.startswith('REPOSITORY = "https://github.com/')


class Machine:
    """A made-up Colab in a folder: it keeps what the bootstrap calls, and clones by making folders."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.calls, self.fails = folder / "content", [], ()
        self.folder.mkdir()
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.setattr(subprocess, "run", self.run)
        drive = SimpleNamespace(mount=lambda place: self.calls.append(["mount", place]))
        for name in ("google", "google.colab", "google.colab.drive"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["google.colab"].drive = drive

    def run(self, command, *, check=False):
        self.calls.append(command)
        failed = command[0] in self.fails or command[2] in self.fails
        if failed and check:
            raise subprocess.CalledProcessError(128, command)
        if command[0] == "git" and not failed:
            for name in ("notebooks", "src"):
                (Path(command[-1]) / name).mkdir(parents=True)
        return subprocess.CompletedProcess(command, 128 if failed else 0)

    def start(self, output="", shell="<google.colab._shell.Shell object>"):
        """Execute the bootstrap with its folder `/content` moved into this one; give its variables."""
        source = bootstrap(NOTEBOOKS[0]).replace("/content", str(self.folder))
        variables = {"OUTPUT": output.replace("/content", str(self.folder)), "get_ipython": lambda: shell}
        exec(compile(source, "bootstrap", "exec"), variables)
        return variables


@pytest.fixture
def colab(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)


@pytest.mark.parametrize("output", ["", "/content/mine"])
def test_on_colab_the_repository_is_cloned_installed_and_gone_into(colab, output):
    variables = colab.start(output)
    clone = str(colab.folder / "dpr")
    assert colab.calls == [
        ["git", "clone", "-q", "--depth", "1", variables["REPOSITORY"], clone],
        [sys.executable, "-m", "pip", "install", "-q", "-e", f"{clone}[faiss]"],
    ]
    assert os.getcwd() == f"{clone}/notebooks"
    assert sys.path[0] == f"{clone}/src"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "faiss" in extras


def test_on_colab_a_second_start_clones_no_second_time(colab):
    colab.start()
    colab.start()
    assert [command[0] for command in colab.calls] == ["git", sys.executable, sys.executable]


def test_on_colab_an_output_on_drive_is_mounted_before_anything_else(colab):
    colab.start("/content/drive/MyDrive/dpr")
    assert colab.calls[0] == ["mount", str(colab.folder / "drive")]
    assert [command[0] for command in colab.calls] == ["mount", "git", sys.executable]


@pytest.mark.parametrize(("fails", "calls"), [("git", 1), ("pip", 2)])
def test_on_colab_a_clone_or_an_installation_that_fails_is_an_error(colab, tmp_path, fails, calls):
    colab.fails = (fails,)
    with pytest.raises(subprocess.CalledProcessError, match=fails):
        colab.start()
    assert len(colab.calls) == calls
    assert Path.cwd() == tmp_path


def test_anywhere_else_the_bootstrap_does_nothing(colab, tmp_path):
    before = [*sys.path]
    colab.start("/content/drive/MyDrive", "<ipykernel.zmqshell.ZMQInteractiveShell object>")
    assert (colab.calls, sys.path, Path.cwd()) == ([], before, tmp_path)
    assert list(colab.folder.iterdir()) == []


# --- parameters, execution and the command line ---------------------------------------------------


def test_parameters_are_set_in_place_and_keep_their_comments():
    notebook = small_notebook()
    set_parameters(notebook, {"PROFILE": "sample", "COUNT": (1, 2)})
    assert notebook.cells[1].source == 'PROFILE = "sample"  # a comment\nCOUNT = (1, 2)  # how many'
    assert len(notebook.cells) == 2


def test_an_unknown_parameter_is_refused():
    with pytest.raises(ValueError, match="no parameter PROFIL; it has PROFILE, COUNT"):
        set_parameters(small_notebook(), {"PROFIL": "sample"})


def test_a_notebook_without_a_parameters_cell_is_refused():
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("PROFILE = 1")])
    with pytest.raises(ValueError, match="one cell tagged parameters, found 0"):
        set_parameters(notebook, {"PROFILE": "sample"})


def test_cleaning_drops_standard_error_and_keeps_the_answer():
    notebook = small_notebook("1 + 1")
    notebook.cells[2].outputs = [
        nbformat.v4.new_output("stream", name="stderr", text="50%|█"),
        nbformat.v4.new_output("stream", name="stdout", text="two"),
    ]
    notebook.cells[2].metadata["papermill"] = {"duration": 1}
    clean(notebook, "on `x` in 1 minute.")
    assert [output.name for output in notebook.cells[2].outputs] == ["stdout"]
    assert notebook.cells[2].metadata == {}
    assert "*Rendered on `x` in 1 minute.*" in notebook.cells[0].source


def test_a_failing_cell_raises_and_leaves_the_committed_notebook_alone(tmp_path):
    path, target = tmp_path / "00_test.ipynb", tmp_path / "out" / "00_test.ipynb"
    nbformat.write(small_notebook("print('before')", "assert COUNT == 2, 'count is wrong'"), path)
    target.parent.mkdir()
    target.write_text("old", encoding="utf-8")
    with pytest.raises(papermill.PapermillExecutionError, match="count is wrong"):
        execute_notebook(path, target, {"COUNT": 3})
    assert target.read_text(encoding="utf-8") == "old"
    assert "before" in target.with_suffix(".failed.ipynb").read_text(encoding="utf-8")
    execute_notebook(path, target, {"COUNT": 2})
    done = read(target)
    assert "COUNT = 2" in done.cells[1].source
    assert re.search(
        r"^\*Rendered in 0\.\d minutes on .+, \d+ cores.*\.\*$", done.cells[0].source, re.MULTILINE
    )


def test_parameters_are_found_with_their_lines_and_need_literals():
    notebook = small_notebook(parameters='A = "x"  # a\n\nB = {"c": [1, 2]}  # b, as {"c": 3}')
    found = parameters_of(notebook)
    assert {name: (row, ast.literal_eval(match.group(3))) for name, (row, match) in found.items()} == {
        "A": (0, "x"),
        "B": (2, {"c": [1, 2]}),
    }
    with pytest.raises(ValueError, match="malformed node"):
        parameters_of(small_notebook(parameters="A = 1 + len([])  # no literal"))
    with pytest.raises(ValueError, match="one cell tagged parameters, found 0"):
        parameters_of(nbformat.v4.new_notebook())


def test_an_unknown_profile_ends_with_one_line_that_names_the_known_ones():
    with pytest.raises(SystemExit, match="unknown profile 'scifacts'; known: sample, smoke, scifact"):
        main(["run", "--profile", "scifacts"])


def test_a_number_without_a_notebook_is_refused_with_those_there_are():
    with pytest.raises(SystemExit, match=f"error: no notebook 9; there are {', '.join(NUMBERS)}"):
        main(["run", "--profile", "sample", "--only", "01", "9"])


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Two notebooks: the first counts how often it was executed, the second fails while `bad` exists."""
    first = "print(len(open('ran').read()), file=open('ran', 'a'))"
    sources = (first, "assert not __import__('os').path.exists('bad')")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    for number, source in enumerate(sources, start=1):
        notebook = small_notebook(source)
        notebook.cells[1].source = 'PROFILE = "sample"  # which\nOUTPUT = ""  # where'
        nbformat.write(notebook, tmp_path / "notebooks" / f"0{number}_made.ipynb")
    (tmp_path / "notebooks" / "ran").touch()
    (tmp_path / "notebooks" / "bad").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_was_interrupted_goes_on_with_the_notebooks_not_done(repository, capsys):
    def times():
        return len((repository / "notebooks" / "ran").read_text().splitlines())

    command = ["run", "--profile", "smoke"]
    for _ in range(2):
        with pytest.raises(papermill.PapermillExecutionError):
            main(command)
        assert times() == 1
    assert "01_made.ipynb was done before the interruption (1 of 2)" in capsys.readouterr().out
    done = read(repository / "build" / "smoke" / "notebooks" / "01_made.ipynb")
    assert "*Rendered on `smoke` in 0." in done.cells[0].source
    (repository / "notebooks" / "bad").unlink()
    main([*command, "--only", "01"])  # asked for by number it is executed
    assert times() == 2
    main(command)
    assert times() == 2
    main(command)  # all were done: this is a new beginning
    assert times() == 3


def test_after_an_interruption_a_changed_notebook_begins_anew(repository):
    with pytest.raises(papermill.PapermillExecutionError):
        main(["run", "--profile", "smoke"])
    first = repository / "notebooks" / "01_made.ipynb"
    first.write_text(first.read_text().replace("print(", "print('again', "))
    with pytest.raises(papermill.PapermillExecutionError):
        main(["run", "--profile", "smoke"])
    assert "again" in (repository / "notebooks" / "ran").read_text()


# Two notebooks that are not executed: what each would be given


@pytest.fixture
def given(tmp_path, monkeypatch):
    """Number → parameters of each notebook of a repository that was to be executed, with their values."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "notebooks").mkdir()
    with_profile = 'PROFILE = "scifact"  # which\nOUTPUT = ""  # where\nSETTINGS = {}  # such as {"depth": 3}'
    for name, cell in (
        ("01_made", with_profile),
        ("10_made", 'FOLDER = ""  # of texts\nOUTPUT = ""  # where'),
    ):
        nbformat.write(small_notebook(parameters=cell), tmp_path / "notebooks" / f"{name}.ipynb")
    monkeypatch.chdir(tmp_path / "notebooks")
    values = {}

    def execute(path, target, parameters):
        notebook = read(path)
        set_parameters(notebook, parameters)
        target.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, target)
        found = parameters_of(notebook)
        values[path.name[:2]] = {name: ast.literal_eval(match.group(3)) for name, (_, match) in found.items()}
        return 1.0

    monkeypatch.setattr(notebooks, "execute_notebook", execute)
    return values


def test_settings_of_the_command_line_reach_the_notebooks_that_have_them(given, tmp_path):
    settings = ["training.batch_size=16", "base_model=x", "seeds=[1, 2]", "triples=None", "larger=a=b"]
    main(["run", "--profile", "smoke", "--set", *settings, "--only", "01", "10"])
    build = str(tmp_path / "build" / "smoke")
    read_as = {
        "training.batch_size": 16,
        "base_model": "x",
        "seeds": [1, 2],
        "triples": None,
        "larger": "a=b",
    }
    assert given == {
        "01": {"PROFILE": "smoke", "OUTPUT": build, "SETTINGS": read_as},
        "10": {"FOLDER": "", "OUTPUT": build},
    }


@pytest.mark.parametrize(
    ("command", "output"), [("run", "build/smoke"), ("runs", None), ("render", None)], ids=lambda value: value
)
def test_a_notebook_is_given_only_what_it_has(given, tmp_path, command, output):
    main([command, "--profile", "smoke"])
    output = str(tmp_path / output) if output else ""
    assert given == {
        "01": {"PROFILE": "smoke", "OUTPUT": output, "SETTINGS": {}},
        "10": {"FOLDER": "", "OUTPUT": output},
    }
    written = tmp_path / "notebooks" if command == "render" else tmp_path / "build" / "smoke" / "notebooks"
    assert 'PROFILE = "smoke"' in (written / "01_made.ipynb").read_text().replace('\\"', '"')


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("batch_size", "--set batch_size: expected NAME=VALUE"),
        ("", "--set : expected NAME=VALUE"),
        ("batchsize=16", "no setting 'batchsize'; there are name, collection, training_set"),
        ("=16", "no setting ''; there are name, collection"),
        ("training.batchsize=16", "no setting 'batchsize'; there are "),
        ("depth=0", "depth must be at least 1, got 0"),
        ("depth=ten", "depth"),
    ],
)
def test_a_bad_setting_ends_with_one_line_before_anything_is_executed(given, tmp_path, setting, message):
    with pytest.raises(SystemExit) as ended:
        main(["run", "--profile", "smoke", "--set", "seeds=[1]", setting])
    assert str(ended.value).startswith(f"error: {message}") or setting == "depth=ten"
    assert message in str(ended.value)
    assert "\n" not in str(ended.value)
    assert (given, (tmp_path / "build").exists()) == ({}, False)


def interrupt_the_second(monkeypatch, *arguments):
    """Execute on smoke with these arguments, interrupted in the second notebook."""
    execute = notebooks.execute_notebook

    def stop_at_the_second(path, target, parameters):
        if path.name.startswith("10"):
            raise KeyboardInterrupt
        return execute(path, target, parameters)

    with monkeypatch.context() as patched:
        patched.setattr(notebooks, "execute_notebook", stop_at_the_second)
        with pytest.raises(SystemExit, match="interrupted"):
            main(["run", "--profile", "smoke", *arguments])


def test_what_was_executed_with_other_settings_is_not_taken_for_done(given, monkeypatch):
    interrupt_the_second(monkeypatch, "--set", "depth=3")
    given.clear()
    main(["run", "--profile", "smoke"])
    assert list(given) == ["01", "10"]
    assert given["01"]["SETTINGS"] == {}


def test_a_notebook_executed_with_other_settings_meanwhile_is_executed_again(given, monkeypatch):
    interrupt_the_second(monkeypatch)
    main(["run", "--profile", "smoke", "--only", "01", "--set", "depth=3"])
    assert given["01"]["SETTINGS"] == {"depth": 3}
    main(["run", "--profile", "smoke"])
    assert given["01"]["SETTINGS"] == {}


def test_figures_are_those_of_the_last_execution_and_no_earlier_one(tmp_path):
    def draw(count):
        image = {"image/png": "aW1hZ2U="}
        outputs = [nbformat.v4.new_output("display_data", image) for _ in range(count)]
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=outputs)])
        nbformat.write(notebook, tmp_path / "05_made.ipynb")
        return extract_figures(tmp_path / "05_made.ipynb", tmp_path / "figures")

    (tmp_path / "figures").mkdir()
    for name in ("05_made-notes.png", "05_made_too-3.png"):
        (tmp_path / "figures" / name).write_bytes(b"theirs")
    for count in (3, 1):
        assert [path.name for path in draw(count)] == [f"05_made-{n}.png" for n in range(1, count + 1)]
        assert len(list((tmp_path / "figures").iterdir())) == count + 2


def test_two_at_once_do_not_execute_into_the_same_folder(repository):
    message = "build/smoke: another process is writing into this folder"
    with locked(repository / "build" / "smoke" / ".lock"), pytest.raises(SystemExit, match=message):
        main(["run", "--profile", "smoke"])


@pytest.mark.notebook
def test_every_notebook_runs_from_top_to_bottom_on_the_smallest_profile(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    main(["run", "--profile", "smoke"])
    printed = capsys.readouterr().out
    build = ROOT / "build" / "smoke"
    results = load_results(build / "runs" / "docstrings", ablations=True)
    variants = (
        "cls",
        "max",
        "mean-last-4",
        "sum-last-4",
        "concat-last-4",
        "raw-cosine",
        "raw-dot",
        "max-chunk",
        "ft-s0",
        "ft-no-hard-negatives",
        "ft-random-negatives",
        "ft-own-negatives",
        "ft-unshared",
        "ft-two-encoders",
        "ft-cls",
        "ft-dot",
    )
    ablations = {f"all-MiniLM-L6-v2-{variant}" for variant in variants} | {"random-weights"}
    ways = ("", "way-back-", "likely-", "near-")
    expansions = ["original", "copied-5", *(f"{way}5-queries" for way in ways)]
    ablations |= {f"doc2query-{expansion}" for expansion in expansions}
    ablations |= {"all-MiniLM-L6-v2-inpars-way-back-s0", "random-weights-inpars", "random"}
    ablations |= {f"all-MiniLM-L6-v2-distilled-{variant}" for variant in ("s0", "sentences-s0")}
    ablations |= {f"all-MiniLM-L6-v2-ce-distilled-{variant}" for variant in ("s0", "written", "margin")}
    ablations |= {f"bm25-ce-{variant}" for variant in ("s0", "few", "deeper", "cls", "blind")}
    encoders = {"all-MiniLM-L6-v2", "all-MiniLM-L6-v2-ft"}
    systems = {
        "bm25",
        "bm25-ce",
        "bm25-ce-written",
        "rrf-bm25-ce",
        "rrf-bm25-ce-all-MiniLM-L6-v2-ft",
        "all-MiniLM-L6-v2-ce-distilled",
        "bm25-tuned",
        "bm25-doc2query",
        "all-MiniLM-L6-v2-inpars",
        "all-MiniLM-L6-v2-distilled",
        *encoders,
        *(f"rrf-bm25-{encoder}" for encoder in encoders),
    }
    assert set(results) == systems | ablations
    assert {system for system, result in results.items() if result.metadata["ablation"]} == ablations
    for path in NOTEBOOKS:
        assert f"{path.name} done" in printed
        where = "in" if path.name.startswith(TEMPLATE) else "on `smoke` in"
        assert f"*Rendered {where} " in read(build / "notebooks" / path.name).cells[0].source
    for system in (*encoders, *(f"rrf-bm25-{encoder}" for encoder in encoders)):
        assert f" | {system}¹ |" in printed
    assert "| bm25¹ |" not in printed
    [row] = [line for line in printed.splitlines() if " | all-MiniLM-L6-v2-ft¹ | " in line]
    assert " | 0% | [run]" in row  # docstrings to learn from are those of other packages
    kept = {path.stem for path in (build / "runs" / "docstrings" / "training").glob("*.json")}
    grid = {stem for stem in kept if "-ft-grid-" in stem}
    assert len(grid) == 6
    kept -= grid
    trained = {"random-weights", "random-weights-inpars", "all-MiniLM-L6-v2-inpars-way-back-s0"}
    losses = ("binary-cross-entropy", "margin-mse", "mse")
    negatives = ("negatives-bi-encoder", "negatives-both")
    trained |= {f"bm25-ce-{variant}" for variant in ("cls", "judged", "written", "s0", *losses, *negatives)}
    learnt = {system for system in results if re.search("-(?:ft|distilled)-", system)}
    assert kept == {system for system in learnt if not system.startswith("rrf-")} | trained
    [tuned] = (build / "notebooks").glob("04_*.ipynb")
    [curves] = [cell for cell in code_cells(read(tuned)) if "curves.show" in cell.source]
    assert sum("image/png" in output.get("data", {}) for output in curves.outputs) == 1  # one, drawn again
    assert "-cls" not in printed
    assert "300 of 3,121 passages" in printed
    figures = list((build / "figures").glob("*.png"))
    assert len(figures) == sum(
        len(extract_figures(build / "notebooks" / p.name, build / "figures")) for p in NOTEBOOKS
    )
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)
    assert len(figures) >= len(NOTEBOOKS)


def write_reviewed() -> None:
    """Write the list of sentences to review, for a person who has read them all."""
    REVIEWED.write_text("".join(f"{line}\n" for line in to_review()), encoding="utf-8")


if __name__ == "__main__":
    write_reviewed()
