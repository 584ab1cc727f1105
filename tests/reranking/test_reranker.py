"""Cross-encoders: scores as sentence-transformers gives them, and the check that a pair is read as a pair."""

import json
import shutil
from re import escape

import numpy as np
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, BertModel

from dpr.models.bi_encoder import BiEncoder
from dpr.reranking.pairs import tokenize_pairs, without_segments
from dpr.reranking.reranker import HEADS, Reranker, check_pairs
from dpr.reranking.segments import SegmentSimilarity

LENGTHS = {"pooling": "mean", "query_max_length": 8, "passage_max_length": 16}
WORDS = ["masks", "filter", "droplets", "while", "zinc", "shortens", "a", "cold", "and", "bats"]
WORDS += ["carry", "viruses", "in", "the", "dark"]


def texts(seed, count):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(1, 30))) for _ in range(count)]


PAIRS = list(zip(texts(0, 40), texts(1, 40), strict=True))


@pytest.fixture(scope="module", params=HEADS)
def reranker(plain_folder, request):
    return made(plain_folder, request.param)


def made(folder, head, seed=0):
    """A cross-encoder from the tiny bi-encoder in a folder."""
    return Reranker.from_encoder(BiEncoder.from_pretrained(folder, "cpu", **LENGTHS), 24, head, seed)


def saved(folder, plain_folder, **shape):
    """A sequence classifier with random weights and the tokenizer of `plain_folder`."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(
        **{**sizes, "max_position_embeddings": 40, "initializer_range": 0.5, "num_labels": 1, **shape}
    )
    torch.manual_seed(0)
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(plain_folder)).save_pretrained(folder)
    return folder


# --- scores ------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_tokens", [None, 1, 100])
def test_scores_are_those_of_sentence_transformers_on_the_saved_folder(reranker, tmp_path, batch_tokens):
    reranker.save(tmp_path / "model")
    peer = CrossEncoder(str(tmp_path / "model"), device="cpu", trust_remote_code=True)  # our head is ours
    expected = peer.predict([list(pair) for pair in PAIRS])
    scores = reranker.predict(PAIRS, batch_tokens=batch_tokens)
    assert scores.dtype == np.float32
    assert expected.std() > 1e-3
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_a_saved_reranker_is_the_same_when_read_again(reranker, tmp_path):
    reranker.save(tmp_path / "model")
    again = Reranker.from_pretrained(tmp_path / "model", device="cpu")
    assert (again.fingerprint, again.max_length, again.name) == (reranker.fingerprint, 24, "model")
    np.testing.assert_array_equal(again.predict(PAIRS), reranker.predict(PAIRS))
    other = Reranker.from_pretrained(tmp_path / "model", 12, "cpu")
    assert other.fingerprint != reranker.fingerprint
    assert np.abs(other.predict(PAIRS) - reranker.predict(PAIRS)).max() > 1e-4


def test_raw_scores_of_a_classifier_that_states_a_sigmoid(plain_folder, tmp_path):
    folder = saved(tmp_path / "plain", plain_folder)
    peer = CrossEncoder(str(folder), device="cpu", max_length=24)
    assert isinstance(peer.activation_fn, torch.nn.Sigmoid)
    shares = peer.predict([list(pair) for pair in PAIRS])
    scores = Reranker.from_pretrained(folder, 24, "cpu").predict(PAIRS)
    np.testing.assert_allclose(1 / (1 + np.exp(-scores)), shares, atol=1e-5)


def test_the_body_is_the_encoders_and_only_the_head_is_new(plain_folder):
    encoder = BiEncoder.from_pretrained(plain_folder, "cpu", **LENGTHS)
    body, before = encoder.model.state_dict(), encoder.fingerprint
    one, same, other = (Reranker.from_encoder(encoder, 24, "cls", seed) for seed in (0, 0, 1))
    compared, again = (Reranker.from_encoder(encoder, 24, "segments", seed) for seed in (0, 1))
    for started in (one, compared):
        weights = started.model.base_model.state_dict()
        assert body.keys() <= weights.keys()
        assert all(torch.equal(body[name], weights[name]) for name in body)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert compared.fingerprint == again.fingerprint  # nothing in it is random
    assert encoder.fingerprint == before
    with pytest.raises(ValueError, match=escape("head must be one of ('segments', 'cls'), got 'mean'")):
        Reranker.from_encoder(encoder, 24, "mean")


def test_the_segments_head_compares_the_means_of_both_texts(plain_folder):
    reranker = made(plain_folder, "segments")
    tokenizer, model = reranker.tokenizer, reranker.model
    model.eval()
    for query, passage in PAIRS[:5]:
        row = tokenizer(query, passage, truncation=True, max_length=24)
        fields = {name: torch.tensor([values]) for name, values in row.items()}
        with torch.inference_mode():
            vectors = model(**fields).last_hidden_state[0].double().numpy()
        end = row["input_ids"].index(tokenizer.sep_token_id) + 1
        one, other = vectors[:end].mean(axis=0), vectors[end:].mean(axis=0)
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        [score] = reranker.predict([(query, passage)])
        assert score == pytest.approx(20 * (cosine - 0.8), abs=1e-4)
    assert reranker.container[1].state_dict().keys() == {"scale", "threshold"}


def test_the_segments_head_needs_segment_ids(plain_folder, tmp_path):
    config = BertConfig.from_pretrained(str(plain_folder), type_vocab_size=1)
    BertModel(config).save_pretrained(tmp_path / "none")
    AutoTokenizer.from_pretrained(str(plain_folder)).save_pretrained(tmp_path / "none")
    encoder = BiEncoder.from_pretrained(tmp_path / "none", "cpu", **LENGTHS)
    with pytest.raises(ValueError, match="has no segment ids, which the head needs; use head='cls'"):
        Reranker.from_encoder(encoder, 24)


def test_what_is_trained_of_the_head_is_saved(plain_folder, tmp_path):
    reranker = made(plain_folder, "segments")
    with torch.no_grad():
        reranker.container[1].scale.fill_(3.0)
        reranker.container[1].threshold.fill_(-0.5)
    reranker.save(tmp_path / "model")
    head = Reranker.from_pretrained(tmp_path / "model", device="cpu").container[1]
    assert isinstance(head, SegmentSimilarity)
    assert (float(head.scale), float(head.threshold)) == (3.0, -0.5)


def test_code_in_a_checkpoint_is_not_executed(plain_folder, tmp_path):
    made(plain_folder, "segments").save(tmp_path / "model")
    path = tmp_path / "model" / "modules.json"
    path.write_text(path.read_text().replace("dpr.reranking.segments.SegmentSimilarity", "evil.Head"))
    (tmp_path / "model" / "evil.py").write_text("raise SystemExit")
    with pytest.raises(ValueError, match=r"is BertModel|is made of"):
        Reranker.from_pretrained(tmp_path / "model", device="cpu")


def test_bfloat16_is_near(reranker):
    rough = Reranker(reranker.container, "rough", 24, "bfloat16").predict(PAIRS)
    exact = reranker.predict(PAIRS)
    assert 0 < np.abs(rough - exact).max() < 0.05 * np.abs(exact).max()


def test_no_pairs_and_pairs_that_are_none(reranker):
    assert reranker.predict([]).shape == (0,)
    with pytest.raises(ValueError, match=r"pair 1 is .*expected a query and a passage"):
        reranker.predict([("a", "b"), ("a", "b", "c")])
    with pytest.raises(ValueError, match="pairs must be"):
        reranker.predict(["ab"])
    with pytest.raises(ValueError, match="overflow must be one of"):
        reranker.predict(PAIRS, overflow="cut")


# --- long passages -----------------------------------------------------------------------------


def test_with_chunks_the_best_chunk_counts(reranker):
    query, passage = "zinc for a cold", " ".join(WORDS * 4)
    rows, owners = tokenize_pairs(reranker.tokenizer, [(query, passage), ("a", "b")], 24, "max_chunk")
    assert owners.tolist() == [0] * (len(rows) - 1) + [1]
    assert len(rows) > 3
    own = reranker.tokenizer(passage, add_special_tokens=False)["input_ids"]
    told = [row["input_ids"][row["token_type_ids"] == 1][:-1].tolist() for row in rows[:-1]]
    assert [token for chunk in told for token in chunk] == own  # each token once, in order
    alone = [float(reranker.score(reranker.pad([row]))[0]) for row in rows]
    found = reranker.predict([(query, passage), ("a", "b")], overflow="max_chunk")
    np.testing.assert_allclose(found, [max(alone[:-1]), alone[-1]], atol=1e-5)


def test_with_chunks_a_long_query_leaves_half_the_room(reranker):
    rows, _ = tokenize_pairs(reranker.tokenizer, [(" ".join(WORDS * 3), "zinc")], 24, "max_chunk")
    assert [int((row["token_type_ids"] == 0).sum()) for row in rows] == [2 + 10]  # [CLS] and [SEP]
    assert len(reranker.predict([(" ".join(WORDS * 3), " ".join(WORDS * 3))], overflow="max_chunk")) == 1


# --- is a pair read as a pair? -----------------------------------------------------------------


def test_a_tokenizer_without_segment_ids_is_refused_before_the_first_score(plain_folder, tmp_path):
    folder = saved(tmp_path / "lost", plain_folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "model_input_names": ["input_ids", "attention_mask"]}))
    broken = Reranker.from_pretrained(folder, 24, "cpu")
    with pytest.raises(ValueError, match="its tokenizer gives none: add token_type_ids"):
        broken.predict(PAIRS)


def test_a_model_whose_segments_say_nothing_is_refused(plain_folder):
    reranker = made(plain_folder, "cls")
    table = reranker.model.base_model.embeddings.token_type_embeddings.weight
    check_pairs(reranker)
    with torch.no_grad():
        table[1] = table[0]
    with pytest.raises(ValueError, match="a pair and the same without segments one score"):
        check_pairs(reranker)


def test_a_model_blind_to_order_is_refused(plain_folder, tmp_path):
    blind = Reranker.from_pretrained(saved(tmp_path / "blind", plain_folder, type_vocab_size=1), 24, "cpu")
    assert set(check_pairs(blind)) == {"as read", "swapped"}  # it has no segments
    with torch.no_grad():
        blind.model.classifier.weight.zero_()
    with pytest.raises(ValueError, match="the same swapped one score"):
        check_pairs(blind)


def test_dropping_segment_ids_changes_scores(reranker):
    batch = reranker.pad(tokenize_pairs(reranker.tokenizer, PAIRS, 24)[0])
    there, gone = reranker.score(batch), reranker.score(without_segments(batch))
    assert np.abs(there - gone).max() > 0.01


# --- what cannot be read -----------------------------------------------------------------------


def test_a_bi_encoder_is_no_reranker(plain_folder):
    with pytest.raises(ValueError, match=r"is BertModel .*use Reranker\.from_encoder"):
        Reranker.from_pretrained(plain_folder, 24, "cpu")


def test_several_labels_lost_weights_and_wrong_lengths_are_refused(plain_folder, tmp_path):
    with pytest.raises(ValueError, match="with 3 labels, not a sequence classifier with one score"):
        Reranker.from_pretrained(saved(tmp_path / "three", plain_folder, num_labels=3), 24, "cpu")
    folder = saved(tmp_path / "fine", plain_folder)
    for length in (4, 41):
        with pytest.raises(ValueError, match=f"must be from 5 to 40, got {length}"):
            Reranker.from_pretrained(folder, length, "cpu")
    shutil.copytree(plain_folder, tmp_path / "headless")
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "headless" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"lacks the weights .*classifier"):
        Reranker.from_pretrained(tmp_path / "headless", 24, "cpu")
    with pytest.raises(FileNotFoundError, match="no such checkpoint folder"):
        Reranker.from_pretrained(tmp_path / "nowhere", 24, "cpu")
