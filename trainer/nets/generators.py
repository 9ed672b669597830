"""The generators of UDEAN (Fig. 3): encoders and TS-RCAN decoders.

All are 2-D networks over thin slabs: the channels of an image are consecutive slices. An LR slab has
`slab` slices; the HR slab over it has `slab * scale[2]`. Feature maps lie on the LR grid.
Spatial scale is the same along rows and columns.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from ...runtime.errors import RunError
from .interpolation import SLAB, Interpolation

SMALL = 1e-12  # keeps an empty window's mean from being divided by 0


class ArchitectureError(RunError):
    """The requested networks cannot be built."""


@dataclass(frozen=True)
class Architecture:
    """Size and shape of the networks.

    channels, groups, blocks: of the decoders: width, residual groups, residual blocks per group.
    discriminator: width of the discriminators' first convolution. judges: what UDEAN's discriminators see:
        "slab": a whole training patch, as published; "patch": neighbourhoods of 13 pixels, in images without
        the low frequencies. noise: UDEAN's degradation ends with noise of a learned level.
    scale: (row, column, slice) factors; row and column are equal, 1 to 4; slice 1 to 4.
    skip: "none": as published. "cubic": the features' first slab channels carry an image on the LR grid,
        to which encoders add what they learn and whose fixed interpolation decoders add to what they
        learn. It is the LR scan itself or, for a source scan, its k-space truncation: the degradation
        that the field predefines, from which the networks learn to depart.
    homogeneous: convolutions without biases, and gates that see a mean's direction, not its size, so that a
        generator maps c·x to c times what it maps x to, for every c > 0: the unit of a scan, which hot voxels
        and the share of air change, then has no effect (Mohan et al., ICLR 2020).
    """

    channels: int = 64
    groups: int = 5
    blocks: int = 5
    discriminator: int = 64
    judges: Literal["slab", "patch"] = "slab"
    noise: bool = False
    scale: tuple[int, int, int] = (2, 2, 2)
    skip: Literal["none", "cubic"] = "none"
    homogeneous: bool = False

    def __post_init__(self) -> None:
        rows, columns, slices = self.scale
        if rows != columns or not 1 <= rows <= 4 or not 1 <= slices <= 4 or rows == slices == 1:
            raise ArchitectureError(
                f"Scale {'x'.join(map(str, self.scale))} is not supported: rows and columns take the same "
                "factor, 1 to 4, and slices 1 to 4, not all of them 1."
            )
        if min(self.groups, self.blocks, self.discriminator) < 1 or self.channels < 2 * SLAB:
            raise ArchitectureError("Networks need at least 6 channels, 1 group, 1 block and 1 filter.")

    @property
    def slab(self) -> tuple[int, int]:
        """(LR slices, HR slices) of one call."""
        return SLAB, SLAB * self.scale[2]


def conv(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1)


class ChannelAttention(nn.Module):
    """Squeeze and excitation: x (N, C, H, W) times a gate (N, C, 1, 1) computed from its mean.

    directed: from the mean over its root mean square, see `Architecture.homogeneous`.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.directed = False
        inner = max(4, channels // reduction)
        self.gate = nn.Sequential(
            nn.Conv2d(channels, inner, 1), nn.ReLU(), nn.Conv2d(inner, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        # A float32 island: the sum of a whole window overflows half precision.
        if torch.compiler.is_exporting():  # to ONNX, in which a mean's dtype applies to its result only
            mean = x.float().mean((2, 3), keepdim=True)
        else:  # sums in float32 without a float32 copy of the map
            mean = x.mean((2, 3), keepdim=True, dtype=torch.float32)
        if self.directed:
            mean = mean * torch.rsqrt((mean * mean).mean(1, keepdim=True) + SMALL)
        return x * self.gate(mean.to(x.dtype))


class ResidualBlock(nn.Module):
    """RCAB: conv, ReLU, conv, channel attention, skip; no normalisation."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(channels, channels), nn.ReLU(), conv(channels, channels), ChannelAttention(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class ResidualGroup(nn.Module):
    """Residual blocks, a conv, and a skip over them."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*(ResidualBlock(channels) for _ in range(blocks)), conv(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class Encoder(nn.Module):
    """Six 3×3 convolutions with LeakyReLU(0.2) between, none after the last.

    slices: channels of the input slab. stride: 1 for the LR encoder; the in-plane scale factor for the
    down-sampling feature extractor, taken by the third convolution, whose outputs centre on HR voxels
    0, s, 2s, …: the FFT grid.
    Input (N, slices, s·H, s·W), output (N, channels, H, W).
    """

    def __init__(self, slices: int, channels: int, stride: int = 1, anchored: bool = False) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(6):
            layers += [conv(channels if i else slices, channels, stride if i == 2 else 1), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers[:-1])
        self.anchored = anchored
        if anchored:  # start with the plain image in the anchored channels
            last = self.body[-1]
            assert isinstance(last, nn.Conv2d) and last.bias is not None
            nn.init.zeros_(last.weight[:SLAB])
            nn.init.zeros_(last.bias[:SLAB])

    def forward(self, x: Tensor, lr: Tensor | None = None) -> Tensor:
        """lr: the image on the LR grid that anchors the features; x itself by default."""
        features = self.body(x)
        if not self.anchored:
            return features
        return torch.cat((features[:, :SLAB] + (x if lr is None else lr), features[:, SLAB:]), 1)


class Decoder(nn.Module):
    """TS-RCAN: conv, residual groups, conv, long skip, optional upsampler, conv.

    factor: in-plane magnification, 1 for the LR decoder. slices: channels of the output slab.
    Input (N, channels, H, W), output (N, slices, factor·H, factor·W).
    """

    def __init__(self, arch: Architecture, slices: int, factor: int, skip: nn.Module | None = None) -> None:
        super().__init__()
        c = arch.channels
        self.head = conv(c, c)
        self.body = nn.Sequential(*(ResidualGroup(c, arch.blocks) for _ in range(arch.groups)), conv(c, c))
        self.upsampler = upsampler(c, factor)
        tail = conv(c, slices)
        self.tail: nn.Module = tail
        self.skip = skip
        if skip is not None:  # start as the plain interpolation
            assert tail.bias is not None
            nn.init.zeros_(tail.weight)
            nn.init.zeros_(tail.bias)

    def forward(self, features: Tensor) -> Tensor:
        x = self.head(features)
        image = self.tail(self.upsampler(x + self.body(x)))
        return image if self.skip is None else image + self.skip(features[:, :SLAB])


Part = TypeVar("Part", Encoder, Decoder)


def upsampler(channels: int, factor: int) -> nn.Sequential:
    """Convolutions and pixel shuffles that magnify by 1, 2, 3 or 4 (twice 2).

    ICNR initialisation (arXiv 1707.02937): all sub-pixels of a new voxel start equal, so there is no
    checkerboard.
    """
    steps = {1: (), 2: (2,), 3: (3,), 4: (2, 2)}[factor]
    layers: list[nn.Module] = []
    for step in steps:
        layer = conv(channels, channels * step**2)
        with torch.no_grad():
            layer.weight.copy_(layer.weight[:: step**2].repeat_interleave(step**2, 0))
            assert layer.bias is not None
            layer.bias.copy_(layer.bias[:: step**2].repeat_interleave(step**2, 0))
        layers += [layer, nn.PixelShuffle(step)]
    return nn.Sequential(*layers)


def lr_encoder(arch: Architecture) -> Encoder:
    return _finished(Encoder(arch.slab[0], arch.channels, anchored=arch.skip == "cubic"), arch)


def feature_extractor(arch: Architecture) -> Encoder:
    """The down-sampling feature extractor: HR slab to features on the LR grid."""
    encoder = Encoder(arch.slab[1], arch.channels, stride=arch.scale[0], anchored=arch.skip == "cubic")
    return _finished(encoder, arch)


def lr_decoder(arch: Architecture) -> Decoder:
    return _finished(Decoder(arch, arch.slab[0], 1, nn.Identity() if arch.skip == "cubic" else None), arch)


def sr_decoder(arch: Architecture) -> Decoder:
    skip = Interpolation(arch.scale) if arch.skip == "cubic" else None
    return _finished(Decoder(arch, arch.slab[1], arch.scale[0], skip), arch)


def _finished(part: Part, arch: Architecture) -> Part:
    """An encoder or decoder with the biases and gates that the architecture asks for."""
    if arch.homogeneous:
        gates = [module for module in part.modules() if isinstance(module, ChannelAttention)]
        inside = {layer for gate in gates for layer in gate.modules()}
        for gate in gates:
            gate.directed = True
        for layer in part.modules():
            if isinstance(layer, nn.Conv2d) and layer not in inside:
                layer.register_parameter("bias", None)
    return part


class Mapping(nn.Module):
    """An encoder and a decoder: from a slab, and the LR image that anchors it, to a slab; see `Encoder`."""

    def __init__(self, encoder: Encoder, decoder: Decoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder

    def forward(self, x: Tensor, lr: Tensor | None = None) -> Tensor:
        return self.decoder(self.encoder(x, lr))


class SuperResolution(nn.Module):
    """The network for inference: LR encoder and SR decoder, LR slab (N, 3, H, W) to SR slab.

    cleaner: a network from LR slab to LR slab that precedes them, only in PseudoSR.
    """

    def __init__(self, encoder: Encoder, decoder: Decoder, cleaner: Mapping | None = None) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.cleaner = cleaner

    def forward(self, lr: Tensor) -> Tensor:
        if self.cleaner is not None:
            lr = self.cleaner(lr)
        return self.decoder(self.encoder(lr))


def super_resolution(arch: Architecture, cleaned: bool = False) -> SuperResolution:
    return SuperResolution(lr_encoder(arch), sr_decoder(arch), lr_mapping(arch) if cleaned else None)


def degrader(arch: Architecture) -> Mapping:
    """HR slab to LR slab: the down-sampling feature extractor and the LR decoder."""
    return Mapping(feature_extractor(arch), lr_decoder(arch))


def lr_mapping(arch: Architecture, extra: int = 0) -> Mapping:
    """LR slab (and `extra` channels after it) to LR slab."""
    encoder = Encoder(arch.slab[0] + extra, arch.channels, anchored=arch.skip == "cubic")
    return Mapping(_finished(encoder, arch), lr_decoder(arch))


def parameter_count(*modules: nn.Module) -> int:
    """Number of learned values."""
    return sum(p.numel() for module in modules for p in module.parameters())


def flop_per_voxel(network: nn.Module, slab: int) -> int:
    """Operations of a network (a multiplication and an addition are two) for an LR voxel of a slab's plane.

    PyTorch counts those of convolutions and products, here for planes so large that rims do not matter.
    """
    from torch.utils.flop_counter import FlopCounterMode  # takes half a second

    side = 512
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(network).to("meta")(torch.zeros(1, slab, side, side, device="meta"))
    return round(counter.get_total_flops() / side**2)
