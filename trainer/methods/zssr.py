"""ZSSR (Shocher et al., CVPR 2018): what the LR scans lose when truncated once more is learned from them.

As the paper does it, one network learns from the whole target group, with the backbone and schedule of the
others; the original trains a small one on each image.
"""

from __future__ import annotations

from typing import ClassVar

from .method import Draws
from .supervised import Supervised


class Zssr(Supervised):
    """`Supervised` on the LR scans and their own truncation by the same factors."""

    draws: ClassVar[Draws] = "target"
