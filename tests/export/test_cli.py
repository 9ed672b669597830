"""`udean-export` as a user meets it: what it prints, its exit codes, and what it leaves behind."""

from __future__ import annotations

import hashlib
import json
import pickle
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import onnx
import pytest
import torch
from udean.export import cli, graph, quantize, trt_plan
from udean.export.artefacts import Artefact
from udean.export.errors import ExportError
from udean.export.graph import read

from .conftest import write_checkpoint

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command in this process: exit code, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        untrained = any(str(argument).endswith(".pt") for argument in arguments[:1])
        options = ["--allow-untrusted"] if untrained else []
        monkeypatch.setattr(sys, "argv", ["udean-export", *map(str, arguments), *options])
        with pytest.raises(SystemExit) as end:
            cli.main()
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call


@pytest.fixture(autouse=True, scope="module")
def traced_once() -> Iterator[None]:
    """PyTorch traces each network of this file once: it takes seconds, and gives the same graph each time."""
    graphs: dict[Any, onnx.ModelProto] = {}
    to_onnx = graph.to_onnx

    def once(network: torch.nn.Module, slab: int, *, half: bool) -> onnx.ModelProto:
        weights = hashlib.sha256()
        for name, value in network.state_dict().items():
            weights.update(name.encode() + value.numpy().tobytes())
        key = str(network), weights.hexdigest(), slab, half
        if key not in graphs:
            graphs[key] = to_onnx(network, slab, half=half)
        return deepcopy(graphs[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "to_onnx", once)
        yield


def copy(artefact: Artefact, path: Path, change: Callable[[onnx.ModelProto], Any] = lambda _: None) -> Path:
    model = onnx.load(artefact.path)
    change(model)
    onnx.save(model, path)
    return path


def test_int8_is_calibrated_on_scans(tmp_path: Path, checkpoint: Path, run: Run) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "scans").mkdir()
    scan = np.kron(rng.random((6, 7, 4)), np.ones((4, 4, 3))).astype(np.float32)  # blocks, 24×28×12
    nib.save(nib.Nifti1Image(scan, np.eye(4)), tmp_path / "scans" / "a.nii.gz")
    code, out, err = run(checkpoint, "-o", tmp_path, "--int8", tmp_path / "scans")
    assert (code, err) == (0, "")
    assert "× the speed of fp32 in onnxruntime-cpu" in out
    model, card = read(tmp_path / "tiny.int8.onnx")
    operators = {node.op_type for node in model.graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    assert card.precision == "int8" and card.parity["onnxruntime-cpu/brain"]["psnr"] >= 45


@pytest.mark.parametrize("gain", [1e3, 1e6])
def test_large_activations_are_exact_in_half_precision_or_refused(
    tmp_path: Path, run: Run, gain: float
) -> None:
    code, _, err = run(write_checkpoint(tmp_path / "loud.pt", gain=gain))
    assert (tmp_path / "loud.onnx").exists()
    if (tmp_path / "loud.fp16.onnx").exists():
        assert code == 0
        assert read(tmp_path / "loud.fp16.onnx")[1].parity["onnxruntime-cpu/brain"]["psnr"] >= 60
    else:
        assert gain > 1e3 and code == 1
        assert "loud.fp16.onnx is not written: half precision overflows, activations of encoder.body" in err


def test_an_int8_model_that_is_off_is_refused_and_the_others_are_written(
    tmp_path: Path, checkpoint: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    dark = np.full((4, 3, 16, 16), 1e-3, np.float32)  # activation ranges that a brain exceeds a thousandfold
    monkeypatch.setattr(quantize, "scan_windows", lambda *_: dark)
    code, _, err = run(checkpoint, "-o", tmp_path, "--int8", tmp_path)
    assert code == 1
    assert "tiny.int8.onnx is not written: in " in err and "int8 has to reach" in err
    assert sorted(f.name for f in tmp_path.iterdir()) == ["tiny.fp16.onnx", "tiny.onnx"]


def test_verify_repeats_parity_against_the_model_beside(
    tmp_path: Path, checkpoint: Path, exported: dict[str, Artefact], run: Run
) -> None:
    fp16 = exported["fp16"].path
    code, out, err = run("--verify", fp16)
    assert (code, err) == (0, "")
    psnr = exported["fp16"].found["onnxruntime-cpu"]["brain"].psnr
    assert "onnxruntime-cpu on brain windows: max error" in out and f"PSNR {psnr:.1f} dB" in out
    assert run("--verify", exported["fp32"].path, "--against", checkpoint)[0] == 0

    alone = copy(exported["fp16"], tmp_path / "alone.fp16.onnx")
    code, _, err = run("--verify", alone)
    assert code == 2 and "put the alone.onnx or alone.pt of the same checkpoint there" in err
    other = write_checkpoint(tmp_path / "other.pt", gain=2)
    code, _, err = run("--verify", alone, "--against", other)
    assert code == 2 and "is not the float32 model of the checkpoint" in err


def test_verify_finds_a_model_that_is_off(tmp_path: Path, exported: dict[str, Artefact], run: Run) -> None:
    def disturb(model: onnx.ModelProto) -> None:
        tail = next(i for i in model.graph.initializer if i.name == "decoder.tail.whole.bias")
        tail.raw_data = (onnx.numpy_helper.to_array(tail) + np.float16(0.1)).tobytes()

    copy(exported["fp32"], tmp_path / "tiny.onnx")
    code, out, err = run("--verify", copy(exported["fp16"], tmp_path / "tiny.fp16.onnx", disturb))
    assert code == 2 and "onnxruntime-cpu on random windows" in out
    assert "fp16 has to reach" in err


def test_inspect_tells_what_each_kind_of_file_is(
    checkpoint: Path, exported: dict[str, Artefact], run: Run
) -> None:
    code, out, _ = run("inspect", checkpoint)
    assert code == 0 and "channels 8, groups 1, blocks 1" in out and "what --resume needs" in out
    code, out, _ = run("inspect", exported["fp16"].path)
    assert code == 0
    for line in (
        "lr (batch, 3, rows, columns) float16",
        "sr (batch, 6, 2*rows, 2*columns) float16",
        "ai.onnx 18",
    ):
        assert line in out
    assert "parity onnxruntime-cpu/brain" in out and "23 Conv" in out


def test_capitals_in_a_suffix_make_no_other_kind(
    checkpoint: Path, exported: dict[str, Artefact], run: Run, tmp_path: Path
) -> None:
    copy(exported["fp32"], tmp_path / "TINY.ONNX")
    half = copy(exported["fp16"], tmp_path / "TINY.FP16.ONNX")
    assert run("inspect", half)[0] == 0
    code, out, err = run("--verify", half)  # held to TINY.ONNX, found beside it
    assert code == 0 and "onnxruntime-cpu" in out, err
    other = tmp_path / "TINY.PT"
    other.write_bytes(checkpoint.read_bytes())
    assert run("inspect", other)[0] == 0


def test_a_finished_model_needs_no_pytorch(exported: dict[str, Artefact]) -> None:
    code = (
        "import sys; from udean.export.cli import main\n"
        f"for option in ('inspect', '--verify'):\n"
        f"    sys.argv = ['udean-export', option, {str(exported['fp16'].path)!r}]\n"
        "    try: main()\n"
        "    except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def sizes(model: onnx.ModelProto) -> Any:
    return model.graph.input[0].type.tensor_type.shape.dim


class Bomb:
    """Pickles as a call that would leave a file behind."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def damaged(folder: Path, kind: str, whole: Path, artefact: Artefact) -> list[object]:
    """Arguments that name one bad input."""
    path = folder / ("bad.onnx" if kind.startswith("onnx") else "bad.pt")
    contents = torch.load(whole, weights_only=True)
    match kind:
        case "missing":
            pass
        case "text":
            path.write_text("no checkpoint at all")
        case "empty":
            path.write_bytes(b"")
        case "truncated":
            path.write_bytes(whole.read_bytes()[:20000])
        case "zip of code":
            torch.save({"format": 1, "deployed": Bomb(folder / "boom")}, path)
        case "bare pickle":
            path.write_bytes(pickle.dumps(Bomb(folder / "boom")))
        case "other format":
            torch.save(contents | {"format": 99}, path)
        case "other card":
            card = json.loads(contents["card"]) | {"format": 99}
            torch.save(contents | {"card": json.dumps(card)}, path)
        case "other architecture":
            torch.save(contents | {"architecture": contents["architecture"] | {"channels": 16}}, path)
        case "weights only":
            torch.save(contents["deployed"], path)
        case "onnx missing":
            pass
        case "onnx damaged":
            path.write_bytes(artefact.path.read_bytes()[:20000])
        case "onnx no card":
            copy(artefact, path, lambda m: m.ClearField("metadata_props"))
        case "onnx old opset":
            copy(artefact, path, lambda m: setattr(m.opset_import[0], "version", 9))
        case "onnx of one size":
            copy(artefact, path, lambda m: setattr(sizes(m)[2], "dim_value", 64))
        case "onnx broken graph":
            copy(artefact, path, lambda m: m.graph.node.pop())
    return ["--verify", path] if kind.startswith("onnx") else [path]


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("missing", "There is no checkpoint"),
        ("text", "bad.pt"),
        ("empty", "bad.pt"),
        ("truncated", "bad.pt is not a checkpoint, or damaged"),
        ("zip of code", "bad.pt holds Python code"),
        ("bare pickle", "bad.pt"),
        ("other format", "bad.pt has checkpoint format 99"),
        ("other card", "bad.pt: The model card has format 99"),
        ("other architecture", "bad.pt does not hold the network it names"),
        ("weights only", "bad.pt is not a udean checkpoint"),
        ("onnx missing", "There is no model"),
        ("onnx damaged", "bad.onnx is not an ONNX model, or damaged"),
        ("onnx no card", "bad.onnx has no readable model card"),
        ("onnx old opset", "bad.onnx uses ONNX opset 9"),
        ("onnx of one size", "bad.onnx takes inputs of one size only"),
        ("onnx broken graph", "bad.onnx is not a valid ONNX model"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_is_written(
    tmp_path: Path, checkpoint: Path, exported: dict[str, Artefact], run: Run, kind: str, sentence: str
) -> None:
    arguments = damaged(tmp_path, kind, checkpoint, exported["fp16"])
    before = sorted(tmp_path.iterdir())
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert sentence in err and err.startswith("Error: ") and err.count("\n") == 1
    assert "Traceback" not in err
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "Name one of CHECKPOINT, --from MODEL.onnx and --verify MODEL"),
        (["a.pt", "--verify", "b.onnx"], "Name one of"),
        (["a.pt", "--trt", "--batches", "8:4:16"], "--batches takes three increasing sizes"),
        (["a.pt", "--trt", "--windows", "64:128"], "--windows takes three increasing sizes"),
        (["a.pt", "--rtx", "--refit"], "--rtx cannot be combined"),
        (["--verify", "a.txt"], "a.txt is neither an .onnx nor a .plan file"),
        (["inspect", "a.txt"], "a.txt is not a model"),
    ],
)
def test_usage_errors_say_what_to_write(run: Run, arguments: list[str], sentence: str) -> None:
    code, _, err = run(*arguments)
    assert code == 2 and sentence in err


@pytest.mark.parametrize("scans", ["nothing", "text", "small", "air", "nan"])
def test_scans_that_cannot_calibrate_are_named(
    tmp_path: Path, checkpoint: Path, run: Run, scans: str
) -> None:
    path = tmp_path / "scan.nii"
    if scans == "text":
        path.write_text("no scan")
    elif scans != "nothing":
        shape = (10, 40, 20) if scans == "small" else (40, 40, 20)
        voxels = np.full(shape, np.nan if scans == "nan" else 0, np.float32)
        nib.save(nib.Nifti1Image(voxels, np.eye(4)), path)
    code, _, err = run(checkpoint, "-o", tmp_path / "out", "--int8", path)
    assert code == 2 and str(path) in err and err.count("\n") == 1


def test_an_unwritable_folder_is_named(tmp_path: Path, checkpoint: Path, run: Run) -> None:
    (tmp_path / "file").touch()
    code, _, err = run(checkpoint, "-o", tmp_path / "file" / "below")
    assert code == 2 and f"Cannot write {tmp_path / 'file' / 'below' / 'tiny.onnx'}" in err
    assert "Choose another folder with -o." in err


def test_a_plan_is_made_of_the_half_precision_model(
    tmp_path: Path, checkpoint: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Any, ...]] = []

    def refuse(*arguments: Any) -> Artefact:
        asked.append(arguments)
        raise ExportError("TensorRT cannot do it.")

    monkeypatch.setattr(trt_plan, "check_host", lambda rtx: None)
    monkeypatch.setattr(trt_plan, "build_plan", refuse)
    code, out, err = run(checkpoint, "-o", tmp_path, "--trt", "--windows", "8x8:16x16:24x20", "--refit")
    assert (code, err) == (1, "TensorRT cannot do it.\n")  # the other two are written
    assert "tiny.fp16.onnx" in out
    ((source, folder, sizes, options, *_),) = asked
    assert (source, folder) == (tmp_path / "tiny.fp16.onnx", tmp_path)
    assert sizes == trt_plan.Sizes((1, 8, 16), ((8, 8), (16, 16), (24, 20)), 2)
    assert options.weights == "refittable"


def test_a_plan_without_tensorrt_or_gpu_says_how_to_get_them(
    tmp_path: Path, checkpoint: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> str:
        code, out, err = run(checkpoint, "--trt", "-o", tmp_path)
        assert (code, out) == (2, "") and err.count("\n") == 1 and not list(tmp_path.iterdir())
        return err

    monkeypatch.setitem(sys.modules, "tensorrt", None)  # as if not installed
    assert "pip install 'udean[trt]'" in refused()
    monkeypatch.setitem(sys.modules, "tensorrt", types.ModuleType("tensorrt"))
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    monkeypatch.setitem(sys.modules, "cuda", None)  # whose bindings would do as well
    assert "pip install 'udean[trt]'" in refused()
    driver = types.ModuleType("pycuda.driver")
    driver.Error = driver.MemoryError = RuntimeError  # type: ignore[attr-defined]
    driver.init = lambda: (_ for _ in ()).throw(RuntimeError("no CUDA-capable device"))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda.driver", driver)
    assert "no GPU is available here (no CUDA-capable device)" in (message := refused())
    assert "pip install 'udean[trt,export]'" in message and "udean-export --from" in message
