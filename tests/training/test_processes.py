"""Training under torchrun: two processes have the losses and weights of one, also after one is killed."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from dpr.data.examples import Example
from dpr.data.training_data import TrainingData
from dpr.models.bi_encoder import BiEncoder
from dpr.reranking.reranker import Reranker
from dpr.reranking.training import RerankerTrainer
from dpr.training.bi_encoder import BiEncoderTrainer
from dpr.training.settings import RerankerSettings, TrainingSettings

LOGGED = (
    "loss",
    "grad_norm",
    "in_batch_accuracy",
    "chance_loss",
    "eval_loss",
    "eval_nDCG@10",
    "learning_rate",
)
BASE = {
    "num_steps": 6,
    "batch_size": 5,
    "learning_rate": 3e-3,
    "log_every": 1,
    "dropout": 0.0,
    "eval_every": 2,
}
LENGTHS = {"query_max_length": 8, "passage_max_length": 16}
TRAININGS = {  # name → settings
    "plain": {},
    "negatives, short passes": {"num_negatives": 2, "pass_tokens": 32},
    "cached": {"num_negatives": 1, "gradient_caching": True, "pass_tokens": 24},
    "both ways": {"symmetric": True, "all_positives": True, "accumulation": 2},
    "checkpoints": {"activation_checkpointing": True},
    "two encoders": {"temperature": 0.2},
    "taught": {"loss": "margin_mse", "contrastive_weight": 0.5, "num_negatives": 2},
    "frozen passages": {"loss": "kl_divergence", "frozen_passages": True, "num_negatives": 2},
}

SCRIPT = """
import copy, json, os, signal, sys, threading, time
from pathlib import Path

from dpr.data.collection import Collection, Passage
from dpr.data.examples import Example
from dpr.data.training_data import TrainingData
from dpr.models.bi_encoder import BiEncoder
from dpr.models.two_encoders import TwoEncoders
from dpr.training.bi_encoder import train
from dpr.training.settings import DistillationSettings, TrainingSettings

checkpoint, out = sys.argv[1], Path(sys.argv[2])
trainings, kill_at = json.loads(sys.argv[3]), int(sys.argv[4])
words = ["mask", "sun", "virus", "hand", "bat", "zinc", "lung", "soap", "water", "milk", "snow", "salt"]
texts = [f"{word} and {words[i - 1]} are found in winter " * (1 + i % 3) for i, word in enumerate(words)]
passages = {f"d{i}": text for i, text in enumerate(texts)}
examples = [
    Example(
        f"q{i}",
        f"what of {words[i]} now",
        {f"d{i}": 2.0, f"d{(i + 8) % 12}": 1.0},
        (f"d{i - 2}", f"d{i - 3}"),
    )
    for i in range(3, 11)
]
data = TrainingData("made", examples, passages)
scores = {e.query_id: {d: 0.5 * at for at, d in enumerate((*e.positives, *e.negatives))} for e in examples}
held_out = Collection(
    "held",
    [Passage(doc_id, "", text) for doc_id, text in passages.items()],
    {"v1": "about milk", "v2": "about salt", "v3": "no sun"},
    {"dev": {"v1": {"d9": 1}, "v2": {"d11": 1}, "v3": {"d1": 1}}},
    "dev",
)
lengths = {"query_max_length": 8, "passage_max_length": 32}
one = BiEncoder.from_pretrained(checkpoint, device="cpu", pooling="mean", **lengths)

def killed(folder):
    path = folder / "history.jsonl"
    while not path.exists() or path.read_text().count("\\n") < kill_at:
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)

for name, settings in trainings.items():
    kind = DistillationSettings if "loss" in settings else TrainingSettings
    encoder = TwoEncoders(one, copy.deepcopy(one)) if name in ("two encoders", "frozen passages") else one
    given = data.with_scores(scores) if "loss" in settings else data
    if kill_at and os.environ.get("RANK") == "1":
        threading.Thread(target=killed, args=(out / name,), daemon=True).start()
    trained = train(encoder, given, out / name, kind(**settings), validation=held_out)
    print(name, trained.best_step, flush=True)
"""


def run(folder, plain_folder, trainings, num_processes, kill_at=0):
    """Train in so many processes; the finished process."""
    script = folder / "train.py"
    script.write_text(SCRIPT, encoding="utf-8")
    command = [sys.executable]
    if num_processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num_processes)]
    out = folder / str(num_processes)
    command += [str(script), str(plain_folder), str(out), json.dumps(trainings), str(kill_at)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def history(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_alike(one: Path, several: Path) -> None:
    """Losses to 1e-5, weights too."""
    lines, others = history(one), history(several)
    assert [line["step"] for line in lines] == [line["step"] for line in others]
    for line, other in zip(lines, others, strict=True):
        for field in LOGGED:
            assert (field in line) == (field in other)
            if field in line:
                assert other[field] == pytest.approx(
                    line[field], rel=1e-4 if field == "grad_norm" else 1e-5, abs=1e-6
                )
    files = sorted(path.relative_to(one) for path in (one / "model").rglob("*.safetensors"))
    assert files
    for file in files:
        weights, other = (safetensors.numpy.load_file(folder / file) for folder in (one, several))
        assert weights.keys() == other.keys()
        for name, values in weights.items():
            if name.endswith("key.bias"):  # the softmax takes it away: its gradient is rounding alone
                continue
            np.testing.assert_allclose(other[name], values, rtol=1e-3, atol=2e-5, err_msg=f"{file} {name}")


@pytest.fixture(scope="module")
def made(tmp_path_factory, plain_folder):
    """All trainings, in one process and in two."""
    folder = tmp_path_factory.mktemp("processes")
    trainings = {name: BASE | settings for name, settings in TRAININGS.items()}
    for num_processes in (1, 2):
        ended = run(folder, plain_folder, trainings, num_processes)
        assert ended.returncode == 0, ended.stderr[-3000:]
    return folder


@pytest.mark.parametrize("name", TRAININGS)
def test_two_processes_have_the_losses_and_weights_of_one(made, name):
    assert_alike(made / "1" / name, made / "2" / name)


def test_one_process_writes(made):
    for name in TRAININGS:
        one, two = ({p.relative_to(made / n / name) for p in (made / n / name).rglob("*")} for n in "12")
        assert {p for p in one if "events" not in p.name} == {p for p in two if "events" not in p.name}
        assert len([p for p in two if "events" in p.name]) == 1


def test_a_training_whose_second_process_is_killed_goes_on_from_its_checkpoint(made, tmp_path, plain_folder):
    trainings = {"plain": BASE}
    killed = run(tmp_path, plain_folder, trainings, 2, kill_at=4)
    assert killed.returncode != 0
    folder = tmp_path / "2" / "plain"
    assert not (folder / "model").exists()
    steps = len([line for line in history(folder) if "loss" in line])
    assert steps < BASE["num_steps"]
    ended = run(tmp_path, plain_folder, trainings, 2)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert_alike(made / "1" / "plain", folder)
    before = (folder / "history.jsonl").stat().st_mtime_ns
    read = run(tmp_path, plain_folder, trainings, 2)  # a finished one
    assert (read.returncode, read.stdout) == (0, ended.stdout)
    assert (folder / "history.jsonl").stat().st_mtime_ns == before


def test_what_has_no_shares_is_refused(monkeypatch, plain_folder):
    examples = [Example(f"q{i}", f"sun {i}", {f"d{i}": 1.0}, ("e",)) for i in range(4)]
    data = TrainingData("made", examples, {"e": "c d"} | {f"d{i}": f"a b {i}" for i in range(4)})
    encoder = BiEncoder.from_pretrained(plain_folder, device="cpu", pooling="mean", **LENGTHS)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="only bi-encoders are trained in several processes"):
        RerankerTrainer(
            Reranker.from_encoder(encoder, 16, "cls"),
            data,
            None,
            RerankerSettings(batch_size=2, num_steps=1, num_negatives=1),
        )
    with pytest.raises(ValueError, match="batch_size 2 must be at least the 3 processes"):
        BiEncoderTrainer(encoder, data, None, TrainingSettings(batch_size=2, num_steps=1))
