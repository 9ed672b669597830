"""Tables I and II of the paper on any cohort of HR scans, resumable, beside the paper's own numbers.

    python -m udean.benchmarks.paper.tables hcp:/data/HCP -o tables
    python -m udean.benchmarks.paper.tables heads/ -o tables --preset compact --setting misaligned

Participants are divided once into source, target, validation and test group (4:4:1:1, as 120/120/30/30). LR
scans are simulated. Every experiment trains in OUT/runs/NAME, is tested on the test group, and is not
repeated; run the command again after an interruption or with more experiments. Several GPUs: one command
each, with other --method or --setting and the same --out. Results: OUT/tables.md, .json and pictures.
"""

from __future__ import annotations

import csv
import dataclasses
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ...runtime.errors import RunError
from ...runtime.resolver import SuperResolver
from ...runtime.scan.scan import open_scan
from ...runtime.scan.voxels import Volume
from ...runtime.system.files import read_json, write_json
from ...trainer.cli import parse_scale
from ...trainer.config import ROUNDING, Config, changed, load
from ...trainer.data.scans import CohortError, Entry, find
from ...trainer.evaluation.evaluate import INTERPOLATIONS, Summary
from ...trainer.evaluation.quality import Figures, measure
from ...trainer.fit import fit, resolved
from ...trainer.simulation import kspace
from ..common import run_script
from .pictures import MiddlePlanes, draw_panels
from .published import PUBLISHED, SCALES, Experiment, Published, table_one, table_two

SHARES = {"source": 0.4, "target": 0.4, "validation": 0.1, "test": 0.1}
GROUPS = ("data.source", "data.target", "data.validation_hr")  # `keep` compares the scans themselves
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Study:
    """The output folder, and what all experiments have in common.

    options: override preset and config, by table.
    """

    out: Path
    preset: str
    config: Path | None
    options: dict[str, dict[str, Any]]

    def configuration(self, experiment: Experiment) -> Config:
        """The training of an experiment on the study's groups."""
        unpaired = experiment.pairing == "unpaired"
        options: dict[str, Any] = {
            "name": experiment.name.replace("/", "-"),
            "method": experiment.method,
            "data": {
                "source": [str(self.group("source" if unpaired else "target"))],
                "target": [str(self.group("target"))],
                "validation_hr": [str(self.group("validation"))],
                "pairing": experiment.pairing,
                "target_simulated": True,
                "described_as": f"{experiment.title}, {experiment.pairing}, simulated LR scans",
            },
            "network": {"scale": experiment.scale},
        }
        for layer in (self.options, experiment.options):
            for table, values in layer.items():
                options[table] = options.get(table, {}) | values
        return load(self.preset, self.config, options, shared=True)

    def group(self, name: str) -> Path:
        return self.out / "groups" / f"{name}.csv"

    def results(self, experiment: Experiment) -> Path:
        return self.out / "results" / f"{experiment.name}.json"


def main(
    cohort: Annotated[list[str], typer.Argument(help="HR scans: files, folders, globs, lists, hcp:ROOT, …")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the tables and runs.")] = Path("tables"),
    preset: Annotated[str, typer.Option(help="paper or compact.")] = "paper",
    config: Annotated[
        Path | None, typer.Option(help="TOML file that overrides the preset, for all methods.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of every method's schedule.")] = None,
    scale: Annotated[list[str] | None, typer.Option(help="Only these; repeatable.")] = None,
    setting: Annotated[
        list[str] | None, typer.Option(help="Only these settings: unpaired, misaligned, aligned.")
    ] = None,
    method: Annotated[list[str] | None, typer.Option(help="Only these experiments, such as udean.")] = None,
    seed: Annotated[
        int, typer.Option(help="Random seed of the division into groups and of all training.")
    ] = 0,
) -> None:
    """Train, test and tabulate every method of the paper on a cohort of HR scans."""
    experiments = [
        e
        for s in ([parse_scale(text) for text in scale] if scale else SCALES)
        for e in unique(table_one(s) if s == (2, 2, 2) else [], table_two(s))
        if (not setting or e.pairing in setting) and (not method or e.key in method)
    ]
    options = {"schedule": {"steps": steps, "seed": seed}}
    make(Study(out, preset, config, options), divide(find(cohort), seed), experiments, print)


def make(
    study: Study,
    groups: dict[str, list[Entry]],
    experiments: Sequence[Experiment],
    say: Say = lambda text: None,
) -> None:
    """Run the remaining experiments, then write all tables and pictures."""
    if not experiments:
        raise RunError("There is no such experiment: see --method, --setting and --scale.")
    keep(study, groups)
    for i, experiment in enumerate(experiments, start=1):
        say(f"{i}/{len(experiments)} {experiment.name}")
        if study.results(experiment).exists():
            before = read_json(study.results(experiment)).get("config", "")
            if other := changed(before, _configured(study, experiment), (*ROUNDING, *GROUPS)):
                raise RunError(
                    f"{study.results(experiment)} is of a run with {other}: give another --out, or remove it."
                )
            continue
        model = train(study, experiment, say) if experiment.method else None
        test(study, experiment, model, groups["test"])
        write(study)  # finished results can be read while the rest is trained
    write(study)
    say(f"Look at {study.out / 'tables.md'}")


def divide(entries: Sequence[Entry], seed: int) -> dict[str, list[Entry]]:
    """One scan of each participant, by group, at random."""
    scans = {entry.participant: entry for entry in reversed(entries)}
    names = sorted(scans)
    if len(names) < 5:
        raise CohortError(f"The four groups need at least 5 participants; these are {len(names)}.")
    names = np.random.default_rng(seed).permutation(names).tolist()
    count = {group: max(1, round(share * len(names))) for group, share in SHARES.items()}
    count["source"] = len(names) - sum(count.values()) + count["source"]
    groups = {}
    for group, n in count.items():
        groups[group] = sorted(scans[name] for name in names[:n])
        names = names[n:]
    return groups


def keep(study: Study, groups: dict[str, list[Entry]]) -> None:
    """Write the groups as lists; refuse a folder that has different ones."""
    for name, entries in groups.items():
        path = study.group(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [("path", "participant"), *((str(e.path.resolve()), e.participant) for e in entries)]
        if path.exists():
            with open(path, newline="") as stream:
                if [tuple(row) for row in csv.reader(stream)] != rows:
                    raise RunError(f"{study.out} has tables of another cohort or seed: give another --out.")
        with open(path, "w", newline="") as stream:
            csv.writer(stream).writerows(rows)


def train(study: Study, experiment: Experiment, say: Say) -> Path:
    """The checkpoint of an experiment; training resumes from its last one."""
    config, run = resolved(study.configuration(experiment)), study.out / "runs" / experiment.name
    saved = run / "config.toml"
    if saved.exists() and (other := changed(saved.read_text("utf-8"), config)):
        raise RunError(f"{run} was trained with {other}: give another --out, or remove it.")

    def report(step: int, total: int, values: dict[str, float]) -> None:
        if "validation_psnr" in values:
            say(f"    step {step} of {total}: {values['validation_psnr']:.2f} dB")

    return fit(config, run, (run / "checkpoint.pt").exists(), report)


def test(study: Study, experiment: Experiment, model: Path | None, entries: Sequence[Entry]) -> None:
    """Restore the test group and write its figures; keep some planes of its first scan for the pictures."""
    resolver = SuperResolver(model) if model else None
    config = _configured(study, experiment)
    figures: dict[str, Figures] = {}
    for entry in entries:
        lr, hr = acquired(entry, config)
        sr = resolver(lr) if resolver else INTERPOLATIONS[experiment.key](lr, experiment.scale)
        try:
            figures[entry.participant] = measure(sr, hr, lr, slab=3 * experiment.scale[2])
        except ValueError as error:
            raise RunError(f"{entry.path}: {error}") from None
        if entry == entries[0]:
            MiddlePlanes.of(sr, hr, lr).save(study.results(experiment).with_suffix(".npz"))
    summary = dataclasses.asdict(Summary.of(figures))
    about = {"title": experiment.title, "model": str(model or ""), "config": config.to_toml()}
    write_json(study.results(experiment), about | summary)


def _configured(study: Study, experiment: Experiment) -> Config:
    """The configuration, also for interpolation: how its scans are degraded."""
    return study.configuration(dataclasses.replace(experiment, method=experiment.method or "udean"))


def acquired(entry: Entry, config: Config) -> tuple[Volume, Volume]:
    """LR and HR volume (rows, columns, slices), slices along the first of the configured slab axes."""
    scan = open_scan(entry.path)
    voxels = scan.voxels_in_units()
    hr = kspace.crop(np.moveaxis(voxels, (config.data.slab_axes or (2,))[0], 2), config.network.scale)
    acquisition = kspace.Acquisition(config.network.scale, **vars(config.degradation))
    seed = zlib.crc32(entry.participant.encode()) ^ config.schedule.seed
    return kspace.acquire(hr, acquisition, seed), hr.astype(np.float32)


def write(study: Study) -> None:
    """tables.md, tables.json and a picture for each table."""
    results: dict[str, dict[str, Any]] = {}
    tables: list[tuple[str, list[Experiment]]] = [("Table I: ablation, 2x2x2", table_one())]
    for name in sorted((study.out / "results").glob("*")):
        scale = parse_scale(name.name)
        tables.append((f"Table II: methods, {name.name}", table_two(scale)))
    lines = ["# The paper's tables", ""]
    for title, experiments in tables:
        done = [e for e in experiments if study.results(e).exists()]
        if not done:
            continue
        results |= {e.name: read_json(study.results(e)) for e in done}
        lines += [f"## {title}", "", *_markdown(done, results), ""]
        picture = study.out / f"{title.split(':')[0].replace(' ', '-').lower()}-{title.split()[-1]}.png"
        draw_panels(picture, {e.title + _pairing(e): study.results(e).with_suffix(".npz") for e in done})
        lines += [f"![{title}]({picture.name})", ""]
    (study.out / "tables.md").write_text("\n".join(lines))
    write_json(study.out / "tables.json", results)


def unique(*tables: Sequence[Experiment]) -> list[Experiment]:
    """The experiments of some tables, each once."""
    return list({e.name: e for table in tables for e in table}.values())


def _pairing(experiment: Experiment) -> str:
    return "" if experiment.method in (None, "zssr") else f", {experiment.pairing}"


def _markdown(experiments: Sequence[Experiment], results: dict[str, dict[str, Any]]) -> list[str]:
    lines = [
        "| method | scans | SSIM | PSNR dB | PSNR registered | SSIM 3-D | shift | slab step | inconsistency "
        "| paper, HCP | paper, BraTS |",
        "|---" * 11 + "|",
    ]
    for e in experiments:
        mean, sd = results[e.name]["mean"], results[e.name]["sd"]
        published = PUBLISHED.get(e.name, {})
        cells = [
            e.title,
            e.pairing if _pairing(e) else "–",
            f"{mean['ssim_2d']:.4f} ± {sd['ssim_2d']:.4f}",
            f"{mean['psnr']:.2f} ± {sd['psnr']:.2f}",
            f"{mean['psnr_registered']:.2f}",
            f"{mean['ssim']:.4f}",
            f"{mean['shift']:.2f}",
            f"{mean['slab_step']:.3f}",
            f"{mean['consistency']:.4f}",
            *(_cell(published.get(data)) for data in ("HCP", "BraTS")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _cell(published: Published | None) -> str:
    return f"{published[0]:.4f} / {published[1]:.2f}" if published else "–"


if __name__ == "__main__":
    run_script(main, "train")
