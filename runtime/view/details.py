"""The panel beside the pictures: sizes, warnings, figures, and the sidecar."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .comparison import ERROR_SHARE
from .on_demand import Opened, grey
from .pictures import lays
from .results import Result, printable_path
from .wording import facts


def details(result: Result, opened: Opened, number: int) -> dict[str, Any]:
    """Everything, ready for JSON.

    window: intensities shown as black and white. error: the intensity at the end of the difference scale.
    volume, volumes: number in a series, and how many there are. interpolation: the scan's interpolation.
    measurement: what the last difference refers to. error_map: whether there is one. planes: how many of each
    name the result has, and a picture's width over its height. facts: rows of a table. sidecar: unchanged.
    """
    found, sr = opened.comparison, opened.sr
    source = os.path.relpath(result.source, result.root)
    window, error, warnings = None, None, result.sidecar.warnings
    if found:
        window = grey(found)
        error, warnings = ERROR_SHARE * found.unit, [*warnings, *found.warnings]
    return {
        "name": result.name,
        "volume": number,
        "volumes": sr.volumes,
        "problem": opened.problem,
        "warnings": warnings,
        "window": window,
        "error": error,
        "interpolation": found.interpolation if found else "tricubic",
        "measurement": found.measurement if found else "k-space",
        "error_map": opened.error_map is not None,
        "planes": {
            name: {"count": sr.shape[lay.axis], "aspect": lay.aspect(sr.shape, sr.zooms)}
            for name, lay in lays(sr.affine).items()
        },
        "facts": {"Made from": printable_path(Path(source)), **facts(sr, found, result.sidecar)},
        "sidecar": result.sidecar.made,
    }
