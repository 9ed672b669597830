"""The model card: everything the runtime must know about a network, carried with its weights.

The card travels as JSON: inside a checkpoint, in ONNX `metadata_props["udean.card"]`, and beside a
TensorRT plan as `NAME.plan.json`. Nothing about a model is guessed at run time.
"""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from ..errors import RunError
from ..system.typed import Mismatch, typed

FORMAT = 1
METADATA_KEY = "udean.card"
INTENDED_USE = "research only, not for diagnosis"

GridKind = Literal["fft", "center"]
ModelPrecision = Literal["fp32", "fp16", "int8"]
Relation = Literal["off", "truncation", "transfer"]
Transfer = tuple[tuple[float, ...], ...]
ModelKind = Literal["slab", "through-plane"]
SelectedBy = Literal["last", "consistency", "truth"]


class CardError(RunError, ValueError):
    """The model has no card, or one that this version cannot read."""


@dataclass(frozen=True)
class ModelCard:
    """A network's inputs, outputs, origin and measured quality.

    Parameters
    ----------
    name, method
        Of the model, and of its training, such as "udean" or "supervised".
    kind
        "slab": LR slices to HR slices, `scale` times as many voxels; "through-plane": interpolated planes
        across thick slices, to the detail that they lack (see `pipeline.through_plane`): scale is 1 and slab
        is (channels in, 1).
    scale
        HR voxels per LR voxel along (row, column, slice).
    slab
        (LR slices in, HR slices out) of one network call; the channels of its input and output.
    window
        (rows, columns) of the training window, in LR voxels.
    grid
        "fft": LR voxel i lies on HR voxel scale·i; "center": outer voxel edges coincide.
    intensity
        The rule that maps a volume to the network's range; see `runtime.scan.intensity`.
    skip
        Fixed interpolation inside the graph: "none" as published, or "cubic".
    overlap
        Least overlap of neighbouring windows along (row, column, slice) for which the network was trained, as
        a share of a window; used unless the user chooses another.
    precision
        Of weights and activations in the graph.
    parameters
        Number of learned values in LR encoder and SR decoder.
    flop
        Operations for an LR voxel of a slab's plane, multiplication and addition apart; 0: not known.
    checkpoint
        SHA-256 (hex) of the checkpoint file from which the model was exported; "" inside the checkpoint
        itself.
    consistency
        How the LR scan arises from the HR one, so that the measured band can be taken from it after the
        network: "truncation" of k-space, "transfer": truncation and the point spread of `transfer`, or "off"
        if that is not known; see `runtime.pipeline.measured_band`.
    transfer
        The scanner's transfer function (share of each frequency that its point spread passes) along (row,
        column, slice), evenly spaced from 0 to the LR scan's Nyquist frequency; empty: all is passed.
    selection
        How these weights were chosen among those of the training: the "last" ones, or the best by
        "consistency" with LR scans, without truth, or by the "truth" of validation scans.
    quality
        Measured figures by name, such as {"icbm152.psnr": 35.2}.
    parity
        Deviation from the float32 PyTorch network by engine, measured at export.
    trained_on, toolkit, intended_use
        In words: the training's scans, the version of udean that wrote the card, and what the model is for.
    format
        Of the card itself.

    Raises
    ------
    CardError
        If a field has a wrong type or an impossible value, or the card has another format.
    """

    name: str
    method: str
    scale: tuple[int, int, int]
    slab: tuple[int, int]
    window: tuple[int, int]
    grid: GridKind
    intensity: str
    skip: Literal["none", "cubic"]
    precision: ModelPrecision
    parameters: int
    toolkit: str
    trained_on: str
    kind: ModelKind = "slab"
    flop: int = 0
    checkpoint: str = ""
    consistency: Relation = "off"
    transfer: Transfer = ()
    overlap: tuple[float, float, float] = (0.25, 0.25, 0.25)
    selection: SelectedBy = "last"
    quality: dict[str, float] = field(default_factory=dict)
    parity: dict[str, dict[str, float]] = field(default_factory=dict)
    intended_use: str = INTENDED_USE
    format: int = FORMAT

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            try:
                typed(_HINTS[f.name], getattr(self, f.name))
            except Mismatch as error:
                raise CardError(f"The model card's field '{f.name}' {error}.") from None
        if self.format != FORMAT:
            raise CardError(
                f"The model card has format {self.format}, this version of udean reads format {FORMAT}: "
                "export the checkpoint again with this version."
            )
        if min(*self.scale, *self.slab, *self.window, self.parameters) < 1:
            raise CardError("The model card's scale, slab, window and parameters must be positive.")
        if (self.consistency == "transfer") != bool(self.transfer):
            raise CardError("The model card's transfer belongs to the consistency 'transfer'.")
        right = all(len(line) > 1 and all(0 <= t <= 1 for t in line) for line in self.transfer)
        if self.transfer and not (right and len(self.transfer) == 3):
            raise CardError("The model card's transfer must be three lists of shares from 0 to 1.")
        if not all(0 <= share < 1 for share in self.overlap):
            raise CardError("The model card's overlap must be at least 0 and less than 1.")
        if self.kind == "through-plane":
            if (self.scale, self.slab[1]) != ((1, 1, 1), 1):
                raise CardError(
                    "The model card of a through-plane model has scale 1 x 1 x 1 and 1 plane out."
                )
        elif self.slab[1] != self.slab[0] * self.scale[2]:
            raise CardError(f"The model card's slab {self.slab} does not fit its scale {self.scale}.")

    def to_json(self) -> str:
        """The card as JSON text with sorted keys, so that equal cards give equal bytes.

        Returns
        -------
        str
            What `from_json` reads.
        """
        return json.dumps(dataclasses.asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes, source: str) -> ModelCard:
        """Read a card.

        Parameters
        ----------
        text
            JSON, as `to_json` writes it.
        source
            Name of the file, for the error.

        Raises
        ------
        CardError
            If the text is not a card of this format.
        """
        try:
            fields = json.loads(text)
            if not isinstance(fields, dict):
                raise TypeError("not an object")
            # Unknown fields are left to the constructor, which names them.
            return cls(**{k: typed(_HINTS[k], v) if k in _HINTS else v for k, v in fields.items()})
        except CardError as error:
            raise CardError(f"{source}: {error}") from None
        except (ValueError, TypeError, KeyError) as error:
            raise CardError(
                f"{source} has no readable model card ({error}): export it with `udean-export CHECKPOINT`."
            ) from None

    def replace(self, **changes: Any) -> ModelCard:
        """A copy with some fields changed.

        Parameters
        ----------
        changes
            New values by field name.

        Raises
        ------
        CardError
            If a value does not fit its field or the others.
        """
        return dataclasses.replace(self, **changes)


_HINTS = typing.get_type_hints(ModelCard)
