"""Heads drawn from a label map: what a network is to learn from is in them, and only the seed decides."""

import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from udean.trainer.simulation import heads

SHAPE = (76, 80, 72)


@pytest.fixture(scope="module")
def label_map(tmp_path_factory):
    """Shells of air, scalp, bone, fluid, grey and white matter, with a ventricle: FreeSurfer's numbers."""
    grid = np.meshgrid(*[np.linspace(-1, 1, n) for n in SHAPE], indexing="ij")
    radius = np.sqrt(sum((g / r) ** 2 for g, r in zip(grid, (0.9, 0.95, 0.85), strict=True)))
    labels = np.zeros(SHAPE, np.int16)
    for outer, number in ((1, 511), (0.92, 515), (0.82, 24), (0.76, 3), (0.62, 2), (0.2, 4)):
        labels[radius < outer] = number
    path = tmp_path_factory.mktemp("labels") / "map.nii.gz"
    nib.save(nib.Nifti1Image(labels, np.diag([-1.0, 1, 1, 1])), path)
    return path


def drawn(label_map, wanted, most=40):
    """The first head that is as wanted."""
    for seed in range(most):
        made = heads.drawn_head(label_map, seed)
        if wanted(made):
            return made
    raise AssertionError("no such head")


def test_a_head_is_its_seeds_and_no_two_are_alike(label_map):
    first, again, other = (heads.drawn_head(label_map, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.image, again.image)
    assert first.lesions == again.lesions
    assert first.image.shape != other.image.shape or np.abs(first.image - other.image).max() > 0.1


def test_grey_levels_are_those_of_a_magnitude_image(label_map):
    for seed in range(3):
        made = heads.drawn_head(label_map, seed)
        assert made.image.dtype == np.float32 and np.isfinite(made.image).all() and made.image.min() >= 0
        assert np.percentile(made.image, 99.9) == pytest.approx(1, abs=0.05)
        assert heads.SPACING[0] <= made.spacing <= heads.SPACING[1]
        assert heads.SHARPNESS[0] <= made.sharpness <= heads.SHARPNESS[1]
        corner = made.image[:3, :3, :3]
        assert corner.mean() < 0.03  # air
        assert not made.stripped or corner.max() == 0


def test_borders_have_partial_volume_and_tissue_is_not_flat(label_map):
    """Between the ventricle and white matter of a T1 lie voxels of both, more of them the softer the head."""
    made = drawn(label_map, lambda h: h.contrast == "t1")
    middle = tuple(n // 2 for n in made.image.shape)
    line = made.image[middle[0], middle[1], middle[2] :]
    low, high = line[:4].mean(), np.median(line[12:18])
    between = (line[:16] > low + 0.25 * (high - low)) & (line[:16] < low + 0.75 * (high - low))
    assert high > low + 0.2 and between.any()
    white = made.image[
        middle[0] + 12 : middle[0] + 18, middle[1] - 4 : middle[1] + 5, middle[2] - 4 : middle[2] + 5
    ]
    assert white.std() > 0.005 * white.mean()


def test_lesions_of_all_sizes_and_both_signs_are_in_the_image(label_map):
    found = [lesion for seed in range(6) for lesion in heads.drawn_head(label_map, seed).lesions]
    radii, contrasts = np.array([f[1] for f in found]), np.array([f[2] for f in found])
    assert radii.min() < 1 and radii.max() > 5 and (contrasts > 0).any() and (contrasts < 0).any()
    # Drawn into flat tissue alone, where nothing else changes the image.
    flat = np.full((40, 40, 40), 0.5, np.float32)
    tissue = np.full(flat.shape, heads.NAMES.index("white"), np.uint8)
    image, made = heads._lesions(np.random.default_rng(0), flat.copy(), tissue, {})
    alone = [
        (c, r, k)
        for c, r, k in made
        if r > 1.5 and sum(np.abs(np.subtract(c, o)).max() < 25 for o, _, _ in made) == 1
    ]
    for centre, _, contrast in alone or made[-1:]:
        assert np.sign(image[centre] - 0.5) == np.sign(contrast)


def test_spots_are_as_sharp_as_voxels_in_a_head_that_is_not_and_change_nothing_else(label_map):
    made = drawn(label_map, lambda h: h.sharpness > 0.9)
    seed = next(n for n in range(40) if heads.drawn_head(label_map, n).sharpness == made.sharpness)
    spotted = heads.drawn_head(label_map, seed, spots=3000)
    assert spotted.image.shape == made.image.shape and spotted.lesions == made.lesions
    scale = np.median(made.image[made.image > 0.2] / spotted.image[made.image > 0.2])
    change = np.abs(spotted.image * scale - made.image)
    apart = change > 0.05
    assert 0 < apart.mean() < 0.1  # the rest differs by the gain and by rounding
    sharpest = np.abs(np.diff(made.image, axis=0)).max()
    assert np.abs(np.diff(change, axis=0)).max() > 0.5 * sharpest


def test_parcels_and_unknown_labels_are_tissue():
    numbers = np.array([0, 2, 1035, 2035, 3035, 4035, 24, 999])
    names = [(*heads.NAMES, "air")[i] for i in heads.tissues(numbers)]
    assert names == ["air", "white", "grey", "grey", "white", "white", "fluid", "limbic"]


def test_the_command_writes_the_same_scans_again(label_map, tmp_path):
    for out in ("a", "b"):
        command = [
            sys.executable,
            "-m",
            "udean.trainer.simulation.heads",
            out,
            "--labels",
            str(label_map.parent),
        ]
        done = subprocess.run(
            [*command, "--heads", "1", "--first", "7"], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert "head 7" in done.stdout
    first, again = (nib.load(tmp_path / out / "head-0007.nii.gz") for out in ("a", "b"))
    np.testing.assert_array_equal(first.get_fdata(), again.get_fdata())
    made = heads.drawn_head(label_map, int(np.random.SeedSequence((0, 7)).generate_state(1)[0]))
    np.testing.assert_allclose(first.header.get_zooms(), made.spacing, rtol=1e-5)
    assert nib.aff2axcodes(first.affine) == ("L", "A", "S")
    missing = subprocess.run([*command, "--labels", "nowhere"], cwd=tmp_path, capture_output=True, text=True)
    assert missing.returncode == 2 and "nowhere" in missing.stderr and "Traceback" not in missing.stderr
