"""Synthetic heads: HR scans of people who do not exist, for training without access-controlled data.

Each head deforms the ICBM152 grey and white matter probability maps that nilearn carries (never its T1
template) by a random affine and elastic transform, draws tissue contrasts, adds procedural skull and
scalp or strips the brain, then bias field, texture and noise. 1 mm isotropic, 197×233×189 voxels.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .random_fields import rotation, smooth_field

Array = NDArray[Any]  # float32


@cache
def tissue_maps() -> tuple[Array, Array, Array, NDArray[np.float64]]:
    """Grey matter, white matter and brain probability (197, 233, 189), and the affine (RAS, mm)."""
    from nilearn import datasets

    grey = datasets.load_mni152_gm_template(resolution=1)
    white = datasets.load_mni152_wm_template(resolution=1)
    g, w = (np.asarray(image.dataobj, np.float32) for image in (grey, white))
    g, w = g / g.max(), w / w.max()
    brain = ndimage.binary_closing(g + w > 0.3, iterations=6)
    brain = ndimage.binary_fill_holes(brain)
    return g, w, ndimage.gaussian_filter(np.asarray(brain, np.float32), 1.0), grey.affine


def atlas_head(seed: int) -> tuple[Array, bool]:
    """One head (197, 233, 189), float32 from 0 to about 1, and whether it is skull-stripped."""
    rng = np.random.default_rng(seed)
    grey, white, brain = (_warp(m, t) for t in [_transform(rng)] for m in tissue_maps()[:3])

    # Averages of many brains are soft; real cortex is crisp. Sharpen by a random power.
    fluid = np.clip(brain - grey - white, 0.02, None)
    power = rng.uniform(1.0, 4.0)
    grey, white, fluid = grey**power, white**power, fluid**power
    total = grey + white + fluid

    g, w, f = _contrast(rng)
    image = (g * grey + w * white + f * fluid) / total
    image *= 1 + rng.uniform(0.01, 0.06) * smooth_field(rng, image.shape, rng.uniform(0.8, 4.0))

    stripped = bool(rng.random() < 0.5)
    mask = brain > rng.uniform(0.3, 0.6)
    if not stripped:
        image = _dress(rng, image, mask, bright=max(g, w, f))
    image *= np.exp(rng.uniform(0.0, 0.2) * smooth_field(rng, image.shape, 40.0))

    image = ndimage.gaussian_filter(image, rng.uniform(0.0, 0.7))  # the scanner's point spread

    noise = np.float32(rng.uniform(0.0, 0.01))
    real, imaginary = rng.standard_normal((2, *image.shape), np.float32) * noise
    image = np.hypot(image + real, imaginary)  # Rician, as in magnitude images
    if stripped:
        image *= mask
    return (image / np.percentile(image, 99.9)).astype(np.float32), stripped


def _transform(rng: np.random.Generator) -> Array:
    """Coordinates (3, rows, columns, slices) to sample the maps at: affine and elastic, in voxels."""
    shape = tissue_maps()[0].shape
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float32)
    centre = np.asarray(shape, np.float32)[:, None, None, None] / 2
    matrix = np.diag(rng.uniform(0.9, 1.12, 3)) @ rotation(rng.normal(0, np.radians(6), 3))
    matrix += rng.normal(0, 0.03, (3, 3))
    grid = np.einsum("ij,jabc->iabc", matrix.astype(np.float32), grid - centre) + centre
    grid += rng.uniform(-4, 4, (3, 1, 1, 1)).astype(np.float32)
    for width, reach in ((18.0, rng.uniform(2, 5)), (7.0, rng.uniform(0.5, 1.8))):
        grid += np.stack([smooth_field(rng, shape, width) for _ in range(3)]) * np.float32(reach)
    return grid


def _warp(image: Array, coordinates: Array) -> Array:
    return ndimage.map_coordinates(image, coordinates, order=1, output=np.float32)


def _contrast(rng: np.random.Generator) -> tuple[float, float, float]:
    """Intensities of grey matter, white matter and fluid: mostly T1-like, else T2- or PD-like."""
    if rng.random() < 0.7:
        white = rng.uniform(0.75, 1.0)
        return white * rng.uniform(0.55, 0.85), white, white * rng.uniform(0.1, 0.4)
    fluid = rng.uniform(0.85, 1.0)
    return fluid * rng.uniform(0.55, 0.8), fluid * rng.uniform(0.35, 0.6), fluid


def _dress(rng: np.random.Generator, brain: Array, mask: NDArray[np.bool_], bright: float) -> Array:
    """Add fluid, skull (outer and inner table, marrow between), scalp and air around the brain."""
    distance = ndimage.distance_transform_edt(~mask).astype(np.float32)
    shape = distance.shape
    depth = np.zeros_like(distance)
    image = np.where(mask, brain, np.float32(bright * rng.uniform(0.1, 0.3)))
    layers = (  # start of the layer: mean thickness of the one before in mm, and intensity
        (rng.uniform(1.0, 3.0), rng.uniform(0.02, 0.1)),
        (rng.uniform(1.5, 2.5), rng.uniform(0.2, 0.6)),
        (rng.uniform(1.5, 4.0), rng.uniform(0.02, 0.1)),
        (rng.uniform(1.5, 2.5), rng.uniform(0.6, 1.1)),
        (rng.uniform(3.0, 8.0), 0.0),
    )
    for thickness, level in layers:
        depth += thickness * np.exp(0.25 * smooth_field(rng, shape, 14.0))
        value = bright * level * (1 + 0.15 * smooth_field(rng, shape, 2.5))
        edge = np.clip(distance - depth + 0.5, 0, 1)  # partial volume over one voxel
        image += edge * (value - image)
    return np.clip(image, 0, None)
