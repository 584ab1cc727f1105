"""Training in several processes, as `torchrun` starts them: each embeds its share of every batch.

All processes make the same batch and compute the same loss of it; what is divided is the encoding, which
takes nearly all of the time. So a training in several processes has the loss, the negatives and the steps of
one process with the same batch size, whatever the loss compares.

Source: the gathering of vectors is that of Karpukhin et al. 2020, Dense passage retrieval, whose processes
also know the others' vectors without a gradient.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor


def count() -> int:
    """Number of processes that train together; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    """Whether this process is the one that writes; without torchrun it always is."""
    return int(os.environ.get("RANK", 0)) == 0


def from_first(value: Any = None) -> Any:
    """The value that the first process passes here, in every process; each must call this."""
    if count() == 1:
        return value
    PartialState(cpu=not torch.cuda.is_available())  # connects the processes
    told = [value]
    torch.distributed.broadcast_object_list(told)
    return told[0]


def wait() -> None:
    """Wait until every process is here."""
    from_first()


def own_rows(passes: Sequence[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The share of a batch that this process embeds: its turns of all rows, one after another.

    Args:
        passes: The padded passes of one side of a batch; each is field → tensor [R, T], of R rows of T
            tokens; `rows`, their places in the batch, is int64 [R].
    """
    shares, before = [], 0
    for batch in passes:
        size = len(batch["rows"])
        start = (int(os.environ.get("RANK", 0)) - before) % count()
        if start < size:
            shares.append({field: tensor[start :: count()] for field, tensor in batch.items()})
        before += size
    return shares


def gather(own: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """The vectors of all processes, of which this process's own have a gradient.

    The gradients that the processes compute are averaged afterwards; they are parts of a sum, so they are
    multiplied by the number of processes here.

    Args:
        own: float32 [n, D].
        rows: int64 [n], their rows in the batch; each row is some process's.
        num_rows: R, rows in the batch.

    Returns:
        float32 [R, D].
    """
    together = own.new_zeros((num_rows, own.shape[1])).index_copy(0, rows, own.detach())
    torch.distributed.all_reduce(together)
    if own.requires_grad:
        own.register_hook(lambda gradient: gradient * count())
    return together.index_copy(0, rows, own)
