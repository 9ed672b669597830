"""Kinds of images that must not be restored, because the result would be wrong however well it looked.

Labels, masks and maps of statistics are not intensities: between two labels a network would invent others.
CT has other intensities than the MR that networks learn here. A single slice, and what lies along a line,
such as a FreeSurfer overlay on a surface, has no neighbour to restore anything from.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError
from ..system.files import read_json
from .geometry import Factors
from .scan import Scan, stem

# Source: nifti1.h, "intent codes".
LABELS = 1002
INTENTS = {
    **dict.fromkeys(range(2, 25), "a map of a statistic"),
    LABELS: "labels",
    1003: "names of labels",
    **dict.fromkeys((1004, 1005), "matrices"),
    **dict.fromkeys((1006, 1007, 1010, 2003, 2004), "vectors"),
    **dict.fromkeys((1008, 1009, 2002, 2005), "a surface's points, triangles or shape"),
}
# Of pairs of neighbours in the foreground, the share that is alike. Measured: label maps of heads and atlases
# 0.85 to 0.96, MR scans of 8 and 16 bits 0.05 to 0.16, any scan of twice the size by nearest neighbours 0.5.
ALIKE = 0.6
FEW = 64  # pairs of neighbours that tell nothing
PIECE = 1 << 21  # voxels of a volume that are looked at: its middle slices
AIR = (-1100.0, -900.0)  # Hounsfield units; what is outside a CT's field of view is still less
# What image types say of phase, of real and imaginary parts, and of what is computed from them.
NO_MAGNITUDE = {"P", "R", "I", "PHASE", "REAL", "IMAGINARY", "PHASE MAP", "VELOCITY MAP", "VELOCITY"}
# And of pictures whose values are not a scan's signal, by the first or last word of a value.
PICTURES = {
    **dict.fromkeys(
        ("ADC", "EADC", "FA", "CBF", "CBV", "RCBF", "RCBV", "MTT", "TTP", "TMAX"), "a computed map"
    ),
    **dict.fromkeys(("RELCBF", "RELCBV", "RELMTT", "ANISO", "TENSOR", "QUANTITY"), "a computed map"),
    **dict.fromkeys(("MAP", "MAPS", "STD_DEVIATION"), "a computed map"),
    **dict.fromkeys(("MIP", "MINIP", "MNIP", "MAXIP", "PROJECTION"), "a projection"),
    **dict.fromkeys(("MAX_IP", "MIN_IP", "VOLUME_RENDER", "SURFACE_RENDER", "CURVED_MPR"), "a projection"),
    **dict.fromkeys(("SCREEN", "SCREENSAVE"), "a picture of a screen"),
}
# The ends of what phases fill, and how near to them they come: radians, and what vendors make of them.
PHASES = ((float(np.pi) * 1.001, 0.99), (4096.0, 0.995))
AIRY = 0.05  # share of a CT that is air, at least
NEGATIVE = 0.2  # share of voxels that no magnitude image has below zero, whatever was filtered


def is_no_magnitude(types: Iterable[str]) -> bool:
    """Whether an image's types (DICOM's ImageType from the third value on) say that it holds no magnitude.

    Vendors put it in any value, some with more words behind it: P_FFE, PHASE_IMAGE.
    """
    return any(value.strip().upper().split("_")[0] in NO_MAGNITUDE for value in types)


def no_signal(types: Iterable[str]) -> str:
    """The kind of an image whose types (DICOM's ImageType) say that it holds no signal; "" for others."""
    for value in types:
        words = value.strip().upper().replace("_", " ").split()
        for word in (value.strip().upper(), *words[:1], *words[-1:]):
            if word in PICTURES:
                return PICTURES[word]
    return ""


def check_layout(scan: Scan, factors: Factors, labels: bool = False) -> None:
    """Raise RunError if a scan's header says that there is nothing to restore; no voxel is read.

    factors: HR voxels per LR voxel along (i, j, k). labels: whether label maps may pass.
    """
    intent = int(scan.header["intent_code"])
    if (what := INTENTS.get(intent)) and not (labels and intent == LABELS):
        raise RunError(f"{scan.name} holds {what}, by its header's intent, not intensities: it is left.")
    single = [axis for axis in range(3) if scan.shape[axis] == 1]
    size = " x ".join(map(str, scan.shape))
    if len(single) > 1:
        raise RunError(
            f"{scan.name} has {size} voxels: a list of values, such as a surface's overlay, not a volume."
        )
    for axis in single:
        if factors[axis] > 1:
            raise RunError(
                f"{scan.name} is a single slice ({size} voxels): what lies between slices cannot be restored "
                f"from one. Give the whole stack, or a model of scale 1 across slices."
            )


def check_voxels(scan: Scan, voxels: NDArray[Any]) -> None:
    """Raise RunError if a volume's voxels, (i, j, k) as stored, are labels, a mask, phases or CT."""
    _check_name(scan)
    _check_sidecar(scan)
    seen = _middle(voxels)
    if not np.isfinite(seen).all():
        return  # which others name
    if why := _why_labels(seen):
        raise RunError(
            f"{scan.name} looks like {_labels(seen)}: {why}. Labels are not intensities, so it is left: "
            "--labels nearest resamples it."
        )
    values = seen.astype(np.float64) * scan.slope + scan.inter
    low, high = float(values.min()), float(values.max())
    if any(near * top <= min(-low, high) and max(-low, high) <= top for top, near in PHASES):
        raise RunError(
            f"{scan.name} looks like phases: its voxels fill the range from {low:.5g} to {high:.5g}. Phases "
            "are not intensities, so it is left: give the magnitude image."
        )
    air = float(np.mean((values <= AIR[1]) & ((values >= AIR[0]) | (values == values.min()))))
    if air > AIRY:
        raise RunError(
            f"{scan.name} looks like CT: {air:.0%} of its voxels have the {AIR[0]:.0f} to {AIR[1]:.0f} HU of "
            "air. The networks here are for MR, so it is left."
        )


def check_sign(name: str, values: NDArray[Any]) -> None:
    """Raise RunError for phase, real or imaginary images that nothing but their values tells apart."""
    if share := _negative(values):
        raise RunError(
            f"{name} is negative in {share:.0%} of its voxels, as phase, real and imaginary images are: "
            "only magnitude images are restored."
        )


def doubt_of_sign(name: str, voxels: NDArray[Any], slope: float = 1.0, inter: float = 0.0) -> str:
    """Why the result of a volume, (i, j, k) as stored, may be worse than an interpolation; else "".

    A file may hold the z-scores of a magnitude image, which are not refused.
    """
    if share := _negative(_middle(voxels) * np.float32(slope) + np.float32(inter)):
        return (
            f"{name} is negative in {share:.0%} of its voxels. The model was trained on magnitude images: "
            "the result may be worse than an interpolation. Give the magnitude image, or add a constant "
            "that makes air 0."
        )
    return ""


def _negative(values: NDArray[Any]) -> float:
    """The share of voxels below zero, if no magnitude image has so many; else 0."""
    share = np.count_nonzero(values < 0) / max(np.count_nonzero(values), 1)
    return share if share > NEGATIVE else 0.0


def with_labels(scan: Scan) -> Scan:
    """The scan with its voxels read and, in `labels`, what it holds if it is a label map or a mask."""
    scan = scan.loaded()
    voxels = scan.voxels()
    seen = _middle(voxels if scan.volumes == 1 else voxels[..., 0])
    found = int(scan.header["intent_code"]) == LABELS or _why_labels(seen)
    return dataclasses.replace(scan, labels=_labels(seen) if found else "")


def _middle(voxels: NDArray[Any]) -> NDArray[Any]:
    """The middle slices of a volume (i, j, k), as many as are looked at."""
    count = max(2, PIECE * voxels.shape[2] // voxels.size)
    first = max(0, (voxels.shape[2] - count) // 2)
    return np.asarray(voxels[:, :, first : first + count])


def _why_labels(seen: NDArray[Any]) -> str:
    """By what voxels show that they are labels or a mask, "" if they are neither."""
    if seen.dtype.kind == "f" and not np.array_equal(np.rint(seen), seen):
        return ""  # NaN included, which others name
    low, high = seen.min(), seen.max()
    if low != high and ((seen == low) | (seen == high)).all():
        return "it has two values"
    share = _alike(seen)
    return f"{share:.0%} of its neighbouring voxels are equal" if share > ALIKE else ""


def _labels(voxels: NDArray[Any]) -> str:
    """The name for voxels that are labels."""
    values = len(np.unique(voxels))
    return "a mask" if values == 2 else f"a map of {values} labels"


def _check_name(scan: Scan) -> None:
    """Raise RunError if a file's BIDS name says that it holds no magnitudes: sub-01_part-phase_bold,
    sub-01_phasediff, sub-01_T1map.

    Source: BIDS 1.10, "Entities" (part) and "Suffixes".
    """
    if scan.path is None:
        return
    *words, suffix = stem(scan.path).split("_")
    phase = re.fullmatch("phase(1|2|diff)?", suffix) or {"part-phase", "part-real", "part-imag"} & {*words}
    computed = suffix.endswith("map")
    if words and words[0].startswith("sub-") and (phase or computed):
        what = "no magnitudes" if phase else "a computed map"
        raise RunError(f"{scan.name} holds {what}, by its name: it is left, give the magnitude image.")


def _check_sidecar(scan: Scan) -> None:
    """Raise RunError if what a converter has written beside a file says that it holds no magnitudes."""
    if scan.path is None:
        return
    types = read_json(scan.path.with_name(stem(scan.path) + ".json")).get("ImageType")
    said = list(map(str, types[2:])) if isinstance(types, list) else []
    if what := "no magnitudes" if is_no_magnitude(said) else no_signal(said):
        raise RunError(
            f"{scan.name} holds {what}, by the ImageType in its sidecar ({', '.join(said)}): it is left, "
            "give the magnitude image."
        )


def _alike(voxels: NDArray[Any]) -> float:
    """Share of neighbours that are equal, both outside the background, which is the first voxel's value: the
    least of those along the axes; 0 if there are too few to tell."""
    inside = voxels != voxels.flat[0]
    least = 1.0
    for axis in range(3):
        both = _but(inside, axis, -1) & _but(inside, axis, 0)
        if voxels.shape[axis] > 1:
            alike = (_but(voxels, axis, -1) == _but(voxels, axis, 0)) & both
            least = min(least, float(alike.sum()) / max(int(both.sum()), FEW))
    return least


def _but(array: NDArray[Any], axis: int, end: int) -> NDArray[Any]:
    """All but the first (0) or last (-1) along an axis."""
    index = [slice(None)] * array.ndim
    index[axis] = slice(1, None) if end == 0 else slice(None, -1)
    return array[tuple(index)]
