"""Whole heads drawn from label maps: HR scans of people who do not exist, for training and for tests.

A label map (FreeSurfer's numbers) is moved, bent and sampled at another voxel size; its labels become tissues
with soft borders; each tissue gets the grey level of a contrast and a texture of its own; meninges, closed
sulci, vessels and lesions, which label maps lack, are drawn in; then come the scanner's receive field, point
spread and noise. A network learns what it sees: flat tissue, or one sharpness for all heads, made the first
embedded model invent detail.

    python -m udean.trainer.simulation.heads OUT --labels MAPS [--heads 20] [--first 0] [--seed 0]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import nibabel as nib
import numpy as np
import typer
from numpy.typing import NDArray
from scipy import ndimage

from ...runtime.commands.common import sentences
from ...runtime.errors import RunError
from ...runtime.scan.scan import open_scan
from ..data.scans import find
from .random_fields import rotation, smooth_field

Array = NDArray[Any]  # float32 (i, j, k) unless said otherwise
Generator = np.random.Generator


@dataclass(frozen=True)
class Tissue:
    """Labels of similar appearance.

    labels: FreeSurfer's numbers, and those of SynthSeg's maps (502 to 530) outside the brain.
    t1, t2, pd, flair: usual grey level, white matter (T1, PD) or fluid (T2) or grey matter (FLAIR) being 1.
    texture: standard deviation of the texture as a share of the grey level, at most. brain: what skull
    stripping keeps.
    """

    labels: tuple[int, ...]
    t1: float
    t2: float
    pd: float
    flair: float
    texture: float = 0.08
    brain: bool = True


TISSUES: dict[str, Tissue] = {
    "white": Tissue((2, 41, 251, 252, 253, 254, 255, 77, 78, 79, 85), 1.0, 0.38, 0.78, 0.75),
    "grey": Tissue((3, 42), 0.68, 0.58, 0.95, 1.0),
    "cerebellar white": Tissue((7, 46), 0.98, 0.40, 0.78, 0.78),
    "cerebellar grey": Tissue((8, 47), 0.70, 0.55, 0.92, 0.95, 0.12),
    "brainstem": Tissue((16, 28, 60), 0.93, 0.42, 0.80, 0.80),
    "thalamus": Tissue((9, 10, 48, 49), 0.84, 0.46, 0.86, 0.88),
    "striatum": Tissue((11, 12, 26, 50, 51, 58), 0.76, 0.48, 0.88, 0.95),
    "pallidum": Tissue((13, 52), 0.92, 0.33, 0.76, 0.80),
    "limbic": Tissue((17, 18, 53, 54), 0.69, 0.58, 0.94, 1.05),
    "fluid": Tissue((4, 5, 14, 15, 24, 43, 44, 72), 0.25, 1.0, 1.0, 0.15, 0.05),
    "choroid": Tissue((30, 31, 62, 63), 0.45, 0.80, 0.90, 0.7),
    "artery": Tissue((502,), 0.5, 0.12, 0.4, 0.2, brain=False),
    "vein": Tissue((514,), 0.45, 0.2, 0.5, 0.3, brain=False),
    "eye": Tissue((506, 259), 0.22, 1.05, 1.0, 0.2, 0.04, False),
    "soft": Tissue((507, 258, 260), 0.60, 0.35, 0.7, 0.6, 0.2, False),
    "muscle": Tissue((508,), 0.62, 0.3, 0.6, 0.55, 0.15, False),
    "mucosa": Tissue((509,), 0.6, 0.7, 0.9, 0.8, 0.2, False),
    "scalp": Tissue((511,), 1.05, 0.6, 0.9, 0.8, 0.25, False),
    "cord": Tissue((512,), 0.9, 0.45, 0.8, 0.8, brain=False),
    "bone": Tissue((515, 165), 0.1, 0.06, 0.12, 0.08, 0.2, False),
    "marrow": Tissue((516,), 0.85, 0.5, 0.7, 0.6, 0.25, False),
    "nerve": Tissue((530,), 0.85, 0.45, 0.8, 0.8, brain=False),
}
NAMES = tuple(TISSUES)
AIR = len(NAMES)
CONTRASTS = {"t1": 0.55, "t2": 0.12, "pd": 0.05, "flair": 0.08, "random": 0.20}
SPACING = (0.7, 1.2)  # mm
SHARPNESS = (0.35, 1.1)  # voxels: σ of the point spread, from a crisp scan to the average of many
LESIONED = ("white", "cerebellar white", "brainstem", "thalamus", "striatum", "grey")
ROOM = 28  # mm kept around the brain


def tissues(labels: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Labels as indices of `NAMES`, air `AIR`; parcels by FreeSurfer's thousands, the rest limbic grey."""
    top = int(labels.max()) + 1
    table = np.full(max(top, 5000), NAMES.index("limbic"), np.uint8)
    table[0] = AIR
    table[1000:3000] = NAMES.index("grey")
    table[3000:5000] = NAMES.index("white")
    for index, tissue in enumerate(TISSUES.values()):
        table[list(tissue.labels)] = index
    return table[labels]


@cache
def read(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """A label map as tissues, cropped to the brain and `ROOM` around it, and its affine's 3×3 part.

    Raises RunError for a file that cannot be read or shows no brain.
    """
    scan = open_scan(path)
    found = tissues(np.rint(scan.voxels_in_units()).astype(np.int32))
    brain = np.isin(found, [i for i, t in enumerate(TISSUES.values()) if t.brain])
    box = []
    for axis, size in enumerate(scan.zooms):
        at = np.flatnonzero(brain.sum(tuple(a for a in range(3) if a != axis)) > 20)
        if not len(at):
            raise RunError(f"{path} shows no brain: label maps have FreeSurfer's numbers.")
        room = int(ROOM / size)
        box.append(slice(max(0, at[0] - room), at[-1] + room))
    return found[tuple(box)], scan.affine[:3, :3]


@dataclass(frozen=True)
class Head:
    """image: float32, its 99.9th percentile 1. spacing: mm. axes: columns are the axes' directions (RAS).
    How it was drawn: contrast, stripped, sharpness (voxels), lesions as (centre, radius in voxels, contrast).
    """

    image: Array
    spacing: float
    axes: NDArray[np.float64]
    contrast: str
    stripped: bool
    sharpness: float
    lesions: tuple[tuple[tuple[int, ...], float, float], ...]


def drawn_head(path: Path, seed: int, spacing: float | None = None, spots: int = 0) -> Head:
    """One head from a label map; everything random about it depends on the seed alone.

    spacing: of its voxels, mm, by default drawn as well. spots: in its brain, at most; see `_spots`.
    """
    rng = np.random.default_rng(seed)
    labels, axes = read(path)
    sizes = np.sqrt((axes**2).sum(0))
    usual = float(rng.uniform(*SPACING))  # drawn in any case: what comes after stays the same
    spacing = spacing or usual
    found = _moved(rng, labels, sizes, spacing)
    contrast = str(rng.choice(list(CONTRASTS), p=list(CONTRASTS.values())))
    levels = _levels(rng, contrast)
    stripped = bool(rng.random() < 0.35)
    sharpness = float(rng.uniform(*SHARPNESS))

    image, brain = _painted(rng, found, levels, spacing)
    image = _vessels(rng, image, brain, levels, spacing)
    image, lesions = _lesions(rng, image, found, levels)
    image *= np.exp(rng.uniform(0.0, 0.3) * smooth_field(rng, image.shape, 45.0))
    image = ndimage.gaussian_filter(image, sharpness * rng.uniform(0.9, 1.1, 3), truncate=3)
    if spots:  # by numbers of their own: heads without them stay what they are
        image = _spots(np.random.default_rng((seed, 1)), image, found, spots)
    image /= np.percentile(image, 99.9)
    noise = np.float32(rng.uniform(0.0, 0.012))
    real, imaginary = rng.standard_normal((2, *image.shape), np.float32) * noise
    image = np.hypot(image + real, imaginary)  # Rician, as in magnitude images
    if stripped:  # by a mask, after the scan: a hard border, sometimes smoothed by what came later
        mask = (brain > rng.uniform(0.2, 0.6)).astype(np.float32)
        image *= (
            mask if rng.random() < 0.7 else ndimage.gaussian_filter(mask, rng.uniform(0.4, 0.8), truncate=2)
        )
    return Head(image, spacing, axes / sizes, contrast, stripped, sharpness, lesions)


def _moved(
    rng: Generator, labels: NDArray[np.uint8], sizes: NDArray[np.float64], spacing: float
) -> NDArray[np.uint8]:
    """Tissues turned, stretched, bent and sampled every `spacing` mm."""
    stretch = sizes / spacing * rng.uniform(0.92, 1.1, 3)
    shape = [int(n * s) // 4 * 4 for n, s in zip(labels.shape, stretch, strict=True)]
    matrix = rotation(rng.normal(0, np.radians(5), 3)) / stretch
    middle = (np.asarray(labels.shape) - 1) / 2
    bends = [smooth_field(rng, shape, 18.0) * np.float32(rng.uniform(0.5, 2.0) * spacing) for _ in range(3)]
    out = np.empty(shape, np.uint8)
    j, k = (np.arange(n, dtype=np.float32) - (n - 1) / 2 for n in shape[1:])
    for i in range(shape[0]):
        at = np.meshgrid([i - (shape[0] - 1) / 2], j, k, indexing="ij", sparse=True)
        where = [
            (sum(m * a for m, a in zip(row, at, strict=True)) + c)[0] + bend[i]
            for row, c, bend in zip(matrix, middle, bends, strict=True)
        ]
        out[i] = ndimage.map_coordinates(labels, where, order=0, cval=AIR)
    return out


def _levels(rng: Generator, contrast: str) -> dict[str, float]:
    """Grey level of each tissue."""
    if contrast == "random":
        levels = {name: float(rng.uniform(0.05, 1.0)) for name in NAMES}
        return levels | {"bone": float(rng.uniform(0.02, 0.2))}
    usual = {name: getattr(tissue, contrast) for name, tissue in TISSUES.items()}
    gamma = rng.uniform(0.8, 1.6)  # of the sequence: from a flat contrast to a strong one
    levels = {name: float(level**gamma * rng.uniform(0.92, 1.08)) for name, level in usual.items()}
    flow = float(rng.choice([0.1, 1.3], p=[0.6, 0.4]))  # voids, or inflow and contrast agent
    return levels | {
        "artery": flow * float(rng.uniform(0.7, 1.2)),
        "vein": flow * float(rng.uniform(0.5, 1.2)),
        "scalp": levels["scalp"] * float(rng.uniform(0.5, 1.3)),  # fat suppression and its lack
        "marrow": levels["marrow"] * float(rng.uniform(0.4, 1.2)),
    }


def _painted(
    rng: Generator, found: NDArray[np.uint8], levels: dict[str, float], spacing: float
) -> tuple[Array, Array]:
    """Grey levels and texture with partial volume at the borders, and the share of brain in each voxel.

    A tissue's share is its smoothed indicator to a power, over the sum of all: borders lose the map's stairs
    and stay as sharp as the power makes them.
    """
    shape, power = found.shape, rng.uniform(2.5, 5.0)
    width = rng.uniform(0.75, 0.95) / spacing
    total, level, rough, brain = (np.zeros(shape, np.float32) for _ in range(4))
    kept: dict[str, Array] = {}
    boxes = ndimage.find_objects(found + 1, AIR + 1)
    for index, box in enumerate(boxes):
        if box is None:
            continue
        reach = int(4 * width) + 1
        wide = tuple(slice(max(0, s.start - reach), s.stop + reach) for s in box)
        share = ndimage.gaussian_filter((found[wide] == index).astype(np.float32), width, truncate=3)
        name = NAMES[index] if index < AIR else "air"
        if name in ("fluid", "bone", "white", "grey", "cerebellar grey", "soft", "scalp"):
            kept[name] = np.zeros(shape, np.float32)
            kept[name][wide] = share
        share **= power
        total[wide] += share
        if index < AIR:
            tissue = TISSUES[name]
            level[wide] += levels[name] * share
            rough[wide] += rng.uniform(0.25, 1.0) * tissue.texture * levels[name] * share
            if tissue.brain:
                brain[wide] += share
    total = np.maximum(total, 1e-6)
    image, rough, brain = level / total, rough / total, brain / total

    def sheets(width: float, thickness: float) -> Array:
        """Thin curved sheets: where a smooth random field passes through zero."""
        field = smooth_field(rng, shape, width)
        return np.exp(-((field * np.float32(width / thickness)) ** 2))

    zero = np.zeros((), np.float32)
    fluid, bone = kept.get("fluid", zero), kept.get("bone", zero)
    grey, white = kept.get("grey", zero), kept.get("white", zero)
    folia, soft = kept.get("cerebellar grey", zero), kept.get("soft", zero) + kept.get("scalp", zero)
    # The cortex brightens toward white matter; the dura lies between fluid and bone.
    image += (levels["white"] - levels["grey"]) * rng.uniform(0.0, 0.5) * grey * white
    dura = rng.uniform(0.3, 1.1) * levels["grey"]
    image += np.clip(4 * fluid * bone, 0, 1) * rng.uniform(0.2, 1.0) * (dura - image)
    # Closed sulci, folia, fasciae and septa.
    for where, width, other in (
        (grey, rng.uniform(3.0, 6.0), levels["fluid"]),
        (folia, rng.uniform(1.5, 3.0), levels["fluid"]),
        (soft, rng.uniform(2.0, 6.0), levels["scalp"]),
        (soft, rng.uniform(3.0, 8.0), levels["muscle"] * 0.5),
    ):
        if where.ndim:
            drawn = sheets(width, rng.uniform(0.4, 1.0)) * np.clip(where * 1.5, 0, 1)
            image += rng.uniform(0.2, 0.9) * drawn * (np.float32(other) - image)
    # Fat and muscle mix in what the map calls soft tissue.
    if soft.ndim:
        mix = np.clip(smooth_field(rng, shape, rng.uniform(3, 7)) * 4 + rng.uniform(-3, 3), 0, 1)
        image += mix * np.clip(soft, 0, 1) * rng.uniform(0.3, 0.8) * (levels["scalp"] - image)
    image += rough * _texture(rng, shape)
    return np.clip(image, 0, None), brain


def _texture(rng: Generator, shape: Sequence[int]) -> Array:
    """A random field of unit variance with structure of half a voxel to four, sometimes stretched along one
    axis, like fibres."""
    weights = rng.dirichlet(np.ones(4))
    out = np.zeros(shape, np.float32)
    for weight, width in zip(weights, (0.45, 0.9, 1.8, 3.6), strict=True):
        noise = rng.standard_normal(shape, np.float32)
        field = ndimage.gaussian_filter(noise, width * np.exp(rng.normal(0, 0.3, 3)), truncate=2.5)
        out += np.float32(np.sqrt(weight) / field.std()) * field
    return out


def _vessels(rng: Generator, image: Array, brain: Array, levels: dict[str, float], spacing: float) -> Array:
    """Winding tubes thinner than a voxel or about as thick, on the brain's surface and in it."""
    inside = np.argwhere(brain[::2, ::2, ::2] > 0.3) * 2
    if not len(inside):
        return image
    fluid, top = levels["fluid"], max(levels.values())
    for level, radius in (
        (levels["artery"], rng.uniform(0.35, 0.9)),
        (levels["vein"], rng.uniform(0.3, 0.6)),
        (rng.choice([fluid, 0.1 * top, 1.2 * top]), rng.uniform(0.25, 0.5)),
    ):
        radius = max(0.3, radius / spacing)
        count = int(rng.integers(100, 400))
        at = inside[rng.integers(len(inside), size=count)].astype(np.float64)
        course = rng.standard_normal((count, 3))
        drawn = np.zeros(image.shape, np.float32)
        step = 0.5
        for _ in range(int(rng.integers(30, 100))):
            course += 0.25 * rng.standard_normal((count, 3))
            course /= np.linalg.norm(course, axis=1, keepdims=True)
            at += step * course
            _splat(drawn, at, step * np.pi * radius**2)
        drawn = np.clip(ndimage.gaussian_filter(drawn, radius * 0.7, truncate=3), 0, 1)
        image = image + drawn * np.clip(brain * 3, 0, 1) * (np.float32(level) - image)
    return image


def _splat(volume: Array, at: NDArray[np.float64], amount: float) -> None:
    """Add an amount at each point (n, 3), shared between the eight voxels around it."""
    low = np.floor(at).astype(int)
    part = at - low
    for corner in np.ndindex(2, 2, 2):
        index = low + corner
        ok = np.all((index >= 0) & (index < volume.shape), axis=1)
        weight = np.prod(np.where(corner, part, 1 - part), axis=1)
        np.add.at(volume, tuple(index[ok].T), np.float32(amount) * weight[ok].astype(np.float32))


def _lesions(
    rng: Generator, image: Array, found: NDArray[np.uint8], levels: dict[str, float]
) -> tuple[Array, tuple[tuple[tuple[int, ...], float, float], ...]]:
    """Bright and dark spots of 0.7 to 8 voxels in the brain, small ones more often.

    Some of the large ones have an enhanced rim, a soft or a ragged border.
    """
    inside = np.argwhere(np.isin(found[::2, ::2, ::2], [NAMES.index(n) for n in LESIONED])) * 2
    drawn = []
    for _ in range(int(rng.integers(20, 120)) if len(inside) else 0):
        radius = float(0.7 * (8 / 0.7) ** (rng.random() ** 1.7))
        centre = inside[rng.integers(len(inside))] + rng.uniform(-0.5, 0.5, 3)
        reach = int(radius * 1.6) + 3
        corner = np.round(centre).astype(int) - reach
        if np.any(corner < 0) or np.any(corner + 2 * reach + 1 > image.shape):
            continue
        box = tuple(slice(c, c + 2 * reach + 1) for c in corner)
        at = np.meshgrid(
            *(np.arange(s.start, s.stop) - c for s, c in zip(box, centre, strict=True)), indexing="ij"
        )
        shape = np.exp(rng.normal(0, 0.15, 3))
        distance = np.sqrt(sum((a * s) ** 2 for a, s in zip(at, shape, strict=True)))
        if radius > 2.5 and rng.random() < 0.6:
            distance += 0.2 * radius * smooth_field(rng, distance.shape, max(1.5, radius / 2))
        soft = 1.0 if rng.random() < 0.7 else rng.uniform(1.0, 3.0)
        filled = np.clip((radius - distance) / soft + 0.5, 0, 1).astype(np.float32)
        contrast = float(rng.uniform(0.1, 0.6) * rng.choice([-1, 1]))
        base = image[tuple(np.round(centre).astype(int))]
        patch = image[box]
        patch += filled * np.float32(contrast * base)
        if radius > 3 and rng.random() < 0.3:
            rim = np.clip(1 - np.abs(distance - radius) / rng.uniform(0.7, 1.5), 0, 1).astype(np.float32)
            patch += rim * np.float32(rng.uniform(0.3, 1.0) * base)
        drawn.append((tuple(round(c) for c in centre), radius, contrast))
    return np.clip(image, 0, None), tuple(drawn)


def _spots(rng: Generator, image: Array, found: NDArray[np.uint8], most: int) -> Array:
    """Bright and dark balls of half a voxel to two in the brain, mostly small, as sharp as voxels can be.

    A bleed, a plaque, a vessel's end may be as small as a voxel, in a smooth scan or in an average of many
    too. A network that has only seen what the point spread leaves of such things takes them for something
    smoother, and gives them less contrast than the scan has.
    """
    inside = np.argwhere(np.isin(found, [NAMES.index(n) for n in LESIONED]))
    count = int(most ** rng.uniform(0.4, 1)) if len(inside) else 0
    reach = 4
    offsets = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3, indexing="ij"))
    for centre in inside[rng.integers(len(inside), size=count)] if count else ():
        if np.any(centre < reach) or np.any(centre + reach + 1 > image.shape):
            continue
        distance = np.sqrt(np.square(offsets - rng.uniform(-0.5, 0.5, (3, 1, 1, 1))).sum(0))
        radius, contrast = 0.4 + 1.6 * rng.random() ** 2.5, rng.uniform(0.1, 0.6) * rng.choice([-1, 1])
        filled = np.clip(radius + 0.5 - distance, 0, 1).astype(np.float32)
        patch = image[tuple(slice(c - reach, c + reach + 1) for c in centre)]
        patch += filled * np.float32(contrast * image[tuple(centre)])
    return np.clip(image, 0, None)


def main(
    out: Annotated[Path, typer.Argument(help="Folder for the scans.")],
    labels: Annotated[list[str], typer.Option(help="Label maps: a file, a folder or a glob; repeatable.")],
    heads: Annotated[int, typer.Option(min=1, help="How many.")] = 20,
    first: Annotated[int, typer.Option(min=0, help="Number of the first; groups take disjoint ranges.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the whole cohort.")] = 0,
    spacing: Annotated[float | None, typer.Option(help="Of the voxels, mm. (default: drawn)")] = None,
    spots: Annotated[int, typer.Option(min=0, help="Of one or two voxels in each brain, at most.")] = 0,
) -> None:
    """Draw HR heads from label maps, used in turn: OUT/head-NNNN.nii.gz, int16; print a line about each."""
    maps = [entry.path for entry in find(labels)]
    out.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + heads):
        own = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
        drawn = drawn_head(maps[number % len(maps)], own, spacing, spots)
        affine = np.eye(4)
        affine[:3, :3] = drawn.axes * drawn.spacing
        nifti = nib.Nifti1Image((drawn.image * 1000).round().astype(np.int16), affine)
        nifti.header.set_xyzt_units("mm")
        nib.save(nifti, out / f"head-{number:04d}.nii.gz")
        kind = f"{drawn.contrast}, {'stripped' if drawn.stripped else 'whole'}"
        print(f"head {number}: {kind}, {drawn.spacing:.2f} mm, sharpness {drawn.sharpness:.2f}", flush=True)


if __name__ == "__main__":
    with sentences("train"):
        typer.run(main)
