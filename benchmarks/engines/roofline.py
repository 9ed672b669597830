"""How close does a network come to the machine's limits?

Two roofs, measured: arithmetic by a large matrix product in the same precision (by the fastest
installed library), traffic by copying an array that no cache holds. They bound the network: each convolution
takes at least as long as its arithmetic at the one rate or its traffic at the other, whichever is longer.
Williams, Waterman and Patterson, "Roofline", CACM 52(4), 2009.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from ...trainer.precision import processor_has_bf16

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


@dataclass(frozen=True)
class Layer:
    """A convolution: operations (a multiplication and an addition are two) and values in, out and learned."""

    flop: float
    values: int
    weights: int


@dataclass(frozen=True)
class Roofs:
    """A machine's limits. flops: operations per second by precision. copy: bytes per second, both ways."""

    flops: dict[str, float]
    copy: float

    def attainable(self, layers: Sequence[Layer], precision: str, batch: int) -> float:
        """Upper bound of operations per second, if every convolution reads and writes memory once.

        Activations, additions and scaling are counted as fused. Caches save traffic, so a network whose
        layers fit into them may exceed the traffic roof, but not the arithmetic roof.
        """
        size, peak = BYTES[precision], self.flops[precision]
        seconds = sum(
            max(batch * a.flop / peak, size * (batch * a.values + a.weights) / self.copy) for a in layers
        )
        return batch * sum(a.flop for a in layers) / seconds


def convolutions(model: onnx.ModelProto, rows: int, columns: int) -> list[Layer]:
    """The convolutions of an ONNX model for one window of this size, sizes by ONNX's own shape inference."""
    graph = copy.deepcopy(model)
    dims = graph.graph.input[0].type.tensor_type.shape.dim
    for dim, size in zip((dims[0], dims[2], dims[3]), (1, rows, columns), strict=True):
        dim.Clear()
        dim.dim_value = size
    del graph.graph.value_info[:]  # of the dynamic sizes: inferred again
    for value in graph.graph.output:
        value.type.tensor_type.ClearField("shape")
    graph = onnx.shape_inference.infer_shapes(graph, strict_mode=True, data_prop=True).graph
    shapes = {
        v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
        for v in (*graph.input, *graph.value_info, *graph.output)
    }
    shapes |= {w.name: list(w.dims) for w in graph.initializer}
    layers = []
    for node in graph.node:
        if node.op_type == "Conv":
            source, weight, target = (math.prod(shapes[n]) for n in (*node.input[:2], node.output[0]))
            # Each output value is a sum over input channels (of its group) and the kernel.
            terms = weight // shapes[node.input[1]][0]
            layers.append(Layer(2.0 * target * terms, source + target, weight))
    return layers


def measure_roofs(device: str = "cpu", threads: int | None = None) -> Roofs:
    """Measure the machine's roofs: a few seconds. In a process of its own no threads stay behind."""
    import torch

    if threads:
        torch.set_num_threads(threads)
    cuda = device != "cpu"
    torch.backends.cuda.matmul.allow_tf32 = False
    precisions = {"fp32": torch.float32}
    if cuda:
        precisions["fp16"] = torch.float16
    elif processor_has_bf16():  # other processors emulate it, which takes minutes per product
        precisions["bf16"] = torch.bfloat16
    wait: Callable[[], Any] = (lambda: torch.cuda.synchronize(device)) if cuda else (lambda: None)
    n = 8192 if cuda else 2048
    flops = {}
    for name, dtype in precisions.items():
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        product = torch.empty_like(a)
        flops[name] = 2 * n**3 / _seconds(lambda a=a, b=b, c=product: torch.mm(a, b, out=c), wait)
    if not cuda:
        if importlib.util.find_spec("openvino"):
            for name, seconds in _openvino(n, tuple(flops), threads).items():
                flops[name] = max(flops[name], 2 * n**3 / seconds)
        # Processors without half-precision arithmetic compute such graphs in float32.
        flops["fp16"] = flops["fp32"]
        flops.setdefault("bf16", flops["fp32"])
    size = 1 << 30 if cuda else 1 << 28  # bytes: many times the largest cache
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return Roofs(flops, 2 * size / _seconds(lambda: target.copy_(source), wait))


def _seconds(work: Callable[[], Any], wait: Callable[[], Any], budget: float = 1.0) -> float:
    """The shortest time of a call: a roof is what is possible, not what is typical."""
    found: list[float] = []
    started = time.perf_counter()
    while len(found) < 4 or (time.perf_counter() - started < budget and len(found) < 100):
        start = time.perf_counter()
        work()
        wait()
        found.append(time.perf_counter() - start)
    return min(found[1:])


def _openvino(n: int, precisions: Sequence[str], threads: int | None) -> dict[str, float]:
    """Seconds of a matrix product by OpenVINO, the second factor constant like a layer's weights."""
    import numpy as np

    ov: Any = importlib.import_module("openvino")
    ops: Any = importlib.import_module("openvino.opset13")

    a, b = np.random.default_rng(0).random((2, n, n), np.float32)
    left = ops.parameter([n, n], np.float32)
    model = ov.Model([ops.matmul(left, ops.constant(b), False, False)], [left])
    found = {}
    for precision in precisions:
        settings = {"INFERENCE_PRECISION_HINT": {"fp32": "f32"}.get(precision, precision)}
        if threads:
            settings["INFERENCE_NUM_THREADS"] = str(threads)
        request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
        found[precision] = _seconds(
            lambda r=request: r.infer([a], share_inputs=True, share_outputs=True), int
        )
    return found
