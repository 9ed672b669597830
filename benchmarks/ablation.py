"""The worth of each part of the embedded model's recipe: one thing changed at a time, and UDEAN beside it.

Every row trains the shipped recipe (`default_model.toml`), at the compact preset's width, for the same few
steps on the same heads, with one change, and restores Colin27, the macaque and the ICBM152 T1, whole, as
`benchmarks.tissue` does. "UDEAN" is the same network trained unpaired: half of the heads are its HR group,
the truncations of the other half its LR group.

    python -m udean.benchmarks.ablation OUT --hr FOLDER [--steps 1500] [--rows "recipe,UDEAN"]

FOLDER: heads as `make default-model` draws them (RUN/hr). OUT keeps finished runs: after an interruption the
same command continues.
"""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from statistics import mean
from typing import Annotated, Any

import typer

from ..export.artefacts import export_onnx
from ..runtime.resolver import SuperResolver
from ..runtime.scan.voxels import Restore
from ..trainer.config import Config, load
from ..trainer.data.scans import scan_paths
from ..trainer.evaluation.evaluate import INTERPOLATIONS
from ..trainer.simulation.kspace import Degradation
from . import common, tissue
from .common import run_script
from .tissue import SCALE
from .trainings import kept, train

RECIPE = Path(__file__).parents[1] / "recipes" / "default_model.toml"
WIDTH = 32  # channels, in all rows but one: half the time
# What each row changes of the recipe, by table of the configuration.
ROWS: dict[str, dict[str, dict[str, Any]]] = {
    "recipe": {},
    "UDEAN, unpaired": {"": {"method": "udean"}},
    "slabs alone, not blocks": {"schedule": {"depth": 3, "patch": 32, "batch": 4}},
    "L1 for Charbonnier": {"weights": {"charbonnier": 0.0}},
    "measured band in full in the loss": {"weights": {"low_band": 1.0}},
    "SSIM in the loss, 0.1": {"weights": {"ssim": 0.1}},
    "weights as they are, no moving average": {"schedule": {"average": 0.0}},
    "with biases": {"network": {"homogeneous": False}},
    "no interpolation skip": {"network": {"skip": "none"}},
    "as wide as the embedded model": {"network": {"channels": 48}},
    "twice as deep": {"network": {"groups": 4}},
    "no degradations besides truncation": {"variation": {}},
}
Scans = Annotated[Path, typer.Option(help="Folder of HR scans to train on.")]


def main(
    out: Annotated[Path, typer.Argument(help="Folder of the runs; resumes.")],
    hr: Scans,
    steps: Annotated[int, typer.Option(min=8, help="Steps of each training.")] = 1500,
    seeds: Annotated[int, typer.Option(min=1, help="Number of trainings for each row.")] = 1,
    rows: Annotated[str, typer.Option(help="Rows to train, by their beginnings; all by default.")] = "",
) -> None:
    """Train, measure, and write benchmarks/results/ablation.json."""
    asked = tuple(part.strip() for part in rows.split(","))
    scans, heads = [str(path) for path in scan_paths([hr])], dict(tissue.heads())

    def measured(*methods: Restore) -> dict[str, dict[str, float]]:
        """dB in tissue by noise and head, by the best of the methods."""
        return {
            condition: {
                name: max(tissue.decibels(read(), Degradation(noise=noise), method) for method in methods)
                for name, read in heads.items()
            }
            for condition, noise in tissue.NOISE.items()
        }

    def result(row: str, seed: int) -> dict[str, Any]:
        run = out / f"{row.replace(' ', '-')}-{steps}-{seed}"
        model = export_onnx(train(configuration(row, scans, steps, seed), run), run)[0]
        with SuperResolver(model.path, threads=1) as resolve:
            return {"parameters": resolve.card.parameters, **measured(resolve)}

    by_hand = [lambda lr, method=method: method(lr, SCALE) for method in INTERPOLATIONS.values()]
    base = kept(out / "results" / "interpolations.json", lambda: measured(*by_hand))
    gains: dict[str, Any] = {}
    for row in ROWS:
        runs = []
        for seed in range(seeds):
            file = out / "results" / f"{row} {steps} {seed}.json"
            if row.startswith(asked) or file.exists():
                runs.append(kept(file, functools.partial(result, row, seed)))
                print(file.stem, runs[-1], flush=True)
        if runs:
            gains[row] = {"parameters": runs[0]["parameters"], "seeds": len(runs)}
            gains[row] |= {
                c: {head: round(mean(run[c][head] for run in runs) - base[c][head], 3) for head in heads}
                for c in tissue.NOISE
            }
    found = {"steps": steps, "heads": len(scans), "better interpolation, tissue dB": base}
    found["gain in tissue, dB"] = gains
    common.record("ablation", found, arguments=["OUT", "--hr", "HR", "--steps", str(steps)])


def configuration(row: str, scans: list[str], steps: int, seed: int) -> Config:
    """The recipe's configuration with one change. Raises ConfigError for an impossible one."""
    options: dict[str, Any] = tomllib.loads(RECIPE.read_text("utf-8"))
    options["schedule"] |= {"steps": steps, "seed": seed, "validate_every": steps, "precision": "auto"}
    data = {
        key: value for key, value in options["data"].items() if key not in ("validation_hr", "described_as")
    }
    options["data"] = data | {"source": scans, "target": scans}
    options["network"]["channels"] = WIDTH
    for name, changes in ROWS[row].items():
        if not name:
            options |= changes
        elif changes:
            options[name] |= changes
        else:
            del options[name]
    if options["method"] == "udean":
        options["data"] |= {"source": scans[::2], "target": scans[1::2], "pairing": "unpaired"}
        options["schedule"] |= {"depth": 3, "patch": 32, "batch": 4}
        del options["weights"]
    return load("compact", None, options)


if __name__ == "__main__":
    run_script(main, "train")
