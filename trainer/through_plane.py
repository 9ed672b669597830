"""Training of the through-plane network: what thick slices have lost, learned without a pair of scans.

Isotropic HR scans are the only data: an axis of each is made thick, by a profile, spacing, gap and noise
drawn anew for every sample, interpolated back as `udean-run --to` does it, and the network learns the detail
that is missing in planes across the slices.

    python -m udean.trainer.through_plane RUN HR ... [--steps 12000] [--seed 0]

It continues from RUN/through-plane.pt if that exists.
"""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer

from ..runtime.commands.common import sentences
from ..runtime.errors import RunError
from ..runtime.pipeline.through_plane import ThickSlices, planes_across
from ..runtime.scan import intensity
from ..runtime.scan.profile import ProfileShape, deviation
from ..runtime.scan.scan import open_scan
from ..runtime.scan.voxels import Volume
from ..runtime.system.files import atomic
from .averaging import Average
from .data.scans import find
from .nets.through_plane import ThroughPlane
from .precision import fastest_precision
from .simulation.thick import Thick, slices_of

SIZE = 96  # HR voxels along the edges of the crop that a sample is made of
PLANES = 16  # of a sample, from both axes in plane
STEPS = 1.5, 7.5  # slice spacings, in HR voxels: the range that `scan.model_choice` promises
WIDTHS = 0.7, 1.3  # slice thickness over spacing: gaps of 30 % to as much overlap
NOISE = 0.03  # most noise, as a share of the intensity unit
SHAPES: tuple[ProfileShape, ...] = ("gaussian", "box", "slr")
RATE = 1e-3  # learning rate, falling to 0 along a cosine
DECAY = 0.999  # of the moving average of the weights
EPSILON = 1e-3  # of the Charbonnier loss, in intensity units
EVERY = 500  # steps between checkpoints
NAME = "through-plane.pt"


def sample(volume: Volume, random: np.random.Generator) -> tuple[Volume, Volume]:
    """The network's input and its target: planes (N, 5, H, W), detail (N, 1, H, W); H, W even.

    volume: isotropic, in the network's range. A random crop is flipped and transposed at random, made thick
    and interpolated back.
    """
    starts = [int(random.integers(max(n - SIZE, 0) + 1)) for n in volume.shape]
    crop = volume[tuple(slice(s, s + SIZE) for s in starts)].transpose(random.permutation(3))
    crop = np.flip(crop, tuple(axis for axis in range(3) if random.random() < 0.5))
    step = float(np.exp(random.uniform(*np.log(STEPS))))
    shape: ProfileShape = SHAPES[int(random.integers(len(SHAPES)))]
    width = max(step * float(random.uniform(*WIDTHS)), 1.0)
    thick = Thick(step, shape, width, float(random.uniform(0, NOISE)) * float(random.random() < 0.7))
    slices, centers, size = slices_of(np.ascontiguousarray(crop), thick, int(random.integers(1 << 31)))
    stack = ThickSlices(slices, centers, step, size)
    coarse, truth = stack.interpolated(), crop[:, :, :size]
    seen, missing = [], []
    for axis in (0, 1):  # planes across the slices and this axis
        stacked, target = (np.moveaxis(v, (1 - axis, 2, axis), (0, 1, 2)) for v in (coarse, truth))
        shown = np.flatnonzero(target.max((1, 2)) > 0.1)
        some = shown if shown.size else np.arange(len(target))
        chosen = some[random.integers(len(some), size=PLANES // 2)]
        near = np.clip(chosen[:, None] + (-1, 0, 1), 0, len(stacked) - 1)
        seen.append(planes_across(stacked[near], stack.places, step, deviation(shape, width)))
        missing.append((target - stacked)[chosen][:, None])
    height, width_ = (min(n // 2 * 2 for n in (m.shape[a] for m in missing)) for a in (2, 3))
    planes = np.concatenate([s[:, :, :height, :width_] for s in seen])
    return planes, np.concatenate([m[:, :, :height, :width_] for m in missing])


def volumes(paths: list[Path]) -> list[Volume]:
    """The scans in the network's range. Raises RunError for one that is not isotropic, or is too small."""
    found = []
    for entry in find(paths):
        scan = open_scan(entry.path)
        if max(scan.zooms) > 1.1 * min(scan.zooms):
            raise RunError(f"{scan.name} is not isotropic: slices are made thick along any of its axes.")
        if min(scan.shape) < SIZE // 2:
            raise RunError(f"{scan.name} is smaller than {SIZE // 2} voxels along an axis.")
        voxels = np.maximum(scan.voxels_in_units(), 0)
        found.append(voxels / np.float32(intensity.unit(voxels, intensity.RULE)))
    return found


def train(scans: list[Volume], run: Path, steps: int, seed: int = 0) -> ThroughPlane:
    """The average of the network's weights after `steps` samples; RUN keeps a checkpoint every EVERY."""
    torch.manual_seed(seed)
    network = ThroughPlane()
    average = Average(network, DECAY)
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    first = 0
    run.mkdir(parents=True, exist_ok=True)
    if (run / NAME).exists():
        kept: dict[str, Any] = torch.load(run / NAME, weights_only=True)
        network.load_state_dict(kept["network"])
        average.network.load_state_dict(kept["average"])
        optimizer.load_state_dict(kept["optimizer"])
        first = int(kept["step"])
        print(f"Continuing from step {first}.", flush=True)
    half = fastest_precision() == "bf16-mixed"
    losses: list[float] = []
    for step in range(first, steps):
        # A sample follows from the seed and the step, so that an interrupted training continues identically.
        random = np.random.default_rng((seed, step))
        planes, missing = map(torch.from_numpy, sample(scans[int(random.integers(len(scans)))], random))
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 + math.cos(math.pi * step / steps)) / 2
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            detail = network(planes)
        loss = torch.sqrt((detail.float() - missing) ** 2 + EPSILON**2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(step)
        losses.append(float(loss.detach()))
        if (step + 1) % EVERY == 0 or step + 1 == steps:
            print(f"step {step + 1} of {steps}: loss {np.mean(losses):.5f}", flush=True)
            losses.clear()
            parts = {"network": network, "average": average.network, "optimizer": optimizer}
            with atomic(run / NAME) as file:
                states = {name: part.state_dict() for name, part in parts.items()}
                torch.save(states | {"step": step + 1, "scans": len(scans)}, file)
    return copy.deepcopy(average.network).eval()


def main(
    run: Annotated[Path, typer.Argument(help="Folder for the checkpoint.")],
    scans: Annotated[list[Path], typer.Argument(help="Isotropic HR scans: files, folders, patterns.")],
    steps: Annotated[int, typer.Option(min=1, help="Samples of 16 planes.")] = 12000,
    seed: Annotated[int, typer.Option(help="Random seed of weights and samples.")] = 0,
) -> None:
    """Train the through-plane network on HR scans alone."""
    train(volumes(scans), run, steps, seed)


if __name__ == "__main__":
    with sentences("train"):
        typer.run(main)
