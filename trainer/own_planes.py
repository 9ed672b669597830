"""Self-training for thick slices: a scan's own planes teach what lies across its slices.

Planes of the scan are made as thick as its slices along an axis in plane, and the through-plane network
learns the detail that they lose, as SMORE does (Zhao et al., IEEE TMI 40, 2021). Nothing else is known of the
scan: profile and noise are those that `udean-run --to` estimates.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ..runtime.errors import RunError
from ..runtime.pipeline.through_plane import ThickSlices, content, noise_of, planes_across, profile_of, sound
from ..runtime.scan.profile import deviation, profile_matrix
from ..runtime.scan.regrid import spline_weights
from ..runtime.scan.voxels import Volume
from .averaging import Average
from .nets.through_plane import ThroughPlane
from .through_plane import EPSILON, SHAPES, SIZE

FEWEST = 8  # slices: a fifth of them only judge
HELD_OUT = 5  # every so many slices, one only judges
PLANES = 8  # of a sample
WIDTHS = 0.85, 1.15  # of the estimated profile's: it is not known exactly
RATE = 2e-4  # learning rate, falling to 0 along a cosine
DECAY = 0.98  # of the moving average of the weights
SAMPLES = 8  # on which a network is judged
Tell = Callable[[int, int, float], None]  # after each step: its number, of how many, and the loss


@dataclass(frozen=True)
class OwnPlanes:
    """Planes of a scan that are made thick. volume: (rows, columns, planes) on the target grid, cropped to
    what it shows; chosen: numbers of planes; step, deviation: of the slices, in fine voxels; noise: of them.
    """

    volume: Volume
    chosen: NDArray[np.intp]
    step: float
    deviation: float
    noise: float

    def sample(self, random: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """The network's input and its target: planes (N, 5, H, W), detail (N, 1, H, W); H, W even."""
        volume = np.moveaxis(self.volume, int(random.integers(2)), 0)
        starts = [int(random.integers(max(n - SIZE, 0) + 1)) for n in volume.shape[:2]]
        crop = volume[tuple(slice(s, s + SIZE) for s in starts)]
        crop = np.flip(crop, tuple(axis for axis in range(2) if random.random() < 0.5))
        middle = random.choice(self.chosen, PLANES)
        planes = np.stack([crop[:, :, middle + n] for n in (-1, 0, 1)]).transpose(3, 0, 1, 2)
        length = planes.shape[2]
        count = int(length / self.step)
        first = (self.step - 1) / 2 + random.random() * (length - count * self.step)
        centers = first + np.arange(count) * self.step
        shape = SHAPES[int(random.integers(len(SHAPES)))]
        told = self.deviation * float(random.uniform(*WIDTHS))
        seen = profile_matrix(shape, max(told / deviation(shape, 1.0), 1.0), centers, length)
        thick = np.einsum("sl,nclw->ncsw", seen, planes)
        less = math.sqrt(max(1 - float((seen[count // 2] ** 2).sum()), 0))  # of a slice's noise
        thick += np.float32(self.noise * less) * random.standard_normal(thick.shape, np.float32)
        places = (np.arange(length) - first) / self.step
        coarse = np.einsum("ls,ncsw->nclw", spline_weights(count, places), thick)
        missing = (planes[:, 1] - coarse[:, 1])[:, None]
        height, width = (n // 2 * 2 for n in missing.shape[2:])
        shown = planes_across(coarse, places, self.step, told)[:, :, :height, :width]
        return torch.from_numpy(shown), torch.from_numpy(missing[:, :, :height, :width].astype(np.float32))


def own_planes(stack: ThickSlices) -> tuple[OwnPlanes, OwnPlanes]:
    """The planes of a scan to train on, and those that only judge. Raises RunError if there are too few."""
    stack, _, _ = sound(stack)
    noise = noise_of(stack.slices) if stack.noise is None else stack.noise
    volume = stack.interpolated()
    volume = np.ascontiguousarray(volume[content(volume)])
    at = np.unique(np.rint(stack.centers).astype(np.intp))
    at = at[(at > 0) & (at < stack.size - 1)]
    at = at[np.ptp(volume, axis=(0, 1))[at] > 0]
    if len(at) < FEWEST or min(volume.shape[:2]) < 4 * stack.step:
        raise RunError(
            f"Self-training takes {FEWEST} slices that show something, and planes with room for four slices."
        )
    judging = np.arange(len(at)) % HELD_OUT == HELD_OUT // 2
    train = OwnPlanes(volume, at[~judging], stack.step, profile_of(stack)[1], noise)
    return train, replace(train, chosen=at[judging])


def error(network: ThroughPlane, planes: OwnPlanes) -> float:
    """The mean square error of a network's detail, in squared intensity units, on the same samples."""
    random = np.random.default_rng(1)
    total = 0.0
    with torch.no_grad():
        for _ in range(SAMPLES):
            shown, missing = planes.sample(random)
            total += float(((network(shown) - missing) ** 2).mean())
    return total / SAMPLES


def tune(
    network: ThroughPlane,
    planes: OwnPlanes,
    steps: int,
    seconds: float = math.inf,
    seed: int = 0,
    tell: Tell = lambda *_: None,
) -> ThroughPlane:
    """The average of a copy's weights after so many steps, or as many as fit into this time."""
    network = copy.deepcopy(network).train()
    average, optimizer = Average(network, DECAY), torch.optim.Adam(network.parameters(), RATE)
    start, random = time.monotonic(), np.random.default_rng(seed)
    for step in range(steps):
        done = max(step / steps, (time.monotonic() - start) / seconds)
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = RATE * (1 + math.cos(math.pi * done)) / 2
        shown, missing = planes.sample(random)
        loss = torch.sqrt((network(shown) - missing) ** 2 + EPSILON**2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.update(step)
        tell(step + 1, steps, float(loss.detach()))
    return average.network.eval()
