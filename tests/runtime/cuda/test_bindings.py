"""NVIDIA's own bindings in place of PyCUDA, over a driver library that computes on the processor."""

import ast
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from udean.runtime.cuda import device

from ...support import driver
from .test_pipeline import NVCC, include_folder

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("cuda"), reason="needs cuda-bindings")
ROOT = Path(driver.KERNELS).parents[2]
SCRIPT = """
import numpy as np
from PACKAGE.support.fakes import FakeEngine, card, nearest
from PACKAGE.support.driver import view
from udean.runtime import EngineInfo, SuperResolver
from udean.runtime.cuda.device import Gpu

class Engine:
    half, slots = False, 2

    def __init__(self, network, card, gpu):
        self.network, self.card, self.gpu = network, card, gpu
        self.info = EngineInfo("numpy", "1", gpu.name, card.precision, card.name, "0" * 64)

    def batches(self, window):
        return 1, 5

    def enqueue(self, slot):
        view(slot.sr, slot.fine, False)[...] = self.network(view(slot.lr, slot.shape, False))

model, network = card((2, 2, 2), 3, (8, 8)), lambda x: nearest(x, (2, 2, 2))
gpu = Gpu()
assert gpu.cuda.__name__ == "udean.runtime.cuda.bindings"
assert (gpu.name, gpu.capability) == ("Processor", "9.0")
assert gpu.cuda.Device(0).pci_bus_id() == "0000:01:00.0"
cuda, host = SuperResolver(Engine(network, model, gpu)), SuperResolver(FakeEngine(network, model))
for dtype in ("int16", "float32", "uint8"):
    volume = np.random.default_rng(0).integers(0, 120, (20, 21, 9)).astype(dtype)
    np.testing.assert_array_equal(cuda(volume), host(volume))
with gpu.current():
    free, whole = gpu.cuda.mem_get_info()
assert free < whole
cuda.close()
with gpu.current():
    assert gpu.cuda.mem_get_info() == (whole, whole)
    try:
        gpu.cuda.mem_alloc(whole + 1)
    except gpu.cuda.MemoryError as error:
        print(error)
"""


def asked_of_the_driver(source):
    """Attributes of what is called cuda, and of what its classes make; PyTorch's own `cuda` is another."""
    for node in ast.walk(ast.parse(source)) if "cuda." in source else ():
        if not isinstance(node, ast.Attribute):
            continue
        owner, names = node.value, [node.attr]
        if isinstance(owner, ast.Call) and isinstance(owner.func, ast.Attribute):
            owner, names = owner.func.value, [owner.func.attr, node.attr]
        whole = ast.unparse(owner)
        if whole.split(".")[-1] in ("cuda", "_cuda") and "torch" not in whole:
            yield names


def test_nothing_is_asked_of_pycuda_that_the_bindings_lack():
    from udean.runtime.cuda import bindings

    lacking = set()
    for file in (f for room in ("runtime", "export", "benchmarks") for f in (ROOT / room).rglob("*.py")):
        for names in asked_of_the_driver(file.read_text()) if file.name != "bindings.py" else ():
            found = bindings
            for name in names:
                found = getattr(found, name, None)
            if found is None:
                lacking.add((file.name, *names))
    assert not lacking


@pytest.mark.skipif(NVCC is None, reason="needs nvcc and the CUDA headers")
def test_a_volume_goes_through_the_real_bindings(tmp_path):
    here = Path(driver.__file__).parent
    sources = [here / "libcuda.cpp", here / "kernels_on_host.cpp"]
    command = [
        "g++",
        "-std=c++17",
        "-O1",
        "-ffp-contract=off",
        "-w",
        "-shared",
        "-fPIC",
        f"-I{include_folder()}",
    ]
    command += [f'-DKERNELS="{driver.KERNELS}"', "-o", tmp_path / "libcuda.so.1", *sources, "-ldl"]
    subprocess.run(command, check=True)
    script = SCRIPT.replace("PACKAGE", __package__.rsplit(".", 2)[0])
    environment = os.environ | {"LD_LIBRARY_PATH": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("cuMemAlloc failed: out of memory\n", "")


def test_a_gpu_is_in_reach_by_the_bindings_alone(monkeypatch):
    find = importlib.util.find_spec
    without = {"pycuda"}
    monkeypatch.setattr(device, "find_spec", lambda name: None if name in without else find(name))
    assert device.is_reachable()
    without.add("cuda.bindings")
    assert not device.is_reachable()
