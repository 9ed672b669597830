"""The log of a run: metrics.csv, TensorBoard, and early warnings."""

from __future__ import annotations

import csv
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from .validation import VALIDATION

LOG = logging.getLogger(__name__)


class MetricsLog:
    """metrics.csv, one row per step, and TensorBoard's event file beside it.

    start: steps already done; later rows, from a run that was killed after its last checkpoint, are dropped.
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
        self.board = None
        if os.fsencode(run).decode(errors="replace") == str(run):
            self.board = SummaryWriter(run / "tensorboard", purge_step=start + 1)
        else:
            LOG.warning("TensorBoard does not write into a folder whose name is not text: see metrics.csv.")

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
        if self.board:
            for name, value in values.items():
                self.board.add_scalar(name, value, step)

    def image(self, step: int, image: Tensor) -> None:
        if self.board:
            self.board.add_image("windows", image, step, dataformats="HW")

    def close(self) -> None:
        if self.board:
            self.board.close()

    def _rewrite(self, rows: Sequence[dict[str, str]]) -> None:
        with open(self.path, "w", newline="") as stream:
            writer = csv.DictWriter(stream, self.columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


class Alarm:
    """Warns once about each loss that goes wrong, from running means over about 100 steps.

    Diverging: a generator's loss is 3 times its lowest running mean. Collapsed: a discriminator's loss is
    below 1 % of the chance-level loss: the generators no longer get a useful gradient. At chance: in its
    first 1000 steps a discriminator's loss has never left the chance level.
    """

    MEMORY, PATIENCE = 0.99, 300
    CHANCE, LEARNS = (0.24, 0.26), 1000  # of least squares; the logistic loss at chance is 0.69
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
            if seen < self.PATIENCE or name in self.warned or "adversarial" in name or name == "gradient":
                continue
            lowest = self.lowest[name] = min(mean, self.lowest.get(name, mean))
            if name.startswith("d_"):
                if seen == self.LEARNS and self.CHANCE[0] < lowest < self.CHANCE[1]:
                    self.warned.add(name)
                    LOG.warning(
                        "Step %d: the loss %s has stayed at %.2g: the discriminator cannot tell "
                        "its inputs apart, so the generators learn nothing from it; see network.judges.",
                        step,
                        name,
                        mean,
                    )
                    continue
                wrong = mean < self.COLLAPSED
                said = "has collapsed to {:.2g}: the discriminator always wins"
            else:
                wrong = mean > self.DIVERGED * lowest and "adaptation" not in name
                said = "has risen to {:.2g}, over 3 times its lowest: lower learning_rate if this continues"
            if wrong:
                self.warned.add(name)
                LOG.warning("Step %d: the loss %s %s.", step, name, said.format(mean))
