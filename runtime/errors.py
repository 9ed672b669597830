"""Errors that the user can fix, each in one sentence."""


class RunError(Exception):
    """An error for the user: the problem, the file and the remedy. Shown verbatim, without a traceback."""


class DiskError(RunError):
    """A disk is full, failing or unavailable: nothing is wrong with the scan, and it may work later."""


def first_line(error: BaseException) -> str:
    """The first line of a library's error message, or the error's type if it has no message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
