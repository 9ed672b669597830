"""How good are thick slices, restored through the plane, on heads that no training has seen?

    python -m udean.benchmarks.through_plane SCAN ... [--factors 3,4,5] [--size 96]

The middle of each isotropic scan gets lesions, is cut into thick slices (factor, slice profile, noise), and
is brought back to its own spacing as `udean-run --to` does it, without being told the profile, beside
nearest, linear and cubic B-spline interpolation and zero-filled sinc. Figures: dB in tissue, SSIM, the share
of the lesions' contrast that is left, and steps at slice edges (1 is the truth's). No figure depends on the
machine's speed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import nibabel as nib
import numpy as np
import typer
from numpy.typing import NDArray
from scipy import ndimage

from ..runtime.commands.common import sentences
from ..runtime.resolver import SuperResolver
from ..runtime.scan.profile import Shape
from ..runtime.scan.regrid import along, spline_weights
from ..trainer.evaluation.quality import psnr, ssim
from ..trainer.simulation.thick import Thick, slices_of
from . import common

Volume = NDArray[np.float32]
SHAPES: tuple[Shape, ...] = ("gaussian", "box", "slr")
NOISES = 0.0, 0.02  # of the 99.9th percentile
LESIONS = 10  # alternately dark and bright, with a radius of 2 to 4 voxels
CONTRAST = 0.25


def main(
    scans: Annotated[list[Path], typer.Argument(help="Isotropic scans that the model was not trained on.")],
    factors: Annotated[str, typer.Option(help="Slice spacings in voxels.")] = f"3,4,5,{5.5 / 0.75:.4f}",
    axis: Annotated[int, typer.Option(min=0, max=2, help="Voxel axis across the slices.")] = 2,
    size: Annotated[int, typer.Option(min=48, help="Voxels along each edge of the part in the middle.")] = 96,
    engine: Annotated[
        Path | None, typer.Option(help="Through-plane model; the embedded one by default.")
    ] = None,
) -> None:
    """Measure; writes benchmarks/results/through-plane.json."""
    resolve = SuperResolver(engine, "cpu", to=1.0)
    table = {}
    for path in scans:
        head = middle(path, axis, size)
        for factor in map(float, factors.split(",")):
            for shape in SHAPES:
                for noise in NOISES:
                    name = f"{path.name.split('.')[0]}, 1 x 1 x {factor:.3g}, {shape}, noise {noise:.0%}"
                    table[name] = row = case(head, Thick(factor, shape, noise=noise), resolve)
                    print(
                        f"{name}: {row['gain dB']:+.2f} dB, {row['told gain']} {row['told deviation']}",
                        flush=True,
                    )
    common.record("through-plane", {"voxel axis": axis, "voxels": size, "by case": table})


def middle(path: Path, axis: int, size: int) -> tuple[Volume, NDArray[np.int32]]:
    """The middle of a scan, slices last, 99.9th percentile at 1, with lesions, and their numbers."""
    volume = np.moveaxis(np.asarray(nib.load(path).dataobj, np.float32), axis, 2)  # pyright: ignore
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
    return np.maximum(volume, 0), numbers


def case(head: tuple[Volume, NDArray[np.int32]], thick: Thick, resolve: SuperResolver) -> dict[str, Any]:
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
    tissue = ndimage.gaussian_filter(truth, 2) > 0.05
    out: dict[str, Any] = {}
    for name, result in results.items():
        assert result.shape == truth.shape
        out[f"{name} dB"] = psnr(result[tissue], truth[tissue], 1.0)
        if name in ("sr", "b-spline"):  # it takes longer than everything else
            out[f"{name} SSIM"] = ssim(result, truth, 1.0)
        out[f"{name} lesions"] = contrast(result, truth, lesions[:, :, :size])
        out[f"{name} steps"] = steps(result, near, tissue) / steps(truth, near, tissue)
    out["gain dB"] = out["sr dB"] - out["b-spline dB"]
    if resolve.found:
        found = resolve.found[0]
        out["told deviation"], out["told gain"] = found.deviation, found.gain
    return out


def contrast(result: Volume, truth: Volume, lesions: NDArray[np.int32]) -> float:
    """Mean contrast of the lesions to their surroundings, as a share of the truth's."""
    shares = []
    for number in np.unique(lesions)[1:]:
        inside = lesions == number
        around = ndimage.binary_dilation(inside, iterations=4) & ~ndimage.binary_dilation(
            inside, iterations=2
        )
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


def sinc_weights(size: int, places: NDArray[np.float64]) -> NDArray[np.float32]:
    """Zero-filled sinc interpolation, of samples continued by their mirror image: by cosines, (n, size)."""
    waves = np.arange(size)
    here = np.cos(np.pi * np.outer(np.arange(size) + 0.5, waves) / size)
    there = np.cos(np.pi * np.outer(np.clip(places, -0.5, size - 0.5) + 0.5, waves) / size)
    return (there @ np.linalg.inv(here)).astype(np.float32)


if __name__ == "__main__":
    with sentences("train"):
        typer.run(main)
