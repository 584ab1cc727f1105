"""The files of a generator: model, tokenizer, and beside them its settings."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer

from dpr.files import atomic_folder, read_json, write_text
from dpr.models.checkpoint import check_weights, naming_damage, writing_weights

SETTINGS = "query_generator.json"


def save_generator(folder: Path | str, model, tokenizer, config) -> None:
    """Write a transformers folder that also has a generator's settings, atomically.

    Args:
        folder: The folder to write; an earlier generator there is replaced.
        model: The transformers model.
        tokenizer: Its tokenizer.
        config: The settings, a dataclass.

    Raises:
        ValueError: `folder` exists and holds something other than a generator.
    """
    with atomic_folder(folder, "a query generator") as fresh, writing_weights(folder):
        model.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        write_text(fresh / SETTINGS, json.dumps(asdict(config), indent=1) + "\n")


def load_parts(path: str, kind: type, dtype: torch.dtype) -> tuple[Any, Any]:
    """Load a checkpoint's model and tokenizer, and refuse weights that do not fit.

    Args:
        path: The checkpoint, as `find_checkpoint` gives it.
        kind: transformers' class that loads such models.
        dtype: The type of the weights.

    Raises:
        ValueError: Weights are missing or damaged, or have no place in the model.
    """
    with naming_damage(path):
        model, found = kind.from_pretrained(
            path, dtype=dtype, output_loading_info=True, trust_remote_code=False
        )
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    parts = [name for name, _ in model.named_children()]
    check_weights(path, found["missing_keys"], found["unexpected_keys"], parts)
    return model, tokenizer


def merged_settings(path: str, kind: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a checkpoint states, if it states any, with those given in their place.

    Args:
        path: The checkpoint.
        kind: The dataclass of the settings.
        given: Fields of it.

    Raises:
        ValueError: A setting is unknown, or the saved ones are damaged.
    """
    known = list(kind.__dataclass_fields__)
    if set(given) - set(known):
        raise ValueError(f"unknown settings {sorted(set(given) - set(known))}; known: {known}")
    saved = read_json(Path(path) / SETTINGS, *known) if (Path(path) / SETTINGS).is_file() else {}
    return {field: value for field, value in (saved | given).items() if field in known}
