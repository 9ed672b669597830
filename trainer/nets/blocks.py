"""Blocks: volumes a few slices deep, restored and blended as the runtime does with scans.

A slab holds three LR slices: a position between the outer two is seen from one side only, and an error there
flickers from slice to slice. A block's slabs overlap by all but one slice and are blended, and its loss
separates the band that the LR scan holds, which the runtime takes from the scan, from what lies beyond it.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...runtime.pipeline.tiling import window_profile
from ..simulation.kspace import Scale
from .interpolation import SLAB

OVERLAP = 0.5  # of slabs, at least; with three LR slices, a slab begins at each slice
LOBES = 4  # of the low-pass filter on either side


def restored(network: nn.Module, lr: Tensor) -> Tensor:
    """LR blocks (N, D, H, W) restored slab by slab and blended: (N, D·s_slice, s·H, s·W)."""
    n, depth = lr.shape[:2]
    starts = range(depth - SLAB + 1)
    slabs = network(torch.cat([lr[:, k : k + SLAB] for k in starts]))
    through = slabs.shape[1] // SLAB
    weights = lr.new_tensor(window_profile(SLAB, through, "fft", "gaussian"))
    total = lr.new_zeros(depth * through)
    image = slabs.new_zeros(n, depth * through, *slabs.shape[2:])
    for k, slab in zip(starts, slabs.chunk(len(starts)), strict=True):
        around = (k * through, (depth - SLAB - k) * through)
        total = total + F.pad(weights, around)
        image = image + F.pad(weights[:, None, None] * slab, (0, 0, 0, 0, *around))
    return image / total[:, None, None]


def low_band_of_blocks(x: Tensor, scale: Scale) -> Tensor:
    """The band that an LR scan holds of HR blocks (N, D, H, W): a Lanczos low-pass along each axis that is
    coarser in the LR scan. scale: (row, column, slice) factors. Blocks are mirrored at their edges."""
    rows, columns, slices = scale
    n, depth, height, width = x.shape
    flat = x.contiguous().view(n * depth, 1, height, width)
    if columns > 1:
        taps, reach = _taps(columns, x)
        flat = F.conv2d(F.pad(flat, (reach, reach, 0, 0), mode="reflect"), taps.view(1, 1, 1, -1))
    if rows > 1:
        taps, reach = _taps(rows, x)
        flat = F.conv2d(F.pad(flat, (0, 0, reach, reach), mode="reflect"), taps.view(1, 1, -1, 1))
    if slices == 1:
        return flat.view(n, depth, height, width)
    taps, reach = _taps(slices, x)
    lines = F.pad(flat.view(n, 1, depth, height * width), (0, 0, reach, reach), mode="reflect")
    return F.conv2d(lines, taps.view(1, 1, -1, 1)).view(n, depth, height, width)


def least_depth(scale: Scale) -> int:
    """LR slices that a block must have: more than a slab, and enough for the low-pass filter's mirror."""
    reach = LOBES * scale[2] - 1 if scale[2] > 1 else 0
    return max(SLAB + 1, math.ceil((reach + 1) / scale[2]))


def _taps(s: int, like: Tensor) -> tuple[Tensor, int]:
    """A low-pass at 1/s of the band, of sum 1, and its number of taps on either side."""
    reach = LOBES * s - 1
    t = np.arange(-reach, reach + 1) / s
    taps = np.sinc(t) * np.sinc(t / LOBES)
    return like.new_tensor(taps / taps.sum()), reach
