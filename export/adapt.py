"""The command `udean-adapt`: the embedded model, tuned to the user's own LR scans.

The degradation is estimated from the scans, unpaired (`trainer.simulation.estimate`); the embedded network is
then trained further on HR scans of other people, or on drawn heads, that were degraded in the same way. The
result is kept only if `judge` finds it better than the embedded model.
"""

from __future__ import annotations

import dataclasses
import gzip
import os
import shutil
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from ..runtime.commands.common import command
from ..runtime.commands.streams import say
from ..runtime.errors import RunError
from ..runtime.system.files import make_folder, refuse_foreign
from .before_after import TITLE

if TYPE_CHECKING:
    from ..trainer.config import Config
    from ..trainer.data.orientation import AlongWorld
    from ..trainer.data.scans import Entry

HEADS = 5  # drawn if the user has no HR scans; the last one is for judging
TRAINS = 0.7  # share of the time spent on training; the rest goes to estimating, judging and drawing
FEWEST, MOST = 20, 4000  # steps
OFFERED = (2, 2, 2)  # the embedded model's scale
# What lies beside the model while it is being made.
WORK = {"heads", "run", "before.nii.gz", "after.nii.gz"}
WORK |= {f"{name}{kind}" for name in ("best", "checkpoint") for kind in (".onnx", ".fp16.onnx")}
DRAWN = 1.0  # mm, of the heads that are drawn without label maps


def adapt(
    scans: Annotated[list[str], typer.Argument(help="Your LR scans, all of one kind: one is enough.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The model to write.")] = Path("adapted.onnx"),
    source: Annotated[
        list[str] | None,
        typer.Option(help="HR scans of other people, with voxels half as large; default: drawn heads."),
    ] = None,
    labels: Annotated[
        list[str] | None, typer.Option(help="Label maps that heads are drawn from, instead of ICBM152's.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(help="Tune the model for thick slices to one scan, for this spacing, as in udean-run."),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.1, help="Time limit.")] = 25.0,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    debug: Annotated[bool, typer.Option("--debug", help="Show a traceback for errors.")] = False,
) -> None:
    """Tune the embedded model to your scans; their degradation is estimated. Writes OUT and a page, OUT.html.

    After an interruption, the same command continues. If the result is not better than the embedded model, it
    is not written and the exit code is 1.
    """
    if out.suffix != ".onnx":
        raise RunError(f"The output must be an .onnx file, not {out}.")
    if os.path.lexists(out):
        raise RunError(f"{out} already exists: give another name with -o.")
    if to is not None:
        if source or labels:
            raise RunError("--to trains on the scan's own planes: --source and --labels are for other scans.")
        from .adapt_thick import adapt_thick

        make_folder(out.parent)
        return adapt_thick(scans, to, out, minutes, seed)
    page, work = out.with_suffix(".html"), out.with_name(out.stem + ".adapting")
    refuse_foreign(page, f"<title>{TITLE}")
    make_folder(out.parent)
    if os.path.lexists(work) and (not work.is_dir() or {path.name for path in work.iterdir()} - WORK):
        raise RunError(f"{work} already exists and is not of udean-adapt: give another name with -o.")

    from ..runtime.resolver import SuperResolver
    from ..runtime.scan.scan import open_scan, write_scan
    from ..trainer.cli import Lines
    from ..trainer.data.batches import material_of
    from ..trainer.data.orientation import open_along_world
    from ..trainer.data.scans import find
    from ..trainer.fit import fit, transfers
    from ..trainer.simulation.kspace import Acquisition
    from .artefacts import Artefact, export_onnx
    from .before_after import write_page
    from .errors import ExportError
    from .judge import model_figures, worse

    start = time.monotonic()
    entries = find(scans)
    axis, voxels = _lie(entries)
    hr = _sources(source, labels, tuple(v / 2 for v in voxels), work / "heads", seed)
    training, judged = (hr[:-1], hr[-1]) if len(hr) > 1 else (hr, hr[0])
    run = work / "run"
    resumed = (run / "checkpoint.pt").exists()
    steps = _steps_before(run) if resumed else 0
    if not steps:
        left = 60 * minutes * TRAINS - (time.monotonic() - start)
        steps = int(np.clip(left / _seconds_a_step(), FEWEST, MOST))
    config = _config([e.path for e in entries], training, axis, steps, seed)
    lines = Lines("Adapting", every=30)

    def report(step: int, total: int, values: dict[str, float]) -> None:
        name, value = next(iter(values.items()))
        lines.tell(step, total, f"{name} {value:.4f}")

    final = fit(config, run, resumed, report)
    estimate = material_of(config).estimate
    assert estimate is not None
    degradation = estimate.degradation
    say(f"Read off your scans: {degradation.told()}")
    heard: list[Artefact | ExportError] = []
    export_onnx(final, work, tell=heard.append)
    exported = heard[0]  # in float32
    if isinstance(exported, ExportError):
        raise exported
    acquisition, spread = Acquisition(OFFERED, **vars(degradation)), transfers(degradation)
    head = _volume(open_along_world(judged), axis)
    before, after = SuperResolver(), SuperResolver(exported.path)
    scan = entries[0].path
    own_scan = open_scan(scan)
    lr = _volume(open_along_world(scan), axis)
    told, results = [], []
    for name, resolve, model in (("before", before, None), ("after", after, exported.path)):
        typer.echo(f"Judging the model {name}", err=True)
        with SuperResolver(model, consistency="off") as alone:
            told.append(model_figures(resolve, alone, head, acquisition, lr, spread))
        header, voxels = resolve.scan(own_scan)
        results.append(work / f"{name}.nii.gz")
        write_scan(results[-1], header, voxels)
    refused = worse(*told)
    write_page(
        page, scan, (results[0], results[1]), (before, after), degradation.told(), told[0], told[1], refused
    )
    if refused:
        say(f"Not written: {refused}. {page} shows both.")
        shutil.rmtree(work)
        raise typer.Exit(1)
    os.replace(exported.path, out)
    shutil.rmtree(work)
    gain = told[1].psnr - told[0].psnr
    print(f"{out}: {gain:+.2f} dB in tissue of a head acquired as your scans seem to be")
    print(f"{page} shows before and after. Use it with: udean-run --engine {out}")


def _volume(scan: AlongWorld, axis: int) -> NDArray[np.float32]:
    """A scan as (rows, columns, slices), as the runtime sees it, without negative voxels."""
    return np.ascontiguousarray(np.moveaxis(np.maximum(scan.voxels_in_units(), 0), axis, 2))


def _lie(entries: Sequence[Entry]) -> tuple[int, tuple[float, float, float]]:
    """The world's axis across the slices, and voxel sizes along the world's axes, mm. Raises RunError if
    scans differ in the axis."""
    from ..runtime.scan.geometry import slab_axis
    from ..trainer.data.orientation import open_along_world

    lies: dict[int, list[tuple[Path, tuple[float, float, float]]]] = {}
    for entry in entries:
        zooms = open_along_world(entry.path).zooms
        lies.setdefault(slab_axis(zooms), []).append((entry.path, zooms))
    if len(lies) > 1:
        (first, _), (second, _) = (group[0] for group in list(lies.values())[:2])
        raise RunError(
            f"{first} and {second} have different slice directions: adapt one model to each kind of scan."
        )
    ((axis, group),) = lies.items()
    i, j, k = (float(v) for v in np.median([zooms for _, zooms in group], axis=0))
    return axis, (i, j, k)


def _sources(
    source: list[str] | None,
    labels: list[str] | None,
    zooms: tuple[float, ...],
    folder: Path,
    seed: int,
) -> list[Path]:
    """HR scans: the user's, or heads drawn at these voxel sizes, mm; kept in the folder."""
    from ..trainer.data.scans import find

    if source:
        return [entry.path for entry in find(source)]
    folder.mkdir(parents=True, exist_ok=True)
    maps = [entry.path for entry in find(labels)] if labels else []
    made = []
    for number in range(HEADS):
        file = folder / f"head-{number}.nii.gz"
        if not file.exists():
            typer.echo(f"Drawing head {number + 1} of {HEADS}", err=True)
            _draw(file, maps, zooms, number, seed)
        made.append(file)
    return made


def _draw(file: Path, maps: list[Path], zooms: tuple[float, ...], number: int, seed: int) -> None:
    import nibabel as nib
    from scipy import ndimage

    from ..runtime.system.files import atomic
    from ..trainer.simulation import atlas_heads, heads

    own = int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
    axes = np.eye(3)
    if maps:
        drawn = heads.drawn_head(maps[number % len(maps)], own, float(np.prod(zooms) ** (1 / 3)))
        image, spacing, axes = drawn.image, drawn.spacing, drawn.axes
    else:
        image, spacing = atlas_heads.atlas_head(own)[0], DRAWN
    sizes = np.abs(axes.T) @ np.asarray(zooms)  # along the head's own axes
    coarser = np.maximum(1, sizes / spacing)  # if voxels are finer than drawn, the head is smaller
    if coarser.max() > 1.01:
        image = ndimage.gaussian_filter(image, 0.4 * np.where(coarser > 1.01, coarser, 0))
        image = ndimage.zoom(image, 1 / coarser, order=1)
    affine = np.eye(4)
    affine[:3, :3] = axes * sizes
    nifti = nib.Nifti1Image((image * 1000).round().astype(np.int16), affine)
    with atomic(file) as stream:
        stream.write(gzip.compress(nifti.to_bytes(), 1))


def fine_tuning(steps: int, seed: int) -> dict[str, Any]:
    """The options (without names, method and data) with which the embedded model is trained further."""
    from ..trainer.fit import network_of

    return {
        "init": "default",
        "network": network_of("default"),
        "schedule": {
            "steps": steps,
            "batch": 2,
            "patch": 24,
            "depth": 6,
            "learning_rate": 5e-4,
            "beta2": 0.99,
            "average": 0.99,
            "validate_every": max(1, steps // 4),
            "checkpoint_every": max(1, min(100, steps // 4)),
            "seed": seed,
        },
        "weights": {"ssim": 0.0, "charbonnier": 0.02, "low_band": 1.0},
        "machine": {"workers": 0},
    }


def _config(lr: Sequence[Path], hr: Sequence[Path], axis: int, steps: int, seed: int) -> Config:
    from ..trainer.config import load
    from ..trainer.fit import resolved

    options: dict[str, Any] = {
        **fine_tuning(steps, seed),
        "name": "udean-adapted",
        "method": "parametric",
        "data": {
            "source": [str(path) for path in hr],
            "target": [str(path) for path in lr],
            "slab_axes": [axis],
            "any_voxel_size": True,
            "pairing": "misaligned",  # the same people in both groups do no harm: nothing is paired
        },
    }
    return resolved(load("compact", None, options))


def _seconds_a_step() -> float:
    """Measured seconds of a training step on this machine."""
    import torch

    from ..trainer.config import load
    from ..trainer.fit import network_of, resolved
    from ..trainer.methods import create
    from ..trainer.methods.method import Batch

    config = resolved(load("compact", None, {"network": network_of("default")}))
    method = create("parametric", config.network, 24, dataclasses.replace(config.weights, ssim=0.0))
    lr = torch.rand(2, 6, 24, 24)
    batch = Batch(torch.rand(2, 12, 48, 48), lr, lr)
    mixed = torch.autocast("cpu", torch.bfloat16, enabled=config.schedule.precision == "bf16-mixed")
    took = []
    for _ in range(4):
        begin = time.monotonic()
        with mixed:
            terms, _ = method.turns()[0].losses(batch, {})
        terms["total"].backward()
        took.append(time.monotonic() - begin)
    return float(np.median(took[1:]))


def _steps_before(run: Path) -> int:
    """Number of steps of the interrupted training that is being continued."""
    text = (run / "config.toml").read_text("utf-8", "surrogateescape")  # it names files
    return int(tomllib.loads(text)["schedule"]["steps"])


main = command(
    adapt,
    "udean-adapt",
    "udean-adapt scans/ -o mine.onnx",
    "udean-adapt thick.nii.gz --to 1mm -o thick.onnx",
    "udean-adapt scan.nii.gz --source hr-scans/ --minutes 10 -o mine.onnx",
    extra="train",
)

if __name__ == "__main__":
    main()
