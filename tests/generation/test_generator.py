"""Writing queries: what transformers' own `generate` writes, whatever the batch, and draws that are fair."""

import json
from dataclasses import replace
from re import escape

import numpy as np
import pytest
import torch
from made_models import change_json, change_weights, save_checkpoint
from scipy import stats

from dpr.generation.decoding import MOST_QUERIES, Decoding
from dpr.generation.generator import GeneratorConfig, QueryGenerator

PASSAGES = [
    "masks filter droplets",
    "zinc",
    "bats carry many coronaviruses and do not fall ill from them as others do",
    "sunlight makes vitamin d",
    "two doses protect better than one",
]
GREEDY = Decoding("greedy", max_length=5)
LENGTHS = {"passage_max_length": 12, "query_max_length": 8}
BART = {"head": "BartForConditionalGeneration", "decoder_start_token_id": 3, "eos_token_id": 3}


@pytest.fixture(scope="module")
def generator(t5_folder):
    return QueryGenerator.from_pretrained(t5_folder, device="cpu", **LENGTHS)


def by_transformers(generator, passage, **how):
    """What the model writes for one passage alone, by transformers."""
    found = generator.tokenizer(passage, truncation=True, max_length=12, return_tensors="pt")
    fields = {name: found[name] for name in ("input_ids", "attention_mask")}
    ids = generator.model.generate(**fields, max_new_tokens=5, **how)
    return [" ".join(t.split()) for t in generator.tokenizer.batch_decode(ids, skip_special_tokens=True)]


def texts_of(written):
    """The texts of lists of queries."""
    return [[query.text for query in queries] for queries in written]


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
def test_greedy_queries_are_those_of_one_passage_at_a_time(generator, batch_tokens):
    [(written, owners)] = generator.generate_blocks([PASSAGES], GREEDY, [0], batch_tokens=batch_tokens)
    assert texts_of(written) == [by_transformers(generator, passage, do_sample=False) for passage in PASSAGES]
    assert owners.tolist() == [0, 1, 2, 3, 4]


def test_beams_are_those_of_one_passage_at_a_time(generator):
    decoding = Decoding("beam", num_queries=2, max_length=5, num_beams=3, repetition_penalty=1.5)
    how = {"num_beams": 3, "num_return_sequences": 2, "do_sample": False, "repetition_penalty": 1.5}
    assert generator.generate(PASSAGES, decoding) == [by_transformers(generator, p, **how) for p in PASSAGES]


def test_dropout_is_off(generator):
    generator.model.train()
    first = generator.generate(PASSAGES, GREEDY)
    generator.model.train()
    assert generator.generate(PASSAGES, GREEDY) == first


@pytest.mark.parametrize(
    "changed", [{"top_k": 4}, {"top_k": 0, "top_p": 0.5}, {"top_k": 6, "temperature": 3.0}]
)
def test_draws_are_as_likely_as_the_model_says(generator, changed):
    decoding = Decoding(num_queries=MOST_QUERIES, max_length=1, **changed)
    drawn = [q for seed in range(40) for q in generator.generate(["masks"], decoding, seed)[0]]
    found = generator.tokenizer("masks", return_tensors="pt")
    start = torch.tensor([[generator.model.config.decoder_start_token_id]])
    with torch.inference_mode():
        out = generator.model(found["input_ids"], decoder_input_ids=start).logits[0, -1]
    logits, order = (out / decoding.temperature).sort(descending=True)
    if decoding.top_k:
        logits[decoding.top_k :] = -torch.inf
    shares = logits.softmax(0)
    kept = shares.cumsum(0) - shares < decoding.top_p
    shares = torch.where(kept, shares, 0)[: int(kept.sum())]
    shares = (shares / shares.sum()).double().numpy()
    texts = generator.tokenizer.batch_decode(order[: len(shares), None], skip_special_tokens=True)
    counts = np.array([drawn.count(text) for text in texts])
    expected = shares / shares.sum() * len(drawn)
    assert counts.sum() == len(drawn)
    likely = expected >= 5
    groups = [np.append(values[likely], values[~likely].sum()) for values in (counts, expected)]
    groups = [values[groups[1] > 0] for values in groups]
    assert stats.chisquare(*groups).pvalue > 1e-4


def test_sampling_depends_on_seed_and_block_alone(generator):
    decoding = Decoding(num_queries=3, max_length=5)
    torch.manual_seed(1)
    first = generator.generate(PASSAGES, decoding, seed=7)
    torch.manual_seed(2)
    blocks = generator.generate_blocks([["other"], PASSAGES], decoding, [1, 7])
    assert [texts_of(written) for written, _ in blocks][1] == first
    assert generator.generate(PASSAGES, decoding, seed=8) != first
    assert [len(queries) for queries in first] == [3] * 5


def test_a_long_passage_is_cut_or_read_in_chunks(generator):
    long = " ".join(["bats"] * 30)
    [(cut, owners)] = generator.generate_blocks([[long, "zinc"]], GREEDY, [0])
    assert owners.tolist() == [0, 1]
    [(chunked, owners)] = generator.generate_blocks([[long, "zinc"]], GREEDY, [0], overflow="max_chunk")
    assert owners.tolist() == [0, 0, 0, 1]
    assert len(chunked) == 4
    assert texts_of([chunked[0], cut[0]]) == [by_transformers(generator, " ".join(["bats"] * 11))] * 2
    done = []
    list(generator.generate_blocks([[long, "zinc"]], GREEDY, [0], "max_chunk", progress=done.append))
    assert sum(done) == 2


def test_what_is_saved_reads_back(generator, tmp_path):
    generator.save(tmp_path / "written")
    loaded = QueryGenerator.from_pretrained(tmp_path / "written", device="cpu")
    assert loaded.config == generator.config
    assert loaded.fingerprint == generator.fingerprint
    assert loaded.name == "written"
    assert loaded.generate(PASSAGES, GREEDY) == generator.generate(PASSAGES, GREEDY)
    shorter = QueryGenerator.from_pretrained(tmp_path / "written", device="cpu", passage_max_length=6)
    assert shorter.fingerprint != generator.fingerprint


@pytest.mark.parametrize("text", ["", '{"passage_max_length": 1', "[]", "null"])
def test_damaged_settings_are_named(generator, tmp_path, text):
    generator.save(tmp_path / "written")
    path = tmp_path / "written" / "query_generator.json"
    assert json.loads(path.read_text()).items() >= LENGTHS.items()
    path.write_text(text)
    with pytest.raises(ValueError, match=escape(f"{path}: damaged")):
        QueryGenerator.from_pretrained(tmp_path / "written", device="cpu")


def test_a_checkpoint_without_our_settings_needs_both_lengths(generator, tmp_path):
    generator.model.save_pretrained(tmp_path / "plain")
    generator.tokenizer.save_pretrained(tmp_path / "plain")
    with pytest.raises(ValueError, match="does not say its query_max_length; pass query_max_length="):
        QueryGenerator.from_pretrained(tmp_path / "plain", passage_max_length=8)
    with pytest.raises(ValueError, match=r"unknown settings \['max_length'\]"):
        QueryGenerator.from_pretrained(tmp_path / "plain", max_length=8)
    with pytest.raises(FileNotFoundError):
        QueryGenerator.from_pretrained(tmp_path / "nowhere")


def test_no_passages_give_no_queries_and_one_string_is_refused(generator):
    assert generator.generate([], GREEDY) == []
    with pytest.raises(ValueError, match=r"passages must be Sequence\[str\], got 'masks'"):
        generator.generate("masks", GREEDY)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "best"}, "method must be one of .* got 'best'"),
        ({"num_queries": 0}, "num_queries must be from 1 to 40 with sample, got 0"),
        ({"num_queries": 41}, "num_queries must be from 1 to 40 with sample, got 41"),
        ({"method": "greedy", "num_queries": 2}, "num_queries must be from 1 to 1 with greedy, got 2"),
        ({"method": "beam", "num_queries": 5}, "num_queries must be from 1 to 4 with beam, got 5"),
        ({"max_length": 0}, "max_length must be at least 1, got 0"),
        ({"num_beams": 0}, "num_beams must be at least 1, got 0"),
        ({"top_k": -1}, "top_k must be at least 0, got -1"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1, got 0"),
        ({"top_p": 1.5}, "top_p must be above 0 and at most 1, got 1.5"),
        ({"temperature": 0}, "temperature must be above 0, got 0"),
        ({"repetition_penalty": 0}, "repetition_penalty must be above 0, got 0"),
    ],
)
def test_a_way_of_writing_out_of_range_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        replace(Decoding(), **changed)


# --- other architectures -----------------------------------------------------------------------


@pytest.fixture(scope="module", params=["bert", "roberta", "xlm-roberta"])
def warm(request, tmp_path_factory):
    """Two warm starts from each architecture that allows one, and the model that they start from."""
    folder = tmp_path_factory.mktemp("warm")
    model = save_checkpoint(folder, request.param)
    return *(QueryGenerator.warm_started(folder, 2, device="cpu", **LENGTHS) for _ in range(2)), model


def test_a_warm_start_from_any_of_them_writes_what_transformers_writes(warm):
    generator, *_ = warm
    expected = [by_transformers(generator, passage, do_sample=False) for passage in PASSAGES]
    assert generator.generate(PASSAGES, GREEDY) == expected
    for decoding in (Decoding("beam", 2, max_length=5, num_beams=3), Decoding("sample", 3, max_length=5)):
        written = generator.generate(PASSAGES, decoding)
        assert [len(queries) for queries in written] == [decoding.num_queries] * len(PASSAGES)
        assert generator.generate(PASSAGES, decoding) == written


def test_a_warm_start_from_any_of_them_has_its_weights_on_both_sides_and_attends_to_the_mean(warm):
    generator, again, theirs = warm
    assert again.fingerprint == generator.fingerprint  # nothing in it is random
    model = generator.model.eval()
    for name in ("embeddings.position_embeddings.weight", "encoder.layer.0.attention.self.key.weight"):
        for side in (model.encoder, model.decoder.base_model):
            assert torch.equal(side.state_dict()[name], theirs.state_dict()[name])
    fields = generator.tokenizer(PASSAGES[:3], padding=True, return_tensors="pt")
    fields = {name: fields[name] for name in ("input_ids", "attention_mask")}
    taken = []
    for layer in model.decoder.base_model.encoder.layer:
        layer.crossattention.output.dense.register_forward_hook(lambda *given: taken.append(given[-1]))
    with torch.inference_mode():
        states = model.get_encoder()(**fields)[0]
        model(**fields, decoder_input_ids=torch.tensor([[2, 7, 9], [2, 8, 5], [2, 4, 6]]))
    assert len(taken) == 2
    for text, number, *rows in zip(states, fields["attention_mask"].sum(dim=1), *taken, strict=True):
        mean = sum(text[:number]) / number
        for row in rows:
            torch.testing.assert_close(row, mean.expand(3, -1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("architecture", ["distilbert", "gpt2", "albert", "electra", "t5", "bart"])
def test_an_encoder_that_cannot_become_a_decoder_is_refused_by_name(tmp_path, architecture):
    save_checkpoint(tmp_path, architecture)
    message = f"a warm start needs one of bert, roberta, xlm-roberta, got {architecture}"
    with pytest.raises(ValueError, match=message):
        QueryGenerator.warm_started(tmp_path, 1, **LENGTHS)


@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_a_tokenizer_that_marks_no_beginning_or_end_is_refused(tmp_path, architecture):
    save_checkpoint(tmp_path, architecture, kind="no marks, no padding")
    with pytest.raises(ValueError, match="no token that begins and none that ends a text"):
        QueryGenerator.warm_started(tmp_path, 1, **LENGTHS)


def make_bart(folder, **settings):
    """A BART of 24 positions that is told where a query begins and ends."""
    save_checkpoint(folder, "bart", positions=24, **BART)
    return QueryGenerator.from_pretrained(folder, device="cpu", **{**LENGTHS, **settings})


def make_bert(folder, **settings):
    """A warm start from a BERT of 24 positions."""
    save_checkpoint(folder, "bert", positions=24)
    return QueryGenerator.warm_started(folder, 1, device="cpu", **{**LENGTHS, **settings})


def make_roberta(folder, **settings):
    """A warm start from a RoBERTa of 26 positions, of which it keeps two for padding, the token 1."""
    save_checkpoint(folder, "roberta", positions=26, pad_token_id=1)
    change_json(folder / "tokenizer_config.json", pad_token="<unk>")
    return QueryGenerator.warm_started(folder, 1, device="cpu", **{**LENGTHS, **settings})


OF_24_POSITIONS = pytest.mark.parametrize("make", [make_bart, make_bert, make_roberta])


@OF_24_POSITIONS
def test_passages_are_read_up_to_the_last_position_and_no_further(tmp_path, make):
    longest = make(tmp_path, passage_max_length=24)
    assert len(longest.generate(["zinc " * 99, "bats"], GREEDY)) == 2
    with pytest.raises(ValueError, match="reads at most 24 tokens, asked for passages of 25"):
        make(tmp_path, passage_max_length=25)


@OF_24_POSITIONS
def test_queries_beyond_the_last_position_are_refused_before_any_is_written(tmp_path, monkeypatch, make):
    generator, written = make(tmp_path), []
    generate = generator.model.generate
    generator.model.generation_config.eos_token_id = None  # so that each query is as long as allowed
    monkeypatch.setattr(
        generator.model, "generate", lambda **how: written.append(generate(**how)) or written[-1]
    )
    generator.generate(["zinc"], Decoding("greedy", max_length=23))
    assert [ids.shape for ids in written] == [(1, 24)]
    message = r"writes at most 2[34] tokens, asked for 25 \(max_length\)"
    with pytest.raises(ValueError, match=message):
        generator.generate(PASSAGES, Decoding("greedy", max_length=25))
    with pytest.raises(ValueError, match=message):
        next(generator.generate_blocks([PASSAGES], Decoding("sample", max_length=25), [0]))
    assert len(written) == 1


def test_a_t5_reads_and_writes_without_a_limit(tmp_path):
    save_checkpoint(tmp_path, "t5")
    generator = QueryGenerator.from_pretrained(
        tmp_path, device="cpu", passage_max_length=2_000, query_max_length=8
    )
    shapes = []
    generator.model.get_encoder().register_forward_pre_hook(
        lambda _, args, named: shapes.append(named["input_ids"].shape), with_kwargs=True
    )
    generator.model.generation_config.eos_token_id = list(range(len(generator.tokenizer)))  # stop at once
    assert len(generator.generate(["zinc " * 3_000], Decoding("greedy", max_length=2_000))) == 1
    assert shapes == [(1, 2_000)]


def test_a_prompt_leaves_one_token_of_a_passage_or_nothing_is_written(generator):
    prompt = "what is asked of this: "
    size = len(generator.tokenizer(prompt)["input_ids"])
    made = {
        length: QueryGenerator(
            generator.model, generator.tokenizer, "x", GeneratorConfig(length, 8, prompt=prompt)
        )
        for length in (size, size + 1)
    }
    expected = [by_transformers(generator, f"{prompt}{word}", do_sample=False) for word in ("zinc", "bats")]
    assert made[size + 1].generate(["zinc in the cold", "bats carry many"], GREEDY) == expected
    message = escape(f"the prompt {prompt!r} leaves no room for a text in {size} tokens; shorten it")
    with pytest.raises(ValueError, match=message):
        made[size].generate(["zinc"], GREEDY)
    for overflow in ("truncate", "max_chunk"):
        with pytest.raises(ValueError, match=message):
            next(made[size].generate_blocks([["zinc"]], GREEDY, [0], overflow))


# --- weights -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "how", "lost"),
    [
        ("t5", {}, "decoder.block.1.layer.1.EncDecAttention.k.weight"),
        ("t5", {}, "encoder.final_layer_norm.weight"),
        ("bart", BART, "model.decoder.layers.0.fc1.weight"),
    ],
)
def test_a_generator_that_lacks_a_weight_is_refused_by_its_name(tmp_path, architecture, how, lost):
    save_checkpoint(tmp_path, architecture, **how)
    QueryGenerator.from_pretrained(tmp_path, device="cpu", **LENGTHS)
    change_weights(tmp_path, lambda weights: {name: weights[name] for name in weights.keys() - {lost}})
    with pytest.raises(ValueError, match=escape(f"lacks weights {lost} (1) than its config.json says")):
        QueryGenerator.from_pretrained(tmp_path, device="cpu", **LENGTHS)


@pytest.mark.parametrize(
    ("architecture", "how", "field", "layer"),
    [
        ("t5", {}, "num_decoder_layers", "decoder.block.1."),
        ("t5", {}, "num_layers", "encoder.block.1."),
        ("bart", BART, "decoder_layers", "model.decoder.layers.1."),
    ],
)
def test_a_generator_with_a_layer_more_or_less_than_it_says_is_refused(
    tmp_path, architecture, how, field, layer
):
    save_checkpoint(tmp_path, architecture, **how)
    change_json(tmp_path / "config.json", **{field: 1})
    with pytest.raises(ValueError, match=f"has other weights {layer}"):
        QueryGenerator.from_pretrained(tmp_path, device="cpu", **LENGTHS)
    change_json(tmp_path / "config.json", **{field: 3})
    with pytest.raises(ValueError, match=f"lacks weights {layer.replace('1', '2')}"):
        QueryGenerator.from_pretrained(tmp_path, device="cpu", **LENGTHS)


def test_generator_weights_by_other_names_are_refused(tmp_path):
    save_checkpoint(tmp_path, "t5")
    change_weights(tmp_path, lambda weights: {f"student.{name}": weights[name] for name in weights})
    with pytest.raises(ValueError, match=r"lacks weights decoder\.block\.0\."):
        QueryGenerator.from_pretrained(tmp_path, device="cpu", **LENGTHS)


def test_weights_that_older_t5_checkpoints_hold_besides_change_nothing(tmp_path):
    save_checkpoint(tmp_path, "t5")
    before = QueryGenerator.from_pretrained(tmp_path, device="cpu", **LENGTHS)

    def as_of_old(weights):
        copies = {
            f"{side}.embed_tokens.weight": weights["shared.weight"].clone() for side in ("encoder", "decoder")
        }
        unused = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        return {**weights, **copies, unused: torch.ones(32, 2)}

    change_weights(tmp_path, as_of_old)
    after = QueryGenerator.from_pretrained(tmp_path, device="cpu", **LENGTHS)
    assert after.fingerprint == before.fingerprint
    assert after.generate(PASSAGES, GREEDY) == before.generate(PASSAGES, GREEDY)


# --- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["passage_max_length", "query_max_length"])
def test_a_length_too_short_for_a_text_is_refused(field):
    with pytest.raises(ValueError, match=f"{field} must be at least 3 tokens, got 2"):
        GeneratorConfig(**{"passage_max_length": 8, "query_max_length": 8, field: 2})
