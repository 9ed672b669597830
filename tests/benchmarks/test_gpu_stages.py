"""Stages of a volume: what is said of them, here of an engine that is not always of one mind."""

import numpy as np
from udean.benchmarks import gpu_stages

from ..support.fakes import FakeEngine, card, nearest

CARD = card((2, 2, 2), 3, (8, 8))


def test_stages_and_results_that_differ_are_told(capsys):
    volume = np.random.default_rng(0).integers(0, 900, (12, 11, 9)).astype(np.int16)
    steady = FakeEngine(lambda x: nearest(x, (2, 2, 2)), CARD)
    found = gpu_stages.by_stage(steady, volume, gpu_stages.WAYS["and the measured band"], 3)
    assert len(found["seconds_of_all"]) == 3 and len(found["digests"]) == 1
    assert {"gather", "network", "blend"} <= found["stages"].keys() and 0 <= found["outside_network"] < 1
    gpu_stages._tell("windows", found)
    calls = []

    def wavering(windows):
        calls.append(0)
        return nearest(windows, (2, 2, 2)) * np.float32(1 + len(calls) / 100)

    found = gpu_stages.by_stage(FakeEngine(wavering, CARD), volume, gpu_stages.WAYS["windows alone"], 3)
    gpu_stages._tell("wavering", found)
    said = capsys.readouterr().out.splitlines()
    assert said[0].endswith("each run the same") and said[1].endswith("3 DIFFERENT results")
