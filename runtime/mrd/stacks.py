"""MRD images to volumes and back: which slices belong together, where they lie, what the SR images say.

Directions and positions are in patient coordinates (LPS), millimetres. A volume's voxel axes are (x, y, z):
along read_dir, phase_dir and across the slices. `position` is the centre of the excited volume in the
specification ("spec"), and the centre of the first voxel in converters in use ("first-voxel").
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ..errors import RunError
from ..models.card import ModelCard
from ..scan.geometry import LPS_TO_RAS, Factors, fine_affine
from ..scan.kinds import is_no_magnitude, no_signal
from ..scan.nifti import Header
from ..scan.orientation import Orientation
from ..scan.scan import Scan, image_scan
from ..scan.slices import check_alone, check_gap, even_step, goes_on
from ..system.uid import derived_uid
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
# The host's own identifiers and positions of the scan's image, which do not hold for an SR image.
DROPPED = (
    "IceMiniHead",
    *("SliceNo", "AnatomicalSliceNo", "ChronSliceNo", "ProtocolSliceNumber", "AnatomicalPartitionNo"),
    *("Actual3DImagePartNumber", "NumberInSeries", "NumberOfSlices", "ImagesInAcquisition"),
    *("slice_count", "partition_count"),
)
DICOM_HEADER = "DicomJson"  # a DICOM header in base64, which a converter's images carry


@dataclass(frozen=True)
class FineGrid:
    """The grid of a volume's SR voxels.

    shape: (x, y, z). affine: (4, 4), voxels (x, y, z) to LPS, mm. made: its origin, in words.
    """

    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    made: str


@dataclass(frozen=True)
class Stack:
    """The images of one volume in order of their position, and where it lies.

    affine: (4, 4), voxels (x, y, z) to LPS. turn: from stored voxels to the network's orientation.
    """

    images: tuple[Image, ...]
    affine: NDArray[np.float64]
    turn: Orientation

    @property
    def planar(self) -> bool:
        """Whether the volume came slice by slice."""
        return self.images[0].pixels.shape[1] == 1

    @property
    def zooms(self) -> tuple[float, float, float]:
        """Voxel sizes along (x, y, z), mm."""
        x, y, z = map(float, np.linalg.norm(self.affine[:3, :3], axis=0))
        return x, y, z

    @property
    def voxels(self) -> NDArray[Any]:
        """The voxels (x, y, z)."""
        return np.concatenate([image.pixels[0] for image in self.images]).transpose(2, 1, 0)

    def volume(self) -> NDArray[Any]:
        """The voxels (rows, columns, slices) as the resolver takes them, along the world's axes."""
        return self.turn.turned(self.voxels)

    @functools.cached_property
    def scan(self) -> Scan:
        """The volume as a scan, for what depends on voxel sizes."""
        image = nib.Nifti1Image(self.voxels, LPS_TO_RAS @ self.affine)
        return dataclasses.replace(image_scan(image), name=_name(self.images))

    def factors(self, card: ModelCard) -> Factors:
        """HR voxels per LR voxel along (x, y, z)."""
        return self.turn.by_stored(card.scale)

    def fine_grid(self, card: ModelCard) -> FineGrid:
        """The grid of a model's own factors. Raises RunError for more than a header can say, or one slice."""
        _, _, y, x = self.images[0].pixels.shape
        z = sum(image.pixels.shape[1] for image in self.images)
        factors = self.factors(card)
        i, j, k = (n * f for n, f in zip((x, y, z), factors, strict=True))
        affine = fine_affine(self.affine, factors, card.grid)
        grid = _fitting(FineGrid((i, j, k), affine, "x".join(map(str, card.scale))))
        check_alone(_name(self.images), (x, y, z), factors)
        return grid

    def grid_of(self, header: Header) -> FineGrid:
        """The grid of an SR scan of `scan`. Raises RunError for more than a header can say."""
        i, j, k = map(int, header.get_data_shape()[:3])
        size = " x ".join(f"{zoom:.3g}" for zoom in header.get_zooms()[:3])
        return _fitting(FineGrid((i, j, k), LPS_TO_RAS @ header.get_best_affine(), f"to {size} mm"))


def _name(images: tuple[Image, ...]) -> str:
    return f"Series {images[0].header['image_series_index']}"


def _fitting(grid: FineGrid) -> FineGrid:
    if max(grid.shape) > LIMIT:
        size = " x ".join(map(str, grid.shape))
        raise RunError(f"The SR volume would have {size} voxels, and MRD holds {LIMIT} an axis.")
    return grid


def is_resolvable(image: Image) -> bool:
    """Whether an image is a magnitude image of one channel; all others are passed on as they are."""
    header = image.header
    return (
        not image.fault
        and header["image_type"] in (0, mrd.MAGNITUDE)
        and not _is_phase(image)
        and image.pixels.dtype.kind in "iuf"
        and header["channels"] == 1
        and not header["flags"] & mrd.NAVIGATION
    )


def _is_phase(image: Image) -> bool:
    """Whether the attributes, if the header does not, say that this is not a magnitude image of one slice."""
    given = mrd.read_attributes(image.attributes)
    types = [*given.get("ImageTypeValue3", ()), *given.get("ComplexImageComponent", ())]
    for name, values in given.items():
        if name.lower().endswith("imagetype"):
            types += "\\".join(values).split("\\")[2:]
    return is_no_magnitude(types) or bool(no_signal(types)) or "MOSAIC" in map(str.upper, types)


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


def check_whole(images: tuple[Image, ...], groups: Iterable[tuple[Image, ...]]) -> None:
    """Raise RunError if a volume lacks slices that another of its series has: the scan was stopped."""
    series, here = images[0].header["image_series_index"], _places(images)
    for other in groups:
        there = _places(other) if other[0].header["image_series_index"] == series else set()
        if here < there:
            raise RunError(
                f"{_name(images)} has a volume with {len(here)} of the {len(there)} slices that another one "
                "has: it is not whole."
            )
        if there and not there <= here and _goes_on(images, other):
            raise RunError(
                f"{_name(images)} has a volume that lacks slices which another one has: it is not whole."
            )


def doubt(images: tuple[Image, ...], groups: Iterable[tuple[Image, ...]], limits: dict[str, int]) -> str:
    """The images that a volume's scan may have beside those that came, as a sentence; "" for none.

    limits: the largest index of each counter that the scan's header announces.
    """
    name, header = _name(images), images[0].header
    announced = limits.get("slice", 0) + 1
    if images[0].pixels.shape[1] == 1 and len(images) < announced:
        return f"{name} has {len(images)} of the {announced} slices that its scan's header announces."
    series = [group[0].header for group in groups]
    there = {
        int(other["repetition"])
        for other in series
        if other["image_series_index"] == header["image_series_index"]
    }
    wanted = max(max(there) - min(there), limits.get("repetition", 0)) + 1  # some count from 1
    if len(there) > 1 and len(there) < wanted:
        return f"{name} has {len(there)} of {wanted} repetitions: some may be missing."
    return ""


def _places(images: tuple[Image, ...]) -> set[bytes]:
    """Positions of slices, to a tenth of a millimetre, and their orientations."""
    fields = ("position", "slice_dir")
    values = (np.concatenate([image.header[name] for name in fields]).astype(np.float64) for image in images)
    return {(np.round(value, 1) + 0.0).tobytes() for value in values}  # no negative zeros


def _goes_on(images: tuple[Image, ...], other: tuple[Image, ...]) -> bool:
    """Whether two volumes of slices may be parts of one stack."""
    one, two = images[0], other[0]
    if max(one.pixels.shape[1], two.pixels.shape[1]) > 1:
        return False
    normal = one.header["slice_dir"].astype(np.float64)
    measured_together = one.header["measurement_uid"] == two.header["measurement_uid"]
    if not (measured_together and np.allclose(two.header["slice_dir"], normal, atol=1e-3)):
        return False
    here, there = (np.array([image.header["position"] for image in g], np.float64) for g in (images, other))
    if not (np.isfinite(here).all() and np.isfinite(there).all()):
        return False
    here, there = (spots[np.argsort(spots @ normal, kind="stable")] for spots in (here, there))
    return goes_on(here, there) or (len(here) == 1 and goes_on(there, here))


def _perpendicular(one: Image, other: Image) -> bool:
    normals = (image.header["slice_dir"].astype(np.float64) for image in (one, other))
    return bool(np.linalg.norm(np.cross(*normals)) > PERPENDICULAR)


def stack(images: tuple[Image, ...], position: Position) -> Stack:
    """The volume that images of one group make up.

    Raises RunError if they have no usable geometry, or are not evenly spaced slices of one stack: one
    missing, twice there, tilted or shifted.
    """
    first = images[0].header
    name = _name(images)
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
        distance = even_step(name, places @ frame.T, size)
        check_gap(name, distance, size[2])
        step = distance * frame[2]
    affine = np.eye(4)
    affine[:3, :3] = np.column_stack([frame[0] * size[0], frame[1] * size[1], step])
    affine[:3, 3] = places[0]
    if position == "spec":
        affine[:3, 3] -= affine[:3, :3] @ ((shape - 1) / 2)
    turn = Orientation.of(LPS_TO_RAS @ affine, None if shape[2] > 1 else 2)
    return Stack(images, affine, turn)


def fine_images(
    source: Stack,
    voxels: NDArray[Any],
    grid: FineGrid,
    card: ModelCard,
    position: Position,
    place: Place,
    toolkit: str,
    note: str = "",
) -> list[Image]:
    """The SR images of a volume: slices if it came as slices, else one 3-D image.

    voxels: (x, y, z) on the grid, int or float. place: in their series. note: a sentence for their comments.
    """
    planes = voxels.transpose(2, 1, 0)
    affine = grid.affine
    sizes = np.linalg.norm(affine[:3, :3], axis=0)
    to_source = np.linalg.inv(source.affine) @ affine
    low, high = float(voxels.min()), float(voxels.max())
    blocks = planes[:, None] if source.planar else planes[None]
    images = []
    for number, block in enumerate(blocks):
        # That nearest to it; of two as near, the first.
        nearest = math.ceil((to_source @ [0, 0, number, 1])[2] - 0.5 - 1e-6) if source.planar else 0
        origin = source.images[min(max(nearest, 0), len(source.images) - 1)]
        header = origin.header.copy()
        shape = np.array(block.shape[::-1])
        header["matrix_size"], header["field_of_view"] = shape, shape * sizes
        where = affine[:3] @ [0, 0, number, 1]
        header["position"] = where + affine[:3, :3] @ ((shape - 1) / 2) if position == "spec" else where
        header["slice"] = number if source.planar else header["slice"]
        header["image_series_index"], header["image_index"] = place.series, place.first + number
        header["image_type"] = mrd.MAGNITUDE
        header["data_type"] = next(n for n, dtype in mrd.DTYPES.items() if dtype == block.dtype)
        given = mrd.read_attributes(origin.attributes)
        attributes = {name: values for name, values in given.items() if name not in DROPPED}
        attributes.setdefault("WindowCenter", [f"{(low + high) / 2:g}"])
        attributes.setdefault("WindowWidth", [f"{max(high - low, 1):g}"])
        if source.planar:
            attributes["SliceNo"] = [str(number)]
        attributes |= marks(given, header, card, grid, toolkit, note) | sr_identity(given, header, place)
        xml = mrd.write_attributes(attributes)
        header["attribute_string_len"] = len(xml)
        images.append(Image(header, xml, block[None]))
    return images


def sr_identity(given: dict[str, list[str]], header: Any, place: Place) -> dict[str, list[str]]:
    """The identifying attributes of an SR image, which differ from those of its source.

    An attached DICOM header gets the same ones, or is left out if it cannot be read.
    """
    image = derived_uid(f"{place.uid} {header['image_index']}")
    made = {"SeriesInstanceUID": [place.uid], "SOPInstanceUID": [image]}
    for name in {"ImageType", *(name for name in given if name.lower().endswith("imagetype"))}:
        # DICOM's values, one by one or joined as DICOM joins them
        values = "\\".join(given.get(name, [])).split("\\")
        kind = ["DERIVED", "SECONDARY", *(values[2:] or ["M"])]
        made[name] = ["\\".join(kind)] if len(given.get(name, ())) == 1 else kind
    if DICOM_HEADER not in given:
        return made
    try:
        fields = json.loads(base64.b64decode("".join(given[DICOM_HEADER]), validate=True))
        kinds = (fields.get("00080008") or {}).get("Value", [])
        size = header["field_of_view"] / header["matrix_size"]
        fields |= {
            "00080018": {"vr": "UI", "Value": [image]},
            "0020000E": {"vr": "UI", "Value": [place.uid]},
            "00080008": {"vr": "CS", "Value": ["DERIVED", "SECONDARY", *(kinds[2:] or ["M"])]},
            "00280010": {"vr": "US", "Value": [int(header["matrix_size"][1])]},
            "00280011": {"vr": "US", "Value": [int(header["matrix_size"][0])]},
            "00180050": {"vr": "DS", "Value": [float(size[2])]},
            "00180088": {"vr": "DS", "Value": [float(size[2])]},
            "00280030": {"vr": "DS", "Value": [float(size[1]), float(size[0])]},
        }
        for tag in ("00201041", "00201002", "00189074"):  # slice location, counts
            fields.pop(tag, None)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return made | {DICOM_HEADER: []}
    return made | {DICOM_HEADER: [base64.b64encode(json.dumps(fields).encode()).decode()]}


def marks(
    given: dict[str, list[str]], header: Any, card: ModelCard, grid: FineGrid, toolkit: str, note: str = ""
) -> dict[str, list[str]]:
    """Meta attributes that mark an image as super-resolved.

    given: those received; what they say of earlier processing stays. The geometry is that of the header,
    which hosts are asked to keep; otherwise they rotate images.
    """
    history = given.get("ImageProcessingHistory", [])
    made = {
        "DataRole": ["Image"],
        "ImageProcessingHistory": [*history, "UDEAN", f"Super-resolution by {card.name}", card.intended_use],
        "SequenceDescriptionAdditional": ["UDEAN_SR"],
        "ImageComments": [f"Super-resolution by udean, {card.intended_use}" + (f". {note}" if note else "")],
        "DerivationDescription": [
            f"Super-resolution {grid.made} by udean {toolkit}, model {card.name} "
            f"({card.checkpoint[:16] or 'no checkpoint'}): {card.intended_use}"
        ],
        "Keep_image_geometry": ["1"],
        "ImageRowDir": [f"{value:.9f}" for value in header["read_dir"]],
        "ImageColumnDir": [f"{value:.9f}" for value in header["phase_dir"]],
    }
    for name, joint in JOINTS.items():
        made[name] = [joint.join(filter(None, [*given.get(name, ()), *made[name]]))]
    return made


@dataclass(frozen=True)
class Place:
    """The place of a volume's SR images: series, index of the first one in it, UID of the series."""

    series: int
    first: int
    uid: str


class SeriesNumbers:
    """Series numbers for SR series, unused by received series; one series per image size.

    model: what a series' UID follows from beside the images that it is made from.
    """

    def __init__(self, images: Iterable[Image], model: str = "") -> None:
        self._images, self._model = list(images), model
        taken = {int(image.header["image_series_index"]) for image in self._images}
        above = range(max(taken, default=0) + 1, LIMIT + 1)
        self._free = (n for n in itertools.chain(above, range(1, LIMIT + 1)) if n not in taken)
        self._given: dict[Any, Place] = {}  # by received series: the place behind its last volume

    def of(self, source: Stack, grid: FineGrid) -> Place:
        """The place of a volume among the SR series.

        A series that is full is followed by another. Raises RunError if all numbers are taken.
        """
        count = grid.shape[2] if source.planar else 1
        key = _series_key(source.images[0])
        place = self._given.get(key)
        if place is None or place.first - 1 + count > LIMIT:
            number = next(self._free, None)
            if number is None:
                raise RunError("All series numbers of this stream are taken.")
            earlier = place.uid if place else ""
            place = Place(number, 1, derived_uid(f"{self._digest(key)} {self._model} {earlier}"))
        self._given[key] = dataclasses.replace(place, first=place.first + count)
        return place

    def _digest(self, key: Any) -> str:
        """SHA-256 of everything received of a series, independent of the order of arrival."""
        digests = []
        for image in self._images:
            if _series_key(image) == key:
                digest = hashlib.sha256()
                for part in image.parts():
                    digest.update(part)
                digests.append(digest.hexdigest())
        return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest()


def _series_key(image: Image) -> tuple[int, tuple[int, ...], str]:
    return int(image.header["image_series_index"]), image.pixels.shape, image.pixels.dtype.str
