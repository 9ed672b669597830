"""The losses of the paper, eqs 1-3, 8 and 9. Images are (N, slices, H, W) in the range 0..1."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Eq. 1: mean absolute difference."""
    return F.l1_loss(x.float(), y.float())


def similarity(x: Tensor, y: Tensor, epsilon: float = 0.0, rim: float = 1.0) -> Tensor:
    """Mean of √(d² + ε²) − ε over the differences d of two slabs (Charbonnier, ICIP 1994); L1 for ε 0.

    rim: weight of a slab's first and last slice, which the blending of slabs almost discards.
    """
    d = x.float() - y.float()
    each = (d * d + epsilon**2).sqrt() - epsilon if epsilon else d.abs()
    if rim == 1 or x.shape[1] < 3:
        return each.mean()
    slices = each.mean((0, 2, 3))
    inner = slices[1:-1].sum()
    return (inner + rim * (slices[0] + slices[-1])) / (len(slices) - 2 + 2 * rim)


def ssim_index(x: Tensor, y: Tensor, data_range: float = 1.0) -> Tensor:
    """Structural similarity of each image, (N,): 2-D per slice, 11×11 Gaussian window of σ 1.5.

    Wang et al. 2004 with K1 0.01, K2 0.03, population covariance, averaged over the pixels whose window
    lies inside the image: scikit-image's `structural_similarity(gaussian_weights=True, sigma=1.5,
    use_sample_covariance=False)`. Computed in float32, under autocast too: a variance is a small difference
    of large moments, which half precision loses.
    """
    with torch.autocast(x.device.type, enabled=False):
        return _ssim_index(x, y, data_range)


def _ssim_index(x: Tensor, y: Tensor, data_range: float) -> Tensor:
    x, y = x.float(), y.float()
    slices = x.shape[1]
    t = torch.arange(-5, 6, device=x.device, dtype=torch.float32)
    window = torch.exp(-(t**2) / (2 * 1.5**2))
    row = (window / window.sum()).expand(slices * 5, 1, 1, -1)
    moments = torch.cat((x, y, x * x, y * y, x * y), 1)
    moments = F.conv2d(F.conv2d(moments, row, groups=slices * 5), row.transpose(2, 3), groups=slices * 5)
    mx, my, xx, yy, xy = moments.chunk(5, 1)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    numerator = (2 * mx * my + c1) * (2 * (xy - mx * my) + c2)
    denominator = (mx**2 + my**2 + c1) * (xx - mx**2 + yy - my**2 + c2)
    return (numerator / denominator).mean((1, 2, 3))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Eq. 2: mean of |1 − SSIM²|."""
    return (1 - ssim_index(x, y) ** 2).abs().mean()


def adversarial(fake_score: Tensor) -> Tensor:
    """Eq. 3, for the generator: least squares toward 1 (the printed root of a square is read as one)."""
    return ((fake_score.float() - 1) ** 2).mean()


def discrimination(real_score: Tensor, fake_score: Tensor) -> Tensor:
    """For the discriminator: least squares, real toward 1 and fake toward 0 (Mao et al. 2017, eq. 2)."""
    return 0.5 * (((real_score.float() - 1) ** 2).mean() + (fake_score.float() ** 2).mean())


def confusion(*scores: Tensor) -> Tensor:
    """Eqs 8 and 9: both domains toward the score 0.5.

    Squared distance, as in USR-DA (ICCV 2021), the origin of these equations; with the absolute distance, a
    discriminator at rest would be pulled as strongly as a confident one.
    """
    return sum(
        (((s.float() - 0.5) ** 2).mean() for s in scores), start=scores[0].new_zeros((), dtype=torch.float32)
    )
