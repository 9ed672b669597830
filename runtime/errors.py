"""Errors that the user can mend, each said in one sentence."""


class RunError(Exception):
    """What is wrong, with which file, and what to do. Shown to the user as it is, without a traceback."""


class DiskError(RunError):
    """A disk is full, fails or is not to be had: nothing is wrong with the scan, and later it may work."""


def first_line(error: BaseException) -> str:
    """The first line of what an error of a library says, or its kind if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
