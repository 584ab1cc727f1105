"""Queries by a causal model: those of transformers' own `generate`, whatever the batch, and fair draws."""

from dataclasses import replace
from re import escape

import numpy as np
import pytest
import torch
from made_models import change_json, change_weights, save_checkpoint
from made_writers import CAUSAL, PASSAGES, save_causal
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer, RepetitionPenaltyLogitsProcessor

from dpr.generation.decoding import Decoding, Drawing
from dpr.generation.generator import QueryGenerator
from dpr.generation.llm import PROMPTS, CausalConfig, CausalGenerator, Prompt

GREEDY = Decoding("greedy", max_length=12)
SAMPLED = Decoding("sample", num_queries=5, max_length=12)
SETTINGS = {"passage_max_length": 20, "query_max_length": 12, "prompt": "none"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A tiny causal model of each kind on disk."""
    base = tmp_path_factory.mktemp("causal")
    return {kind: save_causal(base / kind, kind) for kind in CAUSAL}


def load(folder, **changed):
    how = {"device": "cpu", "precision": "float32"}
    return CausalGenerator.from_pretrained(folder, **how, **{**SETTINGS, **changed})


@pytest.fixture(scope="module")
def writer(folders):
    return load(folders["gemma3"])


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


class Transformers:
    """Greedy queries with their mean log probability, by transformers from one passage alone."""

    def __init__(self, folder, prompt):
        how = {"dtype": torch.float32, "attn_implementation": "eager"}
        self.model = AutoModelForCausalLM.from_pretrained(folder, **how)
        self.tokenizer, self.prompt = AutoTokenizer.from_pretrained(folder), PROMPTS[prompt]
        texts = [self.tokenizer.decode([token]) for token in range(len(self.tokenizer))]
        self.ends = [token for token, text in enumerate(texts) if "\n" in text or "\r" in text] + [1]

    def write(self, passage):
        return self.write_for(ids_of(self.tokenizer, f" {' '.join(passage.split())}")[:20])

    def write_for(self, passage_ids):
        before = self.tokenizer(self.prompt.before)["input_ids"]
        ids = torch.tensor([[*before, *passage_ids, *ids_of(self.tokenizer, self.prompt.after)]])
        found = self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=self.ends,
            begin_suppress_tokens=self.ends,
            output_scores=True,
            return_dict_in_generate=True,
        )
        written = found.sequences[0, ids.shape[1] :]
        pairs = zip(found.scores, written, strict=True)
        mean = np.mean([float(scores[0].log_softmax(0)[token]) for scores, token in pairs])
        text = self.tokenizer.decode(written, skip_special_tokens=True).replace("\r", "\n")
        return " ".join(text.split("\n")[0].split()), mean, len(written)


# --- greedy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CAUSAL)
def test_greedy_queries_are_those_of_one_passage_at_a_time(folders, kind):
    generator, theirs = load(folders[kind]), Transformers(folders[kind], "none")
    texts, means, lengths = zip(*(theirs.write(passage) for passage in PASSAGES), strict=True)
    assert len(set(lengths)) > 1
    for batch_tokens in (1, 120, 10_000):
        [(written, owners)] = generator.generate_blocks([PASSAGES], GREEDY, [0], batch_tokens=batch_tokens)
        assert [queries[0].text for queries in written] == list(texts)
        assert [queries[0].log_probability for queries in written] == pytest.approx(means, abs=1e-4)
        assert owners.tolist() == list(range(len(PASSAGES)))


@pytest.mark.parametrize("prompt", ["examples", "good-bad"])
@pytest.mark.parametrize("kind", ["gemma3", "gpt2"])
def test_examples_are_read_before_each_passage(folders, kind, prompt):
    theirs = Transformers(folders[kind], prompt)
    expected = [theirs.write(passage)[0] for passage in PASSAGES[:3]]
    assert [q for [q] in load(folders[kind], prompt=prompt).generate(PASSAGES[:3], GREEDY)] == expected


def test_the_prompt_is_longer_than_the_window_of_the_attention(writer):
    assert writer.model.config.sliding_window < len(ids_of(writer.tokenizer, PROMPTS["none"].before))


def test_a_long_passage_is_cut_or_read_in_chunks(folders, writer):
    long, theirs = "bats carry " * 30, Transformers(folders["gemma3"], "none")
    ids = ids_of(writer.tokenizer, f" {long.strip()}")
    parts = [ids[at : at + 20] for at in range(0, len(ids), 20)]
    [(written, owners)] = writer.generate_blocks([[long, "zinc"]], GREEDY, [0], overflow="max_chunk")
    assert [queries[0].text for queries in written[:-1]] == [theirs.write_for(part)[0] for part in parts]
    assert owners.tolist() == [0] * len(parts) + [1]
    assert writer.generate([long], GREEDY) == [[written[0][0].text]]


def test_line_breaks_within_a_passage_are_spaces(writer):
    broken = ["masks\nfilter\r\n\r\n droplets", "masks filter droplets"]
    assert len({query for [query] in writer.generate(broken, GREEDY)}) == 1


# --- sampling ----------------------------------------------------------------------------------


def test_sampling_depends_on_seed_and_block_alone(writer):
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            torch.manual_seed(number)
            blocks = writer.generate_blocks([["other"], PASSAGES], SAMPLED, [1, 7], batch_tokens=300)
            found.append([written for written, _ in blocks][1])
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1]
    first, other = (writer.generate(PASSAGES, SAMPLED, seed) for seed in (7, 8))
    assert first != other
    assert all(len(set(queries)) > 1 for queries in first)


def test_a_query_is_never_empty_and_has_one_line(writer):
    wild = Decoding("sample", num_queries=40, max_length=12, top_k=0, temperature=5.0)
    [(written, _)] = writer.generate_blocks([PASSAGES], wild, [0])
    queries = [query for found in written for query in found]
    assert not [query for query in queries if set(query.text) & set("\r\n")]
    tokens = [len(ids_of(writer.tokenizer, query.text)) for query in queries]
    assert min(tokens) < 6 < max(tokens)
    assert all(query.log_probability < 0 for query in queries)
    visible = [query.text for query in queries if query.text]
    assert len(visible) > 0.9 * len(queries)  # the others are spaces or special tokens only


def test_what_cannot_be_written_is_refused(writer, folders, tmp_path):
    with pytest.raises(ValueError, match="num_queries must be from 1 to 1 with greedy, got 5"):
        replace(GREEDY, num_queries=5)
    with pytest.raises(ValueError, match=r"writes greedily or by sampling, not by beam search \(method\)"):
        writer.generate(PASSAGES, Decoding("beam", num_queries=2))
    longest = save_causal(tmp_path / "short", "gpt2", positions=64)
    size = len(ids_of(writer.tokenizer, PROMPTS["none"].before + PROMPTS["none"].after))
    load(longest, passage_max_length=64 - size - 12)
    with pytest.raises(ValueError, match="reads at most 64 tokens; prompt, passage and query are 65"):
        load(longest, passage_max_length=65 - size - 12)
    short = load(longest, passage_max_length=64 - size - 12)
    with pytest.raises(ValueError, match="reads at most 64 tokens; prompt, passage and query are 65"):
        short.generate(PASSAGES, replace(GREEDY, max_length=13))


@pytest.mark.parametrize(
    "changed", [{"top_k": 4}, {"top_k": 0}, {"top_k": 0, "top_p": 0.6}, {"top_k": 6, "top_p": 0.8}]
)
@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_draws_are_as_likely_as_the_settings_say(changed, temperature):
    decoding = Decoding(temperature=temperature, **changed)
    logits = torch.tensor([1.0, -0.5, 2.2, 0.0, 1.5, 0.3, 2.0, -2.0])
    draw = Drawing(decoding, [3, 1], torch.device("cpu"))
    tokens, likelihoods = draw(logits.repeat(20_000, 1), torch.empty(20_000, 0, dtype=torch.long))
    torch.testing.assert_close(likelihoods, logits.log_softmax(0)[tokens])
    shares = (logits.double() / temperature).numpy()
    order = np.argsort(-shares)
    kept = order[: decoding.top_k or len(order)]
    likely = np.exp(shares[kept]) / np.exp(shares[kept]).sum()
    kept = kept[np.cumsum(likely) - likely < decoding.top_p]
    expected = np.exp(shares[kept]) / np.exp(shares[kept]).sum() * len(tokens)
    counts = np.bincount(tokens, minlength=len(logits))
    assert counts[kept].sum() == len(tokens)
    assert stats.chisquare(counts[kept], expected).pvalue > 1e-4


def test_repetitions_are_penalised_as_transformers_does():
    logits = torch.randn(6, 9, generator=torch.Generator().manual_seed(0))
    before = torch.stack([logits.argmax(-1), torch.tensor([0, 8, 1, 2, 3, 6])], dim=1)
    decoding = replace(GREEDY, repetition_penalty=1.7)
    tokens, likelihoods = Drawing(decoding, [0], torch.device("cpu"))(logits.clone(), before)
    expected = RepetitionPenaltyLogitsProcessor(1.7)(before, logits.clone()).argmax(-1)
    assert tokens.tolist() == expected.tolist() != before[:, 0].tolist()
    rows = torch.arange(6)
    torch.testing.assert_close(likelihoods, logits.log_softmax(-1)[rows, expected])


def test_dropout_is_off(folders):
    generator = load(folders["gpt2"])
    first = generator.generate(PASSAGES, GREEDY)
    generator.model.train()
    assert generator.generate(PASSAGES, GREEDY) == first


# --- checkpoints -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CAUSAL)
def test_what_is_saved_reads_back_as_either_class(folders, tmp_path, kind):
    generator = load(folders[kind], prompt="good-bad")
    generator.save(tmp_path / "written")
    assert "dpr" not in (tmp_path / "written" / "config.json").read_text()
    for reader in (CausalGenerator, QueryGenerator):
        loaded = reader.from_pretrained(tmp_path / "written", device="cpu", precision="float32")
        assert type(loaded) is CausalGenerator
        assert loaded.config == generator.config
        assert loaded.fingerprint == generator.fingerprint
        assert loaded.name == "written"
        assert loaded.generate(PASSAGES, GREEDY) == generator.generate(PASSAGES, GREEDY)
    other = CausalGenerator.from_pretrained(
        tmp_path / "written", device="cpu", precision="float32", prompt="none"
    )
    assert other.config == replace(generator.config, prompt="none")
    assert other.fingerprint != generator.fingerprint
    generator.save(tmp_path / "written")
    (tmp_path / "written" / "query_generator.json").write_text("[]")
    with pytest.raises(ValueError, match=r"query_generator\.json: damaged"):
        QueryGenerator.from_pretrained(tmp_path / "written", device="cpu")


def test_half_precision_writes_too(folders):
    generator = CausalGenerator.from_pretrained(folders["qwen3"], device="cpu", precision="bfloat16")
    assert generator.precision == "bfloat16"
    assert generator.config == CausalConfig()
    assert all(len(queries) == 5 for queries in generator.generate(PASSAGES, SAMPLED))


@pytest.mark.parametrize("architecture", ["bert", "roberta", "t5", "bart", "distilbert"])
def test_what_is_no_causal_model_is_refused(tmp_path, architecture):
    save_checkpoint(tmp_path, architecture)
    with pytest.raises(ValueError, match=f"{architecture} is no causal model, as Gemma is"):
        CausalGenerator.from_pretrained(tmp_path, device="cpu")


def test_what_writes_no_texts_is_refused(tmp_path):
    save_checkpoint(tmp_path, "bert")
    with pytest.raises(ValueError, match="bert is neither a sequence-to-sequence model, as T5 is, nor a"):
        QueryGenerator.from_pretrained(tmp_path, device="cpu", passage_max_length=9, query_max_length=9)


def test_code_inside_a_checkpoint_is_refused(tmp_path):
    save_causal(tmp_path, "llama")
    change_json(tmp_path / "config.json", model_type="mine", auto_map={"AutoModelForCausalLM": "mine.Mine"})
    with pytest.raises(ValueError, match="'mine' is code inside the checkpoint"):
        CausalGenerator.from_pretrained(tmp_path)


def test_a_causal_model_that_lacks_a_weight_is_refused_by_its_name(tmp_path):
    save_causal(tmp_path, "llama")
    lost = "model.norm.weight"
    change_weights(tmp_path, lambda weights: {name: weights[name] for name in weights.keys() - {lost}})
    with pytest.raises(ValueError, match=escape(f"lacks weights {lost} (1) than its config.json says")):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"passage_max_length": 0}, "passage_max_length must be at least 1 token, got 0"),
        ({"query_max_length": 0}, "query_max_length must be at least 1 token, got 0"),
        ({"prompt": "best"}, "prompt must be one of examples, good-bad, none, got 'best'"),
        ({"max_length": 8}, r"unknown settings \['max_length'\]; known: \['passage_max_length'"),
    ],
)
def test_a_setting_out_of_range_is_refused(folders, changed, message):
    with pytest.raises(ValueError, match=message):
        load(folders["gpt2"], **changed)
    with pytest.raises(ValueError, match=message):
        QueryGenerator.from_pretrained(folders["gpt2"], device="cpu", **changed)


def test_a_prompt_must_begin_with_something():
    with pytest.raises(ValueError, match=r"text before the passage \(before\) must not be empty"):
        Prompt("", "Query:")
