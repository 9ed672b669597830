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
        ("network = 5", "must be a table"),
        ("this is not toml", "not valid TOML"),
    ],
)
def test_mistakes_are_named(text, sentence, tmp_path):
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=sentence.replace("'", ".")):
        load("paper", file)


def test_missing_file_and_preset_are_named(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load("paper", tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="choose paper or compact"):
        load("huge")
