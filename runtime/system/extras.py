"""Libraries that come with an extra of this package."""

from __future__ import annotations

import importlib
from types import ModuleType

from ..errors import RunError


def require(module: str, extra: str) -> ModuleType:
    """Import a library, or say with which extra it comes. Raises RunError."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise RunError(
            f"This needs {module}, which cannot be imported ({error}): pip install 'udean[{extra}]'"
        ) from error
