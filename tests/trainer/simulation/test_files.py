"""LR scans from files of HR scans: names, links."""

import os

import nibabel as nib
import numpy as np
import pytest
from udean.runtime.errors import RunError
from udean.trainer.simulation.files import simulate_all
from udean.trainer.simulation.kspace import Acquisition


@pytest.fixture
def scans(tmp_path):
    """A scan in a store of hashed names and links to it, as data sets under version control have them; and a
    link to itself."""
    store, hr = tmp_path / "store", tmp_path / "hr"
    store.mkdir()
    hr.mkdir()
    volume = np.random.default_rng(0).integers(1, 999, (16, 16, 8)).astype(np.int16)
    nib.save(nib.Nifti1Image(volume, np.eye(4)), store / "SHA256-8a2f.nii.gz")
    for name in ("a", "b"):
        os.symlink("../store/SHA256-8a2f.nii.gz", hr / f"{name}.nii.gz")
    os.symlink("round.nii.gz", hr / "round.nii.gz")
    return sorted(hr.iterdir())


def test_a_link_gives_its_name_and_one_that_goes_round_is_a_failure_of_its_own(scans, tmp_path):
    made = list(simulate_all(scans, tmp_path / "lr", Acquisition((2, 2, 2))))
    assert made[:2] == [tmp_path / "lr" / name for name in ("a.nii.gz", "b.nii.gz")]
    assert isinstance(made[2], RunError) and "round.nii.gz" in str(made[2])
    with pytest.raises(RunError, match="contains HR scans"):
        next(simulate_all(scans, scans[0].parent, Acquisition((2, 2, 2))))
