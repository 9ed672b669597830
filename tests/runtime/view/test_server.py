"""udean-view's server: what it sends is right, what it writes is kept, and strangers get nothing."""

import concurrent.futures
import contextlib
import gzip
import hashlib
import http.client
import io
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import udean
from PIL import Image
from udean.runtime import RunError
from udean.runtime.view.guard import BODY
from udean.runtime.view.marks import COLUMNS, Marks
from udean.runtime.view.server import PAGE, Viewer
from udean.trainer.simulation import kspace

from ...support.commands import here
from ...support.fakes import card, onnx_model
from ..dicom.test_series import classic

COMMAND = [Path(sys.executable).with_name("udean-view")]
STATIC = Path(udean.__file__).parent / "runtime/view/static"
EVIL = "<script>alert(1)<img src=x onerror=alert(2)>.nii"
NIIVUE = "bcb456b66a26e20126b7257c2b6071f48b347b7f910f99bca26721a71a96cbed"  # 0.69.0, unpacked
SHAPE = (20, 18, 12)


def oblique():
    affine = np.diag([-1.0, 1.5, 2.0, 1.0])
    affine[:3, :3] = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0] @ affine[:3, :3]
    affine[:3, 3] = 10, -20, 30
    return affine


def smooth(shape=SHAPE, seed=0):
    small = np.random.default_rng(seed).uniform(100, 900, [-(-n // 4) for n in shape])
    fine = kspace.tricubic(small.astype(np.float32), (4, 4, 4))
    return fine[: shape[0], : shape[1], : shape[2]]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Scans of several kinds and, beside them in `out`, what udean-run has made of them."""
    folder = tmp_path_factory.mktemp("view")
    scans = folder / "scans"
    scans.mkdir()
    model = onnx_model(folder / "sr.onnx", card((2, 2, 2), 3, (16, 16)))
    scaled = nib.Nifti1Image(np.rint(smooth()).astype(">i2"), oblique())
    scaled.header.set_slope_inter(2, -5)
    scaled.header["descrip"] = b"Jane Roe"
    nib.save(scaled, scans / "scaled.nii.gz")
    nib.save(nib.Nifti1Image(smooth(seed=1), np.eye(4)), scans / EVIL)
    nib.save(nib.MGHImage(smooth(seed=2), np.eye(4)), scans / "free surfer.mgz")
    series = np.stack([smooth(seed=3), smooth(seed=4)], axis=-1)
    nib.save(nib.Nifti1Image(series, np.eye(4)), scans / "bold.nii")
    (scans / "broken.nii").write_bytes(b"nonsense")
    classic(scans / "study")
    run = ["udean-run", "--precision", "fp32", "--threads", "1", "--series", "--engine", model]
    run += ["-o", folder / "out"]
    done = here(*run, scans)
    assert done.returncode == 1 and "5 written" in done.stdout, done.stdout + done.stderr
    with_error_map(folder, [*run, "--to", "0.9mm"])
    return folder


def with_error_map(folder, run):
    """A result on a grid that no whole number divides, and a map of expected errors beside it."""
    (folder / "thin").mkdir()
    affine = np.diag([1.5, 1.5, 1.5, 1.0])
    nib.save(nib.Nifti1Image(np.rint(smooth(seed=6)).astype(np.int16), affine), folder / "thin/thin.nii.gz")
    done = here(*run, folder / "thin")
    assert done.returncode == 0, done.stdout + done.stderr
    fine = nib.load(folder / "out/thin_sr.nii.gz")
    errors = np.linspace(0, 90, fine.shape[0], dtype=np.float32)[:, None, None] * np.ones(fine.shape, "f4")
    nib.save(nib.Nifti1Image(errors, fine.affine), folder / "out/thin_error.nii.gz")
    path = folder / "out/thin_sr.json"
    sidecar = json.loads(path.read_bytes())
    sidecar["udean"]["error_map"] = "thin_error.nii.gz"
    path.write_text(json.dumps(sidecar))


@pytest.fixture
def out(made, tmp_path):
    """A copy of the results, for tests that write; the scans lie where they lay."""
    shutil.copytree(made / "out", tmp_path / "out")
    os.symlink(made / "scans", tmp_path / "scans")
    return tmp_path / "out"


@contextlib.contextmanager
def serving(root):
    with Viewer(root) as viewer:
        threading.Thread(target=viewer.serve_forever, daemon=True).start()
        yield viewer
        viewer.shutdown()


@pytest.fixture(scope="module")
def viewer(made):
    with serving(made / "out") as viewer:
        yield viewer


@pytest.fixture
def own(out):
    with serving(out) as viewer:
        yield viewer


def ask(viewer, address, method="GET", body=None, host=None, token=None, **headers):
    """One request as written; underscores in headers' names are dashes. Returns status, body, headers."""
    port = viewer.server_address[1]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.putrequest(
        method, f"/{token or viewer.token}/{address}", skip_host=True, skip_accept_encoding=True
    )
    connection.putheader("Host", host or f"127.0.0.1:{port}")
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    if body is not None and "Content_Length" not in headers:
        connection.putheader("Content-Length", str(len(body)))
    connection.endheaders(body)
    answer = connection.getresponse()
    with contextlib.closing(connection):
        return answer.status, answer.read(), answer.headers


def listed(viewer):
    status, body, _ = ask(viewer, "scans")
    assert status == 200
    return json.loads(body)


def key(viewer, name):
    (found,) = (scan["key"] for scan in listed(viewer)["scans"] if scan["name"].startswith(name))
    return found


def details(viewer, name, number=0):
    status, body, _ = ask(viewer, f"scans/{key(viewer, name)}/{number}")
    return status, json.loads(body)


def image(viewer, name, kind, number=0):
    status, body, _ = ask(viewer, f"scans/{key(viewer, name)}/{number}/{kind}.nii")
    assert status == 200, body
    return nib.Nifti1Image.from_stream(io.BytesIO(body))


def mark(viewer, name, rating="good", note="", **changes):
    origin = f"http://127.0.0.1:{viewer.server_address[1]}"
    headers = {"Content_Type": "application/json", "Origin": origin, "Sec_Fetch_Site": "same-origin"}
    body = json.dumps({"rating": rating, "note": note}).encode()
    headers = {k: v for k, v in (headers | changes).items() if v is not None}
    return ask(viewer, f"scans/{key(viewer, name)}/0/mark", "POST", headers.pop("body", body), **headers)


# What is shown


@pytest.mark.parametrize("name", ["scaled", "<script>", "free surfer", "bold"])
def test_volumes_are_the_scans_in_their_units_where_they_lie(viewer, made, name):
    (source,) = (made / "scans").glob(f"{name}*")
    (result,) = (path for path in (made / "out").glob(f"{name}*") if path.suffix != ".json")
    for kind, path in (("lr", source), ("sr", result)):
        wanted, shown = nib.load(path), image(viewer, name, kind)
        voxels = wanted.get_fdata()[..., 0] if wanted.ndim == 4 else wanted.get_fdata()
        np.testing.assert_allclose(shown.get_fdata(), voxels, rtol=1e-6)
        np.testing.assert_allclose(shown.affine, wanted.affine, atol=1e-4)
        assert shown.header["descrip"] == b"" and not shown.header.extensions


def test_tricubic_and_differences_lie_on_their_grids(viewer):
    lr, tricubic, sr, difference, left = (
        image(viewer, "scaled", kind) for kind in ("lr", "tricubic", "sr", "difference", "consistency")
    )
    np.testing.assert_allclose(tricubic.affine, sr.affine, atol=1e-5)
    np.testing.assert_allclose(difference.affine, sr.affine, atol=1e-5)
    np.testing.assert_allclose(left.affine, lr.affine, atol=1e-5)
    np.testing.assert_allclose(difference.get_fdata(), sr.get_fdata() - tricubic.get_fdata(), atol=0.01)
    inside = np.s_[6:-6, 6:-6, 6:-6]
    spline = kspace.tricubic(lr.get_fdata().astype(np.float32), (2, 2, 2))
    assert np.abs(tricubic.get_fdata() - spline)[inside].max() < 0.02 * spline.max()
    np.testing.assert_allclose(tricubic.get_fdata()[::2, ::2, ::2], lr.get_fdata(), rtol=1e-4)
    again = kspace.acquire(sr.get_fdata().astype(np.float32), kspace.Acquisition((2, 2, 2)))
    off = left.get_fdata() - (again - lr.get_fdata())  # of magnitudes, which differ where values are negative
    assert np.linalg.norm(off) < 0.05 * np.linalg.norm(left.get_fdata())


def test_a_result_of_another_spacing_and_its_error_map_lie_on_its_own_grid(viewer, made):
    status, said = details(viewer, "thin")
    assert status == 200 and said["interpolation"] == "cubic B-spline" and said["error_map"]
    assert said["planes"]["axial"]["count"] == 20 and not details(viewer, "scaled")[1]["error_map"]
    sr, spline, errors, left = (
        image(viewer, "thin", kind) for kind in ("sr", "tricubic", "error", "consistency")
    )
    assert sr.shape == spline.shape == errors.shape == (34, 30, 20)
    np.testing.assert_allclose(spline.affine, sr.affine, atol=1e-5)
    np.testing.assert_allclose(left.affine, np.diag([1.5, 1.5, 1.5, 1]), atol=1e-5)
    assert errors.get_fdata().max() == pytest.approx(90)
    inside = np.s_[4:-4, 4:-4, 4:-4]  # the fake network repeats voxels, so it is off by half a fine one
    assert np.abs(sr.get_fdata() - spline.get_fdata())[inside].mean() < 0.1 * spline.get_fdata().mean()
    address = f"scans/{key(viewer, 'scaled')}/0/error.nii"
    status, body, _ = ask(viewer, address)
    assert status == 422 and b"no map of expected errors" in body


def test_an_error_map_of_another_size_is_refused(out):
    nib.save(nib.Nifti1Image(np.zeros((3, 3, 3), "f4"), np.eye(4)), out / "thin_error.nii.gz")
    with serving(out) as viewer:
        status, said = details(viewer, "thin")
        assert status == 422 and "another size" in said["error"]


@pytest.mark.parametrize("name", ["scaled", "thin"])
def test_planes_come_as_pictures_too(viewer, name):
    """For browsers that draw no volumes; laid as a radiologist expects them."""
    sr = nib.as_closest_canonical(image(viewer, name, "sr"))
    said = details(viewer, name)[1]
    low, high = said["window"]
    for axis, plane in enumerate(("sagittal", "coronal", "axial")):
        count = said["planes"][plane]["count"]
        assert count == sr.shape[axis]
        for kind in ("lr", "tricubic", "sr"):
            status, body, headers = ask(
                viewer, f"scans/{key(viewer, name)}/0/{kind}-{plane}-{count // 2}.png"
            )
            assert status == 200 and headers["Content-Type"] == "image/png"
            picture = np.asarray(Image.open(io.BytesIO(body)))
            assert picture.std() > 5
        if name == "thin":  # its voxel axes run to the right, the front and the head
            wanted = np.take(sr.get_fdata(), count // 2, axis).T[::-1, ::-1]
            wanted = np.clip((wanted - low) / (high - low), 0, 1) * 255
            assert np.abs(picture - wanted).max() <= 1
    for wrong, status in (
        ("sr-axial-99", 422),
        ("sr-oblique-1", 404),
        ("sr-axial--1", 404),
        ("x-axial-1", 404),
    ):
        assert ask(viewer, f"scans/{key(viewer, name)}/0/{wrong}.png")[0] == status


def test_each_volume_of_a_series_is_shown(viewer, made):
    status, said = details(viewer, "bold", 1)
    assert status == 200 and (said["volume"], said["volumes"]) == (1, 2)
    for kind, folder in (("lr", "scans"), ("sr", "out")):
        (path,) = (made / folder).glob("bold*.nii")
        wanted = nib.load(path).get_fdata()[..., 1]
        np.testing.assert_allclose(image(viewer, "bold", kind, 1).get_fdata(), wanted, rtol=1e-6)
    status, said = details(viewer, "bold", 2)
    assert status == 422 and "2 volumes" in said["error"]


def test_dicom_series_are_shown_beside_their_source(viewer):
    status, said = details(viewer, "series-003")
    assert status == 200 and said["problem"] == ""
    shapes = {kind: image(viewer, "series-003", kind).shape for kind in ("lr", "tricubic", "sr")}
    assert shapes["sr"] == shapes["tricubic"] == tuple(2 * n for n in shapes["lr"])


def test_details_hold_warnings_measures_and_the_sidecar(viewer, made):
    status, said = details(viewer, "scaled")
    sidecar = json.loads((made / "out/scaled_sr.json").read_bytes())
    assert status == 200 and said["sidecar"] == sidecar["udean"]
    lr = nib.load(made / "scans/scaled.nii.gz").get_fdata()
    low, high = said["window"]
    assert low <= lr.min() and np.percentile(lr, 99) < high <= lr.max()
    assert said["error"] == pytest.approx(0.1 * high)
    assert "% of its root mean square" in said["facts"]["Difference to the scan's k-space"]
    assert "20 × 18 × 12 voxels of 1 × 1.5 × 2 mm, int16" in said["facts"]["Scan"]
    assert (
        any("smaller than the windows" in w for w in details(viewer, "free surfer")[1]["warnings"]) is False
    )
    assert said["facts"]["Computed by"].startswith("openvino")


def test_failed_scans_are_listed_with_the_reason(viewer):
    ((name, why),) = listed(viewer)["failed"].items()
    assert "broken" in name and "is not a NIfTI file" in why


def test_a_scan_that_is_gone_or_changed_is_said_and_its_result_still_shown(out, tmp_path):
    os.unlink(tmp_path / "scans")
    with serving(out) as viewer:
        status, said = details(viewer, "scaled")
        assert status == 200 and "is gone" in said["problem"] and said["window"] is None
        assert image(viewer, "scaled", "sr").shape == tuple(2 * n for n in SHAPE)
        address = f"scans/{key(viewer, 'scaled')}/0/lr.nii"
        assert ask(viewer, address)[0] == 422
        (tmp_path / "scans").mkdir()
        nib.save(nib.Nifti1Image(smooth(seed=9), np.eye(4)), tmp_path / "scans/scaled.nii.gz")
        os.utime(out / "scaled_sr.json")  # so that the one in hand is opened again
        assert "has changed" in details(viewer, "scaled")[1]["problem"] and ask(viewer, address)[0] == 422


def test_results_that_come_later_are_listed(own, out):
    before = len(listed(own)["scans"])
    for suffix in (".nii.gz", ".json"):
        shutil.copy(out / f"scaled_sr{suffix}", out / f"späte Aufnahme{suffix}")
    assert len(listed(own)["scans"]) == before + 1
    assert details(own, "späte Aufnahme")[0] == 200


def test_sources_may_be_bids_uris(own, out, made):
    sidecar = json.loads((out / "scaled_sr.json").read_bytes())
    sidecar["Sources"] = ["bids:raw:sub%20dir/scaled.nii.gz"]
    (out / "scaled_sr.json").write_text(json.dumps(sidecar))
    (out / "dataset_description.json").write_text(json.dumps({"DatasetLinks": {"raw": "../raw%20data"}}))
    place = out.parent / "raw data/sub dir"
    place.mkdir(parents=True)
    shutil.copy(made / "scans/scaled.nii.gz", place)
    assert details(own, "scaled")[1]["problem"] == ""


# The mark


def test_a_mark_is_kept_in_a_table_and_outlives_the_server(out):
    with serving(out) as viewer:
        assert mark(viewer, "scaled", "bad", "ringing\tat the\nrim  =1+1 <b>")[0] == 200
        assert mark(viewer, "<script>", "unsure")[0] == 200
        assert mark(viewer, "scaled", "good", "better now")[0] == 200
    lines = (out / "qc.tsv").read_text().splitlines()
    assert lines[0].split("\t") == COLUMNS == ["filename", "rating", "note", "timestamp"]
    rows = {cells[0]: cells[1:3] for cells in (line.split("\t") for line in lines[1:])}
    assert rows == {"scaled_sr.nii.gz": ["good", "better now"], EVIL[:-4] + "_sr.nii": ["unsure", "n/a"]}
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", line.split("\t")[3]) for line in lines[1:])
    with serving(out) as viewer:
        found = {scan["name"]: scan["mark"] for scan in listed(viewer)["scans"]}
        assert found["scaled_sr.nii.gz"]["note"] == "better now"
        assert mark(viewer, "scaled", "")[0] == 200
    assert len((out / "qc.tsv").read_text().splitlines()) == 2


def test_notes_are_one_line_of_text_and_end_somewhere(own, out):
    assert mark(own, "scaled", "bad", "a\tb\r\nc\x00\u2028d")[0] == 200
    assert (out / "qc.tsv").read_text().splitlines()[1].split("\t")[2] == "a b c d"
    status, body, _ = mark(own, "scaled", "bad", "x" * 1001)
    assert status == 422 and b"at most 1000" in body
    assert mark(own, "scaled", "excellent")[0] == 422


def test_a_table_that_is_not_ours_is_left_alone(own, out):
    (out / "qc.tsv").write_text("participant_id\tage\nsub-01\t33\n")
    status, body, _ = mark(own, "scaled")
    assert status == 422 and b"move it away" in body and "move it away" in listed(own)["problem"]
    assert (out / "qc.tsv").read_text() == "participant_id\tage\nsub-01\t33\n"


def _many(root, who):
    for number in range(15):
        Marks(root).write(f"{who}-{number}", "good", "")


def test_readers_in_two_processes_lose_no_mark(tmp_path):
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(2, context) as pool:
        list(pool.map(_many, [tmp_path] * 2, "ab"))
    assert set(Marks(tmp_path).read()) == {f"{who}-{n}" for who in "ab" for n in range(15)}
    assert not list(tmp_path.glob(".*.part"))


def test_file_names_become_one_cell_of_text(made, out):
    odd = out / "tab\there\nnew.nii"
    shutil.copy(next(out.glob("<script>*.nii")), odd)
    shutil.copy(next(out.glob("<script>*.json")), odd.with_suffix(".json"))
    with serving(out) as viewer:
        assert mark(viewer, "tab\\there\\nnew")[0] == 200
    assert (out / "qc.tsv").read_text().splitlines()[1].startswith("tab\\there\\nnew.nii\tgood\t")


# Strangers


def test_only_the_token_opens_anything(viewer):
    for token in ("x", viewer.token[:-1], viewer.token.upper(), "%2e%2e", viewer.token + "x"):
        for address in ("", "scans", "view.js"):
            assert ask(viewer, address, token=token)[0] == 403
    assert raw(viewer, "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n").startswith(b"HTTP/1.0 403")


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.evil.example", "0.0.0.0",
     "user@127.0.0.1", "127.0.0.1/evil", "[::ffff:127.0.0.1]", "", "[", "127.0.0.1, evil.example"],
)  # fmt: skip
def test_other_hosts_are_refused(viewer, host):
    assert ask(viewer, "scans", host=host or " ")[0] == 421
    two = f"GET /{viewer.token}/scans HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: {host or 'x'}\r\n\r\n"
    assert raw(viewer, two).split()[1] == b"421"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9", "[::1]:8080", "LOCALHOST:80"])
def test_this_machine_is_served_through_tunnels_too(viewer, host):
    assert ask(viewer, "scans", host=host)[0] == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:1"},
        {"Origin": None},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
        {"token": "guess"},
    ],
)
def test_posts_of_other_sites_are_refused(own, out, changes):
    assert mark(own, "scaled", **changes)[0] == 403
    assert not (out / "qc.tsv").exists()


def test_other_sites_read_nothing_but_may_link_to_the_page(viewer):
    for headers in ({"Origin": "http://evil.example"}, {"Sec_Fetch_Site": "cross-site"}):
        assert ask(viewer, "scans", **headers)[0] == 403
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}
    assert ask(viewer, "", **link)[0] == 200 and ask(viewer, "scans", **link)[0] == 403


@pytest.mark.parametrize(
    ("changes", "status"),
    [
        ({"body": b"x" * (BODY + 1)}, 413),
        ({"body": b"", "Content_Length": "9999999999"}, 411),
        ({"body": b"", "Content_Length": "-1"}, 411),
        ({"body": b"", "Transfer_Encoding": "chunked"}, 411),
        ({"body": b"{}", "Content_Type": "text/plain"}, 415),
        ({"body": b"rating=good", "Content_Type": "application/x-www-form-urlencoded"}, 415),
        ({"body": b"not json"}, 400),
        ({"body": b"[" * 16000}, 400),
        ({"body": b"[]"}, 400),
        ({"body": b'{"rating": "good"}'}, 400),
        ({"body": b'{"rating": "good", "note": 3}'}, 400),
        ({"body": b'{"rating": "good", "note": "", "path": "/etc"}'}, 400),
    ],
)
def test_bodies_beyond_what_a_mark_needs_are_refused(own, out, changes, status):
    assert mark(own, "scaled", **changes)[0] == status
    assert not (out / "qc.tsv").exists()


@pytest.mark.parametrize("method", ["PUT", "DELETE", "HEAD", "OPTIONS", "TRACE", "CONNECT", "PROPFIND"])
def test_other_methods_are_refused(viewer, method):
    assert ask(viewer, "scans", method)[0] == 405


def test_get_takes_no_body_and_post_goes_nowhere_else(viewer):
    assert ask(viewer, "scans", body=b"x")[0] == 400
    origin = f"http://127.0.0.1:{viewer.server_address[1]}"
    for address in ("", "scans", "view.js", "qc.tsv", f"scans/{'0' * 16}/0"):
        assert ask(viewer, address, "POST", b"{}", Origin=origin, Content_Type="application/json")[0] == 404


@pytest.mark.parametrize(
    "address",
    [
        "../scans/broken.nii", "..%2fscans%2fbroken.nii", "%2e%2e/%2e%2e/etc/passwd", "/etc/passwd",
        "//etc/passwd", "scans/../../../etc/passwd", "..\\scans\\broken.nii", "static/../server.py",
        "server.py", "index.html", "niivue.js.gz", "view.js/..", "view.js?x", "view.js%00",
        "scaled_sr.nii.gz", "udean-manifest.jsonl", "scans/0000000000000000/0", "scans/KEY", "scans/KEY/",
        "scans/KEY/0/", "scans/KEY/-1", "scans/KEY/0/lr", "scans/KEY/0/../sr.nii", "scans/KEY/0/lr.nii/",
        "scans/KEY/0/secret.nii", "scans/KEY/9999999", "scans/KEY/0/mark", "qc.tsv", "favicon.ico", ".",
    ],
)  # fmt: skip
def test_addresses_are_no_paths(viewer, address):
    status, body, _ = ask(viewer, address.replace("KEY", key(viewer, "scaled")).replace(" ", "%20"))
    assert status == 404 and json.loads(body)["error"]


def raw(viewer, text):
    """An answer to bytes that no client library would send."""
    with socket.create_connection(viewer.server_address, 10) as connection:
        connection.sendall(text.encode("latin-1"))
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(1 << 16), b""))


@pytest.mark.parametrize(
    "text",
    [
        "GET * HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        "GET http://evil.example/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        "GET /TOKEN/scans HTTP/1.1\r\n\r\n",
        "GET /TOKEN/scans\r\n\r\n",
        "nonsense\r\n\r\n",
        f"GET /{'x' * 70000} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        "GET /TOKEN/scans HTTP/1.1\r\n" + "X: y\r\n" * 200 + "\r\n",
        "GET /\xff\xfe/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    ],
)
def test_broken_requests_get_no_data_and_the_server_goes_on(viewer, text):
    answer = raw(viewer, text.replace("TOKEN", viewer.token))
    assert b"scaled_sr" not in answer and b" 200 " not in answer.split(b"\n")[0]
    assert ask(viewer, "scans")[0] == 200


def test_links_out_of_the_folder_are_refused(out, made):
    outside = made / "outside"
    outside.mkdir(exist_ok=True)
    for suffix in (".nii.gz", ".json"):
        shutil.copy(made / f"out/scaled_sr{suffix}", outside / f"secret{suffix}")
    os.symlink(outside / "secret.nii.gz", out / "one.nii.gz")  # the sidecar is inside, the scan is not
    shutil.copy(outside / "secret.json", out / "one.json")
    os.symlink(outside / "secret.json", out / "two.json")
    os.symlink(outside / "secret.nii.gz", out / "two.nii.gz")
    os.symlink(outside, out / "three")
    with serving(out) as viewer:
        names = {scan["name"] for scan in listed(viewer)["scans"]}
        assert "one.nii.gz" in names and not {n for n in names if "two" in n or "three" in n}
        status, said = details(viewer, "one")
        assert status == 422 and "is a link out of" in said["error"]
        assert ask(viewer, f"scans/{key(viewer, 'one')}/0/sr.nii")[0] == 422


def test_a_sidecar_opens_no_file_that_the_run_has_not_read(own, out, made):
    nib.save(nib.Nifti1Image(smooth(seed=5), np.eye(4)), out.parent / "secret.nii")
    sidecar = json.loads((out / "scaled_sr.json").read_bytes())
    for source in (
        str(out.parent / "secret.nii"),
        "../secret.nii",
        "/etc/passwd",
        "bids:x:/etc/passwd",
        "\x00",
    ):
        (out / "scaled_sr.json").write_text(json.dumps(sidecar | {"Sources": [source]}))
        status, said = details(own, "scaled")
        assert status == 200 and said["problem"]
        assert ask(own, f"scans/{key(own, 'scaled')}/0/lr.nii")[0] == 422


@pytest.mark.parametrize(
    "content",
    ["[]", "{", '{"udean": 3, "Sources": ["x"]}', '{"udean": {}, "Sources": [3]}', '{"udean": {}}',
     '{"udean": {"timings": 3, "engine": [], "model_card": 1}, "Sources": ["../scans/scaled.nii.gz"]}',
     '{"udean": {"request": {"options": 1}}, "Sources": ["../scans/scaled.nii.gz"]}'],
)  # fmt: skip
def test_damaged_sidecars_end_in_a_sentence(own, out, content):
    (out / "scaled_sr.json").write_text(content)
    found = [scan for scan in listed(own)["scans"] if scan["name"].startswith("scaled")]
    for scan in found:
        status, body, _ = ask(own, f"scans/{scan['key']}/0")
        assert status == 200 and json.loads(body)["problem"]


def test_pages_forbid_everything_from_elsewhere(viewer):
    for address in (*PAGE, "scans", "nothing"):
        _, body, headers = ask(viewer, address)
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "script-src 'self'" in policy and "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy and "http" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"
        assert headers["Referrer-Policy"] == "no-referrer" and "Access-Control-Allow-Origin" not in headers
        if address in PAGE and address != "niivue.js":
            assert not re.search(rb"(src|href|import|url)[^\n]{0,9}https?:", body)
            assert b"innerHTML" not in body and b"insertAdjacent" not in body


# What is shipped


def test_niivue_is_the_pinned_one_and_its_licences_lie_beside_it():
    module = gzip.decompress((STATIC / "niivue.js.gz").read_bytes())
    assert hashlib.sha256(module).hexdigest() == NIIVUE
    packages = json.loads((STATIC.parent / "vendor/package-lock.json").read_bytes())["packages"]
    licences = (STATIC / "niivue.LICENSE").read_text()
    assert "Copyright (c) 2021, Niivue" in licences
    for folder, about in packages.items():
        if folder and not about.get("optional"):
            assert f"{folder.removeprefix('node_modules/')} {about['version']} (" in licences


def test_browsers_without_gzip_get_the_same(viewer):
    _, plain, headers = ask(viewer, "niivue.js")
    _, packed, packed_headers = ask(viewer, "niivue.js", Accept_Encoding="gzip, br")
    assert "Content-Encoding" not in headers and packed_headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed) == plain


def test_the_command_serves_on_loopback_until_it_is_told_to_end(out):
    process = subprocess.Popen([*COMMAND, out], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        port, token = re.search(r"http://127\.0\.0\.1:(\d+)/([\w-]{32})/", process.stdout.readline()).groups()
        connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=30)
        connection.request("GET", f"/{token}/")
        assert b"<!doctype html>" in connection.getresponse().read()
        process.send_signal(signal.SIGTERM)
        said, errors = process.communicate(timeout=30)
        assert process.returncode == 0 and errors == "" and token not in said
    finally:
        process.kill()


def test_what_cannot_start_is_one_sentence(out, tmp_path):
    (tmp_path / "empty").mkdir()
    with serving(out) as viewer:
        cases = {
            (tmp_path / "missing",): "is not a folder",
            (tmp_path / "empty",): "contains no results",
            (out, "--port", viewer.server_address[1]): "Cannot listen on port",
        }
        for arguments, word in cases.items():
            done = here("udean-view", *arguments)
            assert done.returncode == 2 and done.stdout == ""
            (sentence,) = done.stderr.splitlines()
            assert sentence.startswith("Error: ") and word in sentence
    with pytest.raises(RunError):
        Viewer(tmp_path / "missing")
