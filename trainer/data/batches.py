"""The slabs of every step, drawn in worker processes.

What a step draws depends on (seed, step, group, sample) alone: not on workers, processes or resuming.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...runtime.scan.noise import estimate_noise
from .. import distributed
from ..config import Config, ConfigError
from ..methods import METHODS
from ..simulation.estimate import Estimate
from ..simulation.random_degradation import Variation
from .cache import make_room
from .preparation import Preparation, Prepared, nobody, slab_axes, told
from .sampling import Group
from .scans import find, keep_apart

WATCHED = 64  # windows by which the training is watched
Slabs = tuple[Tensor, Tensor, Tensor]  # hr, coarse, lr: see methods.method.Batch


@dataclass(frozen=True)
class Material:
    """source: HR slabs and those under them on the LR grid. target: LR slabs; None if the method needs no
    others. watched_lr and watched_hr: windows (N, slices, rows, columns) that no training sees; without
    validation scans there is no watched_hr and the LR windows are of the target group. described_as: the
    scans in words, for the card. watched_source: HR windows of the source group; None if it has none.
    estimate: the degradation that a method which asks for it learns from. noise: of the scans that the LR
    windows come from: a real channel's standard deviation in their units.
    """

    source: Group
    target: Group | None
    watched_lr: Tensor
    watched_hr: Tensor | None
    described_as: str
    watched_source: Tensor | None = None
    estimate: Estimate | None = None
    noise: float = 0.0


def material_of(config: Config, prepared: Prepared | None = None) -> Material:
    """Find, check, prepare and cache the scans of a run; prepared(done, of how many) hears of each.

    Raises CohortError for scans or groups that cannot be used, ConfigError if a group is missing.
    """
    make_room(0)
    data, scale, slab = config.data, config.network.scale, _slab(config)
    draws = METHODS[config.method].draws
    for group in ("source", "target"):
        if not getattr(data, group) and not (draws == "target" and group == "source"):
            raise ConfigError(
                f"There are no {group} scans: name them with --{group} or in the configuration."
            )
    entries = {
        "source": find(data.source) if draws != "target" else [],
        "target": find(data.target),
        "validation": find(data.validation_hr),
        "validation LR": find(data.validation_lr),
    }
    apart = draws != "target" and not data.target_simulated  # LR scans with voxels of their own
    keep_apart(
        {name: entries[name] for name in entries if name != "validation LR"},
        frozenset() if data.pairing == "unpaired" else frozenset({"source", "target"}),
    )
    axes = data.slab_axes or slab_axes(
        scale, entries["source"] if apart else entries["target"], entries["target"]
    )
    prepare = Preparation(
        scale,
        axes,
        config.degradation if data.target_simulated else None,
        data.misalign,
        data.register,
        config.schedule.seed,
        data.bad_scans == "skip",
        slab,
        config.variation,
        data.any_voxel_size,
        data.pairing == "aligned",
        data.coarse,
        prepared or nobody,
    )
    target, found = None, None
    if draws == "estimated":
        if apart:
            prepare.check_scale(entries["source"], entries["target"])
        found = prepare.estimated(entries["source"], entries["target"])
        made = dataclasses.replace(prepare, simulated=found.degradation, variation=Variation())
        source = made.pairs(entries["source"], entries["source"])
    elif draws == "target":
        source = prepare.target_again(entries["target"])
    elif draws == "pairs":
        if apart:
            prepare.warn_of_scale(entries["source"], entries["target"])
        source = prepare.pairs(entries["source"], entries["target"])
    else:
        if apart:
            prepare.check_scale(entries["source"], entries["target"])
        source, target = prepare.source(entries["source"]), prepare.target(entries["target"])

    described = told(entries["source"], entries["target"], data.target_simulated)
    rng = np.random.default_rng(0)
    watched = (*slab[:2], config.network.slab[0])
    hr_windows = None
    if draws != "target":
        hr_windows = torch.from_numpy(source.draw(np.random.default_rng(1), WATCHED, watched)[1])
    if not entries["validation"]:
        watch = prepare.target(entries["target"]) if found else target or source
        lr, noise = watch.draw(rng, WATCHED, watched)[0], _noise(watch)
        return Material(source, target, torch.from_numpy(lr), None, described, hr_windows, found, noise)
    still = dataclasses.replace(
        prepare, misaligned=False, registered=False, variation=Variation(), aligned=True
    )
    pairs = still.pairs(entries["validation"], entries["validation LR"] or entries["validation"])
    lr, hr = map(torch.from_numpy, pairs.draw(rng, WATCHED, watched))
    return Material(source, target, lr, hr, described, hr_windows, found, _noise(pairs))


def batches(config: Config, material: Material, steps: range) -> Iterator[Slabs]:
    """This process's slabs of the steps, in their order, on the CPU."""
    workers = config.machine.workers
    loader = DataLoader(
        _Steps(config, material),
        batch_size=None,
        sampler=_InOrder(steps),
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
    )
    return iter(loader)


class _InOrder(torch.utils.data.Sampler[int]):
    def __init__(self, steps: range) -> None:
        self.steps = steps

    def __iter__(self) -> Iterator[int]:
        return iter(self.steps)

    def __len__(self) -> int:
        return len(self.steps)


class _Steps(Dataset[Slabs]):
    """Dataset indexed by step; each item is this process's share of that step's slabs."""

    def __init__(self, config: Config, material: Material) -> None:
        self.config, self.material = config, material
        mine = distributed.share(config.schedule.batch)
        self.samples = range(mine.start, mine.stop)

    def __getitem__(self, step: int) -> Slabs:
        coarse, hr = self._draw(self.material.source, step, 0)
        lr = self._draw(self.material.target, step, 1)[0] if self.material.target else coarse
        return hr, coarse, lr

    def _draw(self, group: Group, step: int, salt: int) -> Sequence[Tensor]:
        seed, augment = self.config.schedule.seed, self.config.data.augment
        found = self.material.estimate
        turns = augment and (found is None or found.degradation.alike_in_plane)
        drawn = [
            group.draw(
                np.random.default_rng((seed, step, salt, sample)), 1, _slab(self.config), augment, turns
            )
            for sample in self.samples
        ]
        return [torch.from_numpy(np.concatenate(arrays)) for arrays in zip(*drawn, strict=True)]


def _noise(group: Group) -> float:
    """Median noise level of a group's LR scans."""
    return float(np.median([estimate_noise(member.volumes[0], 1.0).sigma for member in group.members]))


def _slab(config: Config) -> tuple[int, int, int]:
    """(rows, columns, slices) on the LR grid."""
    return config.schedule.patch, config.schedule.patch, config.schedule.depth
