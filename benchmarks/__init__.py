"""Puts Matplotlib's files into our cache folder, no matter who imports it first (MONAI does, too)."""

import contextlib
import os
from pathlib import Path

from ..runtime.errors import RunError
from ..runtime.system.files import cache_folder

with contextlib.suppress(RunError):  # without a home folder Matplotlib takes a temporary one
    os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))
# Matplotlib lets fontconfig list the system's fonts, which writes a cache; pictures need only its own fonts.
os.environ.setdefault("FONTCONFIG_FILE", str(Path(__file__).with_name("fonts.conf")))
