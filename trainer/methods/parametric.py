"""Supervised learning on pairs made by an estimated degradation with few parameters.

Unlike UDEAN, no network learns to degrade and no adversary judges. The scanner's point spread and noise
level, estimated from the LR scans' spectra (`simulation.estimate`), are applied to the HR scans of the source
group, and the deployed networks learn from such pairs.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..nets.generators import Architecture
from ..nets.interpolation import SLAB
from ..simulation.kspace import Degradation, transfer
from .method import Draws, Weights
from .supervised import Supervised

REACH = 8  # LR voxels of the point spread on either side


class Parametric(Supervised):
    draws: ClassVar[Draws] = "estimated"

    def __init__(self, arch: Architecture, patch: int, weights: Weights) -> None:
        super().__init__(arch, patch, weights)
        self.lines: Tensor
        self.register_buffer("lines", torch.zeros(3, 2 * REACH + 1), persistent=False)
        self.learn(Degradation())

    def learn(self, degradation: Degradation) -> None:
        """Adopt an estimated degradation: the point spread along (row, column, slice), on the LR grid."""
        frequency = np.arange(512) / 1024
        x = np.arange(-REACH, REACH + 1)
        waves = np.cos(2 * np.pi * np.multiply.outer(x, frequency)) * np.where(frequency, 2, 1)
        for axis in range(3):
            line = waves @ transfer(degradation, axis, frequency)
            self.lines[axis] = torch.from_numpy(line / line.sum()).float()

    def degraded(self, hr: Tensor, coarse: Tensor) -> Tensor:
        """The LR slabs smoothed by the point spread; edges are repeated."""
        rows, columns, slices = self.lines.to(coarse.dtype)
        x = F.pad(coarse, (REACH,) * 4, mode="replicate")
        x = F.conv2d(x, rows.expand(SLAB, 1, -1)[..., None], groups=SLAB)
        x = F.conv2d(x, columns.expand(SLAB, 1, -1)[:, :, None], groups=SLAB)
        mix = coarse.new_zeros(SLAB, SLAB)
        for i in range(SLAB):
            for tap in range(-REACH, REACH + 1):
                mix[i, min(max(i + tap, 0), SLAB - 1)] += slices[tap + REACH]
        return F.conv2d(x, mix[:, :, None, None])
