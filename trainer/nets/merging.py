"""The deployed network computes less: convolutions with nothing between them are merged into one.

The SR decoder ends in a convolution to s² sub-pixels a channel, a pixel shuffle, and a convolution on the HR
grid. All three are linear, so together they are one 5×5 convolution on the LR grid to the sub-pixels of the
image itself: 5 % less arithmetic in the paper's network, and without its largest tensors. Training keeps them
apart, since their weights are the ones that are learned; the deployed network is the same function.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .generators import SuperResolution


def merged(network: SuperResolution) -> SuperResolution:
    """A copy of the network with its last convolutions merged; its output is the same to rounding."""
    network = copy.deepcopy(network)
    decoder = network.decoder
    *before, last, shuffle = decoder.upsampler or (None, None)
    if isinstance(last, nn.Conv2d) and isinstance(shuffle, nn.PixelShuffle):
        assert isinstance(decoder.tail, nn.Conv2d)
        decoder.upsampler = nn.Sequential(*before)
        decoder.tail = MergedTail(last, decoder.tail, shuffle.upscale_factor)
    return network


class MergedTail(nn.Module):
    """A 3×3 convolution, a pixel shuffle by s, and a 3×3 convolution, as one 5×5 convolution and a shuffle.

    Input (N, C, H, W), output (N, C', s·H, s·W). Beyond the window the second convolution sees zeros, but the
    merged one sees what the first would yield there; that differs by a rim of one voxel, which is subtracted.
    """

    def __init__(self, first: nn.Conv2d, second: nn.Conv2d, s: int) -> None:
        super().__init__()
        a, b = _on_blocks(second, s), first.weight.detach().double()
        bias = b.new_zeros(len(b)) if first.bias is None else first.bias.detach().double()
        last = a.new_zeros(len(second.weight)) if second.bias is None else second.bias.detach().double()
        # A transposed convolution of the kernels is their product: b (C·s², C, 3, 3), a (C'·s², C·s², 3, 3).
        kernel = F.conv_transpose2d(b.transpose(0, 1), a.transpose(0, 1)).transpose(0, 1)
        constant = last.repeat_interleave(s**2)
        self.whole = _conv(kernel, constant + torch.einsum("oiuv,i->o", a, bias), (2, 2))
        # What the first convolution would yield one voxel beyond an edge, where it sees the window with the
        # opposite row (or column) of its weights, and what the second makes of it in the image.
        self.above = nn.Sequential(_conv(b[:, :, 2:], bias, (0, 2)), _conv(a[:, :, :1], None, (0, 0)))
        self.below = nn.Sequential(_conv(b[:, :, :1], bias, (0, 2)), _conv(a[:, :, 2:], None, (0, 0)))
        self.left = nn.Sequential(_conv(b[..., 2:], bias, (1, 0)), _conv(a[..., :1], None, (1, 0)))
        self.right = nn.Sequential(_conv(b[..., :1], bias, (1, 0)), _conv(a[..., 2:], None, (1, 0)))
        self.shuffle = nn.PixelShuffle(s)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        y = self.whole(x)
        y = y - F.pad(self.above(x[:, :, 0].unsqueeze(2)), (0, 0, 0, h - 1))
        y = y - F.pad(self.below(x[:, :, -1].unsqueeze(2)), (0, 0, h - 1, 0))
        y = y - F.pad(self.left(x[..., 0].unsqueeze(3)), (0, w - 1))
        y = y - F.pad(self.right(x[..., -1].unsqueeze(3)), (w - 1, 0))
        return self.shuffle(y)


def _on_blocks(conv: nn.Conv2d, s: int) -> Tensor:
    """The kernel (C'·s², C·s², 3, 3), float64, by which a convolution on the HR grid acts on pixel blocks.

    HR voxel s·i + p of the image sees voxel s·i + p + q, which is sub-pixel (p + q) mod s of the block at
    i + (p + q) div s. Sub-pixels are ordered as by PixelShuffle.
    """
    outputs, inputs = conv.weight.shape[:2]
    weight = conv.weight.detach().double()
    blocks = weight.new_zeros(outputs, s, s, inputs, s, s, 3, 3)
    steps = [(p, q, *divmod(p + q, s)) for p in range(s) for q in (-1, 0, 1)]
    for row, up, block_row, sub_row in steps:
        for column, left, block_column, sub_column in steps:
            tap = weight[:, :, 1 + up, 1 + left]
            blocks[:, row, column, :, sub_row, sub_column, 1 + block_row, 1 + block_column] += tap
    return blocks.reshape(outputs * s**2, inputs * s**2, 3, 3)


def _conv(weight: Tensor, bias: Tensor | None, padding: tuple[int, int]) -> nn.Conv2d:
    outputs, inputs, rows, columns = weight.shape
    layer = nn.Conv2d(inputs, outputs, (rows, columns), padding=padding, bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None and layer.bias is not None:
            layer.bias.copy_(bias)
    return layer.eval()
