"""The cost told beforehand is that of the model's own graph."""

import pytest
from udean.benchmarks.engines.roofline import convolutions
from udean.export.artefacts import export_onnx
from udean.export.graph import read
from udean.runtime import SuperResolver
from udean.runtime.engines.checkpoint import flop_per_voxel
from udean.runtime.engines.choose import model_file
from udean.runtime.run.cost import Estimator

from ...support.fakes import FakeEngine, card, nearest
from ..engines.test_choose import tiny_checkpoint

SCALE = (2, 2, 2)


def told(flop):
    plan = card(SCALE, 3, (16, 16)).replace(flop=flop)
    resolve = SuperResolver(FakeEngine(lambda x: nearest(x, SCALE), plan), window=(16, 16))
    tiling = resolve.stages.tiling((40, 40, 9))
    return len(tiling), Estimator(resolve, None)([tiling], volumes=3, coarse=1, fine=8)


def test_operations_are_those_of_all_windows_of_all_volumes():
    windows, cost = told(flop=1000)
    assert cost.windows == 3 * windows and cost.flop == 3 * windows * 16 * 16 * 1000
    assert "GFLOP" in str(cost)
    assert "unknown GFLOP" in str(told(flop=0)[1])  # the card of an older model


@pytest.mark.parametrize("embedded", [True, False])
def test_a_model_says_how_many_operations_its_convolutions_take(tmp_path, embedded):
    """ONNX's own shapes of the graph agree with PyTorch's count; attention and rims are the rest."""
    with model_file(None) as (model, _):
        if not embedded:
            model = export_onnx(tiny_checkpoint(tmp_path / "tiny.pt")[0], tmp_path)[0].path
        graph, found = read(model)
    whole = sum(layer.flop for layer in convolutions(graph, 512, 512))
    assert found.flop == pytest.approx(whole / 512**2, rel=5e-3)
    if not embedded:
        assert flop_per_voxel(tmp_path / "tiny.pt") == found.flop
