"""The training configuration: a TOML file, checked key by key, presets included.

A configuration is a preset (`paper` or `compact`), then the user's TOML file, then the command line's
options, the later one winning. The resolved one is saved beside the run as `config.toml`.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
import typing
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from ..runtime.errors import RunError
from .methods.udean import Weights
from .networks import Architecture, ArchitectureError

PRESETS = ("paper", "compact")


class ConfigError(RunError):
    """The configuration cannot be used."""


@dataclass(frozen=True)
class Data:
    """Scans by group; each entry is a file, a folder or a glob.

    validation_hr and validation_lr are pairs by file name order, for watching the training only.
    slab_axes: array axes along which slabs are cut, drawn by turns. augment: flips and transposes in plane.
    """

    source: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    validation_hr: tuple[str, ...] = ()
    validation_lr: tuple[str, ...] = ()
    slab_axes: tuple[int, ...] = (2,)
    augment: bool = True
    described_as: str = "unspecified scans"


@dataclass(frozen=True)
class Schedule:
    """How long and how fast. patch: rows (= columns) of an LR patch; batch: LR patches a step.

    learning_rate falls by a cosine to final_rate over `steps` (section II-E).
    """

    steps: int = 120_000
    batch: int = 8
    patch: int = 64
    learning_rate: float = 1e-4
    final_rate: float = 1e-8
    validate_every: int = 1000
    checkpoint_every: int = 500
    seed: int = 0
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"


@dataclass(frozen=True)
class Config:
    """Everything a run depends on besides the scans themselves."""

    name: str = "udean"
    method: Literal["udean"] = "udean"
    data: Data = field(default_factory=Data)
    network: Architecture = field(default_factory=Architecture)
    schedule: Schedule = field(default_factory=Schedule)
    weights: Weights = field(default_factory=Weights)

    def to_toml(self) -> str:
        """The configuration as TOML text that `load` reads back."""
        top, tables = [], []
        for key, value in dataclasses.asdict(self).items():
            if isinstance(value, dict):
                tables.append(f"\n[{key}]\n" + "".join(f"{k} = {_toml(v)}\n" for k, v in value.items()))
            else:
                top.append(f"{key} = {_toml(value)}\n")
        return "".join(top + tables)


def load(preset: str, file: Path | None = None, options: dict[str, Any] | None = None) -> Config:
    """Resolve preset, file and options (nested dicts by table; None values are left out).

    Raises ConfigError for an unknown key, a wrong type or an impossible value.
    """
    if preset not in PRESETS:
        raise ConfigError(f"There is no preset '{preset}': choose {' or '.join(PRESETS)}.")
    layers = [
        (f"preset {preset}", resources.files("udean.trainer").joinpath(f"presets/{preset}.toml").read_text())
    ]
    if file is not None:
        try:
            layers.append((str(file), file.read_text()))
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror}.") from None
    merged: dict[str, Any] = {}
    for source, text in layers:
        try:
            _merge(merged, tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{source} is not valid TOML: {error}.") from None
    _merge(merged, options or {})
    config = _build(Config, merged, "")
    _check(config)
    return config


def _check(config: Config) -> None:
    s = config.schedule
    if min(s.steps, s.batch, s.validate_every, s.checkpoint_every) < 1:
        raise ConfigError("steps, batch, validate_every and checkpoint_every must be at least 1.")
    if s.batch < 2:
        raise ConfigError("batch must be at least 2: the discriminators' batch normalisation needs it.")
    if s.patch < 16:
        raise ConfigError("patch must be at least 16 LR voxels.")
    if not 0 <= s.final_rate <= s.learning_rate:
        raise ConfigError("final_rate must lie between 0 and learning_rate.")
    if not set(config.data.slab_axes) <= {0, 1, 2} or not config.data.slab_axes:
        raise ConfigError("slab_axes are one or more of 0, 1 and 2.")


def _merge(into: dict[str, Any], layer: dict[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, dict) and isinstance(into.get(key, {}), dict):
            _merge(into.setdefault(key, {}), value)
        elif value is not None:
            into[key] = value


def _build(kind: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"'{where}' must be a table.")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ConfigError(f"The configuration has no key '{where}{unknown[0]}': it knows {', '.join(hints)}.")
    arguments = {
        key: _build(hints[key], value, f"{where}{key}.")
        if dataclasses.is_dataclass(hints[key])
        else _value(hints[key], value, where + key)
        for key, value in values.items()
    }
    try:
        return kind(**arguments)
    except ArchitectureError as error:
        raise ConfigError(str(error)) from None


def _value(hint: Any, value: Any, where: str) -> Any:
    """A TOML value as the annotated type; lists become tuples, integers may stand for floats."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value in args:
            return value
        raise ConfigError(f"'{where}' must be one of {', '.join(map(repr, args))}, not {value!r}.")
    if origin is tuple:
        if isinstance(value, list | tuple) and (args[-1] is Ellipsis or len(value) == len(args)):
            return tuple(_value(args[0], item, where) for item in value)
        raise ConfigError(f"'{where}' must be a list of {args[0].__name__}, not {value!r}.")
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"'{where}' must be {hint.__name__}, not {value!r}.")


def _toml(value: Any) -> str:
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)  # TOML's strings, booleans, integers and lists are JSON's
