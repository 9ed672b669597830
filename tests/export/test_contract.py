"""Our TensorRT code keeps to the real bindings of TensorRT 10 and 11."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from udean.export.artefacts import Artefact

from ..support.bindings import VERSIONS, install


@pytest.mark.parametrize("version", VERSIONS)
def test_builder_and_engine_code_keep_to_the_bindings(
    version: str, exported: dict[str, Artefact], pytestconfig: pytest.Config
) -> None:
    assert pytestconfig.cache is not None
    folder = Path(pytestconfig.cache.mkdir(f"tensorrt-bindings-{version}"))
    environment = install(version, folder) | {"UDEAN_CONTRACT_MODELS": str(exported["fp16"].path.parent)}
    contract = Path(__file__).parents[1] / "support" / "contract.py"
    options = ["-q", "--noconftest", "-p", "no:cacheprovider", "--import-mode=importlib"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(contract)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
