"""The notebooks as documents, by rule; and as programs, run whole on the smallest profile."""

import ast
import json
import re
from pathlib import Path

import nbformat
import papermill
import pytest

from dpr.experiments.notebooks import clean, execute_notebook, extract_figures, main, set_parameters
from dpr.experiments.results import load_results
from dpr.files import locked

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
MAX_BYTES = 300_000
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
    assert [path.name[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06", "07"]


@each_notebook
def test_the_first_cell_asks_answers_and_says_what_it_ran_on(path):
    first = read(path).cells[0]
    number, title = path.stem.split("_", 1)
    assert first.source.startswith(f"# {number} {title.replace('_', ' ').capitalize().replace('Bm', 'BM')}")
    for part in ("**Question.**", "**Answer.**", "Reads "):
        assert part in first.source
    assert re.search(r"^\*Rendered on `scifact` in [\d.]+ minutes on .+\.\*$", first.source, re.MULTILINE)


@each_notebook
def test_the_second_cell_holds_literal_parameters_with_a_comment_each(path):
    cell = read(path).cells[1]
    assert cell.metadata.get("tags") == ["parameters"]
    for line, statement in zip(cell.source.splitlines(), ast.parse(cell.source).body, strict=True):
        assert isinstance(statement, ast.Assign)
        assert statement.targets[0].id.isupper()
        ast.literal_eval(statement.value)
        assert "  # " in line
    assert 'PROFILE = "scifact"' in cell.source
    assert 'OUTPUT = ""' in cell.source


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
    assert sum(source.count("check(") for source in sources) >= 3
    assert "check.rows" in sources[-1]
    questions = [c for c in notebook.cells if c.cell_type == "markdown" and c.source.startswith("## ")]
    assert len(questions) >= 4
    assert questions[-1].source.startswith("## Claims checked")
    assert all(question.source.splitlines()[0].endswith("?") for question in questions[:-1])


def test_all_notebooks_install_from_the_same_address():
    addresses = {
        re.search(r'^REPOSITORY = "(.+?)"', code_cells(read(path))[1].source, re.MULTILINE).group(1)
        for path in NOTEBOOKS
    }
    assert len(addresses) == 1


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
    assert "COUNT = 2" in target.read_text(encoding="utf-8")


def test_an_unknown_profile_ends_with_one_line_that_names_the_known_ones():
    with pytest.raises(SystemExit, match="unknown profile 'scifacts'; known: sample, smoke, scifact"):
        main(["run", "--profile", "scifacts"])


def test_a_number_without_a_notebook_is_refused_with_those_there_are():
    with pytest.raises(SystemExit, match="error: no notebook 9; there are 01, 02, 03, 04, 05, 06, 07"):
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
        "ft-two-encoders",
        "ft-cls",
        "ft-dot",
    )
    ablations = {f"all-MiniLM-L6-v2-{variant}" for variant in variants} | {"random-weights"}
    expansions = ("1-queries", "2-queries", "queries-alone", "best-50", "best-25", "copied-1", "copied-2")
    ablations |= {f"doc2query-{expansion}" for expansion in ("original", *expansions)}
    encoders = {"all-MiniLM-L6-v2", "all-MiniLM-L6-v2-ft"}
    systems = {
        "bm25",
        "bm25-tuned",
        "bm25-doc2query",
        *encoders,
        *(f"rrf-bm25-{encoder}" for encoder in encoders),
    }
    assert set(results) == systems | ablations
    assert {system for system, result in results.items() if result.metadata["ablation"]} == ablations
    for path in NOTEBOOKS:
        assert f"{path.name} done" in printed
        assert "on `smoke`" in read(build / "notebooks" / path.name).cells[0].source
    assert "| all-MiniLM-L6-v2¹ |" in printed
    assert "| all-MiniLM-L6-v2-ft¹ |" in printed
    kept = {path.stem for path in (build / "runs" / "docstrings" / "training").glob("*.json")}
    writers = {"all-MiniLM-L6-v2-writer-0", "small-t5-0"}
    assert kept == {system for system in results if "-ft-" in system} | {"random-weights"} | writers
    [curves] = [
        c for c in code_cells(read(build / "notebooks" / NOTEBOOKS[3].name)) if "curves.show" in c.source
    ]
    assert sum("image/png" in output.get("data", {}) for output in curves.outputs) == 1  # one, drawn again
    assert "-cls" not in printed
    assert "300 of 3,121 passages" in printed
    figures = list((build / "figures").glob("*.png"))
    assert len(figures) == sum(
        len(extract_figures(build / "notebooks" / p.name, build / "figures")) for p in NOTEBOOKS
    )
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)
    assert len(figures) >= len(NOTEBOOKS)
