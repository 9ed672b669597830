"""Scans of any spacing and orientation to the one asked for: the right place, units and words."""

import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from udean.runtime import RunError, SuperResolver
from udean.runtime.commands import run as command
from udean.runtime.pipeline import through_plane

from ..support.fakes import FakeEngine, card, nearest

SLAB = card((2, 2, 2), 3, (8, 8))
THICK = SLAB.replace(kind="through-plane", scale=(1, 1, 1), slab=(5, 1))


def resolver(to, **options):
    """A resolver whose networks add nothing, so that what is left is geometry."""
    return SuperResolver(FakeEngine(lambda x: nearest(x, (2, 2, 2)), SLAB), to=to, **options)


@pytest.fixture(autouse=True)
def no_detail(monkeypatch):
    """The embedded through-plane model adds nothing either."""
    engine = FakeEngine(lambda x: np.zeros_like(x[:, :1]), THICK)
    monkeypatch.setattr("udean.runtime.stages.network.open_engine", lambda *_: engine)


def turned(zooms, order, angle):
    """An affine with these voxel sizes, its axes in this order, turned by an angle about an oblique axis."""
    axis = np.array([1, 2, 3]) / np.sqrt(14)
    cross = np.cross(np.eye(3), axis)
    rotation = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    affine = np.eye(4)
    affine[:3, :3] = (rotation @ np.eye(3)[:, order]) * zooms
    affine[:3, 3] = -20, 15, 7
    return affine


@pytest.mark.parametrize(
    "zooms, shape, order",
    [
        ((0.75, 0.75, 5.5), (24, 20, 16), (0, 1, 2)),
        ((4, 1, 1), (16, 20, 22), (2, 0, 1)),
        ((1, 3.3, 1), (21, 16, 20), (0, 2, 1)),
    ],
    ids=["axial", "sagittal", "coronal"],
)
@pytest.mark.parametrize("angle", [0, 0.4])
def test_every_voxel_lies_where_the_affine_says(zooms, shape, order, angle):
    """Intensities that are a linear function of the position in the world are the same one afterwards."""
    affine = turned(zooms, order, angle)
    slope = np.array([0.9, -0.6, 1.3])

    def at(grid, affine):
        index = np.stack(np.meshgrid(*map(np.arange, grid), indexing="ij"), -1)
        return 500 + (index @ affine[:3, :3].T + affine[:3, 3]) @ slope

    image = nib.Nifti1Image(at(shape, affine).astype(np.float32), affine)
    image.set_qform(affine, 1)
    fine = resolver("1mm").image(image)
    assert np.allclose(fine.header.get_zooms(), 1, atol=1e-6)
    assert np.abs(fine.get_qform() - fine.get_sform()).max() < 1e-4
    assert all(abs(n - size * zoom) <= 1 for n, size, zoom in zip(fine.shape, shape, zooms, strict=True))
    inner = tuple(slice(int(4 * zoom) + 3, -int(4 * zoom) - 3) for zoom in zooms)
    difference = (fine.get_fdata() - at(fine.shape, fine.affine))[inner]
    assert difference.size and np.abs(difference).max() < 0.05  # of 1 to 2 a millimetre


@pytest.mark.parametrize(
    "zooms, shape, order, to",
    [
        ((0.75, 0.75, 5.5), (40, 36, 12), (0, 1, 2), "0.7mm"),  # none coarser, which would be means
        ((3.3, 1, 1), (14, 36, 40), (2, 0, 1), "iso"),
        ((0.9, 2.7, 0.9), (40, 16, 36), (0, 2, 1), "0.9mm"),
        ((0.5, 1, 5), (60, 30, 11), (2, 1, 0), "0.5x1x2mm"),
    ],
)
def test_interpolated_slices_are_those_of_another_resampler(zooms, shape, order, to, monkeypatch):
    sitk = pytest.importorskip("SimpleITK")
    monkeypatch.setattr(through_plane, "trusted", lambda *_: (0.0, 0.0))
    grain = ndimage.gaussian_filter(np.random.default_rng(1).standard_normal(shape), 1.2)
    affine = turned(zooms, order, 0.4) @ np.diag([-1, 1, -1, 1])
    image = nib.Nifti1Image((1000 + 300 * grain / grain.std()).astype(np.float32), affine)

    def itk(image):
        voxels, sizes = np.asarray(image.dataobj), np.linalg.norm(image.affine[:3, :3], axis=0)
        lps = np.diag([-1, -1, 1, 1]) @ image.affine
        made = sitk.GetImageFromArray(voxels.T)
        made.SetSpacing(sizes.tolist())
        made.SetOrigin(lps[:3, 3].tolist())
        made.SetDirection((lps[:3, :3] / sizes).ravel().tolist())
        return made

    fine = resolver(to, consistency="off").image(image)
    middles = [(im.affine @ [*(np.array(im.shape) - 1) / 2, 1])[:3] for im in (image, fine)]
    np.testing.assert_allclose(*middles, atol=1e-4)
    other = sitk.GetArrayFromImage(sitk.Resample(itk(image), itk(fine), sitk.Transform(), sitk.sitkBSpline)).T
    away = [
        np.abs(np.arange(n) - (n - 1) / 2) * z
        for n, z in zip(fine.shape, fine.header.get_zooms(), strict=True)
    ]
    inner = np.ix_(*(a < (n / 2 - 3) * z for a, n, z in zip(away, shape, zooms, strict=True)))
    apart = np.abs(fine.get_fdata() - other)[inner]
    assert apart.size and apart.max() < 1


def test_a_slab_models_result_is_brought_to_another_spacing():
    affine = np.diag([1.0, 1, 1, 1])
    ramp = np.add.outer(np.arange(20.0), np.add.outer(2 * np.arange(20.0), 3 * np.arange(20.0)))
    image = nib.Nifti1Image((ramp + 10).astype(np.float32), affine)

    def interpolated(windows):
        from ..support.fakes import interpolation

        return interpolation((2, 2, 2), "fft")(windows)

    resolve = SuperResolver(FakeEngine(interpolated, card((2, 2, 2), 3, (20, 20))), to="0.7mm", overlap=0.5)
    fine = resolve.image(image)
    assert fine.shape == (29, 29, 29) and np.allclose(fine.header.get_zooms(), 0.7)
    index = np.stack(np.meshgrid(*[np.arange(29)] * 3, indexing="ij"), -1)
    expected = (index @ fine.affine[:3, :3].T + fine.affine[:3, 3]) @ (1, 2, 3) + 10
    inner = (slice(5, -5),) * 3
    assert np.abs(fine.get_fdata() - expected)[inner].max() < 0.05


def test_axes_that_have_the_spacing_already_keep_their_detail():
    """The slab model divides them too; on the way back nothing that was measured is smoothed."""
    wave = 500 + 200 * np.cos(2 * np.pi * 0.375 * np.arange(24))  # three quarters of the Nyquist frequency
    volume = np.broadcast_to(wave[:, None, None], (24, 24, 24)).astype(np.float32)
    resolve = resolver("1mm", consistency=1.0)
    fine = resolve.image(nib.Nifti1Image(volume, np.diag([1, 1, 1.3, 1])))
    assert fine.shape == (24, 24, 32) and resolve.slice_estimates == []
    assert np.abs(fine.get_fdata() - wave[:, None, None])[4:-4, 4:-4, 4:-4].max() < 0.1 * 200


def test_units_dtype_and_constants_are_kept():
    volume = np.random.default_rng(0).integers(0, 900, (16, 16, 8)).astype(np.int16)
    image = nib.Nifti1Image(volume, np.diag([1, 1, 4, 1]))
    fine = resolver("1mm").image(image)
    assert fine.get_data_dtype() == np.int16 and fine.shape == (16, 16, 32)
    assert volume.min() <= np.asarray(fine.dataobj).min() and np.asarray(fine.dataobj).max() <= volume.max()
    constant = resolver("1mm").image(nib.Nifti1Image(np.full_like(volume, 7), image.affine))
    assert (np.asarray(constant.dataobj) == 7).all()


def test_an_array_alone_has_no_spacing():
    with pytest.raises(RunError, match="voxel sizes are known"):
        resolver("1mm")(np.zeros((4, 4, 4), np.int16))


def test_strict_refuses_what_is_warned_about_otherwise():
    image = nib.Nifti1Image(np.random.default_rng(0).random((9, 9, 5), np.float32), np.diag([1, 1, 5, 1]))
    assert "5 times as thick" in resolver(None).scans.choice(_scan(image)).warnings[0]
    with pytest.raises(RunError, match=r"--strict.*5 times as thick"):
        resolver(None, strict=True).image(image)
    assert resolver("1mm", strict=True).image(image).shape == (9, 9, 25)


def test_thick_slices_bind_the_result_as_far_as_is_asked():
    random = np.random.default_rng(0)
    volume = np.kron(random.random((6, 5, 4)), np.ones((4, 4, 2))).astype(np.float32)
    volume += 0.01 * random.standard_normal(volume.shape, np.float32)
    image = nib.Nifti1Image(volume, np.diag([1, 1, 4, 1]))
    given = {"off": 0.0, 0.5: 0.5, "auto": 1.0}
    off, half, auto = (resolver("1mm", consistency=c).image(image).get_fdata() for c in given)
    assert np.abs(auto - off).max() > 0.003
    np.testing.assert_allclose(half, (off + auto) / 2, atol=1e-5)


def test_noise_is_read_off_the_slices_before_they_are_interpolated_in_plane():
    volume = 10 + np.random.default_rng(0).standard_normal((32, 30, 10)).astype(np.float32)
    image = nib.Nifti1Image(volume, np.diag([1, 1, 4, 1]))
    told = {}
    for to in ("1mm", "0.5mm", "2x2x1mm"):
        resolve = resolver(to)
        resolve.image(image)
        told[to] = resolve.slice_estimates[0].noise
    assert 0.7 < told["0.5mm"] / told["1mm"] < 0.95  # interpolation is a mean of some voxels
    assert 0.4 < told["2x2x1mm"] / told["1mm"] < 0.7


def _scan(image):
    from udean.runtime.scan.scan import image_scan

    return image_scan(image)


def test_the_command_restores_thick_slices_and_says_how(tmp_path, capsys, monkeypatch):
    random = np.random.default_rng(0)
    volume = (200 + 100 * random.random((24, 24, 8))).astype(np.int16)
    nib.save(nib.Nifti1Image(volume, np.diag([1, 1, 4, 1])), tmp_path / "a.nii.gz")
    call = ["udean-run", str(tmp_path / "a.nii.gz"), "-o", str(tmp_path / "out")]
    for to, code in (("1mm", 0), ("1mm", 0), ("0.4mm", 1), ("thin", 2)):
        monkeypatch.setattr("sys.argv", [*call, "--to", to])
        with pytest.raises(SystemExit) as left:
            command.main()
        assert left.value.code == code
    said = capsys.readouterr()
    assert "24 x 24 x 8 to 24 x 24 x 32" in said.out and "up to date" in said.out
    assert "divide them by 10" in said.err and "not of the form" in said.err
    sidecar = json.loads((tmp_path / "out/a_sr.json").read_text())
    assert sidecar["Resolution"] == "1 x 1 x 1 mm"
    assert sidecar["udean"]["model_card"]["kind"] == "through-plane"
    assert (
        sidecar["udean"]["slices"][0]["spacing_mm"] == 4 and 0 <= sidecar["udean"]["slices"][0]["gain"] <= 1
    )
    monkeypatch.setattr("sys.argv", [*call, "--overwrite"])
    with pytest.raises(SystemExit):
        command.main()
    assert "4 times as thick as its voxels are wide" in capsys.readouterr().out
    assert "4 times as thick" in json.loads((tmp_path / "out/a_sr.json").read_text())["udean"]["warnings"][0]


@pytest.mark.parametrize("to, zooms", [("1mm", (0.75, 0.75, 4)), (None, (1, 1, 1))])
@pytest.mark.parametrize("order, signs", [((0, 1, 2), (1, 1, 1)), ((2, 0, 1), (-1, 1, -1))])
def test_a_label_map_is_brought_to_the_grid_of_its_scan_by_nearest_neighbours(to, zooms, order, signs):
    random, affine = np.random.default_rng(0), turned(zooms, order, 0.3) @ np.diag([*signs, 1])
    blocks = random.integers(0, 40, (5, 6, 3)).repeat(4, 0).repeat(4, 1).repeat(4, 2).astype(np.int16)
    labels = nib.Nifti1Image(blocks, affine)
    scan = nib.Nifti1Image(random.integers(1, 900, blocks.shape).astype(np.int16), affine)
    with pytest.raises(RunError, match="--labels nearest"):
        resolver(to).image(labels)
    resolve = resolver(to, labels="nearest", strict=True)
    fine = resolve.image(labels)
    assert fine.get_data_dtype() == np.int16 and resolve.slice_estimates == []
    beside = resolve.image(scan)
    assert fine.shape == beside.shape and np.array_equal(fine.affine, beside.affine)
    index = np.stack(np.meshgrid(*map(np.arange, fine.shape), indexing="ij"), -1)
    world = index @ fine.affine[:3, :3].T + fine.affine[:3, 3]
    there = np.linalg.solve(affine[:3, :3], (world - affine[:3, 3]).reshape(-1, 3).T)
    at = [
        np.floor(p + 0.5 + 1e-4).clip(0, n - 1).astype(int) for p, n in zip(there, blocks.shape, strict=True)
    ]
    np.testing.assert_array_equal(np.asarray(fine.dataobj).ravel(), blocks[tuple(at)])


def test_a_header_that_says_labels_is_believed():
    volume = np.random.default_rng(0).integers(0, 9, (8, 8, 8)).astype(np.float32)
    image = nib.Nifti1Image(volume, np.eye(4))
    image.header.set_intent("label")
    with pytest.raises(RunError, match="holds labels"):
        resolver("0.7mm").image(image)
    assert set(np.unique(resolver("0.7mm", labels="nearest").image(image).dataobj)) == set(range(9))
    with pytest.raises(RunError, match="'leave', 'nearest'"):
        resolver("1mm", labels="linear")


def test_the_command_takes_label_maps_along(tmp_path, capsys, monkeypatch):
    random = np.random.default_rng(0)
    labels = random.integers(0, 5, (6, 6, 4)).repeat(4, 0).repeat(4, 1).repeat(2, 2).astype(np.uint8)
    for name, volume in (("a", random.integers(1, 255, labels.shape).astype(np.uint8)), ("a_seg", labels)):
        nib.save(nib.Nifti1Image(volume, np.diag([1, 1, 3, 1])), tmp_path / f"{name}.nii.gz")
    call = ["udean-run", str(tmp_path / "a_seg.nii.gz"), "-o", str(tmp_path / "out"), "--to", "1mm"]
    for options, code in (([], 1), (["--labels", "nearest", "--report"], 0), (["--labels", "nearest"], 0)):
        monkeypatch.setattr("sys.argv", [*call, *options])
        with pytest.raises(SystemExit) as left:
            command.main()
        assert left.value.code == code
    said = capsys.readouterr()
    assert "a map of 5 labels" in said.err and "up to date" in said.out
    assert "24 x 24 x 24, a map of 5 labels, resampled by nearest neighbours" in said.out
    sidecar = json.loads((tmp_path / "out/a_seg_sr.json").read_text())
    assert sidecar["Description"].startswith("No network") and "measured_band" not in sidecar["udean"]
    assert "nothing to compare" in (tmp_path / "out/udean-report.html").read_text()
