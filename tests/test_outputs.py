"""No command replaces files that it has not made itself."""

import json

import nibabel as nib
import numpy as np
import pytest
from udean.benchmarks.engines.command import bench
from udean.export.adapt import adapt
from udean.export.artefacts import export_onnx
from udean.runtime import RunError, SuperResolver
from udean.runtime.models.trt_plan import refuse_foreign_plan
from udean.runtime.run.bids import check_place
from udean.runtime.run.find import find_scans
from udean.runtime.run.run import prepare, run_all
from udean.runtime.view.group import write_group
from udean.runtime.view.report import write_report
from udean.trainer.config import is_untouched, load
from udean.trainer.evaluation.demo import demo
from udean.trainer.evaluation.evaluate import check_table_place as check_table
from udean.trainer.simulation.files import simulate_all
from udean.trainer.simulation.kspace import Acquisition

from .support.fakes import FakeEngine, card, nearest

CARD = card((2, 2, 2), 3, (8, 8))


def scan(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    voxels = np.random.default_rng(0).integers(0, 999, (24, 24, 12)).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, np.diag([2, 2, 2, 1])), path)
    return path


def restored(folder):
    """The outcome of a folder's only scan; its result lies in `out`."""
    resolve = SuperResolver(FakeEngine(lambda x: nearest(x, (2, 2, 2)), CARD))
    jobs = find_scans([str(scan(folder / "scans/a.nii.gz"))], folder / "out")
    prepare(jobs)
    return list(run_all(jobs, resolve))


WRITERS = {
    "demo/hr.nii.gz": lambda path: demo(path.parent),
    "demo/report.png": lambda path: demo(path.parent),
    "bench.json": lambda path: bench(json_path=path),
    "mine.html": lambda path: adapt(["scans"], path.with_suffix(".onnx")),
    "mine.adapting/notes.txt": lambda path: adapt(["scans"], path.parents[1] / "mine.onnx"),
    "best.onnx": lambda path: export_onnx(path.with_name("best.pt"), path.parent),
    "a.rtx.plan": refuse_foreign_plan,
    "b.plan.json": lambda path: refuse_foreign_plan(path.with_name("b.plan")),
    "out/udean-report.html": lambda path: write_report(path, restored(path.parents[1]), CARD),
    "out/udean-group.tsv": lambda path: restored(path.parents[1]) and write_group(path.parent),
    "figures.csv": check_table,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_of_others_is_kept_and_named(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("my notes")
    with pytest.raises(RunError, match="already exists"):
        WRITERS[name](path)
    assert path.read_text() == "my notes"


def test_a_configuration_with_a_word_of_the_users_own_is_not_ours():
    written = load("compact").to_toml()
    assert is_untouched(written)
    assert not is_untouched(written + "# why this rate: see my notes\n") and not is_untouched("steps = 3")


def test_simulated_scans_go_into_no_file(tmp_path):
    hr = [scan(tmp_path / "hr/a.nii.gz")]
    (tmp_path / "lr").touch()
    with pytest.raises(RunError, match="Cannot make the output folder"):
        list(simulate_all(hr, tmp_path / "lr", Acquisition(scale=(2, 2, 2))))


def test_a_raw_dataset_stays_as_it_is(tmp_path):
    scan(tmp_path / "bids/sub-01/anat/sub-01_T1w.nii.gz")
    (tmp_path / "bids/dataset_description.json").write_text(
        json.dumps({"Name": "x", "BIDSVersion": "1.10.0"})
    )
    for place in ("bids", "bids/sub-01", "bids/sr"):
        with pytest.raises(RunError, match="raw dataset"):
            find_scans([str(tmp_path / "bids")], tmp_path / place)
    for place in ("bids/derivatives/mine", "bids/sourcedata/x", "elsewhere"):
        check_place(tmp_path / place)
    (tmp_path / "bids/derivatives/fmriprep").mkdir(parents=True)
    (tmp_path / "bids/derivatives/fmriprep/dataset_description.json").write_text("{}")
    check_place(tmp_path / "bids/derivatives/fmriprep")
