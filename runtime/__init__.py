"""The runtime: super-resolution of volumes, files and folders by a trained network.

Importing it needs numpy and nibabel; an engine's library is imported when that engine is opened.
"""

from .engines.choose import open_engine
from .errors import RunError
from .models.card import CardError, ModelCard
from .pipeline.engine import Engine, EngineInfo
from .resolver import SuperResolver
from .scans.intensity import Intensities

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
