"""Tracking: the same history in every file, at every moment, with the types it had."""

import json
import os
import struct
import sys

import pytest
from tensorboardX.proto.event_pb2 import Event
from transformers import TrainerControl, TrainerState, TrainingArguments

from dpr.training.tracking import FileTracker, ModelKind, NeptuneTracker, flatten, model_card, tensorboard

ABOUT = {
    "settings": {"num_steps": 4, "learning_rate": 3e-5, "symmetric": False, "patience": None},
    "data": {"name": "made", "num_queries": 1234, "fingerprint": "0123456789abcdef"},
    "start": {
        "model": "tiny-bert",
        "encoders": 1,
        "pooling": "mean",
        "similarity": "cosine",
        "query_max_length": 6,
        "passage_max_length": 32,
    },
    "validation": {"collection": "held", "split": "dev", "scope": "full corpus"},
    "tags": ["first try", "tiny"],
    "commit": "0123456789ab",
    "hardware": "a machine, 2 cores",
    "versions": {"torch": "2.13.0"},
}
READS = "Pooling mean, similarity cosine, queries cut at 6 tokens and passages at 32; 1 encoder."
KIND = ModelKind("A bi-encoder", READS, "sentence-transformers", "sentence-similarity")
TRAIN = {"loss": 2.5, "learning_rate": 1e-5, "step_s": 0.5}
EVALUATION = {"eval_nDCG@10": 0.25, "eval_R@100": 1.0, "eval_loss": 2.0}


@pytest.fixture
def folder(tmp_path):
    """A run's folder with its description."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "training.json").write_text(json.dumps(ABOUT))
    return tmp_path / "run"


class Run:
    """The Trainer's side of a run: what it tells a callback, and when."""

    def __init__(self, tracker, folder, history=()):
        step = history[-1]["step"] if history else 0
        self.args = TrainingArguments(
            output_dir=str(folder / "checkpoints"), per_device_train_batch_size=8, use_cpu=True
        )
        self.state = TrainerState(global_step=step, max_steps=4, log_history=list(history))
        self.tracker, self.control = tracker, TrainerControl()
        tracker.on_train_begin(self.args, self.state, self.control)

    def step(self, *lines):
        """Take a step and log some lines."""
        self.state.global_step += 1
        self.tracker.on_step_end(self.args, self.state, self.control)
        for logs in lines:
            self.state.log_history.append({**logs, "step": self.state.global_step})
            self.tracker.on_log(self.args, self.state, self.control, logs=logs)

    def end(self):
        """End training."""
        self.tracker.on_train_end(self.args, self.state, self.control)
        return self


def short(tracker, folder):
    """A run of two steps and an evaluation."""
    run = Run(tracker, folder)
    run.step(TRAIN, EVALUATION)
    run.step({**TRAIN, "loss": 1.5})
    return run.end()


def stopped(make_tracker, folder, losses):
    """The history of a training that was stopped; its TensorBoard file is some seconds old."""
    run = Run(make_tracker(folder), folder)
    for loss in losses:
        run.step({**TRAIN, "loss": loss}, EVALUATION)
    run.end()
    for path in folder.glob("tensorboard/*"):
        path.rename(path.with_name("events.out.tfevents.1.earlier"))
    return run.state.log_history


def read_lines(folder):
    """The history as JSON lines have it."""
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def read_tensorboard(folder):
    """What TensorBoard would show: tag → step → value.

    A file is a series of records: length as uint64, its checksum, a protocol buffer, its checksum. One that
    starts at a step hides what files before it have from that step on.
    """
    shown = {}
    for path in sorted((folder / "tensorboard").iterdir()):
        content, start = path.read_bytes(), 0
        while start < len(content):
            (length,) = struct.unpack("<Q", content[start : start + 8])
            event = Event.FromString(content[start + 12 : start + 12 + length])
            start += 16 + length
            if event.session_log.status == 1:
                shown = {
                    tag: {s: v for s, v in values.items() if s < event.step} for tag, values in shown.items()
                }
            for value in event.summary.value:
                if not value.HasField("tensor"):
                    shown.setdefault(value.tag, {})[event.step] = value.simple_value
    return shown


# --- files -------------------------------------------------------------------------------------


def test_the_file_has_the_whole_history_after_every_line(folder):
    run = Run(FileTracker(folder), folder)
    assert not (folder / "history.jsonl").exists()
    for number in range(1, 5):
        run.step(*[TRAIN, EVALUATION][: 1 + number % 2])
        assert read_lines(folder) == run.state.log_history
    run.end()


def test_a_training_gone_on_with_keeps_the_lines_of_its_earlier_part(folder):
    kept = stopped(FileTracker, folder, [4.0, 3.0, 2.0])[:4]  # after the checkpoint of step 2
    run = Run(FileTracker(folder), folder, kept)
    run.step({**TRAIN, "loss": 1.0})
    run.end()
    assert [line["loss"] for line in read_lines(folder) if "loss" in line] == [4.0, 3.0, 1.0]
    assert read_lines(folder) == run.state.log_history


def test_tensorboard_shows_the_history(folder):
    short(tensorboard(folder, None), folder)
    shown = read_tensorboard(folder)
    assert shown["train/loss"] == {1: 2.5, 2: 1.5}
    assert shown["train/learning_rate"] == pytest.approx({1: 1e-5, 2: 1e-5})
    assert {tag: values for tag, values in shown.items() if tag.startswith("eval/")} == {
        "eval/nDCG_10": {1: 0.25},
        "eval/R_100": {1: 1.0},
        "eval/loss": {1: 2.0},
    }
    assert len(shown) == 6


def test_tensorboard_hides_what_came_after_the_checkpoint_that_is_gone_on_from(folder):
    kept = stopped(lambda f: tensorboard(f, None), folder, [4.0, 3.0, 2.0])[:4]
    run = Run(tensorboard(folder, folder / "checkpoints" / "checkpoint-2"), folder, kept)
    run.step({**TRAIN, "loss": 1.0})
    run.end()
    shown = read_tensorboard(folder)
    assert shown["train/loss"] == {1: 4.0, 2: 3.0, 3: 1.0}
    assert list(shown["eval/loss"]) == [1, 2]


def test_the_bar_starts_where_the_run_goes_on(folder, capsys):
    run = Run(FileTracker(folder), folder, [{**TRAIN, "step": 2}])
    run.step(TRAIN)
    run.step(TRAIN)
    run.end()
    last = capsys.readouterr().err.rstrip().split("\r")[-1]
    assert last.startswith("run: 100%")
    assert "4/4" in last
    assert "loss 2.500, lr 1.0e-05, 16 examples/s" in last


# --- Neptune -----------------------------------------------------------------------------------


def test_flat_settings_keep_their_types_and_lose_what_is_none():
    assert flatten(ABOUT["settings"]) == {"num_steps": 4, "learning_rate": 3e-5, "symmetric": False}
    flat = flatten({"a": {"b": {"c": 1}, "d": "x"}, "e": 2.0, "f": True, "g": {}, "h": {"i": None}})
    assert flat == {"a/b/c": 1, "a/d": "x", "e": 2.0, "f": True}
    assert [type(value) for value in flat.values()] == [int, str, float, bool]


def test_without_the_package_one_warning_says_how_to_get_it(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "neptune", None)
    with pytest.warns(UserWarning, match="pip install neptune-client==1.14.0.post2 brings it") as caught:
        short(NeptuneTracker(), folder)
    assert len(caught) == 1


@pytest.fixture
def neptune(tmp_path, monkeypatch):
    """Neptune itself, without a token, writing below the test's folder."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("NEPTUNE_")]:
        monkeypatch.delenv(name)
    return pytest.importorskip("neptune")


def operations(folder):
    """What an offline run has on disk, as (operation, path, value)."""
    found = []
    for path in folder.glob(".neptune/offline/run__*/data-*.log"):
        for line in path.read_text().replace("}{", "}\n{").splitlines():
            record = json.loads(line)["obj"]
            value = record.get("value", record.get("values"))
            found.append((record["type"], "/".join(record["path"]), value))
    return found


def test_neptune_gets_every_setting_under_its_type_and_tags_as_a_list(neptune, folder, tmp_path):
    short(NeptuneTracker(), folder)
    found = operations(tmp_path)
    assert ("AssignInt", "settings/num_steps", 4) in found
    assert ("AssignFloat", "settings/learning_rate", 3e-5) in found
    assert ("AssignBool", "settings/symmetric", False) in found
    assert ("AssignString", "start/pooling", "mean") in found
    assert [(kind, sorted(v)) for kind, path, v in found if path == "sys/tags"] == [
        ("AddStrings", ["first try", "tiny"])
    ]
    losses = [value for kind, path, value in found if (kind, path) == ("LogFloats", "history/loss")]
    assert [(v["value"], v["step"]) for values in losses for v in values] == [(2.5, 1), (1.5, 2)]
    assert "settings/patience" not in {path for _, path, _ in found}


def test_neptune_can_be_tried_without_leaving_anything(neptune, folder, tmp_path):
    short(NeptuneTracker("debug"), folder)
    assert operations(tmp_path) == []


@pytest.mark.parametrize(
    "reason",
    [
        "NeptuneMissingApiTokenException",
        "NeptuneMissingApiTokenException: .*[Tt]oken",
    ],
)
def test_without_a_token_one_warning_says_so_and_training_goes_on(neptune, folder, reason):
    with pytest.warns(UserWarning, match=f"Neptune is left out: {reason}") as caught:
        short(NeptuneTracker("async", "team/project"), folder)
    assert len([w for w in caught if "left out" in str(w.message)]) == 1


# --- the model card ----------------------------------------------------------------------------


def test_the_model_card_has_the_best_line_and_every_setting_with_a_value():
    history = [
        {"loss": 2.0, "step": 2},
        {**EVALUATION, "step": 2},
        {"loss": 1.0, "step": 4},
        {**EVALUATION, "eval_nDCG@10": 0.125, "step": 4},
    ]
    finished = {"best_step": 2, "steps": 4, **ABOUT}
    card = model_card("my-model", KIND, finished, history)
    header, _, text = card.removeprefix("---\n").partition("---\n")
    assert "tags: [sentence-transformers, dense-passage-retrieval]" in header.splitlines()
    assert text.startswith("# my-model\n")
    assert "from `tiny-bert` on `made` (1,234 queries)" in text
    assert "commit `0123456789ab`, 4 steps on a machine, 2 cores; these are the weights of step 2." in text
    assert "A bi-encoder fine-tuned" in text
    assert READS in text
    assert "The dev queries of `held`, full corpus:" in text
    assert [line for line in text.splitlines() if "@" in line] == [
        "| nDCG@10 | 0.2500 |",
        "| R@100 | 1.0000 |",
    ]
    for part in ("settings", "data", "start", "validation", "versions"):
        for path, value in flatten({part: ABOUT[part]}).items():
            assert f"| {path} | {value} |" in text.splitlines()
    assert "patience" not in text


def test_the_model_card_of_a_run_without_validation_shows_no_result():
    finished = {"best_step": 4, "steps": 4, **ABOUT, "validation": None}
    card = model_card("my-model", KIND, finished, [{"loss": 2.0, "step": 2}])
    assert "Validation" not in card
    assert "validation" not in card
