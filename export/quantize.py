"""Eight-bit models for CPU engines: post-training static quantization by ONNX Runtime's own tools.

Convolutions of the body compute in int8 (activations uint8, weights int8 per channel, so that processors with
VNNI multiply them natively); the first and last convolution (the image's input and output), the fixed
interpolation and the attention's gates stay float32.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from ..runtime.models.card import ModelCard
from ..runtime.pipeline.engine import Inference, Windows
from ..runtime.scan import intensity
from ..runtime.scan.orientation import Orientation
from ..runtime.scan.scan import SUFFIXES, open_scan
from . import graph, parity
from .errors import ExportError

CALIBRATION_WINDOWS = 64
REPEATS = 7


def scan_windows(paths: Sequence[Path], card: ModelCard, seed: int = 0) -> Windows:
    """Windows (64, slab, rows, columns) of LR scans in the network's range, drawn from tissue.

    paths: NIfTI files and folders of them. Raises ExportError or RunError if no window can be drawn.
    """
    files = [f for path in paths for f in _files(path)]
    if not files:
        raise ExportError(f"There is no NIfTI scan in {', '.join(map(str, paths))} to calibrate int8 on.")
    rng = np.random.default_rng(seed)
    sizes = (*card.window, card.slab[0])
    drawn: list[Windows] = []
    for index, file in enumerate(files):
        scan = open_scan(file)
        lr = Orientation.of(scan.affine).turned(scan.voxels_in_units())
        try:
            lr = lr / np.float32(intensity.unit(lr, card.intensity))
        except intensity.IntensityError as error:
            raise ExportError(f"{file}: {error}") from None
        if any(n < size for n, size in zip(lr.shape, sizes, strict=True)):
            raise ExportError(f"{file} is smaller than a window of {sizes}: calibrate on larger scans.")
        tissue = np.argwhere(lr > 0.1)
        count = len(range(index, CALIBRATION_WINDOWS, len(files)))
        for centre in tissue[rng.integers(len(tissue), size=count)] if len(tissue) else ():
            low = [
                int(np.clip(c - size // 2, 0, n - size))
                for c, size, n in zip(centre, sizes, lr.shape, strict=True)
            ]
            window = lr[tuple(slice(a, a + size) for a, size in zip(low, sizes, strict=True))]
            drawn.append(np.moveaxis(window, 2, 0))
    if not drawn:
        raise ExportError(f"{files[0]} is empty: calibrate int8 on scans with tissue in them.")
    return np.ascontiguousarray(np.stack(drawn), np.float32)


def quantize(model: onnx.ModelProto, windows: Windows) -> onnx.ModelProto:
    """The model with its body in int8; activation ranges are those observed on the windows."""
    batches = [windows[n : n + 1] for n in range(len(windows))]
    with tempfile.TemporaryDirectory(prefix="udean-") as folder:
        source, target = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(model.SerializeToString())  # the tool would change the model object itself
        logging.disable(logging.WARNING)  # it advises a pass that PyTorch's exporter has already done
        try:
            quantize_static(
                source,
                target,
                _Reader(batches),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["Conv"],
                nodes_to_exclude=_float_nodes(model.graph),
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
            )
        finally:
            logging.disable(logging.NOTSET)
        small = onnx.load(target)
    onnx.checker.check_model(small, full_check=True)
    return small


def speed(full: onnx.ModelProto, small: onnx.ModelProto, card: ModelCard, windows: Windows) -> str:
    """How many times faster the small model is on these windows, by engine; medians of alternating runs."""
    with tempfile.TemporaryDirectory(prefix="udean-") as folder:
        paths = Path(folder) / "full.onnx", Path(folder) / "small.onnx"
        for path, model in zip(paths, (full, small), strict=True):
            path.write_bytes(graph.serialize(model, card))
        remarks: list[str] = []
        for (engine, slow), (_, fast) in zip(*map(parity.engines, paths), strict=True):
            seconds = [(_seconds(slow, windows), _seconds(fast, windows)) for _ in range(1 + REPEATS)][1:]
            a, b = (statistics.median(times) for times in zip(*seconds, strict=True))
            remarks.append(f"{a / b:.2f}× the speed of fp32 in {engine}")
    return ", ".join(remarks)


def _seconds(network: Inference, windows: Windows) -> float:
    start = time.perf_counter()
    network(windows)
    return time.perf_counter() - start


def _float_nodes(body: onnx.GraphProto) -> list[str]:
    """Names of the convolutions that stay float32: first, last, interpolation (5×5), gates (1×1)."""
    first, *convs = (node for node in body.node if node.op_type == "Conv")
    kernel = {i.name: tuple(i.dims[2:]) for i in body.initializer}
    others = (n for n in convs if kernel[n.input[1]] != (3, 3) or n.input[1].startswith("decoder.tail"))
    return [first.name, *(node.name for node in others)]


class _Reader(CalibrationDataReader):
    def __init__(self, batches: list[Windows]) -> None:
        self.rest = iter(batches)

    def get_next(self) -> dict[str, Windows] | None:  # type: ignore[override]
        batch = next(self.rest, None)
        return None if batch is None else {"lr": batch}


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(f for f in path.rglob("*") if f.name.lower().endswith(SUFFIXES))
    return [path]
