"""What all tests share: a stream of tests for each core, so a thread for each stream."""

import os
import sys

from hypothesis import settings

# How long an example takes says how busy the machine is, and nothing about what is tested.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

# Small networks on two threads in each of two streams spend three quarters of the time waiting for a core.
# What the commands choose by themselves is not affected: they count cores.
for library in ("OMP", "OPENBLAS"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")


def pytest_runtest_setup():
    """An engine of PyTorch takes all cores for its whole process."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
