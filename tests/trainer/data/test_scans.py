"""Finding scans and people: files, globs, lists, the trees of public data sets, and people in two groups."""

from pathlib import Path

import pytest
from udean.trainer.data.scans import CohortError, bare_name, find, keep_apart, participant, scan_paths


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_folders_globs_and_files_are_found_once(tmp_path):
    scan, other = touch(tmp_path / "scans" / "a.nii.gz"), touch(tmp_path / "scans" / "sub" / "b.nii")
    touch(tmp_path / "scans" / "notes.txt")
    found = scan_paths([tmp_path / "scans", str(tmp_path / "scans" / "*.nii.gz"), scan])
    assert found == [scan, other]
    for nothing, why in (
        (tmp_path / "nothing", "does not exist"),
        (tmp_path / "scans" / "*.mgz", "contains no"),
    ):
        with pytest.raises(CohortError, match=why):
            find([nothing])


def test_hcp_tree_gives_the_restored_t1w_of_each_subject(tmp_path):
    for subject in ("100307", "100408"):
        touch(tmp_path / subject / "T1w" / "T1w_acpc_dc_restore.nii.gz")
        touch(tmp_path / subject / "T1w" / "T2w_acpc_dc_restore.nii.gz")
        touch(tmp_path / subject / "unprocessed" / "3T" / "T1w_MPR1" / f"{subject}_3T_T1w_MPR1.nii.gz")
        touch(tmp_path / subject / "MNINonLinear" / "T1w.nii.gz")
    restored, raw = find([f"hcp:{tmp_path}"]), find([f"hcp-raw:{tmp_path}"])
    assert [e.participant for e in restored] == [e.participant for e in raw] == ["100307", "100408"]
    assert {e.path.name for e in restored} == {"T1w_acpc_dc_restore.nii.gz"}
    assert raw[0].path.name == "100307_3T_T1w_MPR1.nii.gz"
    by_glob = find([tmp_path / "*" / "T1w" / "T1w*"])
    assert by_glob == restored


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_brats_tree_gives_the_contrast_enhanced_t1w_of_each_patient(tmp_path, suffix):
    for patient in ("BraTS20_Training_001", "BraTS20_Training_002"):
        for contrast in ("t1", "t1ce", "t2", "flair", "seg"):
            touch(tmp_path / patient / f"{patient}_{contrast}{suffix}")
    found = find([f"brats2020:{tmp_path}"])
    assert [e.participant for e in found] == ["BraTS20_Training_001", "BraTS20_Training_002"]
    assert all(e.path.name.endswith(f"_t1ce{suffix}") for e in found)


def test_bids_tree_gives_a_suffix_over_sessions(tmp_path):
    touch(tmp_path / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    touch(tmp_path / "sub-02" / "ses-a" / "anat" / "sub-02_ses-a_T1w.nii")
    touch(tmp_path / "sub-02" / "ses-a" / "anat" / "sub-02_ses-a_T2w.nii.gz")
    touch(tmp_path / "derivatives" / "sub-01" / "anat" / "sub-01_T1w.nii.gz")
    assert [e.participant for e in find([f"bids:{tmp_path}"])] == ["sub-01", "sub-02"]
    assert [e.path.name for e in find([f"bids-T2w:{tmp_path}"])] == ["sub-02_ses-a_T2w.nii.gz"]


def test_list_names_scans_relative_to_itself_and_their_participants(tmp_path):
    (tmp_path / "list.csv").write_text("path,participant\nx/1.nii,ann\n/abs/2.nii,\n")
    found = {e.path: e.participant for e in find([tmp_path / "list.csv"])}
    assert found == {tmp_path / "x" / "1.nii": "ann", Path("/abs/2.nii"): "2"}
    (tmp_path / "bad.csv").write_text("file\nx.nii\n")
    (tmp_path / "short.csv").write_text("participant,path\nann,x.nii\nbob\n")
    for name in ("bad.csv", "short.csv", "missing.csv"):
        with pytest.raises(CohortError, match=name):
            find([tmp_path / name])


def test_unknown_layout_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(CohortError, match="bids, hcp, hcp-raw, brats2020"):
        find([f"adni:{tmp_path}"])


def test_participants_are_told_from_names():
    assert participant(Path("x/sub-07/anat/sub-07_res-hi_T1w.nii.gz")) == "sub-07"
    assert participant(Path("x/sub-mm/hr/sub-7_T1w.nii.gz")) == "sub-7"
    assert participant(Path("x/head-0007.nii.gz")) == "head-0007"
    for name in (
        "BraTS20_Training_007/BraTS20_Training_007_t1ce.nii",
        "flair/BraTS20_Training_007_flair.nii.gz",
    ):
        assert participant(Path("b") / name) == "BraTS20_Training_007"
    for contrast in ("T1w", "T2w"):
        assert participant(Path(f"100307/T1w/{contrast}_acpc_dc_restore.nii.gz")) == "100307"
        assert participant(Path(f"7/unprocessed/3T/{contrast}_SPC1/7_3T_{contrast}_SPC1.nii.gz")) == "7"
    assert bare_name(Path("sub-01_res-hi_desc-sr_T1w.nii.gz")) == "sub-01_T1w"


@pytest.mark.parametrize(
    "path",
    [
        "ann/t1.nii", "ann/T1w.nii.gz", "ann/t1_mprage_sag.nii", "ann/ses-1/t1.nii", "ann/ses-a/anat/t1.nii",
        "ann/session_2/t1.nii", "ann/visit1/brain.nii.gz", "ann/2021-03-04/t1.nii", "ann/20210304/nii/T1.nii",
        "ann/series_003/t1.nii", "ann/dicom/t1.nii", "ann/mri/orig.mgz", "ann/mri/orig/001.mgz",
        "hr/ann.nii", "hr/ann_lr.nii", "hr/ann_t1.nii", "hr/ann_FLAIR.nii.gz", "hr/ann-T2-TSE.nii",
        "ann/ses1.nii",
    ],
)  # fmt: skip
def test_a_person_is_the_same_in_every_visit_and_contrast(path):
    assert participant(Path("/data/study") / path) == participant(Path(path)) == "ann"


@pytest.mark.parametrize(
    ("paths", "people"),
    [
        (("a1/t1.nii", "a2/t1.nii"), {"a1", "a2"}),
        (("a1/ses-1/x.nii", "a2/ses-1/x.nii"), {"a1", "a2"}),
        (("a1/study_t1.nii", "a2/study_t1.nii"), {"a1", "a2"}),
        (("sub-dcm_a/t1.nii", "sub-dcm_b/t1.nii"), {"sub-dcm_a", "sub-dcm_b"}),
        (("BraTS-GLI-07-000-t1c.nii", "BraTS-GLI-08-000-t1c.nii"), {"BraTS-GLI-07", "BraTS-GLI-08"}),
        (("head-0001.nii", "head-0002.nii", "scan3.nii"), {"head-0001", "head-0002", "scan3"}),
        (("hr/x.nii", "lr/x.nii"), {"x"}),
    ],
)
def test_people_are_told_apart_by_folder_or_name(tmp_path, paths, people):
    for path in paths:
        touch(tmp_path / path)
    assert {entry.participant for entry in find([tmp_path])} == people


def test_a_scan_that_is_named_in_two_ways_counts_once(tmp_path, monkeypatch):
    touch(tmp_path / "hr" / "a.nii")
    (tmp_path / "list.csv").write_text("path\nhr/a.nii\n")
    monkeypatch.chdir(tmp_path)
    assert len(find(["hr", f"{tmp_path}/hr/../hr", "list.csv"])) == 1


def test_people_in_two_groups_are_an_error_unless_meant(tmp_path):
    hr, lr = (find([touch(tmp_path / g / "sub-1_T1w.nii")]) for g in ("hr", "lr"))
    with pytest.raises(CohortError, match=r"sub-1 is in the source and in the target group.*data\.pairing"):
        keep_apart({"source": hr, "target": lr})
    keep_apart({"source": hr, "target": lr}, frozenset({"source", "target"}))
    with pytest.raises(CohortError, match="sub-1 is in the target and in the validation"):
        keep_apart({"source": [], "target": lr, "validation": hr}, frozenset({"source", "target"}))


def test_pairs_are_named_since_they_are_left_out(tmp_path, caplog):
    touch(tmp_path / "a.nii.gz")
    touch(tmp_path / "b.img"), touch(tmp_path / "b.hdr")
    assert scan_paths([tmp_path]) == [tmp_path / "a.nii.gz"]
    assert "b.img" in caplog.text and "joined into one .nii" in caplog.text
