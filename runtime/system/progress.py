"""How far a volume is, and how far several are together."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

Progress = Callable[[int, int], None]  # done, all


def in_turn(progress: Progress | None, counts: Sequence[int]) -> list[Progress | None]:
    """For each of several parts of so many steps, what tells it as progress of the whole."""
    if progress is None:
        return [None] * len(counts)

    def after(before: int, whole: Progress = progress) -> Progress:
        return lambda done, _: whole(before + done, sum(counts))

    return [after(before) for before in itertools.accumulate(counts[:-1], initial=0)]
