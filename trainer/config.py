"""The training configuration: a TOML file, checked key by key, presets included.

A configuration is a preset (`paper` or `compact`), then the user's TOML file, then the command line's
options; later settings win. The resolved configuration is saved in the run's folder as `config.toml`.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
import typing
from collections.abc import Collection
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from ..runtime.errors import RunError
from ..runtime.models.card import Relation
from ..runtime.system.typed import Mismatch, typed
from .methods import METHODS, Name, Weights
from .nets.blocks import least_depth
from .nets.generators import Architecture, ArchitectureError
from .nets.interpolation import SLAB
from .precision import TrainingPrecision
from .simulation.kspace import Degradation, DegradationError
from .simulation.random_degradation import Variation

PRESETS = ("paper", "compact")
UDEANS = ("judges", "noise")  # keys of the network that other methods do not have
MARK = "# Written by udean-train: the whole configuration of this run."  # the first line of config.toml
# Settings that change a training by rounding at most.
ROUNDING = ("machine", "schedule.precision", "schedule.validate_every", "schedule.checkpoint_every")


class ConfigError(RunError):
    """The configuration cannot be used."""


@dataclass(frozen=True)
class Data:
    """Scans by group; each entry is a file, a folder, a glob, a CSV list or a layout: see `scans`.

    pairing: "unpaired": no participant is in both source and target; "misaligned" or "aligned": the same
        participants are, and aligned scans lie where their headers say. Validation scans are always of other
        participants, aligned, and watch the training only.
    target_simulated: target (and validation_lr, by default the validation_hr) entries are HR scans that are
        degraded as the table `degradation` says, target entries also as `variation` says.
    misalign: move and shrink the source scans first, as the paper does. register: bring the HR scan of each
        pair rigidly onto its LR scan.
    bad_scans: "stop", or "skip" with a warning. any_voxel_size: scans of a group may differ in voxel size.
    consistency: how LR scans arise from HR ones, for the card. With "truncation" (of k-space) the runtime
        takes the measured band from the scan; "off" if it is not known.
    described_as: the scans in words, for the model card; by default their number and voxel size.
    coarse: how HR scans (for zssr, LR ones) are brought to the LR grid if a method treats the result as an LR
        scan without its own degradation: "truncation" of k-space, as scanners do it, or "bicubic", as the
        baselines were published; see `methods.method.Batch`.
    slab_axes: world axes (0 right, 1 front, 2 head; see `orientation`) along which slabs are cut, drawn in
        turn; none: the axis that the voxel sizes suggest. augment: flips and transposes in plane.
    """

    source: tuple[str, ...] = ()
    target: tuple[str, ...] = ()
    validation_hr: tuple[str, ...] = ()
    validation_lr: tuple[str, ...] = ()
    pairing: Literal["unpaired", "misaligned", "aligned"] = "unpaired"
    target_simulated: bool = False
    misalign: bool = False
    register: bool = False
    bad_scans: Literal["stop", "skip"] = "stop"
    any_voxel_size: bool = False
    coarse: Literal["truncation", "bicubic"] = "truncation"
    slab_axes: tuple[int, ...] = ()
    augment: bool = True
    consistency: Relation = "off"
    described_as: str = ""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast. patch: rows (= columns) of an LR patch; batch: LR patches a step, of all
    processes together.

    precision: of the arithmetic; "auto" is the machine's fastest, see `precision.py`. learning_rate
    falls by a cosine to final_rate over `steps`, beta2 is Adam's (section II-E); a method of two stages runs
    the whole schedule in each. average: share of itself that the moving average of the deployed weights keeps
    at each step, such as 0.999; 0: the weights of the last step are deployed. depth: LR slices of a training
    patch, a slab's three by default; with more, the supervised loss sees what the runtime delivers.
    select: how best.pt is chosen at each validation. "truth": PSNR of the validation scans. "consistency":
        without truth: how well the SR windows, degraded as the method has learned to, explain the LR windows
        (down to their noise), in dB, minus two spectral distances, in dB: that of the SR windows to the
        source scans beyond the LR band, and that of the degraded source scans to the LR windows. "auto":
        truth for methods that learn from pairs, else consistency.
    """

    steps: int = 120_000
    batch: int = 8
    patch: int = 64
    learning_rate: float = 1e-4
    final_rate: float = 1e-8
    beta2: float = 0.99
    average: float = 0.0
    depth: int = SLAB
    validate_every: int = 1000
    checkpoint_every: int = 500
    select: Literal["auto", "consistency", "truth"] = "auto"
    seed: int = 0
    precision: Literal["auto", TrainingPrecision] = "auto"


@dataclass(frozen=True)
class Machine:
    """The hardware of a run and how it is used; it changes the result by rounding only.

    devices: processes (GPUs, or CPU processes) on each of `nodes`; torchrun's own count wins. workers:
    processes that draw patches; 0: the training process draws them itself. compile: torch.compile the losses.
    """

    devices: int = 1
    nodes: int = 1
    workers: int = 1
    channels_last: bool = True
    compile: bool = False


@dataclass(frozen=True)
class Config:
    """Everything a run depends on besides the scans themselves. `weights` holds only the weights that the
    method uses.

    init: what the deployed networks start from: "" random weights, "default" the embedded model, or the path
        of a checkpoint with the same `network`.
    """

    name: str = "udean"
    method: Name = "udean"
    init: str = ""
    data: Data = field(default_factory=Data)
    network: Architecture = field(default_factory=Architecture)
    schedule: Schedule = field(default_factory=Schedule)
    weights: Weights = field(default_factory=Weights)
    degradation: Degradation = field(default_factory=Degradation)
    variation: Variation = field(default_factory=Variation)
    machine: Machine = field(default_factory=Machine)

    def to_toml(self) -> str:
        """The configuration as TOML text that `load` reads back."""
        top, tables = [MARK + "\n"], []
        for key, value in dataclasses.asdict(self).items():
            if key == "weights":
                value = {k: v for k, v in value.items() if k in METHODS[self.method].weighs}
            if isinstance(value, dict):
                tables.append(f"\n[{key}]\n" + "".join(f"{k} = {_toml(v)}\n" for k, v in value.items()))
            else:
                top.append(f"{key} = {_toml(value)}\n")
        return "".join(top + tables)


def load(
    preset: str, file: Path | None = None, options: dict[str, Any] | None = None, shared: bool = False
) -> Config:
    """Resolve preset, file and options (nested dicts by table; None values are left out).

    shared: the file is for several methods; weights in it that this method lacks are not an error.
    Raises ConfigError for an unknown key, a wrong type or an impossible value.
    """
    if preset not in PRESETS:
        raise ConfigError(f"There is no preset '{preset}': choose {' or '.join(PRESETS)}.")
    layers = [
        (
            f"preset {preset}",
            resources.files("udean.trainer").joinpath(f"presets/{preset}.toml").read_text("utf-8"),
        )
    ]
    if file is not None:
        try:
            data = file.read_bytes()
            own = data.startswith(MARK.encode())  # which names scans, in whatever letters
            layers.append((str(file), data.decode("utf-8", "surrogateescape" if own else "strict")))
        except OSError as error:
            raise ConfigError(f"{file} cannot be read: {error.strerror}.") from None
        except UnicodeDecodeError as error:
            raise ConfigError(f"{file} is not valid TOML: {error}.") from None
    merged: dict[str, Any] = {}
    for source, text in layers:
        try:
            _merge(merged, tomllib.loads(text))
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{source} is not valid TOML: {error}.") from None
    _merge(merged, options or {})
    own = [options or {}]
    if file is not None and not shared:
        own.append(tomllib.loads(layers[-1][1]))
    asked = {key for table in own for key in (*_table(table, "weights"), *_table(table, "network"))}
    _fit_to_method(merged, asked)
    config = _build(Config, merged, "")
    _check(config)
    return config


def is_untouched(text: str) -> bool:
    """Whether a text is just what `Config.to_toml` has written: no word of a user's own goes with it."""
    try:
        return text.startswith(MARK) and _build(Config, tomllib.loads(text), "").to_toml() == text
    except (tomllib.TOMLDecodeError, ConfigError):
        return False


def changed(before: str, now: Config, free: Collection[str] = ROUNDING) -> str | None:
    """Describe the first setting that differs from a saved configuration (TOML text); None if only `free`
    ones differ. free: keys, such as "schedule.seed", and tables."""
    old, new = _flat(tomllib.loads(before)), _flat(tomllib.loads(now.to_toml()))
    for key in sorted(old.keys() & new.keys()):
        if old[key] != new[key] and not {key, key.partition(".")[0]} & set(free):
            return f"{key} = {_toml(old[key])}, not {_toml(new[key])}"
    return None


def _flat(tables: dict[str, Any]) -> dict[str, Any]:
    """Values by table.key."""
    flat: dict[str, Any] = {}
    for key, value in tables.items():
        flat |= {f"{key}.{k}": v for k, v in value.items()} if isinstance(value, dict) else {key: value}
    return flat


def _table(tables: dict[str, Any], name: str) -> dict[str, Any]:
    found = tables.get(name, {})
    return found if isinstance(found, dict) else {}


def _fit_to_method(merged: dict[str, Any], asked: Collection[str]) -> None:
    """Keep the weights that the method has, and UDEAN's parts of the network for UDEAN; asking for one that
    it lacks is an error."""
    method, weights = merged.get("method", "udean"), merged.get("weights", {})
    if method not in METHODS or not isinstance(weights, dict):
        return  # `_build` reports it better
    for key in UDEANS if method != "udean" else ():
        if key not in asked:
            _table(merged, "network").pop(key, None)
    weighs = METHODS[method].weighs
    for key in sorted(asked):
        if key in Weights.__dataclass_fields__ and key not in weighs:
            raise ConfigError(
                f"{method} has no weight '{key}': its other weights are fixed, as in its own paper."
            )
    merged["weights"] = {k: v for k, v in weights.items() if k in weighs or k in asked}


def _check(config: Config) -> None:
    s, data, machine = config.schedule, config.data, config.machine
    draws = METHODS[config.method].draws
    wrong = [
        (
            min(s.steps, s.batch, s.validate_every, s.checkpoint_every) < 1,
            "steps, batch, validate_every and checkpoint_every must be at least 1.",
        ),
        (s.batch < 2, "batch must be at least 2: the discriminators' batch normalisation needs it."),
        (s.patch < 16 or s.patch % 2, "patch must be an even number of LR voxels, at least 16."),
        (not 0 <= s.final_rate <= s.learning_rate, "final_rate must lie between 0 and learning_rate."),
        (not 0 < s.beta2 < 1, "beta2 must lie between 0 and 1."),
        (not 0 <= s.average < 1, "average must be at least 0 and less than 1."),
        (
            (config.network.judges != "slab" or config.network.noise) and config.method != "udean",
            f"the network's judges and noise are UDEAN's: {config.method} has its own.",
        ),
        (not 0 < config.weights.anchor_left <= 1, "anchor_left must be more than 0 and at most 1."),
        (config.weights.charbonnier < 0, "charbonnier must not be negative."),
        (
            s.depth != SLAB and draws not in ("pairs", "estimated"),
            f"depth is for supervised learning: {config.method} sees slabs of {SLAB} slices.",
        ),
        (
            s.depth != SLAB and s.depth < least_depth(config.network.scale),
            f"depth must be {SLAB}, or at least {least_depth(config.network.scale)} LR slices.",
        ),
        (
            s.select == "truth" and not data.validation_hr,
            "select 'truth' needs validation_hr: without truth there is 'consistency'.",
        ),
        (not 0 <= s.seed < 2**32, "seed must be 0 or more, and less than 2 to the 32."),
        (
            not set(data.slab_axes) <= {0, 1, 2},
            "slab_axes are one or more of 0, 1 and 2, or none, to be found.",
        ),
        (min(machine.devices, machine.nodes) < 1, "devices and nodes must be at least 1."),
        (machine.workers < 0, "workers must be 0 or more."),
        (
            draws == "estimated" and len(data.slab_axes) > 1,
            f"{config.method} estimates a degradation along rows, columns and slices: give one of slab_axes.",
        ),
        (
            draws == "pairs" and data.pairing == "unpaired",
            f"{config.method} learns from pairs: set data.pairing to 'aligned' or 'misaligned'.",
        ),
        (data.register and draws != "pairs", f"register is for pairs: {config.method} draws none."),
        (
            data.misalign and (data.pairing != "misaligned" or draws == "target"),
            "misalign needs data.pairing 'misaligned' and a method that sees source scans.",
        ),
        (
            config.degradation != Degradation() and not data.target_simulated,
            "the table degradation is for simulated target scans: set data.target_simulated.",
        ),
        (
            config.variation != Variation() and not data.target_simulated,
            "the table variation is for simulated target scans: set data.target_simulated.",
        ),
        (
            bool(config.variation.shaped) and config.degradation.sampling != "truncation",
            "shaped scans of the table variation need k-space, so the degradation's sampling 'truncation'.",
        ),
        (
            bool(data.validation_lr) and not data.validation_hr,
            "validation_lr needs the validation_hr of the same participants.",
        ),
        (
            bool(data.validation_hr) and not data.validation_lr and not data.target_simulated,
            "validation_hr needs the validation_lr of the same participants.",
        ),
    ]
    for is_wrong, sentence in wrong:
        if is_wrong:
            raise ConfigError(sentence)


def _merge(into: dict[str, Any], layer: dict[str, Any]) -> None:
    for key, value in layer.items():
        if isinstance(value, dict):
            if isinstance(table := into.setdefault(key, {}), dict):  # else `_build` says what is wrong
                _merge(table, value)
        elif value is not None:
            into[key] = value


def _build(kind: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise ConfigError(f"'{where.removesuffix('.')}' must be a table.")
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
    except (ArchitectureError, DegradationError) as error:
        raise ConfigError(str(error)) from None


def _value(hint: Any, value: Any, where: str) -> Any:
    try:
        return typed(hint, value)
    except Mismatch as error:
        raise ConfigError(f"'{where}' {error}.") from None


def _toml(value: Any) -> str:
    if isinstance(value, float):
        return repr(value)
    return json.dumps(value, ensure_ascii=False)  # TOML's strings, booleans, integers and lists are JSON's
