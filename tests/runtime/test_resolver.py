"""Volumes in, volumes out: units, dtypes, constants, images."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import nibabel as nib
import numpy as np
import pytest
from udean.runtime import RunError, SuperResolver
from udean.runtime.scan.scan import open_scan

from ..support.fakes import FakeEngine, card, nearest, onnx_model

CARD = card((2, 2, 2), 3, (8, 8))
RANDOM = np.random.default_rng(0)


@pytest.fixture
def resolve():
    return SuperResolver(FakeEngine(lambda x: nearest(x, (2, 2, 2)), CARD))


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "int16", "uint16", "int32", "int64", "float32", "float64", ">i2"]
)
@pytest.mark.parametrize("shape", [(11, 13, 7), (2, 9, 1), (1, 1, 2)])
def test_units_and_dtype_of_the_volume_are_kept(resolve, dtype, shape):
    volume = RANDOM.integers(0, 120, shape).astype(dtype)
    sr = resolve(volume)
    assert sr.dtype == np.dtype(dtype).newbyteorder("=")
    if sr.dtype.kind == "f":
        np.testing.assert_allclose(sr, nearest(volume, CARD.scale), rtol=1e-6)
    else:
        np.testing.assert_array_equal(sr, nearest(volume, CARD.scale))
    assert resolve(volume, dtype="float32").dtype == np.float32


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "uint32", "int64", "uint64"])
def test_integers_are_rounded_and_clipped_not_wrapped(dtype):
    overshooting = SuperResolver(FakeEngine(lambda x: 5 * nearest(x, (2, 2, 2)) - 2, CARD))
    info = np.iinfo(dtype)
    volume = RANDOM.integers(info.min, info.max, (9, 9, 9), dtype, endpoint=True)
    sr = overshooting(volume)
    assert sr.min() >= volume.min() and sr.max() <= volume.max()
    assert np.median(sr.astype(float)) != 0 or dtype == "uint8"


@pytest.mark.parametrize("dtype", ["int16", "float32", "float64"])
def test_a_magnitude_image_gets_no_negative_voxels(dtype):
    undershooting = SuperResolver(FakeEngine(lambda x: 2 * nearest(x, (2, 2, 2)) - 1, CARD))
    volume = RANDOM.integers(0, 1000, (9, 9, 9)).astype(dtype)
    for output in ("input", "float32"):
        sr = undershooting(volume, dtype=output)
        assert sr.min() == 0 and sr.max() > 900
    volume[0, 0, 0] = -1
    assert undershooting(volume, dtype="float32").min() == -1  # a scan's own least is the result's


@pytest.mark.parametrize("value", [0, 7, -3])
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_a_constant_scan_stays_constant(dtype, value):
    def network(windows):
        raise AssertionError("there is nothing to restore")

    sr = SuperResolver(FakeEngine(network, CARD))(np.full((5, 6, 7), value, dtype))
    assert sr.shape == (10, 12, 14) and sr.dtype == dtype and (sr == value).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_no_numbers_are_refused(resolve, bad):
    volume = np.ones((5, 5, 5), np.float32)
    volume[2, 2, 2] = bad
    with pytest.raises(RunError, match="NaN or infinite"):
        resolve(volume)


@pytest.mark.parametrize("volume", [np.ones((3, 3)), np.ones((3, 3, 0)), np.ones((3, 3, 3), complex)])
def test_other_arrays_are_refused(resolve, volume):
    with pytest.raises(RunError, match="3-D and real"):
        resolve(volume)


def test_images_keep_scaled_units(resolve, tmp_path):
    data = RANDOM.integers(0, 1000, (9, 8, 7)).astype(np.int16)
    image = nib.Nifti1Image(data, np.diag([1, 1, 2, 1]))
    image.header.set_slope_inter(0.25, -30)
    nib.save(image, tmp_path / "scaled.nii.gz")
    loaded = nib.load(tmp_path / "scaled.nii.gz")
    sr = resolve.image(loaded)
    np.testing.assert_allclose(sr.get_fdata(), nearest(loaded.get_fdata(), CARD.scale), atol=1e-4)
    header, stored = resolve.scan(open_scan(tmp_path / "scaled.nii.gz"))
    np.testing.assert_array_equal(stored, nearest(data, CARD.scale))
    assert header.get_slope_inter() == (0.25, -30)


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.float64])
def test_images_survive_saving(resolve, tmp_path, dtype):
    data = RANDOM.integers(0, 1000, (9, 8, 7)).astype(dtype)
    sr = resolve.image(nib.Nifti1Image(data, np.diag([1, 1, 2, 1])))
    nib.save(sr, tmp_path / "sr.nii.gz")
    back = nib.load(tmp_path / "sr.nii.gz")
    assert back.get_data_dtype() == dtype and back.dataobj.slope == 1
    np.testing.assert_allclose(back.get_fdata(), nearest(data, CARD.scale), rtol=1e-6)


def test_slab_axis_moves_the_slices(resolve):
    seen = []
    resolve.engine.network = lambda x: seen.append(x.shape) or nearest(x, (2, 2, 2))
    data = RANDOM.normal(size=(3, 8, 8)).astype(np.float32)
    sr = resolve.image(nib.Nifti1Image(data, np.diag([5, 1, 1, 1])))
    np.testing.assert_allclose(sr.get_fdata(), nearest(data, CARD.scale), rtol=1e-6)
    assert seen == [(1, 3, 8, 8)]


def test_a_volume_beyond_the_machine_is_refused_unread(resolve, tmp_path):
    path = tmp_path / "sparse.nii"
    header = nib.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((16000, 16000, 1000))
    header.set_sform(np.eye(4), 1)
    header["magic"], header["vox_offset"] = b"n+1", 352
    path.write_bytes(header.binaryblock)
    with open(path, "r+b") as file:
        file.truncate(352 + 16000 * 16000 * 1000)  # sparse
    with pytest.raises(RunError, match="machine"):
        resolve.scan(open_scan(path))


@pytest.mark.parametrize("background", [0, -500])
@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_background_around_the_content_is_not_computed_and_stays(dtype, background):
    seen = []
    network = FakeEngine(lambda x: seen.append(len(x)) or nearest(x, (2, 2, 2)), CARD)
    volume = np.full((40, 41, 20), background, dtype)
    volume[17:21, 22:27, 9:12] = RANDOM.integers(1, 99, (4, 5, 3))
    wanted = nearest(volume, CARD.scale)
    for crop in (True, False):
        seen.clear()
        resolve = SuperResolver(network, crop=crop)
        found = resolve(volume)
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        assert (resolve.timings.windows < len(resolve.stages.tiling(volume.shape)) / 4) == crop
        image = resolve.image(nib.Nifti1Image(volume, np.diag([3, 1, 1, 1])))  # slices along i
        np.testing.assert_allclose(image.get_fdata(), wanted, rtol=1e-6)


@pytest.mark.parametrize("around", [0, 3, 40])
def test_it_does_not_matter_how_much_background_is_around(around):
    def network(windows):  # whose answer depends on the whole window
        return nearest(windows, (2, 2, 2)) + windows.mean((1, 2, 3), keepdims=True)

    volume = np.zeros((50, 41, 20), np.float32)
    volume[17:31, 12:27, 8:13] = RANDOM.uniform(1, 99, (14, 15, 5))
    resolve = SuperResolver(FakeEngine(network, CARD.replace(intensity="percentile-100")), overlap=0.6)
    wanted, windows = resolve(volume), resolve.timings.windows
    padded = resolve(np.pad(volume, around))
    assert resolve.timings.windows == windows
    hr = tuple(slice(around * s, around * s + n * s) for n, s in zip(volume.shape, CARD.scale, strict=True))
    np.testing.assert_array_equal(padded[hr], wanted)
    padded[hr] = 0
    assert not padded.any()


def test_whole_planes_are_one_window_each(resolve):
    plane = SuperResolver(resolve.engine, window="plane")
    volume = RANDOM.normal(size=(21, 33, 5)).astype(np.float32)
    np.testing.assert_allclose(plane(volume), nearest(volume, CARD.scale), rtol=1e-6)
    assert plane.timings.windows == 2


def test_threads_share_a_resolver_and_closing_lets_the_engine_go(resolve):
    volumes = [RANDOM.normal(size=(20, 10 + n, 9)).astype(np.float32) for n in range(6)]
    with resolve, ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda v: (resolve(v), resolve.timings), volumes))
    for volume, (sr, timings) in zip(volumes, results, strict=True):
        np.testing.assert_allclose(sr, nearest(volume, CARD.scale), rtol=1e-6)
        assert timings.windows == len(resolve.stages.tiling(volume.shape))
    with pytest.raises(RunError, match="closed"):
        resolve(volumes[0])


def test_a_loaded_network_has_run_once_before_the_first_volume(monkeypatch):
    seen = []
    engine = FakeEngine(lambda x: seen.append(x.shape) or nearest(x, (2, 2, 2)), CARD)
    monkeypatch.setattr("udean.runtime.stages.network.choose_engine", lambda *_: engine)
    resolve = SuperResolver("sr.onnx", window=None)
    assert len(seen) == 1 and resolve.timings is None
    resolve(RANDOM.normal(size=(20, 20, 9)).astype(np.float32))
    assert seen[0][1:] == seen[1][1:]  # with windows as they will be
    SuperResolver("sr.onnx", window=(5, 6))
    assert seen[-1][1:] == (3, 5, 6)
    calls = len(seen)
    SuperResolver(engine)  # whose owner has loaded it
    assert len(seen) == calls


def test_timings_tell_of_the_last_volume(resolve):
    resolve = SuperResolver(resolve.engine, window=None)
    assert resolve.timings is None
    resolve(RANDOM.normal(size=(20, 20, 9)).astype(np.float32))
    timings = resolve.timings
    assert timings.windows == timings.computed == 3 * 3 * 4
    assert timings.total >= max(timings.gather, timings.network, timings.blend) > 0


@pytest.mark.parametrize(
    ("size", "dtype", "word"),
    [
        (1e39, float, "too large"),
        (1e-40, float, "too small"),
        (1e-60, float, "too small"),
        (1e-42, "f4", "too"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_intensities_that_float32_does_not_hold_are_refused_with_the_scans_name(
    resolve, tmp_path, size, dtype, word
):
    volume = (RANDOM.random((9, 8, 7)) * size).astype(dtype)
    with pytest.raises(RunError, match=word):
        resolve(volume)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "odd.nii")
    with pytest.raises(RunError, match=f"odd.nii: .*{word}"):
        resolve.scan(open_scan(tmp_path / "odd.nii"))


def test_a_scan_on_which_the_network_breaks_down_is_named(tmp_path):
    resolve = SuperResolver(FakeEngine(lambda x: nearest(x, (2, 2, 2)) * np.nan, CARD))
    nib.save(nib.Nifti1Image(RANDOM.random((9, 8, 7), np.float32), np.eye(4)), tmp_path / "odd.nii")
    with pytest.raises(RunError, match=r"odd.nii: The network returned NaN"):
        resolve.scan(open_scan(tmp_path / "odd.nii"))


@pytest.mark.parametrize("axis", [-1, 3, 5])
def test_an_axis_that_a_volume_has_not_is_refused(resolve, axis):
    with pytest.raises(RunError, match="0, 1 or 2"):
        resolve.image(nib.Nifti1Image(np.ones((3, 4, 5), np.float32), np.eye(4)), axis=axis)


def test_windows_that_no_machine_holds_are_refused(tmp_path):
    model = onnx_model(tmp_path / "sr.onnx", CARD)
    with pytest.raises(RunError, match="smaller"):
        SuperResolver(model, window=(10_000_000, 10_000_000))


def test_info_and_repr_say_what_restores_and_how(resolve):
    info = resolve.info()
    assert (info.card, info.engine, info.options) == (CARD, resolve.engine.info, resolve.options)
    for part in (CARD.name, "2 x 2 x 2", str(resolve.engine.info), CARD.intended_use, "gaussian"):
        assert part in str(info)
    assert "None" not in str(info)
    assert repr(resolve) == f"<SuperResolver {resolve.describe()}>"
    resolve.close()
    assert repr(resolve) == f"<SuperResolver {CARD.name}, closed>"
    with pytest.raises(RunError, match="closed"):
        resolve.info()


@pytest.mark.parametrize("factor", [1e30, 1e-30])
def test_intensities_of_any_size_are_restored_alike(factor):
    """Also what is read off a scan, such as its noise: squares of 1e30 leave float32."""
    resolve = SuperResolver(threads=1, precision="fp32")  # bf16 would make more of the rounding
    volume = np.random.default_rng(0).random((24, 24, 12)).astype(np.float32)
    volume[6:18, 6:18] += 9
    with np.errstate(all="raise"):
        great = resolve(volume * np.float32(factor))
    np.testing.assert_allclose(great / factor, resolve(volume), rtol=1e-3, atol=1e-3)


def test_no_voxel_of_a_half_becomes_infinite():
    overshooting = SuperResolver(FakeEngine(lambda x: 5 * nearest(x, (2, 2, 2)), CARD))
    volume = (60_000 * RANDOM.random((9, 9, 9))).astype(np.float16)
    assert overshooting(volume).max() == np.finfo(np.float16).max


def test_a_series_is_restored_volume_by_volume(resolve):
    data = RANDOM.integers(0, 999, (9, 9, 9, 2)).astype(np.int16)
    made = np.asarray(resolve.image(nib.Nifti1Image(data, np.eye(4))).dataobj)
    for n in range(2):
        np.testing.assert_array_equal(made[..., n], nearest(data[..., n], CARD.scale))


@pytest.mark.parametrize(
    "options",
    [
        {"engine": 3},
        {"device": None},
        {"threads": "2"},
        {"threads": 1.5},
        {"overlap": "a"},
        {"overlap": (0.1, 0.2)},
        {"window": 64},
        {"window": (64,)},
        {"window": "all"},
        {"weighting": ("hann",)},
        {"fallback": "gpu"},
        {"best": "yes"},
        {"consistency": np.zeros(3)},
    ],
    ids=str,
)
def test_an_argument_of_another_type_is_a_sentence(options):
    with pytest.raises(RunError):
        SuperResolver(**{"engine": FakeEngine(lambda x: nearest(x, (2, 2, 2)), CARD)} | options)


@pytest.mark.parametrize("option", ["device", "precision", "library"])
@pytest.mark.parametrize("value", ["", 3, np.zeros(3)], ids=str)
def test_no_engine_is_chosen_by_what_is_no_choice(option, value):
    with pytest.raises(RunError):
        SuperResolver(**{option: value})


def test_what_is_no_plain_volume_is_a_sentence(resolve):
    volume = RANDOM.random((9, 9, 9))
    masked = np.ma.masked_array(volume, volume > 0.5)
    known = resolve.intensities(volume)
    for call in (
        lambda: resolve(masked),
        lambda: resolve(volume, zooms=(1, 1)),
        lambda: resolve(volume, zooms=(0, 1, 1)),
        lambda: resolve(volume, zooms="abc"),
        lambda: resolve(volume, zooms=1.5),
        lambda: resolve(volume, np.zeros(3)),
        lambda: resolve(volume, progress="yes"),
        lambda: resolve.scan("scan.nii.gz"),
        lambda: resolve.image(nib.spatialimages.SpatialImage(volume > 0.5, np.eye(4))),
        lambda: resolve.image(nib.spatialimages.SpatialImage(volume, np.zeros((4, 4)))),
        lambda: resolve.image(nib.Nifti1Image(volume, np.eye(4)), axis=1.0),
        lambda: resolve.image(nib.Nifti1Image(volume, np.eye(4)), axis=True),
        lambda: resolve.image(nib.Nifti1Image(volume, np.eye(4)), axis=np.zeros(3)),
        lambda: resolve.stream(9, 9, known),
        lambda: list(resolve.stream(list(masked), 9, known)),
        lambda: resolve.stream(list(volume), 9.5, known),
        lambda: resolve.stream(list(volume), 9, 700.0),
    ):
        with pytest.raises(RunError):
            call()


def test_a_copy_and_a_pickle_open_the_model_anew(resolve, tmp_path):
    volume = RANDOM.random((9, 9, 9)).astype(np.float32)
    first = SuperResolver(onnx_model(tmp_path / "sr.onnx", CARD), threads=1, crop=False, window=(6, 6))
    for other in (copy.deepcopy(first), pickle.loads(pickle.dumps(first))):
        assert other.options == first.options and other.engine is not first.engine
        np.testing.assert_array_equal(other(volume), first(volume))
    asked = first.to("0.5mm")
    assert asked.engine is first.engine and pickle.loads(pickle.dumps(asked)).options == asked.options
    first.close()
    with pytest.raises(RunError, match="closed"):
        pickle.dumps(first)
    with pytest.raises(RunError, match="open one there"):
        copy.deepcopy(resolve)  # its engine was opened by another


def test_an_image_with_signs_is_doubted_or_refused_if_strict(resolve, tmp_path, caplog):
    volume = np.random.default_rng(0).normal(0, 100, (16, 16, 8)).astype(np.float32)
    resolve(np.abs(volume))
    assert not caplog.records
    resolve(volume)
    assert "The volume is negative in 5" in caplog.text and "worse than an interpolation" in caplog.text
    nib.save(nib.Nifti1Image(volume, np.eye(4)), tmp_path / "z.nii")
    resolve.image(nib.load(tmp_path / "z.nii"))
    assert "z.nii is negative in" in caplog.text
    strict = SuperResolver(resolve.engine, strict=True)
    for scan in (lambda: strict(volume), lambda: strict.scan(open_scan(tmp_path / "z.nii"))):
        with pytest.raises(RunError, match=r"Refused by --strict: .* is negative in 5"):
            scan()
