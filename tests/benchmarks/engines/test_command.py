"""`udean-bench` as a real process, and what its figures mean where they can be known beforehand."""

import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch.utils.flop_counter import FlopCounterMode
from udean.benchmarks import common
from udean.benchmarks.child import Child, Failed
from udean.benchmarks.engines.command import _into, main, warnings
from udean.benchmarks.engines.contest import PATH, SESSION, Contest, Entrant, SpeedUp, agree, fitting
from udean.benchmarks.engines.pytorch import MonaiPath, TorchNetwork, monai_starts
from udean.benchmarks.engines.roofline import Layer, Roofs, convolutions
from udean.benchmarks.engines.session import Contender
from udean.export.graph import read, serialize, to_onnx
from udean.runtime import RunError, SuperResolver
from udean.runtime.engines.choose import model_file
from udean.runtime.pipeline.tiling import tile_windows
from udean.runtime.system.files import sha256
from udean.trainer import checkpoint
from udean.trainer.nets import generators
from udean.trainer.nets.merging import merged

AS_RUN = "openvino fp32, as udean-run"
ARCHITECTURE = generators.Architecture(channels=8, groups=1, blocks=1)
WINDOW, SHAPE = (16, 16), (28, 28, 5)  # two windows along each axis: 16 + 12, 3 + 2


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A checkpoint that runs in milliseconds."""
    import torch
    from udean.runtime.models.card import ModelCard

    torch.manual_seed(0)
    network = generators.super_resolution(ARCHITECTURE).eval()
    card = ModelCard(
        name="tiny",
        method="none",
        scale=(2, 2, 2),
        slab=(3, 6),
        window=WINDOW,
        grid="fft",
        intensity="percentile-99.9",
        skip="none",
        precision="fp32",
        parameters=generators.parameter_count(network),
        toolkit="test",
        trained_on="nothing",
    )
    path = tmp_path_factory.mktemp("tiny") / "tiny.pt"
    checkpoint.save(path, card, ARCHITECTURE, network)
    path.with_suffix(".onnx").write_bytes(serialize(to_onnx(network, 3, half=False), card))
    return path


@pytest.fixture(scope="module")
def result(tiny):
    """The output of the command: its JSON and printed text."""
    folder = tiny.parent / "bench"
    command = [Path(sys.executable).parent / "udean-bench", "--model", tiny, "--quick", "--device", "cpu"]
    command += ["--shape", "28,28,5", "--engine", "onnxruntime fp32", "--engine", AS_RUN]
    command += ["--repeats", "2", "--threads", "1", "--json", folder]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("bench-tiny-28x28x5-*-threads.json")
    return json.loads(file.read_text()), done.stdout


def test_rows_hold_every_figure(result):
    rows = {row["name"]: row for row in result[0]["rows"]}
    assert set(rows) == {PATH, "onnxruntime fp32", AS_RUN}
    for name in (PATH, "onnxruntime fp32"):
        row = rows[name]
        assert len(row["seconds_of_all"]) == len(row["network_seconds_of_all"]) == 2
        assert 0 < row["network_seconds"] < row["seconds"] < row["command_seconds"]
        assert row["host_mb"] > row["host_mb_over_ready"] >= 0
        speed = row["speed_up"]
        assert speed["low"] <= speed["median"] <= speed["high"]
        assert row["windows"] == result[0]["windows"]["monai"] == result[0]["windows"]["ours"] == 8
    as_run = rows[AS_RUN]
    assert (as_run["window"], as_run["windows"]) == ([28, 28], 2)  # planes, two slabs of three slices
    assert as_run["path_psnr"] < rows["onnxruntime fp32"]["path_psnr"]  # the measured band, and no windows
    whole = zip(rows[PATH]["seconds_of_all"], as_run["seconds_of_all"], strict=True)
    assert as_run["speed_up"]["high"] == pytest.approx(max(p / o for p, o in whole))
    ratios = zip(rows[PATH]["seconds_of_all"], rows["onnxruntime fp32"]["seconds_of_all"], strict=True)
    assert rows["onnxruntime fp32"]["speed_up"]["high"] == pytest.approx(max(p / o for p, o in ratios))
    assert rows[PATH]["speed_up"] == {"median": 1, "low": 1, "high": 1}
    assert rows[PATH]["psnr"] is None and rows[PATH]["largest_error"] == 0  # against itself


def test_throughput_is_the_networks_arithmetic_over_its_time(result, tiny):
    document = result[0]
    network, _ = checkpoint.load_generator(tiny)
    flop = {}
    for key, net in (("gflop_a_window", network), ("gflop_a_window_deployed", merged(network))):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.zeros(1, 3, *WINDOW))
        flop[key] = counter.get_total_flops()
        assert document["model"][key] == pytest.approx(flop[key] / 1e9, rel=1e-2)
    trained, _ = flop.values()
    for row in document["rows"]:
        if "failed" not in row:
            if row["kind"] == "udean":
                deployed = merged(network)
                with FlopCounterMode(display=False) as counter, torch.no_grad():
                    deployed(torch.zeros(1, 3, *row["window"]))
                flop = counter.get_total_flops()
            else:
                flop = trained
            # seconds are rounded to 0.1 ms
            rate = row["windows"] * flop / row["network_seconds"] / 1e9
            assert row["gflops"] == pytest.approx(rate, rel=0.05, abs=0.1)
            roof = document["roofs"]["gflops"][row["precision"]]
            assert row["share_of_peak"] == pytest.approx(row["gflops"] / roof, rel=0.1, abs=0.005)


def test_the_result_states_its_circumstances(result):
    document = result[0]
    assert document["windows"]["same_places"] and document["shape"] == list(SHAPE)
    assert document["threads"] >= 1 and document["roofs"]["copy_gb_per_s"] > 0
    assert {"torch", "monai", "onnxruntime"} <= set(document["versions"])
    assert document["agreement"]["same_weights"]["psnr"] is None or (
        document["agreement"]["same_weights"]["psnr"] > 100
    )
    assert any("too few" in text for text in document["warnings"]) and "too few" in result[1]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--model", "none"], "is not embedded"),
        (["--shape", "a,b"], "not of the form"),
    ],
)
def test_refusals_are_sentences(given, sentence, capsys):
    with pytest.raises(SystemExit) as end:
        main(given)
    assert end.value.code == 2 and sentence in capsys.readouterr().err


def test_the_embedded_model_is_exported_from_the_checkpoint_beside_it(tmp_path):
    with model_file(None) as (embedded, _):
        _, card = read(embedded)
        assert card.checkpoint == sha256(embedded.with_name("default.pt"))
    files = common.embedded(tmp_path)
    volume = common.textured((24, 24, 3))
    ours = SuperResolver(None, "cpu", "fp32", library="onnxruntime")(volume, "float32")
    for model in (files.checkpoint, files.full):
        found = SuperResolver(model, "cpu", library="onnxruntime", precision="fp32")(volume, "float32")
        assert common.deviation(found, ours)["psnr"] > 100
    low = SuperResolver(files.half, "cpu", library="onnxruntime")(volume, "float32")
    assert 50 < common.deviation(low, ours)["psnr"] < 100


def test_identical_windows_and_weights_give_identical_volumes(tiny):
    _, card = checkpoint.load_generator(tiny)
    models = common.ModelFiles(tiny, tiny, tiny, tiny, card)
    found = agree(models, "cpu", 0.25)
    assert found["windows"] == 8
    assert found["same_weights"]["psnr"] > 100  # what is left is float32 rounding
    assert found["own_weights"]["psnr"] < found["same_weights"]["psnr"]


@pytest.mark.parametrize("shape", [(28, 28, 5), (40, 29, 6), (16, 50, 3), (17, 16, 4), (33, 90, 21)])
def test_monai_lays_as_many_windows_as_we_do(tiny, shape):
    network = TorchNetwork(tiny)
    plan = tile_windows(shape, network.card)
    MonaiPath(network, plan, batch=4)(common.textured(shape))
    assert sum(network.batches) == len(plan)
    assert np.prod([len(axis) for axis in monai_starts(plan)]) == len(plan)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.7])
def test_fitted_shapes_have_the_same_windows_on_both_sides(tiny, overlap):
    _, card = checkpoint.load_generator(tiny)
    plan = tile_windows(fitting((100, 61, 31), card, overlap), card, overlap)
    ours = [axis.starts for axis in (plan.rows, plan.columns, plan.slices)]
    assert [tuple(map(int, axis)) for axis in monai_starts(plan)] == ours


def test_arithmetic_of_one_convolution_by_hand(tmp_path):
    weight = helper.make_tensor("w", TensorProto.FLOAT, [8, 3, 3, 3], np.zeros(8 * 27, np.float32))
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", c, *size])
        for name, c, size in (("lr", 3, "hw"), ("sr", 8, "ab"))
    ]
    node = helper.make_node("Conv", ["lr", "w"], ["sr"], strides=[2, 2], pads=[1] * 4)
    graph = helper.make_graph([node], "one", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), tmp_path / "one.onnx")
    # 8 outputs at 10 x 20 places, each a sum of 27 products; 3 x 20 x 40 values in, 8 x 10 x 20 out
    wanted = [Layer(2.0 * 27 * 8 * 10 * 20, 3 * 20 * 40 + 8 * 10 * 20, 8 * 27)]
    assert convolutions(onnx.load(tmp_path / "one.onnx"), 20, 40) == wanted


def test_roofs_bind_as_they_should():
    roofs = Roofs({"fp32": 100.0, "bf16": 200.0}, copy=10.0)
    heavy, light = Layer(1000.0, 1, 0), Layer(1.0, 100, 0)
    assert roofs.attainable([heavy], "fp32", 1) == pytest.approx(100)  # 10 s of arithmetic, 0.4 s of traffic
    assert roofs.attainable([light], "fp32", 1) == pytest.approx(1 / 40)  # 400 bytes at 10 a second
    assert roofs.attainable([light], "bf16", 1) == pytest.approx(1 / 20)
    assert roofs.attainable([heavy, light], "fp32", 1) == pytest.approx(1001 / 50)


def test_spread_decides_what_can_be_concluded():
    clear = SpeedUp.of([2.0, 2.1, 2.0, 2.05, 2.0], [1.0, 1.0, 1.02, 1.0, 1.0])
    assert clear.median == pytest.approx(2.0) and not clear.doubt
    assert "too wide" in SpeedUp.of([2.0, 3.0, 2.0], [1.0, 1.0, 1.0]).doubt
    assert "no difference" in SpeedUp.of([1.0, 1.05, 0.98], [1.0, 1.0, 1.0]).doubt


def test_warnings_name_what_is_wrong():
    def row(name, totals, windows=8):
        found = Entrant(Contender(name, "udean", "", "cpu", "fp32"), totals=totals, windows=windows)
        speed = SpeedUp.of([1.0] * len(totals), totals)
        found.figures = {"speed_up": {"median": speed.median, "low": speed.low, "high": speed.high}}
        return found

    fair = {"monai": 8, "same_places": True, "computed": {PATH: 8, "a": 8}}
    quiet = [row(PATH, [1.0] * 5), row("a", [0.5] * 5)]
    assert warnings(quiet, fair, 0.0, 5) == []
    assert "busy" in warnings(quiet, fair, 2.0, 5)[0]
    assert "too few" in warnings(quiet, fair, 0.0, 3)[0]
    assert "elsewhere" in warnings(quiet, fair | {"same_places": False}, 0.0, 5)[0]
    assert "a; speed-ups are per window" in warnings(quiet, fair | {"computed": {PATH: 8, "a": 4}}, 0.0, 5)[0]
    assert "too wide" in warnings([quiet[0], row("a", [0.5, 0.3, 0.5, 0.5, 0.5])], fair, 0.0, 5)[0]
    assert "the machine is busy" in warnings([row(PATH, [1.0, 1.5, 1.0, 1.0, 1.0])], fair, 0.0, 5)[0]


def test_a_row_that_cannot_be_measured_says_why_and_is_stopped(tiny):
    volume = tiny.parent / "volume.npy"
    np.save(volume, common.textured(SHAPE))
    start = time.monotonic()
    with pytest.raises(Failed, match="not ready after"):
        Child(SESSION, Contender(PATH, "monai", str(tiny), "cpu", "fp32"), str(volume), limit=0.01)
    assert time.monotonic() - start < 60
    with pytest.raises(RunError, match=r"none\.onnx does not exist"):
        Child(SESSION, Contender("none", "udean", "none.onnx", "cpu", "fp32"), str(volume), limit=300)


def test_device_memory_is_put_down_to_who_takes_it(tmp_path):
    used = iter([100, 150, 150, 400, 400, 420])
    cuda = SimpleNamespace(mem_get_info=lambda: (1000 - next(used), 1000))
    gpu = SimpleNamespace(current=contextlib.nullcontext, cuda=cuda)
    rows = [Entrant(Contender(name, "udean", "", "cuda", "fp32")) for name in (PATH, "b")]
    contest = Contest(rows, np.zeros((2, 2, 2)), tmp_path, gpu, 1.0)
    for row in (*rows, rows[0]):
        contest._attempt(row, lambda row: None)
    assert [row.device_bytes for row in rows] == [70, 250]


@pytest.mark.parametrize(
    ("processor", "name"),
    [
        ("Intel(R) Xeon(R) Processor (avx2, avx512f)", "intel-xeon"),
        ("AMD EPYC (avx2, avx512f, avx512_bf16)", "amd-epyc"),
        ("Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz (avx2)", "intel-core-i7-9750h"),
    ],
)
def test_results_of_two_processors_lie_side_by_side(tmp_path, processor, name):
    about = {
        "device": "cpu",
        "threads": 2,
        "shape": [9, 8, 7],
        "model": {"name": "m"},
        "processor": processor,
    }
    assert _into(tmp_path, about) == tmp_path / f"bench-m-9x8x7-{name}-2-threads.json"
