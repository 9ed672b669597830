"""The map of expected errors: held to its formula, and to results that were turned by hand."""

import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from udean.runtime import Intensities, RunError, SuperResolver
from udean.runtime.commands.run import COMMAND as udean_run
from udean.runtime.pipeline import error_map
from udean.runtime.pipeline.measured_band import weight
from udean.runtime.scan.noise import estimate_noise

from ...support.fakes import FakeEngine, card, onnx_model
from .test_mean_over_axes import CARD, head, network

FIGURES = {"floor": 0.01, "noise": 0.5, "spread": 3.0, "interval": 2.0}
MEASURED = CARD.replace(quality={error_map.key(name): value for name, value in FIGURES.items()})
KERNEL = np.einsum("i,j,k", *[np.array([0.25, 0.5, 0.25])] * 3)


def blurred(volume, times):
    for _ in range(times):
        volume = ndimage.convolve(volume, KERNEL, mode="nearest")
    return volume


def formula(spread, noise):
    """In the network's range, float64."""
    return np.sqrt(0.01**2 + (0.5 * noise) ** 2 + 3.0**2 * blurred(spread**2, error_map.NEAR))


@pytest.mark.parametrize("shape", [(12, 9, 14), (8, 5, 2), (3, 4, 1)])
def test_it_is_what_the_formula_says_plane_by_plane(shape):
    spread = np.float32(0.05) * np.random.default_rng(0).random(shape, np.float32)
    errors = spread.copy()
    error_map.expect(errors, 0.02, 700.0, MEASURED)
    np.testing.assert_allclose(errors, 700 * formula(spread.astype(float), 0.02), rtol=1e-4)


@pytest.mark.parametrize("measured_band", ["off", "truncation"])
@pytest.mark.parametrize("dtype", ["float32", "int16"])
def test_the_spread_is_that_of_three_turned_volumes(dtype, measured_band):
    volume = head((16, 20, 24), dtype)
    engines = [FakeEngine(network, card.replace(consistency=measured_band)) for card in (MEASURED, CARD)]
    resolve = SuperResolver(engines[0], error_map=True)
    sr = resolve(volume)
    unit = resolve.intensities(volume).unit
    plain = SuperResolver(FakeEngine(network, CARD), consistency="off")
    three = [np.moveaxis(plain(np.moveaxis(volume, a, 2), "float32"), 2, a) / unit for a in range(3)]
    noise = estimate_noise(volume, unit).sigma / unit
    noise *= weight(noise, True).share if measured_band == "truncation" else 1
    wanted = unit * formula(np.std(three, axis=0, ddof=1).astype(float), noise)
    assert resolve.error_map.shape == sr.shape and resolve.error_map.dtype == np.float32
    np.testing.assert_allclose(resolve.error_map, wanted, rtol=1e-2)
    np.testing.assert_array_equal(sr, SuperResolver(engines[1], best=True)(volume))


def test_it_is_in_the_scans_units_and_nothing_is_expected_of_constant_background():
    volume = np.zeros((40, 20, 24), np.float32)
    volume[24:] = head((16, 20, 24))
    resolve = SuperResolver(FakeEngine(network, MEASURED), error_map=True)
    resolve(volume)
    once = resolve.error_map
    assert (once[:8] == 0).all() and (once[60:] > 0).all()
    resolve(4 * volume)
    np.testing.assert_allclose(resolve.error_map, 4 * once, rtol=1e-3)
    resolve(np.full((9, 9, 9), 5.0, np.float32))
    assert (resolve.error_map == 0).all()


def test_what_cannot_be_right_is_refused():
    engine = FakeEngine(network, MEASURED)
    for options, said in (({"to": "1mm"}, "leave out --to"), ({"consistency": 0.5}, "--consistency auto")):
        with pytest.raises(RunError, match=said):
            SuperResolver(engine, error_map=True, **options)
    with pytest.raises(RunError, match="leave out --to"):
        SuperResolver(engine, error_map=True).to("1mm")
    with pytest.raises(RunError, match=r"recipes\.error_map"):
        SuperResolver(FakeEngine(network, CARD), error_map=True)
    with pytest.raises(RunError, match="2x2x1: leave out --error-map"):
        SuperResolver(FakeEngine(network, card((2, 2, 1), 3, (8, 8))), error_map=True)
    resolve = SuperResolver(engine, error_map=True)
    with pytest.raises(RunError, match="whole volume"):
        resolve.stream([], 3, Intensities(1.0))
    resolve(head())
    assert resolve.error_map is not None
    resolve(head(), zooms=(0.5, 0.5, 1))  # one slab axis: no spread
    assert resolve.error_map is None


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        udean_run([str(a) for a in (*arguments, "--device", "cpu", "--precision", "fp32")])
    return ended.value.code


@pytest.fixture
def scans(tmp_path):
    model = onnx_model(tmp_path / "sr.onnx", MEASURED.replace(consistency="truncation"), "conv")
    (tmp_path / "scans").mkdir()
    for name, affine in (
        ("a.nii", np.diag([-1, 1, -1, 1])),  # the network sees two axes the other way round
        ("sub-1_T1w.nii.gz", np.eye(4)),
    ):
        nib.save(nib.Nifti1Image(head((20, 18, 22), np.int16), affine), tmp_path / "scans" / name)
    return tmp_path / "scans", model


def test_files_hold_the_map_beside_the_result(scans, capsys):
    folder, model = scans
    assert run(folder, "--engine", model, "--error-map", "--report") == 0
    out = folder.with_name("scans-sr")
    assert "expected errors in a_desc-error.nii" in capsys.readouterr().out
    names = {"a_sr.nii": "a_desc-error.nii"}
    names["sub-1_res-hi_desc-sr_T1w.nii.gz"] = "sub-1_res-hi_desc-error_T1w.nii.gz"
    resolve = SuperResolver(model, "cpu", "fp32", error_map=True)
    for source, (result, beside) in zip(sorted(folder.iterdir()), names.items(), strict=True):
        sr, errors = nib.load(out / result), nib.load(out / beside)
        restored = resolve.image(nib.load(source))
        np.testing.assert_array_equal(sr.get_fdata(), restored.get_fdata())
        np.testing.assert_array_equal(errors.get_fdata(), resolve.error_map)
        assert errors.get_data_dtype() == np.float32
        np.testing.assert_array_equal(errors.affine, sr.affine)
        told = json.loads((out / (result.partition(".")[0] + ".json")).read_text())["udean"]
        assert told["error_map"] == beside and told["expected_error"]["times"] == 2
        said = json.loads((out / (beside.partition(".")[0] + ".json")).read_text())
        assert "90% are within 2.00 times" in said["Description"] and said["udean"]["errors_of"] == result
    page = (out / "udean-report.html").read_text()
    assert (
        page.count("expected error × 10</figcaption>") == 6 and "are within 2.00 times it of a scan" in page
    )


def test_a_map_is_of_its_result_and_no_scan(scans, capsys):
    folder, model = scans
    out = folder.with_name("scans-sr")
    again = folder, "--engine", model, "--error-map"
    assert run(*again) == 0 and run(*again) == 0
    assert "2 kept" in capsys.readouterr().out
    (out / "a_desc-error.nii").unlink()
    assert run(*again) == 0
    assert "1 written, 1 kept" in capsys.readouterr().out and (out / "a_desc-error.nii").exists()
    assert run(out, "--engine", model) == 2
    assert "results of earlier runs" in capsys.readouterr().err
    assert run(folder, "--engine", model) == 0
    assert not list(out.glob("*desc-error*"))  # of another result
    (out / "a_desc-error.nii").write_text("mine")
    assert run(*again) == 1
    assert (out / "a_desc-error.nii").read_text() == "mine"
    assert "a_desc-error.nii already exists" in capsys.readouterr().err


def test_uneven_voxels_get_no_map_and_it_is_said(scans, capsys):
    folder, model = scans
    for path in folder.iterdir():
        path.unlink()
    nib.save(nib.Nifti1Image(head(dtype=np.int16), np.diag([1, 1, 2, 1])), folder / "thick.nii")
    assert run(folder, "--engine", model, "--error-map") == 0
    assert "so it gets no map of expected errors: voxels of 1 x 1 x 2 mm" in capsys.readouterr().out
    assert not list(folder.with_name("scans-sr").glob("*desc-error*"))
