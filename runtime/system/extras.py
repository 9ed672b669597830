"""Libraries that come with an extra of this package."""

from __future__ import annotations

import importlib
from types import ModuleType

from ..errors import RunError
from .memory import lacks_memory, limit


def require(module: str, extra: str) -> ModuleType:
    """Import a library. Raises RunError, which names the extra that contains it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        if lacks_memory(error):
            raise RunError(f"There is not enough memory{limit()} to load {module}.") from error
        raise RunError(
            f"This needs {module}, which cannot be imported ({error}): pip install 'udean[{extra}]'"
        ) from error
