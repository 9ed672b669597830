"""The command `udean-dicom-node`: a storage node that restores MR series and sends them on."""

from __future__ import annotations

import logging
import signal
import warnings
from pathlib import Path
from typing import Annotated

import typer

from ..dicom.node import Node, Peer, Settings
from ..resolver import SuperResolver
from . import options
from .common import command


def serve(
    to: Annotated[str, typer.Option(help="Where SR series go: AET@host:port.")],
    allow: Annotated[list[str], typer.Option(help="Title of a caller that may send; can be repeated.")],
    spool: Annotated[Path, typer.Option(help="Folder for series on their way; nobody else may read it.")],
    title: Annotated[str, typer.Option(help="This node's title; callers must name it.")] = "UDEAN",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 takes a free one.")] = 11112,
    quiet: Annotated[
        float, typer.Option(min=0.1, help="Seconds without a slice after which a series is finished.")
    ] = 15,
    retry: Annotated[float, typer.Option(min=0.1, help="Seconds between attempts to send.")] = 30,
    tls_certificate: Annotated[Path | None, typer.Option(help="PEM; turns TLS on, both ways.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM, of the certificate.")] = None,
    tls_authority: Annotated[
        Path | None, typer.Option(help="PEM, of peers' certificates, which are then required.")
    ] = None,
    engine: options.Model = None,
    library: options.Library = "auto",
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    threads: options.Threads = None,
    consistency: options.Consistency = "auto",
    debug: options.Debug = False,
) -> None:
    """Restore MR series that arrive, and send the results on. Research only, not for diagnosis."""
    warnings.simplefilter("ignore")  # pydicom's quote values
    for name in ("pydicom", "pynetdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    me = Peer(title, host, port)
    settings = Settings(
        me, Peer.parse(to), tuple(allow), spool, quiet, retry, tls_certificate, tls_key, tls_authority
    )
    held = options.consistency(consistency)
    with SuperResolver(
        engine, device, precision, threads=threads, library=library, consistency=held
    ) as resolve:
        node = Node(resolve, settings)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: node.stop())
        print(f"Model {resolve.describe()}")
        print(f"Listening on {node.address[0]}:{node.address[1]} as {title}", flush=True)
        node.run()


main = command(
    serve,
    "udean-dicom-node",
    "udean-dicom-node --to PACS@10.0.0.5:104 --allow SCANNER --spool /var/spool/udean",
    extra="dicom",
)

if __name__ == "__main__":
    main()
