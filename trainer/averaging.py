"""The exponential moving average of a network's weights: deployed if a training asks for it.

An average over the last thousand steps or so lies nearer to where the training is heading than any one step
does (Polyak and Juditsky 1992), and costs one pass over the weights per step.
"""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch

Module = TypeVar("Module", bound=torch.nn.Module)


class Average(Generic[Module]):
    """decay: share of the average that a step keeps, 0 <= decay < 1; 0: the network itself, no average.

    Early steps keep less, (1 + step) / (10 + step), so that the initial weights fade quickly.
    """

    def __init__(self, network: Module, decay: float) -> None:
        self.decay = decay
        self.trained = network
        self.network = copy.deepcopy(network).requires_grad_(False) if decay else network

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after step number `step`, counted from 0."""
        if self.decay:
            keep = min(self.decay, (1 + step) / (10 + step))
            pairs = zip(self.network.parameters(), self.trained.parameters(), strict=True)
            for mean, new in pairs:
                mean.lerp_(new, 1 - keep)
