"""The scaling benchmark measures what it says, at the smallest size."""

import numpy as np
from udean.benchmarks import scaling
from udean.benchmarks.quality import middle_slices, template
from udean.runtime import SuperResolver
from udean.trainer.simulation import kspace


def test_more_overlap_is_more_windows_and_no_worse():
    hr = template()[0][60:140, 70:150, 60:96]
    brain = middle_slices(kspace.acquire(hr, kspace.Acquisition((2, 2, 2))), hr, 6)
    resolvers = {str(o): SuperResolver(overlap=o) for o in (0.0, 0.5)}
    none, half = scaling.against_truth(resolvers, "overlap", brain, 1)
    assert half["windows"] > none["windows"] and half["PSNR dB"] > none["PSNR dB"] - 0.1
    assert min(none["seconds"], half["seconds"]) > 0


def test_sizes_count_every_window():
    rows = scaling.by_size(SuperResolver(window=(32, 32)), [(32, 32, 3), (56, 32, 3)], 1)
    assert [row["windows"] for row in rows] == [1, 2]
    assert rows[1]["ns a voxel"] == np.round(rows[1]["seconds"] / rows[1]["LR voxels"] * 1e9)
