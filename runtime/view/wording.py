"""The facts about a result in the user's words: names, and figures with their units."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..run.sidecar import Sidecar
from ..scan.scan import Scan
from .comparison import Comparison

STAGES = {  # in a sidecar's timings
    "read": "reading",
    "gather": "gathering",
    "network": "network",
    "blend": "blending",
    "write": "writing",
}


def facts(sr: Scan, found: Comparison | None, sidecar: Sidecar) -> dict[str, str]:
    """Texts by name, in reading order; facts that the sidecar lacks are left out.

    found: None if the scan cannot be compared.
    """
    told = {"Scan": found and _size(found.scan), "Result": _size(sr)}
    if found:
        told |= {
            "Signal-to-noise ratio": f"{found.snr:.1f} (tissue over the noise's standard deviation)",
            f"Difference to the scan's {found.measurement}": (
                f"{found.consistency:.2%} of its root mean square: how far the result, seen as the scanner "
                "would see it, is from what was measured" + _noise_alone(found, sidecar)
            ),
        }
    told |= {
        "Measured data": _measured(sidecar.made.get("measured_band")),
        "Expected error": _expected(sidecar.made.get("expected_error")),
        "Slices": _slices(sidecar.made.get("slices")),
        "Model": str(sidecar.table("model_card").get("name") or ""),
        "Computed by": _engine(sidecar.table("engine")),
        "Time": _time(sidecar.table("timings")),
    }
    return {name: value for name, value in told.items() if value}


def _size(scan: Scan) -> str:
    size = " × ".join(map(str, scan.shape))
    return f"{size} voxels of {' × '.join(f'{zoom:.3g}' for zoom in scan.zooms)} mm, {scan.dtype}"


def _measured(told: Any) -> str:
    """How the measured band of the first volume was held."""
    first = told[0] if isinstance(told, list) and told else told
    if isinstance(first, str):
        return "" if first.startswith("of thick slices") else first
    if not isinstance(first, dict) or not _numbers(first, "weight", "noise"):
        return ""
    return (
        f"{first['weight']:.0%} of the measured band taken from the scan, whose noise is "
        f"{first['noise']:.1%} of its brightest tissue"
    )


def _noise_alone(found: Comparison, sidecar: Sidecar) -> str:
    """The first volume's difference if the result were the truth."""
    told = sidecar.made.get("measured_band")
    first = told[0] if isinstance(told, list) and told else None
    rms = float(np.sqrt(np.mean(np.square(found.measured, dtype=np.float64))))
    if (
        found.measurement != "k-space"
        or not isinstance(first, dict)
        or not _numbers(first, "noise")
        or not rms
    ):
        return ""
    return f"; the scan's noise alone would give {first['noise'] * found.unit / rms:.2%}"


def _expected(told: Any) -> str:
    """The promise of the map of expected errors."""
    if not isinstance(told, dict) or not _numbers(told, "share", "times"):
        return ""
    return (
        f"in a separate map: {told['share']:.0%} of the tissue's voxels are within {told['times']:.2f} times "
        "it of a scan without noise"
    )


def _slices(told: Any) -> str:
    """The estimates made from the first volume's thick slices."""
    first = told[0] if isinstance(told, list) and told else None
    if not isinstance(first, dict) or not _numbers(first, "spacing_mm", "gain"):
        return ""
    width = "of unknown profile"
    if _numbers(first, "profile_fwhm_mm"):
        width = f"{first['profile_fwhm_mm']:.3g} mm wide at half maximum, estimated from the scan itself"
    return (
        f"{first['spacing_mm']:.3g} mm apart, {width}; {first['gain']:.0%} of the network's detail passed "
        "the trial on this scan and was kept"
    )


def _engine(told: dict[str, Any]) -> str:
    """Such as "openvino 2026.4 on cpu, bf16"."""
    library, version, device, precision = (
        str(told.get(name) or "") for name in ("library", "version", "device", "precision")
    )
    return f"{library} {version} on {device}, {precision}" if library else ""


def _time(told: dict[str, Any]) -> str:
    if not _numbers(told, "total"):
        return ""
    stages = [f"{words} {told[name]:.2f} s" for name, words in STAGES.items() if _numbers(told, name)]
    text = f"{told['total']:.2f} s; stages overlap: {', '.join(stages)}"
    if _numbers(told, "windows", "computed"):
        text += f"; the network saw {told['computed']:.0f} of {told['windows']:.0f} windows"
    return text


def _numbers(told: dict[str, Any], *names: str) -> bool:
    return all(isinstance(told.get(name), int | float) for name in names)
