"""SR scans against HR scans: one row a scan, mean and standard deviation; as CSV, JSON and Markdown."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import RunError
from ...runtime.job import is_error_map
from ...runtime.scan.geometry import AS_STORED, Flips, fine_affine, flips_between, slab_axis
from ...runtime.scan.intensity import check_finite
from ...runtime.scan.scan import Scan, open_scan, tell_remarks
from ...runtime.system.files import atomic, read_json, write_json
from ..data.scans import bare_name, scan_paths
from ..simulation import kspace
from .quality import Figures, factors, measure

# Interpolation onto the FFT grid, the baselines that need no training: (lr, factors by axis) to SR.
INTERPOLATIONS: dict[str, Callable[[NDArray[Any], kspace.Scale], NDArray[Any]]] = {
    "tricubic": kspace.tricubic,
    "sinc": kspace.zero_fill,
}
Place = tuple[int, int, int]
BEYOND = 8  # HR voxels that the LR grid may have dropped along an axis
APART = 0.05  # HR voxels by which corners on one grid may lie apart: headers store rounded float32
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
    "psnr_tissue": "PSNR tissue",
    "psnr_air": "PSNR air",
    "psnr_low": "PSNR low band",
    "psnr_high": "PSNR high band",
    "high_factor": "high band factor",
    "high_correlation": "high band correlation",
}


@dataclass(frozen=True)
class Summary:
    """Figures by scan name, and their mean and standard deviation (ddof 0).

    missing: number of scans that could not be measured; mean and sd cover the others.
    """

    scans: dict[str, Figures]
    mean: Figures
    sd: Figures
    missing: int = 0

    @classmethod
    def of(cls, scans: Mapping[str, Figures], missing: int = 0) -> Summary:
        columns = {name: [getattr(f, name) for f in scans.values()] for name in NAMES}

        def across(what: Callable[[list[float]], Any]) -> Figures:
            with np.errstate(invalid="ignore"):  # the PSNR of equal volumes is infinite
                known = {n: float(what(v)) if None not in v else None for n, v in columns.items()}
            return Figures(**known)  # type: ignore[arg-type]

        return cls(dict(scans), across(np.mean), across(np.std), missing)

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
        of = f" of {len(self.scans)} of {len(self.scans) + self.missing}" if self.missing else ""
        for scan, figures in {**self.scans, f"mean{of}": self.mean, f"sd{of}": self.sd}.items():
            rows.writerow([scan, *(f"{getattr(figures, name):.6g}" for name in self.names)])
        with atomic(path) as file:
            file.write(text.getvalue().encode(errors="surrogateescape"))

    def to_markdown(self, path: Path) -> None:
        lines = [
            "| scan | " + " | ".join(TITLES[n] for n in self.names) + " |",
            "|---" * (len(self.names) + 1) + "|",
        ]
        lines += [f"| {' | '.join(row)} |" for row in self.rows()]
        with atomic(path) as file:
            file.write(("\n".join(lines) + "\n").encode(errors="surrogateescape"))

    def rows(self, names: Sequence[str] | None = None) -> list[list[str]]:
        """A row of text for each scan, and one of mean ± sd. names: figures to show (default: all)."""
        names = self.names if names is None else names
        rows = [[scan, *(said(n, getattr(f, n)) for n in names)] for scan, f in self.scans.items()]
        both = [f"{said(n, getattr(self.mean, n))} ± {said(n, getattr(self.sd, n))}" for n in names]
        every = len(self.scans) + self.missing
        return [*rows, ["mean ± sd" + (f" of {len(self.scans)} of {every}" if self.missing else ""), *both]]


def said(name: str, value: float) -> str:
    """Format a figure with its meaningful digits."""
    return f"{value:.2f}" if name.startswith("psnr") or name == "shift" else f"{value:.4f}"


def evaluate(
    sr: Path | str,
    hr: Path,
    lr: Path | None = None,
    slab: int = 6,
    axis: int | None = None,
    problems: list[str] | None = None,
    mask: Path | None = None,
) -> Summary:
    """Compare SR scans with HR scans of the same name.

    Marks such as `_sr` do not count; if a name occurs more than once, the folder below the given one decides.

    Parameters
    ----------
    sr
        A file or a folder; or "tricubic" or "sinc", to interpolate `lr`.
    hr
        The truth: a file or a folder. A scan may be larger by the voxels that the LR grid dropped.
    lr
        The LR scans, for data consistency and bands.
    slab
        HR slices of a network call, for the steps at slab edges.
    axis
        The axis across the slices, 0 to 2; by default the one whose LR factor differs from the two others,
        else that of `geometry.slab_axis`.
    problems
        Gets a sentence for each scan that has no partner or cannot be measured; the others are measured.
    mask
        Tissue (voxels other than 0) on the HR grid, a file or a folder; by default found by `tissue_mask`.

    Returns
    -------
    Summary
        Figures by scan, their mean and standard deviation; PSNR in dB.

    Raises
    ------
    RunError
        If nothing is left to measure or, without `problems`, if a scan has no partner or cannot be measured.
    """
    interpolation = INTERPOLATIONS.get(str(sr)) if not Path(sr).exists() else None
    if interpolation and lr is None:
        raise RunError(f"Interpolation ({sr}) needs the LR scans: name them with --lr.")
    results = Path(sr) if interpolation is None else lr
    assert results is not None
    groups = [path for path in (results, hr, lr, mask) if path is not None]
    names = _by_name(groups)
    whole, lonely = _matched(groups, names)
    if lonely and (problems is None or not whole):
        raise RunError(lonely[0])

    def figures(name: str) -> Figures:
        low = _open(names[2][name]) if lr is not None else None
        truth = _open(names[1][name])
        tissue = _open(names[-1][name]) if mask is not None else None
        if interpolation is None:
            return compare_with_truth(_open(names[0][name]), truth, low, slab, axis, tissue)
        assert low is not None
        return _interpolated(interpolation, low, truth, slab, axis, tissue)

    scans, found = {}, list(lonely)
    for name in whole:
        try:
            scans[name] = figures(name)
        except RunError as error:
            if problems is None or len(whole) == 1:
                raise
            found.append(str(error))
    if not scans:
        raise RunError(f"None of the {len(whole)} scans can be measured. {found[-1]}")
    if problems is not None:
        problems += found
    return Summary.of(scans, len(found))


def check_table_place(path: Path) -> None:
    """Raise RunError if a table would replace a file that is not such a table."""
    if not path.is_file():  # nor /dev/stdout, which would be waited for
        return
    with open(path, encoding="utf-8", errors="replace") as file:
        start = file.readline(4096)
    columns = {part.strip() for part in start.replace("|", ",").split(",")} - {""}
    ours = columns <= {"scan", *NAMES} or columns <= {"scan", *TITLES.values()}
    if start and not (ours or read_json(path).keys() >= {"scans", "mean", "sd"}):
        raise RunError(f"{path} already exists and is not a table of udean-eval: give another name.")


def _matched(groups: Sequence[Path], names: Sequence[dict[str, Path]]) -> tuple[list[str], list[str]]:
    """The names that occur in every group, and a sentence for each other name.

    HR scans without a result count as well: a missing result may be a failed one.
    """
    whole = set.intersection(*map(set, names))
    lonely = []
    for name in sorted(set().union(*names) - whole):
        lacking = {str(group) for group, own in zip(groups, names, strict=True) if name not in own}
        there = next(own[name] for own in names if name in own)
        lonely.append(f"There is no scan named {name}, as {there} is, in {' nor in '.join(sorted(lacking))}.")
    return sorted(whole), lonely


def compare_with_truth(
    sr: Scan,
    hr: Scan,
    lr: Scan | None = None,
    slab: int = 6,
    axis: int | None = None,
    mask: Scan | None = None,
) -> Figures:
    """Figures of one SR scan; axis, mask: see `evaluate`. Raises RunError if scans do not lie on one grid."""
    first = _on_one_grid(sr, sr.shape, sr.affine, hr)
    low, flips = None, AS_STORED
    if lr is not None:
        scale, *_ = _factors(lr, hr)
        axis = _across(lr, scale) if axis is None else axis
        low, flips = _voxels(lr), flips_between(lr.affine, sr.affine, scale)
    axis = slab_axis(sr.zooms) if axis is None else axis
    return _measured(_voxels(sr), low, axis, slab, sr, hr, mask, first, flips)


def _interpolated(
    interpolation: Callable[[NDArray[Any], kspace.Scale], NDArray[Any]],
    lr: Scan,
    hr: Scan,
    slab: int,
    axis: int | None,
    mask: Scan | None,
) -> Figures:
    scale, first, flips = _factors(lr, hr)
    low = _voxels(lr)
    axis = _across(lr, scale) if axis is None else axis
    sr = _flipped(interpolation(_flipped(low, flips), scale), flips)
    return _measured(sr, low, axis, slab, hr, hr, mask, first, flips)


def _by_name(groups: Sequence[Path]) -> list[dict[str, Path]]:
    """The scans of each group, by the name they are paired by."""
    found = [
        # Error maps, which lie beside results, are not scans.
        [path for path in scan_paths([group]) if group.is_file() or not is_error_map(path)]
        for group in groups
    ]
    if all(path.is_file() for path in groups):
        return [{bare_name(groups[0]): path} for (path,) in found]
    by_folder = any(len(set(map(bare_name, paths))) < len(paths) for paths in found)
    named: list[dict[str, Path]] = []
    for group, paths in zip(groups, found, strict=True):
        root = os.path.abspath(group) if group.is_dir() else os.path.commonpath([p.parent for p in paths])
        named.append({})
        for path in paths:
            name = bare_name(path)
            if by_folder:
                name = (path.parent.relative_to(root) / name).as_posix()
            if (other := named[-1].setdefault(name, path)) != path:
                raise RunError(
                    f"{other} and {path} have the same name ({name}): it is unclear which one is meant."
                )
    return named


def _factors(lr: Scan, hr: Scan) -> tuple[kspace.Scale, Place, Flips]:
    """HR voxels per LR voxel along (i, j, k), and where the volume restored from the LR scan lies."""
    i, j, k = (round(a / b) for a, b in zip(lr.zooms, hr.zooms, strict=True))
    shape = tuple(n * s for n, s in zip(lr.shape, (i, j, k), strict=True))
    if min(i, j, k) < 1 or max(i, j, k) == 1:
        raise RunError(
            f"{lr.name} is not an LR scan of {hr.name}: their voxels are {lr.zooms} and {hr.zooms} mm."
        )
    flips = flips_between(lr.affine, hr.affine, (i, j, k))
    first = _on_one_grid(lr, shape, fine_affine(lr.affine, (i, j, k), "fft", flips), hr)
    return (i, j, k), first, flips


def _across(lr: Scan, factors: kspace.Scale) -> int:
    """The axis across the slices: the one whose factor differs from the two others, if there is one."""
    return slab_axis(factors if len(set(factors)) == 2 else lr.zooms)


def _on_one_grid(scan: Scan, shape: tuple[int, ...], affine: NDArray[Any], hr: Scan) -> Place:
    """The HR voxel on which the first voxel of a volume lies, made from `scan` on its FFT grid.

    Raises RunError if the volume does not lie on the HR grid.
    """
    i, j, k = np.rint(np.linalg.solve(hr.affine, affine)[:3, 3]).astype(int).tolist()
    fits = all(0 <= h - n <= BEYOND for n, h in zip(shape, hr.shape, strict=True))
    fits &= max(map(abs, (i, j, k))) <= BEYOND
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, n - 1) for n in shape))])
    there = np.add(corners, (i, j, k, 0)) if fits else corners
    moved = np.linalg.norm((corners @ affine.T - there @ hr.affine.T)[:, :3], axis=1).max() / min(hr.zooms)
    if not fits or moved > APART:
        raise RunError(
            f"{scan.name} and {hr.name} do not lie on one grid: shapes {shape} and {hr.shape}, corners up to "
            f"{moved:.2f} voxels apart."
        )
    return i, j, k


def _measured(
    sr: NDArray[Any],
    lr: NDArray[Any] | None,
    axis: int,
    slab: int,
    scan: Scan,
    hr: Scan,
    mask: Scan | None,
    first: Place,
    flips: Flips,
) -> Figures:
    """Figures of SR voxels against the corresponding HR voxels. scan: named in errors.

    first: HR voxel of the first SR voxel. flips: axes that were processed in reverse. LR voxels whose SR
    voxels reach beyond the HR scan are left out.
    """
    where = None if mask is None else _tissue(mask, hr)
    try:
        scale = (1, 1, 1) if lr is None else factors(sr.shape, lr.shape)
        blocks, inside, truth = [], [], []
        for n, h, s, at in zip(sr.shape, hr.shape, scale, first, strict=True):
            low, high = -(min(at, 0) // s), min(n, h - at) // s
            blocks.append(slice(low, high))
            inside.append(slice(low * s, high * s))
            truth.append(slice(at + low * s, at + high * s))
        lr = None if lr is None else _flipped(lr[tuple(blocks)], flips)
        where = None if where is None else _flipped(where[tuple(truth)], flips)
        fine = _flipped(_voxels(hr)[tuple(truth)], flips)
        return measure(_flipped(sr[tuple(inside)], flips), fine, lr, axis, slab, where)
    except ValueError as error:
        raise RunError(f"{scan.name}: {error}") from None


def _flipped(volume: NDArray[Any], flips: Flips) -> NDArray[Any]:
    return volume[tuple(slice(None, None, -1 if flip else None) for flip in flips)]


def _tissue(mask: Scan, hr: Scan) -> NDArray[np.bool_]:
    """A mask's voxels. Raises RunError if it does not lie on the HR grid, or marks nothing."""
    if mask.shape != hr.shape:
        raise RunError(f"The mask {mask.name} has {mask.shape} voxels and {hr.name} has {hr.shape}.")
    _on_one_grid(mask, mask.shape, mask.affine, hr)
    found = _voxels(mask) != 0
    if not found.any():
        raise RunError(f"The mask {mask.name} marks no voxel as tissue.")
    return found


def _open(path: Path) -> Scan:
    return tell_remarks(open_scan(path))


def _voxels(scan: Scan) -> NDArray[Any]:
    voxels = scan.voxels_in_units()
    check_finite(voxels, scan.name)
    return voxels
