"""Does anything get lost or mixed up if a lot goes wrong for long? The DICOM node, then the MRD server.

    python -m tests.soak.soak --studies 200 --senders 20

`dicom_node` and `mrd_server` describe what is done to them and what is compared. Everything runs on loopback;
CI runs a small size (test_soak.py).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated

import typer
from udean.benchmarks.common import record, run_script

from . import dicom_node, mrd_server


def main(
    studies: Annotated[
        int, typer.Option(min=0, help="Studies sent through the node; 0: skip the node.")
    ] = 200,
    senders: Annotated[int, typer.Option(min=1, help="Scanners at once.")] = 20,
    accidents: Annotated[int, typer.Option(min=1, help="Accidents of node, archive, disk and clock.")] = 60,
    messages: Annotated[
        int, typer.Option(min=0, help="Damaged messages sent to the server; 0: skip the server.")
    ] = 1_000_000,
    clients: Annotated[
        int, typer.Option(min=3, help="Simultaneous clients, one of them dead, one slow.")
    ] = 50,
    minutes: Annotated[
        float, typer.Option(min=0.1, help="Time after which no new messages are started.")
    ] = 10,
    seed: Annotated[int, typer.Option(help="Random seed.")] = 0,
) -> None:
    """Soak the DICOM node and the MRD server; writes soak-node.json and soak-mrd.json."""
    if studies:
        with tempfile.TemporaryDirectory() as folder:
            record("soak-node", dicom_node.soak(studies, senders, accidents, Path(folder), seed=seed))
    if messages:
        record("soak-mrd", mrd_server.soak(messages, clients, 60 * minutes, seed))


if __name__ == "__main__":
    run_script(main, "soak")
