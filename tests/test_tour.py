"""docs/tour.ipynb: its cells run as they stand, in their order, and restore what they say."""

import json
from pathlib import Path

import matplotlib
import nibabel as nib
import numpy as np

NOTEBOOK = Path(__file__).parents[1] / "docs" / "tour.ipynb"


def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch, capsys):
    matplotlib.use("Agg")
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5 and not any(cell["outputs"] for cell in cells)  # outputs would grow old
    names = {}
    for number, cell in enumerate(cells):
        exec(compile("".join(cell["source"]), f"{NOTEBOOK.name}, cell {number}", "exec"), names)

    figures = names["figures"]
    assert figures["SR"] > figures["tricubic"] + 0.5
    assert names["sr"].shape == names["truth"].shape
    np.testing.assert_allclose(names["sr"].affine, names["hr"].affine, atol=1e-4)
    assert names["iso"].shape == names["truth"].shape
    np.testing.assert_allclose(names["iso"].affine, names["hr"].affine, atol=1e-3)
    assert names["fine"].dtype == np.int16 and nib.load("scan_sr.nii.gz").shape == names["fine"].shape
    said = capsys.readouterr().out
    assert "Tensor (112, 160, 64)" in said and "Image (112, 160, 64)" in said and "dB" in said
