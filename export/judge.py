"""Judge whether an adapted model is better than the embedded one, without the truth of the user's scans.

A head that the training has not seen is degraded as estimated from the user's scans; its truth is known. For
the user's own scan the criterion is how well the SR volume, seen by the estimated scanner, explains it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..runtime.models.card import Transfer
from ..runtime.scan.interpolation import acquired_again
from ..runtime.scan.voxels import Restore, Volume
from ..runtime.trust.lesions import contrast_kept, put_lesions
from ..trainer.evaluation.tissue import PEAK, in_tissue, tissue_mask
from ..trainer.simulation.kspace import Acquisition, acquire

BLOCK = 96  # HR voxels along each side of the block that is judged, in a head's middle
WORSE = 0.05  # smallest differences that count: dB in tissue, share of a lesion's contrast
UNEXPLAINED = 1.1  # multiple of the noise that may stay unexplained of a scan


@dataclass(frozen=True)
class ModelFigures:
    """Figures of one model. psnr: dB in tissue of the head. lesions: share of contrast left, by radius in HR
    voxels, "1.5". residual: RMS, in the tissue of the user's scan, of what the SR volume does not explain;
    noise: of that scan; both as shares of its 99.9th percentile."""

    psnr: float
    lesions: dict[str, float]
    residual: float
    noise: float


def model_figures(
    restore: Restore, alone: Restore, hr: Volume, acquisition: Acquisition, scan: Volume, lines: Transfer
) -> ModelFigures:
    """Measure a model. restore: LR to SR volume as the runtime does it; alone: by the network only, without
    the measured band. hr: a head. scan: the user's scan. lines: the estimated point spread along (row,
    column, slice)."""
    hr = hr * np.float32(1000 / np.percentile(hr, PEAK))
    factors = acquisition.scale
    box = tuple(slice((n - b) // 2 // 4 * 4, (n - b) // 2 // 4 * 4 + b) for n, b in _middle(hr))
    low = tuple(slice(p.start // f, p.stop // f) for p, f in zip(box, factors, strict=True))
    truth = hr[box]
    added, found = put_lesions(truth)
    ill = hr.copy()
    ill[box] = truth + added
    well = restore(acquire(hr, acquisition)[low])
    sick = restore(acquire(np.maximum(ill, 0), acquisition)[low])
    kept = {radius: shares["all"] for radius, shares in contrast_kept(added, found, sick, well).items()}
    psnr = in_tissue(well, truth, mask=tissue_mask(hr)[box]).psnr_tissue or 0.0

    again = acquired_again(alone(scan), factors, "fft", lines)
    unit = float(np.percentile(scan, PEAK)) or 1.0
    tissue = tissue_mask(scan)
    residual = float(np.sqrt(np.mean((again - scan)[tissue].astype(np.float64) ** 2))) / unit
    return ModelFigures(psnr, kept, residual, acquisition.noise)


def worse(before: ModelFigures, after: ModelFigures) -> str | None:
    """Why the model must not replace the one it started from, in a sentence; None if it may."""
    if after.psnr < before.psnr + WORSE:
        return (
            f"in tissue of a head acquired as your scans seem to be, it has {after.psnr:.2f} dB, "
            f"but the model that it started from has {before.psnr:.2f} dB"
        )
    for radius, share in after.lesions.items():
        if share < before.lesions.get(radius, share) - WORSE:
            return (
                f"lesions of radius {radius} voxels keep {share:.2f} of their contrast, "
                f"but kept {before.lesions[radius]:.2f} before"
            )
    if after.residual > max(before.residual, UNEXPLAINED * after.noise) + 0.1 * after.noise:
        return (
            f"it leaves {after.residual:.2%} of your scan unexplained; the model that it started from left "
            f"{before.residual:.2%}, and the scan's noise is {after.noise:.2%}"
        )
    return None


def _middle(hr: Volume) -> list[tuple[int, int]]:
    """Start and stop of the block in the middle along each axis, in multiples of 4."""
    return [(n, min(BLOCK, n // 4 * 4)) for n in hr.shape]
