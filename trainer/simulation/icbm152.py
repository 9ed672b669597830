"""The ICBM152 2009a T1 template, which nilearn carries: a real brain to measure on, never to train on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .kspace import Scale, crop


def load_t1() -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The template (197, 233, 189) at 1 mm, float32 from 0 to 1, and its affine (4, 4; RAS, mm)."""
    from nilearn import datasets  # takes half a second: only if it is needed

    image = datasets.load_mni152_template(resolution=1)
    return np.asarray(image.dataobj, np.float32), image.affine


def cropped_t1(scale: Scale = (2, 2, 2)) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """The template, intensities 0 to 255, cropped so that a scale divides its sides, and its affine."""
    voxels, affine = load_t1()
    return crop(voxels * 255, scale).astype(np.float32), affine
