"""The loop: every method runs, resumes bit by bit, scales gradients, shares a batch, and gives warning."""

import csv
import dataclasses
import functools
import logging
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import nibabel as nib
import numpy as np
import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.precision import MixedPrecision
from udean.runtime.errors import RunError
from udean.trainer import checkpoint, fit, precision
from udean.trainer.config import load
from udean.trainer.methods import METHODS, Weights, create
from udean.trainer.metrics_log import Alarm, MetricsLog
from udean.trainer.nets.interpolation import Decimation
from udean.trainer.precision import TrainingPrecision
from udean.trainer.simulation.kspace import Degradation
from udean.trainer.validation import validate

PAIRED = {"supervised": "misaligned"}


@pytest.fixture(scope="module")
def scans(tmp_path_factory, head):
    folder = tmp_path_factory.mktemp("scans")
    for group, seeds in (("source", (0, 1)), ("target", (2, 3)), ("validation", (4,))):
        for seed in seeds:
            path = folder / group / f"head-{seed}.nii"
            path.parent.mkdir(exist_ok=True)
            nib.save(nib.Nifti1Image(head(seed, (72, 72, 40)), np.eye(4)), path)
    return folder


@pytest.fixture(scope="module")
def whole(scans):
    """whole(method): the checkpoint of a training that nothing has interrupted, trained once a method."""
    return functools.cache(lambda method: fit.fit(config(scans, method), scans / f"whole-{method}"))


def config(scans, method="udean", **tables):
    """Tiny networks on simulated target scans; supervised on misaligned pairs of the target's people."""
    source = "target" if method in PAIRED else "source"
    return load(
        "paper",
        options={
            "method": method,
            "data": {
                "source": [str(scans / source)],
                "target": [str(scans / "target")],
                "validation_hr": [str(scans / "validation")],
                "pairing": PAIRED.get(method, "unpaired"),
                "misalign": method in PAIRED,
                "target_simulated": True,
            },
            "network": {
                "channels": 8, "groups": 1, "blocks": 1, "discriminator": 4, "skip": "cubic",
                **tables.get("network", {}),
            },
            "schedule": {
                "steps": 4, "batch": 2, "patch": 16, "learning_rate": 1e-3,
                "validate_every": 2, "checkpoint_every": 2, "precision": "32-true",
                **tables.get("schedule", {}),
            },
            "machine": {"workers": 0, **tables.get("machine", {})},
        },
    )  # fmt: skip


def state(run):
    return checkpoint.load(run / "checkpoint.pt")["training"]


def assert_same(first, second):
    assert first["step"] == second["step"]
    for name, value in first["method"].items():
        assert torch.equal(value, second["method"][name]), name


def metrics_of(run):
    with open(run / "metrics.csv") as file:
        return list(csv.DictReader(file))


class Killed(Exception):
    pass


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_goes_on_where_it_was_killed(method, scans, whole, tmp_path):
    chosen = config(scans, method)
    final = whole(method)
    network, card = checkpoint.load_generator(final)
    assert card.method == method and math.isfinite(card.quality["validation_psnr"])
    assert network(torch.rand(1, 3, 8, 8)).shape == (1, 6, 16, 16)

    def report(step, total, values):
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        fit.fit(chosen, tmp_path / "cut", report=report)
    assert state(tmp_path / "cut")["step"] == 2
    fit.fit(chosen, tmp_path / "cut", resume=True)
    assert_same(state(final.parent), state(tmp_path / "cut"))
    rows = metrics_of(tmp_path / "cut")
    assert [int(r["step"]) for r in rows] == list(range(1, 4 * METHODS[method].stages + 1))
    assert any((final.parent / "tensorboard").iterdir())


def test_best_weights_of_an_unpaired_training_are_chosen_without_truth(scans, tmp_path):
    """Other truths, the same LR windows: the same best.pt. Truth counts where it is asked for."""
    best = []
    for truth in ("as it is", "another"):
        chosen = config(scans, schedule={"steps": 6})
        run = tmp_path / truth
        with pytest.MonkeyPatch.context() as patch:
            if truth == "another":
                material_of = fit.batches.material_of

                def changed(*arguments, material_of=material_of):
                    material = material_of(*arguments)
                    return dataclasses.replace(material, watched_hr=material.watched_hr.flip(0))

                patch.setattr(fit.batches, "material_of", changed)
            best.append(checkpoint.load_generator(fit.fit(chosen, run)))
    (network, card), (other, _) = best
    assert card.selection == "consistency" and "selection" in card.quality
    for a, b in zip(network.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    rows = [row for row in metrics_of(tmp_path / "as it is") if row["selection"]]
    assert card.quality["selection"] == pytest.approx(max(float(r["selection"]) for r in rows), abs=1e-3)
    final = fit.fit(config(scans, schedule={"select": "truth"}), tmp_path / "told")
    assert checkpoint.load_generator(final)[1].selection == "truth"
    assert checkpoint.load_generator(tmp_path / "told" / "checkpoint.pt")[1].selection == "last"


def test_selection_sees_blur_and_what_does_not_explain_the_scan():
    """The truth is preferred to a blurred answer and to another anatomy."""
    random = torch.Generator().manual_seed(0)
    hr, other = torch.rand(2, 8, 6, 32, 32, generator=random)
    decimation = Decimation((2, 2, 2))
    lr = decimation(hr)
    blurred = torch.nn.functional.interpolate(lr.repeat_interleave(2, 1), scale_factor=2, mode="bilinear")
    scores = []
    for answer in (hr, blurred, hr.flip(0)):
        network = torch.nn.Module()
        network.forward = lambda x, answer=answer: answer
        fabric = Fabric(accelerator="cpu")
        values, _ = validate(network, decimation, lr, None, fabric, lambda sr, coarse: coarse, other)
        scores.append(values["selection"])
    assert scores[0] > scores[1] + 3 and scores[0] > scores[2] + 3


def test_selection_sees_whether_a_degradation_makes_what_the_scans_are():
    """Blurred LR windows: the truth and their blur are chosen before an SR volume that is blurred itself,
    which truncation explains as well."""
    random = torch.Generator().manual_seed(0)
    hr, other = torch.rand(2, 8, 6, 32, 32, generator=random)
    decimation, blur = Decimation((2, 2, 2)), torch.nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    lr = blur(decimation(hr))
    soft = torch.nn.functional.interpolate(lr.repeat_interleave(2, 1), scale_factor=2, mode="bicubic")
    found = []
    for answer, degrade in ((hr, lambda sr, coarse: blur(coarse)), (soft, lambda sr, coarse: coarse)):
        network = torch.nn.Module()
        network.forward = lambda x, answer=answer: answer
        values, _ = validate(network, decimation, lr, None, Fabric(accelerator="cpu"), degrade, other)
        found.append(values)
    right, wrong = found
    assert right["degradation_distance"] < 1 and wrong["degradation_distance"] > 3
    assert right["selection"] > wrong["selection"] + 3


def test_explaining_a_scan_better_than_to_its_noise_is_no_merit():
    """The truth and what fits the noisy windows best, both sharp: which is chosen hangs on the noise."""
    random = torch.Generator().manual_seed(0)
    hr, other = torch.rand(2, 8, 6, 32, 32, generator=random)
    lr = Decimation((2, 2, 2))(hr) + 0.02 * torch.randn(8, 3, 16, 16, generator=random)

    def score(residual, noise):
        network = torch.nn.Module()
        network.forward = lambda x: hr[: len(x)]
        explained = (lr + residual * torch.ones_like(lr)).split(8)[0]
        fabric = Fabric(accelerator="cpu")
        return validate(network, Decimation((2, 2, 2)), lr, None, fabric, lambda *_: explained, other, noise)[
            0
        ]["selection"]

    assert score(0.001, 0.0) > score(0.02, 0.0) + 20
    assert score(0.001, 0.02) == pytest.approx(score(0.02, 0.02), abs=0.01)
    assert score(0.001, 0.02) > score(0.06, 0.02) + 6


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_slices_alone(method, scans, tmp_path):
    once = {"steps": 1, "validate_every": 1, "checkpoint_every": 1}
    model = fit.fit(config(scans, method, network={"scale": (1, 1, 3)}, schedule=once), tmp_path / "run")
    network, card = checkpoint.load_generator(model)
    assert card.scale == (1, 1, 3) and network(torch.rand(1, 3, 16, 16)).shape == (1, 9, 16, 16)
    people = "2 HR scans of 2 people (1 x 1 x 1 mm)"
    assert card.trained_on.startswith("2 simulated LR scans" if method == "zssr" else people)


def test_a_training_killed_after_its_first_best_weights_resumes(scans, whole, tmp_path, monkeypatch):
    """Between best.pt and the checkpoint that says so there is one to go on from, and nothing is lost."""
    chosen, run = config(scans), whole("udean").parent
    save = checkpoint.save

    def once(path, *arguments):
        save(path, *arguments)
        if path.name == "best.pt":
            raise Killed

    monkeypatch.setattr(fit.checkpoint, "save", once)
    with pytest.raises(Killed):
        fit.fit(chosen, tmp_path / "cut")
    monkeypatch.setattr(fit.checkpoint, "save", save)
    fit.fit(chosen, tmp_path / "cut", resume=True)
    assert_same(state(run), state(tmp_path / "cut"))
    best, cut = (checkpoint.load(folder / "best.pt")["deployed"] for folder in (run, tmp_path / "cut"))
    assert all(torch.equal(value, cut[name]) for name, value in best.items())


def test_averaged_weights_are_deployed_and_resumed_bit_by_bit(scans, tmp_path):
    chosen = config(scans, schedule={"average": 0.9})
    fit.fit(chosen, tmp_path / "whole")

    def report(step, total, values):
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        fit.fit(chosen, tmp_path / "cut", report=report)
    fit.fit(chosen, tmp_path / "cut", resume=True)
    whole, cut = state(tmp_path / "whole"), state(tmp_path / "cut")
    assert_same(whole, cut)
    deployed = checkpoint.load(tmp_path / "cut" / "checkpoint.pt")["deployed"]
    for name, value in whole["average"].items():
        assert torch.equal(value, cut["average"][name]) and torch.equal(value, deployed[name]), name
    last = {
        name: value for name, value in whole["method"].items() if name.startswith("generators.lr_encoder")
    }
    assert any(
        not torch.equal(v, deployed[n.replace("generators.lr_encoder", "encoder")]) for n, v in last.items()
    )


def test_blocks_train_the_network_that_slabs_deploy(scans, tmp_path):
    chosen = config(scans, "supervised", schedule={"depth": 6}, network={"homogeneous": True})
    final = fit.fit(chosen, tmp_path / "run")
    network, card = checkpoint.load_generator(final)
    assert network(torch.rand(1, 3, 8, 8)).shape == (1, 6, 16, 16)
    assert card.overlap == (0.25, 0.25, 0.5)
    rows = metrics_of(tmp_path / "run")
    assert all(float(row["high_band"]) > 0 and float(row["low_band"]) > 0 for row in rows)
    assert not any(name.endswith("body.0.bias") for name in checkpoint.load(final)["deployed"])


def test_workers_draw_what_the_loop_itself_would(scans, whole, tmp_path):
    fit.fit(config(scans, machine={"workers": 1}), tmp_path / "run")
    assert_same(state(whole("udean").parent), state(tmp_path / "run"))


def test_half_precision_scales_gradients_and_its_factor_is_resumed(scans, tmp_path, monkeypatch):
    """Fabric has no fp16 for the CPU by name; its plugin does what "16-mixed" does on a GPU."""
    monkeypatch.setattr(
        fit, "_fabric", lambda c: Fabric(accelerator="cpu", plugins=[MixedPrecision("16-mixed", "cpu")])
    )
    chosen = config(scans, schedule={"precision": "16-mixed"})
    fit.fit(chosen, tmp_path / "whole")
    saved = state(tmp_path / "whole")
    assert saved["scaler"]["scale"] >= 1 and all(torch.isfinite(v).all() for v in saved["method"].values())

    def report(step, total, values):
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        fit.fit(chosen, tmp_path / "cut", report=report)
    fit.fit(chosen, tmp_path / "cut", resume=True)
    assert_same(saved, state(tmp_path / "cut"))
    assert state(tmp_path / "cut")["scaler"] == saved["scaler"]


def test_two_processes_give_the_losses_of_one_with_the_same_global_batch(scans, tmp_path):
    """Real gloo processes, started by the command itself; batch normalisation spans both."""
    chosen = config(scans, schedule={"batch": 4})
    fit.fit(chosen, tmp_path / "one")
    (tmp_path / "c.toml").write_text(chosen.to_toml())
    command = [Path(sys.executable).parent / "udean-train", "--config", "c.toml", "--devices", "2"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, "-o", "two"], cwd=tmp_path, env=env, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    one, two = metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two")
    assert len(one) == len(two) == 4
    for a, b in zip(one, two, strict=True):
        for name in a:
            if a[name]:
                assert float(b[name]) == pytest.approx(float(a[name]), rel=2e-3, abs=1e-5), (a["step"], name)


def test_a_full_disk_leaves_the_previous_checkpoint(scans, whole, tmp_path):
    """A limit on file size is a disk that is full for this process alone."""
    import resource

    shutil.copytree(whole("udean").parent, tmp_path / "run")
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    contents = checkpoint.load(tmp_path / "run" / "checkpoint.pt")
    network, card = checkpoint.load_generator(tmp_path / "run" / "checkpoint.pt")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(RunError, match=r"Cannot write .*checkpoint\.pt") as caught:
            checkpoint.save(
                tmp_path / "run" / "checkpoint.pt", card, config(scans).network, network, contents["training"]
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    assert not list((tmp_path / "run").glob(".*part"))


def test_losses_that_are_not_finite_stop_the_run(scans, tmp_path):
    with pytest.raises(fit.DivergenceError, match="lower learning_rate"):
        fit.fit(config(scans, schedule={"learning_rate": 1e30}), tmp_path / "run")


def test_gradients_that_are_not_finite_stop_the_run_and_spoil_no_checkpoint(scans, tmp_path, monkeypatch):
    """As a faulty kernel makes them: every loss of that step is finite."""
    calls = iter(range(1000))

    def spoil(parameters):
        if next(calls) == 4:  # the third step's first turn, of two a step
            next(p.grad for p in parameters if p.grad is not None).fill_(math.nan)

    monkeypatch.setattr(fit.distributed, "average_gradients", spoil)
    with pytest.raises(fit.DivergenceError, match="gradients are not finite at step 2"):
        fit.fit(config(scans, schedule={"checkpoint_every": 1}), tmp_path / "run")
    assert state(tmp_path / "run")["step"] == 2
    deployed = checkpoint.load(tmp_path / "run" / "checkpoint.pt")["deployed"]
    assert all(weight.isfinite().all() for weight in deployed.values())


def test_participants_in_two_groups_stop_the_run(scans, tmp_path):
    options = config(scans)
    leaked = load("paper", options={"data": {"source": options.data.source, "target": options.data.source}})
    with pytest.raises(RunError, match="head-0 is in the source and in the target group"):
        fit.fit(leaked, tmp_path / "run")


def test_a_batch_that_processes_cannot_share_is_refused(scans, tmp_path, monkeypatch):
    monkeypatch.setattr(fit.distributed, "count", lambda: 3)
    with pytest.raises(RunError, match="cannot be shared by 3"):
        fit.fit(config(scans), tmp_path / "run")


def test_alarm_tells_a_collapsed_discriminator_and_a_rising_loss_once(caplog):
    alarm = Alarm()
    with caplog.at_level(logging.WARNING):
        for step in range(2000):
            rising = 0.1 if step < 1000 else 0.1 + (step - 1000) / 100
            alarm.hear(step, {"image_cycle": rising, "d_hr": 1e-4, "d_lr": 0.2, "lr_consistency": 0.1})
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 2
    assert "d_hr has collapsed" in said[0] and "image_cycle has risen" in said[1]


def test_alarm_tells_a_discriminator_that_has_learned_nothing_but_not_one_that_was_fooled(caplog):
    alarm = Alarm()
    with caplog.at_level(logging.WARNING):
        for step in range(1500):
            learned = 0.1 if 200 < step < 700 else 0.25
            alarm.hear(step, {"d_lr": 0.25, "d_hr": learned, "d_x": 0.69})
    (said,) = (record.getMessage() for record in caplog.records)
    assert "d_lr has stayed at 0.25" in said


def test_metrics_of_another_stage_keep_the_rows_before(tmp_path):
    metrics = MetricsLog(tmp_path, 0)
    metrics.write(1, {"low_pass": 1.0, "d_lr": 0.5})
    metrics.write(2, {"pixel": 2.0, "validation_psnr": 30.0})
    metrics.close()
    resumed = MetricsLog(tmp_path, 1)
    resumed.write(2, {"pixel": 3.0})
    resumed.close()
    rows = metrics_of(tmp_path)
    assert [(r["step"], r["low_pass"], r["pixel"]) for r in rows] == [("1", "1", ""), ("2", "", "3")]


def test_auto_is_a_precision_that_the_machine_multiplies_itself(scans):
    """bf16 by way of float32 takes several times as long as float32."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    chosen = fit.resolved(config(scans, schedule={"precision": "auto"})).schedule.precision
    assert chosen in get_args(TrainingPrecision)
    if not torch.cuda.is_available() and not {"avx512_bf16", "amx_bf16"} & set(flags.split()):
        assert chosen == "32-true" or "avx512f" not in flags
    explicit = config(scans, schedule={"precision": "bf16-mixed"})
    assert fit.resolved(explicit) == explicit


@pytest.mark.parametrize(("seconds", "chosen"), [(0.5, "bf16-mixed"), (1.3, "32-true")])
def test_a_processor_trains_in_bf16_only_if_that_is_faster_on_it(monkeypatch, seconds, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(precision, "processor_has_bf16", lambda: True)
    assert 0 < precision.seconds_of_steps(bf16=False) < 60
    monkeypatch.setattr(precision, "seconds_of_steps", lambda bf16: seconds if bf16 else 1.0)
    assert precision.fastest_precision() == chosen


def test_a_parametric_degradation_is_in_the_card_and_in_the_selection(scans, tmp_path):
    """Target scans blurred along slices: estimated, undone in training, and told to the runtime."""
    blurred = {"width": (0.0, 0.0, 1.8), "noise": 0.02}
    chosen = config(scans, "parametric")
    chosen = dataclasses.replace(chosen, degradation=Degradation(**blurred))
    final = fit.fit(chosen, tmp_path / "run")
    card = checkpoint.load_generator(final)[1]
    assert card.selection == "consistency" and card.consistency == "transfer"
    rows, _, slices = card.transfer
    assert slices[-1] < 0.5 and slices[-1] < rows[-1] and slices[0] == 1
    assert "LR scans made as estimated" in card.trained_on and "noise" in card.trained_on
    assert all(float(r["learned_consistency"]) > 0 for r in metrics_of(tmp_path / "run") if r["selection"])


def test_a_training_begins_as_the_checkpoint_that_it_is_told(scans, whole, tmp_path):
    first = whole("supervised")
    chosen = dataclasses.replace(config(scans), init=str(first))
    chosen = dataclasses.replace(
        chosen, schedule=dataclasses.replace(chosen.schedule, learning_rate=0.0, final_rate=0.0)
    )
    judged = dataclasses.replace(chosen.network, judges="patch", noise=True)  # nothing of it is deployed
    second = fit.fit(dataclasses.replace(chosen, network=judged), tmp_path / "second")
    assert {"judges", "noise"}.isdisjoint(fit.network_of(str(second)))
    before, after = (checkpoint.load(path)["deployed"] for path in (first, second))
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    with pytest.raises(RunError, match="not the one to be trained"):
        fit.fit(dataclasses.replace(chosen, init="default"), tmp_path / "third")


def test_a_network_more_than_the_checkpoint_has_begins_as_it_would_without(scans, whole, tmp_path):
    """PseudoSR cleans LR slabs first; a plain network cannot begin as the two."""
    first = whole("supervised")
    cleaning = create("pseudosr", config(scans).network, 16, Weights())
    fit.begin(cleaning, dataclasses.replace(config(scans, "pseudosr"), init=str(first)))
    saved = checkpoint.load(first)["deployed"]
    begun = cleaning.deployed().state_dict()
    assert all(torch.equal(value, begun[name]) for name, value in saved.items()) and len(begun) > len(saved)
    card = fit.card_of(config(scans, "pseudosr"), cleaning.deployed(), {})
    checkpoint.save(tmp_path / "both.pt", card, config(scans).network, cleaning.deployed())
    plain = create("supervised", config(scans).network, 16, Weights())
    with pytest.raises(RunError, match="deploys different networks from those of supervised"):
        fit.begin(plain, dataclasses.replace(config(scans, "supervised"), init=str(tmp_path / "both.pt")))
