"""Everything that our TensorRT code needs from the bindings, against one version's real classes.

`test_contract` runs this file with pytest in a process of its own for each version of the bindings, and
names a folder with tiny.onnx and tiny.fp16.onnx in UDEAN_CONTRACT_MODELS.
"""

from __future__ import annotations

import gc
import inspect
import itertools
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import types
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorrt_bindings as trt
from udean.export import cli, trt_build, trt_plan
from udean.export.errors import ExportError
from udean.export.gpu import cuda_engine
from udean.export.trt_build import BuildOptions
from udean.export.verify import verify
from udean.runtime.engines.choose import open_engine
from udean.runtime.errors import RunError
from udean.runtime.models.trt_plan import logger, read_card, sidecar

sys.path.insert(0, str(Path(__file__).parent))
from doubles import Double, World, signatures

SIZES = trt_plan.Sizes(batches=(1, 2, 4), streams=2)
ERROR = trt.ILogger.Severity.ERROR


class Address(int):
    """Device memory as PyCUDA allocates it."""

    def free(self) -> None:
        pass


class Memory:
    """A GPU's memory in ours: arrays by address, as PyCUDA's driver hands them out."""

    def __init__(self) -> None:
        self.blocks: dict[int, bytearray] = {}
        self.addresses = itertools.count(1 << 20, 1 << 20)

    def alloc(self, size: int) -> Address:
        address = Address(next(self.addresses))
        self.blocks[address] = bytearray(size)
        return address


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder with tiny.onnx and tiny.fp16.onnx."""
    for model in Path(os.environ["UDEAN_CONTRACT_MODELS"]).glob("tiny*.onnx"):
        shutil.copy(model, tmp_path)
    return tmp_path


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, models: Path) -> Iterator[World]:
    """A machine with this TensorRT and a GPU: the doubles compute what the model says, by ONNX Runtime."""
    memory = Memory()
    network = open_engine(models / "tiny.fp16.onnx", library="onnxruntime")

    def build(builder: Double, _network: Any, config: Any) -> bytes:
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 2)
        monitor.phase_start("Tactics", "Building", 1)
        assert monitor.step_complete("Tactics", 0) is True
        monitor.phase_finish("Tactics")
        monitor.phase_finish("Building")
        return b"plan"

    def run(context: Double, stream_handle: int) -> bool:
        address = {
            name: address for name, address in world.asked("IExecutionContext.set_tensor_address")[-2:]
        }
        shape = world.asked("IExecutionContext.set_input_shape")[-1][1]
        lr = np.frombuffer(memory.blocks[address["lr"]], np.float16).reshape(shape)
        memory.blocks[address["sr"]][:] = network(lr.astype(np.float32)).astype(np.float16).tobytes()
        return True

    def shape_of(context: Double, name: str) -> tuple[int, ...]:
        n, _, h, w = world.asked("IExecutionContext.set_input_shape")[-1][1]
        return n, 6, 2 * h, 2 * w

    world = World(trt)
    world.answers = {
        "Builder.build_serialized_network": build,
        "ITimingCache.serialize": b"timings",
        "IExecutionContext.get_tensor_shape": shape_of,
        "IExecutionContext.execute_async_v3": run,
        "ICudaEngine.get_tensor_dtype": trt.DataType.HALF,
        "ICudaEngine.serialize_with_config": b"plan with other weights",
    }
    monkeypatch.setitem(sys.modules, "tensorrt", world.module())
    monkeypatch.setitem(sys.modules, "pycuda.driver", _pycuda(memory))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield world


def _pycuda(memory: Memory) -> types.ModuleType:
    context = types.SimpleNamespace(push=lambda: None, detach=lambda: None)
    device = types.SimpleNamespace(
        retain_primary_context=lambda: context, name=lambda: "Test GPU", compute_capability=lambda: (9, 0)
    )

    class Device:
        def __new__(cls, index: int) -> Any:
            return device

        @staticmethod
        def count() -> int:
            return 1

    def to_device(target: int, source: np.ndarray, stream: object) -> None:
        memory.blocks[target][:] = source.tobytes()

    def to_host(target: np.ndarray, source: int, stream: object) -> None:
        target[...] = np.frombuffer(memory.blocks[source], target.dtype).reshape(target.shape)

    driver = types.ModuleType("pycuda.driver")
    driver.__dict__.update(
        Error=RuntimeError,
        MemoryError=MemoryError,
        init=lambda: None,
        Device=Device,
        Context=types.SimpleNamespace(pop=lambda: None),
        get_driver_version=lambda: 13010,
        Stream=lambda: types.SimpleNamespace(handle=7, synchronize=lambda: None),
        mem_alloc=memory.alloc,
        memcpy_htod_async=to_device,
        memcpy_dtoh_async=to_host,
    )
    return driver


def build(models: Path, options: BuildOptions = BuildOptions(), **more: Any) -> trt_plan.Artefact:  # noqa: B008
    return trt_plan.build_plan(models / "tiny.fp16.onnx", models, SIZES, options, **more)


def test_a_plan_is_built_measured_and_written_with_its_card(world: World, models: Path) -> None:
    artefact = build(models)
    assert artefact.path.read_bytes() == b"plan"
    card = read_card(artefact.path)
    assert (card.tensorrt, card.gpu, card.capability, card.cuda) == (
        trt.__version__,
        "Test GPU",
        "9.0",
        "13.1",
    )
    assert card.card.parity["tensorrt/brain"]["psnr"] >= 60
    assert "onnxruntime-cpu/brain" in card.card.parity

    (flags,) = world.asked("Builder.create_network")
    assert flags == (1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED),)
    assert world.asked("IBuilderConfig.clear_flag") == [(trt.BuilderFlag.TF32,)]
    assert world.asked("IBuilderConfig.set_flag") == []
    sizes = ("lr", (1, 3, 16, 16), (2, 3, 16, 16), (4, 3, 16, 16))
    assert world.asked("IOptimizationProfile.set_shape") == [sizes, sizes]
    assert len(world.asked("IBuilderConfig.add_optimization_profile")) == len(card.profiles) == 2
    # the runtime's engine: two contexts, the second with the second profile, on the stream it is given
    assert len(world.asked("ICudaEngine.create_execution_context")) == 2
    assert world.asked("IExecutionContext.set_optimization_profile_async") == [(1, 7)]
    assert set(world.asked("IExecutionContext.execute_async_v3")) == {(7,)}
    assert dict(verify(artefact.path))["tensorrt"]["brain"].psnr >= 60


def test_the_command_builds_from_onnx_alone_and_inspect_tells_of_the_plan(
    world: World, models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["udean-export", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code
        return capsys.readouterr().out

    model, plan = str(models / "tiny.fp16.onnx"), str(models / "tiny.plan")
    sizes = ("--batches", "1:2:3", "--windows", "8x8:16x16:24x20", "--streams", "3")
    out = run("--from", model, *sizes, "--optimization-level", "5", "--refit")
    assert f"{plan}  0.0 MB, fp16, built for Test GPU, compared with tiny.onnx" in out
    assert "  tensorrt on brain windows: max error" in out
    wanted = ("lr", (1, 3, 8, 8), (2, 3, 16, 16), (3, 3, 24, 20))
    assert world.asked("IOptimizationProfile.set_shape") == [wanted] * 3
    out = run("inspect", plan)
    for line in (f"TensorRT {trt.__version__}", "Test GPU, compute capability 9.0", "refittable"):
        assert line in out
    assert out.count("1×8×8 … 2×16×16 … 3×24×20") == 3
    assert "tensorrt on random windows" in run("--verify", plan)


def test_options_reach_the_builder(world: World, models: Path) -> None:
    build(models, BuildOptions(level=4, version_compatible=True, hardware="ampere"))
    assert world.asked("IBuilderConfig.builder_optimization_level") == [(4,)]
    assert world.asked("IBuilderConfig.set_flag") == [(trt.BuilderFlag.VERSION_COMPATIBLE,)]
    level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    assert world.asked("IBuilderConfig.hardware_compatibility_level") == [(level,)]
    assert world.asked("Runtime.engine_host_code_allowed") == [(True,)]


def test_a_refittable_plan_is_renewed_not_rebuilt(world: World, models: Path) -> None:
    options = BuildOptions(weights="refittable")
    build(models, options)
    assert world.asked("IBuilderConfig.set_flag") == [(trt.BuilderFlag.REFIT,)]
    artefact = build(models, options)
    assert len(world.asked("Builder.build_serialized_network")) == 1
    assert world.asked("ISerializationConfig.set_flag") == [(trt.SerializationFlag.INCLUDE_REFIT,)]
    assert artefact.path.read_bytes() == b"plan with other weights"
    build(models, BuildOptions(weights="refittable", level=5))
    assert len(world.asked("Builder.build_serialized_network")) == 2

    world.answers["OnnxParserRefitter.refit_from_bytes"] = False
    build(models, BuildOptions(weights="refittable", level=5))
    assert len(world.asked("Builder.build_serialized_network")) == 3


def test_timings_are_kept_for_the_next_build(world: World, models: Path) -> None:
    build(models)
    build(models)
    assert world.asked("IBuilderConfig.create_timing_cache") == [(b"",), (b"timings",)]
    world.answers["IBuilderConfig.set_timing_cache"] = False  # those of another GPU
    build(models)
    assert world.asked("IBuilderConfig.create_timing_cache")[2:] == [(b"timings",), (b"",)]
    world.answers["IBuilderConfig.create_timing_cache"] = lambda config, text: (
        None if text else Double(trt.ITimingCache, world)  # damaged ones
    )
    build(models)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (
            "OnnxParser.parse",
            r"cannot read the graph: Pad node 'node_pad_4': no Pad here "
            r"\(UNSUPPORTED_NODE, importer.cpp:7\)$",
        ),
        ("Builder.build_serialized_network", "cannot build the plan: too little memory"),
        ("Runtime.deserialize_cuda_engine", "cannot load .*: too little memory"),
        ("IBuilderConfig.add_optimization_profile", "does not take the sizes"),
        (
            "ICudaEngine.create_execution_context",
            "tiny.plan needs more memory than is free on Test GPU: too little memory",
        ),
        ("IExecutionContext.execute_async_v3", "Test GPU does not have enough memory for 4 windows"),
        ("IExecutionContext.set_input_shape", "TensorRT failed: no such size"),
    ],
)
def test_each_refusal_is_one_sentence_and_writes_nothing(
    world: World, models: Path, capsys: pytest.CaptureFixture[str], member: str, message: str
) -> None:
    failure = {
        "OnnxParser.parse": False,
        "IBuilderConfig.add_optimization_profile": -1,
        "IExecutionContext.execute_async_v3": False,
        "IExecutionContext.set_input_shape": False,
    }

    def refuse(*_: Any, **__: Any) -> Any:
        log = next(
            a[-1] for name, a in reversed(world.calls) if name in ("Builder.__init__", "Runtime.__init__")
        )
        log.log(trt.ILogger.Severity.INFO, "so far so good")
        cause = "no such size" if member.endswith("shape") else "too little memory"
        log.log(ERROR, f"{cause}\nand more")
        return failure.get(member)

    world.answers |= {member: refuse, "OnnxParser.num_errors": 1, "ParserError.desc": "no Pad\nhere"}
    world.answers |= {"ParserError.node_operator": "Pad", "ParserError.node_name": "node_pad_4"}
    world.answers |= {"ParserError.file": "/build/importer.cpp", "ParserError.line": 7}
    world.answers["ParserError.code"] = trt.ErrorCode.UNSUPPORTED_NODE
    world.answers["OnnxParser.get_error"] = lambda *_: Double(trt.ParserError, world)
    with pytest.raises((ExportError, RunError), match=message) as caught:
        build(models, debug=True)
    assert "\n" not in str(caught.value)
    heard = capsys.readouterr().err  # the builder's log, and the one of reading the plan for its layers
    assert "and more" in heard or member.startswith(("ICuda", "IExecution", "Runtime"))
    assert str(Path(tempfile.gettempdir()) / "udean-") not in str(caught.value)
    assert sorted(f.name for f in models.glob("*plan*")) == []


def test_a_library_that_does_not_start_is_named(models: Path) -> None:
    with pytest.raises(ExportError, match="TensorRT cannot start"):  # the empty library gives no builder
        trt_build.build(trt, logger(trt), b"", 3, (), BuildOptions())


def test_a_plan_of_another_version_or_gpu_is_refused(world: World, models: Path) -> None:
    plan = build(models).path
    fields = json.loads(sidecar(plan).read_text())
    for change, message in (
        ({"tensorrt": "9.9.9"}, f"built by TensorRT 9.9.9 and this is {trt.__version__}: build it here"),
        ({"capability": "8.6"}, r"built for Test GPU \(compute capability 8.6\) and this GPU has 9.0"),
        ({"sha256": "0"}, "do not belong together"),
    ):
        sidecar(plan).write_text(json.dumps(fields | change))
        with pytest.raises(RunError, match=message):
            list(verify(plan))


def test_what_is_loaded_ends_in_the_gpus_context(world: World, models: Path) -> None:
    """In whichever thread; a context that is not current leaks what is freed."""
    engine: Any = cuda_engine(build(models).path)
    pushed: list[bool] = []
    engine.gpu._context = types.SimpleNamespace(push=lambda: pushed.append(context() is not None))
    context = weakref.ref(engine._contexts[0])
    assert context() is not None
    del engine
    gc.collect()
    assert pushed == [True] and context() is None


def test_an_inaccurate_plan_is_not_written(world: World, models: Path) -> None:
    world.answers["IExecutionContext.execute_async_v3"] = True  # and yields zeros
    with pytest.raises(ExportError, match="in TensorRT it is off by"):
        build(models)
    assert not list(models.glob("*.plan*"))


def parameters(function: Any) -> list[str]:
    (signature,) = signatures(function)
    return [p.name for p in signature.parameters]


def test_our_monitor_and_logger_override_what_tensorrt_calls() -> None:
    monitor = trt_build.Monitor(trt).binding
    for name in ("phase_start", "step_complete", "phase_finish"):
        (signature,) = signatures(getattr(trt.IProgressMonitor, name))
        assert [p.name for p in signature.parameters] == list(
            inspect.signature(getattr(monitor, name)).parameters
        )
    log = logger(trt)
    (signature,) = signatures(trt.ILogger.log)
    assert [p.name for p in signature.parameters] == list(inspect.signature(log.log).parameters)


def test_ctrl_c_cancels_a_build(world: World, models: Path) -> None:
    ended = []

    def interrupted(builder: Double, _network: Any, config: Any) -> None:
        config.progress_monitor.phase_start("Building", None, 2)
        os.kill(os.getpid(), signal.SIGINT)
        while config.progress_monitor.step_complete("Building", 0):
            time.sleep(0.01)
        ended.append("by itself")

    world.answers["Builder.build_serialized_network"] = interrupted
    with pytest.raises(KeyboardInterrupt):
        build(models)
    assert ended and not list(models.glob("*.plan*"))


def test_the_doubles_notice_what_a_version_has_dropped() -> None:
    config = Double(trt.IBuilderConfig, World(trt))
    for mistake in (
        lambda: config.int8_calibrator_of_old,
        lambda: setattr(config, "max_workspace_size", 1),
        lambda: setattr(config, "builder_optimization_level", "high"),
        lambda: config.set_flag(trt.MemoryPoolType.WORKSPACE),
        lambda: config.set_flag(),
        lambda: config.set_flag(trt.BuilderFlag.TF32, True),
        lambda: config.set_flag(flags=trt.BuilderFlag.TF32),
    ):
        with pytest.raises((AttributeError, AssertionError)):
            mistake()
    config.set_flag(flag=trt.BuilderFlag.TF32)
