"""A volume as an array."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from numpy.typing import NDArray

Volume: TypeAlias = NDArray[Any]  # (rows, columns, slices), float32 unless said otherwise
Restore: TypeAlias = Callable[[Volume], Volume]  # LR to SR
