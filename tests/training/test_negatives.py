"""Hard negatives: a plain loop, sentence-transformers' mining, and an audit with known faults."""

import math
import os
import subprocess
import sys
from collections import Counter
from re import escape
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_data import debates

from dpr.data.collection import Collection, Passage
from dpr.data.examples import Example
from dpr.data.training_data import TrainingData
from dpr.training.negatives import audit_negatives, jaccard, mine_negatives, shingles

PASSAGES = {f"d{n}": f"text {n}" for n in range(10)}
NOTHING = {"positive": 0, "query": 0, "empty": 0, "margin": 0, "cross-encoder": 0}  # is left out


def data_of(*positives, passages=PASSAGES):
    """Training data whose query qN, in the words `query N`, has these positives."""
    examples = [Example(f"q{n}", f"query {n}", dict.fromkeys(ids, 1)) for n, ids in enumerate(positives)]
    return TrainingData("made", examples, passages)


def falling(*doc_ids, start=100.0):
    """Scores of one query in which these passages have the ranks 1, 2, …"""
    return {doc_id: start - rank for rank, doc_id in enumerate(doc_ids)}


# --- mine_negatives: which passages ------------------------------------------------------------


SAME = {  # texts, and what they are once repaired, in lower case and with single spaces
    "a": "a",
    "A ": "a",
    "b": "b",
    "c": "c",
    "d": "d",
    "cafÃ©": "café",
    "Café": "café",
    "cafe": "cafe",
    "query 0": "query 0",
    " QUERY\n0": "query 0",
    "": "",
    " \n": "",
}


def candidates_by_hand(query_id, positives, relevant, passages, scores, ranks, max_share):
    """What is left of a ranking, best first, and how many were left out for each reason."""
    ranking = sorted(scores, key=lambda d: (scores[d], d), reverse=True)
    best = max((scores[d] for d in positives if d in scores), default=None)
    kept, left_out = [], Counter()
    for rank, doc_id in enumerate(ranking, start=1):
        if not ranks[0] <= rank <= ranks[1]:
            continue
        text = SAME[passages[doc_id]]
        if doc_id in positives or text in relevant:
            left_out["positive"] += 1
        elif doc_id == query_id or text == f"query {query_id[1:]}":
            left_out["query"] += 1
        elif not text:
            left_out["empty"] += 1
        elif max_share is not None and (best is None or scores[doc_id] >= max_share * best):
            left_out["margin"] += 1
        else:
            kept.append(doc_id)
    return kept, left_out


@given(
    positives=st.lists(
        st.sets(st.sampled_from(sorted(PASSAGES)), min_size=1, max_size=3), min_size=1, max_size=4
    ),
    texts=st.lists(st.sampled_from(sorted(SAME)), min_size=12, max_size=12),
    first=st.integers(1, 4),
    width=st.integers(0, 9),
    num_negatives=st.integers(1, 4),
    max_share=st.sampled_from([None, 0.5, 0.95, 1.0]),
    sampling=st.sampled_from(["top", "random"]),
    draw=st.data(),
)
def test_negatives_are_those_a_plain_loop_leaves(
    positives, texts, first, width, num_negatives, max_share, sampling, draw
):
    passages = dict(zip([*PASSAGES, "q0", "q1"], texts, strict=True))  # two queries are passages too
    scores = st.dictionaries(st.sampled_from(sorted(passages)), st.integers(1, 8).map(float))
    run = {f"q{n}": draw.draw(scores) for n in range(len(positives))}
    ranks = (first, first + width)
    trained = {d: text if text.strip() else "d" for d, text in passages.items()}
    mined = mine_negatives(
        data_of(*map(sorted, positives), passages=trained),
        passages,
        run,
        num_negatives=num_negatives,
        ranks=ranks,
        max_share=max_share,
        sampling=sampling,
    )
    left_out = Counter(NOTHING)
    short, expected = [], {}
    for n, relevant in enumerate(positives):
        alike = {SAME[trained[d]] for d in relevant}
        kept, counts = candidates_by_hand(f"q{n}", relevant, alike, passages, run[f"q{n}"], ranks, max_share)
        left_out.update(counts)
        found = mined.negatives.get(f"q{n}", ())
        if sampling == "random":
            assert list(found) == [doc_id for doc_id in kept if doc_id in found]  # hardest first
            assert len(found) == min(num_negatives, len(kept))
        elif kept:
            expected[f"q{n}"] = tuple(kept[:num_negatives])
        if len(kept) < num_negatives:
            short.append(f"q{n}")
    if sampling == "top":
        assert mined.negatives == expected
    assert all(mined.negatives.values())
    assert mined.left_out == left_out
    assert mined.short == short


def test_no_positive_and_no_copy_of_one_is_a_negative_and_ranks_are_those_of_the_run():
    passages = {**PASSAGES, "copy": " TEXT  0", "judged": "judged too"}
    data = data_of(["d0", "judged"], ["d5"], passages=passages)
    run = {
        "q0": falling("d0", "d1", "copy", "d2", "judged", "d3", "d4"),
        "q1": falling("d0", "copy", "d5"),
        "unknown": falling("d9"),
    }
    mined = mine_negatives(data, passages, run, num_negatives=2, ranks=(2, 6), sampling="top")
    assert mined.negatives == {"q0": ("d1", "d2"), "q1": ("copy",)}
    assert mined.left_out == {**NOTHING, "positive": 3}
    assert mined.short == ["q1"]
    assert data.with_negatives(mined.negatives, passages).examples[0].negatives == ("d1", "d2")


def test_a_share_is_of_the_best_positive_found_wherever_it_ranks():
    run = {
        "q0": {"d1": 10.0, "d2": 8.0, "d3": 7.6, "d4": 7.5, "d5": 4.0, "d6": 1.0},
        "q1": {"d1": 10.0, "d2": 9.0},
    }
    data = data_of(["d2", "d5"], ["d9"])
    mined = mine_negatives(data, PASSAGES, run, num_negatives=9, ranks=(3, 6), max_share=0.95, sampling="top")
    assert mined.negatives == {"q0": ("d4", "d6")}  # 7.6 is the bound; no positive of q1 was found
    assert mined.left_out == {**NOTHING, "positive": 1, "margin": 1}
    assert mined.short == ["q0", "q1"]


class Encoder:
    """Stands in for a SentenceTransformer: a table of vectors of length 1."""

    device = torch.device("cpu")

    def __init__(self, vectors):
        self.vectors = vectors

    def encode_query(self, texts, **_):
        return np.array([self.vectors[text] for text in texts])

    encode_document = encode_query

    def similarity(self, queries, passages):
        return torch.as_tensor(queries) @ torch.as_tensor(passages).T

    def similarity_pairwise(self, queries, passages):
        return (torch.as_tensor(queries) * torch.as_tensor(passages)).sum(dim=1)


@pytest.mark.parametrize(
    ("ranks", "max_share", "place"),
    [
        ((1, 30), None, 6),
        ((1, 30), 0.8, 6),
        ((1, 30), 0.95, 6),
        ((4, 12), None, -1),  # they count ranks without the positive: alike where it is the last
    ],
)
def test_the_best_negatives_are_those_that_sentence_transformers_mines(ranks, max_share, place):
    datasets = pytest.importorskip("datasets")
    from sentence_transformers.util import mine_hard_negatives

    passages = {f"d{n:02}": f"text {n}" for n in range(30)}
    queries = [f"query {n}" for n in range(12)]
    texts = [*queries, *passages.values()]
    vectors = np.random.default_rng(0).normal(size=(len(texts), 6)) + 1.5
    table = dict(zip(texts, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), strict=True))
    run = {
        f"q{n}": {doc_id: float(table[query] @ table[text]) for doc_id, text in passages.items()}
        for n, query in enumerate(queries)
    }
    positives = [sorted(scores, key=scores.__getitem__, reverse=True)[place] for scores in run.values()]
    rows = mine_hard_negatives(
        datasets.Dataset.from_dict({"query": queries, "positive": [passages[d] for d in positives]}),
        Encoder(table),
        corpus=list(passages.values()),
        range_min=ranks[0] - 1,
        range_max=ranks[1],
        relative_margin=None if max_share is None else 1 - max_share,
        num_negatives=3,
        sampling_strategy="top",
        output_format="labeled-list",
        verbose=False,
    )
    theirs = {row["query"]: row["positive"][1:] for row in rows}
    mined = mine_negatives(
        data_of(*([d] for d in positives), passages=passages),
        passages,
        run,
        num_negatives=3,
        ranks=ranks,
        max_share=max_share,
        sampling="top",
    )
    ours = {f"query {q[1:]}": [passages[d] for d in found] for q, found in mined.negatives.items()}
    assert ours == theirs
    assert (mined.left_out["margin"] > 20) is (max_share is not None)


# --- mine_negatives: at random -----------------------------------------------------------------

RUN = {f"q{n}": falling(*PASSAGES) for n in range(8)}


def test_a_random_choice_is_that_of_the_seed_and_of_the_query_alone():
    data = data_of(*[["d0"]] * 8)
    options = {"num_negatives": 3, "sampling": "random"}
    mined = mine_negatives(data, PASSAGES, RUN, **options, seed=1).negatives
    assert mined == mine_negatives(data, PASSAGES, RUN, **options, seed=1).negatives
    assert mined != mine_negatives(data, PASSAGES, RUN, **options, seed=2).negatives
    assert len(set(mined.values())) > 1  # one query's places are not another's
    fewer = TrainingData("made", data.examples[:4:-1], PASSAGES)
    some = {"q5": RUN["q5"], "q6": falling("d1", "d2")}
    assert mine_negatives(fewer, PASSAGES, some, **options, seed=1).negatives == {
        "q5": mined["q5"],
        "q6": ("d1", "d2"),
    }


def test_a_random_choice_is_the_same_in_another_process():
    code = """if True:
        from dpr.training.negatives import mine_negatives
        from dpr.data.training_data import Example, TrainingData
        passages = {f"d{n}": f"text {n}" for n in range(10)}
        data = TrainingData("made", [Example(f"q{n}", f"query {n}", {"d0": 1}) for n in range(8)], passages)
        run = {f"q{n}": {doc_id: -float(doc_id[1:]) for doc_id in passages} for n in range(8)}
        print(mine_negatives(data, passages, run, num_negatives=3, seed=1).negatives)
    """
    mined = mine_negatives(data_of(*[["d0"]] * 8), PASSAGES, RUN, num_negatives=3, seed=1).negatives
    environment = {**os.environ, "PYTHONHASHSEED": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(mined)


def test_every_candidate_and_no_other_passage_is_chosen_at_times():
    data = data_of(["d2"])
    chosen = [
        mine_negatives(data, PASSAGES, RUN, num_negatives=2, ranks=(2, 6), seed=seed).negatives["q0"]
        for seed in range(60)
    ]
    assert {doc_id for found in chosen for doc_id in found} == {"d1", "d3", "d4", "d5"}
    assert all(found == tuple(sorted(set(found))) and len(found) == 2 for found in chosen)


# --- mine_negatives: with a cross-encoder ------------------------------------------------------


@pytest.fixture(scope="module")
def cross_encoder(plain_folder, tmp_path_factory):
    """A sentence-transformers CrossEncoder of random weights, with segments that tell texts apart."""
    from sentence_transformers import CrossEncoder
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("cross")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(**shape, max_position_embeddings=40, initializer_range=0.5, num_labels=1)
    BertForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(plain_folder).save_pretrained(folder)
    return CrossEncoder(str(folder), max_length=40, device="cpu")


def test_passages_that_a_cross_encoder_scores_high_are_left_out(cross_encoder):
    data = data_of(["d0"], ["d1"])
    scores = {
        (n, d): float(cross_encoder.predict([(f"query {n}", text)])[0])
        for n in range(2)
        for d, text in PASSAGES.items()
    }
    ordered = sorted(scores.values())
    bound = (ordered[9] + ordered[10]) / 2
    mined = mine_negatives(
        data,
        PASSAGES,
        RUN,
        num_negatives=9,
        sampling="top",
        cross_encoder=cross_encoder,
        max_cross_score=bound,
    )
    for n in range(2):
        expected = [d for d in PASSAGES if d != f"d{n}" and scores[n, d] < bound]
        assert list(mined.negatives.get(f"q{n}", ())) == expected
    too_high = sum(score >= bound for (n, d), score in scores.items() if d != f"d{n}")
    assert mined.left_out == {**NOTHING, "positive": 2, "cross-encoder": too_high}
    assert 0 < too_high < 18


def test_the_cross_encoder_reads_query_and_passage_of_the_candidates_alone():
    asked = []

    def predict(pairs):
        asked.append(pairs)
        return [0.5, 0.4]

    run = {"q0": {"d1": 9.0, "d0": 8.0, "d2": 7.0, "d3": 6.0}, "q1": {"d1": 1.0}}
    mined = mine_negatives(
        data_of(["d0"], ["d1"], ["d2"]),
        PASSAGES,
        run,
        num_negatives=2,
        max_share=0.9,
        cross_encoder=SimpleNamespace(predict=predict),
        max_cross_score=0.5,
    )
    assert asked == [[("query 0", "text 2"), ("query 0", "text 3")]]
    assert mined.negatives == {"q0": ("d3",)}  # 0.5 is not below the bound
    assert mined.left_out == {**NOTHING, "positive": 2, "margin": 1, "cross-encoder": 1}


# --- mine_negatives: errors --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_negatives": 0}, r"num_negatives must be at least 1 .*, got 0, \(1, 100\)"),
        ({"ranks": (0, 5)}, r"ranks 1 ≤ first ≤ last, got 1, \(0, 5\)"),
        ({"ranks": (5, 4)}, r"ranks 1 ≤ first ≤ last, got 1, \(5, 4\)"),
        ({"sampling": "best"}, r"sampling must be one of \('top', 'random'\), got 'best'"),
        ({"cross_encoder": object()}, "cross_encoder and max_cross_score go together"),
        ({"max_cross_score": 0.5}, "cross_encoder and max_cross_score go together"),
        ({"run": {"other": {"d1": 1.0}}}, "the run's 1 queries and those of made have none in common"),
        ({"run": {"q0": {"new": 1.0}}}, "query q0: the run names new, which is not among the passages"),
        ({"max_share": 0}, "max_share must be above 0, got 0"),
        ({"max_share": -0.5}, "max_share must be above 0, got -0.5"),
        (
            {"max_share": 0.9, "run": {"q0": {"d1": 0.0, "d2": -1.0}}},
            r"query q0: a share of a score that is not above 0 \(0\.0\)",
        ),
    ],
)
def test_what_negatives_cannot_be_mined_with_is_refused(options, message):
    arguments = {"run": {"q0": {"d1": 2.0, "d2": 1.0}}, "num_negatives": 1, **options}
    with pytest.raises(ValueError, match=message):
        mine_negatives(data_of(["d1"]), PASSAGES, arguments.pop("run"), **arguments)


def test_a_hit_beyond_the_ranks_need_not_be_among_the_passages():
    run = {"q0": falling("d1", "d2", "new")}
    assert mine_negatives(data_of(["d1"]), PASSAGES, run, num_negatives=1, ranks=(1, 2)).negatives == {
        "q0": ("d2",)
    }


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf, "1.0", None])
@pytest.mark.parametrize("query_id", ["q0", "unknown"])
def test_a_score_that_is_no_finite_number_is_refused_by_query_and_document(query_id, score):
    run = {"q0": falling("d2"), query_id: {"d3": 2.0, "d4": score}}
    message = f"query {query_id}, document d4: score {score!r} is not a finite number"
    with pytest.raises(ValueError, match=escape(message)):
        mine_negatives(data_of(["d1"]), PASSAGES, run, num_negatives=1)


# --- mine_negatives: queries that are passages, copies and empty passages ----------------------


@pytest.mark.parametrize("sampling", ["top", "random"])
def test_a_query_that_is_a_document_is_never_its_own_negative(sampling):
    collection = debates("train")
    data = TrainingData.from_collection(collection)
    passages = {p.doc_id: p.contents for p in collection.passages}
    order = sorted(passages)
    run = {
        q: falling(q, *(d for d in order if d != q)) for q in collection.queries
    }  # each finds itself first
    mined = mine_negatives(data, passages, run, num_negatives=10, sampling=sampling)
    for query_id in collection.queries:
        [opposite] = collection.qrels[query_id]
        assert list(mined.negatives[query_id]) == [d for d in order if d not in (query_id, opposite)]
    assert mined.left_out == {**NOTHING, "positive": 12, "query": 12}
    assert mined.short == []


def test_a_query_is_known_by_its_id_or_by_its_text():
    passages = {
        **PASSAGES,
        "q0": "another text than the query's",
        "copy": " QUERY  0",
        "wrong": "what is a cafÃ©",
        "other": "query 0 and more",
        "q1": "fine for another query",
    }
    examples = [Example("q0", "query 0", {"d0": 1}), Example("q2", "what is a café", {"d1": 1})]
    data = TrainingData("made", examples, passages)
    run = {"q0": falling("q0", "copy", "other", "q1"), "q2": falling("wrong", "copy", "q0")}
    mined = mine_negatives(data, passages, run, num_negatives=2, sampling="top")
    assert mined.negatives == {"q0": ("other", "q1"), "q2": ("copy", "q0")}
    assert mined.left_out == {**NOTHING, "query": 3}


@pytest.mark.parametrize(
    ("positive", "copy"),
    [
        ("a café in Paris", "A  cafÃ© in PARIS"),
        ("the city’s “old” cafés", "the cityâ€™s â€œoldâ€\x9d cafÃ©s"),
        ("write &lt;b&gt; été", "Write &lt;b&gt; Ã©tÃ©"),
    ],
)
def test_a_copy_of_a_positive_is_no_negative_even_if_decoded_wrongly(positive, copy):
    for text, other in ((positive, copy), (copy, positive)):
        passages = {"p": text, "copy": other, "unlike": positive.replace("é", "e"), "longer": f"{copy} too"}
        searched = Collection(
            "made",
            [Passage(d, "", t) for d, t in passages.items()],
            {"q": "cafés"},
            {"train": {"q": {"p": 1}}},
            "train",
        )
        run = {"q": falling("copy", "p", "unlike", "longer")}
        mined = mine_negatives(TrainingData.from_collection(searched), passages, run, num_negatives=4)
        assert mined.negatives == {"q": ("unlike", "longer")}
        assert mined.left_out == {**NOTHING, "positive": 2}


def test_passages_of_nothing_are_left_out_and_counted():
    passages = {**PASSAGES, "blank": "", "white": " \n\u3000", "mark": "\ufeff", "dot": "."}
    run = {"q0": falling("blank", "d2", "white", "d1", "mark", "dot"), "q1": falling("blank")}
    mined = mine_negatives(data_of(["d1"], ["d2"]), passages, run, num_negatives=2, sampling="top")
    assert mined.negatives == {"q0": ("d2", "dot")}
    assert mined.left_out == {**NOTHING, "positive": 1, "empty": 4}
    assert mined.short == ["q1"]


def test_what_was_mined_for_a_thousand_queries_is_shown_in_a_line():
    run = {f"q{n}": falling(*PASSAGES) for n in range(1000)}
    mined = mine_negatives(data_of(*[["d0"]] * 1000), PASSAGES, run, num_negatives=20)
    assert len(mined.short) == 1000
    assert len(repr(mined)) < 300
    assert "'positive': 1000" in repr(mined)


# --- audit_negatives ---------------------------------------------------------------------------

TEXTS = {
    "p0": "masks filter droplets from the air",
    "p1": "two doses protect better than one",
    "p1-more": "vaccines are safe for children",
    "near": "Masks filter  droplets from the lungs",  # three of five sequences in common
    "far": "masks filter smoke and droplets from the air",  # two of eight
    "copy": "VACCINES are safe for children",
    "other": "bats carry many viruses",
}


def audit(negatives, qrels=None, **options):
    """The audit of two queries' negatives."""
    data = data_of(["p0"], ["p1", "p1-more"], passages={d: TEXTS[d] for d in ("p0", "p1", "p1-more")})
    return audit_negatives(data, TEXTS, negatives, qrels or {}, **options)


def test_false_negatives_are_counted_by_judgements_that_mining_did_not_know():
    qrels = {"q0": {"near": 2, "far": 0, "p0": 1}, "q1": {"other": -1, "far": 1}, "unknown": {"other": 1}}
    audited = audit({"q0": ("near", "far"), "q1": ("other", "far", "copy"), "unknown": ("p0",)}, qrels)
    assert (audited.num_negatives, audited.num_relevant) == (5, 2)
    assert audited.false_share == 0.4
    assert audit({"q1": ("other",)}).false_share == 0


def test_near_duplicates_of_any_positive_of_the_query_are_named():
    negatives = {"q0": ("near", "far", "copy", "p1"), "q1": ("copy", "near", "other")}
    assert audit(negatives).near_duplicates == [("q0", "near"), ("q1", "copy")]
    assert audit(negatives, near=0.6).near_duplicates == [("q0", "near"), ("q1", "copy")]
    assert audit(negatives, near=0.61).near_duplicates == [("q1", "copy")]
    assert ("q0", "far") in audit(negatives, near=0.25).near_duplicates


def test_samples_are_texts_spread_over_the_queries_from_the_first_to_the_last():
    negatives = {"q0": ("far", "near"), "q1": ("copy", "other", "far")}
    shown = audit(negatives, num_samples=3).samples
    assert shown == [
        ("query 0", TEXTS["p0"], TEXTS["far"]),
        ("query 1", TEXTS["p1"], TEXTS["copy"]),
        ("query 1", TEXTS["p1"], TEXTS["far"]),
    ]
    everything = audit(negatives, num_samples=99).samples
    assert [negative for *_, negative in everything] == [
        TEXTS[d] for found in negatives.values() for d in found
    ]
    assert audit(negatives, num_samples=0).samples == []


@pytest.mark.parametrize("negatives", [{}, {"q0": ()}, {"unknown": ("far",)}])
def test_an_audit_of_nothing_is_refused(negatives):
    with pytest.raises(ValueError, match="no negatives to audit"):
        audit(negatives)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One two  THREE four", {("one", "two", "three"), ("two", "three", "four")}),
        ("a b c", {("a", "b", "c")}),
        ("a B", {("a", "b")}),
        ("a a a a", {("a", "a", "a")}),
        (" ", {()}),
    ],
)
def test_shingles_are_sequences_of_three_words(text, expected):
    assert shingles(text) == expected


@given(one=st.sets(st.integers(0, 5), min_size=1), other=st.sets(st.integers(0, 5)))
def test_the_jaccard_share_is_that_of_a_count(one, other):
    both = sum(item in one and item in other for item in range(6))
    either = sum(item in one or item in other for item in range(6))
    assert jaccard(one, other) == jaccard(other, one) == both / either


# --- scripts without spaces --------------------------------------------------------------------

RIVER = "信濃川は日本で最も長い川であり、長野県と新潟県を流れて日本海に注ぐ。"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("長い川", {("長", "い", "川")}),
        ("長い", {("長", "い")}),
        ("長い川。", {("長", "い", "川"), ("い", "川", "。")}),
        ("東京 Tower 333m", {("東", "京", "tower"), ("京", "tower", "333m")}),
        ("ผึ้ง", {("ผ", "ึ", "้"), ("ึ", "้", "ง")}),
    ],
)
def test_shingles_are_sequences_of_three_characters_where_words_have_no_spaces(text, expected):
    assert shingles(text) == expected


@pytest.mark.parametrize(
    ("negative", "near"),
    [
        (RIVER.replace("最も", "一番"), True),
        (RIVER[:-1], True),
        (RIVER.replace("、", "、 "), True),
        ("利根川は関東地方を流れて太平洋に注ぐ日本の川である。", False),
        ("The Shinano is the longest river of Japan.", False),
    ],
)
def test_near_duplicates_are_found_in_a_script_without_spaces(negative, near):
    passages = {"p": RIVER, "n": negative}
    data = TrainingData("made", [Example("q", "日本で最も長い川", {"p": 1})], passages)
    plain = [text.replace(" ", "") for text in passages.values()]
    one, other = ({text[i : i + 3] for i in range(len(text) - 2)} for text in plain)
    assert (len(one & other) / len(one | other) >= 0.5) is near
    found = audit_negatives(data, passages, {"q": ("n",)}, {})
    assert found.near_duplicates == ([("q", "n")] if near else [])


def test_an_audit_of_a_thousand_negatives_is_shown_in_a_line():
    negatives = {f"q{n}": ("d1", "d2") for n in range(500)}
    found = audit_negatives(data_of(*[["d1"]] * 500), PASSAGES, negatives, {}, num_samples=1000)
    assert (found.num_negatives, len(found.near_duplicates), len(found.samples)) == (1000, 500, 1000)
    assert len(repr(found)) < 300
