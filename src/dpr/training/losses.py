"""The contrastive loss of a bi-encoder: each query chooses its passage among those of the batch."""

import warnings

import torch
from torch import Tensor

from dpr.models.checkpoint import SIMILARITIES


def in_batch_negatives_loss(
    query_emb: Tensor,
    passage_emb: Tensor,
    *,
    similarity: str,
    temperature: float,
    positives: Tensor | None = None,
    not_negative: Tensor | None = None,
    symmetric: bool = False,
) -> Tensor:
    """Cross-entropy of each query's own passage among the passages of the batch, hard negatives included.

    A query with several positives has one term for each, which leaves the other positives out. The loss is
    the mean over the positives of each query, then over queries. A random guess has the loss ln P, so
    losses of batches with different numbers of passages are not comparable.

    Args:
        query_emb: Query vectors, [B, D].
        passage_emb: Passage vectors, [P, D].
        similarity: `cosine` or `dot`; the one that is used in search.
        temperature: Similarities are divided by it; above 0. 0.01 to 0.1 suits cosine, whose range of 2
            is otherwise too small to tell passages apart.
        positives: bool [B, P], at least one per query. By default passage i is the positive of query i,
            and the last P − B passages are hard negatives.
        not_negative: bool [B, P], passages that must not count as negatives of a query, such as copies of
            its passage or other relevant ones. Those that are not in `positives` are ignored.
        symmetric: Also compute the cross-entropy of each positive passage's query among all queries; the
            loss is then the mean of both directions.

    Returns:
        The loss in nats, a float32 scalar.

    Raises:
        ValueError: Shapes that do not match, a query without a positive, an unknown similarity, or a
            temperature that is not above 0.

    Warns:
        UserWarning: Cosine with a temperature of 1 or more.

    Source: Karpukhin et al. 2020, Dense passage retrieval, equation 2; Oord, Li and Vinyals 2018, section
    2.3; for the symmetric form Radford et al. 2021, figure 3; for several positives Khosla et al. 2020,
    Supervised contrastive learning, equation 2, here without the other positives in the denominator.

    >>> vectors = torch.eye(2)
    >>> in_batch_negatives_loss(vectors, vectors, similarity="dot", temperature=1.0)
    tensor(0.3133)
    """
    logits = in_batch_logits(query_emb, passage_emb, similarity=similarity, temperature=temperature)
    own = torch.eye(*logits.shape, dtype=torch.bool, device=logits.device) if positives is None else positives
    for name, mask in (("positives", own), ("not_negative", not_negative)):
        if mask is not None and mask.shape != logits.shape:
            raise ValueError(f"{name} must be {tuple(logits.shape)}, got {tuple(mask.shape)}")
    if positives is None and len(query_emb) > len(passage_emb):
        raise ValueError(f"{len(query_emb)} queries need as many passages or more, got {len(passage_emb)}")
    if not own.any(dim=1).all():
        raise ValueError("a query of the batch has no positive")
    left_out = own if not_negative is None else own | not_negative
    loss = _cross_entropy(logits, own, left_out)
    if symmetric:
        loss = (loss + _cross_entropy(logits.T, own.T, left_out.T)) / 2
    return loss


def _cross_entropy(logits: Tensor, positives: Tensor, left_out: Tensor) -> Tensor:
    """Mean over rows of the mean over a row's positives of −ln softmax against its negatives; all [R, C]."""
    against = logits.masked_fill(left_out, -torch.inf).logsumexp(dim=1, keepdim=True)  # [R, 1]
    terms = torch.nn.functional.softplus(against - logits)  # −ln of e^logit / (e^logit + e^against), [R, C]
    counts = positives.sum(dim=1)
    means = terms.masked_fill(~positives, 0).sum(dim=1) / counts.clamp(min=1)
    return means.sum() / (counts > 0).sum()


def in_batch_logits(query_emb: Tensor, passage_emb: Tensor, *, similarity: str, temperature: float) -> Tensor:
    """The logits of the loss: similarities divided by the temperature, always computed in float32.

    Arguments, errors and the warning are those of `in_batch_negatives_loss`.

    Returns:
        The logit of each passage for each query, float32 [B, P].
    """
    if query_emb.ndim != 2 or passage_emb.ndim != 2 or query_emb.shape[1] != passage_emb.shape[1]:
        raise ValueError(
            f"expected query_emb [B, D] and passage_emb [P, D], got {tuple(query_emb.shape)} and "
            f"{tuple(passage_emb.shape)}"
        )
    if not len(query_emb) or not len(passage_emb):
        raise ValueError(f"got {len(query_emb)} queries and {len(passage_emb)} passages")
    if similarity not in SIMILARITIES:
        raise ValueError(f"similarity must be one of {SIMILARITIES}, got {similarity!r}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")
    if similarity == "cosine" and temperature >= 1:
        warnings.warn(
            f"cosine divided by a temperature of {temperature} cannot tell passages apart; use 0.01 to 0.1",
            stacklevel=3,
        )
    with torch.autocast(query_emb.device.type, enabled=False):
        queries, passages = query_emb.float(), passage_emb.float()
        if similarity == "cosine":
            queries, passages = (torch.nn.functional.normalize(v, dim=-1) for v in (queries, passages))
        return queries @ passages.T / temperature
