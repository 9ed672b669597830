"""The trainer's commands: what they write, and their sentences for mistakes. One process for each command."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from udean.trainer import checkpoint, cli

from ..support.commands import here

BIN = Path(sys.executable).parent
TINY = """
[network]
channels = 8
groups = 1
blocks = 1
discriminator = 4
skip = "cubic"
[data]
pairing = "misaligned"
[schedule]
steps = 6
batch = 2
patch = 16
validate_every = 3
checkpoint_every = 2
precision = "32-true"
"""


GROUPS = ("--source", "hr/sub-[0-2]*", "--target", "lr/sub-[0-2]*")
GROUPS += ("--validation-hr", "hr/sub-3.nii.gz", "--validation-lr", "lr/sub-3.nii.gz")


def run(command, *arguments, cwd):
    return here(command, *arguments, cwd=cwd, XDG_CACHE_HOME=cwd / "cache", COLUMNS=200)


def process(command, *arguments, cwd):
    env = os.environ | {"XDG_CACHE_HOME": str(cwd / "cache"), "COLUMNS": "200"}
    line = [BIN / command, *map(str, arguments)]
    return subprocess.run(line, cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Four oblique int16 HR scans and their LR scans, made by `udean-simulate`."""
    root = tmp_path_factory.mktemp("cohort")
    affine = np.array([[0, 0.9, 0.1, 5], [-1, 0, 0, -7], [0, 0.1, -0.9, 3], [0, 0, 0, 1.0]])
    for i in range(4):
        rng = np.random.default_rng(i)
        coarse = rng.random((9, 9, 9))
        volume = np.asarray(np.kron(coarse, np.ones((5, 5, 5))) * 900 + 50, np.int16)
        image = nib.Nifti1Image(volume, affine)
        image.set_qform(affine, 1)
        (root / "hr").mkdir(exist_ok=True)
        nib.save(image, root / "hr" / f"sub-{i}.nii.gz")
    done = process("udean-simulate", "hr", "-o", "lr", "--noise", "0.01", cwd=root)
    assert done.returncode == 0, done.stderr
    (root / "tiny.toml").write_text(TINY)
    return root


def test_simulated_scans_keep_geometry_units_and_dtype(cohort):
    hr, lr = (nib.load(cohort / side / "sub-0.nii.gz") for side in ("hr", "lr"))
    assert lr.shape == (22, 22, 22) and lr.get_data_dtype() == np.int16
    np.testing.assert_allclose(lr.affine, hr.affine @ np.diag([2, 2, 2, 1]), atol=1e-6)
    np.testing.assert_allclose(lr.header.get_qform(), lr.affine, atol=1e-5)
    np.testing.assert_allclose(lr.header.get_zooms(), 2 * np.asarray(hr.header.get_zooms()), rtol=1e-6)
    assert np.asarray(lr.dataobj).mean() == pytest.approx(
        np.asarray(hr.dataobj)[:44, :44, :44].mean(), rel=0.01
    )
    assert json.loads((cohort / "lr" / "sub-0.json").read_text())["scale"] == [2, 2, 2]


def test_simulated_scans_keep_their_folders(cohort):
    for i in range(3):
        tree = cohort / "hcp" / f"10000{i}" / "T1w"
        tree.mkdir(parents=True)
        (tree / "T1w_acpc_dc_restore.nii.gz").write_bytes((cohort / "hr" / f"sub-{i}.nii.gz").read_bytes())
    done = run("udean-simulate", "hcp:hcp", "-o", "hcp-lr", cwd=cohort)
    assert done.returncode == 0, done.stderr
    made = sorted(path.parts[-3] for path in (cohort / "hcp-lr").glob("*/T1w/T1w_acpc_dc_restore.nii.gz"))
    assert made == ["100000", "100001", "100002"]
    done = run("udean-eval", "--sr", "sinc", "--hr", "hcp", "--lr", "hcp-lr", "--json", "h.json", cwd=cohort)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((cohort / "h.json").read_text())["scans"]) == 3


def test_freesurfers_scans_become_nifti(cohort):
    nib.save(nib.MGHImage(np.ones((12, 12, 12), np.float32), np.eye(4)), cohort / "orig.mgz")
    done = run("udean-simulate", "orig.mgz", "-o", "mgz", cwd=cohort)
    assert done.returncode == 0, done.stderr
    assert nib.load(cohort / "mgz" / "orig.nii.gz").shape == (6, 6, 6)


def test_eval_of_the_truth_is_perfect_and_of_another_scan_is_not(cohort):
    done = process("udean-eval", "--sr", "hr", "--hr", "hr", "--json", "q.json", cwd=cohort)
    assert done.returncode == 0, done.stderr
    figures = json.loads((cohort / "q.json").read_text())
    assert figures["mean"]["ssim"] == 1 and len(figures["scans"]) == 4
    done = run("udean-eval", "--sr", "hr/sub-0.nii.gz", "--hr", "hr/sub-1.nii.gz", cwd=cohort)
    assert done.returncode == 0 and "sub-0" in done.stdout
    done = run("udean-eval", "--sr", "lr", "--hr", "hr", cwd=cohort)
    assert done.returncode == 2 and "do not lie on one grid" in done.stderr


def train(cohort, out, *more, run=run):
    return run("udean-train", *GROUPS, "--config", "tiny.toml", "--out", out, *more, cwd=cohort)


@pytest.fixture(scope="module")
def trained(cohort):
    done = train(cohort, "run", run=process)
    assert done.returncode == 0, done.stderr
    return cohort


def test_training_writes_checkpoints_metrics_and_configuration(trained):
    run_folder = trained / "run"
    network, card = checkpoint.load_generator(run_folder / "best.pt")
    assert network(torch.rand(1, 3, 8, 8)).shape == (1, 6, 16, 16)
    assert card.method == "udean" and card.quality["validation_psnr"] > 0
    with open(run_folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == list("123456")
    assert rows[5]["validation_psnr"] and not rows[4]["validation_psnr"]
    assert "steps = 6" in (run_folder / "config.toml").read_text()


def test_a_killed_run_resumes_to_the_weights_of_an_unbroken_one(trained):
    env = os.environ | {"XDG_CACHE_HOME": str(trained / "cache")}
    line = [BIN / "udean-train", *GROUPS, "--config", "tiny.toml", "--out", "cut"]
    process = subprocess.Popen(line, cwd=trained, env=env, stderr=subprocess.DEVNULL)
    while not (trained / "cut" / "checkpoint.pt").exists():
        time.sleep(0.02)
        assert process.poll() is None or (trained / "cut" / "checkpoint.pt").exists()
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = train(trained, "cut", "--resume")
    assert done.returncode == 0, done.stderr
    whole, cut = (checkpoint.load(trained / name / "checkpoint.pt") for name in ("run", "cut"))
    assert cut["training"]["step"] == 6
    for name, value in whole["deployed"].items():
        assert torch.equal(value, cut["deployed"][name]), name


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--source", "nowhere"], "does not exist"),
        (["--scale", "9x9x1"], "not supported"),
        (["--resume", "--out", "never"], "no checkpoint"),
        (["--seed", "5000000000"], "seed must be"),
    ],
)
def test_mistakes_end_with_one_sentence_and_exit_code_2(cohort, arguments, sentence):
    done = train(cohort, "wrong", *arguments)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr


def test_no_training_is_replaced_or_goes_on_as_another(trained):
    saved = (trained / "run" / "best.pt").read_bytes()
    for more, sentence in (
        ([], "run already holds a training: continue it with --resume"),
        (["--resume", "--seed", "7"], "run was trained with schedule.seed = 0, not 7"),
        (["--resume", "--method", "cyclegan"], 'with method = "udean", not "cyclegan"'),
        (["--resume", "--steps", "3"], "has been trained for 6 steps already: 3 are fewer"),
    ):
        done = train(trained, "run", *more)
        assert done.returncode == 2 and sentence in done.stderr, done.stderr
        assert (trained / "run" / "best.pt").read_bytes() == saved
    shutil.copytree(trained / "run", trained / "longer")
    done = train(trained, "longer", "--resume", "--steps", "8", "--workers", "0")
    assert done.returncode == 0, done.stderr
    assert checkpoint.load(trained / "longer" / "checkpoint.pt")["training"]["step"] == 8


def test_training_without_scans_says_which_option_is_missing(cohort):
    done = run("udean-train", "--target", "lr", "--out", "none", cwd=cohort)
    assert done.returncode == 2 and "--source" in done.stderr


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        (cli.train, ["--resume"], "holds no checkpoint.pt"),
        (cli.simulate, ["hr", "--scale", "2x2x2", "--thick", "4mm"], "Thick slices (--thick) take"),
    ],
)
def test_what_cannot_be_done_is_refused_at_once(command, options, said, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        command([*options, "--out", str(tmp_path)])
    assert said in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_simulate_never_writes_among_its_inputs(cohort):
    done = run("udean-simulate", "hr", "-o", "hr", cwd=cohort)
    assert done.returncode == 2 and "another folder" in done.stderr
    (cohort / "other").mkdir()
    shutil.copy(cohort / "hr" / "sub-0.nii.gz", cohort / "other" / "a.nii.gz")
    for out in ("hr", "."):  # one of several folders; the one above them
        done = run("udean-simulate", "hr", "other", "-o", out, cwd=cohort)
        assert done.returncode == 2 and "another folder" in done.stderr


def test_progress_without_a_terminal_is_a_line_a_minute(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(cli.time, "monotonic", lambda: now[0])
    training, preparing, short = cli.Lines("Training"), *(cli.Lines("Scans", brief=True) for _ in "ab")
    for step in range(1, 301):
        now[0] += 0.5
        training.tell(step, 300, "l1 0.1")
        preparing.tell(step, 300)
        if step < 100:
            short.tell(step, 99)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("Training")] == [
        "Training: step 1 of 300, l1 0.1",
        "Training: step 121 of 300, l1 0.1, 1 minutes left",
        "Training: step 241 of 300, l1 0.1, 0 minutes left",
        "Training: step 300 of 300, l1 0.1",
    ]
    assert [line for line in lines if line.startswith("Scans")] == [
        "Scans: 120 of 300, 2 minutes left",
        "Scans: 240 of 300, 0 minutes left",
    ]


def test_resume_needs_no_argument_again(trained):
    shutil.copytree(trained / "run", trained / "bare")
    done = run("udean-train", "--resume", "--out", "bare", "--steps", "8", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert checkpoint.load(trained / "bare" / "checkpoint.pt")["training"]["step"] == 8


def test_a_configuration_of_the_users_own_is_not_replaced(cohort):
    own = cohort / "own" / "config.toml"
    own.parent.mkdir()
    own.write_text(TINY)
    done = run("udean-train", *GROUPS, "--config", "own/config.toml", "--out", "own", cwd=cohort)
    assert done.returncode == 2 and "not as udean-train leaves it" in done.stderr
    assert own.read_text() == TINY and list(own.parent.iterdir()) == [own]


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the paper's preset is the default")
def test_without_a_gpu_the_compact_preset_is_taken_and_said(cohort):
    done = run("udean-train", "--source", "nowhere", "--target", "lr", cwd=cohort)
    assert done.returncode == 2 and "weeks: taking --preset compact" in done.stderr
    done = run("udean-train", "--source", "nowhere", "--target", "lr", "--preset", "paper", cwd=cohort)
    assert done.returncode == 2 and "--preset compact" not in done.stderr
