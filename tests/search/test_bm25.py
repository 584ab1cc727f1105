"""BM25: Lucene's scores are the formula's, and no index is ever searched for other passages."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from re import escape

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from made_data import debates

from dpr.data.collection import Collection, Passage
from dpr.data.loading import load_collection
from dpr.data.trec import ordered_hits, read_run, write_run
from dpr.evaluation.metrics import evaluate
from dpr.files import MARKER
from dpr.generation.expansion import expand
from dpr.search import bm25
from dpr.search.bm25 import BM25, analyse

WORDS = ["apple", "grape", "lemon", "melon", "mango", "papaya"]  # apart after stemming, no stop words
TEXTS = {  # under 40 words each: Lucene keeps longer lengths in steps
    "d1": "apple",
    "d2": "grape apple grape apple apple",
    "d3": "lemon " * 20 + "apple",
    "d4": "melon mango lemon grape",
    "d5": "mango " * 7 + "grape " * 3,
    "d6": "papaya " * 30,
    "d7": "apple grape lemon melon mango",
}
PARAMETERS = {"k1": st.floats(0, 4), "b": st.floats(0, 1)}


def collect(texts, name="fruit", qrels=None):
    """A collection of these texts; every query finds d1 relevant unless told."""
    passages = [Passage(doc_id, "", text) for doc_id, text in texts.items()]
    qrels = qrels or {"apple": {"d1": 1}}
    return Collection(name, passages, {q: q.replace("_", " ") for q in qrels}, {"test": qrels, "dev": qrels})


def by_formula(texts, query, k1, b):
    """Scores of Lucene's BM25 for the documents that share a term with the query.

    Source: https://lucene.apache.org/core/9_0_0/core/org/apache/lucene/search/similarities/BM25Similarity.html
    """
    words = {doc_id: text.split() for doc_id, text in texts.items()}
    mean_length = sum(map(len, words.values())) / len(words)
    scores = {}
    for term in query.split():
        num_with = sum(term in document for document in words.values())
        idf = math.log(1 + (len(words) - num_with + 0.5) / (num_with + 0.5))
        for doc_id, document in words.items():
            if term in document:
                tf = document.count(term)
                saturated = tf / (tf + k1 * (1 - b + b * len(document) / mean_length))
                scores[doc_id] = scores.get(doc_id, 0) + idf * saturated
    return scores


@pytest.fixture(scope="module")
def fruit(tmp_path_factory) -> BM25:
    """An index of `TEXTS`."""
    return BM25.build(collect(TEXTS), tmp_path_factory.mktemp("indexes") / "fruit")


# --- scores ------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(query=st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(" ".join), **PARAMETERS)
@example(query="apple", k1=0.9, b=0.4)
@example(query="grape lemon", k1=2.0, b=0.75)
@example(query="apple apple mango", k1=0.0, b=1.0)
@example(query="papaya", k1=4.0, b=0.0)
def test_scores_are_those_of_the_formula(fruit, query, k1, b):
    hits = fruit.search({"q": query}, k1=k1, b=b)["q"]
    expected = by_formula(TEXTS, query, k1, b)
    assert hits == pytest.approx(expected, rel=0, abs=2e-4)  # Anserini rounds to four decimals


def test_k1_and_b_are_by_default_those_of_the_published_figures(fruit):
    hits = fruit.search({"q": "apple grape"})["q"]
    assert hits == pytest.approx(by_formula(TEXTS, "apple grape", 0.9, 0.4), rel=0, abs=2e-4)
    assert abs(hits["d2"] - by_formula(TEXTS, "apple grape", 0.4, 0.9)["d2"]) > 0.01


def test_title_and_text_are_one_field(tmp_path):
    halves = [tuple(text.split(" ", 1)) if " " in text else ("", text) for text in TEXTS.values()]
    passages = [Passage(doc_id, *half) for doc_id, half in zip(TEXTS, halves, strict=True)]
    index = BM25.build(replace(collect(TEXTS), passages=passages), tmp_path / "index")
    for query in ("melon", "papaya apple"):
        hits = index.search({"q": query})["q"]
        assert hits == pytest.approx(by_formula(TEXTS, query, 0.9, 0.4), rel=0, abs=2e-4)


def test_words_are_stemmed_and_stop_words_left_out(tmp_path, tiny_collection):
    index = BM25.build(tiny_collection, tmp_path / "index")
    run = index.search({"stem": "mask filtering", "more": "washing carried", "stop": "the of and"})
    assert {query_id: sorted(hits) for query_id, hits in run.items()} == {
        "stem": ["d1"],
        "more": ["d5"],
        "stop": [],
    }


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("The MASKS are filtering droplets, and masks", ["mask", "filter", "droplet", "mask"]),
        ("vitamin D in 2020", ["vitamin", "d", "2020"]),
        ("zinc's bi-encoder", ["zinc", "bi", "encod"]),
        ("Café 富士", ["café", "富", "士"]),
        ("the of and", []),
        ("", []),
    ],
)
def test_terms_are_stems_in_lower_case_in_their_order_without_stop_words(text, terms):
    assert analyse(text) == terms


def test_a_document_is_found_exactly_where_it_shares_a_term_with_the_query(tmp_path, tiny_collection):
    index = BM25.build(tiny_collection, tmp_path / "index")
    queries = {**tiny_collection.all_queries, "stems": "VITAMINS of bat, carried", "none": "the of and"}
    for query_id, hits in index.search(queries).items():
        asked = set(analyse(queries[query_id]))
        shared = {p.doc_id for p in tiny_collection.passages if asked & set(analyse(p.contents))}
        assert set(hits) == shared
    assert sorted(index.search(queries)["stems"]) == ["d2", "d5"]


@pytest.mark.parametrize("text", [None, 7, ["apple"]])
def test_only_a_text_has_terms(text):
    with pytest.raises(ValueError, match="analyse: text must be str, got"):
        analyse(text)


def test_every_query_is_in_the_run_and_equal_hits_come_in_lucenes_order_whatever_the_depth(tmp_path):
    texts = {"d1": "apple", "d10": "apple", "d9": "apple", "d2": "apple apple", "x": "grape"}
    index = BM25.build(collect(texts), tmp_path / "index")
    queries = {"q3": "kiwi", "q1": "apple", "q2": "", "q0": "grape kiwi"}
    run = index.search(queries)
    assert {query_id: list(hits) for query_id, hits in run.items()} == {
        "q3": [],
        "q1": ["d2", "d1", "d10", "d9"],  # each scored a millionth less than the one before
        "q2": [],
        "q0": ["x"],
    }
    assert (list(run), run.tag) == (list(queries), "bm25")
    assert list(run["q1"].items()) == ordered_hits(run["q1"])
    for depth in (1, 2, 3):
        assert index.search(queries, depth) == run.truncated(depth)
    write_run(tmp_path / "run.trec", run)
    assert read_run(tmp_path / "run.trec")["q1"] == pytest.approx(run["q1"])


def test_no_query_gives_an_empty_run(fruit):
    assert fruit.search({}) == {}


@pytest.mark.parametrize("depth", [1, 3, 5, 1000])
def test_depth_keeps_the_best(fruit, depth):
    expected = sorted(by_formula(TEXTS, "apple grape", 0.9, 0.4).values(), reverse=True)
    hits = fruit.search({"q": "apple grape"}, depth=depth)["q"]
    assert list(hits.values()) == pytest.approx(expected[:depth], rel=0, abs=2e-4)


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        ({"depth": 0}, "0, 0.9, 0.4"),
        ({"k1": -0.1}, "1000, -0.1, 0.4"),
        ({"b": -0.1}, "1000, 0.9, -0.1"),
        ({"b": 1.1}, "1000, 0.9, 1.1"),
        ({"b": math.nan}, "1000, 0.9, nan"),
    ],
)
def test_parameters_out_of_range_are_refused(fruit, wrong, got):
    with pytest.raises(ValueError, match=escape(f"depth ≥ 1, k1 ≥ 0 and 0 ≤ b ≤ 1 are needed, got {got}")):
        fruit.search({"q": "apple"}, **wrong)


@pytest.mark.parametrize("k1", [math.nan, math.inf])
def test_a_k1_that_is_not_finite_is_refused(fruit, k1):
    with pytest.raises(ValueError, match="k1 ≥ 0"):
        fruit.search({"q": "apple"}, k1=k1)


# --- building ----------------------------------------------------------------------------------


def test_documents_without_text_are_left_out_and_counted(tmp_path):
    texts = {**TEXTS, "e1": "", "e2": " \n"}
    index = BM25.build(collect(texts), tmp_path / "index")
    assert index.num_documents == len(TEXTS)
    assert index.num_bytes == sum(file.stat().st_size for file in index.folder.glob("lucene/*")) > 1000
    hits = index.search({"q": "apple"})["q"]
    assert hits == pytest.approx(by_formula(TEXTS, "apple", 0.9, 0.4), rel=0, abs=2e-4)


def test_a_collection_without_any_text_is_refused(tmp_path):
    with pytest.raises(ValueError, match="fruit: no passage with a text to index"):
        BM25.build(collect({"d1": "", "d2": " "}), tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


def modified(folder):
    """When each file under a folder was last written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_an_index_is_reused_for_the_same_passages_and_whichever_queries(tmp_path):
    first = BM25.build(collect(TEXTS), tmp_path / "deep" / "index")
    before = modified(tmp_path)
    other_queries = collect(TEXTS, "renamed", {"grape": {"d2": 1}}).with_split("dev")
    again = BM25.build(other_queries, str(tmp_path / "deep" / "index"))
    assert (first.reused, again.reused) == (False, True)
    assert (first.num_documents, again.num_documents) == (7, 7)
    assert modified(tmp_path) == before
    assert again.search({"q": "apple"}) == first.search({"q": "apple"})


@pytest.mark.parametrize(
    "texts",
    [
        {doc_id: text for doc_id, text in TEXTS.items() if doc_id != "d1"},
        {**TEXTS, "d8": "kiwi"},
        {**TEXTS, "d1": "apple apple"},
        {doc_id.upper(): text for doc_id, text in TEXTS.items()},
    ],
)
def test_a_changed_collection_is_indexed_anew(tmp_path, texts):
    BM25.build(collect(TEXTS), tmp_path / "index")
    index = BM25.build(collect(texts), tmp_path / "index")
    assert (index.reused, index.num_documents) == (False, len(texts))
    hits = index.search({"q": "apple"})["q"]
    assert hits == pytest.approx(by_formula(texts, "apple", 0.9, 0.4), rel=0, abs=2e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_an_index_of_another_pyserini_is_built_anew(tmp_path, monkeypatch):
    BM25.build(collect(TEXTS), tmp_path / "index")
    monkeypatch.setattr(bm25, "version", lambda package: "0.1")
    assert not BM25.build(collect(TEXTS), tmp_path / "index").reused
    assert BM25.build(collect(TEXTS), tmp_path / "index").reused


def test_an_empty_folder_may_become_an_index(tmp_path):
    (tmp_path / "index").mkdir()
    assert BM25.build(collect(TEXTS), tmp_path / "index").num_documents == len(TEXTS)


@pytest.mark.parametrize("manifest", [None, "", '{"fingerprint": ', "\0"])
def test_a_folder_that_holds_something_else_is_refused_and_stays(tmp_path, manifest):
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter.md").write_text("years of work")
    if manifest is not None:
        (folder / bm25.MANIFEST).write_text(manifest)
    before = modified(tmp_path)
    with pytest.raises(ValueError, match=escape(f"{folder} is no index of ours")):
        BM25.build(collect(TEXTS), folder)
    with pytest.raises(ValueError, match=r"chapter.md is no index of ours"):
        BM25.build(collect(TEXTS), folder / "chapter.md")
    assert modified(tmp_path) == before


def test_a_stale_index_with_more_documents_cannot_be_searched(tmp_path):
    BM25.build(collect(TEXTS), tmp_path / "stale")
    fewer = collect({doc_id: TEXTS[doc_id] for doc_id in ("d1", "d2")})
    manifest = tmp_path / "stale" / bm25.MANIFEST
    stale = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**stale, "fingerprint": fewer.fingerprint}))
    with pytest.raises(
        RuntimeError, match=r"Lucene holds 7 documents, the collection has 2 with text; remove"
    ):
        BM25.build(fewer, tmp_path / "stale")


def test_a_build_that_fails_leaves_the_old_index(tmp_path, monkeypatch):
    BM25.build(collect(TEXTS), tmp_path / "index")
    before = modified(tmp_path / "index")

    def fail(documents, folder):
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(bm25, "_index", fail)
        with pytest.raises(OSError, match="disk full"):
            BM25.build(collect({"d1": "kiwi"}), tmp_path / "index")
    assert modified(tmp_path / "index") == before
    assert BM25.build(collect(TEXTS), tmp_path / "index").reused


@pytest.mark.parametrize("damage", ["lost", "cut"])
def test_an_index_with_a_file_lost_or_cut_is_built_anew(tmp_path, damage):
    BM25.build(collect(TEXTS), tmp_path / "index")
    path = max((tmp_path / "index" / "lucene").iterdir(), key=lambda path: path.stat().st_size)
    if damage == "lost":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    index = BM25.build(collect(TEXTS), tmp_path / "index")
    assert not index.reused
    assert index.search({"q": "apple"})["q"] == pytest.approx(by_formula(TEXTS, "apple", 0.9, 0.4), abs=2e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_a_damaged_marker_is_named(tmp_path):
    BM25.build(collect(TEXTS), tmp_path / "index")
    (tmp_path / "index" / MARKER).write_text('{"kind": "a BM25')
    before = modified(tmp_path)
    with pytest.raises(ValueError, match=escape(f"{tmp_path / 'index' / MARKER}: damaged")):
        BM25.build(collect(TEXTS), tmp_path / "index")
    assert modified(tmp_path) == before


# Two processes that build an index at the same time; what they share is imported before they part.
BUILDERS = """
import json, os, sys, time
from pathlib import Path

import sklearn.preprocessing
from transformers import BertModel

from dpr.data.collection import Collection, Passage
from dpr.search.bm25 import BM25, analyse
from dpr.search.java import start_jvm

folder, texts = Path(sys.argv[1]), json.loads(sys.argv[2])
passages = [Passage(doc_id, "", text) for doc_id, text in texts.items()]
first = os.fork() != 0
start_jvm()
(folder / f"ready-{first}").touch()
while not (folder / f"ready-{not first}").exists():
    time.sleep(0.001)
index = BM25.build(Collection("fruit", passages, {}, {"test": {}}), folder / "index")
(folder / f"told-{first}").write_text(json.dumps([index.reused, index.search({"q": "apple"})["q"]]))
if first:
    os.wait()
os._exit(0)
"""


def test_of_two_processes_that_build_an_index_at_once_one_waits_and_reads_it(tmp_path):
    command = [sys.executable, "-c", BUILDERS, str(tmp_path), json.dumps(TEXTS)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    told = [json.loads((tmp_path / f"told-{first}").read_text()) for first in (True, False)]
    assert sorted(reused for reused, _ in told) == [False, True]
    for _, hits in told:
        assert hits == pytest.approx(by_formula(TEXTS, "apple", 0.9, 0.4), rel=0, abs=2e-4)
    names = ["index", "ready-False", "ready-True", "told-False", "told-True"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


# --- tuning ------------------------------------------------------------------------------------

TUNED = {  # b decides between a short and a long document, k1 between one term often and two once
    "short": "apple lemon",
    "long": "apple apple apple " + "melon " * 30,
    "often": "grape grape grape grape grape grape melon melon",
    "both": "grape mango melon melon lemon lemon lemon lemon",
    "other": "mango papaya",
}
TUNED_QRELS = {"apple": {"short": 1}, "grape_mango": {"often": 1}, "papaya": {"other": 1}}
K1_GRID, B_GRID = (0.1, 0.3, 3.0), (0.0, 0.5, 1.0)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> tuple[BM25, Collection]:
    """A collection on whose dev queries k1 and b matter, with its index."""
    collection = collect(TUNED, "tuned", TUNED_QRELS)
    return BM25.build(collection, tmp_path_factory.mktemp("indexes") / "tuned"), collection.with_split("dev")


def test_tuning_finds_the_best_of_the_grid(tuned):
    index, dev = tuned
    tuning = index.tune(dev, K1_GRID, B_GRID, "RR@10")
    by_hand = {}
    for k1 in K1_GRID:
        for b in B_GRID:
            ranks = []
            for query, relevant in TUNED_QRELS.items():
                ranked = [d for d, _ in ordered_hits(by_formula(TUNED, query.replace("_", " "), k1, b))]
                ranks.append(1 + ranked.index(*relevant))
            by_hand[k1, b] = sum(1 / rank for rank in ranks) / len(ranks)
    assert tuning.grid == pytest.approx(by_hand)
    assert by_hand[tuning.k1, tuning.b] == max(by_hand.values())
    assert len(set(by_hand.values())) > 2
    assert by_hand[0.1, 0.0] < max(by_hand.values())  # the first of the grid is not the best
    assert (tuning.metric, tuning.split, tuning.num_queries) == ("RR@10", "dev", 3)


def test_of_equally_good_settings_the_first_tried_is_taken(tuned):
    index, dev = tuned
    only_papaya = replace(dev, all_qrels={"dev": {"papaya": {"other": 1}}})
    tuning = index.tune(only_papaya, (1.2, 0.3), (0.7, 0.1))
    assert set(tuning.grid.values()) == {1.0}
    assert (tuning.k1, tuning.b, tuning.metric, tuning.num_queries) == (1.2, 0.7, "nDCG@10", 1)


def test_nothing_is_tuned_on_test_queries(tuned):
    index, dev = tuned
    with pytest.raises(ValueError, match="never on test: load split='dev'"):
        index.tune(dev.with_split("test"))


def test_nothing_is_tuned_on_another_collection(tuned):
    index, _ = tuned
    other = collect(TEXTS).with_split("dev")
    indexed = index.collection.fingerprint
    message = f"the index holds passages {indexed}, fruit has {other.fingerprint}"
    with pytest.raises(ValueError, match=message):
        index.tune(other)


# --- queries that are documents ----------------------------------------------------------------


def without_itself(run, query_ids, depth):
    """The run without each of these queries' hit with the query's id, then cut, by a plain loop."""
    kept = {}
    for query_id, hits in run.items():
        kept[query_id] = {}
        for doc_id, score in ordered_hits(hits):
            if (doc_id != query_id or query_id not in query_ids) and len(kept[query_id]) < depth:
                kept[query_id][doc_id] = score
    return kept


@pytest.fixture(scope="module")
def debated(tmp_path_factory) -> BM25:
    """An index of twelve documents, each of which is a query too."""
    return BM25.build(debates(), tmp_path_factory.mktemp("indexes") / "debates")


@pytest.mark.parametrize("depth", [1, 2, 3, 5, 12, 1000])
def test_a_query_that_is_a_document_gets_as_many_other_hits_as_asked_for(debated, depth):
    queries = debates().queries
    whole = debated.search(queries, leave_out_own=False)
    assert all(next(iter(hits)) == query_id for query_id, hits in whole.items())  # itself first
    found = debated.search(queries, depth)
    assert found == without_itself(whole, queries, depth)
    assert [list(hits) for hits in found.values()] == [
        list(hits) for hits in without_itself(whole, queries, depth).values()
    ]
    assert {len(hits) for hits in debated.search(queries, 3).values()} == {3}
    assert debated.search(queries, depth, leave_out_own=False) == whole.truncated(depth)


def test_only_the_queries_that_are_documents_leave_one_out(debated):
    queries = {
        "zoos-pro": debates().all_queries["zoos-pro"],
        "zoos-con": "animals in cages",  # the id of a document alone
        "new": debates().all_queries["zoos-pro"].upper(),  # the text of one alone
        "cars-pro": f"On cars\n {debates().all_queries['cars-pro']}",
    }
    found = debated.search(queries, 4)
    whole = debated.search(queries, 1000, leave_out_own=False)
    assert found == without_itself(whole, {"zoos-pro", "cars-pro"}, 4)
    assert "zoos-con" in found["zoos-con"]
    assert next(iter(found["new"])) == "zoos-pro"
    assert found["new"]["zoos-con"] == found["zoos-pro"]["zoos-con"]


def test_a_document_judged_relevant_to_itself_stays_a_hit(tmp_path):
    whole = debates()
    qrels = {"test": whole.qrels, "train": {"pets-con": {"pets-con": 1}}}
    index = BM25.build(replace(whole, all_qrels=qrels), tmp_path / "index")
    found = index.search(whole.queries, 3)
    assert [q for q, hits in found.items() if q in hits] == ["pets-con"]


@pytest.mark.parametrize("original", [True, False])
def test_a_query_that_is_a_document_is_left_out_of_an_expanded_collection_too(tmp_path, original):
    whole = debates()
    written = {p.doc_id: [p.text, "what is said"] for p in whole.passages}
    index = BM25.build(expand(whole, written, original=original), tmp_path / "index")
    unfiltered = index.search(whole.queries, leave_out_own=False)
    assert all(q in hits for q, hits in unfiltered.items())
    assert index.search(whole.queries, 5) == without_itself(unfiltered, whole.queries, 5)


def test_an_index_opened_again_with_other_queries_still_knows_its_documents(debated):
    again = BM25.build(replace(debates(), all_queries={}, all_qrels={"test": {}}), debated.folder)
    assert again.reused
    assert again.search(debates().queries, 3) == debated.search(debates().queries, 3)


def test_tuning_does_not_count_the_query_itself(debated):
    dev = debates("dev")
    tuning = debated.tune(dev, (0.9, 2.0), (0.1, 0.9), "RR@3")
    for (k1, b), mean in tuning.grid.items():
        run = without_itself(debated.search(dev.queries, 1000, k1, b, leave_out_own=False), dev.queries, 3)
        ranks = [
            list(hits).index(opposite) + 1
            for hits, [opposite] in zip(run.values(), dev.qrels.values(), strict=True)
            if opposite in hits
        ]
        assert mean == pytest.approx(sum(1 / rank for rank in ranks) / 12)
    assert max(tuning.grid.values()) > 0.5  # at most 1/2 with the query itself as the first hit


# --- queries of any length, ids of any kind, and no hit at all ---------------------------------


@pytest.mark.parametrize("num_words", [1_023, 1_024, 1_025, 5_000])
def test_a_query_of_very_many_words_is_searched_and_hinders_no_other(fruit, num_words):
    many = " ".join(f"nothing{n}" for n in range(num_words - 2))
    run = fruit.search({"short": "papaya", "long": f"mango {many} melon", "last": "grape lemon"})
    for query_id, words in (("short", "papaya"), ("long", "mango melon"), ("last", "grape lemon")):
        assert run[query_id] == pytest.approx(by_formula(TEXTS, words, 0.9, 0.4), rel=0, abs=2e-4)


def test_ids_that_are_whole_numbers_are_found_and_judged_as_text(tmp_path):
    passages = [Passage(number, "", text) for number, text in enumerate(TEXTS.values(), start=1)]
    qrels = {101: {6: 1}, 102: {4: 1, 7: 2}}
    collection = Collection("numbers", passages, {101: "papaya", 102: "melon"}, {"dev": qrels}, "dev")
    index = BM25.build(collection, tmp_path / "index")
    run = index.search({np.int64(101): "papaya", 102: "melon"}, 10)
    assert {q: sorted(hits) for q, hits in run.items()} == {"101": ["6"], "102": ["4", "7"]}
    assert (
        evaluate(collection.qrels, run, ["R@10"]).means == evaluate(qrels, run, ["R@10"]).means == {"R@10": 1}
    )
    assert index.tune(collection, (0.9,), (0.4,), "R@10").grid == {(0.9, 0.4): 1.0}
    write_run(tmp_path / "run.trec", run)
    assert read_run(tmp_path / "run.trec").keys() == {"101", "102"}


@pytest.mark.parametrize("metric", ["nDCG@10", "RR", "MAP"])
def test_queries_that_find_nothing_are_tuned_to_a_mean_of_zero(tuned, metric):
    index, dev = tuned
    queries = {q: "пчёлы" for q in dev.queries}
    strange = replace(dev, all_queries=queries)
    assert set(map(len, index.search(queries).values())) == {0}
    tuning = index.tune(strange, K1_GRID, B_GRID, metric)
    assert set(tuning.grid.values()) == {0.0}
    assert (tuning.k1, tuning.b, tuning.num_queries) == (0.1, 0.0, 3)


def test_a_metric_without_cutoff_is_tuned_over_all_hits(tuned):
    index, dev = tuned
    for metric in ("RR", "AP", "nDCG"):
        grid = index.tune(dev, K1_GRID, B_GRID, metric).grid
        assert grid == pytest.approx(index.tune(dev, K1_GRID, B_GRID, f"{metric}@1000").grid)


@pytest.mark.parametrize("passage", [Passage("bad", "cut \ud83d", "here"), Passage("bad", "", "\ude00")])
def test_half_a_character_is_named_by_its_document_before_anything_is_written(tmp_path, passage):
    collection = Collection("halves", [Passage("good", "", "whole"), passage], {}, {"test": {}})
    with pytest.raises(ValueError, match="halves: document bad holds half a character"):
        BM25.build(collection, tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["cut \ud83d", None, 7, ["apple"]])
def test_a_query_that_is_no_whole_text_is_refused_by_its_id(fruit, text):
    with pytest.raises(ValueError, match=r"query r is .*, expected a text of whole characters"):
        fruit.search({"q": "apple", "r": text})


# --- real data ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "num_documents", "ndcg_at_10", "recall_at_100"),
    [("scifact", 5_183, 0.6789, 0.9253), ("nfcorpus", 3_633, 0.3218, 0.2457)],
)
def test_published_figures_are_met(data_dir, tmp_path, name, num_documents, ndcg_at_10, recall_at_100):
    collection = load_collection(data_dir / name)
    index = BM25.build(collection, tmp_path / name)
    assert index.num_documents == num_documents
    run = index.search(collection.queries, k1=0.9, b=0.4)
    means = evaluate(collection.qrels, run, ["nDCG@10", "R@100"]).means
    assert means == pytest.approx({"nDCG@10": ndcg_at_10, "R@100": recall_at_100}, rel=0, abs=0.0005)


def test_where_queries_are_documents_published_figures_are_met(data_dir, tmp_path):
    if not (data_dir / "arguana").is_dir():
        pytest.skip("put BEIR's arguana into the data folder")
    collection = load_collection(data_dir / "arguana")
    assert len(collection.own_documents) == 1_298
    run = BM25.build(collection, tmp_path / "index").search(collection.queries)
    means = evaluate(collection.qrels, run, ["nDCG@10", "R@100"]).means
    assert means == pytest.approx({"nDCG@10": 0.3970, "R@100": 0.9324}, rel=0, abs=0.0005)


def test_a_relative_folder_is_the_current_one_even_after_java_started(fruit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    collection = Collection("one", [Passage("a", "", "apple")], {"q": "apple"}, {"test": {"q": {"a": 1}}})
    assert list(BM25.build(collection, "index").search({"q": "apple"})["q"]) == ["a"]
    assert (tmp_path / "index" / "lucene").is_dir()
