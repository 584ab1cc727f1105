"""Values that others published for the same systems and collections, to check ours against."""

from typing import NamedTuple

ANSERINI = "Anserini regressions, BEIR flat, k1 0.9, b 0.4"
MTEB = "MTEB result files"
GPL = "GPL paper (Wang et al. 2022), table 2"


class Published(NamedTuple):
    """One published result.

    Attributes:
        value: The metric's mean.
        tolerance: Largest difference from our value, up or down, that needs no explanation.
        source: The publication.
    """

    value: float
    tolerance: float
    source: str


def _row(metric: str, system: str, source: str, tolerance: float, **values: float) -> dict:
    return {
        (collection.replace("_", "-"), system, metric): Published(value, tolerance, source)
        for collection, value in values.items()
    }


# A name here is that of one of our systems only where it is the same system: `bm25-docT5query` is BM25 over
# documents expanded by a T5 trained on all of MS MARCO, which no writer of `bm25-doc2query` is.
# Tolerances: BM25 is deterministic; results of encoders vary with library versions and text lengths.
PUBLISHED = {
    **_row("nDCG@10", "bm25", ANSERINI, 0.0005, scifact=0.6789, nfcorpus=0.3218, trec_covid=0.5947),
    **_row("R@100", "bm25", ANSERINI, 0.0005, scifact=0.9253, nfcorpus=0.2457, trec_covid=0.1091),
    **_row("nDCG@10", "bm25", ANSERINI, 0.0005, arguana=0.3970),
    **_row("R@100", "bm25", ANSERINI, 0.0005, arguana=0.9324),
    **_row("nDCG@10", "all-MiniLM-L6-v2", MTEB, 0.002, arguana=0.5017),
    **_row("nDCG@10", "all-MiniLM-L6-v2", MTEB, 0.002, scifact=0.6451, nfcorpus=0.3159, trec_covid=0.4723),
    **_row("R@100", "all-MiniLM-L6-v2", MTEB, 0.002, scifact=0.925, nfcorpus=0.3115),
    **_row("nDCG@10", "all-MiniLM-L12-v2", MTEB, 0.002, scifact=0.6264, nfcorpus=0.3225, trec_covid=0.5082),
    **_row("nDCG@10", "all-mpnet-base-v2", MTEB, 0.002, scifact=0.6557, nfcorpus=0.3329, trec_covid=0.5133),
    **_row("nDCG@10", "bm25-docT5query", GPL, 0.01, scifact=0.675, nfcorpus=0.328, trec_covid=0.713),
    **_row("nDCG@10", "bm25-cross-encoder", GPL, 0.01, scifact=0.688, nfcorpus=0.350, trec_covid=0.757),
}


def published(collection: str, system: str, metric: str = "nDCG@10") -> Published | None:
    """The published result of a system for the test queries of a full collection, or None."""
    return PUBLISHED.get((collection, system, metric))
