"""The only exception of this package: something that the user can fix, in one sentence."""

from ..runtime.errors import RunError


class ExportError(RunError):
    """What is wrong, with which file, and what to do. Shown to the user verbatim, without a traceback."""
