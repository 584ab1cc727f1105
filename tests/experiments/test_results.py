"""Results on disk: what is saved is what is read, and files that contradict each other are refused."""

import csv
import gzip
import json
import re
import shutil
import subprocess
from dataclasses import replace
from re import escape

import pytest
from made_data import debates

from dpr.data.collection import Collection, Passage
from dpr.data.trec import Run
from dpr.evaluation.metrics import METRICS, evaluate
from dpr.experiments.results import (
    KEPT_DEPTH,
    git_commit,
    hardware,
    load_result,
    load_results,
    save_mean_of_seeds,
    save_result,
)
from dpr.files import crc32, read_json, write_json
from dpr.search.bm25 import BM25


@pytest.fixture
def deep_collection() -> Collection:
    """300 documents; three queries, one with a relevant document that only a deep run finds."""
    return Collection(
        name="deep",
        passages=[Passage(f"d{number:03}", "", f"text {number}") for number in range(300)],
        all_queries={"q1": "first", "q2": "second", "q3": "third"},
        all_qrels={"test": {"q1": {"d000": 2, "d150": 1, "d249": 1}, "q2": {"d001": 1}, "q3": {"d002": 1}}},
    )


@pytest.fixture
def deep_run() -> Run:
    """All 300 documents for q1, two for q2, none for q3; document number = rank − 1."""
    q1 = {f"d{number:03}": 300.5 - number for number in range(300)}
    return Run({"q1": q1, "q2": {"d009": 0.1, "d001": 0.05}}, "deep-system")


def save(folder, run, collection, **changes):
    """`save_result` with settings that a test need not name."""
    settings = {
        "notebook": "05_dense_retrieval",
        "config": {"model": "m", "k1": 0.9},
        "depth": 300,
        "wall_s": 1.23904,
    }
    return save_result(folder, run, collection, **settings | changes)


# --- round trip --------------------------------------------------------------------------------


def test_a_saved_result_reads_back_as_it_was(tmp_path, deep_run, deep_collection):
    saved = save(tmp_path / "runs" / "deep", deep_run, deep_collection, seed=3)
    read = load_result(tmp_path / "runs" / "deep", "deep-system")
    assert sorted(path.name for path in (tmp_path / "runs" / "deep").iterdir()) == [
        "deep-system.csv",
        "deep-system.json",
        "deep-system.trec.gz",
    ]
    assert (read.system, read.collection, read.path) == (saved.system, saved.collection, saved.path)
    assert read.metadata == saved.metadata
    assert read.evaluation.means == pytest.approx(saved.evaluation.means, abs=1e-6)
    for metric in METRICS:
        assert read.evaluation.per_query[metric] == pytest.approx(
            saved.evaluation.per_query[metric], abs=1e-6
        )
    assert (read.evaluation.num_queries, read.evaluation.num_missing) == (3, 1)


def test_a_run_read_back_has_every_judged_query_also_those_without_hits(tmp_path, tiny_collection):
    run = Run({"q1": {"d1": 2.0, "d3": 1.0}, "q2": {}}, "some")
    save(tmp_path, run, tiny_collection)
    read = load_result(tmp_path, "some").run()
    assert read == run
    assert read.tag == "some"


def test_the_metadata_say_what_made_the_run(tmp_path, deep_run, deep_collection):
    save(tmp_path, deep_run, deep_collection, seed=3, ablation=True, index_bytes=1234)
    metadata = json.loads((tmp_path / "deep-system.json").read_text(encoding="utf-8"))
    means = evaluate(deep_collection.qrels, deep_run).means
    expected = {
        "system": "deep-system",
        "collection": "deep",
        "split": "test",
        "scope": "full corpus",
        "depth": 300,
        "config": {"model": "m", "k1": 0.9},
        "fingerprints": {
            "passages": deep_collection.fingerprint,
            "queries": deep_collection.queries_fingerprint,
        },
        "metrics": {metric: round(mean, 6) for metric, mean in means.items()},
        "num_queries": 3,
        "num_missing": 1,
        "seed": 3,
        "ablation": True,
        "notebook": "05_dense_retrieval",
        "wall_s": 1.239,
        "index_bytes": 1234,
        "commit": git_commit(),
        "hardware": hardware(),
    }
    assert {key: metadata[key] for key in expected} == expected
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", metadata["made"])
    assert list(metadata["metrics"]) == list(METRICS)


def test_a_sample_is_never_recorded_as_the_full_corpus(tmp_path, deep_run, deep_collection):
    sample = deep_collection.sample(40, 2)
    run = Run({q: {d: 1.0 for d in sample.doc_ids[:9]} for q in sample.queries}, "on-sample")
    assert save(tmp_path, run, sample).metadata["scope"] == "40 of 300 passages"


# --- queries that are documents ----------------------------------------------------------------


def found_by(searched, tag, with_itself=()):
    """A run in which each query has its opposite at rank 2, and these queries themselves at rank 1."""
    hits = {}
    for query_id, grades in searched.qrels.items():
        [opposite] = grades
        other = "cars-pro" if query_id.startswith("zoos") else "zoos-pro"
        hits[query_id] = {query_id if query_id in with_itself else other: 2.0, opposite: 1.0}
    return Run(hits, tag)


@pytest.mark.parametrize("with_itself", [(), ("cars-con",), ("cars-con", "pets-pro", "sugar-con")])
def test_the_queries_that_are_documents_and_found_themselves_are_counted(tmp_path, with_itself):
    collection = debates()
    save(tmp_path, found_by(collection, "debater", with_itself), collection)
    about = load_result(tmp_path, "debater").metadata["queries_as_documents"]
    assert about == {"all": 12, "in_run": len(with_itself)}


def test_a_query_with_the_id_of_a_document_alone_is_not_counted_as_one(tmp_path):
    whole = debates()
    texts = {**whole.all_queries, "cars-con": "what cars burn", "pets-pro": "why pets"}
    collection = replace(whole, all_queries=texts)
    run = found_by(collection, "debater", ("cars-con", "sugar-con"))
    assert save(tmp_path, run, collection).metadata["queries_as_documents"] == {"all": 10, "in_run": 1}


def test_a_search_leaves_out_what_would_be_counted(tmp_path):
    collection = debates()
    index = BM25.build(collection, tmp_path / "index")
    for leave_out_own, in_run in ((True, 0), (False, 12)):
        run = index.search(collection.queries, 5, leave_out_own=leave_out_own)
        about = save(tmp_path / "runs", run, collection).metadata
        assert about["queries_as_documents"] == {"all": 12, "in_run": in_run}


def test_a_collection_whose_queries_are_none_of_its_documents_says_so(tmp_path, deep_run, deep_collection):
    metadata = save(tmp_path, deep_run, deep_collection).metadata
    assert metadata["queries_as_documents"] == {"all": 0, "in_run": 0}


# --- depth -------------------------------------------------------------------------------------


def test_the_kept_run_holds_the_best_100_hits_and_the_table_measures_all(tmp_path, deep_run, deep_collection):
    save(tmp_path, deep_run, deep_collection)
    read = load_result(tmp_path, "deep-system")
    kept = read.run()
    assert KEPT_DEPTH == 100
    assert list(kept["q1"]) == [f"d{number:03}" for number in range(100)]
    assert list(kept["q2"]) == ["d009", "d001"]
    assert kept.tag == "deep-system"
    with (tmp_path / "deep-system.csv").open(encoding="utf-8") as stream:
        table = {row["query_id"]: row for row in csv.DictReader(stream)}
    assert list(table) == ["q1", "q2", "q3"]
    assert list(table["q1"]) == ["query_id", *METRICS]
    # relevant at ranks 1, 151 and 250: two of them lie below what is kept
    assert float(table["q1"]["R@100"]) == pytest.approx(1 / 3, abs=1e-6)
    assert float(table["q1"]["R@1000"]) == 1.0
    assert float(table["q1"]["AP@1000"]) == pytest.approx((1 + 2 / 151 + 3 / 250) / 3, abs=1e-6)
    assert {row["R@1000"] for row in (table["q2"], table["q3"])} == {"1", "0"}
    of_kept = evaluate(deep_collection.qrels, kept)
    assert of_kept.means["R@1000"] < read.evaluation.means["R@1000"]
    for metric in ("nDCG@10", "RR@10", "R@100", "P@10", "judged@10"):
        assert of_kept.means[metric] == pytest.approx(read.evaluation.means[metric], abs=1e-6)


def test_equal_inputs_give_files_with_equal_bytes(tmp_path, deep_run, deep_collection):
    save(tmp_path / "a", deep_run, deep_collection)
    save(tmp_path / "b", Run(deep_run, "deep-system"), deep_collection, wall_s=99.0, notebook="other")
    for ending in (".trec.gz", ".csv"):
        first, second = ((tmp_path / folder / f"deep-system{ending}").read_bytes() for folder in "ab")
        assert first == second
    lines = gzip.decompress((tmp_path / "a" / "deep-system.trec.gz").read_bytes()).decode().splitlines()
    assert lines[0] == "q1 Q0 d000 1 300.5 deep-system"
    assert len(lines) == 102


def test_a_result_saved_again_replaces_the_earlier_one(tmp_path, deep_run, deep_collection):
    save(tmp_path, deep_run, deep_collection)
    better = Run({q: {next(iter(grades)): 1.0} for q, grades in deep_collection.qrels.items()}, "deep-system")
    save(tmp_path, better, deep_collection)
    assert load_result(tmp_path, "deep-system").evaluation.means["RR@10"] == 1.0
    assert load_result(tmp_path, "deep-system").run() == better


# --- save_result refuses -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (Run({"q9": {"d000": 1.0}}, "t"), "none in common"),
        (Run({"q1": {"d 0": 1.0}}, "t"), "must be a string without white space"),
        (Run({"q1": {"d000": 1.0}}, "my tag"), "must be a string without white space"),
    ],
)
def test_a_run_that_cannot_be_evaluated_or_written_leaves_no_file(tmp_path, deep_collection, run, message):
    with pytest.raises(ValueError, match=message):
        save(tmp_path / "new", run, deep_collection)
    assert not list(tmp_path.rglob("*.*"))


# --- load_result refuses -----------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".trec.gz", ".json", ".csv"])
def test_a_missing_file_is_named_with_the_notebooks_that_make_it(tmp_path, deep_run, deep_collection, ending):
    save(tmp_path, deep_run, deep_collection)
    path = tmp_path / f"deep-system{ending}"
    path.unlink()
    message = f"{path}: missing; `save_result` writes runs, in notebooks 02, 04, 05, 06, 07, 08 and 09"
    with pytest.raises(FileNotFoundError, match=escape(message) + "$"):
        load_result(tmp_path, "deep-system")


@pytest.mark.parametrize("ending", [".trec.gz", ".csv"])
def test_files_of_two_runs_mixed_are_refused_and_the_one_that_does_not_belong_is_named(
    tmp_path, deep_run, deep_collection, ending
):
    save(tmp_path, deep_run, deep_collection)
    other = Run({"q1": deep_run["q1"], "q3": {"d009": 0.1, "d002": 0.05}}, "deep-system")
    save(tmp_path / "other", other, deep_collection)
    means = [load_result(folder, "deep-system").evaluation.means for folder in (tmp_path, tmp_path / "other")]
    assert means[0] == pytest.approx(means[1])  # q3 finds what q2 finds in the first
    path = tmp_path / f"deep-system{ending}"
    shutil.copy(tmp_path / "other" / path.name, path)
    message = f"{path}: not the file that deep-system.json was written with; run again"
    with pytest.raises(ValueError, match=escape(message)):
        load_result(tmp_path, "deep-system")


@pytest.mark.parametrize("ending", [".trec.gz", ".csv"])
@pytest.mark.parametrize("at", [0, 0.5, -1])
def test_a_flipped_bit_of_a_result_is_refused_and_the_file_named(
    tmp_path, deep_run, deep_collection, ending, at
):
    save(tmp_path, deep_run, deep_collection)
    path = tmp_path / f"deep-system{ending}"
    data = bytearray(path.read_bytes())
    data[int(at * len(data)) if at == 0.5 else at] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=escape(f"{path}: ")):
        load_result(tmp_path, "deep-system")


@pytest.mark.parametrize("text", ["", '{"system": "deep', "[]", "{}"])
def test_a_damaged_description_is_named(tmp_path, deep_run, deep_collection, text):
    save(tmp_path, deep_run, deep_collection)
    (tmp_path / "deep-system.json").write_text(text)
    with pytest.raises(ValueError, match=escape(f"{tmp_path / 'deep-system.json'}: damaged")):
        load_result(tmp_path, "deep-system")


@pytest.mark.parametrize("tag", ["../../x", "..", ".x", "a/b", "a\\b"])
def test_a_tag_that_would_lead_out_of_the_folder_is_refused(tmp_path, deep_run, deep_collection, tag):
    folder = tmp_path / "runs" / "deep"
    with pytest.raises(ValueError, match=escape(f"the run's tag {tag!r} becomes a file's name")):
        save(folder, Run(deep_run, tag), deep_collection)
    with pytest.raises(ValueError, match=escape(f"the system {tag!r} becomes a file's name")):
        load_result(folder, tag)
    assert not list(tmp_path.rglob("*.*"))


def edit_table(folder, edit):
    """Change the rows of deep-system's table, a list of lists of strings, and its checksum in the .json."""
    path, about = folder / "deep-system.csv", folder / "deep-system.json"
    rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    path.write_text("".join(",".join(row) + "\n" for row in edit(rows)), encoding="utf-8")
    metadata = read_json(about)
    metadata["crc32"][path.name] = crc32(path)
    write_json(about, metadata)
    return path


def with_cell(rows, row, column, value):
    """The rows with one cell changed."""
    rows[row][column] = value
    return rows


@pytest.mark.parametrize("metric", METRICS)
def test_a_table_whose_mean_is_not_the_recorded_one_is_refused(tmp_path, deep_run, deep_collection, metric):
    save(tmp_path, deep_run, deep_collection)
    column = 1 + METRICS.index(metric)
    path = edit_table(tmp_path, lambda rows: with_cell(rows, 3, column, "0.0001"))  # by 3e-5 in the mean
    with pytest.raises(ValueError, match=escape(f"{path}: mean {metric} is ")):
        load_result(tmp_path, "deep-system")


@pytest.mark.parametrize(
    "edit",
    [
        pytest.param(lambda rows: rows[:-1], id="a query left out"),
        pytest.param(lambda rows: [*rows, ["q3", *["1"] * len(METRICS)]], id="a query twice"),
        pytest.param(lambda rows: with_cell(rows, 1, 0, "q1,0"), id="a column too many"),
        pytest.param(lambda rows: with_cell(rows, 1, 1, "high"), id="no number"),
        pytest.param(lambda rows: with_cell(rows, 1, 1, "nan"), id="NaN"),
        pytest.param(lambda rows: [*rows, rows[-1]], id="a query twice, alike"),
        pytest.param(lambda rows: [rows[0], *(row[:-1] for row in rows[1:])], id="rows cut"),
        pytest.param(lambda rows: [row[:-1] for row in rows], id="a metric left out"),
        pytest.param(lambda rows: with_cell(rows, 0, 1, "MRR@10"), id="unknown metric"),
        pytest.param(lambda rows: rows[:1], id="no row"),
    ],
)
def test_a_malformed_table_is_refused_by_name(tmp_path, deep_run, deep_collection, edit):
    save(tmp_path, deep_run, deep_collection)
    path = edit_table(tmp_path, edit)
    with pytest.raises(ValueError, match=escape(str(path))):
        load_result(tmp_path, "deep-system")


# --- several seeds -----------------------------------------------------------------------------


def test_the_mean_over_seeds_is_taken_query_by_query(tmp_path, deep_run, deep_collection):
    worse = Run({**deep_run, "q2": {"d009": 0.1}}, "deep-s1")
    first, second = (
        save(tmp_path, Run(run, f"deep-s{seed}"), deep_collection, seed=seed, ablation=True)
        for seed, run in enumerate((deep_run, worse))
    )
    save_mean_of_seeds("deep", [first, second])
    read = load_result(tmp_path, "deep")
    for metric in METRICS:
        one, other = (result.evaluation.per_query[metric] for result in (first, second))
        assert read.evaluation.per_query[metric] == pytest.approx(
            {q: (one[q] + other[q]) / 2 for q in one}, abs=1e-6
        )
    assert read.evaluation.means["RR@10"] == pytest.approx((1 + (0.5 + 0) / 2) / 3)
    assert read.metadata["seeds"] == {"0": first.metadata["metrics"], "1": second.metadata["metrics"]}
    assert (read.metadata["seed"], read.metadata["ablation"]) == (None, False)
    assert read.run() == first.run()
    assert list(load_results(tmp_path)) == ["deep"]


def test_a_mean_over_seeds_has_the_settings_of_the_first_seed_and_what_is_said_about_it(
    tmp_path, deep_run, deep_collection
):
    seeds = [
        save(
            tmp_path,
            Run(deep_run, f"deep-s{seed}"),
            deep_collection,
            seed=seed,
            config={"model": seed, "k1": 1},
        )
        for seed in (4, 5)
    ]
    plain = save_mean_of_seeds("plain", seeds)
    assert load_result(tmp_path, "plain").metadata["config"] == {"model": 4, "k1": 1}
    about = {"starts_from": "tiny-bert", "answers_seen": 0.25, "k1": 2}
    told = save_mean_of_seeds("told", seeds, about)
    expected = {"model": 4, "starts_from": "tiny-bert", "answers_seen": 0.25, "k1": 2}
    assert told.metadata["config"] == load_result(tmp_path, "told").metadata["config"] == expected
    assert told.evaluation == plain.evaluation
    for seed in seeds:
        assert load_result(tmp_path, seed.system).metadata == seed.metadata
        assert set(seed.metadata["config"]) == {"model", "k1"}


def test_a_mean_over_seeds_needs_seeds_of_the_same_collection(tmp_path, deep_run, deep_collection):
    seeded = save(tmp_path, deep_run, deep_collection, seed=0)
    unseeded = save(tmp_path, Run(deep_run, "other"), deep_collection)
    shallow = save(tmp_path, Run(deep_run, "shallow"), deep_collection, seed=1, depth=10)
    fewer = replace(deep_collection, all_qrels={"test": {"q1": {"d000": 1}, "q2": {"d001": 1}}})
    elsewhere = save(tmp_path, Run(deep_run, "elsewhere"), fewer, seed=1)
    for results, message in (
        ([], "needs results that each have a seed"),
        ([seeded, unseeded], "needs results that each have a seed"),
        ([seeded, shallow], "the seeds' results have other depth"),
        ([seeded, elsewhere], "the seeds' results have other fingerprints"),
    ):
        with pytest.raises(ValueError, match=f"mean: .*{message}"):
            save_mean_of_seeds("mean", results)
    assert not (tmp_path / "mean.json").exists()


# --- load_results ------------------------------------------------------------------------------


@pytest.fixture
def three_results(tmp_path, tiny_collection):
    """Three systems of which `middle` and `also-middle` are equal, and an ablation that beats them."""
    right = {"q1": {"d1": 2.0, "d3": 1.0}, "q2": {"d2": 1.0}}
    half = {"q1": {"d1": 2.0, "d3": 1.0}}
    wrong = {"q1": {"d6": 1.0}}
    for tag, run in (("worst", wrong), ("middle", half), ("also-middle", half)):
        save(tmp_path, Run(run, tag), tiny_collection)
    save(tmp_path, Run(right, "shortcut"), tiny_collection, ablation=True)
    return tmp_path


def test_systems_come_best_first_and_equal_ones_by_name(three_results):
    results = load_results(three_results)
    assert [(s, r.evaluation.means["nDCG@10"]) for s, r in results.items()] == [
        ("also-middle", 0.5),
        ("middle", 0.5),
        ("worst", 0.0),
    ]


def test_ablations_come_only_where_asked_for(three_results):
    assert "shortcut" not in load_results(three_results)
    assert next(iter(load_results(three_results, ablations=True))) == "shortcut"
    assert len(load_results(three_results, ablations=True)) == 4


def test_one_broken_result_is_not_passed_over(three_results):
    (three_results / "middle.csv").unlink()
    with pytest.raises(FileNotFoundError, match=escape("middle.csv: missing")):
        load_results(three_results)


@pytest.mark.parametrize("folder", [".", "gone"])
def test_a_folder_without_runs_is_refused(tmp_path, folder):
    message = (
        f"{tmp_path / folder}: no runs; `save_result` writes runs, in notebooks 02, 04, 05, 06, 07, 08 and 09"
    )
    with pytest.raises(FileNotFoundError, match=escape(message) + "$"):
        load_results(tmp_path / folder)


# --- where it ran ------------------------------------------------------------------------------


@pytest.fixture
def outside_git(tmp_path, monkeypatch):
    """An empty current folder that belongs to no repository."""
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    for variable in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_outside_of_a_repository_the_commit_is_unknown(outside_git):
    assert git_commit() == "unknown"


def test_without_git_the_commit_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert git_commit() == "unknown"


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_the_commit_has_twelve_digits_and_a_plus_where_the_code_differs(outside_git, monkeypatch):
    def git(*arguments):
        identity = ("-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false")
        command = ["git", *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    assert git_commit() == "unknown"  # nothing committed yet
    for name in ("src", "notebooks"):
        (outside_git / name).mkdir()
        (outside_git / name / "file.py").write_text("one")
    git("add", ".")
    git("commit", "-m", "first")
    git("tag", "-a", "v1", "-m", "a tag does not take the commit's place")
    commit = git("rev-parse", "HEAD")[:12]
    (outside_git / "notebooks" / "file.py").write_text("a notebook that runs is rewritten meanwhile")
    assert git_commit() == commit
    (outside_git / "src" / "file.py").write_text("two")
    assert git_commit() == f"{commit}+"
    monkeypatch.chdir(outside_git / "notebooks")
    assert git_commit() == f"{commit}+"


def test_the_hardware_names_the_number_of_cores():
    assert re.fullmatch(r"\S.*, \d+ cores(, .+)?", hardware())
    assert "\n" not in hardware()
