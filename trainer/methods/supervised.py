"""Supervised learning: the deployed networks alone, on pairs of LR and HR slabs.

On aligned pairs it is the upper bound; on misaligned ones the paper's first two columns of Table I. The loss
is the similarity that eqs 4, 6 and 7 share, L1 + α·SSIM, without an adversary.
"""

from __future__ import annotations

from typing import ClassVar

from ..nets import generators, losses
from ..nets.generators import Architecture, SuperResolution
from .method import Batch, Draws, Made, Method, Terms, Turn, Weights, total


class Supervised(Method):
    draws: ClassVar[Draws] = "pairs"
    weighs: ClassVar[tuple[str, ...]] = ("ssim", "charbonnier", "rim")

    def __init__(self, arch: Architecture, patch: int, weights: Weights) -> None:
        super().__init__(arch, patch, weights)
        self.weights = weights
        self.network = generators.super_resolution(arch)

    def turns(self, stage: int = 0) -> tuple[Turn, ...]:
        return (Turn(self.network, self.losses),)

    def deployed(self) -> SuperResolution:
        return self.network

    def losses(self, batch: Batch, made: Made) -> tuple[Terms, Made]:
        sr = self.network(batch.coarse)
        w = self.weights
        terms = {"l1": losses.similarity(sr, batch.hr, w.charbonnier, w.rim)}
        if w.ssim:
            terms["ssim"] = losses.ssim(sr, batch.hr)
        return total(terms, {"l1": 1.0, "ssim": w.ssim}), {}
