"""The cost said beforehand is that of the model's own graph."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from udean.export.graph import serialize, to_onnx
from udean.runtime import RunError
from udean.runtime.run.cost import flop_per_voxel
from udean.trainer.nets.merging import merged

from ...support.fakes import card, onnx_model
from ..engines import test_choose as test_engines
from ..engines.test_choose import tiny_checkpoint

CARD = card((2, 2, 2), 3, (16, 16))


def test_convolutions_of_a_graph_are_counted(tmp_path):
    model = onnx_model(tmp_path / "sr.onnx", CARD, "conv")
    assert flop_per_voxel(model) == 2 * 9 * (3 * 16 + 16 * 24)


def test_an_exported_model_and_its_checkpoint_cost_the_same(tmp_path):
    checkpoint, network = tiny_checkpoint(tmp_path / "tiny.pt")
    exported = tmp_path / "tiny.fp16.onnx"
    deployed = merged(network)
    exported.write_bytes(serialize(to_onnx(deployed, 3, half=True), CARD))
    # In a checkpoint's own, small window attention and rims weigh more than in the graph's count.
    for model, window in ((checkpoint, test_engines.CARD.window), (exported, (512, 512))):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            deployed(torch.zeros(1, 3, *window))
        wanted = counter.get_total_flops() / math.prod(window)
        assert flop_per_voxel(model) == pytest.approx(wanted, rel=5e-3)


def test_a_missing_model_is_a_sentence(tmp_path):
    with pytest.raises(RunError, match="does not exist"):
        flop_per_voxel(tmp_path / "none.onnx")
