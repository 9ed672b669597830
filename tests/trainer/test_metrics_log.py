"""What a run reports, whatever its folder is called."""

import os
from pathlib import Path

import torch
from udean.trainer.metrics_log import MetricsLog


def test_a_run_whose_name_is_not_text_keeps_its_metrics(tmp_path, caplog):
    run = Path(os.fsdecode(os.fsencode(tmp_path) + b"/l\xe4uft"))
    run.mkdir()
    metrics = MetricsLog(run, 0)
    metrics.write(1, {"loss": 0.5})
    metrics.image(1, torch.zeros(4, 4))
    metrics.close()
    assert "0.5" in (run / "metrics.csv").read_text() and "TensorBoard" in caplog.text
