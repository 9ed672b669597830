"""Scans along the world's axes, however their files store them: HR and LR may then be of different scanners.

The first voxel axis runs (about) from left to right, the second from back to front, the third from foot to
head: RAS+, as in NIfTI. For an oblique scan the nearest axes are used; no voxel is interpolated.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import RunError
from ...runtime.scan.kinds import check_voxels
from ...runtime.scan.scan import Scan, open_scan, tell_remarks

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class AlongWorld:
    """A scan whose voxel axes are turned to the world's."""

    scan: Scan

    @property
    def name(self) -> str:
        return self.scan.name

    @property
    def turn(self) -> NDArray[np.float64]:
        """nibabel's orientation, (3, 2): the world axis of each stored axis, and its direction."""
        return np.asarray(nib.io_orientation(self.scan.affine), np.float64)

    @property
    def affine(self) -> NDArray[np.float64]:
        """Turned voxels to world, mm, (4, 4)."""
        return self.scan.affine @ nib.orientations.inv_ornt_aff(self.turn, self.scan.shape)

    @property
    def zooms(self) -> tuple[float, float, float]:
        """Voxel sizes along the turned axes, mm."""
        i, j, k = map(float, np.linalg.norm(self.affine[:3, :3], axis=0))
        return i, j, k

    def voxels_in_units(self) -> NDArray[np.float32]:
        """The turned voxels in the scan's units; warns of repairs, and if it is not an MR scan."""
        voxels = tell_remarks(self.scan).voxels()
        try:
            check_voxels(self.scan, voxels)
        except RunError as error:
            why = str(error).partition(", so it is left")[0]  # it is not: maps may be what somebody trains on
            LOG.warning("Training on a scan that may be unsuitable: %s.", why)
        turned: Any = nib.apply_orientation(self.scan.in_units(voxels), self.turn)
        return turned


def open_along_world(path: Path) -> AlongWorld:
    """A scan, its header checked; see `open_scan`."""
    return AlongWorld(open_scan(path))
