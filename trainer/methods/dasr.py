"""DASR (Wei et al., CVPR 2021), two stages: learn to degrade, then restore what was degraded.

1. `down` makes LR slabs from HR ones: low frequencies as truncated, high ones by an adversary.
2. `down` is frozen; `up` learns from its output, each pixel weighted by how much it looks like the target
   group, and from real LR slabs by an adversary on the high frequencies.

Frequencies are split by the Haar wavelet in plane. The map of weights needs a discriminator with a receptive
field, so stage 1 uses only the first convolutions of the VGG of the others; its sigmoid is a probability, so
both discriminators use the logistic loss. No perceptual loss: there is none for MRI.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nets import generators, losses
from ..nets.discriminators import Discriminator, PatchDiscriminator
from ..nets.generators import Architecture, SuperResolution
from .method import Batch, Made, Method, Terms, Turn, Weights, detached, together, total

ADVERSARIAL = 0.005


class Dasr(Method):
    """Generators `down` and `up`, each with its discriminator of high frequencies.

    patch: rows (= columns) of an LR training patch, even.
    """

    stages: ClassVar[int] = 2

    def __init__(self, arch: Architecture, patch: int, weights: Weights) -> None:
        super().__init__(arch, patch, weights)
        slab_lr, slab_hr = arch.slab
        self.down = generators.degrader(arch)
        self.up = generators.super_resolution(arch)
        self.judge_lr = PatchDiscriminator(3 * slab_lr, arch.discriminator)
        self.judge_hr = Discriminator(3 * slab_hr, arch.discriminator, patch * arch.scale[0] // 2)

    def turns(self, stage: int = 0) -> tuple[Turn, ...]:
        if stage == 0:
            return Turn(self.down, self.degradation), Turn(self.judge_lr, self.lr_discrimination)
        return Turn(self.up, self.restoration), Turn(self.judge_hr, self.hr_discrimination)

    def deployed(self) -> SuperResolution:
        return self.up

    def degraded(self, hr: Tensor, coarse: Tensor) -> Tensor:
        return self.down(hr, coarse)

    def degradation(self, batch: Batch, made: Made) -> tuple[Terms, Made]:
        """Stage 1, generator."""
        fake = self.down(batch.hr, batch.coarse)
        low, high = haar(fake)
        terms = {
            "low_pass": losses.l1(low, haar(batch.coarse)[0]),
            "adversarial": logistic(self.judge_lr(high), 1.0),
        }
        return total(terms, {"low_pass": 1.0, "adversarial": ADVERSARIAL}), detached(fake=fake)

    def lr_discrimination(self, batch: Batch, made: Made) -> tuple[Terms, Made]:
        real, fake = (self.judge_lr(haar(image)[1]) for image in (batch.lr, made["fake"]))
        terms = {"d_lr": 0.5 * (logistic(real, 1.0) + logistic(fake, 0.0))}
        return total(terms, {"d_lr": 1.0}), {}

    def restoration(self, batch: Batch, made: Made) -> tuple[Terms, Made]:
        """Stage 2, generator."""
        with torch.no_grad():
            fake = self.down(batch.hr, batch.coarse)
            weight = self.domain_distance(fake, batch.hr.shape)
        sr, target_sr = together(self.up, fake, batch.lr)
        terms = {
            "pixel": (weight * (sr.float() - batch.hr).abs()).mean(),
            "low_pass": losses.l1(haar(sr)[0], haar(batch.hr)[0]),
            "adversarial": logistic(self.judge_hr(haar(target_sr)[1]), 1.0),
        }
        weights = {"pixel": 1.0, "low_pass": 1.0, "adversarial": ADVERSARIAL}
        return total(terms, weights), detached(target_sr=target_sr)

    def hr_discrimination(self, batch: Batch, made: Made) -> tuple[Terms, Made]:
        real, fake = (self.judge_hr(haar(image)[1]) for image in (batch.hr, made["target_sr"]))
        terms = {"d_hr": 0.5 * (logistic(real, 1.0) + logistic(fake, 0.0))}
        return total(terms, {"d_hr": 1.0}), {}

    def domain_distance(self, fake: Tensor, hr_shape: torch.Size) -> Tensor:
        """How real each pixel of a generated LR slab looks, (N, 1, s·P, s·P) in 0..1, without gradient.

        The mean of the scores of all patches whose receptive field covers the pixel.
        """
        self.judge_lr.eval()  # a slab's weight must not depend on the other slabs of its batch
        high = haar(fake)[1]
        probability = torch.sigmoid(self.judge_lr(high).float())
        self.judge_lr.train()
        field, stride = PatchDiscriminator.FIELD, PatchDiscriminator.STRIDE
        ones = probability.new_ones(1, 1, field, field)

        def spread(scores: Tensor) -> Tensor:
            covered = F.conv_transpose2d(scores, ones, stride=stride)  # score i lies on pixel stride·i
            return covered[..., field // 2 :, field // 2 :][..., : high.shape[2], : high.shape[3]]

        with torch.autocast(fake.device.type, enabled=False):  # bf16 has only two digits
            mean = spread(probability) / spread(torch.ones_like(probability))
        return F.interpolate(mean, hr_shape[2:])


def haar(image: Tensor) -> tuple[Tensor, Tensor]:
    """The low band (N, C, H/2, W/2) and the three high bands (N, 3·C, H/2, W/2) of a slab; orthonormal."""
    a, b, c, d = (image[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1))
    high = torch.cat((a - b + c - d, a + b - c - d, a - b - c + d), 1)
    return (a + b + c + d) / 2, high / 2


def logistic(scores: Tensor, label: float) -> Tensor:
    """Binary cross-entropy of logits against one label."""
    return F.binary_cross_entropy_with_logits(
        scores.float(), torch.full_like(scores, label, dtype=torch.float32)
    )
