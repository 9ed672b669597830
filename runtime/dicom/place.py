"""How slices lie to each other: at the same place, within another stack, or where it continues.

Positions are in patient coordinates (LPS), mm, and comparable only within one frame of reference.
"""

from __future__ import annotations

import math

import numpy as np

from ..scan import slices
from ..scan.slices import SAME_SPOT
from .frame import Frame, Values

TOLERANCE = 1e-3  # absolute and relative, of cosines, spacings, echo times and b-values: files round them
SAME_PLACE = 0.01  # mm along the normal
ROOM = 1.9  # thicknesses from slice to slice, from which on there is room for another between them


def near(one: Values, other: Values) -> bool:
    """Whether values are equal but for rounding."""
    return all(
        a == b
        or (a is not None and b is not None and math.isclose(a, b, rel_tol=TOLERANCE, abs_tol=TOLERANCE))
        for a, b in zip(one, other, strict=True)
    )


def by_place(frames: list[Frame]) -> list[list[Frame]]:
    """Frames along the normal, those at the same place together."""
    row, column = np.reshape(frames[0].cosines, (2, 3))
    normal = np.cross(row, column)
    along = sorted(((float(np.dot(frame.position, normal)), frame) for frame in frames), key=lambda f: f[0])
    places: list[list[Frame]] = []
    last = -math.inf
    for place, frame in along:
        if place - last > SAME_PLACE:
            places.append([])
        places[-1].append(frame)
        last = place
    return places


def by_orientation(volumes: list[list[Frame]]) -> list[list[Frame]]:
    """The frames of volumes, those of one orientation together."""
    planes: list[list[Frame]] = []
    for volume in volumes:
        plane = next((plane for plane in planes if near(plane[0].cosines, volume[0].cosines)), None)
        if plane is None:
            planes.append(plane := [])
        plane += volume
    return planes


def shapes(volumes: list[list[Frame]]) -> list[list[Frame]]:
    """One volume of each set of positions."""
    return list({frozenset(frame.position for frame in volume): volume for volume in volumes}.values())


def lies_within(part: list[Frame], whole: list[Frame]) -> bool:
    """Whether each slice of one volume has the position of a slice of the other."""
    if not near(part[0].cosines, whole[0].cosines):
        return False
    spots = np.array([frame.position for frame in whole])
    return all(np.linalg.norm(spots - frame.position, axis=1).min() < SAME_SPOT for frame in part)


def lies_between(part: list[Frame], stack: list[Frame]) -> bool:
    """Whether a slice of one volume lies between slices of the other that leave room for it.

    Volumes that follow a moving head leave none: their slices are as far apart as they are thick.
    """
    if not near(part[0].cosines, stack[0].cosines):
        return False
    row, column = np.reshape(stack[0].cosines, (2, 3))
    normal = np.cross(row, column)
    spots, others = (np.array([frame.position for frame in frames]) for frames in (stack, part))
    along, places = spots @ normal, others @ normal
    shifts = np.linalg.norm(others - spots[0] - np.outer(places - along[0], normal), axis=1)
    apart = np.abs(places[:, None] - along).min(1)
    inside = (along.min() < places) & (places < along.max())
    room = np.diff(np.sort(along)).max(initial=0) > ROOM * (stack[0].thickness or np.inf)
    return bool(room and (inside & (apart > SAME_SPOT) & (shifts < SAME_SPOT)).any())


def goes_on(stack: list[Frame], other: list[Frame]) -> bool:
    """Whether slices of another volume lie where this one has a gap or would go on; see `slices.goes_on`."""
    if not near(stack[0].cosines, other[0].cosines):
        return False
    spots, others = (np.array([frame.position for frame in frames]) for frames in (stack, other))
    return slices.goes_on(spots, others)
