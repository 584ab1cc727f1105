"""A cross-encoder: query and passage read together as one input, for one score."""

import copy
import inspect
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from tqdm import tqdm

from dpr.arguments import checked
from dpr.files import atomic_folder
from dpr.models.batching import OVERFLOWS, compute_blocks, pad_batch, padding_id
from dpr.models.bi_encoder import GPU_BATCH, PRECISIONS, BiEncoder
from dpr.models.checkpoint import (
    find_checkpoint,
    max_tokens,
    naming_damage,
    quieten,
    refuse_custom_code,
    weights_fingerprint,
    writing_weights,
)
from dpr.reranking.pairs import checked_pairs, tokenize_pairs, without_segments
from dpr.reranking.segments import SEGMENTS_HEAD, SegmentSimilarity

MIN_LENGTH = 5  # tokens in a pair: three special ones and one of each text
CPU_BATCH = 2_048  # most tokens per batch
BLOCK = 4_096  # pairs per block when all scores are kept in memory
KIND, TRANSFORMER = "a cross-encoder", "sentence_transformers.base.modules.transformer.Transformer"
HEADS = ("segments", "cls")
PROBE = ("which planet is the largest?", "Jupiter is the largest planet of the solar system.")
SAME = 1e-6  # scores that differ by less, relative to their size, are the same


class Reranker:
    """Scores pairs of a query and a passage with a sentence-transformers `CrossEncoder`.

    Create one with `Reranker.from_pretrained`, or with `Reranker.from_encoder` to train it. Loading, saving
    and the model are sentence-transformers'; batching is our own.

    Attributes:
        name: The checkpoint's name, without owner or folder.
        container: The `CrossEncoder`, with its weights in float32: a sequence classifier with one score, or
            a transformer with `dpr.reranking.segments.SegmentSimilarity`.
        tokenizer: Its tokenizer.
        max_length: Number of tokens at which a pair is cut, the longer text first, special tokens included.
        precision: The number format in which scores are computed, a key of `PRECISIONS`.
        has_segments: Whether the model tells query from passage by segment ids, beside the separators.
    """

    def __init__(self, container, name: str, max_length: int, precision: str):
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        self.container, self.name, self.max_length, self.precision = container, name, max_length, precision
        self.tokenizer = container.tokenizer
        longest = max_tokens(getattr(self.model, "base_model", self.model))
        if not MIN_LENGTH <= max_length <= longest:
            raise ValueError(f"max_length of {name} must be from {MIN_LENGTH} to {longest}, got {max_length}")
        read = set(inspect.signature(self.model.forward).parameters)
        self.has_segments = getattr(self.model.config, "type_vocab_size", 0) > 1 and "token_type_ids" in read
        self._fields = read if self.has_segments else read - {"token_type_ids"}
        self._is_checked = False

    @classmethod
    @checked
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        max_length: int | None = None,
        device: str | None = None,
        precision: str | None = None,
    ) -> "Reranker":
        """Load a cross-encoder with one score, such as `cross-encoder/ms-marco-MiniLM-L6-v2`.

        Args:
            name_or_folder: A hub name, or the folder of a cross-encoder or a sequence classifier.
            max_length: Number of tokens at which a pair is cut; by default what its tokenizer states.
            device: `cuda`, `cpu`, …; by default a GPU if there is one.
            precision: A key of `PRECISIONS`; by default float16 on a GPU and float32 on a CPU.

        Raises:
            ValueError: It has no head or several scores, lacks weights, or states no length.
            FileNotFoundError: The folder does not exist.
        """
        path = find_checkpoint(name_or_folder)
        with naming_damage(path):
            container = _load(path, device)
        length = max_length or container.max_seq_length
        if length is None or length > 1e9:
            raise ValueError(f"{path} does not say its length; pass max_length=…")
        if precision is None:
            precision = "float32" if container.device.type == "cpu" else "float16"
        name = str(name_or_folder).rstrip("/").split("/")[-1]
        return cls(container, name, length, precision)

    @classmethod
    @checked
    def from_encoder(
        cls,
        encoder: BiEncoder,
        max_length: int,
        head: str = "segments",
        seed: int = 0,
        precision: str | None = None,
    ) -> "Reranker":
        """Make a cross-encoder from a copy of a bi-encoder's transformer, to be trained.

        Args:
            encoder: The bi-encoder; its pooling, prompts and lengths play no part.
            max_length: Number of tokens at which a pair is cut.
            head: `segments` compares the means over query and passage, as mean pooling does, and ranks
                somewhat before training; the transformer must have segment ids. `cls` is the usual linear
                layer over the first token, with random weights: untrained, its scores mean nothing.
            seed: Seed of the weights of `cls`.
            precision: As in `from_pretrained`.

        Raises:
            ValueError: An unknown head, or `segments` for a transformer without segment ids.
        """
        if head not in HEADS:
            raise ValueError(f"head must be one of {HEADS}, got {head!r}")
        from sentence_transformers import CrossEncoder
        from sentence_transformers.base.modules import Transformer
        from transformers import AutoModelForSequenceClassification

        quieten()
        one = {"id2label": {0: "relevance"}, "label2id": {"relevance": 0}}
        config = type(encoder.model.config).from_dict({**encoder.model.config.to_dict(), **one})
        with torch.random.fork_rng(), TemporaryDirectory() as folder:
            if head == "cls":
                torch.manual_seed(seed)
                model = AutoModelForSequenceClassification.from_config(config)
                model.base_model.load_state_dict(encoder.model.state_dict(), strict=False)
            else:
                model = copy.deepcopy(encoder.model)
                model.config = config
            model.save_pretrained(folder)
            encoder.tokenizer.save_pretrained(folder)
            if head == "segments":
                how = {"transformer_task": "feature-extraction", "model_kwargs": {"dtype": torch.float32}}
                CrossEncoder(modules=[Transformer(folder, **how), SegmentSimilarity()]).save(folder)
            started = cls.from_pretrained(folder, max_length, encoder.model.device.type, precision)
        started.name = encoder.name
        if head == "segments" and not started.has_segments:
            raise ValueError(f"{encoder.name} has no segment ids, which the head needs; use head='cls'")
        return started

    @property
    def model(self) -> torch.nn.Module:
        """The transformer, of a sequence classifier with its head."""
        return self.container[0].model

    @property
    def fingerprint(self) -> str:
        """16 hex digits of SHA-256 over length and weights, which identify the model exactly."""
        return weights_fingerprint(self.container, {"max_length": self.max_length})

    @property
    def batch_tokens(self) -> int:
        """Most tokens per batch by default, padding included; depends on the device."""
        return CPU_BATCH if self.model.device.type == "cpu" else GPU_BATCH

    @checked
    def predict(
        self, pairs: Sequence[Sequence[str]], overflow: str = "truncate", batch_tokens: int | None = None
    ) -> np.ndarray:
        """Score pairs.

        Args:
            pairs: N pairs of query and passage.
            overflow: What happens to a pair beyond `max_length`: `truncate` cuts its longer text, as
                sentence-transformers does; `max_chunk` splits the passage into as many chunks as needed, of
                which the best counts, with the query cut to half the room.
            batch_tokens: Most tokens per batch, padding included; by default `self.batch_tokens`.

        Returns:
            The raw score (logit) of each pair, float32 [N], larger is better.

        Raises:
            ValueError: A pair is not two strings, an unknown overflow, or an error of `check_pairs`.
        """
        pairs = checked_pairs(pairs)
        blocks = [pairs[start : start + BLOCK] for start in range(0, len(pairs), BLOCK)]
        with tqdm(total=len(pairs), desc=f"{self.name}: pairs", unit="pair") as bar:
            found = list(self.predict_blocks(blocks, overflow, batch_tokens, bar.update))
        return np.concatenate([np.empty(0, dtype=np.float32), *found])

    def predict_blocks(
        self,
        blocks: Iterable[Sequence[tuple[str, str]]],
        overflow: str = "truncate",
        batch_tokens: int | None = None,
        progress: Callable[[int], object] = lambda pairs: None,
    ) -> Iterator[np.ndarray]:
        """Score blocks of pairs one by one, on demand; a block's scores do not depend on other blocks.

        Args:
            blocks: Blocks of pairs. Pairs of similar length share a batch, so each should hold hundreds.
            overflow: As in `predict`.
            batch_tokens: As in `predict`.
            progress: Called after each batch with the number of pairs newly done.

        Yields:
            For each block the scores of its pairs, float32 [pairs].
        """
        if overflow not in OVERFLOWS:
            raise ValueError(f"overflow must be one of {OVERFLOWS}, got {overflow!r}")
        if not self._is_checked:
            check_pairs(self)
            self._is_checked = True
        self.model.eval()
        computed = compute_blocks(
            blocks,
            lambda pairs: tokenize_pairs(self.tokenizer, pairs, self.max_length, overflow),
            lambda tokens, _: self.score(self.pad(tokens)),
            batch_tokens=self.batch_tokens if batch_tokens is None else batch_tokens,
            device=self.model.device.type,
            progress=progress,
        )
        for rows, owners in computed:
            starts = np.flatnonzero(np.diff(owners, prepend=-1))  # a pair's chunks follow each other
            yield (
                np.maximum.reduceat(np.array(rows, dtype=np.float32), starts)
                if rows
                else np.empty(0, dtype=np.float32)
            )

    def pad(self, tokens: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        """Pad B tokenised pairs into one batch, each field int64 [B, T], on the model's device."""
        pad_with = {
            "input_ids": padding_id(self.tokenizer),
            "token_type_ids": self.tokenizer.pad_token_type_id,
        }
        tokens = [{field: row[field] for field in row if field in self._fields} for row in tokens]
        device = self.model.device
        batch = pad_batch(tokens, pad_with, 1 if device.type == "cpu" else 8)
        return {field: rows.to(device) for field, rows in batch.items()}

    @torch.inference_mode()
    def score(self, batch: dict[str, torch.Tensor]) -> np.ndarray:
        """The scores of a padded batch, float32 [B], in the reranker's precision."""
        dtype = PRECISIONS[self.precision]
        with torch.autocast(self.model.device.type, dtype, enabled=dtype != torch.float32):
            return self.container(dict(batch))["scores"][:, 0].float().cpu().numpy()

    @checked
    def save(self, folder: Path | str) -> None:
        """Write a sentence-transformers folder that `CrossEncoder` reads as the same model, all or nothing.

        `CrossEncoder.predict` then gives the raw scores, without a sigmoid.

        Args:
            folder: The folder to write; an earlier cross-encoder there is replaced.

        Raises:
            ValueError: `folder` holds something else.
        """
        self.container.max_seq_length = self.max_length
        self.container.activation_fn = torch.nn.Identity()  # a sigmoid would make ties of large scores
        with atomic_folder(folder, KIND) as fresh, writing_weights(folder):
            self.container.save(str(fresh), create_model_card=False)


def _load(path: str, device: str | None):
    """Load a `CrossEncoder` of one score in float32, of whose weights none is missing."""
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Transformer
    from transformers import AutoConfig

    quieten()
    refuse_custom_code(path)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    how = {"model_kwargs": {"dtype": torch.float32}, "trust_remote_code": False}
    parts = _parts(path)
    if list(parts) == [TRANSFORMER, SEGMENTS_HEAD]:
        head = SegmentSimilarity.load(path, subfolder=parts[SEGMENTS_HEAD])
        modules = [Transformer.load(path, subfolder=parts[TRANSFORMER], **how), head]
        return CrossEncoder(modules=modules, device=device)
    config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    kind = (config.architectures or ["no architecture"])[0]
    if not kind.endswith("ForSequenceClassification") or config.num_labels != 1:
        raise ValueError(
            f"{path} is {kind} with {config.num_labels} labels, not a sequence classifier with one score; "
            f"to train one from a bi-encoder use Reranker.from_encoder"
        )
    if parts and list(parts) != [TRANSFORMER]:
        raise ValueError(f"{path} is made of {', '.join(parts)}; only a Transformer can be read")
    container = CrossEncoder(path, device=device, **how)
    kind = type(container.model)
    _, found = kind.from_pretrained(
        path, config=container.model.config, device_map="meta", output_loading_info=True
    )
    if missing := sorted(found["missing_keys"]):
        raise ValueError(f"{path} lacks the weights {', '.join(missing[:3])} ({len(missing)}) of its head")
    return container


def _parts(path: str) -> dict[str, str]:
    """The modules of a sentence-transformers checkpoint: dotted name → subfolder; empty for another one."""
    from sentence_transformers.util import load_file_path

    found = load_file_path(path, "modules.json")
    if found is None:
        return {}
    return {module["type"]: module["path"] for module in json.loads(Path(found).read_text(encoding="utf-8"))}


@checked
def check_pairs(reranker: Reranker) -> dict[str, float]:
    """Check that a model reads a pair as a pair, before its first score.

    Without segment ids a model that was trained with them scores almost at random, and nothing else shows it.

    Returns:
        The scores of a pair `as read`, `swapped`, and if the model has segment ids, `without segments`.

    Raises:
        ValueError: The model has segment ids and the tokenizer gives none, or only one; the score does not
            depend on them; or it is the same for the pair swapped.
    """
    reranker.model.eval()

    def row(pair: tuple[str, str]) -> dict[str, torch.Tensor]:
        return reranker.pad(tokenize_pairs(reranker.tokenizer, [pair], reranker.max_length)[0])

    batch = row(PROBE)
    scores = {"as read": batch, "swapped": row(PROBE[::-1])}
    if reranker.has_segments:
        if len(torch.unique(batch.get("token_type_ids", torch.zeros(1)))) < 2:
            raise ValueError(
                f"{reranker.name} tells query from passage by segment ids, and its tokenizer gives none: "
                f"add token_type_ids to its model_input_names"
            )
        scores["without segments"] = without_segments(batch)
    with torch.inference_mode():  # in float32, as rounding makes near scores equal
        scores = {name: float(reranker.container(dict(b))["scores"][0, 0]) for name, b in scores.items()}
    for name, score in scores.items():
        if name != "as read" and abs(score - scores["as read"]) <= SAME * max(1, abs(score)):
            raise ValueError(f"{reranker.name} gives a pair and the same {name} one score, {score:.6g}")
    return scores
