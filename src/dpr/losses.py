"""The contrastive loss of a bi-encoder: each query against its passage and those of the batch."""

import warnings

import torch
from torch import Tensor

from dpr.checkpoint import SIMILARITIES


def in_batch_negatives_loss(
    query_emb: Tensor,
    passage_emb: Tensor,
    *,
    similarity: str,
    temperature: float,
    not_negative: Tensor | None = None,
    symmetric: bool = False,
) -> Tensor:
    """Cross-entropy of each query's own passage among all passages of the batch, hard negatives included.

    Chance is ln of the number of passages; a batch's loss says nothing about quality beside one of
    another size.

    Args:
        query_emb: [B, D].
        passage_emb: [B + M, D]; row i is the passage of query i, the M after them are hard negatives.
        similarity: `cosine` or `dot`, the one that will be searched with.
        temperature: What similarities are divided by, above 0; 0.01 to 0.1 suits cosine, whose range
            of 2 is otherwise too small to tell passages apart.
        not_negative: bool [B, B + M]: passages that are no negatives of a query, such as copies of its
            passage and others that are relevant to it. They are left out; its own passage never is.
        symmetric: Also each passage's own query among all queries; the mean of both.

    Returns:
        A scalar, float32.

    Raises:
        ValueError: Shapes that do not fit, an unknown similarity, a temperature that is not above 0.

    Warns:
        UserWarning: Cosine at a temperature of 1 or more.

    Source: Karpukhin et al. 2020, Dense passage retrieval, equation 2; Oord, Li and Vinyals 2018, section
    2.3; for the symmetric form Radford et al. 2021, figure 3.

    >>> vectors = torch.eye(2)
    >>> in_batch_negatives_loss(vectors, vectors, similarity="dot", temperature=1.0)
    tensor(0.3133)
    """
    logits = in_batch_logits(
        query_emb, passage_emb, similarity=similarity, temperature=temperature, not_negative=not_negative
    )
    labels = torch.arange(len(logits), device=logits.device)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    if symmetric:
        loss = (loss + torch.nn.functional.cross_entropy(logits[:, : len(logits)].T, labels)) / 2
    return loss


def in_batch_logits(
    query_emb: Tensor,
    passage_emb: Tensor,
    *,
    similarity: str,
    temperature: float,
    not_negative: Tensor | None = None,
) -> Tensor:
    """What the loss's softmax is over: similarities by temperature, in float32 whatever the vectors are in.

    Arguments, errors and warning are those of `in_batch_negatives_loss`.

    Returns:
        [B, B + M]; query i's own passage is at [i, i], −inf stands where a passage is left out.
    """
    count = len(query_emb)
    if query_emb.ndim != 2 or passage_emb.ndim != 2 or query_emb.shape[1] != passage_emb.shape[1]:
        raise ValueError(
            f"expected query_emb [B, D] and passage_emb [B + M, D], got {tuple(query_emb.shape)} and "
            f"{tuple(passage_emb.shape)}"
        )
    if not 0 < count <= len(passage_emb):
        raise ValueError(f"{count} queries need as many passages or more, got {len(passage_emb)}")
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
        logits = queries @ passages.T / temperature  # [B, B + M]
        if not_negative is None:
            return logits
        if not_negative.shape != logits.shape:
            raise ValueError(f"not_negative must be {tuple(logits.shape)}, got {tuple(not_negative.shape)}")
        own = torch.eye(*logits.shape, dtype=torch.bool, device=logits.device)
        return logits.masked_fill(not_negative & ~own, -torch.inf)
