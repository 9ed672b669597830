"""How fast a training step is: patches a second and peak memory, by precision, memory layout and compiler.

    python -m udean.benchmarks.training_speed --preset compact --steps 100

Every variant is a training as `udean-train` does it, of the same steps on the same slabs, in a process of its
own; the baseline is plain eager float32 with contiguous images. The losses of the last steps stand beside, so
that a faster variant cannot hide a worse training.
"""

from __future__ import annotations

import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import nibabel as nib
import numpy as np
import typer

from . import common
from .child import in_child, memory_now
from .common import run_script

# Precision, channels last, compiled; all are compared with the first.
VARIANTS = (
    ("32-true", False, False),
    ("32-true", True, False),
    ("bf16-mixed", False, False),
    ("bf16-mixed", True, False),
    ("bf16-mixed", True, True),
)


def main(
    preset: Annotated[str, typer.Option(help="paper or compact.")] = "compact",
    method: Annotated[str, typer.Option(help="Which method's step.")] = "udean",
    steps: Annotated[int, typer.Option(min=2, help="Timed steps.")] = 20,
    warmup: Annotated[
        int, typer.Option(min=1, help="Steps before timing; compilation takes place here.")
    ] = 5,
    batch: Annotated[int | None, typer.Option(help="LR patches per step; default: the preset's.")] = None,
    compiled: Annotated[bool, typer.Option("--compiled/--no-compiled", help="torch.compile too.")] = True,
    out: Annotated[Path, typer.Option(help="Folder for the result.")] = common.RESULTS,
) -> None:
    """Time a training step in every variant; writes training-speed-….json."""
    found: list[dict[str, Any]] = []
    for variant in VARIANTS:
        if compiled or not variant[2]:
            here = f"{__package__}.training_speed:time_variant"
            found.append(in_child(here, variant, preset, method, batch, steps, warmup))
            rate, loss = found[-1]["patches_per_second"], found[-1]["loss, last steps"]
            times = rate / found[0]["patches_per_second"]
            told = f"{rate:.1f} patches/s, {times:.2f} times the first, loss {loss:.4f}"
            print(f"{found[-1]['variant']}: {told}", flush=True)
    device = found[0].pop("device")
    for row in found[1:]:
        del row["device"]
    about = {"preset": preset, "method": method, "steps": steps, "device": device}
    place = "" if device == "cpu" else device
    common.record(common.slug(f"training-speed {preset} {place}"), about | {"variants": found}, out)


def time_variant(
    variant: tuple[str, bool, bool], preset: str, method: str, batch: int | None, steps: int, warmup: int
) -> dict[str, Any]:
    """Time one variant in this process: a training as `udean-train` does it, on volumes of noise.

    patches_per_second: LR patches, from the median step after the warm-up. peak_mb: of the process, or of the
    GPU's memory. losses: the sum of the generators' losses at each step.
    """
    import torch

    from ..trainer.config import load
    from ..trainer.fit import fit

    precision, channels_last, compiled = variant
    marks, losses, names = [time.perf_counter()], list[float](), set[str]()

    def note(step: int, total: int, values: dict[str, float]) -> None:
        marks.append(time.perf_counter())  # reading the losses has waited for the device
        if step == 1:  # later ones have the figures of validations too
            names.update(name for name in values if not name.startswith(("d_", "gradient")))
        losses.append(sum(values[name] for name in names))

    with tempfile.TemporaryDirectory() as name:
        os.environ["XDG_CACHE_HOME"] = name
        scans = [Path(name) / f"{number}.nii" for number in range(2)]
        for scan in scans:
            nib.save(nib.Nifti1Image(common.textured((160, 160, 48)), np.eye(4)), scan)
        paths = list(map(str, scans))
        data = {"source": paths, "target": paths, "target_simulated": True, "pairing": "aligned"}
        length = {"steps": warmup + steps, "validate_every": 10**9, "checkpoint_every": 10**9}
        config = load(
            preset,
            options={
                "method": method,
                "data": {**data, "slab_axes": [2]},
                "schedule": {"precision": precision, "batch": batch, **length},
                "machine": {"channels_last": channels_last, "compile": compiled},
            },
        )
        fit(config, Path(name) / "run", report=note)
    times = [after - before for before, after in itertools.pairwise(marks)]
    cuda, median = torch.cuda.is_available(), statistics.median(times[warmup:])
    layout = "channels last" if channels_last else "contiguous"
    return {
        "variant": f"{precision}, {layout}, {'compiled' if compiled else 'eager'}",
        "patches_per_second": config.schedule.batch / median,
        "step_ms": 1e3 * median,
        "peak_mb": (torch.cuda.max_memory_allocated() if cuda else memory_now("VmHWM")) / 2**20,
        "loss, last steps": statistics.mean(losses[-5:]),
        "losses": losses,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }


if __name__ == "__main__":
    run_script(main, "train")
