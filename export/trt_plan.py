"""TensorRT plans as files: build one on this GPU or renew its weights, measure it, write it with its card."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import re
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from ..runtime.cuda.device import Gpu
from ..runtime.errors import RunError
from ..runtime.models.card import ModelCard
from ..runtime.models.trt_plan import PlanCard, Profile, deserialize, logger, read_plan, refit, write_plan
from ..runtime.system.extras import require
from ..runtime.system.files import atomic, cache_folder
from . import graph, parity, verify
from .artefacts import Artefact
from .errors import ExportError
from .gpu import CudaNetwork, builder_gpu, cuda_engine, cuda_version
from .trt_build import BuildOptions, build, layer_report

Window = tuple[int, int]
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)


@dataclass(frozen=True)
class Sizes:
    """Input sizes of a dynamic graph: batches and windows (rows, columns), each least, usual and largest.

    windows: None for the training window. streams: batches in flight, each with a profile of its own.
    """

    batches: tuple[int, int, int] = (1, 8, 16)
    windows: tuple[Window, Window, Window] | None = None
    streams: int = 2


@dataclass(frozen=True)
class Source:
    """The ONNX model that a plan is made of. path: its file."""

    path: Path
    contents: bytes
    model: onnx.ModelProto
    card: ModelCard


def check_host() -> None:
    """Raise RunError or ExportError, with what to install, where no plan can be built."""
    require("tensorrt", "trt")
    builder_gpu()


def build_plan(
    path: Path,
    folder: Path,
    sizes: Sizes,
    options: BuildOptions,
    layers: Path | None = None,
    against: Path | None = None,
    debug: bool = False,
) -> Artefact:
    """Write NAME.plan and NAME.plan.json into the folder, from NAME.onnx or NAME.fp16.onnx.

    sizes: of no account where the graph's are fixed. With refittable weights, a plan that already lies
    there and differs in nothing else only gets new weights. layers: file for the layer report. against:
    float32 model for parity, found beside the ONNX file by default. debug: print TensorRT's whole log.
    Raises ExportError or RunError; then nothing is written.
    """
    trt: Any = require("tensorrt", "trt")
    source = _source(path)
    target = folder / f"{verify.base_name(path)}.plan"
    if options.weights == "stripped" and folder.resolve() != path.parent.resolve():
        raise ExportError(f"A plan without weights has to lie beside {path}, which holds them: leave out -o.")
    gpu, log = builder_gpu(), logger(trt)
    profiles = _profiles(source, sizes)
    describe = functools.partial(_plan_card, trt, source, profiles, options, gpu)
    try:
        with gpu.current():
            renewed = _renew(trt, log, source, target, describe, gpu)
            contents = renewed or _build(trt, log, source, profiles, options, gpu)
            card = describe(contents)
            report = b""
            if layers:
                engine = deserialize(trt, log, contents, card, target, gpu.capability)
                report = layer_report(trt, engine).encode()
    finally:
        if debug:
            print(*(f"[{name}] {text}" for name, text in log.messages), sep="\n", file=sys.stderr)
    model = verify.reference(path, source.card, against, last=path)
    found = {"tensorrt": _measure(contents, card, source, model, target)}
    own = source.card.replace(parity=source.card.parity | parity.figures(found))
    write_plan(target, contents, dataclasses.replace(card, card=own))
    if layers:
        with atomic(layers) as file:
            file.write(report)
    how = "new weights in the plan that was there" if renewed else "built"
    return Artefact(target, own, found, f"{how} for {gpu.name}, held to {model.file.name}")


def _measure(
    contents: bytes, card: PlanCard, source: Source, model: verify.Reference, target: Path
) -> dict[str, parity.Deviation]:
    """Deviations of a plan that is not yet at its target, run as it will be; ExportError beyond limits."""
    windows = parity.probe_windows(card.card, verify.sizes(card.profiles[0]))
    expected = parity.run(model.network, windows)
    with tempfile.TemporaryDirectory(prefix="udean-") as scratch:
        trial = Path(scratch) / target.name
        trial.with_name(card.onnx).write_bytes(source.contents)  # where stripped weights are looked for
        write_plan(trial, contents, card)
        try:
            found = parity.measure(CudaNetwork(cuda_engine(trial)), windows, expected)
        except RunError as error:
            raise ExportError(str(error).replace(str(trial), str(target))) from None
    parity.enforce(found, card.card.precision, "TensorRT")
    return found


def _source(path: Path) -> Source:
    model, card = graph.read(path)
    if card.precision == "int8":
        raise ExportError(f"{path} is an int8 model for CPU engines: build from the fp16 model.")
    return Source(path, path.read_bytes(), model, card)


def _build(
    trt: Any, log: Any, source: Source, profiles: tuple[Profile, ...], options: BuildOptions, gpu: Gpu
) -> bytes:
    """Build anew, with the timings that earlier builds on this GPU and version have left."""
    cache = timing_cache(gpu, trt.__version__)
    timings = cache.read_bytes() if cache.is_file() else b""
    fixed = graph.fixed_size(source.model) is not None
    slab = source.card.slab[0]
    built = build(trt, log, source.contents, slab, () if fixed else profiles, options, timings)
    with contextlib.suppress(RunError), atomic(cache) as file:  # without it the next build takes longer
        file.write(built.timings)
    return built.plan


def _renew(
    trt: Any, log: Any, source: Source, target: Path, describe: Callable[[bytes], PlanCard], gpu: Gpu
) -> bytes | None:
    """The plan that lies at target with the weights of the source, None where it has to be built."""
    try:
        contents, old = read_plan(target)
        new = dataclasses.replace(describe(contents), card=old.card, onnx_sha256=old.onnx_sha256)
        if old.weights != "refittable" or new != old:
            return None
        engine = deserialize(trt, log, contents, old, target, gpu.capability)
        refit(trt, log, engine, source.contents, target)
    except RunError:  # there is none, or it does not take them
        return None
    config = engine.create_serialization_config()
    config.set_flag(trt.SerializationFlag.INCLUDE_REFIT)
    return bytes(engine.serialize_with_config(config))


def _profiles(source: Source, sizes: Sizes) -> tuple[Profile, ...]:
    fixed = graph.fixed_size(source.model)
    if fixed:
        return (Profile(fixed, fixed, fixed),)
    windows = sizes.windows or (source.card.window,) * 3
    return (Profile(*((n, h, w) for n, (h, w) in zip(sizes.batches, windows, strict=True))),) * sizes.streams


def _plan_card(
    trt: Any,
    source: Source,
    profiles: tuple[Profile, ...],
    options: BuildOptions,
    gpu: Gpu,
    contents: bytes,
) -> PlanCard:
    return PlanCard(
        card=source.card,
        sha256=hashlib.sha256(contents).hexdigest(),
        onnx=source.path.name,
        onnx_sha256=hashlib.sha256(source.contents).hexdigest(),
        structure=structure(source.model),
        tensorrt=trt.__version__,
        cuda=cuda_version(gpu),
        gpu=gpu.name,
        capability=gpu.capability,
        profiles=profiles,
        version_compatible=options.version_compatible,
        hardware=options.hardware,
        weights=options.weights,
        level=options.level,
    )


def structure(model: onnx.ModelProto) -> str:
    """A hash of the graph without the values of its weights and without its card."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.metadata_props[:]
    for tensor in bare.graph.initializer:
        if tensor.data_type in FLOATS:
            tensor.ClearField("raw_data")
    return hashlib.sha256(bare.SerializeToString(deterministic=True)).hexdigest()


def timing_cache(gpu: Gpu, tensorrt: str) -> Path:
    """Where this GPU's and version's timings are kept, in the user's cache folder."""
    name = re.sub(r"[^a-z0-9]+", "-", f"{gpu.name} {gpu.capability} tensorrt {tensorrt}".lower())
    return cache_folder() / f"{name}.timings"
