"""Discriminators: every gradient is of this step's values alone."""

import pytest
import torch
from udean.trainer.nets.discriminators import Discriminator


def leave_nan_in_freed_memory():
    for size in 2 ** torch.arange(6, 20):
        del [torch.full((int(size),), float("nan")) for _ in range(8)][:]


@pytest.mark.parametrize("size", [16, 18, 32])
def test_gradients_in_bfloat16_are_not_of_freed_memory(size):
    torch.manual_seed(0)
    network = Discriminator(3, 4, size).to(memory_format=torch.channels_last)
    for _ in range(3):
        leave_nan_in_freed_memory()
        with torch.autocast("cpu", torch.bfloat16):
            score = network(torch.rand(2, 3, size, size)).float().mean()
        network.zero_grad()
        leave_nan_in_freed_memory()
        score.backward()
        assert all(p.grad.isfinite().all() for p in network.parameters())
