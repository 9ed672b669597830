"""Checkpoints: what is saved comes back, and nothing else is ever run."""

import os
import pickle

import pytest
import torch
from udean.runtime.errors import RunError
from udean.runtime.models.card import ModelCard
from udean.trainer import checkpoint
from udean.trainer.checkpoint import CheckpointError
from udean.trainer.nets.generators import Architecture, super_resolution

ARCH = Architecture(channels=8, groups=1, blocks=1, discriminator=4, skip="cubic")
CARD = ModelCard(
    name="tiny", method="udean", scale=(2, 2, 2), slab=(3, 6), window=(16, 16), grid="fft",
    intensity="percentile-99.9", skip="cubic", precision="fp32", parameters=1, toolkit="0",
    trained_on="nothing",
)  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    network = super_resolution(ARCH)
    checkpoint.save(tmp_path / "c.pt", CARD, ARCH, network, {"step": 3})
    return tmp_path / "c.pt", network.eval()


def test_network_and_card_come_back(saved):
    path, network = saved
    loaded, card = checkpoint.load_generator(path)
    lr = torch.rand(1, 3, 8, 8)
    assert card == CARD
    torch.testing.assert_close(loaded(lr), network(lr), rtol=0, atol=0)
    assert checkpoint.load(path)["training"]["step"] == 3


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.mark.parametrize(
    "write", [lambda o, p: torch.save(o, p), lambda o, p: p.write_bytes(pickle.dumps(o))]
)
def test_code_in_a_pickle_is_refused_and_not_run(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write({"format": 1, "deployed": Bomb()}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="does not run it"):
        checkpoint.load_generator(tmp_path / "evil.pt")
    assert not (tmp_path / "exploded").exists()


def test_other_files_are_refused_with_a_sentence(saved, tmp_path):
    path = saved[0]
    whole = path.read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pt").write_bytes(b"")
    (tmp_path / "text.pt").write_text("hello")
    torch.save({"weights": torch.zeros(1)}, tmp_path / "foreign.pt")
    contents = torch.load(path, weights_only=True)
    torch.save(contents | {"format": 99}, tmp_path / "later.pt")
    torch.save(contents | {"architecture": contents["architecture"] | {"groups": 2}}, tmp_path / "mixed.pt")
    for name in ("cut", "empty", "text", "foreign", "later", "mixed", "missing"):
        with pytest.raises(CheckpointError) as caught:
            checkpoint.load_generator(tmp_path / f"{name}.pt")
        assert f"{name}.pt" in str(caught.value) and "\n" not in str(caught.value)


def test_previous_checkpoint_survives_a_failed_write(saved):
    path, network = saved
    before = path.read_bytes()
    with pytest.raises((RunError, TypeError, RuntimeError, AttributeError, pickle.PicklingError)):
        checkpoint.save(path, CARD, ARCH, network, {"step": lambda: None})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["c.pt"]


def test_checkpoints_from_before_pseudosr_load_as_they_were(saved):
    path, network = saved
    contents = torch.load(path, weights_only=True)
    del contents["architecture"]["cleaned"]
    torch.save(contents, path)
    lr = torch.rand(1, 3, 8, 8)
    torch.testing.assert_close(checkpoint.load_generator(path)[0](lr), network(lr), rtol=0, atol=0)
