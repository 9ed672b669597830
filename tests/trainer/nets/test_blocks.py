"""Blocks are restored as the runtime restores scans, and the low band is what the LR scan holds."""

import numpy as np
import pytest
import torch
from torch import nn
from udean.runtime.models.card import ModelCard
from udean.runtime.pipeline.tiling import tile_windows
from udean.trainer.nets import blocks
from udean.trainer.nets.generators import Architecture, super_resolution
from udean.trainer.simulation import kspace


def test_a_block_is_what_the_runtime_makes_of_its_slices():
    """Against the runtime's own windows and running mean, whole planes and a network that is not linear."""
    torch.manual_seed(0)
    network = super_resolution(Architecture(channels=8, groups=1, blocks=1, skip="cubic")).eval()
    for value in network.parameters():
        nn.init.normal_(value, std=0.2)
    lr = torch.rand(1, 7, 8, 10)
    card = ModelCard(
        "m", "supervised", (2, 2, 2), (3, 6), (8, 10), "fft", "percentile-99.9", "cubic", "fp32", 1,
        "0", "nothing", overlap=(0.25, 0.25, blocks.OVERLAP),
    )  # fmt: skip
    slices = tile_windows((8, 10, 7), card).slices
    assert slices.starts == (0, 1, 2, 3, 4)
    mean = np.zeros((14, 16, 20), np.float32)
    with torch.no_grad():
        for n, start in enumerate(slices.starts):
            slices.blend(n, network(lr[:, start : start + 3])[0].numpy(), mean, 0)
        made = blocks.restored(network, lr)[0].numpy()
    np.testing.assert_allclose(made, mean, rtol=0, atol=1e-5 * np.abs(mean).max())


@pytest.mark.parametrize("scale", [(2, 2, 2), (2, 2, 1), (1, 1, 2)], ids=str)
def test_the_low_band_is_that_of_k_space_truncation(scale):
    """Inside a block; a few per cent of the energy leak, as the filter is finite."""
    hr = np.random.default_rng(0).standard_normal((64, 64, 32)).astype(np.float32)
    space = np.fft.fftn(hr)
    for axis, s in enumerate(scale):
        frequency = np.abs(np.fft.fftfreq(hr.shape[axis]))
        mask = frequency < 0.5 / s if s > 1 else np.ones_like(frequency, bool)
        space *= np.expand_dims(mask, [a for a in range(3) if a != axis])
    truncated = np.fft.ifftn(space).real
    low = blocks.low_band_of_blocks(torch.from_numpy(np.moveaxis(hr, 2, 0).copy())[None], scale)
    assert low.shape == (1, 32, 64, 64)
    low = np.moveaxis(low[0].numpy(), 0, 2)
    inside = (slice(16, -16), slice(16, -16), slice(8, -8))
    assert np.corrcoef(low[inside].ravel(), truncated[inside].ravel())[0, 1] > 0.9
    flat = blocks.low_band_of_blocks(torch.full((1, 12, 32, 32), 3.0), scale)
    torch.testing.assert_close(flat, torch.full_like(flat, 3.0))


def test_an_lr_scan_tells_nothing_beyond_its_low_band():
    """A zero-filled LR scan has no high band."""
    lr = np.random.default_rng(1).random((24, 24, 16), np.float32)
    fine = torch.from_numpy(np.moveaxis(kspace.zero_fill(lr, (2, 2, 2)), 2, 0).copy())[None]
    high = (fine - blocks.low_band_of_blocks(fine, (2, 2, 2)))[:, 8:-8, 12:-12, 12:-12]
    assert high.std() < 0.35 * fine[:, 8:-8, 12:-12, 12:-12].std()


@pytest.mark.parametrize("scale", [(2, 2, 2), (2, 2, 1), (4, 4, 4)], ids=str)
def test_the_least_depth_is_deep_enough(scale):
    depth = blocks.least_depth(scale)
    assert depth > 3
    blocks.low_band_of_blocks(torch.zeros(1, depth * scale[2], 40, 40), scale)
