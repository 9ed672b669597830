"""The archive that an OpenRecon host installs: the image as `docker save` writes it, and the manual, zipped.

    python deploy/openrecon/archive.py                     # builds and saves the image with Docker 24
    python deploy/openrecon/archive.py --image saved.tar   # of an image that was saved elsewhere

Metadata and image are checked first, as public build scripts for OpenRecon and their guides ask for it:
names, label, platform, user, layout. Needs matplotlib, which draws the manual's pages, and Docker to build.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import textwrap
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LABEL = "com.siemens-healthineers.magneticresonance.openrecon.metadata:1.1.0"
DOCKER = 25  # from this major version on `docker save` writes a layout that hosts cannot load
CUDA = 11, 8  # hosts' drivers know no later one
LINE, LINES = 92, 62  # characters of a line, lines of a page of the manual


class Fault(Exception):
    """What a host would refuse, in a sentence."""


def _text(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("en"), str) and bool(value["en"])


def _string(value: Any) -> bool:
    return isinstance(value, str)


def _count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _one_or_more(value: Any) -> bool:
    return _count(value) and value > 0


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _version(value: Any) -> bool:
    pattern = r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}(-[0-9A-Za-z.-]+)?"
    return isinstance(value, str) and bool(re.fullmatch(pattern, value))


def _name(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch("[A-Za-z0-9]+", value))


REGULATORY = (
    "device_trade_name",
    "production_identifier",
    "manufacturer_address",
    "made_in",
    "manufacture_date",
    "material_number",
    "gtin",
    "udi",
    "safety_advices",
    "special_operating_instructions",
    "additional_relevant_information",
)
# Field by field what the label's schema, version 1.1.0, asks for; all of these have to be there.
SCHEMA = {
    "general": {
        "name": _text,
        "version": _version,
        "vendor": _name,
        "information": _text,
        "id": _name,
        "regulatory_information": dict.fromkeys(REGULATORY, _string),
    },
    "reconstruction": {
        "transfer_protocol": {"protocol": "ISMRMRD".__eq__, "version": "1.4.1".__eq__},
        "port": lambda value: type(value) is int and 0 < value < 65536,
        "emitter": "image".__eq__,
        "injector": "image".__eq__,
        "can_process_adjustment_data": _flag,
        "can_use_gpu": _flag,
        "min_count_required_gpus": _count,
        "min_required_gpu_memory": _count,
        "min_required_memory": _count,
        "min_count_required_cpu_cores": _one_or_more,
        "content_qualification_type": "RESEARCH".__eq__,
    },
    "parameters": lambda value: isinstance(value, list) and len(value) <= 14,
}
PARAMETER = {"id": _name, "label": _text, "information": _text}
PARAMETERS = {
    "boolean": {"default": _flag},
    "choice": {"default": _string, "values": lambda value: isinstance(value, list) and len(value) > 0},
}


def check_metadata(metadata: Any) -> None:
    """Raise Fault if the label's JSON is not what its schema asks for, the parameters of the UI included."""
    _check(metadata, SCHEMA, "metadata")
    general = metadata["general"]
    if general["name"]["en"] != general["id"]:
        raise Fault(
            "general.name and general.id differ, and some scripts name files by one, some by the other."
        )
    known: set[str] = set()
    for parameter in metadata["parameters"]:
        kind = parameter.get("type") if isinstance(parameter, dict) else None
        name = f"parameter {parameter.get('id')}" if isinstance(parameter, dict) else "a parameter"
        if kind not in PARAMETERS:
            raise Fault(f"{name} has the type {kind!r}, not one of {', '.join(PARAMETERS)}.")
        _check(parameter, {**PARAMETER, **PARAMETERS[kind], "type": kind.__eq__}, name)
        if parameter["id"] in known:
            raise Fault(f"{name} is there twice.")
        known.add(parameter["id"])
        if kind == "choice":
            for value in parameter["values"]:
                _check(value, {"id": _string, "name": _text}, name)
            if parameter["default"] not in [value["id"] for value in parameter["values"]]:
                raise Fault(f"{name} has a default that is not one of its values.")


def _check(value: Any, schema: Any, place: str) -> None:
    if callable(schema):
        if not schema(value):
            raise Fault(f"{place} is {value!r}, which the label's schema does not allow.")
        return
    if not isinstance(value, Mapping) or value.keys() != schema.keys():
        different = sorted(set(value) ^ set(schema)) if isinstance(value, Mapping) else [repr(value)]
        raise Fault(f"{place}: these are missing or too many: {', '.join(map(str, different))}.")
    for name, inner in schema.items():
        _check(value[name], inner, f"{place}.{name}")


def image_name(metadata: Any) -> str:
    """What the image has to be called: `openrecon_<vendor>_<id>:v<version>`."""
    general = metadata["general"]
    return f"openrecon_{general['vendor']}_{general['id']}:v{general['version']}".lower()


def file_name(metadata: Any) -> str:
    """What the files in the archive, and itself, are called, without their suffix."""
    general = metadata["general"]
    return f"OpenRecon_{general['vendor']}_{general['id']}_V{general['version']}"


def check_image(path: Path, metadata: Any) -> None:
    """Raise Fault if a saved image is not what a host loads and runs."""
    try:
        with tarfile.open(path) as tar:
            names = set(tar.getnames())
            manifest = json.load(_member(tar, "manifest.json"))
            if len(manifest) != 1:
                raise Fault(f"{path} holds {len(manifest)} images: save one.")
            config = json.load(_member(tar, manifest[0]["Config"]))
    except (tarfile.TarError, KeyError, ValueError, OSError) as error:
        raise Fault(f"{path} is not an image as `docker save` writes it ({error}).") from None
    if "oci-layout" in names or any(layer.startswith("blobs/") for layer in manifest[0]["Layers"]):
        raise Fault(f"{path} has the layout of Docker {DOCKER} and later: save it with Docker {DOCKER - 1}.")
    if missing := sorted(set(manifest[0]["Layers"]) - names):
        raise Fault(f"{path} lacks the layer {missing[0]}.")
    if manifest[0].get("RepoTags") != [image_name(metadata)]:
        raise Fault(f"The image is called {manifest[0].get('RepoTags')}, not {image_name(metadata)}.")
    platform = f"{config.get('os')}/{config.get('architecture')}"
    if platform != "linux/amd64":
        raise Fault(f"The image is made for {platform}, not linux/amd64.")
    run = config.get("config") or {}
    try:
        label = json.loads(base64.b64decode((run.get("Labels") or {})[LABEL], validate=True))
    except (KeyError, ValueError):
        raise Fault(f"The image has no label {LABEL} that can be read.") from None
    if label != metadata:
        raise Fault("The image's label says something else than metadata.json: build it anew.")
    if not re.fullmatch(r"[1-9]\d*(:\d+)?", run.get("User") or ""):
        raise Fault("The image does not run as a user with a number other than 0 (USER).")
    if f"{metadata['reconstruction']['port']}/tcp" not in (run.get("ExposedPorts") or {}):
        raise Fault(f"The image does not expose port {metadata['reconstruction']['port']}.")
    variables = dict(line.partition("=")[::2] for line in run.get("Env") or ())
    cuda = tuple(map(int, re.findall(r"\d+", variables.get("CUDA_VERSION", ""))[:2]))
    if cuda > CUDA:
        raise Fault(
            f"The image has CUDA {cuda[0]}.{cuda[1]}: hosts' drivers know {CUDA[0]}.{CUDA[1]} at most."
        )


def _member(tar: tarfile.TarFile, name: str) -> Any:
    file = tar.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is not a file")
    return file


def build(metadata: Any, path: Path) -> None:
    """Build the image and save it. Raises Fault without a Docker of the right version."""
    try:
        command = ["docker", "version", "--format", "{{.Server.Version}}"]
        version = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        raise Fault(
            "Docker is not there: build and save the image elsewhere, and give it by --image."
        ) from None
    if int(version.split(".")[0]) >= DOCKER:
        raise Fault(f"Docker {version} saves images in a layout that hosts cannot load: take {DOCKER - 1}.")
    label = base64.b64encode(json.dumps(metadata).encode()).decode()
    name = image_name(metadata)
    command = ["docker", "build", "--platform", "linux/amd64", "-t", name, "--build-arg", f"METADATA={label}"]
    subprocess.run([*command, "-f", HERE / "Dockerfile", ROOT], check=True)
    subprocess.run(["docker", "save", "-o", path, name], check=True)


def write_manual(metadata: Any, path: Path) -> None:
    """manual.md as a PDF of plain text, with the label's version and parameters."""
    from matplotlib.backends.backend_pdf import PdfPages
    from matplotlib.figure import Figure

    general = metadata["general"]
    text = (HERE / "manual.md").read_text().replace("VERSION", general["version"])
    for parameter in metadata["parameters"]:
        text += f"\n- {parameter['label']['en']}: {parameter['information']['en']}"
    text = re.sub(r"(?<!\n)\n(?!\n|- )", " ", text)  # a paragraph is a line
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, LINE) or [""]]
    with PdfPages(path) as pages:
        for first in range(0, len(lines), LINES):
            figure = Figure(figsize=(8.27, 11.69))  # A4, inches
            page = "\n".join(lines[first : first + LINES])
            figure.text(0.08, 0.95, page, family="monospace", size=8.5, va="top", parse_math=False)
            pages.savefig(figure)


def archive(image: Path, metadata: Any, folder: Path) -> Path:
    """Write the archive of a saved image; it appears when it is whole. Raises Fault."""
    check_image(image, metadata)
    folder.mkdir(parents=True, exist_ok=True)
    name = file_name(metadata)
    target = folder / f"{name}.zip"
    with tempfile.TemporaryDirectory(dir=folder) as room:
        manual, draft = Path(room, f"{name}.pdf"), Path(room, target.name)
        write_manual(metadata, manual)
        with zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as zipped:
            zipped.write(image, f"{name}.tar")
            zipped.write(manual, manual.name)
        draft.replace(target)
    return target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--image", type=Path, help="An image that was saved; without it one is built.")
    parser.add_argument("-o", "--out", type=Path, default=Path("dist"), help="Folder for the archive.")
    given = parser.parse_args()
    metadata = json.loads((HERE / "metadata.json").read_text())
    try:
        check_metadata(metadata)
        with tempfile.TemporaryDirectory() as room:
            image = given.image or Path(room, "image.tar")
            if given.image is None:
                build(metadata, image)
            print(archive(image, metadata, given.out))
    except Fault as fault:
        sys.exit(str(fault))


if __name__ == "__main__":
    main()
