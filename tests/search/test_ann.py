"""Approximate search beside exact search, which is always the first row: recall as a plain loop counts it."""

from dataclasses import replace

import numpy as np
import pytest
from made_data import debates

from dpr.data.collection import Collection, Passage
from dpr.evaluation.metrics import evaluate
from dpr.search.ann import AnnResult, ann_report, default_grid, pareto, plan_memory, reaching
from dpr.search.engines import SETTINGS
from dpr.search.index import KINDS, build_index

COUNT, DIMENSION, QUERIES = 1_000, 16, 20
GRID = [
    ("faiss-flat", {}),
    ("faiss-hnsw", {"m": 4, "ef_construction": 8, "ef_search": 4}),
    ("faiss-hnsw", {"m": 4, "ef_construction": 8, "ef_search": 500}),
    ("faiss-ivf", {"num_lists": 20, "num_probes": 1}),
    ("faiss-ivf", {"num_lists": 20, "num_probes": 20}),
    ("faiss-ivfpq", {"num_lists": 10, "num_probes": 5, "code_bytes": 4}),
]


@pytest.fixture(scope="module")
def vectors():
    """Passages and queries around the same directions, of all lengths."""
    rng = np.random.default_rng(0)
    passages = rng.normal(size=(COUNT, DIMENSION)).astype(np.float32) * rng.uniform(0.5, 2, size=(COUNT, 1))
    return passages.astype(np.float32), rng.normal(size=(QUERIES, DIMENSION)).astype(np.float32)


@pytest.fixture(scope="module")
def collection(vectors):
    """The passage nearest by cosine is relevant to a query, and so is its neighbour by number."""
    near = np.argmax(cosines(*vectors), axis=1)
    qrels = {f"q{i}": {f"d{best}": 2, f"d{(best + 1) % COUNT}": 1} for i, best in enumerate(near.tolist())}
    return Collection(
        "made up",
        [Passage(f"d{i}", "", f"passage {i}") for i in range(COUNT)],
        {f"q{i}": f"query {i}" for i in range(QUERIES)},
        {"test": qrels},
    )


def cosines(passages, queries):
    """Every cosine in double precision, [Q, N]."""
    unit = [
        v / np.linalg.norm(v, axis=1, keepdims=True) for v in (passages.astype(float), queries.astype(float))
    ]
    return unit[1] @ unit[0].T


@pytest.fixture(scope="module", params=["cosine", "dot"])
def report(request, collection, vectors):
    """Similarity and the report under it."""
    return request.param, ann_report(collection, *vectors, request.param, GRID, rounds=1)


def test_exact_search_is_always_the_first_row_and_everything_is_beside_it(report):
    _, rows = report
    assert [r.kind for r in rows] == ["exact", *(kind for kind, _ in GRID)]
    assert (rows[0].recall_10, rows[0].recall_100, rows[0].ndcg_change) == (1, 1, 0)
    assert [r.exhaustive for r in rows] == [True, True, False, False, False, True, False]
    for row, (_, settings) in zip(rows[1:], GRID, strict=True):
        assert settings.items() <= row.settings.items()


@pytest.mark.parametrize("position", range(len(GRID)))
def test_recall_and_ndcg_are_those_of_a_plain_loop(report, collection, vectors, position):
    similarity, rows = report
    kind, settings = GRID[position]
    scores = (
        cosines(*vectors) if similarity == "cosine" else vectors[1].astype(float) @ vectors[0].T.astype(float)
    )
    index = build_index(kind, vectors[0], collection.doc_ids, similarity, **settings)
    found = index.search(vectors[1], 100)[1]
    for cutoff, measured in ((10, rows[position + 1].recall_10), (100, rows[position + 1].recall_100)):
        hits = [
            len({*np.argsort(-row)[:cutoff].tolist()} & {*positions[:cutoff].tolist()})
            for row, positions in zip(scores, found, strict=True)
        ]
        assert measured == pytest.approx(sum(hits) / QUERIES / cutoff)
    means = [
        evaluate(collection.qrels, i.search_run(list(collection.queries), vectors[1], 100, "x")).means[
            "nDCG@10"
        ]
        for i in (index, build_index("exact", vectors[0], collection.doc_ids, similarity))
    ]
    assert rows[position + 1].ndcg == pytest.approx(means[0])
    assert rows[position + 1].ndcg_change == pytest.approx(means[0] - means[1])
    assert rows[position + 1].bytes_per_vector == index.num_bytes / COUNT


def test_a_wider_search_finds_more_and_a_narrow_one_misses(report):
    _, rows = report
    assert rows[2].recall_10 < rows[3].recall_10
    assert rows[4].recall_10 < rows[5].recall_10 == 1
    assert rows[6].recall_10 < 0.9  # four bytes a vector


def test_a_copy_of_a_passage_may_stand_for_it(collection, vectors):
    doubled = np.concatenate([vectors[0][:500], vectors[0][:500]])
    exact, flat = ann_report(collection, doubled, vectors[1], "cosine", [("faiss-flat", {})], rounds=1)
    assert exact.recall_10 == flat.recall_10 == flat.recall_100 == 1


def test_times_and_speedup_are_of_the_same_search(report):
    for row in report[1]:
        assert row.queries_per_s > 0
        assert row.speedup > 0
        assert row.build_s >= 0


def test_a_narrower_setting_after_a_wider_one_is_not_left_wide(collection, vectors):
    grid = [("faiss-ivf", {"num_lists": 40, "num_probes": 40}), ("faiss-ivf", {"num_lists": 40})]
    _, wide, default = ann_report(collection, *vectors, "dot", grid, rounds=1)
    assert (wide.settings["num_probes"], default.settings["num_probes"]) == (40, 16)
    assert default.recall_100 < wide.recall_100


def test_the_default_grid_runs_whole_and_holds_no_exhaustive_setting_in_disguise(collection, vectors):
    pytest.importorskip("faiss")
    rows = ann_report(collection, *vectors, "cosine", rounds=1)
    assert not any(r.exhaustive for r in rows if r.kind not in ("exact", "faiss-flat", "faiss-sqfp16"))
    assert len(rows) == 1 + len(default_grid(COUNT, DIMENSION))
    assert {r.kind for r in rows} >= {
        "exact",
        "faiss-flat",
        "faiss-sqfp16",
        "faiss-hnsw",
        "faiss-ivf",
        "faiss-ivfpq",
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"depth": 99}, "depth must be at least 100"), ({"rounds": 0}, "rounds at least 1")],
)
def test_too_small_a_depth_or_no_round_is_refused(collection, vectors, settings, message):
    with pytest.raises(ValueError, match=message):
        ann_report(collection, *vectors, "dot", GRID, **settings)


def test_vectors_that_do_not_fit_the_collection_are_refused(collection, vectors):
    with pytest.raises(ValueError, match="999 and 20 vectors for 1000 passages and 20 queries"):
        ann_report(collection, vectors[0][:-1], vectors[1], "dot")
    with pytest.raises(ValueError, match="1000 and 21 vectors"):
        ann_report(collection, vectors[0], np.concatenate([vectors[1], vectors[1][:1]]), "dot")


# --- queries that are documents ----------------------------------------------------------------


def test_a_query_that_is_a_document_is_compared_by_its_other_hits():
    rng = np.random.default_rng(3)
    whole = debates()
    texts = {f"filler-{n}": f"filler text {n}" for n in range(100)}
    passages = [*whole.passages, *(Passage(doc_id, "", text) for doc_id, text in texts.items())]
    debated = replace(whole, passages=passages)
    passage_emb = rng.normal(size=(112, 8)).astype(np.float32)
    passage_emb[1:12:2] = passage_emb[0:12:2] + rng.normal(size=(6, 8)) / 9  # opposites lie side by side
    query_emb = passage_emb[:12] + rng.normal(size=(12, 8)).astype(np.float32) / 99
    grid = [("faiss-flat", {}), ("faiss-ivf", {"num_lists": 2, "num_probes": 2})]
    rows = ann_report(debated, passage_emb, query_emb, "cosine", grid, rounds=1)
    order = np.argsort(-cosines(passage_emb, query_emb), axis=1)
    values = []
    for query_id, positions in zip(debated.queries, order.tolist(), strict=True):
        others = [debated.doc_ids[i] for i in positions if debated.doc_ids[i] != query_id]
        [opposite] = debated.qrels[query_id]
        rank = others.index(opposite) + 1
        values.append(1 / np.log2(rank + 1) if rank <= 10 else 0.0)
    assert [row.ndcg for row in rows] == pytest.approx([np.mean(values)] * 3)
    assert rows[0].ndcg > 0.9  # 0.63 with each query as its own first hit
    assert [row.ndcg_change for row in rows] == [0.0] * 3
    assert [row.recall_10 for row in rows] == [1.0] * 3


@pytest.mark.filterwarnings("error")
def test_queries_that_only_share_ids_with_documents_are_compared_by_all_hits_without_a_warning():
    rng = np.random.default_rng(4)
    passages = [Passage(str(n), "", f"text {n}") for n in range(120)]
    queries = {str(n): f"query {n}" for n in range(5)}
    collection = Collection("numbered", passages, queries, {"test": {q: {q: 1} for q in queries}})
    passage_emb = rng.normal(size=(120, 8)).astype(np.float32)
    [row, _] = ann_report(collection, passage_emb, passage_emb[:5], "cosine", [("faiss-flat", {})], rounds=1)
    assert row.ndcg == 1.0


def made(kind, recall, queries_per_s):
    """A row with this recall and speed."""
    return AnnResult(kind, {"ef_search": 3}, False, recall, 0.5, 0.5, 0.0, 1.0, 4.0, queries_per_s, 1.0)


ROWS = [
    made("exact", 1, 10),
    made("hnsw", 0.99, 50),
    made("hnsw", 0.995, 40),
    made("hnsw", 0.8, 90),
    made("pq", 0.7, 20),
]


def test_the_quickest_setting_with_the_recall_is_named_for_each_kind():
    assert reaching(ROWS, 0.99) == {"hnsw": ROWS[1], "pq": None}
    assert reaching(ROWS, 0.994)["hnsw"] == ROWS[2]
    assert ROWS[1].name == "hnsw ef_search=3"


def test_the_front_is_what_nothing_beats_in_both():
    assert pareto(ROWS) == [ROWS[3], ROWS[1], ROWS[2], ROWS[0]]
    assert pareto([ROWS[1], ROWS[1]]) == [ROWS[1], ROWS[1]]  # equals do not beat each other


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize(("count", "dim"), [(2_000, 96), (6_000, 32)])
def test_a_planned_size_is_the_measured_one(kind, count, dim):
    if kind == "hnswlib":
        pytest.importorskip("hnswlib")
    given = {"m": 8, "ef_construction": 8, "code_bytes": 16}
    settings = {name: value for name, value in given.items() if name in SETTINGS[kind]}
    vectors = np.random.default_rng(0).normal(size=(count, dim)).astype(np.float32)
    index = build_index(kind, vectors, [str(i) for i in range(count)], "dot", **settings)
    assert plan_memory(count, dim, **settings)[kind] == pytest.approx(index.num_bytes, rel=0.02)


def test_vectors_take_four_bytes_a_dimension_and_half_precision_two():
    plan = plan_memory(100_000_000, 384)
    assert plan["exact"] == plan["faiss-flat"] == 100_000_000 * 384 * 4
    assert plan["faiss-sqfp16"] == 100_000_000 * 384 * 2
    assert plan["faiss-ivfpq"] == 100_000_000 * (96 + 8) + 40_000 * 384 * 4 + 256 * 384 * 4
    assert list(plan) == list(SETTINGS)


@pytest.mark.parametrize(("count", "dim"), [(0, 384), (1_000, 0), (-1, 384)])
def test_a_size_below_one_is_refused(count, dim):
    with pytest.raises(ValueError, match="num_passages and dim must be at least 1"):
        plan_memory(count, dim)


def test_a_setting_that_no_kind_has_is_refused():
    with pytest.raises(ValueError, match=r"no kind has the settings \['probes'\]"):
        plan_memory(1_000, 384, probes=3)


def test_a_plan_leaves_out_kinds_that_too_few_passages_could_not_teach():
    codes = {"faiss-ivfpq", "faiss-opq"}
    assert set(KINDS) - set(plan_memory(255, 384)) == codes
    assert set(plan_memory(256, 384)) == set(KINDS)
    assert set(KINDS) - set(plan_memory(1_000, 384, num_lists=1_001)) == {"faiss-ivf", *codes}
