"""Every check that needs a GPU, in one call that loses nothing if interrupted: for a short loan of a GPU.

    python tests/gpu_check.py [--minutes 9] [--only WORDS] [--device cuda] [--scans HR] [--out FOLDER]

It needs no installation of this package: a Python with the modules of NEEDED, besides the engines to measure.
What a bare machine lacks of them is named; carry it as wheels (`pip install --no-deps --target FOLDER *.whl`,
PYTHONPATH=FOLDER). Steps run one after another, each in a process of its own and for no longer than its
limit; a failure does not keep the others from running. `gpu-check-DEVICE.json` is rewritten after each, and
the last lines are a summary. A later call takes what is left: `--only compiled --only training`.
With HR scans (`--scans FOLDER`) the paper preset is trained for the rest of the time; a later call goes on
from its last checkpoint. `--device cpu --minutes 60` rehearses the same steps, on less and with more time.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TAIL = 60  # lines of a step's output that are kept, besides those that tell
SUMMARY = 40  # lines of the summary
LEAST = 20.0  # seconds: with less time left, no step is started
NEEDED = "numpy scipy nibabel isal typer rich pytest hypothesis lightning_fabric torch onnx onnxscript monai"


@dataclass(frozen=True)
class Check:
    """A step. limit: seconds. arguments: Python's command line. telling: what the lines with figures match.
    needs: distributions, one of which must be installed. proof: what a line must match, or it has failed.
    goes_on: it takes all the time that is left, and a later call takes it up again."""

    name: str
    limit: float
    arguments: tuple[str, ...]
    telling: str = r"\d"
    needs: tuple[str, ...] = ()
    proof: str = ""
    goes_on: bool = False


@dataclass
class CheckOutcome:
    """A step's outcome. state: done, failed, out of time, to go on, left out, not begun. told: the end of its
    output. telling: its figures.
    """

    name: str
    state: str
    seconds: float = 0.0
    told: list[str] = field(default_factory=list)
    telling: list[str] = field(default_factory=list)


def training(preset: str, scans: Path | None, run: Path) -> list[Check]:
    """The training of UDEAN on one half of the scans as HR group and the degraded other half as LR group."""
    if scans is None:
        return []
    found = sorted(str(path.resolve()) for path in scans.glob("*.nii*"))
    given = ["--preset", preset, "--target-simulated", "--config", str(run.with_suffix(".toml"))]
    for at, scan in enumerate(found):
        given += ["--target" if at % 2 else "--source", scan]
    begun = (run / "checkpoint.pt").exists()
    code = "from udean.trainer.cli import train; train()"
    if not begun:
        run.parent.mkdir(parents=True, exist_ok=True)
        run.with_suffix(".toml").write_text("[schedule]\ncheckpoint_every = 100\n")
    arguments = ("-c", code, "--out", str(run), *(["--resume"] if begun else given))
    return [Check(f"training of the {preset} preset", 1e9, arguments, r"step|loss|\d/s", goes_on=True)]


def steps(device: str, out: Path) -> list[Check]:
    """The steps in order of importance: correctness before speed, training last."""
    real = device != "cpu"
    preset, shape = ("paper", "160,160,129") if real else ("compact", "64,64,3")
    repeats = ("--repeats", "5" if real else "1")
    bench = ("-m", "udean.benchmarks.engines.command", "--device", device, "--model", preset)
    bench += ("--shape", shape, "--commands", "0", *repeats)
    row = r"^\W*(engine|PyTorch path|torch|onnxruntime|tensorrt)\b"
    stages = ("-m", "udean.benchmarks.gpu_stages", "--device", device, "--out", str(out), *repeats)
    stages += () if real else ("--preset", preset, "--shape", shape)
    pytest = ("-m", "pytest", "-rs", "-p", "no:cacheprovider", "--import-mode=importlib", "-o", "addopts=")
    train = ("-m", "udean.benchmarks.training_speed", "--preset", preset, "--out", str(out))
    train += ("--steps", "20", "--warmup", "3") if real else ("--steps", "2", "--warmup", "1", "--batch", "2")
    ours = ("--quick", "--engine", "torch fp", "--engine", "autocast", "--json", str(out))
    libraries = ("--quick", "--engine", "onnxruntime", "--engine", "tensorrt")
    libraries += ("--json", str(out / "bench-libraries.json"))
    compiled = ("--engine", "compiled", "--compile-limit", "90", "--json", str(out / "bench-compiled.json"))
    planned = [
        Check("device and versions", 60, ("tests/gpu_check.py", "--tell")),
        Check(
            "kernels and engines against the processor",
            200,
            (*pytest, "tests/runtime/cuda/test_gpu.py"),
            r"passed|failed|skipped|SKIPPED|^(FAILED|ERROR|E  )",
            proof=r"\d+ passed" if real else "",
        ),
        Check("stages of a volume", 120, stages, r" of it outside the network, |cannot capture"),
        Check("PyTorch against the PyTorch path", 200, (*bench, *ours), row),
        Check(
            "ONNX Runtime and TensorRT against it",
            200,
            (*bench, *libraries),
            row,
            ("onnxruntime-gpu", "tensorrt") if real else (),
        ),
        Check("PyTorch compiled", 200, (*bench, *(compiled if real else ours)), row),
        Check("speed of training", 200, (*train, *(() if real else ("--no-compiled",))), "patches/s"),
    ]
    # A rehearsal shows that steps run, not how fast, on a machine that may be busy.
    return planned if real else [replace(check, limit=5 * check.limit) for check in planned]


def run(step: Check, left: float, environment: dict[str, str]) -> CheckOutcome:
    """Run a step; left: seconds that the whole call has."""
    if step.needs and not any(map(_version, step.needs)):
        return CheckOutcome(step.name, f"left out: {' and '.join(step.needs)} not installed")
    limit = min(step.limit, left)
    if limit < LEAST:
        return CheckOutcome(step.name, "not begun: no time left")
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
            state = "to go on" if step.goes_on else f"out of time after {limit:.0f} s"
        except KeyboardInterrupt:
            state = "interrupted"
        if process.poll() is None:
            os.killpg(process.pid, 9)  # with the processes that it has started
            process.wait()
        said.seek(0)
        lines = said.read().splitlines()
    if state == "done" and not any(re.search(step.proof, line) for line in ["", *lines]):
        state = "failed (it has shown nothing)"
    telling = [line.rstrip() for line in lines if re.search(step.telling, line)][-SUMMARY:]
    return CheckOutcome(step.name, state, round(time.monotonic() - start, 1), lines[-TAIL:], telling)


def _version(distribution: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def tell() -> dict[str, Any]:
    """The device and the versions of all libraries involved."""
    found: dict[str, Any] = {"python": platform.python_version(), "platform": platform.platform()}
    found["missing"] = [name for name in NEEDED.split() if not importlib.util.find_spec(name)]
    names = (
        "numpy torch triton onnx onnxscript onnxruntime onnxruntime-gpu tensorrt pycuda cuda-bindings monai"
    )
    found |= {name: version for name in names.split() if (version := _version(name))}
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


def summary(found: dict[str, Any], outcomes: list[CheckOutcome]) -> list[str]:
    """The summary to read first, in at most SUMMARY lines."""
    head = f"{found.get('gpu', platform.processor() or 'processor')}: {len(outcomes)} steps"
    parts = []
    for outcome in outcomes:
        last = [line for line in outcome.told if line.strip()]  # the last words of a step that failed
        telling = outcome.telling if outcome.state == "done" else [*outcome.telling[-3:], *last[-3:]]
        parts.append([" ".join(re.sub("[│┃]", " ", line).split())[:140] for line in telling])
    each = SUMMARY
    while 1 + len(outcomes) + sum(min(each, len(part)) for part in parts) > SUMMARY and each > 1:
        each -= 1
    lines = [head]
    for outcome, part in zip(outcomes, parts, strict=True):
        lines.append(f"{outcome.state:>12}  {outcome.seconds:6.1f} s  {outcome.name}")
        lines += [f"    {line}" for line in part[-each:]]
    return lines[:SUMMARY]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="for all steps together")
    parser.add_argument("--only", action="append", help="only steps whose name contains this; repeatable")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu for a rehearsal")
    parser.add_argument("--scans", type=Path, help="folder of HR scans (NIfTI) to train on at the end")
    parser.add_argument(
        "--run", type=Path, default=ROOT / "runs" / "gpu-check", help="folder of that training"
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results", help="folder for the JSON"
    )
    parser.add_argument("--tell", action="store_true", help="only print device and versions")
    given = parser.parse_args()
    given.out = given.out.resolve()  # steps run elsewhere
    found = tell()
    if given.tell:
        print(json.dumps(found, indent=1))
        return 0
    if found["missing"]:
        print(f"Missing here, so that some steps will fail: {', '.join(found['missing'])}", flush=True)
    end = time.monotonic() + 60 * given.minutes
    given.out.mkdir(parents=True, exist_ok=True)
    name = re.sub(r"\W+", "-", str(found.get("gpu", "cpu") if given.device != "cpu" else "cpu")).lower()
    name = "-".join([name, *re.findall(r"\w+", " ".join(given.only or ()).lower())])
    path, outcomes = given.out / f"gpu-check-{name}.json", []
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "udean").symlink_to(ROOT)  # the checkout is the package
        paths = os.pathsep.join([folder, *filter(None, [os.environ.get("PYTHONPATH")])])
        preset = "paper" if given.device != "cpu" else "compact"
        last = training(preset, given.scans, given.run.resolve())
        for step in [*steps(given.device, given.out), *last]:
            if given.only and not any(words.lower() in step.name.lower() for words in given.only):
                continue
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
    return 0 if all(re.match("done|to go on|left out", outcome.state) for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
