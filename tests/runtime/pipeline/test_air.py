"""Air is found where there is nothing but noise, and never where there is anatomy."""

import numpy as np
import pytest
from udean.runtime.pipeline.air import MARGIN, find_air, joined, occupied
from udean.runtime.pipeline.host import SEAM, WHOLE, LrVolume, resolve_slabs
from udean.runtime.pipeline.tiling import tile_windows
from udean.runtime.scan.interpolation import linear

from ...support.fakes import card, nearest

SHAPE = (96, 112, 24)
CARD = card((2, 2, 2), 3, (32, 32))


def grid(shape=SHAPE):
    return np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij", sparse=True)


def ellipsoid(centre, radii, shape=SHAPE):
    return sum(((x - c) / r) ** 2 for x, c, r in zip(grid(shape), centre, radii, strict=True)) < 1


def head():
    """A brain, dark skull, thin skin, two ears one voxel thick, and an eye."""
    image = 700.0 * ellipsoid((0, 0, 0), (0.5, 0.45, 9))
    image[ellipsoid((0, 0, 0), (0.62, 0.57, 9)) & ~ellipsoid((0, 0, 0), (0.58, 0.53, 9))] = 900
    image[47:50, 20:24, 8:16] = image[47:50, 88:92, 8:16] = 300
    image[14:19, 50:56, 10:14] = 400
    return image


def arms():
    """A body and an arm at either side, apart from it."""
    image = 500.0 * ellipsoid((0, 0, 0), (0.4, 0.5, 9))
    for side in (-0.85, 0.85):
        image[ellipsoid((0.2, side, 0), (0.1, 0.08, 9))] = 350
    return image


def wrapped():
    """Anatomy that has wrapped around to the other end of the field of view."""
    image = np.roll(700.0 * ellipsoid((0, 0, 0), (0.5, 0.5, 9)), 40, axis=0)
    return image


def spots():
    """Single bright voxels far from everything else."""
    image = 800.0 * ellipsoid((0.2, 0.1, 0), (0.3, 0.3, 9))
    image[5, 100, 3] = image[90, 5, 20] = 600
    return image


def knee():
    """Two bright masses and dark cortical bone in between."""
    image = 800.0 * (ellipsoid((-0.3, 0, 0), (0.25, 0.3, 9)) | ellipsoid((0.3, 0, 0), (0.25, 0.3, 9)))
    image[ellipsoid((0, 0, 0), (0.08, 0.4, 9))] = 60
    return image


def noisy(image, sigma, seed=0):
    rng = np.random.default_rng(seed)
    return np.hypot(
        image + sigma * rng.standard_normal(image.shape), sigma * rng.standard_normal(image.shape)
    )


def shown(volume, tiling, air):
    """The mask of voxels that lie in the span of any window."""
    seen = np.zeros(volume.shape, bool)
    spans = iter(occupied(volume, tiling, air))
    for k in tiling.slices.starts:
        for i in tiling.rows.starts:
            for j in tiling.columns.starts:
                if span := next(spans):
                    window = seen[i : i + tiling.rows.window, j : j + tiling.columns.window]
                    window[span][..., k : k + 3] = True
    return seen


@pytest.mark.parametrize("sigma", [1.0, 3.0, 4.0, 20.0, 50.0])
@pytest.mark.parametrize("anatomy", [head, arms, wrapped, spots, knee], ids=lambda f: f.__name__)
@pytest.mark.parametrize("window", ["plane", (32, 32)], ids=str)
def test_no_anatomy_is_taken_for_air(anatomy, sigma, window):
    image = anatomy()
    volume = noisy(image, sigma).astype(np.float32)
    tiling = tile_windows(SHAPE, CARD, window=window)
    air = find_air(volume, tiling.slices)
    assert air is not None
    seen = shown(volume, tiling, air)
    assert seen[image > 6 * sigma].all()
    assert seen.mean() < 0.95


@pytest.mark.parametrize(
    "image",
    [
        500 + 200 * np.random.default_rng(1).random(SHAPE),  # an abdomen that fills the field of view
        np.where(ellipsoid((0, 0, 0), (0.2, 0.2, 9)), 1000.0, 100.0),  # a prostate in dark muscle
        np.full(SHAPE, 7.0),
    ],
    ids=["full", "dark", "constant"],
)
def test_a_volume_without_air_has_none(image):
    slices = tile_windows(SHAPE, CARD, window="plane").slices
    assert find_air(noisy(image, 10.0) if np.ptp(image) else image, slices) is None


def test_noise_of_several_coils_is_left_to_the_network():
    """The root of a sum of squares of many channels varies as little as tissue: it is not called air."""
    rng = np.random.default_rng(0)
    coils = rng.standard_normal((32, *SHAPE)) * 10
    coils[:2] += head() / np.sqrt(2)
    assert find_air(np.sqrt((coils**2).sum(0)), tile_windows(SHAPE, CARD).slices) is None


def test_zeroed_corners_do_not_hide_the_noise_beside_them():
    volume = noisy(head(), 10.0)
    volume[:12, :, :] = 0
    tiling = tile_windows(SHAPE, CARD, window="plane")
    air = find_air(volume, tiling.slices)
    assert air.mean > 0
    assert shown(volume, tiling, air).mean() < 0.8


@pytest.mark.parametrize("grid_name", ["fft", "center"])
@pytest.mark.parametrize("scale", [1, 2, 3])
def test_linear_interpolation_keeps_lines_straight(scale, grid_name):
    lr = 3.0 + 2 * np.arange(9, dtype=np.float32)[None, :, None]
    position = (
        np.arange(9 * scale) / scale if grid_name == "fft" else (np.arange(9 * scale) + 0.5) / scale - 0.5
    )
    wanted = 3 + 2 * np.clip(position, 0, 8)
    np.testing.assert_allclose(linear(lr, scale, grid_name, 1)[0, :, 0], wanted, rtol=1e-6)


def restored(volume, network, air, window="plane"):
    tiling = tile_windows(volume.shape, CARD, window=window)
    sr = np.empty(tiling.fine_shape, np.float32)
    for first, planes in resolve_slabs(LrVolume(volume, air=air), network, tiling):
        sr[:, :, first : first + len(planes)] = np.moveaxis(planes, 0, 2)
    return sr


@pytest.mark.parametrize("window", ["plane", (48, 48)], ids=str)
def test_the_network_sees_what_stands_out_and_air_is_interpolated(window):
    """Inside, the result is the network's to the last bit; in deep air linear interpolation's."""
    volume = np.repeat(noisy(head(), 10.0)[:, :, 12:13], SHAPE[2], 2).astype(np.float32)
    tiling = tile_windows(SHAPE, CARD, window=window)
    air = find_air(volume, tiling.slices)
    seen_voxels = []

    def network(windows):
        seen_voxels.append(windows.size)
        return nearest(windows, (2, 2, 2))

    sr = restored(volume, network, air, window)
    whole = restored(volume, lambda w: nearest(w, (2, 2, 2)), None, window)
    assert sum(seen_voxels) < len(tiling) * 3 * tiling.rows.window * tiling.columns.window
    inside = nearest(np.repeat(head()[:, :, 12:13] > 0, SHAPE[2], 2), (2, 2, 2))
    np.testing.assert_array_equal(sr[inside], whole[inside])
    straight = volume
    for axis in range(3):
        straight = linear(straight, 2, "fft", axis)
    if window == "plane":  # else windows' ends lie in between
        np.testing.assert_allclose(sr[:8, :8], straight[:8, :8], atol=1e-3)


def test_the_seam_makes_no_step_above_the_noise():
    """A network that shifts everything by two noise levels shows nowhere as an edge."""
    sigma = 10.0
    volume = noisy(head(), sigma).astype(np.float32)
    air = find_air(volume, tile_windows(SHAPE, CARD, window="plane").slices)
    straight = restored(volume, lambda w: nearest(w, (2, 2, 2)), air)
    shifted = restored(volume, lambda w: nearest(w, (2, 2, 2)) + 2 * sigma, air) - straight
    steps = max(np.abs(np.diff(shifted, axis=axis)).max() for axis in (0, 1))
    assert shifted.max() > 1.99 * sigma
    assert steps <= 2 * sigma / (SEAM - 1)


def test_spans_are_joined_and_stay_inside_their_window():
    assert joined([None, None]) is None
    assert joined([None, (slice(8, 16), slice(0, 24))]) == (slice(8, 16), slice(0, 24))
    both = [(slice(8, 16), slice(0, 24)), (slice(0, 8), slice(16, 40))]
    assert joined(both) == (slice(0, 16), slice(0, 40))
    assert joined([*both, WHOLE]) == WHOLE
    volume = noisy(spots(), 5.0)
    tiling = tile_windows(SHAPE, CARD, window="plane")
    for rows, columns in filter(None, occupied(volume, tiling, find_air(volume, tiling.slices))):
        assert 0 <= rows.start < rows.stop <= SHAPE[0]
        assert 0 <= columns.start < columns.stop <= SHAPE[1]
        assert rows.stop - rows.start > MARGIN
