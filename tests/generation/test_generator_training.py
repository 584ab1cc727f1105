"""Training a generator: the loss of a plain loop, and selection by ROUGE."""

import json
from dataclasses import replace

import pytest
import torch

from dpr.data.examples import Example
from dpr.data.training_data import TrainingData
from dpr.evaluation.metrics import score_texts
from dpr.generation.collator import IGNORED, GeneratorCollator, read_passages
from dpr.generation.decoding import Decoding
from dpr.generation.generator import QueryGenerator
from dpr.generation.training import train_generator
from dpr.training.dataset import Record, TrainingSequence
from dpr.training.settings import GeneratorSettings

TOPICS = ["masks", "sunlight", "viruses", "hands", "bats", "zinc", "lungs", "soap"]
LENGTHS = {"passage_max_length": 30, "query_max_length": 20}
SHORT = GeneratorSettings(num_steps=6, batch_size=4, learning_rate=3e-3, log_every=1, dropout=0.0)


@pytest.fixture(scope="module")
def generator(t5_folder):
    return QueryGenerator.from_pretrained(t5_folder, device="cpu", **LENGTHS)


def made(topics):
    """A question a topic, each with a passage; the second shares the first's passage."""
    passages = {f"d-{t}": f"{t} are what this text is about, in some words" for t in topics}
    examples = [Example(f"q-{t}", f"what is it about {t}", {f"d-{t}": 1}) for t in topics]
    examples.append(Example("q-again", f"tell me of {topics[0]}", {f"d-{topics[0]}": 1}))
    return TrainingData("made", examples, passages)


DATA, HELD_OUT = made(TOPICS[:5]), made(TOPICS[5:])
HELD_OUT = replace(HELD_OUT, examples=[replace(e, query=f"{e.query} now") for e in HELD_OUT.examples])


def test_labels_end_with_the_end_and_padding_is_ignored(generator):
    sequence = TrainingSequence(DATA, 4, 1, 0, 0)
    records = [sequence[i] for i in range(4)]
    batch = GeneratorCollator(generator, DATA)(records)
    tokenizer, end = generator.tokenizer, generator.tokenizer.eos_token_id
    for record, labels, before, row in zip(
        records, batch["labels"], batch["decoder_input_ids"], batch["rows"], strict=True
    ):
        ids = batch["input_ids"][row]
        own = [*tokenizer(record.example.query, add_special_tokens=False)["input_ids"][:19], end]
        assert labels.tolist() == own + [IGNORED] * (len(labels) - len(own))
        assert before.tolist()[: len(own)] == [tokenizer.pad_token_id, *own[:-1]]
        assert set(before.tolist()[len(own) :]) <= {end, tokenizer.pad_token_id}
        passage = tokenizer(DATA.passages[record.positive], truncation=True, max_length=30)["input_ids"]
        assert ids.tolist()[: len(passage)] == passage


def test_a_passage_is_read_once_for_all_of_its_queries(generator):
    collator = GeneratorCollator(generator, DATA)
    records = [Record(e, next(iter(e.positives)), ()) for e in DATA.examples]
    together = collator(records)
    assert len(together["input_ids"]) == len(records) - 1  # the first and the last share one
    assert together["rows"].tolist() == [0, 1, 2, 3, 4, 0]
    generator.model.eval()
    with torch.inference_mode():
        logits = generator.model(**read_passages(generator.model, together)).logits
        for record, row, labels in zip(records, logits, together["labels"], strict=True):
            alone = collator([record])
            fields = {name: alone[name] for name in ("input_ids", "attention_mask", "decoder_input_ids")}
            expected = generator.model(**fields).logits[0]
            assert torch.allclose(row[: len(expected)], expected, atol=1e-5)
            assert len(expected) == (labels != IGNORED).sum()


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_the_first_loss_is_the_smoothed_cross_entropy_of_the_real_tokens(generator, tmp_path, share):
    settings = replace(SHORT, num_steps=1, label_smoothing=share)
    trained = train_generator(generator, DATA, tmp_path / "run", settings)
    sequence = TrainingSequence(DATA, 4, 1, 0, 0)
    total, count = 0.0, 0
    generator.model.eval()
    for record in (sequence[i] for i in range(4)):
        batch = GeneratorCollator(generator, DATA)([record])
        with torch.inference_mode():
            logits = generator.model(
                input_ids=batch["input_ids"], decoder_input_ids=batch["decoder_input_ids"]
            ).logits[0]
        for label, row in zip(batch["labels"][0], logits, strict=True):
            likelihoods = row.double().log_softmax(0)
            total -= float((1 - share) * likelihoods[label] + share * likelihoods.mean())
            count += 1
    assert trained.history[0]["loss"] == pytest.approx(total / count, rel=1e-4)


def test_batches_of_one_step_weigh_each_token_alike(generator, tmp_path):
    """Two batches of two are one of four, though their queries differ in length."""
    one = train_generator(generator, DATA, tmp_path / "one", replace(SHORT, num_steps=1))
    settings = replace(SHORT, num_steps=1, batch_size=2, accumulation=2)
    two = train_generator(generator, DATA, tmp_path / "two", settings)
    for field in ("loss", "grad_norm"):
        assert two.history[0][field] == pytest.approx(one.history[0][field], rel=1e-4)
    sequence = TrainingSequence(DATA, 4, 1, 0, 0)
    batch = GeneratorCollator(generator, DATA)([sequence[i] for i in range(4)])
    lengths = (batch["labels"] != IGNORED).sum(dim=1).tolist()
    assert sum(lengths[:2]) != sum(lengths[2:])


@pytest.mark.parametrize("start", ["t5", "a warm start"])
def test_training_learns_and_keeps_the_caller_as_it_was(generator, plain_folder, tmp_path, start):
    if start == "a warm start":
        generator = QueryGenerator.warm_started(plain_folder, 1, device="cpu", **LENGTHS)
    before = generator.fingerprint
    trained = train_generator(
        generator, DATA, tmp_path / "run", replace(SHORT, num_steps=40, learning_rate=2e-2)
    )
    losses = [line["loss"] for line in trained.history]
    assert losses[-1] < losses[0] / 2
    assert generator.fingerprint == before != trained.generator.fingerprint
    again = QueryGenerator.from_pretrained(tmp_path / "run" / "model", device="cpu")
    assert again.fingerprint == trained.generator.fingerprint
    assert "A query generator fine-tuned from" in (tmp_path / "run" / "model" / "README.md").read_text()
    assert all(line["tokens_per_s"] > 0 for line in trained.history)
    assert trained.generator.precision == "float32"


def test_what_was_trained_in_half_precision_writes_in_it(generator, tmp_path):
    settings = replace(SHORT, num_steps=1, precision="bfloat16")
    assert train_generator(generator, DATA, tmp_path / "run", settings).generator.precision == "bfloat16"


def test_the_checkpoint_taken_is_the_one_that_scores_best(generator, tmp_path):
    settings = replace(SHORT, eval_every=2)
    trained = train_generator(generator, DATA, tmp_path / "run", settings, validation=HELD_OUT)
    found = [line for line in trained.history if "eval_loss" in line]
    assert [line["step"] for line in found] == [2, 4, 6]
    best = max(found, key=lambda line: line["eval_ROUGE-L"])
    assert trained.best_step == best["step"]
    references: dict[str, list[str]] = {}
    for example in HELD_OUT.examples:
        references.setdefault(next(iter(example.positives)), []).append(example.query)
    greedy = Decoding("greedy", max_length=20)
    written = trained.generator.generate([HELD_OUT.passages[d] for d in references], greedy)
    scores = score_texts([queries[0] for queries in written], list(references.values()))
    assert {name: best[f"eval_{name}"] for name in scores} == pytest.approx(scores)
    model = trained.generator.model.eval()
    passages = [next(iter(e.positives)) for e in HELD_OUT.examples]
    losses = []
    for own in (passages, passages[1:] + passages[:1]):
        batches = [
            GeneratorCollator(trained.generator, HELD_OUT)([Record(e, d, ())])
            for e, d in zip(HELD_OUT.examples, own, strict=True)
        ]
        counts = [(batch["labels"] != IGNORED).sum() for batch in batches]
        with torch.inference_mode():
            found = [model(**read_passages(model, batch)).loss for batch in batches]
        losses.append(float(sum(loss * n for loss, n in zip(found, counts, strict=True)) / sum(counts)))
    assert best["eval_loss"] == pytest.approx(losses[0], rel=1e-5)
    assert best["eval_passage gain"] == pytest.approx(losses[1] - losses[0], rel=1e-2)


def test_what_cannot_be_trained_is_refused(generator, tmp_path):
    with pytest.raises(ValueError, match="need validation"):
        train_generator(generator, DATA, tmp_path / "a", replace(SHORT, eval_every=2))
    with pytest.raises(ValueError, match="6 training queries are validation queries too"):
        train_generator(generator, DATA, tmp_path / "b", SHORT, validation=DATA)
    train_generator(generator, DATA, tmp_path / "c", replace(SHORT, num_steps=1))
    with pytest.raises(ValueError, match="holds a training with other settings: num_steps 1, not 2"):
        train_generator(generator, DATA, tmp_path / "c", replace(SHORT, num_steps=2))
    run = json.loads((tmp_path / "c" / "training.json").read_text())
    assert run["start"]["passage_max_length"] == 30
    with pytest.raises(ValueError, match="label_smoothing must be at least 0 and below 1, got 1"):
        GeneratorSettings(label_smoothing=1)
    with pytest.raises(ValueError, match=r"metric must be one of .*BLEU"):
        GeneratorSettings(metric="nDCG@10")
