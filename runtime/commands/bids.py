"""The command `udean-bids`: the BIDS-App form, `udean-bids BIDS_DIR OUTPUT_DIR participant|group`.

Source: Gorgolewski et al., PLOS Computational Biology 13(3), 2017: command line of BIDS-Apps.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from ..errors import RunError
from ..run.bids import DATASET
from ..system.files import cache_folder
from ..system.offline import OFFLINE
from ..view.group import write_group
from . import options
from .common import command, counted, sentences
from .run import prepare_process, run
from .streams import say

VALIDATORS = ("bids-validator-deno", "bids-validator")  # the first that is installed is used


def bids(
    bids_dir: Annotated[Path, typer.Argument(metavar="BIDS_DIR", help="The raw dataset.")],
    output_dir: Annotated[Path, typer.Argument(metavar="OUTPUT_DIR", help="The derived dataset to write.")],
    level: Annotated[
        Literal["participant", "group"],
        typer.Argument(
            metavar="participant|group", help="Restore scans; or summarise the results as a page and a table."
        ),
    ],
    participants: Annotated[
        list[str] | None,
        typer.Option("--participant-label", help="Only these participants, separated by commas."),
    ] = None,
    sessions: Annotated[
        list[str] | None, typer.Option("--session-label", help="These only; likewise.")
    ] = None,
    suffixes: Annotated[
        list[str] | None,
        typer.Option("--suffix", help="Only these suffixes, such as T1w. (default: anatomical images)"),
    ] = None,
    skip_validation: Annotated[
        bool,
        typer.Option("--skip-bids-validation", help="Do not run the validator."),
    ] = False,
    engine: options.ModelOption = None,
    library: options.LibraryOption = "auto",
    device: options.Device = "auto",
    precision: options.PrecisionOption = "auto",
    threads: options.Threads = None,
    best: options.Best = False,
    error_map: options.ErrorMap = False,
    debug: options.Debug = False,
) -> None:
    """Restore a BIDS dataset as a BIDS-App. Research only, not for diagnosis."""
    if not (bids_dir / DATASET).is_file():
        raise RunError(f"{bids_dir} is not a BIDS dataset: it has no {DATASET}.")
    if level == "group":
        page, table, count = write_group(output_dir)
        say(f"{counted(count, 'scan')}: {page} and {table}")
        return
    if not skip_validation:
        validate(bids_dir)
    run(
        [str(bids_dir)],
        out=output_dir,
        participants=participants,
        sessions=sessions,
        suffixes=suffixes,
        engine=engine,
        library=library,
        device=device,
        precision=precision,
        threads=threads,
        best=best,
        error_map=error_map,
        debug=debug,
    )


def validate(dataset: Path) -> None:
    """Run the official validator, if one is installed. Raises RunError for what it reports as an error."""
    places = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    validator = next(filter(None, (shutil.which(name, path=places) for name in VALIDATORS)), None)
    if validator is None:
        typer.echo("No BIDS validator is installed: the dataset is not validated.", err=True)
        return
    env = os.environ | OFFLINE | {"DENO_NO_UPDATE_CHECK": "1"}  # Deno, which runs it, looks for updates
    with contextlib.suppress(RunError):  # without a home folder Deno runs without a cache
        env.setdefault("DENO_DIR", str(cache_folder() / "deno"))
    line = [validator, dataset, "--format", "json", "--ignoreWarnings"]
    done = subprocess.run(line, capture_output=True, text=True, env=env)
    if done.returncode == 0:
        return
    try:
        issues = json.loads(done.stdout)["issues"]["issues"]
        wrong = "; ".join(sorted({f"{i['code']} at {i.get('location', dataset.name)}" for i in issues})[:5])
    except (ValueError, KeyError, TypeError):
        said = (done.stderr or done.stdout).strip().splitlines()
        raise RunError(
            f"{validator} did not validate {dataset} ({said[-1] if said else 'without any message'}). "
            "--skip-bids-validation leaves the validation out."
        ) from None
    raise RunError(f"{dataset} is not valid BIDS: {wrong}. --skip-bids-validation uses it anyway.")


COMMAND = command(
    bids,
    "udean-bids",
    "udean-bids /data /out participant --participant-label 01,02",
    "udean-bids /data /out group  # one page and one table of all results",
)


def main() -> None:
    """Restore a BIDS dataset as a BIDS-App."""
    with sentences():
        prepare_process()
        COMMAND()


if __name__ == "__main__":
    main()
