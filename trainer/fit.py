"""The training loop: draw, step the generators, step the discriminators, watch, save.

Everything random at a step depends on (seed, rank, step) alone, so a resumed run draws what the unbroken
one would have drawn.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from .. import __version__
from ..runtime import intensity
from ..runtime.card import ModelCard
from ..runtime.errors import RunError
from . import checkpoint, losses
from .cohort import Group
from .config import Config, ConfigError
from .methods.udean import Udean
from .networks import SuperResolution, parameter_count

ADAM = {"betas": (0.9, 0.99), "eps": 1e-8}  # section II-E
Report = Callable[[int, dict[str, float]], None]


class DivergenceError(RunError):
    """The losses are no longer finite."""


def fit(config: Config, run: Path, resume: bool = False, report: Report = lambda step, losses: None) -> Path:
    """Train, writing into the folder `run`: config.toml, metrics.csv, checkpoint.pt (last) and best.pt.

    best.pt has the highest validation PSNR; without validation pairs there is none.
    report(step, losses) is called after every step. Returns the path of the checkpoint to deploy.
    """
    schedule, arch = config.schedule, config.network
    fabric = Fabric(accelerator="auto", devices=1, precision=schedule.precision)
    fabric.seed_everything(schedule.seed, verbose=False)
    for group in ("source", "target"):
        if not getattr(config.data, group):
            raise ConfigError(
                f"There are no {group} scans: name them with --{group} or in the configuration."
            )
    lr_slab = (schedule.patch, schedule.patch, arch.slab[0])
    source = Group.source(config.data.source, arch.scale, config.data.slab_axes)
    target = Group.target(config.data.target, config.data.slab_axes)
    watch = None
    if config.data.validation_hr:
        pairs = Group.pairs(config.data.validation_hr, config.data.validation_lr, arch.scale)
        watch = [torch.from_numpy(a) for a in pairs.draw(np.random.default_rng(0), 64, lr_slab)]

    method = Udean(arch, schedule.patch, config.weights).to(fabric.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimisers = [
        torch.optim.Adam(part.parameters(), schedule.learning_rate, **ADAM)
        for part in (method.generators, method.discriminators)
    ]
    start, best = 0, -math.inf
    run.mkdir(parents=True, exist_ok=True)
    if resume:
        start, best = _restore(run / "checkpoint.pt", method, optimisers)
    (run / "config.toml").write_text(config.to_toml())
    metrics = _Metrics(run / "metrics.csv", resume)

    def draw(group: Group, step: int, salt: int) -> list[Tensor]:
        rng = np.random.default_rng((schedule.seed, step, salt))
        arrays = group.draw(rng, schedule.batch, lr_slab, config.data.augment)
        channels_last = torch.channels_last
        return [torch.from_numpy(a).to(fabric.device, memory_format=channels_last) for a in arrays]

    for step in range(start, schedule.steps):
        rate = learning_rate(config, step)
        for optimiser in optimisers:
            optimiser.param_groups[0]["lr"] = rate
        (truncated, hr), (lr,) = draw(source, step, 0), draw(target, step, 1)
        values = _step(fabric, method, optimisers, hr, truncated, lr)
        if not all(map(math.isfinite, values.values())):
            raise DivergenceError(f"The losses are not finite at step {step}: {values}; lower learning_rate.")

        done = step + 1
        if watch and (done % schedule.validate_every == 0 or done == schedule.steps):
            values |= validate(method.deployed(), watch[0], watch[1], fabric)
        metrics.write(done, values | {"learning_rate": rate})
        report(done, values)
        improved = values.get("validation_psnr", -math.inf) > best
        best = max(best, values.get("validation_psnr", -math.inf))
        if improved or done % schedule.checkpoint_every == 0 or done == schedule.steps:
            card = describe(config, method.deployed(), values)
            state = {
                "step": done,
                "best": best,
                "method": method.state_dict(),
                "optimisers": [optimiser.state_dict() for optimiser in optimisers],
            }
            checkpoint.save(run / "checkpoint.pt", card, arch, method.deployed(), state)
            if improved:
                checkpoint.save(run / "best.pt", card, arch, method.deployed())
    return run / ("best.pt" if watch else "checkpoint.pt")


def learning_rate(config: Config, step: int) -> float:
    """Cosine decay from learning_rate to final_rate (section II-E)."""
    s = config.schedule
    share = step / max(1, s.steps - 1)
    return s.final_rate + (s.learning_rate - s.final_rate) * (1 + math.cos(math.pi * share)) / 2


def _step(
    fabric: Fabric,
    method: Udean,
    optimisers: list[torch.optim.Adam],
    hr: Tensor,
    truncated: Tensor,
    lr: Tensor,
) -> dict[str, float]:
    """One alternation 1:1 of generators and discriminators; the losses by name."""
    values: dict[str, float] = {}
    # The generators' losses pass through the discriminators without asking for their gradients.
    method.discriminators.requires_grad_(False)
    with fabric.autocast():
        terms, judged = method.generator_losses(hr, truncated, lr)
    _descend(fabric, optimisers[0], terms["total"])
    method.discriminators.requires_grad_(True)
    with fabric.autocast():
        scores = method.discriminator_losses(hr, lr, judged)
    _descend(fabric, optimisers[1], scores["total"])
    values |= {name: float(term.detach()) for name, term in terms.items() if name != "total"}
    values |= {name: float(term.detach()) for name, term in scores.items() if name != "total"}
    return values


def _descend(fabric: Fabric, optimiser: torch.optim.Adam, loss: Tensor) -> None:
    optimiser.zero_grad(set_to_none=True)
    fabric.backward(loss)
    optimiser.step()


@torch.no_grad()
def validate(network: SuperResolution, lr: Tensor, hr: Tensor, fabric: Fabric) -> dict[str, float]:
    """PSNR (dB, over 0..1) and SSIM of the deployed path on aligned windows, without their rims."""
    network.eval()
    rim = hr.shape[-1] // 8
    inside = (slice(None), slice(None), slice(rim, -rim), slice(rim, -rim))
    error, similarity = [], []
    for x, y in zip(lr.split(8), hr.split(8), strict=True):
        with fabric.autocast():
            sr = network(x.to(fabric.device, memory_format=torch.channels_last)).float().cpu()[inside]
        error.append(((sr - y[inside]) ** 2).mean((1, 2, 3)))
        similarity.append(losses.ssim_index(sr, y[inside]))
    network.train()
    return {
        "validation_psnr": float(-10 * torch.log10(torch.cat(error).mean())),
        "validation_ssim": float(torch.cat(similarity).mean()),
    }


def describe(config: Config, network: SuperResolution, values: dict[str, float]) -> ModelCard:
    """The card of a network at this point of its training."""
    return ModelCard(
        name=config.name,
        method=config.method,
        scale=config.network.scale,
        slab=config.network.slab,
        window=(config.schedule.patch, config.schedule.patch),
        grid="fft",
        intensity=intensity.RULE,
        skip=config.network.skip,
        precision="fp32",
        parameters=parameter_count(network),
        toolkit=__version__,
        trained_on=config.data.described_as,
        quality={k: round(v, 4) for k, v in values.items() if k.startswith("validation")},
    )


def _restore(path: Path, method: Udean, optimisers: list[torch.optim.Adam]) -> tuple[int, float]:
    state: dict[str, Any] = checkpoint.load(path)["training"]
    try:
        method.load_state_dict(state["method"])
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        return state["step"], state["best"]
    except (KeyError, RuntimeError, ValueError):
        raise checkpoint.CheckpointError(f"{path} belongs to a run with another configuration.") from None


class _Metrics:
    """metrics.csv: a row a step; columns are fixed by the first row that has them all."""

    COLUMNS = (
        *("step", "learning_rate", "image_cycle", "feature_cycle", "hr_consistency", "lr_consistency"),
        *("image_adaptation", "feature_adaptation", "d_lr", "d_features", "d_hr"),
        *("validation_psnr", "validation_ssim"),
    )

    def __init__(self, path: Path, append: bool) -> None:
        self.path = path
        if not (append and path.exists()):
            path.write_text(",".join(self.COLUMNS) + "\n")

    def write(self, step: int, values: dict[str, float]) -> None:
        row = {"step": str(step)} | {k: f"{v:.6g}" for k, v in values.items()}
        with open(self.path, "a", newline="") as stream:
            csv.DictWriter(stream, self.COLUMNS, restval="", lineterminator="\n").writerow(row)
