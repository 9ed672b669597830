"""A volume as an array."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Volume: TypeAlias = NDArray[Any]  # (rows, columns, slices), float32 unless said otherwise
Planes: TypeAlias = NDArray[np.float32]  # (rows, columns), or several of them
Restore: TypeAlias = Callable[[Volume], Volume]  # LR to SR
