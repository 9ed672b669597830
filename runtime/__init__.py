"""The runtime: super-resolution of volumes, files and folders by a trained network.

Importing it needs numpy and nibabel; an engine's library is imported when that engine is opened. Names are
imported on first use, so that a command can refuse a wrong option before it has loaded anything.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engines.choose import open_engine
    from .errors import RunError
    from .models.card import CardError, ModelCard
    from .pipeline.engine import Engine, EngineInfo
    from .resolver import SuperResolver
    from .scan.intensity import Intensities

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

_HOMES = {
    "CardError": "models.card",
    "Engine": "pipeline.engine",
    "EngineInfo": "pipeline.engine",
    "Intensities": "scan.intensity",
    "ModelCard": "models.card",
    "RunError": "errors",
    "SuperResolver": "resolver",
    "open_engine": "engines.choose",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
