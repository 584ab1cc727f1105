"""The overfit test of training code: memorise a few wrong pairs, which only memory can solve."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from dpr.arguments import checked
from dpr.data.examples import Example
from dpr.data.training_data import TrainingData
from dpr.models.bi_encoder import BiEncoder
from dpr.training.bi_encoder import BiEncoderTrainer, Pair
from dpr.training.collator import Collator
from dpr.training.dataset import TrainingSequence
from dpr.training.losses import in_batch_logits, in_batch_negatives_loss
from dpr.training.settings import TrainingSettings

LOSS_SHARE = 0.02  # the loss must fall below this share of ln B


@dataclass(frozen=True)
class Overfit:
    """How well B pairs were memorised.

    Attributes:
        losses: The loss of each step, float [steps].
        chance_loss: The loss of a random guess, ln B.
        rr_1: RR@1 of the memorised pairs: each of the B queries searches the B passages.
        held_out_rr_1: RR@1 of pairs that were not trained on, also among B passages; chance is 1 / B.
    """

    losses: list[float]
    chance_loss: float
    rr_1: float
    held_out_rr_1: float

    @property
    def passed(self) -> bool:
        """Whether the last loss is below `LOSS_SHARE` of chance and every query finds its passage first."""
        return self.losses[-1] < LOSS_SHARE * self.chance_loss and self.rr_1 == 1.0


def _rolled(queries, passages, **how):
    return in_batch_negatives_loss(queries, passages.roll(1, dims=0), **how)


def _cut(queries, passages, **how):
    return in_batch_negatives_loss(queries.detach().requires_grad_(), passages.detach(), **how)


def _multiplied(queries, passages, **how):
    return in_batch_negatives_loss(queries, passages, **how | {"temperature": 1 / how["temperature"]})


# Name of a mistake in training code → the loss with that mistake, and the settings that it changes
BROKEN: dict[str, tuple[Callable[..., torch.Tensor], dict[str, float]]] = {
    "labels rolled": (_rolled, {}),
    "gradient cut": (_cut, {}),
    "temperature multiplied": (_multiplied, {}),
    "cosine without temperature": (in_batch_negatives_loss, {"temperature": 1.0}),
    "learning rate 0": (in_batch_negatives_loss, {"learning_rate": 0.0}),
}


@checked
def shuffle_pairs(data: TrainingData, num_pairs: int, seed: int) -> TrainingData:
    """Give each of some random queries the next one's passage, so that knowing the language does not help.

    Chance only chooses the queries: the passages are shifted by one place, the last query gets the first
    one's. No two of the passages have the same text.

    Args:
        data: The queries and passages to choose from.
        num_pairs: How many pairs to make, at least 2.
        seed: Seed of the choice.

    Returns:
        Examples, each with another query's passage as its only positive and without negatives.

    Raises:
        ValueError: The data has fewer different positive passages than pairs asked for.
    """
    chosen: dict[str, tuple[Example, str]] = {}  # key of the passage's text → query and doc_id
    for number in np.random.default_rng(seed).permutation(len(data.examples)):
        example = data.examples[number]
        doc_id = next(iter(example.positives))
        chosen.setdefault(data.text_keys[doc_id], (example, doc_id))
        if len(chosen) == num_pairs:
            break
    if len(chosen) < max(num_pairs, 2):
        raise ValueError(f"{data.name} has {len(chosen)} positives, {max(num_pairs, 2)} are needed")
    examples, doc_ids = zip(*chosen.values(), strict=True)
    return TrainingData(
        f"{data.name}, shuffled",
        [
            replace(example, positives={doc_id: 1}, negatives=())
            for example, doc_id in zip(examples, doc_ids[1:] + doc_ids[:1], strict=True)
        ],
        {doc_id: data.passages[doc_id] for doc_id in doc_ids},
    )


@checked
def overfit(
    encoder: BiEncoder,
    pairs: TrainingData,
    held_out: TrainingData,
    settings: TrainingSettings,
    loss: Callable[..., torch.Tensor] = in_batch_negatives_loss,
) -> Overfit:
    """Train a copy of an encoder on the same batch over and over.

    Args:
        encoder: The encoder to start from; it is not changed.
        pairs: The pairs of the batch, as `shuffle_pairs` makes them; as many as `settings.batch_size`.
        held_out: Other pairs, as many or a multiple of that.
        settings: Training settings, with `log_every=1`.
        loss: Loss of query_emb [B, D] and passage_emb [P, D]; a broken one shows that the test can fail.

    Raises:
        ValueError: The number of pairs is not the batch size, or that of held-out pairs no multiple of it.
    """
    size = settings.batch_size
    if len(pairs.examples) != size or len(held_out.examples) % size:
        raise ValueError(
            f"expected {size} pairs and a multiple of it held out, got {len(pairs.examples)} and "
            f"{len(held_out.examples)}"
        )
    encoder = copy.deepcopy(encoder)
    trainer = BiEncoderTrainer(encoder, pairs, None, settings, loss=loss)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history]
    found = [_rr_1(encoder, part, size) for part in (pairs, held_out)]
    return Overfit(losses, math.log(size), *found)


@torch.no_grad()
def _rr_1(encoder: BiEncoder, data: TrainingData, size: int) -> float:
    """RR@1: the share of queries that rank their own passage first among the passages of their batch."""
    pair, collate = Pair(encoder).eval(), Collator(encoder, data)
    records = TrainingSequence(data, size, len(data.examples) // size, seed=0)
    right = []
    for start in range(0, len(records), size):
        batch = collate([records[i] for i in range(start, start + size)])
        passes = [[{f: t.to(encoder.model.device) for f, t in p.items()} for p in batch[side]]
                  for side in ("queries", "passages")]  # fmt: skip
        logits = in_batch_logits(*pair(*passes), similarity=encoder.config.similarity, temperature=0.05)
        right += batch["positives"].gather(1, logits.argmax(dim=1, keepdim=True).cpu()).flatten().tolist()
    return sum(right) / len(right)
