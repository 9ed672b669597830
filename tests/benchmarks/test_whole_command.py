"""What a whole command takes besides its network, of files of each kind."""

import json

import nibabel as nib
import numpy as np
import pytest
from udean.benchmarks import whole_command

from ..support.fakes import card, onnx_model


def test_a_commands_time_is_its_networks_and_the_rest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    head = np.random.default_rng(0).random((24, 20, 8), np.float32)
    nib.save(nib.Nifti1Image(head, np.eye(4)), tmp_path / "head.nii")
    model = onnx_model(tmp_path / "sr.onnx", card((2, 2, 2), 3, (16, 16)))
    whole_command.main("32,28,8", "16,16,4", model, 1, 1, tmp_path / "head.nii", tmp_path)
    found = json.loads((tmp_path / "whole-command.json").read_bytes())
    assert found["shape"] == [32, 28, 8] and found["medians"].keys() == {"NIfTI", "small", "DICOM"}
    for figures in found["medians"].values():
        assert 0 < figures["network"] < figures["seconds"]
        assert figures["outside"] == pytest.approx(figures["seconds"] - figures["network"], abs=1e-3)
