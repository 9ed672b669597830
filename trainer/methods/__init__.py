"""The methods that can be trained, by name."""

from __future__ import annotations

from typing import Literal

from ..nets.generators import Architecture
from .cyclegan import CycleGan
from .dasr import Dasr
from .method import Method, Weights
from .parametric import Parametric
from .pseudosr import PseudoSr
from .supervised import Supervised
from .udean import Udean
from .zssr import Zssr

Name = Literal["udean", "parametric", "supervised", "zssr", "cyclegan", "dasr", "pseudosr"]
METHODS: dict[Name, type[Method]] = {
    "udean": Udean,
    "parametric": Parametric,
    "supervised": Supervised,
    "zssr": Zssr,
    "cyclegan": CycleGan,
    "dasr": Dasr,
    "pseudosr": PseudoSr,
}


def create(name: Name, arch: Architecture, patch: int, weights: Weights) -> Method:
    """A method's networks, freshly initialised. patch: rows (= columns) of an LR training patch."""
    return METHODS[name](arch, patch, weights)


__all__ = ["METHODS", "Method", "Name", "Weights", "create"]
