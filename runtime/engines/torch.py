"""PyTorch on the CPU: runs a training checkpoint without exporting it.

Everything runs in one thread of its own: each thread in which PyTorch computes has a team of OpenMP threads,
and if there are more threads than cores, teams wait for their members by sleeping, which takes a fifth
longer.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from ..errors import RunError
from ..models.card import ModelCard
from ..pipeline.engine import EngineInfo, EngineRequest
from ..system.threads import cores
from .checkpoint import load_network


class TorchEngine:
    """The LR encoder and SR decoder of a checkpoint, in float32 or bfloat16."""

    card: ModelCard
    info: EngineInfo

    def __init__(self, request: EngineRequest) -> None:
        if request.precision == "fp16":
            raise RunError("PyTorch computes in fp32 or bf16 on a CPU: use --precision fp32, bf16 or auto.")
        self._thread = ThreadPoolExecutor(1, "torch")
        self._thread.submit(self._open, request).result()

    def _open(self, request: EngineRequest) -> None:
        self._torch, network, self.card = load_network(request.file)
        precision = "fp32" if request.precision == "auto" else request.precision
        # It counts hyper-threads, and not a container's share of their time.
        self._torch.set_num_threads(request.threads or min(cores(), self._torch.get_num_threads()))
        self._dtype = self._torch.bfloat16 if precision == "bf16" else self._torch.float32
        self._network = network.eval().to(self._dtype, memory_format=self._torch.channels_last)
        self.info = request.info("torch", self._torch.__version__, "cpu", precision)

    def __call__(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._thread.submit(self._run, windows).result()

    def _run(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        torch = self._torch
        with torch.inference_mode():
            lr = torch.from_numpy(windows).to(self._dtype, memory_format=torch.channels_last)
            return self._network(lr).float().contiguous().numpy()
