"""MRD images to volumes and back: which slices belong together, where they lie, what the SR images say.

Directions and positions are in patient coordinates (LPS), millimetres. A volume's voxel axes are (x, y, z):
along read_dir, phase_dir and across the slices. `position` is the centre of the excited volume in the
specification ("spec"), and the centre of the first voxel in converters in use ("first-voxel").
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError
from ..models.card import ModelCard
from ..scans.geometry import Factors, fine_affine, slab_axis, voxel_factors
from ..scans.slices import even_step
from . import messages as mrd
from .messages import Image

Position = Literal["spec", "first-voxel"]
COUNTERS = ("measurement_uid", "image_series_index", "average", "contrast", "phase", "repetition", "set")
LIMIT = 65535  # voxels along an axis, series, and images of one: uint16 in the header
PERPENDICULAR = 0.99  # sine of the angle from which slices are other planes of a localizer, not tilted ones
JOINTS = {  # attributes that hosts show as one text, to which ours is added
    "SequenceDescriptionAdditional": "_",
    "ImageComments": "; ",
    "DerivationDescription": "; ",
}


@dataclass(frozen=True)
class Stack:
    """The images of one volume in order of their position, and where it lies.

    affine: (4, 4), voxels (x, y, z) to LPS. axis: which of them is across the slab.
    """

    images: tuple[Image, ...]
    affine: NDArray[np.float64]
    axis: int

    @property
    def planar(self) -> bool:
        """Whether the volume came slice by slice."""
        return self.images[0].pixels.shape[1] == 1

    def volume(self) -> NDArray[Any]:
        """The voxels (rows, columns, slices) as the resolver takes them, slices along `axis`."""
        planes = np.concatenate([image.pixels[0] for image in self.images])
        return np.moveaxis(planes.transpose(2, 1, 0), self.axis, 2)

    def factors(self, card: ModelCard) -> Factors:
        """HR voxels per LR voxel along (x, y, z)."""
        return voxel_factors(card.scale, self.axis)

    def fine_shape(self, card: ModelCard) -> tuple[int, int, int]:
        """Voxels (x, y, z) of the SR volume. Raises RunError for more than a header can say."""
        _, _, y, x = self.images[0].pixels.shape
        z = sum(image.pixels.shape[1] for image in self.images)
        i, j, k = (n * f for n, f in zip((x, y, z), self.factors(card), strict=True))
        if max(i, j, k) > LIMIT:
            raise RunError(f"The SR volume would have {i} x {j} x {k} voxels, and MRD holds {LIMIT} an axis.")
        return i, j, k


def is_resolvable(image: Image) -> bool:
    """Whether an image is a magnitude image of one channel; all others are passed on as they are."""
    header = image.header
    return (
        header["image_type"] in (0, mrd.MAGNITUDE)
        and image.pixels.dtype.kind in "iuf"
        and header["channels"] == 1
        and not header["flags"] & mrd.NAVIGATION
    )


def group(images: Iterable[Image]) -> list[tuple[Image, ...]]:
    """Images that make up a volume each, in order of arrival; a 3-D image is a volume of its own.

    Perpendicular planes of a localizer are volumes of their own, too.
    """
    groups: list[list[Image]] = []
    alike: dict[Any, list[list[Image]]] = defaultdict(list)
    for number, image in enumerate(images):
        header = image.header
        planar = image.pixels.shape[1] == 1
        key = *(int(header[name]) for name in COUNTERS), image.pixels.shape, image.pixels.dtype.str
        planes = alike[key if planar else number]
        members = next((plane for plane in planes if not _perpendicular(plane[0], image)), None)
        if members is None:
            members = []
            planes.append(members)
            groups.append(members)
        members.append(image)
    return [tuple(members) for members in groups]


def _perpendicular(one: Image, other: Image) -> bool:
    normals = (image.header["slice_dir"].astype(np.float64) for image in (one, other))
    return bool(np.linalg.norm(np.cross(*normals)) > PERPENDICULAR)


def stack(images: tuple[Image, ...], position: Position) -> Stack:
    """The volume that images of one group make up.

    Raises RunError if they have no usable geometry, or are not evenly spaced slices of one stack: one
    missing, twice there, tilted or shifted.
    """
    first = images[0].header
    name = f"Series {first['image_series_index']}"
    fields = ("field_of_view", "read_dir", "phase_dir", "slice_dir")
    shape = np.array(images[0].pixels.shape[:0:-1])  # x, y, z
    view, *directions = (first[field].astype(np.float64) for field in fields)
    frame = np.array(directions)  # a direction a row
    if not (np.isfinite(view).all() and (view > 0).all()):
        raise RunError(f"{name} has no usable field of view: {view} mm.")
    lengths = np.linalg.norm(frame, axis=1)
    if not np.allclose(lengths, 1, atol=0.01) or abs(np.linalg.det(frame)) < 0.98:
        raise RunError(f"{name} has directions that are not three orthogonal unit vectors.")
    for field, wanted in zip(fields, (view, *directions), strict=True):
        if not all(np.allclose(image.header[field], wanted, rtol=1e-3, atol=1e-3) for image in images):
            raise RunError(f"{name} has slices whose {field} differ: they are not one stack.")

    places = np.array([image.header["position"] for image in images], np.float64)
    if not np.isfinite(places).all():
        raise RunError(f"{name} has a position that is not finite.")
    order = np.argsort(places @ frame[2], kind="stable")
    images, places = tuple(images[n] for n in order), places[order]
    size = view / shape
    step = frame[2] * size[2]
    if len(images) > 1:
        step = even_step(name, places @ frame.T, size) * frame[2]
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([frame[0] * size[0], frame[1] * size[1], step])
    affine[:3, 3] = places[0]
    if position == "spec":
        affine[:3, 3] -= affine[:3, :3] @ ((shape - 1) / 2)
    axis = slab_axis(np.linalg.norm(affine[:3, :3], axis=0)) if shape[2] > 1 else 2
    return Stack(images, affine, axis)


def fine_images(
    source: Stack,
    voxels: NDArray[Any],
    card: ModelCard,
    position: Position,
    series: int,
    toolkit: str,
    first: int = 1,
) -> list[Image]:
    """The SR images of a volume: slices if it came as slices, else one 3-D image.

    voxels: (rows, columns, slices) as the resolver gives them, int or float. series: their
    image_series_index. first: image_index of the first, which counts on from volume to volume of a series.
    """
    planes = np.moveaxis(voxels, 2, source.axis).transpose(2, 1, 0)  # z, y, x
    factors = source.factors(card)
    affine = fine_affine(source.affine, factors, card.grid)
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    low, high = float(voxels.min()), float(voxels.max())
    blocks = planes[:, None] if source.planar else planes[None]
    images = []
    for number, block in enumerate(blocks):
        nearest = min(number // factors[2], len(source.images) - 1)
        origin = source.images[nearest]
        header = origin.header.copy()
        shape = np.array(block.shape[::-1])
        header["matrix_size"], header["field_of_view"] = shape, shape * sizes
        place = affine[:3] @ [0, 0, number, 1]
        header["position"] = place + affine[:3, :3] @ ((shape - 1) / 2) if position == "spec" else place
        header["slice"] = number if source.planar else header["slice"]
        header["image_series_index"], header["image_index"] = series, first + number
        header["image_type"] = mrd.MAGNITUDE
        header["data_type"] = next(n for n, dtype in mrd.DTYPES.items() if dtype == block.dtype)
        attributes = mrd.read_attributes(origin.attributes)
        attributes.setdefault("WindowCenter", [f"{(low + high) / 2:g}"])
        attributes.setdefault("WindowWidth", [f"{max(high - low, 1):g}"])
        xml = mrd.write_attributes(attributes | marks(attributes, header, card, toolkit))
        header["attribute_string_len"] = len(xml)
        images.append(Image(header, xml, block[None]))
    return images


def marks(given: dict[str, list[str]], header: Any, card: ModelCard, toolkit: str) -> dict[str, list[str]]:
    """The attributes by which nobody can take an SR image for a measured one.

    given: those received; what they say of earlier processing stays.
    """
    history = given.get("ImageProcessingHistory", [])
    made = {
        "DataRole": ["Image"],
        "ImageProcessingHistory": [*history, "UDEAN", f"Super-resolution by {card.name}", card.intended_use],
        "SequenceDescriptionAdditional": ["UDEAN_SR"],
        "ImageComments": [f"Super-resolution by udean, {card.intended_use}"],
        "DerivationDescription": [
            f"Super-resolution {'x'.join(map(str, card.scale))} by udean {toolkit}, model {card.name} "
            f"({card.checkpoint[:16] or 'no checkpoint'}): {card.intended_use}"
        ],
        "Keep_image_geometry": ["1"],
        "ImageRowDir": [f"{value:.9f}" for value in header["read_dir"]],
        "ImageColumnDir": [f"{value:.9f}" for value in header["phase_dir"]],
    }
    for name, joint in JOINTS.items():
        made[name] = [joint.join(filter(None, [*given.get(name, ()), *made[name]]))]
    return made


class SeriesNumbers:
    """Numbers for SR series that no received series has; sizes that differ get series that differ."""

    def __init__(self, images: Iterable[Image]) -> None:
        taken = {int(image.header["image_series_index"]) for image in images}
        above = range(max(taken, default=0) + 1, LIMIT + 1)
        self._free = (n for n in itertools.chain(above, range(1, LIMIT + 1)) if n not in taken)
        self._given: dict[Any, tuple[int, int]] = {}  # series, and images in it

    def of(self, source: Stack, card: ModelCard) -> tuple[int, int]:
        """The SR series of a volume, and the index in it of the volume's first image.

        A series that is full is followed by another. Raises RunError if all numbers are taken.
        """
        count = source.fine_shape(card)[2] if source.planar else 1
        image = source.images[0]
        key = int(image.header["image_series_index"]), image.pixels.shape, image.pixels.dtype.str
        number, used = self._given.get(key, (None, 0))
        if number is None or used + count > LIMIT:
            number, used = next(self._free, None), 0
            if number is None:
                raise RunError("All series numbers of this stream are taken.")
        self._given[key] = number, used + count
        return number, used + 1
