"""The benchmark of the training step measures what it says, at the smallest size."""

import json

import pytest
from udean.benchmarks import training_speed
from udean.benchmarks.training_speed import Variant, machine, measure


def test_variants_take_the_same_steps():
    plain = measure(Variant(), "compact", "supervised", 2, 2, 1)
    fast = measure(Variant("bf16-mixed", channels_last=True), "compact", "supervised", 2, 2, 1)
    assert len(plain.losses) == 3 and plain.patches_per_second > 0 and plain.peak_mb > 50
    assert plain.patches_per_second == pytest.approx(2e3 / plain.step_ms)
    assert fast.losses == pytest.approx(plain.losses, rel=0.1)


def test_machine_can_be_written_down():
    assert json.loads(json.dumps(machine()))["torch"] and len(set(map(str, training_speed.VARIANTS))) == 5
