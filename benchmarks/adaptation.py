"""LR scans whose degradation no method is told: what adapting to it is worth, in tissue.

Three scanners degrade heads; a network knows HR heads of other people (source) and a few LR scans of further
ones (target). Rows: interpolations; the embedded model, which knows truncation; the same, adapted to the
degradation that `trainer.simulation.estimate` reads off the target scans; the same, trained in as many steps
on the true degradation (bound); UDEAN's own adaptation from the same weights. Test heads are of none of the
groups.

    python -m udean.benchmarks.adaptation OUT --source HR... --target HR... --test HR... [--steps 400]

OUT keeps what is done: the same command goes on after it was stopped.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import nibabel as nib
import numpy as np
import torch
import typer
from numpy.typing import NDArray

from ..export.adapt import fine_tuning
from ..export.artefacts import export_onnx
from ..runtime.commands.common import sentences
from ..runtime.pipeline import consistency
from ..runtime.resolver import Consistency, SuperResolver
from ..runtime.scan.noise import estimate_noise
from ..runtime.system.files import read_json, write_json
from ..trainer.config import Config, load
from ..trainer.evaluation.evaluate import INTERPOLATIONS
from ..trainer.evaluation.tissue import PEAK, in_tissue, tissue_mask
from ..trainer.fit import fit
from ..trainer.simulation.kspace import Acquisition, Degradation, acquire
from . import common, tissue

Volume = NDArray[Any]  # float32
SCALE = (2, 2, 2)
TARGETS: dict[str, Degradation] = {
    "partial Fourier 6/8, elliptical, 2 % noise": Degradation(
        partial_fourier=0.75, elliptical=True, noise=0.02
    ),
    "Gaussian blur of an LR voxel, 1 % noise": Degradation(sampling="blur", noise=0.01),
    "slice profile of 1.6 voxels, Hamming, 1 % noise": Degradation(
        width=(0.0, 0.0, 1.6), hamming=0.8, noise=0.01
    ),
}
TRAINED = ("adapted", "bound", "udean")
BLOCK = (48, 56, 32)  # LR voxels in the middle of a test head that are restored and measured
UDEAN_STEPS = 5  # of the others' steps one of UDEAN's takes as long as
Scans = Annotated[list[str], typer.Option(help="HR scans: files, folders or globs; repeatable.")]


def main(
    out: Annotated[Path, typer.Argument(help="Folder of the runs; resumes.")],
    source: Scans,
    target: Scans,
    test: Scans,
    steps: Annotated[int, typer.Option(min=8, help="Of each training; UDEAN takes a fifth.")] = 400,
    rows: Annotated[str, typer.Option(help="Trainings: adapted, bound, udean.")] = "adapted,bound",
    seed: Annotated[int, typer.Option(min=0)] = 0,
) -> None:
    """Train, measure, and write benchmarks/results/adaptation.json."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    heads = {Path(path).name.partition(".")[0]: path for path in test}
    table = out / "adaptation.json"
    found: dict[str, Any] = read_json(table)
    for row in ("interpolations", "embedded", *(r for r in TRAINED if r in rows.split(","))):
        for number, (name, degradation) in enumerate(TARGETS.items()):
            kept = found.setdefault(name, {})
            if row in kept:
                continue
            folder = out / "abc"[number]
            lr = [_acquired(path, degradation, folder / "lr", i) for i, path in enumerate(target)]
            model, told = "", ""
            if row in TRAINED:
                chosen = _config(row, source, target, lr, degradation, steps, seed)
                run = folder / f"{row}-{steps}-{seed}"
                final = fit(chosen, run, resume=(run / "checkpoint.pt").exists(), report=_say)
                (exported, *_) = export_onnx(final, run)
                model, told = str(exported.path), exported.card.trained_on
            kept[row] = {"figures": {}, "trained on": told}
            for head, path in heads.items():
                kept[row]["figures"][head] = _measured(path, degradation, row, model)
            write_json(table, found)
            print(name, row, kept[row]["figures"], flush=True)
    # The places of a user's scans are his own.
    options = ["--source", "HR", "--target", "HR", "--test", "HR", "--steps", str(steps), "--seed", str(seed)]
    command = ["python", "-m", "udean.benchmarks.adaptation", "OUT", *options, "--rows", rows]
    result = {"steps": steps, "seed": seed, "targets": found}
    write_json(common.RESULTS / "adaptation.json", {**common.circumstances(command), **result})


def _say(step: int, total: int, values: dict[str, float]) -> None:
    if step % 50 == 0:
        print(f"  step {step} of {total}", {k: round(v, 4) for k, v in values.items()}, flush=True)


def _head(path: str) -> Volume:
    """HR voxels along the world's axes, the 99.9th percentile 1, sides multiples of 4."""
    image: Any = nib.as_closest_canonical(nib.load(path))  # pyright: ignore[reportPrivateImportUsage]
    hr = np.maximum(np.asarray(image.dataobj, np.float32), 0)
    hr = hr[tuple(slice(n - n % 4) for n in hr.shape)]
    return hr / np.float32(np.percentile(hr, PEAK))


def _acquired(path: str, degradation: Degradation, folder: Path, seed: int) -> str:
    """An LR scan of a head, as a file."""
    file = folder / Path(path).name
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        lr = acquire(_head(path), Acquisition(SCALE, **vars(degradation)), seed)
        nib.save(nib.Nifti1Image(np.rint(lr * tissue.RANGE).astype(np.int16), np.diag([2.0, 2, 2, 1])), file)
    return str(file)


def _config(
    row: str,
    source: Sequence[str],
    target: Sequence[str],
    lr: Sequence[str],
    degradation: Degradation,
    steps: int,
    seed: int,
) -> Config:
    options: dict[str, Any] = {
        **fine_tuning(steps, seed),
        "name": f"adaptation-{row}",
        "method": {"adapted": "parametric", "bound": "supervised", "udean": "udean"}[row],
        "data": {"source": list(source), "target": list(lr), "slab_axes": [2], "any_voxel_size": True},
    }
    if row == "bound":
        options["data"] |= {"target": list(source), "target_simulated": True, "pairing": "aligned"}
        options["degradation"] = dataclasses.asdict(degradation)
    if row == "udean":
        options["schedule"] |= {"steps": max(1, steps // UDEAN_STEPS), "depth": 3, "patch": 32, "batch": 4}
        del options["weights"]
    return load("compact", None, options)


def _measured(path: str, degradation: Degradation, row: str, model: str) -> dict[str, float]:
    """PSNR in dB in the tissue of the middle of a head, by how it was restored."""
    hr = _head(path)
    lr = acquire(hr, Acquisition(SCALE, **vars(degradation)), 1000)
    lr = np.rint(lr * np.float32(tissue.RANGE))
    hr = hr * np.float32(tissue.RANGE)
    corner = [(n - b) // 2 for n, b in zip(lr.shape, BLOCK, strict=True)]
    block = tuple(slice(c, c + b) for c, b in zip(corner, BLOCK, strict=True))
    fine = tuple(slice(2 * part.start, 2 * part.stop) for part in block)
    low, truth, mask = lr[block], hr[fine], tissue_mask(hr)[fine]

    def psnr(sr: Volume) -> float:
        return round(in_tissue(sr, truth, mask=mask).psnr_tissue or 0.0, 3)

    if row == "interpolations":
        return {name: psnr(method(lr, SCALE)[fine]) for name, method in INTERPOLATIONS.items()}
    unit = float(np.percentile(lr, PEAK))
    share = consistency.weight(estimate_noise(lr, unit).sigma / unit, True).share  # of the whole scan
    figures = {}
    ways: dict[str, Consistency] = {"held": share, "network alone": "off"}
    for held, asked in ways.items():
        with SuperResolver(model or None, consistency=asked, threads=1) as resolve:
            without = "network alone" if row == "embedded" else "held"
            if held == without and (row == "embedded" or resolve.card.consistency == "off"):
                continue
            figures[held] = psnr(resolve(low))
    return figures


if __name__ == "__main__":
    with sentences("train"):
        typer.run(main)
