"""The mean over three slab axes: held to three resolvers of volumes turned by hand."""

import dataclasses

import nibabel as nib
import numpy as np
import pytest
from udean.runtime import Intensities, RunError, SuperResolver
from udean.runtime.commands.run import COMMAND as udean_run
from udean.runtime.pipeline.mean_over_axes import lost_detail
from udean.runtime.pipeline.measured_band import hold_measured, weight

from ...support.fakes import FakeEngine, card, nearest, onnx_model

CARD = card((2, 2, 2), 3, (8, 8))
RANDOM = np.random.default_rng(0)


def network(windows):
    """A network whose answer depends on a slice's place in its slab, so that slab axes differ."""
    fine = nearest(windows, (2, 2, 2))
    return fine * np.linspace(0.9, 1.1, fine.shape[1], dtype=np.float32)[:, None, None]


def head(shape=(21, 18, 25), dtype=np.float32):
    return RANDOM.uniform(1, 999, shape).astype(dtype)


def turned(volume, model_card=CARD):
    """Restored with slabs along each axis, by turning the volume; float32."""
    resolve = SuperResolver(FakeEngine(network, model_card), consistency="off")
    return [np.moveaxis(resolve(np.moveaxis(volume, a, 2), dtype="float32"), 2, a) for a in range(3)]


def mean_of_three(volume, model_card=CARD, axis=2):
    three = turned(volume, model_card)
    assert np.abs(three[0] - three[axis]).max() > 1
    return np.mean(three, 0)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
@pytest.mark.parametrize("shape", [(21, 18, 25), (5, 30, 9)])
def test_it_is_the_mean_of_three_turned_volumes(dtype, shape):
    volume, told = head(shape, dtype), []
    resolve = SuperResolver(FakeEngine(network, CARD), best=True)
    sr = resolve(volume, progress=lambda done, of: told.append((done, of)))
    wanted = mean_of_three(volume)
    if dtype == "int16":
        wanted = np.clip(wanted, volume.min(), volume.max())
    np.testing.assert_allclose(sr, wanted, atol=0.51 if dtype == "int16" else 1e-2)
    windows = sum(map(len, resolve.stages.tilings(volume.shape)))
    assert told == [(n, windows) for n in range(1, windows + 1)]
    assert resolve.timings.windows == windows
    np.testing.assert_array_equal(resolve(volume), sr)
    assert "three times" in resolve.describe() and "three axes" in str(resolve.info())


def test_the_measured_band_is_taken_from_the_scan_once_after_the_mean():
    volume = head((16, 20, 24))
    resolve = SuperResolver(FakeEngine(network, CARD), best=True, consistency=0.8)
    sr, known = resolve(volume), resolve.intensities(volume)
    planes = np.moveaxis(mean_of_three(volume) / known.unit, 2, 0).astype(np.float32)
    detail = lost_detail(*turned(volume)[:2], 2)
    assert detail > 1.001
    w = dataclasses.replace(weight(known.noise / known.unit, True, 0.8), detail=detail)
    found = hold_measured(
        [(0, planes)],
        lambda k: volume[:, :, k] / np.float32(known.unit),
        volume.shape,
        (2, 2, 2),
        "fft",
        w,
        known.rings,
    )
    wanted = np.concatenate([slab for _, slab in found]) * known.unit
    np.testing.assert_allclose(sr, np.maximum(np.moveaxis(wanted, 0, 2), 0), atol=0.02)
    assert np.abs(sr - mean_of_three(volume)).max() > 5


@pytest.mark.parametrize("common", [0, 0.5, 0.8, 1])
def test_the_lost_detail_is_that_of_a_mean_of_three(common):
    """Beyond the LR band three volumes have a share of their variance in common; within it they are alike."""
    random = np.random.default_rng(0)  # of its own: the tolerance holds for a draw, not for every one
    shared, *own = random.standard_normal((4, 40, 36, 44), dtype=np.float32)
    three = [np.sqrt(common) * shared + np.sqrt(1 - common) * volume for volume in own]

    def high(volume):
        space = np.fft.fftn(volume)
        low = [np.abs(np.fft.fftfreq(n)) < 0.25 for n in volume.shape]
        space[np.ix_(*low)] = 0
        return np.fft.ifftn(space).real

    smooth = 100 * np.add.outer(np.add.outer(*map(np.hanning, (40, 36))), np.hanning(44))
    lost = np.mean([high(v).std() ** 2 for v in three]) / high(np.mean(three, 0)).std() ** 2
    assert lost_detail(three[0] + smooth, three[1] + smooth, 2) == pytest.approx(lost, rel=0.05)


def test_without_detail_none_is_lost():
    assert lost_detail(*np.zeros((2, 8, 8, 8), np.float32), 2) == 1


def test_uneven_voxels_are_restored_along_one_axis_and_it_is_said():
    volume, engine = head(), FakeEngine(network, CARD)
    best, plain = SuperResolver(engine, best=True), SuperResolver(engine)
    for zooms, mean in (((1, 1, 1.5), True), ((0.5, 0.5, 1), False)):
        image = nib.Nifti1Image(volume, np.diag([*zooms, 1]))
        same = np.array_equal(best.image(image).get_fdata(), plain.image(image).get_fdata())
        assert same != mean
        assert np.array_equal(best(volume, zooms=zooms), plain(volume)) != mean
        assert (best.why_one_axis(zooms) is None) == mean
    assert "0.5 x 0.5 x 1 mm" in best.why_one_axis((0.5, 0.5, 1))


def test_models_and_streams_that_have_one_axis_are_refused():
    with pytest.raises(RunError, match="2x2x1: leave out --best"):
        SuperResolver(FakeEngine(network, card((2, 2, 1), 3, (8, 8))), best=True)
    with pytest.raises(RunError, match="whole volume"):
        SuperResolver(FakeEngine(network, CARD), best=True).stream([], 3, Intensities(1.0))


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_results_in_files_and_in_memory_are_the_same_and_leave_nothing_else(tmp_path, suffix, capsys):
    (tmp_path / "scans").mkdir()
    model = onnx_model(tmp_path / "sr.onnx", CARD, "conv")
    for name, thickness in (("even", 1), ("thick", 2)):
        image = nib.Nifti1Image(head(dtype=np.int16), np.diag([1, 1, thickness, 1]))
        nib.save(image, tmp_path / "scans" / f"{name}{suffix}")
    with pytest.raises(SystemExit):
        udean_run([str(tmp_path / "scans"), "--best", "--engine", str(model), "--device", "cpu"])
    said = capsys.readouterr().out
    assert "three times the cost" in said
    files = sorted(path.name for path in (tmp_path / "scans-sr").iterdir() if path.suffix != ".jsonl")
    assert [name for name in files if name.endswith(suffix)] == [f"even_sr{suffix}", f"thick_sr{suffix}"]
    assert not [name for name in files if not name.endswith((suffix, ".json"))]
    sidecars = {n: (tmp_path / "scans-sr" / f"{n}_sr.json").read_text() for n in ("even", "thick")}
    assert "each of three axes" in sidecars["even"] and "not three" not in sidecars["even"]
    assert "one slab axis, not three: voxels of 1 x 1 x 2 mm" in sidecars["thick"]
    resolve = SuperResolver(model, "cpu", best=True)
    scan = nib.load(tmp_path / "scans" / f"even{suffix}")
    there = nib.load(tmp_path / "scans-sr" / f"even_sr{suffix}")
    np.testing.assert_array_equal(there.get_fdata(), resolve.image(scan).get_fdata())
