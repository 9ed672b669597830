"""The cost of a scan, before it is resolved: windows, arithmetic, memory, time.

Arithmetic is counted in the model's own graph, so this file reads the part of the ONNX format (protocol
buffers, github.com/onnx/onnx/blob/main/onnx/onnx.proto) that gives a convolution's size.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engines.checkpoint import load_network
from ..engines.choose import model_file
from ..models.kind import model_kind
from ..models.trt_plan import read_card
from ..pipeline.host import buffer_nbytes
from ..pipeline.tiling import Tiling
from ..resolver import SuperResolver

POOLS = ("ReduceMean", "GlobalAveragePool", "Gather")  # results without an area: a mean, a row or a column


@dataclass(frozen=True)
class Cost:
    """An upper bound: background and byte-identical windows are not computed.

    flop: multiplications and additions of the network; None if its graph is unavailable. nbytes: of
    voxels and buffers, without the interpreter and the network's library.
    """

    windows: int
    flop: float | None
    nbytes: int
    seconds: float

    def __str__(self) -> str:
        flop = "unknown GFLOP" if self.flop is None else f"{self.flop / 1e9:.0f} GFLOP"
        return f"at most {self.windows} windows, {flop}, {self.nbytes / 1e6:.0f} MB and {self.seconds:.1f} s"


class Estimator:
    """Knows what a window costs; measures the engine's speed once for each size."""

    def __init__(self, resolve: SuperResolver, model: Path | None) -> None:
        self._resolve = resolve
        self._flop = flop_per_voxel(model)
        self._seconds: dict[tuple[int, int], float] = {}

    def __call__(self, plans: Sequence[Tiling], volumes: int, coarse: int, fine: int) -> Cost:
        """plans: windows that a volume goes through, for each slab axis. volumes: of a series. coarse, fine:
        bytes of all LR and SR voxels."""
        voxels, seconds = 0, 0.0
        for plan in plans:
            size = plan.rows.window, plan.columns.window
            if size not in self._seconds:
                self._seconds[size] = self._resolve.seconds_per_window(plan)
            voxels += math.prod(size) * len(plan) * volumes
            seconds += self._seconds[size] * len(plan) * volumes
        flop = None if self._flop is None else self._flop * voxels
        held = 4 * math.prod(plans[0].fine_shape) * (len(plans) - 1)  # float32 along the other axes
        nbytes = coarse + fine + held + max(map(buffer_nbytes, plans))
        return Cost(sum(map(len, plans)) * volumes, flop, nbytes, seconds)


def flop_per_voxel(model: Path | None) -> float | None:
    """Operations of the network for each LR voxel (row, column) of a slab; None if unknown.

    A plan's are those of the ONNX file that it was built from, if that lies beside it.
    """
    with model_file(model) as (file, _):
        if model_kind(file) == "checkpoint":
            return _checkpoint_flop(file)
        if model_kind(file) == "plan":
            file = file.with_name(read_card(file).onnx)
        return graph_flop(file.read_bytes()) if file.is_file() else None


def _checkpoint_flop(file: Path) -> float:
    torch, network, card = load_network(file)
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, card.slab[0], *card.window))
    return counter.get_total_flops() / math.prod(card.window)


def graph_flop(contents: bytes) -> float:
    """Operations of an ONNX graph's convolutions, for each voxel (row, column) of its input.

    A tensor's area is followed from node to node, in units of the input's; that of a mean or a rim is 0.
    """
    total, area, weights = 0.0, {}, {}
    nodes = []
    for number, value in _fields(_message(contents, 7)):
        if number == 1:
            nodes.append(value)
        elif number == 5:
            name, dims = _tensor(value)
            weights[name] = dims
    for node in nodes:
        inputs = [str(v, "utf-8") for n, v in _fields(node) if n == 1]
        output = next(str(v, "utf-8") for n, v in _fields(node) if n == 2)
        kind = next(str(v, "utf-8") for n, v in _fields(node) if n == 4)
        attributes = dict(_attribute(v) for n, v in _fields(node) if n == 5)
        if kind == "Constant" and attributes.get("value"):
            weights[output] = attributes["value"]
            continue
        if kind in ("DequantizeLinear", "QuantizeLinear", "Cast") and inputs[0] in weights:
            weights[output] = weights[inputs[0]]
            continue
        known = [area.get(name, 1.0) for name in inputs if name and name not in weights]
        size = max(known, default=0.0)
        if kind == "Conv":
            size /= math.prod(attributes.get("strides") or [1])
            total += 2 * math.prod(weights[inputs[1]]) * size
        elif kind == "DepthToSpace":
            size *= attributes["blocksize"][0] ** 2
        elif kind in POOLS:
            size = 0.0
        area[output] = size
    return total


def _attribute(message: memoryview) -> tuple[str, list[int]]:
    """An attribute's name, and its integers or the dimensions of its tensor."""
    name, values = "", []
    for number, value in _fields(message):
        if number == 1:
            name = str(value, "utf-8")
        elif number in (3, 8):
            values += _integers(value)
        elif number == 5:
            values = _tensor(value)[1]
    return name, values


def _tensor(message: memoryview) -> tuple[str, list[int]]:
    """A tensor's name and dimensions."""
    name, dims = "", []
    for number, value in _fields(message):
        if number == 1:
            dims += _integers(value)
        elif number == 8:
            name = str(value, "utf-8")
    return name, dims


def _message(contents: bytes, wanted: int) -> memoryview:
    return next((v for n, v in _fields(memoryview(contents)) if n == wanted), memoryview(b""))


def _integers(value: int | memoryview) -> list[int]:
    """A repeated integer comes one by one or packed."""
    if isinstance(value, int):
        return [value]
    found, at = [], 0
    while at < len(value):
        number, at = _varint(value, at)
        found.append(number)
    return found


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """The (field number, value) pairs of a message; a value is an integer or the bytes themselves."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(message, at)
        else:
            length = {1: 8, 5: 4}.get(kind)
            if length is None:
                length, at = _varint(message, at)
            value = message[at : at + length]
            at += length
        yield key >> 3, value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value, at
