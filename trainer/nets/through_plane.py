"""The network for thick slices: small, 2-D, given each voxel's distance from a slice and the slice's
width."""

from __future__ import annotations

import torch
from torch import nn

from ...runtime.pipeline.through_plane import CHANNELS

WIDTH, BLOCKS = 40, 6  # 0.2 million parameters; wider ones gained less than longer training did


class ThroughPlane(nn.Module):
    """Planes (N, 5, H, W), H across the slices, to the detail of the middle one, (N, 1, H, W); H, W even.

    Channels: three neighbouring planes of the interpolated volume, distance to the nearest slice's centre,
    deviation of the slice profile (`runtime.pipeline.through_plane`). It works at half the resolution, as
    FFDNet does (Zhang et al., IEEE TIP 27, 2018): interpolated planes hold little detail that this would
    lose.
    """

    def __init__(self, width: int = WIDTH, blocks: int = BLOCKS) -> None:
        super().__init__()
        self.head = nn.Conv2d(CHANNELS, width, 6, stride=2, padding=2)
        self.body = nn.Sequential(*(Residual(width) for _ in range(blocks)))
        self.middle = nn.Conv2d(width, width, 3, padding=1)
        self.tail = nn.Conv2d(width, 4, 3, padding=1)
        nn.init.zeros_(self.tail.weight)  # begins as plain interpolation
        if self.tail.bias is not None:
            nn.init.zeros_(self.tail.bias)

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        features = self.head(planes)
        features = features + self.middle(self.body(features))
        return nn.functional.pixel_shuffle(self.tail(features), 2)


class Residual(nn.Module):
    """Two convolutions and a skip."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        nn.init.normal_(self.second.weight, std=0.01)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.second(torch.relu(self.first(features)))
