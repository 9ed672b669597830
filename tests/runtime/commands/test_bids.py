"""The BIDS-App: its levels, what it refuses, and the descriptor that says how it is called."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import udean
from udean.runtime import RunError
from udean.runtime.commands import bids as command

from ...support.commands import here
from ...support.fakes import card, onnx_model
from ..run.test_bids import dataset  # noqa: F401  (a fixture)

DESCRIPTOR = Path(udean.__file__).parent / "deploy" / "bids" / "udean-bids.json"


def bids(*arguments):
    return here("udean-bids", *arguments)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return onnx_model(tmp_path_factory.mktemp("model") / "sr.onnx", card((2, 2, 2), 3, (8, 8)))


def test_participants_are_restored_and_the_group_summed_up(dataset, model, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    done = bids(dataset, out, "group")
    assert done.returncode == 2 and "participant level first" in done.stderr
    options = ("--engine", model, "--skip_bids_validation", "--participant_label", "01,02", "--suffix", "T1w")
    line = [Path(sys.executable).with_name("udean-bids"), dataset, out, "participant", *options]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0 and "3 written" in done.stdout, done.stderr
    assert json.loads((out / "dataset_description.json").read_text())["DatasetType"] == "derivative"
    done = bids(dataset, out, "group")
    assert done.returncode == 0, done.stderr
    header, *rows = (line.split("\t") for line in (out / "udean-group.tsv").read_text().splitlines())
    assert len(rows) == 3 and all(row[1] == "18 x 16 x 10" for row in rows) and header[0] == "filename"
    assert (out / "udean-group.html").read_text().count("<img") == 3


def test_what_is_no_dataset_is_refused_and_a_faulty_one_too(dataset, model, tmp_path):  # noqa: F811
    done = bids(tmp_path, tmp_path / "out", "participant")
    assert done.returncode == 2 and "is not a BIDS dataset" in done.stderr
    done = bids(dataset, tmp_path / "out", "participant", "--engine", model)
    said = done.stderr
    assert done.returncode == 2 and "not valid BIDS" in said and "--skip-bids-validation" in said
    assert re.search(r"[A-Z]+_[A-Z_]+ at /", said)  # the validator's own words


def test_a_validator_that_does_not_run_says_nothing_about_the_dataset(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "VALIDATORS", ("false",))
    with pytest.raises(
        RunError, match=r"false did not validate .*without any message.*--skip-bids-validation"
    ):
        command.validate(tmp_path)


def test_the_descriptor_names_options_that_there_are():
    described = json.loads(DESCRIPTOR.read_text())
    assert described["tool-version"] == udean.__version__ and described["schema-version"] == "0.5"
    said = bids("--help").stdout
    keys = [one["value-key"] for one in described["inputs"]]
    assert described["command-line"].split() == ["udean-bids", *keys]
    for one in described["inputs"]:
        assert one.get("command-line-flag", "") in said
