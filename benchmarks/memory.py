"""The most memory that each stage of the notebooks takes, each in a process of its own.

    .venv/bin/python benchmarks/memory.py [--steps 6] [--only STAGE …]

all-MiniLM-L6-v2 in float32 at the settings of the profiles `scifact` and `nfcorpus`, and Gemma 3 270M. What
is learnt plays no part here, so hard negatives and a teacher's scores are BM25's. The whole process counts,
Java and the libraries' files too.
"""

import argparse
import copy
import logging
import subprocess
import sys
import tempfile
from dataclasses import replace

from dpr import (
    BM25,
    BiEncoder,
    Reranker,
    TrainingData,
    TrainingSettings,
    TwoEncoders,
    encode_collection,
    load_collection,
    load_training_data,
    mine_negatives,
    rerank,
)
from dpr.experiments.profiles import PROFILES
from dpr.generation.decoding import Decoding
from dpr.generation.llm import CausalGenerator
from dpr.provenance import hardware
from dpr.reranking.training import RerankerTrainer
from dpr.training.bi_encoder import BiEncoderTrainer
from dpr.training.trainer import memory_bytes


class Stages:
    """The stages, as methods; each returns what it is called in the table.

    Args:
        folder: A folder for an index and vectors.
        steps: Steps of each training.
    """

    def __init__(self, folder: str, steps: int):
        self.folder, self.steps = folder, steps

    def _encoder(self, length: int) -> BiEncoder:
        return BiEncoder.from_pretrained("all-MiniLM-L6-v2", passage_max_length=length)

    def _learnt(self, name: str, split: str = "train", scored: bool = False) -> TrainingData:
        collection = load_collection(name, split)
        data = TrainingData.from_collection(collection)
        hits = BM25.build(collection, f"{self.folder}/index").search(collection.queries, 50)
        corpus = {p.doc_id: p.contents for p in collection.passages}
        drawn = mine_negatives(data, corpus, hits, num_negatives=10, ranks=(1, 50)).negatives
        data = data.with_negatives(drawn, corpus).with_positives(lambda e: e.positives if e.negatives else {})
        return data.with_scores(hits, missing_score=0.0) if scored else data

    def _train(self, encoder, data, settings, **more) -> None:
        settings = replace(settings, num_steps=self.steps, eval_every=0, log_every=1, precision="float32")
        BiEncoderTrainer(encoder, data, None, settings, **more).train()

    def encoding(self) -> str:
        encode_collection(
            f"{self.folder}/vectors", self._encoder(256), load_collection("scifact").sample(600, 10)
        )
        return "encoding, 256 tokens"

    def writing(self) -> str:
        writer = CausalGenerator.from_pretrained("gemma-3-270m", passage_max_length=256)
        texts = [p.contents for p in load_collection("scifact").passages[:16]]
        list(writer.generate_blocks([texts], Decoding("sample", num_queries=5), [0]))
        return "writing 5 queries a passage, Gemma 3 270M (08)"

    def reranking(self) -> str:
        collection = load_collection("scifact")
        queries = dict(list(collection.queries.items())[:5])
        run = BM25.build(collection, f"{self.folder}/index").search(queries, 100)
        reranker = Reranker.from_encoder(self._encoder(256), 192)
        rerank(run, collection, reranker, depth=100)
        return "reranking, 192 tokens (09)"

    def training(self) -> str:
        profile = PROFILES["scifact"]
        self._train(self._encoder(profile.training_length), self._learnt("scifact"), profile.training)
        return "SciFact, batch 32 with a hard negative each, 200 tokens (04)"

    def training_positives(self) -> str:
        profile = PROFILES["nfcorpus"]
        data = TrainingData.from_collection(load_collection("nfcorpus", "train"))
        self._train(self._encoder(profile.training_length), data, profile.training)
        return "NFCorpus, batch 288 of 48 passages, 200 tokens (04)"

    def triples(self, **more) -> str:
        settings = TrainingSettings(batch_size=64, dropout=0.0, **more)
        self._train(self._encoder(200), load_training_data("squad-triples"), settings)
        return "SQuAD's triples, batch 64 with a hard negative each, 200 tokens (04)"

    def triples_cached(self) -> str:
        return f"{self.triples(gradient_caching=True)}, gradient caching"

    def written(self) -> str:
        how = PROFILES["scifact"].synthetic
        self._train(self._encoder(how.passage_max_length), self._learnt("scifact"), how.training)
        return "written queries, batch 64 with a hard negative each, 128 tokens (08)"

    def frozen(self) -> str:
        encoder, data = self._encoder(256), self._learnt("scifact", scored=True)
        two = TwoEncoders(copy.deepcopy(encoder), encoder)
        self._train(two, data, PROFILES["scifact"].synthetic.distillation)
        return "distillation, batch 64, frozen passages (08)"

    def cross_encoder(self) -> str:
        profile = PROFILES["scifact"].reranking
        reranker = Reranker.from_encoder(self._encoder(256), profile.max_length)
        settings = replace(
            profile.judged, num_steps=self.steps, eval_every=0, log_every=1, precision="float32"
        )
        RerankerTrainer(reranker, self._learnt("scifact"), None, settings).train()
        return "cross-encoder, batch 8 of 4 passages, 192 tokens (09)"

    def distillation(self) -> str:
        profile = PROFILES["scifact"]
        data = self._learnt("scifact", scored=True)
        self._train(self._encoder(profile.training_length), data, profile.reranking.distillation)
        return "distillation, batch 16 with 3 negatives each, 200 tokens (09)"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--only", nargs="+", default=[n for n in vars(Stages) if not n.startswith("_")])
    parser.add_argument("--here", action="store_true", help="in this process, for one stage")
    given = parser.parse_args()
    if given.here:
        logging.getLogger("transformers").setLevel(logging.ERROR)
        with tempfile.TemporaryDirectory() as folder:
            name = getattr(Stages(folder, given.steps), given.only[0])()
            print(f"| {name} | {memory_bytes() / 2**30:.2f} |")
        return
    print(
        f"{hardware()}, {given.steps} steps of each training\n\n| stage | GiB |\n|---|---:|",
        flush=True,
    )
    for name in given.only:
        again = [sys.executable, __file__, "--here", "--only", name, "--steps", str(given.steps)]
        done = subprocess.run(again, capture_output=True, text=True)
        print(done.stdout.strip() if done.returncode == 0 else done.stderr[-2000:], flush=True)


if __name__ == "__main__":
    main()
