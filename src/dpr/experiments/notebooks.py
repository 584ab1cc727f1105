"""Executes the numbered notebooks, each in a fresh kernel: `python -m dpr.experiments.notebooks`."""

import argparse
import ast
import base64
import itertools
import json
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import nbformat

from dpr.data.loading import project_root
from dpr.experiments.named_settings import with_settings
from dpr.experiments.profiles import get_profile
from dpr.files import atomic_path, crc32, locked, read_json, write_text
from dpr.provenance import hardware

PARAMETER = re.compile(r"^([A-Z][A-Z0-9_]*)(\s*=\s*)(.+?)(\s*#.*)?$")
# Seconds of each notebook on `sample` with two idle cores, to estimate how long the rest will take
SAMPLE_SECONDS = {
    "00": 16,
    "01": 9,
    "02": 18,
    "03": 66,
    "04": 99,
    "05": 84,
    "06": 60,
    "07": 18,
    "08": 80,
    "09": 105,
    "10": 11,
}
RENDERED = re.compile(r"^\*Rendered .*\*$", re.MULTILINE)


def parameters_of(notebook: nbformat.NotebookNode) -> dict[str, tuple[int, re.Match]]:
    """The parameters of a notebook: name → its line in the cell tagged `parameters`, and its parts.

    Raises:
        ValueError: There is not exactly one such cell.
    """
    found = {}
    for row, line in enumerate(_parameters_cell(notebook).source.splitlines()):
        match = PARAMETER.match(line)
        if match:
            ast.literal_eval(match.group(3))
            found[match.group(1)] = (row, match)
    return found


def _parameters_cell(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The cell tagged `parameters`."""
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"expected one cell tagged parameters, found {len(cells)}")
    return cells[0]


def set_parameters(notebook: nbformat.NotebookNode, values: dict[str, Any]) -> None:
    """Write values into the cell tagged `parameters`, in place.

    They replace the values there instead of going into an added cell, so that a reader of the rendered
    notebook executes the same code.

    Args:
        notebook: A notebook with one cell tagged `parameters`, of lines `NAME = literal  # comment`.
        values: Name → new value, a string, number or other literal.

    Raises:
        ValueError: There is not exactly one such cell, or it lacks a name.
    """
    known = parameters_of(notebook)
    cell = _parameters_cell(notebook)
    lines = cell.source.splitlines()
    unknown = set(values) - set(known)
    if unknown:
        raise ValueError(
            f"the notebook has no parameter {', '.join(sorted(unknown))}; it has {', '.join(known)}"
        )
    for name, value in values.items():
        row, match = known[name]
        literal = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
        lines[row] = f"{name}{match.group(2)}{literal}{match.group(4) or ''}"
    cell.source = "\n".join(lines)


def clean(notebook: nbformat.NotebookNode, note: str) -> None:
    """Remove what a reader does not need from an executed notebook, in place.

    This is standard error with its progress bars, widgets, timings and metadata of the execution. The line
    `*Rendered …*` of the first cell is set to say `note`.
    """
    first = notebook.cells[0]
    first.source = RENDERED.sub(f"*Rendered {note}*", first.source)
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata["tags"]} if cell.metadata.get("tags") else {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                data = output.get("data", {})
                data.pop("application/vnd.jupyter.widget-view+json", None)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}


def execute_notebook(path: Path, target: Path, parameters: dict[str, Any]) -> float:
    """Execute a notebook in a fresh kernel and write it, cleaned, to `target`.

    Args:
        path: The notebook's file.
        target: The file to write. After an error the notebook executed so far is written beside it as
            `<name>.failed.ipynb`.
        parameters: Name → value for the cell tagged `parameters`.

    Returns:
        Seconds that the execution took.

    Raises:
        papermill.PapermillExecutionError: A cell raised an error.
    """
    import papermill

    logging.getLogger("papermill").setLevel(logging.ERROR)
    notebook = nbformat.read(path, as_version=4)
    set_parameters(notebook, parameters)
    target.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        source, executed = Path(folder) / path.name, Path(folder) / "executed.ipynb"
        nbformat.write(notebook, source)
        try:
            papermill.execute_notebook(
                source,
                executed,
                cwd=path.parent,
                kernel_name="python3",
                request_save_on_cell_execute=False,
                extra_arguments=["--IPKernelApp.log_level=50"],  # hides remarks on transport and shutdown
            )
        except papermill.PapermillExecutionError:
            executed.replace(target.with_suffix(".failed.ipynb"))
            raise
        seconds = time.perf_counter() - start
        done = nbformat.read(executed, as_version=4)
    profile = f"on `{parameters['PROFILE']}` " if "PROFILE" in parameters else ""
    clean(done, f"{profile}in {seconds / 60:.1f} minutes on {hardware()}.")
    with atomic_path(target) as temporary:
        nbformat.write(done, temporary)
    return seconds


def extract_figures(notebook: Path, folder: Path) -> list[Path]:
    """Write the images of an executed notebook to `folder/<notebook>-<n>.png` and return the paths.

    Images there that an earlier execution drew, with higher numbers, are removed.
    """
    outputs = [o for cell in nbformat.read(notebook, as_version=4).cells for o in cell.get("outputs", [])]
    images = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    paths = []
    for number, image in enumerate(images, start=1):
        paths.append(folder / f"{notebook.stem}-{number}.png")
        with atomic_path(paths[-1]) as temporary:
            temporary.write_bytes(base64.b64decode(image))
    for number in itertools.count(len(images) + 1):
        earlier = folder / f"{notebook.stem}-{number}.png"
        if not earlier.is_file():
            return paths
        earlier.unlink()


def run_all(
    command: str, profile: str, only: Sequence[str] = (), settings: Mapping[str, Any] | None = None
) -> None:
    """Execute the notebooks in order; on `sample` also print about how long the rest will take.

    If all were to be executed and that was interrupted, notebooks already done are not executed again, as
    long as no code and no notebook has changed since.

    Args:
        command: `run` writes everything to build/<profile>; `runs` writes run files to runs/ and
            notebooks to build/<profile>; `render` writes both over the committed files.
        profile: The profile's name or a folder, as `get_profile` takes it.
        only: Numbers of the notebooks to execute, such as `02`; empty for all.
        settings: Settings of the profile to change, as `with_settings` takes them.

    Raises:
        ValueError: An unknown profile or setting, a number without a notebook, or another process doing the
            same.
        FileNotFoundError: No notebooks are found, as this was not started in the repository.
    """
    with_settings(get_profile(profile), settings or {})
    root = project_root()
    all_paths = {path.name[:2]: path for path in sorted((root / "notebooks").glob("[0-9]*.ipynb"))}
    if not all_paths:
        raise FileNotFoundError(f"{root / 'notebooks'}: no notebooks; start this in the repository")
    unknown = [number for number in only if number not in all_paths]
    if unknown:
        raise ValueError(f"no notebook {', '.join(unknown)}; there are {', '.join(all_paths)}")
    paths = [path for number, path in all_paths.items() if not only or number in only]
    build = root / "build" / Path(profile).name
    with locked(build / ".lock"):
        if settings:  # what was done before has other settings
            (build / ".unfinished.json").unlink(missing_ok=True)
        journal = None if only or settings or command != "run" else build / ".unfinished.json"
        _run(command, {"PROFILE": profile, "SETTINGS": dict(settings or {})}, paths, build, journal)


def _run(
    command: str, given: dict[str, Any], paths: Sequence[Path], build: Path, journal: Path | None
) -> None:
    """Execute notebooks as `run_all` does; the journal records those that are done until all are."""
    profile, state, done = given["PROFILE"], _state_of_code(paths), {}
    if journal and journal.is_file():
        found = read_json(journal, "state", "done")
        done = found["done"] if found["state"] == state else {}
    if os.environ.get("DPR_DATA_DIR"):  # as kernels start in notebooks/
        os.environ["DPR_DATA_DIR"] = str(Path(os.environ["DPR_DATA_DIR"]).resolve())
    figures, took, expected = [], 0.0, 0.0
    for number, path in enumerate(paths, start=1):
        target = path if command == "render" else build / "notebooks" / path.name
        if path.name in done and target.is_file():
            print(f"{path.name} was done before the interruption ({number} of {len(paths)})", flush=True)
            figures += sorted((build / "figures").glob(f"{path.stem}-*.png"))
            continue
        print(f"{path.name} on {profile} …", flush=True)
        output = {} if command == "render" else {"OUTPUT": str(build) if command == "run" else ""}
        has = parameters_of(nbformat.read(path, as_version=4))
        seconds = execute_notebook(path, target, {k: v for k, v in (given | output).items() if k in has})
        if command != "render":
            figures += extract_figures(target, build / "figures")
        if journal:
            done[path.name] = seconds
            write_text(journal, json.dumps({"state": state, "done": done}))
        took, expected = took + seconds, expected + SAMPLE_SECONDS.get(path.name[:2], 0)
        rest = sum(SAMPLE_SECONDS.get(p.name[:2], 0) for p in paths[number:]) * took / max(expected, 1)
        left = f", about {rest / 60:.1f} min left" if rest and profile == "sample" else ""
        print(f"{path.name} done in {seconds:.0f} s ({number} of {len(paths)}){left}", flush=True)
    if journal:
        journal.unlink(missing_ok=True)
    if command == "run":
        from dpr.experiments.report import results_table
        from dpr.experiments.results import load_results

        for folder in sorted((build / "runs").glob("*")):
            if not load_results(folder):
                continue  # nothing but variants
            print(f"\n{results_table(folder)}\n")
        print(f"notebooks: {build / 'notebooks'}\nruns:      {build / 'runs'}")
        print(f"figures:   {build / 'figures'} ({len(figures)})")


def _state_of_code(notebooks: Sequence[Path]) -> str:
    """A hash of the package's code and of notebooks."""
    package = Path(__file__).parents[1]
    return f"{crc32(*sorted(package.rglob('*.py')), *notebooks):08x}"


def _setting(text: str) -> tuple[str, Any]:
    """Name and value from `name=value`; what is no Python literal is a string."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: expected NAME=VALUE")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line; `make help` lists its usual calls."""
    parser = argparse.ArgumentParser(prog="python -m dpr.experiments.notebooks", description=__doc__)
    parser.add_argument("command", choices=["run", "render", "runs"])
    parser.add_argument("--profile", required=True)
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings, as training.batch_size=16"
    )
    parser.add_argument("--only", nargs="*", default=[], help="numbers of the notebooks to execute, as 02")
    given = parser.parse_args(arguments)
    sys.stdout.reconfigure(errors="replace")  # a terminal may know only ASCII
    try:
        run_all(given.command, given.profile, given.only, dict(map(_setting, given.set)))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on from here")


if __name__ == "__main__":
    main()
