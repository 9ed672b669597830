"""How accurate is the map of expected errors, and where do its weights come from?

    python -m udean.trainer.simulation.heads OUT --labels MAPS --first 1000 --heads 6 --spacing 1.2
    python -m udean.benchmarks.error_map calibrate OUT [--model MODEL.onnx]
    python -m udean.benchmarks.error_map check [--model MODEL.onnx]

The first line draws heads of numbers that no training takes, as coarse as training heads may be. `calibrate`
halves their resolution with noise and without, restores them, and writes the weights of
`runtime.pipeline.error_map` into the model's card: those of the least squares of the squared error, each
divided by what is expected, and the interval that holds nine of ten voxels of tissue. `check` restores whole
heads that neither training nor calibration has seen, and counts. The drawn heads are joined by a real one,
`real-1mm.nii.gz` of `benchmarks.default_model prepare`: the model has seen it, but drawn texture alone would
not do.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from scipy import optimize, stats

from ..export import graph
from ..runtime.pipeline import error_map, measured_band
from ..runtime.resolver import SuperResolver
from ..trainer.data.scans import find
from ..trainer.evaluation.tissue import tissue_mask
from ..trainer.simulation import kspace
from . import common, tissue
from .common import run_script
from .demo import SCALE

NOISE = (0.01, 0.02, 0.03)  # in turn, besides none
VOXELS = 20_000  # of tissue, per restored volume
TIMES = 5  # iterations of reweighting the fit

app = typer.Typer(help=__doc__)
Model = Annotated[Path | None, typer.Option(help="ONNX model. (default: the embedded one)")]


@app.command()
def calibrate(
    scans: Annotated[Path, typer.Argument(help="Folder of HR scans of little noise.")],
    model: Model = None,
) -> None:
    """Measure MODEL's weights on SCANS, none of which it was trained on, and write them into its card."""
    path = model or common.EMBEDDED
    network, card = graph.read(path)
    found: list[NDArray[np.float64]] = []
    with TemporaryDirectory() as folder:
        bare = Path(folder) / "bare.onnx"
        bare.write_bytes(graph.serialize(network, with_figures(card, floor=0, noise=0, spread=1, interval=1)))
        with SuperResolver(bare, "cpu", error_map=True) as resolve:
            for number, entry in enumerate(find([str(scans)])):
                hr = tissue.read_head(entry.path)
                for noise in (0.0, NOISE[number % len(NOISE)]):
                    found.append(samples(hr, noise, resolve))
                    print(f"{entry.path.name}, noise {noise:.0%}", flush=True)
    weights = fitted(found)
    path.write_bytes(graph.serialize(network, with_figures(card, **weights)))
    print(f"{path}: {error_map.figures(graph.read(path)[1])}")


@app.command()
def check(model: Model = None) -> None:
    """Count in how many voxels of tissue the interval holds; writes benchmarks/results/error-map.json."""
    with SuperResolver(model or common.EMBEDDED, "cpu", error_map=True) as resolve:
        interval = error_map.figures(resolve.card)["interval"]
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
            "weights": {k: round(v, 5) for k, v in error_map.figures(resolve.card).items()},
            "whole heads, in tissue": table,
        }
    common.record("error-map", result)


def samples(hr: NDArray[Any], noise: float, resolve: SuperResolver) -> NDArray[np.float64]:
    """Voxels of tissue, (3, n), as shares of the unit: the added noise that comes through the band, the map
    without weights, the absolute error."""
    error, expected, unit = errors_in_tissue(hr, noise, resolve)
    kept = np.random.default_rng(0).choice(len(error), min(VOXELS, len(error)), replace=False)
    brought = noise * measured_band.weight(noise, magnitude=True).share
    return np.stack([np.full(len(kept), brought), expected[kept] / unit, error[kept] / unit]).astype(
        np.float64
    )


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


def fitted(found: Sequence[NDArray[np.float64]]) -> dict[str, float]:
    """Weights and interval from `samples` of several volumes, with equal weight."""
    least = min(part.shape[1] for part in found)
    noise, bare, error = np.concatenate([part[:, :least] for part in found], axis=1)
    squares = np.stack([np.ones_like(noise), noise**2, bare**2], axis=1)
    weights, expected = np.zeros(3), np.ones_like(error)
    for _ in range(TIMES):  # the spread of a squared error is proportional to its mean
        scale = (squares / expected[:, None]).std(0) + 1e-12
        weights = optimize.nnls(squares / expected[:, None] / scale, error**2 / expected)[0] / scale
        expected = np.maximum(squares @ weights, 1e-5)
    rms = np.sqrt(squares @ weights)
    mean = float(error.mean() / rms.mean())  # the map gives the mean error, not its RMS
    floor, per_noise, spread = np.sqrt(weights) * mean
    interval = float(np.quantile(error / (rms * mean), error_map.SHARE))
    return {"floor": floor, "noise": per_noise, "spread": spread, "interval": interval}


def with_figures(card: Any, **weights: float) -> Any:
    """A card that has these weights."""
    told = {error_map.key(name): round(float(value), 5) for name, value in weights.items()}
    return card.replace(quality={**card.quality, **told})


if __name__ == "__main__":
    run_script(app)
