"""PyTorch on a GPU, with a GPU that the processor plays: what is captured, replayed, and done without."""

import contextlib
import types

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from udean.runtime.cuda import Slot
from udean.runtime.cuda.device import GpuError, OutOfMemory
from udean.runtime.cuda.pipeline import SIZES
from udean.runtime.engines import torch_cuda
from udean.runtime.pipeline.engine import EngineRequest
from udean.trainer.nets.generators import SuperResolution

from ...support.driver import view
from .test_choose import CARD, tiny_checkpoint

SHAPE, FINE = (2, 3, 16, 20), (2, 6, 32, 40)


class Graph(TorchDispatchMode):
    """A CUDA graph of PyTorch's operators: those of a capture, repeated on the same memory."""

    def __init__(self):
        super().__init__()
        self.steps, self.replays = [], 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        self.steps.append((function, args, kwargs or {}, made))
        return made

    def replay(self):
        self.replays += 1
        for function, args, kwargs, made in self.steps:
            fresh = function(*args, **kwargs)
            if isinstance(made, torch.Tensor) and fresh.data_ptr() != made.data_ptr():
                made.copy_(fresh)


@pytest.fixture
def gpu(monkeypatch):
    """PyTorch's CUDA calls on the processor. graphs: those captured; fails: what the next capture raises."""
    played = types.SimpleNamespace(graphs=[], fails=None, emptied=0, modes=set())

    @contextlib.contextmanager
    def capture(graph, stream, capture_error_mode):
        played.modes.add((stream, capture_error_mode))
        if played.fails:
            raise played.fails
        with graph:
            yield
        played.graphs.append(graph)

    def empty():
        played.emptied += 1

    for name, value in {
        "is_available": lambda: True,
        "ExternalStream": lambda handle, device: handle,
        "stream": lambda stream: contextlib.nullcontext(),
        "CUDAGraph": Graph,
        "graph": capture,
        "empty_cache": empty,
        "synchronize": lambda device: None,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch, "device", lambda *_: "cpu")
    monkeypatch.setattr(
        torch_cuda.TorchCudaEngine,
        "_tensor",
        lambda self, address, shape: torch.from_numpy(view(address, shape, self.half)),
    )
    return played


@pytest.fixture
def engine(gpu, tmp_path):
    file, _ = tiny_checkpoint(tmp_path / "tiny.pt")
    place = types.SimpleNamespace(index=0, name="Processor")
    return torch_cuda.TorchCudaEngine(EngineRequest(file, "tiny.pt", "0" * 64, "fp32"), place)


@pytest.fixture
def runs(monkeypatch):
    """How often the network's operators were launched one by one, and whether with TF32."""
    seen, forward = [], SuperResolution.forward

    def noted(self, lr):
        seen.append(torch.backends.cudnn.allow_tf32)
        return forward(self, lr)

    monkeypatch.setattr(SuperResolution, "forward", noted)
    return seen


def slots(count=2):
    """Slots with memory of their own, which is returned too: inputs, outputs."""
    memory = [(np.zeros(SHAPE, np.float32), np.zeros(FINE, np.float32)) for _ in range(count)]
    made = [Slot(n, n + 1, lr.ctypes.data, sr.ctypes.data, SHAPE, FINE) for n, (lr, sr) in enumerate(memory)]
    return made, memory


def test_each_slot_is_captured_once_and_replayed_on_whatever_lies_in_its_buffer(engine, gpu, runs):
    made, memory = slots()
    random = np.random.default_rng(0)
    for turn in range(4):
        for slot, (lr, sr) in zip(made, memory, strict=True):
            lr[...] = random.random(SHAPE, np.float32)
            sr[...] = np.nan
            engine.enqueue(slot)
            with torch.inference_mode():
                wanted = engine._network.eval()(torch.from_numpy(lr)).numpy()
            np.testing.assert_allclose(sr, wanted, atol=1e-5, err_msg=f"turn {turn}")
    assert [graph.replays for graph in gpu.graphs] == [3, 3]
    assert gpu.modes == {(1, "thread_local"), (2, "thread_local")}


def test_the_output_may_lie_anywhere_and_another_input_is_captured_anew(engine, gpu, runs):
    (slot,), _memory = slots(1)
    for _ in range(3):
        target = np.zeros(FINE, np.float32)
        engine.enqueue(Slot(0, 1, slot.lr, target.ctypes.data, SHAPE, FINE))
        assert target.any()
    assert (
        len(gpu.graphs) == 1 and len(runs) == 3
    )  # by operators, again before the capture, and into the graph
    held = []
    for _ in range(2 * SIZES * engine.slots):  # as volumes of other sizes have
        held.append(np.zeros(SHAPE, np.float32))
        for _ in range(2):
            engine.enqueue(Slot(0, 1, held[-1].ctypes.data, slot.sr, SHAPE, FINE))
    assert len(engine._captured) == SIZES * engine.slots  # older ones are let go of


@pytest.mark.parametrize(
    "reason", [RuntimeError("operation not permitted when stream is capturing"), torch.OutOfMemoryError("x")]
)
def test_what_cannot_be_captured_runs_by_its_operators_and_that_is_said_once(
    engine, gpu, runs, caplog, reason
):
    gpu.fails = reason
    made, memory = slots()
    for _ in range(3):
        for slot, (lr, sr) in zip(made, memory, strict=True):
            lr[...] = 1
            sr[...] = 0
            engine.enqueue(slot)
            assert sr.any()
    assert len(runs) == 7 and len(gpu.modes) == 1
    assert caplog.text.count("cannot capture the network as a CUDA graph") == 1


def test_full_memory_takes_the_graphs_too(engine, gpu, monkeypatch):
    (slot,), _memory = slots(1)
    for _ in range(2):
        engine.enqueue(slot)
    assert engine._captured

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(engine, "_run", full)
    other = Slot(0, 1, slot.lr, slot.sr, (1, *SHAPE[1:]), (1, *FINE[1:]))
    with pytest.raises(OutOfMemory):
        engine.enqueue(other)
    assert not engine._captured and gpu.emptied == 1


def test_a_lost_gpu_is_not_taken_for_what_cannot_be_captured(engine, gpu, monkeypatch):
    def lost(*_):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    (slot,), _memory = slots(1)
    engine.enqueue(slot)
    gpu.fails = RuntimeError("CUDA error: an illegal memory access was encountered")
    monkeypatch.setattr(engine, "_run", lost)
    with pytest.raises(GpuError, match="illegal memory access"):
        engine.enqueue(slot)


def test_no_tf32_and_nothing_measured_anew_and_the_programs_own_settings_stay(engine, runs):
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic
    (slot,), _memory = slots(1)
    engine.enqueue(slot)
    assert runs == [False]
    assert (cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic) == before
    assert CARD.name == engine.card.name
