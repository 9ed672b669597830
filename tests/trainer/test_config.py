"""Configurations: presets, what overrides what, and the sentence for each mistake."""

import pytest
from udean.trainer.config import PRESETS, ConfigError, load


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("method", ["udean", "zssr", "cyclegan"])
def test_resolved_configuration_reads_back_as_itself(preset, method, tmp_path):
    config = load(preset, options={"method": method, "data": {"source": ["a b", "ü*"]}})
    (tmp_path / "config.toml").write_text(config.to_toml())
    assert load("paper", tmp_path / "config.toml") == config


def test_paper_preset_is_the_papers():
    config = load("paper")
    assert (config.network.channels, config.network.groups, config.network.blocks) == (64, 5, 5)
    assert (config.schedule.learning_rate, config.schedule.final_rate) == (1e-4, 1e-8)
    assert (config.schedule.batch, config.schedule.patch, config.network.skip) == (8, 64, "none")


def test_options_win_over_the_file_and_the_file_over_the_preset(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("[schedule]\nsteps = 7\nbatch = 6\n")
    schedule = load("compact", file, {"schedule": {"steps": 9, "seed": None}}).schedule
    assert (schedule.steps, schedule.batch, schedule.patch) == (9, 6, 32)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("speed = 3", "no key 'speed'"),
        ("[schedule]\nstep = 3", "no key 'schedule.step'"),
        ("[schedule]\nsteps = 'many'", "'schedule.steps' must be int"),
        ("[schedule]\nsteps = true", "'schedule.steps' must be int"),
        ("[schedule]\nsteps = 0", "at least 1"),
        ("[schedule]\nbatch = 1", "at least 2"),
        ("[schedule]\nprecision = 'fp8'", "must be one of 'auto'"),
        ("[network]\nscale = [2, 3, 1]", "same factor"),
        ("[network]\nscale = [2, 2]", "must be a list"),
        ("[data]\nslab_axes = [3]", "slab_axes"),
        ("method = 'srgan'", "must be one of 'udean'"),
        ("method = 'supervised'", "learns from pairs"),
        ("method = 'cyclegan'\n[weights]\nssim = 0.1", "cyclegan has no weight 'ssim'"),
        ("[data]\nregister = true", "register is for pairs"),
        ("[data]\nmisalign = true", "misalign needs"),
        ("[data]\nvalidation_hr = ['a']", "needs the validation_lr"),
        ("[degradation]\nnoise = 0.1", "set data.target_simulated"),
        ("[degradation]\npartial_fourier = 0.2", "above 0.5"),
        ("[machine]\ndevices = 0", "at least 1"),
        ("network = 5", "'network' must be a table"),
        ("schedule = 5", "'schedule' must be a table"),
        ("weights = 5", "'weights' must be a table"),
        ("[schedule]\nseed = -1", "seed must be"),
        ("[weights]\nanchor_left = 0.0", "anchor_left must be"),
        ("method = 'cyclegan'\n[network]\njudges = 'patch'", "judges and noise are UDEAN's"),
        ("[data]\ncoarse = 'blur'", "must be one of 'truncation'"),
        ("this is not toml", "not valid TOML"),
    ],
)
def test_mistakes_are_named(text, sentence, tmp_path):
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=sentence.replace("'", ".")):
        load("paper", file, {"schedule": {"steps": None}})


def test_a_file_that_is_no_utf8_is_named(tmp_path):
    (tmp_path / "c.toml").write_bytes("name = 'Gr\xf6\xdfe'".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"c\.toml is not valid TOML"):
        load("paper", tmp_path / "c.toml")


def test_a_file_for_several_methods_may_weigh_what_one_lacks(tmp_path):
    (tmp_path / "c.toml").write_text("[weights]\nssim = 0.1\n")
    assert load("paper", tmp_path / "c.toml", {"method": "cyclegan"}, shared=True).method == "cyclegan"
    assert load("paper", tmp_path / "c.toml", shared=True).weights.ssim == 0.1


def test_missing_file_and_preset_are_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load("paper", tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="choose paper or compact"):
        load("huge")
