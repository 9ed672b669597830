"""The content's box and the intensity unit, against the plain definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from udean.runtime.pipeline.content import MARGIN, survey
from udean.runtime.scan import intensity

SHAPES = hnp.array_shapes(min_dims=3, max_dims=3, max_side=12)
ORDERS = st.permutations(range(3))


@given(
    volume=hnp.arrays(np.int16, SHAPES, elements=st.integers(-3, 3), fill=st.just(0)),
    order=ORDERS,
)
def test_outside_the_box_there_is_background_only(volume, order):
    volume = volume.transpose(order)
    content = survey(volume)
    assert (content.low, content.high) == (volume.min(), volume.max())
    outside = np.ones(volume.shape, bool)
    outside[content.box] = False
    assert (volume[outside] == content.background).all()
    for part, size in zip(content.box, volume.shape, strict=True):
        assert 0 <= part.start < part.stop <= size


def test_the_box_is_the_content_and_a_margin():
    volume = np.zeros((50, 60, 30))
    volume[20:25, 30:31, 10:12] = 1
    box = survey(volume).box
    wanted = [
        (20 - MARGIN[0], 25 + MARGIN[0]),
        (30 - MARGIN[1], 31 + MARGIN[1]),
        (10 - MARGIN[2], 12 + MARGIN[2]),
    ]
    assert [(part.start, part.stop) for part in box] == wanted


@given(
    volume=hnp.arrays(
        st.sampled_from(["uint8", "int16", ">i2", "int32", "float32", "float64"]),
        SHAPES,
        elements=st.integers(0, 100),
    ),
    percent=st.sampled_from(["99.9", "50", "0", "100"]),
    order=ORDERS,
    piece=st.sampled_from([1, 30, 10**6]),
)
def test_unit_is_the_percentile(volume, percent, order, piece):
    magnitude = np.sort(np.abs(volume.astype(np.float32) * 2 - 30).ravel())
    rank = min(magnitude.size - 1, int(float(percent) / 100 * magnitude.size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(intensity, "PIECE", piece)
        found = intensity.unit(volume.transpose(order), f"percentile-{percent}", 2.0, -30.0)
    assert found == (magnitude[rank] or magnitude[-1] or 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_found(bad):
    volume = np.ones((5, 6, 7))
    volume[3, 2, 1] = bad
    for judge in (survey, intensity.unit):
        with pytest.raises(intensity.IntensityError):
            judge(volume)
