"""What the page says beside the pictures: sizes, warnings, measures, and the sidecar's own words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..runs.sidecar import Sidecar
from ..scans.scan import Scan
from .comparison import ERROR_SHARE
from .files import Opened
from .results import Result, printable


def details(result: Result, opened: Opened, number: int) -> dict[str, Any]:
    """All of it, ready for JSON.

    window: intensities shown as black and white. error: the intensity at the end of the difference scale.
    volume, volumes: which one of a series. facts: rows of a table. sidecar: as it is.
    """
    found = opened.comparison
    source = os.path.relpath(result.source, result.root)
    facts = {"scan": printable(Path(source)), **_facts(opened.sr, "SR")}
    window, error, warnings = None, None, []
    if found:
        facts |= _facts(found.scan, "LR")
        facts["k-space difference"] = f"{found.consistency:.2%}"
        facts["signal-to-noise ratio"] = f"{found.snr:.1f}"
        window = [min(0.0, float(found.measured.min())), found.unit]
        error, warnings = ERROR_SHARE * found.unit, found.warnings
    return {
        "name": result.name,
        "volume": number,
        "volumes": opened.sr.volumes,
        "problem": opened.problem,
        "warnings": warnings,
        "window": window,
        "error": error,
        "facts": facts | _made(result.sidecar),
        "sidecar": result.sidecar.made,
    }


def _facts(scan: Scan, what: str) -> dict[str, str]:
    size = " × ".join(map(str, scan.shape))
    return {what: f"{size} voxels of {' × '.join(f'{zoom:.3g}' for zoom in scan.zooms)} mm, {scan.dtype}"}


def _made(sidecar: Sidecar) -> dict[str, str]:
    """What the sidecar tells about the run, as far as it does."""
    timings, engine, card = (sidecar.table(name) for name in ("timings", "engine", "model_card"))
    seconds = ((name, value) for name, value in timings.items() if type(value) is float)
    facts = {
        "model": card.get("name"),
        "engine": " ".join(
            str(engine.get(name, "")) for name in ("library", "version", "device", "precision")
        ),
        "seconds": ", ".join(f"{name} {value:.2f}" for name, value in seconds),
        "windows": f"{timings.get('computed')} of {timings.get('windows')} computed",
    }
    return {name: str(value) for name, value in facts.items() if value and str(value).strip()}
