"""From a text's token vectors to its one vector."""

import torch
from torch import Tensor


def cls_pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Take the first token's vector.

    Args:
        hidden: Token vectors [B, T, D]; padding on the right.
        attention_mask: 1 for a token, 0 for padding, [B, T].

    Returns:
        [B, D] in the dtype of `hidden`.

    Source: Karpukhin et al. 2020, Dense passage retrieval, section 3.2.
    """
    return hidden[:, 0]


def mean_pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Average the vectors of a text's tokens, padding left out.

    Args:
        hidden: Token vectors [B, T, D].
        attention_mask: 1 for a token, 0 for padding, [B, T]; no row all 0.

    Returns:
        [B, D] in the dtype of `hidden`.

    Source: Reimers and Gurevych 2019, Sentence-BERT, section 3.

    >>> hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]]])
    >>> mean_pool(hidden, torch.tensor([[1, 1, 0]]))
    tensor([[2., 3.]])
    """
    mask = attention_mask.unsqueeze(-1).to(hidden.dtype)  # [B, T, 1]
    wide = torch.promote_types(hidden.dtype, torch.float32)  # a sum in half precision overflows
    total = (hidden * mask).sum(dim=1, dtype=wide)
    return (total / mask.sum(dim=1, dtype=wide)).to(hidden.dtype)


def max_pool(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """Take the largest value of each dimension over a text's tokens, padding left out.

    Args:
        hidden: Token vectors [B, T, D].
        attention_mask: 1 for a token, 0 for padding, [B, T]; no row all 0.

    Returns:
        [B, D] in the dtype of `hidden`.

    Source: Reimers and Gurevych 2019, Sentence-BERT, section 3.
    """
    return hidden.masked_fill(attention_mask.unsqueeze(-1) == 0, -torch.inf).amax(dim=1)


POOLINGS = {"cls": cls_pool, "mean": mean_pool, "max": max_pool}
