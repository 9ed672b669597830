"""Every engine against the reference, by the same test; and what each says when it cannot start."""

import contextlib
import dataclasses
import importlib
import os
import subprocess
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from udean.runtime import CardError, RunError, SuperResolver, open_engine
from udean.runtime.cuda import device
from udean.runtime.engines import choose as engines
from udean.runtime.engines import other_accelerators
from udean.trainer import checkpoint
from udean.trainer.nets import generators

from ...support.fakes import FakeEngine, card, nearest, onnx_model

CARD = dataclasses.replace(card((2, 2, 2), 3, (16, 16)), name="little")
WINDOWS = np.random.default_rng(1).uniform(0, 1, (2, 3, 17, 20)).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    onnx_model(folder / "conv.onnx", CARD, "conv")
    onnx_model(folder / "conv.fp16.onnx", CARD.replace(precision="fp16"), "conv")
    onnx_model(folder / "nearest.onnx", CARD)
    onnx_model(folder / "bare.onnx", None)
    (folder / "broken.onnx").write_bytes(b"\x08\x0anot a graph at all")
    (folder / "broken.pt").write_bytes(b"nothing")
    return folder


def reference(folder):
    """The little network in float64 PyTorch, from the weights in its ONNX file."""
    values = [
        torch.tensor(numpy_helper.to_array(node.attribute[0].t)).double()
        for node in onnx.load(folder / "conv.onnx").graph.node
        if node.op_type == "Constant"
    ]
    x = torch.nn.functional.conv2d(torch.tensor(WINDOWS).double(), values[0], padding=1)
    x = torch.nn.functional.conv2d(torch.nn.functional.leaky_relu(x, 0.2), values[1], padding=1)
    return torch.nn.functional.pixel_shuffle(x, 2).numpy()


def relative(found, wanted):
    return np.abs(found - wanted).max() / np.abs(wanted).max()


@pytest.mark.parametrize(
    ("library", "file", "precision", "tolerance"),
    [
        ("onnxruntime", "conv.onnx", "fp32", 1e-5),
        ("onnxruntime", "conv.fp16.onnx", "auto", 1e-2),
        ("openvino", "conv.onnx", "fp32", 1e-5),
        ("openvino", "conv.onnx", "bf16", 1e-2),
        ("openvino", "conv.fp16.onnx", "fp32", 1e-2),
    ],
)
def test_onnx_engine_agrees_with_the_reference(folder, library, file, precision, tolerance):
    engine = open_engine(folder / file, "cpu", precision, 1, library)
    found = engine(WINDOWS)
    assert found.dtype == np.float32 and engine.info.library == library
    assert relative(found, reference(folder)) < tolerance
    np.testing.assert_array_equal(found, engine(WINDOWS))  # run to run
    assert engine.card.name == "little"


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-5), ("bf16", 1e-2)])
def test_torch_engine_runs_a_checkpoint(tmp_path, precision, tolerance):
    file, network = tiny_checkpoint(tmp_path / "tiny.pt")
    engine = open_engine(file, precision=precision)
    with torch.inference_mode():
        wanted = network(torch.tensor(WINDOWS)).numpy()
    assert relative(engine(WINDOWS), wanted) < tolerance
    assert engine.info.precision == precision and engine.info.library == "torch"


def test_torch_computes_in_one_thread_whoever_asks(tmp_path, monkeypatch):
    """A second thread's OpenMP team would make both wait asleep."""
    seen, forward = set[int](), generators.SuperResolution.forward

    def noted(self, lr):
        seen.add(threading.get_ident())
        return forward(self, lr)

    monkeypatch.setattr(generators.SuperResolution, "forward", noted)
    file, _ = tiny_checkpoint(tmp_path / "tiny.pt")
    engine = open_engine(file)
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: engine(WINDOWS), range(6)))
    assert len(seen) == 1 and threading.get_ident() not in seen
    assert all(np.array_equal(result, results[0]) for result in results)


def test_nearest_is_the_same_on_every_library(folder):
    for library in ("onnxruntime", "openvino"):
        engine = open_engine(folder / "nearest.onnx", "cpu", "fp32", 1, library)
        np.testing.assert_array_equal(engine(WINDOWS), nearest(WINDOWS, (2, 2, 2)))


def test_auto_takes_openvino_and_says_so(folder):
    info = open_engine(folder / "conv.onnx").info
    assert info.library == "openvino" and info.precision in ("fp32", "bf16")
    assert str(info).startswith("openvino 20") and len(info.sha256) == 64


def test_auto_takes_onnxruntime_where_openvino_is_missing(folder, monkeypatch):
    monkeypatch.setattr(engines.importlib.util, "find_spec", lambda name: None)
    assert open_engine(folder / "conv.onnx").info.library == "onnxruntime"


@pytest.mark.parametrize("library", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(
    ("file", "error", "sentence"),
    [
        ("bare.onnx", CardError, "udean-export"),
        ("broken.onnx", RunError, "broken.onnx"),
        ("missing.onnx", RunError, "does not exist"),
        ("", RunError, "is not a file"),
    ],
)
def test_a_model_that_cannot_run_is_refused_with_a_sentence(folder, library, file, error, sentence):
    with pytest.raises(error, match=sentence):
        open_engine(folder / file, library=library)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"device": "tpu"}, "tpu"),
        ({"precision": "fp8"}, "fp8"),
        ({"library": "onnxruntime", "precision": "bf16"}, "own precision"),
        ({"library": "openvino", "precision": "fp16"}, "fp32 or bf16"),
        ({"threads": 0}, "at least 1"),
    ],
)
def test_an_impossible_choice_is_refused_with_a_sentence(folder, options, sentence):
    with pytest.raises(RunError, match=sentence):
        open_engine(folder / "conv.onnx", **options)


@pytest.mark.parametrize("name", ["broken.pt", "conv.txt"])
def test_foreign_files_are_refused(folder, name):
    (folder / "conv.txt").touch()
    with pytest.raises(RunError, match=name):
        open_engine(folder / name)


def test_a_missing_library_is_named_with_its_remedy(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(RunError, match=r"pip install 'udean\[cpu\]'"):
        open_engine(folder / "conv.onnx", library="onnxruntime")


@pytest.mark.parametrize("library", ["openvino", "onnxruntime"])
def test_threads_and_runs_do_not_change_a_volume(folder, library):
    volume = np.random.default_rng(2).uniform(0, 900, (37, 29, 8)).astype(np.float32)
    results = [
        SuperResolver(folder / "conv.onnx", precision="fp32", threads=n, library=library)(volume)
        for n in (1, 1, 2)
    ]
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_importing_the_runtime_imports_no_engine():
    code = (
        "import sys, udean.runtime; "
        "print({'torch', 'onnxruntime', 'openvino', 'onnx', 'typer', 'rich'} & set(sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def tiny_checkpoint(path):
    """An untrained network of the trainer's own kind, saved as it saves them; returns both."""
    torch.manual_seed(0)
    arch = generators.Architecture(channels=8, groups=1, blocks=1, discriminator=4)
    network = generators.super_resolution(arch).eval()
    checkpoint.save(path, CARD, arch, network)
    return path, network


@pytest.mark.skipif(
    not Path(engines.__file__).parents[1].joinpath("models", "default.onnx").exists(),
    reason="the embedded model is made by `make default-model`",
)
@pytest.mark.parametrize("library", ["openvino", "onnxruntime"])
def test_the_embedded_model_runs_without_a_path(library):
    engine = open_engine(library=library)
    assert engine.info.model == "embedded" and engine.card.scale == (2, 2, 2)
    sr = SuperResolver(engine)(np.random.default_rng(0).uniform(0, 900, (20, 20, 6)).astype(np.float32))
    assert sr.shape == (40, 40, 12)


@pytest.mark.parametrize("library", ["onnxruntime", "openvino"])
def test_a_model_of_one_input_size_takes_any_number_of_windows(folder, tmp_path, library):
    model = onnx.load(folder / "conv.onnx")
    for value, size in ((model.graph.input[0], (4, 3, 16, 20)), (model.graph.output[0], (4, 6, 32, 40))):
        for dimension, n in zip(value.type.tensor_type.shape.dim, size, strict=True):
            dimension.dim_value = n
    onnx.save(model, tmp_path / "fixed.onnx")
    fixed, free = (
        open_engine(path, precision="fp32", library=library)
        for path in (tmp_path / "fixed.onnx", folder / "conv.onnx")
    )
    windows = np.random.default_rng(0).random((6, 3, 16, 20), np.float32)
    for count in (1, 4, 6):
        assert relative(fixed(windows[:count]), free(windows[:count])) < 1e-5
    with pytest.raises(RunError, match="16x20 only, not 16x16: give --window 16x20"):
        fixed(windows[..., :16])
    volume = windows[0].transpose(1, 2, 0).repeat(3, 0)  # larger than a window: planes are the default
    wanted = SuperResolver(free, window=(16, 20), consistency="off")(volume)
    found = SuperResolver(fixed, consistency="off")(volume)
    assert found.shape == (96, 40, 6) and relative(found, wanted) < 1e-5


@pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity"), reason="reads threads' affinities as Linux has them"
)
@pytest.mark.parametrize("library", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("threads", [None, 1, 2])
def test_threads_may_run_on_every_core(folder, library, threads):
    """Else those of several shards or workers share a core, while others are idle."""
    script = (
        "import os, sys\n"
        "import numpy as np\n"
        "from udean.runtime import open_engine\n"
        "mine = os.sched_getaffinity(0)\n"
        "threads = None if sys.argv[3] == 'None' else int(sys.argv[3])\n"
        "engine = open_engine(sys.argv[1], precision='fp32', threads=threads, library=sys.argv[2])\n"
        "engine(np.zeros((4, 3, 64, 64), np.float32))\n"
        "print(all(os.sched_getaffinity(int(thread)) == mine for thread in os.listdir('/proc/self/task')))\n"
    )
    command = [sys.executable, "-c", script, folder / "conv.onnx", library, str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "True\n"), done.stderr


def test_engines_let_go_in_any_order_leave_a_process_that_survives_signals(folder):
    """A signal handler runs on a stack of its own where faulthandler is on; see `engines/openvino.py`."""
    script = (
        "import faulthandler, os, signal, sys\n"
        "from udean.runtime import open_engine\n"
        "faulthandler.enable()\n"
        "first, second = (open_engine(sys.argv[1], library='openvino') for _ in range(2))\n"
        "del first\n"
        "del second\n"
        "signal.signal(signal.SIGUSR1, lambda *_: print('alive'))\n"
        "os.kill(os.getpid(), signal.SIGUSR1)\n"
    )
    command = [sys.executable, "-c", script, folder / "conv.onnx"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "alive\n"), done.stderr


class FullGpu:
    """A GPU whose memory other processes have taken. torch and ONNX Runtime meet it as they would."""

    name, index, capability = "Full", 0, "9.0"

    def __init__(self, index):
        pass

    @contextlib.contextmanager
    def current(self):
        yield

    def streams(self, count):
        return [types.SimpleNamespace(handle=n + 1) for n in range(count)]


@pytest.mark.parametrize("file", ["conv.onnx", "tiny.pt"])
def test_a_gpu_whose_memory_is_full_when_the_model_loads_is_gone_without(folder, monkeypatch, caplog, file):
    onnxruntime = importlib.import_module("onnxruntime")
    session, to = onnxruntime.InferenceSession, torch.nn.Module.to

    def session_where(model, *arguments, **options):
        if any(name == "CUDAExecutionProvider" for name, *_ in options["providers"]):
            raise RuntimeError("[ONNXRuntimeError] : 6 : CUDA failure 2: out of memory ; GPU=0")
        return session(model, *arguments, **options)

    def moved(module, *arguments, **options):
        if torch.device("cuda", 0) in arguments:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 MiB.\nSee the manual.")
        return to(module, *arguments, **options)

    monkeypatch.setattr(device, "Gpu", FullGpu)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "InferenceSession", session_where)
    monkeypatch.setattr(torch.nn.Module, "to", moved)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    if file == "tiny.pt":
        tiny_checkpoint(folder / file)
    with pytest.raises(device.GpuError, match="Full does not have enough memory for the model"):
        SuperResolver(folder / file, device="cuda")
    resolve = SuperResolver(folder / file, device="cuda", fallback="cpu")
    assert resolve.engine.info.device == "cpu" and "Going on with" in caplog.text


@pytest.mark.parametrize("device", ["gpu", "npu", "coreml", "dml"])
def test_an_accelerator_that_is_not_there_is_named_and_nothing_else_runs(folder, device):
    import onnxruntime
    import openvino

    there = " ".join([*openvino.Core().available_devices, *onnxruntime.get_available_providers()]).lower()
    if device in there:
        pytest.skip(f"{device} is there")
    with pytest.raises(RunError, match=r"OpenVINO finds no|installed ONNX Runtime has no"):
        SuperResolver(folder / "conv.onnx", device=device)
    with pytest.raises(RunError, match="not one of auto, cpu, cuda, gpu"):
        SuperResolver(folder / "conv.onnx", device=f"{device}:1")


def test_whether_there_is_a_gpu_is_asked_before_a_library_is_imported(monkeypatch):
    def none(*_):
        raise device.GpuError("There is no GPU 0 here.")

    monkeypatch.setattr(device, "is_reachable", lambda: True)
    monkeypatch.setattr(device, "Gpu", none)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # an import of it would fail
    assert engines.why_no_gpu(None) == "There is no GPU 0 here."


def test_an_accelerator_is_held_to_the_processor(folder, monkeypatch, caplog):
    """OpenVINO's processor stands for an accelerator of its own: only another name is made up."""
    monkeypatch.setitem(other_accelerators.OPENVINO, "npu", "CPU")
    with SuperResolver(folder / "conv.onnx", device="npu", precision="fp32") as resolve:
        assert resolve.info().engine.library == "openvino"
        volume = np.random.default_rng(0).uniform(0, 900, (40, 45, 6)).astype(np.float32)
        found = resolve(volume)  # by windows of one size: an NPU takes no others
    wanted = SuperResolver(folder / "conv.onnx", precision="fp32", window=CARD.window)(volume)
    assert relative(found, wanted) < 1e-5
    assert "agrees with" in caplog.text
    exact = open_engine(folder / "conv.onnx", library="onnxruntime")
    assert other_accelerators.agreement(open_engine(folder / "conv.onnx", library="openvino"), exact) > 50
    with pytest.raises(RunError, match=r"agree only to -?[0-9]+ dB"):
        other_accelerators.hold(open_engine(folder / "nearest.onnx"), exact)
    broken = FakeEngine(lambda windows: np.full_like(exact(windows), np.nan), exact.card)
    with pytest.raises(RunError, match="agree only to nan dB"):
        other_accelerators.hold(broken, exact)


@pytest.mark.parametrize("library", ["onnxruntime", "openvino"])
def test_a_model_whose_name_is_not_text_is_opened(library, tmp_path):
    file = Path(os.fsdecode(os.fsencode(tmp_path) + b"/mod\xe8le.onnx"))
    os.rename(onnx_model(tmp_path / "model.onnx", CARD), file)
    assert open_engine(file, "cpu", library=library).info.library == library
