"""The interface between a method and the training loop: the slabs it draws, its turns, what it deploys.

A step is a sequence of turns. In each turn one part of the method is trained by one total loss while the rest
is frozen; later turns can use what earlier ones made.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn

from .. import distributed
from ..nets.generators import Architecture, SuperResolution

Terms: TypeAlias = dict[str, Tensor]  # losses by name, including "total", which is minimised
Made: TypeAlias = dict[str, Tensor]  # detached images and features by name
Draws = Literal["unpaired", "pairs", "target", "estimated"]


@dataclass(frozen=True)
class Batch:
    """This process's slabs of one step, in the range 0..1.

    hr: (N, HR slices, s·P, s·P) of the source group.
    coarse: (N, LR slices, P, P), the LR slab under hr: its k-space truncation or bicubic reduction, as
        `data.coarse` says; for "pairs" the LR scan of the same participant; for "estimated" the simulated
        one.
    lr: (N, LR slices, P, P) of the target group, of other anatomy; equal to coarse unless "unpaired".
    seed: of the step, equal in all processes. progress: completed share of the schedule, 0-d.
    """

    hr: Tensor
    coarse: Tensor
    lr: Tensor
    seed: int = 0
    progress: Tensor = field(default_factory=lambda: torch.zeros(()))

    def random(self, make: Callable[[tuple[int, ...], torch.Generator], Tensor], *shape: int) -> Tensor:
        """This process's part of make((global batch, *shape), generator): the same however many there are."""
        samples = len(self.lr) * distributed.count()
        made = make((samples, *shape), torch.Generator().manual_seed(self.seed))
        return made[distributed.share(samples)].to(self.lr.device)


@dataclass(frozen=True)
class Turn:
    """One optimiser's part of a step.

    losses(batch, made): the losses of `trains`, and what later turns of the step need. pace: learning
    rate over that of the schedule.
    """

    trains: nn.Module
    losses: Callable[[Batch, Made], tuple[Terms, Made]]
    pace: float = 1.0


@dataclass(frozen=True)
class Weights:
    """λ1-λ6 of eq. 10, α and β of eqs 4, 6 and 7. A DA weight of 0 is the paper's ablation.

    anchor: of the L1 distance between the learned degradation and the k-space truncation of the same scan; 0
        as published. Nothing else in the losses keeps a generator from making its LR images easy to restore,
        or from hiding HR detail in them, while its discriminator is weak. anchor_left: the share of it to
        which it falls exponentially by the end of the schedule; 1: constant.
    charbonnier: ε of the Charbonnier distance in place of L1 between HR slabs; 0: L1, as published.
    rim: weight of the slab's first and last slice in that distance, 1 as published; see `losses.similarity`.
    low_band: for blocks deeper than a slab, weight of the error inside the band that the LR scan holds,
        relative to 1 beyond it. The runtime takes that band from the scan, with noise only a part of it.
    """

    image_cycle: float = 1.0
    feature_cycle: float = 0.1
    hr_consistency: float = 1.0
    lr_consistency: float = 1.0
    image_adaptation: float = 0.1
    feature_adaptation: float = 0.1
    anchor: float = 0.0
    anchor_left: float = 1.0
    ssim: float = 0.5
    adversarial: float = 0.01
    charbonnier: float = 0.0
    rim: float = 1.0
    low_band: float = 0.25


class Method(nn.Module, ABC):
    """A method's networks and losses.

    draws: "unpaired": source and target group; "pairs": HR and LR scans of the same participants; "target":
        LR scans and their own truncation; "estimated": HR scans, and these after the degradation estimated
        from the target scans.
    stages: how many times the whole schedule is run, each with its own turns.
    weighs: the fields of `Weights` that it uses.
    """

    draws: ClassVar[Draws] = "unpaired"
    stages: ClassVar[int] = 1
    weighs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, arch: Architecture, patch: int, weights: Weights) -> None:
        super().__init__()

    @abstractmethod
    def turns(self, stage: int = 0) -> tuple[Turn, ...]:
        """The parts of a step, in order."""

    @abstractmethod
    def deployed(self) -> SuperResolution:
        """The network for inference, which shares its weights with this model."""

    def degraded(self, hr: Tensor, coarse: Tensor) -> Tensor | None:
        """HR slabs after the learned degradation; None if no degradation is learned.

        coarse: the HR slabs on the LR grid.
        """
        return None


def together(network: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
    """network(x) of each input, in one call. The result is the same, because generators do not normalise over
    a batch, but convolutions are larger and each weight's gradient is computed once."""
    return network(torch.cat(inputs)).chunk(len(inputs))


def detached(**tensors: Tensor) -> Made:
    return {name: value.detach() for name, value in tensors.items()}


def total(terms: Terms, weights: Mapping[str, float | Tensor]) -> Terms:
    """The terms and their weighted sum."""
    weighted = [weights[name] * term for name, term in terms.items()]
    return terms | {"total": torch.stack(weighted).sum()}
