"""Two encoders: each side's own vectors, names and settings, saved and read back together."""

from re import escape

import numpy as np
import pytest

from dpr.models.bi_encoder import BiEncoder
from dpr.models.two_encoders import TwoEncoders

TEXTS = ["", "zinc", "do masks help", "masks filter droplets and bats carry many viruses " * 4]


def load_tiny(folder, **settings):
    """The tiny model with lengths 8 and 16, or as told."""
    plain = {"pooling": "mean", "query_max_length": 8, "passage_max_length": 16}
    return BiEncoder.from_pretrained(folder, device="cpu", **{**plain, **settings})


@pytest.fixture
def query(plain_folder) -> BiEncoder:
    """Encodes by the first token, with a prompt for either side."""
    return load_tiny(
        plain_folder, pooling="cls", query_max_length=9, query_prompt="ask: ", passage_prompt="no: "
    )


@pytest.fixture
def passage(plain_folder) -> BiEncoder:
    """Encodes by several layers, with other prompts."""
    return load_tiny(plain_folder, pooling="sum-last-2", query_prompt="no: ", passage_prompt="say: ")


def contents(folder):
    """Every file under a folder, with its bytes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def assert_alike(ours, theirs):
    """Both encode queries, passages and chunks to the same vectors."""
    np.testing.assert_array_equal(ours.encode_queries(TEXTS), theirs.encode_queries(TEXTS))
    np.testing.assert_array_equal(ours.encode_passages(TEXTS), theirs.encode_passages(TEXTS))
    for our, their in zip(ours.encode_chunks(TEXTS), theirs.encode_chunks(TEXTS), strict=True):
        np.testing.assert_array_equal(our, their)


# --- encoding ----------------------------------------------------------------------------------


def test_queries_go_to_one_encoder_and_passages_to_the_other(query, passage):
    both = TwoEncoders(query, passage)
    np.testing.assert_array_equal(both.encode_queries(TEXTS), query.encode_queries(TEXTS))
    np.testing.assert_array_equal(both.encode_passages(TEXTS), passage.encode_passages(TEXTS))
    vectors, owners = both.encode_chunks(TEXTS)
    np.testing.assert_array_equal(vectors, passage.encode_chunks(TEXTS)[0])
    np.testing.assert_array_equal(owners, passage.encode_chunks(TEXTS)[1])
    assert abs(both.encode_queries(TEXTS) - passage.encode_queries(TEXTS)).max() > 0.1
    assert abs(both.encode_passages(TEXTS) - query.encode_passages(TEXTS)).max() > 0.1


def test_the_pair_says_of_each_side_what_holds_for_it(query, passage):
    both = TwoEncoders(query, passage)
    assert (both.query, both.passage, both.passage.passage) == (query, passage, passage)
    assert (both.name, both.dimension, both.precision) == ("tiny-bert", 16, "float32")
    config = both.config
    assert (config.query_prompt, config.query_max_length) == ("ask: ", 9)
    assert (config.passage_prompt, config.passage_max_length) == ("say: ", 16)
    assert (config.pooling, config.similarity) == ("sum-last-2", "cosine")


def test_the_fingerprint_names_both_and_which_is_which(query, passage):
    pairs = [(query, passage), (passage, query), (query, query), (passage, passage)]
    fingerprints = [TwoEncoders(*pair).fingerprint for pair in pairs]
    fingerprints += [query.fingerprint, passage.fingerprint]
    assert len(set(fingerprints)) == len(fingerprints)
    assert all(len(fingerprint) == 16 and int(fingerprint, 16) for fingerprint in fingerprints)
    assert TwoEncoders(query, passage).fingerprint == fingerprints[0]


def test_encoders_whose_vectors_cannot_be_compared_are_refused(query, passage):
    with pytest.raises(ValueError, match="the query encoder has dimension 16, the passage encoder 32"):
        TwoEncoders(query, passage.with_settings(pooling="concat-last-2"))
    with pytest.raises(ValueError, match="the query encoder has similarity dot, the passage encoder cosine"):
        TwoEncoders(query.with_settings(similarity="dot"), passage)


# --- on disk -----------------------------------------------------------------------------------


def test_a_saved_pair_reads_back_alike(query, passage, tmp_path):
    both = TwoEncoders(query, passage)
    both.save(tmp_path / "models" / "pair")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["pair"]
    for folder in (tmp_path / "models" / "pair", str(tmp_path / "models" / "pair") + "/"):
        again = TwoEncoders.from_pretrained(folder, device="cpu")
        assert (again.name, again.query.name, again.passage.name) == ("pair", "pair", "pair")
        assert (again.config, again.fingerprint) == (both.config, both.fingerprint)
        assert (again.query.config, again.passage.config) == (query.config, passage.config)
        assert_alike(again, both)


def test_precision_and_settings_go_to_both_sides(query, passage, tmp_path):
    TwoEncoders(query, passage).save(tmp_path)
    again = TwoEncoders.from_pretrained(tmp_path, "cpu", "bfloat16", normalize=True)
    for side, before in ((again.query, query), (again.passage, passage)):
        assert side.precision == again.precision == "bfloat16"
        assert side.config == before.with_settings(normalize=True).config


@pytest.mark.parametrize("side", ["query", "passage"])
def test_a_pair_without_one_of_its_sides_is_refused_and_the_side_named(query, passage, tmp_path, side):
    TwoEncoders(query, passage).save(tmp_path / "pair")
    (tmp_path / "pair" / side).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=escape(f"{tmp_path / 'pair' / side}: no such checkpoint")):
        TwoEncoders.from_pretrained(tmp_path / "pair", device="cpu")


def test_a_pair_is_not_read_as_one_encoder(query, passage, tmp_path):
    TwoEncoders(query, passage).save(tmp_path / "pair")
    message = escape(f"{tmp_path / 'pair'} holds two encoders; TwoEncoders.from_pretrained reads them")
    for settings in ({}, {"pooling": "mean", "query_max_length": 8, "passage_max_length": 8}):
        with pytest.raises(ValueError, match=message):
            BiEncoder.from_pretrained(tmp_path / "pair", device="cpu", **settings)


def test_a_pair_replaces_all_of_an_earlier_one_whatever_its_forms(query, passage, tmp_path):
    for number, sides in enumerate([(query, passage), (passage, query), (query, query)]):
        TwoEncoders(*sides).save(tmp_path / f"{number}")
        TwoEncoders(*sides).save(tmp_path / "same")
        assert contents(tmp_path / "same").keys() == contents(tmp_path / f"{number}").keys()
        again = TwoEncoders.from_pretrained(tmp_path / "same", device="cpu")
        assert again.fingerprint == TwoEncoders(*sides).fingerprint


def test_a_folder_that_holds_something_else_is_not_overwritten(query, passage, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.md").write_text("years of work")
    query.save(tmp_path / "one")
    before = contents(tmp_path)
    for name in ("thesis", "one"):
        with pytest.raises(ValueError, match=f"{name} holds something else than two encoders"):
            TwoEncoders(query, passage).save(tmp_path / name)
    assert contents(tmp_path) == before


def test_a_save_that_fails_leaves_the_old_pair(query, passage, tmp_path, monkeypatch):
    def fail(path, text):
        raise OSError("disk full")

    TwoEncoders(query, passage).save(tmp_path / "pair")
    before = contents(tmp_path)
    monkeypatch.setattr("dpr.models.checkpoint.write_text", fail)  # for the passage side, after the query's
    with pytest.raises(OSError, match="disk full"):
        TwoEncoders(query, passage).save(tmp_path / "pair")
    assert contents(tmp_path) == before
