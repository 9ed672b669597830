"""The only exception of this package: something that the user can fix, in one sentence."""

from ..runtime.errors import RunError


class ExportError(RunError):
    """An error for the user: the problem, the file and the remedy. Shown verbatim, without a traceback."""
