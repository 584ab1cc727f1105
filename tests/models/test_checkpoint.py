"""What a checkpoint says, as sentence-transformers reads it; what cannot be read is refused by name."""

import json
import os
import re
import socket
import warnings
from re import escape

import numpy as np
import pytest
import torch
from made_models import WORDS, change_json, change_weights, save_checkpoint, save_parts

from dpr.generation.generator import QueryGenerator
from dpr.models.bi_encoder import BiEncoder
from dpr.models.checkpoint import find_checkpoint, save_random
from dpr.models.two_encoders import TwoEncoders

TEXTS = ["", "zinc", "Do masks help?", " ".join(WORDS * 2)]
PLAIN = {"pooling": "mean", "query_max_length": 16, "passage_max_length": 16}
LENGTHS = {"passage_max_length": 16, "query_max_length": 8}


def load(folder, **settings):
    """A plain checkpoint with a mean pooling and short lengths, or as told."""
    return BiEncoder.from_pretrained(folder, device="cpu", **{**PLAIN, **settings})


# --- prompts -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A plain BERT."""
    folder = tmp_path_factory.mktemp("bert")
    save_checkpoint(folder, "bert")
    return folder


@pytest.mark.parametrize(
    "prompts",
    [
        {},
        {"query": "ask: ", "document": "tell: "},
        {"query": "ask: ", "document": "tell: ", "passage": "say: ", "corpus": "all: "},
        {"query": "", "passage": "say: ", "document": "tell: "},
        {"document": "tell: "},
        {"query": "ask: "},
        {"clustering": "group: ", "query": "ask: "},
    ],
)
def test_prompts_are_those_that_sentence_transformers_puts_before_queries_and_documents(
    bert, tmp_path, prompts
):
    from sentence_transformers import SentenceTransformer

    folder = save_parts(tmp_path / "parts", bert, prompts=prompts)
    theirs = SentenceTransformer(str(folder), device="cpu")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        encoder = BiEncoder.from_pretrained(folder, device="cpu")
    assert encoder.config.query_prompt == prompts.get("query", "")
    assert encoder.config.passage_prompt == prompts.get("document", "")
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), theirs.encode_query(TEXTS), rtol=0, atol=1e-5)
    passages = theirs.encode_document(TEXTS)
    np.testing.assert_allclose(encoder.encode_passages(TEXTS), passages, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("prompts", "name"),
    [
        ({"passage": "say: "}, "passage"),
        ({"corpus": "all: "}, "corpus"),
        ({"query": "ask: ", "corpus": "all: ", "passage": "say: "}, "passage"),
        ({"document": "", "corpus": "all: "}, "corpus"),
    ],
)
def test_a_prompt_for_passages_by_another_name_is_left_out_as_there_and_said(bert, tmp_path, prompts, name):
    from sentence_transformers import SentenceTransformer

    folder = save_parts(tmp_path / "parts", bert, prompts=prompts)
    theirs = SentenceTransformer(str(folder), device="cpu")
    told = escape(f"parts: its prompt {name!r} is not used") + ".*"
    with pytest.warns(UserWarning, match=told + escape(f"pass passage_prompt={prompts[name]!r} to use it")):
        encoder = BiEncoder.from_pretrained(folder, device="cpu")
    assert encoder.config.passage_prompt == ""
    vectors = theirs.encode_document(TEXTS)
    np.testing.assert_allclose(encoder.encode_passages(TEXTS), vectors, rtol=0, atol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        used = BiEncoder.from_pretrained(folder, device="cpu", passage_prompt=prompts[name])
    vectors = theirs.encode(TEXTS, prompt_name=name)
    np.testing.assert_allclose(used.encode_passages(TEXTS), vectors, rtol=0, atol=1e-5)
    assert abs(vectors - theirs.encode_document(TEXTS)).max() > 0.1


def test_a_prompt_given_replaces_the_one_saved(bert, tmp_path):
    prompts = {"query": "ask: ", "document": "tell: "}
    folder = save_parts(tmp_path / "parts", bert, prompts=prompts)
    changed = BiEncoder.from_pretrained(folder, device="cpu", passage_prompt="say: ", query_prompt="")
    assert (changed.config.query_prompt, changed.config.passage_prompt) == ("", "say: ")
    expected = load(bert, passage_prompt="say: ")
    np.testing.assert_array_equal(changed.encode_passages(TEXTS), expected.encode_passages(TEXTS))
    np.testing.assert_array_equal(changed.encode_queries(TEXTS), expected.encode_queries(TEXTS))
    changed.save(tmp_path / "saved")
    assert BiEncoder.from_pretrained(tmp_path / "saved", device="cpu").config == changed.config


def test_a_prompt_that_leaves_one_token_for_a_query_or_passage_is_used_and_no_longer_one(bert):
    prompt = "masks protect the lungs of bats"
    fits = load(bert, query_prompt=prompt, passage_prompt=prompt, query_max_length=9, passage_max_length=9)
    texts = ["zinc", "zinc and vaccines", "vaccines"]
    whole = load(bert).encode_passages([f"{prompt} zinc", f"{prompt} zinc", f"{prompt} vaccines"])
    for encode in (
        fits.encode_queries,
        fits.encode_passages,
        lambda texts: fits.encode_chunks(texts)[0][[0, 1, 4]],
    ):
        np.testing.assert_allclose(encode([f" {text}" for text in texts]), whole, rtol=0, atol=1e-5)
    full = fits.with_settings(query_max_length=8, passage_max_length=8)
    message = escape(f"the prompt {prompt!r} leaves no room for a text in 8 tokens; shorten it")
    for encode in (full.encode_queries, full.encode_passages, full.encode_chunks):
        with pytest.raises(ValueError, match=message):
            encode(texts)
    other = fits.with_settings(query_prompt="", query_max_length=3, passage_max_length=8)
    assert other.encode_queries(texts).shape == (3, 16)  # whose prompt it is not
    with pytest.raises(ValueError, match=message):
        other.encode_passages(texts)


# --- weights -----------------------------------------------------------------------------------

ONE_WEIGHT = {
    "albert": "encoder.embedding_hidden_mapping_in.weight",
    "bert": "encoder.layer.0.output.dense.bias",
    "distilbert": "embeddings.word_embeddings.weight",
    "gpt2": "h.0.attn.c_attn.weight",
    "mpnet": "encoder.relative_attention_bias.weight",
    "qwen3": "layers.1.mlp.down_proj.weight",
    "roberta": "embeddings.LayerNorm.weight",
    "t5": "encoder.block.0.layer.0.SelfAttention.q.weight",
    "xlnet": "layer.0.rel_attn.q",
}
SECOND_LAYER = {  # how its weights begin, and the number of layers in the configuration
    "bert": ("encoder.layer.1.", "num_hidden_layers"),
    "distilbert": ("transformer.layer.1.", "n_layers"),
    "gpt2": ("h.1.", "n_layer"),
    "qwen3": ("layers.1.", "num_hidden_layers"),
    "t5": ("encoder.block.1.", "num_layers"),
    "xlnet": ("layer.1.", "n_layer"),
}


def plain_and_in_parts(tmp_path, architecture):
    """The same checkpoint twice: as transformers and as sentence-transformers write it."""
    save_checkpoint(tmp_path / "plain", architecture)
    return tmp_path / "plain", save_parts(tmp_path / "parts", tmp_path / "plain")


@pytest.mark.parametrize("architecture", ONE_WEIGHT)
def test_weights_by_names_that_are_not_the_models_are_refused(tmp_path, architecture):
    for folder in plain_and_in_parts(tmp_path, architecture):
        load(folder)
        names = []
        change_weights(
            folder, lambda w, names=names: {f"student.{n}": w[n] for n in w if not names.append(n)}
        )
        with pytest.raises(ValueError, match=r"lacks weights (\S+), .* the model would be random") as told:
            load(folder)
        assert told.match(escape(f"{folder.name} lacks weights"))
        assert re.search(r"lacks weights (\S+),", str(told.value))[1] in names


@pytest.mark.parametrize(("architecture", "lost"), ONE_WEIGHT.items())
def test_a_checkpoint_that_lacks_one_weight_is_refused_by_its_name(tmp_path, architecture, lost):
    for folder in plain_and_in_parts(tmp_path, architecture):
        change_weights(folder, lambda weights: {name: weights[name] for name in weights.keys() - {lost}})
        with pytest.raises(
            ValueError, match=escape(f"{folder.name} lacks weights {lost} (1) than its config")
        ):
            load(folder)


@pytest.mark.parametrize("architecture", SECOND_LAYER)
def test_a_checkpoint_of_more_or_fewer_layers_than_it_says_is_refused(tmp_path, architecture):
    layer, field = SECOND_LAYER[architecture]
    for folder in plain_and_in_parts(tmp_path, architecture):
        change_json(folder / "config.json", **{field: 1}, layer_types=None)
        with pytest.raises(ValueError, match=escape(f"{folder.name} has other weights {layer}")):
            load(folder)
        change_json(folder / "config.json", **{field: 3})
        with pytest.raises(
            ValueError, match=escape(f"{folder.name} lacks weights {layer.replace('1', '2')}")
        ):
            load(folder)


HEADS = {
    "bert": ["BertForMaskedLM", "BertForPreTraining", "BertForSequenceClassification", "BertLMHeadModel"],
    "distilbert": ["DistilBertForMaskedLM", "DistilBertForQuestionAnswering"],
    "electra": ["ElectraForPreTraining", "ElectraForMaskedLM"],
    "gpt2": ["GPT2LMHeadModel"],
    "modernbert": ["ModernBertForMaskedLM"],
    "mpnet": ["MPNetForMaskedLM"],
    "qwen3": ["Qwen3ForCausalLM"],
    "roberta": ["RobertaForMaskedLM", "RobertaForSequenceClassification"],
    "xlnet": ["XLNetLMHeadModel"],
}


@pytest.mark.parametrize(
    ("architecture", "head"), [(a, head) for a, heads in HEADS.items() for head in heads]
)
def test_a_head_for_another_task_is_no_part_of_the_encoder(tmp_path, architecture, head):
    model = save_checkpoint(tmp_path / "whole", architecture, head=head)
    (tmp_path / "base").mkdir()
    for file in (tmp_path / "whole").glob("*token*"):
        (tmp_path / "base" / file.name).write_bytes(file.read_bytes())
    model.base_model.save_pretrained(tmp_path / "base")
    whole, base = (load(tmp_path / name).encode_passages(TEXTS) for name in ("whole", "base"))
    np.testing.assert_array_equal(whole, base)
    assert np.ptp(base, axis=0).max() > 0.1


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "roberta", "xlnet"])
def test_a_layer_too_many_is_found_below_a_head_too(tmp_path, architecture):
    save_checkpoint(tmp_path, architecture, head=HEADS[architecture][0])
    layer, field = SECOND_LAYER.get(architecture, SECOND_LAYER["bert"])
    change_json(tmp_path / "config.json", **{field: 1})
    with pytest.raises(ValueError, match=rf"has other weights (\w+\.)?{escape(layer)}"):
        load(tmp_path)


@pytest.mark.parametrize("name", [None, "pooler.of_another_make"])
@pytest.mark.parametrize("architecture", ["albert", "bert", "mpnet", "roberta"])
def test_a_pooler_that_no_pooling_uses_may_be_missing_or_another(tmp_path, architecture, name):
    save_checkpoint(tmp_path, architecture)
    before = load(tmp_path).encode_passages(TEXTS)
    counts = []

    def without_pooler(weights):
        kept = {other: weights[other] for other in weights if "pooler" not in other}
        counts.append(len(weights) - len(kept))
        return {**kept, name: torch.ones(2)} if name else kept

    change_weights(tmp_path, without_pooler)
    assert counts == [2]
    np.testing.assert_array_equal(load(tmp_path).encode_passages(TEXTS), before)


@pytest.mark.parametrize("architecture", ["albert", "bert", "distilbert", "electra", "mpnet", "roberta"])
def test_the_numbers_of_positions_that_older_checkpoints_hold_are_no_weights(tmp_path, architecture):
    save_checkpoint(tmp_path, architecture)
    before = load(tmp_path).encode_passages(TEXTS)
    change_weights(tmp_path, lambda w: {**w, "embeddings.position_ids": torch.arange(64)[None]})
    np.testing.assert_array_equal(load(tmp_path).encode_passages(TEXTS), before)


# --- code of its own ---------------------------------------------------------------------------

CODE = """
from pathlib import Path
from transformers import BertConfig, BertModel, BertTokenizerFast
Path({mark!r}).touch()
class MyConfig(BertConfig):
    model_type = "my_own"
class MyModel(BertModel):
    config_class = MyConfig
class MyTokenizer(BertTokenizerFast):
    pass
"""
OWN = {
    "AutoConfig": "mine.MyConfig",
    "AutoModel": "mine.MyModel",
    "AutoModelForSeq2SeqLM": "mine.MyModel",
    "AutoTokenizer": ["mine.MyTokenizer", "mine.MyTokenizer"],
}


@pytest.fixture
def with_code(tmp_path):
    """Puts code into a checkpoint, and says whether it was executed."""
    mark = tmp_path / "executed"

    def put(folder, **changed):
        change_json(folder / "config.json", auto_map=OWN, **changed)
        (folder / "mine.py").write_text(CODE.format(mark=str(mark)))
        return folder

    put.executed = mark.exists
    return put


def test_the_code_of_these_tests_would_be_executed_by_transformers(with_code, tmp_path, monkeypatch):
    from transformers import AutoConfig

    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    save_checkpoint(tmp_path / "bert", "bert")
    AutoConfig.from_pretrained(with_code(tmp_path / "bert", model_type="my_own"), trust_remote_code=True)
    assert with_code.executed()


def test_an_architecture_that_is_code_in_the_checkpoint_is_refused_unread(with_code, tmp_path):
    save_checkpoint(tmp_path / "plain", "bert")
    parts = save_parts(tmp_path / "parts", tmp_path / "plain")
    plain = tmp_path / "plain"
    for folder in (plain, parts):
        with_code(folder, model_type="my_own")
    attempts = {
        "BiEncoder": lambda: load(plain),
        "its parts": lambda: BiEncoder.from_pretrained(parts),
        "told to trust": lambda: load(plain, trust_remote_code=True),
        "QueryGenerator": lambda: QueryGenerator.from_pretrained(plain, **LENGTHS),
        "warm_started": lambda: QueryGenerator.warm_started(plain, 1, **LENGTHS),
        "save_random": lambda: save_random(tmp_path / "random", plain, 0),
    }
    for attempt in attempts.values():
        with pytest.raises(
            ValueError, match="its architecture 'my_own' is code inside the checkpoint"
        ) as told:
            attempt()
        assert "trust_remote_code" not in str(told.value)
    assert not with_code.executed()
    assert not (tmp_path / "random").exists()


def test_a_known_architecture_is_read_as_such_whatever_code_lies_beside_it(with_code, tmp_path):
    for architecture in ("bert", "t5"):
        save_checkpoint(tmp_path / architecture, architecture)
    bert, t5 = tmp_path / "bert", tmp_path / "t5"
    makers = [
        lambda: load(bert),
        lambda: QueryGenerator.warm_started(bert, 1, device="cpu", **LENGTHS),
        lambda: QueryGenerator.from_pretrained(t5, device="cpu", **LENGTHS),
    ]
    before = [make().fingerprint for make in makers]
    for folder in (bert, t5):
        with_code(folder)
        change_json(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": OWN["AutoTokenizer"]})
    assert [make().fingerprint for make in makers] == before
    save_random(tmp_path / "random", bert, 0)
    assert load(tmp_path / "random").model.config.model_type == "bert"
    assert not with_code.executed()


def test_a_part_that_is_code_in_the_checkpoint_is_refused_unread(with_code, tmp_path):
    save_checkpoint(tmp_path / "plain", "bert")
    parts = with_code(save_parts(tmp_path / "parts", tmp_path / "plain"))
    modules = json.loads((parts / "modules.json").read_text())
    modules[0]["type"] = "mine.MyModel"
    (parts / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=r"mine\.MyModel"):
        BiEncoder.from_pretrained(parts)
    assert not with_code.executed()


# --- names and folders -------------------------------------------------------------------------

MAKERS = {
    "BiEncoder": lambda name, folder: BiEncoder.from_pretrained(name, **PLAIN),
    "QueryGenerator": lambda name, folder: QueryGenerator.from_pretrained(name, **LENGTHS),
    "warm_started": lambda name, folder: QueryGenerator.warm_started(name, 1, **LENGTHS),
    "save_random": lambda name, folder: save_random(folder / "random", name, 0),
}


@pytest.fixture
def no_network(monkeypatch):
    """A test that asks the network, which it may by its settings, fails at once."""
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for where, name in ((socket, "getaddrinfo"), (socket, "create_connection"), (socket.socket, "connect")):
        monkeypatch.setattr(where, name, lambda *_, **__: pytest.fail("asked the network"))


GONE = ["models/gone/x", "here/gone", "a/b/c/d", "./gone", "../gone", "~/gone", "here/file"]


@pytest.mark.parametrize("name", GONE)
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.usefixtures("no_network")
def test_a_folder_that_is_gone_is_named_without_asking_anyone(tmp_path, monkeypatch, maker, name):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "file").write_text("no folder")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=escape(f"{name}: no such checkpoint folder")):
        MAKERS[maker](name, tmp_path)
    assert os.listdir(tmp_path) == ["here"]


@pytest.mark.usefixtures("no_network")
def test_a_pair_that_is_gone_is_named_without_asking_anyone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="gone/query: no such checkpoint folder"):
        TwoEncoders.from_pretrained("gone")


@pytest.mark.usefixtures("no_network")
def test_a_name_of_the_hub_asks_the_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pytest.fail.Exception, match="asked the network"):
        load("nobody-of-this-name/nothing")


@pytest.mark.parametrize("bad", [None, "", 0, 7, 1.5, True, b"bert", ["bert"]])
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.usefixtures("no_network")
def test_what_is_neither_a_name_nor_a_folder_is_refused(tmp_path, maker, bad):
    wanted = (
        r"(name_or_folder|like) must be str \| Path, got" if bad != "" else "expected a checkpoint's name"
    )
    with pytest.raises(ValueError, match=wanted):
        MAKERS[maker](bad, tmp_path)
    with pytest.raises(ValueError, match=escape(f"expected a checkpoint's name or folder, got {bad!r}")):
        find_checkpoint(bad)
