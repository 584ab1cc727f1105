"""Makes the site in build/book from what is committed and from build/sample: `python -m dpr.book.build`."""

import argparse
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from dpr.book.by_query import write_results_by_query, write_script
from dpr.book.by_system import systems_section
from dpr.book.chapters import write_chapter
from dpr.book.mistakes import mistakes_table
from dpr.book.sources import Source, find_sources
from dpr.data.loading import project_root
from dpr.experiments.report import COLLECTIONS, FIGURE, LEARN, Rendered, rendered_notebooks, summary_table
from dpr.experiments.results import load_results
from dpr.files import atomic_folder, write_text

STATIC = Path(__file__).parent / "static"
CONFIG = {
    "project": "dpr",
    "extensions": ["myst_nb", "dpr.book.mathml"],
    "html_theme": "furo",
    "html_title": "dpr",
    "html_css_files": ["book.css"],
    "html_js_files": ["sortable.js"],
    "html_copy_source": False,
    "html_show_sphinx": False,
    "html_show_copyright": False,
    "html_math_renderer": "mathml",
    "myst_enable_extensions": ["colon_fence", "dollarmath"],
    "myst_heading_anchors": 3,
    "nb_execution_mode": "off",
    "nb_ipywidgets_js": {},
    "nb_merge_streams": True,
}
QUERIES = """---
hide-toc: true
---
# Results by query

Choose a collection and up to four systems. The table lists the test queries with each system's
{metric} and how far the last chosen system is from the first; a query opens the first ten hits side
by side. The address reproduces the view.

```{{raw}} html
<div id="queries" data-results="_static/results"><p>This part of the page needs scripts.</p></div>
<script src="_static/queries.js"></script>
<script src="_static/results/overview.js"></script>
```
"""
SYSTEMS = """# Results by system

The tables of the README with all that is known of each system; a click on a column's name sorts.
Raised letters name the systems that one is proven better than (Fisher's randomisation test, all
pairs, Holm, p ≤ .01). "p (Holm)" is against BM25, over the systems of the table; "would show" is
the smallest true difference from BM25 that these queries would prove with a power of .8; "answers
seen" is the share of test queries one of whose answers was shown in training. "Made again by" is
the command that makes a run whose files are missing.
"""
MISTAKES = """# What each mistake costs

Mistakes that were made in public notebooks on this very task, with the damage they did there and,
where runs of this repository show it, here. Each has a test that fails if the helpers of this
repository let it happen.
"""


def build_book(root: Path, sources: Sequence[Source], target: Path) -> Path:
    """Make the site.

    Nothing is executed or searched: chapters are the notebooks as committed, results are those of `runs/`.

    Args:
        root: The repository with `notebooks/` and `runs/`.
        sources: The collections to show; two with equal names cannot be told apart.
        target: The folder of the site; replaced if it is there.

    Returns:
        The site's first page.

    Raises:
        FileNotFoundError: No notebook or no source.
        ValueError: A damaged result or notebook; or Sphinx warned of something, such as a broken link.
    """
    notebooks = rendered_notebooks(root)
    if not notebooks or not sources:
        raise FileNotFoundError(f"{root}: no notebooks or no runs to make the book from")
    with atomic_folder(target, "a book") as site, tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "source"
        shutil.copytree(STATIC, source / "_static")
        for folder in ("notebooks", "figures"):
            (source / folder).mkdir()
        for notebook in notebooks:
            write_chapter(notebook, source / "notebooks")
        largest_first = sorted(sources, key=lambda found: -len(list(found.runs.iterdir())))
        with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as processes:
            jobs = {found.runs: processes.submit(_write_results, found, source) for found in largest_first}
            mistakes = processes.submit(mistakes_table, root)
            overview, sections = zip(*(jobs[found.runs].result() for found in sources), strict=True)
            table = mistakes.result()
        write_script(source / "_static" / "results" / "overview.js", "overview", overview)
        pages = {
            "index": _first_page(root, source, notebooks),
            "queries": QUERIES.format(metric="nDCG@10"),
            "systems": "\n\n".join([SYSTEMS, *sections]),
            "mistakes": f"{MISTAKES}\n:::{{container}} sortable\n\n{table}\n\n:::\n",
        }
        for name, text in pages.items():
            write_text(source / f"{name}.md", text)
        _say(f"{len(pages) + len(notebooks)} pages")
        _sphinx(source, site, Path(temporary) / "doctrees")
    return target / "index.html"


def _write_results(found: Source, source: Path) -> tuple[dict[str, Any], str]:
    """Write what the site shows of one collection: its line of the overview, its part of a page."""
    results = load_results(found.runs, ablations=True)
    told = write_results_by_query(source / "_static" / "results", results, found.collection, found.private)
    _say(f"{found.title}: {told['queries']} queries, {told['systems']} systems")
    figure = source / "figures" / f"speed-{found.runs.name}.svg"
    return told | {"title": found.title}, systems_section(results, found.title, figure, found.sample)


def _first_page(root: Path, source: Path, notebooks: Sequence[Rendered]) -> str:
    """The first page in markdown; the README's picture is copied to `source`."""
    lines = [
        "# dpr",
        "Dense passage retrieval, measured: notebooks that index, search, train and evaluate, as they were "
        "executed, with a run file behind every number.",
    ]
    if (root / FIGURE).is_file():
        shutil.copy(root / FIGURE, source / "figures" / "results.png")
        alt = "nDCG@10 of every system on each collection, with 95 % intervals and the published figures"
        lines.append(f"![{alt}](figures/results.png)")
    if all((root / "runs" / name).is_dir() for name in COLLECTIONS):
        lines.append(summary_table(root))
    lines.append(
        "- [Results by query](queries.md): what each system finds for each test query, side by side.\n"
        "- [Results by system](systems.md): tables, tests, seeds, quality by speed.\n"
        "- [What each mistake costs](mistakes.md): the classic ones, measured and guarded."
    )
    table = ["| chapter | question | you learn |", "| --- | --- | --- |"]
    for notebook in notebooks:
        learn = LEARN.get(notebook.path.name[:2], "")
        table.append(
            f"| [{notebook.title}](notebooks/{notebook.path.name}) | {notebook.question} | {learn} |"
        )
    lines.append("\n".join(table))
    chapters = [f"notebooks/{notebook.path.stem}" for notebook in notebooks]
    trees = {"Results": ["queries", "systems", "mistakes"], "Chapters": chapters}
    for caption, names in trees.items():
        lines.append(f"```{{toctree}}\n:hidden:\n:caption: {caption}\n\n" + "\n".join(names) + "\n```")
    return "\n\n".join(lines) + "\n"


def _sphinx(source: Path, site: Path, doctrees: Path) -> None:
    """Turn the pages into HTML."""
    from sphinx.application import Sphinx

    warnings, static = io.StringIO(), source / "_static"
    config = CONFIG | {"html_static_path": [str(static)], "html_favicon": str(static / "icon.svg")}
    Sphinx(str(source), None, str(site), str(doctrees), "html", config, status=None, warning=warnings).build()
    if warnings.getvalue():
        raise ValueError(f"Sphinx warns:\n{warnings.getvalue()}")


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the site of the repository, as the command line says."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    told = "a folder in BEIR layout whose runs are in runs/<its name>, to show its texts too"
    parser.add_argument("--collection", action="append", default=[], metavar="FOLDER", help=told)
    parser.add_argument(
        "--private", action="store_true", help="show texts whatever their licence; do not publish"
    )
    asked, root = parser.parse_args(arguments), project_root()
    try:
        sources = find_sources(root, asked.collection, asked.private)
        page = build_book(root, sources, root / "build" / "book")
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    print(f"open {page}")


if __name__ == "__main__":
    main()
