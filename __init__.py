"""udean: MRI super-resolution learned without paired data. See README.md and ARCHITECTURE.md."""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .runtime.resolver import SuperResolver

__all__ = ["SuperResolver", "__version__"]


def __getattr__(name: str) -> Any:
    """Import the resolver when it is asked for, so that `import udean` costs nothing."""
    if name == "SuperResolver":
        from .runtime.resolver import SuperResolver

        return SuperResolver
    raise AttributeError(name)
