"""One page and one table of all results in an output folder: the group level of a BIDS-App."""

from __future__ import annotations

import html
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from ..errors import RunError
from ..system.files import atomic, refuse_foreign
from .comparison import Comparison, compare
from .pictures import data_address, lays, png
from .report import MARK, opening
from .results import Result, find_results

PAGE, TABLE = "udean-group.html", "udean-group.tsv"
MISSING = "n/a"
TITLES = ("scan", "voxels", "size, mm", "signal to noise", "difference to what was measured", "remarks")


@dataclass(frozen=True)
class GroupRow:
    """A result. snr: of the scan. measurement_difference: relative to what was measured."""

    filename: str
    shape: str = MISSING
    voxel_size_mm: str = MISSING
    snr: str = MISSING
    measurement_difference: str = MISSING
    remarks: str = ""


def write_group(root: Path) -> tuple[Path, Path, int]:
    """Compare every result with its scan, one after another; returns page, table and the number of results.

    Raises RunError if the folder contains no result, or cannot be written to.
    """
    results = list(find_results(root)) if root.is_dir() else []
    if not results:
        raise RunError(f"{root} contains no results: run the participant level first.")
    page, table, rows = root / PAGE, root / TABLE, []
    for path, mark in ((page, MARK), (table, fields(GroupRow)[0].name + "\t")):
        refuse_foreign(path, mark)
    with atomic(page) as file:
        head = "".join(f"<th>{html.escape(name)}" for name in ("", *TITLES))
        file.write(opening(f"Super-resolution of {len(results)} scans").encode())
        file.write(
            b"<p class=faint>Research only, not for diagnosis: compare every result with its scan.</p>"
        )
        file.write(f"<div class='box scroll'><table><tr>{head}".encode())
        for result in results:
            row, picture = _examined(result)
            rows.append(row)
            image = f'<img alt="middle slice" src="{picture}">' if picture else ""
            cells = "".join(f"<td>{html.escape(value)}" for value in astuple(row))
            file.write(f"<tr><td>{image}{cells}".encode(errors="backslashreplace"))
        file.write(b"</table></div></html>")
    with atomic(table) as file:
        lines = [[field.name for field in fields(GroupRow)], *map(astuple, rows)]
        text = "".join("\t".join(cell or MISSING for cell in line) + "\n" for line in lines)
        file.write(text.encode(errors="backslashreplace"))
    return page, table, len(results)


def _examined(result: Result) -> tuple[GroupRow, str]:
    """A result's row, and the middle slice of its SR volume as a PNG's address."""
    try:
        sidecar = result.sidecar
        found = compare(result.open_source(), result.open(), sidecar.card, profile_mm=sidecar.profile_mm(0))
    except RunError as error:
        return GroupRow(result.name, remarks=" ".join(str(error).split())), ""
    scan = found.fine_scan
    row = GroupRow(
        result.name,
        " x ".join(map(str, scan.shape)),
        " x ".join(f"{zoom:.3g}" for zoom in scan.zooms),
        f"{found.snr:.1f}",
        f"{found.consistency:.4f}",
        " ".join([*sidecar.warnings, *found.warnings]),
    )
    return row, _middle(found)


def _middle(found: Comparison) -> str:
    lay = lays(found.fine_scan.affine)["axial"]
    plane = found.fine(lay.axis, found.sr.shape[lay.axis] // 2)
    return data_address(png(lay.picture(plane / found.unit)))
