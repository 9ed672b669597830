"""Checks of what a `SuperResolver` is given: a wrong type would only show later, as something else."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import RunError
from .models.card import ModelCard
from .pipeline import error_map
from .scan.intensity import Intensities
from .scan.scan import Scan
from .system.typed import Mismatch, typed
from .task import Options, Setup

Given = TypeVar("Given", Setup, Options)


def checked(given: Given) -> Given:
    """The same with each value as its declared type. Raises RunError if one is of another."""
    values = {}
    for name, hint in typing.get_type_hints(type(given)).items():
        value = getattr(given, name)
        try:
            value = value.item() if isinstance(value, np.generic) else value
            values[name] = value if hint is Any else typed(hint, value)
        except Mismatch as error:
            raise RunError(f"{name} {error}.") from None
    return dataclasses.replace(given, **values)


def check_options(options: Options, card: ModelCard) -> None:
    """Raise RunError for options that contradict each other or the model."""
    given = options.consistency
    if not isinstance(given, str) and not 0 <= given <= 1:
        raise RunError(f"The consistency is auto, off or a number from 0 to 1, not '{given}'.")
    if options.best and (card.kind != "slab" or len(set(card.scale)) > 1):
        scale = "x".join(map(str, card.scale))
        raise RunError(
            f"The mean over three slab axes needs a model of one factor along all axes, and {card.name} has "
            f"{scale}: leave out {'--error-map' if options.error_map else '--best'}."
        )
    if not options.error_map:
        return
    if options.to is not None:
        raise RunError("Expected errors are known on the model's own grid: leave out --to, or --error-map.")
    if options.consistency != "auto":
        raise RunError(
            "Expected errors are known for --consistency auto: leave out --consistency, or --error-map."
        )
    error_map.calibration(card)


def check_volume(volume: NDArray[Any]) -> None:
    """Raise RunError for anything but a 3-D array of real numbers."""
    if not isinstance(volume, np.ndarray):
        raise RunError(
            f"A volume is an array or a tensor, not {type(volume).__name__}; images go to `image`."
        )
    if isinstance(volume, np.ma.MaskedArray):
        raise RunError("A masked array has voxels without a value: fill them, as by volume.filled(0).")
    if volume.ndim != 3 or not volume.size or volume.dtype.kind not in "iuf":
        raise RunError(f"A volume must be 3-D and real, not {volume.dtype} of shape {volume.shape}.")


def check_scan(scan: object) -> None:
    """Raise RunError for anything but a `Scan`."""
    if not isinstance(scan, Scan):
        raise RunError(f"A scan is what open_scan makes of a file, not {type(scan).__name__}.")


def check_progress(progress: object) -> None:
    """Raise RunError for anything but a function, or None."""
    if progress is not None and not callable(progress):
        raise RunError(f"progress is a function of (done, all), not {type(progress).__name__}.")


def check_zooms(zooms: Sequence[float] | None) -> None:
    """Raise RunError for anything but three sizes in mm, or None."""
    if zooms is None:
        return
    try:
        sound = len(zooms) == 3 and all(0 < zoom < np.inf for zoom in zooms)
    except (TypeError, ValueError):
        sound = False
    if not sound:
        raise RunError(f"Voxel sizes are three positive numbers of (rows, columns, slices), not {zooms!r}.")


def check_stream(slices: object, count: object, intensities: object, best: bool) -> None:
    """Raise RunError for a stream of no slices or of unknown intensities, and for slabs along three axes."""
    try:
        iter(typing.cast(Iterable[object], slices))
    except TypeError:
        raise RunError(
            f"A stream's slices are arrays, one after another, not {type(slices).__name__}."
        ) from None
    if best:
        raise RunError(
            "The mean over three slab axes, and expected errors, need a whole volume: a stream has slabs "
            "along one."
        )
    if not isinstance(count, int | np.integer) or count < 1:
        raise RunError(f"A stream has a whole number of slices, at least one, not {count}.")
    if not isinstance(intensities, Intensities):
        raise RunError(f"A stream needs Intensities, such as Intensities(700.0), not {intensities!r}.")
