"""The benchmark of the training step measures what it says, at the smallest size."""

import pytest
from udean.benchmarks.training_speed import VARIANTS, Variant, measure, panels


def test_variants_take_the_same_steps():
    plain = measure(Variant(), "compact", "supervised", 2, 2, 1)
    fast = measure(Variant("bf16-mixed", channels_last=True), "compact", "supervised", 2, 2, 1)
    assert len(plain.losses) == 3 and plain.patches_per_second > 0 and plain.peak_mb > 50
    assert plain.patches_per_second == pytest.approx(2e3 / plain.step_ms)
    assert fast.losses == pytest.approx(plain.losses, rel=0.1)


def test_speed_is_drawn_beside_the_losses():
    variants = [{"variant": str(v), "patches_per_second": 2.0, "losses": [3.0, 2.0]} for v in VARIANTS]
    speed, losses = panels({"variants": variants})
    assert len(speed.x) == len(set(speed.x)) == len(losses.series) == 5 and list(losses.x) == [1, 2]
