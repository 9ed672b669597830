"""The through-plane network's training shows it what happens at inference, and can be resumed."""

import nibabel as nib
import numpy as np
import pytest
import torch
from udean.runtime.errors import RunError
from udean.runtime.pipeline import through_plane as deployed
from udean.trainer import through_plane


@pytest.fixture(scope="module")
def volume():
    """Smooth structure and texture, (72, 64, 68), 99.9th percentile about 1."""
    random = np.random.default_rng(0)
    coarse = np.kron(random.random((9, 8, 9)), np.ones((8, 8, 8)))[:72, :64, :68]
    return (0.3 + 0.6 * coarse + 0.05 * random.standard_normal(coarse.shape)).astype(np.float32)


@pytest.mark.parametrize("seed", range(8))
def test_a_sample_is_what_the_runtime_shows_the_network_and_what_it_lacks(volume, seed):
    planes, missing = through_plane.sample(volume, np.random.default_rng(seed))
    count, channels, height, width = planes.shape
    assert (count, channels) == (through_plane.PLANES, deployed.CHANNELS)
    assert missing.shape == (count, 1, height, width) and height % 2 == width % 2 == 0
    truth = planes[:, 1:2] + missing  # a plane of the scan, whichever way it was turned
    assert truth.min() > -0.5 and truth.max() < 2 and np.abs(missing).mean() > 0.001
    known = set(np.round(volume.ravel(), 4))
    assert np.mean([value in known for value in np.round(truth[0, 0].ravel()[::97], 4)]) > 0.9
    widest = through_plane.STEPS[1] / 2 / deployed.DISTANCE
    assert planes[:, 3].min() >= 0 and planes[:, 3].max() <= widest + 1e-6
    assert len(np.unique(planes[:, 4])) == 1


def test_it_learns_and_goes_on_where_it_was_cut_off(volume, tmp_path, monkeypatch, request):
    monkeypatch.setattr(through_plane, "EVERY", 3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more of them sum in another order, which Adam's first steps make large
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    whole = through_plane.train([volume], tmp_path / "whole", 6)
    with pytest.MonkeyPatch.context() as cut:
        calls = iter(range(4))
        draw = through_plane.sample

        def interrupted(*arguments):
            next(calls)  # the fifth sample is never drawn
            return draw(*arguments)

        cut.setattr(through_plane, "sample", interrupted)
        with pytest.raises(StopIteration):
            through_plane.train([volume], tmp_path / "cut", 6)
    again = through_plane.train([volume], tmp_path / "cut", 6)
    for mine, theirs in zip(whole.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert any(p.abs().sum() > 0 for p in whole.tail.parameters())  # it began at zero


def test_what_cannot_be_made_thick_is_named(tmp_path):
    nib.save(nib.Nifti1Image(np.ones((60, 60, 60), np.int16), np.diag([1, 1, 3, 1])), tmp_path / "thick.nii")
    with pytest.raises(RunError, match=r"thick.nii is not isotropic"):
        through_plane.volumes([tmp_path / "thick.nii"])
    nib.save(nib.Nifti1Image(np.ones((60, 60, 20), np.int16), np.eye(4)), tmp_path / "small.nii")
    with pytest.raises(RunError, match=r"small.nii is smaller"):
        through_plane.volumes([tmp_path / "small.nii"])
