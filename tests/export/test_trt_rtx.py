"""TensorRT for real, without a GPU: TensorRT for RTX builds plans through the code that builds all others.

It has the parser, the builder and the classes of TensorRT 10 and 11. What needs a device, loading a plan and
running it, is in test_trt_build.py.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from udean.export import trt_build, trt_plan
from udean.export.artefacts import Artefact, export_onnx
from udean.export.errors import ExportError
from udean.export.trt_build import BuildOptions
from udean.runtime.errors import RunError
from udean.runtime.models.trt_plan import RTX, Profile, logger, read_card, read_plan

from .conftest import SCALES, TINY, Exported, write_checkpoint

pytestmark = pytest.mark.trt_rtx  # no skip: where the extra trt-rtx is missing these fail
ROOT = Path(trt_plan.__file__).parents[1]
SIZES = trt_plan.Sizes(batches=(1, 2, 4), streams=2)
VARIANTS = ("cleaned", "homogeneous")  # with PseudoSR's network before the encoder; without biases
PROFILE = Profile((1, 8, 12), (2, 16, 16), (4, 24, 20))


@functools.cache
def library() -> tuple[Any, Any]:
    """TensorRT for RTX and the one logger that it takes in a process."""
    import tensorrt_rtx_bindings as trt

    return trt, logger(trt)


@pytest.fixture(scope="session")
def onnx_file(
    paper: Exported,
    exported: dict[str, Artefact],
    of_scale: Callable[[str], tuple[Path, dict[str, Artefact]]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[str, str], Path]:
    """The file of a network of each kind by its name, such as "paper" or "4x4x2", and precision."""

    @functools.cache
    def compact() -> dict[str, Artefact]:
        made = export_onnx(ROOT / "runtime" / "models" / "default.pt", tmp_path_factory.mktemp("compact"))
        return {artefact.card.precision: artefact for artefact in made}

    @functools.cache
    def variant(name: str) -> dict[str, Artefact]:
        folder = tmp_path_factory.mktemp(name)
        arch = dataclasses.replace(TINY, homogeneous=name == "homogeneous")
        made = export_onnx(write_checkpoint(folder / "m.pt", arch, cleaned=name == "cleaned"), folder)
        return {artefact.card.precision: artefact for artefact in made}

    def find(name: str, precision: str) -> Path:
        if name == "paper":
            return paper.folder / ("paper.onnx" if precision == "fp32" else "paper.fp16.onnx")
        if name == "through-plane":
            return ROOT / "runtime" / "models" / "through-plane.onnx"
        if name in VARIANTS:
            return variant(name)[precision].path
        written = {"tiny": lambda: exported, "compact": compact}.get(name, lambda: of_scale(name)[1])
        return written()[precision].path

    return find


def build(
    contents: bytes, profiles: list[Profile] | None = None, slab: int = 3, **more: Any
) -> trt_build.Built:
    trt, log = library()
    return trt_build.build(trt, log, contents, slab, profiles or [PROFILE], BuildOptions(level=0), **more)


def test_the_paper_preset_becomes_two_files_in_a_minute_and_two_gigabytes(paper: Exported) -> None:
    """Here, as the plans below are built of these files, which take half a minute to make."""
    done = paper.done
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(f.name for f in paper.folder.iterdir()) == ["paper.fp16.onnx", "paper.onnx", "paper.pt"]
    for engine in ("onnxruntime-cpu", "openvino-cpu"):
        assert done.stdout.count(f"  {engine} on brain windows: max error") == 2
    # Processor time, which no other load changes: a minute of it is less than a minute on two cores.
    assert paper.seconds < 60 and paper.kilobytes < 2e6


GRAPHS = list(itertools.product(["tiny", "compact", "paper", *SCALES, *VARIANTS], ["fp32", "fp16"]))


@pytest.mark.parametrize(("name", "precision"), [*GRAPHS, ("through-plane", "fp32")])
def test_every_graph_that_is_exported_becomes_a_plan_without_a_warning(
    onnx_file: Callable[[str, str], Path], name: str, precision: str
) -> None:
    trt, log = library()
    model, heard = onnx.load(onnx_file(name, precision)), len(log.messages)
    slab = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    built = build(model.SerializeToString(), [PROFILE, PROFILE], slab)
    assert [text for severity, text in log.messages[heard:] if severity not in ("INFO", "VERBOSE")] == []
    # The inspector wants a device; names of inputs, outputs and layers by profile stand in the plan itself.
    for text in ("lr [profile 1]", "sr [profile 1]"):
        assert text.encode() in built.plan
    for node in model.graph.node:
        assert node.op_type != "Conv" or f"[ONNX Layer: {node.name}]".encode() in built.plan

    builder = trt.Builder(log)
    parsed, _parser = trt_build.parse(trt, log, builder, model.SerializeToString())
    (lr,) = (parsed.get_input(n) for n in range(parsed.num_inputs))
    (sr,) = (parsed.get_output(n) for n in range(parsed.num_outputs))
    wanted = trt.DataType.HALF if precision == "fp16" else trt.DataType.FLOAT
    assert (lr.name, sr.name, lr.dtype, sr.dtype) == ("lr", "sr", wanted, wanted)
    assert (
        tuple(lr.shape) == (-1, slab, -1, -1)
        and sr.shape[1] == model.graph.output[0].type.tensor_type.shape.dim[1].dim_value
    )
    layers = [parsed.get_layer(n) for n in range(parsed.num_layers)]
    kinds = [layer.type for layer in layers]
    assert kinds.count(trt.LayerType.CONVOLUTION) == sum(n.op_type == "Conv" for n in model.graph.node)
    means = [layer for layer in layers if layer.type == trt.LayerType.REDUCE]
    assert means or name == "through-plane"  # the attention's means, float32 in half precision too
    assert {layer.get_input(0).dtype for layer in means} <= {trt.DataType.FLOAT}


def test_timings_go_round(exported: dict[str, Artefact]) -> None:
    """As far as a library goes that reads no cache without a device: it begins a new one, without a word."""
    contents = exported["fp16"].path.read_bytes()
    first = build(contents)
    again = build(contents, timings=first.timings)
    assert len(first.timings) > 0 and len(again.timings) >= len(first.timings)
    assert len(build(contents, timings=b"damaged").timings) > 0  # begun anew


def wrong(*nodes: onnx.NodeProto, weights: tuple[int, ...] = ()) -> bytes:
    ends = [helper.make_tensor_value_info("lr", TensorProto.FLOAT, ["n", 3, "h", "w"])]
    values = [onnx.numpy_helper.from_array(np.zeros(weights, np.float32), "w")] if weights else []
    sr = [helper.make_tensor_value_info("sr", TensorProto.FLOAT, None)]
    body = helper.make_graph(nodes, "wrong", ends, sr, values)
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("elsewhere", 1)]
    return helper.make_model(body, opset_imports=opsets).SerializeToString()


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (
            wrong(helper.make_node("Frobnicate", ["lr"], ["sr"], name="f1", domain="elsewhere")),
            r"Frobnicate node 'f1': .*Plugin not found.* \(INVALID_NODE, \w+\.cpp:\d+\)",
        ),
        (
            wrong(helper.make_node("StringNormalizer", ["lr"], ["sr"], name="f2")),
            r"StringNormalizer node 'f2': false \(UNSUPPORTED_NODE, \w+\.cpp:\d+\)",
        ),
        (
            wrong(helper.make_node("Conv", ["lr", "w"], ["sr"], name="c7"), weights=(4, 5, 3, 3)),
            r"Conv node 'c7': .*broadcast.* \(INVALID_NODE, \w+\.cpp:\d+\)",
        ),
        (b"no graph", r"Failed to parse the ONNX model\. \(MODEL_DESERIALIZE_FAILED, \w+\.hpp:\d+\)"),
    ],
    ids=["unknown operator", "unsupported operator", "wrong weights", "no graph"],
)
def test_a_wrong_graph_is_refused_in_the_parsers_own_words(contents: bytes, message: str) -> None:
    with pytest.raises(ExportError, match=message) as caught:
        build(contents)
    assert "\n" not in str(caught.value)


def test_a_reason_is_of_its_own_build_and_not_of_an_earlier_one() -> None:
    """The library takes one logger in a process, and what the parser says goes there too."""
    with pytest.raises(ExportError, match="Plugin not found"):
        build(wrong(helper.make_node("Frobnicate", ["lr"], ["sr"], name="f1", domain="elsewhere")))
    with pytest.raises(ExportError, match=r"cannot build the plan: (?!.*(While parsing|f1))"):
        build(onnx.ModelProto().SerializeToString())


def test_sizes_that_the_builder_does_not_take_are_named(exported: dict[str, Artefact]) -> None:
    backwards = Profile((4, 16, 16), (2, 16, 16), (1, 16, 16))
    with pytest.raises(ExportError, match=r"does not take the sizes \(4, 16, 16\), \(2"):
        build(exported["fp16"].path.read_bytes(), [backwards])


@pytest.fixture
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.usefixtures("caches")
def test_a_plan_for_every_rtx_card_says_that_it_has_run_on_none(
    tmp_path: Path, exported: dict[str, Artefact]
) -> None:
    source = exported["fp16"].path
    artefact = trt_plan.build_plan(source, tmp_path, SIZES, BuildOptions(level=0, hardware="rtx"))
    assert artefact.path == tmp_path / "tiny.rtx.plan" and "not yet run on any" in artefact.remark
    contents, card = read_plan(artefact.path)
    assert len(contents) > 1000 and card == read_card(artefact.path)
    assert (card.onnx, card.gpu, card.capability, card.library) == (source.name, "", "", RTX)
    assert card.remark == "experimental: built without a GPU, not yet run on any"
    assert card.profiles == (Profile((1, 16, 16), (2, 16, 16), (4, 16, 16)),) * 2
    assert not any("tensorrt" in engine for engine in card.card.parity)  # nothing was measured
    card.check_host(artefact.path, card.tensorrt, "8.9")
    with pytest.raises(RunError, match=r"runs on RTX cards, .*7\.5.* and this GPU has 9\.0"):
        card.check_host(artefact.path, card.tensorrt, "9.0")
    with pytest.raises(RunError, match=r"and this is 1\.6\.0: build it here with .* --rtx"):
        card.check_host(artefact.path, "1.6.0", "8.9")
    (timings,) = (tmp_path / "cache" / "udean").iterdir()
    assert timings.name == f"tensorrt-rtx-{card.tensorrt.replace('.', '-')}.timings"


NOISY = """
import sys
from udean.export import trt_build
from udean.runtime.commands.launch import main
start = trt_build.Monitor.start
trt_build.Monitor.start = lambda self, phase, *more: (print(phase, flush=True), start(self, phase, *more))
sys.argv = ["udean-export", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("phase", ["Building engine", "Computing profile costs"])
def test_ctrl_c_ends_a_build_at_once_and_leaves_nothing(tmp_path: Path, paper: Exported, phase: str) -> None:
    """In a phase with many steps, and in one that asks nobody whether to go on, for most of a build."""
    shutil.copy(paper.folder / "paper.fp16.onnx", tmp_path)
    model = tmp_path / "paper.fp16.onnx"
    command = [sys.executable, "-c", NOISY, "--from", model, "--rtx"]
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        while process.stdout.readline() != f"{phase}\n":
            assert process.poll() is None, process.stderr.read()
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        took = time.monotonic() - start
    assert (process.returncode, err) == (130, "Interrupted: no plan is written.\n")
    assert took < 5  # 0.2 to 0.6 s; more only where other processes have the processor
    assert [f.name for f in tmp_path.iterdir()] == ["paper.fp16.onnx"]
