"""What a saved generator has beside its transformers files: its settings."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dpr.files import atomic_folder, read_json, write_text
from dpr.models.checkpoint import writing_weights

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
