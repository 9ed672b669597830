"""Opening engines: trained networks that turn LR windows into HR windows, by whichever library runs them.

`open_engine` chooses by the model file's kind and by what is installed. An engine's library is imported
in that engine's file when it is opened, so that the runtime itself needs none of them.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ..cuda.engine import CudaEngine
from ..errors import RunError
from ..models.kind import model_kind
from ..pipeline.engine import Engine, EngineRequest, Library, Precision
from ..system.files import sha256
from .other_accelerators import ACCELERATORS, open_accelerated

if TYPE_CHECKING:
    from ..cuda.device import Gpu

EMBEDDED = "embedded"


def open_engine(
    path: str | Path | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    threads: int | None = None,
    library: Library = "auto",
    embedded: str = "default",
) -> Engine:
    """Load a model for the processor.

    Parameters
    ----------
    path
        An `.onnx` file or a checkpoint; None for a model embedded in this package.
    device
        "auto" or "cpu"; for an `.onnx` also one of `ACCELERATORS`.
    precision
        Of the arithmetic; "auto" is bf16 for OpenVINO if the processor supports it, else the model's
        precision.
    threads
        CPU threads of the network; by default one for each core that this process may use.
    library
        Which one runs an `.onnx`; "auto" takes OpenVINO if it is installed, else ONNX Runtime.
    embedded
        Which of the embedded models, "default" or "through-plane".

    Returns
    -------
    Engine
        LR windows (N, slab, H, W), float32, to HR windows (N, slab·s, s·H, s·W).

    Raises
    ------
    RunError
        With what the user can do; CardError, a kind of it, for a model without a card.
    """
    if device not in ("auto", "cpu", *ACCELERATORS):
        raise RunError(f"Device '{device}' is not one of auto, cpu, {', '.join(ACCELERATORS)}.")
    for value, choices in ((precision, Precision), (library, Library)):
        if not isinstance(value, str) or value not in get_args(choices):
            raise RunError(f"'{value}' is not one of {', '.join(get_args(choices))}.")
    if threads is not None and threads < 1:
        raise RunError(f"The number of threads must be at least 1, not {threads}.")
    with model_file(path, embedded) as (file, name):
        request = EngineRequest(file, name, sha256(file), precision, threads)
        kind = model_kind(file)
        if device in ACCELERATORS:
            if kind != "onnx":
                raise RunError(f"Device {device} runs .onnx files, not {file}: udean-export makes one.")
            return open_accelerated(request, device)
        if kind == "checkpoint":
            from .torch import TorchEngine

            return TorchEngine(request)
        if kind != "onnx":
            raise RunError(
                f"{file} is not a model that can be run: give an .onnx file or a checkpoint (.pt)."
            )
        if library == "openvino" or (library == "auto" and importlib.util.find_spec("openvino")):
            from .openvino import OpenVinoEngine

            return OpenVinoEngine(request)
        from .onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(request)


def choose_engine(
    path: Path | None, device: str, precision: Precision, threads: int | None, library: Library
) -> Engine | CudaEngine:
    """Open a model on a device.

    Parameters
    ----------
    path
        A `.plan`, an `.onnx` or a checkpoint; None: the embedded model.
    device
        "auto", "cpu", "cuda", "cuda:N" or one of `ACCELERATORS`. "auto" takes the GPU for a plan, and for
        other models if PyCUDA and the model's own library can use one.
    precision, threads, library
        See `open_engine`.

    Returns
    -------
    Engine or CudaEngine
        For the processor or an accelerator, or for a GPU.

    Raises
    ------
    GpuError
        If a requested GPU is missing or fails.
    RunError
        As `open_engine`.
    """
    name, _, number = device.partition(":")
    known = ("auto", "cpu", "cuda", *ACCELERATORS)
    if name not in known or (number and (name != "cuda" or not number.isdecimal())):
        raise RunError(f"Device '{device}' is not one of {', '.join((*known, 'cuda:N'))}.")
    if name in ACCELERATORS:
        return open_engine(path, name, precision, threads, library)
    plan = model_kind(path) == "plan"
    if plan and name == "cpu":
        raise RunError(f"{path} is a TensorRT plan and runs on a GPU only: give the .onnx file instead.")
    if name == "cpu" or (name == "auto" and not plan and why_no_gpu(path)):
        return open_engine(path, "cpu", precision, threads, library)
    if library == "openvino":
        raise RunError("OpenVINO runs on the processor here: leave out --device, or --library.")
    from ..cuda.device import Gpu, GpuError, OutOfMemory

    gpu = Gpu(int(number or 0))
    try:
        with gpu.current():
            return _open_on(gpu, path, precision)
    except OutOfMemory as error:
        raise GpuError(
            f"{gpu.name} does not have enough memory for the model ({error}): free some, or continue with "
            "--fallback cpu."
        ) from error


def _open_on(gpu: Gpu, path: Path | None, precision: Precision) -> CudaEngine:
    with model_file(path) as (file, name):
        request = EngineRequest(file, name, sha256(file), precision)
        kind = model_kind(file)
        if kind == "plan":
            from .tensorrt import TensorRtEngine

            return TensorRtEngine(request, gpu)
        if kind == "checkpoint":
            from .torch_cuda import TorchCudaEngine

            return TorchCudaEngine(request, gpu)
        from .onnxruntime_cuda import OnnxRuntimeCudaEngine

        return OnnxRuntimeCudaEngine(request, gpu)


def cpu_model(path: Path | None) -> Path | None:
    """The file that the processor can run instead: for a plan, the ONNX file that it was built from."""
    if path is None or model_kind(path) != "plan":
        return path
    from ..models.trt_plan import read_card

    return path.with_name(read_card(path).onnx)


def why_no_gpu(path: Path | None) -> str:
    """Why this model would not run on a GPU here; empty if it would."""
    from ..cuda.device import Gpu, is_reachable

    if not is_reachable():
        return "PyCUDA is not installed"
    try:
        Gpu()  # asks the driver, before a library is imported that would be of no use
        if model_kind(path) == "checkpoint":
            if not importlib.import_module("torch").cuda.is_available():
                return "PyTorch finds no GPU"
        elif "CUDAExecutionProvider" not in importlib.import_module("onnxruntime").get_available_providers():
            return "the installed ONNX Runtime is the one for processors"
    except ImportError as error:
        return f"{error.name} cannot be imported"
    except RunError as error:
        return str(error)
    return ""


@contextlib.contextmanager
def model_file(path: str | Path | None, embedded: str = "default") -> Iterator[tuple[Path, str]]:
    """The model's file and its name; default: the embedded one, unpacked if the package is an archive."""
    if path is not None:
        file = Path(path)
        if not file.is_file():
            raise RunError(f"The model {file} {'is not a file' if file.exists() else 'does not exist'}.")
        yield file, file.name
        return
    resource = files("udean.runtime") / "models" / f"{embedded}.onnx"
    if not resource.is_file():
        raise RunError("This installation contains no embedded model: name one with --engine.")
    with as_file(resource) as file:
        yield file, EMBEDDED if embedded == "default" else f"{EMBEDDED} {embedded}"
