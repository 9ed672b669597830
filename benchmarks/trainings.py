"""Benchmarks of trainings: each is trained and measured once, and resumes after an interruption."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..runtime.system.files import read_json, write_json
from ..trainer.config import Config
from ..trainer.fit import fit


def kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result in a file; if there is none, it is made now and kept there."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, make())
    return read_json(file)


def train(config: Config, run: Path) -> Path:
    """The final checkpoint of a training in its folder."""
    return fit(config, run, resume=(run / "checkpoint.pt").exists(), report=tell_steps)


def tell_steps(step: int, total: int, values: dict[str, float]) -> None:
    """A line every 25 steps, and whenever the training is validated."""
    if step % 25 == 0 or "validation_psnr" in values:
        print(f"  step {step} of {total}", {k: round(v, 4) for k, v in values.items()}, flush=True)
