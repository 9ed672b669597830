"""Pictures of results: lines over a quantity, or bars over names, drawn from JSON alone."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Panel:
    """One pair of axes. x: numbers for lines, names for bars. series: by label, one value for each x."""

    title: str
    xlabel: str
    ylabel: str
    x: Sequence[float] | Sequence[str]
    series: Mapping[str, Sequence[float]]
    logarithmic: bool = False


def draw(panels: Sequence[Panel], source: str) -> bytes:
    """A PNG of the panels side by side; its text "Source" says what it was drawn from."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.2 * len(panels) + 1, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        if panel.x and isinstance(panel.x[0], str):
            width = 0.8 / len(panel.series)
            for n, (label, values) in enumerate(panel.series.items()):
                places = [i + (n - (len(panel.series) - 1) / 2) * width for i in range(len(values))]
                axes.bar(places, values, width, label=label)
            axes.set_xticks(range(len(panel.x)), panel.x, rotation=40, ha="right")
            axes.margins(y=0.3)  # room for the legend
        else:
            for label, values in panel.series.items():
                axes.plot(panel.x, values, ".-", label=label)
        if panel.logarithmic:
            axes.set(xscale="log", yscale="log")
        axes.set(title=panel.title, xlabel=panel.xlabel, ylabel=panel.ylabel)
        axes.grid(alpha=0.3)
        if len(panel.series) > 1:
            axes.legend(fontsize=8)
    return small_png(figure, source=source)


def small_png(figure: Figure, dpi: int = 80, colours: int = 24, source: str = "") -> bytes:
    """A figure as PNG of few colours, a fourth of the size: small enough for a repository.

    source: kept in the picture as its text "Source".
    """
    import PIL.Image
    import PIL.PngImagePlugin

    drawn, small, text = io.BytesIO(), io.BytesIO(), PIL.PngImagePlugin.PngInfo()
    figure.savefig(drawn, dpi=dpi, format="png")
    if source:
        text.add_text("Source", source)
    palette = PIL.Image.open(drawn).convert("RGB").quantize(colours, dither=PIL.Image.Dither.NONE)
    palette.save(small, "png", optimize=True, pnginfo=text)
    return small.getvalue()
