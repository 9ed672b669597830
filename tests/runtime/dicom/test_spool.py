"""A node's spool: nothing that was taken is lost, whatever name it came under."""

import pydicom
import pytest
from udean.runtime.dicom.frame import IDENTITY
from udean.runtime.dicom.spool import Spool, series_name
from udean.runtime.errors import DiskError, RunError


@pytest.fixture
def spool(tmp_path):
    return Spool(tmp_path)


def store(spool, *slices):
    for instance, data in slices:
        spool.store("series", instance, data, "token", "SCANNER")


def contents(folder):
    return sorted(path.read_bytes() for path in folder.glob("*.dcm"))


def test_what_differs_under_one_name_is_kept_and_the_same_again_is_not(spool):
    store(spool, ("1", b"head"), ("1", b"knee"), ("2", b"hip"), ("2", b"hip"))
    assert spool.finish("series", False) is None
    assert contents(spool.work / "series") == [b"head", b"hip", b"knee"]


def test_a_later_sending_takes_the_place_of_what_waits(spool):
    store(spool, ("1", b"head"), ("2", b"hip"))
    spool.finish("series", False)
    store(spool, ("2", b"hip, corrected"), ("3", b"hand"))
    assert spool.finish("series", True) is None
    assert contents(spool.work / "series") == [b"hand", b"head", b"hip, corrected"]
    assert (spool.work / "series" / "note.txt").exists()


def test_what_was_set_aside_is_completed_and_not_put_over_what_is_newer(spool):
    store(spool, ("1", b"head"), ("2", b"hip"))
    spool.set_aside(spool.incoming / "series", "series", "too short")
    store(spool, ("2", b"hip, corrected"), ("3", b"hand"))
    assert spool.finish("series", False) is None
    assert contents(spool.work / "series") == [b"hand", b"head", b"hip, corrected"]
    assert not spool.aside()


def test_the_oldest_of_what_is_set_aside_goes_first_and_only_on_request(spool):
    for name in "abc":
        spool.store(name, "1", bytes(1000), "token", "SCANNER")
        spool.set_aside(spool.incoming / name, name, f"reason {name}")
    assert [(entry.slices, entry.reason) for entry in spool.aside()] == [(1, f"reason {n}") for n in "abc"]
    each = spool.aside()[0].size
    assert each > 1000 and spool.bound(None) == [] == spool.bound(3 * each)
    (dropped,) = spool.bound(3 * each - 1)
    assert dropped.name.startswith("a-")
    assert [entry.name[0] for entry in spool.bound(0)] == ["b"]  # what came last always stays
    assert [entry.name[0] for entry in spool.aside()] == ["c"]


def test_another_version_s_spool_is_refused_and_left_as_it_is(tmp_path):
    waiting = tmp_path / "old" / "incoming" / "0123456789abcdef0123456789abcdef"
    waiting.mkdir(parents=True)
    (waiting / "1.dcm").write_bytes(b"head")
    newer = Spool(tmp_path / "new").root
    (newer / "layout").write_text("999\n")
    for root in (tmp_path / "old", newer):
        with pytest.raises(RunError, match="another version's"):
            Spool(root)
    assert (waiting / "1.dcm").read_bytes() == b"head"
    (tmp_path / "empty" / "incoming").mkdir(parents=True)
    assert Spool(tmp_path / "empty").waiting() == Spool(tmp_path / "empty").waiting()


@pytest.mark.parametrize("note", ["", "{", "[" * 10_000])
def test_a_series_waits_until_it_is_known_whether_it_has_gone_out(spool, note):
    store(spool, ("1", b"head"))
    (spool.root / "sent" / "series.json").write_text(note)
    with pytest.raises(DiskError, match="damaged"):
        spool.finish("series", False)
    assert contents(spool.incoming / "series") == [b"head"]


def test_slices_of_two_identities_never_share_a_folder():
    dataset = pydicom.Dataset()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.PatientName = "1.2", "1.2.3", "Roe^Jane"
    names = {series_name(dataset)}
    for key in (*IDENTITY, "PatientName"):
        other = pydicom.Dataset(dataset)
        setattr(other, key, "1")
        names.add(series_name(other))
    assert len(names) == 2 + len(IDENTITY)
    dataset.PatientName = "ROE^JANE^^"
    assert series_name(dataset) in names
