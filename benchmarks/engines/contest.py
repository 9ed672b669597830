"""Who is measured, and how: all resolve the same volume in turn, each in a process of its own."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from ...runtime.cuda.device import Gpu
from ...runtime.engines.choose import choose_engine
from ...runtime.errors import RunError
from ...runtime.models.card import ModelCard
from ...runtime.pipeline.tiling import tile_windows, window_profile
from ...runtime.resolver import SuperResolver
from ...trainer.precision import processor_has_bf16
from .. import common
from ..child import Child, Failed
from .pytorch import MonaiPath, TorchNetwork
from .session import Contender, ContenderSession

PATH = "PyTorch path fp32"  # the baseline's row
WIDE = 0.2  # spread of a speed-up, over its median, above which it means little
OPENING = 900.0  # seconds allowed for opening an engine and resolving the first volume
SESSION = f"{ContenderSession.__module__}:{ContenderSession.__qualname__}"


@dataclass(frozen=True)
class SpeedUp:
    """Ratios, one per turn: their median, least and largest.

    The true median lies between the last two with probability 1 - 2^(1 - n) for n turns: 94 % for 5.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, path: Sequence[float], ours: Sequence[float]) -> SpeedUp:
        """From the seconds of both, turn by turn."""
        ratios = [p / o for p, o in zip(path, ours, strict=True)]
        return cls(statistics.median(ratios), min(ratios), max(ratios))

    @property
    def doubt(self) -> str:
        """Why no conclusion is possible; empty if one is."""
        between = f"{self.low:.2f} to {self.high:.2f} times as fast as the PyTorch path"
        if (self.high - self.low) / self.median > WIDE:
            return f"{between}: too wide to conclude; close other programs, or use more --repeats."
        if self.low < 1 < self.high:
            return f"{between}: no difference can be shown."
        return ""


@dataclass
class Entrant:
    """A contender and its measurements. failed: why there are none. Seconds: one value per turn.

    window: rows and columns of one window. windows: how many the network processed. device_bytes: of the GPU
    that it holds between its turns. figures: the rest, under their names in the JSON.
    """

    contender: Contender
    failed: str = ""
    what: str = ""
    batch: int | None = None
    window: tuple[int, int] = (0, 0)
    totals: list[float] = field(default_factory=list)
    networks: list[float] = field(default_factory=list)
    windows: int = 0
    device_bytes: int = 0
    figures: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.contender.name

    @property
    def ours(self) -> bool:
        return self.contender.kind == "udean"

    def as_dict(self) -> dict[str, Any]:
        """As the JSON has it: medians, and the seconds of each turn."""
        who = self.contender
        head = {"name": who.name, "kind": who.kind, "precision": who.precision}
        if self.failed:
            return {**head, "failed": self.failed}
        return {
            **head,
            "what": self.what,
            "batch": self.batch,
            "window": self.window,
            "windows": self.windows,
            "seconds": statistics.median(self.totals),
            "network_seconds": statistics.median(self.networks),
            "seconds_of_all": self.totals,
            "network_seconds_of_all": self.networks,
            **self.figures,
        }


def contenders(models: common.ModelFiles, cuda: bool, compiled: bool, **equal: Any) -> list[Contender]:
    """The rows, the baseline first. equal: fields that all have."""
    low = "fp16" if cuda else "bf16"

    def path(name: str, precision: str, **more: Any) -> Contender:
        file = str(models.checkpoint)
        return Contender(f"PyTorch path {name}", "monai", file, precision=precision, **equal, **more)

    def udean(library: str, precision: str, model: Path, choose: str, as_run: bool = False) -> Contender:
        name = f"{library} {precision}{', as udean-run' if as_run else ''}"
        more = {"precision": precision, "library": choose, "as_run": as_run}
        return Contender(name, "udean", str(model), **equal, **more)

    rows = [path("fp32", "fp32"), path(f"{low} autocast", low)]
    if compiled:
        rows += [path(f"{p} compiled", p, compiled=True) for p in ("fp32", low)]
    rows += [udean("torch", p, models.checkpoint, "auto") for p in ("fp32", low)]
    graphs = (("fp32", models.full), ("fp16", models.half))
    rows += [udean("onnxruntime", p, m, "auto" if cuda else "onnxruntime") for p, m in graphs]
    if cuda:
        return [*rows, udean("tensorrt", "fp16", models.plan, "auto")]
    ways = itertools.product((False, True), ("fp32", "bf16"))
    return rows + [udean("openvino", p, models.full, "openvino", as_run) for as_run, p in ways]


def fitting(near: tuple[int, int, int], card: ModelCard, overlap: float) -> tuple[int, int, int]:
    """The nearest shape in which MONAI's windows and ours coincide: whole steps, none shifted."""
    sizes = []
    for size, window in zip(near, (*card.window, card.slab[0]), strict=True):
        step = max(1, int(window * (1 - overlap) + 1e-9))
        sizes.append(window + max(1, round((size - window) / step)) * step)
    return sizes[0], sizes[1], sizes[2]


class Contest:
    """Opens every row's process, lets all resolve the volume in turn, and measures the results."""

    def __init__(
        self,
        rows: Sequence[Entrant],
        volume: NDArray[Any],
        folder: Path,
        gpu: Gpu | None,
        compile_limit: float,
    ) -> None:
        self.rows, self._folder, self._limit = rows, folder, compile_limit
        self._volume = folder / "volume.npy"
        np.save(self._volume, volume)
        self._gpu, self._open = gpu, dict[str, Child]()

    def run(self, turns: int, tell: Callable[[str], None]) -> None:
        """tell: hears of progress, `turns` + 1 times per row. Raises Failed if the baseline does."""
        try:
            for row in self.rows:
                tell(f"Opening {row.name}")
                self._attempt(row, self._start)
            for turn in range(turns):
                for row in self.rows:
                    if row.name in self._open:
                        self._attempt(row, self._take_turn)
                    tell(f"Turn {turn + 1}: {row.name}")
            self._judge()
        finally:
            for child in self._open.values():
                child.close()

    def _attempt(self, row: Entrant, step: Callable[[Entrant], None]) -> None:
        before = self._device_bytes()
        try:
            step(row)
            row.device_bytes += self._device_bytes() - before  # the others are idle
        except Failed as error:
            if row is self.rows[0]:
                raise Failed(f"The baseline, {row.name}, cannot be measured: {error}") from error
            row.failed = str(error)
            if child := self._open.pop(row.name, None):
                child.close()

    def _device_bytes(self) -> int:
        """The GPU's memory that all processes use."""
        if not self._gpu:
            return 0
        with self._gpu.current():
            free, whole = self._gpu.cuda.mem_get_info()
        return whole - free

    def _start(self, row: Entrant) -> None:
        who = row.contender
        if who.compiled:  # reusing the best uncompiled batch size avoids compiling each size
            who = row.contender = dataclasses.replace(who, batch=self.rows[0].batch)
        if who.precision == "bf16" and not processor_has_bf16():
            raise Failed("This processor computes bfloat16 by way of float32, many times as slowly.")
        limit = self._limit if who.compiled else OPENING
        child = self._open[row.name] = Child(SESSION, who, str(self._volume), limit=limit)
        about = child.ask("about")
        row.what, row.batch, row.window = about["what"], about["batch"], about["window"]

    def _take_turn(self, row: Entrant) -> None:
        found = self._open[row.name].ask("run")
        row.totals.append(round(found["total"], 4))
        row.networks.append(round(found["network"], 4))
        row.windows = int(found["windows"])

    def _judge(self) -> None:
        """Speed-up, memory, and the deviation from float32 of the same windows and weights."""
        path, results = self.rows[0], {}
        for place, row in enumerate(row for row in self.rows if row.name in self._open):
            child = self._open[row.name]
            # Per window, if their numbers differ: the runtime leaves out what is constant. Windows of another
            # size cannot be compared, and what is left out then counts.
            of = [1, 1] if row.contender.as_run else [path.windows, row.windows]
            seconds = [[t / n for t in r.totals] for r, n in zip((path, row), of, strict=True)]
            row.figures["speed_up"] = dataclasses.asdict(SpeedUp.of(*seconds))
            memory = child.ask("memory")
            row.figures["host_mb"] = round(memory["peak"] / 1e6, 1)
            row.figures["host_mb_over_ready"] = round((memory["peak"] - memory["ready"]) / 1e6, 1)
            if self._gpu:
                row.figures["device_mb"] = round(row.device_bytes / 1e6, 1)
            file = self._folder / f"sr-{place}.npy"
            child.ask("save", str(file))
            # The runtime yields no negative voxels for magnitudes; clip the others likewise.
            results[row.name] = np.maximum(np.load(file, mmap_mode="r"), 0)
        full = [r for r in self.rows if r.name in results and r.contender.precision == "fp32"]
        exact = next((row for row in full if row.ours and not row.contender.as_run), path)
        for row in self.rows:
            if row.name in results:
                reference = exact if row.ours else path
                row.figures["against"] = reference.name
                row.figures |= _deviation(results[row.name], results[reference.name])
                row.figures["path_psnr"] = _deviation(results[row.name], results[path.name])["psnr"]


def _deviation(found: NDArray[Any], wanted: NDArray[Any]) -> dict[str, float | None]:
    """PSNR in dB (None if nothing differs), and the largest error over the wanted range."""
    measured = common.deviation(found, wanted)
    return {
        "psnr": None if measured["psnr"] == float("inf") else measured["psnr"],
        "largest_error": measured["largest"],
    }


def agree(models: common.ModelFiles, device: str, overlap: float) -> dict[str, Any]:
    """Do MONAI and the runtime agree, in float32, if windows coincide? Two windows along each axis.

    "own_weights": MONAI's gaussian. "same_weights": ours, through its `process_fn`: only rounding remains.
    """
    (rows, columns), slices = models.card.window, models.card.slab[0]
    shape = fitting((2 * rows - 1, 2 * columns - 1, 2 * slices - 1), models.card, overlap)
    volume, tiling = common.textured(shape), tile_windows(shape, models.card, overlap)
    engine = choose_engine(models.checkpoint, device, "fp32", None, "auto")
    equal = SuperResolver(engine, overlap=overlap, window=models.card.window, consistency="off")
    ours = equal(volume, dtype="float32")
    axes = (tiling.rows, tiling.columns, tiling.slices)
    weights = [window_profile(a.window, a.scale, models.card.grid, "gaussian") for a in axes]
    same = np.einsum("i,j,k->ijk", *weights).astype(np.float32)
    network, found = TorchNetwork(models.checkpoint, device), {}
    for name, given in (("own_weights", None), ("same_weights", same)):
        path = MonaiPath(network, tiling, batch=4, weights=given)
        found[name] = _deviation(np.maximum(path(volume), 0), ours)
        assert sum(network.batches) == len(tiling)
    return {"shape": list(shape), "windows": len(tiling), **found}


def whole_command(row: Entrant, volume: NDArray[Any], folder: Path, times: int) -> dict[str, Any]:
    """Seconds of a whole command from .nii.gz to .nii.gz, interpreter and imports included.

    `udean-run` for the runtime, pytorch.py for the PyTorch path; a compiled one has no command.
    """
    who, source = row.contender, folder / "0.nii.gz"
    if who.compiled:
        return {}
    if not source.exists():
        nib.save(nib.Nifti1Image(volume, np.diag([1, 1, 2, 1])), source)
    settings = ["--device", who.device, "--precision", who.precision, "--overlap", who.overlap]
    settings += ["--threads", who.threads]
    if row.ours:
        module, files = "udean.runtime.commands.run", [source]
        settings += ["--engine", who.model, "--library", who.library, "--overwrite", "-o", folder / "out"]
        if not who.as_run:
            settings += ["--window", "x".join(map(str, row.window)), "--consistency", "off"]
    else:
        module, files = MonaiPath.__module__, [who.model, source, folder / "sr.nii.gz"]
        settings += ["--batch", row.batch, "--window", *row.window]
    try:
        seconds = [common.command_seconds(module, *settings, *files) for _ in range(times)]
    except RunError as error:
        return {"command_failed": str(error)}
    return {"command_seconds": round(statistics.median(seconds), 3)}
