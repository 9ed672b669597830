"""Matplotlib's files lie in our cache folder, whoever imports it first: MONAI does so too."""

import contextlib
import os
from pathlib import Path

from ..runtime.errors import RunError
from ..runtime.system.files import cache_folder

with contextlib.suppress(RunError):  # without a home folder Matplotlib takes a temporary one
    os.environ.setdefault("MPLCONFIGDIR", str(cache_folder() / "matplotlib"))
# Matplotlib has fontconfig list the system's fonts, which writes a cache; its own are all that pictures need.
os.environ.setdefault("FONTCONFIG_FILE", str(Path(__file__).with_name("fonts.conf")))
