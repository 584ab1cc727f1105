"""How queries are written: greedily, by beams, or drawn at random from a random state of one's own."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

METHODS = ("greedy", "beam", "sample")
MOST_QUERIES = 40


@dataclass(frozen=True)
class Decoding:
    """How queries are written.

    Args:
        method: `greedy`: the likeliest next token, one query a passage. `beam`: the likeliest queries
            that a search with `num_beams` finds. `sample`: at random by likelihood.
        num_queries: Queries a passage, or with chunks a chunk, 1 to 40.
        max_length: Tokens a query is ended at.
        num_beams: Of `beam`, at least `num_queries`.
        top_k: `sample` draws from so many of the likeliest tokens; 0 for all.
        top_p: And from the likeliest that together have this probability.
        temperature: Above 1 flattens the distribution, below 1 sharpens it.
        repetition_penalty: Above 1 makes tokens that were written before less likely.

    Raises:
        ValueError: A value outside its range; names field and value.

    Source: Nogueira and Lin 2019, From doc2query to docTTTTTquery (`sample`, `top_k` 10); Holtzman et al.
    2020 (`top_p`); Keskar et al. 2019 (`repetition_penalty`).
    """

    method: str = "sample"
    num_queries: int = 1
    max_length: int = 32
    num_beams: int = 4
    top_k: int = 10
    top_p: float = 1.0
    temperature: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {METHODS}, got {self.method!r}")
        most = {"greedy": 1, "beam": self.num_beams, "sample": MOST_QUERIES}[self.method]
        if not 1 <= self.num_queries <= min(most, MOST_QUERIES):
            raise ValueError(
                f"num_queries must be from 1 to {min(most, MOST_QUERIES)} with {self.method}, got "
                f"{self.num_queries}"
            )
        for name, low in (("max_length", 1), ("num_beams", 1), ("top_k", 0)):
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("temperature", "repetition_penalty"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")


def sampling(decoding: Decoding, seed: list[int], device: torch.device) -> list[LogitsProcessor]:
    """What turns taking the likeliest token into drawing one at random.

    Args:
        decoding: Temperature, `top_k` and `top_p`.
        seed: Numbers that make the random state.
        device: Of the logits.
    """
    steps: list[LogitsProcessor] = [TemperatureLogitsWarper(float(decoding.temperature))]
    if decoding.top_p < 1:
        if decoding.top_k:  # without `top_p` the noise sees to it
            steps.append(TopKLogitsWarper(decoding.top_k))
        steps.append(TopPLogitsWarper(decoding.top_p))
    return [*steps, _GumbelNoise(decoding.top_k, seed, device)]


class _GumbelNoise(LogitsProcessor):
    """Noise under which the largest logit is a draw from their softmax, from a random state of its own.

    transformers draws from torch's one random state, which threads would share in no fixed order.

    Source: Maddison, Tarlow and Minka 2014, A* sampling, section 2.
    """

    def __init__(self, top_k: int, seed: list[int], device: torch.device):
        state = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1)
        self._top_k, self._generator = top_k, torch.Generator(device).manual_seed(state)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        # Noise for the whole vocabulary takes longer than its logits
        likely, tokens = scores.topk(min(self._top_k, scores.shape[-1])) if self._top_k else (scores, None)
        noise = torch.empty_like(likely, dtype=torch.float32).exponential_(generator=self._generator)
        drawn = likely - noise.log()
        return drawn if tokens is None else torch.full_like(scores, -torch.inf).scatter(-1, tokens, drawn)
