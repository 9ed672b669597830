"""A Gadgetron module that restores images: it passes them to `udean-serve`, and on what comes back.

In a Gadgetron configuration, behind the gadgets that make images (see deploy/README.md):

    <external>
        <execute name="udean_gadget" target="super_resolve" type="python"/>
        <configuration/>
    </external>

UDEAN_SERVER is the server's address, by default 127.0.0.1:9002. Originals, SR series, refusals and limits are
the server's; its texts go to Gadgetron's log. Without the server only the originals are passed on. Raw data
and waveforms pass by.
"""

import logging
import os
import socket
import struct

import ismrmrd
from gadgetron.external import constants, readers, writers
from gadgetron.external.connection import Connection


def super_resolve(connection: Connection) -> None:
    """Send all images to the server, then pass on what it answers."""
    host, _, port = os.environ.get("UDEAN_SERVER", "127.0.0.1:9002").rpartition(":")
    connection.filter(ismrmrd.Image)
    incoming, images, back = iter(connection), [], 0
    identifier, close = constants.GadgetMessageIdentifier, constants.GADGET_MESSAGE_CLOSE
    try:
        with socket.create_connection((host, int(port)), 30) as link, link.makefile("rwb") as server:
            link.settimeout(None)
            server.write(struct.pack("<H1024s", constants.GADGET_MESSAGE_FILENAME, b"udean"))
            header = connection.raw_bytes.header  # how many slices and repetitions there are to be
            server.write(struct.pack("<HI", constants.GADGET_MESSAGE_HEADER, len(header)) + header)
            for image in incoming:
                images.append(image)
                writers.write_image(server, image)
            server.write(identifier.pack(close))
            server.flush()
            while (kind := readers.read(server, identifier)) != close:
                if kind == constants.GADGET_MESSAGE_TEXT:
                    logging.info("%s", readers.read_byte_string(server).decode())
                else:
                    connection.send(readers.read_image(server))
                    back += 1
    except (OSError, struct.error, ValueError) as error:
        logging.error("udean-serve does not answer properly (%s): only the originals are passed on.", error)
        for image in [*images[back:], *incoming]:
            connection.send(image)
