"""Settings by their names: all of them as rows, and some of them changed."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any


def with_settings(settings: Any, changes: Mapping[str, Any]) -> Any:
    """Settings with some of them changed.

    Args:
        settings: A profile, or another dataclass of settings.
        changes: Name → new value; a dot leads into settings that a setting holds, as in
            `training.learning_rate`. A list stands for a tuple.

    Raises:
        ValueError: An unknown name; the message has those there are. Or a value that the settings refuse.

    >>> from dpr.training.settings import TrainingSettings
    >>> with_settings(TrainingSettings(), {"batch_size": 8}).batch_size
    8
    """
    known = [part.name for part in fields(settings)]
    direct: dict[str, Any] = {}  # all at once, as some are right only together
    nested: dict[str, dict[str, Any]] = {}
    for name, value in changes.items():
        first, dot, rest = str(name).partition(".")
        if first not in known or (dot and not is_dataclass(getattr(settings, first))):
            raise ValueError(f"no setting {name!r}; there are {', '.join(known)}")
        if dot:
            nested.setdefault(first, {})[rest] = value
        else:
            direct[first] = tuple(value) if isinstance(value, list) else value
    for first, inside in nested.items():
        direct[first] = with_settings(direct.get(first, getattr(settings, first)), inside)
    return replace(settings, **direct)


def settings_table(settings: Any, prefix: str = "") -> list[tuple[str, Any]]:
    """Settings as (name, value) rows, those inside others with a dot, as `with_settings` takes them.

    >>> from dpr.training.settings import TrainingSettings
    >>> settings_table(TrainingSettings())[:2]
    [('num_epochs', 1.0), ('num_steps', None)]
    """
    rows: list[tuple[str, Any]] = []
    for part in fields(settings):
        value = getattr(settings, part.name)
        if is_dataclass(value):
            rows += settings_table(value, f"{prefix}{part.name}.")
        else:
            rows.append((f"{prefix}{part.name}", value))
    return rows
