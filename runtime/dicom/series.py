"""DICOM series as scans: slices of classic and enhanced MR files, grouped and sorted by position.

Source: DICOM PS3.3, C.7.5.1.1.2 (pixel padding), C.7.6.2 (image plane), C.8.13.3.1.1 (complex image
component). File names and instance numbers say nothing about order here.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ..errors import DiskError, RunError, first_line
from ..scan.geometry import LPS_TO_RAS
from ..scan.kinds import check_sign, is_no_magnitude, no_signal
from ..scan.scan import Scan, image_scan
from ..scan.slices import APART, check_gap, even_step
from ..system.memory import lacks_memory
from .frame import (
    CLASSIC,
    ENHANCED,
    MAGIC,
    REPEATS,
    Dataset,
    Found,
    Frame,
    Key,
    Values,
    frames,
    integer,
    is_ours,
    may_be,
    read,
)
from .place import by_place, near, shapes
from .whole import fault, points, short, torn

PADDING_GAP = 0.1  # of the other voxels' range, from it to padding that would ring: 0 in black air does not
NUMBER_STEP = 1000  # the SR series of series 3 is 1003, if the study has no such series
NUMBER_LIMIT = 2**31 - 1  # of an integer string (PS3.5, 6.2)


@dataclass(frozen=True)
class DerivedPlace:
    """The SR series that a volume becomes part of: volumes that differ in time alone share one.

    number: of that series. before: LR slices of the volumes before it there. sources: text that names all
    its slices; "" if the volume is the only one, and its own voxels tell it apart.
    """

    number: int
    before: int = 0
    sources: str = ""


@dataclass(frozen=True)
class Series:
    """The slices of one volume, sorted along the normal.

    name: what errors call it. number: of the series. part: of several volumes in it, from 1, or 0 for the
    only one. head: the first slice's data set, without voxels. fault: why it cannot be resolved, if known.
    doubt: a sentence on what its series may lack.
    """

    name: str
    uid: str
    number: int
    part: int
    frames: tuple[Frame, ...]
    head: Dataset
    result: DerivedPlace
    fault: str = ""
    doubt: str = ""

    @property
    def enhanced(self) -> bool:
        """Whether it came as a multi-frame file."""
        return str(self.head.SOPClassUID) in ENHANCED

    def affine(self) -> NDArray[np.float64]:
        """Voxels (i, j, k) to RAS, (4, 4): i along a row, j along a column.

        Raises RunError if the slices are not one upright, evenly spaced stack.
        """
        if self.fault:
            raise RunError(self.fault)
        first = self.frames[0]
        row, column = np.reshape(first.cosines, (2, 3))
        frame = np.array([row, column, np.cross(row, column)])
        if not np.allclose(frame @ frame.T, np.eye(3), atol=1e-3):
            raise RunError(f"{self.name} has directions that are not orthogonal unit vectors.")
        size = np.array(first.spacing[::-1])
        if not (np.isfinite(size).all() and (size > 0).all()):
            raise RunError(f"{self.name} has no usable pixel spacing: {first.spacing} mm.")
        if not all(near(frame.spacing, first.spacing) for frame in self.frames):
            raise RunError(f"{self.name} has slices of different pixel spacing: give one stack of them.")
        places = np.array([frame.position for frame in self.frames])
        step = first.thickness or 0.0
        if len(places) > 1:
            step = even_step(self.name, places @ frame.T, size)
            self._check_step(step)
        if not step > 0:
            raise RunError(f"{self.name} is a single slice of unknown thickness.")
        affine = np.eye(4)
        affine[:3, :3] = (frame * np.array([*size, step])[:, None]).T
        affine[:3, 3] = places[0]
        return LPS_TO_RAS @ affine

    def _check_step(self, step: float) -> None:
        """Raise RunError if slices lie so far apart that others have lain between them."""
        first = self.frames[0]
        check_gap(self.name, step, first.thickness or 0.0)
        between = abs(first.between or 0.0)
        times = round(step / between) if between else 1
        # Some devices write the gap and not the distance of centres.
        is_gap = between < (first.thickness or 0.0) and math.isclose(
            step, between + (first.thickness or 0.0), rel_tol=APART
        )
        if times > 1 and math.isclose(step, times * between, rel_tol=APART) and not is_gap:
            raise RunError(
                f"{self.name} has slices {step:g} mm apart that were scanned {between:g} mm apart "
                f"(SpacingBetweenSlices): {times - 1} of {times} are missing."
            )

    def scan(self) -> Scan:
        """The series as a scan, its voxels decoded. Raises RunError for what cannot be resolved."""
        affine = self.affine()
        kind = self.frames[0].kind
        if "MOSAIC" in kind:
            raise RunError(f"{self.name} has many slices in one image (mosaic): convert it to NIfTI first.")
        if what := no_signal(kind[:-1]):
            raise RunError(f"{self.name} is {what}, by its image type, not a scan's signal: it is left.")
        if kind[-1] not in ("", "MAGNITUDE") or is_no_magnitude(kind[2:-1]):
            raise RunError(f"{self.name} is phase, real or imaginary: only magnitude images are restored.")
        scales = {(frame.slope, frame.inter) for frame in self.frames}
        if len(scales) > 1 or len({(frame.real, frame.scale) for frame in self.frames}) > 1:
            raise RunError(f"{self.name} has slices of different rescaling: convert it to NIfTI first.")
        if len({frame.pixels for frame in self.frames}) > 1:
            raise RunError(
                f"{self.name} has slices of different BitsStored, PixelRepresentation or "
                "PhotometricInterpretation: convert it to NIfTI first."
            )
        voxels = np.stack(list(self._planes()), axis=2)
        self._check_padding(voxels)
        slope, inter = scales.pop()
        check_sign(self.name, voxels * np.float32(slope) + np.float32(inter))
        image = nib.Nifti1Image(voxels, affine, dtype=voxels.dtype)
        image.header.set_qform(affine, "scanner")
        image.header.set_sform(affine, "scanner")
        image.header.set_xyzt_units("mm", "sec")
        scan = image_scan(image)
        remarks = (f"{self.name}: {self.doubt}",) if self.doubt else ()
        return Scan(
            self.name, scan.header, scan.shape, scan.dtype, slope, inter, array=voxels, remarks=remarks
        )

    def _check_padding(self, voxels: NDArray[Any]) -> None:
        """Raise RunError if padding would pass for signal: it decides the intensities, and rings."""
        value = self.head.get("PixelPaddingValue")
        if value in (None, ""):
            return
        ends = [int(value), int(self.head.get("PixelPaddingRangeLimit", value))]
        low, high = sorted(np.array(ends).astype(voxels.dtype))  # some files write -2000 as 63536
        padded = (voxels >= low) & (voxels <= high)
        if not padded.any() or padded.all():
            return
        others = voxels[~padded]
        least, most = int(others.min()), int(others.max())
        if max(least - int(low), int(high) - most) > PADDING_GAP * (most - least):
            raise RunError(
                f"{self.name} has padding (PixelPaddingValue {value}) far outside its other voxels' range of "
                f"{least} to {most}: set it to their background first."
            )

    def _planes(self) -> Iterator[NDArray[Any]]:
        """The stored voxels (i, j) of each frame, in order."""
        decoded: dict[Path, NDArray[Any]] = {}
        for frame in self.frames:
            if frame.path not in decoded:
                decoded = {frame.path: _decode(self.name, frame.path)}
            pixels = decoded[frame.path]
            plane = pixels[frame.number] if pixels.ndim == 3 else pixels
            if plane.shape != (self.head.Rows, self.head.Columns):
                raise RunError(f"{self.name}: a slice's voxels are not {self.head.Rows}x{self.head.Columns}.")
            yield plane.T


def find_series(
    files: list[Path], place: Path, ours: bool = False, taken: Collection[int] = ()
) -> list[Series]:
    """The MR volumes that DICOM files make up; files of other kinds are left out.

    Slices of two patients, studies or frames of reference are never one volume, whatever their series says.
    A series that holds several volumes (echoes, time points, b-values, orientations, image types) is
    taken apart; one with an unusable file is one volume with a fault, as is a volume that lacks slices which
    others of its series have. place: the folder, for errors. ours: take results of earlier runs too. taken:
    numbers of other series of the study. Raises RunError for a damaged file.
    """
    groups: dict[str, list[_Group]] = defaultdict(list)
    heads: dict[Path, Dataset] = {}
    faults: dict[str, tuple[str, Dataset]] = {}
    for path in files:
        dataset = _open(path)
        if dataset is None or (not ours and is_ours(dataset)):
            continue
        uid = str(dataset.SeriesInstanceUID)
        try:
            found = list(frames(path, dataset))
        except DiskError:
            raise
        except RunError as error:
            faults.setdefault(uid, (str(error), dataset))
        except AttributeError as error:
            faults.setdefault(uid, (f"{path} has no usable {error.name}.", dataset))
        except Exception as error:
            if lacks_memory(error):
                raise
            faults.setdefault(uid, (f"{path} is a damaged DICOM file ({type(error).__name__}).", dataset))
        else:
            heads[path] = dataset
            for one in found:
                alike = (g for g in groups[uid] if (g.exact, g.time) == (one.exact, one.time))
                group = next((group for group in alike if near(group.near, one.near)), None)
                if group is None:
                    groups[uid].append(group := _Group(one, []))
                group.frames.append(one.frame)

    series = []
    for uid, (reason, head) in faults.items():
        groups.pop(uid, None)
        number = integer(head.get("SeriesNumber"))
        reason = f"Series {number} in {place} cannot be resolved: {reason}"
        series.append(
            Series(f"Series {number} in {place}", uid, number, 0, (), head, DerivedPlace(0), reason)
        )
    for uid, members in groups.items():
        series += _series_of(uid, members, heads, place)
    return _numbered(sorted(series, key=lambda s: (s.number, s.uid, s.part)), taken)


@dataclass(frozen=True)
class _Group:
    """Frames of one volume, or of several that only their positions or `REPEATS` can tell apart."""

    first: Found
    frames: list[Frame]

    @property
    def exact(self) -> Key:
        return self.first.exact

    @property
    def near(self) -> Values:
        return self.first.near

    @property
    def time(self) -> Key:
        return self.first.time

    @property
    def whose(self) -> Key:
        """The key shared by volumes that may be compared with one another: identity, stack, side."""
        return self.exact[0], *self.exact[3:]


def _open(path: Path) -> Dataset | None:
    """The head of an MR file, None for other files. Raises RunError for a damaged one."""
    try:
        dataset = read(path, voxels=False)
        if str(dataset.get("SOPClassUID", "")) not in (CLASSIC, *ENHANCED):
            return None
        str(dataset.SeriesInstanceUID)
        return dataset
    except RunError:  # pydicom is missing, or the disk fails
        raise
    except Exception as error:  # a damaged file may raise anything
        if lacks_memory(error):
            raise
        if not _has_preamble(path):
            return None  # it only began like one
        raise RunError(f"{path} is a damaged DICOM file ({type(error).__name__}).") from error


def _has_preamble(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(MAGIC[0] + 4)[MAGIC[0] :] == MAGIC[1]


def _series_of(uid: str, groups: list[_Group], heads: dict[Path, Dataset], place: Path) -> list[Series]:
    """The volumes of one series UID; their SR series are numbered later."""
    groups = sorted(groups, key=lambda group: repr((group.near, group.exact, group.time)))
    found = [(group, volume) for group in groups for volume in _volumes(_distinct(group.frames))]
    joined: dict[int, list[int]] = defaultdict(list)  # volumes of one SR series
    leaders: list[_Group] = []
    for index, (group, _) in enumerate(found):
        for number, leader in enumerate(leaders):
            if group.exact == leader.exact and near(group.near[:-1], leader.near[:-1]):  # any b-value
                joined[number].append(index)
                break
        else:
            joined[len(leaders)].append(index)
            leaders.append(group)
    results: dict[int, DerivedPlace] = {}
    for number, members in joined.items():
        names = [f"{frame.instance}/{frame.number}" for index in members for frame in found[index][1]]
        before = itertools.accumulate((len(found[index][1]) for index in members), initial=0)
        for index, count in zip(members, before, strict=False):
            results[index] = DerivedPlace(number, count, " ".join(sorted(names)) if len(members) > 1 else "")
    families, kinds = _families(found), _kinds(found)
    series = []
    for index, (group, ordered) in enumerate(found):
        head = heads[ordered[0].path]
        number = integer(head.get("SeriesNumber"))
        several = len(found) > 1
        name = f"Series {number} in {place}" + (f", volume {index + 1}" if several else "")
        lack, others = families[group.whose]
        late, doubt = kinds[group.exact]
        wrong = f"{name} {lack or late}: it is not whole." if lack or late else ""
        wrong = wrong or fault(name, ordered, others) or torn(name, ordered, heads)
        part = index + 1 if several else 0
        doubt = f"Its series {doubt}." if doubt else ""
        series.append(Series(name, uid, number, part, tuple(ordered), head, results[index], wrong, doubt))
    return series


def _families(found: list[tuple[_Group, list[Frame]]]) -> dict[Key, tuple[str, list[list[Frame]]]]:
    """For each identity: the slices that its volumes lack by their headers, and comparable volumes.

    Some images of a scan may say less of whose they are.
    """
    related: dict[Key, list[list[Frame]]] = defaultdict(list)
    for group, volume in found:
        related[group.whose].append(volume)
    families = {}
    for whose, volumes in related.items():
        others = [v for other in related if _may_be(whose, other) for v in related[other]]
        families[whose] = short(volumes), shapes(others)
    return families


def _kinds(found: list[tuple[_Group, list[Frame]]]) -> dict[Key, tuple[str, str]]:
    """The time points that the volumes of each kind lack, and those that they may lack."""
    members: dict[Key, tuple[list[list[Frame]], list[int]]] = defaultdict(lambda: ([], []))
    for group, volume in found:
        volumes, identifiers = members[group.exact]
        volumes.append(volume)
        identifiers += group.time
    return {exact: points(*of) for exact, of in members.items()}


def _may_be(one: Key, other: Key) -> bool:
    """Whether two identities, stacks and sides are the same as far as both say them."""
    (who, *rest), (them, *others) = one, other
    return may_be((*who, *rest), (*them, *others))


def _numbered(series: list[Series], taken: Collection[int]) -> list[Series]:
    """The series with numbers for their SR series that no other series of the study has."""
    used: dict[str, set[int]] = defaultdict(lambda: set(taken))
    for one in series:
        used[str(one.head.get("StudyInstanceUID"))].add(one.number)
    given: dict[tuple[str, tuple[str, ...], int], int] = {}
    numbered = []
    for one in series:
        study = str(one.head.get("StudyInstanceUID"))
        key = one.uid, one.frames[0].identity if one.frames else (), one.result.number
        if key not in given:
            wanted = NUMBER_STEP + max(one.number, 0) + NUMBER_STEP * one.result.number
            if wanted > NUMBER_LIMIT:
                wanted = NUMBER_STEP + 1
            given[key] = next(n for n in itertools.count(wanted) if n not in used[study])
            used[study].add(given[key])
        numbered.append(dataclasses.replace(one, result=dataclasses.replace(one.result, number=given[key])))
    return numbered


def _volumes(frames: list[Frame]) -> list[list[Frame]]:
    """Frames along the normal; those of several volumes apart, by the first of REPEATS, or all, that does it.

    Only a value that gives each volume every place once does, or one volume every place and the others
    fewer. Else, if every place has as many frames as the scan has time points or cardiac phases, they follow
    one another at each by trigger time and instance number. Else they stay together, to be refused.
    """
    places = by_place(frames)
    ordered = [frame for place in places for frame in place]
    if len(ordered) > len(places):
        for whole in (all, any):
            for chosen in (*([n] for n in range(len(REPEATS))), range(len(REPEATS))):
                volumes: dict[Any, list[Frame]] = defaultdict(list)
                for frame in ordered:
                    volumes[tuple(frame.repeat[n] for n in chosen)].append(frame)
                once = all(len(volume) == len(by_place(volume)) for volume in volumes.values())
                if once and whole(len(volume) == len(places) for volume in volumes.values()):
                    return [volumes[key] for key in sorted(volumes)]
        turns = len(places[0])
        if turns in ordered[0].turns and {len(place) for place in places} == {turns}:
            in_time = [sorted(place, key=lambda frame: (frame.repeat[0], frame.order)) for place in places]
            return [list(volume) for volume in zip(*in_time, strict=True)]
    return [ordered]


def _distinct(frames: list[Frame]) -> list[Frame]:
    """Frames without exact duplicates (header and voxels)."""
    kept: dict[tuple[str, int], Frame] = {}
    again = []
    for frame in frames:
        first = kept.setdefault((frame.instance, frame.number), frame)
        same = first is frame or (
            dataclasses.replace(frame, path=first.path) == first and _alike(first, frame)
        )
        if not same:
            again.append(frame)
    return [*kept.values(), *again]


def _alike(one: Frame, other: Frame) -> bool:
    """Whether two files hold the same voxels."""
    try:
        return np.array_equal(_decode("", one.path), _decode("", other.path))
    except DiskError:
        raise
    except RunError:
        return False


def _decode(name: str, path: Path) -> NDArray[Any]:
    """The stored voxels of a file, (frames, rows, columns) or (rows, columns)."""
    try:
        return np.asarray(read(path).pixel_array)
    except DiskError:
        raise
    except Exception as error:  # decoders may raise anything
        if lacks_memory(error):
            raise
        reason = first_line(error)
        raise RunError(f"{name}: a slice's voxels cannot be decoded ({reason}).") from error
