"""Several processes, one batch: each takes its share of the samples, and the result is the same as with one
process.

Gradients are averaged in one flat all-reduce after each backward pass. DistributedDataParallel would overlap
it with the backward pass, but needs exactly one forward and one backward pass of all parameters per step; an
adversarial step has several of some. With a single process, every function does nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def count() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if count() > 1 else 0


def share(samples: int) -> slice:
    """This process's part of the samples of a global batch."""
    each = samples // count()
    return slice(rank() * each, (rank() + 1) * each)


def mean(x: Tensor) -> Tensor:
    """The mean of x over all processes, with gradients to each process's x."""
    return x if count() == 1 else _Sum.apply(x) / count()  # type: ignore[operator]


def gather(x: Tensor) -> Tensor:
    """(N, …) of every process as (processes·N, …), in the order of ranks, without gradients."""
    x = x.detach().contiguous()
    if count() == 1:
        return x
    parts = [torch.empty_like(x) for _ in range(count())]
    dist.all_gather(parts, x)
    return torch.cat(parts)


def average_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its mean over all processes."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if count() == 1 or not gradients:
        return
    flat = torch.cat([g.reshape(-1) for g in gradients])
    dist.all_reduce(flat)
    flat /= count()
    for gradient, mean_gradient in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean_gradient.view_as(gradient))


class _Sum(torch.autograd.Function):
    """The sum over processes; the gradient of each process's x is that of the sum of all processes'
    losses."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
