"""Sizes and shapes of the networks against the paper and against independent interpolation."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from udean.trainer.nets.discriminators import Discriminator
from udean.trainer.nets.generators import (
    Architecture,
    ArchitectureError,
    Interpolation,
    feature_extractor,
    lr_decoder,
    lr_encoder,
    parameter_count,
    sr_decoder,
    super_resolution,
)
from udean.trainer.nets.merging import merged

TINY = {"channels": 8, "groups": 1, "blocks": 1, "discriminator": 4}
SCALES = [(2, 2, 2), (2, 2, 1), (3, 3, 1), (4, 4, 3), (1, 1, 2)]


def test_paper_network_has_the_published_size():
    assert parameter_count(super_resolution(Architecture())) == 2_457_002


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("skip", ["none", "cubic"])
def test_every_part_maps_between_the_grids(scale, skip):
    arch = Architecture(**TINY, scale=scale, skip=skip)
    s, through = scale[0], scale[2]
    lr, hr = torch.rand(2, 3, 8, 12), torch.rand(2, 3 * through, 8 * s, 12 * s)
    features = lr_encoder(arch)(lr)
    assert features.shape == (2, 8, 8, 12)
    assert feature_extractor(arch)(hr, lr).shape == features.shape
    assert lr_decoder(arch)(features).shape == lr.shape
    assert sr_decoder(arch)(features).shape == hr.shape
    assert super_resolution(arch)(lr).shape == hr.shape


def test_discriminator_gives_one_score_an_image():
    assert Discriminator(3, 4, 64)(torch.rand(5, 3, 64, 64)).shape == (5,)
    assert Discriminator(8, 4, 48)(torch.rand(5, 8, 48, 48)).shape == (5,)


@pytest.mark.parametrize("scale", [(2, 2, 1), (3, 3, 1), (4, 4, 1)])
def test_skip_interpolates_on_the_fft_grid(scale):
    """A cubic polynomial is reproduced at LR coordinate p/s, and LR voxel i stays at HR voxel s·i."""
    s = scale[0]
    grid = torch.arange(16.0)
    poly = 0.3 * grid**2 - grid + 2
    lr = (poly[:, None] * torch.linspace(1, 2, 16)[None]).expand(1, 3, 16, 16)
    sr = Interpolation(scale)(lr)
    fine = torch.arange(16 * s) / s
    expected = (0.3 * fine**2 - fine + 2)[:, None] * (1 + fine / 15)[None]
    inside = slice(2 * s, 13 * s)
    torch.testing.assert_close(sr[0, 1, inside, inside], expected[inside, inside], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sr[..., ::s, ::s], lr, rtol=1e-5, atol=1e-5)


def test_skip_interpolates_slices_linearly_and_holds_the_last():
    lr = torch.tensor([1.0, 3.0, 7.0])[None, :, None, None].expand(1, 3, 4, 4)
    sr = Interpolation((1, 1, 2))(lr)
    np.testing.assert_allclose(sr[0, :, 2, 2], [1, 2, 3, 5, 7, 7], rtol=1e-6)


def test_network_with_skip_starts_as_interpolation():
    torch.manual_seed(0)
    arch = Architecture(**TINY, skip="cubic")
    lr = torch.rand(1, 3, 10, 10)
    torch.testing.assert_close(super_resolution(arch)(lr), Interpolation(arch.scale)(lr))


def test_upsampler_starts_without_checkerboard():
    torch.manual_seed(0)
    decoder = sr_decoder(Architecture(**TINY))
    fine = decoder.upsampler(torch.rand(1, 8, 6, 6))
    blocks = fine.unfold(2, 2, 2).unfold(3, 2, 2)
    assert torch.allclose(blocks.amax((-1, -2)), blocks.amin((-1, -2)))


def test_receptive_field_of_an_encoder_is_thirteen_pixels():
    encoder = lr_encoder(Architecture(**TINY))
    lr = torch.rand(1, 3, 31, 31, requires_grad=True)
    encoder(lr)[0, :, 15, 15].sum().backward()
    assert lr.grad is not None
    touched = np.argwhere(lr.grad[0].abs().sum(0).numpy() > 0)
    assert touched.min(0).tolist() == [9, 9] and touched.max(0).tolist() == [21, 21]


@pytest.mark.parametrize("scale", [(2, 3, 1), (5, 5, 1), (2, 2, 0), (1, 1, 5), (1, 1, 1)])
def test_impossible_scales_are_refused(scale):
    with pytest.raises(ArchitectureError, match="not supported"):
        Architecture(scale=scale)


def test_cubic_skip_agrees_with_an_independent_convolution():
    """SciPy's correlation with Keys' kernel at the half-way phase: (-1, 9, 9, -1)/16."""
    row = np.random.default_rng(0).random(20).astype(np.float32)
    lr = torch.from_numpy(row)[None, None, None].expand(1, 3, 20, 20)
    half = ndimage.correlate1d(row, [-1 / 16, 9 / 16, 9 / 16, -1 / 16], origin=-1, mode="nearest")
    sr = Interpolation((2, 2, 1))(lr)[0, 0, 6].numpy()
    np.testing.assert_allclose(sr[1::2][2:-3], half[2:-3], rtol=1e-5)


@pytest.mark.parametrize("skip", ["none", "cubic"])
@pytest.mark.parametrize("deploy", [lambda n: n, merged], ids=["trained", "merged"])
def test_a_homogeneous_network_does_not_mind_the_unit(skip, deploy):
    torch.manual_seed(0)
    network = super_resolution(Architecture(**TINY, skip=skip, homogeneous=True))
    for value in network.parameters():
        torch.nn.init.normal_(value, std=0.3)
    network = deploy(network).eval()
    lr = torch.rand(2, 3, 12, 10)
    with torch.no_grad():
        plain = network(lr)
        for factor in (0.25, 0.5, 3.0, 4.0):
            within = float(1e-4 * factor * plain.abs().max())
            torch.testing.assert_close(network(factor * lr), factor * plain, rtol=0, atol=within)
        assert torch.isfinite(network(torch.zeros(1, 3, 8, 8))).all()
