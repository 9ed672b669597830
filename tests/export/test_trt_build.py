"""Plans on real hardware: build, run, parity, refit, timing cache, and what another machine refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from udean.export import trt_build, trt_plan
from udean.export.artefacts import Artefact, export_onnx
from udean.export.errors import ExportError
from udean.export.trt_build import BuildOptions, Built
from udean.export.verify import verify
from udean.runtime.errors import RunError
from udean.runtime.models.trt_plan import read_card, sidecar

from .conftest import write_checkpoint

pytestmark = pytest.mark.tensorrt

SIZES = trt_plan.Sizes(batches=(1, 2, 4), streams=2)


@pytest.fixture(autouse=True, scope="session")
def hardware() -> None:
    try:
        trt_plan.check_host()
    except (ExportError, RunError) as reason:
        pytest.skip(f"needs TensorRT, PyCUDA and an NVIDIA GPU: {reason}")


@pytest.fixture
def models(tmp_path: Path, exported: dict[str, Artefact], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with tiny.onnx and tiny.fp16.onnx, and a timing cache of its own."""
    for artefact in exported.values():
        shutil.copy(artefact.path, tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The timings that each build started from."""
    seen: list[bytes] = []
    real: Callable[..., Built] = trt_build.build

    def build(*arguments: Any) -> Built:
        seen.append(arguments[-1])
        return real(*arguments)

    monkeypatch.setattr(trt_plan, "build", build)
    return seen


def build(models: Path, options: BuildOptions | None = None, **more: Any) -> Artefact:
    return trt_plan.build_plan(
        models / "tiny.fp16.onnx", models, SIZES, options or BuildOptions(level=1), **more
    )


def psnr(plan: Path) -> float:
    return min(d.psnr for d in dict(verify(plan))["tensorrt"].values())


def test_a_plan_runs_and_agrees(models: Path) -> None:
    artefact = build(models)
    card = read_card(artefact.path)
    assert card.card.parity["tensorrt/brain"]["psnr"] >= 60
    assert psnr(artefact.path) >= 60


def test_a_float32_graph_keeps_float32(models: Path) -> None:
    artefact = trt_plan.build_plan(models / "tiny.onnx", models, SIZES, BuildOptions(level=1))
    assert artefact.card.parity["tensorrt/brain"]["relative"] <= 1e-5


@pytest.mark.parametrize(
    "options",
    [
        BuildOptions(level=1, version_compatible=True),
        BuildOptions(level=1, hardware="ampere"),
    ],
    ids=["version-compatible", "hardware-compatible"],
)
def test_every_kind_of_plan_runs(models: Path, options: BuildOptions) -> None:
    assert psnr(build(models, options).path) >= 60


def test_new_weights_go_into_the_plan_that_is_there(models: Path, builds: list[bytes]) -> None:
    options = BuildOptions(level=1, weights="refittable")
    build(models, options)
    for artefact in export_onnx(write_checkpoint(models / "new.pt", gain=1.5), models / "new"):
        shutil.copy(artefact.path, models / artefact.path.name.replace("new", "tiny"))
    artefact = build(models, options)  # measured against the new weights
    assert len(builds) == 1
    assert psnr(artefact.path) >= 60
    build(models, options)  # and it can be refitted again
    assert len(builds) == 1


def test_timings_serve_the_next_build(models: Path, builds: list[bytes]) -> None:
    build(models)
    build(models)
    assert builds[0] == b"" and len(builds[1]) > 0


def test_a_damaged_plan_or_one_of_another_version_is_refused(models: Path) -> None:
    plan = build(models).path
    fields = json.loads(sidecar(plan).read_text())
    sidecar(plan).write_text(json.dumps(fields | {"tensorrt": "9.9.9"}))
    with pytest.raises(RunError, match=r"built by TensorRT 9\.9\.9 and this is"):
        psnr(plan)
    sidecar(plan).write_text(json.dumps(fields))
    plan.write_bytes(plan.read_bytes()[:-100])
    with pytest.raises(RunError, match="do not belong together"):
        psnr(plan)
