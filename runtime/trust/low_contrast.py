"""How many spokes of an ACR-like low-contrast phantom are seen, in the noise of a scan.

After the ACR's large phantom (ACR MRI Quality Control Manual, 2015, low-contrast object detectability): a
spoke counts if its three disks are all seen, and in each stack counting ends with the first that is not. A
statistic replaces the reader: a disk is seen if its mean exceeds that of the same voxels without it by more
than chance would explain.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..scan.voxels import Volume
from .phantoms import DIAMETERS, THICK, Disk

LIKELY = 1.645  # standard deviations: one disk in twenty is seen although there is none


def spokes_seen(sr: Volume, plain: Volume, disks: Sequence[Disk]) -> int:
    """Number of spokes seen, of 40. sr: the phantom; plain: the one without disks, with other noise."""
    seen: dict[int, bool] = {}
    for disk in disks:
        firsts = range(THICK, plain.shape[2] - 2 * THICK, THICK)
        without = [plain[:, :, k : k + THICK][disk.inside].mean() for k in firsts]
        mean = sr[:, :, disk.slices][disk.inside].mean()
        found = bool(mean - np.mean(without) > LIKELY * np.std(without))
        seen[disk.spoke] = seen.get(disk.spoke, True) and found
    count = 0
    for first in range(0, len(seen), len(DIAMETERS)):
        stack = [seen[n] for n in range(first, first + len(DIAMETERS))]
        count += stack.index(False) if False in stack else len(stack)
    return count
