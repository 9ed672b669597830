"""SR scans against HR scans: one row a scan, mean and standard deviation; as CSV, JSON and Markdown."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..runtime.errors import RunError
from ..runtime.files import atomic, write_json
from ..runtime.geometry import slab_axis
from ..runtime.volume import Scan, open_scan
from . import kspace
from .metrics import Figures, factors, measure
from .scans import bare_name, find_scans

# Interpolation onto the FFT grid, the yardsticks that need no training: (lr, factors by axis) to SR.
INTERPOLATIONS: dict[str, Callable[[NDArray[Any], kspace.Scale], NDArray[Any]]] = {
    "tricubic": kspace.tricubic,
    "sinc": kspace.zero_fill,
}
NAMES = tuple(f.name for f in dataclasses.fields(Figures))
TITLES = {
    "psnr": "PSNR dB",
    "ssim": "SSIM 3-D",
    "ssim_2d": "SSIM 2-D",
    "psnr_registered": "PSNR registered",
    "ssim_registered": "SSIM 3-D registered",
    "ssim_2d_registered": "SSIM 2-D registered",
    "shift": "shift voxels",
    "slab_step": "slab step",
    "consistency": "inconsistency",
}


@dataclass(frozen=True)
class Summary:
    """Figures by scan name, and their mean and standard deviation (ddof 0)."""

    scans: dict[str, Figures]
    mean: Figures
    sd: Figures

    @classmethod
    def of(cls, scans: Mapping[str, Figures]) -> Summary:
        columns = {name: [getattr(f, name) for f in scans.values()] for name in NAMES}

        def across(what: Callable[[list[float]], Any]) -> Figures:
            with np.errstate(invalid="ignore"):  # the PSNR of equal volumes is infinite
                known = {n: float(what(v)) if None not in v else None for n, v in columns.items()}
            return Figures(**known)  # type: ignore[arg-type]

        return cls(dict(scans), across(np.mean), across(np.std))

    @property
    def names(self) -> list[str]:
        """The figures that every scan has."""
        return [name for name in NAMES if getattr(self.mean, name) is not None]

    def to_json(self, path: Path) -> None:
        write_json(path, dataclasses.asdict(self))

    def to_csv(self, path: Path) -> None:
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(["scan", *self.names])
        for scan, figures in {**self.scans, "mean": self.mean, "sd": self.sd}.items():
            rows.writerow([scan, *(f"{getattr(figures, name):.6g}" for name in self.names)])
        with atomic(path) as file:
            file.write(text.getvalue().encode())

    def to_markdown(self, path: Path) -> None:
        lines = [
            "| scan | " + " | ".join(TITLES[n] for n in self.names) + " |",
            "|---" * (len(self.names) + 1) + "|",
        ]
        lines += [f"| {' | '.join(row)} |" for row in self.rows()]
        with atomic(path) as file:
            file.write(("\n".join(lines) + "\n").encode())

    def rows(self) -> list[list[str]]:
        """A row of text for each scan, and one of mean ± sd."""
        rows = [[scan, *(said(n, getattr(f, n)) for n in self.names)] for scan, f in self.scans.items()]
        both = [f"{said(n, getattr(self.mean, n))} ± {said(n, getattr(self.sd, n))}" for n in self.names]
        return [*rows, ["mean ± sd", *both]]


def said(name: str, value: float) -> str:
    """A figure with as many digits as it deserves."""
    return f"{value:.2f}" if name.startswith("psnr") or name == "shift" else f"{value:.4f}"


def evaluate(sr: Path | str, hr: Path, lr: Path | None = None, slab: int = 6) -> Summary:
    """Compare SR scans with HR scans of the same name (marks such as `_sr` aside).

    sr: "tricubic" or "sinc": what interpolation makes of lr; else, as hr and lr, a file or a folder. The HR
    scan may be larger by the voxels that the LR grid dropped. lr: for data consistency. slab: HR slices of a
    network call.
    Raises RunError where scans have no partner or do not lie on one grid.
    """
    interpolation = INTERPOLATIONS.get(str(sr)) if not Path(sr).exists() else None
    if interpolation and lr is None:
        raise RunError(f"Interpolation ({sr}) needs the LR scans: name them with --lr.")
    results = Path(sr) if interpolation is None else lr
    assert results is not None
    groups = [path for path in (results, hr, lr) if path is not None]
    alone = all(path.is_file() for path in groups)
    names = [{bare_name(groups[0] if alone else p): p for p in find_scans([path])} for path in groups]
    for path, group in zip(groups[1:], names[1:], strict=True):
        lonely = sorted(set(names[0]) - set(group))
        if lonely:
            raise RunError(f"{path} holds no scan for {names[0][lonely[0]]} (a scan named {lonely[0]}).")
    scans = {}
    for name in sorted(names[0]):
        low = open_scan(names[-1][name]) if lr is not None else None
        truth = open_scan(names[1][name])
        if interpolation is None:
            scans[name] = compare(open_scan(names[0][name]), truth, low, slab)
        else:
            assert low is not None
            scans[name] = _interpolated(interpolation, low, truth, slab)
    return Summary.of(scans)


def compare(sr: Scan, hr: Scan, lr: Scan | None = None, slab: int = 6) -> Figures:
    """Figures of one SR scan; slices are those across the coarsest axis, of the LR scan where known."""
    fits = all(0 <= h - s <= 8 for s, h in zip(sr.shape, hr.shape, strict=True))
    apart = np.abs(sr.affine - hr.affine).max() / min(hr.zooms)
    if not fits or apart > 0.01:
        raise RunError(
            f"{sr.name} and {hr.name} do not lie on one grid: shapes {sr.shape} and {hr.shape}, "
            f"affines {apart:.2f} voxels apart."
        )
    low = None if lr is None else _voxels(lr)
    axis = slab_axis((lr or sr).zooms)
    return _measured(_voxels(sr), _voxels(hr)[tuple(map(slice, sr.shape))], low, axis, slab, hr)


def _interpolated(
    interpolation: Callable[[NDArray[Any], kspace.Scale], NDArray[Any]], lr: Scan, hr: Scan, slab: int
) -> Figures:
    scale = tuple(round(a / b) for a, b in zip(lr.zooms, hr.zooms, strict=True))
    shape = tuple(n * s for n, s in zip(lr.shape, scale, strict=True))
    if max(scale) == 1 or any(not 0 <= h - n <= 8 for n, h in zip(shape, hr.shape, strict=True)):
        raise RunError(
            f"{lr.name} {lr.shape} is no LR scan of {hr.name} {hr.shape}: their voxel sizes or shapes differ."
        )
    low = _voxels(lr)
    sr = interpolation(low, (scale[0], scale[1], scale[2]))
    return _measured(sr, _voxels(hr)[tuple(map(slice, shape))], low, slab_axis(lr.zooms), slab, hr)


def _measured(
    sr: NDArray[Any], hr: NDArray[Any], lr: NDArray[Any] | None, axis: int, slab: int, truth: Scan
) -> Figures:
    try:
        if lr is not None:
            factors(sr.shape, lr.shape)
        return measure(sr, hr, lr, axis, slab)
    except ValueError as error:
        raise RunError(f"{truth.name}: {error}") from None


def _voxels(scan: Scan) -> NDArray[Any]:
    return scan.voxels() * np.float32(scan.slope) + np.float32(scan.inter)
