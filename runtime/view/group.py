"""One page and one table of all results in an output folder: the group level of a BIDS-App."""

from __future__ import annotations

import base64
import html
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from ..errors import RunError
from ..system.files import atomic
from .comparison import Comparison, compare
from .report import STYLE, png
from .results import Result, find_results

PAGE, TABLE = "udean-group.html", "udean-group.tsv"
MISSING = "n/a"
TITLES = ("scan", "voxels", "size, mm", "signal to noise", "difference to the measured k-space", "remarks")
GRID = "<style>td img{width:11rem;image-rendering:pixelated;background:#000}</style>"


@dataclass(frozen=True)
class Row:
    """A result. snr: of the scan. k_space_difference: share of what was measured that it misses."""

    filename: str
    shape: str = MISSING
    voxel_size_mm: str = MISSING
    snr: str = MISSING
    k_space_difference: str = MISSING
    remarks: str = ""


def write_group(root: Path) -> tuple[Path, Path, int]:
    """Compare every result with its scan, one after the other; returns page, table and how many there are.

    Raises RunError if the folder holds no result, or takes no file.
    """
    results = list(find_results(root)) if root.is_dir() else []
    if not results:
        raise RunError(f"{root} holds no results: run the participant level first.")
    page, table, rows = root / PAGE, root / TABLE, []
    with atomic(page) as file:
        title = f"Super-resolution of {len(results)} scans"
        head = "".join(f"<th>{html.escape(name)}" for name in ("", *TITLES))
        file.write(
            f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style>".encode()
        )
        file.write(
            f"{GRID}<h1>{title}</h1><p>Research only, not for diagnosis.</p><table><tr>{head}".encode()
        )
        for result in results:
            row, picture = _examined(result)
            rows.append(row)
            image = f'<img alt="middle slice" src="data:image/png;base64,{picture}">' if picture else ""
            cells = "".join(f"<td>{html.escape(value)}" for value in astuple(row))
            file.write(f"<tr><td>{image}{cells}".encode())
        file.write(b"</table>")
    with atomic(table) as file:
        lines = [[field.name for field in fields(Row)], *map(astuple, rows)]
        file.write("".join("\t".join(cell or MISSING for cell in line) + "\n" for line in lines).encode())
    return page, table, len(results)


def _examined(result: Result) -> tuple[Row, str]:
    """A result's row, and the middle slice of its SR volume as a PNG in base64."""
    try:
        found = compare(result.open_source(), result.open(), result.sidecar.card)
    except RunError as error:
        return Row(result.name, remarks=" ".join(str(error).split())), ""
    sr, scan = found.sr, found.fine_scan
    row = Row(
        result.name,
        " x ".join(map(str, scan.shape)),
        " x ".join(f"{zoom:.3g}" for zoom in scan.zooms),
        f"{found.snr:.1f}",
        f"{found.consistency:.4f}",
        " ".join(found.warnings),
    )
    return row, _middle(found, sr.shape[2] // 2)


def _middle(found: Comparison, index: int) -> str:
    return base64.b64encode(png(found.fine(2, index) / found.unit)).decode()
