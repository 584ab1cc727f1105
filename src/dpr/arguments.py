"""Refusing arguments of a wrong type at the door, in words, before anything is computed or written."""

import inspect
import itertools
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import fields
from functools import wraps
from typing import Any

import numpy as np

WHOLE, REAL = (int, np.integer), (int, float, np.integer, np.floating)


def checked(function: Callable) -> Callable:
    """Make a function refuse arguments that are not what its annotations say.

    Containers are checked with their first item only; their content is the function's own business.

    Raises:
        ValueError: An argument has another type; the message names function, argument and both.
    """
    signature = inspect.signature(function)
    annotated = {n: p.annotation for n, p in signature.parameters.items() if p.annotation is not p.empty}
    several = {n for n, p in signature.parameters.items() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}

    @wraps(function)
    def call(*args, **kwargs):
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in annotated:
                given = [(name, value)]
                if name in several:
                    given = value.items() if isinstance(value, Mapping) else [(name, one) for one in value]
                for what, one in given:
                    _refuse(f"{function.__qualname__}: {what}", one, annotated[name])
        return function(*args, **kwargs)

    return call


def check_fields_of(instance: Any) -> None:
    """Refuse a dataclass instance with a field that is not what its annotation says, as `checked` does.

    Raises:
        ValueError: A field has another type.
    """
    for field in fields(instance):
        _refuse(f"{type(instance).__name__}: {field.name}", getattr(instance, field.name), field.type)


def _refuse(where: str, value: Any, annotation: Any) -> None:
    """Raise ValueError, which begins with `where`, if a value does not fit an annotation."""
    if not _fits(value, annotation):
        shown = type(value).__name__
        if value is None or isinstance(value, str | bytes | int | float):
            shown = repr(value)[:80]
        elif isinstance(value, Iterable) and hasattr(value, "__len__") and len(value):
            shown += f" that begins with {next(iter(value))!r:.60}"
        raise ValueError(f"{where} must be {_words(annotation)}, got {shown}")


def _fits(value: Any, annotation: Any) -> bool:
    """Whether a value is of the annotated type, containers by their first item."""
    origin, inside = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if annotation is Any or isinstance(annotation, str | typing.TypeVar) or origin is type:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one) for one in inside)
    if annotation is None:
        return value is None
    if origin in (int, float):
        return isinstance(value, WHOLE if origin is int else REAL) and not isinstance(value, bool)
    if origin is Callable:
        return callable(value)
    if issubclass(origin, Mapping):
        content = [kind for kind in inside[1:] if kind not in (int, float)]  # numbers are checked elsewhere
        return isinstance(value, Mapping) and _first_fits(value.values(), content)
    if issubclass(origin, Iterable) and origin not in (str, bytes, np.ndarray):
        is_one = hasattr(value, "__iter__") and not isinstance(value, str | bytes | Mapping)
        if issubclass(origin, Sequence):
            is_one = is_one and hasattr(value, "__len__") and hasattr(value, "__getitem__")
        if issubclass(origin, Set):
            is_one = isinstance(value, Set)
        return is_one and (not hasattr(value, "__len__") or _first_fits(value, inside[:1]))
    return isinstance(value, origin)


def _first_fits(items: Iterable, inside: Sequence) -> bool:
    """Whether there is no first item, or it is of the annotated type."""
    return not inside or all(_fits(item, inside[0]) for item in itertools.islice(items, 1))


def _words(annotation: Any) -> str:
    """An annotation as it stands in the code, without the names of modules."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    text = str(annotation).replace("NoneType", "None")
    return " ".join(part for part in text.replace("collections.abc.", "").replace("pathlib.", "").split())
