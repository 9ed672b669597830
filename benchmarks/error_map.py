"""How accurate is the map of expected errors on heads that neither training nor calibration has seen?

    python -m udean.benchmarks.error_map [--model MODEL.onnx]

Its weights come from `recipes.error_map`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from scipy import stats

from ..runtime.pipeline import error_map
from ..runtime.resolver import SuperResolver
from ..trainer.evaluation.tissue import tissue_mask
from ..trainer.simulation import kspace
from . import common, tissue
from .common import run_script
from .tissue import SCALE


def main(
    model: Annotated[Path | None, typer.Option(help="ONNX model. (default: the embedded one)")] = None,
) -> None:
    """Count in how many voxels of tissue the interval holds; writes benchmarks/results/error-map.json."""
    with SuperResolver(model or common.EMBEDDED, "cpu", error_map=True) as resolve:
        interval = error_map.calibration(resolve.card)["interval"]
        table = {}
        for name, read in tissue.heads():
            hr = read()
            for condition, noise in tissue.NOISE.items():
                table[f"{name}, {condition}"] = covered(hr, noise, resolve, interval)
                print(f"{name}, {condition}", table[f"{name}, {condition}"], flush=True)
        result = {
            "model": resolve.card.name,
            "interval, times the map": round(interval, 3),
            "share of tissue it is made to hold": error_map.SHARE,
            "weights": {k: round(v, 5) for k, v in error_map.calibration(resolve.card).items()},
            "whole heads, in tissue": table,
        }
    common.record("error-map", result)


def covered(hr: NDArray[Any], noise: float, resolve: SuperResolver, interval: float) -> dict[str, float]:
    """How accurate a map is in tissue."""
    error, expected, _ = errors_in_tissue(hr, noise, resolve)
    return {
        "within the interval": round(float(np.mean(error <= interval * expected)), 3),
        "mean error / mean of the map": round(float(error.mean() / expected.mean()), 3),
        "rank correlation": round(float(stats.spearmanr(error, expected).statistic), 3),
    }


def errors_in_tissue(
    hr: NDArray[Any], noise: float, resolve: SuperResolver
) -> tuple[NDArray[np.float32], NDArray[np.float32], float]:
    """Absolute error and map in tissue, in the scan's units, and the unit."""
    lr = np.rint(kspace.acquire(hr.astype(np.float32), kspace.Acquisition(SCALE, noise=noise), seed=1))
    mask = tissue_mask(hr)
    error = np.abs(resolve(lr) - hr)[mask]
    assert resolve.error_map is not None
    return error, resolve.error_map[mask], resolve.intensities(lr).unit


if __name__ == "__main__":
    run_script(main)
