"""Distillation: a bi-encoder learns how a teacher ranks the passages of a batch."""

import torch
from torch import Tensor

from dpr.training.losses import in_batch_logits


def kl_divergence_loss(
    query_emb: Tensor,
    passage_emb: Tensor,
    scores: Tensor,
    *,
    similarity: str,
    temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Kullback-Leibler divergence of a bi-encoder's softmax over the batch from its teacher's.

    For each query, the teacher's scores of the passages become probabilities t by a softmax, the bi-encoder's
    similarities s; the loss is the mean over queries of Σ t (ln t − ln s). It is 0 where they agree.

    Args:
        query_emb: Query vectors, [B, D].
        passage_emb: Passage vectors, [P, D].
        scores: The teacher's score of each passage for each query, [B, P]; NaN: unknown, left out for this
            query. At least two are known for each.
        similarity: `cosine` or `dot`; the one that is used in search.
        temperature: The bi-encoder's similarities are divided by it; above 0.
        teacher_temperature: The teacher's scores are divided by it; above 0.

    Returns:
        The loss in nats, a float32 scalar.

    Raises:
        ValueError: Shapes that do not match, a query with fewer than two known scores, an infinite score, or
            a temperature that is not above 0.

    Source: Hinton, Vinyals and Dean 2015, Distilling the knowledge in a neural network, section 2; over lists
    of passages Ren et al. 2021, RocketQAv2.

    >>> vectors = torch.eye(2)
    >>> how = {"similarity": "dot", "temperature": 1.0, "teacher_temperature": 1.0}
    >>> kl_divergence_loss(vectors, vectors, torch.eye(2), **how)
    tensor(0.)
    """
    logits, target, unknown = _both(
        query_emb, passage_emb, scores, similarity, temperature, teacher_temperature
    )
    target = target.masked_fill(unknown, -torch.inf).log_softmax(dim=1)
    found = logits.masked_fill(unknown, -torch.inf).log_softmax(dim=1)
    gaps = (target - found).masked_fill(unknown, 0)
    return (target.exp() * gaps).sum(dim=1).mean()


def margin_mse_loss(
    query_emb: Tensor,
    passage_emb: Tensor,
    scores: Tensor,
    positives: Tensor,
    *,
    similarity: str,
    temperature: float,
    teacher_temperature: float,
) -> Tensor:
    """Mean squared error of by how much a query's positive beats each other passage, against its teacher.

    With s the bi-encoder's similarities and t the teacher's scores, both divided by their temperatures, the
    loss is the mean over all queries, their positives p and other passages n of ((s_p − s_n) − (t_p − t_n))².
    Only differences count, so the two may have scales of different origin, and of different width if the
    temperatures are chosen for it.

    Args:
        query_emb: Query vectors, [B, D].
        passage_emb: Passage vectors, [P, D].
        scores: As in `kl_divergence_loss`, [B, P]; those of the positives are known.
        positives: bool [B, P], at least one per query.
        similarity: As in `kl_divergence_loss`.
        temperature: As in `kl_divergence_loss`.
        teacher_temperature: As in `kl_divergence_loss`.

    Returns:
        The loss, a float32 scalar.

    Raises:
        ValueError: An error of `kl_divergence_loss`, or a query without a positive whose score is known.

    Source: Hofstätter et al. 2020, Improving efficient neural ranking models with cross-architecture
    knowledge distillation, section 3.1; with written queries Wang et al. 2022, GPL.

    >>> vectors = torch.eye(2)
    >>> how = {"similarity": "dot", "temperature": 1.0, "teacher_temperature": 1.0}
    >>> margin_mse_loss(vectors, vectors, 3 * torch.eye(2), torch.eye(2, dtype=torch.bool), **how)
    tensor(4.)
    """
    logits, target, unknown = _both(
        query_emb, passage_emb, scores, similarity, temperature, teacher_temperature
    )
    if positives.shape != logits.shape or not positives.any(dim=1).all() or (positives & unknown).any():
        raise ValueError("positives must be bool [B, P] with one or more per query whose scores are known")
    gaps = (logits - target).masked_fill(unknown, 0)  # (s_p − s_n) − (t_p − t_n) is gap p less gap n
    row, column = positives.nonzero(as_tuple=True)
    others = ~unknown[row]
    others[torch.arange(len(row)), column] = False
    return (gaps[row, column].unsqueeze(1) - gaps[row])[others].square().mean()


def _both(
    query_emb: Tensor,
    passage_emb: Tensor,
    scores: Tensor,
    similarity: str,
    temperature: float,
    teacher_temperature: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """The bi-encoder's logits, the teacher's, and which of these are unknown, each [B, P]."""
    logits = in_batch_logits(query_emb, passage_emb, similarity=similarity, temperature=temperature)
    if scores.shape != logits.shape:
        raise ValueError(f"scores must be {tuple(logits.shape)}, got {tuple(scores.shape)}")
    if not teacher_temperature > 0:
        raise ValueError(f"teacher_temperature must be above 0, got {teacher_temperature}")
    if scores.isinf().any():
        raise ValueError("a score is infinite")
    unknown = scores.isnan()
    if ((~unknown).sum(dim=1) < 2).any():
        raise ValueError("a query of the batch has fewer than two passages with a known score")
    return logits, scores.float() / teacher_temperature, unknown
