"""The end-to-end step: which losses move which networks, and that training learns."""

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
