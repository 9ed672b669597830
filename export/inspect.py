"""Describe a model file in lines of text: its card, inputs, sizes, and what it is made of."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..runtime.models.card import ModelCard
from ..runtime.models.kind import model_kind
from ..runtime.models.trt_plan import RTX_CARDS, Profile, read_plan
from .errors import ExportError

Line = tuple[str, str]


def model_lines(path: Path) -> Iterator[Line]:
    """(name, value) lines about a checkpoint, an .onnx or a .plan; no GPU and no TensorRT is needed.

    Raises ExportError, RunError or CheckpointError if the file is not one of these.
    """
    kind = model_kind(path)
    if kind == "checkpoint":
        yield from _checkpoint(path)
    elif kind == "onnx":
        yield from _onnx(path)
    elif kind == "plan":
        yield from _plan(path)
    else:
        raise ExportError(f"{path} is not a model: inspect takes a checkpoint (.pt), an .onnx or a .plan.")


def _checkpoint(path: Path) -> Iterator[Line]:
    from ..trainer.checkpoint import load, load_generator

    network, card = load_generator(path)
    contents = load(path)
    yield from _card(card, path)
    yield "architecture", _fields(contents["architecture"])
    layers = collections.Counter(type(m).__name__ for m in network.modules() if not list(m.children()))
    yield "layers", _counts(layers)
    yield "besides", "what --resume needs" if contents["training"] else "nothing"


def _onnx(path: Path) -> Iterator[Line]:
    from . import graph

    model, card = graph.read(path)
    yield from _card(card, path)
    for kind, tensors in (("input", model.graph.input), ("output", model.graph.output)):
        for tensor in tensors:
            dims = (d.dim_param or d.dim_value for d in tensor.type.tensor_type.shape.dim)
            dtype = graph.type_name(tensor.type.tensor_type.elem_type)
            yield kind, f"{tensor.name} ({', '.join(map(str, dims))}) {dtype}"
    yield "operators", _counts(collections.Counter(node.op_type for node in model.graph.node))
    values = collections.Counter[str]()
    for tensor in model.graph.initializer:
        values[graph.type_name(tensor.data_type)] += math.prod(tensor.dims)
    yield "values", _counts(values)
    yield "opset", ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import)


def _plan(path: Path) -> Iterator[Line]:
    _, plan = read_plan(path)
    yield from _card(plan.card, path)
    if plan.hardware == "rtx":
        yield "built by", f"TensorRT for RTX {plan.tensorrt}, optimization level {plan.level}"
    else:
        yield "built by", f"TensorRT {plan.tensorrt}, CUDA {plan.cuda}, optimization level {plan.level}"
        yield "built for", f"{plan.gpu}, compute capability {plan.capability}"
    if plan.remark:
        yield "remark", plan.remark
    gpus = {
        "same": "GPUs of that kind",
        "ampere": "Ampere and newer",
        "rtx": f"RTX cards of compute capability {', '.join(RTX_CARDS)}",
    }
    versions = "later TensorRT versions too" if plan.version_compatible else "that TensorRT version"
    yield "runs on", f"{gpus[plan.hardware]}, {versions}"
    yield "weights", plan.weights
    for index, profile in enumerate(plan.profiles):
        yield f"profile {index}", _profile(profile)
    yield "made from", plan.onnx


def _card(card: ModelCard, path: Path) -> Iterator[Line]:
    yield "file", f"{path}, {path.stat().st_size / 1e6:.2f} MB"
    for field in dataclasses.fields(card):
        value: Any = getattr(card, field.name)
        if isinstance(value, dict):
            for name, entry in value.items():
                yield f"{field.name} {name}", _fields(entry) if isinstance(entry, dict) else f"{entry:g}"
        elif isinstance(value, tuple):
            yield (
                field.name,
                "×".join(map(str, value)) if field.name != "slab" else f"{value[0]} → {value[1]}",
            )
        elif value != "":
            yield field.name.replace("_", " "), str(value)


def _profile(profile: Profile) -> str:
    return " … ".join("×".join(map(str, size)) for size in (profile.min, profile.opt, profile.max))


def _fields(fields: dict[str, Any]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in fields.items()
    )


def _counts(counts: collections.Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())
