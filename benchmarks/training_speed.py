"""How fast a training step is: patches a second and peak memory, by precision, memory layout and compiler.

    python -m udean.benchmarks.training_speed --preset compact --steps 100

Every variant takes the same steps on the same slabs in a process of its own; the baseline is plain eager
float32 with contiguous images. All losses are reported and drawn, so that a faster variant cannot hide a
worse training.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import resource
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from ..trainer.machine import Precision
from . import common
from .curves import Panel


@dataclass(frozen=True)
class Variant:
    precision: Precision = "32-true"
    channels_last: bool = False
    compile: bool = False

    def __str__(self) -> str:
        layout = "channels last" if self.channels_last else "contiguous"
        return f"{self.precision}, {layout}, {'compiled' if self.compile else 'eager'}"


VARIANTS = (
    Variant(),
    Variant(channels_last=True),
    Variant("bf16-mixed"),
    Variant("bf16-mixed", channels_last=True),
    Variant("bf16-mixed", channels_last=True, compile=True),
)


@dataclass(frozen=True)
class Speed:
    """patches_per_second: LR patches, from the median step after the warm-up. peak_mb: of the process, or of
    the GPU's memory. losses: the sum of the generators' losses at each step."""

    variant: str
    patches_per_second: float
    step_ms: float
    peak_mb: float
    losses: list[float]


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
    variants = [v for v in VARIANTS if compiled or not v.compile]
    results = []
    context = multiprocessing.get_context("spawn")  # peak memory is counted per process
    for variant in variants:
        with context.Pool(1) as pool:
            results.append(pool.apply(measure, (variant, preset, method, batch, steps, warmup)))
        print(f"{results[-1].variant}: {results[-1].patches_per_second:.1f} patches/s", file=sys.stderr)
    first = results[0]
    table = Table("variant", "patches/s", "times", "ms a step", "peak MB", "loss, last steps")
    for r in results:
        last = statistics.mean(r.losses[-5:])
        ratio = r.patches_per_second / first.patches_per_second
        cells = f"{r.patches_per_second:.1f}", f"{ratio:.2f}", f"{r.step_ms:.0f}", f"{r.peak_mb:.0f}"
        table.add_row(r.variant, *cells, f"{last:.4f}")
    Console().print(table)
    about = {"preset": preset, "method": method, "steps": steps, "device": device()}
    found = [dataclasses.asdict(r) for r in results]
    place = "" if about["device"] == "cpu" else about["device"]
    common.record(common.slug(f"training-speed {preset} {place}"), about | {"variants": found}, out)


def measure(
    variant: Variant, preset: str, method_name: str, batch: int | None, steps: int, warmup: int
) -> Speed:
    """Time one variant in this process."""
    import torch
    from lightning_fabric import Fabric

    from ..trainer.config import load
    from ..trainer.fit import Player, take_step, to_batch
    from ..trainer.methods import create

    config = load(
        preset,
        options={
            "method": method_name,
            "data": {"pairing": "aligned"},  # so that there are slabs for any method
            "schedule": {"precision": variant.precision, "batch": batch},
            "machine": {"channels_last": variant.channels_last, "compile": variant.compile},
        },
    )
    fabric = Fabric(accelerator="auto", devices=1, precision=variant.precision)
    fabric.launch()
    fabric.seed_everything(0, verbose=False)
    method = create(config.method, config.network, config.schedule.patch, config.weights).to(fabric.device)
    if variant.channels_last:
        method = method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    players = [Player.of(turn, config, fabric) for turn in method.turns(method.stages - 1)]
    slabs = _slabs(config)
    times, losses = [], []
    for step in range(warmup + steps):
        start = time.perf_counter()
        drawn = to_batch(slabs, step, config, fabric)
        values = take_step(fabric, method, players, drawn, config.schedule.learning_rate)
        times.append(time.perf_counter() - start)  # reading the losses waited for the device
        losses.append(sum(value for name, value in values.items() if not name.startswith("d_")))
    if fabric.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated() / 2**20
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # kilobytes on Linux
    median = statistics.median(times[warmup:])
    return Speed(str(variant), config.schedule.batch / median, 1e3 * median, peak, losses)


def _slabs(config: Any) -> Any:
    """hr, coarse and lr slabs of smooth noise, on the FFT grid."""
    import numpy as np
    import torch

    from ..trainer.simulation import kspace

    s, patch, count = config.network.scale, config.schedule.patch, config.schedule.batch
    rng = np.random.default_rng(0)
    fine, low = [], []
    for _ in range(2 * count):
        coarse = rng.random((patch // 2, patch // 2, 3), np.float32)
        hr = kspace.zero_fill(coarse, (2 * s[0], 2 * s[1], s[2]))
        low.append(np.moveaxis(kspace.acquire(hr, kspace.Acquisition(s)), 2, 0))
        fine.append(np.moveaxis(hr, 2, 0))
    hr, coarse = (torch.from_numpy(np.stack(volumes)) for volumes in (fine, low))
    return hr[:count], coarse[:count], coarse[count:]


def device() -> str:
    """The GPU's name, or cpu."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def panels(result: dict[str, Any]) -> list[Panel]:
    """Patches a second beside the losses of the same steps."""
    variants = {v["variant"]: v for v in result["variants"]}
    rates = [v["patches_per_second"] for v in variants.values()]
    losses = {name: v["losses"] for name, v in variants.items()}
    steps = list(range(1, 1 + min(map(len, losses.values()))))
    return [
        Panel("Speed", "variant", "LR patches a second", list(variants), {"measured": rates}),
        Panel("The same steps", "step", "sum of the generators' losses", steps, losses),
    ]


if __name__ == "__main__":
    typer.run(main)
