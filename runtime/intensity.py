"""The intensity rule: how a volume is brought to the network's range, and back.

One rule is in use, "percentile-P": divide by the P-th percentile of the finite absolute values. It only
scales, so zero stays zero and a volume's units come back by one multiplication; values above the
percentile exceed 1 and are not clipped.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .errors import RunError

RULE = "percentile-99.9"


class IntensityError(RunError, ValueError):
    """The volume cannot be brought to the network's range."""


def unit(volume: NDArray[np.generic], rule: str = RULE) -> float:
    """The intensity, in the volume's own units, that becomes 1 inside the network.

    volume: any real dtype and shape. Raises IntensityError for an unknown rule or non-finite voxels.
    A volume whose percentile is 0 (empty, or a few bright voxels) uses its maximum, an empty one 1.
    """
    name, _, percent = rule.partition("-")
    if name != "percentile" or not percent:
        raise IntensityError(f"The model's intensity rule '{rule}' is unknown to this version of udean.")
    magnitude = np.abs(np.asarray(volume, dtype=np.float32)).ravel()
    if not np.isfinite(magnitude).all():
        raise IntensityError("The scan has NaN or infinite voxels.")
    rank = min(magnitude.size - 1, int(float(percent) / 100 * magnitude.size))
    value = float(np.partition(magnitude, rank)[rank])
    return value or float(magnitude.max()) or 1.0
