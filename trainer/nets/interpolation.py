"""Fixed changes of grid inside a network call, on the FFT grid: HR voxel p lies at LR coordinate p/s.

Slabs are (N, slices, rows, columns); an LR slab has SLAB slices, the HR slab over it SLAB·s_slice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...runtime.scan.interpolation import keys_cubic

SLAB = 3  # LR slices a network call sees, as in TS-RCAN


class Interpolation(nn.Module):
    """Fixed interpolation of an LR slab onto the HR grid.

    In plane: Keys' cubic convolution (a = -1/2); through plane: linear, repeated beyond the last slice.
    Input (N, SLAB, H, W), output (N, SLAB·s_slice, s·H, s·W). One convolution and a pixel shuffle.
    """

    def __init__(self, scale: tuple[int, int, int]) -> None:
        super().__init__()
        s, through = scale[0], scale[2]
        taps = np.arange(-2, 3, dtype=np.float32)
        rows = torch.from_numpy(np.stack([keys_cubic(taps - p / s) for p in range(s)]))  # (s, 5)
        plane = torch.einsum("ai,bj->abij", rows, rows)  # phase, phase, kernel, kernel
        mix = torch.zeros(SLAB * through, SLAB)
        for p in range(SLAB * through):
            low = min(p // through, SLAB - 1)
            high, t = min(low + 1, SLAB - 1), p % through / through
            mix[p, low] += 1 - t
            mix[p, high] += t
        weight = torch.einsum("oc,abij->oabcij", mix, plane).reshape(-1, SLAB, 5, 5)
        self.weight: Tensor
        self.register_buffer("weight", weight, persistent=False)
        self.shuffle = nn.PixelShuffle(s)

    def forward(self, x: Tensor) -> Tensor:
        x = _held(x, 2)
        return self.shuffle(F.conv2d(x, self.weight.to(x.dtype)))


class Decimation(nn.Module):
    """A local, differentiable version of k-space truncation: brings an HR slab to the LR grid.

    A Lanczos-3 low-pass with the truncation's cut-off, sampled at HR voxels s·i; edges are repeated. Unlike
    a slab's own FFT it does not wrap around. Input (N, SLAB·s_slice, s·H, s·W), output (N, SLAB, H, W).
    """

    def __init__(self, scale: tuple[int, int, int]) -> None:
        super().__init__()
        self.stride, through = scale[0], scale[2]
        reach = 3 * through - 1
        mix = torch.zeros(SLAB, SLAB * through)
        for i in range(SLAB):
            for tap, weight in zip(range(-reach, reach + 1), _lanczos(through), strict=True):
                mix[i, min(max(through * i + tap, 0), SLAB * through - 1)] += weight
        self.mix: Tensor
        self.row: Tensor
        self.register_buffer("mix", mix[:, :, None, None], persistent=False)
        self.register_buffer("row", _lanczos(self.stride).expand(SLAB, 1, 1, -1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        s, pad = self.stride, 3 * self.stride - 1
        x = F.conv2d(x, self.mix.to(x.dtype))
        x = _held(x, pad)
        row = self.row.to(x.dtype)
        x = F.conv2d(x, row, stride=(1, s), groups=SLAB)
        return F.conv2d(x, row.transpose(2, 3), stride=(s, 1), groups=SLAB)


def _held_eagerly(x: Tensor, width: int) -> Tensor:
    """Rows and columns repeated beyond the edges."""
    return F.pad(x, (width,) * 4, mode="replicate")


# PyTorch 2.13 cannot compile its gradient for channels_last images.
_held: Any = torch.compiler.disable(_held_eagerly)


def _lanczos(s: int) -> Tensor:
    """The 6s − 1 taps of a low-pass at 1/s of the band, of sum 1; one tap of 1 among zeros for s = 1."""
    t = torch.arange(-3 * s + 1, 3 * s, dtype=torch.float64) / s
    taps = torch.sinc(t) * torch.sinc(t / 3)
    return (taps / taps.sum()).float()
