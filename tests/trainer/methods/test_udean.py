"""The end-to-end step: which losses move which networks, and that training learns."""

import dataclasses
import math

import pytest
import torch
from udean.trainer.methods import Weights
from udean.trainer.methods.method import Batch
from udean.trainer.methods.udean import Udean
from udean.trainer.nets.generators import Architecture, parameter_count

ARCH = Architecture(channels=8, groups=1, blocks=1, discriminator=4, skip="cubic")


@pytest.fixture
def step():
    torch.manual_seed(0)
    method = Udean(ARCH, 16, Weights())
    return method, Batch(torch.rand(2, 6, 32, 32), torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16))


def touched(module):
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters())


def test_total_is_eq_10(step):
    method, batch = step
    terms, _ = method.generator_losses(batch, {})
    weights = (1, 0.1, 1, 1, 0.1, 0.1)
    names = ("image_cycle", "feature_cycle", "hr_consistency", "lr_consistency")
    names += ("image_adaptation", "feature_adaptation")
    expected = sum(w * terms[n] for w, n in zip(weights, names, strict=True))
    torch.testing.assert_close(terms["total"], expected)


def test_generator_losses_reach_every_generator_and_discriminator_losses_none(step):
    method, batch = step
    terms, judged = method.generator_losses(batch, {})
    terms["total"].backward()
    assert all(touched(g) for g in method.generators.values())
    method.zero_grad()
    method.discriminator_losses(batch, judged)[0]["total"].backward()
    assert all(touched(d) for d in method.discriminators.values())
    assert not any(touched(g) for g in method.generators.values())


@pytest.mark.parametrize(
    ("only", "moved"),
    [
        ("image_cycle", {"extractor", "lr_decoder", "lr_encoder", "sr_decoder"}),
        ("feature_cycle", {"extractor", "lr_decoder", "lr_encoder"}),
        ("hr_consistency", {"extractor", "sr_decoder"}),
        ("lr_consistency", {"lr_encoder", "lr_decoder"}),
        ("image_adaptation", {"extractor", "lr_decoder"}),
        ("anchor", {"extractor", "lr_decoder"}),
        ("feature_adaptation", {"extractor", "lr_encoder"}),
    ],
)
def test_each_loss_moves_the_networks_of_its_path_in_fig_2(step, only, moved):
    method, batch = step
    for tail in (method.generators["lr_decoder"].tail, method.generators["sr_decoder"].tail):
        torch.nn.init.normal_(tail.weight, std=0.1)  # zero at the start, which would block gradients
    method.generator_losses(batch, {})[0][only].backward()
    assert {name for name, g in method.generators.items() if touched(g)} == moved


def test_deployed_network_is_lr_encoder_and_sr_decoder_only(step):
    method, _ = step
    parts = [method.generators["lr_encoder"], method.generators["sr_decoder"]]
    assert parameter_count(method.deployed()) == parameter_count(*parts)
    assert {id(p) for p in method.deployed().parameters()} == {id(p) for m in parts for p in m.parameters()}


def test_weights_of_zero_switch_domain_adaptation_off(step):
    _, batch = step
    torch.manual_seed(0)
    ablated = Udean(ARCH, 16, Weights(image_adaptation=0.0, feature_adaptation=0.0))
    terms, _ = ablated.generator_losses(batch, {})
    kept = ("image_cycle", "hr_consistency", "lr_consistency")
    torch.testing.assert_close(terms["total"], sum(terms[n] for n in kept) + 0.1 * terms["feature_cycle"])


def test_the_anchor_falls_to_what_is_left_of_it(step):
    method, batch = step
    method.weights = Weights(anchor=10.0, anchor_left=0.01)
    plain = Weights(anchor=0.0)
    for progress, weight in ((0.0, 10.0), (0.5, 1.0), (1.0, 0.1)):
        terms, _ = method.generator_losses(dataclasses.replace(batch, progress=torch.tensor(progress)), {})
        expected = sum(getattr(plain, name) * term for name, term in terms.items() if name != "total")
        torch.testing.assert_close(terms["total"], expected + weight * terms["anchor"])


def test_patch_judges_see_sharpness_and_noise_and_learn_faster_than_the_generators():
    """They do not see the average of a batch."""
    torch.manual_seed(0)
    method = Udean(dataclasses.replace(ARCH, judges="patch"), 16, Weights())
    judge = method.discriminators["lr"]
    image = torch.rand(2, 3, 16, 16)
    assert judge(image).shape == (2, 1, 4, 4)
    torch.testing.assert_close(judge(image + 0.3), judge(image), atol=1e-5, rtol=1e-4)
    assert (judge(image + 0.1 * torch.randn(image.shape)) - judge(image)).abs().max() > 1e-4
    generators, discriminators = method.turns()
    assert discriminators.pace > generators.pace == 1


def test_learned_noise_is_what_the_anchor_does_not_see():
    torch.manual_seed(0)
    method = Udean(dataclasses.replace(ARCH, noise=True), 16, Weights(anchor=1.0))
    batch = Batch(torch.rand(2, 6, 32, 32), torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16))
    noise = method.generators["noise"]
    torch.nn.init.constant_(noise.level, -2.0 / noise.PACE)
    terms, made = method.generator_losses(batch, {})
    added = made["degraded"] - method.degraded(batch.hr, batch.coarse)
    assert added.std().item() == pytest.approx(math.exp(-2), rel=0.1)
    assert terms["anchor"] == 0  # the networks begin as the truncation
    terms["image_adaptation"].backward()
    assert noise.level.grad is not None and noise.level.grad != 0
