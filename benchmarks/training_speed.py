"""How fast a training step is: patches a second and peak memory, by precision, memory layout and compiler.

    python -m udean.benchmarks.training_speed --preset compact --steps 100

Every variant takes the same steps on the same slabs in a process of its own; the baseline is plain eager
float32 with contiguous images. The losses of the last steps stand beside, so that a faster variant cannot
hide a worse training.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Annotated, Any

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
    variant: tuple[str, bool, bool], preset: str, method_name: str, batch: int | None, steps: int, warmup: int
) -> dict[str, Any]:
    """Time one variant in this process.

    patches_per_second: LR patches, from the median step after the warm-up. peak_mb: of the process, or of the
    GPU's memory. losses: the sum of the generators' losses at each step.
    """
    import torch
    from lightning_fabric import Fabric

    from ..trainer.config import load
    from ..trainer.fit import Player, take_step, to_batch
    from ..trainer.methods import create

    precision, channels_last, compiled = variant
    config = load(
        preset,
        options={
            "method": method_name,
            "data": {"pairing": "aligned"},  # so that there are slabs for any method
            "schedule": {"precision": precision, "batch": batch},
            "machine": {"channels_last": channels_last, "compile": compiled},
        },
    )
    fabric = Fabric(accelerator="auto", devices=1, precision=config.schedule.precision)  # type: ignore[arg-type]
    fabric.launch()
    fabric.seed_everything(0, verbose=False)
    method = create(config.method, config.network, config.schedule.patch, config.weights).to(fabric.device)
    if channels_last:
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
    cuda, median = fabric.device.type == "cuda", statistics.median(times[warmup:])
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


if __name__ == "__main__":
    run_script(main, "train")
