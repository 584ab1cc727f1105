"""The overfit test: its pairs are wrong by one place, and it is refused what does not fit its batch."""

from re import escape

import pytest

from dpr.data.examples import Example
from dpr.data.training_data import TrainingData
from dpr.models.bi_encoder import BiEncoder
from dpr.training.overfit import overfit, shuffle_pairs
from dpr.training.settings import TrainingSettings


def made(texts=("zinc", "bats", "soap", "milk", "snow", "salt")):
    """A query for each text, which is its only positive, with another one as its negative."""
    examples = [Example(f"q{i}", f"query {i}", {f"d{i}": 2}, ("d0",) * (i > 0)) for i in range(len(texts))]
    return TrainingData("made", examples, {f"d{i}": text for i, text in enumerate(texts)})


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("num_pairs", [2, 5])
def test_each_query_gets_the_passage_of_the_next_one_and_the_last_that_of_the_first(num_pairs, seed):
    pairs = shuffle_pairs(made(), num_pairs, seed)
    chosen = [e.query_id[1:] for e in pairs.examples]
    assert len(set(chosen)) == num_pairs
    assert [dict(e.positives) for e in pairs.examples] == [{f"d{i}": 1} for i in chosen[1:] + chosen[:1]]
    assert {e.negatives for e in pairs.examples} == {()}
    assert pairs.passages == {f"d{i}": made().passages[f"d{i}"] for i in chosen}


def test_the_seed_chooses_the_queries():
    chosen = {tuple(e.query_id for e in shuffle_pairs(made(), 3, seed).examples) for seed in range(9)}
    assert len(chosen) > 1


@pytest.mark.parametrize(
    ("texts", "num_pairs", "message"),
    [
        (("zinc", "Zinc", "bats", " soap", "soap"), 4, "made has 3 positives, 4 are needed"),
        (("zinc", "ZINC"), 1, "made has 1 positives, 2 are needed"),
    ],
)
def test_passages_of_one_text_count_once_and_too_few_are_refused(texts, num_pairs, message):
    with pytest.raises(ValueError, match=message):
        shuffle_pairs(made(texts), num_pairs, 0)


def test_pairs_that_do_not_fill_the_batch_are_refused(plain_folder):
    lengths = {"pooling": "mean", "query_max_length": 6, "passage_max_length": 8}
    encoder = BiEncoder.from_pretrained(plain_folder, device="cpu", **lengths)
    settings = TrainingSettings(num_steps=1, batch_size=4, log_every=1)
    four, three = shuffle_pairs(made(), 4, 0), shuffle_pairs(made(), 3, 0)
    for pairs, held_out, got in ((three, four, "3 and 4"), (four, three, "4 and 3")):
        message = f"expected 4 pairs and a multiple of it held out, got {got}"
        with pytest.raises(ValueError, match=escape(message)):
            overfit(encoder, pairs, held_out, settings)
