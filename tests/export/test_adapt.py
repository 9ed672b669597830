"""Tuning to a user's scans, end to end and tiny; and what is refused, in one sentence."""

import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import typer
from scipy import ndimage
from udean.export import adapt_thick, judge
from udean.export.graph import read
from udean.trainer.simulation.kspace import Acquisition, acquire

from ..support.commands import here

COMMAND = Path(sys.executable).parent / "udean-adapt"


def person(seed, shape=(72, 72, 72)):
    """A body of a few sharp tissues in air, 0 to 1."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij"))
    body = (grid**2).sum(0) < 0.7
    field = ndimage.gaussian_filter(rng.standard_normal(shape), 3)
    level = np.digitize(field / field.std(), (-0.8, 0.2, 1.0))
    return (body * np.asarray((0.3, 0.55, 0.75, 1.0))[level]).astype(np.float32)


def save(path, voxels, size):
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(np.rint(1000 * voxels).astype(np.int16), np.diag([size, size, size, 1.0])), path)


@pytest.fixture
def scans(tmp_path):
    for seed in range(2):
        save(tmp_path / "hr" / f"p{seed}.nii.gz", person(seed), 1.0)
    blurred = Acquisition(width=(0.0, 0.0, 1.8), noise=0.02)
    save(tmp_path / "lr" / "mine.nii.gz", acquire(person(9), blurred), 2.0)
    return tmp_path


def adapt(folder, *arguments):
    return subprocess.run(
        [COMMAND, *arguments], cwd=folder, capture_output=True, text=True, timeout=500,
        env={"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1", "HOME": str(folder)},
    )  # fmt: skip


def test_one_scan_and_two_hr_scans_give_a_model_that_knows_the_blur(scans):
    done = adapt(scans, "lr", "--source", "hr", "--minutes", "0.5", "-o", "mine.onnx")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "dB in tissue" in done.stdout and "Adapting: step" in done.stderr
    assert done.stdout.startswith("Read off your scans: Gaussian")
    page = (scans / "mine.html").read_text()
    assert "Kept" in page and page.count("<img") == 12
    card = read(scans / "mine.onnx")[1]
    rows, _, slices = card.transfer
    assert card.consistency == "transfer" and slices[-1] < 0.6 * rows[-1]
    assert not list(scans.glob("*.adapting"))
    again = here("udean-adapt", "lr", "-o", "mine.onnx", cwd=scans)
    assert again.returncode == 2 and "already exists" in again.stderr


def test_a_thick_scan_tunes_the_through_plane_model_by_its_own_planes_or_nothing_is_written(
    tmp_path, monkeypatch, capsys
):
    body = person(3, (80, 76, 60))
    thick = body.reshape(80, 76, 15, 4).mean(3)
    volume = np.rint(1000 * thick).astype(np.int16)
    nib.save(nib.Nifti1Image(volume, np.diag([1.0, 1, 4, 1])), tmp_path / "thick.nii.gz")
    done = adapt(tmp_path, "thick.nii.gz", "--to", "1mm", "-o", "mine.onnx", "--minutes", "1")
    assert done.returncode == 0 and " dB in planes" in done.stdout, done.stdout + done.stderr
    card = read(tmp_path / "mine.onnx")[1]
    assert card.kind == "through-plane" and card.method == "self-training"
    ran = here("udean-run", "thick.nii.gz", "--to", "1mm", "--engine", "mine.onnx", "-o", "sr", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert nib.load(next((tmp_path / "sr").glob("*.nii.gz"))).shape == (80, 76, 60)
    monkeypatch.setattr(adapt_thick, "LEAST", 99.0)
    with pytest.raises(typer.Exit):
        adapt_thick.adapt_thick([str(tmp_path / "thick.nii.gz")], "1mm", tmp_path / "no.onnx", 0.01, 0)
    assert "Not written" in capsys.readouterr().out and not (tmp_path / "no.onnx").exists()


def test_mistakes_are_said_in_one_sentence(scans):
    turned = nib.load(scans / "lr" / "mine.nii.gz")
    flat = nib.Nifti1Image(np.asarray(turned.dataobj)[:, ::2], np.diag([2.0, 4.0, 2.0, 1.0]))
    (scans / "mixed").mkdir()
    nib.save(turned, scans / "mixed" / "a.nii.gz")
    nib.save(flat, scans / "mixed" / "b.nii.gz")
    for arguments, sentence in (
        (["nowhere"], "does not exist"),
        (["lr", "-o", "mine.plan"], "must be an .onnx file"),
        (["mixed", "--source", "hr"], "different slice directions"),
        (["lr", "--source", "lr"], "are no finer than the target scans"),
        (["lr", "--to", "1mm"], "has no thick slices"),
        (["lr", "--to", "1mm", "--source", "hr"], "own planes"),
        (["mixed", "--to", "1mm"], "give one"),
    ):
        done = here("udean-adapt", *arguments, cwd=scans, XDG_CACHE_HOME=scans / "cache")
        assert done.returncode == 2 and sentence in done.stderr, done.stderr
        assert "Traceback" not in done.stderr and not (scans / "adapted.onnx").exists()


def test_what_is_worse_in_any_respect_is_refused():
    before = judge.ModelFigures(30.0, {"1": 0.5, "2": 0.9}, 0.02, 0.01)
    better = judge.ModelFigures(30.6, {"1": 0.55, "2": 0.9}, 0.012, 0.01)
    assert judge.worse(before, better) is None
    assert "30.00 dB" in judge.worse(before, judge.ModelFigures(30.0, before.lesions, 0.01, 0.01))
    assert "radius 2" in judge.worse(before, judge.ModelFigures(31.0, {"1": 0.6, "2": 0.8}, 0.01, 0.01))
    assert "unexplained" in judge.worse(before, judge.ModelFigures(31.0, before.lesions, 0.03, 0.01))
