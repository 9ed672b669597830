"""A row of the benchmark in a process of its own, which resolves the volume on request, turn by turn.

So no row's threads, allocator or crash affects another's figures, peak memory is that of one engine, and what
does not finish, such as a compilation, can be stopped. Questions and answers are lines of JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ...runtime.errors import RunError
from ...runtime.pipeline.tiling import OVERLAP

PERIOD = 0.5  # seconds between looks at the parent

Kind = Literal["udean", "monai", "monai buffered", "monai folded", "torchio documented", "torchio doubled"]


@dataclass(frozen=True)
class Contender:
    """A way to resolve the volume: the runtime, or the network in PyTorch behind another library's windows.

    model: file. library: of the runtime, for .onnx. compiled: by `torch.compile`. batch: windows per call;
    None: the fastest; the runtime chooses its own. window: rows and columns; None: those that the network was
    trained on. as_run: for the runtime: with the windows and the measured band that `udean-run` uses by
    default; else with `window` and no later stages, like its peers.
    """

    name: str
    kind: Kind
    model: str
    device: str
    precision: str
    library: str = "auto"
    compiled: bool = False
    threads: int | None = None
    overlap: float = OVERLAP
    batch: int | None = None
    as_run: bool = False
    window: tuple[int, int] | None = None


class Failed(RunError):
    """A contender cannot be measured; the message says why."""


class Worker:
    """The process of a contender, with the volume (.npy) loaded and the network ready.

    limit: seconds that opening may take, first run included. Raises Failed.
    """

    def __init__(self, contender: Contender, volume: Path, limit: float) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed with the process
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            bufsize=1,
            start_new_session=True,
        )
        try:
            fields = dataclasses.asdict(contender)
            self.opened = self._ask(limit, do="open", contender=fields, volume=str(volume))
        except BaseException:
            self.close()
            raise

    def run(self) -> dict[str, float]:
        """Resolve the volume: seconds "total" and in the "network", "windows" and "calls" of the network."""
        return self._ask(do="run")

    def save(self, path: Path) -> NDArray[np.float32]:
        """The last SR volume, float32, in the units of the volume; through a file."""
        self._ask(do="save", path=str(path))
        return np.load(path, mmap_mode="r")

    def memory(self) -> dict[str, int]:
        """Bytes of host memory: "ready": in use once it was ready; "peak": since then."""
        return self._ask(do="memory")

    def close(self) -> None:
        """Stop the process and those it started: a compiler has many."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._errors.close()

    def _ask(self, limit: float | None = None, **question: Any) -> Any:
        assert self._process.stdin and self._process.stdout
        try:
            print(json.dumps(question), file=self._process.stdin)
            if not select.select([self._process.stdout], [], [], limit)[0]:
                raise Failed(f"It was not ready after {limit:.0f} s.")
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines() or ["it says nothing"]
            raise Failed(f"Its process ended ({self._process.returncode}): {said[-1]}")
        answer = json.loads(line)
        if "failed" in answer:
            raise Failed(answer["failed"])
        return answer


class _Session:
    """The worker's side of the pipe."""

    resolve: Callable[[NDArray[Any]], NDArray[Any]]
    report: Callable[[], dict[str, float]]

    def open(self, contender: dict[str, Any], volume: str) -> dict[str, Any]:
        who = Contender(**contender)
        who = dataclasses.replace(who, window=tuple(who.window) if who.window else None)
        self.volume = np.asfortranarray(np.load(volume))
        described = self._runtime(who) if who.kind == "udean" else self._peer(who)
        self.resolve(self.volume)  # warm up: compile, choose kernels, fill caches
        _forget_peak()
        self.ready = _status("VmRSS")
        return described

    def _runtime(self, who: Contender) -> dict[str, Any]:
        from ...runtime.cuda import pipeline
        from ...runtime.engines.choose import choose_engine
        from ...runtime.pipeline import host
        from ...runtime.resolver import SuperResolver

        options: Any = who.precision, who.threads, who.library
        engine = choose_engine(Path(who.model), who.device, *options)
        window = who.window or engine.card.window
        equal: Any = {} if who.as_run else {"window": window, "consistency": "off"}
        resolver = SuperResolver(engine, overlap=who.overlap, **equal)
        plan = resolver.tiling(self.volume.shape)
        self.resolve = lambda volume: resolver(volume, dtype="float32")

        def report() -> dict[str, float]:
            timings = resolver.timings
            assert timings
            return {"network": timings.network, "windows": timings.computed}

        self.report = report
        voxels = host.BATCH_VOXELS if who.device == "cpu" else pipeline.BATCH_VOXELS
        window = plan.rows.window, plan.columns.window
        batch = max(1, voxels // (window[0] * window[1]))
        return {"what": str(resolver.engine.info), "batch": batch, "window": window}

    def _peer(self, who: Contender) -> dict[str, Any]:
        from ...runtime.pipeline.tiling import tile_windows
        from ...runtime.system.extras import require
        from .peers.monai import MonaiPath
        from .peers.network import TorchNetwork
        from .peers.torchio import TorchioPath

        torch = require("torch", "bench")
        if who.threads:
            torch.set_num_threads(who.threads)
        network = TorchNetwork(Path(who.model), who.device, who.precision, who.compiled)
        plan = tile_windows(self.volume.shape, network.card, who.overlap, who.window)
        library, _, variant = who.kind.partition(" ")
        kind: Any = MonaiPath if library == "monai" else TorchioPath
        path = self.resolve = kind(network, plan, who.batch, variant)
        self.report = lambda: {
            "network": network.seconds,
            "windows": sum(network.batches),
            "calls": len(network.batches),
        }
        what = f"torch {torch.__version__} on {who.device}, {who.precision}"
        return {"what": what, "batch": path.batch, "window": path.window[:2]}

    def run(self) -> dict[str, float]:
        start = time.perf_counter()
        self.sr = self.resolve(self.volume)
        total = time.perf_counter() - start
        return {"total": total, **self.report()}

    def save(self, path: str) -> dict[str, Any]:
        np.save(path, self.sr)
        return {}

    def memory(self) -> dict[str, int]:
        return {"peak": _status("VmHWM"), "ready": self.ready}


def _status(name: str) -> int:
    """Bytes that the kernel counts: VmRSS resident now, VmHWM at most (pages of mapped files included)."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # not Linux: the peak since the process began, in kB or (macOS) bytes
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024


def _forget_peak() -> None:
    """Reset the high-water mark to the current resident size."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def _end_with(parent: int) -> None:
    """End this process soon after its parent, also amid a computation."""
    while os.getppid() == parent:
        time.sleep(PERIOD)
    os._exit(1)


def main() -> None:
    """Answer the parent's questions until it closes the pipe; a parent that was killed has no more."""
    threading.Thread(target=_end_with, args=(int(sys.argv[1]),), daemon=True).start()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # keeps libraries' output out of the answers
    session = _Session()
    for line in sys.stdin:
        question = json.loads(line)
        try:
            answer = getattr(session, question.pop("do"))(**question)
        except Exception as error:  # whatever it is, it is reported to the parent
            text = str(error).strip().splitlines() or [""]
            name = "" if isinstance(error, RunError) else f"{type(error).__name__}: "
            answer = {"failed": name + text[0]}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
