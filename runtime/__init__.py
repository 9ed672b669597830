"""The runtime: super-resolution of volumes, files and folders by a trained network.

Importing it needs numpy and nibabel; an engine's library is imported when that engine is opened.
"""

from .card import CardError, ModelCard
from .engine import Engine, EngineInfo
from .engines import open_engine
from .errors import RunError
from .intensity import Intensities
from .resolver import SuperResolver

__all__ = [
    "CardError",
    "Engine",
    "EngineInfo",
    "Intensities",
    "ModelCard",
    "RunError",
    "SuperResolver",
    "open_engine",
]
