"""Training a causal model, and adapters: the loss of plain texts, frozen weights, resuming after a stop."""

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
from made_writers import CAUSAL, TOPICS, make_tokenizer, save_causal
from safetensors import safe_open
from torch.nn.functional import cross_entropy
from transformers import T5Config, T5ForConditionalGeneration

import dpr.generation.training as training
from dpr.data.examples import Example
from dpr.data.training_data import TrainingData
from dpr.evaluation.metrics import score_texts
from dpr.generation.adapters import merge_adapters
from dpr.generation.collator import IGNORED, make_collator, token_loss
from dpr.generation.decoding import Decoding
from dpr.generation.generator import GeneratorConfig, QueryGenerator
from dpr.generation.llm import PROMPTS, CausalGenerator
from dpr.generation.training import GeneratorTrainer, train_generator
from dpr.training.dataset import Record, TrainingSequence
from dpr.training.settings import GeneratorSettings

LENGTHS = {"passage_max_length": 40, "query_max_length": 30}
GREEDY = Decoding("greedy", max_length=30)
SHORT = GeneratorSettings(
    num_steps=6, batch_size=4, learning_rate=1e-2, log_every=1, dropout=0.0, weight_decay=0.0
)
KINDS = ["t5", "gemma3", "gpt2"]


def made(topics, query):
    """A question a topic, each with a passage."""
    passages = {f"d-{t}": f"{t} are\n{t} and only {t}" for t in topics}
    examples = [Example(f"q-{t}", query.format(t), {f"d-{t}": 1}) for t in topics]
    return TrainingData("made", examples, passages)


ALL = made(TOPICS, "what is it about {}")
DATA, HELD_OUT = made(TOPICS[:5], "what is it about {}"), made(TOPICS[5:], "what is it about {} now")
AGAIN = Example("q-again", "tell me of masks", {"d-masks": 1})
DATA = replace(DATA, examples=[*DATA.examples, AGAIN])


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """A small untrained generator of each kind."""
    base, how = tmp_path_factory.mktemp("starts"), {"device": "cpu", "precision": "float32"}
    tokenizer = make_tokenizer(False)
    shape = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
    config = T5Config(vocab_size=len(tokenizer), decoder_start_token_id=0, **shape)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = T5ForConditionalGeneration(config)
    made = {"t5": QueryGenerator(model, tokenizer, "t5", GeneratorConfig(**LENGTHS))}
    for kind in CAUSAL:
        folder = save_causal(base / kind, kind, spread=0.2)
        made[kind] = CausalGenerator.from_pretrained(folder, prompt="none", **how, **LENGTHS)
    return made


def plain_losses(generator, pairs):
    """The loss of the tokens of queries and their line ends, from all logits of one text at a time."""
    tokenizer, prompt = generator.tokenizer, PROMPTS[generator.config.prompt]
    model = copy.deepcopy(generator.model).double().eval()
    model.set_attn_implementation("eager")
    losses = []
    for passage, query in pairs:
        parts = (f" {' '.join(passage.split())}", prompt.after, f" {query}", "\n")
        passage_ids, after, query_ids, end = tokenizer(list(parts), add_special_tokens=False)["input_ids"]
        read = [*tokenizer(prompt.before)["input_ids"], *passage_ids[:40], *after]
        ids = torch.tensor([*read, *query_ids[:29], *end])
        with torch.inference_mode():
            logits = model(ids[None]).logits[0, :-1]
        losses += cross_entropy(logits, ids[1:], reduction="none")[len(read) - 1 :].tolist()
    return losses


# --- the loss of a causal model ----------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["none", "examples"])
@pytest.mark.parametrize("kind", CAUSAL)
def test_the_loss_is_that_of_the_querys_tokens_in_one_text_at_a_time(starts, kind, prompt):
    start = starts[kind]
    generator = CausalGenerator(start.model, start.tokenizer, kind, replace(start.config, prompt=prompt))
    long = replace(DATA.examples[1], query="how does sunlight make vitamin d in skin and bones " * 3)
    data = replace(DATA, examples=[DATA.examples[0], long, *DATA.examples[2:]])
    collate = make_collator(generator, data)
    records = [Record(e, next(iter(e.positives)), ()) for e in data.examples]
    pairs = [(data.passages[r.positive], r.example.query) for r in records]
    losses = plain_losses(generator, pairs)
    batch = collate(records)
    assert int((batch["labels"] != IGNORED).sum()) == len(losses)
    with torch.inference_mode():
        found = float(token_loss(generator.model, batch))
        assert found == pytest.approx(sum(losses) / len(losses), abs=1e-5)
        assert float(token_loss(generator.model, batch, num_tokens=7)) == pytest.approx(
            sum(losses) / 7, rel=1e-6
        )


def test_a_querys_tokens_are_those_that_are_written(starts):
    for kind in CAUSAL:
        generator = starts[kind]
        [ids] = generator.query_tokens([" what is\nit about  masks "])
        assert generator.tokenizer.decode(ids) == " what is it about masks\n"
        assert generator._ends[ids].tolist() == [False] * (len(ids) - 1) + [True]
        [cut] = generator.query_tokens(["masks " * 40])
        assert len(cut) == 30
        assert cut[-1] == ids[-1]


def test_the_output_layer_sees_only_the_tokens_to_be_learnt(starts):
    generator, seen = starts["gemma3"], []
    head = generator.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda _, args, output: seen.append(tuple(output.shape)))
    batch = make_collator(generator, DATA)([Record(e, next(iter(e.positives)), ()) for e in DATA.examples])
    token_loss(generator.model, batch)
    hook.remove()
    assert seen == [(int((batch["labels"] != IGNORED).sum()), head.weight.shape[0])]


def test_batches_of_one_step_weigh_each_token_alike(starts, tmp_path):
    generator, sequence = starts["qwen3"], TrainingSequence(DATA, 4, 1, 0, 0)
    records = [sequence[i] for i in range(4)]
    losses = plain_losses(generator, [(DATA.passages[r.positive], r.example.query) for r in records])
    for size, accumulation in ((4, 1), (2, 2)):
        settings = replace(SHORT, num_steps=1, batch_size=size, accumulation=accumulation)
        trained = train_generator(generator, DATA, tmp_path / str(size), settings)
        assert trained.history[0]["loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)


# --- adapters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_only_adapters_change_and_merging_keeps_the_logits(starts, kind):
    start, trained = starts[kind], copy.deepcopy(starts[kind])
    trainer = GeneratorTrainer(trained, DATA, None, replace(SHORT, lora_rank=3))
    model, head = trained.model, trained.model.get_output_embeddings()
    layers = [m for m in start.model.modules() if type(m).__name__ in ("Linear", "Conv1D")]
    adapters = {name: w.clone() for name, w in model.named_parameters() if w.requires_grad}
    assert len(adapters) == 2 * (len(layers) - 1)
    batch = make_collator(start, DATA)([Record(e, next(iter(e.positives)), ()) for e in DATA.examples])
    with torch.inference_mode():
        before = token_loss(start.model.eval(), batch)
        assert float(token_loss(model.eval(), batch)) == pytest.approx(float(before), abs=1e-6)
    trainer.train()
    for name, weights in model.named_parameters():
        if name in adapters:
            assert not torch.equal(weights, adapters[name]), name
        else:
            assert torch.equal(weights, start.model.get_parameter(name.replace(".base_layer", ""))), name
    logits = []
    hook = head.register_forward_hook(lambda _, args, output: logits.append(output))
    with torch.inference_mode():
        token_loss(model.eval(), batch)
        merge_adapters(model)
        token_loss(model.eval(), batch)
    hook.remove()
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-5)
    assert float((logits[0] - logits[1]).abs().max()) < 1e-5 < abs(float(token_loss(model, batch) - before))
    assert list(model.state_dict()) == list(start.model.state_dict())
    merged, whole = model.state_dict(), start.model.state_dict()
    changed = [name for name in whole if not torch.equal(merged[name], whole[name])]
    assert len(changed) == len(layers) - 1


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_teach_a_trained_model_other_queries(starts, tmp_path, kind):
    other = made(TOPICS, "about {} it is what")
    steps, rate = (120, 5e-3) if kind == "t5" else (60, 1e-2)
    first = replace(SHORT, num_steps=steps, batch_size=8, learning_rate=rate, log_every=10)
    start = train_generator(starts[kind], other, tmp_path / "first", first).generator
    second = replace(first, lora_rank=16)
    trained = train_generator(start, ALL, tmp_path / "second", second)
    assert trained.history[-1]["loss"] < 0.1 * trained.history[0]["loss"]
    written = trained.generator.generate(list(ALL.passages.values()), GREEDY)
    assert [query for [query] in written] == [e.query for e in ALL.examples]
    assert not list((tmp_path / "second" / "model").glob("adapter*"))
    again = QueryGenerator.from_pretrained(tmp_path / "second" / "model", device="cpu", precision="float32")
    assert again.fingerprint == trained.generator.fingerprint
    assert (again.config, type(again)) == (start.config, type(start))


def test_activations_can_be_computed_again(starts, tmp_path):
    settings = replace(SHORT, lora_rank=2)
    once = train_generator(starts["gemma3"], DATA, tmp_path / "once", settings)
    twice = train_generator(
        starts["gemma3"], DATA, tmp_path / "twice", replace(settings, activation_checkpointing=True)
    )
    losses = [[line["loss"] for line in trained.history] for trained in (once, twice)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# --- checkpoints -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "rank"), [("t5", 2), ("gemma3", 2), ("gpt2", 2), ("t5", None), ("gemma3", None)]
)
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(starts, tmp_path, kind, rank):
    settings = replace(SHORT, eval_every=2, dropout=0.1, lora_rank=rank)
    how = {"validation": HELD_OUT}
    whole = train_generator(starts[kind], DATA, tmp_path / "whole", settings, **how)

    class Stop(Exception):
        pass

    class Stopping(GeneratorTrainer):
        def training_step(self, *args, **kwargs):
            if self.state.global_step == 3:
                raise Stop
            return super().training_step(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training, "GeneratorTrainer", Stopping)
        with pytest.raises(Stop):
            train_generator(starts[kind], DATA, tmp_path / "cut", settings, **how)
    kept = tmp_path / "cut" / "checkpoints" / "checkpoint-2" / "model.safetensors"
    with safe_open(kept, "pt") as weights:
        assert all("lora" in name for name in weights.keys()) == (rank is not None)  # noqa: SIM118
    cut = train_generator(starts[kind], DATA, tmp_path / "cut", settings, **how)
    assert cut.generator.fingerprint == whole.generator.fingerprint != starts[kind].fingerprint
    assert [line.get("loss") for line in cut.history] == [line.get("loss") for line in whole.history]
    shutil.rmtree(tmp_path / "whole" / "tensorboard")
    read = train_generator(starts[kind], DATA, tmp_path / "whole", settings, **how)
    assert read.history == whole.history


@pytest.mark.parametrize(("kind", "rank"), [("t5", 4), ("qwen3", 4), ("gemma3", None)])
def test_the_checkpoint_taken_is_the_one_that_scores_best(starts, tmp_path, kind, rank):
    starts[kind].generate(["what was read before the training must not be used in it"], GREEDY)
    settings = replace(
        SHORT, num_steps=40, learning_rate=3e-2, eval_every=10, log_every=10, lora_rank=rank, metric="BLEU"
    )
    trained = train_generator(starts[kind], DATA, tmp_path, settings, validation=HELD_OUT)
    best = trained.best
    assert best["eval_BLEU"] == max(line["eval_BLEU"] for line in trained.evaluations)
    generator = trained.generator
    written = generator.generate(list(HELD_OUT.passages.values()), GREEDY)
    scores = score_texts([query for [query] in written], [[e.query] for e in HELD_OUT.examples])
    assert {name: best[f"eval_{name}"] for name in scores} == pytest.approx(scores)
    passages = list(HELD_OUT.passages)
    losses = []
    for own in (passages, passages[1:] + passages[:1]):
        records = [Record(e, d, ()) for e, d in zip(HELD_OUT.examples, own, strict=True)]
        with torch.inference_mode():
            losses.append(
                float(token_loss(generator.model.eval(), make_collator(generator, HELD_OUT)(records)))
            )
    assert best["eval_loss"] == pytest.approx(losses[0], rel=1e-4)
    assert best["eval_passage gain"] == pytest.approx(losses[1] - losses[0], rel=1e-2, abs=1e-4)


def test_what_was_trained_in_half_precision_writes_in_it(starts, tmp_path):
    before = starts["llama"].fingerprint
    settings = replace(SHORT, num_steps=2, precision="bfloat16", lora_rank=2)
    trainer = GeneratorTrainer(copy.deepcopy(starts["llama"]), DATA, None, settings)
    trainer.train()
    assert {weights.dtype for weights in trainer.model.parameters()} == {torch.float32}
    trained = train_generator(starts["llama"], DATA, tmp_path / "run", settings, validation=HELD_OUT)
    assert trained.best["eval_loss"] > 0
    assert trained.generator.precision == "bfloat16"
    assert trained.generator.model.dtype == torch.bfloat16
    assert trained.generator.name == "run"
    assert starts["llama"].fingerprint == before
    assert "pipeline_tag: text-generation" in (tmp_path / "run" / "model" / "README.md").read_text()


def test_the_rank_is_part_of_a_trainings_record(starts, tmp_path):
    one = replace(SHORT, num_steps=1)
    train_generator(starts["t5"], DATA, tmp_path / "all", one)
    train_generator(starts["t5"], DATA, tmp_path / "some", replace(one, lora_rank=2))
    every, some = (
        json.loads((tmp_path / name / "training.json").read_text())["settings"] for name in ("all", "some")
    )
    assert some == {**every, "lora_rank": 2} != every
    with pytest.raises(ValueError, match="holds a training with other settings: lora_rank 2, not None"):
        train_generator(starts["t5"], DATA, tmp_path / "some", one)


def test_what_cannot_be_trained_is_refused(starts, tmp_path):
    folder = save_causal(tmp_path / "half", "gpt2")
    half = CausalGenerator.from_pretrained(folder, device="cpu", precision="bfloat16", prompt="none")
    with pytest.raises(
        ValueError, match="weights in bfloat16, training needs float32: load it with precision="
    ):
        train_generator(half, DATA, tmp_path / "run", SHORT)
    with pytest.raises(ValueError, match="lora_rank must be None or at least 1, got 0"):
        replace(SHORT, lora_rank=0)
    assert not (tmp_path / "run").exists()
