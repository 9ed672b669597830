"""`--profile`: the product's own timers, as a trace that viewers open."""

import collections
import itertools
import json

import nibabel as nib
import numpy as np
from udean.runtime import SuperResolver
from udean.runtime.system.trace import Trace

from ...support.fakes import FakeEngine, card, nearest, onnx_model
from ..commands.test_run import CARD, scan, udean_run


def spans_of(path):
    """Complete events by (thread name, stage), as (start, end, scan) in microseconds."""
    events = json.loads(path.read_text())["traceEvents"]
    names = {e["tid"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "thread_name"}
    found = collections.defaultdict(list)
    for e in events:
        if e["ph"] == "X":
            lane = names[e["tid"]].removesuffix("_0")
            found[lane, e["name"]].append((e["ts"], e["ts"] + e["dur"], e["args"]["scan"]))
    return found


def test_a_folders_profile_shows_every_stage_of_every_scan_and_agrees_with_the_sidecars(tmp_path):
    model = onnx_model(tmp_path / "sr.onnx", CARD)
    names = {scan(tmp_path / "scans" / f"{n}.nii.gz").name for n in range(3)}
    done = udean_run("--engine", model, "--profile", tmp_path / "p.json", tmp_path / "scans")
    assert done.returncode == 0, done.stderr
    assert "network" in done.stdout and str(tmp_path / "p.json") in done.stdout
    found = spans_of(tmp_path / "p.json")
    assert len(found["MainThread", "load"]) == 1
    for lane, stage in (("decode", "decode"), ("network", "network"), ("MainThread", "blend")):
        assert {name for *_, name in found[lane, stage]} == names
    assert {name for *_, name in found["gather", "gather"]} == names
    assert {name for *_, name in found["encode", "encode"]} == names
    for name in names:
        made = json.loads((tmp_path / "scans-sr" / f"{name[0]}_sr.json").read_text())["udean"]["timings"]
        shown = sum(stop - start for start, stop, scan in found["network", "network"] if scan == name)
        assert abs(shown / 1e6 - made["network"]) < 1e-4 + 1e-6 * len(found["network", "network"])
    for spans in found.values():  # what one thread does is one after the other, to the rounding
        spans.sort()
        assert all(a[1] <= b[0] + 0.2 for a, b in itertools.pairwise(spans))


def test_a_profile_that_cannot_be_written_is_refused_before_any_scan(tmp_path):
    model, source = onnx_model(tmp_path / "sr.onnx", CARD), scan(tmp_path / "brain.nii.gz")
    (tmp_path / "taken").mkdir()
    done = udean_run("--engine", model, "--profile", tmp_path / "taken", source)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "taken" in done.stderr
    assert not (tmp_path / "sr").exists()


def test_a_profile_replaces_nothing_but_a_profile(tmp_path):
    model, source = onnx_model(tmp_path / "sr.onnx", CARD), scan(tmp_path / "a.nii")
    text = tmp_path / "a.json"
    text.write_text('{"EchoTime": 1}')
    before = source.read_bytes()
    for place in (source, text, tmp_path / "sr" / "a_sr.nii", tmp_path / "sr" / "a_sr.json"):
        for dry in ([], ["--dry-run"]):
            done = udean_run("--engine", model, *dry, "--profile", place, source)
            assert done.returncode == 2 and str(place) in done.stderr, done.stdout
    assert source.read_bytes() == before and text.read_text() == '{"EchoTime": 1}'
    assert not (tmp_path / "sr").exists()
    profile = tmp_path / "p.json"
    assert udean_run("--engine", model, "--dry-run", "--profile", profile, source).returncode == 0
    assert not profile.exists()
    for _ in range(2):
        assert udean_run("--engine", model, "--profile", profile, source).returncode == 0


def test_tracing_changes_no_voxel_and_is_off_unless_asked_for():
    volume = np.random.default_rng(0).normal(size=(20, 18, 7)).astype(np.float32)
    engine, trace = FakeEngine(lambda x: nearest(x, (2, 2, 2)), card((2, 2, 2), 3, (8, 8))), Trace()
    silent, traced = SuperResolver(engine), SuperResolver(engine, trace=trace)
    np.testing.assert_array_equal(silent(volume), traced(volume))
    assert silent.trace is None
    assert {span.stage for span in trace.spans} == {"gather", "network", "blend"}
    traced.image(nib.Nifti1Image(volume, np.eye(4)))
    assert "read" in {span.stage for span in trace.spans}
