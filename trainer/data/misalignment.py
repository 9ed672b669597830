"""How a participant has moved between two scans (section II-D), and how registration undoes it.

Both work in voxel axes with the scan's voxel sizes; which axis runs head-feet, left-right or
anterior-posterior is read from the scan's affine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from nibabel.orientations import io_orientation
from numpy.typing import NDArray
from scipy import ndimage

from ...runtime.scan.voxels import Volume
from ..simulation.kspace import Scale
from .cache import Recipe
from .orientation import AlongWorld
from .scans import CohortError

LEFT_RIGHT, ANTERIOR_POSTERIOR, HEAD_FEET = range(3)  # world axes of NIfTI: x, y, z


@dataclass(frozen=True)
class Misalign:
    """A random movement and shrinkage of the head, as the paper simulates it.

    Rotated by up to `degrees` about the head-feet and the left-right axis, moved by up to `voxels` along
    both, and shrunk by up to `voxels` in all along anterior-posterior and left-right. The paper gives no
    signs: rotation and shift go either way, so that a cohort has no common offset.
    """

    seed: int
    degrees: float = 2.0
    voxels: float = 2.0

    def __call__(self, volume: Volume, scan: AlongWorld) -> Volume:
        """The moved head on the same grid, by cubic splines; beyond the field of view it is zero."""
        matrix, offset = self.transform(volume.shape, scan.affine)
        moved = ndimage.affine_transform(volume, matrix, offset, order=3, output=np.float32)
        return np.clip(moved, volume.min(), volume.max())  # splines ring beyond a sharp skull

    def transform(
        self, shape: tuple[int, ...], affine: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(3, 3) matrix and (3,) offset from voxels of the moved volume to voxels of the still one."""
        rng = np.random.default_rng(self.seed)
        voxel_axis = np.argsort(io_orientation(affine)[:, 0])  # by world axis
        zooms = np.linalg.norm(affine[:3, :3], axis=0)
        linear, shift = np.eye(3), np.zeros(3)
        for world in (HEAD_FEET, LEFT_RIGHT):
            axis = voxel_axis[world]
            angle = np.radians(rng.uniform(-self.degrees, self.degrees))
            i, j = (a for a in range(3) if a != axis)
            turn = np.eye(3)
            turn[i, i] = turn[j, j] = np.cos(angle)
            turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
            linear = linear @ turn
            shift[axis] = rng.uniform(-self.voxels, self.voxels)
        linear = np.diag(1 / zooms) @ linear @ np.diag(zooms)  # a rotation in mm, not in voxels
        for world in (ANTERIOR_POSTERIOR, LEFT_RIGHT):
            axis = voxel_axis[world]
            linear[:, axis] *= shape[axis] / (shape[axis] - rng.uniform(0, self.voxels))
        centre = (np.asarray(shape) - 1) / 2
        return linear, centre - linear @ (centre + shift)


@dataclass(frozen=True)
class Register:
    """An HR scan brought rigidly onto the LR scan of the same participant, on its own HR grid.

    to: the LR scan, whose voxel i lies on HR voxel factors·i. By Mattes mutual information (SimpleITK), from
    coarse to fine; the paper's Amira maximises an extended mutual information too.
    """

    to: Recipe
    factors: Scale

    def __repr__(self) -> str:
        return f"Register(to={self.to.key()}, factors={self.factors})"

    def __call__(self, volume: Volume, scan: AlongWorld) -> Volume:
        import SimpleITK as sitk

        fixed = _image(self.to.prepared().voxels.astype(np.float32), scan.zooms, self.factors)
        moving = _image(volume, scan.zooms, (1, 1, 1))
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(50)
        method.SetMetricSamplingStrategy(method.REGULAR)
        method.SetMetricSamplingPercentage(0.25)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(1.0, 1e-4, 200, 0.6)
        method.SetOptimizerScalesFromPhysicalShift()
        method.SetShrinkFactorsPerLevel([4, 2, 1])
        method.SetSmoothingSigmasPerLevel([2, 1, 0])
        start = sitk.Euler3DTransform()
        start.SetCenter([z * (n - 1) / 2 for z, n in zip(scan.zooms, volume.shape, strict=True)])
        method.SetInitialTransform(start, inPlace=False)
        try:
            found = method.Execute(fixed, moving)
        except RuntimeError:
            raise CohortError(
                f"{scan.name} cannot be registered with {self.to.path}: too few slices, or too little to see."
            ) from None
        resampled = sitk.Resample(moving, moving, found, sitk.sitkBSpline, 0.0)
        # SimpleITK's arrays run (k, j, i).
        return np.clip(sitk.GetArrayFromImage(resampled).T, volume.min(), volume.max())


def _image(volume: Volume, zooms: tuple[float, float, float], factors: Scale) -> Any:
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(volume.T))
    image.SetSpacing([z * f for z, f in zip(zooms, factors, strict=True)])
    return image
