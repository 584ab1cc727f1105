"""A head that compares what a transformer makes of the query with what it makes of the passage."""

from typing import Any

import torch
from sentence_transformers.base.modules import Module

SEGMENTS_HEAD = "dpr.reranking.segments.SegmentSimilarity"  # as `modules.json` names it


class SegmentSimilarity(Module):
    """Scores a pair by the cosine of the means over its segments: scale × (cosine − threshold), both learnt.

    Query and passage are read together, so every token has seen both texts; then the tokens of segment 0 and
    those of segment 1 are averaged, special tokens included, as mean pooling does with two texts. On a
    bi-encoder's transformer this has no random weights to begin with: it ranks before any training, where a
    linear layer over `[CLS]` starts at chance.

    It is a module of sentence-transformers, to follow a `Transformer` with the task `feature-extraction` in a
    `CrossEncoder`.

    Args:
        scale: The scale to begin with; 1 / a bi-encoder's temperature.
        threshold: The cosine of score 0 to begin with. Read together, a query and any passage come near each
            other: with all-MiniLM-L6-v2 and BM25's hits for SciFact the mean is about 0.83.
    """

    config_keys = ()

    def __init__(self, scale: float = 20.0, threshold: float = 0.8):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([float(scale)]))
        self.threshold = torch.nn.Parameter(torch.tensor([float(threshold)]))

    def forward(self, features: dict[str, torch.Tensor], **_) -> dict[str, torch.Tensor]:
        """Add `scores`, float32 [B, 1], to features with `token_embeddings` [B, T, D] and masks [B, T]."""
        tokens, read = features["token_embeddings"].float(), features["attention_mask"]
        with torch.autocast(tokens.device.type, enabled=False):
            means = []
            for segment in (0, 1):
                mask = ((features["token_type_ids"] == segment) & (read == 1)).unsqueeze(2).float()
                means.append((tokens * mask).sum(dim=1) / mask.sum(dim=1).clamp(min=1))
            cosine = torch.nn.functional.cosine_similarity(*means, dim=1)
            features["scores"] = (self.scale * (cosine - self.threshold)).unsqueeze(1)
        return features

    def save(self, output_path: str, *_, safe_serialization: bool = True, **__) -> None:
        """Write scale and threshold into a folder."""
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)

    @classmethod
    def load(cls, model_name_or_path: str, subfolder: str = "", **_: Any) -> "SegmentSimilarity":
        """Read what `save` wrote into a subfolder of a checkpoint's folder."""
        return cls.load_torch_weights(model_name_or_path=model_name_or_path, model=cls(), subfolder=subfolder)
