"""An exported file is whole, right, self-describing, and the same every time."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from udean.export.artefacts import Artefact, export_onnx
from udean.export.graph import OPSET, read
from udean.trainer.checkpoint import load_generator
from udean.trainer.methods import METHODS, Weights, create
from udean.trainer.nets.generators import super_resolution
from udean.trainer.nets.merging import merged

from .conftest import SCALES, TINY, write_checkpoint


def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("scale", SCALES)
def test_every_scale_factor_agrees_with_pytorch(
    of_scale: Callable[[str], tuple[Path, dict[str, Artefact]]], scale: str
) -> None:
    agrees_with_pytorch(*of_scale(scale))


def test_the_file_agrees_with_pytorch(checkpoint: Path, exported: dict[str, Artefact]) -> None:
    agrees_with_pytorch(checkpoint, exported)


def test_every_method_deploys_a_network_that_agrees_with_pytorch(tmp_path: Path) -> None:
    deployed = {name: str(create(name, TINY, 16, Weights()).deployed()) for name in METHODS}
    plain, cleaned = str(super_resolution(TINY)), str(super_resolution(TINY, cleaned=True))
    assert {name for name, network in deployed.items() if network != plain} == {"pseudosr"}
    assert deployed["pseudosr"] == cleaned
    checkpoint = write_checkpoint(tmp_path / "m.pt", cleaned=True)
    agrees_with_pytorch(checkpoint, {a.card.precision: a for a in export_onnx(checkpoint, tmp_path)})


def agrees_with_pytorch(checkpoint: Path, written: dict[str, Artefact]) -> None:
    """Both precisions, at a size and a batch that parity at export has not seen."""
    network, _ = load_generator(checkpoint)
    lr = np.random.default_rng(1).random((3, 3, 23, 18), dtype=np.float32)
    with torch.inference_mode():
        expected = network(torch.from_numpy(lr)).numpy()
    fp32 = session(written["fp32"].path).run(None, {"lr": lr})[0]
    fp16 = session(written["fp16"].path).run(None, {"lr": lr.astype(np.float16)})[0]
    peak = np.abs(expected).max()
    assert np.abs(fp32 - expected).max() <= 1e-5 * peak
    assert fp16.dtype == np.float16
    assert 0 < np.abs(fp16 - expected).max() <= 1e-2 * peak


def test_a_file_holds_encoder_and_decoder_and_nothing_else(
    checkpoint: Path, exported: dict[str, Artefact]
) -> None:
    network, _ = load_generator(checkpoint)
    for artefact in exported.values():
        model = onnx.load(artefact.path)
        sizes = {name: value.numel() for name, value in merged(network).state_dict().items()}
        kept = {i.name: int(np.prod(i.dims)) for i in model.graph.initializer if i.name in sizes}
        assert kept.items() <= sizes.items()
        missing = sizes.keys() - kept.keys()  # the rims have one bias between them, and the graph has it once
        assert missing <= {f"decoder.tail.{rim}.0.bias" for rim in ("above", "below", "left", "right")}
        assert len(missing) == 3
        others = [i for i in model.graph.initializer if i.name not in kept]
        # besides them: the fixed interpolation (24 filters of 3×5×5), pads, axes and slice bounds
        assert sum(int(np.prod(i.dims)) for i in others) < 24 * 75 + 50


def test_a_file_says_nothing_of_the_machine_that_made_it(exported: dict[str, Artefact]) -> None:
    for artefact in exported.values():
        contents = artefact.path.read_bytes()
        for trace in (b"stack_trace", b".py", str(Path.cwd()).encode(), b"torch.nn"):
            assert trace not in contents
        model = onnx.load(artefact.path, load_external_data=False)
        assert not any(i.external_data for i in model.graph.initializer)
        assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]


def test_equal_checkpoints_are_equal_bytes_whatever_the_threads(
    tmp_path: Path, checkpoint: Path, exported: dict[str, Artefact]
) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        again = export_onnx(checkpoint, tmp_path)
    finally:
        torch.set_num_threads(threads)
    for artefact in again:
        assert artefact.path.read_bytes() == exported[artefact.card.precision].path.read_bytes()


def test_the_card_travels_with_precision_source_and_parity(
    checkpoint: Path, exported: dict[str, Artefact]
) -> None:
    _, source = load_generator(checkpoint)
    assert set(exported) == {"fp32", "fp16"}
    for precision, artefact in exported.items():
        _, card = read(artefact.path)
        assert card.precision == precision
        assert card.checkpoint == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
        assert {"onnxruntime-cpu/random", "onnxruntime-cpu/brain"} <= set(card.parity)
        found = artefact.found["onnxruntime-cpu"]["brain"]
        noted = card.parity["onnxruntime-cpu/brain"]
        assert found.max_error <= noted["max_error"] and found.psnr >= noted["psnr"]
        assert card.replace(precision="fp32", checkpoint="", parity={}, flop=0) == source and card.flop


def test_half_precision_keeps_its_float32_islands(exported: dict[str, Artefact]) -> None:
    graph = onnx.shape_inference.infer_shapes(onnx.load(exported["fp16"].path)).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    means = [node for node in graph.node if node.op_type == "ReduceMean"]
    assert means
    assert all(types[node.input[0]] == onnx.TensorProto.FLOAT for node in means)
    others = {types[name] for node in graph.node for name in node.output if node.op_type == "Conv"}
    assert others == {onnx.TensorProto.FLOAT16}
