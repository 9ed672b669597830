"""How good is a model on heads it has never seen, degradation by degradation, tissue by tissue?

    python -m udean.benchmarks.quality [CHECKPOINT] [--slices 24] [--heads 2] [--hr FOLDER]

First comes tissue, on whole heads: see `benchmarks.tissue`.

The ICBM152 T1 and synthetic heads with numbers that no training uses (1000 and up) are degraded to half their
resolution along every axis and restored, beside tricubic and zero-filled sinc interpolation. The LR slices in
the middle of each are measured; for the T1 also the whole volume, as in `udean-demo`. Last come the
artefacts: what bfloat16, half precision and eight bits change. No figure depends on the machine's speed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import nibabel as nib
import numpy as np
import typer

from ..export import graph, quantize
from ..runtime.pipeline.engine import Library, Precision
from ..runtime.resolver import SuperResolver
from ..runtime.scan.voxels import Restore, Volume
from ..trainer.evaluation.evaluate import INTERPOLATIONS
from ..trainer.evaluation.quality import psnr, quality, ssim
from ..trainer.simulation import atlas_heads, icbm152, kspace
from . import common, tissue
from .common import run_script
from .tissue import SCALE

SEED = 0  # of noise and bias fields
FIRST = 1000  # number of the first synthetic head; trainings use lower ones
IN_TISSUE = "whole heads, in tissue"
BEST = "sr, mean of three"  # slab axes: --best
MARGIN = 3  # LR slices restored on each side of those that are measured, so that no slab is cut short
CONDITIONS: dict[str, dict[str, Any]] = {
    "truncation": {},
    "noise 1 %": {"noise": 0.01},
    "noise 2 %": {"noise": 0.02},
    "noise 5 %": {"noise": 0.05},
    "blur, no ringing": {"sampling": "blur"},
    "partial Fourier 6/8": {"partial_fourier": 0.75},
    "elliptical k-space": {"elliptical": True},
    "bias field 20 %": {"bias": 0.2},
}
# Artefact, library and arithmetic; all are compared with the first.
PRECISIONS: dict[str, tuple[str, Library, Precision]] = {
    "fp32 (OpenVINO)": ("fp32", "openvino", "fp32"),
    "fp32 (ONNX Runtime)": ("fp32", "onnxruntime", "auto"),
    "bf16 (OpenVINO)": ("fp32", "openvino", "bf16"),
    "fp16 (ONNX Runtime)": ("fp16", "onnxruntime", "auto"),
    "int8 (ONNX Runtime)": ("int8", "onnxruntime", "auto"),
}


def main(
    checkpoint: Annotated[Path | None, typer.Argument(help="Model; the embedded one by default.")] = None,
    slices: Annotated[int, typer.Option(min=6)] = 24,  # SSIM needs 11 HR slices
    heads: Annotated[int, typer.Option(min=0, help="Synthetic heads beside the T1.")] = 2,
    hr: Annotated[Path | None, typer.Option(help="More HR scans to measure in tissue.")] = None,
) -> None:
    """Measure a model; writes benchmarks/results/quality.json, or quality-NAME.json of a checkpoint."""
    wholes, brain = dict(tissue.heads(hr)), icbm152.cropped_t1(SCALE)[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = common.trained(checkpoint, folder) if checkpoint else common.embedded(folder)
        resolve = SuperResolver(files.full, "cpu")
        restorers: dict[str, Restore] = {"sr": resolve}
        if resolve.card.kind == "slab" and len(set(resolve.card.scale)) == 1:
            restorers[BEST] = SuperResolver(files.full, "cpu", best=True)
        by_head = {head: tissue.compare(read(), restorers) for head, read in wholes.items()}
        subjects: dict[str, Callable[[], Volume]] = {"ICBM152 T1": lambda: brain}
        for number in range(FIRST, FIRST + heads):
            subjects[f"synthetic head {number}"] = lambda number=number: unseen(number)
        table = {}
        for subject, read in subjects.items():
            truth = read()
            table[subject] = {c: degraded(truth, c, resolve, slices) for c in CONDITIONS}
        result = {
            "model": resolve.card.name,
            "engine": str(resolve.engine.info),
            "trained on": resolve.card.trained_on,
            IN_TISSUE: by_head,
            "ICBM152 T1, whole volume": whole(brain, resolve),
            f"middle {slices} LR slices, by degradation": table,
            "artefacts on the ICBM152 T1": artefacts(files, brain, unseen(FIRST + heads), slices),
        }
    common.record(f"quality-{checkpoint.stem}" if checkpoint else "quality", result)


def by_degradation(result: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """The table of degradations in a result: figures by subject and degradation."""
    return next(table for name, table in result.items() if name.endswith("by degradation"))


def gain_over_both(row: dict[str, float]) -> float:
    """Gain of SR over the better interpolation, in dB."""
    return row["sr dB"] - max(row[f"{name} dB"] for name in INTERPOLATIONS)


def unseen(number: int) -> Volume:
    """A synthetic head of the cohort that `trainer.simulation.atlas_heads` makes, cropped to even size."""
    head, _ = atlas_heads.atlas_head(int(np.random.SeedSequence((0, number)).generate_state(1)[0]))
    return kspace.crop(head, SCALE)


def whole(hr: Volume, resolve: SuperResolver) -> dict[str, dict[str, float]]:
    """PSNR and SSIM of the whole T1."""
    volumes = by_method(kspace.acquire(hr, kspace.Acquisition(SCALE)), resolve)
    figures = {name: quality(volume, hr) for name, volume in volumes.items()}
    return {
        name: {"PSNR dB": round(q.psnr, 2), "SSIM 3-D": round(q.ssim, 3), "SSIM 2-D": round(q.ssim_2d, 3)}
        for name, q in figures.items()
    }


def degraded(hr: Volume, condition: str, resolve: SuperResolver, slices: int) -> dict[str, float]:
    """PSNR and SSIM of each volume under a degradation, in the middle of the head.

    A bias field is part of what is to be restored: it is applied to the truth too.
    """
    options = dict(CONDITIONS[condition])
    if bias := options.pop("bias", 0.0):
        field = kspace.cosine_field(hr.shape, np.random.default_rng(SEED))
        hr = (hr * np.exp(bias * field)).astype(np.float32)
    lr = kspace.acquire(hr, kspace.Acquisition(SCALE, **options), SEED)
    part, inside, truth = middle_slices(lr, hr, slices)
    found: dict[str, float] = {}
    span = float(np.ptp(truth))
    for name, volume in by_method(part, resolve).items():
        found[f"{name} dB"] = round(psnr(volume[:, :, inside], truth, span), 2)
        found[f"{name} SSIM"] = round(ssim(volume[:, :, inside], truth, span), 3)
    return found


def middle_slices(lr: Volume, hr: Volume, slices: int) -> tuple[Volume, slice, Volume]:
    """LR slices in the middle with margins, the range of their HR slices without margins, and these."""
    first = (lr.shape[2] - slices) // 2
    part = lr[:, :, first - MARGIN : first + slices + MARGIN]
    inside = slice(MARGIN * SCALE[2], (MARGIN + slices) * SCALE[2])
    return part, inside, hr[:, :, first * SCALE[2] : (first + slices) * SCALE[2]]


def by_method(lr: Volume, resolve: SuperResolver) -> dict[str, Volume]:
    """The interpolations and the network's result, by name."""
    return {**{name: method(lr, SCALE) for name, method in INTERPOLATIONS.items()}, "sr": resolve(lr)}


def artefacts(
    files: common.ModelFiles, hr: Volume, other: Volume, slices: int
) -> dict[str, dict[str, float]]:
    """How good each precision is on the T1, against float32 and against the truth.

    other: HR volume of another person; int8 is calibrated on its LR scan.
    """
    part, inside, truth = middle_slices(kspace.acquire(hr, kspace.Acquisition(SCALE)), hr, slices)
    found: dict[str, dict[str, float]] = {}
    models = {"fp32": files.full, "fp16": files.half, "int8": eight_bits(files.full, other)}
    exact: Volume | None = None
    for title, (model, library, precision) in PRECISIONS.items():
        with SuperResolver(models[model], "cpu", precision, library=library) as resolve:
            sr = resolve(part)[:, :, inside]
        found[title] = {
            "PSNR to the truth, dB": round(psnr(sr, truth, float(np.ptp(truth))), 2),
            "MB": round(models[model].stat().st_size / 1e6, 2),
        }
        if exact is None:
            exact = sr
            continue
        against = common.deviation(sr, exact)
        found[title] |= {"PSNR to fp32, dB": against["psnr"], "largest": round(against["largest"], 6)}
    return found


def eight_bits(full: Path, hr: Volume) -> Path:
    """The int8 artefact of a float32 one, calibrated on the LR scan of a head; beside it."""
    model, card = graph.read(full)
    scan, path = full.with_name("lr.nii.gz"), full.with_name("int8.onnx")
    nib.save(nib.Nifti1Image(kspace.acquire(hr, kspace.Acquisition(SCALE)), np.diag([*SCALE, 1])), scan)
    small = quantize.quantize(model, quantize.scan_windows([scan], card))
    path.write_bytes(graph.serialize(small, card.replace(precision="int8")))
    return path


if __name__ == "__main__":
    run_script(main)
