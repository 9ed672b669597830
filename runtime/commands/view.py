"""The command `udean-view`: a page in the browser with a run's results."""

from __future__ import annotations

import threading
import webbrowser
from pathlib import Path
from typing import Annotated

import typer

from ..view.server import Viewer
from .common import command, on_stop


def view(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output folder of udean-run.")],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="TCP port on this machine; 0 takes a free one.")
    ] = 0,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in a browser.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    """Look at LR, tricubic and SR scans side by side, and mark them good or bad in OUT/qc.tsv.

    The page is for this machine. From another one: ssh -L PORT:127.0.0.1:PORT HOST.
    """
    with Viewer(out, port) as viewer:
        stop = threading.Event()
        on_stop(stop.set)
        threading.Thread(target=viewer.serve_forever, daemon=True, name="view").start()
        print(f"Look at {viewer.address}\nCtrl-C ends it.", flush=True)
        if browser:
            webbrowser.open(viewer.address)
        stop.wait()
        viewer.shutdown()


main = command(view, "udean-view", "udean-view scans-sr/ --browser")

if __name__ == "__main__":
    main()
