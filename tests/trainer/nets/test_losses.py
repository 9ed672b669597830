"""Every loss against numbers computed in another way."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from udean.trainer.nets import losses


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    x = rng.random((2, 3, 32, 40), dtype=np.float32)
    return x, np.clip(x + 0.2 * rng.standard_normal(x.shape, np.float32), 0, 1)


def test_ssim_is_scikit_images_gaussian_one(images):
    x, y = images
    expected = [
        np.mean(
            [
                structural_similarity(
                    a, b, data_range=1, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
                )
                for a, b in zip(xs, ys, strict=True)
            ]
        )
        for xs, ys in zip(x, y, strict=True)
    ]
    got = losses.ssim_index(torch.from_numpy(x), torch.from_numpy(y))
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)
    loss = losses.ssim(torch.from_numpy(x), torch.from_numpy(y))
    assert float(loss) == pytest.approx(np.mean(np.abs(1 - np.square(expected))), abs=1e-5)


def test_l1_is_the_mean_absolute_difference(images):
    x, y = images
    assert float(losses.l1(torch.from_numpy(x), torch.from_numpy(y))) == pytest.approx(np.abs(x - y).mean())


def test_adversarial_losses_by_hand():
    scores = torch.tensor([0.0, 1.0, 2.0])
    assert float(losses.adversarial(scores)) == pytest.approx(2 / 3)
    assert float(losses.discrimination(scores, scores)) == pytest.approx(0.5 * (2 / 3 + 5 / 3))
    assert float(losses.confusion(torch.tensor([0.5, 1.0]), torch.tensor([0.0]))) == pytest.approx(0.375)


def test_equal_images_cost_nothing(images):
    x = torch.from_numpy(images[0])
    assert float(losses.l1(x, x)) == 0
    assert float(losses.ssim(x, x)) == pytest.approx(0, abs=1e-5)


def test_losses_of_half_precision_images_are_computed_in_float32(images):
    x, y = (torch.from_numpy(i).bfloat16() for i in images)
    assert losses.ssim(x, y).dtype == losses.l1(x, y).dtype == torch.float32


def test_ssim_and_its_gradient_are_those_of_float32_under_autocast(images):
    """Moments in bf16 would move this gradient by more than a tenth."""
    x = torch.from_numpy(images[0])
    y = torch.from_numpy(images[1]).requires_grad_()
    expected = losses.ssim(y, x)
    (gradient,) = torch.autograd.grad(expected, y)
    with torch.autocast("cpu", torch.bfloat16):
        got = losses.ssim(y, x)
    assert torch.equal(got, expected)
    assert torch.equal(torch.autograd.grad(got, y)[0], gradient)


def test_similarity_is_l1_or_charbonnier_and_weighs_the_outer_slices():
    x, y = torch.zeros(2, 6, 4, 4), torch.zeros(2, 6, 4, 4)
    y[:, 0] = 3.0
    assert float(losses.similarity(x, y)) == pytest.approx(0.5)  # a sixth of 3
    assert float(losses.similarity(x, y, rim=0.1)) == pytest.approx(0.1 * 3 / 4.2)
    assert float(losses.similarity(x, y, epsilon=4.0)) == pytest.approx((5 - 4) / 6)
    assert float(losses.similarity(y, y, epsilon=0.02)) == 0
