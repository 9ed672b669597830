"""On a real GPU: every CUDA engine against the host pipeline. Run by `make gpu-check`."""

import importlib.util

import numpy as np
import pytest
from udean.runtime import EngineInfo, RunError, SuperResolver
from udean.runtime.cuda.device import Gpu, GpuError
from udean.runtime.engines.choose import choose_engine
from udean.runtime.engines.torch_cuda import Memory

from ...support.fakes import FakeEngine, card, nearest, onnx_model
from ..engines.test_choose import tiny_checkpoint

CARD = card((2, 2, 2), 3, (16, 16))
RANDOM = np.random.default_rng(0)
pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module", autouse=True)
def gpu():
    try:
        return Gpu()
    except RunError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    onnx_model(folder / "nearest.onnx", CARD)
    onnx_model(folder / "conv.onnx", CARD, "conv")
    onnx_model(folder / "conv.fp16.onnx", CARD.replace(precision="fp16"), "conv")
    tiny_checkpoint(folder / "tiny.pt")
    return folder


def opened(path, precision="auto"):
    """The model on the GPU, or a skip where its library is not made for one."""
    try:
        return choose_engine(path, "cuda", precision, None, "auto")
    except RunError as error:
        if isinstance(error, GpuError) and "cannot use a GPU" not in str(error):
            raise
        pytest.skip(str(error))


class Function:
    """A function of windows as a CUDA engine, by PyTorch alone, and exact: the kernels are held to the host.

    function: of arrays and tensors alike, (N, slices, rows, columns) float32.
    """

    half, slots, window = False, 2, CARD.window

    def __init__(self, function, gpu):
        self.function, self.gpu, self.card = function, gpu, CARD
        self.torch = pytest.importorskip("torch")
        if not self.torch.cuda.is_available():
            pytest.skip("this PyTorch finds no GPU")
        self.info = EngineInfo("torch", "1", gpu.name, "fp32", "function", "0" * 64)

    def batches(self, window):
        return 1, 7

    def enqueue(self, slot):
        torch = self.torch
        device = torch.device("cuda", self.gpu.index)

        def tensor(address, shape):
            interface = {"shape": shape, "typestr": "<f4", "data": (address, False), "version": 3}
            return torch.as_tensor(Memory(interface), device=device)

        with torch.cuda.stream(torch.cuda.ExternalStream(slot.stream, device)):
            tensor(slot.sr, slot.fine).copy_(self.function(tensor(slot.lr, slot.shape)))


def doubled(x):
    """Nearest neighbours, and a share of the voxel in the window's corner, so that blending matters."""
    for axis in (1, 2, 3):
        x = x.repeat(2, axis) if isinstance(x, np.ndarray) else x.repeat_interleave(2, axis)
    return x + x[:, :1, :1, :1] * 0.25


OPTIONS = [{}, {"consistency": 1.0}, {"best": True}, {"best": True, "consistency": 1.0}]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "measured band", "best", "best, measured band"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_the_kernels_are_the_host_pipelines(gpu, dtype, options):
    volume = RANDOM.integers(0, 120, (50, 41, 20)).astype(dtype)
    cuda = SuperResolver(Function(doubled, gpu), crop=False, **options)
    host = SuperResolver(FakeEngine(doubled, CARD), window=CARD.window, crop=False, **options)
    found, wanted = cuda(volume), host(volume)
    if "consistency" in options:  # by matrices on the device, by FFT on the host
        atol = 1 if volume.dtype.kind in "iu" else 1e-4 * float(wanted.max())
        np.testing.assert_allclose(found.astype(float), wanted.astype(float), atol=atol)
    else:
        np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(cuda(volume), found)  # run to run


@pytest.mark.parametrize("shape", [(9, 33, 2), (1, 1, 1), (64, 64, 33)])
def test_any_shape_is_the_hosts(gpu, shape):
    volume = RANDOM.integers(0, 900, shape).astype(np.int16)
    host = SuperResolver(FakeEngine(doubled, CARD), window=CARD.window)
    for slots in (1, 2, 4):
        engine = Function(doubled, gpu)
        engine.slots = slots
        np.testing.assert_array_equal(SuperResolver(engine)(volume), host(volume))


def test_graphs_change_nothing(models, caplog):
    volume = RANDOM.uniform(0, 900, (100, 90, 30)).astype(np.float32)
    engine = opened(models / "tiny.pt")
    by_graphs = [SuperResolver(engine)(volume) for _ in range(2)][-1]
    assert engine.graphs and any(engine._captured.values()), caplog.text
    engine.graphs = False
    np.testing.assert_array_equal(SuperResolver(engine)(volume), by_graphs)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("shape", [(50, 41, 20), (9, 33, 2), (1, 1, 1)])
def test_nearest_gives_the_volume_back_bit_for_bit(models, dtype, shape):
    volume = RANDOM.integers(0, 120, shape).astype(dtype)
    cuda = SuperResolver(opened(models / "nearest.onnx"))
    host = SuperResolver(FakeEngine(lambda x: nearest(x, (2, 2, 2)), CARD))
    np.testing.assert_array_equal(cuda(volume), host(volume))


@pytest.mark.parametrize(
    ("file", "precision", "tolerance"),
    [
        ("conv.onnx", "auto", 1e-5),
        ("conv.fp16.onnx", "auto", 5e-3),
        ("tiny.pt", "fp32", 1e-4),
        ("tiny.pt", "fp16", 1e-2),
    ],
)
def test_every_engine_agrees_with_the_host(models, file, precision, tolerance):
    volume = RANDOM.uniform(0, 900, (70, 61, 20)).astype(np.float32)
    cuda = SuperResolver(opened(models / file, precision))
    host = SuperResolver(models / file.replace(".fp16", ""), "cpu", "fp32")
    wanted = host(volume)
    found = cuda(volume)
    assert np.abs(found - wanted).max() < tolerance * np.abs(wanted).max()
    np.testing.assert_array_equal(cuda(volume), found)  # run to run


@pytest.mark.parametrize(
    ("file", "tolerance"),
    [("nearest.onnx", 0), ("conv.onnx", 1e-5), ("conv.fp16.onnx", 5e-3), ("tiny.pt", 1e-2)],
)
def test_a_stream_agrees_with_the_volume(models, file, tolerance):
    volume = RANDOM.uniform(0, 900, (70, 61, 20)).astype(np.float32)
    cuda = SuperResolver(opened(models / file), crop=False)
    wanted, known = cuda(volume), cuda.intensities(volume)
    found = np.stack(list(cuda.stream((volume[:, :, n] for n in range(20)), 20, known)), 2)
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()


@pytest.mark.parametrize("file", ["conv.fp16.onnx", "tiny.pt"])
def test_the_number_of_streams_changes_nothing(models, file):
    volume = RANDOM.uniform(0, 900, (70, 61, 30)).astype(np.float32)
    results = []
    for slots in (1, 2, 4):
        engine = opened(models / file)
        engine.slots = slots
        results.append(SuperResolver(engine)(volume))
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_the_shipped_ptx_loads(models):
    volume = RANDOM.integers(0, 120, (20, 21, 9)).astype(np.int16)
    cuda = SuperResolver(opened(models / "nearest.onnx"))
    np.testing.assert_array_equal(cuda(volume), nearest(volume, CARD.scale))


def test_full_memory_halves_the_batch_and_goes_on(models, gpu, caplog):
    engine = opened(models / "nearest.onnx")
    volume = RANDOM.integers(0, 120, (400, 400, 30)).astype(np.int16)
    with gpu.current():
        free, _ = gpu.cuda.mem_get_info()
        hold = gpu.cuda.mem_alloc(max(1, free - (60 << 20)))
    try:
        try:
            found = SuperResolver(engine, window=CARD.window)(volume)
        except GpuError as error:
            assert "memory" in str(error)
        else:
            np.testing.assert_array_equal(found, nearest(volume, CARD.scale))
    finally:
        hold.free()


@pytest.mark.tensorrt
@pytest.mark.skipif(not importlib.util.find_spec("tensorrt"), reason="needs TensorRT")
@pytest.mark.parametrize(("file", "tolerance"), [("conv.onnx", 1e-4), ("conv.fp16.onnx", 5e-3)])
def test_a_plan_agrees_with_the_host(models, tmp_path, file, tolerance):
    from udean.export.trt_build import BuildOptions
    from udean.export.trt_plan import Sizes, build_plan

    windows = (16, 16), (16, 16), (16, 16)
    build_plan(models / file, tmp_path, Sizes((1, 8, 16), windows, 3), BuildOptions())
    (plan,) = tmp_path.glob("*.plan")
    volume = RANDOM.uniform(0, 900, (70, 61, 20)).astype(np.float32)
    found = SuperResolver(plan)(volume)
    wanted = SuperResolver(models / "conv.onnx", "cpu", "fp32", window=CARD.window)(volume)
    assert np.abs(found - wanted).max() < tolerance * np.abs(wanted).max()
    np.testing.assert_array_equal(SuperResolver(plan)(volume), found)
    with pytest.raises(RunError, match="windows"):
        SuperResolver(plan, window=(32, 32))(volume)
