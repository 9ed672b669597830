"""The soak tests, run for a moment, and that they notice faults."""

import random
import shutil

import pytest

from . import dicom_node, mrd_server

ORTHANC = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")


@pytest.mark.skipif(not ORTHANC, reason="Orthanc is not installed")
def test_every_image_reaches_the_archive_once_whatever_befalls_node_and_archive(tmp_path):
    figures = dicom_node.soak(studies=4, senders=3, accidents=4, folder=tmp_path, pause=1.0)
    assert not [name for name in dicom_node.BAD if figures[name]], figures
    assert figures["SR images at the archive"] == figures["SR images wanted"] >= 2 * 3 * 4
    assert figures["accidents: node killed"] and figures["accidents: archive killed"]


def test_the_scanners_images_come_back_from_damaged_streams():
    figures = mrd_server.soak(messages=3000, clients=6, seconds=20)
    assert not [name for name in mrd_server.BAD if figures[name]], figures
    assert figures["damaged"] > 100 < figures["images that came back"]


def test_a_missing_a_wrong_and_a_doubled_image_are_each_seen():
    wanted = {"1": "head", "2": "knee", "3": "hip", "4": "hand"}
    found = {"1": ["head"], "2": ["head"], "3": ["hip", "hip"], "5": ["foot"]}
    assert list(dicom_node.compared(wanted, found).values()) == [1, 2, 1]


def test_images_that_are_lost_doubled_or_out_of_order_are_each_seen():
    sent = mrd_server.stream(random.Random(0), 0)
    one, two, *_ = sent.images
    assert mrd_server.lost([one, two], b"text" + one + two) == 0
    assert mrd_server.lost([one, two, two], one + two) == 1
    assert mrd_server.lost([one, two], two + one) == 1
    assert mrd_server.lost([one], one[:-1]) == 1
