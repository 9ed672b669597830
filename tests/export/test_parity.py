"""Parity says how far two networks are apart, and what is too far."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from udean.export import parity
from udean.export.artefacts import Artefact
from udean.export.errors import ExportError
from udean.export.parity import Deviation


def test_deviation_is_measured_against_the_reference() -> None:
    reference = np.array([0.0, 1.0, 2.0, 4.0], np.float32)
    d = parity.output_deviation(reference + np.float32(0.4), reference)
    assert d.max_error == pytest.approx(0.4)
    assert d.relative == pytest.approx(0.1)
    assert d.psnr == pytest.approx(20.0)  # a tenth of the range of 4
    assert parity.output_deviation(reference, reference) == Deviation(0.0, 0.0, 200.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_beyond_every_limit(bad: float) -> None:
    reference = np.ones(4, np.float32)
    output = reference.copy()
    output[2] = bad
    found = {"brain": parity.output_deviation(output, reference)}
    for precision in ("fp32", "fp16", "int8"):
        with pytest.raises(ExportError, match="has to reach"):
            parity.enforce(found, precision, "an engine")


@given(st.floats(1e-12, 1e6), st.floats(0, 200))
def test_figures_in_the_card_are_bounds_of_what_was_found(error: float, psnr: float) -> None:
    noted = Deviation(error, error, psnr).rounded()
    assert error <= noted["max_error"] <= 2.0001 * error
    assert psnr - 1 < noted["psnr"] <= psnr


def test_limits_are_those_promised() -> None:
    parity.enforce({"brain": Deviation(1, 1e-5, 100)}, "fp32", "an engine")
    parity.enforce({"brain": Deviation(1, 1e-2, 60)}, "fp16", "an engine")
    parity.enforce({"brain": Deviation(1, 1, 45), "random": Deviation(1, 1, 10)}, "int8", "an engine")
    for precision, d in (
        ("fp32", Deviation(1, 1.1e-5, 120)),
        ("fp16", Deviation(1, 1.1e-2, 70)),
        ("fp16", Deviation(1, 1e-3, 59.9)),
        ("int8", Deviation(1, 1e-3, 44.9)),
    ):
        with pytest.raises(ExportError, match="in an engine it is off by"):
            parity.enforce({"brain": d}, precision, "an engine")


@pytest.mark.parametrize("size", [(3, 16, 16), (2, 120, 40)])
def test_brain_windows_show_a_brain_in_the_networks_range(
    exported: dict[str, Artefact], size: tuple[int, int, int]
) -> None:
    card = exported["fp32"].card
    windows = parity.brain_windows(card, *size)
    n, h, w = size
    assert windows.shape == (n, 3, h, w) and windows.dtype == np.float32
    assert np.abs(windows).max() <= 1.5
    assert (windows.reshape(n, -1).std(1) > 0.05).all()  # none lies in the air
