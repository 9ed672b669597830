"""Pseudo-supervision (Maeda, CVPR 2020): clean the LR scan first, then restore it as if it were truncated.

The paper's names and ours: x is a target LR slab, y↓ the clean truncation of a source slab y; `clean` is G_xy
(x to y↓), `soil` is G_yx (y↓ and noise to x), `up` is U. The deployed network is up(clean(x)): one LR network
more than in the other methods.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..nets import generators, losses
from ..nets.discriminators import Discriminator
from ..nets.generators import Architecture, SuperResolution
from .method import Batch, Made, Method, Terms, Turn, Weights, detached, together, total

WEIGHTS = {
    "x_adversarial": 1.0,
    "y_adversarial": 1.0,
    "cycle": 1.0,
    "identity": 2.0,
    "symmetry": 1.0,
    "sr_adversarial": 0.1,
}


class PseudoSr(Method):
    """Three generators and three discriminators. patch: rows (= columns) of an LR training patch."""

    def __init__(self, arch: Architecture, patch: int, weights: Weights) -> None:
        super().__init__(arch, patch, weights)
        slab_lr, slab_hr = arch.slab
        self.up = generators.super_resolution(arch)
        self.clean = generators.lr_mapping(arch)
        self.soil = generators.lr_mapping(arch, extra=1)
        self.translators = nn.ModuleDict({"clean": self.clean, "soil": self.soil})
        width = arch.discriminator
        self.discriminators = nn.ModuleDict(
            {
                "x": Discriminator(slab_lr, width, patch),
                "y": Discriminator(slab_lr, width, patch),
                "sr": Discriminator(slab_hr, width, patch * arch.scale[0]),
            }
        )

    def turns(self, stage: int = 0) -> tuple[Turn, ...]:
        return (
            Turn(self.translators, self.translation),
            Turn(self.up, self.restoration),
            Turn(self.discriminators, self.discrimination),
        )

    def deployed(self) -> SuperResolution:
        return SuperResolution(self.up.encoder, self.up.decoder, self.clean)

    def translation(self, batch: Batch, made: Made) -> tuple[Terms, Made]:
        """The two LR networks; `up` is frozen but passes its adversary's gradient."""
        x, y = batch.lr, batch.coarse
        noise = batch.random(lambda shape, random: torch.randn(shape, generator=random), 1, *y.shape[2:])
        soiled = self.soil(torch.cat((y, noise.to(y.dtype)), 1), y)
        cleaned, restored, same = together(self.clean, x, soiled, y)
        sr = self.up(cleaned)
        d = self.discriminators
        terms = {
            "x_adversarial": losses.adversarial(d["x"](soiled)),
            "y_adversarial": losses.adversarial(d["y"](cleaned)),
            "cycle": losses.l1(restored, y),
            "identity": losses.l1(same, y),
            "symmetry": losses.l1(cleaned, self.eightfold(x)),
            "sr_adversarial": losses.adversarial(d["sr"](sr)),
        }
        return total(terms, WEIGHTS), detached(soiled=soiled, cleaned=cleaned, restored=restored, sr=sr)

    def eightfold(self, x: Tensor) -> Tensor:
        """The mean of `clean` over the eight flips and quarter turns of a square slab, each undone."""
        turned = [x.rot90(turns, (2, 3)) for turns in range(4)]
        outputs = together(self.clean, *turned, *(view.flip(3) for view in turned))
        upright = [*outputs[:4], *(output.flip(3) for output in outputs[4:])]
        return torch.stack([output.rot90(-turns, (2, 3)) for turns, output in enumerate(upright)]).mean(0)

    def restoration(self, batch: Batch, made: Made) -> tuple[Terms, Made]:
        """`up`, on truncated slabs that have been soiled and cleaned."""
        terms = {"pixel": losses.l1(self.up(made["restored"]), batch.hr)}
        return total(terms, {"pixel": 1.0}), {}

    def discrimination(self, batch: Batch, made: Made) -> tuple[Terms, Made]:
        d = self.discriminators
        terms = {
            "d_x": losses.discrimination(d["x"](batch.lr), d["x"](made["soiled"])),
            "d_y": losses.discrimination(d["y"](batch.coarse), d["y"](made["cleaned"])),
            "d_sr": losses.discrimination(d["sr"](batch.hr), d["sr"](made["sr"])),
        }
        return total(terms, dict.fromkeys(terms, 1.0)), {}
