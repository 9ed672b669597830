"""Random degradations around the nominal one: a network trained on one kind of scan handles no other."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from .kspace import Degradation, DegradationError


@dataclass(frozen=True, kw_only=True)
class Variation:
    """How far simulated LR scans of a group depart from the nominal degradation, each by a draw of its own.

    noise: up to this much is added to the nominal noise, drawn uniformly. clean: share of the scans that get
    none. shaped: share of the scans whose k-space is shaped by one of these, drawn uniformly from those that
    are enabled: partial_fourier and filled down to these shares, elliptical, a hamming or tukey window up to
    that. quantised: share of the scans that are stored in 120 to 1000 grey levels.
    """

    noise: float = 0.0
    clean: float = 0.0
    shaped: float = 0.0
    partial_fourier: float = 1.0
    filled: float = 1.0
    elliptical: bool = False
    hamming: float = 0.0
    tukey: float = 0.0
    quantised: float = 0.0

    def __post_init__(self) -> None:
        shares = (self.clean, self.shaped, self.quantised)
        if not all(0 <= share <= 1 for share in shares) or not 0 <= self.noise < math.inf:
            raise DegradationError(
                "A variation's clean, shaped and quantised are shares from 0 to 1; its noise is not negative."
            )
        # Degradation checks the other values.
        Degradation(
            partial_fourier=self.partial_fourier, filled=self.filled, hamming=self.hamming, tukey=self.tukey
        )
        if self.shaped and not self._shapes():
            raise DegradationError(
                "Shaped scans of a variation need one of partial_fourier, filled, elliptical, hamming, tukey."
            )

    def draw(self, nominal: Degradation, seed: int) -> Degradation:
        """One scan's degradation, by the seed alone; the nominal one if nothing varies.

        Raises DegradationError for a nominal blur whose k-space is to be shaped.
        """
        if self == Variation():
            return nominal
        rng = np.random.default_rng(seed)
        changes: dict[str, float | bool | int] = {}
        if rng.random() >= self.clean:
            changes["noise"] = nominal.noise + float(rng.uniform(0, self.noise))
        if rng.random() < self.shaped:
            names = self._shapes()
            name = names[rng.integers(len(names))]
            limit = getattr(self, name)
            if name == "elliptical":
                changes[name] = True
            else:
                changes[name] = float(
                    rng.uniform(min(limit, getattr(nominal, name)), max(limit, getattr(nominal, name)))
                )
        if rng.random() < self.quantised:
            changes["levels"] = int(rng.choice([120, 255, 255, 1000]))
        return dataclasses.replace(nominal, **changes)

    def _shapes(self) -> list[str]:
        """The enabled shapes of k-space."""
        still = Variation.__dataclass_fields__
        names = ("partial_fourier", "filled", "elliptical", "hamming", "tukey")
        return [name for name in names if getattr(self, name) != still[name].default]
