"""Shared by all benchmarks: model, volume, fair repetition, baseline, a result with its circumstances."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import typer
from numpy.typing import NDArray

from ..export.graph import serialize, to_onnx
from ..runtime.commands.common import sentences
from ..runtime.errors import RunError
from ..runtime.models.card import ModelCard
from ..runtime.resolver import SuperResolver
from ..runtime.system.files import write_json
from ..runtime.system.threads import cores
from ..trainer import checkpoint
from ..trainer.nets import generators
from ..trainer.nets.merging import merged

RESULTS = Path(__file__).parent / "results"
EMBEDDED = Path(str(files("udean.runtime") / "models" / "default.onnx"))
LIBRARIES = (
    "numpy",
    "torch",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "monai",
    "pycuda",
    "ray",
)
ARCHITECTURES = {
    "paper": generators.Architecture(),
    "compact": generators.Architecture(channels=32, groups=2, blocks=3, skip="cubic"),
}


@dataclass(frozen=True)
class ModelFiles:
    """A network as a checkpoint, in ONNX in float32 and in half precision, and the place of its plan."""

    checkpoint: Path
    full: Path
    half: Path
    plan: Path
    card: ModelCard


def save_untrained(folder: Path, name: str, arch: generators.Architecture) -> Path:
    """The checkpoint of an untrained network. Speed does not depend on the weights' values."""
    import torch

    torch.manual_seed(0)
    network = generators.super_resolution(arch).eval()
    card = ModelCard(
        name=f"{name}-untrained",
        method="none",
        scale=(2, 2, 2),
        slab=(3, 6),
        window=(64, 64),
        grid="fft",
        intensity="percentile-99.9",
        skip=arch.skip,
        precision="fp32",
        parameters=generators.parameter_count(network),
        toolkit="benchmark",
        trained_on="nothing",
    )
    path = folder / f"{name}.pt"
    checkpoint.save(path, card, arch, network)
    return path


def untrained(folder: Path, preset: str) -> ModelFiles:
    """An untrained network of a preset's size."""
    return trained(save_untrained(folder, preset, ARCHITECTURES[preset]), folder)


def trained(file: Path, folder: Path) -> ModelFiles:
    """A checkpoint, exported into the folder."""
    network, card = checkpoint.load_generator(file)
    network, stem = merged(network), folder / file.stem
    full, half = stem.with_name(f"{stem.name}.onnx"), stem.with_name(f"{stem.name}.fp16.onnx")
    full.write_bytes(serialize(to_onnx(network, card.slab[0], half=False), card))
    half.write_bytes(serialize(to_onnx(network, card.slab[0], half=True), card.replace(precision="fp16")))
    return ModelFiles(file, full, half, stem.with_name(f"{stem.name}.plan"), card)


def embedded(folder: Path) -> ModelFiles:
    """The embedded model: the checkpoint that it was exported from, and both precisions."""
    kept = folder / "embedded.pt"
    kept.write_bytes(EMBEDDED.with_suffix(".pt").read_bytes())
    return trained(kept, folder)


def numbers(text: str, form: str = "160,160,128") -> Any:
    """Voxels along each axis, a tuple, as an option gives them. Raises RunError for another form."""
    try:
        found = tuple(map(int, text.replace("x", ",").split(",")))
    except ValueError:
        found = ()
    if len(found) != len(form.replace("x", ",").split(",")) or min(found) < 1:
        raise RunError(f"'{text}' is not of the form {form}, with at least one voxel along each axis.")
    return found


def textured(shape: Sequence[int], dtype: str = "int16") -> NDArray[Any]:
    """A volume of noise and waves everywhere, so that every window has to be computed."""
    axes = np.meshgrid(*(np.linspace(0, 9, n, dtype=np.float32) for n in shape), indexing="ij", sparse=True)
    waves = np.sin(axes[0]) * np.cos(axes[1]) * np.sin(axes[2] + 1) * 300 + 500
    noise = np.random.default_rng(0).standard_normal(shape, np.float32) * 20
    return np.asfortranarray((waves + noise).astype(dtype))


def timed(resolve: SuperResolver, volume: NDArray[Any]) -> tuple[NDArray[Any], dict[str, float]]:
    """The SR volume, the seconds that it took in all and in the network, and the windows computed."""
    sr, timings = resolve(volume), resolve.timings
    assert timings
    return sr, {"seconds": timings.total, "network": timings.network, "windows": timings.computed}


def alternate(
    runs: dict[str, Callable[[], dict[str, float]]], times: int = 5, warming: int = 1
) -> dict[str, dict[str, list[float]]]:
    """Run all in turn, the first `warming` turns uncounted; returns the figures of each, in order.

    They alternate, so that a disturbance of the machine affects all of them equally.
    """
    figures: dict[str, dict[str, list[float]]] = {name: {} for name in runs}
    for turn in range(1 - warming, times + 1):
        for name, run in runs.items():
            found = run()
            print(f"{turn if turn > 0 else 'warm-up'} {name}: {found}", file=sys.stderr, flush=True)
            if turn > 0:
                for key, value in found.items():
                    figures[name].setdefault(key, []).append(round(value, 6))
    return figures


def command_seconds(module: str, *arguments: object) -> float:
    """Seconds of a whole command, interpreter and imports included. Raises RunError if it fails."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        raise RunError(f"{module} failed: {(done.stderr.strip().splitlines() or [''])[-1]}")
    return seconds


def medians(figures: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    return {name: {k: statistics.median(v) for k, v in kinds.items()} for name, kinds in figures.items()}


def deviation(found: NDArray[Any], wanted: NDArray[Any]) -> dict[str, float]:
    """PSNR (dB) and largest error, both relative to the wanted volume's range."""
    error = found.astype(np.float64) - wanted
    span = float(wanted.max()) - float(wanted.min())
    mse = float(np.mean(error**2))
    psnr = 10 * np.log10(span**2 / mse) if mse else float("inf")
    return {"psnr": round(float(psnr), 2), "largest": float(np.abs(error).max() / span)}


def record(
    name: str, result: dict[str, Any], folder: Path = RESULTS, arguments: Sequence[str] | None = None
) -> None:
    """Write a result with its circumstances: machine, versions, command.

    arguments: of the command, if the real ones are private, such as the paths of scans.
    """
    given = sys.argv[1:] if arguments is None else arguments
    module = getattr(sys.modules["__main__"].__spec__, "name", Path(sys.argv[0]).stem)
    command = ["python", "-m", module, *given]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", {**circumstances(command), **result})
    print(json.dumps(result, indent=2))


def run_script(script: Callable[..., None] | typer.Typer, extra: str = "bench") -> None:
    """Run a benchmark's function, or its commands, on sys.argv; errors that a user can fix are one sentence.

    extra: of this package, to install if a library is missing.
    """
    with sentences(extra):
        script() if isinstance(script, typer.Typer) else typer.run(script)


def slug(text: str) -> str:
    """A text, such as a device's name, as part of a file's name."""
    return "-".join(re.findall(r"[a-z0-9.]+", text.lower()))


def circumstances(command: Sequence[str]) -> dict[str, Any]:
    """A figure's circumstances: processor, versions, command; nothing that names the machine or its user."""
    versions = {}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "command": " ".join(command),
        "date": time.strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": cores(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _processor() -> str:
    """The processor's name and the instruction sets that make it fast here."""
    fields: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    wanted = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
    flags = [flag for flag in wanted if flag in fields.get("flags", "").split()]
    return f"{fields.get('model name', platform.machine())} ({', '.join(flags)})"
