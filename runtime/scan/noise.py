"""Estimates a scan's noise: in the air around the head, else from detail finer than anatomy.

The noise of a magnitude image has a Rayleigh distribution in air (Gudbjartsson and Patz, MRM 34, 1995). Its
standard deviation is sqrt(2 - pi/2) = 0.655 of that of a real channel; with several coils it becomes 0.707 of
it, so that the spread gives the noise but the mean does not. Bone, fluid and the rims of a mask are dark too,
and a scan cropped to the brain has more of them than of air. Structure only adds to the spread of a block:
the quietest of the dark blocks are air, if there is any; and if these are not all alike, the noise is at most
the detail in tissue that is finer than anatomy. Air that is zeroed or masked says nothing: then the finest
diagonal Haar coefficients do (Donoho and Johnstone, Biometrika 81, 1994), in the quietest blocks, and in
images with signs, in which what is near 0 need not be air. Anatomy leaves its traces in these: without air,
the noise comes out up to 1 % of the unit too high.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

BLOCK = 4  # voxels along each side of the blocks in which air is looked for
VOXELS = 1 << 21  # examined at most, in evenly spaced stacks of BLOCK slices
RAYLEIGH = float(np.sqrt(2 - np.pi / 2))
UNIFORM = 0.62  # standard deviation over mean of a block that may be air: 0.523 in Rayleigh's distribution
DARK = 0.12  # of the unit: brighter blocks hold tissue
CALM = 0.05  # share of the dark blocks that count as air
LEAST = 1.29  # the CALM quantile of the spread of n Rayleigh numbers is 1 - LEAST / sqrt(n) of theirs
ALIKE = 0.8  # that quantile over the median, above which the dark blocks are all air: 0.85 of such
ENOUGH = 0.01  # share of the blocks that air must have
QUIET = 0.02  # share of the blocks that anatomy is taken to leave alone
QUIETER = 0.75  # what so small a share of blocks of 32 normal numbers has of the whole's RMS


@dataclass(frozen=True)
class Noise:
    """sigma: standard deviation of a real channel, in the scan's units. source: its origin."""

    sigma: float
    source: Literal["air", "residue"]


def estimate_noise(volume: NDArray[Any], unit: float, slope: float = 1.0, inter: float = 0.0) -> Noise:
    """The noise of a volume (rows, columns, slices) of finite voxels, in units of voxel · slope + inter.

    unit: a bright voxel's intensity. Noise in tissue and noise in air are of one channel; parallel imaging,
    which makes noise vary, is not considered, nor interpolation by the scanner: noise that neighbours share
    comes out too low, in a scan interpolated twofold along each axis at a fifth.
    """
    blocks, below, spreads, residues, tissues = 0, 0, [], [], []
    for stack in _stacks(volume):
        # In the network's range, where squares of no scan's intensities leave float32.
        piece = stack.astype(np.float32) * np.float32(slope / unit) + np.float32(inter / unit)
        mean, spread = (measure(_blocks(piece), axis=1) for measure in (np.mean, np.std))
        air = (spread > 0) & (mean > 0) & (mean < DARK) & (spread < UNIFORM * mean)
        below += np.count_nonzero(mean < -DARK)
        spreads.append(spread[air])
        blocks += spread.size
        residues.append(_finest(piece, piece != piece[0, 0, 0]))
        tissues.append(_finest(piece, piece > DARK))
    spread, residue, tissue = (np.concatenate(found) for found in (spreads, residues, tissues))
    if blocks and spread.size >= ENOUGH * blocks and below <= ENOUGH * blocks:
        quiet = float(np.quantile(spread, CALM))
        calm = 1 - LEAST / np.sqrt(min(BLOCK, volume.shape[2]) * BLOCK**2)
        if quiet > ALIKE * np.median(spread) or not tissue.size:
            return Noise(unit * quiet / calm / RAYLEIGH, "air")
        return Noise(unit * min(quiet / calm / RAYLEIGH, _quietest(tissue)), "air")
    return Noise(unit * _quietest(residue) if residue.size else 0.0, "residue")


def _quietest(residue: NDArray[np.float32]) -> float:
    """The noise in the blocks without anatomy."""
    return float(np.quantile(residue, QUIET)) / QUIETER


def _stacks(volume: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Evenly spaced stacks of a few slices."""
    rows, columns, slices = volume.shape
    every = range(0, max(1, slices - slices % BLOCK), BLOCK)
    count = max(1, min(len(every), VOXELS // max(1, rows * columns * BLOCK)))
    for n in np.linspace(0, len(every) - 1, count).astype(int):
        yield volume[:, :, every[n] : every[n] + BLOCK]


def _blocks(stack: NDArray[Any], side: int = BLOCK) -> NDArray[Any]:
    """The voxels of each block of `side` rows and columns, (blocks, voxels)."""
    rows, columns = (n - n % side for n in stack.shape[:2])
    if not rows * columns:
        return np.empty((0, side**2), stack.dtype)
    pieces = stack[:rows, :columns].reshape(rows // side, side, columns // side, side, -1)
    return pieces.transpose(0, 2, 1, 3, 4).reshape(rows * columns // side**2, -1)


def _finest(stack: NDArray[np.float32], content: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The RMS of the finest Haar coefficients along all axes, in each block that is all content."""
    for axis in range(3):
        size = stack.shape[axis] - stack.shape[axis] % 2
        if size < 2:
            continue
        even, odd = (np.take(stack, range(i, size, 2), axis) for i in (0, 1))
        both = [np.take(content, range(i, size, 2), axis) for i in (0, 1)]
        stack, content = (even - odd) / np.float32(np.sqrt(2)), both[0] & both[1]
    return np.sqrt((_blocks(stack)[_blocks(content).all(1)] ** 2).mean(1))
