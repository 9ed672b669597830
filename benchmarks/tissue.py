"""How good a model is in the tissue of whole heads: the part of `benchmarks.quality` that air cannot flatter.

Colin27 with its skull and a macaque (both in Debian's mricron-data), the ICBM152 T1 and any folder of HR
scans, halved in k-space along every axis, without noise and with 2 % of it. None of them is trained on.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from ..runtime.errors import RunError
from ..runtime.scan.voxels import Restore, Volume
from ..runtime.trust import lesions
from ..trainer.data.scans import scan_paths
from ..trainer.evaluation.evaluate import INTERPOLATIONS
from ..trainer.evaluation.quality import ssim
from ..trainer.evaluation.tissue import PEAK, TissueFigures, in_tissue
from ..trainer.simulation import icbm152, kspace

SCALE = (2, 2, 2)
NOISE = {"no noise": 0.0, "noise 2 %": 0.02}
FOLDER = "UDEAN_MRICRON"  # environment variable: where mricron-data's templates are
PLACES = ("/usr/share/mricron/templates",)
FILES = {"Colin27": "ch2.nii.gz", "macaque": "inia19-t1-brain.nii.gz"}
RANGE = 2500.0  # of the volume to restore, as scanners store it
TITLES = {
    "psnr_tissue": "tissue dB",
    "psnr_air": "air dB",
    "psnr_low": "low band dB",
    "psnr_high": "high band dB",
    "high_factor": "high band factor",
    "high_correlation": "high band correlation",
}


def heads(more: Path | None = None) -> Iterator[tuple[str, Callable[[], Volume]]]:
    """Names of heads and the functions that read them. more: a file or folder of the user's HR scans.

    Raises RunError if mricron-data is not there.
    """
    for name, file in FILES.items():
        path = _templates() / file
        yield name, lambda path=path: read_head(path)
    yield "ICBM152 T1", lambda: _scaled(icbm152.cropped_t1(SCALE)[0])
    for path in scan_paths([more]) if more else []:
        yield path.name.partition(".")[0], lambda path=path: read_head(path)


def compare(hr: Volume, restorers: Mapping[str, Restore]) -> dict[str, dict[str, dict[str, float]]]:
    """Figures by noise and method, lesions' transfer by radius among them. restorers: by name."""
    added, found = lesions.put_lesions(hr)
    methods: dict[str, Restore] = {
        name: lambda lr, method=method: method(lr, SCALE) for name, method in INTERPOLATIONS.items()
    }
    methods |= restorers
    table: dict[str, dict[str, dict[str, float]]] = {}
    for condition, noise in NOISE.items():
        # Digitised as by scanners; the noise is the same with and without lesions.
        lr, ill = (
            np.rint(kspace.acquire(v.astype(np.float32), kspace.Acquisition(SCALE, noise=noise)))
            for v in (hr, hr + added)
        )
        table[condition] = {}
        for name, restore in methods.items():
            sr = restore(lr)
            row = _row(in_tissue(sr, hr, lr.shape))
            row["SSIM 3-D"] = round(ssim(sr, hr, float(np.percentile(hr, PEAK))), 3)
            kept = lesions.contrast_kept(added, found, restore(ill), sr) if found else {}
            row |= {f"lesions r = {radius}": round(share["all"], 2) for radius, share in kept.items()}
            table[condition][name] = row
    return table


def decibels(hr: Volume, degradation: kspace.Degradation, restore: Restore, seed: int = 0) -> float:
    """PSNR in the tissue of a whole head that is degraded to half its resolution and restored."""
    lr = np.rint(kspace.acquire(hr, kspace.Acquisition(SCALE, **vars(degradation)), seed))
    return round(in_tissue(restore(lr), hr).psnr_tissue or 0.0, 3)


def gain(rows: dict[str, dict[str, float]], method: str = "sr") -> float:
    """Gain of SR in tissue over the better interpolation, in dB."""
    return rows[method]["tissue dB"] - max(rows[name]["tissue dB"] for name in INTERPOLATIONS)


def _row(figures: TissueFigures) -> dict[str, float]:
    found = dataclasses.asdict(figures)
    return {title: round(found[name], 2) for name, title in TITLES.items() if found[name] is not None}


def _templates() -> Path:
    asked = os.environ.get(FOLDER)
    for place in (asked,) if asked else PLACES:
        if all((Path(place) / file).exists() for file in FILES.values()):
            return Path(place)
    raise RunError(
        f"{' and '.join(FILES.values())} are not in {asked or PLACES[0]}: `apt-get download mricron-data`, "
        f"unpack it with `dpkg-deb -x` and name its folder of templates in {FOLDER}."
    )


def read_head(path: Path) -> Volume:
    """An HR scan along the world's axes (RAS+), float32, cropped so that it can be halved, as scanners store
    it.
    """
    image: Any = nib.as_closest_canonical(nib.load(path))  # pyright: ignore[reportPrivateImportUsage]
    return _scaled(np.maximum(np.asarray(image.dataobj, np.float32), 0))


def padded(head: Volume, field: Sequence[int]) -> Volume:
    """A head in the middle of a field of view of at least as many voxels; beyond it, zeros."""
    beyond = [max(0, size - n) for size, n in zip(field, head.shape, strict=True)]
    return np.pad(head, [(n // 2, n - n // 2) for n in beyond])


def _scaled(hr: Volume) -> Volume:
    """Sides that are multiples of 4, and a range as scanners store it."""
    hr = kspace.crop(hr, (4, 4, 4)).astype(np.float32)
    return hr * np.float32(RANGE / np.percentile(hr, PEAK))
