"""Groups of scans: caching, sampling by foreground, preparation, and what is not a group."""

import logging

import nibabel as nib
import numpy as np
import pytest
from udean.runtime.errors import RunError
from udean.trainer.data import sampling
from udean.trainer.data.cache import Recipe
from udean.trainer.data.preparation import Preparation, slab_axes
from udean.trainer.data.scans import CohortError, Entry, find
from udean.trainer.simulation import kspace
from udean.trainer.simulation.kspace import Acquisition, Degradation
from udean.trainer.simulation.random_degradation import Variation


def save(path, volume, zoom=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, np.diag([*np.broadcast_to(zoom, 3), 1])), path)
    return path


@pytest.fixture
def scan(tmp_path):
    volume = np.zeros((40, 44, 36), np.float32)
    volume[25:35, 28:40, 20:30] = 200
    return save(tmp_path / "scans" / "a.nii.gz", volume)


def test_cached_volume_is_scaled_by_the_intensity_rule_and_follows_its_file(scan):
    volume = Recipe(scan).prepared()
    assert volume.voxels.max() == 1 and volume.voxels.dtype == np.float16 and volume.unit == 200
    save(scan, np.repeat(np.int16([0, 7]), 20).repeat(44 * 36).reshape(40, 44, 36))
    assert (Recipe(scan).prepared().voxels[20:] == 1).all()
    save(scan, np.full((40, 44, 36), 7, np.int16))
    with pytest.raises(CohortError, match="is constant"):
        Recipe(scan).prepared()


def test_patches_are_centred_on_tissue_and_repeatable(scan):
    group = Preparation((2, 2, 2), (0, 1, 2)).target(find([scan]))
    (draw,) = group.draw(np.random.default_rng(1), 8, (16, 16, 6), augment=True)
    assert draw.shape == (8, 6, 16, 16) and draw.dtype == np.float32
    # A flip may move the centre by one voxel; tissue is near it in every case.
    assert (draw[:, 2:5, 7:10, 7:10].max((1, 2, 3)) > sampling.FOREGROUND).all()
    (again,) = group.draw(np.random.default_rng(1), 8, (16, 16, 6), augment=True)
    np.testing.assert_array_equal(draw, again)


@pytest.mark.parametrize("scale", [(2, 2, 2), (2, 2, 1), (3, 3, 1)])
def test_augmented_pairs_stay_on_the_fft_grid(tmp_path, scale):
    """HR[s·i] = LR[i] holds in every patch, flipped or transposed, along every slab axis."""
    shape = tuple(20 * s for s in scale)
    hr = np.random.default_rng(0).integers(1, 1000, shape).astype(np.int16)
    save(tmp_path / "hr" / "a.nii", hr)
    save(
        tmp_path / "lr" / "a.nii", np.ascontiguousarray(hr[tuple(slice(None, None, s) for s in scale)]), scale
    )
    group = Preparation(scale).pairs(find([tmp_path / "hr"]), find([tmp_path / "lr"]))
    lr, fine = group.draw(np.random.default_rng(0), 24, (16, 16, 3), augment=True)
    s, through = scale[0], scale[2]
    assert fine.shape == (24, 3 * through, 16 * s, 16 * s)
    np.testing.assert_allclose(fine[:, ::through, ::s, ::s], lr, rtol=2e-3)
    with pytest.raises(CohortError, match="at scale"):
        Preparation((4, 4, 4)).pairs(find([tmp_path / "hr"]), find([tmp_path / "lr"]))


def test_source_scans_come_with_their_truncation_along_every_slab_axis(tmp_path):
    """A smooth head is the same on both grids, so LR voxels equal the HR voxels they lie on."""
    y, x, z = np.meshgrid(*[np.arange(48)] * 3, indexing="ij")
    head = 1000 * np.exp(-((y - 22) ** 2 + (x - 26) ** 2 + (z - 24) ** 2) / 60)
    save(tmp_path / "a.nii", head.astype(np.float32))
    group = Preparation((2, 2, 1), (0, 1, 2)).source(find([tmp_path / "a.nii"]))
    low, high = group.draw(np.random.default_rng(0), 12, (16, 16, 3), augment=True)
    assert high.shape == (12, 3, 32, 32)
    np.testing.assert_allclose(low, high[:, :, ::2, ::2], atol=2e-3)


def test_baselines_get_their_coarse_scans_as_published_on_request(tmp_path, head):
    entries = find([save(tmp_path / "a.nii", head(0))])
    published = Preparation((2, 2, 2), coarse="bicubic")
    for group in (published.source(entries), published.target_again(entries)):
        low, high = group.members[0].volumes
        reduced = np.abs(kspace.bicubic(high, (2, 2, 2)))
        np.testing.assert_allclose(low, reduced, atol=2e-3)


def test_unreadable_and_4d_scans_are_named(tmp_path):
    (tmp_path / "bad.nii.gz").write_bytes(b"not a scan")
    with pytest.raises(RunError, match=r"bad\.nii\.gz is "):
        Preparation((2, 2, 2)).target(find([tmp_path / "bad.nii.gz"]))
    save(tmp_path / "series.nii", np.zeros((8, 8, 8, 3), np.int16))
    with pytest.raises(RunError, match="4-D"):
        Preparation((2, 2, 2)).target(find([tmp_path / "series.nii"]))


def test_simulated_target_scans_are_the_acquisition_of_their_hr_scans(tmp_path, head):
    hr = head(0)
    entry = find([save(tmp_path / "a.nii", hr)])

    def simulated(noise, seed):
        degradation = Degradation(noise=noise, partial_fourier=0.8)
        return Preparation((2, 2, 1), (1,), degradation, seed=seed).target(entry).members[0].volumes[0]

    moved = np.moveaxis(hr, 1, 2).astype(np.float32)
    expected = kspace.acquire(moved, Acquisition((2, 2, 1), partial_fourier=0.8))
    np.testing.assert_allclose(simulated(0, 5), expected / np.percentile(expected, 99.9), atol=5e-3)
    noisy = simulated(0.02, 5)
    bright = expected > 0.5 * expected.max()
    assert 0.01 < np.std((noisy - simulated(0, 5))[bright]) < 0.03
    np.testing.assert_array_equal(simulated(0.02, 5), noisy)
    assert np.abs(simulated(0.02, 6) - noisy).max() > 0.01


def test_scans_of_another_voxel_size_are_named_and_left_out_on_request(tmp_path, head, caplog):
    paths = [save(tmp_path / f"{i}.nii", head(i), zoom) for i, zoom in enumerate((1.0, 1.02, 1.0, 1.5))]
    with pytest.raises(CohortError, match=r"3\.nii has voxels of 1\.5 x 1\.5 x 1\.5 mm"):
        Preparation((2, 2, 2)).target(find(paths))
    (tmp_path / "4.nii").write_bytes(b"no scan")
    save(tmp_path / "5.nii", np.full((48, 48, 48), np.nan, np.float32))
    with caplog.at_level(logging.WARNING):
        group = Preparation((2, 2, 2), skip_bad=True).target(find([tmp_path]))
    assert len(group.members) == 3
    assert all(f"{i}.nii" in caplog.text for i in (3, 4, 5))
    with pytest.raises(CohortError, match="None of the scans"):
        Preparation((2, 2, 2), skip_bad=True).target(find([tmp_path / "4.nii"]))


def test_a_source_folder_that_is_lr_and_a_wrong_scale_are_noticed(tmp_path, head):
    fine = find([save(tmp_path / "hr" / "a.nii", head(0), 1.0)])
    coarse = find([save(tmp_path / "lr" / "b.nii", head(1), 2.0)])
    Preparation((2, 2, 2)).check_scale(fine, coarse)
    with pytest.raises(CohortError, match="no finer than the target"):
        Preparation((2, 2, 2)).check_scale(coarse, fine)
    with pytest.raises(CohortError, match=r"are 2 x 2 x 2 times as large .* axis 2 says 2 x 2 x 1"):
        Preparation((2, 2, 1)).check_scale(fine, coarse)
    for zooms, scale in (((1.0, 1.0, 8.0), (2, 2, 2)), ((4.0, 1.0, 1.0), (1, 1, 4))):  # the product is right
        thick = find([save(tmp_path / f"{zooms}" / "c.nii", head(1), zooms)])
        with pytest.raises(CohortError, match="times as large"):
            Preparation(scale).check_scale(fine, thick)
    Preparation((1, 1, 4), axes=(0,)).check_scale(fine, thick)


def test_scans_made_coarser_twice_hold_a_patch_of_any_size(tmp_path, head):
    """ZSSR's LR slabs of BraTS and HCP scans have 60 and 64 rows, the paper's patches 64 and one more."""
    scans = find([save(tmp_path / "a.nii", head(0))])
    plain, filled = (Preparation((2, 2, 2), slab=(n, n, 3)).target_again(scans) for n in (16, 30))
    for before, after, s in zip(plain.members[0].volumes, filled.members[0].volumes, (1, 2), strict=True):
        n = len(before)
        assert after.shape == (31 * s, 31 * s, before.shape[2])
        np.testing.assert_array_equal(after[:n, :n], before)
        np.testing.assert_array_equal(after[n:, :n], np.repeat(before[-1:], 31 * s - n, 0))
    with pytest.raises(CohortError, match=r"a training patch takes 17 x 17 x 99\."):
        Preparation((2, 2, 2), slab=(16, 16, 99)).target_again(scans)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slabs_lie_along_the_axis_that_is_coarser_by_the_scale(tmp_path, head, axis):
    fine = find([save(tmp_path / "hr" / "a.nii", head(0), 1.0)])
    for scale, thick in (((1, 1, 4), 4.0), ((2, 2, 1), 1.0)):
        zooms = [2.0 if scale[0] == 2 else 1.0] * 3
        zooms[axis] = thick
        coarse = find([save(tmp_path / f"{thick}" / "b.nii", head(1)[::2, ::2, ::2], tuple(zooms))])
        assert slab_axes(scale, fine, coarse) == (axis,)


def test_what_looks_like_labels_is_trained_on_with_a_warning_of_that(tmp_path, caplog):
    labels = np.kron(np.random.default_rng(0).integers(0, 9, (8, 8, 8)), np.ones((6, 6, 6))).astype(np.int16)
    Preparation((2, 2, 2)).source(find([save(tmp_path / "a.nii", labels)]))
    assert "looks like a map of 9 labels" in caplog.text and "left" not in caplog.text


def test_scans_smaller_than_a_patch_are_named_before_training(tmp_path, head):
    small, usual = (save(tmp_path / f"{n}.nii", head(0)[:n, :n, :n]) for n in (32, 48))
    with pytest.raises(CohortError, match=r"32\.nii has 32 x 32 x 32 LR voxels, .* takes 41 x 41 x 3"):
        Preparation((2, 2, 2), slab=(40, 40, 3)).target(find([small, usual]))
    left = Preparation((2, 2, 2), slab=(40, 40, 3), skip_bad=True).target(find([small, usual]))
    assert [m.volumes[0].shape for m in left.members] == [(48, 48, 48)]


@pytest.mark.parametrize("value", [np.nan, 1e9])
def test_a_voxel_that_no_training_can_use_is_refused_in_either_scan_of_a_pair(tmp_path, head, value):
    spoilt = head(0).astype(np.float32)
    spoilt[20, 20, 20] = value
    hr = find([save(tmp_path / "hr" / "a.nii", spoilt)])
    lr = find([save(tmp_path / "lr" / "a.nii", head(0)[::2, ::2, ::2], 2.0)])
    with pytest.raises(CohortError, match=r"hr/a\.nii"):
        Preparation((2, 2, 2)).pairs(hr, lr)


def test_pairs_need_both_scans_of_every_participant(tmp_path, head):
    hr = find([save(tmp_path / "hr" / f"{name}.nii", head(0)) for name in "ab"])
    lr = find([save(tmp_path / "lr" / f"{name}.nii", head(0)) for name in "bc"])
    with pytest.raises(CohortError, match="a is in one only"):
        Preparation((2, 2, 2)).pairs(hr, lr)


def test_scans_of_one_participant_are_paired_by_name(tmp_path, head):
    for i, name in enumerate(("ann_t1", "ann_t2", "bob_t1")):
        save(tmp_path / "hr" / f"{name}.nii", head(i))
        save(tmp_path / "lr" / f"{name}_lr.nii", head(i)[::2, ::2, ::2], 2.0)
    hr, lr = find([tmp_path / "hr"]), find([tmp_path / "lr"])
    for member in Preparation((2, 2, 2)).pairs(hr, lr).members:
        coarse, fine = member.volumes
        np.testing.assert_allclose(fine[::2, ::2, ::2], coarse, rtol=2e-3)
    with pytest.raises(CohortError, match="ann_t2 of ann is in one only"):
        Preparation((2, 2, 2)).pairs(hr, [entry for entry in lr if "t2" not in entry.path.name])


@pytest.mark.parametrize("codes", ["RAS", "LPS", "ALI"])
@pytest.mark.parametrize("shape", [(40, 44, 36), (41, 45, 37)])
def test_pairs_that_were_simulated_in_any_orientation_lie_on_one_grid(tmp_path, codes, shape):
    """udean-simulate puts LR voxel i on HR voxel s·i as they are stored, networks along the world's axes."""
    hr = np.random.default_rng(0).integers(1, 1000, shape).astype(np.int16)
    for name, voxels, zoom in (("hr", hr, 1.0), ("lr", hr[:-1:2, :-1:2, :-1:2], 2.0)):
        turn = nib.orientations.axcodes2ornt(tuple(codes))
        affine = nib.orientations.inv_ornt_aff(turn, voxels.shape) @ np.diag([zoom, zoom, zoom, 1])
        affine[:3, 3] = 7.0  # stored voxel 0 of both
        (tmp_path / name).mkdir()
        nib.save(nib.Nifti1Image(np.ascontiguousarray(voxels), affine), tmp_path / name / "a.nii")
    group = Preparation((2, 2, 2)).pairs(find([tmp_path / "hr"]), find([tmp_path / "lr"]))
    (member,) = group.members
    lr, fine = member.volumes
    assert min(lr.shape) >= 17
    np.testing.assert_allclose(fine[::2, ::2, ::2], lr, rtol=2e-3)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda a: a[:3, 3].__iadd__(0.5), "first voxel is HR voxel 0.5 x 0.5 x 0.5"),
        (lambda a: a[:3, :2].__imul__([1.01, 1.01]), "HR voxels off"),
        (lambda a: a[2, 3:].__iadd__(60), "do not overlap"),
    ],
    ids=["half a voxel", "other voxels", "elsewhere"],
)
def test_pairs_whose_headers_disagree_are_refused_or_said_to_be_misaligned(tmp_path, head, change, why):
    fine = head(0)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    change(affine)
    hr = find([save(tmp_path / "hr" / "a.nii", fine)])
    (tmp_path / "lr").mkdir()
    nib.save(nib.Nifti1Image(np.ascontiguousarray(fine[::2, ::2, ::2]), affine), tmp_path / "lr" / "a.nii")
    lr = find([tmp_path / "lr"])
    with pytest.raises(CohortError, match=why):
        Preparation((2, 2, 2)).pairs(hr, lr)
    (member,) = Preparation((2, 2, 2), aligned=False).pairs(hr, lr).members
    assert member.volumes[0].shape == (24, 24, 24)


def test_varied_scans_differ_along_each_axis_and_from_scan_to_scan_but_not_from_run_to_run(tmp_path, head):
    entries = find([save(tmp_path / f"{i}.nii", head(0)) for i in range(2)])
    variation = Variation(noise=0.03, shaped=1, partial_fourier=0.7, tukey=0.6)
    prepare = Preparation((2, 2, 2), (0, 1, 2), Degradation(), seed=1, variation=variation)

    def volumes(by):
        axes = (0, 1, 2) * len(entries)
        members = by.target(entries).members
        return [np.moveaxis(m.volumes[0], 2, axis) for m, axis in zip(members, axes, strict=True)]

    varied, plain = volumes(prepare), volumes(Preparation((2, 2, 2), (0, 1, 2), Degradation(), seed=1))
    differences = [np.abs(a - b).mean() for i, a in enumerate(varied) for b in varied[:i]]
    assert min(differences) > 1e-3
    assert all(np.abs(a - b).mean() < 1e-3 for a, b in zip(plain[:3], plain[3:], strict=True))
    again = [prepare.acquisition(entry, axis) for entry in entries for axis in (0, 1, 2)]
    assert again == [prepare.acquisition(entry, axis) for entry in entries for axis in (0, 1, 2)]
    pairs = prepare.pairs(entries, entries)
    np.testing.assert_array_equal(pairs.members[0].volumes[0], prepare.target(entries).members[0].volumes[0])


def test_heads_of_many_voxel_sizes_are_a_group_on_request(tmp_path, head):
    paths = [save(tmp_path / f"{i}.nii", head(i), zoom) for i, zoom in enumerate((0.7, 1.0, 1.2))]
    assert len(Preparation((2, 2, 2), any_voxel_size=True).target(find(paths)).members) == 3


@pytest.mark.parametrize("codes", ["LPI", "PIR", "SAL"])
def test_scans_of_one_group_may_be_stored_in_other_orientations_than_the_others(tmp_path, head, codes):
    """The LR scan of a pair is stored as another scanner would: the pair's slabs are the same."""
    save(tmp_path / "hr" / "a.nii", head(0))
    straight = Preparation((2, 2, 2), (1,), Degradation())
    lr = straight.lr(Entry(tmp_path / "hr" / "a.nii", "a"), 1).prepared()
    voxels = np.asarray(lr.voxels, np.float32) * lr.unit
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    for name, to in (("ras", "RAS"), ("other", codes)):
        image = nib.Nifti1Image(voxels, affine)
        turn = nib.orientations.ornt_transform(
            nib.io_orientation(affine), nib.orientations.axcodes2ornt(tuple(to))
        )
        (tmp_path / name).mkdir()
        nib.save(image.as_reoriented(turn), tmp_path / name / "a.nii")
    prepare = Preparation((2, 2, 2), (1,))
    hr = [Entry(tmp_path / "hr" / "a.nii", "a")]
    drawn = [
        prepare.pairs(hr, [Entry(tmp_path / name / "a.nii", "a")]).draw(
            np.random.default_rng(0), 4, (8, 8, 3)
        )
        for name in ("ras", "other")
    ]
    for one, other in zip(*drawn, strict=True):
        np.testing.assert_array_equal(one, other)
