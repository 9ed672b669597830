"""Supervised learning: the deployed networks alone, on pairs of LR and HR slabs.

On aligned pairs it is the upper bound; on misaligned ones it gives the first two columns of the paper's Table
I. The loss is the similarity that eqs 4, 6 and 7 share, L1 + α·SSIM, without an adversary. On blocks deeper
than a slab it separates the band that the LR scan holds from what lies beyond it, see `nets.blocks`.
"""

from __future__ import annotations

from typing import ClassVar

import torch

from ..nets import blocks, generators, losses
from ..nets.generators import Architecture, SuperResolution
from ..nets.interpolation import SLAB
from .method import Batch, Draws, Made, Method, Terms, Turn, Weights, total


class Supervised(Method):
    draws: ClassVar[Draws] = "pairs"
    weighs: ClassVar[tuple[str, ...]] = ("ssim", "charbonnier", "rim", "low_band")

    def __init__(self, arch: Architecture, patch: int, weights: Weights) -> None:
        super().__init__(arch, patch, weights)
        self.weights = weights
        self.scale = arch.scale
        self.network = generators.super_resolution(arch)

    def turns(self, stage: int = 0) -> tuple[Turn, ...]:
        return (Turn(self.network, self.losses),)

    def deployed(self) -> SuperResolution:
        return self.network

    def losses(self, batch: Batch, made: Made) -> tuple[Terms, Made]:
        if batch.coarse.shape[1] > SLAB:
            return self.block_losses(batch), {}
        sr, w = self.network(batch.coarse), self.weights
        terms = {"l1": losses.similarity(sr, batch.hr, w.charbonnier, w.rim)}
        if w.ssim:
            terms["ssim"] = losses.ssim(sr, batch.hr)
        return total(terms, {"l1": 1.0, "ssim": w.ssim}), {}

    def block_losses(self, batch: Batch) -> Terms:
        """The distance beyond the LR scan's band, that inside it, and SSIM, without the blocks' outer slices,
        which fewer slabs overlap."""
        w, rim = self.weights, self.scale[2]
        sr = blocks.restored(self.network, batch.coarse)
        error = sr.float() - batch.hr.float()
        low = blocks.low_band_of_blocks(error, self.scale)
        inner = slice(rim, -rim)
        zero = torch.zeros_like(low[:, inner])
        terms = {
            "high_band": losses.similarity((error - low)[:, inner], zero, w.charbonnier),
            "low_band": losses.similarity(low[:, inner], zero, w.charbonnier),
        }
        if w.ssim:
            terms["ssim"] = losses.ssim(sr[:, inner], batch.hr[:, inner])
        return total(terms, {"high_band": 1.0, "low_band": w.low_band, "ssim": w.ssim})
