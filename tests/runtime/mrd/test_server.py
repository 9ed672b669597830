"""The MRD server as a client meets it: real sockets, a client of its own, phantoms whose answer is known."""

import base64
import contextlib
import json
import socket
import struct
import threading
import time
import urllib.request
import xml.etree.ElementTree as ElementTree

import ismrmrd
import numpy as np
import pytest
from udean.runtime import SuperResolver, open_engine
from udean.runtime.mrd.connection import LINGER, QUIET, Parameters
from udean.runtime.mrd.limits import Limits
from udean.runtime.mrd.server import Server
from udean.runtime.system.metrics import serve_metrics

from ...support.fakes import FakeEngine, card, interpolation
from ...support.mrd_client import (
    Client,
    images,
    pack_close,
    pack_config,
    pack_image,
    pack_text,
    pack_waveform,
    talk,
    texts,
)

WINDOW = (16, 16)
SLOPE = np.array([0.7, -1.3, 2.1])  # of the phantom, per mm


@contextlib.contextmanager
def serving(grid="fft", scale=(2, 2, 2), network=None, **options):
    """A server on a free port."""
    resolve = SuperResolver(
        FakeEngine(network or interpolation(scale, grid), card(scale, 3, WINDOW, grid)), crop=False
    )
    server = Server(resolve, port=0, **options)
    thread = threading.Thread(target=server.serve, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stop(5)
        thread.join(10)
        assert not thread.is_alive() and server.held == 0


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def address(server):
    return server.address


def rotation(seed=3):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q.T  # a direction a row


def phantom(places):
    """A linear function of the position in mm: interpolation restores it exactly."""
    return (places @ SLOPE + 1000).astype(np.float32)


def grid_places(origin, steps, shape):
    """Positions (z, y, x, 3) of voxels; steps: (x, y, z) vectors, first voxel at origin."""
    z, y, x = np.meshgrid(*map(np.arange, shape), indexing="ij")
    return origin + x[..., None] * steps[0] + y[..., None] * steps[1] + z[..., None] * steps[2]


def slices(position, frame=None, shape=(6, 20, 18), sizes=(1.0, 1.2, 3.0), dtype=np.float32, **fields):
    """Image messages of an oblique stack, and the positions of its voxels."""
    frame = rotation() if frame is None else frame
    steps = frame * np.array(sizes)[:, None]
    places = grid_places(np.array([11.0, -7.0, 23.0]), steps, shape)
    values = phantom(places).astype(dtype)
    messages = []
    for n in range(shape[0]):
        first, last = places[n, 0, 0], places[n, -1, -1]
        messages.append(
            pack_image(
                values[n][None],
                field_of_view=(shape[2] * sizes[0], shape[1] * sizes[1], sizes[2]),
                position=(first + last) / 2 if position == "spec" else first,
                read_dir=frame[0],
                phase_dir=frame[1],
                slice_dir=frame[2],
                slice=n,
                **fields,
            )
        )
    return messages, places


def places_of(image, position):
    """The positions of an image's voxels (z, y, x) according to its header."""
    header = image.header
    steps = np.array([header.read_dir, header.phase_dir, header.slice_dir])
    steps = steps * (header.field_of_view / header.matrix_size)[:, None]
    origin = header.position
    if position == "spec":
        origin = origin - ((header.matrix_size - 1) / 2) @ steps
    return grid_places(origin, steps, image.pixels.shape[1:])


def meta(image):
    root = ElementTree.fromstring(image.attributes)
    return {m.findtext("name"): [v.text for v in m.findall("value")] for m in root.findall("meta")}


def originals_and_sr(messages, series=1):
    got = images(messages)
    return (
        [m for m in got if m.header.image_series_index == series],
        [m for m in got if m.header.image_series_index != series],
    )


@pytest.mark.parametrize("position", ["spec", "first-voxel"])
@pytest.mark.parametrize("grid", ["fft", "center"])
def test_an_oblique_phantom_lies_where_the_sr_headers_say(position, grid):
    messages, _ = slices(position)
    random = np.random.default_rng(0)
    order = random.permutation(len(messages))  # arrival has nothing to do with place
    with serving(grid, parameters=Parameters(position=position)) as server:
        got = talk(server.address, *(messages[n] for n in order), pack_close())
    back, sr = originals_and_sr(got)
    assert [m.raw for m in back] == [messages[n] for n in order]
    assert len(sr) == 12 and not [t for t in texts(got) if t.startswith("ERROR")]
    for image in sr[1:-2]:
        assert image.pixels.shape == (1, 1, 40, 36)
        np.testing.assert_allclose(image.header.field_of_view, [18, 24, 1.5], rtol=1e-6)
        # beyond the outermost LR voxels the network extrapolates, windows of reflections do not
        inner = np.s_[:, 2:-3, 2:-3]
        np.testing.assert_allclose(
            image.pixels[0][inner], phantom(places_of(image, position))[inner], rtol=0, atol=2e-2
        )


@pytest.mark.parametrize("position", ["spec", "first-voxel"])
@pytest.mark.parametrize("asked", ["1mm", "1x1x1.5mm", "iso"])
def test_thick_slices_come_back_in_the_spacing_that_the_client_asks_for(position, asked):
    messages, places = slices(position, shape=(8, 30, 36))
    with serving("fft", parameters=Parameters(position=position)) as server:
        text = pack_text(5, json.dumps({"parameters": {"to": asked}}))
        got = talk(server.address, text, *messages, pack_close())
        plain = talk(server.address, *messages, pack_close())
    _, sr = originals_and_sr(got)
    depth = 1.5 if "1.5" in asked else 1.0
    assert [m.header.image_index for m in sr] == list(range(1, int(24 / depth) + 1))
    for image in sr:
        size = image.header.field_of_view / image.header.matrix_size
        np.testing.assert_allclose(size, (1, 1, depth), atol=1e-5)
        assert image.pixels.shape == (1, 1, 36, 36)
    # The grid fills the field of view: its middle is the stack's, and so is a linear phantom inside it.
    where = np.concatenate([places_of(image, position) for image in sr])
    np.testing.assert_allclose(where.mean((0, 1, 2)), places.mean((0, 1, 2)), atol=1e-4)
    voxels = np.concatenate([image.pixels[0] for image in sr])
    inside = (slice(4, -4),) * 3
    off = voxels - phantom(where)
    assert abs(off[inside]).max() < 0.02 * np.ptp(voxels)
    assert "to 1 x 1 x" in meta(sr[0])["DerivationDescription"][0]
    _, other = originals_and_sr(plain)  # one client's wish is nobody else's
    assert len(other) == 16 and other[0].pixels.shape == (1, 1, 60, 72)


def test_clients_who_ask_for_a_spacing_share_one_through_plane_engine(monkeypatch):
    opened = []
    monkeypatch.setattr(
        "udean.runtime.stages.network.open_engine", lambda *given: opened.append(given) or open_engine(*given)
    )
    messages, _ = slices("spec", shape=(4, 12, 12))
    with serving() as server:
        for _ in range(2):
            talk(server.address, pack_text(5, '{"to": "iso"}'), *messages, pack_close())
    assert len(opened) == 1


def test_a_spacing_that_cannot_be_had_is_told_and_the_originals_come_back(address):
    messages, _ = slices("spec")
    for asked, word in (("0.1mm", "no model does well"), ("5mm", "nothing to restore")):
        got = talk(address, pack_text(5, json.dumps({"to": asked})), *messages, pack_close())
        assert [m.raw for m in images(got)] == messages
        assert any(t.startswith("ERROR") and word in t for t in texts(got))
    got = talk(address, pack_text(5, '{"to": "somewhere"}'), *messages, pack_close())
    assert len(images(got)) == 3 * len(messages)
    assert any("parameter 'to' is ignored" in t for t in texts(got))


@pytest.mark.parametrize("position", ["spec", "first-voxel"])
@pytest.mark.parametrize("sizes", [(1.0, 1.2, 3.0), (3.0, 1.0, 1.2)])
def test_a_volume_in_one_message_comes_back_as_one(position, sizes):
    frame = rotation(5)
    steps = frame * np.array(sizes)[:, None]
    places = grid_places(np.array([1.0, 2.0, 3.0]), steps, (9, 20, 18))
    field_of_view = np.array([18, 20, 9]) * sizes
    middle = places[0, 0, 0] + np.array([17, 19, 8]) / 2 @ steps
    message = pack_image(
        phantom(places),
        field_of_view=field_of_view,
        position=middle if position == "spec" else places[0, 0, 0],
        read_dir=frame[0],
        phase_dir=frame[1],
        slice_dir=frame[2],
        slice=4,
    )
    with serving(parameters=Parameters(position=position)) as server:
        _, (sr,) = originals_and_sr(talk(server.address, message, pack_close()))
    assert sr.pixels.shape == (1, 18, 40, 36) and sr.header.slice == 4
    np.testing.assert_allclose(sr.header.field_of_view, field_of_view, rtol=1e-6)
    inner = np.s_[2:-3, 2:-3, 2:-3]
    np.testing.assert_allclose(
        sr.pixels[0][inner], phantom(places_of(sr, position))[inner], rtol=0, atol=2e-2
    )


def test_sr_images_are_marked_and_originals_are_untouched(address):
    given = (
        '<?xml version="1.0"?><ismrmrdMeta><meta><name>SequenceDescription</name><value>t1 &lt;3</value>'
        "</meta><meta><name>WindowCenter</name><value>77</value></meta></ismrmrdMeta>"
    )
    messages, _ = slices("spec", attributes=given, dtype=np.uint16, measurement_uid=42, image_series_index=3)
    header = '<?xml version="1.0"?><ismrmrdHeader/>'
    got = talk(address, pack_config("default"), pack_text(3, header), *messages, pack_close())
    back, sr = originals_and_sr(got, 3)
    kinds = [m.header.image_series_index for m in images(got)]
    assert kinds == [3] * 6 + [4] * 12
    assert [m.raw for m in back] == messages
    for number, image in enumerate(sr):
        marks = meta(image)
        assert marks["SequenceDescription"] == ["t1 <3"] and marks["WindowCenter"] == ["77"]
        assert float(marks["WindowWidth"][0]) > 0 and marks["DataRole"] == ["Image"]
        assert "research only" in " ".join(marks["ImageProcessingHistory"])
        assert "test" in marks["DerivationDescription"][0] and marks["Keep_image_geometry"] == ["1"]
        assert marks["SequenceDescriptionAdditional"] == ["UDEAN_SR"]
        assert len(marks["ImageRowDir"]) == len(marks["ImageColumnDir"]) == 3
        assert image.header.measurement_uid == 42 and image.header.slice == number
        assert image.header.image_index == number + 1 and image.pixels.dtype == np.uint16
        assert image.header.attribute_string_len == len(image.attributes)
    assert any("research only" in t for t in texts(got))


def test_images_of_the_ismrmrd_package_make_the_round_trip(address):
    sent = []
    for n in range(4):
        image = ismrmrd.Image.from_array(np.full((1, 1, 10, 8), n * 100, np.uint16), image_series_index=2)
        image.field_of_view = (8, 10, 2)
        image.position = (0, 0, 2 * n)
        image.read_dir, image.phase_dir, image.slice_dir = (1, 0, 0), (0, 1, 0), (0, 0, 1)
        image.image_type = ismrmrd.IMTYPE_MAGNITUDE
        image.meta = ismrmrd.Meta({"SequenceDescription": "t2"})
        sent.append(image)
    got = talk(address, *((1022).to_bytes(2, "little") + image.to_bytes() for image in sent), pack_close())
    read = [ismrmrd.Image.from_bytes(m.raw[2:]) for m in images(got)]
    assert read[:4] == sent and len(read) == 12
    for image in read[4:]:
        assert image.data.shape == (1, 1, 20, 16) and image.image_series_index == 3
        assert image.meta["SequenceDescription"] == "t2" and image.meta["DataRole"] == "Image"


META = "<ismrmrdMeta><meta><name>{}</name><value>{}</value></meta></ismrmrdMeta>"
PHASES = [
    META.format("DicomImageType", "ORIGINAL\\PRIMARY\\P\\ND"),
    META.format("ImageTypeValue3", "R"),
    META.format("ComplexImageComponent", "IMAGINARY"),
    META.format("ImageType", "DERIVED\\PRIMARY\\ADC"),
    META.format("ImageType", "ORIGINAL\\PRIMARY\\M\\MOSAIC"),
]


def test_a_header_that_leaves_the_type_open_is_taken_for_magnitude_unless_attributes_say_else(address):
    xml = META.format("ImageType", "ORIGINAL\\PRIMARY\\M\\ND")
    messages, _ = slices("spec", image_type=0, attributes=xml)
    assert len(images(talk(address, *messages, pack_close()))) == 18


def test_what_is_no_magnitude_image_passes_through_in_order(address):
    messages, _ = slices("spec")
    wave = pack_waveform(np.arange(12, dtype=np.uint32).reshape(3, 4))
    others = [
        pack_image(np.ones((1, 4, 4), np.complex64), image_type=5),
        pack_image(np.ones((1, 4, 4), np.float32), image_type=2),
        pack_image(np.ones((3, 1, 4, 4), np.uint16), image_type=6),
        pack_image(np.ones((1, 4, 4), np.float64), flags=1),
        *(pack_image(np.ones((1, 4, 4), np.uint16), xml, image_type=n % 2) for n, xml in enumerate(PHASES)),
    ]
    sent = [others[0], wave, *messages, *others[1:]]
    got = talk(address, pack_text(5, '{"parameters": {"originals": "false"}}'), *sent, pack_close())
    passed = [m.raw for m in got if m.kind == 1026 or (m.kind == 1022 and m.header.image_series_index == 1)]
    assert passed == [others[0], wave, *others[1:]]
    assert len([m for m in images(got) if m.header.image_series_index == 2]) == 12
    assert any("9 images are not magnitude images" in t for t in texts(got))


def test_groups_are_volumes_and_sizes_get_series_of_their_own(address):
    first, _ = slices("spec", contrast=0)
    second, _ = slices("spec", contrast=1)
    third, _ = slices("spec", shape=(6, 10, 12))
    other, _ = slices("spec", image_series_index=9)
    mixed = [m for pair in zip(first, second, third, other, strict=True) for m in pair]
    got = images(talk(address, *mixed, pack_close()))[24:]
    found = {(m.header.image_series_index, m.header.contrast, m.pixels.shape[2:]) for m in got}
    assert found == {(10, 0, (40, 36)), (10, 1, (40, 36)), (11, 0, (20, 24)), (12, 0, (40, 36))}
    assert len(got) == 48


AT = {"field_of_view": (32, 32, 4), "image_type": 0}
SIGNED = np.random.default_rng(0).normal(0, 300, (2, 32, 32)).astype(np.int16)


def square(inside):
    """Two slices of two labels."""
    labels = np.zeros((2, 32, 32), np.uint16)
    labels[:, 8:24, 8:24] = inside
    return labels


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda m: m[:2] + m[3:], "missing"),
        (lambda m: [*m, m[2]], "same position"),
        (lambda m: [*m[:-1], slices("spec", shape=(6, 20, 18), sizes=(2, 1.2, 3.0))[0][5]], "field_of_view"),
        (lambda m: [*m[:-1], slices("spec", frame=rotation(8))[0][5]], "read_dir"),
        (lambda m: slices("spec", frame=np.zeros((3, 3)))[0], "orthogonal"),
        (lambda m: slices("spec", frame=np.full((3, 3), np.nan))[0], "orthogonal"),
        (lambda m: [pack_image(np.full((2, 4, 4), np.nan, np.float32), field_of_view=(4, 4, 4))], "NaN"),
        (lambda m: [pack_image(np.ones((1, 4, 4), np.float32))], "field of view"),
        (lambda m: [pack_image(square(7), **AT)], "a mask"),
        (lambda m: [pack_image(SIGNED, **AT)], "negative in"),
        (lambda m: [pack_image(np.ones((1, 2, 40000), np.uint16), field_of_view=(4, 4, 4))], "65535"),
    ],
)
def test_what_cannot_be_restored_is_named_and_its_originals_come_back(address, spoil, word):
    messages = spoil(slices("spec")[0])
    got = talk(address, *messages, pack_close())
    assert [m.raw for m in images(got)] == messages
    (error,) = (t for t in texts(got) if t.startswith("ERROR"))
    assert word in error and "originals" in error


def test_a_repetition_that_lacks_slices_of_the_others_is_not_restored(address):
    whole, stopped = (slices("spec", repetition=n)[0] for n in range(2))
    other, _ = slices("spec", shape=(3, 20, 18), image_series_index=7)  # of its own, and whole
    got = talk(address, *whole, *stopped[:3], *other, pack_close())
    assert [m.raw for m in images(got)][:12] == [*whole, *stopped[:3], *other]
    assert [m.header.repetition for m in images(got)[12:]] == [0] * 18
    assert any("3 of the 6 slices" in t for t in texts(got))


@pytest.mark.parametrize(("first", "second"), [((1, 6), (0, 5)), ((0, 4), (4, 6)), ((0, 5), (5, 6))])
def test_volumes_that_each_lack_what_the_other_has_are_not_restored(address, first, second):
    parts = [slices("spec", contrast=n)[0] for n in range(2)]
    sent = parts[0][slice(*first)] + parts[1][slice(*second)]
    got = talk(address, *sent, pack_close())
    assert [m.raw for m in images(got)] == sent
    assert sum("lacks slices which another one has" in t for t in texts(got)) == 2


def limits_of(**counters):
    """A scan's header with encoding limits, names with a prefix or without."""
    ends = "<m:minimum>0</m:minimum>\n <m:maximum>{}</m:maximum>"
    limits = "".join(f"<m:{name}>{ends.format(n)}</m:{name}>" for name, n in counters.items())
    return f"<m:ismrmrdHeader><m:encodingLimits>{limits}</m:encodingLimits></m:ismrmrdHeader>"


@pytest.mark.parametrize(
    ("announced", "repetitions", "word"),
    [
        ({"slice": 7}, [0], "6 of the 8 slices"),
        ({}, [0, 1, 3], "3 of 4 repetitions"),
        ({"slice": 5, "repetition": 4}, [0, 1, 2, 3], "4 of 5 repetitions"),
        ({"slice": 5, "repetition": 1}, [0, 1], ""),
        ({"repetition": 1}, [1, 2], ""),  # counted from 1
        ({"slice": 0}, [0], ""),  # a 3-D scan, sent in slices
        ({"repetition": 9}, [4], ""),  # one repetition a stream
    ],
)
def test_what_a_scan_has_beyond_what_came_is_told_with_the_result(address, announced, repetitions, word):
    sent = [message for n in repetitions for message in slices("spec", repetition=n)[0]]
    got = talk(address, pack_text(3, limits_of(**announced)), *sent, pack_close())
    made = images(got)[len(sent) :]
    assert len(made) == 2 * len(sent)
    warnings = [t for t in texts(got) if t.startswith("WARN")]
    assert len(warnings) == (len(repetitions) if word else 0) and all(word in t for t in warnings)
    assert all(word in meta(m)["ImageComments"][0] for m in made)


def test_slices_shifted_against_each_other_are_no_stack(address):
    frame = np.eye(3)
    messages, _ = slices("spec", frame=frame)
    shifted = pack_image(
        np.ones((1, 20, 18), np.float32), field_of_view=(18, 24, 3), position=(30.0, 4.4, 23.0 + 18)
    )
    got = talk(address, *messages, shifted, pack_close())
    assert any("shifted" in t for t in texts(got)) and len(images(got)) == 7


BOMB = (
    '<?xml version="1.0"?><!DOCTYPE m [<!ENTITY a "aaaaaaaaaa">'
    + "".join(f'<!ENTITY a{n} "{"&a" + str(n - 1) * (n > 0) + ";"}">' for n in range(1, 9))
    + "]><ismrmrdMeta><meta><name>&a8;</name></meta></ismrmrdMeta>"
)


SMALL = np.ones((1, 4, 4), np.uint16)
LATIN = pack_text(5, "é").replace("é".encode(), b"\xe9\xe9")


@pytest.mark.parametrize(
    ("bytes_sent", "word"),
    [
        (pack_text(3, "x")[:2] + b"\xff\xff\xff\xff", "4294967295"),
        (pack_image(SMALL)[:200] + b"\xff" * 8, "attribute text"),
        (pack_image(SMALL, matrix_size=(65535, 65535, 65535)), "--max-message"),
    ],
)
def test_where_the_stream_is_broken_what_came_before_has_gone_back(address, bytes_sent, word):
    messages, _ = slices("spec")
    got = talk(address, messages[0], bytes_sent, b"x", messages[1], pack_close())
    errors = [t for t in texts(got) if t.startswith("ERROR")]
    assert any(word in error for error in errors)
    assert images(got)[0].raw == messages[0] and len(images(got)) == 1


@pytest.mark.parametrize(
    ("bytes_sent", "back", "word"),
    [
        (b"\xff\xff" + bytes(33), False, "Message 65535"),
        (b"\x07\x00\x04\x00\x00\x00abcd", False, "Message 7"),
        (pack_image(np.zeros((1, 0, 4), np.uint16)), True, "holds nothing"),
        (pack_image(np.zeros((1, 4, 4), np.uint16)[:0], channels=1), True, "holds nothing"),
        (pack_image(SMALL, attributes=BOMB), True, "document type"),
        (pack_image(SMALL, attributes="<a"), True, "not XML"),
        (pack_image(SMALL, attributes="undefined"), True, "not XML"),
        (pack_text(5, '{"position": "HFS"}'), False, "position"),
        (pack_text(2, '{"parameters": {"dtype": ["x"]}}'), False, "dtype"),
        (pack_text(5, '{"originals": 7}'), False, "originals"),
        (LATIN, False, ""),
        (pack_text(3, " " * (17 << 20)), False, "text of 17825792 bytes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read_is_left_out_and_all_images_come_back(address, bytes_sent, back, word):
    messages, _ = slices("spec")
    got = talk(address, *messages[:3], bytes_sent, *messages[3:], pack_close())
    sent = [*messages[:3], *([bytes_sent] if back else []), *messages[3:]]
    assert [m.raw for m in images(got)][: len(sent)] == sent
    assert len([m for m in images(got) if m.header.image_series_index == 2]) == 12
    errors = " ".join(t for t in texts(got) if t.startswith("ERROR"))
    assert (word in errors) if word else not errors


def test_a_volume_that_may_lack_an_image_that_cannot_be_read_says_so(address):
    messages, _ = slices("spec")
    got = talk(address, *messages[:5], pack_image(SMALL, attributes="<a"), pack_close())
    assert any(t.startswith("WARN") and "slices may be missing" in t for t in texts(got))
    results = [m for m in images(got) if m.header.image_series_index == 2]
    assert len(results) == 10 and all("slices may be missing" in m.attributes for m in results)


def test_an_image_of_an_unknown_type_goes_back_byte_by_byte(address):
    messages, _ = slices("spec")
    odd = pack_image(SMALL, data_type=9)
    with Client(address) as client:
        client.send(*messages[:3], odd, *messages[3:], pack_close())
        data = b""
        while chunk := client.socket.recv(1 << 20):
            data += chunk
    assert odd in data and data.endswith(pack_close()) and b"data type 9" in data
    assert all(message in data for message in messages)


@pytest.mark.parametrize("both", [False, True], ids=["one length", "both lengths"])
@pytest.mark.parametrize("place", [2, 5])
@pytest.mark.parametrize("longer", [-1, 50, 5000, 1 << 20, 1 << 26, 1 << 40])
def test_attributes_of_another_length_than_announced_cost_no_image(address, longer, place, both):
    """The header says it twice: if only one is wrong, the others are restored, and the result says so."""
    messages, _ = slices("spec")
    odd = pack_image(np.arange(360, dtype=np.float32).reshape(1, 20, 18), "<ismrmrdMeta></ismrmrdMeta>")
    length = 27 + longer
    short = struct.pack("<I", length % (1 << 32)) if both else odd[196:200]
    messages[place] = odd[:196] + short + struct.pack("<Q", length) + odd[208:]
    with Client(address) as client:
        client.send(*messages, pack_close())
        client.socket.shutdown(socket.SHUT_WR)
        data = b""
        while chunk := client.socket.recv(1 << 20):
            data += chunk
    assert all(message in data for message in messages) and data.endswith(pack_close())
    assert b"ERROR" in data
    restored = place == 5 and not both
    assert (b"could not be read" in data) >= restored and (data.count(b"UDEAN_SR") == 10) >= restored


def test_an_unknown_message_before_the_close_message_ends_nothing(address):
    messages, _ = slices("spec")
    got = talk(address, *messages, b"\xff\xff" + bytes(33), pack_close())
    assert len(images(got)) == 18


@pytest.mark.parametrize("odd", [b"\xff\xff" + bytes(33), b"\xff\xff" + bytes(20 << 20), None])
def test_images_that_come_long_after_an_unknown_message_come_back(address, odd):
    messages, _ = slices("spec")
    odd = pack_image(SMALL, data_type=9) if odd is None else odd
    with Client(address) as client:
        client.send(*messages[:3], odd)
        time.sleep(QUIET + 0.5)
        client.send(*messages[3:], pack_close())
        data = b""
        while chunk := client.socket.recv(1 << 20):
            data += chunk
    assert [data.count(message) for message in messages] == [1] * 6 and data.endswith(pack_close())
    assert (odd in data) == (odd[:2] != b"\xff\xff")


def test_an_unknown_message_with_nothing_behind_it_ends_in_time(address):
    messages, _ = slices("spec")
    with serving(limits=Limits(idle=QUIET + 0.5)) as server, Client(server.address) as client:
        client.send(messages[0], b"\xff\xff" + bytes(100))
        got = client.receive_all()
    assert [m.raw for m in images(got)] == messages[:1]
    assert "Message 65535" in texts(got)[-2] and "Nothing was received" in texts(got)[-1]


def test_what_came_before_a_broken_frame_reaches_a_client_that_sends_all_before_it_reads():
    image = pack_image(np.zeros((1, 500, 500), np.uint16))
    with serving() as server, Client(server.address) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        client.send(*[image] * 20, pack_text(3, "x")[:2] + b"\xff\xff\xff\xff")
        for _ in range(3):
            time.sleep(LINGER / 2)
            client.send(*[image] * 10)
        data = b""
        while chunk := client.socket.recv(1 << 20):
            data += chunk
    assert data.count(image) == 20 and data.endswith(pack_close())


def test_raw_data_passes(address):
    acquisition = ismrmrd.Acquisition.from_array(np.ones((3, 7), np.complex64), np.ones((7, 2), np.float32))
    messages, _ = slices("spec")
    raw = struct.pack("<H", 1008) + acquisition.to_bytes()
    with Client(address) as client:
        client.send(*messages[:3], raw, *messages[3:], pack_close())
        data = b""
        while chunk := client.socket.recv(1 << 20):
            data += chunk
    assert raw in data and b"ERROR" not in data and all(message in data for message in messages)


def test_what_is_too_large_to_keep_passes_through():
    messages, _ = slices("spec", dtype=np.uint16)
    big = pack_image(np.ones((1, 300, 300), np.uint16), "<ismrmrdMeta/>")
    for limits in (Limits(message=10_000), Limits(memory=150_000, idle=0.5)):
        with serving(limits=limits) as server:
            got = talk(server.address, *messages[:3], big, *messages[3:], pack_close())
        assert [m.raw for m in images(got)][:7] == [*messages[:3], big, *messages[3:]]
        assert any("passed on unchanged" in t for t in texts(got))


def test_attributes_too_large_to_keep_pass_with_their_image(address):
    messages, _ = slices("spec")
    big = pack_image(SMALL, " " * (17 << 20))
    with Client(address) as client:
        sender = threading.Thread(target=client.send, args=(*messages[:3], big, *messages[3:], pack_close()))
        sender.start()
        got = client.receive_all()
        sender.join()
    assert [m.raw for m in images(got)][:7] == [*messages[:3], big, *messages[3:]] and len(images(got)) == 19
    assert any("attribute text of an image has 17825792 bytes" in t for t in texts(got))


def test_originals_that_nobody_asked_for_come_back_where_nothing_replaces_them(address):
    messages, _ = slices("spec")
    alone, _ = slices("spec", shape=(1, 10, 10), image_series_index=5)
    switch = pack_text(5, '{"originals": false}')
    got = images(talk(address, switch, *messages[:2], *messages[3:], *alone, pack_close()))
    assert [m.raw for m in got] == [*messages[:2], *messages[3:], *alone]
    with Client(address) as client:  # and where the stream breaks off
        client.send(switch, *messages[:2], messages[2][:90])
        client.socket.shutdown(socket.SHUT_WR)
        got = client.receive_all()
    assert [m.raw for m in images(got)] == messages[:2]


def test_a_single_slice_is_left(address):
    messages, _ = slices("spec", shape=(1, 20, 18))
    got = talk(address, *messages, pack_close())
    assert [m.raw for m in images(got)] == messages and any("single slice" in t for t in texts(got))


def test_sr_series_have_an_identity_of_their_own_and_always_the_same(address):
    header = {
        "00080018": {"vr": "UI", "Value": ["1.2.3.4"]},
        "0020000E": {"vr": "UI", "Value": ["1.2.3"]},
        "00080008": {"vr": "CS", "Value": ["ORIGINAL", "PRIMARY", "M", "ND"]},
        "00100020": {"vr": "LO", "Value": ["77"]},
        "00201041": {"vr": "DS", "Value": [5.0]},
    }
    given = ismrmrd.Meta(
        {
            "SeriesInstanceUID": "1.2.3", "SOPInstanceUID": "1.2.3.4", "IceMiniHead": "AAAA", "SliceNo": "7",
            "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"], "AnatomicalSliceNo": "7", "EchoTime": "12",
            "DicomImageType": "ORIGINAL\\PRIMARY\\M\\NONE",
            "DicomJson": base64.b64encode(json.dumps(header).encode()).decode(),
        }
    ).serialize()  # fmt: skip

    def made(**options):
        messages, _ = slices("spec", attributes=given, dtype=np.uint16, **options)
        return originals_and_sr(talk(address, *messages, pack_close()))[1]

    first, again, other = made(), made(), made(contrast=3)
    for number, image in enumerate(first):
        marks = meta(image)
        fields = json.loads(base64.b64decode(marks["DicomJson"][0]))
        assert marks["ImageType"] == ["DERIVED", "SECONDARY", "M", "ND"] == fields["00080008"]["Value"]
        assert marks["DicomImageType"] == ["DERIVED\\SECONDARY\\M\\NONE"]
        assert fields["00080018"]["Value"] == marks["SOPInstanceUID"] != ["1.2.3.4"]
        assert fields["0020000E"]["Value"] == marks["SeriesInstanceUID"] != ["1.2.3"]
        assert marks["SliceNo"] == [str(number)] and not {"IceMiniHead", "AnatomicalSliceNo"} & set(marks)
        assert (
            marks["EchoTime"] == ["12"] and fields["00100020"]["Value"] == ["77"] and "00201041" not in fields
        )
    uids = [
        [(meta(m)["SeriesInstanceUID"][0], meta(m)["SOPInstanceUID"][0]) for m in x]
        for x in (first, again, other)
    ]
    assert uids[0] == uids[1] and len({sop for _, sop in uids[0]}) == 12 and len({s for s, _ in uids[0]}) == 1
    assert not {sop for _, sop in uids[0]} & {sop for _, sop in uids[2]} and uids[0][0][0] != uids[2][0][0]
    damaged = slices("spec", attributes=given.replace("AAAA", "BBBB").replace("ey", "!!"))[0]
    assert len(originals_and_sr(talk(address, *damaged, pack_close()))[1]) == 12


@pytest.mark.parametrize("cut", [1, 100, 206, -1])
def test_a_truncated_stream_restores_nothing(address, cut):
    messages, _ = slices("spec")
    with Client(address) as client:
        client.send(*messages[:-1], messages[-1][:cut])
        client.socket.shutdown(socket.SHUT_WR)
        got = []
        while (message := client.receive()).kind != 4:
            got.append(message)
    assert [m.raw for m in images(got)] == messages[:-1]
    assert "The stream ended" in texts(got)[-1]


def test_a_stream_without_its_close_message_restores_nothing(address):
    messages, _ = slices("spec")
    with Client(address) as client:
        client.send(*messages)
        client.socket.shutdown(socket.SHUT_WR)
        got = []
        while (message := client.receive()).kind != 4:
            got.append(message)
    assert len(images(got)) == len(messages) and "without a close message" in texts(got)[-1]


@pytest.mark.parametrize("end", [b"", pack_close()])
def test_images_behind_the_close_message_come_back_and_it_is_said(address, end):
    messages, _ = slices("spec")
    late = [*slices("spec", image_series_index=7)[0][:2], pack_waveform(np.zeros((2, 3)))]
    got = talk(address, b"".join([*messages, pack_close(), *late, pack_text(5, "{}"), end]))
    originals, sr = originals_and_sr([m for m in got if m.kind != 1022 or m.header.image_series_index != 7])
    assert [m.raw for m in originals] == messages and len(sr) == 12
    assert [m.raw for m in got if m.raw in late] == late and got[-1].text.startswith(
        "ERROR   3 messages after"
    )


def test_half_a_message_behind_the_close_message_delays_nothing_for_long(address, monkeypatch):
    monkeypatch.setattr("udean.runtime.mrd.connection.LINGER", 0.3)
    messages, _ = slices("spec")
    got = talk(address, b"".join([*messages, pack_close(), messages[0][:300]]))  # its limit is 600 s
    assert len(images(got)) == 18 and "Nothing was received" in got[-1].text


def test_what_comes_behind_the_servers_own_close_message_is_in_its_log(address, capsys):
    messages, _ = slices("spec")
    with Client(address) as client:
        client.send(*messages, pack_close())
        while client.receive().kind != 4:
            pass
        client.send(messages[0] + messages[1])
    log, deadline = "", time.monotonic() + 30
    while '"unread"' not in log and time.monotonic() < deadline:
        log += capsys.readouterr().err
        time.sleep(0.05)
    assert f'"bytes": {len(messages[0] + messages[1])}' in log


def test_parameters_hold_for_their_connection_only(address):
    messages, _ = slices("first-voxel", dtype=np.uint16)
    config = (
        '{"parameters": {"config": "evil", "position": "first-voxel", "dtype": "float32", "engine": "/x"}}'
    )
    _, sr = originals_and_sr(talk(address, pack_text(5, config), *messages, pack_close()))
    assert {m.pixels.dtype.name for m in sr} == {"float32"}
    inner = np.s_[:, 2:-3, 2:-3]
    np.testing.assert_allclose(
        sr[3].pixels[0][inner], phantom(places_of(sr[3], "first-voxel"))[inner], atol=1.5
    )
    _, sr = originals_and_sr(talk(address, *slices("spec", dtype=np.uint16)[0], pack_close()))
    assert {m.pixels.dtype.name for m in sr} == {"uint16"}


def test_a_client_may_send_everything_before_it_reads_anything():
    messages = [
        pack_image(np.zeros((1, 512, 512), np.float64), field_of_view=(9, 9, 1), position=(0, 0, n))
        for n in range(30)
    ]
    with serving(scale=(1, 1, 1), network=lambda x: x) as server:
        got = talk(server.address, *messages, pack_close())  # 60 MB, more than sockets hold
    assert len(images(got)) == 60


def test_one_byte_a_second_ends_in_time_while_others_are_served():
    with serving(limits=Limits(total=3.0, idle=1.5)) as server, Client(server.address) as slow:
        trickle = iter(pack_image(np.ones((1, 9, 9), np.uint16)))
        for _ in range(4):
            slow.send(bytes([next(trickle)]))
            time.sleep(0.2)
        with Client(server.address) as silent:
            others = talk(server.address, *slices("spec")[0], pack_close())
            assert len(images(others)) == 18
            assert "Nothing was received" in texts(silent.receive_all())[-1]
        with contextlib.suppress(OSError):
            for _ in range(15):
                slow.send(bytes([next(trickle)]))
                time.sleep(0.2)
        assert "ERROR" in texts(slow.receive_all())[-1]


def test_fifty_clients_at_once_some_of_which_vanish():
    messages, _ = slices("spec", shape=(3, 10, 10))
    results, failures = [], []

    def client(n, address):
        try:
            if n % 5 == 4:  # gone in the middle of an image
                with Client(address) as vanishing:
                    vanishing.send(messages[0], messages[1][:300])
                return
            results.append(len(images(talk(address, *messages, pack_close()))))
        except Exception as error:
            failures.append(error)

    with serving(limits=Limits(connections=50)) as server:
        threads = [threading.Thread(target=client, args=(n, server.address)) for n in range(50)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == [] and results == [9] * 40
        assert len(images(talk(server.address, *messages, pack_close()))) == 9


def test_a_full_server_says_so_and_gives_all_images_back():
    messages, _ = slices("spec")
    with serving(limits=Limits(connections=1)) as server, Client(server.address) as first:
        assert "research only" in first.receive().text
        got = talk(server.address, *messages, pack_waveform(np.zeros((2, 3))), pack_close())
        assert "as many clients" in texts(got)[0] and [m.raw for m in images(got)] == messages
        assert [m.kind for m in got][-1] == 1026
        deadline = time.monotonic() + 10
        while server.held and time.monotonic() < deadline:
            time.sleep(0.05)
        assert server.held == 0
        first.send(pack_close())
        first.receive_all()


@pytest.mark.parametrize("which", ["mrd-reader", "mrd-writer"])
def test_a_client_for_whom_there_is_no_thread_is_turned_away_alone(monkeypatch, which):
    start, failed = threading.Thread.start, []

    def refuse(thread):
        if thread.name == which and not failed:
            failed.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    with serving() as server:
        monkeypatch.setattr(threading.Thread, "start", refuse)
        with socket.create_connection(server.address, 10) as link:
            assert link.recv(1) == b"" and failed
        replies = talk(server.address, *slices("spec")[0], pack_close())
        assert len(images(replies)) == 6 + 12


def test_memory_is_bounded_for_all_together():
    big = pack_image(np.zeros((2, 300, 150), np.uint16), field_of_view=(1, 1, 1))
    with serving(limits=Limits(memory=200_000, idle=0.5)) as server:
        with Client(server.address) as holder:
            holder.send(big)
            while holder.receive().kind != 1022:
                pass
            assert 180_000 <= server.held <= 200_000
            got = talk(server.address, big, pack_close())
            assert "no memory left" in texts(got)[-1] and [m.raw for m in images(got)] == [big]
        assert "in all" in texts(talk(server.address, big, pack_close()))[-1]  # the SR volume's share
        huge = pack_image(np.zeros((1, 400, 400), np.uint16))
        assert "200000" in texts(talk(server.address, huge, pack_close()))[-1]


def test_a_stop_lets_clients_finish_or_tells_them():
    with serving() as server, Client(server.address) as slow:
        assert "research only" in slow.receive().text
        stopping = threading.Thread(target=server.stop, args=(0.5,))
        stopping.start()
        assert "stops" in texts(slow.receive_all())[-1]
        stopping.join()
        with pytest.raises(OSError):
            Client(server.address).receive()


def test_a_client_that_leaves_frees_the_network_for_others():
    begun, go = threading.Event(), threading.Event()

    def network(windows):
        begun.set()
        go.wait(30)
        return interpolation((2, 2, 2), "fft")(windows)

    messages, _ = slices("spec", shape=(3, 64, 64))
    with serving(network=network) as server:
        with Client(server.address) as leaving:
            leaving.send(*messages, pack_close())
            assert begun.wait(30)
            leaving.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
        go.set()
        assert len(images(talk(server.address, *messages, pack_close()))) == 9
        for _ in range(3000):
            if 'outcome="gone"' in server.metrics.render():
                return
            time.sleep(0.01)
        raise AssertionError("the client that left is still there")


def test_health_and_metrics(server, address):
    watcher = serve_metrics(0, server.metrics, lambda: server.ready, "test")
    url = f"http://127.0.0.1:{watcher.server_address[1]}"
    try:
        talk(address, *slices("spec")[0], pack_close())
        assert urllib.request.urlopen(f"{url}/health").read() == b"ok test\n"
        metrics = urllib.request.urlopen(f"{url}/metrics").read().decode()
        assert 'udean_volumes_total{outcome="restored"}' in metrics and "udean_held_bytes " in metrics
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{url}/etc/passwd")
    finally:
        watcher.shutdown()
        watcher.server_close()
