"""TensorRT plans as files: build one on this GPU or renew its weights, measure it, write it with its card.

A plan of TensorRT for RTX is built for all RTX cards at once, without a GPU; so nothing is measured, and its
sidecar says that it has not run on any card.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from ..runtime.cuda.device import Gpu
from ..runtime.errors import RunError
from ..runtime.models.card import ModelCard
from ..runtime.models.trt_plan import (
    RTX,
    RTX_CARDS,
    TENSORRT,
    PlanCard,
    Profile,
    deserialize,
    logger,
    read_plan,
    refit,
    refuse_foreign_plan,
    write_plan,
)
from ..runtime.system.extras import require
from ..runtime.system.files import atomic, cache_folder
from . import graph, parity, verify
from .artefacts import Artefact
from .errors import ExportError
from .gpu import CudaNetwork, builder_gpu, cuda_engine, cuda_version
from .trt_build import BuildOptions, build

WindowSize = tuple[int, int]
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


@dataclass(frozen=True)
class Sizes:
    """Input sizes of a dynamic graph, each as least, usual and largest.

    Parameters
    ----------
    batches
        Numbers of windows in a call.
    windows
        (rows, columns) in LR voxels; None: the training window.
    streams
        Batches in flight, each with a profile of its own.
    """

    batches: tuple[int, int, int] = (1, 8, 16)
    windows: tuple[WindowSize, WindowSize, WindowSize] | None = None
    streams: int = 2


def check_host(rtx: bool = False) -> None:
    """Raise RunError or ExportError, with what to install, if no plan can be built."""
    require(*(RTX if rtx else TENSORRT))
    if not rtx:
        builder_gpu()


def build_plan(
    path: Path,
    folder: Path,
    sizes: Sizes,
    options: BuildOptions,
    against: Path | None = None,
    debug: bool = False,
) -> Artefact:
    """Write NAME.plan and NAME.plan.json into the folder, from NAME.onnx or NAME.fp16.onnx.

    With refittable weights, an existing plan that differs in nothing else only gets new weights.

    Parameters
    ----------
    path
        The ONNX file; its precision is the plan's.
    sizes
        Windows and batches that the plan accepts; ignored for a graph with a fixed input size.
    options
        `hardware` "rtx" writes NAME.rtx.plan, by TensorRT for RTX, on any machine.
    against
        The float32 model to compare the plan with; by default found beside the ONNX file.
    debug
        Print TensorRT's whole log.

    Returns
    -------
    Artefact
        The plan, its card and its deviation from the float32 network.

    Raises
    ------
    ExportError, RunError
        If no plan can be built; nothing has been written.
    """
    rtx = options.hardware == "rtx"
    trt: Any = require(*(RTX if rtx else TENSORRT))
    builder = Builder(trt, logger(trt), None if rtx else builder_gpu(), _source(path), sizes, options)
    target = folder / f"{verify.base_name(path)}{'.rtx' if rtx else ''}.plan"
    refuse_foreign_plan(target)
    try:
        with builder.gpu.current() if builder.gpu else contextlib.nullcontext():
            renewed = builder.renew(target)
            contents = renewed or builder.build()
            card = builder.card(contents)
    finally:
        if debug:
            print(*(f"[{name}] {text}" for name, text in builder.log.messages), sep="\n", file=sys.stderr)
    if builder.gpu is None:
        write_plan(target, contents, card)
        return Artefact(
            target, card.card, {}, f"{card.remark}; for compute capability {', '.join(RTX_CARDS)}"
        )
    model = verify.float32_source(path, builder.source.card, against, last=path)
    found = {"tensorrt": _measure(contents, card, model, target)}
    own = card.card.replace(parity=card.card.parity | parity.card_entries(found))
    write_plan(target, contents, dataclasses.replace(card, card=own))
    how = "new weights in the existing plan" if renewed else "built"
    return Artefact(target, own, found, f"{how} for {builder.gpu.name}, compared with {model.file.name}")


@dataclass(frozen=True)
class Source:
    """The ONNX model that a plan is made from. path: its file."""

    path: Path
    contents: bytes
    model: onnx.ModelProto
    card: ModelCard


@dataclass(frozen=True)
class Builder:
    """Makes a plan's bytes and card.

    Parameters
    ----------
    trt
        The tensorrt module.
    log
        `runtime.models.trt_plan.logger(trt)`.
    gpu
        The GPU to build on; None for TensorRT for RTX without one.
    source
        The ONNX model.
    sizes, options
        Input sizes of the plan, and how to build it.
    """

    trt: Any
    log: Any
    gpu: Gpu | None
    source: Source
    sizes: Sizes
    options: BuildOptions

    @property
    def profiles(self) -> tuple[Profile, ...]:
        windows = self.sizes.windows or (self.source.card.window,) * 3
        sizes = ((n, h, w) for n, (h, w) in zip(self.sizes.batches, windows, strict=True))
        return (Profile(*sizes),) * self.sizes.streams

    @property
    def timings(self) -> Path:
        """The file for this GPU's and version's timings, in the user's cache folder."""
        gpu = f"{self.gpu.name} {self.gpu.capability} tensorrt" if self.gpu else "tensorrt rtx"
        name = re.sub(r"[^a-z0-9]+", "-", f"{gpu} {self.trt.__version__}".lower())
        return cache_folder() / f"{name}.timings"

    def build(self) -> bytes:
        """Build from scratch, with the timings of earlier builds on this GPU and version."""
        old = self.timings.read_bytes() if self.timings.is_file() else b""
        slab = self.source.card.slab[0]
        built = build(self.trt, self.log, self.source.contents, slab, self.profiles, self.options, old)
        with contextlib.suppress(RunError), atomic(self.timings) as file:  # else the next build takes longer
            file.write(built.timings)
        return built.plan

    def renew(self, target: Path) -> bytes | None:
        """The existing plan at `target` with the weights of the source; None if it has to be built."""
        if self.gpu is None or self.options.weights != "refittable":
            return None
        try:
            contents, old = read_plan(target)
            if dataclasses.replace(self.card(contents), card=old.card, onnx_sha256=old.onnx_sha256) != old:
                return None
            engine = deserialize(self.trt, self.log, contents, old, target, self.gpu.capability)
            refit(self.trt, self.log, engine, self.source.contents, target)
        except RunError:  # no plan, or one that does not accept the weights
            return None
        config = engine.create_serialization_config()
        config.set_flag(self.trt.SerializationFlag.INCLUDE_REFIT)
        return bytes(engine.serialize_with_config(config))

    def card(self, contents: bytes) -> PlanCard:
        gpu, source, options = self.gpu, self.source, self.options
        return PlanCard(
            card=source.card,
            sha256=hashlib.sha256(contents).hexdigest(),
            onnx=source.path.name,
            onnx_sha256=hashlib.sha256(source.contents).hexdigest(),
            structure=structure(source.model),
            tensorrt=self.trt.__version__,
            cuda=cuda_version(gpu) if gpu else "",
            gpu=gpu.name if gpu else "",
            capability=gpu.capability if gpu else "",
            profiles=self.profiles,
            version_compatible=options.version_compatible,
            hardware=options.hardware,
            weights=options.weights,
            level=options.level,
            remark="" if gpu else "experimental: built without a GPU, not yet run on any",
        )


def _measure(
    contents: bytes, card: PlanCard, model: verify.Reference, target: Path
) -> dict[str, parity.Deviation]:
    """Deviations of a plan before it is moved to its target; ExportError beyond limits."""
    windows = parity.probe_windows(card.card, verify.sizes(card.profiles[0]))
    expected = parity.run(model.network, windows)
    with tempfile.TemporaryDirectory(prefix="udean-") as scratch:
        trial = Path(scratch) / target.name
        write_plan(trial, contents, card)
        try:
            found = parity.deviations(CudaNetwork(cuda_engine(trial)), windows, expected)
        except RunError as error:
            raise ExportError(str(error).replace(str(trial), str(target))) from None
    parity.enforce(found, card.card.precision, "TensorRT")
    return found


def _source(path: Path) -> Source:
    model, card = graph.read(path)
    if card.precision == "int8":
        raise ExportError(f"{path} is an int8 model for CPU engines: build from the fp16 model.")
    return Source(path, path.read_bytes(), model, card)


def structure(model: onnx.ModelProto) -> str:
    """A hash of the graph without the values of its weights and without its card."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    for tensor in bare.graph.initializer:
        if tensor.data_type in FLOATS:
            tensor.ClearField("raw_data")
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()
