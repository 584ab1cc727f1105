"""How close generated texts are to references: corpus BLEU by sacreBLEU, ROUGE by rouge-score."""

from collections.abc import Sequence

ROUGE = {"ROUGE-1": "rouge1", "ROUGE-2": "rouge2", "ROUGE-L": "rougeL"}


def score_texts(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Score one text for each of N inputs against one reference or more.

    BLEU is of the corpus: n-gram counts are summed over all texts before they are divided, so it is no
    mean over texts or batches. ROUGE is the mean over texts of the F1 with the nearest reference.

    Args:
        texts: N generated texts.
        references: For each at least one; their number may differ.

    Returns:
        `BLEU`, `ROUGE-1`, `ROUGE-2` and `ROUGE-L`, each from 0 to 100.

    Raises:
        ValueError: Other numbers of texts and references, none at all, or a text without a reference.

    Source: Post 2018, A call for clarity in reporting BLEU scores; Lin 2004, ROUGE.
    """
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    if len(texts) != len(references) or not len(texts):
        raise ValueError(f"got {len(texts)} texts and references for {len(references)}")
    without = [number for number, found in enumerate(references) if isinstance(found, str) or not found]
    if without:
        raise ValueError(f"text {without[0]} needs a list of references with at least one")
    most = max(map(len, references))
    columns = [[found[i] if i < len(found) else None for found in references] for i in range(most)]
    scores = {"BLEU": sacrebleu.corpus_bleu(list(texts), columns).score}
    scorer = RougeScorer(list(ROUGE.values()))
    found = [scorer.score_multi(refs, text) for text, refs in zip(texts, references, strict=True)]
    for name, theirs in ROUGE.items():
        scores[name] = 100 * sum(score[theirs].fmeasure for score in found) / len(found)
    return scores
