"""UDEAN, end to end (section II and Fig. 2).

The paper's symbols and the names here:

    Ys hr          HR slab of the source group       Xt lr         LR slab of the target group
    fs features_s  extractor(Ys)                     ft features_t lr_encoder(Xt)
    Ŷs hr_same     sr_decoder(fs)                    X̂t lr_same    lr_decoder(ft)
    Xs→t degraded  lr_decoder(fs)                    fs→t→s features_cycle  lr_encoder(Xs→t)
    Ys→t→s hr_cycle sr_decoder(fs→t→s)
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..nets import generators, losses
from ..nets.discriminators import Discriminator, HighPass, PatchDiscriminator
from ..nets.generators import Architecture, SuperResolution
from .method import Batch, Made, Method, Terms, Turn, Weights, detached, together, total

PACE = 4.0  # of patch judges: at the generators' pace they stay at chance (Heusel et al., NeurIPS 2017)


class Udean(Method):
    """The generators and the three discriminators, and the losses of one step.

    patch: rows (= columns) of an LR training patch.
    """

    weighs: ClassVar[tuple[str, ...]] = tuple(f.name for f in dataclasses.fields(Weights))

    def __init__(self, arch: Architecture, patch: int, weights: Weights) -> None:
        super().__init__(arch, patch, weights)
        self.weights = weights
        slab_lr, slab_hr = arch.slab
        self.generators = nn.ModuleDict(
            {
                "extractor": generators.feature_extractor(arch),
                "lr_encoder": generators.lr_encoder(arch),
                "lr_decoder": generators.lr_decoder(arch),
                "sr_decoder": generators.sr_decoder(arch),
            }
        )
        if arch.noise:
            self.generators["noise"] = NoiseMaps()
        self.pace = PACE if arch.judges == "patch" else 1.0
        width = arch.discriminator
        self.discriminators = nn.ModuleDict(
            {
                "lr": Discriminator(slab_lr, width, patch),
                "features": Discriminator(arch.channels, width, patch),
                "hr": Discriminator(slab_hr, width, patch * arch.scale[0]),
            }
            if arch.judges == "slab"
            else {
                "lr": nn.Sequential(HighPass(), PatchDiscriminator(slab_lr, width, normalised=False)),
                "features": PatchDiscriminator(arch.channels, width, normalised=False),
                "hr": nn.Sequential(HighPass(), PatchDiscriminator(slab_hr, width, normalised=False)),
            }
        )

    def turns(self, stage: int = 0) -> tuple[Turn, ...]:
        """Generators and discriminators 1:1."""
        return (
            Turn(self.generators, self.generator_losses),
            Turn(self.discriminators, self.discriminator_losses, self.pace),
        )

    def deployed(self) -> SuperResolution:
        """LR encoder and SR decoder."""
        return SuperResolution(self.generators["lr_encoder"], self.generators["sr_decoder"])  # type: ignore[arg-type]

    def degraded(self, hr: Tensor, coarse: Tensor) -> Tensor:
        """Xs→t: extractor and LR decoder."""
        return self.generators["lr_decoder"](self.generators["extractor"](hr, coarse))

    def generator_losses(self, batch: Batch, made: Made) -> tuple[Terms, Made]:
        """Eqs 4-10; batch.coarse is for networks with a skip and for the anchor only."""
        g, d, w = self.generators, self.discriminators, self.weights
        hr, lr = batch.hr, batch.lr
        features_s = g["extractor"](hr, batch.coarse)
        features_t = g["lr_encoder"](lr)
        lr_same, degraded = together(g["lr_decoder"], features_t, features_s)
        clean = degraded
        if "noise" in g:
            degraded = g["noise"](degraded, batch)
        features_cycle = g["lr_encoder"](degraded)
        hr_same, hr_cycle = together(g["sr_decoder"], features_s, features_cycle)

        def restored(fake: Tensor, real: Tensor, score: Tensor, near: Tensor) -> Tensor:
            similar = near + w.ssim * losses.ssim(fake, real) if w.ssim else near
            return similar + w.adversarial * losses.adversarial(score)

        def near(fake: Tensor) -> Tensor:
            return losses.similarity(fake, hr, w.charbonnier, w.rim)

        terms = {
            "image_cycle": restored(hr_cycle, hr, d["hr"](hr_cycle), near(hr_cycle)),
            "feature_cycle": losses.l1(features_cycle, features_s),
            "hr_consistency": restored(hr_same, hr, d["hr"](hr_same), near(hr_same)),
            "lr_consistency": restored(lr_same, lr, d["lr"](lr_same), losses.l1(lr_same, lr)),
            # D(Xt) of eq. 8 depends on no generator: it has no gradient here and is left out.
            "image_adaptation": losses.confusion(d["lr"](degraded)),
            "feature_adaptation": losses.confusion(d["features"](features_t), d["features"](features_s)),
            "anchor": losses.l1(clean, batch.coarse),
        }
        judged = detached(
            degraded=degraded,
            features_s=features_s,
            features_t=features_t,
            hr_same=hr_same,
            hr_cycle=hr_cycle,
        )
        weights = dataclasses.asdict(w) | {"anchor": w.anchor * w.anchor_left**batch.progress}
        return total(terms, weights), judged

    def discriminator_losses(self, batch: Batch, made: Made) -> tuple[Terms, Made]:
        """The discriminators' losses on what the generators last made.

        Real and fake are scored in separate batches, so that batch normalisation sees one kind at a time.
        """
        d = self.discriminators
        real_hr = d["hr"](batch.hr)
        terms = {
            "d_lr": losses.discrimination(d["lr"](batch.lr), d["lr"](made["degraded"])),
            "d_features": losses.discrimination(
                d["features"](made["features_s"]), d["features"](made["features_t"])
            ),
            "d_hr": 0.5
            * (
                losses.discrimination(real_hr, d["hr"](made["hr_same"]))
                + losses.discrimination(real_hr, d["hr"](made["hr_cycle"]))
            ),
        }
        return total(terms, dict.fromkeys(terms, 1.0)), {}


class NoiseMaps(nn.Module):
    """White noise of a learned level, initially 0.5 % of the range."""

    PACE = 10.0  # learning rate of its logarithm over that of the weights

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.005).log() / self.PACE)

    def forward(self, image: Tensor, batch: Batch) -> Tensor:
        made = batch.random(lambda shape, random: torch.randn(shape, generator=random), *image.shape[1:])
        return image + (self.PACE * self.level).exp() * made
