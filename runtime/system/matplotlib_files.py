"""Where Matplotlib leaves its files: in our cache folder, and not where fonts are listed."""

import contextlib
import os
from pathlib import Path

from ..errors import RunError
from .files import cache_folder


def keep_in_cache() -> None:
    """Call this before Matplotlib is imported."""
    with contextlib.suppress(RunError):  # without a home folder Matplotlib takes a temporary one
        os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))
    # It lets fontconfig list the system's fonts, which writes a cache; pictures need only its own fonts.
    os.environ.setdefault("FONTCONFIG_FILE", str(Path(__file__).with_name("fonts.conf")))
