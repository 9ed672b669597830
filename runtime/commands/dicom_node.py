"""The command `udean-dicom-node`: a storage node that restores MR series and sends them on."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..dicom.node import Node, NodeSettings
from ..dicom.send import Peer
from ..dicom.spool import Spool
from ..resolver import SuperResolver
from ..system.metrics import serve_metrics
from . import options
from .common import command, on_stop
from .streams import say

GIB = 1 << 30

Where = Annotated[Path, typer.Option("--spool", help="The node's spool.")]
Names = Annotated[list[str], typer.Argument(help="Names as `queue` lists them.", metavar="NAME…")]


def serve(
    to: Annotated[str, typer.Option(help="Where SR series go: AET@host:port.")],
    allow: Annotated[list[str], typer.Option(help="Title of a caller that may send; can be repeated.")],
    spool: Annotated[Path, typer.Option(help="Folder for series in transit; nobody else may read it.")],
    title: Annotated[str, typer.Option(help="This node's title; callers must name it.")] = "UDEAN",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 takes a free one.")] = 11112,
    quiet: Annotated[
        float,
        typer.Option(min=0.1, help="Seconds after its association's release until a series is finished."),
    ] = 15,
    abandoned: Annotated[
        float,
        typer.Option(min=0.1, help="The same if the sender broke off; its series then say so."),
    ] = 3600,
    retry: Annotated[
        float, typer.Option(min=0.1, help="Seconds to the second attempt to send; later ones wait longer.")
    ] = 30,
    idle_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds without a byte that end an association.")
    ] = 600,
    max_associations: Annotated[int, typer.Option(min=1, help="Senders served at once.")] = 64,
    max_associations_per_peer: Annotated[
        int, typer.Option(min=1, help="Senders served at once from one address.")
    ] = 32,
    max_quarantine: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="GiB of series set aside, beyond which the oldest is removed and logged; default: never.",
        ),
    ] = None,
    metrics_port: Annotated[
        int,
        typer.Option(
            min=0, max=65535, help="TCP port of /health and /metrics, on loopback; 0 takes a free one."
        ),
    ] = 0,
    tls_certificate: Annotated[
        Path | None, typer.Option(help="This node's certificate (PEM); turns TLS on in both directions.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="The certificate's private key (PEM).")] = None,
    tls_authority: Annotated[
        Path | None, typer.Option(help="Authority of peers' certificates (PEM), which are then required.")
    ] = None,
    tls_listen: Annotated[
        bool | None, typer.Option("--tls-listen/--no-tls-listen", help="TLS from senders.")
    ] = None,
    tls_send: Annotated[
        bool | None, typer.Option("--tls-send/--no-tls-send", help="TLS to the destination.")
    ] = None,
    engine: options.ModelOption = None,
    library: options.LibraryOption = "auto",
    device: options.Device = "auto",
    precision: options.PrecisionOption = "auto",
    threads: options.Threads = None,
    consistency: options.ConsistencyOption = "auto",
    best: options.Best = False,
    spacing: Annotated[
        str | None,
        typer.Option(
            help="Target voxel size: 1mm, 1x1x2mm or iso, as in `udean-run --to`; for thick slices."
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict", help="Set aside series outside the model's range instead of only warning."),
    ] = False,
    debug: options.Debug = False,
) -> None:
    """Restore MR series that arrive, and send the results on. Research only, not for diagnosis."""
    warnings.simplefilter("ignore")  # pydicom's warnings quote values
    for name in ("pydicom", "pynetdicom"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    me, both = Peer(title, host, port), tls_certificate is not None
    listening, sending = (both if given is None else given for given in (tls_listen, tls_send))
    if listening and not both:
        raise typer.BadParameter("TLS from senders needs a certificate.", param_hint="--tls-listen")
    if (tls_certificate or tls_key or tls_authority) and not (listening or sending):
        raise typer.BadParameter(
            "TLS is off in both directions: give one, or --tls-send for the destination alone.",
            param_hint="--tls-certificate",
        )
    if tls_key and not both:
        raise typer.BadParameter("A key needs its certificate, --tls-certificate.", param_hint="--tls-key")
    settings = NodeSettings(
        me,
        Peer.parse(to),
        tuple(allow),
        spool,
        quiet,
        retry,
        abandoned,
        idle_timeout,
        max_associations,
        max_associations_per_peer,
        tls_certificate,
        tls_key,
        tls_authority,
        listening,
        sending,
        None if max_quarantine is None else round(max_quarantine * GIB),
    )
    held = options.consistency(consistency)
    with SuperResolver(
        engine,
        device,
        precision,
        threads=threads,
        library=library,
        consistency=held,
        best=best,
        to=spacing,
        strict=strict,
    ) as resolve:
        node = Node(resolve, settings)
        on_stop(node.stop)
        about = f"{resolve.card.name}: {resolve.engine.info}"
        watcher = serve_metrics(metrics_port, node.metrics, lambda: node.ready, about)
        print(f"Model {resolve.describe()}")
        print(f"Listening on {node.address[0]}:{node.address[1]} as {title}", flush=True)
        print(f"Health and metrics on 127.0.0.1:{watcher.server_address[1]}", flush=True)
        node.run()
        watcher.shutdown()


def queue(spool: Where) -> None:
    """List series in transit, and those set aside with the reason."""
    state = _existing(spool)
    for place, count in state.waiting().items():
        say(f"{count} in {place}")
    for entry in state.aside():
        size = f"{entry.slices} slices, {entry.size / 1e6:.1f} MB, since {entry.since}"
        say(f"{entry.name}  {size}: {entry.reason}")


def retry(names: Names, spool: Where) -> None:
    """Put set-aside series back, to be restored and sent again."""
    for name in names:
        _existing(spool).retry(name)


def drop(names: Names, spool: Where) -> None:
    """Remove set-aside series permanently."""
    for name in names:
        _existing(spool).drop(name)


def _existing(spool: Path) -> Spool:
    if not (spool / "quarantine").is_dir():
        raise typer.BadParameter(f"{spool} is not a node's spool.", param_hint="--spool")
    return Spool(spool)


NAME, SPOOL = "udean-dicom-node", "--spool /var/spool/udean"
serving = command(
    serve,
    NAME,
    f"{NAME} --to PACS@10.0.0.5:104 --allow SCANNER {SPOOL}",
    f"{NAME} queue {SPOOL}",
    f"{NAME} retry NAME {SPOOL}",
    f"{NAME} drop NAME {SPOOL}",
    extra="dicom",
    note="queue, retry and drop list, put back and remove series that were set aside.",
)
OPERATIONS = {
    "queue": command(queue, f"{NAME} queue", f"{NAME} queue {SPOOL}"),
    "retry": command(retry, f"{NAME} retry", f"{NAME} retry NAME {SPOOL}"),
    "drop": command(drop, f"{NAME} drop", f"{NAME} drop NAME {SPOOL}"),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the node, or the subcommand that the first argument names."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    operation = OPERATIONS.get(given[0]) if given else None
    if operation:
        operation(given[1:])
    else:
        serving(given)


if __name__ == "__main__":
    main()
