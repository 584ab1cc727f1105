"""BLEU and ROUGE: against plain counts, and not averaged where they must be summed."""

import math
from collections import Counter

import pytest

from dpr.text_scores import score_texts
from dpr.training_settings import TEXT_METRICS

TEXTS = ["what is the cause of asthma in young children", "how many doses protect against measles today"]
REFERENCES = [
    ["what is the cause of asthma in children", "why do children get asthma"],
    ["how many doses of the vaccine protect against measles"],
]


def grams(text, n):
    words = text.split()
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def plain_bleu(texts, references):
    """Papineni et al. 2002, equation 3: clipped counts over the corpus, brevity by the nearest length."""
    logs, length, wanted = [], 0, 0
    for n in range(1, 5):
        right = total = 0
        for text, refs in zip(texts, references, strict=True):
            most = Counter()
            for ref in refs:
                most |= grams(ref, n)
            right += (grams(text, n) & most).total()
            total += grams(text, n).total()
        logs.append(math.log(right / total))
    for text, refs in zip(texts, references, strict=True):
        length += len(text.split())
        wanted += min((abs(len(r.split()) - len(text.split())), len(r.split())) for r in refs)[1]
    return 100 * min(1, math.exp(1 - wanted / length)) * math.exp(sum(logs) / 4)


def plain_rouge(text, refs, n):
    best = 0.0
    for ref in refs:
        both = (grams(text, n) & grams(ref, n)).total()
        if both:
            precision, recall = both / grams(text, n).total(), both / grams(ref, n).total()
            best = max(best, 2 * precision * recall / (precision + recall))
    return best


def plain_rouge_l(text, refs):
    best = 0.0
    for ref in refs:
        a, b = text.split(), ref.split()
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        best = max(best, 2 * table[-1][-1] / (len(a) + len(b)))
    return best


def test_scores_are_those_of_plain_counts():
    scores = score_texts(TEXTS, REFERENCES)
    assert tuple(scores) == TEXT_METRICS
    assert scores["BLEU"] == pytest.approx(plain_bleu(TEXTS, REFERENCES))
    for n in (1, 2):
        mean = sum(plain_rouge(t, r, n) for t, r in zip(TEXTS, REFERENCES, strict=True)) / 2
        assert scores[f"ROUGE-{n}"] == pytest.approx(100 * mean)
    mean = sum(plain_rouge_l(t, r) for t, r in zip(TEXTS, REFERENCES, strict=True)) / 2
    assert scores["ROUGE-L"] == pytest.approx(100 * mean)


def test_bleu_is_of_the_corpus_and_no_mean_over_texts():
    one_by_one = [score_texts([t], [r])["BLEU"] for t, r in zip(TEXTS, REFERENCES, strict=True)]
    assert abs(score_texts(TEXTS, REFERENCES)["BLEU"] - sum(one_by_one) / 2) > 1


def test_the_same_text_scores_100_and_another_0():
    same = score_texts([TEXTS[0]], [["other words entirely", TEXTS[0]]])
    assert all(value == pytest.approx(100) for value in same.values())
    assert score_texts(["a b c d e"], [["v w x y z"]])["ROUGE-L"] == 0


@pytest.mark.parametrize(
    ("texts", "references", "message"),
    [
        (["a"], [], "got 1 texts and references for 0"),
        ([], [], "got 0 texts"),
        (["a", "b"], [["a"], []], "text 1 needs a list of references"),
        (["a", "b"], [["a"], "b"], "text 1 needs a list of references"),
    ],
)
def test_what_cannot_be_scored_is_refused(texts, references, message):
    with pytest.raises(ValueError, match=message):
        score_texts(texts, references)
