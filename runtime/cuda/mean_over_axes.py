"""The mean over three slab axes on the device, with the other two volumes kept there; see the pipeline's."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Generator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..pipeline.host import Pass
from ..pipeline.mean_over_axes import lost_detail, middle_block
from ..pipeline.tiling import Tiling
from ..scan.intensity import IN_THE_NETWORKS_RANGE
from ..system.progress import in_turn
from .device import Gpu, OutOfMemory
from .measured_band import Held
from .pipeline import CudaPipeline
from .workspace import Kept

log = logging.getLogger("udean")


class Others:
    """Two HR volumes (slices, rows, columns) on the device, float32. Raises OutOfMemory."""

    def __init__(self, gpu: Gpu, voxels: int) -> None:
        room = _Room()
        self.close = gpu.closes(self, room)
        with gpu.current():
            for _ in range(2):
                room.allocated.append(gpu.cuda.mem_alloc(4 * voxels))
        self.volumes = tuple(room.allocated)
        self._gpu = gpu

    def middles(self, shape: tuple[int, int, int]) -> list[NDArray[np.float32]]:
        """The middle HR slices of each, (rows, columns, slices), for `lost_detail`.

        shape: of the whole, (slices, rows, columns).
        """
        some, rows, columns = middle_block(shape[0]), *shape[1:]
        found = [np.empty((some.stop - some.start, rows, columns), np.float32) for _ in self.volumes]
        with self._gpu.current():
            for target, volume in zip(found, self.volumes, strict=True):
                self._gpu.cuda.memcpy_dtoh(target, int(volume) + 4 * some.start * rows * columns)
        return [np.moveaxis(part, 0, 2) for part in found]


class _Room:
    def __init__(self) -> None:
        self.allocated: list[Any] = []

    def close(self) -> None:
        while self.allocated:
            self.allocated.pop().free()


def mean_over_axes(
    pipeline: CudaPipeline, given: Pass, tilings: Sequence[Tiling], held: Held | None
) -> Generator[tuple[int, NDArray[Any]]] | None:
    """The mean's slabs, as by `CudaPipeline.slabs`; None if the device's memory does not hold two HR volumes.

    tilings: of slabs along rows, columns and slices.
    """
    height, width, depth = tilings[2].fine_shape
    try:
        others = Others(pipeline.engine.gpu, height * width * depth)
    except OutOfMemory:
        log.warning("The GPU's memory does not hold the mean over three slab axes: the host takes it.")
        return None

    def slabs(held: Held | None = held) -> Generator[tuple[int, NDArray[Any]]]:
        told, volume = in_turn(given.progress, list(map(len, tilings))), given.volume
        try:
            for axis, room in enumerate(others.volumes):
                steps = [width, 1, height * width]  # of the volume; turned, they are its slabs'
                across = steps.pop(axis)
                kept = Kept(int(room), (steps[0], steps[1], across))
                turned = dataclasses.replace(volume, voxels=np.moveaxis(volume.voxels, axis, 2))
                one = Pass(turned, tilings[axis], IN_THE_NETWORKS_RANGE, given.watch, told[axis])
                for _ in pipeline.slabs(one, kept=kept):
                    pass
            if held:
                one, other = others.middles((depth, height, width))
                detail = lost_detail(one, other, tilings[2].slices.scale)
                weight = dataclasses.replace(held.weight, detail=detail)
                held = dataclasses.replace(held, weight=weight)
            last = dataclasses.replace(given, progress=told[2])
            yield from pipeline.slabs(last, held, others=others.volumes)
        finally:
            others.close()

    return slabs()
