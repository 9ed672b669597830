"""How good are thick slices, restored through the plane, on heads that no training has seen?

    python -m udean.benchmarks.through_plane [SCAN] [--factors 3,4,5] [--axes 2,0,1] [--gaps 0,0.25,-0.25]

The middle of each isotropic head (those of `benchmarks.tissue`, and SCANs) gets lesions, is cut into thick
slices (factor, slice profile, noise), and is brought back to its own spacing as `udean-run --to` does it:
nothing is told about the profile. Slices along the other axes, and slices with gaps or overlap, are measured
at one factor. Nearest, linear and cubic B-spline interpolation and zero-filled sinc stand beside. Of each: dB
in tissue, SSIM, the share of the lesions' contrast that is left, steps at slice edges over those elsewhere,
and their size; both as multiples of those of the truth with each slice's noise. No figure depends on the
machine's speed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import nibabel as nib
import numpy as np
import typer
from numpy.typing import NDArray
from scipy import ndimage

from ..runtime.commands.common import sentences
from ..runtime.resolver import SuperResolver
from ..runtime.scan.profile import ProfileShape
from ..runtime.scan.regrid import along, spline_weights
from ..trainer.evaluation.quality import psnr, ssim
from ..trainer.simulation.thick import Thick, slices_of
from . import common, tissue

Volume = NDArray[np.float32]
Lesions = list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]  # inside of each, and what surrounds it
SHAPES: tuple[ProfileShape, ...] = ("gaussian", "box", "slr")
NOISES = 0.0, 0.02  # of the 99.9th percentile
LESIONS = 10  # alternately dark and bright, with a radius of 2 to 4 voxels
CONTRAST = 0.25
FURTHER = 4.0  # slice spacing in voxels at which other axes and gaps are measured, without noise


def main(
    scans: Annotated[Path | None, typer.Argument(help="More isotropic scans: a file or a folder.")] = None,
    factors: Annotated[str, typer.Option(help="Slice spacings in voxels.")] = f"2,3,4,5,{5.5 / 0.75:.4f}",
    axes: Annotated[str, typer.Option(help="Voxel axes across the slices.")] = "2,0,1",
    gaps: Annotated[
        str, typer.Option(help="Between slices, as shares of their spacing; negative: overlap.")
    ] = "0,0.25,-0.25",
    size: Annotated[int, typer.Option(min=48, help="Voxels along each edge of the part in the middle.")] = 96,
    engine: Annotated[
        Path | None, typer.Option(help="Through-plane model; the embedded one by default.")
    ] = None,
) -> None:
    """Measure; writes benchmarks/results/through-plane.json."""
    resolve = SuperResolver(engine, "cpu", to=1.0)
    table: dict[str, dict[str, Any]] = {}
    across = [int(axis) for axis in axes.split(",")]
    for name, read in tissue.heads(scans):
        whole = read()
        heads = {axis: middle(whole, axis, size) for axis in across}
        for told, axis, thick in cases(list(map(float, factors.split(","))), across, gaps.split(",")):
            row = table.setdefault(name, {})[told] = case(heads[axis], thick, resolve)
            print(f"{name}, {told}: {row['gain dB']:+.2f} dB", flush=True)
    common.record("through-plane", {"voxels": size, "by head": table})


def cases(factors: list[float], axes: list[int], gaps: list[str]) -> Iterator[tuple[str, int, Thick]]:
    """The measured cases by name: the voxel axis across the slices, and how they lie."""
    for factor in factors:
        for noise in NOISES:
            for shape in SHAPES:
                told = f"1 x 1 x {factor:.3g}, {shape}, noise {noise:.0%}"
                yield told, axes[0], Thick(factor, shape, factor * (1 - float(gaps[0])), noise)
    further = [(axes[0], float(gap)) for gap in gaps[1:]] + [(axis, float(gaps[0])) for axis in axes[1:]]
    for axis, gap in further:
        for shape in SHAPES:
            what = f"axis {axis}" if axis != axes[0] else f"{'gap' if gap > 0 else 'overlap'} {abs(gap):.0%}"
            told = f"1 x 1 x {FURTHER:.3g}, {shape}, {what}"
            yield told, axis, Thick(FURTHER, shape, FURTHER * (1 - gap))


def middle(volume: Volume, axis: int, size: int) -> tuple[Volume, Lesions]:
    """The middle of a scan, slices last, 99.9th percentile at 1, with lesions, and where they are."""
    volume = np.moveaxis(volume.astype(np.float32), axis, 2)
    inside = ndimage.center_of_mass(volume > volume.mean())
    starts = [
        int(np.clip(c - size / 2, 0, max(n - size, 0))) for c, n in zip(inside, volume.shape, strict=True)
    ]
    volume = np.maximum(volume[tuple(slice(s, s + size) for s in starts)], 0)
    volume /= np.percentile(volume, 99.9)
    random = np.random.default_rng(0)
    inner = ndimage.binary_erosion(ndimage.gaussian_filter(volume, 3) > 0.2, iterations=6)
    places = np.argwhere(inner)
    index = np.stack(np.meshgrid(*map(np.arange, volume.shape), indexing="ij"), -1)
    numbers = np.zeros(volume.shape, np.int32)
    for number in range(1, LESIONS + 1):
        center = places[random.integers(len(places))]
        ball = ((index - center) ** 2).sum(-1) <= random.uniform(2, 4) ** 2
        if not numbers[ball].any():
            numbers[ball] = number
            volume[ball] += CONTRAST * (-1) ** number
    lesions = []
    for number in np.unique(numbers)[1:]:
        ball = numbers == number
        near, far = (ndimage.binary_dilation(ball, iterations=n) for n in (2, 4))
        lesions.append((ball, far & ~near))
    return np.maximum(volume, 0), lesions


def case(head: tuple[Volume, Lesions], thick: Thick, resolve: SuperResolver) -> dict[str, Any]:
    """Figures of one head under one degradation."""
    volume, lesions = head
    slices, centers, size = slices_of(volume, thick)
    truth = volume[:, :, :size]
    affine = np.diag([1.0, 1, thick.step, 1])
    image = nib.Nifti1Image(slices, affine)
    restored = np.asarray(resolve.image(image, "float32").dataobj)
    places = (np.arange(size) - centers[0]) / thick.step
    count = len(centers)
    near = np.clip(np.rint(places), 0, count - 1).astype(int)
    left = np.clip(np.floor(places), 0, count - 2).astype(int)
    share = np.clip(places - left, 0, 1).astype(np.float32)
    results = {
        "sr": restored,
        "nearest": slices[:, :, near],
        "linear": slices[:, :, left] * (1 - share) + slices[:, :, left + 1] * share,
        "b-spline": along(spline_weights(count, places), slices, 2),
        "sinc": along(sinc_weights(count, places), slices, 2),
    }
    inside = ndimage.gaussian_filter(truth, 2) > 0.05
    # A slice's noise is a step to the next one, which no method may leave out: it has been measured.
    clean, *_ = slices_of(volume, dataclasses.replace(thick, noise=0.0))
    seen = (truth + (slices - clean)[:, :, near]).astype(np.float32)
    out: dict[str, Any] = {}
    for name, result in results.items():
        assert result.shape == truth.shape
        out[f"{name} dB"] = psnr(result[inside], truth[inside], 1.0)
        if name in ("sr", "b-spline"):  # it takes longer than everything else
            out[f"{name} SSIM"] = ssim(result, truth, 1.0)
        out[f"{name} lesions"] = contrast(result, truth, lesions)
        for what, measure in (("steps", steps), ("edges", edges)):
            out[f"{name} {what}"] = measure(result, near, inside) / measure(seen, near, inside)
    out["gain dB"] = out["sr dB"] - out["b-spline dB"]
    if resolve.slice_estimates:
        found = resolve.slice_estimates[0]
        out["told deviation"], out["told gain"] = found.deviation, found.gain
    return out


def contrast(result: Volume, truth: Volume, shells: Lesions) -> float:
    """The mean share of the lesions' contrast to their surroundings that a result keeps of the truth's."""
    shares = []
    for inside, around in shells:
        inside, around = (part[:, :, : truth.shape[2]] for part in (inside, around))
        if not (inside.any() and around.any()):
            continue
        there, real = (v[inside].mean() - v[around].mean() for v in (result, truth))
        if abs(real) > CONTRAST / 3:
            shares.append(there / real)
    return float(np.mean(shares))


def steps(volume: Volume, near: NDArray[np.intp], tissue: NDArray[np.bool_]) -> float:
    """The mean step between planes with different nearest slices, over that between all planes."""
    change = np.abs(np.diff(volume, axis=2))
    both = tissue[:, :, 1:] & tissue[:, :, :-1]
    edge = np.broadcast_to(np.diff(near) > 0, change.shape)
    return float(change[both & edge].mean() / change[both].mean())


def edges(volume: Volume, near: NDArray[np.intp], tissue: NDArray[np.bool_]) -> float:
    """The mean step between planes where the nearest slice changes."""
    change = np.abs(np.diff(volume, axis=2))[:, :, np.diff(near) > 0]
    both = (tissue[:, :, 1:] & tissue[:, :, :-1])[:, :, np.diff(near) > 0]
    return float(change[both].mean())


def sinc_weights(size: int, places: NDArray[np.float64]) -> NDArray[np.float32]:
    """Zero-filled sinc interpolation, of samples continued by their mirror image: by cosines, (n, size)."""
    waves = np.arange(size)
    here = np.cos(np.pi * np.outer(np.arange(size) + 0.5, waves) / size)
    there = np.cos(np.pi * np.outer(np.clip(places, -0.5, size - 0.5) + 0.5, waves) / size)
    return (there @ np.linalg.inv(here)).astype(np.float32)


if __name__ == "__main__":
    with sentences("train"):
        typer.run(main)
