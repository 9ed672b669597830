"""The benchmark of the training step measures what it says, at the smallest size."""

import pytest
from udean.benchmarks.training_speed import VARIANTS, time_variant


def test_variants_take_the_same_steps():
    plain, fast = (time_variant(VARIANTS[n], "compact", "supervised", 2, 2, 1) for n in (0, 3))
    assert len(plain["losses"]) == 3 and plain["patches_per_second"] > 0 and plain["peak_mb"] > 50
    assert plain["patches_per_second"] == pytest.approx(2e3 / plain["step_ms"])
    assert fast["losses"] == pytest.approx(plain["losses"], rel=0.1)
    assert fast["variant"] == "bf16-mixed, channels last, eager"
