"""Values from JSON or TOML as the types that a dataclass declares for its fields."""

from __future__ import annotations

import contextlib
import types
import typing
from typing import Any, Literal, Union


class Mismatch(ValueError):
    """A value is not of the declared type; the text follows the field's name: "must be int, not 'a'"."""


def typed(hint: Any, value: Any) -> Any:
    """The value as the declared type. Raises Mismatch if it is of a different type.

    hint: a class, Literal, tuple, dict or union, of these. Lists may stand for tuples and integers for
    floats, and are converted; True and False are not numbers.
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if any(isinstance(value, type(arg)) and value == arg for arg in args):
            return value
        raise Mismatch(f"must be one of {', '.join(map(repr, args))}, not {_shown(value)}")
    if origin in (types.UnionType, Union):
        if value is None and types.NoneType in args:
            return None
        kinds = [arg for arg in args if arg is not types.NoneType]
        for kind in kinds[:-1]:
            with contextlib.suppress(Mismatch):
                return typed(kind, value)
        try:
            return typed(kinds[-1], value)
        except Mismatch:
            if len(kinds) == 1:
                raise
            raise Mismatch(f"must be {' or '.join(map(_named, kinds))}, not {_shown(value)}") from None
    if origin is tuple:
        if isinstance(value, list | tuple) and (args[-1] is Ellipsis or len(value) == len(args)):
            return tuple(typed(args[0], item) for item in value)
        count = "" if args[-1] is Ellipsis else f"{len(args)} "
        raise Mismatch(f"must be a list of {count}{_named(args[0])}, not {_shown(value)}")
    if origin is dict:
        if isinstance(value, dict):
            return {typed(args[0], key): typed(args[1], item) for key, item in value.items()}
        raise Mismatch(f"must be a table, not {_shown(value)}")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise Mismatch(f"must be {hint.__name__}, not {_shown(value)}")


def _shown(value: Any) -> str:
    """A value in one line, as arrays are not by themselves."""
    return " ".join(repr(value).split())


def _named(hint: Any) -> str:
    """A type in words."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        return f"{len(args)} times {_named(args[0])}"
    return " or ".join(map(repr, args)) if args else hint.__name__
