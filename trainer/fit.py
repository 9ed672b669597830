"""The training loop: draw, let each part of the method take its turn, validate, save.

Everything random at a step depends on the seed, the step and the sample alone, so a resumed run draws the
same as an uninterrupted one, and several processes the same as one.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from .. import __version__
from ..runtime.errors import RunError
from ..runtime.models.card import ModelCard, Transfer
from ..runtime.pipeline.tiling import OVERLAP
from ..runtime.scan import intensity
from ..runtime.system.files import atomic, make_folder
from . import checkpoint, distributed
from .averaging import Average
from .config import ROUNDING, Config, ConfigError, changed, is_untouched
from .data import batches
from .data.preparation import Prepared
from .methods import METHODS, Method, create
from .methods.method import Batch, Made, Turn
from .methods.parametric import Parametric
from .metrics_log import Alarm, MetricsLog
from .nets import blocks
from .nets.generators import SuperResolution, parameter_count
from .nets.interpolation import SLAB, Decimation
from .precision import fastest_precision
from .simulation import kspace
from .simulation.estimate import Estimate
from .simulation.kspace import Degradation
from .validation import panel, validate

LOG = logging.getLogger(__name__)
# Steps in a row that may overflow: in fp16 the gradient scaler leaves such a step out and halves its factor.
OVERFLOWS = {"32-true": 0, "bf16-mixed": 0, "16-mixed": 20}
NOT_DEPLOYED = ("discriminator", "judges", "noise")  # fields of Architecture that only a training has
MEASURED = ("validation_psnr", "validation_ssim", "selection")  # figures of the last validation in the card
Report = Callable[[int, int, dict[str, float]], None]


class DivergenceError(RunError):
    """The losses or their gradients are no longer finite."""


def fit(
    config: Config,
    run: Path,
    resume: bool = False,
    report: Report | None = None,
    prepared: Prepared | None = None,
) -> Path:
    """Train a network.

    Parameters
    ----------
    config
        All settings; see `trainer.config`.
    run
        The folder that gets config.toml, metrics.csv, tensorboard/, checkpoint.pt (the last) and best.pt:
        that of the best validation (of the last stage), by the figure that `schedule.select` names. If that
        is the truth and there are no validation pairs, there is no best.pt.
    resume
        Go on from the folder's last checkpoint, with the same settings; `machine`, precision, how often to
        save and validate, and the steps of a method of one stage may be others.
    report
        report(step, of how many, losses) is called after every step, in the first process.
    prepared
        prepared(done, of how many) is called for each scan of a group before the training, likewise.

    Returns
    -------
    Path
        The checkpoint to deploy.

    Raises
    ------
    RunError
        If the folder holds a training that is not to be resumed, or another one; DivergenceError, a kind of
        it, if losses or gradients are not finite.
    """
    config = resolved(config)
    schedule, arch = config.schedule, config.network
    fabric = _fabric(config)
    fabric.launch()
    fabric.seed_everything(schedule.seed, verbose=False)
    if schedule.batch % distributed.count():
        raise ConfigError(f"batch {schedule.batch} cannot be shared by {distributed.count()} processes.")
    first = distributed.rank() == 0
    _check_folder(run, config, resume)  # before the first process may write into it
    with fabric.rank_zero_first():
        material = batches.material_of(config, prepared if first else None)

    method = create(config.method, arch, schedule.patch, config.weights).to(fabric.device)
    if config.init and not resume:
        begin(method, config)
    found = material.estimate
    if found and isinstance(method, Parametric):
        method.learn(found.degradation)
        LOG.info("Estimated from the target scans: %s.", found.degradation.told())
    if config.machine.channels_last:
        method = method.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    players = [[Player.of(turn, config, fabric) for turn in method.turns(s)] for s in range(method.stages)]
    average = Average(method.deployed(), schedule.average)
    total = schedule.steps * method.stages
    start, best = 0, -math.inf
    if resume:
        start, best = _restore(run / "checkpoint.pt", method, players, average, fabric)
        if (run / "best.pt").exists():  # a kill may have come before the checkpoint that records it
            best = max(best, checkpoint.load(run / "best.pt")["training"].get("best", -math.inf))
        if start > total:
            raise ConfigError(f"{run} has been trained for {start} steps already: {total} are fewer.")
    metrics, alarm = None, Alarm()
    if first:
        make_folder(run)
        with atomic(run / "config.toml") as file:
            file.write(config.to_toml().encode("utf-8", "surrogateescape"))
        metrics = MetricsLog(run, start)
    decimation = Decimation(arch.scale).to(fabric.device)
    lr, hr = material.watched_lr, material.watched_hr
    selection = selects_by(config)
    figure = {"truth": "validation_psnr", "consistency": "selection"}[selection]

    infinite = 0
    slabs = batches.batches(config, material, range(start, total))
    for step, drawn in zip(range(start, total), slabs, strict=True):
        stage, within = divmod(step, schedule.steps)
        rate = learning_rate(config, within)
        values = take_step(fabric, method, players[stage], to_batch(drawn, step, config, fabric), rate)
        average.update(step)
        infinite = 0 if all(map(math.isfinite, values.values())) else infinite + 1
        if infinite > OVERFLOWS[schedule.precision]:
            raise DivergenceError(
                f"Losses or gradients are not finite at step {step}: {values}; lower learning_rate."
            )
        done = step + 1
        if not first:
            continue
        alarm.hear(done, values)
        if done % schedule.validate_every == 0 or done == total:
            figures, shown = validate(
                average.network,
                decimation,
                lr,
                hr,
                fabric,
                method.degraded,
                material.watched_source,
                material.noise,
            )
            values |= figures
            if metrics:
                metrics.image(done, panel(lr, shown, hr))
        if metrics:
            metrics.write(done, {"learning_rate": rate} | values)
        if report:
            report(done, total, values)
        improved = stage == method.stages - 1 and values.get(figure, -math.inf) > best
        if improved:
            best = values[figure]
        if improved or done % schedule.checkpoint_every == 0 or done == total:
            card = card_of(config, average.network, values, material.described_as, found)
            state = {
                "step": done,
                "best": best,
                "method": method.state_dict(),
                "average": average.network.state_dict() if average.decay else {},
                "optimisers": [p.optimiser.state_dict() for stage in players for p in stage],
                "scaler": fabric.strategy.precision.state_dict(),
            }
            if improved and not (run / "checkpoint.pt").exists():  # a kill in between must not be final
                checkpoint.save(
                    run / "checkpoint.pt", card, arch, average.network, state | {"best": -math.inf}
                )
            if improved:  # first: the best.pt that a checkpoint refers to must exist
                chosen = card.replace(selection=selection)
                checkpoint.save(run / "best.pt", chosen, arch, average.network, {"best": best})
            checkpoint.save(run / "checkpoint.pt", card, arch, average.network, state)
    if metrics:
        metrics.close()
    fabric.barrier()
    return run / ("best.pt" if (run / "best.pt").exists() else "checkpoint.pt")


def _check_folder(run: Path, config: Config, resume: bool) -> None:
    saved = run / "config.toml"
    if not resume:
        if any((run / name).exists() for name in ("checkpoint.pt", "best.pt")):
            raise RunError(
                f"{run} already holds a training: continue it with --resume, or give another folder."
            )
        if saved.exists() and not is_untouched(saved.read_text("utf-8", "surrogateescape")):
            raise RunError(
                f"{saved} already exists and is not as udean-train leaves it: give another folder with --out."
            )
        if (table := run / "metrics.csv").exists() and not saved.exists():
            raise RunError(
                f"{table} already exists and is not from udean-train: give another folder with --out."
            )
    elif saved.exists():
        longer = ("schedule.steps",) if METHODS[config.method].stages == 1 else ()
        if other := changed(saved.read_text("utf-8", "surrogateescape"), config, (*ROUNDING, *longer)):
            raise ConfigError(f"{run} was trained with {other}: resume it with the same settings.")


@dataclass(frozen=True)
class Player:
    """A turn, its optimiser, and the optimiser as Fabric steps it (with gradient scaling in fp16)."""

    turn: Turn
    optimiser: torch.optim.Adam
    scaled: Any

    @classmethod
    def of(cls, turn: Turn, config: Config, fabric: Fabric) -> Player:
        optimiser = torch.optim.Adam(
            turn.trains.parameters(),
            config.schedule.learning_rate,
            betas=(0.9, config.schedule.beta2),
            eps=1e-8,
            fused=True,
        )
        if config.machine.compile:
            turn = dataclasses.replace(turn, losses=torch.compile(turn.losses))
        return cls(turn, optimiser, fabric.setup_optimizers(optimiser))


def _fabric(config: Config) -> Fabric:
    """Devices and nodes as configured, or as torchrun has started them."""
    devices, nodes = config.machine.devices, config.machine.nodes
    if "LOCAL_WORLD_SIZE" in os.environ:
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    elif devices > (most := torch.cuda.device_count() or os.cpu_count() or 1):
        raise ConfigError(f"{devices} devices are asked for, and this machine has {most}: take fewer.")
    precision = config.schedule.precision
    assert precision != "auto", "resolved before"
    return Fabric(
        accelerator="auto",
        devices=devices,
        num_nodes=nodes,
        strategy="ddp" if devices * nodes > 1 else "auto",
        precision=precision,
    )


def resolved(config: Config) -> Config:
    """Replace the precision "auto" by the one that this machine trains fastest in.

    Parameters
    ----------
    config
        Any configuration; it is not changed.

    Returns
    -------
    Config
        With `schedule.precision` "32-true", "bf16-mixed" or "16-mixed".
    """
    if config.schedule.precision != "auto":
        return config
    schedule = dataclasses.replace(config.schedule, precision=fastest_precision())
    return dataclasses.replace(config, schedule=schedule)


def selects_by(config: Config) -> Literal["consistency", "truth"]:
    """The figure by which best.pt is chosen."""
    if config.schedule.select != "auto":
        return config.schedule.select
    return "truth" if METHODS[config.method].draws == "pairs" else "consistency"


def to_batch(slabs: batches.Slabs, step: int, config: Config, fabric: Fabric) -> Batch:
    """The slabs of a step as the method sees them, on the device.

    Parameters
    ----------
    slabs
        hr (N, HR slices, s·P, s·P), coarse and lr (N, LR slices, P, P), float32 in 0..1.
    step
        Number of the step, from 0, over all stages; with the seed it determines `Batch.seed`.
    config, fabric
        Of the run.

    Returns
    -------
    Batch
    """
    layout = torch.channels_last if config.machine.channels_last else torch.contiguous_format
    hr, coarse, lr = (s.to(fabric.device, memory_format=layout, non_blocking=True) for s in slabs)
    seed = int(np.random.SeedSequence((config.schedule.seed, step)).generate_state(1)[0])
    progress = torch.tensor(step % config.schedule.steps / config.schedule.steps, device=fabric.device)
    return Batch(hr, coarse, lr, seed, progress)


def take_step(
    fabric: Fabric, method: Method, players: list[Player], batch: Batch, rate: float
) -> dict[str, float]:
    """One step: every part of the method takes its turn.

    Parameters
    ----------
    fabric
        Devices and processes.
    method
        The networks; they are trained in place.
    players
        The turns of the stage with their optimisers, in order.
    batch
        This process's slabs.
    rate
        Learning rate of the schedule; each turn multiplies it by its pace.

    Returns
    -------
    dict
        The losses by name, means over all processes, and "gradient", the norm of all gradients, which can be
        infinite even if no loss is.
    """
    made: Made = {}
    gradients: list[Tensor] = []
    shown: dict[str, Tensor] = {}
    for player in players:
        # Losses pass through the frozen parts without computing their gradients.
        method.requires_grad_(False)
        player.turn.trains.requires_grad_(True)
        with fabric.autocast():
            terms, more = player.turn.losses(batch, made)
        made = made | more
        player.optimiser.param_groups[0]["lr"] = rate * player.turn.pace
        player.optimiser.zero_grad(set_to_none=True)
        fabric.backward(terms["total"])
        distributed.average_gradients(player.turn.trains.parameters())
        gradients += [p.grad for p in player.turn.trains.parameters() if p.grad is not None]
        player.scaled.step()
        shown |= {name: term.detach() for name, term in terms.items() if name != "total"}
    if fabric.strategy.precision.precision != "16-mixed":  # there they are scaled, and the scaler checks them
        shown["gradient"] = torch.nn.utils.get_total_norm(gradients)
    values = distributed.mean(torch.stack(list(shown.values()))).tolist()
    return dict(zip(shown, values, strict=True))


def learning_rate(config: Config, step: int) -> float:
    """Cosine decay from learning_rate to final_rate over a stage (section II-E)."""
    s = config.schedule
    share = step / max(1, s.steps - 1)
    return s.final_rate + (s.learning_rate - s.final_rate) * (1 + math.cos(math.pi * share)) / 2


def begin(method: Method, config: Config) -> None:
    """Load the weights that `config.init` names into the deployed networks. Raises ConfigError if the
    networks differ."""
    with initial(config.init) as path:
        contents = checkpoint.load(path)
        kept = {name: getattr(config.network, name) for name in NOT_DEPLOYED}
        if dataclasses.replace(checkpoint.architecture(contents), **kept) != config.network:
            raise ConfigError(f"The network of {config.init} is not the one to be trained.")
        found = method.deployed().load_state_dict(contents["deployed"], strict=False)
        if found.unexpected_keys or not all(key.startswith("cleaner.") for key in found.missing_keys):
            raise ConfigError(f"{config.init} deploys different networks from those of {config.method}.")


def network_of(init: str) -> dict[str, Any]:
    """The settings of a checkpoint's network, as the configuration's table `network`.

    Parameters
    ----------
    init
        "default" for the embedded model, or the path of a checkpoint.

    Returns
    -------
    dict
        Fields of `Architecture`, without those that only a training has.

    Raises
    ------
    CheckpointError
        If the file is not a checkpoint.
    """
    with initial(init) as path:
        whole = dataclasses.asdict(checkpoint.architecture(checkpoint.load(path)))
    return {name: value for name, value in whole.items() if name not in NOT_DEPLOYED}


def initial(name: str) -> AbstractContextManager[Path]:
    """The checkpoint that `config.init` names."""
    if name == "default":
        return as_file(files("udean.runtime") / "models" / "default.pt")
    return nullcontext(Path(name))


def card_of(
    config: Config,
    network: SuperResolution,
    values: dict[str, float],
    scans: str = "",
    found: Estimate | None = None,
) -> ModelCard:
    """The card of a network at this point of its training.

    Parameters
    ----------
    config
        Of the training.
    network
        The deployed network.
    values
        The last figures by name; those of the validation go into the card's quality.
    scans
        The scans in words, used if `config` does not describe them.
    found
        The degradation that was estimated from the LR scans, if any.

    Returns
    -------
    ModelCard
    """
    trained_on = config.data.described_as or scans or "undescribed scans"
    consistency, transfer = config.data.consistency, ()
    if found:
        degradation = found.degradation
        trained_on += f"; LR scans made as estimated from the LR group: {degradation.told()}"
        unscaled = [axis for axis, s in enumerate(config.network.scale) if s == 1]
        # The runtime can enforce only separable transfers, along the axes that are coarser.
        if not degradation.elliptical and not any(degradation.width[axis] for axis in unscaled):
            consistency, transfer = "transfer", transfers(degradation)
    return ModelCard(
        name=config.name,
        method=config.method,
        scale=config.network.scale,
        slab=config.network.slab,
        window=(config.schedule.patch, config.schedule.patch),
        grid="fft",
        intensity=intensity.RULE,
        skip=config.network.skip,
        overlap=(OVERLAP, OVERLAP, blocks.OVERLAP if config.schedule.depth > SLAB else OVERLAP),
        precision="fp32",
        parameters=parameter_count(network),
        toolkit=__version__,
        trained_on=trained_on,
        consistency=consistency,
        transfer=transfer,
        quality={k: round(v, 4) for k, v in values.items() if k in MEASURED},
    )


def transfers(degradation: Degradation) -> Transfer:
    """A degradation's transfer functions as the model card has them.

    Parameters
    ----------
    degradation
        Its width and partial Fourier count.

    Returns
    -------
    tuple
        For (row, column, slice), the transfer at 17 frequencies from 0 to the Nyquist frequency of the LR
        scan.
    """
    frequency = np.linspace(0, 0.5, 17)
    return tuple(
        tuple(round(float(t), 4) for t in kspace.transfer(degradation, axis, frequency)) for axis in range(3)
    )


def _restore(
    path: Path, method: Method, players: list[list[Player]], average: Average, fabric: Fabric
) -> tuple[int, float]:
    state: dict[str, Any] = checkpoint.load(path)["training"]
    try:
        method.load_state_dict(state["method"])
        if average.decay:
            average.network.load_state_dict(state["average"])
        flat = [player.optimiser for stage in players for player in stage]
        for optimiser, saved in zip(flat, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        fabric.strategy.precision.load_state_dict(state["scaler"])
        return state["step"], state["best"]
    except (KeyError, RuntimeError, ValueError):
        raise checkpoint.CheckpointError(f"{path} belongs to a run with another configuration.") from None
