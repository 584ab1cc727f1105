"""Pooling: from the vectors of a text's tokens to one vector of the text.

A pooling has a name: `cls`, `mean` or `max` over the last layer, or `sum-last-4`, `mean-last-4`,
`concat-last-4`, …, where the number says how many of the last layers are used.
"""

import re
from collections.abc import Sequence

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
        attention_mask: 1 for a token, 0 for padding, [B, T]; every row has a token.

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
        attention_mask: 1 for a token, 0 for padding, [B, T]; every row has a token.

    Returns:
        [B, D] in the dtype of `hidden`.

    Source: Reimers and Gurevych 2019, Sentence-BERT, section 3.
    """
    return hidden.masked_fill(attention_mask.unsqueeze(-1) == 0, -torch.inf).amax(dim=1)


def layer_pool(hidden_states: Sequence[Tensor], attention_mask: Tensor, combine: str) -> Tensor:
    """Combine several layers, then average over a text's tokens, padding left out.

    Both steps are linear, so each layer is averaged first: the result is the same and needs less memory.

    Args:
        hidden_states: Token vectors [B, T, D] of each of L layers.
        attention_mask: 1 for a token, 0 for padding, [B, T]; every row has a token.
        combine: `sum`, `mean` or `concat` (in the order of the layers).

    Returns:
        [B, D], or [B, L·D] for `concat`, in the dtype of `hidden_states`.

    Source: Devlin et al. 2019, BERT, section 5.3 (which layers, for features).
    """
    pooled = torch.stack([mean_pool(hidden, attention_mask) for hidden in hidden_states], dim=1)  # [B, L, D]
    return {"sum": pooled.sum, "mean": pooled.mean, "concat": pooled.flatten}[combine](1)


POOLINGS = {"cls": cls_pool, "mean": mean_pool, "max": max_pool}


def parse_pooling(name: str) -> tuple[str, int]:
    """Split a pooling's name into its kind and number of layers; 0 for `cls`, `mean` and `max`.

    Raises:
        ValueError: There is no such pooling.

    >>> parse_pooling("cls"), parse_pooling("concat-last-4")
    (('cls', 0), ('concat', 4))
    """
    if name in POOLINGS:
        return name, 0
    match = re.fullmatch(r"(sum|mean|concat)-last-([1-9]\d*)", str(name))
    if not match:
        raise ValueError(
            f"pooling must be one of {', '.join(POOLINGS)}, or sum-last-4, mean-last-4, concat-last-4 "
            f"or another number of layers, got {name!r}"
        )
    return match[1], int(match[2])


def pool(name: str, hidden_states: Sequence[Tensor], attention_mask: Tensor) -> Tensor:
    """Apply the pooling called `name`.

    Args:
        name: See `parse_pooling`.
        hidden_states: Token vectors [B, T, D] of each layer; for `cls`, `mean` and `max` the last is enough.
        attention_mask: 1 for a token, 0 for padding, [B, T]; every row has a token.

    Returns:
        [B, D], or [B, L·D] for `concat-last-L`.

    Raises:
        ValueError: There is no such pooling, or it takes more layers than given.
    """
    kind, layers = parse_pooling(name)
    if not layers:
        return POOLINGS[kind](hidden_states[-1], attention_mask)
    if layers > len(hidden_states):
        raise ValueError(f"{name} takes {layers} layers, got {len(hidden_states)}")
    return layer_pool(hidden_states[-layers:], attention_mask, kind)
