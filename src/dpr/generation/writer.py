"""What all that write queries have in common: they read passages in blocks and write queries for each."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from dpr.arguments import checked
from dpr.generation.decoding import Decoding
from dpr.models.batching import checked_texts, compute_blocks


@dataclass(frozen=True)
class Query:
    """A query that was written for a passage.

    Attributes:
        text: The query.
        log_probability: Mean over its tokens of the natural logarithm of their probability, the end included;
            NaN if the writer does not tell.
    """

    text: str
    log_probability: float = math.nan


class Writer(ABC):
    """Writes queries that a passage may answer.

    Attributes:
        name: The model's name.
        precision: The precision in which queries are written.
    """

    name: str
    precision: str

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of all that the queries depend on beside passage, decoding and seed, 16 hex digits."""

    @abstractmethod
    def generate_blocks(
        self,
        blocks: Iterable[Sequence[str]],
        decoding: Decoding,
        seeds: Iterable[int],
        overflow: str = "truncate",
        batch_tokens: int | None = None,
        progress: Callable[[int], object] = lambda texts: None,
    ) -> Iterator[tuple[list[list[Query]], np.ndarray]]:
        """Write queries for one block of passages after the other.

        The queries of a block depend only on that block and its seed.

        Args:
            blocks: Blocks of texts. Texts of similar length share a batch, so a block should have hundreds.
            decoding: The settings for writing queries.
            seeds: One seed for each block.
            overflow: How to treat passages that are too long: `truncate` cuts them to one row, `max_chunk`
                splits them into several rows.
            batch_tokens: Most tokens in a batch, read and written ones; None for the writer's own choice.
            progress: Called with the number of passages whose first row is newly done.

        Yields:
            For each block its rows' lists of queries, and the position of each row's passage, int64 [rows].
        """

    @checked
    def generate(self, passages: Sequence[str], decoding: Decoding, seed: int = 0) -> list[list[str]]:
        """Write queries for passages, each cut to the writer's passage length.

        Args:
            passages: N texts.
            decoding: The settings for writing queries.
            seed: Seed of sampling.

        Returns:
            N lists of `num_queries` queries, with `beam` the likeliest first. Queries may be empty or repeat.
        """
        passages = checked_texts(passages)
        if not passages:
            return []
        with tqdm(total=len(passages), desc=f"{self.name}: queries", unit="passage") as bar:
            [(written, _)] = self.generate_blocks([passages], decoding, [seed], progress=bar.update)
        return [[query.text for query in found] for found in written]


class ModelWriter(Writer):
    """A writer whose model computes here, in batches of passages of similar length.

    Attributes:
        model: The transformers model.
        tokenizer: Its tokenizer.
        BATCH_TOKENS: Tokens in a batch, those read and at most those written, on a CPU and elsewhere.
    """

    BATCH_TOKENS: tuple[int, int]
    model: Any
    tokenizer: Any

    def generate_blocks(
        self,
        blocks: Iterable[Sequence[str]],
        decoding: Decoding,
        seeds: Iterable[int],
        overflow: str = "truncate",
        batch_tokens: int | None = None,
        progress: Callable[[int], object] = lambda texts: None,
    ) -> Iterator[tuple[list[list[Query]], np.ndarray]]:
        """Write queries for one block of passages after the other; see also `Writer.generate_blocks`."""
        self.model.eval()
        self._prepare(decoding)
        seeds, device = list(seeds), self.model.device.type
        yield from compute_blocks(
            blocks,
            lambda block: self._rows(block, overflow),
            lambda rows, at: self._write(rows, decoding, [seeds[at[0]], at[1]]),
            batch_tokens=batch_tokens or self.BATCH_TOKENS[device != "cpu"],
            device=device,
            extra_tokens=self._tokens_beside(decoding),
            progress=progress,
        )

    def move(self, device: str) -> None:
        """Move the model to another device."""
        self.model.to(device)

    @abstractmethod
    def _prepare(self, decoding: Decoding) -> None:
        """Raise ValueError for what the model cannot do, and compute what all batches share."""

    @abstractmethod
    def _tokens_beside(self, decoding: Decoding) -> int:
        """Tokens of each row beyond those of its passage, read and at most written."""

    @abstractmethod
    def _rows(self, texts: Sequence[str], overflow: str) -> tuple[list[dict[str, np.ndarray]], np.ndarray]:
        """The tokens of each passage or chunk, and the position of its passage, int64 [rows]."""

    @abstractmethod
    def _write(self, rows: list[dict], decoding: Decoding, seed: list[int]) -> list[list[Query]]:
        """Write the queries of one batch: `num_queries` for each row."""
