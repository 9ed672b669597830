"""Parts that a series lacks: by its headers' counts, its other volumes, and gaps in its time points.

What is counted is sure, and such a volume is not restored. What is only supposed is told with the result.

Source: DICOM PS3.3, C.7.6.16.2.2.4 (concatenations), C.7.6.2.1 and C.12.2 (temporal positions), C.7.6.18
(cardiac phases).
"""

from __future__ import annotations

import itertools
from collections.abc import Collection
from pathlib import Path

import numpy as np

from .frame import REPEATS, Dataset, Frame, integer
from .place import by_orientation, by_place, goes_on, lies_between, lies_within

NUMBER = REPEATS.index("AcquisitionNumber")
TIMES = {REPEATS.index("TriggerTime"): "ms", REPEATS.index("AcquisitionTime"): "s"}
EVEN = 0.1  # of the usual time between two time points, from which others may differ
NAMED = 5  # time points that a sentence names


def fault(name: str, ordered: list[Frame], others: list[list[Frame]]) -> str:
    """The fault of a volume compared with the others of its series; "" if there is none."""
    count = len(by_place(ordered))
    if len(ordered) >= 2 * count:
        return f"{name} holds several volumes that cannot be told apart: give one of them."
    for other in others:
        if lies_within(other, ordered):
            continue
        if lies_within(ordered, other):
            return (
                f"{name} has {count} of the {len(by_place(other))} slices that another volume of its "
                "series has: it is not whole."
            )
        torn_off = goes_on(ordered, other) or (count == 1 and goes_on(other, ordered))
        if torn_off or lies_between(other, ordered):
            return f"{name} is not whole: it lacks slices that another volume of its series has."
    return ""


def short(volumes: list[list[Frame]]) -> str:
    """The slices or volumes missing from a series according to its headers; "" if it is complete."""
    frames = list(itertools.chain(*volumes))
    if len(frames) < (images := max(frame.images for frame in frames)):
        return f"is of {len(frames)} images, and its scan has {images} (ImagesInAcquisition)"
    here = sum(len(by_place(plane)) for plane in by_orientation(volumes))
    if here < (places := max(frame.places for frame in frames)):
        return f"is of a series of {here} slices, and its scan has {places}"
    return ""


def points(volumes: list[list[Frame]], identifiers: Collection[int]) -> tuple[str, str]:
    """The time points that volumes of one kind lack for sure, and perhaps; "" for none.

    identifiers: what they call their time points, 0 for nothing. A single time point of several is perhaps
    all that was to be stored here.
    """
    first = volumes[0][0]
    if first.kind[:1] != ("ORIGINAL",):  # others may have kept what was true of those
        return "", ""
    named = sorted(set(identifiers) - {0})
    most = max(len(place) for plane in by_orientation(volumes) for place in by_place(plane))
    said = (max(frame.turns[n] for volume in volumes for frame in volume) for n in (0, 1))
    here = len(named) if len(named) > 1 else most, most  # some scanners give all of them one identifier
    for word, count, wanted in zip(
        ("time points (NumberOfTemporalPositions)", "cardiac phases (CardiacNumberOfImages)"),
        here,
        said,
        strict=True,
    ):
        if count < wanted:
            lack = f"has {count} of its scan's {wanted} {word}"
            return (lack, "") if count > 1 else ("", lack)
    return "", _hole(named) or _hole(list(map(int, _own(volumes, NUMBER))), False) or _pause(volumes)


def torn(name: str, ordered: list[Frame], heads: dict[Path, Dataset]) -> str:
    """Which files of a multi-frame image in several files are missing."""
    for uid in {str(heads[frame.path].get("ConcatenationUID") or "") for frame in ordered} - {""}:
        files = [head for head in heads.values() if head.get("ConcatenationUID") == uid]
        here = len({integer(head.get("InConcatenationNumber")) for head in files})
        wanted = max(integer(head.get("InConcatenationTotalNumber")) for head in files)
        if here < wanted:
            return f"{name} has {here} of the {wanted} files of its multi-frame image: it is not whole."
    return ""


def _own(volumes: list[list[Frame]], n: int) -> list[float]:
    """The values of one of REPEATS, in order, if each volume has one for all of its slices; else none."""
    values = [{frame.repeat[n] for frame in volume} for volume in volumes]
    if any(len(one) != 1 or len(*one) != 1 for one in values):
        return []
    return sorted({value for one in values for (value,) in one})


def _hole(numbers: list[int], from_one: bool = True) -> str:
    """Which numbers are missing between others. Every second or third is a count as well.

    from_one: whether the count begins there, by the standard.
    """
    if len(numbers) < (2 if from_one else 3):
        return ""
    if len(numbers) > 2 and len(set(np.diff(numbers))) == 1 and (numbers[0] == 1 or not from_one):
        return ""
    start = 1 if from_one else numbers[0]
    if not (missing := sorted(set(range(start, numbers[-1])) - set(numbers))):
        return ""
    listed = ", ".join(map(str, missing[:NAMED])) + (" and others" if len(missing) > NAMED else "")
    return f"has time points {start} to {numbers[-1]} without {listed}: some may be missing"


def _pause(volumes: list[list[Frame]]) -> str:
    """The gaps in times that are otherwise evenly spaced."""
    for n, unit in TIMES.items():
        steps = np.diff(_own(volumes, n))
        if len(steps) < 3:
            continue
        usual = float(np.median(steps))
        even = np.abs(steps - np.rint(steps / usual) * usual) <= EVEN * usual
        if even.all() and steps.max() > 1.5 * usual:
            return f"has time points {usual:g} {unit} apart, and once {steps.max():g}: some may be missing"
    return ""
