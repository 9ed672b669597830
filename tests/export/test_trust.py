"""A model that loses lesions is not exported unless that is asked for; its card says what it does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from udean.export import cli, quantize, trust
from udean.export.errors import ExportError
from udean.export.graph import read
from udean.export.trust import examined
from udean.runtime.engines import choose as engines
from udean.runtime.models.card import ModelCard

from .conftest import Artefact

DEFAULT = Path(engines.__file__).parents[1] / "models" / "default.pt"


def test_an_untrained_model_is_refused_in_a_sentence_with_figures(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def export(*options: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["udean-export", str(checkpoint), "-o", str(tmp_path), *options])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), *capsys.readouterr()

    code, _, err = export()
    assert code == 2 and not list(tmp_path.iterdir())
    assert "; sinc interpolation keeps 0.55, 0.82, 0.92, 0.93" in err and "--allow-untrusted" in err
    code, out, _ = export("--allow-untrusted")
    assert code == 0 and "untrusted: Lesions of radius 1, 1.5, 2, 3 voxels keep" in out
    for name in ("tiny.onnx", "tiny.fp16.onnx"):
        quality = read(tmp_path / name)[1].quality
        assert quality["trust.lesions.1"] < quality["trust.lesions.1.sinc"] - 0.1


def test_an_int8_model_is_examined_itself_and_refused_by_itself(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It computes otherwise than its checkpoint, whose figures say nothing of it."""

    def judged(
        model: Path, card: ModelCard, precision: str = "fp32", library: str = "auto"
    ) -> tuple[dict[str, float], str]:
        small = card.precision == "int8"
        assert model.is_file() and library == ("onnxruntime" if small else "auto")
        assert precision == "auto" if small else precision in ("fp32", "bf16")
        return {"trust.lesions.1": 0.2 if small else 0.6}, "Lesions of radius 1 keep 0.2." if small else ""

    def export(*options: str) -> tuple[int, str]:
        arguments = [str(checkpoint), "-o", str(tmp_path), "--int8", str(tmp_path), *options]
        monkeypatch.setattr(sys, "argv", ["udean-export", *arguments])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return int(end.value.code or 0), capsys.readouterr().err

    monkeypatch.setattr(trust, "_judged", judged)
    windows = np.random.default_rng(0).random((4, 3, 16, 16), np.float32)
    monkeypatch.setattr(quantize, "scan_windows", lambda *_: windows)
    code, err = export()
    assert code == 1 and sorted(f.name for f in tmp_path.iterdir()) == ["tiny.fp16.onnx", "tiny.onnx"]
    assert "tiny.int8.onnx is not written: in int8, Lesions of radius 1 keep 0.2. --allow-untrusted" in err
    monkeypatch.setattr(trust, "is_examined", lambda card: card.precision != "int8")
    assert export() == (0, "")
    monkeypatch.undo()
    with pytest.raises(ExportError, match="in fp16, Lesions"):
        monkeypatch.setattr(trust, "_judged", lambda *_: ({}, "Lesions of radius 1 keep 0.2."))
        trust.examined_again(tmp_path / "tiny.fp16.onnx", read(tmp_path / "tiny.fp16.onnx")[1])
    assert read(tmp_path / "tiny.onnx")[1].quality["trust.lesions.1"] == 0.6


@pytest.mark.parametrize("able", [True, False])
def test_a_processor_that_would_compute_in_bf16_holds_the_model_to_its_limits_in_that_too(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    def judged(model: Path, card: ModelCard, precision: str = "fp32") -> tuple[dict[str, float], str]:
        return {}, "Lesions of radius 1 keep 0.2." if precision == "bf16" else ""

    monkeypatch.setattr(trust, "_judged", judged)
    monkeypatch.setattr(trust, "processor_has_bf16", lambda: able)
    if not able:
        assert examined(checkpoint)[1] == "examined for trust: see its card"
        return
    with pytest.raises(ExportError, match="is not exported: in bf16, Lesions of radius 1 keep"):
        examined(checkpoint)


def test_other_factors_are_not_examined_and_it_is_said(
    of_scale: Callable[[str], tuple[Path, dict[str, Artefact]]],
) -> None:
    figures, remark = examined(of_scale("2x2x1")[0])
    assert figures == {} and "not examined" in remark


@pytest.mark.skipif(not DEFAULT.exists(), reason="the embedded model is made by `make default-model`")
def test_the_embedded_model_passes_and_carries_its_figures() -> None:
    _, card = read(DEFAULT.with_suffix(".onnx"))
    for radius in ("1", "1.5", "2", "3"):
        assert card.quality[f"trust.lesions.{radius}"] >= card.quality[f"trust.lesions.{radius}.sinc"] - 0.02
    assert 0.8 <= card.quality["trust.high_band.factor"] <= 1.25
    try:
        figures, _ = examined(DEFAULT)
    except ExportError as error:
        pytest.fail(str(error))
    for name, value in figures.items():
        assert card.quality[name] == pytest.approx(value, abs=0.011)  # rounded to 0.01
