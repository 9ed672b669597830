"""Volumes of PyTorch and images of SimpleITK, taken in and given back.

Neither library is imported here before its user has done so.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

from ..errors import RunError, first_line
from .geometry import LPS_TO_RAS  # ITK's world points left and back too

if TYPE_CHECKING:
    from torch import Tensor
    from typing_extensions import TypeIs


class ItkImage(Protocol):
    """SimpleITK's Image. Whoever has not installed that library has no type of its name, and a strict type
    checker would not know what `SuperResolver.image` returns, whatever it is given."""

    def GetPixelID(self) -> int: ...
    def GetDimension(self) -> int: ...
    def GetNumberOfComponentsPerPixel(self) -> int: ...
    def GetDirection(self) -> Sequence[float]: ...
    def GetSpacing(self) -> Sequence[float]: ...
    def GetOrigin(self) -> Sequence[float]: ...


def is_tensor(volume: object) -> TypeIs[Tensor]:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(volume, torch.Tensor)


def is_itk(image: object) -> TypeIs[ItkImage]:
    sitk = sys.modules.get("SimpleITK")
    return sitk is not None and isinstance(image, sitk.Image)


def from_tensor(volume: Tensor) -> NDArray[Any]:
    """A tensor of any device as an array; bfloat16, which NumPy lacks, becomes float32.

    Raises RunError for a sparse or quantised one, or one without data.
    """
    import torch

    try:
        volume = volume.detach().cpu().resolve_conj().resolve_neg()
        return (volume.float() if volume.dtype == torch.bfloat16 else volume).numpy()
    except (TypeError, RuntimeError) as error:  # sparse, quantised, without data
        raise RunError(f"This tensor cannot be read as an array: {first_line(error)}") from None


def to_tensor(voxels: NDArray[Any], like: Tensor, keep: bool) -> Tensor:
    """An array as a tensor on the device of another, and of its dtype if `keep`."""
    import torch

    return torch.from_numpy(voxels).to(like.device, like.dtype if keep else None)


def from_itk(image: ItkImage) -> Nifti1Image:
    """An ITK image as a nibabel one, voxels (i, j, k) and geometry as they are, in mm.

    Raises RunError if it is not 3-D or has more than one component.
    """
    import SimpleITK as sitk

    if image.GetPixelID() in (  # of which the next calls end the process
        sitk.sitkLabelUInt8, sitk.sitkLabelUInt16, sitk.sitkLabelUInt32, sitk.sitkLabelUInt64
    ):  # fmt: skip
        raise RunError("An ITK label map holds no intensities: it is left.")
    if image.GetDimension() != 3 or image.GetNumberOfComponentsPerPixel() != 1:
        raise RunError(
            f"An ITK image must be 3-D and have one component, not {image.GetDimension()}-D with "
            f"{image.GetNumberOfComponentsPerPixel()}."
        )
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(image.GetDirection(), (3, 3)) * image.GetSpacing()
    affine[:3, 3] = image.GetOrigin()
    voxels = sitk.GetArrayFromImage(cast(Any, image)).T
    made = Nifti1Image(voxels, LPS_TO_RAS @ affine, dtype=voxels.dtype)
    made.set_sform(LPS_TO_RAS @ affine, "scanner")
    made.set_qform(LPS_TO_RAS @ affine, "scanner")
    made.header.set_xyzt_units("mm")
    return made


def to_itk(image: Nifti1Image) -> ItkImage:
    """A nibabel image, as `image_scan`'s results are, as an ITK one: the same voxels and geometry."""
    import SimpleITK as sitk

    made = sitk.GetImageFromArray(np.asanyarray(image.dataobj).T)
    affine = LPS_TO_RAS @ np.asarray(image.affine)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    made.SetSpacing(spacing.tolist())
    made.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    made.SetOrigin(affine[:3, 3].tolist())
    return made
