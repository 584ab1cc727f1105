"""Two encoders side by side: one for queries, one for passages."""

import hashlib
from dataclasses import replace
from pathlib import Path

from dpr.arguments import checked
from dpr.files import atomic_folder
from dpr.models.bi_encoder import BiEncoder
from dpr.models.checkpoint import EncoderConfig


class TwoEncoders:
    """One encoder for queries and another for passages, used like a `BiEncoder`.

    Args:
        query: The encoder for queries.
        passage: The encoder for passages.

    Raises:
        ValueError: Their dimensions or similarities differ, so their vectors cannot be compared.

    Source: Karpukhin et al. 2020, Dense passage retrieval, section 3.
    """

    @checked
    def __init__(self, query: BiEncoder, passage: BiEncoder):
        for what in ("dimension", "similarity"):
            values = [getattr(e if what == "dimension" else e.config, what) for e in (query, passage)]
            if values[0] != values[1]:
                raise ValueError(f"the query encoder has {what} {values[0]}, the passage encoder {values[1]}")
        self.query, self.passage = query, passage
        self.name, self.precision, self.dimension = passage.name, passage.precision, passage.dimension
        self.encode_queries = query.encode_queries
        self.encode_passages, self.encode_chunks = passage.encode_passages, passage.encode_chunks

    @classmethod
    @checked
    def from_pretrained(
        cls, folder: str | Path, device: str | None = None, precision: str | None = None, **settings
    ) -> "TwoEncoders":
        """Read the folders `query` and `passage`; the other arguments are as in `BiEncoder.from_pretrained`.

        Raises:
            FileNotFoundError: One of the two folders is missing.
        """
        sides = [
            BiEncoder.from_pretrained(Path(folder) / side, device, precision, **settings)
            for side in ("query", "passage")
        ]
        for side in sides:
            side.name = Path(folder).name
        return cls(*sides)

    @property
    def config(self) -> EncoderConfig:
        """The passage encoder's config, with the query encoder's prompt and length for queries."""
        theirs = self.query.config
        return replace(
            self.passage.config, query_prompt=theirs.query_prompt, query_max_length=theirs.query_max_length
        )

    @property
    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over the fingerprints of both encoders."""
        return hashlib.sha256((self.query.fingerprint + self.passage.fingerprint).encode()).hexdigest()[:16]

    @checked
    def save(self, folder: Path | str) -> None:
        """Write both encoders into the folders `query` and `passage` of `folder`, all or nothing.

        Raises:
            ValueError: `folder` holds something that is not a pair of encoders.
        """
        with atomic_folder(folder, "two encoders") as fresh:
            self.query.save(fresh / "query")
            self.passage.save(fresh / "passage")
