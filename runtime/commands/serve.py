"""The command `udean-serve`: an MRD image-to-image server for scanner reconstruction."""

from __future__ import annotations

import threading
from typing import Annotated

import typer

from ..mrd.connection import Parameters
from ..mrd.limits import Limits
from ..mrd.server import Server
from ..mrd.stacks import Position
from ..resolver import Output, SuperResolver
from ..scan.regrid import Asked
from ..system.log import log
from ..system.metrics import serve_metrics
from . import options
from .common import command, on_stop

MIB = 1 << 20


def serve(
    engine: options.ModelOption = None,
    library: options.LibraryOption = "auto",
    device: options.Device = "auto",
    precision: options.PrecisionOption = "auto",
    threads: options.Threads = None,
    consistency: options.ConsistencyOption = "auto",
    best: options.Best = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0 takes a free one.")] = 9002,
    metrics_port: Annotated[
        int,
        typer.Option(min=0, max=65535, help="Port of /health and /metrics, on loopback; 0 takes a free one."),
    ] = 9003,
    position: Annotated[
        Position, typer.Option(help="Meaning of an image's position: its centre, or its first voxel.")
    ] = "spec",
    dtype: Annotated[Output, typer.Option(help="Data type of the SR images.")] = "input",
    to: Annotated[
        str, typer.Option(help="Voxel size of the SR images: 1mm, 1x1x2mm or iso; default: half the scan's.")
    ] = "",
    originals: Annotated[
        bool, typer.Option("--originals/--no-originals", help="Send the images back before the SR series.")
    ] = True,
    max_message: Annotated[int, typer.Option(min=1, help="Largest image, MiB.")] = 512,
    max_memory: Annotated[int, typer.Option(min=1, help="Memory for all clients together, MiB.")] = 4096,
    max_connections: Annotated[int, typer.Option(min=1, help="Clients served at once.")] = 16,
    idle_timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds without data after which a connection ends.")
    ] = 600,
    total_timeout: Annotated[
        float, typer.Option(min=0.1, help="Longest duration of a connection, seconds.")
    ] = 7200,
    grace: Annotated[
        float, typer.Option(min=0, help="Seconds for clients to finish when the server is stopped.")
    ] = 30,
    debug: options.Debug = False,
) -> None:
    """Restore images that MRD clients send. Research only, not for diagnosis."""
    stop = threading.Event()
    on_stop(stop.set)
    held = options.consistency(consistency)
    with SuperResolver(
        engine, device, precision, threads=threads, library=library, consistency=held, best=best
    ) as resolve:
        limits = Limits(max_message * MIB, max_memory * MIB, max_connections, idle_timeout, total_timeout)
        server = Server(
            resolve, host, port, limits, Parameters(originals, position, dtype, to and str(Asked.parse(to)))
        )
        watcher = serve_metrics(
            metrics_port, server.metrics, lambda: server.ready, f"{resolve.card.name}: {resolve.engine.info}"
        )
        threading.Thread(target=server.serve, daemon=True, name="mrd-accept").start()
        print(f"Model {resolve.describe()}")
        print(f"Health and metrics on 127.0.0.1:{watcher.server_address[1]}")
        print(f"Listening on {server.address[0]}:{server.address[1]}", flush=True)
        stop.wait()
        log("stopping")
        server.stop(grace)
        watcher.shutdown()
        log("stopped")


main = command(
    serve,
    "udean-serve",
    "udean-serve --port 9002",
    "udean-serve --host 0.0.0.0 --engine sr.plan --max-connections 4",
)

if __name__ == "__main__":
    main()
