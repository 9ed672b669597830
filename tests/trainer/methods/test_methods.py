"""The contract between every method and the training loop, and each baseline's own rules."""

import pytest
import torch
import torch.nn.functional as F
from udean.trainer import checkpoint
from udean.trainer.config import Config
from udean.trainer.fit import card_of
from udean.trainer.methods import METHODS, Weights, create
from udean.trainer.methods.cyclegan import POOL, Pool
from udean.trainer.methods.dasr import haar
from udean.trainer.methods.method import Batch
from udean.trainer.nets.generators import Architecture, parameter_count
from udean.trainer.nets.interpolation import Decimation

ARCH = Architecture(channels=8, groups=1, blocks=1, discriminator=4, skip="cubic")


@pytest.fixture
def batch():
    """One smooth pair, twice: HR slabs, their LR slabs, and other LR slabs."""
    torch.manual_seed(0)
    hr = F.interpolate(torch.rand(4, 1, 12, 12), (32, 32), mode="bicubic").clamp(0, 1)
    hr = hr * torch.linspace(0.8, 1, 6)[:, None, None]
    coarse = Decimation(ARCH.scale)(hr)
    return Batch(hr[:2], coarse[:2], coarse[2:], seed=1)


def play(method, batch, steps, stage=0, rate=5e-3):
    """Steps as the loop takes them; the generators' losses by name of each."""
    turns = method.turns(stage)
    optimisers = [torch.optim.Adam(t.trains.parameters(), rate) for t in turns]
    history = []
    for _ in range(steps):
        made, seen = {}, {}
        for turn, optimiser in zip(turns, optimisers, strict=True):
            method.requires_grad_(False)
            turn.trains.requires_grad_(True)
            terms, more = turn.losses(batch, made)
            made = made | more
            optimiser.zero_grad()
            terms["total"].backward()
            optimiser.step()
            seen |= {k: float(v.detach()) for k, v in terms.items() if k != "total"}
        history.append(seen)
    return history


# By method: the skip (a plain network starts far from the image, one with a skip as interpolation), the
# losses by stage that it brings down whatever its adversary does, and to which part of their start.
FALLS = {
    "udean": ("cubic", [("image_cycle", "hr_consistency")], 0.4),
    "parametric": ("none", [("l1", "ssim")], 0.5),
    "supervised": ("none", [("l1", "ssim")], 0.5),
    "zssr": ("none", [("l1", "ssim")], 0.5),
    "cyclegan": ("cubic", [("lr_cycle", "hr_cycle")], 0.7),
    "dasr": ("none", [("low_pass",), ("pixel", "low_pass")], 0.5),
    "pseudosr": ("none", [("pixel",)], 0.6),
}


@pytest.mark.parametrize("name", METHODS)
def test_overfitting_one_pair_brings_the_loss_down(name, batch):
    torch.manual_seed(0)
    skip, stages, factor = FALLS[name]
    method = create(name, Architecture(8, 1, 1, 4, skip=skip), 16, Weights())
    for stage, names in enumerate(stages):
        history = [sum(h[n] for n in names) for h in play(method, batch, 100, stage)]
        assert sum(history[-5:]) / 5 < factor * history[0], (stage, history[0], history[-5:])


@pytest.mark.parametrize("name", METHODS)
def test_a_turn_moves_only_what_it_trains(name, batch):
    torch.manual_seed(0)
    method = create(name, ARCH, 16, Weights())
    assert method.stages == len(FALLS[name][1])
    for stage in range(method.stages):
        made = {}
        for turn in method.turns(stage):
            more = turn.losses(batch, made)[1]
            made |= more
            assert not any(t.requires_grad for t in more.values())
            method.zero_grad()
            mine = {id(p) for p in turn.trains.parameters()}
            method.requires_grad_(False)
            turn.trains.requires_grad_(True)
            turn.losses(batch, made)[0]["total"].backward()
            moved = {id(p) for p in method.parameters() if p.grad is not None}
            assert moved and moved <= mine
            method.requires_grad_(True)


@pytest.mark.parametrize("name", METHODS)
def test_deployed_network_survives_the_checkpoint(name, batch, tmp_path):
    torch.manual_seed(0)
    method = create(name, ARCH, 16, Weights())
    play(method, batch, 2, method.stages - 1)
    network = method.deployed().eval()
    card = card_of(Config(method=name, network=ARCH), network, {})
    checkpoint.save(tmp_path / "c.pt", card, ARCH, network)
    loaded, card = checkpoint.load_generator(tmp_path / "c.pt")
    assert card.method == name and card.parameters == parameter_count(network)
    torch.testing.assert_close(loaded(batch.lr), network(batch.lr), rtol=0, atol=0)
    assert loaded(batch.lr).shape == batch.hr.shape


def test_only_pseudosr_deploys_more_than_encoder_and_decoder():
    size = {name: parameter_count(create(name, ARCH, 16, Weights()).deployed()) for name in METHODS}
    assert size.pop("pseudosr") > 1.5 * size["udean"]
    assert len(set(size.values())) == 1


def test_pool_gives_new_fakes_until_full_and_then_half_old_ones():
    pool = Pool((1, 2, 2))
    first = torch.arange(float(POOL)).reshape(POOL, 1, 1, 1).expand(POOL, 1, 2, 2)
    assert torch.equal(pool(first, 0), first)
    judged = pool(first + 100, 1)
    given_back = (judged == first + 100).flatten(1).all(1).float().mean()
    assert 0.25 < given_back < 0.75
    seen = torch.cat((judged, pool.images))[:, 0, 0, 0].tolist()
    assert set(seen) == {*range(POOL), *range(100, 100 + POOL)}  # nothing is lost or made up
    twin = Pool((1, 2, 2))
    twin.load_state_dict(pool.state_dict())
    assert torch.equal(twin(first, 2), pool(first, 2))


def test_haar_is_orthonormal_and_its_high_bands_ignore_a_constant():
    image = torch.rand(2, 3, 8, 8)
    low, high = haar(image)
    assert low.shape == (2, 3, 4, 4) and high.shape == (2, 9, 4, 4)
    torch.testing.assert_close((low**2).sum() + (high**2).sum(), (image**2).sum())
    assert float(haar(torch.full((1, 3, 8, 8), 0.7))[1].abs().max()) < 1e-6


def test_domain_distance_is_the_mean_score_of_the_fields_over_a_pixel(batch):
    torch.manual_seed(0)
    method = create("dasr", ARCH, 16, Weights())
    scores = torch.tensor([[0.0, 1.0], [2.0, 3.0]])[None, None]
    method.judge_lr.forward = lambda x: torch.logit(scores / 4)
    weight = method.domain_distance(batch.coarse[:1], batch.hr.shape)
    assert weight.shape == (1, 1, 32, 32)
    # Fields are 13 wide and centred every 4 of 8 pixels: all four cover pixels 0 to 6 on both axes.
    torch.testing.assert_close(weight[0, 0, :24, :24], torch.full((24, 24), 1.5 / 4))


def test_pseudosr_ensemble_undoes_what_it_does():
    method = create("pseudosr", ARCH, 16, Weights())
    x = torch.rand(1, 3, 16, 16)
    method.clean.forward = lambda view, lr=None: view * 2
    torch.testing.assert_close(method.eightfold(x), 2 * x)


def test_decimation_of_a_smooth_slab_is_its_truncation():
    from udean.trainer.simulation import kspace

    y, x, z = torch.meshgrid(*[torch.arange(n) for n in (48, 48, 6)], indexing="ij")
    image = torch.exp(-((y - 22.0) ** 2 + (x - 25.0) ** 2) / 40) * (1 + z / 20)
    lr = Decimation((2, 2, 2))(image.permute(2, 0, 1)[None])[0, :, 4:-4, 4:-4]
    truncated = kspace.acquire(image[:, :, ::2].numpy(), kspace.Acquisition((2, 2, 1)))
    torch.testing.assert_close(
        lr[1], torch.from_numpy(truncated).permute(2, 0, 1)[1, 4:-4, 4:-4], atol=2e-2, rtol=0
    )
    assert torch.equal(Decimation((1, 1, 1))(image[None, :, :, :3].permute(0, 3, 1, 2))[0, 0], image[:, :, 0])
