"""Watching a run: validation, metrics.csv, TensorBoard, and early warnings."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from .nets import losses
from .nets.generators import SuperResolution
from .nets.interpolation import Decimation

LOG = logging.getLogger(__name__)
VALIDATION = (
    "validation_psnr",
    "validation_ssim",
    "target_consistency",
    "learned_consistency",
    "spectrum_distance",
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
) -> tuple[dict[str, float], Tensor]:
    """How the deployed path fares on windows, without their rims.

    With hr: PSNR (dB, over 0..1) and SSIM. The rest needs no truth: target_consistency, ‖down(SR) − LR‖/‖LR‖
    of the middle slice, learned_consistency, the same through the learned degradation (degrade, where it is
    one), spectrum_distance to HR windows of other anatomy (source), and selection, which weighs them up.
    Also the first SR windows, for the panel.
    """
    network.eval()
    outputs, known, learned, norm = [], 0.0, 0.0, 1e-12
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
        outputs.append(sr.cpu())
    network.train()
    sr = torch.cat(outputs)
    values = {"target_consistency": (known / norm) ** 0.5}
    if learns:
        values["learned_consistency"] = (learned / norm) ** 0.5
    distance = 0.0
    if source is not None:
        values["spectrum_distance"] = distance = spectrum_distance(sr, source, sr.shape[-1] / lr.shape[-1])
    values["selection"] = -10 * math.log10(max(learned / norm, 1e-12)) - distance
    if hr is not None:
        rim = hr.shape[-1] // 8
        inside = (slice(None), slice(None), slice(rim, -rim), slice(rim, -rim))
        error = ((sr - hr)[inside] ** 2).mean()
        values["validation_psnr"] = float(-10 * torch.log10(error))
        values["validation_ssim"] = float(losses.ssim_index(sr[inside], hr[inside]).mean())
    return values, sr[:PANEL_ROWS]


def spectrum_distance(sr: Tensor, hr: Tensor, scale: float) -> float:
    """By how many dB the in-plane power of SR windows is off that of HR windows, mean over frequencies beyond
    the LR scan's band; both relative to their power within it. (N, slices, rows, columns), of any anatomy."""

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

    return float((spectrum(sr) - spectrum(hr)).abs().mean())


def panel(lr: Tensor, sr: Tensor, hr: Tensor | None) -> Tensor:
    """(rows, columns) of 0..1: LR, SR and, where it is known, HR and 5·|SR − HR|; a window a row."""
    rows = []
    for i in range(len(sr)):
        middle = sr.shape[1] // 2
        coarse = F.interpolate(lr[i : i + 1, 1:2], sr.shape[2:])[0, 0]
        images = [coarse, sr[i, middle]]
        if hr is not None:
            images += [hr[i, middle], 5 * (sr[i, middle] - hr[i, middle]).abs()]
        rows.append(torch.cat(images, 1))
    return torch.cat(rows).clamp(0, 1)


class Metrics:
    """metrics.csv, a row a step, and TensorBoard's event file beside it.

    start: steps already done; rows after it, from a run that was killed past its checkpoint, are dropped.
    """

    def __init__(self, run: Path, start: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.path = run / "metrics.csv"
        self.columns: list[str] = []
        if start and self.path.exists():
            with open(self.path, newline="") as stream:
                reader = csv.DictReader(stream)
                rows = [row for row in reader if row["step"] and int(row["step"]) <= start]
                self.columns = list(reader.fieldnames or ())
            self._rewrite(rows)
        else:
            self.path.unlink(missing_ok=True)
        self.board = SummaryWriter(run / "tensorboard", purge_step=start + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        row = {"step": str(step)} | {k: f"{v:.6g}" for k, v in values.items()}
        if not set(row) <= set(self.columns):  # the first row, or the first of another stage
            losses_first = [k for k in row if k not in self.columns and k not in VALIDATION]
            self.columns = [k for k in self.columns if k not in VALIDATION] + losses_first + list(VALIDATION)
            rows = []
            if self.path.exists():
                with open(self.path, newline="") as stream:
                    rows = list(csv.DictReader(stream))
            self._rewrite(rows)
        with open(self.path, "a", newline="") as stream:
            csv.DictWriter(stream, self.columns, restval="", lineterminator="\n").writerow(row)
        for name, value in values.items():
            self.board.add_scalar(name, value, step)

    def image(self, step: int, image: Tensor) -> None:
        self.board.add_image("windows", image, step, dataformats="HW")

    def close(self) -> None:
        self.board.close()

    def _rewrite(self, rows: Sequence[dict[str, str]]) -> None:
        with open(self.path, "w", newline="") as stream:
            writer = csv.DictWriter(stream, self.columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


class Alarm:
    """Warns once of each loss that goes wrong, from running means over about 100 steps.

    Diverging: a generator's loss is 3 times its lowest running mean. Collapsed: a discriminator's loss is
    below 1 % of what ignorance costs it, so that its gradient tells the generators nothing any more.
    """

    MEMORY, PATIENCE = 0.99, 300
    DIVERGED, COLLAPSED = 3.0, 0.0025  # half of (1/2)² + (1/2)² is 0.25

    def __init__(self) -> None:
        self.steps: dict[str, int] = {}
        self.means: dict[str, float] = {}
        self.lowest: dict[str, float] = {}
        self.warned: set[str] = set()

    def hear(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            seen = self.steps[name] = self.steps.get(name, 0) + 1
            mean = self.means[name] = self.means.get(name, value) * self.MEMORY + value * (1 - self.MEMORY)
            if seen < self.PATIENCE or name in self.warned or "adversarial" in name:
                continue
            lowest = self.lowest[name] = min(mean, self.lowest.get(name, mean))
            if name.startswith("d_"):
                wrong = mean < self.COLLAPSED
                said = "has collapsed to {:.2g}: the discriminator always wins"
            else:
                wrong = mean > self.DIVERGED * lowest and "adaptation" not in name
                said = "has risen to {:.2g}, over 3 times its lowest: lower learning_rate if it goes on"
            if wrong:
                self.warned.add(name)
                LOG.warning("Step %d: the loss %s %s.", step, name, said.format(mean))
