"""The weights of the map of expected errors, measured and written into a model's card.

    python -m udean.trainer.simulation.heads OUT --labels MAPS --first 1000 --heads 6 --spacing 1.2
    python -m udean.recipes.error_map OUT [--model MODEL.onnx]

The first line draws heads of numbers that no training takes, as coarse as training heads may be. Their
resolution is halved, with noise and without, and restored. The weights are those of the least squares of the
squared error, each divided by what is expected; the interval holds nine of ten voxels of tissue. The drawn
heads are joined by a real one, `real-1mm.nii.gz` of `recipes.default_model prepare`: the model has seen it,
but drawn texture alone would not do. `benchmarks.error_map` says how far they hold on other heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from scipy import optimize

from ..benchmarks import common, tissue
from ..benchmarks.error_map import errors_in_tissue
from ..export import graph
from ..runtime.pipeline import error_map, measured_band
from ..runtime.resolver import SuperResolver
from ..trainer.data.scans import find

NOISE = (0.01, 0.02, 0.03)  # in turn, besides none
VOXELS = 20_000  # of tissue, per restored volume
TIMES = 5  # iterations of reweighting the fit


def main(
    scans: Annotated[Path, typer.Argument(help="Folder of HR scans of little noise.")],
    model: Annotated[Path | None, typer.Option(help="ONNX model. (default: the embedded one)")] = None,
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
    print(f"{path}: {error_map.calibration(graph.read(path)[1])}")


def samples(hr: NDArray[Any], noise: float, resolve: SuperResolver) -> NDArray[np.float64]:
    """Voxels of tissue, (3, n), as shares of the unit: the added noise that comes through the band, the map
    without weights, the absolute error."""
    error, expected, unit = errors_in_tissue(hr, noise, resolve)
    kept = np.random.default_rng(0).choice(len(error), min(VOXELS, len(error)), replace=False)
    brought = noise * measured_band.weight(noise, magnitude=True).share
    return np.stack([np.full(len(kept), brought), expected[kept] / unit, error[kept] / unit]).astype(
        np.float64
    )


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
    common.run_script(main, "train")
