"""Installs as users make them, from the sdist and the wheel built of it: `make installs`, or names of them.

Each is a fresh environment with the versions of constraints.txt. In each every command answers --version,
shows --help or says in one sentence which extra it needs, and what the README promises of it is done.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import urllib.request
import venv
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS = list(PROJECT["entry-points"]["udean.commands"])
SCANS = """
import sys, numpy as np, nibabel as nib
from pathlib import Path
folder, size = Path(sys.argv[1]), int(sys.argv[2])
folder.mkdir()
for n in range(int(sys.argv[3])):
    axes = np.meshgrid(*[np.linspace(-1, 1, size)] * 3, indexing="ij")
    ball = np.clip(1.2 - 1.3 * np.sqrt(sum(a**2 for a in axes)), 0, 1) * (1 + 0.2 * np.sin(7 * axes[0] + n))
    nib.save(nib.Nifti1Image((900 * ball).astype(np.int16), np.eye(4)), folder / f"sub-{n}.nii.gz")
"""
SERIES = """
import sys, numpy as np, pydicom
from pathlib import Path
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
folder, study, series, frame = Path(sys.argv[1]), *(generate_uid() for _ in range(3))
folder.mkdir()
for k in range(6):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    d = FileDataset(None, {}, file_meta=meta, preamble=bytes(128))
    d.SOPClassUID, d.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    d.StudyInstanceUID, d.SeriesInstanceUID, d.FrameOfReferenceUID = study, series, frame
    d.Modality, d.SeriesNumber, d.InstanceNumber, d.PatientID, d.PatientName = "MR", 3, k + 1, "p", "P"
    d.ImageType, d.StudyID, d.StudyDate, d.StudyTime = ["ORIGINAL", "PRIMARY", "M"], "1", "20200101", "120000"
    d.ScanningSequence, d.SequenceVariant, d.ScanOptions, d.MRAcquisitionType = "SE", "NONE", "", "3D"
    d.ImagePositionPatient, d.ImageOrientationPatient = [0, 0, 2 * k], [1, 0, 0, 0, 1, 0]
    d.PixelSpacing, d.SliceThickness, d.EchoTime, d.Manufacturer = [2, 2], 2, 10, "none"
    d.Rows = d.Columns = 24
    d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
    d.BitsAllocated, d.BitsStored, d.HighBit, d.PixelRepresentation = 16, 16, 15, 0
    d.PixelData = np.random.default_rng(k).integers(0, 900, (24, 24)).astype("<u2").tobytes()
    d.save_as(folder / f"{k}.dcm", enforce_file_format=True)
"""
CONFIG = """
[network]
channels = 8
groups = 1
blocks = 1
discriminator = 4
[schedule]
steps = 2
batch = 2
patch = 16
[machine]
workers = 0
"""

CONSUMER = """# pyright: strict
from pathlib import Path
from typing import Any, assert_type

import numpy as np
from nibabel.nifti1 import Nifti1Image
from numpy.typing import NDArray

import udean
from udean.runtime import EngineInfo, Intensities, ModelCard, RunError, SuperResolver


def restore(path: Path, volume: NDArray[np.int16], image: Nifti1Image) -> None:
    try:
        with udean.SuperResolver(path, threads=2, overlap=(0.25, 0.25, 0.5)) as resolve:
            assert_type(resolve, SuperResolver)
            assert_type(resolve(volume, dtype="float32"), NDArray[Any])
            assert_type(resolve.info().card, ModelCard)
            assert_type(resolve.info().engine, EngineInfo)
            assert_type(resolve.intensities(volume), Intensities)
            assert_type(resolve.image(image), Nifti1Image)
            for plane in resolve.stream([volume[:, :, 0]], 1, Intensities(900.0)):
                print(plane.shape)
    except RunError as error:
        print(error)


udean.SuperResolver(thread=2)  # WRONG
"""


class Install:
    """A fresh environment with a distribution of this package in it, and a folder to work in."""

    def __init__(self, folder: Path, package: Path, extras: str) -> None:
        self.bin, self.work, self.extras = folder / "venv" / "bin", folder / "work", extras
        self.work.mkdir(parents=True)
        venv.create(folder / "venv")
        self.add(f"{package}[{extras}]" if extras else str(package))

    def add(self, package: str) -> None:
        # This environment's pip, and no byte code of what is never imported: half of the time goes there.
        pip = [sys.executable, "-m", "pip", "--python", self.bin / "python", "install", "-q", "--no-compile"]
        subprocess.run([*pip, "-c", ROOT / "constraints.txt", package], check=True, cwd=self.work)

    def __call__(self, program: str, *arguments: object, code: int = 0, says: str = "") -> str:
        """Run a program; its output, once the exit code is right and a pattern is found in what it says."""
        line = [str(self.bin / program), *map(str, arguments)]
        path = f"{self.bin}{os.pathsep}{os.environ['PATH']}"  # as in an environment that is activated
        env = os.environ | {"PATH": path}
        done = subprocess.run(line, cwd=self.work, env=env, capture_output=True, text=True, timeout=900)
        said = done.stdout + done.stderr
        shown = f"{program} {' '.join(map(str, arguments))[:80]}: exit code {done.returncode}\n{said[-2000:]}"
        assert done.returncode == code, shown
        assert "Traceback" not in said, shown
        assert re.search(says, said), f"{shown}\nlacks: {says}"
        return said

    def refuses(self, extra: str, program: str, *arguments: object) -> None:
        """A command ends with one sentence that names the extra it needs."""
        said = self(program, *arguments, code=2, says=rf"pip install 'udean\[{extra}\]'")
        assert len(said.strip().splitlines()) == 1, said

    def scans(self, name: str, size: int, count: int = 1) -> None:
        self("python", "-c", SCANS, name, size, count)


def starts(made: Install) -> None:
    """Every command says its version, and shows its help or names the extra that it lacks."""
    made("udean", "--version", says=r"udean \d+\.\d+\.\d+ \(Python")
    made("python", "-m", "udean", says="Usage")
    for name in COMMANDS:
        made("udean", name, "--version", says=r"\d+\.\d+\.\d+")
        program = made.bin / f"udean-{name}"
        line = [program] if program.exists() else [made.bin / "udean", name]
        done = subprocess.run([*line, "--help"], capture_output=True, text=True)
        said = done.stdout + done.stderr
        lacks = done.returncode == 2 and re.fullmatch(r"Error: .*pip install 'udean\[\w+\]'\n", said)
        assert (done.returncode == 0 and "Usage" in said and "Example" in said) or lacks, f"{name}: {said}"


def types(made: Install) -> None:
    """A type checker finds our types in a user's program, and the one mistake in it."""
    (made.work / "consumer.py").write_text(CONSUMER)
    python = made.bin / "python"
    wrong = 1 + next(n for n, line in enumerate(CONSUMER.splitlines()) if line.endswith("# WRONG"))
    for line in (
        ["mypy", "--strict", "--python-executable", python, "--cache-dir", made.work / "mypy", "consumer.py"],
        ["basedpyright", "--pythonpath", python, "--level", "error", "consumer.py"],
    ):
        checker = [sys.executable, "-m", *map(str, line)]
        said = subprocess.run(checker, cwd=made.work, capture_output=True, text=True).stdout
        found = re.findall(r"consumer\.py:(\d+).*error", said)
        assert found == [str(wrong)], said


def base(made: Install) -> None:
    types(made)
    made.scans("scans", 12)
    made.refuses("cpu", "udean-run", "scans")
    made.refuses("eval", "udean-simulate", "scans", "-o", "lr")


def cpu(made: Install) -> None:
    made.scans("scans", 24)
    made("udean-run", "scans", says="1 written")
    code = "import nibabel as n; print(n.load('scans-sr/sub-0_sr.nii.gz').shape)"
    made("python", "-c", code, says=r"\(48, 48, 48\)")
    code = "import numpy as n, udean; print(udean.SuperResolver()(n.eye(8)[..., None] * n.ones(6)).shape)"
    made("python", "-c", code, says=r"\(16, 16, 12\)")
    made("udean", "doctor", says="udean-run would use udean-2x2x2")
    made.refuses("eval", "udean-eval", "--sr", "scans", "--hr", "scans")
    (made.work / "series").mkdir()
    (made.work / "series" / "1.dcm").write_bytes(bytes(128) + b"DICM")
    made.refuses("dicom", "udean-run", "series")
    made.refuses("train", "udean-train", "--source", "scans", "--target", "scans")


def nipype(made: Install) -> None:
    """The recipe of docs/nipype.md, as a program of its own."""
    made.scans("scans", 24)
    page = (ROOT / "docs" / "nipype.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    program = "\n".join([*blocks, "print(restored)"]).replace("scan.nii.gz", "scans/sub-0.nii.gz")
    (made.work / "workflow.py").write_text(program)
    made.add("nipype")
    made("python", "workflow.py", says=r"sub-0_sr\.nii\.gz|desc-sr")


def evaluation(made: Install) -> None:
    made.scans("hr", 32)
    made("udean-simulate", "hr", "-o", "lr", says="1 LR scan")
    made("udean-eval", "--sr", "tricubic", "--lr", "lr", "--hr", "hr", "--json", "f.json", says="PSNR")
    assert json.loads((made.work / "f.json").read_text())["mean"]["psnr"] > 20


def export(made: Install) -> None:
    code = "import udean.runtime as r; print(r.__path__[0])"
    models = Path(made("python", "-c", code).strip()) / "models"
    made("udean-export", "inspect", models / "default.onnx", says="2x2x2|\\(2, 2, 2\\)")
    made.refuses("train", "udean-export", models / "default.pt", "-o", "out")


def dicom(made: Install) -> None:
    made("python", "-c", SERIES, "series")
    made("udean-run", "series", says="1 written")
    assert len(list((made.work / "series-sr" / "series-003").glob("*.dcm"))) == 12


def mrd(made: Install) -> None:
    server = subprocess.Popen(
        [made.bin / "udean-serve", "--port", "0", "--metrics-port", "0"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout
        said = "".join(server.stdout.readline() for _ in range(3))
        (port,) = re.findall(r"metrics on 127\.0\.0\.1:(\d+)", said)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60) as answer:
            assert answer.status == 200
        server.terminate()
        assert server.wait(60) == 0
    finally:
        server.kill()


def training(made: Install) -> None:
    made.scans("hr", 40, 2)
    made("udean-simulate", "hr", "-o", "lr")
    (made.work / "c.toml").write_text(CONFIG)
    groups = ("--source", "hr/sub-0.nii.gz", "--target", "lr/sub-1.nii.gz")
    made("udean-train", *groups, "--config", "c.toml", "--preset", "compact", "--out", "run")
    made("udean-export", "--allow-untrusted", "run/checkpoint.pt", says=r"checkpoint\.onnx")
    made("udean-run", "--engine", "run/checkpoint.onnx", "--ray", "lr", says="2 written")


MATRIX: dict[str, tuple[str, Callable[[Install], None]]] = {
    "base": ("", base),
    "cpu": ("cpu", cpu),
    "eval": ("eval", evaluation),
    "export": ("export", export),
    "dicom": ("cpu,dicom", dicom),
    "mrd": ("cpu,mrd", mrd),
    "nipype": ("cpu", nipype),
    "train": ("cpu,train,export,cluster", training),
}


def build(folder: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built of it and of nothing else."""
    copy = folder / "source"  # setuptools leaves its notes where it builds
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    names = tracked.stdout.split("\n")[:-1] or [
        str(p.relative_to(ROOT)) for p in ROOT.rglob("*") if p.is_file()
    ]
    for name in names:
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, copy / name)
    made = "from setuptools import build_meta as b; b.build_sdist('../dist')"
    (folder / "dist").mkdir()
    subprocess.run([sys.executable, "-c", made], cwd=copy, check=True, capture_output=True)
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    lost = {n for n in names if (ROOT / n).is_file() and not n.startswith((".git", ".pre-commit"))} - held
    assert not lost, f"the sdist lacks {sorted(lost)}"
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", folder / "dist", sdist], check=True, cwd=folder)
    (wheel,) = (folder / "dist").glob("*.whl")
    return sdist, wheel


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix="udean-installs-") as name:
        folder, start = Path(name), time.perf_counter()
        sdist, wheel = build(folder)
        print(f"built {sdist.name} and {wheel.name}: {time.perf_counter() - start:.0f} s", flush=True)
        for number, (title, (extras, check)) in enumerate(MATRIX.items()):
            if names and title not in names:
                continue
            start = time.perf_counter()
            package = sdist if title == "eval" else wheel  # one of them is built where it is installed
            made = Install(folder / str(number), package, extras)
            starts(made)
            check(made)
            print(f"{title} [{extras}]: {time.perf_counter() - start:.0f} s", flush=True)
            shutil.rmtree(folder / str(number))


if __name__ == "__main__":
    main(sys.argv[1:])
