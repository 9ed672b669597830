"""The pictures beside the tables: planes, crops and error maps (Figs 4-6)."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from ...runtime.system.files import atomic

Image = NDArray[Any]  # float32


@dataclass(frozen=True)
class MiddlePlanes:
    """The middle slice of a restored scan, of the truth, and of the LR scan, repeated to their size."""

    sr: Image
    hr: Image
    lr: Image

    @classmethod
    def of(cls, sr: Image, hr: Image, lr: Image) -> MiddlePlanes:
        """The middle slices of volumes (rows, columns, slices)."""
        middle = hr.shape[2] // 2
        coarse = lr[:, :, middle * lr.shape[2] // hr.shape[2]]
        for axis in (0, 1):
            coarse = np.repeat(coarse, hr.shape[axis] // lr.shape[axis], axis)
        return cls(sr[:, :, middle], hr[:, :, middle], coarse)

    def save(self, path: Path) -> None:
        with atomic(path) as file:
            np.savez_compressed(file, sr=self.sr, hr=self.hr, lr=self.lr)

    @classmethod
    def load(cls, path: Path) -> MiddlePlanes:
        with np.load(path) as stored:
            return cls(stored["sr"], stored["hr"], stored["lr"])

    @property
    def crop(self) -> tuple[slice, slice]:
        """The quarter of the plane with the most structure."""
        rows, columns = (n // 4 for n in self.hr.shape)
        edges = np.abs(np.diff(self.hr, axis=0))[:, 1:] + np.abs(np.diff(self.hr, axis=1))[1:]
        sums = np.pad(edges, ((1, 0), (1, 0))).cumsum(0).cumsum(1)
        right, left = sums[:, columns:], sums[:, :-columns]
        inside = (right - left)[rows:] - (right - left)[:-rows]
        row, column = np.unravel_index(inside.argmax(), inside.shape)
        return slice(int(row), int(row) + rows), slice(int(column), int(column) + columns)


def draw_panels(path: Path, results: Mapping[str, Path]) -> None:
    """Columns: LR, HR, and each result; rows: the plane, its crop, |SR − HR| on one scale for all."""
    planes = {title: MiddlePlanes.load(file) for title, file in results.items()}
    first = next(iter(planes.values()))
    crop, top = first.crop, float(np.percentile(first.hr, 99.9))
    errors = {title: np.abs(p.sr - p.hr) for title, p in planes.items()}
    tissue = np.concatenate([errors[title][p.hr > 0] for title, p in planes.items()])
    limit = float(np.percentile(tissue, 99))
    figure = Figure(figsize=(2.6 * (len(planes) + 2), 8), layout="constrained", facecolor="black")
    axes = figure.subplots(3, len(planes) + 2)
    images = {"LR": first.lr, "HR": first.hr, **{title: p.sr for title, p in planes.items()}}
    for column, (title, image) in enumerate(images.items()):
        axes[0, column].imshow(np.rot90(image), cmap="gray", vmin=0, vmax=top)
        axes[1, column].imshow(np.rot90(image[crop]), cmap="gray", vmin=0, vmax=top, interpolation="nearest")
        axes[0, column].set_title(title.replace(", ", "\n"), color="white", size=9)
        if title in errors:
            axes[2, column].imshow(np.rot90(errors[title]), cmap="inferno", vmin=0, vmax=limit)
    rows, columns = crop
    corner = (rows.start, first.hr.shape[1] - columns.stop)
    size = (rows.stop - rows.start, columns.stop - columns.start)
    axes[0, 1].add_patch(Rectangle(corner, *size, fill=False, edgecolor="yellow"))
    for ax in axes.flat:
        ax.set_axis_off()
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=33, format="png")
    # Few colours: a fourth of the size, small enough for a repository.
    few = PIL.Image.open(drawn).convert("RGB").quantize(24, dither=PIL.Image.Dither.NONE)
    with atomic(path) as file:
        few.save(file, "png", optimize=True)
