"""How queries are written: by greedy search, by beam search, or by sampling with its own random state."""

from dataclasses import dataclass

import numpy as np
import torch
from transformers import (
    LogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TopPLogitsWarper,
)

from dpr.arguments import check_fields_of
from dpr.training.settings import check_fields

METHODS = ("greedy", "beam", "sample")
MOST_QUERIES = 40


@dataclass(frozen=True)
class Decoding:
    """The settings for writing queries.

    Args:
        method: `greedy` takes the likeliest next token and writes one query. `beam` writes the likeliest
            queries that a beam search finds. `sample` draws each token at random by its probability.
        num_queries: Queries per passage, or per chunk of a passage that is split; 1 to 40.
        max_length: Most tokens in a query.
        num_beams: Beams of `beam`; at least `num_queries`.
        top_k: `sample` draws only from this many of the likeliest tokens; 0 for all.
        top_p: `sample` draws only from the likeliest tokens that together reach this probability.
        temperature: Of `sample`: above 1 flattens the distribution of the next token, below 1 sharpens it.
        repetition_penalty: A value above 1 makes tokens that occurred before less likely.

    Raises:
        ValueError: A value outside its range; the message names field and value.

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
        check_fields_of(self)
        check_fields(self, f"one of {METHODS}", METHODS.__contains__, "method")
        most = min({"greedy": 1, "beam": self.num_beams, "sample": MOST_QUERIES}[self.method], MOST_QUERIES)
        check_fields(self, f"from 1 to {most} with {self.method}", lambda v: 1 <= v <= most, "num_queries")
        check_fields(self, "at least 1", lambda v: v >= 1, "max_length", "num_beams")
        check_fields(self, "at least 0", lambda v: v >= 0, "top_k")
        check_fields(self, "above 0", lambda v: v > 0, "temperature", "repetition_penalty")
        check_fields(self, "above 0 and at most 1", lambda v: 0 < v <= 1, "top_p")


class Drawing:
    """Chooses the next token of each row, greedily or at random, with a random state of its own.

    At random it is the largest of the logits after noise is added to each.

    Args:
        decoding: The settings: `method`, `temperature`, `top_k`, `top_p` and `repetition_penalty`.
        seed: The numbers that seed the random state.
        device: The device of the logits.

    Source: Maddison, Tarlow and Minka 2014, A* sampling, section 2.
    """

    def __init__(self, decoding: Decoding, seed: list[int], device: torch.device):
        self._decoding = decoding
        state = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> 1)
        self._generator = torch.Generator(device).manual_seed(state)

    def __call__(self, logits: torch.Tensor, before: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose a token for each of N rows.

        Args:
            logits: Logits of the next token, [N, V]; changed if repetitions are penalised.
            before: The tokens that each row has written so far, [N, L].

        Returns:
            The tokens, [N], and the logarithm of their probability before any penalty or temperature, [N].
        """
        how, top = self._decoding, logits.amax(-1, keepdim=True)
        total = (logits - top).exp_().sum(-1, dtype=torch.float32).log() + top[:, 0].float()
        scores = logits
        if how.repetition_penalty != 1 and before.shape[1]:
            scores = RepetitionPenaltyLogitsProcessor(float(how.repetition_penalty))(before, logits.clone())
        if how.method == "greedy":
            tokens = scores.argmax(-1)
        else:
            likely, places = (
                scores.topk(min(how.top_k, scores.shape[-1])) if how.top_k else scores.sort(descending=True)
            )
            likely = likely.float() / how.temperature
            if how.top_p < 1:
                likely = TopPLogitsWarper(how.top_p)(before, likely)
            noise = torch.empty_like(likely).exponential_(generator=self._generator)
            tokens = places.gather(1, (likely - noise.log()).argmax(-1, keepdim=True))[:, 0]
        return tokens, logits.gather(1, tokens[:, None])[:, 0].float() - total


class Drawn(LogitsProcessor):
    """Leaves only the token that a `Drawing` chooses, so that transformers' greedy search takes it.

    transformers' own sampling uses torch's global random state, which threads would share in no fixed order.

    Args:
        draw: What chooses the tokens.
    """

    def __init__(self, draw: Drawing):
        self._draw = draw

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits [N, V] of which only those of the tokens chosen are finite, from `scores` [N, V]."""
        tokens, _ = self._draw(scores, input_ids)
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens[:, None], 0.0)
