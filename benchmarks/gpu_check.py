"""Every check that needs a GPU, in one call that loses nothing if interrupted: for a short loan of a GPU.

    python benchmarks/gpu_check.py [--minutes 14] [--device cuda] [--out benchmarks/results]

It needs no installation of this package: a Python with numpy, scipy, nibabel, isal, typer, rich, pytest,
hypothesis, lightning-fabric, PyTorch, onnx, onnxscript and monai, besides the engines to measure. Steps run
one after another, each in a process of its own and for no longer than its limit; a failure does not keep the
others from running. `gpu-check-DEVICE.json` is rewritten after each, and the last lines are a summary.
`--device cpu` rehearses the same steps.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TAIL = 60  # lines of a step's output that are kept
SUMMARY = 40  # lines of the summary
LEAST = 20.0  # seconds: with less time left, no step is started


@dataclass(frozen=True)
class Step:
    """A step. limit: seconds. arguments: Python's command line."""

    name: str
    limit: float
    arguments: tuple[str, ...]


@dataclass
class Outcome:
    """A step's outcome. state: done, failed, out of time, not begun. told: the end of its output."""

    name: str
    state: str
    seconds: float = 0.0
    told: list[str] = field(default_factory=list)


def steps(device: str, out: Path) -> list[Step]:
    """The steps in order of importance: correctness before speed, training last."""
    real = device != "cpu"
    shape = ("--shape", "160,160,129") if real else ("--shape", "64,64,5")
    bench = ("-m", "udean.benchmarks.engines.command", "--device", device, "--model", "paper", *shape)
    bench += ("--commands", "0", "--json", str(out), "--repeats", "5" if real else "1")
    rows = ("--engine", "PyTorch path", "--engine", "torch fp") if real else ("--engine", "torch fp32")
    tests = ("tests/runtime/cuda/test_gpu.py",)
    pytest = ("-m", "pytest", "-rs", "-p", "no:cacheprovider", "--import-mode=importlib", "-o", "addopts=")
    train = ("-m", "udean.benchmarks.training_speed", "--preset", "paper" if real else "compact")
    train += ("--steps", "20" if real else "2", "--warmup", "3" if real else "1", "--out", str(out))
    return [
        Step("device and versions", 60, ("-m", "udean.benchmarks.gpu_check", "--tell")),
        Step("kernels and engines against the processor", 240, (*pytest, *tests)),
        Step("PyTorch against the PyTorch path", 300, (*bench, *rows)),
        Step(
            "ONNX Runtime and TensorRT against it",
            240,
            (*bench, "--engine", "onnxruntime", "--engine", "tensorrt"),
        ),
        Step("training steps", 300, (*train, *(() if real else ("--no-compiled",)))),
    ]


def run(step: Step, left: float, environment: dict[str, str]) -> Outcome:
    """Run a step; left: seconds that the whole call has."""
    limit = min(step.limit, left)
    if limit < LEAST:
        return Outcome(step.name, "not begun: no time left")
    start = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [sys.executable, *step.arguments],
            cwd=ROOT,
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            state = "done" if process.wait(limit) == 0 else f"failed ({process.returncode})"
        except subprocess.TimeoutExpired:
            state = f"out of time after {limit:.0f} s"
        except KeyboardInterrupt:
            state = "interrupted"
        if process.poll() is None:
            os.killpg(process.pid, 9)  # with the processes that it has started
            process.wait()
        said.seek(0)
        told = said.read().splitlines()[-TAIL:]
    return Outcome(step.name, state, round(time.monotonic() - start, 1), told)


def tell() -> dict[str, Any]:
    """The device and the versions of all libraries involved."""
    import importlib.metadata

    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    for name in (
        "numpy",
        "torch",
        "onnx",
        "onnxruntime",
        "onnxruntime-gpu",
        "tensorrt",
        "pycuda",
        "cuda-bindings",
    ):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    try:
        import torch

        if torch.cuda.is_available():
            properties = torch.cuda.get_device_properties(0)
            found["gpu"] = torch.cuda.get_device_name(0)
            found["gpu GB"] = round(properties.total_memory / 1e9, 1)
            found["gpu capability"] = ".".join(map(str, torch.cuda.get_device_capability(0)))
    except ImportError:
        pass
    return found


def summary(found: dict[str, Any], outcomes: list[Outcome]) -> list[str]:
    """What to read first, in at most SUMMARY lines."""
    lines = [f"{found.get('gpu', platform.processor() or 'processor')}: {len(outcomes)} steps"]
    each = max(1, (SUMMARY - 1 - len(outcomes)) // max(1, len(outcomes)))
    for outcome in outcomes:
        lines.append(f"{outcome.state:>12}  {outcome.seconds:6.1f} s  {outcome.name}")
        wanted = r"\d" if outcome.state == "done" else r"\w"  # figures, or the last words of a failed step
        telling = [line for line in outcome.told if re.search(wanted, line)]
        lines += [f"    {line.strip()[:140]}" for line in telling[-each:]]
    return lines[:SUMMARY]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=14.0, help="for all steps together")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a rehearsal")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for the JSON"
    )
    parser.add_argument("--tell", action="store_true", help="only print device and versions")
    given = parser.parse_args()
    found = tell()
    if given.tell:
        print(json.dumps(found, indent=1))
        return 0
    end = time.monotonic() + 60 * given.minutes
    given.out.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W+", "-", str(found.get("gpu", "cpu") if given.device != "cpu" else "cpu")).lower()
    path, outcomes = given.out / f"gpu-check-{name}.json", []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "udean").symlink_to(ROOT)  # the checkout is the package
        paths = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
        for step in steps(given.device, given.out):
            print(f"{step.name} ...", flush=True)
            outcome = run(step, end - time.monotonic(), os.environ | {"PYTHONPATH": paths})
            outcomes.append(outcome)
            partial = path.with_suffix(".part")
            partial.write_text(json.dumps(found | {"steps": [asdict(o) for o in outcomes]}, indent=1) + "\n")
            partial.replace(path)
            print(f"{outcome.state} ({outcome.seconds} s)", flush=True)
            if outcome.state == "interrupted":
                break
    print("\n".join(summary(found, outcomes)))
    return 0 if all(outcome.state == "done" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
