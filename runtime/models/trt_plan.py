"""A TensorRT plan on disk: `NAME.plan`, and beside it `NAME.plan.json`, which describes it.

The sidecar holds the model card and what the plan depends on: TensorRT version, GPU, profiles. It is written
last, so a plan that has one is complete. `NAME.rtx.plan` is a plan of TensorRT for RTX: for every RTX card,
and built without one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import RunError
from ..system.files import atomic, refuse_foreign
from .card import CardError, ModelCard

BatchShape = tuple[int, int, int]
Hardware = Literal["same", "ampere", "rtx"]
Weights = Literal["fixed", "refittable"]


TENSORRT = "tensorrt", "trt"  # module, and the extra that brings it
RTX = "tensorrt_rtx_bindings", "trt-rtx"
RTX_CARDS = ("7.5", "8.0", "8.6", "8.9", "12.0", "12.1")  # compute capabilities of TensorRT for RTX


@dataclass(frozen=True)
class Profile:
    """Input sizes (N, H, W) of an execution context: smallest, the one it is tuned for, largest."""

    min: BatchShape
    opt: BatchShape
    max: BatchShape


@dataclass(frozen=True)
class PlanCard:
    """The card of a plan: the model, the machine it runs on, and its source.

    sha256: of the plan. onnx, onnx_sha256: file name and hash of the model with its weights.
    structure: hash of that graph without its weights: plans of equal structure can exchange weights.
    tensorrt, cuda, gpu, capability: versions, device name and compute capability at build; for TensorRT for
        RTX only that library's version, without a device.
    profiles: one for each execution context that may be in flight; all are equal.
    hardware: GPUs that it is made for: the "same" as at build, "ampere" and newer, or every "rtx" card.
    weights: "fixed" or "refittable". remark: what a user must know before trusting it.
    """

    card: ModelCard
    sha256: str
    onnx: str
    onnx_sha256: str
    structure: str
    tensorrt: str
    cuda: str
    gpu: str
    capability: str
    profiles: tuple[Profile, ...]
    version_compatible: bool
    hardware: Hardware
    weights: Weights
    level: int
    remark: str = ""

    @property
    def library(self) -> tuple[str, str]:
        """The module that runs it, and the extra that brings it."""
        return RTX if self.hardware == "rtx" else TENSORRT

    def check_host(self, path: Path, tensorrt: str, capability: str) -> None:
        """Raise RunError if this TensorRT version or GPU cannot run the plan."""
        option = " --rtx" if self.hardware == "rtx" else ""
        again = f"build it here with `udean-export --from {self.onnx}{option}`."
        if not self.version_compatible and _release(tensorrt) != _release(self.tensorrt):
            raise RunError(f"{path} was built by TensorRT {self.tensorrt} and this is {tensorrt}: {again}")
        if self.hardware == "rtx":
            if capability not in RTX_CARDS:
                raise RunError(
                    f"{path} runs on RTX cards, of compute capability {', '.join(RTX_CARDS)}, and this GPU "
                    f"has {capability}: build a plan for it with `udean-export --from {self.onnx}`."
                )
            return
        ours, theirs = (tuple(map(int, c.split("."))) for c in (capability, self.capability))
        fits = ours >= (8, 0) if self.hardware == "ampere" else ours == theirs
        if not fits:
            raise RunError(
                f"{path} was built for {self.gpu} (compute capability {self.capability}) and this GPU has "
                f"{capability}: {again}"
            )


def sidecar(plan: Path) -> Path:
    """The path of a plan's card."""
    return plan.with_name(plan.name + ".json")


def write_plan(path: Path, contents: bytes, card: PlanCard) -> None:
    """Write a plan and then its sidecar; the old sidecar is removed first, so that pairs are never mixed."""
    try:
        sidecar(path).unlink(missing_ok=True)
    except OSError as error:
        raise RunError(f"Cannot replace {sidecar(path)}: {error.strerror}.") from error
    with atomic(path) as file:
        file.write(contents)
    fields = dataclasses.asdict(card) | {"card": json.loads(card.card.to_json())}
    with atomic(sidecar(path)) as file:
        file.write((json.dumps(fields, indent=2) + "\n").encode())


def refuse_foreign_plan(path: Path) -> None:
    """Raise RunError if a plan, or its sidecar, would replace what udean has not made."""
    refuse_foreign(sidecar(path), '"onnx_sha256"')
    if os.path.lexists(path) and not sidecar(path).is_file():
        raise RunError(f"{path} already exists and has no sidecar: move it, or choose another place.")


def read_card(path: Path) -> PlanCard:
    """The card beside a plan. Raises RunError or CardError if there is none."""
    try:
        fields = json.loads(sidecar(path).read_bytes())
        fields["card"] = ModelCard.from_json(json.dumps(fields["card"]), str(sidecar(path)))
        fields["profiles"] = tuple(
            Profile(**{name: tuple(size) for name, size in profile.items()}) for profile in fields["profiles"]
        )
        return PlanCard(**fields)
    except FileNotFoundError:
        raise RunError(
            f"{path} has no sidecar {sidecar(path).name}: `udean-export --trt` writes both."
        ) from None
    except CardError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise RunError(f"{sidecar(path)} is not a plan's sidecar: {error}.") from None


def read_plan(path: Path) -> tuple[bytes, PlanCard]:
    """A plan's bytes, checked against the hash in its sidecar, and its card."""
    card = read_card(path)
    try:
        contents = path.read_bytes()
    except OSError as error:
        raise RunError(f"Cannot read {path}: {error.strerror}.") from error
    if hashlib.sha256(contents).hexdigest() != card.sha256:
        raise RunError(f"{path} and {sidecar(path).name} do not belong together: build the plan again.")
    return contents, card


def deserialize(trt: Any, log: Any, contents: bytes, card: PlanCard, path: Path, capability: str) -> Any:
    """The `ICudaEngine` of a plan.

    trt: the tensorrt module. log: `logger(trt)`. path: of the plan, for errors. capability: this GPU's, such
    as "9.0". Raises RunError.
    """
    card.check_host(path, trt.__version__, capability)
    runtime = trt.Runtime(log)
    if card.version_compatible:  # such a plan contains its own runtime's code
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(contents)
    if engine is None:
        raise RunError(f"TensorRT {trt.__version__} cannot load {path}: {log.reason()}")
    return engine


def refit(trt: Any, log: Any, engine: Any, onnx: bytes, path: Path) -> None:
    """Give an engine the weights of an ONNX model of the same structure. Raises RunError."""
    refitter = trt.Refitter(engine, log)
    parser = trt.OnnxParserRefitter(refitter, log)
    if not parser.refit_from_bytes(onnx) or not refitter.refit_cuda_engine():
        raise RunError(f"{path} cannot take the weights of the model: {log.reason()}")


def logger(trt: Any) -> Any:
    """A TensorRT logger that keeps its `messages`, (severity name, text), and gives a `reason()`."""

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)  # the binding needs its own, not super()
            self.messages: list[tuple[str, str]] = []
            self.told = 0

        def log(self, severity: Any, msg: str) -> None:
            self.messages.append((severity.name, msg))

        def forget(self) -> None:
            """Forget earlier messages: they do not explain what comes next."""
            self.told = len(self.messages)

        def reason(self) -> str:
            """The first error since the last call, which names the cause, in one line."""
            new = self.messages[self.told :]
            self.forget()
            errors = (text for name, text in new if name in ("ERROR", "INTERNAL_ERROR"))
            return next(errors, "it gives no reason; see the log with --debug").splitlines()[0]

    return Log()


def _release(version: str) -> tuple[str, ...]:
    """Major, minor and patch; a plan does not run under any other release."""
    return tuple(version.split(".")[:3])
