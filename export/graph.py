"""From a network to an ONNX file: one self-contained, deterministic, self-describing file.

The graph holds the LR encoder and the SR decoder and nothing else. Its precision is written in it: every
tensor has the type in which it is computed, so engines need no flags. No external data, no stack traces.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx
from google.protobuf.message import DecodeError, Message

from ..runtime.errors import RunError, first_line
from ..runtime.models.card import METADATA_KEY, ModelCard
from ..runtime.system.files import atomic
from .errors import ExportError

if TYPE_CHECKING:
    from ..trainer.nets.generators import SuperResolution
    from ..trainer.nets.through_plane import ThroughPlane

# The opset that PyTorch's exporter writes natively; any other passes through a version converter.
# It has all that the network needs; ONNX Runtime since 1.14 and TensorRT since 10.0 (opsets 9-20) read it.
OPSET = 18


def to_onnx(network: SuperResolution | ThroughPlane, slab: int, *, half: bool) -> onnx.ModelProto:
    """Export a network as a checked ONNX graph, `lr` (N, slab, H, W) to `sr`.

    Parameters
    ----------
    network
        The module to export; it is not changed.
    slab
        LR slices (channels) of the input.
    half
        float16 weights, activations, input and output, with the float32 islands that the network has.

    Returns
    -------
    onnx.ModelProto
        N, H and W are dynamic.
    """
    import torch

    network = copy.deepcopy(network).eval()
    network = network.half() if half else network.float()
    # Batch 2 and unequal sides: the exporter treats a 1 as a constant, and equal sizes as one symbol.
    example = torch.zeros(2, slab, 32, 40, dtype=torch.float16 if half else torch.float32)
    with warnings.catch_warnings(), _quiet("torch.onnx"):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            input_names=["lr"],
            output_names=["sr"],
            dynamic_shapes=({0: "batch", 2: "rows", 3: "columns"},),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    _strip(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def serialize(model: onnx.ModelProto, card: ModelCard) -> bytes:
    """The model with its card as bytes; equal models and cards give equal bytes."""
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {METADATA_KEY: card.to_json()})
    return model.SerializeToString(deterministic=True)


def write(contents: bytes, path: Path) -> None:
    """Write a file atomically. Raises ExportError if the folder cannot be written to."""
    try:
        with atomic(path) as file:
            file.write(contents)
    except RunError as error:
        raise ExportError(f"{error} Choose another folder with -o.") from None


def read(path: Path) -> tuple[onnx.ModelProto, ModelCard]:
    """A model and its card. Raises ExportError or CardError if the file is not a model of this toolkit."""
    try:
        model = onnx.load(path)
    except FileNotFoundError:
        raise ExportError(f"There is no model {path}.") from None
    except OSError as error:
        raise ExportError(f"{path} cannot be read: {error.strerror}.") from None
    except DecodeError:
        raise ExportError(f"{path} is not an ONNX model, or damaged: export it again.") from None
    props = {p.key: p.value for p in model.metadata_props}
    card = ModelCard.from_json(props.get(METADATA_KEY, ""), str(path))
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    newest = onnx.defs.onnx_opset_version()
    if not OPSET <= opset <= newest:
        raise ExportError(
            f"{path} uses ONNX opset {opset}; this version of udean handles {OPSET} to {newest}: "
            "export the checkpoint again."
        )
    try:
        onnx.checker.check_model(model, full_check=True)
    except UnicodeDecodeError:  # the checker quotes damaged names
        raise ExportError(f"{path} is damaged: export it again.") from None
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(
            f"{path} is not a valid ONNX model ({first_line(error)}): export it again."
        ) from None
    ends = [(v.name, len(v.type.tensor_type.shape.dim)) for v in (*model.graph.input, *model.graph.output)]
    if ends != [("lr", 4), ("sr", 4)]:
        raise ExportError(f"{path} is not a udean model: it needs one input 'lr' and one output 'sr'.")
    if any(model.graph.input[0].type.tensor_type.shape.dim[axis].dim_value for axis in (0, 2, 3)):
        raise ExportError(f"{path} takes inputs of one size only: export the checkpoint again.")
    return model, card


def type_name(element: int) -> str:
    """ONNX's name of an element type, such as "float16" for 10."""
    return onnx.TensorProto.DataType.Name(element).lower()  # type: ignore[arg-type]


def _strip(message: Message) -> None:
    """Remove what the exporter records about its run: stack traces with local paths, Python names."""
    for field in ("metadata_props", "doc_string"):
        if field in message.DESCRIPTOR.fields_by_name:
            message.ClearField(field)
    for child in _children(message):
        _strip(child)


def _children(message: Message) -> Iterator[Message]:
    for field, value in message.ListFields():
        if field.message_type is not None:
            repeated: Any = value if field.is_repeated else (value,)
            yield from repeated


class _quiet:
    """Mute a logger except for errors: the exporter warns about libraries that we do not use."""

    def __init__(self, name: str) -> None:
        self.logger = logging.getLogger(name)

    def __enter__(self) -> None:
        self.level = self.logger.level
        self.logger.setLevel(logging.ERROR)

    def __exit__(self, *_: object) -> None:
        self.logger.setLevel(self.level)
