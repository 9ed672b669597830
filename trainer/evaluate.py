"""SR scans against HR scans: one row a scan, mean and standard deviation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..runtime.errors import RunError
from ..runtime.geometry import slab_axis
from ..runtime.volume import Scan, open_scan
from .metrics import Quality, quality
from .scans import bare_name, find_scans


@dataclass(frozen=True)
class Summary:
    """Quality by scan name, and mean and standard deviation (ddof 0) by figure."""

    scans: dict[str, Quality]
    mean: Quality
    sd: Quality


def evaluate(sr: Path, hr: Path) -> Summary:
    """Compare SR scans with HR scans of the same name (marks such as `_sr` aside).

    sr, hr: two files, or two folders. The HR scan may be larger by the voxels that the LR grid dropped.
    Raises RunError where scans have no partner or do not lie on one grid.
    """
    if sr.is_file() and hr.is_file():
        pairs = {bare_name(sr): (sr, hr)}
    else:
        restored, truth = ({bare_name(p): p for p in find_scans([folder])} for folder in (sr, hr))
        lonely = sorted(set(restored) - set(truth))
        if lonely:
            raise RunError(f"{hr} holds no HR scan for {restored[lonely[0]]} (a scan named {lonely[0]}).")
        pairs = {name: (path, truth[name]) for name, path in restored.items()}
    scans = {name: compare(open_scan(a), open_scan(b)) for name, (a, b) in sorted(pairs.items())}
    figures = np.array([dataclasses.astuple(q) for q in scans.values()])
    return Summary(scans, Quality(*figures.mean(0).tolist()), Quality(*figures.std(0).tolist()))


def compare(sr: Scan, hr: Scan) -> Quality:
    """Quality of one SR scan; slices are those across its coarsest axis, else its last."""
    fits = all(0 <= h - s <= 8 for s, h in zip(sr.shape, hr.shape, strict=True))
    apart = np.abs(sr.affine - hr.affine).max() / min(hr.zooms)
    if not fits or apart > 0.01:
        raise RunError(
            f"{sr.name} and {hr.name} do not lie on one grid: shapes {sr.shape} and {hr.shape}, "
            f"affines {apart:.2f} voxels apart."
        )
    a, b = (s.voxels() * np.float32(s.slope) + np.float32(s.inter) for s in (sr, hr))
    try:
        return quality(a, b[tuple(map(slice, sr.shape))], slab_axis(sr.zooms))
    except ValueError as error:
        raise RunError(f"{hr.name}: {error}") from None
