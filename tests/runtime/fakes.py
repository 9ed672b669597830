"""Networks whose answer is known, their cards, and small scans to run them on."""

import numpy as np
from udean.runtime import ModelCard
from udean.runtime.host import Volume, resolve_slabs


def card(scale, slices, window, grid="fft"):
    return ModelCard(
        name="test",
        method="none",
        scale=scale,
        slab=(slices, slices * scale[2]),
        window=window,
        grid=grid,
        intensity="percentile-99.9",
        skip="none",
        precision="fp32",
        parameters=1,
        toolkit="test",
        trained_on="nothing",
    )


def nearest(volume, scale):
    """Every voxel of (…, rows, columns, slices) repeated."""
    for axis, factor in enumerate(scale):
        volume = np.repeat(volume, factor, axis - 3)
    return volume


def stitched(volume, plan, scale, batch=None):
    rows, columns, slices = scale
    out = np.full(plan.fine_shape, np.nan, np.float32)
    for first, planes in resolve_slabs(
        Volume(volume), lambda x: nearest(x, (slices, rows, columns)), plan, batch
    ):
        out[:, :, first : first + len(planes)] = np.moveaxis(planes, 0, 2)
    return out
