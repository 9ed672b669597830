"""PyTorch's tensors and SimpleITK's images come back as such, voxels and geometry as by nibabel's way."""

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from udean.runtime import RunError, SuperResolver

from ...support.fakes import FakeEngine, card, nearest

VOLUME = np.random.default_rng(0).integers(0, 900, (9, 8, 5)).astype(np.int16)
TURN = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
AFFINE = nib.affines.from_matvec(TURN @ np.diag([-1, 1, 2]), [10, -20, 30])


@pytest.fixture
def resolve():
    return SuperResolver(FakeEngine(lambda x: nearest(x, (2, 2, 2)), card((2, 2, 2), 3, (8, 8))))


@pytest.mark.parametrize("dtype", [torch.int16, torch.float32, torch.bfloat16])
def test_a_tensor_gives_a_tensor_of_its_dtype(resolve, dtype):
    tensor = torch.from_numpy(VOLUME).to(dtype).requires_grad_(dtype.is_floating_point)
    sr = resolve(tensor)
    assert isinstance(sr, torch.Tensor) and sr.dtype == dtype and not sr.requires_grad
    array = resolve(VOLUME if dtype == torch.int16 else VOLUME.astype(np.float32))
    if dtype == torch.bfloat16:  # which rounds the tensor itself
        np.testing.assert_allclose(sr.float().numpy(), array, rtol=0.01)
    else:
        np.testing.assert_array_equal(sr.numpy(), array)
    assert resolve(tensor, dtype="float32").dtype == torch.float32


def test_an_itk_image_gives_an_itk_image_of_the_same_place(resolve, tmp_path):
    nib.save(nib.Nifti1Image(VOLUME, AFFINE), tmp_path / "a.nii.gz")
    sr = resolve.image(sitk.ReadImage(tmp_path / "a.nii.gz"))
    assert isinstance(sr, sitk.Image)
    sitk.WriteImage(sr, tmp_path / "sr.nii.gz")
    mine, theirs = resolve.image(nib.load(tmp_path / "a.nii.gz")), nib.load(tmp_path / "sr.nii.gz")
    assert theirs.get_data_dtype() == np.int16
    np.testing.assert_array_equal(np.asarray(theirs.dataobj), np.asarray(mine.dataobj))
    np.testing.assert_allclose(theirs.affine, mine.affine, atol=1e-4)


def test_what_cannot_be_taken_is_refused_in_a_sentence(resolve):
    with pytest.raises(RunError, match="one component"):
        resolve.image(sitk.Image([4, 4, 4], sitk.sitkVectorFloat32, 3))
    with pytest.raises(RunError, match="3-D"):
        resolve.image(sitk.Image([4, 4], sitk.sitkFloat32))
    with pytest.raises(RunError, match="nibabel's or SimpleITK's, not ndarray"):
        resolve.image(VOLUME)
    with pytest.raises(RunError, match="array or a tensor, not list"):
        resolve(VOLUME.tolist())
    with pytest.raises(RunError, match="3-D and real"):
        resolve(torch.ones(4, 4))
