"""The MRD parser: whatever the bytes are, a message or a sentence, and no memory that was not claimed.

UDEAN_FUZZ=1000000 runs the long fuzz.
"""

import math
import os
import time
from concurrent.futures import ThreadPoolExecutor

import ismrmrd
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from udean.runtime import RunError
from udean.runtime.mrd import messages as mrd
from udean.runtime.mrd import stacks
from udean.runtime.mrd.limits import Limits

from ...support.fakes import card
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
from .test_server import meta, serving

LIMIT = 1 << 16
FUZZ = int(os.environ.get("UDEAN_FUZZ", "20000"))


def reader(data):
    """A stream of these bytes."""
    view = memoryview(data)

    def read(size):
        nonlocal view
        if size > len(view):
            raise mrd.EndOfStream("end")
        part, view = view[:size], view[size:]
        return bytearray(part)

    return read


def parse(data, limit=LIMIT):
    """All messages of a stream, until it ends or is refused; and the bytes claimed for each."""
    read, messages = reader(data), []
    try:
        while True:
            claims = []
            messages.append((mrd.read_message(read, limit, claims.append), claims))
    except RunError:
        return messages


IMAGE = pack_image(
    np.arange(24, dtype=np.uint16).reshape(2, 3, 4),
    "<ismrmrdMeta><meta><name>a</name><value>b&amp;c</value></meta></ismrmrdMeta>",
)
SEEDS = [
    IMAGE,
    pack_image(np.ones((1, 2, 2), np.complex64), image_type=5),
    pack_waveform(np.ones((2, 3), np.uint32)),
    pack_config("x") + pack_text(2, "<a/>") + pack_text(3, "<a/>"),
    pack_text(5, '{"parameters": {"position": "spec"}}') + pack_close() + IMAGE,
]


def test_every_mutation_is_a_message_or_a_sentence():
    random = np.random.default_rng(int(os.environ.get("UDEAN_FUZZ_SEED", "0")))
    interesting = np.array([0, 1, 2, 127, 128, 254, 255], np.uint8)
    refused = 0
    for _ in range(FUZZ):
        data = np.frombuffer(SEEDS[random.integers(len(SEEDS))], np.uint8).copy()
        for place in random.integers(len(data), size=random.integers(1, 6)):
            data[place] = interesting[random.integers(7)] if random.random() < 0.5 else random.integers(256)
        if random.random() < 0.3:
            start, stop = sorted(random.integers(len(data), size=2))
            data = np.delete(data, np.s_[start:stop])
        messages = parse(data.tobytes())
        refused += not messages
        for message, claims in messages:
            if isinstance(message, mrd.Image):
                assert message.pixels.nbytes + len(message.attributes) <= sum(claims)
                assert message.pixels.nbytes <= LIMIT
            elif isinstance(message, mrd.Passed):
                assert len(message.content) - 340 <= sum(claims) <= LIMIT + mrd.OVERHEAD
    assert 0 < refused < FUZZ


def test_every_header_makes_a_stack_or_a_sentence():
    random = np.random.default_rng(3)
    pixels = np.ones((1, 4, 4), np.uint16)
    plain = [pack_image(pixels, field_of_view=(4, 4, 1), position=(0, 0, n)) for n in range(3)]
    model, made = card((2, 2, 2), 3, (8, 8)), 0
    for _ in range(FUZZ // 40):
        stream = [bytearray(message) for message in plain]
        for message in stream:
            for place in 2 + random.integers(198, size=random.integers(0, 3)):
                message[place] = random.integers(256)
        images = [m for message in stream for m, _ in parse(message) if isinstance(m, mrd.Image)]
        with np.errstate(all="ignore"):
            for group in stacks.group(filter(stacks.is_resolvable, images)):
                try:
                    stack = stacks.stack(group, "spec")
                    grid = stack.fine_grid(model)
                    place = stacks.Place(7, 1, "1.2")
                    volume = np.ones(grid.shape, np.float32)
                    found = stacks.fine_images(stack, volume, grid, model, "spec", place, "test")
                except RunError:
                    continue
                made += 1
                assert sum(image.pixels.size for image in found) == math.prod(grid.shape)
    assert made


@given(st.binary(max_size=600))
def test_any_bytes_are_a_message_or_a_sentence(data):
    parse(data)
    parse(IMAGE[:2] + data)


@given(
    st.dictionaries(
        st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cn"]), min_size=1),
        st.lists(
            st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cn"])), min_size=1, max_size=3
        ),
    )
)
def test_attributes_are_read_as_they_were_written(attributes):
    assert mrd.read_attributes(mrd.write_attributes(attributes)) == attributes


def test_attributes_read_as_the_ismrmrd_package_writes_them():
    meta = ismrmrd.Meta({"one": "a<b", "many": ["1", "2"]})
    assert mrd.read_attributes(meta.serialize().encode()) == {"one": ["a<b"], "many": ["1", "2"]}
    written = mrd.write_attributes({"one": ["a<b"], "many": ["1", "2"]})
    assert ismrmrd.Meta.deserialize(written.decode()) == meta


@pytest.mark.parametrize("message", SEEDS[:3])
def test_what_is_kept_is_sent_as_it_came(message):
    ((parsed, _),) = parse(message)
    assert b"".join(parsed.parts()) == message


def test_the_header_is_that_of_the_ismrmrd_package():
    theirs = ismrmrd.ImageHeader
    assert mrd.HEADER_DTYPE.itemsize == 198
    offsets = {name: offset for name, (_, offset, *_) in mrd.HEADER_DTYPE.fields.items()}
    assert offsets == {name: getattr(theirs, name).offset for name, _ in theirs._fields_}


def planes(count=4, attributes="", start=0.0, **fields):
    """Image messages of an upright stack."""
    fields = {"field_of_view": (10, 12, 3)} | fields
    pixels = np.arange(120, dtype=np.uint16).reshape(1, 12, 10)
    return [
        pack_image(pixels + n, attributes, slice=n, **({"position": (0, 0, start + 3 * n)} | fields))
        for n in range(count)
    ]


def sr_of(messages):
    """The SR images among answers to images of series 1."""
    return [image for image in images(messages) if image.header.image_series_index != 1]


def test_image_indices_count_on_through_an_sr_series():
    block = np.arange(480, dtype=np.int16).reshape(4, 12, 10)
    volumes = [pack_image(block, field_of_view=(10, 12, 12), repetition=n) for n in range(3)]
    with serving() as server:
        contrasts = sr_of(talk(server.address, *planes(contrast=0), *planes(contrast=1), pack_close()))
        repetitions = sr_of(talk(server.address, *volumes, pack_close()))
    for found, count in ((contrasts, 16), (repetitions, 3)):
        assert {image.header.image_series_index for image in found} == {2}
        assert [image.header.image_index for image in found] == list(range(1, count + 1))


def test_a_full_sr_series_is_followed_by_another():
    model = card((2, 2, 2), 3, (8, 8))
    pair = [
        pack_image(np.ones((1, 4, 4), np.uint16), field_of_view=(4, 4, 1), position=(0, 0, n)) for n in (0, 1)
    ]
    pair = [parse(message)[0][0] for message in pair]
    numbers, source = stacks.SeriesNumbers(pair), stacks.stack(tuple(pair), "spec")
    grid = source.fine_grid(model)
    found = [numbers.of(source, grid) for _ in range(stacks.LIMIT // 4 + 1)]
    assert [(place.series, place.first) for place in found[-2:]] == [(2, stacks.LIMIT // 4 * 4 - 3), (3, 1)]
    assert found[-2].uid != found[-1].uid


def test_what_attributes_say_of_earlier_processing_stays():
    given = ismrmrd.Meta(
        {
            "ImageProcessingHistory": ["FIRE", "Distortion"],
            "SequenceDescriptionAdditional": "DIXON_W",
            "ImageComments": "water",
            "DerivationDescription": "Distortion corrected",
        }
    )
    with serving() as server:
        found = sr_of(talk(server.address, *planes(attributes=given.serialize()), pack_close()))
    assert len(found) == 8
    for marks in map(meta, found):
        assert marks["ImageProcessingHistory"][:3] == ["FIRE", "Distortion", "UDEAN"]
        assert marks["SequenceDescriptionAdditional"] == ["DIXON_W_UDEAN_SR"]
        for name, start in (
            ("ImageComments", "water; "),
            ("DerivationDescription", "Distortion corrected; "),
        ):
            (value,) = marks[name]
            assert value.startswith(start + "Super-resolution")


def test_measurements_are_volumes_of_their_own():
    sent = [*planes(measurement_uid=1), *planes(measurement_uid=2, start=12.0)]
    with serving() as server:
        got = talk(server.address, *sent, pack_close())
    assert sum("restored to 20 x 24 x 8" in line for line in texts(got)) == 2
    assert [image.header.measurement_uid for image in sr_of(got)] == [1] * 8 + [2] * 8


def test_planes_of_a_localizer_are_volumes_of_their_own():
    x, y, z = np.eye(3)
    axial = planes(1, read_dir=x, phase_dir=y, slice_dir=z)
    sagittal = planes(1, read_dir=y, phase_dir=z, slice_dir=x)
    coronal = planes(1, read_dir=x, phase_dir=z, slice_dir=-y)
    with serving() as server:
        got = talk(server.address, *axial, *sagittal, *coronal, pack_close())
    assert sum("single slice" in line for line in texts(got)) == 3  # each by itself, none restored
    assert [image.raw for image in images(got)] == [*axial, *sagittal, *coronal]


def test_of_two_clients_that_wait_for_one_another_one_is_served():
    def client(address):
        first, second = planes(2)
        with Client(address) as client:
            client.send(first)
            while client.receive().kind != 1022:
                pass
            time.sleep(0.5)  # both hold memory now
            client.send(second, pack_close())
            return client.receive_all()

    start = time.monotonic()
    with serving(limits=Limits(memory=14_000, idle=30)) as server, ThreadPoolExecutor(2) as pool:
        found = list(pool.map(client, [server.address] * 2))
    assert sorted(len(sr_of(got)) for got in found) == [0, 4] and time.monotonic() - start < 20
    assert sum("no memory left" in line for got in found for line in texts(got)) == 1
