"""The least work of a GPU, for a network whose figures are known by hand."""

import json

import pytest
from udean.benchmarks import gpu_on_paper


def test_each_stage_moves_what_windows_and_voxels_say(tmp_path):
    gpu_on_paper.main(shape="64,64,5", preset="compact", out=tmp_path)
    found = json.loads((tmp_path / "gpu-on-paper-compact.json").read_bytes())
    assert found["windows"] == 2 and found["window"] == [64, 64]  # slabs of three slices at 0 and 2
    moved = {stage["stage"]: stage["bytes"] for stage in found["stages"]}
    lr, taken = 64 * 64 * 5, 2 * 3 * 64 * 64
    assert moved == {
        "upload": 2 * lr,
        "gather": (2 + 2) * taken,
        "blend": (2 + 4 + 4) * 8 * taken,
        "measured band": 32 * 8 * lr,
        "store": (4 + 2) * 8 * lr,
        "download": 2 * 8 * lr,
    }
    half, full = found["network"]["fp16"], found["network"]["fp32"]
    assert half["flop"] == full["flop"] and full["bytes"] == pytest.approx(2 * half["bytes"])
    assert full["seconds"] >= full["flop"] / gpu_on_paper.H100.flops["fp32"]
    assert half["seconds"] >= half["bytes"] / gpu_on_paper.H100.copy
