"""udean: super-resolution of MRI, from training to scanner. See README.md and ARCHITECTURE.md."""

import os
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .runtime.resolver import SuperResolver

__all__ = ["SuperResolver", "__version__"]

# Nothing leaves the machine. OpenVINO and ONNX Runtime report their use when they are imported, and write
# into the home folder to do so; Ray reports that of its clusters. All our processes pass here first.
sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # an import of it fails now
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def __getattr__(name: str) -> Any:
    """Import the resolver when it is asked for, so that `import udean` costs nothing."""
    if name == "SuperResolver":
        from .runtime.resolver import SuperResolver

        return SuperResolver
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
