"""From entries to groups: which scans a run learns from, and what is done to them first."""

from __future__ import annotations

import contextlib
import logging
import os
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import RunError
from ...runtime.scan.geometry import Factors, slab_axis, voxel_factors
from ..simulation.estimate import Estimate, Seen, estimate
from ..simulation.kspace import Acquisition, Degradation, Scale
from ..simulation.random_degradation import Variation
from .cache import Acquire, Recipe
from .misalignment import Misalign, Register
from .orientation import open_along_world
from .sampling import Aligned, Group, needed
from .scans import CohortError, Entry, bare_name

LOG = logging.getLogger(__name__)
T = TypeVar("T")
Prepared = Callable[[int, int], None]
Coarse = Literal["truncation", "bicubic"]
SCALE_TOLERANCE = 1.25  # factor by which real LR scans may be coarser or finer than the scale says
SCALE_NOTED = 1.05  # factor from which on the user is warned
ESTIMATED = 12  # scans of a group that a degradation is estimated from: more hardly change a mean spectrum
OFF_GRID = (
    0.25  # HR voxels that an LR voxel may lie off one: headers round, and a "center" grid of 2 is 0.5 off
)
SIZE_TOLERANCE = 0.1  # by which voxel sizes within a group may differ from their median


def nobody(done: int, total: int) -> None:
    """Nobody hears how far it is."""


@dataclass(frozen=True)
class Preparation:
    """How entries become groups.

    scale, axes: the networks' scale, and the world axes along which slabs are stacked; each axis is a member.
    simulated: the degradation of the target group's HR scans; None: they are LR scans already.
    misaligned: HR scans of the source group are moved and shrunk first. registered: HR scans of pairs are
        then registered onto the LR scans. seed: of noise and movements, with the participant's name.
    skip_bad: leave out scans that cannot be used, with a warning, instead of stopping.
    slab: LR voxels (rows, columns, slices) that will be drawn.
    variation: of simulated scans around `simulated`, drawn for each scan and slab axis.
    any_voxel_size: scans of a group may differ in their voxel sizes.
    aligned: the scans of a pair show the same anatomy at the positions that their headers give.
    coarse: how the LR slabs under HR ones are made, which methods treat as ideal LR scans.
    prepared: hears after each scan how many of a group are done, and of how many.
    """

    scale: Scale
    axes: Sequence[int] = (2,)
    simulated: Degradation | None = None
    misaligned: bool = False
    registered: bool = False
    seed: int = 0
    skip_bad: bool = False
    slab: tuple[int, int, int] = (1, 1, 1)
    variation: Variation = field(default_factory=Variation)
    any_voxel_size: bool = False
    aligned: bool = True
    coarse: Coarse = "truncation"
    prepared: Prepared = nobody

    def source(self, entries: Sequence[Entry]) -> Group:
        """HR scans, each brought to the LR grid as `coarse` says: (coarse, hr)."""
        return self._group(entries, lambda entry, axis: self._with_coarse(self.hr(entry), axis))

    def target(self, entries: Sequence[Entry]) -> Group:
        """LR scans: (lr,)."""

        def member(entry: Entry, axis: int) -> Aligned:
            voxels = self.lr(entry, axis).prepared().voxels
            return Aligned((np.moveaxis(voxels, axis, 2),), ((1, 1, 1),))

        return self._group(entries, member)

    def target_again(self, entries: Sequence[Entry]) -> Group:
        """LR scans, each made coarser by the same factors, as `coarse` says: (coarse, lr).

        BraTS and HCP scans are then smaller than the paper's patches: their far edges are repeated.
        """

        def member(entry: Entry, axis: int) -> Aligned:
            made = self._with_coarse(self.lr(entry, axis), axis)
            rows, columns, _ = np.maximum(needed(self.slab) - made.volumes[0].shape, 0).tolist()
            if not rows + columns:
                return made  # still a memory map
            volumes = [
                np.pad(volume, ((0, rows * s[0]), (0, columns * s[1]), (0, 0)), "edge")
                for volume, s in zip(made.volumes, made.factors, strict=True)
            ]
            return Aligned(tuple(volumes), made.factors)

        return self._group(entries, member)

    def pairs(self, hr: Sequence[Entry], lr: Sequence[Entry]) -> Group:
        """LR and HR scans of the same participants, in units of the LR scan: (lr, hr). If there are several
        scans of one, those of the same name are a pair.

        Aligned pairs are cropped so that LR voxel i lies on HR voxel s·i along the world's axes; scans stored
        the other way round are a few voxels off before that. Raises CohortError for pairs that do not fit.
        """
        people = [Counter(entry.participant for entry in group) for group in (hr, lr)]
        several = {who for counts in people for who, count in counts.items() if count > 1}

        def name(entry: Entry) -> str:
            who = entry.participant
            return f"{bare_name(entry.path)} of {who}" if who in several else who

        by_name, names = {name(entry): entry for entry in lr}, set(map(name, hr))
        if names != set(by_name) or not len(names) == len(hr) == len(lr):
            lonely = names ^ set(by_name)
            who = f": {min(lonely)} is in one only" if lonely else ""
            raise CohortError(f"Pairs need one HR and one LR scan of each participant{who}.")

        def member(entry: Entry, axis: int) -> Aligned:
            partner = by_name[name(entry)]
            factors = voxel_factors(self.scale, axis)
            low_recipe, high_recipe = self.lr(partner, axis), self.hr(entry)
            if self.registered:
                high_recipe = high_recipe.then(Register(low_recipe, factors))
            low = low_recipe.prepared()
            high = high_recipe.prepared(low.unit).voxels
            if any(h // s != n for n, h, s in zip(low.voxels.shape, high.shape, factors, strict=True)):
                raise CohortError(
                    f"{partner.path} {low.voxels.shape} is not {entry.path} {high.shape} "
                    f"at scale {self.scale}."
                )
            coarse = low.voxels
            if self.aligned and not self.registered:
                coarse, high = self._on_one_grid(partner, entry, coarse, high, factors)
            pair = (np.moveaxis(coarse, axis, 2), np.moveaxis(high, axis, 2))
            return Aligned(pair, ((1, 1, 1), self.scale))

        return self._group(hr, member)

    def _on_one_grid(
        self, lr: Entry, hr: Entry, coarse: NDArray[Any], fine: NDArray[Any], factors: Factors
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """The voxels of both that the other covers, LR voxel i on HR voxel factors·i, by their headers."""
        low, high = (open_along_world(entry.path).affine for entry in (lr, hr))
        if self.simulated:
            low = low @ np.diag([*factors, 1])
        between = np.linalg.solve(high, low)  # LR voxels to HR voxels
        first = np.rint(between[:3, 3]).astype(int)
        ends = np.array([*np.ndindex(2, 2, 2)]) * (np.array(coarse.shape) - 1)
        wanted = ends * factors + first
        off = float(np.abs(ends @ between[:3, :3].T + between[:3, 3] - wanted).max())
        if not off <= OFF_GRID:
            raise CohortError(
                f"{lr.path} does not lie on the grid of {hr.path} at scale {self.scale}: by their headers "
                f"its first voxel is HR voxel {_by(between[:3, 3])}, and its ends are up to {off:.2g} HR "
                "voxels off. Resample one of them; pairs to train on may also be registered (--register), or "
                "data.pairing be 'misaligned'."
            )
        cuts = []
        for n, h, s, d in zip(coarse.shape, fine.shape, factors, first.tolist(), strict=True):
            begin, end = max(0, -(d // s)), min(n, (h - d) // s)
            if begin >= end:
                raise CohortError(f"{lr.path} and {hr.path} do not overlap, as their headers say.")
            cuts.append((slice(begin, end), slice(s * begin + d, s * end + d)))
        of_lr, of_hr = (tuple(cut[n] for cut in cuts) for n in (0, 1))
        return coarse[of_lr], fine[of_hr]

    def estimated(self, hr: Sequence[Entry], lr: Sequence[Entry]) -> Estimate:
        """Estimate the degradation of LR scans, unpaired, from at most `ESTIMATED` scans of each group,
        evenly spaced in the list. Slabs lie along one axis."""
        (axis,) = self.axes

        def seen(recipe: Recipe, zooms: Sequence[float]) -> Seen:
            voxels = np.moveaxis(recipe.prepared().voxels, axis, 2).astype(np.float32)
            rows, columns, slices = (*(z for a, z in enumerate(zooms) if a != axis), zooms[axis])
            return Seen(voxels, (rows, columns, slices))

        def of_lr(entry: Entry) -> Seen:
            zooms = np.asarray(open_along_world(entry.path).zooms)
            coarser = voxel_factors(self.scale, axis) if self.simulated else (1, 1, 1)
            return seen(self.lr(entry, axis), (zooms * coarser).tolist())

        return estimate(
            list(self._each(_spaced(lr), of_lr).values()),
            list(
                self._each(
                    _spaced(hr), lambda e: seen(Recipe(e.path), open_along_world(e.path).zooms)
                ).values()
            ),
            self.scale,
        )

    def hr(self, entry: Entry) -> Recipe:
        recipe = Recipe(entry.path)
        return recipe.then(Misalign(self._own_seed(entry))) if self.misaligned else recipe

    def lr(self, entry: Entry, axis: int) -> Recipe:
        recipe = Recipe(entry.path)
        if self.simulated is None:
            return recipe
        return recipe.then(Acquire(self.acquisition(entry, axis), axis, self._own_seed(entry)))

    def acquisition(self, entry: Entry, axis: int) -> Acquisition:
        """How the LR scan of an HR scan is simulated, with slices stacked along an axis."""
        assert self.simulated is not None
        degradation = self.variation.draw(self.simulated, self._own_seed(entry) ^ (axis << 32))
        return Acquisition(self.scale, **vars(degradation))

    def _with_coarse(self, recipe: Recipe, axis: int) -> Aligned:
        fine = recipe.prepared()
        coarse = recipe.then(Acquire(Acquisition(self.scale, sampling=self.coarse), axis)).prepared(fine.unit)
        pair = (np.moveaxis(coarse.voxels, axis, 2), np.moveaxis(fine.voxels, axis, 2))
        return Aligned(pair, ((1, 1, 1), self.scale))

    def _own_seed(self, entry: Entry) -> int:
        return zlib.crc32(os.fsencode(entry.participant)) ^ self.seed

    def _group(self, entries: Sequence[Entry], member: Callable[[Entry, int], Aligned]) -> Group:
        sizes = self._each(entries, lambda entry: open_along_world(entry.path).zooms)
        usual = np.median(list(sizes.values()), axis=0)

        def members(entry: Entry) -> list[Aligned]:
            alike = np.abs(np.asarray(sizes[entry]) / usual - 1).max() <= SIZE_TOLERANCE
            if not (alike or self.any_voxel_size):
                raise CohortError(
                    f"{entry.path} has voxels of {_by(sizes[entry])} mm, the others of its group of "
                    f"{_by(usual)} mm: resample it, leave it out, or set data.any_voxel_size."
                )
            made = [member(entry, axis) for axis in self.axes]
            for shape in (m.volumes[0].shape for m in made):
                if np.any(lacking := shape < needed(self.slab)):
                    smaller = ": a smaller schedule.patch may do" if lacking[:2].any() else ""
                    raise CohortError(
                        f"{entry.path} has {_by(shape)} LR voxels, slices last; a training patch takes "
                        f"{_by(needed(self.slab))}{smaller}."
                    )
            return made

        return Group(tuple(m for each in self._each(list(sizes), members).values() for m in each))

    def _each(self, entries: Sequence[Entry], action: Callable[[Entry], T]) -> dict[Entry, T]:
        """The action's results; if it fails, stop or leave the scan out."""
        results: dict[Entry, T] = {}
        for done, entry in enumerate(entries, start=1):
            try:
                results[entry] = action(entry)
                self.prepared(done, len(entries))
            except RunError as error:
                if not self.skip_bad:
                    raise CohortError(f"{error} (--bad-scans skip leaves such scans out.)") from None
                LOG.warning("Left out: %s", error)
        if not results:
            raise CohortError("None of the scans can be used.")
        return results

    def check_scale(self, source: Sequence[Entry], target: Sequence[Entry]) -> None:
        """Compare the voxels of real LR scans with those of the HR scans.

        Raises CohortError if they are not larger by about the scale along each of the world's axes; warns if
        the ratio is slightly off.
        """
        ratios = usual_zooms(target) / usual_zooms(source)
        if ratios.prod() < 1.05:
            raise CohortError(
                f"The source scans (such as {source[0].path}) are no finer than the target scans: source "
                "scans are HR and target scans LR. HR target scans are degraded first with "
                "--target-simulated."
            )
        for axis in self.axes:
            if (off := self._off_scale(ratios, axis)) > SCALE_TOLERANCE:
                raise CohortError(f"{self._told(ratios, axis)}. See --scale, and data.slab_axes.")
            if off > SCALE_NOTED:
                LOG.warning(
                    "%s. The network will learn sizes that are %.0f %% off: resample one of the groups.",
                    self._told(ratios, axis),
                    100 * (off - 1),
                )
                return

    def warn_of_scale(self, hr: Sequence[Entry], lr: Sequence[Entry]) -> None:
        """The same for pairs. Their shapes have to match, so a wrong header only causes a warning."""
        ratios = usual_zooms(lr) / usual_zooms(hr)
        if min(self._off_scale(ratios, axis) for axis in self.axes) > SCALE_NOTED:
            LOG.warning("%s. Are these pairs?", self._told(ratios, self.axes[0]))

    def _off_scale(self, ratios: NDArray[np.floating], axis: int) -> float:
        """The factor by which voxel sizes differ most from what the scale says."""
        return float(np.exp(np.abs(np.log(ratios / voxel_factors(self.scale, axis))).max()))

    def _told(self, ratios: NDArray[np.floating], axis: int) -> str:
        return (
            f"Along the world's axes, voxels of the target scans are {_by(ratios)} times as large as those "
            f"of the source scans; scale {'x'.join(map(str, self.scale))} with slices along axis {axis} says "
            f"{_by(voxel_factors(self.scale, axis))}"
        )


def slab_axes(scale: Scale, source: Sequence[Entry], target: Sequence[Entry]) -> tuple[int, ...]:
    """The world axis across the slices, if none was asked for.

    It is the axis along which the voxel sizes differ by the scale; if there are several, the target scans'
    slice axis. source: HR scans, target: LR ones; the same scans if LR scans are simulated.
    """
    across = slab_axis((*usual_zooms(target),))
    ratios = usual_zooms(target) / usual_zooms(source)
    first = sorted(range(3), key=lambda axis: axis != across)
    error = {a: float(np.abs(np.log(ratios / voxel_factors(scale, a))).max()) for a in first}
    best = min(error.values())
    return (next(axis for axis in first if error[axis] < best + 0.05),)


def _spaced(entries: Sequence[Entry]) -> list[Entry]:
    """At most `ESTIMATED` of them, evenly spaced."""
    places = np.linspace(0, len(entries) - 1, min(len(entries), ESTIMATED)).round().astype(int)
    return [entries[n] for n in places]


def told(source: Sequence[Entry], target: Sequence[Entry], simulated: bool) -> str:
    """Describe a training's scans without naming anybody: how many, of how many people, of which size."""
    groups = {"HR": source, "simulated LR" if simulated else "LR": target}
    return " and ".join(
        f"{len(entries)} {kind} scans of {len({e.participant for e in entries})} people "
        f"({_by(usual_zooms(entries))} mm)"
        for kind, entries in groups.items()
        if entries
    )


def usual_zooms(entries: Sequence[Entry]) -> NDArray[np.floating]:
    """Voxel sizes, mm, of the scans that can be read; the others are reported by `_group`."""
    known = []
    for entry in entries:
        with contextlib.suppress(RunError):
            known.append(open_along_world(entry.path).zooms)
    return np.median(known, axis=0) if known else np.ones(3)


def _by(numbers: Sequence[float] | NDArray[np.floating]) -> str:
    return " x ".join(f"{number:.3g}" for number in numbers)
