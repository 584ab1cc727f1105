"""Encoders of every architecture: the vectors that sentence-transformers gives, and chunks of long texts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from made_models import (
    ARCHITECTURES,
    SHAPE,
    WORDS,
    change_json,
    change_weights,
    chunks_by_hand,
    make_tokenizer,
    save_checkpoint,
    save_parts,
)

from dpr.models.bi_encoder import BiEncoder
from dpr.models.two_encoders import TwoEncoders

TEXTS = ["", "zinc", "Do masks help?", " ".join(WORDS), "bats!", " ".join(WORDS[::-1] * 6)]
PROMPTS = {"query": "ask of bats: ", "document": "passage: "}
PLAIN = {"pooling": "mean", "query_max_length": 32, "passage_max_length": 32}
DPR_SHAPE = {**SHAPE, "max_position_embeddings": 40, "initializer_range": 0.5}


def assert_close(ours, theirs, apart=True):
    """Both are the same vectors and, unless told, far from each other."""
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert np.ptp(theirs, axis=0).max() > 0.1 or not apart


# --- beside sentence-transformers --------------------------------------------------------------


@pytest.fixture(scope="module", params=ARCHITECTURES)
def read(request, tmp_path_factory):
    """A sentence-transformers folder of each architecture, as sentence-transformers and as we read it."""
    from sentence_transformers import SentenceTransformer

    folder = tmp_path_factory.mktemp("read")
    save_checkpoint(folder / "plain", request.param)
    save_parts(folder / "parts", folder / "plain", max_length=32, prompts=PROMPTS)
    theirs = SentenceTransformer(str(folder / "parts"), device="cpu")
    return SimpleNamespace(theirs=theirs, ours=BiEncoder.from_pretrained(folder / "parts", device="cpu"))


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_every_architecture_gives_the_vectors_of_sentence_transformers(read, pooling):
    from sentence_transformers.sentence_transformer.modules import Pooling

    ours, theirs = read.ours.with_settings(pooling=pooling), read.theirs
    theirs[1] = Pooling(16, pooling)
    reads_onwards = ours.model.config.model_type in ("bart", "gpt2", "qwen3")
    blind = pooling == "cls" and reads_onwards  # the first token sees nothing of the text
    queries, passages = theirs.encode_query(TEXTS), theirs.encode_document(TEXTS)
    assert_close(ours.encode_queries(TEXTS), queries, apart=not blind)
    assert_close(ours.encode_passages(TEXTS), passages, apart=not blind)
    without = ours.with_settings(query_prompt="", passage_prompt="")
    for vectors in (without.encode_queries(TEXTS), without.encode_passages(TEXTS)):
        assert_close(vectors, theirs.encode(TEXTS), apart=not blind)
        assert blind or min(abs(vectors - queries).max(), abs(vectors - passages).max()) > 0.1


def test_every_architecture_gives_a_text_that_fits_one_chunk_with_its_vector(read):
    from sentence_transformers.sentence_transformer.modules import Pooling

    read.theirs[1] = Pooling(16, "mean")
    vectors, owners = read.ours.encode_chunks(TEXTS)
    first = [owners.tolist().index(text) for text in range(len(TEXTS))]
    assert_close(vectors[first], read.theirs.encode_document(TEXTS))
    assert owners.tolist()[:3] == [0, 1, 2]
    assert len(owners) > len(TEXTS)


# --- tokenizers --------------------------------------------------------------------------------

READ_BY = {  # the architecture that each tokenizer is tried with
    "word pieces": "bert",
    "bytes": "roberta",
    "bytes, a space first": "roberta",
    "pieces with spaces": "t5",
    "no marks, no padding": "gpt2",
    "marks at the end": "xlnet",
    "bytes in Python": "t5",
}


@pytest.fixture(scope="module", params=READ_BY)
def made(request, tmp_path_factory):
    """A model and a tokenizer of each kind, with an encoder that reads them."""
    kind, folder = request.param, tmp_path_factory.mktemp("made")
    model = save_checkpoint(folder, READ_BY[kind], kind)
    model = model.get_encoder() if READ_BY[kind] == "t5" else model
    encoder = BiEncoder.from_pretrained(folder, device="cpu", **PLAIN)
    return SimpleNamespace(model=model, tokenizer=make_tokenizer(kind), encoder=encoder, kind=kind)


def vector_of(made, tokens):
    """The mean of one text's vectors in one pass by transformers, from what its tokenizer gives."""
    names = ["input_ids", "attention_mask"]
    names += ["token_type_ids"] if made.model.config.model_type in ("bert", "xlnet") else []
    with torch.no_grad():
        hidden = made.model(**{name: torch.tensor([tokens[name]]) for name in names}).last_hidden_state[0]
    return (sum(hidden) / len(hidden)).numpy()


@pytest.mark.parametrize("prompt", ["", "passage: ", "passage:"])
def test_a_vector_is_that_of_the_text_alone_with_every_tokenizer(made, prompt):
    texts = TEXTS if prompt or made.kind != "no marks, no padding" else TEXTS[1:]
    encoder = made.encoder.with_settings(passage_prompt=prompt)
    alone = [vector_of(made, made.tokenizer(prompt + t, truncation=True, max_length=32)) for t in texts]
    assert_close(encoder.encode_passages(texts), alone)


@pytest.mark.parametrize("prompt", ["", "passage: ", "passage:"])
def test_a_chunks_vector_is_that_of_its_tokens_alone_with_every_tokenizer(made, prompt):
    texts = TEXTS if prompt or made.kind != "no marks, no padding" else TEXTS[1:]
    rows = [chunks_by_hand(made.kind, text, prompt, 32) for text in texts]
    encoder = made.encoder.with_settings(passage_prompt=prompt)
    vectors, owners = encoder.encode_chunks(texts)
    assert owners.tolist() == [i for i, chunks in enumerate(rows) for _ in chunks]
    assert max(map(len, rows)) > 2
    assert_close(vectors, [vector_of(made, row) for chunks in rows for row in chunks])


@pytest.mark.parametrize(("eos", "token"), [("</s>", 3), (None, 0)])
def test_a_text_without_a_token_has_the_vector_of_one_token(tmp_path, eos, token):
    from transformers import PreTrainedTokenizerFast

    backend = make_tokenizer("no marks, no padding").backend_tokenizer
    model = save_checkpoint(tmp_path, "gpt2", "no marks, no padding")
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=eos).save_pretrained(tmp_path)
    encoder = BiEncoder.from_pretrained(tmp_path, device="cpu", **PLAIN)
    with torch.no_grad():
        expected = model(torch.tensor([[token]])).last_hidden_state[0].numpy()
    texts = ["", "zinc", " ".join(WORDS)]
    for vectors in (encoder.encode_passages(texts), encoder.encode_chunks(texts)[0]):
        np.testing.assert_allclose(vectors[:1], expected, rtol=0, atol=1e-5)
        assert abs(vectors[1] - vectors[0]).max() > 0.01


def test_texts_are_put_in_lower_case_where_a_checkpoint_says_so(tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    save_checkpoint(tmp_path / "plain", "roberta", "bytes")
    parts = [Transformer(str(tmp_path / "plain"), max_seq_length=32, do_lower_case=True), Pooling(16, "mean")]
    SentenceTransformer(modules=parts, device="cpu").save(str(tmp_path / "lower"), create_model_card=False)
    theirs = SentenceTransformer(str(tmp_path / "lower"), device="cpu").encode_document(TEXTS)
    encoder = BiEncoder.from_pretrained(tmp_path / "lower", device="cpu")
    cased = BiEncoder.from_pretrained(tmp_path / "plain", device="cpu", **PLAIN)
    assert abs(cased.encode_passages(TEXTS) - theirs).max() > 0.01
    assert_close(encoder.encode_passages(TEXTS), theirs)
    encoder.save(tmp_path / "again")
    again = BiEncoder.from_pretrained(tmp_path / "again", device="cpu")
    assert_close(again.encode_passages(TEXTS), theirs)


# --- checkpoints of DPR ------------------------------------------------------------------------


def save_dpr(folder, kind, **changed):
    """Write an encoder of the original DPR classes."""
    import transformers

    tokenizer = make_tokenizer("word pieces")
    config = transformers.DPRConfig(vocab_size=len(tokenizer), **{**DPR_SHAPE, **changed})
    with torch.random.fork_rng():
        torch.manual_seed(len(kind))
        model = getattr(transformers, kind)(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def output_of(model):
    """The `pooler_output` of each text alone, as the model card of DPR takes it."""
    tokenizer = make_tokenizer("word pieces")
    with torch.no_grad():
        rows = [tokenizer(text, truncation=True, max_length=32, return_tensors="pt") for text in TEXTS]
        return torch.cat([model(**row).pooler_output for row in rows]).numpy()


@pytest.mark.parametrize("kind", ["DPRQuestionEncoder", "DPRContextEncoder"])
def test_an_encoder_of_dpr_gives_its_own_output_and_is_saved_as_any_other(tmp_path, kind):
    from sentence_transformers import SentenceTransformer

    theirs = output_of(save_dpr(tmp_path / "dpr", kind))
    how = {**PLAIN, "pooling": "cls", "similarity": "dot"}
    encoder = BiEncoder.from_pretrained(tmp_path / "dpr", device="cpu", **how)
    assert (encoder.name, encoder.dimension) == ("dpr", 16)
    assert_close(encoder.encode_queries(TEXTS), theirs)
    assert_close(encoder.encode_passages(TEXTS), theirs)
    encoder.save(tmp_path / "saved")
    again = BiEncoder.from_pretrained(tmp_path / "saved", device="cpu")
    assert (again.config, again.fingerprint) == (encoder.config, encoder.fingerprint)
    assert_close(again.encode_passages(TEXTS), theirs)
    assert_close(SentenceTransformer(str(tmp_path / "saved"), device="cpu").encode(TEXTS), theirs)


def test_the_two_encoders_of_dpr_score_as_they_do_in_transformers(tmp_path):
    kinds = {"query": "DPRQuestionEncoder", "passage": "DPRContextEncoder"}
    theirs = {side: output_of(save_dpr(tmp_path / side, kind)) for side, kind in kinds.items()}
    both = TwoEncoders.from_pretrained(
        tmp_path, device="cpu", **{**PLAIN, "pooling": "cls", "similarity": "dot"}
    )
    scores = both.encode_queries(TEXTS) @ both.encode_passages(TEXTS).T
    np.testing.assert_allclose(scores, theirs["query"] @ theirs["passage"].T, rtol=1e-5, atol=1e-4)


def test_a_dropout_and_an_activation_of_dpr_are_kept(tmp_path):
    changed = {"hidden_dropout_prob": 0.25, "hidden_act": "relu", "layer_norm_eps": 1e-3}
    theirs = output_of(save_dpr(tmp_path, "DPRContextEncoder", **changed))
    encoder = BiEncoder.from_pretrained(tmp_path, device="cpu", **{**PLAIN, "pooling": "cls"})
    assert {field: getattr(encoder.model.config, field) for field in changed} == changed
    assert_close(encoder.encode_passages(TEXTS), theirs)


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("DPRReader", {}),
        ("DPRQuestionEncoder", {"projection_dim": 8}),
        ("DPRContextEncoder", {"projection_dim": 8}),
    ],
)
def test_a_part_of_dpr_that_is_more_than_bert_is_refused_by_name(tmp_path, kind, changed):
    save_dpr(tmp_path, kind, **changed)
    wanted = f"is a DPR checkpoint, {kind} with projection {changed.get('projection_dim', 0)}; only DPRQuest"
    with pytest.raises(ValueError, match=wanted):
        BiEncoder.from_pretrained(tmp_path, device="cpu", **PLAIN)


def test_an_encoder_of_dpr_that_lacks_a_weight_is_refused_by_its_name(tmp_path):
    save_dpr(tmp_path, "DPRContextEncoder")
    lost = "ctx_encoder.bert_model.encoder.layer.1.output.dense.weight"
    change_weights(tmp_path, lambda weights: {name: weights[name] for name in weights.keys() - {lost}})
    with pytest.raises(ValueError, match=f"lacks weights {lost} "):
        BiEncoder.from_pretrained(tmp_path, device="cpu", **PLAIN)
    save_dpr(tmp_path, "DPRContextEncoder")
    change_json(tmp_path / "config.json", num_hidden_layers=1)
    with pytest.raises(ValueError, match=r"has other weights ctx_encoder.bert_model.encoder.layer.1\."):
        BiEncoder.from_pretrained(tmp_path, device="cpu", **PLAIN)
