"""The DICOM node while everything goes wrong at once: does every image reach the archive once, intact?

Scanners of all kinds send studies at once; meanwhile node and archive are killed (SIGKILL) at random, the
spool's disk fills up and is freed, and the clock jumps. In the end the archive's images are compared with
those that the same slices give without accidents: voxels, identity, position.

Node, archive (Orthanc, which offers storage commitment), senders (dcmtk's storescu, pynetdicom),
disk (a tmpfs) are real; the wall clock is the node's own, moved by a library that is loaded before libc.
Orthanc is required; if anything else is missing, its part is skipped and reported.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from udean.benchmarks.scanners import write_slice
from udean.runtime.dicom.frame import CLASSIC, require_pydicom
from udean.runtime.dicom.jobs import dicom_jobs
from udean.runtime.dicom.node import FREE
from udean.runtime.errors import RunError
from udean.runtime.resolver import SuperResolver
from udean.runtime.system.extras import require

ROOM = 192 << 20  # bytes of the spool's disk beyond those that the node keeps free
ABANDONED = 120  # seconds: a node killed between its last response and the release waits that long
PATIENCE = 1800.0  # seconds for the node to finish everything once the accidents are over
JUMPS = 10800, -7200, 400 * 86400, -86400, 0  # seconds by which the wall clock is off
CLOCK = r"""  // a wall clock that is off by as many seconds as the file named by SOAK_CLOCK says
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    FILE *file = failed || clock != CLOCK_REALTIME ? NULL : fopen(getenv("SOAK_CLOCK"), "r");
    long off = 0;
    if (file) {
        if (fscanf(file, "%ld", &off) == 1)
            now->tv_sec += off;
        fclose(file);
    }
    return failed;
}

time_t time(time_t *kept) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    return kept ? *kept = now.tv_sec : now.tv_sec;
}
"""
BAD = "missing", "more than once, or wrong", "of nothing that was sent"  # SR images
SETTINGS = ["--precision", "fp32", "--threads", "1"]


def require_orthanc() -> str:
    """The archive's program. Raises RunError if it is not installed."""
    found = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin")
    if not found:
        raise RunError("The soak of the DICOM node needs Orthanc (apt-get install orthanc).")
    return found


def soak(
    studies: int, senders: int, accidents: int, folder: Path, pause: float = 8.0, seed: int = 0
) -> dict[str, Any]:
    """Send the studies while accidents happen.

    accidents: least number of accidents; pause: mean seconds between them. The studies are spread over that
    time. Returns the figures; those of `BAD` are 0 if all is well. Raises RunError if the node does not
    finish.
    """
    start = time.monotonic()
    series = phantoms(studies, folder / "in", seed)
    wanted = undisturbed(folder / "in", folder / "sr")
    hospital = Hospital(folder, [f"SCANNER{n}" for n in range(senders)])
    idle = 2 * accidents * pause * senders / len(series)  # longest pause between two series of a scanner
    scanners = [Scanner(f"SCANNER{n}", hospital.node_port, idle, seed + n) for n in range(senders)]
    work = iter(list(series.values()))  # whose steps threads can share

    def send_all(scanner: Scanner) -> None:
        while slices := next(work, None):
            scanner.deliver(slices)

    rng, kinds = random.Random(seed), hospital.accidents
    happened: Counter[str] = Counter()
    with hospital.running(), ThreadPoolExecutor(senders) as pool:
        sendings = [pool.submit(send_all, scanner) for scanner in scanners]
        while happened.total() < accidents or not all(sending.done() for sending in sendings):
            time.sleep(rng.uniform(0, 2 * pause))
            # Each kind once, then at random.
            kind = next((k for k in kinds() if not happened[k]), None) or rng.choice(list(kinds()))
            kinds()[kind](rng)
            happened[kind] += 1
        for sending in sendings:
            sending.result()
        hospital.wait_for(lambda: not hospital.waiting(), "The node still has series to send.")
        found = hospital.archived()
        aside = hospital.set_aside()
    return {
        "studies": studies,
        "senders": senders,
        "series": len(series),
        "slices sent": sum(scanner.sent for scanner in scanners),
        "slices of the studies": sum(map(len, series.values())),
        "sendings broken off": sum(scanner.broken for scanner in scanners),
        **{f"accidents: {name}": happened[name] for name in kinds()},
        "SR images wanted": len(wanted),
        "SR images at the archive": sum(map(len, found.values())),
        **compared(wanted, found),
        "set aside as sent again": aside,
        "left out": hospital.left_out(),
        "seconds": round(time.monotonic() - start),
    }


def compared(wanted: dict[str, str], found: dict[str, list[str]]) -> dict[str, int]:
    """The figures of `BAD`, from identities by UID; an archive's image is listed once per copy."""
    counts = (
        len(wanted.keys() - found.keys()),
        sum(found[uid] != [wanted[uid]] for uid in found.keys() & wanted.keys()),
        len(found.keys() - wanted.keys()),
    )
    return dict(zip(BAD, counts, strict=True))


# What is sent, and the expected result


def phantoms(studies: int, folder: Path, seed: int) -> dict[str, list[Path]]:
    """MR series of small slices, all with different content; their files by folder.

    Every third study has two dynamics in its series, every fourth a second series; every fifth has the series
    UID of the previous study, which is another patient's, as from a poor anonymiser.
    """
    made: dict[str, list[Path]] = {}
    for study in range(studies):
        for series in range(1 + (study % 4 == 3)):
            name = f"{study:04}-{series}"
            dynamics = 1 + (study % 3 == 2 and not series)
            uid = study - 1 if study % 5 == 4 and not series else study
            count = 3 + (study + series) % 4
            made[name] = [
                _slice(folder / name, study, series, uid, time_point, place, seed)
                for time_point in range(dynamics)
                for place in range(count)
            ]
    return made


def _slice(folder: Path, study: int, series: int, uid: int, time_point: int, place: int, seed: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, study, series, time_point, place])
    y, x = np.mgrid[:24, :20]
    waves = np.sin(x / rng.uniform(2, 5) + place) + np.cos(y / rng.uniform(2, 5))
    voxels = (800 + 200 * waves + rng.normal(0, 20, waves.shape)).clip(0, 4095).astype("<u2")
    root = f"1.2.3.{seed}"
    path = folder / f"{time_point}-{place:03}.dcm"
    tags = {
        "SOPInstanceUID": f"{root}.{study}.{series}.{time_point}.{place + 1}",
        "SeriesInstanceUID": f"{root}.{uid}.{series}",
        "StudyInstanceUID": f"{root}.{study}",
        "FrameOfReferenceUID": f"{root}.{study}.9",
        "PatientID": f"P{study}",
        "PatientName": f"Soak^{study}",
        "SeriesNumber": series + 1,
        "InstanceNumber": 100 * time_point + place + 1,
        "AcquisitionNumber": time_point + 1,
        "TemporalPositionIdentifier": time_point + 1,
        "EchoTime": 12,
        "RepetitionTime": 500,
        "ImageType": ["ORIGINAL", "PRIMARY", "M", "ND"],
        "PixelSpacing": [1, 1],
        "SliceThickness": 2,
        "SpacingBetweenSlices": 2,
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "ImagePositionPatient": [-10, -12, 2 * place],
    }
    write_slice(path, voxels, tags)
    return path


def undisturbed(folder: Path, out: Path) -> dict[str, str]:
    """The result of each series without accidents: SR images by their UID."""
    pydicom = require_pydicom()
    found = {}
    with SuperResolver(precision="fp32", threads=1) as resolve:
        for series in sorted(folder.iterdir()):
            for job in dicom_jobs(sorted(series.iterdir()), series, out / series.name, "dicom"):
                draft = job.draft(resolve.card, resolve.engine.info.sha256)
                resolve.scan(job.open(), room=draft.room)
                draft.commit()
    for path in sorted(out.rglob("*.dcm")):
        dataset = pydicom.dcmread(path)
        found[str(dataset.SOPInstanceUID)] = _identity(dataset)
    return found


def _identity(dataset: Any) -> str:
    """An image's patient, series, position and a hash of its voxels, as text."""
    said = [str(dataset.get(name)) for name in ("PatientID", "PatientName", "StudyInstanceUID")]
    said += [str(dataset.SeriesInstanceUID), str([float(v) for v in dataset.ImagePositionPatient])]
    return f"{said} {hashlib.sha256(dataset.PixelData).hexdigest()}"


# Who sends


@dataclass
class Scanner:
    """Sends series, again and again until the node has confirmed them.

    idle: seconds at most until the next one.
    """

    title: str
    port: int
    idle: float
    seed: int
    sent: int = 0  # slices that were accepted
    broken: int = 0  # associations that did not end properly

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    def deliver(self, slices: list[Path]) -> None:
        """Send a series: at once or in parts, in any order, sometimes breaking off or sending all again."""
        time.sleep(self._rng.uniform(0, self.idle))
        slices = self._rng.sample(slices, len(slices))
        habit = self._rng.choice(("whole", "whole", "parts", "breaks off", "again", "storescu"))
        if habit == "breaks off":
            with contextlib.suppress(RuntimeError):
                self._send(slices[: self._rng.randint(1, len(slices) - 1)], end="abort")
            self.broken += 1
        left = slices
        while left:
            part = left[: max(1, len(left) // 2)] if habit == "parts" else left
            if habit == "storescu" and shutil.which("storescu"):
                done = self._storescu(part)
            else:
                done = self._send(part)
            if done < len(part):
                self.broken += 1
                time.sleep(self._rng.uniform(0.5, 2))
                # Some start again, some continue where they stopped.
                left = slices if self._rng.random() < 0.5 else left[done:]
            else:
                left = left[len(part) :]
        if habit == "again":
            while self._send(slices) < len(slices):
                time.sleep(1)

    def _send(self, slices: list[Path], end: str = "release") -> int:
        """How many slices the node has confirmed in an association that was released."""
        net, pydicom = require("pynetdicom", "dicom"), require_pydicom()
        entity = net.AE(self.title)
        entity.add_requested_context(CLASSIC, pydicom.uid.ExplicitVRLittleEndian)
        entity.connection_timeout = entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 60
        link = entity.associate("127.0.0.1", self.port, ae_title="UDEAN")
        if not link.is_established:
            return 0
        done = 0
        for path in slices:
            with contextlib.suppress(RuntimeError):  # the connection broke in the meantime
                status = link.send_c_store(pydicom.dcmread(path))
                if status and status.Status == 0:
                    done += 1
                    continue
            break
        with contextlib.suppress(RuntimeError):
            getattr(link, end)()
        self.sent += done
        # Without a release the last slice is sent again: else the node would wait for it for a long time.
        return done if link.is_released or done < len(slices) else done - 1

    def _storescu(self, slices: list[Path]) -> int:
        command = ["storescu", "-to", "60", "-aet", self.title, "-aec", "UDEAN", "127.0.0.1", str(self.port)]
        done = subprocess.run([*command, *map(str, slices)], capture_output=True)
        if done.returncode:
            return 0
        self.sent += len(slices)
        return len(slices)


# Who receives, and which accidents they have


@dataclass
class Hospital:
    """Node and archive, which can be killed; the spool's disk, the clock."""

    folder: Path
    scanners: list[str]
    node_port: int = field(default_factory=lambda: _free_port())
    archive_port: int = field(default_factory=lambda: _free_port())
    http_port: int = field(default_factory=lambda: _free_port())

    def __post_init__(self) -> None:
        self._orthanc = require_orthanc()
        self._spool = self.folder / "spool"
        self._clock, self._library = self.folder / "clock", self.folder / "clock.so"
        if compiler := shutil.which("cc"):
            command = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(self._library)]
            subprocess.run(command, input=CLOCK, text=True, check=True)
        self._node: subprocess.Popen[bytes] | None = None
        self._archive: subprocess.Popen[bytes] | None = None
        self._disk = False
        settings = {
            "StorageDirectory": str(self.folder / "archive"),
            "IndexDirectory": str(self.folder / "archive"),
            "DicomAet": "ARCHIVE",
            "DicomPort": self.archive_port,
            "DicomCheckCalledAet": True,
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomModalities": {"udean": ["UDEAN", "127.0.0.1", self.node_port]},
        }
        (self.folder / "orthanc.json").write_text(json.dumps(settings))

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Run from an empty spool, on a disk of its own if that is possible, to the end."""
        self._spool.mkdir(parents=True)
        size = FREE + ROOM
        if os.geteuid() == 0:
            mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(self._spool)]
            self._disk = subprocess.run(mount, capture_output=True).returncode == 0
        try:
            self._clock.write_text("0")
            self._start_archive()
            self._start_node()
            yield
        finally:
            for process in (self._node, self._archive):
                if process:
                    process.kill()
                    process.wait()
            if self._disk:
                subprocess.run(["umount", str(self._spool)], check=False)

    def accidents(self) -> dict[str, Callable[[random.Random], None]]:
        """The accidents that are possible on this machine, by name."""
        kinds: dict[str, Callable[[random.Random], None]] = {
            "node killed": lambda rng: self._kill(self._node, self._start_node, rng.uniform(0, 2)),
            "archive killed": lambda rng: self._kill(self._archive, self._start_archive, rng.uniform(0, 4)),
        }
        if self._disk:
            kinds["disk full"] = self._fill
        if self._library.exists():
            kinds["clock jumped"] = self._jump
        return kinds

    def left_out(self) -> str:
        """The accidents that are not possible on this machine, in words; or "nothing"."""
        missing = [] if self._disk else ["a full disk (needs root, for a tmpfs)"]
        missing += [] if self._library.exists() else ["clock jumps (need cc)"]
        missing += [] if shutil.which("storescu") else ["storescu (needs dcmtk)"]
        return ", ".join(missing) or "nothing"

    def waiting(self) -> int:
        """Number of series that the node has not finished."""
        return sum(
            not path.name.startswith(".")
            for place in ("incoming", "work")
            for path in (self._spool / place).iterdir()
        )

    def set_aside(self) -> int:
        """Number of series received again after they were sent. Raises RunError for others set aside."""
        reasons = [path.read_text() for path in (self._spool / "quarantine").glob("*/reason.txt")]
        for reason in reasons:
            if "had gone out" not in reason:
                raise RunError(f"The node set a series aside: {reason.strip()}")
        return len(reasons)

    def archived(self) -> dict[str, list[str]]:
        """The identities of the archive's images by SOPInstanceUID, one per copy."""
        pydicom = require_pydicom()
        found: dict[str, list[str]] = {}
        for key in json.loads(self._ask("/instances")):
            dataset = pydicom.dcmread(pydicom.filebase.DicomBytesIO(self._ask(f"/instances/{key}/file")))
            found.setdefault(str(dataset.SOPInstanceUID), []).append(_identity(dataset))
        return found

    def wait_for(self, done: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not done():
            if time.monotonic() > deadline or (self._node and self._node.poll() is not None):
                raise RunError(f"{otherwise} {self._last_words()}")
            time.sleep(0.2)

    # --- accidents ---

    def _kill(self, process: subprocess.Popen[bytes] | None, start: Callable[[], None], pause: float) -> None:
        assert process
        process.kill()
        process.wait()
        time.sleep(pause)
        start()

    def _fill(self, rng: random.Random) -> None:
        """Fill the disk to less than the node keeps free, or to the last byte."""
        filler = self._spool / "filler"
        with open(filler, "wb") as file:
            free = shutil.disk_usage(self._spool).free
            size = free - rng.choice((0, FREE // 2))
            with contextlib.suppress(OSError):  # the node writes, too
                os.posix_fallocate(file.fileno(), 0, size)
        time.sleep(rng.uniform(1, 5))
        filler.unlink()

    def _jump(self, rng: random.Random) -> None:
        self._clock.write_text(str(rng.choice(JUMPS)))

    # --- processes ---

    def _start_node(self) -> None:
        command = [_program("udean-dicom-node"), *SETTINGS, "--spool", str(self._spool)]
        command += ["--to", f"ARCHIVE@127.0.0.1:{self.archive_port}", "--port", str(self.node_port)]
        command += ["--quiet", "1", "--retry", "0.5", "--abandoned", str(ABANDONED)]
        command += [part for title in self.scanners for part in ("--allow", title)]
        environment = dict(os.environ)
        if self._library.exists():
            environment |= {"LD_PRELOAD": str(self._library), "SOAK_CLOCK": str(self._clock)}
        with open(self.folder / "node.log", "ab") as log:
            self._node = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log, env=environment)
        self._wait_for_port(self.node_port, self._node)

    def _start_archive(self) -> None:
        with open(self.folder / "archive.log", "ab") as log:
            self._archive = subprocess.Popen(
                [self._orthanc, str(self.folder / "orthanc.json")], stdout=log, stderr=log
            )
        self._wait_for_port(self.archive_port, self._archive)
        self._wait_for_port(self.http_port, self._archive)

    def _wait_for_port(self, port: int, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 5):
                return
            if process.poll() is not None or time.monotonic() > deadline:
                raise RunError(f"A process did not start. {self._last_words()}")
            time.sleep(0.05)

    def _last_words(self) -> str:
        log = self.folder / "node.log"
        return f"The node's last words: {log.read_text()[-2000:]}" if log.exists() else ""

    def _ask(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http_port}{path}", timeout=120) as answer:
            return answer.read()


def _program(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
