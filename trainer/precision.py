"""The precision in which this machine trains fastest."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch

TrainingPrecision: TypeAlias = Literal["32-true", "bf16-mixed", "16-mixed"]  # as Lightning Fabric calls them


def fastest_precision() -> TrainingPrecision:
    """bfloat16 if the device has native support, else half precision (GPU) or float32 (processor)."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    return "bf16-mixed" if processor_has_bf16() else "32-true"


def processor_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 natively; by way of float32 it is several times slower."""
    able = torch.cpu.get_capabilities()
    return any(map(able.get, ("avx512_bf16", "amx_bf16", "bf16")))
