"""The paper's experiments and what it measured: SSIM (2-D, per slice) and PSNR in dB of Tables I and II."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from ...trainer.methods import Name
from ...trainer.simulation.kspace import Scale

Pairing = Literal["unpaired", "misaligned", "aligned"]
Published = tuple[float, float]  # SSIM, PSNR


@dataclass(frozen=True)
class Experiment:
    """A network to train, or with method None an interpolation that needs no training.

    options: of the configuration, by table, besides those that follow from the fields.
    """

    key: str
    title: str
    method: Name | None
    scale: Scale
    pairing: Pairing = "unpaired"
    options: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A folder's name: 2x2x2/misaligned/udean."""
        return "/".join(("x".join(map(str, self.scale)), self.pairing, self.key))


SCALES: tuple[Scale, ...] = ((2, 2, 2), (2, 2, 1))
ABLATIONS: tuple[tuple[str, str, Name, Pairing, dict[str, dict[str, Any]]], ...] = (
    ("supervised", "Supervised", "supervised", "misaligned", {"data": {"misalign": True}}),
    (
        "supervised-registered",
        "Supervised, registered",
        "supervised",
        "misaligned",
        {"data": {"misalign": True, "register": True}},
    ),
    (
        "udean-features",
        "UDEAN, DA in feature space",
        "udean",
        "misaligned",
        {"data": {"misalign": True}, "weights": {"image_adaptation": 0.0}},
    ),
    (
        "udean-image",
        "UDEAN, DA in image space",
        "udean",
        "misaligned",
        {"data": {"misalign": True}, "weights": {"feature_adaptation": 0.0}},
    ),
    ("udean", "UDEAN, DA in both", "udean", "misaligned", {"data": {"misalign": True}}),
    ("supervised-aligned", "Supervised, aligned (upper bound)", "supervised", "aligned", {}),
)
# What a method takes for an LR scan without its own degradation: the baselines as published do not know that
# the target scans are truncated. The other reading of each stands beside it.
BICUBIC: dict[str, dict[str, Any]] = {"data": {"coarse": "bicubic"}}
ZSSR: tuple[tuple[str, str, Name, dict[str, dict[str, Any]]], ...] = (
    ("zssr", "ZSSR, bicubic", "zssr", BICUBIC),
    ("zssr-truncation", "ZSSR, truncation", "zssr", {}),
)
UNSUPERVISED: tuple[tuple[str, str, Name, dict[str, dict[str, Any]]], ...] = (
    ("cyclegan", "CycleGAN", "cyclegan", {}),
    ("dasr", "DASR, bicubic", "dasr", BICUBIC),
    ("dasr-truncation", "DASR, truncation", "dasr", {}),
    ("pseudosr", "PseudoSR, bicubic", "pseudosr", BICUBIC),
    ("pseudosr-truncation", "PseudoSR, truncation", "pseudosr", {}),
    ("udean-bicubic", "UDEAN, bicubic", "udean", BICUBIC),
    ("udean", "UDEAN, truncation", "udean", {}),
)


def table_one(scale: Scale = (2, 2, 2)) -> list[Experiment]:
    """The ablation, on misaligned scans, and the upper bound, which is not in the paper."""
    return [Experiment(key, title, m, scale, pairing, o) for key, title, m, pairing, o in ABLATIONS]


def table_two(scale: Scale) -> list[Experiment]:
    """All methods at one scale. Interpolations and ZSSR see no source scans, so they have no pairing."""
    rows = [
        Experiment("tricubic", "Tricubic", None, scale),
        Experiment("sinc", "Sinc (zero-filled)", None, scale),
        *(Experiment(key, title, method, scale, options=o) for key, title, method, o in ZSSR + UNSUPERVISED),
    ]
    for key, title, method, options in UNSUPERVISED:
        moved = {"data": {"misalign": True} | options.get("data", {})}
        rows.append(Experiment(key, title, method, scale, "misaligned", moved))
    return rows


# By experiment, then data set.
PUBLISHED: dict[str, dict[str, Published]] = {
    "2x2x2/misaligned/supervised": {"HCP": (0.8939, 32.7886)},
    "2x2x2/misaligned/supervised-registered": {"HCP": (0.9025, 32.7823)},
    "2x2x2/misaligned/udean-features": {"HCP": (0.9162, 33.5224)},
    "2x2x2/misaligned/udean-image": {"HCP": (0.9229, 33.5642)},
    "2x2x2/unpaired/tricubic": {"HCP": (0.8981, 31.5862), "BraTS": (0.9073, 31.2470)},
    "2x2x2/unpaired/zssr": {"HCP": (0.8994, 33.0213), "BraTS": (0.9001, 29.6156)},
    "2x2x2/unpaired/cyclegan": {"HCP": (0.9164, 33.9767), "BraTS": (0.9304, 30.3970)},
    "2x2x2/unpaired/dasr": {"HCP": (0.8931, 32.3309), "BraTS": (0.9334, 30.5198)},
    "2x2x2/unpaired/pseudosr": {"HCP": (0.8931, 31.0407), "BraTS": (0.8978, 26.4210)},
    "2x2x2/unpaired/udean": {"HCP": (0.9242, 33.5159), "BraTS": (0.9435, 31.1462)},
    "2x2x2/misaligned/cyclegan": {"HCP": (0.9226, 34.2728), "BraTS": (0.9433, 31.3131)},
    "2x2x2/misaligned/dasr": {"HCP": (0.8946, 32.2544), "BraTS": (0.9377, 31.1546)},
    "2x2x2/misaligned/pseudosr": {"HCP": (0.8962, 32.0267), "BraTS": (0.9378, 31.0804)},
    "2x2x2/misaligned/udean": {"HCP": (0.9247, 34.2729), "BraTS": (0.9513, 32.0435)},
    "2x2x1/unpaired/tricubic": {"HCP": (0.9227, 33.6545), "BraTS": (0.9299, 34.8846)},
    "2x2x1/unpaired/zssr": {"HCP": (0.9412, 36.0848), "BraTS": (0.9514, 33.2469)},
    "2x2x1/unpaired/cyclegan": {"HCP": (0.9317, 35.7817), "BraTS": (0.9583, 35.3937)},
    "2x2x1/unpaired/dasr": {"HCP": (0.9137, 33.6732), "BraTS": (0.9462, 34.4395)},
    "2x2x1/unpaired/pseudosr": {"HCP": (0.9244, 33.8122), "BraTS": (0.9397, 34.0382)},
    "2x2x1/unpaired/udean": {"HCP": (0.9371, 35.1688), "BraTS": (0.9551, 35.4973)},
    "2x2x1/misaligned/cyclegan": {"HCP": (0.9425, 35.7028), "BraTS": (0.9601, 36.4836)},
    "2x2x1/misaligned/dasr": {"HCP": (0.9192, 33.9043), "BraTS": (0.9461, 34.5953)},
    "2x2x1/misaligned/pseudosr": {"HCP": (0.9228, 34.0500), "BraTS": (0.9463, 34.5560)},
    "2x2x1/misaligned/udean": {"HCP": (0.9455, 35.5182), "BraTS": (0.9629, 36.7631)},
}
