"""The report: its numbers are those of the files in runs/, here and in the committed README."""

import csv
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from re import escape

import nbformat
import numpy as np
import pytest
from made_writers import save_causal

from dpr.data.collection import Collection, Passage
from dpr.data.loading import load_collection, project_root
from dpr.data.trec import Run, read_qrels, read_run
from dpr.evaluation.metrics import evaluate
from dpr.evaluation.significance import smallest_difference
from dpr.experiments import report
from dpr.experiments.published import PUBLISHED, published
from dpr.experiments.report import (
    answers_seen,
    broadly_trained,
    expected_table,
    fill,
    notebooks_table,
    readme_sections,
    results_table,
    smallest_provable,
    summary_table,
)
from dpr.experiments.results import hardware, load_result, load_results, save_mean_of_seeds, save_result
from dpr.files import write_json

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = sorted(path for name in report.COLLECTIONS for path in ROOT.glob(f"runs/{name}/*.trec.gz"))
MARKERS = ("summary", "notebooks", "results", "expected")

RUNS = {
    "bm25": {"q1": {"d1": 2.0, "d3": 1.0}, "q2": {"d5": 2.0, "d2": 1.0}},
    "all-MiniLM-L6-v2": {"q1": {"d3": 2.0, "d1": 1.0}, "q2": {"d2": 1.0}},
    "bm25-tuned": {"q1": {"d1": 2.0, "d3": 1.0}},
}
# q1 has d1 of grade 2 and d3 of grade 1: in that order 1, in the other (1 + 2/log2 3) / (2 + 1/log2 3)
SWAPPED, SECOND = 0.859719, 0.630930


def save(folder, tag, run, collection, **changes):
    """`save_result` with settings that a test need not name."""
    settings = {"notebook": "02_bm25", "config": {}, "depth": 5, "wall_s": 1.0}
    return save_result(folder, Run(run, tag), collection, **settings | changes)


@pytest.fixture
def scifact(tmp_path, tiny_collection):
    """A folder with three systems and an ablation on a tiny collection that is called scifact."""
    collection = replace(tiny_collection, name="scifact")
    folder = tmp_path / "runs" / "scifact"
    save(folder, "bm25", RUNS["bm25"], collection)
    dense = {"notebook": "05_dense_retrieval", "wall_s": 0.004, "index_bytes": 3_500_000}
    save(folder, "all-MiniLM-L6-v2", RUNS["all-MiniLM-L6-v2"], collection, **dense)
    save(folder, "bm25-tuned", RUNS["bm25-tuned"], collection, config={"tuned_on": "49 dev queries"})
    save(folder, "wrong-pooling", {"q1": {"d1": 1.0}}, collection, ablation=True)
    return folder


@pytest.fixture
def project(tmp_path, scifact, tiny_collection, monkeypatch):
    """A repository with the same runs on both collections and two notebooks; we are in its notebooks."""
    better = {"q1": {"d1": 2.0, "d3": 1.0}, "q2": {"d2": 1.0}}
    for name in ("scifact", "nfcorpus"):
        collection = replace(tiny_collection, name=name)
        for system in ("bm25", "all-MiniLM-L6-v2"):
            save(tmp_path / "runs" / name, system, RUNS[system], collection)
        save(tmp_path / "runs" / name, "all-MiniLM-L6-v2-ft", better, collection)
        for system in ("rrf-bm25-all-MiniLM-L6-v2-ft", "rrf-bm25-ce-all-MiniLM-L6-v2-ft"):
            save(tmp_path / "runs" / name, system, RUNS["bm25"], collection)
        save(tmp_path / "runs" / name, "bm25-ce", better, collection)
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "pyproject.toml").touch()
    for number, name, rendered in (("02", "bm25", "on `scifact` in 0.4"), ("10", "your_own_data", "in 0.1")):
        asks = f"**Question.** What is asked in {number}?"
        first = f"# {number}\n\n{asks}\n\n*Rendered {rendered} minutes on a CPU.*"
        address = 'REPOSITORY = "https://github.com/someone/dpr"  # cloned from here'
        cells = [nbformat.v4.new_markdown_cell(first), nbformat.v4.new_code_cell(address)]
        nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / f"notebooks/{number}_{name}.ipynb")
    marked = "".join(f"<!-- {marker}:begin -->\n<!-- {marker}:end -->\n" for marker in MARKERS)
    (tmp_path / "README.md").write_text(f"# title\n{marked}end\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path / "notebooks")
    return tmp_path


# --- results_table -----------------------------------------------------------------------------


def test_the_table_has_the_means_of_the_files_best_first(scifact):
    table, caption = results_table(scifact).split("\n\n")
    assert table.splitlines() == [
        "|  | system | nDCG@10 | RR@10 | R@100 | published nDCG@10 | index MiB | run | notebook |",
        "|---|---|---:|---:|---:|---:|---:|---|---|",
        f"| a | all-MiniLM-L6-v2¹ | {(SWAPPED + 1) / 2:.4f} | 1.0000 | 1.0000 | 0.6451 "
        "| 3.3 | [run](runs/scifact/all-MiniLM-L6-v2.trec.gz) "
        "| [05](notebooks/05_dense_retrieval.ipynb) |",
        f"| b | bm25 | {(1 + SECOND) / 2:.4f} | 0.7500 | 1.0000 | 0.6789 "
        "| – | [run](runs/scifact/bm25.trec.gz) | [02](notebooks/02_bm25.ipynb) |",
        "| c | bm25-tuned | 0.5000 | 0.5000 | 0.5000 | – "
        "| – | [run](runs/scifact/bm25-tuned.trec.gz) | [02](notebooks/02_bm25.ipynb) |",
    ]
    pairs = ([SWAPPED - 1, 1 - SECOND], [0, -SECOND])
    smallest = [smallest_difference(np.array(differences), level=0.01) for differences in pairs]
    assert caption == (
        f"2 test queries, full corpus, depth 5, {hardware()}. "
        "Raised letters: the systems that one is proven better than (Fisher, all pairs, Holm, p ≤ 0.01). "
        "The smallest true nDCG@10 difference from bm25 that these queries would show (paired, two-sided "
        f"0.01, power 0.8): {min(smallest):.3f} to {max(smallest):.3f}, by system. "
        "¹ Trained by its authors on a billion pairs, MS MARCO and SQuAD among them. "
        "`bm25-tuned` was tuned on 49 dev queries."
    )


def asked(count):
    """A collection of so many queries, each with one relevant document of its own."""
    numbers = range(count)
    return Collection(
        name="asked",
        passages=[Passage(f"d{n}", "", f"text {n}") for n in numbers],
        all_queries={f"q{n}": f"query {n}" for n in numbers},
        all_qrels={"test": {f"q{n}": {f"d{n}": 1} for n in numbers}},
    )


def found_at(collection, rank):
    """A run that finds each query's document at a rank, and others before it; at rank 0 never."""
    count, run = len(collection.queries), {}
    for n in range(count):
        others = [f"d{(n + i) % count}" for i in range(1, rank or 3)]
        run[f"q{n}"] = {d: -float(i) for i, d in enumerate([*others, *([f"d{n}"] if rank else [])])}
    return run


@pytest.mark.parametrize(
    ("num_queries", "letters"),
    [
        (10, ("abc", " <sup>bc</sup>", " <sup>c</sup>", "")),  # 3 pairs, each p = 2 / 2^10: 0.0059 by Holm
        (9, ("abc", "", "", "")),  # each p = 2 / 2^9: 0.0117 by Holm, above 0.01
    ],
)
def test_letters_name_the_systems_that_one_is_proven_better_than(tmp_path, num_queries, letters):
    collection = asked(num_queries)
    for tag, rank in (("second", 2), ("never", 0), ("first", 1)):
        save(tmp_path, tag, found_at(collection, rank), collection)
    rows = [line.split(" | ") for line in results_table(tmp_path).splitlines()[2:5]]
    names, *raised = letters
    assert [row[0] for row in rows] == [f"| {name}" for name in names]
    assert [row[1] for row in rows] == ["first", "second", "never"]
    means = ("1.0000", f"{SECOND:.4f}", "0.0000")
    assert [row[2] for row in rows] == [mean + sup for mean, sup in zip(means, raised, strict=True)]


def test_letters_stand_before_the_range_over_seeds_and_equal_systems_are_not_proven(tmp_path):
    collection = asked(10)
    seeds = [
        save(tmp_path, f"ft-s{n}", found_at(collection, 1), collection, seed=n, ablation=True) for n in (0, 1)
    ]
    save_mean_of_seeds("ft", seeds)
    for tag, rank in (("also-first", 1), ("never", 0)):
        save(tmp_path, tag, found_at(collection, rank), collection)
    table = results_table(tmp_path)
    assert "| a | also-first | 1.0000 <sup>c</sup> | " in table
    assert "| b | ft | 1.0000 <sup>c</sup> (1.0000–1.0000) | " in table
    assert "| c | never | 0.0000 | " in table


def test_a_system_with_one_seed_shows_no_range(tmp_path):
    collection = asked(10)
    one = save(tmp_path, "ft-s0", found_at(collection, 1), collection, seed=0, ablation=True)
    save_mean_of_seeds("ft", [one])
    table = results_table(tmp_path)
    assert "| a | ft | 1.0000 | " in table
    assert "several training seeds" not in table


def test_a_system_with_several_seeds_shows_their_mean_and_range(scifact, tiny_collection):
    collection = replace(tiny_collection, name="scifact")
    better = {"q1": {"d1": 2.0, "d3": 1.0}, "q2": {"d2": 1.0}}
    trained = {"trained_on": "5 queries of scifact/train", "written_by": "a small model"}
    seeds = [
        save(scifact, f"tuned-s{seed}", run, collection, seed=seed, ablation=True, config=trained)
        for seed, run in enumerate((better, RUNS["bm25"]))
    ]
    save_mean_of_seeds("tuned", seeds)
    table, caption = results_table(scifact).split("\n\n")
    mean, lowest = (1 + (1 + SECOND) / 2) / 2, (1 + SECOND) / 2
    assert f"| b | tuned | {mean:.4f} ({lowest:.4f}–1.0000) | 0.8750 | 1.0000 | – " in table
    assert "In parentheses the lowest and highest of several training seeds" in caption
    assert "`tuned` was fine-tuned on 5 queries of scifact/train." in caption
    assert "The queries of `tuned` were written by a small model." in caption
    assert "tuned-s0" not in table


def test_a_part_of_a_collection_has_no_published_figure_and_says_what_it_is(tmp_path, tiny_collection):
    part = replace(tiny_collection, name="scifact", scope="6 of 5,183 passages")
    save(tmp_path, "bm25", RUNS["bm25"], part)
    table = results_table(tmp_path)
    assert "0.6789" not in table
    assert "| – | – | [run]" in table
    assert "2 test queries, 6 of 5,183 passages, depth 5" in table


def test_a_collection_that_nobody_published_on_has_no_published_figure(tmp_path, tiny_collection):
    save(tmp_path, "bm25", RUNS["bm25"], tiny_collection)
    assert "| – | – | [run](runs/tiny/bm25.trec.gz)" in results_table(tmp_path)


@pytest.mark.parametrize("name", ["scifact", "nfcorpus", "trec-covid"])
def test_our_doc2query_is_not_the_one_that_was_published(tmp_path, tiny_collection, name):
    assert published(name, "bm25-doc2query") is None
    assert published(name, "bm25-docT5query").source == "GPL paper (Wang et al. 2022), table 2"
    save(tmp_path, "bm25-doc2query", RUNS["bm25"], replace(tiny_collection, name=name))
    [row] = [line for line in results_table(tmp_path).splitlines() if "| bm25-doc2query |" in line]
    assert row.split(" | ")[5] == "–"
    assert "| bm25-docT5query | nDCG@10 | 0.7130 |" in expected_table("trec-covid")


BROAD = "all-MiniLM-L6-v2"


@pytest.mark.parametrize(
    ("systems", "noted"),
    [
        ({"bm25": {}, "my-MiniLM": {}}, set()),
        ({"bge-small-en": {}, "my-all-round": {}, "all-round": {}, "all-MiniLM": {}}, set()),
        ({BROAD: {}, "all-mpnet-base-v2": {}, "bm25": {}}, {BROAD, "all-mpnet-base-v2"}),
        ({f"{BROAD}-cls": {}}, set()),  # a name that begins with one says nothing
        ({"mine-ft": {"starts_from": BROAD}, "bge-ft": {"starts_from": "bge-small-en"}}, {"mine-ft"}),
        ({f"{BROAD}-ft": {"starts_from": "random"}}, set()),
        ({"bm25": {}, BROAD: {}, "rrf": {"runs": ["bm25", BROAD]}}, {BROAD, "rrf"}),
        ({"bm25": {}, "ft": {"starts_from": BROAD}, "rrf": {"runs": ["bm25", "ft"]}}, {"ft", "rrf"}),
        ({"bm25": {}, "bge": {}, BROAD: {}, "rrf": {"runs": ["bm25", "bge"]}}, {BROAD}),
    ],
)
def test_the_note_is_for_encoders_declared_so_what_starts_from_them_and_fusions_of_these(
    tmp_path, tiny_collection, systems, noted
):
    for tag, config in systems.items():
        save(tmp_path, tag, RUNS["bm25"], tiny_collection, config=config)
    results = load_results(tmp_path)
    assert {system for system in results if broadly_trained(system, results)} == noted
    table, caption = results_table(tmp_path).split("\n\n")
    names = {line.split(" | ")[1] for line in table.splitlines()[2:]}
    assert names == {f"{system}¹" if system in noted else system for system in systems}
    told = " ¹ Trained by its authors on a billion pairs, MS MARCO and SQuAD among them."
    assert (told in caption) == bool(noted)
    assert caption.count("¹") == bool(noted)


def test_what_training_has_shown_has_a_column_only_where_something_was_trained(tmp_path, tiny_collection):
    systems = {
        "bm25": {},
        "ready": {},
        "ft": {"answers_seen": 0.546},
        "apart": {"answers_seen": 0.0},
        "rrf-ft": {"runs": ["bm25", "ft"]},
        "rrf-ready": {"runs": ["bm25", "ready"]},
        "rrf-gone": {"runs": ["bm25", "gone"]},
    }
    for tag in ("bm25", "ready"):
        save(tmp_path, tag, RUNS["bm25"], tiny_collection)
    head = results_table(tmp_path).splitlines()[0]
    assert "training showed" not in head
    for tag, config in systems.items():
        save(tmp_path, tag, RUNS["bm25"], tiny_collection, config=config)
    results = load_results(tmp_path)
    expected = {"ft": 0.546, "apart": 0.0, "rrf-ft": 0.546}
    assert {s: share for s in results if (share := answers_seen(s, results)) is not None} == expected
    lines = results_table(tmp_path).splitlines()
    column = lines[0].split(" | ").index("test queries whose answer training showed")
    assert lines[0].split(" | ")[column:] == [
        "test queries whose answer training showed",
        "run",
        "notebook |",
    ]
    assert lines[1] == "|---|---|---:|---:|---:|---:|---:|---:|---|---|"
    shown = {line.split(" | ")[1]: line.split(" | ")[column] for line in lines[2 : 2 + len(systems)]}
    assert shown == {**dict.fromkeys(systems, "–"), "ft": "55%", "apart": "0%", "rrf-ft": "55%"}
    assert {line.count(" | ") for line in (lines[0], *lines[2 : 2 + len(systems)])} == {lines[0].count(" | ")}


def test_without_a_baseline_nothing_is_said_about_differences(tmp_path, tiny_collection):
    save(tmp_path, "dense", RUNS["bm25"], tiny_collection)
    assert "smallest true" not in results_table(tmp_path)
    assert smallest_provable(load_results(tmp_path)) == {}


def test_the_smallest_provable_difference_is_that_of_the_paired_values(scifact):
    found = smallest_provable(load_results(scifact), "RR@10")
    assert found == {"all-MiniLM-L6-v2": pytest.approx(smallest_difference(np.array([0, 0.5])))} | {
        "bm25-tuned": pytest.approx(smallest_difference(np.array([0, -0.5])))
    }


@pytest.mark.parametrize("what", ["passages", "queries"])
def test_runs_over_other_passages_or_queries_stand_in_no_table_together(scifact, tiny_collection, what):
    collection = replace(tiny_collection, name="scifact")
    if what == "passages":
        collection = replace(collection, passages=collection.passages[:-1])
    else:
        collection = replace(collection, all_qrels={"test": {"q1": {"d1": 1}}})
    save(scifact, "later", {"q1": {"d1": 1.0}}, collection)
    with pytest.raises(ValueError, match=escape(f"{scifact}: runs over different passages or queries")):
        results_table(scifact)


def test_a_folder_without_runs_has_no_table(tmp_path):
    with pytest.raises(FileNotFoundError, match="no runs"):
        results_table(tmp_path)


def test_the_expected_figures_are_the_published_ones_of_that_collection():
    lines = expected_table("trec-covid").splitlines()
    theirs = {key: value for key, value in PUBLISHED.items() if key[0] == "trec-covid"}
    assert len(lines) == 2 + len(theirs) > 4
    assert "| bm25 | nDCG@10 | 0.5947 | Anserini regressions, BEIR flat, k1 0.9, b 0.4 |" in lines


# --- the first tables of the README ------------------------------------------------------------


def test_the_first_table_has_its_systems_on_every_collection_with_published_figures(project):
    swapped, second = f"{(SWAPPED + 1) / 2:.4f}", f"{(1 + SECOND) / 2:.4f}"
    assert summary_table(project).splitlines() == [
        "| nDCG@10 | SciFact | NFCorpus |",
        "|---|---:|---:|",
        f"| BM25: matching terms | {second} (published 0.6789) | {second} (published 0.3218) |",
        f"| a ready MiniLM bi-encoder | {swapped} (published 0.6451) | {swapped} (published 0.3159) |",
        "| the same, fine-tuned here | 1.0000 | 1.0000 |",
        f"| fine-tuned and BM25, merged | {second} | {second} |",
        "| BM25's first hits, reranked here | 1.0000 | 1.0000 |",
        f"| reranked, fine-tuned and BM25, merged | {second} | {second} |",
        "",
        "Seen: test queries whose answer training showed; of those a gain may be memory.",
    ]


def test_the_first_table_says_what_training_showed_and_what_is_left_without_it(project):
    folder = project / "runs" / "scifact"
    for system, about in (("all-MiniLM-L6-v2-ft", {"answers_seen": 0.587}), (report.UNSHARED, {})):
        source = json.loads((folder / "all-MiniLM-L6-v2.json").read_text())
        own = {"system": system, "config": {**source["config"], **about}, "crc32": {}}
        fields = {k: v for k, v in source.items() if k != "own_crc32"} | own
        write_json(folder / f"{system}.json", fields)
        for ending in (".csv", ".trec.gz"):
            shutil.copy(folder / f"all-MiniLM-L6-v2{ending}", folder / f"{system}{ending}")
    lines = summary_table(project).splitlines()
    swapped = f"{(SWAPPED + 1) / 2:.4f}"
    assert lines[4] == f"| the same, fine-tuned here | {swapped} (59% seen) | 1.0000 |"
    without = f"Fine-tuned on queries that share no answer with the test: {swapped} on SciFact."
    assert lines[-1].endswith(without)


@pytest.mark.parametrize("name", report.COLLECTIONS)
@pytest.mark.parametrize("system", report.SUMMARY)
def test_the_first_table_needs_every_system_on_every_collection(project, name, system):
    path = project / "runs" / name / f"{system}.trec.gz"
    path.unlink()
    with pytest.raises(FileNotFoundError, match=escape(f"{path}: missing; `save_result` writes runs")):
        summary_table(project)


def test_the_notebooks_are_listed_with_their_question_minutes_and_a_link_to_colab(project):
    badge = "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    link = "https://colab.research.google.com/github/someone/dpr/blob/main/notebooks"
    assert notebooks_table(project).splitlines() == [
        "| notebook | question | you learn | minutes | |",
        "|---|---|---|---:|---|",
        "| [02 BM25](notebooks/02_bm25.ipynb) | What is asked in 02? "
        f"| {report.LEARN['02']} | 0.4 | {badge}({link}/02_bm25.ipynb) |",
        "| [10 your own data](notebooks/10_your_own_data.ipynb) | What is asked in 10? "
        f"| {report.LEARN['10']} | 0.1 | {badge}({link}/10_your_own_data.ipynb) |",
    ]


@pytest.mark.parametrize("lost", ["**Question.**", "*Rendered", "REPOSITORY"])
def test_a_notebook_without_question_minutes_or_address_is_named(project, lost):
    path = project / "notebooks" / "02_bm25.ipynb"
    path.write_text(path.read_text().replace(lost, "lost"))
    message = f"{path}: lacks its question, its minutes or REPOSITORY"
    with pytest.raises(ValueError, match=escape(message)):
        notebooks_table(project)


@pytest.mark.skipif(not list(ROOT.glob("notebooks/[0-9]*.ipynb")), reason="no notebooks in this checkout")
def test_it_is_said_of_each_notebook_what_is_learnt_there():
    assert {path.name[:2] for path in ROOT.glob("notebooks/[0-9]*.ipynb")} == report.LEARN.keys()


# --- fill and main -----------------------------------------------------------------------------


def test_only_what_stands_between_the_markers_is_replaced():
    readme = (
        "above\n<!-- a:begin -->\nold\nold\n<!-- a:end -->\nbetween <!-- b:begin --><!-- b:end -->\n\nbelow\n"
    )
    filled = fill(readme, {"a": r"new \1 \g<0>", "b": "more"})
    assert filled == (
        "above\n<!-- a:begin -->\nnew \\1 \\g<0>\n<!-- a:end -->\n"
        "between <!-- b:begin -->\nmore\n<!-- b:end -->\n\nbelow\n"
    )
    assert fill(filled, {"a": r"new \1 \g<0>", "b": "more"}) == filled


@pytest.mark.parametrize(
    "readme",
    ["", "<!-- a:begin -->", "<!-- a:end -->", "<!-- a:end -->\n<!-- a:begin -->", "<!-- a:begin --> a:end"],
)
def test_a_missing_marker_is_refused(readme):
    with pytest.raises(
        ValueError, match=escape("README.md has no markers <!-- a:begin --> … <!-- a:end -->")
    ):
        fill(readme, {"a": "text"})


def test_the_command_writes_readme_and_figure_alike_each_time(project, capsys):
    written = []
    for _ in range(2):
        report.main()
        assert capsys.readouterr().out == "wrote README.md and runs/results.png\n"
        written.append([(project / name).read_bytes() for name in ("README.md", report.FIGURE)])
    assert written[0] == written[1]
    readme, figure = written[0]
    sections = readme_sections(project)
    assert tuple(sections) == MARKERS
    for title, name in (("SciFact", "scifact"), ("NFCorpus", "nfcorpus")):
        assert f"### {title}\n\n{results_table(project / 'runs' / name)}" in sections["results"]
    for section in sections.values():
        assert section in readme.decode()
    assert readme.startswith(b"# title\n<!-- summary:begin -->\n| nDCG@10 | SciFact | NFCorpus |\n")
    assert b"<!-- results:begin -->\n### SciFact\n" in readme
    assert readme.endswith(b"-->\nend\n")
    assert figure.startswith(b"\x89PNG")


@pytest.mark.parametrize("what", ["markers", "runs"])
def test_the_command_says_what_is_missing_and_leaves_the_readme(project, what):
    if what == "markers":
        (project / "README.md").write_text("# title\n", encoding="utf-8")
    else:
        (project / "runs" / "nfcorpus" / "bm25.trec.gz").unlink()
    before = (project / "README.md").read_bytes()
    with pytest.raises(SystemExit, match=r"^error: .*(no markers|bm25\.trec\.gz: missing; `save_result`)"):
        report.main()
    assert (project / "README.md").read_bytes() == before


# --- what is committed -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sections_now():
    """The README's sections as the committed runs and notebooks give them."""
    if not (ROOT / "runs" / "scifact").is_dir():
        pytest.skip("no runs in this checkout")
    return readme_sections(ROOT)


@pytest.mark.parametrize("marker", MARKERS)
def test_the_readme_shows_what_the_runs_give_now(sections_now, marker):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [shown] = re.findall(f"<!-- {marker}:begin -->\n(.*?)\n?<!-- {marker}:end -->", readme, re.DOTALL)
    assert shown == sections_now[marker], "run `make readme`"


def table_of(path, system):
    """query_id → the row of a committed table beside a run."""
    with path.with_name(f"{system}.csv").open(encoding="utf-8") as stream:
        return {row["query_id"]: row for row in csv.DictReader(stream)}


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_committed_run_has_the_metrics_of_its_table_against_the_real_judgements(data_dir, path):
    stem = path.name.removesuffix(".trec.gz")
    metadata = json.loads(path.with_name(f"{stem}.json").read_text(encoding="utf-8"))
    run = read_run(path)
    assert (metadata["system"], metadata["collection"], run.tag) == (stem, path.parent.name, stem)
    assert metadata["scope"] == "full corpus"
    qrels = read_qrels(data_dir / path.parent.name / "qrels" / f"{metadata['split']}.tsv")
    table = table_of(path, stem)
    if metadata["ablation"]:  # a variant may be of some queries
        qrels = {query_id: grades for query_id, grades in qrels.items() if query_id in table}
    assert set(table) == set(qrels)
    if "seeds" in metadata:  # the table has the means over the seeds, the run is that of the first
        ways = "*" if stem.endswith("-inpars") else ""  # the filter's name
        seeds = [found for s in metadata["seeds"] for found in path.parent.glob(f"{stem}{ways}-s{s}.csv")]
        assert len(seeds) == len(metadata["seeds"])
        tables = [table_of(path, found.stem) for found in seeds]
        for metric in ("nDCG@10", "RR@10", "R@100"):
            mean = {q: sum(float(t[q][metric]) for t in tables) / len(tables) for q in qrels}
            assert {q: float(row[metric]) for q, row in table.items()} == pytest.approx(mean, abs=1e-5)
        table = tables[0]
    for metric, values in evaluate(qrels, run, ["nDCG@10", "RR@10", "R@100"]).per_query.items():
        shown = {query_id: float(row[metric]) for query_id, row in table.items()}
        assert shown == pytest.approx(values, abs=1e-5), metric


@pytest.mark.notebook
def test_the_readmes_code_runs_and_its_number_is_the_runs(tmp_path, monkeypatch, capsys):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    code = "\n".join(blocks)
    [said] = re.findall(r"# (0\.\d{4})\n", code)
    assert (
        f"{load_result(ROOT / 'runs' / 'scifact', 'all-MiniLM-L6-v2').evaluation.means['nDCG@10']:.4f}"
        == said
    )
    load_collection("docstrings", "dev")  # reads the packages, unless what was read is kept
    shutil.copytree(project_root() / "data" / "docstrings", tmp_path / "data" / "docstrings")
    monkeypatch.chdir(tmp_path)
    shorter = (
        ('load_collection("scifact")', 'load_collection("docstrings").sample(160, 10)'),
        ('load_collection("scifact", "dev")', 'load_collection("docstrings", "dev")'),
        ('load_training_data("scifact/train")', 'load_training_data("docstrings/train").split(0.03, 0)[1]'),
        ("num_passages=1000, num_queries=100", "num_passages=20, num_queries=4"),
        ("num_steps=240, eval_every=60", "num_steps=2, batch_size=4, eval_every=2, log_every=2"),
        ("num_queries=5", "num_queries=1, max_length=4"),
        ('"gemma-3-270m"', f'"{save_causal(tmp_path / "causal", "llama")}"'),
    )
    assert all(said_there in code for said_there, _ in shorter)
    for block in blocks:  # each by itself
        for said_there, quick in shorter:
            block = block.replace(said_there, quick)
        exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    *merged, means, p_value = printed.splitlines()[:5]
    assert merged[0] == f"{2 / 61:.4f}  Sunlight makes vitamin D in the skin."  # first in both
    assert merged == re.findall(r"^    (0\.\d{4}  .+)$", readme, re.MULTILINE)  # as the README says
    assert 0.5 < float(means) <= 1
    assert 0 < float(p_value) <= 1
    assert len(read_run(tmp_path / "dense.trec.gz")) == 10
    assert [line.split()[0] for line in printed.splitlines() if line.startswith(("exact", "faiss"))] == [
        "exact",
        "faiss-hnsw",
        "faiss-ivf",
    ]
    [planned] = re.findall(r"# GiB for MS MARCO: ([\d.]+)\n", code)
    *_, gib, best_step, ndcg = printed.split()
    assert float(gib) == pytest.approx(float(planned), abs=0.05)
    assert (best_step, 0 < float(ndcg) <= 1) == ("2", True)
