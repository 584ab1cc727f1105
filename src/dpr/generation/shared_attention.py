"""Attention for many continuations of the same texts: what was read is kept once and never copied.

transformers' own cache holds the keys and values of the whole input again for every sampled continuation,
and copies them at every step. Here each text's keys and values are kept once; a step appends only its own.
"""

import torch
from transformers import AttentionInterface, AttentionMaskInterface, Cache
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "dpr_shared"


class ReadTexts(Cache):
    """B texts that were read, each continued N times; continuations that are complete take no part.

    Args:
        read: Keys and values of the texts, padded on the right to S tokens.
        lengths: Real tokens of each text, int64 [B].
        num: N, the continuations of each text.
        most: Most tokens of a continuation.

    Attributes:
        rows: The continuations that go on, by their positions among all, int64 [R].
        lengths: As given, for the texts that are left.
    """

    def __init__(self, read: Cache, lengths: torch.Tensor, num: int, most: int):
        self.lengths, self.num, self.rows = lengths, num, torch.arange(len(lengths) * num).to(lengths.device)
        self._seen = [_Layer(self, layer.keys, layer.values, most) for layer in read.layers]
        super().__init__(layers=[])

    def update(self, keys, values, layer_idx, *_, **__):
        """Keep a step's keys and values, [R, H, 1, D], and give the attention all that its layer has."""
        layer = self._seen[layer_idx]
        dtype = layer.own_keys.dtype  # autocast, if any, may have begun after the texts were read
        layer.own_keys[self.rows, :, layer.written] = keys[:, :, 0].to(dtype)
        layer.own_values[self.rows, :, layer.written] = values[:, :, 0].to(dtype)
        layer.written += 1
        return layer, layer

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens read and written so far, padding included."""
        return self._seen[layer_idx].keys.shape[2] + self._seen[layer_idx].written

    def go_on(self, still: torch.Tensor) -> None:
        """Go on with some continuations only, bool [R]; the memory of texts without any is freed at times."""
        self.rows = self.rows[still]
        texts, back = (self.rows // self.num).unique(return_inverse=True)
        if not 0 < len(texts) <= 0.75 * len(self.lengths):
            return
        kept = (texts[:, None] * self.num + torch.arange(self.num, device=texts.device)).flatten()
        for layer in self._seen:
            layer.keys, layer.values = layer.keys[texts], layer.values[texts]
            layer.own_keys, layer.own_values = layer.own_keys[kept], layer.own_values[kept]
        self.rows, self.lengths = back * self.num + self.rows % self.num, self.lengths[texts]


class _Layer:
    """Keys and values of one layer: of texts, [B, H, S, D], and of their continuations, [B·N, H, L, D]."""

    def __init__(self, texts: ReadTexts, keys: torch.Tensor, values: torch.Tensor, most: int):
        self.texts, self.keys, self.values, self.written = texts, keys, values, 0
        batch, heads, _, size = keys.shape
        self.own_keys = keys.new_zeros(batch * texts.num, heads, most, size)
        self.own_values = torch.zeros_like(self.own_keys)


def _attend(module, query, key, value, attention_mask, scaling=None, sliding_window=None, **options):
    """Attention of one step, [R, 1, heads · D]: to a text and to what was written, in one softmax."""
    refused = [name for name in ("softcap", "s_aux", "position_bias") if options.get(name) is not None]
    if refused:
        raise ValueError(f"attention with {', '.join(refused)} cannot be shared between continuations")
    if not isinstance(key, _Layer):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    layer, rows, num, written = key, key.texts.rows, key.texts.num, key.written
    batch, heads, size, dim = layer.keys.shape
    groups = query.shape[1] // heads
    query = query.reshape(len(rows), heads, groups, dim) * (dim**-0.5 if scaling is None else scaling)

    def by_text(values: torch.Tensor) -> torch.Tensor:
        """[R, H, G, …] → [B, H, N · G, …], so that all continuations of a text meet it in one product."""
        full = values.new_zeros(batch * num, *values.shape[1:])
        full[rows] = values
        full = full.view(batch, num, heads, groups, -1).transpose(1, 2)
        return full.reshape(batch, heads, num * groups, -1)

    def by_row(values: torch.Tensor) -> torch.Tensor:
        """The way back, [B, H, N · G, …] → [R, H, G, …]."""
        values = values.view(batch, heads, num, groups, -1).transpose(1, 2)
        return values.reshape(batch * num, heads, groups, -1)[rows]

    place, lengths = torch.arange(size, device=query.device), key.texts.lengths[:, None]
    hidden = place >= lengths
    if sliding_window:
        hidden |= place < lengths + written - sliding_window
    to_text = (by_text(query) @ layer.keys.transpose(2, 3)).masked_fill_(hidden[:, None, None], -torch.inf)
    to_own = query @ layer.own_keys[rows, :, :written].transpose(2, 3)
    if sliding_window and written > sliding_window:
        to_own[..., : written - sliding_window] = -torch.inf
    weights = torch.cat([by_row(to_text), to_own], dim=-1).softmax(-1, dtype=torch.float32).to(query.dtype)
    of_text = by_row(by_text(weights[..., :size]) @ layer.values)
    found = of_text + weights[..., size:] @ layer.own_values[rows, :, :written]
    return found.reshape(len(rows), 1, heads * groups, dim), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
