"""`--report`: what was made of each scan, as one HTML page that needs nothing besides itself.

Everything is read back from the files: scan, SR scan and sidecar. So a scan that was kept is reported as one
that was written just now.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import RunError
from ..models.card import ModelCard
from ..pipeline.content import survey
from ..run.run import Outcome
from ..run.sidecar import Sidecar
from ..scan.scan import Scan, open_scan
from ..system.files import atomic, refuse_foreign
from .comparison import ERROR_SHARE, Comparison, compare
from .pictures import Lay, data_address, lays, png
from .wording import facts

MARK = "<title>Super-resolution of"  # by which a page of ours is known
STATIC = Path(__file__).with_name("static")
SELECTIONS = {
    "last": "of the training's last step",
    "consistency": "the best of the training by consistency with LR scans, without truth",
    "truth": "the best of the training by the truth of validation scans",
}
STATES = {"written": "restored", "kept": "up to date", "failed": "failed"}


@dataclass(frozen=True)
class Picture:
    """The picture as a PNG. aspect: width over height."""

    title: str
    png: bytes
    aspect: float


@dataclass(frozen=True)
class ScanReport:
    """The report on one scan. rows: one per plane, with the same content in every picture of the row.

    comparison: all in figures.
    """

    rows: list[list[Picture]]
    comparison: Comparison


def write_report(path: Path, outcomes: Sequence[Outcome], card: ModelCard, series: bool = False) -> None:
    """Write the page. Raises RunError if it, or a scan, cannot be read or written, or another lies there.

    card: of the run's model; each scan's own is in its sidecar.
    """
    refuse_foreign(path, MARK)
    with atomic(path) as file:
        for part in _page(outcomes, card, series):
            file.write(part.encode(errors="backslashreplace"))  # odd names


def _page(outcomes: Sequence[Outcome], card: ModelCard, series: bool) -> Iterator[str]:
    yield opening(f"Super-resolution of {len(outcomes)} scan{'s' * (len(outcomes) != 1)}")
    yield f"<p class=faint>By udean {_text(card.toolkit)}, model {_text(card.name)}. "
    yield f"{_text(card.intended_use.capitalize())}: compare every result with its scan.</p><ul class=counts>"
    for status, word in STATES.items():
        count = sum(outcome.status == status for outcome in outcomes)
        yield f"<li{f' class={status}' if count else ''}><b>{count}</b>{word}"
    yield "</ul>"
    if len(outcomes) > 1:
        yield "<div class='box scroll'><table>"
        for number, outcome in enumerate(outcomes, 1):
            yield f'<tr><td><a href="#scan-{number}">{_text(str(outcome.job.source))}</a>'
            yield f"<td class={outcome.status}>{STATES[outcome.status]}"
        yield "</table></div>"
    for number, outcome in enumerate(outcomes, 1):
        yield f'<section id="scan-{number}"><h2>{_text(str(outcome.job.source))}</h2>'
        yield from _section(outcome, series)
        yield "</section>"
    yield f"<section>{_details('The model', _told(card))}</section></html>"


def opening(title: str) -> str:
    """The beginning of a page that needs nothing besides itself."""
    style = "".join((STATIC / name).read_text("utf-8") for name in ("colours.css", "report.css"))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{_text(title)}</title><style>{style}</style><h1>{_text(title)}</h1>"
    )


def examine_scan(
    scan: Scan, sr: Scan, card: ModelCard, profile_mm: float | None = None, error_map: Scan | None = None
) -> ScanReport:
    """Compare a scan (the first volume of a series) with its SR scan; all are read."""
    found = compare(scan, sr, card, profile_mm=profile_mm)
    return ScanReport([_row(found, lay, error_map) for lay in lays(scan.affine).values()], found)


def _row(found: Comparison, lay: Lay, error_map: Scan | None) -> list[Picture]:
    """One plane through the middle of the tissue."""
    axis, box = lay.axis, survey(found.lr).box
    middle = (box[axis].start + box[axis].stop) // 2
    across, coarse = (grid.nearest(axis, middle) for grid in (found.grid, found.coarse))
    planes = [
        ("scan", np.take(found.measured, middle, axis), found.scan),
        (found.interpolation, found.interpolated(axis, across), found.fine_scan),
        ("super-resolution", found.fine(axis, across), found.fine_scan),
        (
            f"difference to {found.measurement} × {1 / ERROR_SHARE:.0f}",
            np.abs(np.take(found.difference, coarse, axis)) / ERROR_SHARE,
            found.scan,
        ),
    ]
    if error_map:
        voxels = error_map.voxels()[..., 0] if error_map.volumes > 1 else error_map.voxels()
        error = error_map.in_units(np.take(voxels, across, axis))
        planes.append((f"expected error × {1 / ERROR_SHARE:.0f}", error / ERROR_SHARE, error_map))
    return [
        Picture(f"{lay.name}, {name}", png(lay.picture(plane / found.unit)), lay.aspect(of.shape, of.zooms))
        for name, plane, of in planes
    ]


def _section(outcome: Outcome, series: bool) -> Iterator[str]:
    job = outcome.job
    if outcome.status == "failed":
        yield f"<p class=failed>{_text(outcome.message)}</p>"
        return
    sidecar = Sidecar.read(job.sidecar)
    if sidecar.labels:
        yield f"<p>{_text(sidecar.labels[0].upper() + sidecar.labels[1:])}: there is nothing to compare.</p>"
        return
    try:
        errors = sidecar.error_map(job.target)
        found = examine_scan(
            job.open(series),
            job.open_result(series),
            sidecar.card,
            sidecar.profile_mm(0),
            open_scan(errors, series) if errors and errors.is_file() else None,
        )
    except RunError as error:
        yield f"<p class=failed>{_text(str(error))}</p>"
        return
    comparison = found.comparison
    for warning in (*sidecar.warnings, *comparison.warnings):
        yield f"<p class=warning>{_text(warning)}</p>"
    columns = len(found.rows[0])
    yield f'<div class=grid style="grid-template-columns:repeat({columns},1fr)">'
    for row in found.rows:
        for picture in row:
            title = _text(picture.title)
            yield f'<figure><img alt="{title}" style="aspect-ratio:{picture.aspect:.4f}" '
            yield f'src="{data_address(picture.png)}"><figcaption>{title}</figcaption></figure>'
    yield "</div><p class=faint>The patient’s right is on the left. "
    yield f"Grey goes from 0 (black) to {comparison.unit:.4g} (white) in the scan’s units; differences and "
    yield f"errors are white at {comparison.unit * ERROR_SHARE:.4g}.</p>"
    yield _table({"Written to": f"{job.target}", **facts(comparison.fine_scan, comparison, sidecar)})


def _told(card: ModelCard) -> dict[str, str]:
    """A model card in words, a unit beside each figure."""
    rows = {
        "name": card.name,
        "method": card.method,
        "finer by": f"{_by(card.scale)} (rows, columns, slices)",
        "slices at once": f"{card.slab[0]} of the scan, {card.slab[1]} of the result",
        "windows in training": f"{_by(card.window)} voxels of the scan",
        "trained on": card.trained_on,
        "weights": SELECTIONS[card.selection],
        "parameters": f"{card.parameters:,}",
        "arithmetic": card.precision,
        "made by": f"udean {card.toolkit}",
        "use": card.intended_use,
    }
    for name, value in card.quality.items():
        rows["measured: " + name.replace(".", " ").replace("_", " ")] = _figure(name, value)
    for name, found in card.parity.items():
        figures = (f"{what.replace('_', ' ')} {_figure(what, value)}" for what, value in found.items())
        rows[f"against PyTorch: {name}"] = ", ".join(figures)
    return {name: value for name, value in rows.items() if value}


def _by(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _figure(name: str, value: float) -> str:
    return f"{value:.2f} dB" if name.lower().endswith("psnr") else f"{value:.4g}"


def _details(title: str, rows: dict[str, Any]) -> str:
    return f"<details><summary>{_text(title)}</summary>{_table(rows)}</details>"


def _table(rows: dict[str, Any]) -> str:
    cells = (f"<tr><th>{_text(name)}<td>{_text(str(value))}" for name, value in rows.items())
    return f"<div class=scroll><table>{''.join(cells)}</table></div>"


def _text(value: str) -> str:
    return html.escape(value, quote=True)
