"""The discriminators: UDEAN's VGG (Fig. 3), and DASR's, which judges patches."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import distributed
from .generators import conv


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation over the samples of all processes (equally many each)."""

    def forward(self, input: Tensor) -> Tensor:
        if distributed.count() == 1 or not self.training:
            return super().forward(input)
        x = input.float()
        mean = distributed.mean(x.mean((0, 2, 3), keepdim=True))
        variance = distributed.mean(((x - mean) ** 2).mean((0, 2, 3), keepdim=True))
        with torch.no_grad():
            n = x.numel() // x.shape[1] * distributed.count()
            assert self.running_mean is not None and self.running_var is not None
            self.running_mean.lerp_(mean.flatten(), self.momentum or 0.1)
            self.running_var.lerp_(variance.flatten() * (n / (n - 1)), self.momentum or 0.1)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        scale, shift = self.weight[:, None, None], self.bias[:, None, None]
        return ((x - mean) * torch.rsqrt(variance + self.eps) * scale + shift).to(input.dtype)


def vgg(
    inputs: int, width: int, factors: tuple[int, ...], normalised: bool = True
) -> tuple[nn.Sequential, int]:
    """3×3 convolutions to width·factor channels, alternating strides 1 and 2, and the channels of the last.

    Batch normalisation, if any, except on the first, LeakyReLU(0.2).
    """
    layers: list[nn.Module] = []
    channels = inputs
    for i, factor in enumerate(factors):
        layers.append(conv(channels, width * factor, 1 + i % 2))
        channels = width * factor
        if i and normalised:
            layers.append(BatchNorm(channels))
        layers.append(nn.LeakyReLU(0.2))
    return nn.Sequential(*layers), channels


class Discriminator(nn.Module):
    """VGG: ten 3×3 convolutions, alternating strides 1 and 2, linear to 100, linear to 1; no sigmoid.

    Batch normalisation except on the first, LeakyReLU(0.2). size: rows (= columns) of its input.
    Input (N, inputs, size, size), output (N,).
    """

    def __init__(self, inputs: int, width: int, size: int) -> None:
        super().__init__()
        self.features, channels = vgg(inputs, width, (1, 1, 2, 2, 4, 4, 8, 8, 8, 8))
        # The last convolution then sees one voxel, and in bfloat16 oneDNN leaves the gradient of kernel taps
        # that only meet padding uninitialised (seen with torch 2.13).
        self.float32 = size <= 2**4
        side = math.ceil(size / 2**5)
        self.score = nn.Sequential(nn.Linear(channels * side**2, 100), nn.LeakyReLU(0.2), nn.Linear(100, 1))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(
            x.device.type, enabled=torch.is_autocast_enabled(x.device.type) and not self.float32
        ):
            return self.score(self.features(x).flatten(1)).squeeze(1)


class PatchDiscriminator(nn.Module):
    """The first four convolutions of `Discriminator` and a 1×1 one: a score for each patch.

    Its receptive field is 13 pixels, every 4. Input (N, inputs, H, W), output (N, 1, H/4, W/4).
    normalised: by batch, which hides a difference in contrast between real and fake batches.
    """

    FIELD, STRIDE = 13, 4

    def __init__(self, inputs: int, width: int, normalised: bool = True) -> None:
        super().__init__()
        self.features, channels = vgg(inputs, width, (1, 1, 2, 2), normalised)
        self.score = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.score(self.features(x))


class HighPass(nn.Module):
    """The detail that a Gaussian of σ 1.5 pixels removes, times 5: sharpness and noise, not content.

    Any (N, channels, H, W) to the same shape; edges are repeated.
    """

    SIGMA, REACH, GAIN = 1.5, 4, 5.0

    def __init__(self) -> None:
        super().__init__()
        t = torch.arange(-self.REACH, self.REACH + 1.0)
        line = torch.exp(-((t / self.SIGMA) ** 2) / 2)
        self.line: Tensor
        self.register_buffer("line", line / line.sum(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        channels = x.shape[1]
        row = self.line.to(x.dtype).expand(channels, 1, 1, -1)
        smooth = F.pad(x, (self.REACH,) * 4, mode="replicate")
        smooth = F.conv2d(F.conv2d(smooth, row, groups=channels), row.transpose(2, 3), groups=channels)
        return self.GAIN * (x - smooth)
