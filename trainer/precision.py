"""The precision in which this machine trains fastest."""

from __future__ import annotations

import time
from typing import Literal, TypeAlias

import torch
from torch import nn

WORTH = 0.9  # of float32's time; nearer to it, float32 is the more exact of two that are equally fast
TrainingPrecision: TypeAlias = Literal["32-true", "bf16-mixed", "16-mixed"]  # as Lightning Fabric calls them


def fastest_precision() -> TrainingPrecision:
    """On a GPU bfloat16 if it has native support, else half precision. On a processor with bfloat16 what a
    small training takes less time in: some multiply it more slowly than float32."""
    if torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
    if processor_has_bf16() and seconds_of_steps(bf16=True) < WORTH * seconds_of_steps(bf16=False):
        return "bf16-mixed"
    return "32-true"


def seconds_of_steps(bf16: bool) -> float:
    """The least time that forward and backward pass of two convolutions take on this processor, of some."""
    layers = [nn.Conv2d(32, 32, 3, padding=1) for _ in range(2)]
    network = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = torch.zeros(4, 32, 48, 48).to(memory_format=torch.channels_last)
    times = []
    for _ in range(6):  # the first ones prepare
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = network(images).float().square().mean()
        loss.backward()
        times.append(time.perf_counter() - start)
    return min(times)


def processor_has_bf16() -> bool:
    """Whether the processor multiplies bfloat16 natively; by way of float32 it is several times slower."""
    able = torch.cpu.get_capabilities()
    return any(map(able.get, ("avx512_bf16", "amx_bf16", "bf16")))
