"""How search changes as strangers' documents are added, and approximate search over everything at hand.

    DPR_DATA_DIR=… .venv/bin/python benchmarks/strangers.py [--folder build/strangers]

All collections at hand are encoded once, each into a folder of its own (an hour on two cores), and searched
together. SciFact's and NFCorpus's test queries are asked of their own documents, and then of these among more
and more of the others', in a fixed order. A stranger may answer a query, and nobody has judged it: what is
lost is an upper bound.
"""

import argparse
import csv
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from dpr import (
    BM25,
    BiEncoder,
    Collection,
    ann_report,
    build_index,
    compare,
    encode_collection,
    evaluate,
    load_collection,
)
from dpr.data.loading import find_data
from dpr.data.text import stable_hash
from dpr.provenance import hardware
from dpr.search.vector_shards import VectorShards

ASKED = ("scifact", "nfcorpus")
FOLDERS = {"msmarco-dl": "dl19", "squad": "test", "trec-covid-mini": "test"}
SIZES = (10_000, 20_000, 40_000)
METRIC, DEPTH = "nDCG@10", 100
GRID = [
    ("faiss-sqfp16", {}),
    *(("faiss-hnsw", {"ef_search": ef}) for ef in (16, 64, 256)),
    *(("faiss-ivf", {"num_probes": probes}) for probes in (4, 16, 64)),
    *(
        ("faiss-opq", {"num_probes": probes, "rescored": n})
        for probes, n in ((4, 4), (16, 4), (64, 4), (64, 16))
    ),
]


def collections_at_hand() -> dict[str, Collection]:
    """Name → collection: BEIR folders, the answers of MedQuAD, docstrings."""
    found = {name: load_collection(name) for name in ASKED}
    found |= {name: load_collection(name, split) for name, split in FOLDERS.items()}
    with (find_data("medquad-pairs") / "pairs.tsv").open(encoding="utf-8", newline="") as lines:
        answers = dict.fromkeys(row[1] for row in csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
    found["medquad"] = Collection.from_texts(list(answers))
    for split in ("test", "train"):
        found[f"docstrings-{split}"] = load_collection("docstrings", split)
    return found


def together(at_hand: dict[str, Collection], name: str) -> Collection:
    """One collection's queries and judgements over the passages of all, whose ids begin with their names."""
    passages = [p._replace(doc_id=f"{of}:{p.doc_id}") for of, c in at_hand.items() for p in c.passages]
    qrels = {q: {f"{name}:{d}": g for d, g in found.items()} for q, found in at_hand[name].qrels.items()}
    return Collection(f"{name} and strangers", passages, at_hand[name].queries, {"test": qrels})


def among_strangers(whole: Collection, name: str, vectors: VectorShards, query_emb: np.ndarray) -> None:
    """Print nDCG@10 of BM25 and the encoder for one collection's queries, as strangers are added."""
    ids = whole.doc_ids
    own = {row for row, doc_id in enumerate(ids) if doc_id.startswith(f"{name}:")}
    order = sorted(range(len(ids)), key=lambda row: (row not in own, stable_hash(ids[row])))
    print(f"\n{name}, {len(whole.queries)} queries\n")
    print("| passages | BM25 | strangers in its first ten | encoder | strangers in its first ten |")
    print("|---:|---:|---:|---:|---:|")
    alone = {}
    for size in (len(own), *SIZES, len(ids)):
        rows = np.array(sorted(order[:size]))
        part = replace(whole, passages=[whole.passages[row] for row in rows])
        index = build_index("exact", vectors[rows], part.doc_ids, "cosine")
        with tempfile.TemporaryDirectory() as folder:
            lexical = BM25.build(part, Path(folder) / "bm25").search(whole.queries, DEPTH)
        dense = index.search_run(list(whole.queries), query_emb, DEPTH, "dense", frozenset())
        cells = [f"{size:,}"]
        for system, run in (("BM25", lexical), ("encoder", dense)):
            shown = f"{evaluate(whole.qrels, run, [METRIC]).means[METRIC]:.4f}"
            if run is not alone.setdefault(system, run):
                [against] = compare(whole.qrels, {"alone": alone[system], "now": run}, "alone")
                shown += f" (p {against.p_value:.3f})"
            first = [d for hits in run.values() for d in list(hits)[:10]]
            cells += [shown, f"{np.mean([not d.startswith(f'{name}:') for d in first]):.1%}"]
        print("|", " | ".join(cells), "|", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("build/strangers"))
    given = parser.parse_args()
    at_hand = collections_at_hand()
    encoder = BiEncoder.from_pretrained("all-MiniLM-L6-v2")
    encoded = {name: encode_collection(given.folder / name, encoder, c) for name, c in at_hand.items()}
    vectors = VectorShards([part.vectors for part in encoded.values()])
    counts = ", ".join(f"{name} {len(c.passages):,}" for name, c in at_hand.items())
    print(f"{len(vectors):,} passages ({counts}), {encoder.name}, {hardware()}")
    for name in ASKED:
        whole = together(at_hand, name)
        query_emb = encoder.encode_queries(list(whole.queries.values()))
        among_strangers(whole, name, vectors, query_emb)
        print(
            "\n| index | recall@10 | recall@100 | nDCG@10 | change | bytes a vector | build s | times exact |"
        )
        print("|---|---:|---:|---:|---:|---:|---:|---:|")
        for row in ann_report(whole, vectors, query_emb, "cosine", GRID):
            measures = (row.recall_10, row.recall_100, row.ndcg)
            cells = [row.name, *(f"{value:.4f}" for value in measures), f"{row.ndcg_change:+.4f}"]
            cells += [f"{row.bytes_per_vector:,.0f}", f"{row.build_s:.1f}", f"{row.speedup:.2f}"]
            print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
