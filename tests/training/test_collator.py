"""Batches of records: tokens, passes, and the mask of what is no negative."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_data import data_of, numbered

from dpr.data.examples import Example
from dpr.models.bi_encoder import BiEncoder
from dpr.models.two_encoders import TwoEncoders
from dpr.training.collator import Collator
from dpr.training.dataset import Record, TrainingSequence

LINE = "masks filter droplets and vaccines protect the lungs of bats while zinc shortens a cold"


def load(folder, **settings):
    """The tiny model with the lengths 8 and 12, or as told."""
    plain = {"pooling": "mean", "query_max_length": 8, "passage_max_length": 12}
    return BiEncoder.from_pretrained(folder, device="cpu", **{**plain, **settings})


@pytest.fixture(scope="module")
def encoder(plain_folder) -> BiEncoder:
    """With a prompt on either side."""
    return load(plain_folder, query_prompt="ask: ", passage_prompt="say: ")


DATA = data_of(
    Example("q0", "zinc", {"p0": 2, "other": 1}, ("n0", "n1")),
    Example("q1", f"do {LINE}", {"p1": 1}),
    Example("q2", "where do bats live", {"p2": 1}, ("n1",)),
    p0="masks",
    p1=f"{LINE} {LINE}",
    p2="zinc shortens a cold",
    n0="a cold " * 5,
    n1="droplets protect",
)
RECORDS = [
    Record(DATA.examples[2], "p2", ("n1",)),
    Record(DATA.examples[0], "p0", ("n0", "n1")),
    Record(DATA.examples[1], "p1", ()),
    Record(DATA.examples[0], "other", ("n1",)),
]
QUERIES = [DATA.examples[n].query for n in (2, 0, 1)]
PASSAGES = [DATA.passages[doc_id] for doc_id in ("p2", "p0", "p1", "other", "n1", "n0")]


def assert_tokens(batch, tokenizer, texts, prompt, max_length):
    """The fields of a pass are what the tokenizer itself makes of these texts."""
    expected = tokenizer(
        [prompt + text for text in texts],
        padding=True,
        truncation=True,
        max_length=max_length,
        return_tensors="pt",
    )
    assert set(batch) == {"input_ids", "attention_mask", "token_type_ids", "rows"} == {*expected, "rows"}
    for field, tensor in expected.items():
        assert torch.equal(batch[field], tensor), field


def test_a_batch_holds_the_tokenizers_tokens_of_queries_positives_and_then_negatives_each_once(encoder):
    batch = Collator(encoder, DATA)(RECORDS)
    (queries,), (passages,) = batch["queries"], batch["passages"]
    assert_tokens(queries, encoder.tokenizer, QUERIES, "ask: ", 8)
    assert_tokens(passages, encoder.tokenizer, PASSAGES, "say: ", 12)
    assert (queries["rows"].tolist(), passages["rows"].tolist()) == ([0, 1, 2], [0, 1, 2, 3, 4, 5])
    assert (queries["input_ids"].shape[1], passages["input_ids"].shape[1]) == (8, 12)  # some texts are cut
    assert (queries["attention_mask"] == 0).any()  # and some padded
    assert (passages["attention_mask"] == 0).any()


def test_each_of_two_encoders_has_its_own_tokenizer_prompt_and_length(plain_folder):
    query = load(plain_folder, query_max_length=7, query_prompt="ask: ", passage_prompt="no: ")
    passage = load(plain_folder, passage_max_length=9, query_prompt="no: ", passage_prompt="say: ")
    passage.tokenizer.pad_token_id, query.tokenizer.truncation_side = 7, "left"
    batch = Collator(TwoEncoders(query, passage), DATA)(RECORDS)
    (queries,), (passages,) = batch["queries"], batch["passages"]
    assert_tokens(queries, query.tokenizer, QUERIES, "ask: ", 7)
    assert_tokens(passages, passage.tokenizer, PASSAGES, "say: ", 9)


@pytest.mark.parametrize(
    ("pass_tokens", "num_passes"), [(1, (3, 6)), (12, (3, 5)), (16, (2, 5)), (24, (1, 3)), (1000, (1, 1))]
)
def test_passes_hold_each_text_once_and_no_more_tokens_than_told(encoder, pass_tokens, num_passes):
    whole = Collator(encoder, DATA)(RECORDS)
    batch = Collator(encoder, DATA, pass_tokens)(RECORDS)
    assert torch.equal(batch["positives"], whole["positives"])
    for side in ("queries", "passages"):
        (together,) = whole[side]
        rows = [row for each in batch[side] for row in each["rows"].tolist()]
        assert sorted(rows) == together["rows"].tolist()
        for each in batch[side]:
            size, longest = each["input_ids"].shape
            assert size == 1 or size * longest <= pass_tokens
            assert each["attention_mask"].sum(dim=1).max() == longest
            for field, tensor in each.items():
                if field != "rows":
                    assert torch.equal(tensor, together[field][each["rows"], :longest]), field
    assert (len(batch["queries"]), len(batch["passages"])) == num_passes


@pytest.mark.parametrize("all_positives", [False, True])
def test_other_positives_of_a_query_and_copies_are_no_negatives_of_it_and_those_of_others_are(
    encoder, all_positives
):
    one = Example("q0", "one", {"p0": 2, "more": 1}, ("n",))
    two = Example("q1", "two", {"p1": 1, "p0": 1}, ("more", "copy"))
    data = data_of(one, two, p1="weiße Maus", copy=" WEISSE  maus")
    collator = Collator(encoder, data, all_positives=all_positives)
    batch = collator([Record(one, "p0", ("n",)), Record(two, "p1", ("more", "copy"))])
    not_negative = [
        [True, False, False, True],  # p0, p1 and its copy, n, more
        [True, True, False, False],
    ]
    own = [[True, False, False, False], [False, True, False, False]]
    assert batch["not_negative"].tolist() == not_negative
    assert batch["positives"].tolist() == (not_negative if all_positives else own)
    shown = [data.passages[doc_id] for doc_id in ("p0", "p1", "n", "more")]
    assert_tokens(batch["passages"][0], encoder.tokenizer, shown, "say: ", 12)


words = st.sampled_from(["a", "A", "b", "b  b", "B b", "c", "d", "e"])


@given(
    texts=st.lists(words, min_size=4, max_size=8),
    numbers=st.lists(st.integers(0, 2), min_size=1, max_size=5),
    all_positives=st.booleans(),
    draw=st.data(),
)
def test_the_masks_are_what_a_plain_loop_says_is_relevant(encoder, texts, numbers, all_positives, draw):
    passages = {f"d{n}": text for n, text in enumerate(texts)}
    doc_ids = st.lists(st.sampled_from(sorted(passages)), min_size=1, max_size=3, unique=True)
    examples = [
        Example(f"q{n}", f"query {n}", dict.fromkeys(draw.draw(doc_ids), 1), tuple(draw.draw(doc_ids)))
        for n in range(3)
    ]
    records = [
        Record(e, draw.draw(st.sampled_from(list(e.positives))), e.negatives[: draw.draw(st.integers(0, 2))])
        for e in (examples[n] for n in numbers)
    ]
    shown, queries = [], []
    for doc_id in [r.positive for r in records] + [d for r in records for d in r.negatives]:
        text = " ".join(passages[doc_id].lower().split())
        if text not in shown:
            shown.append(text)
    for record in records:
        if record.example not in queries:
            queries.append(record.example)
    positives, not_negative = [], []
    for query in queries:
        relevant = {" ".join(passages[d].lower().split()) for d in query.positives}
        taken = {" ".join(passages[r.positive].lower().split()) for r in records if r.example is query}
        not_negative.append([text in relevant for text in shown])
        positives.append([text in (relevant if all_positives else taken) for text in shown])
    batch = Collator(encoder, data_of(*examples, **passages), all_positives=all_positives)(records)
    assert batch["not_negative"].tolist() == not_negative
    assert batch["positives"].tolist() == positives
    sides = {"queries": [q.query for q in queries], "passages": shown}
    for (side, expected), prompt in zip(sides.items(), ("ask: ", "say: "), strict=True):
        (tokens,) = batch[side]
        rows = encoder.tokenizer([prompt + text for text in expected], padding=True, return_tensors="pt")
        assert torch.equal(tokens["input_ids"], rows["input_ids"])


def test_batches_of_a_run_give_the_texts_of_their_records(encoder):
    data = numbered(5, num_negatives=3)
    sequence = TrainingSequence(data, batch_size=2, num_batches=4, seed=0, num_negatives=2)
    loader = torch.utils.data.DataLoader(sequence, batch_size=2, collate_fn=Collator(encoder, data))
    batches = list(loader)
    assert len(batches) == 4
    for number, batch in enumerate(batches):
        records = [sequence[2 * number], sequence[2 * number + 1]]
        doc_ids = [r.positive for r in records] + [d for r in records for d in r.negatives]
        texts = [data.passages[doc_id] for doc_id in doc_ids]
        assert_tokens(batch["passages"][0], encoder.tokenizer, texts, "say: ", 12)
        assert_tokens(batch["queries"][0], encoder.tokenizer, [r.example.query for r in records], "ask: ", 8)
        for mask in ("positives", "not_negative"):
            assert batch[mask].tolist() == np.eye(2, 6, dtype=bool).tolist()
