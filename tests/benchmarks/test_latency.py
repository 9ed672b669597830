"""The latency benchmark, at a size that says nothing about speed: it measures what it says it does."""

import json
import subprocess
import sys

import pytest


def test_it_measures_server_volume_and_streams_in_one_run(tmp_path):
    command = [sys.executable, "-m", "udean.benchmarks.latency", "--shape", "48,40,8", "--preset", "compact"]
    command += ["--times", "1", "--device", "cpu", "--out", str(tmp_path)]
    subprocess.run(command, check=True, cwd=tmp_path, capture_output=True)
    (path,) = tmp_path.glob("*.json")
    found = json.loads(path.read_text())
    assert found["shape"] == [48, 40, 8] and "cpu" in found["engine"]
    network = found["runs"]["volume"]["network"]
    for name in ("stream", "greedy"):
        run = found["runs"][name]
        assert run["share"] == pytest.approx([run["latency"][0] / network[0]], rel=0.05)
        assert run["latency"][0] > 0
    assert set(found["medians"]) == {"serve", "volume", "stream", "greedy"}
