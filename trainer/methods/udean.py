"""UDEAN, end to end (section II and Fig. 2).

The paper's symbols and the names here:

    Ys hr          HR slab of the source group       Xt lr         LR slab of the target group
    fs features_s  extractor(Ys)                     ft features_t lr_encoder(Xt)
    Ŷs hr_same     sr_decoder(fs)                    X̂t lr_same    lr_decoder(ft)
    Xs→t degraded  lr_decoder(fs)                    fs→t→s features_cycle  lr_encoder(Xs→t)
    Ys→t→s hr_cycle sr_decoder(fs→t→s)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from .. import losses, networks
from ..networks import Architecture, SuperResolution


@dataclass(frozen=True)
class Weights:
    """λ1-λ6 of eq. 10, α and β of eqs 4, 6 and 7. A DA weight of 0 is the paper's ablation."""

    image_cycle: float = 1.0
    feature_cycle: float = 0.1
    hr_consistency: float = 1.0
    lr_consistency: float = 1.0
    image_adaptation: float = 0.1
    feature_adaptation: float = 0.1
    ssim: float = 0.5
    adversarial: float = 0.01


class Udean(nn.Module):
    """The generators and the three discriminators, and the losses of one step.

    patch: rows (= columns) of an LR training patch.
    """

    def __init__(self, arch: Architecture, patch: int, weights: Weights | None = None) -> None:
        super().__init__()
        self.weights = weights or Weights()
        slab_lr, slab_hr = arch.slab
        self.generators = nn.ModuleDict(
            {
                "extractor": networks.feature_extractor(arch),
                "lr_encoder": networks.lr_encoder(arch),
                "lr_decoder": networks.lr_decoder(arch),
                "sr_decoder": networks.sr_decoder(arch),
            }
        )
        width = arch.discriminator
        self.discriminators = nn.ModuleDict(
            {
                "lr": networks.Discriminator(slab_lr, width, patch),
                "features": networks.Discriminator(arch.channels, width, patch),
                "hr": networks.Discriminator(slab_hr, width, patch * arch.scale[0]),
            }
        )

    def deployed(self) -> SuperResolution:
        """The parts that inference needs; they share weights with this model."""
        return SuperResolution(self.generators["lr_encoder"], self.generators["sr_decoder"])  # type: ignore[arg-type]

    def generator_losses(
        self, hr: Tensor, truncated: Tensor, lr: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Eqs 4-10 for one batch.

        hr (N, HR slices, s·P, s·P) and lr (N, LR slices, P, P) need not show the same anatomy. truncated,
        shaped as lr, is hr's k-space truncation; only networks with a skip look at it.
        Returns the losses by name, "total" among them, and the images and features that the
        discriminators judge, detached.
        """
        g, d, w = self.generators, self.discriminators, self.weights
        features_s = g["extractor"](hr, truncated)
        features_t = g["lr_encoder"](lr)
        hr_same = g["sr_decoder"](features_s)
        lr_same = g["lr_decoder"](features_t)
        degraded = g["lr_decoder"](features_s)
        features_cycle = g["lr_encoder"](degraded)
        hr_cycle = g["sr_decoder"](features_cycle)

        def restored(fake: Tensor, real: Tensor, score: Tensor) -> Tensor:
            similar = losses.l1(fake, real) + w.ssim * losses.ssim(fake, real)
            return similar + w.adversarial * losses.adversarial(score)

        terms = {
            "image_cycle": restored(hr_cycle, hr, d["hr"](hr_cycle)),
            "feature_cycle": losses.l1(features_cycle, features_s),
            "hr_consistency": restored(hr_same, hr, d["hr"](hr_same)),
            "lr_consistency": restored(lr_same, lr, d["lr"](lr_same)),
            # D(Xt) of eq. 8 depends on no generator: it has no gradient here and is left out.
            "image_adaptation": losses.confusion(d["lr"](degraded)),
            "feature_adaptation": losses.confusion(d["features"](features_t), d["features"](features_s)),
        }
        terms["total"] = sum((getattr(w, name) * term for name, term in terms.items()), hr.new_zeros(()))
        judged = {
            "degraded": degraded,
            "features_s": features_s,
            "features_t": features_t,
            "hr_same": hr_same,
            "hr_cycle": hr_cycle,
        }
        return terms, {name: value.detach() for name, value in judged.items()}

    def discriminator_losses(self, hr: Tensor, lr: Tensor, judged: dict[str, Tensor]) -> dict[str, Tensor]:
        """The discriminators' losses on what the generators last made, "total" among them.

        Real and fake are scored in separate batches, so that batch normalisation sees one kind a time.
        """
        d = self.discriminators
        real_hr = d["hr"](hr)
        terms = {
            "d_lr": losses.discrimination(d["lr"](lr), d["lr"](judged["degraded"])),
            "d_features": losses.discrimination(
                d["features"](judged["features_s"]), d["features"](judged["features_t"])
            ),
            "d_hr": 0.5
            * (
                losses.discrimination(real_hr, d["hr"](judged["hr_same"]))
                + losses.discrimination(real_hr, d["hr"](judged["hr_cycle"]))
            ),
        }
        terms["total"] = sum(terms.values(), hr.new_zeros(()))
        return terms
