"""The deployed network computes the function of the trained one, with less arithmetic."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from udean.trainer.nets.generators import Architecture, super_resolution
from udean.trainer.nets.merging import MergedTail, merged

TINY = {"channels": 8, "groups": 1, "blocks": 1}


def flop(network, rows, columns):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, rows, columns))
    return counter.get_total_flops()


def shaken(network):
    """Biases and a tail that are not 0, as after training."""
    for value in network.parameters():
        nn.init.normal_(value, std=0.2)
    return network.double().eval()


@settings(max_examples=40, deadline=None)
@given(
    s=st.integers(2, 4),
    channels=st.integers(1, 5),
    outputs=st.integers(1, 4),
    size=st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    seed=st.integers(0, 99),
)
def test_convolution_shuffle_convolution_are_one_up_to_the_rim(s, channels, outputs, size, seed):
    torch.manual_seed(seed)
    first, second = (
        nn.Conv2d(channels, channels * s * s, 3, padding=1),
        nn.Conv2d(channels, outputs, 3, padding=1),
    )
    apart = nn.Sequential(first, nn.PixelShuffle(s), second).double()
    n, rows, columns = size
    x = torch.randn(n, channels, rows, columns, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(MergedTail(first, second, s).double()(x), apart(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scale", [(2, 2, 2), (2, 2, 1), (3, 3, 1), (4, 4, 3), (1, 1, 2)], ids=str)
@pytest.mark.parametrize("skip", ["none", "cubic"])
@pytest.mark.parametrize("cleaned", [False, True])
def test_networks_of_every_scale_stay_the_same_function(scale, skip, cleaned):
    torch.manual_seed(1)
    network = shaken(super_resolution(Architecture(**TINY, scale=scale, skip=skip), cleaned))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    deployed = merged(network).double()
    lr = torch.rand(2, 3, 11, 14, dtype=torch.float64)
    with torch.no_grad():
        wanted = network(lr)
        np.testing.assert_allclose(deployed(lr), wanted, atol=1e-6 * float(wanted.abs().max()))
    assert all((value == before[name]).all() for name, value in network.state_dict().items())


def test_the_papers_network_takes_five_per_cent_less():
    network = super_resolution(Architecture())
    assert 0.945 < flop(merged(network), 64, 64) / flop(network, 64, 64) < 0.955
