"""CycleGAN (Zhu et al., ICCV 2017) between LR and HR slabs.

Least-squares adversaries both ways and 10·L1 of both cycles. There is no identity loss, because the two
domains differ in size. Discriminators judge a mixture of new fakes and the last 50.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import distributed
from ..nets import generators, losses
from ..nets.discriminators import Discriminator
from ..nets.generators import Architecture, SuperResolution
from ..nets.interpolation import Decimation
from .method import Batch, Made, Method, Terms, Turn, Weights, detached, together, total

CYCLE = 10.0
POOL = 50


class CycleGan(Method):
    """Two generators, `up` and `down`, and two discriminators. patch: rows (= columns) of an LR patch."""

    def __init__(self, arch: Architecture, patch: int, weights: Weights) -> None:
        super().__init__(arch, patch, weights)
        slab_lr, slab_hr = arch.slab
        size = patch * arch.scale[0]
        self.up = generators.super_resolution(arch)
        self.down = generators.degrader(arch)
        self.generators = nn.ModuleDict({"up": self.up, "down": self.down})
        self.discriminators = nn.ModuleDict(
            {
                "lr": Discriminator(slab_lr, arch.discriminator, patch),
                "hr": Discriminator(slab_hr, arch.discriminator, size),
            }
        )
        self.decimation = Decimation(arch.scale)
        self.pools = nn.ModuleDict({"lr": Pool((slab_lr, patch, patch)), "hr": Pool((slab_hr, size, size))})

    def turns(self, stage: int = 0) -> tuple[Turn, ...]:
        return (
            Turn(self.generators, self.generator_losses),
            Turn(self.discriminators, self.discriminator_losses),
        )

    def deployed(self) -> SuperResolution:
        return self.up

    def degraded(self, hr: Tensor, coarse: Tensor) -> Tensor:
        return self.down(hr, coarse)

    def degrade(self, hr: Tensor) -> Tensor:
        """G_dn: real and restored HR slabs are anchored by the same local low-pass."""
        return self.down(hr, self.decimation(hr))

    def generator_losses(self, batch: Batch, made: Made) -> tuple[Terms, Made]:
        fake_lr = self.degrade(batch.hr)
        fake_hr, hr_cycle = together(self.up, batch.lr, fake_lr)
        terms = {
            "lr_cycle": losses.l1(self.degrade(fake_hr), batch.lr),
            "hr_cycle": losses.l1(hr_cycle, batch.hr),
            "lr_adversarial": losses.adversarial(self.discriminators["lr"](fake_lr)),
            "hr_adversarial": losses.adversarial(self.discriminators["hr"](fake_hr)),
        }
        weights = {"lr_cycle": CYCLE, "hr_cycle": CYCLE, "lr_adversarial": 1.0, "hr_adversarial": 1.0}
        return total(terms, weights), detached(lr=fake_lr, hr=fake_hr)

    def discriminator_losses(self, batch: Batch, made: Made) -> tuple[Terms, Made]:
        terms = {}
        for salt, (name, real) in enumerate((("lr", batch.lr), ("hr", batch.hr))):
            fake = self.pools[name](made[name], batch.seed + salt)
            discriminator = self.discriminators[name]
            terms[f"d_{name}"] = losses.discrimination(discriminator(real), discriminator(fake))
        return total(terms, dict.fromkeys(terms, 1.0)), {}


class Pool(nn.Module):
    """The last fakes (Shrivastava et al., CVPR 2017): each new one is returned or, once the pool is full,
    half of the time an old one that it replaces.

    All processes hold the same pool of the global batches. It is part of the state that a resumed run
    restores.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.images: Tensor
        self.filled: Tensor
        self.register_buffer("images", torch.zeros(POOL, *shape))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def forward(self, fakes: Tensor, seed: int) -> Tensor:
        """fakes (N, …) of this process; returns as many to judge."""
        random = torch.Generator().manual_seed(seed)
        fakes = distributed.gather(fakes).to(self.images.dtype)
        judged = fakes.clone()
        filled = int(self.filled)
        for i, fake in enumerate(fakes):
            if filled < POOL:
                self.images[filled] = fake
                filled += 1
            elif torch.rand((), generator=random) < 0.5:
                place = int(torch.randint(POOL, (), generator=random))
                judged[i] = self.images[place]
                self.images[place] = fake
        self.filled.fill_(filled)
        return judged[distributed.share(len(fakes))]
