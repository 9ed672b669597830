"""The command `udean-trust`: what a model does to lesions, edges and noise, and what it invents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from ..errors import RunError
from ..resolver import SuperResolver
from ..scan.intensity import check_finite
from ..scan.orientation import Orientation
from ..scan.scan import open_scan, tell_remarks
from ..system.files import atomic, make_folder, write_json
from ..trust.examine import SIDE, Volume, against, examine
from ..trust.lesions import RADII, put_lesions
from ..trust.page import page
from . import options
from .common import command
from .streams import say


def trust(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for trust.json and trust.html.")] = Path(
        "trust"
    ),
    scan: Annotated[
        Path | None, typer.Option(help="HR scan that lesions are put into. (default: a phantom)")
    ] = None,
    engine: options.ModelOption = None,
    library: options.LibraryOption = "auto",
    device: options.Device = "auto",
    precision: options.PrecisionOption = "auto",
    threads: options.Threads = None,
    best: options.Best = False,
    debug: options.Debug = False,
) -> None:
    """Examine a model beside sinc and tricubic interpolation: OUT/trust.json and OUT/trust.html.

    The exit code is 1 if lesions lose more of their contrast than under sinc interpolation, or more detail is
    drawn than there is; else 0.
    """
    for name in ("trust.json", "trust.html"):
        if (out / name).exists():
            raise RunError(f"{out / name} already exists: give another folder.")
    make_folder(out)  # a folder that cannot be written is reported now, not after the examination
    with SuperResolver(engine, device, precision, library=library, threads=threads, best=best) as resolve:
        print(f"Model {resolve.describe()}", flush=True)
        card = resolve.card
        hr = None if scan is None else _truth(scan, card.scale)
        print("Restoring phantoms, about a minute", flush=True)
        tests = examine(resolve, card.scale, card.grid, hr)
        about = {"Model": card.name, "Engine": str(resolve.engine.info), "Trained on": card.trained_on}
    about["Slabs"] = "along each of three axes, their mean" if best else "along one axis"
    about["Lesions in"] = "a phantom" if scan is None else scan.name
    worse = against(tests)
    write_json(out / "trust.json", {"about": about, "against it": worse, "tests": tests})
    with atomic(out / "trust.html") as file:
        file.write(page(about, tests, worse).encode(errors="backslashreplace"))
    for sentence in worse or ["Small lesions keep their contrast as under sinc, and no detail is overdrawn."]:
        print(sentence)
    say(f"Report: {out / 'trust.html'}")
    raise typer.Exit(1 if worse else 0)


def _truth(path: Path, factors: tuple[int, int, int]) -> Volume:
    """A scan as (rows, columns, slices), its sides multiples of the factors, without negative voxels.

    Raises RunError if it is too small to be examined, or nowhere fit for lesions.
    """
    scan = tell_remarks(open_scan(path))
    voxels = scan.voxels_in_units()
    check_finite(voxels, scan.name)
    voxels = Orientation.of(scan.affine).turned(voxels)
    if min(voxels.shape) < SIDE:
        raise RunError(
            f"{scan.name}: the examination needs {SIDE} voxels along each axis, not {voxels.shape}."
        )
    inside = tuple(slice(0, n - n % f) for n, f in zip(voxels.shape, factors, strict=True))
    hr = np.maximum(voxels[inside], 0)
    if len(put_lesions(hr)[1]) < 2 * len(RADII):
        raise RunError(
            f"{scan.name} has no homogeneous bright tissue into which lesions of each size, bright and dark, "
            "could be put: give a scan with less noise or more tissue, or leave out --scan."
        )
    return hr


main = command(
    trust,
    "udean-trust",
    "udean-trust --engine mine.onnx -o trust/",
    "udean-trust --scan hr.nii.gz -o trust/",
)

if __name__ == "__main__":
    main()
