"""The page of an adaptation: a scan, what the model made of it before and after, and the figures."""

from __future__ import annotations

import html
from pathlib import Path

import numpy as np

from ..runtime.resolver import SuperResolver
from ..runtime.scan.intensity import unit
from ..runtime.scan.scan import open_scan
from ..runtime.system.files import atomic
from ..runtime.view.comparison import ERROR_SHARE, compare
from ..runtime.view.pictures import data_address, lays, png
from ..runtime.view.report import opening
from .judge import ModelFigures

TITLE = "Adapted to your scans"


def write_page(
    path: Path,
    scan: Path,
    results: tuple[Path, Path],
    cards: tuple[SuperResolver, SuperResolver],
    told: str,
    before: ModelFigures,
    after: ModelFigures,
    refused: str | None,
) -> None:
    """Write the page. scan, results: files of an LR scan and of its SR scans, before and after; cards: of the
    models that made them. told: the estimated degradation in words."""
    lr = open_scan(scan)
    compared = [
        compare(lr, open_scan(file), resolve.card) for file, resolve in zip(results, cards, strict=True)
    ]
    parts = [opening(TITLE)]
    verdict = f"Not kept: {refused}." if refused else "Kept: better in every judged figure below."
    parts.append(f"<section><p>{_text(verdict)}</p><p>Estimated from the scans: {_text(told)}.</p>")
    rows = {
        "": ("before", "after"),
        "in tissue of a head, acquired so": (f"{before.psnr:.2f} dB", f"{after.psnr:.2f} dB"),
        "of your scan unexplained by the network": (f"{before.residual:.2%}", f"{after.residual:.2%}"),
        "noise of your scan": (f"{before.noise:.2%}", f"{after.noise:.2%}"),
    }
    for radius, share in before.lesions.items():
        kept = after.lesions.get(radius, float("nan"))
        rows[f"contrast left of lesions of radius {radius}"] = (f"{share:.2f}", f"{kept:.2f}")
    cells = (f"<tr><th>{_text(k)}<td>{_text(a)}<td>{_text(b)}" for k, (a, b) in rows.items())
    parts.append(f"<div class=scroll><table>{''.join(cells)}</table></div></section>")
    parts.append('<section><div class=grid style="grid-template-columns:repeat(4,1fr)">')
    white = unit(lr.voxels(), cards[0].card.intensity, lr.slope, lr.inter)
    for lay in lays(lr.affine).values():
        axis = lay.axis
        middle = lr.shape[axis] // 2
        fine = compared[0].grid.nearest(axis, middle)
        first, second = (c.fine(axis, fine) for c in compared)
        planes = {
            "interpolated": compared[0].interpolated(axis, fine),
            "before": first,
            "after": second,
            f"what changed × {1 / ERROR_SHARE:.0f}": np.abs(second - first) / ERROR_SHARE,
        }
        of = compared[0].fine_scan
        for name, plane in planes.items():
            title = _text(f"{lay.name}, {name}")
            parts.append(
                f'<figure><img alt="{title}" style="aspect-ratio:{lay.aspect(of.shape, of.zooms):.4f}" '
                f'src="{data_address(png(lay.picture(plane / white)))}">'
                f"<figcaption>{title}</figcaption></figure>"
            )
    parts.append(
        f"</div><p class=faint>{_text(str(scan))}. The patient’s right is on the left.</p></section>"
    )
    with atomic(path) as file:
        file.write("".join(parts).encode(errors="backslashreplace"))


def _text(value: str) -> str:
    return html.escape(value, quote=True)
