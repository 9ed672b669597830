"""How well the deployed path of a run does on windows that it is not trained on."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from .nets import losses
from .nets.generators import SuperResolution
from .nets.interpolation import Decimation

VALIDATION = (
    "validation_psnr",
    "validation_ssim",
    "target_consistency",
    "learned_consistency",
    "spectrum_distance",
    "degradation_distance",
    "selection",
)
PANEL_ROWS = 4
BINS = 6  # of frequency, beyond the LR scan's band
Degrade = Callable[[Tensor, Tensor], Tensor | None]


@torch.no_grad()
def validate(
    network: SuperResolution,
    decimation: Decimation,
    lr: Tensor,
    hr: Tensor | None,
    fabric: Fabric,
    degrade: Degrade | None = None,
    source: Tensor | None = None,
    noise: float = 0.0,
) -> tuple[dict[str, float], Tensor]:
    """Measure the deployed path on windows, without their rims.

    With hr: PSNR (dB, over 0..1) and SSIM. The rest needs no truth: target_consistency, ‖down(SR) − LR‖/‖LR‖
    of the middle slice; learned_consistency, the same through the learned degradation (degrade, if there is
    one); spectrum_distance to HR windows of other anatomy (source); degradation_distance, likewise, from
    these windows, degraded as learned, to the LR ones; and selection, which combines them. noise: its
    standard deviation in the LR windows. Explaining them more closely than that is not a merit. Also returns
    the first SR windows, for the panel.
    """
    network.eval()
    outputs, known, learned, norm, unknowable = [], 0.0, 0.0, 1e-12, 0.0
    rim = lr.shape[-1] // 8
    inside = (slice(None), slice(1, 2), slice(rim, -rim), slice(rim, -rim))
    learns = False
    for x in lr.split(8):
        with fabric.autocast():
            sr = network(x.to(fabric.device, memory_format=torch.channels_last)).float()
            coarse = decimation(sr)
            seen = degrade(sr, coarse) if degrade else None
        learns = seen is not None
        seen = coarse if seen is None else seen.float()
        known += float(((coarse.float().cpu() - x)[inside] ** 2).sum())
        learned += float(((seen.cpu() - x)[inside] ** 2).sum())
        norm += float((x[inside] ** 2).sum())
        unknowable += noise**2 * x[inside].numel()
        outputs.append(sr.cpu())
    network.train()
    sr = torch.cat(outputs)
    values = {"target_consistency": (known / norm) ** 0.5}
    if learns:
        values["learned_consistency"] = (learned / norm) ** 0.5
    distance = 0.0
    if source is not None:
        scale = sr.shape[-1] / lr.shape[-1]
        values["spectrum_distance"] = spectrum_distance(sr, source, scale)
        made = torch.cat([_degraded(hr, decimation, fabric, degrade) for hr in source.split(8)])
        values["degradation_distance"] = spectrum_distance(made, lr)
        distance = values["spectrum_distance"] + values["degradation_distance"]
    values["selection"] = -10 * math.log10(max(learned / norm, unknowable / norm, 1e-12)) - distance
    if hr is not None:
        rim = hr.shape[-1] // 8
        inside = (slice(None), slice(None), slice(rim, -rim), slice(rim, -rim))
        error = ((sr - hr)[inside] ** 2).mean()
        values["validation_psnr"] = float(-10 * torch.log10(error))
        values["validation_ssim"] = float(losses.ssim_index(sr[inside], hr[inside]).mean())
    return values, sr[:PANEL_ROWS]


def _degraded(hr: Tensor, decimation: Decimation, fabric: Fabric, degrade: Degrade | None) -> Tensor:
    """HR windows after the learned degradation, or after truncation if none is learned."""
    with fabric.autocast():
        hr = hr.to(fabric.device, memory_format=torch.channels_last)
        coarse = decimation(hr)
        made = degrade(hr, coarse) if degrade else None
    return (coarse if made is None else made).float().cpu()


def spectrum_distance(made: Tensor, real: Tensor, scale: float = 2.0) -> float:
    """Mean difference, in dB, of the in-plane power of generated and real windows, over frequencies beyond
    1/scale of the band; both relative to their power below. (N, slices, rows, columns), any anatomy.
    """

    def spectrum(windows: Tensor) -> Tensor:
        size = windows.shape[-1]
        taper = torch.hann_window(size)
        tapered = (windows - windows.mean((2, 3), keepdim=True)) * taper * taper[:, None]
        power = (torch.fft.fft2(tapered).abs() ** 2).mean((0, 1))
        frequency = torch.fft.fftfreq(size)
        radius = (frequency**2 + frequency[:, None] ** 2).sqrt()
        edge = 0.5 / scale
        within = power[(radius > 0) & (radius < edge)].mean()
        place = ((radius - edge) / (0.5 - edge) * BINS).floor() if scale > 1 else radius * 0 - 1
        means = [power[place == n].mean() for n in range(BINS) if (place == n).any()]
        return 10 * torch.log10(torch.stack(means) / within + 1e-12) if means else torch.zeros(1)

    return float((spectrum(made) - spectrum(real)).abs().mean())


def panel(lr: Tensor, sr: Tensor, hr: Tensor | None) -> Tensor:
    """(rows, columns) of 0..1: LR, SR and, if it is known, HR and 5·|SR − HR|; one window per row."""
    rows = []
    for i in range(len(sr)):
        middle = sr.shape[1] // 2
        coarse = F.interpolate(lr[i : i + 1, 1:2], sr.shape[2:])[0, 0]
        images = [coarse, sr[i, middle]]
        if hr is not None:
            images += [hr[i, middle], 5 * (sr[i, middle] - hr[i, middle]).abs()]
        rows.append(torch.cat(images, 1))
    return torch.cat(rows).clamp(0, 1)
