"""What is adapting to an unknown degradation worth, in tissue?

Three scanners degrade heads; a network sees HR heads of some people (source) and a few LR scans of others
(target). All trainings start from the embedded model, which knows truncation. Without pairs, best.pt is
measured, which is chosen without truth; a further head (validation) shows how well that choice agrees with
the truth. Test heads belong to none of these groups.

    python -m udean.benchmarks.adaptation OUT --source HR... --target HR... --validation HR... --test HR...
        [--rows 'udean;cyclegan'] [--seeds 3] [--steps 150]

OUT keeps finished runs: after an interruption the same command continues, and a command with other rows,
seeds or steps adds to the same table.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from scipy import stats

from ..export.adapt import fine_tuning
from ..runtime.commands.common import sentences
from ..runtime.errors import RunError
from ..runtime.resolver import SuperResolver
from ..runtime.system.files import read_json
from ..trainer import checkpoint
from ..trainer.config import Config, load
from ..trainer.evaluation.evaluate import INTERPOLATIONS
from ..trainer.methods import METHODS, Name
from ..trainer.simulation.files import simulate
from ..trainer.simulation.kspace import Acquisition, Degradation
from . import common, tissue
from .tissue import SCALE
from .trainings import kept, train

Volume = NDArray[Any]  # float32
Options = dict[str, Any]
TARGETS: dict[str, Degradation] = {
    "partial Fourier 6/8, elliptical, 2 % noise": Degradation(
        partial_fourier=0.75, elliptical=True, noise=0.02
    ),
    "Gaussian blur of an LR voxel, 1 % noise": Degradation(sampling="blur", noise=0.01),
    "slice profile of 1.6 voxels, Hamming, 1 % noise": Degradation(
        width=(0.0, 0.0, 1.6), hamming=0.8, noise=0.01
    ),
}
LETTERS = dict(zip("abc", TARGETS, strict=True))  # the folders in OUT
SLABS: Options = {"schedule": {"depth": 3, "patch": 24, "batch": 4}}  # for methods that see slabs only
CHECKPOINTS = 5  # per run without pairs, to choose from
MEASURED = ("interpolations", "embedded")  # rows that train nothing


@dataclass(frozen=True)
class Row:
    """A training. options: override `fine_tuning` (for methods on slabs, the compact preset)."""

    method: Name
    options: Options = field(default_factory=dict)


BEFORE = {"anchor": 10.0, "anchor_left": 1.0, "image_adaptation": 0.1}  # what the compact preset was
FALLING = BEFORE | {"anchor_left": 0.01}  # 10 to 0.1
TENFOLD = FALLING | {"image_adaptation": 1.0}
LIGHT = TENFOLD | {"anchor": 1.0}
HUNDREDFOLD = LIGHT | {"image_adaptation": 10.0}


def _udean(weights: Mapping[str, float], judges: str = "patch", noise: bool = True) -> Row:
    return Row("udean", {"weights": weights, "network": {"judges": judges, "noise": noise}})


def _coarse(method: Name, coarse: str) -> Row:
    return Row(method, {"data": {"coarse": coarse}})


ROWS: dict[str, Row] = {
    # The embedded network's own method continues: on truncation (wrong), on the estimate, on the truth.
    "truncation": Row("supervised"),
    "adapted": Row("parametric"),
    "bound": Row("supervised"),
    # UDEAN, as the compact preset has it, and its ablations
    "udean": _udean({}),
    "udean, image only": _udean({"feature_adaptation": 0.0}),
    "udean, features only": _udean({"image_adaptation": 0.0}),
    "udean, neither": _udean({"feature_adaptation": 0.0, "image_adaptation": 0.0}),
    # The baselines, as published and with truncation; cyclegan uses neither.
    "cyclegan": Row("cyclegan"),
    "dasr, bicubic": _coarse("dasr", "bicubic"),
    "dasr, truncation": _coarse("dasr", "truncation"),
    "pseudosr, bicubic": _coarse("pseudosr", "bicubic"),
    "pseudosr, truncation": _coarse("pseudosr", "truncation"),
    "zssr, bicubic": _coarse("zssr", "bicubic"),
    "zssr, truncation": _coarse("zssr", "truncation"),
}
# What was tried to make UDEAN adapt, each added to the one above it; with an anchor of 1 to 0.1 the last of
# these is the row "udean". Then the other adaptation with more weight, and trainings that start from nothing.
TRIED: dict[str, Row] = {
    "anchor 10": _udean(BEFORE, "slab", noise=False),
    "+ anchor 10 to 0.1": _udean(FALLING, "slab", noise=False),
    "+ patch judges": _udean(FALLING, noise=False),
    "+ noise": _udean(FALLING),
    "+ image adaptation tenfold": _udean(TENFOLD),
    "+ anchor 1 to 0.01": _udean(LIGHT),
    "+ image adaptation a hundredfold": _udean(HUNDREDFOLD),
    "udean, feature adaptation tenfold": _udean({"feature_adaptation": 1.0}),
    "udean, feature adaptation a hundredfold": _udean({"feature_adaptation": 10.0}),
    "anchor 10, from random weights": Row(
        "udean", _udean(BEFORE, "slab", noise=False).options | {"init": ""}
    ),
    "udean, from random weights": Row("udean", {"init": ""}),
}
ALL = ROWS | TRIED
BOTH, ALONE = "udean", ("udean, image only", "udean, features only")  # its adaptations, and each by itself
Scans = Annotated[list[str], typer.Option(help="HR scans: files, folders or globs; repeatable.")]


@dataclass(frozen=True)
class Cohort:
    """HR scans by group; LR scans of them are made in `out`."""

    out: Path
    source: Sequence[str]
    target: Sequence[str]
    validation: Sequence[str]
    test: Sequence[str]


def main(
    out: Annotated[Path, typer.Argument(help="Folder of the runs; resumes.")],
    source: Scans,
    target: Scans,
    validation: Scans,
    test: Scans,
    rows: Annotated[str, typer.Option(help="Rows of ROWS and TRIED, separated by semicolons.")] = ";".join(
        ROWS
    ),
    targets: Annotated[str, typer.Option(help="Which scanners, in this order.")] = "bca",
    steps: Annotated[int, typer.Option(min=8, help="Steps of each training.")] = 150,
    seeds: Annotated[int, typer.Option(min=1)] = 1,
    scan: Annotated[list[str] | None, typer.Option(help="LR scans to run udean-adapt on.")] = None,
    minutes: Annotated[float, typer.Option(help="Time limit for udean-adapt.")] = 25.0,
) -> None:
    """Train, measure, and write benchmarks/results/adaptation.json."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
    cohort = Cohort(out, source, target, validation, test)
    asked = [name.strip() for name in rows.split(";")]
    for name in {*asked} - {*ALL}:
        raise RunError(f"There is no row '{name}': choose from {'; '.join(ALL)}.")
    # First the rows without training, then one seed of everything before the next seed.
    todo = [(name, letter, 0, 0) for letter in targets for name in MEASURED]
    todo += [(name, letter, seed, steps) for seed in range(seeds) for name in asked for letter in targets]
    for name, letter, seed, length in todo:
        file = out / "results" / f"{letter} {name} {length} {seed}.json"
        found = kept(file, functools.partial(_result, cohort, name, letter, length, seed))
        print(file.stem, found["figures"], flush=True)
    for path in scan or []:
        file = out / "results" / f"udean-adapt {_name(path)}.json"
        kept(file, functools.partial(_command, cohort, path, minutes))
    groups = ["--source", "HR", "--target", "HR", "--validation", "HR", "--test", "HR"]
    common.record("adaptation", summary(out), arguments=["OUT", *groups])


def _result(cohort: Cohort, name: str, letter: str, steps: int, seed: int) -> dict[str, Any]:
    """Figures by head and method; of a training also its cost, its settings and its checkpoints."""
    degradation = TARGETS[LETTERS[letter]]
    model, more = None, {}
    if name in ALL:
        config = _config(cohort, ALL[name], name, letter, steps, seed)
        run = cohort.out / letter / f"{name} {steps} {seed}"
        start = time.process_time()
        model = train(config, run)
        more = {
            "steps": steps,
            "seed": seed,
            "processor seconds": round(time.process_time() - start),
            "trained on": checkpoint.load_generator(model)[1].trained_on,
            "checkpoints": _watched(run),
        }
    figures = {_name(p): _measured(p, degradation, name, model) for p in cohort.test}
    return {"row": name, "figures": figures, **more}


def _command(cohort: Cohort, scan: str, minutes: float) -> dict[str, Any]:
    """What `udean-adapt` reports for a whole LR scan, and the processor time it takes."""
    model = cohort.out / "adapt" / f"{_name(scan)}.onnx"
    model.parent.mkdir(exist_ok=True)
    source = [part for path in cohort.source for part in ("--source", path)]
    options = ["-o", str(model), "--minutes", str(minutes)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ran = subprocess.run(
        [sys.executable, "-m", "udean.export.adapt", scan, *source, *options],
        capture_output=True,
        text=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if ran.returncode not in (0, 1):
        raise RunError(f"udean-adapt failed on {scan}: {ran.stderr.strip()}")
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return said(ran.stdout, ran.stderr) | {"processor minutes": round(seconds / 60, 1)}


def said(stdout: str, stderr: str) -> dict[str, Any]:
    """Parse the outcome from udean-adapt's output."""
    steps = re.search(r"step \d+ of (\d+)", stderr)
    gain = re.search(r": ([+-][\d.]+) dB in tissue", stdout)
    refused = re.search(r"Not written: (.*?)\. ", stdout)
    found = re.search(r"Read off your scans: (.*)", stdout)
    return {
        "steps": int(steps[1]) if steps else 0,
        "gain": float(gain[1]) if gain else None,
        "read off": found[1] if found else "",
        "refused": refused[1] if refused else "",
    }


def _name(path: str) -> str:
    return Path(path).name.partition(".")[0]


def _watched(run: Path) -> list[dict[str, float]]:
    """The validation figures of a run."""
    with open(run / "metrics.csv", newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row.get("validation_psnr")]
    names = ("step", "selection", "validation_psnr")
    return [{name: round(float(row[name]), 3) for name in names} for row in rows]


def _acquired(path: str, degradation: Degradation, folder: Path, seed: int) -> str:
    """An LR scan of a head, in its units, as `udean-simulate` writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    return str(simulate(Path(path), folder, Acquisition(scale=SCALE, **vars(degradation)), seed))


def _config(cohort: Cohort, row: Row, name: str, letter: str, steps: int, seed: int) -> Config:
    degradation, folder = TARGETS[LETTERS[letter]], cohort.out / letter / "lr"
    lr, watched = (
        [_acquired(path, degradation, folder, first + i) for i, path in enumerate(group)]
        for first, group in ((0, cohort.target), (100, cohort.validation))
    )
    layers: list[Options] = [fine_tuning(steps, seed)]
    data: dict[str, Any] = {"source": list(cohort.source), "slab_axes": [2], "any_voxel_size": True}
    if METHODS[row.method].draws == "pairs":
        told = dataclasses.asdict(degradation) if name == "bound" else {}
        data |= {"target": data["source"], "target_simulated": True, "pairing": "aligned"}
        layers.append({"data": data, "degradation": told})
    else:
        data |= {"target": lr, "validation_lr": watched, "validation_hr": list(cohort.validation)}
        layers.append({"data": data})
    if row.method not in ("supervised", "parametric"):
        del layers[0]["weights"]  # those of the preset
        layers += [SLABS, {"schedule": {"validate_every": max(1, steps // CHECKPOINTS)}}]
    options: dict[str, Any] = {"name": f"adaptation-{letter}-{name}", "method": row.method}
    for layer in (*layers, row.options):
        for table, values in layer.items():
            options[table] = options.get(table, {}) | values if isinstance(values, dict) else values
    return load("compact", None, options)


def _measured(path: str, degradation: Degradation, row: str, model: Path | None) -> dict[str, float]:
    """PSNR in dB in the tissue of a whole head, by method: restored as by `udean-run`, or interpolated."""
    hr = tissue.read_head(Path(path))
    decibels = functools.partial(tissue.decibels, hr, degradation, seed=1000)
    if row == "interpolations":
        return {name: decibels(lambda lr, method=m: method(lr, SCALE)) for name, m in INTERPOLATIONS.items()}
    with SuperResolver(model, threads=1) as resolve:
        return {"held": decibels(resolve)}


def summary(out: Path) -> dict[str, Any]:
    """The results so far: by scanner, each row's figures at its largest number of steps, and how well
    choosing a checkpoint without truth agrees with the truth.

    gain: over the embedded model, mean over heads and seeds; sd: over seeds.
    """
    targets: dict[str, Any] = {}
    for letter, target in LETTERS.items():
        found = [read_json(path) for path in sorted((out / "results").glob(f"{letter} *.json"))]
        rows: dict[str, Any] = {}
        for name in (*MEASURED, *ALL):
            runs = [result for result in found if result["row"] == name]
            longest = max((result.get("steps", 0) for result in runs), default=0)
            runs = [_as_run(result) for result in runs if result.get("steps", 0) == longest]
            if not runs:
                continue
            rows[name] = {"figures": {head: _mean([run[head] for run in runs]) for head in runs[0]}}
            if name != "interpolations":
                embedded = rows["embedded"]["figures"]
                gains = [_mean([run[head] - embedded[head] for head in run]) for run in runs]
                rows[name]["gain"] = _mean(gains)
                if len(gains) > 1:
                    rows[name]["sd"] = round(float(np.std(gains, ddof=1)), 3)
            if longest:
                rows[name] |= {"steps": longest, "seeds": len(runs)}
        if rows:
            unpaired = [result["checkpoints"] for result in found if len(result.get("checkpoints", ())) > 1]
            ahead = {name: _ahead(found, name) for name in ALONE if name in rows}
            targets[target] = {"rows": rows, "ahead": ahead, "selection": _selection(unpaired)}
    commands = {
        p.stem.removeprefix("udean-adapt "): read_json(p) for p in (out / "results").glob("udean-*.json")
    }
    return {"targets": targets, "udean-adapt": dict(sorted(commands.items()))}


def _ahead(found: Sequence[Mapping[str, Any]], other: str) -> dict[str, float]:
    """How far UDEAN is ahead of another row, seed by seed: trainings of one seed see the same patches."""
    figures: dict[str, dict[tuple[int, int], float]] = {BOTH: {}, other: {}}
    for result in found:
        if result["row"] in figures:
            run = _as_run(result)
            figures[result["row"]][result["steps"], result["seed"]] = float(np.mean(list(run.values())))
    common = sorted(figures[BOTH].keys() & figures[other].keys())
    ahead = [figures[BOTH][run] - figures[other][run] for run in common]
    spread = {"sd": round(float(np.std(ahead, ddof=1)), 3)} if len(ahead) > 1 else {}
    return {"mean": _mean(ahead), **spread, "seeds": len(ahead)}


def _as_run(result: Mapping[str, Any]) -> dict[str, float]:
    """By head: the better interpolation, or as the runtime restores with this model."""
    ways = {head: list(by_way.values()) for head, by_way in result["figures"].items()}
    return {
        head: max(values) if result["row"] == "interpolations" else values[0] for head, values in ways.items()
    }


def _mean(values: Sequence[float]) -> float:
    return round(float(np.mean(values)), 3)


def _selection(runs: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, float]:
    """Rank correlation (Spearman) of the figure that chooses checkpoints without truth with their PSNR, over
    the last checkpoints of all runs and within runs; and the dB lost compared with choosing by the truth."""
    if not runs:
        return {}
    last = [run[-1] for run in runs]
    within = [float(stats.spearmanr(*_columns(run)).statistic) for run in runs]
    chosen = [max(run, key=lambda watched: watched["selection"]) for run in runs]
    best = [max(watched["validation_psnr"] for watched in run) for run in runs]
    lost = [b - c["validation_psnr"] for b, c in zip(best, chosen, strict=True)]
    return {
        "runs": len(runs),
        **(
            {"between runs": round(float(stats.spearmanr(*_columns(last)).statistic), 2)}
            if len(runs) > 2
            else {}
        ),
        "within a run, mean": round(float(np.nanmean(within)), 2),
        "lost, mean": round(float(np.mean(lost)), 2),
        "lost, most": round(float(np.max(lost)), 2),
    }


def _columns(rows: Sequence[Mapping[str, float]]) -> tuple[list[float], list[float]]:
    return [row["selection"] for row in rows], [row["validation_psnr"] for row in rows]


if __name__ == "__main__":
    with sentences("train"):
        typer.run(main)
