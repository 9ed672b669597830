"""The paper's tables end to end at the smallest size: divided, trained, tested, tabulated, resumed."""

import dataclasses
import json

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from udean.benchmarks.paper.published import PUBLISHED, SCALES, table_one, table_two
from udean.benchmarks.paper.tables import Study, divide, make, unique
from udean.runtime.errors import RunError
from udean.trainer.data.scans import find

TINY = """
[network]
channels = 8
groups = 1
blocks = 1
discriminator = 4
skip = "cubic"
[schedule]
steps = 2
batch = 2
patch = 16
validate_every = 1
[machine]
workers = 0
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in (40, 44, 40)], indexing="ij"))
    for i in range(10):
        texture = ndimage.gaussian_filter(np.random.default_rng(i).random((40, 44, 40)), 1.5)
        head = 1000 * ((grid**2).sum(0) < 0.7) * (0.3 + 4 * np.abs(texture - 0.5))
        nib.save(nib.Nifti1Image(head.astype(np.int16), np.eye(4)), tmp_path / f"sub-{i:02d}_T1w.nii")
    (tmp_path / "tiny.toml").write_text(TINY)
    return Study(tmp_path / "tables", "paper", tmp_path / "tiny.toml", {})


def test_every_number_of_the_paper_has_its_experiment():
    names = {e.name for scale in SCALES for e in unique(table_one(scale), table_two(scale))}
    assert set(PUBLISHED) <= names
    assert len(PUBLISHED) == 24
    assert PUBLISHED["2x2x2/misaligned/udean"]["BraTS"] == (0.9513, 32.0435)


def test_every_experiment_has_a_valid_configuration(study):
    for scale in SCALES:
        for experiment in unique(table_one(scale), table_two(scale)):
            if experiment.method:
                config = study.configuration(experiment)
                assert config.method == experiment.method and config.network.scale == scale


def test_groups_share_nobody_and_follow_the_paper(study):
    entries = find([study.config.parent / "*.nii"])
    groups = divide(entries, 0)
    assert {name: len(group) for name, group in groups.items()} == {
        "source": 4, "target": 4, "validation": 1, "test": 1,
    }  # fmt: skip
    assert len({e.participant for group in groups.values() for e in group}) == 10
    assert divide(entries, 0) == groups != divide(entries, 1)
    with pytest.raises(RunError, match="at least 5"):
        divide(entries[:4], 0)


def test_tables_are_made_and_not_made_again(study):
    groups = divide(find([study.config.parent / "*.nii"]), 0)
    names = ("unpaired/tricubic", "misaligned/udean", "misaligned/supervised")
    chosen = [e for e in unique(table_one(), table_two((2, 2, 2))) if e.name[6:] in names]
    assert len(chosen) == 3
    said = []
    make(study, groups, chosen, said.append)
    text = (study.out / "tables.md").read_text()
    for promised in ("| UDEAN, DA in both | misaligned |", "0.9247 / 34.27", "| Tricubic | – |"):
        assert promised in text
    results = json.loads((study.out / "tables.json").read_text())
    assert set(results) == {e.name for e in chosen}
    assert results["2x2x2/unpaired/tricubic"]["mean"]["psnr"] > 15
    for picture in ("table-i-2x2x2.png", "table-ii-2x2x2.png"):
        assert (study.out / picture).read_bytes().startswith(b"\x89PNG")

    stamps = {p: p.stat().st_mtime_ns for p in (study.out / "runs").rglob("checkpoint.pt")}
    assert len(stamps) == 2
    make(study, groups, chosen)
    assert stamps == {p: p.stat().st_mtime_ns for p in stamps}
    longer = dataclasses.replace(study, options={"schedule": {"steps": 3}})
    with pytest.raises(RunError, match=r"is of a run with schedule\.steps = 2, not 3"):
        make(longer, groups, chosen)
    with pytest.raises(RunError, match="another cohort or seed"):
        make(study, divide(find([study.config.parent / "*.nii"]), 1), chosen)
