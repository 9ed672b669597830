"""A command in this process: enough for what it prints, writes or refuses, while a process takes seconds."""

import contextlib
import io
import logging
import subprocess
import sys

import pytest
from udean.runtime.commands.launch import main


def here(*command, cwd=None, **environment):
    """Run a command line such as ("udean-run", scan): exit code, stdout and stderr, as of a process."""
    line, said = [*map(str, command)], subprocess.CompletedProcess(command, 0)
    out, err = io.StringIO(), io.StringIO()
    warnings = logging.StreamHandler(err)  # as Python shows them if nobody has configured any
    warnings.setLevel(logging.WARNING)
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", line)
        for name, value in environment.items():
            patch.setenv(name, str(value))
        if cwd is not None:
            patch.chdir(cwd)
        logging.getLogger().addHandler(warnings)
        try:
            main()
        except SystemExit as end:
            said.returncode = end.code or 0
        finally:
            logging.getLogger().removeHandler(warnings)
    said.stdout, said.stderr = out.getvalue(), err.getvalue()
    return said
