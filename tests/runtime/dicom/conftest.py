"""What the node's tests share."""

import pytest

from ...support.fakes import card, onnx_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return onnx_model(tmp_path_factory.mktemp("model") / "sr.onnx", card((2, 2, 2), 3, (16, 16)))


@pytest.fixture
def steady(monkeypatch):
    """All attempts at the shortest wait: that waits grow is `test_attempts_go_on_for_ever`'s matter."""
    monkeypatch.setattr("udean.runtime.dicom.node.BACKOFF", 1.0)
