"""ZSSR (Shocher et al., CVPR 2018): learn from the LR scans what they lose when truncated once more.

As in the UDEAN paper, one network learns from the whole target group, with the backbone and schedule of the
other methods; the original trains a small one on each image.
"""

from __future__ import annotations

from typing import ClassVar

from .method import Draws
from .supervised import Supervised


class Zssr(Supervised):
    """`Supervised` on the LR scans and their own truncation by the same factors."""

    draws: ClassVar[Draws] = "target"
