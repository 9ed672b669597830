"""`--report`: what was made of each scan, as one HTML page that needs nothing besides itself.

Everything is read back from the files: scan, SR scan and sidecar. So a scan that was kept is reported as one
that was written just now.
"""

from __future__ import annotations

import base64
import html
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError
from ..models.card import ModelCard
from ..pipeline.content import survey
from ..runs.run import Outcome
from ..runs.sidecar import Sidecar
from ..scans.scan import Scan
from ..system.files import atomic
from .comparison import ERROR_SHARE, compare

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem}
body{background:#111;color:#ddd}
h1,h2{font-weight:600}h2{margin-top:3rem;border-top:1px solid #444;padding-top:1rem;overflow-wrap:anywhere}
table{border-collapse:collapse}td,th{padding:.15rem .9rem .15rem 0;text-align:left;vertical-align:top}
th{font-weight:500;color:#aaa}.grid{display:grid;grid-template-columns:repeat(4,1fr);gap:.4rem}
.grid img{width:100%;image-rendering:pixelated;background:#000}.grid span{color:#aaa}
.warning{color:#fc6}.failed{color:#f77}details{margin-top:1rem}summary{cursor:pointer;color:#aaa}
"""
SELECTIONS = {
    "last": "of the training's last step",
    "consistency": "the best of the training by consistency with LR scans, without truth",
    "truth": "the best of the training by the truth of validation scans",
}
STAGES = {  # of a sidecar's timings
    "read": "reading",
    "gather": "gathering",
    "network": "network",
    "blend": "blending",
    "write": "writing",
    "total": "in all",
}


@dataclass(frozen=True)
class Findings:
    """What is said about one scan. pictures: (alt text, PNG, width / height), four to a row.

    white: the intensity that is white in them, in the scan's units.
    """

    pictures: list[tuple[str, bytes, float]]
    white: float
    consistency: float
    snr: float
    warnings: list[str]


def write_report(path: Path, outcomes: Sequence[Outcome], card: ModelCard, series: bool = False) -> None:
    """Write the page. Raises RunError if it, or a scan, cannot be read or written."""
    with atomic(path) as file:
        file.write(f"<!doctype html><meta charset=utf-8><title>udean</title><style>{STYLE}</style>".encode())
        file.write(f"<h1>Super-resolution by {_text(card.name)}</h1>".encode())
        counts = ", ".join(
            f"{sum(o.status == status for o in outcomes)} {status}"
            for status in ("written", "kept", "failed")
        )
        file.write(f"<p>{counts}. {_text(card.intended_use.capitalize())}.</p>".encode())
        file.write(_details("The model", _told(card)).encode())
        for outcome in outcomes:
            for part in _section(outcome, card, series):
                file.write(part.encode(errors="backslashreplace"))  # odd names


def examine(scan: Scan, sr: Scan, card: ModelCard) -> Findings:
    """Compare a scan (the first volume of a series) with its SR scan; both are read."""
    found = compare(scan, sr, card)
    box, shape, zooms, measured = survey(found.lr).box, found.lr.shape, scan.zooms, found.measured
    pictures = []
    for axis in (2, 1, 0):
        rows, columns = (n for n in range(3) if n != axis)
        aspect = shape[rows] * zooms[rows] / (shape[columns] * zooms[columns])
        middle = (box[axis].start + box[axis].stop) // 2
        across = middle * found.factors[axis]
        planes = {
            "scan": np.take(measured, middle, axis),
            "tricubic": found.tricubic(axis, across),
            "super-resolution": found.fine(axis, across),
            "k-space difference": np.abs(np.take(found.difference, middle, axis)) / ERROR_SHARE,
        }
        for name, plane in planes.items():
            pictures.append((f"{name}, plane across {'ijk'[axis]}", png(plane / found.unit), aspect))
    return Findings(pictures, found.unit, found.consistency, found.snr, found.warnings)


def png(image: NDArray[Any]) -> bytes:
    """A picture of a plane (first voxel axis to the right, second upwards), 0 black and 1 white."""
    pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8).T[::-1]
    height, width = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 9)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _section(outcome: Outcome, card: ModelCard, series: bool) -> Iterator[str]:
    job = outcome.job
    yield f"<h2>{_text(str(job.source))}</h2>"
    if outcome.status == "failed":
        yield f"<p class=failed>{_text(outcome.message)}</p>"
        return
    try:
        found = examine(job.open(series), job.open_result(series), card)
    except RunError as error:
        yield f"<p class=failed>{_text(str(error))}</p>"
        return
    yield "".join(f"<p class=warning>{_text(warning)}</p>" for warning in found.warnings)
    yield "<div class=grid>" + "".join(
        f"<span>{_text(name)}</span>"
        for name in ("scan", "tricubic", "super-resolution", f"k-space difference × {1 / ERROR_SHARE:.0f}")
    )
    for name, picture, aspect in found.pictures:
        data = base64.b64encode(picture).decode()
        yield (
            f'<img alt="{_text(name)}" style="aspect-ratio:{aspect:.4f}" src="data:image/png;base64,{data}">'
        )
    yield "</div>"
    sidecar = Sidecar.read(job.sidecar)
    engine, took = sidecar.table("engine"), sidecar.table("timings")
    seconds = (
        f"{words} {took[name]:.2f} s" for name, words in STAGES.items() if type(took.get(name)) is float
    )
    windows, computed = (took.get(name, "unknown") for name in ("windows", "computed"))
    yield (
        f"<p>Grey goes from 0 (black) to {found.white:.4g} (white) in the scan's units; the difference to "
        f"its k-space is white at {found.white * ERROR_SHARE:.4g}.</p>"
    )
    yield _table(
        {
            "result": f"{job.target} ({outcome.status})",
            "difference to the scan's k-space": f"{found.consistency:.2%} of its root mean square",
            "signal-to-noise ratio": f"{found.snr:.1f} times the noise's standard deviation",
            "engine": " ".join(
                str(engine.get(name, "")) for name in ("library", "version", "device", "precision")
            ),
            "time (stages overlap)": ", ".join(seconds),
            "windows": f"{windows}, of which the network saw {computed}",
        }
    )


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
    return f"<table>{''.join(cells)}</table>"


def _text(value: str) -> str:
    return html.escape(value, quote=True)
