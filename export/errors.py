"""The one exception of this room: something that the user can mend, said in one sentence."""

from ..runtime.errors import RunError


class ExportError(RunError):
    """What is wrong, with which file, and what to do. Shown to the user as it is, without a traceback."""
