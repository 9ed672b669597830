"""Deployment: metadata as OpenRecon reads it, a Dockerfile without known faults, its entry point."""

import base64
import dataclasses
import importlib.util
import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import udean
from udean.runtime.mrd.connection import Parameters

from .support.fakes import card, onnx_model
from .support.mrd_client import images, pack_close, pack_image, talk

ROOT = Path(udean.__file__).parent
OPENRECON = ROOT / "deploy" / "openrecon"
METADATA = json.loads((OPENRECON / "metadata.json").read_text())


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


archive = load(OPENRECON / "archive.py")


def changed(path, value):
    """The metadata with another value at a place such as "general.version", without it if it is None."""
    made = json.loads(json.dumps(METADATA))
    inner = made
    *folders, last = [int(part) if part.isdecimal() else part for part in path.split(".")]
    for folder in folders:
        inner = inner[folder]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return made


def test_the_metadata_fit_the_label_schema():
    archive.check_metadata(METADATA)


@pytest.mark.parametrize(
    ("path", "value", "why"),
    [
        ("general.version", "1.0", "general.version is '1.0'"),
        ("general.vendor", "my_lab", "general.vendor"),
        ("general.name", "UDEAN", "general.name"),
        ("general.name", {"en": "UDEAN"}, "general.name and general.id differ"),
        ("general.regulatory_information.udi", None, "missing or too many: udi"),
        ("reconstruction.port", 99999, "reconstruction.port"),
        ("reconstruction.can_use_gpu", 0, "can_use_gpu"),
        ("reconstruction.min_count_required_cpu_cores", 0, "min_count_required_cpu_cores"),
        ("reconstruction.more", 1, "missing or too many: more"),
        ("parameters", [METADATA["parameters"][0]] * 15, "metadata.parameters"),
        ("parameters", [METADATA["parameters"][0]] * 2, "twice"),
        ("parameters.0.id", "send_originals", "send_originals"),
        ("parameters.0.default", "yes", "default"),
        ("parameters.1.default", "corner", "not one of its values"),
        ("parameters.1.values", [], "values"),
        ("parameters.2.type", "slider", "slider"),
    ],
)
def test_metadata_that_a_host_would_refuse_are_refused(path, value, why):
    with pytest.raises(archive.Fault, match=re.escape(why)):
        archive.check_metadata(changed(path, value))


def saved_image(path, layout="docker-archive", name="openrecon_udean_udean:v0.1.0", **changes):
    """A tiny image as `docker save` of Docker 24 writes it, or of Docker 25: a layer with one file."""
    label = base64.b64encode(json.dumps(METADATA).encode()).decode()
    run = {"Labels": {archive.LABEL: label}, "User": "65534:65534", "ExposedPorts": {"9002/tcp": {}}}
    config = {"os": "linux", "architecture": "amd64", "config": run | changes.pop("run", {})} | changes
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        add(tar, "etc/hostname", b"udean")
    place = f"{'a' * 64}/layer.tar" if layout == "docker-archive" else f"blobs/sha256/{'a' * 64}"
    manifest = [{"Config": f"{'b' * 64}.json", "RepoTags": [name], "Layers": [place]}]
    with tarfile.open(path, "w") as tar:
        add(tar, "manifest.json", json.dumps(manifest).encode())
        add(tar, f"{'b' * 64}.json", json.dumps(config).encode())
        add(tar, place, layer.getvalue())
        if layout == "oci":
            add(tar, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
    return path


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def test_a_saved_image_and_the_manual_become_one_archive(tmp_path):
    pytest.importorskip("matplotlib", reason="the manual's pages are drawn by matplotlib")
    image = saved_image(tmp_path / "image.tar")
    command = [sys.executable, OPENRECON / "archive.py", "--image", image, "-o", tmp_path / "out"]
    subprocess.run(command, check=True, capture_output=True)
    (made,) = (tmp_path / "out").iterdir()
    assert made.name == "OpenRecon_udean_udean_V0.1.0.zip"
    with zipfile.ZipFile(made) as zipped:
        assert zipped.namelist() == [made.stem + ".tar", made.stem + ".pdf"]
        assert zipped.read(made.stem + ".tar") == image.read_bytes()
        manual = zipped.read(made.stem + ".pdf")
        assert manual.startswith(b"%PDF-") and manual.rstrip().endswith(b"%%EOF")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"layout": "oci"}, "layout of Docker 25"),
        ({"name": "udean:latest"}, "not openrecon_udean_udean:v0.1.0"),
        ({"architecture": "arm64"}, "linux/arm64"),
        ({"run": {"User": ""}}, "does not run as a user"),
        ({"run": {"User": "0"}}, "does not run as a user"),
        ({"run": {"Labels": {}}}, "no label"),
        ({"run": {"ExposedPorts": {}}}, "port 9002"),
        ({"run": {"Env": ["CUDA_VERSION=12.4.1"]}}, "CUDA 12.4"),
    ],
)
def test_an_image_that_a_host_cannot_run_makes_no_archive(tmp_path, change, why):
    image = saved_image(tmp_path / "image.tar", **change)
    command = [sys.executable, OPENRECON / "archive.py", "--image", image, "-o", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and why in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_not_an_image_makes_no_archive(tmp_path):
    (tmp_path / "image.tar").write_bytes(b"no image")
    with pytest.raises(archive.Fault, match="docker save"):
        archive.check_image(tmp_path / "image.tar", METADATA)
    archive.check_image(saved_image(tmp_path / "gpu.tar", run={"Env": ["CUDA_VERSION=11.8.0"]}), METADATA)


def test_the_metadata_say_what_the_server_takes():
    general = METADATA["general"]
    regulatory = general["regulatory_information"]
    assert general["version"] == regulatory["production_identifier"] == udean.__version__
    assert regulatory["material_number"] == f"{general['id']}_{udean.__version__}"
    defaults = dataclasses.asdict(Parameters())
    assert {p["id"]: p["default"] for p in METADATA["parameters"]} == defaults
    for parameter in METADATA["parameters"]:
        for value in [v["id"] for v in parameter.get("values", [])] or [True, False]:
            sent = json.dumps({"parameters": {"config": "udean", parameter["id"]: value}})
            understood, unclear = Parameters().updated(sent)
            assert getattr(understood, parameter["id"]) == value and not unclear


def instructions():
    """The Dockerfile's (name, arguments), continued lines joined."""
    whole = (OPENRECON / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line.strip() for line in whole.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def exec_form(name):
    (arguments,) = (a for n, a in instructions() if n == name)
    return json.loads(arguments[arguments.index("[") :])


def test_the_dockerfile_has_no_known_faults():
    steps = instructions()
    names = [name for name, _ in steps]
    assert names[0] == "FROM" and not {"ADD", "MAINTAINER", "ONBUILD", "SHELL"} & set(names)
    tag = dict(steps)["FROM"].partition(":")[2]
    assert tag and "latest" not in tag
    for name, arguments in steps:
        if name == "RUN":
            assert "sudo" not in arguments and "cd " not in arguments and "curl" not in arguments
            if "pip install" in arguments:
                assert "--no-cache-dir" in arguments and "-c /src/udean/constraints.txt" in arguments
            shlex.split(arguments)
        if name == "WORKDIR":
            assert arguments.startswith("/")
        if name == "EXPOSE":
            assert int(arguments) == METADATA["reconstruction"]["port"]
    assert dict(steps)["USER"] not in ("root", "0") and names.index("USER") > names.index("RUN")
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert dict(steps)["LABEL"] == f'"{archive.LABEL}"="${{METADATA}}"'
    for name in ("HEALTHCHECK", "ENTRYPOINT", "CMD"):
        assert exec_form(name)


@pytest.mark.parametrize("kind", ["openrecon", "bids"])
def test_the_image_gets_all_that_the_package_lists(kind):
    lines = (ROOT / "deploy" / kind / "Dockerfile.dockerignore").read_text().split()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    rooms = {p.parent.relative_to(ROOT).parts[0] for p in ROOT.glob("*/__init__.py")} - {"tests", ".venv"}
    modules = {path.name for path in ROOT.glob("*.py")}
    assert (
        rooms | modules | {"pyproject.toml", "constraints.txt", "py.typed", "LICENSE", "README.md"} <= let_in
    )
    assert all((ROOT / name).exists() for name in let_in)


def test_the_entry_point_serves_and_the_health_check_sees_it(tmp_path):
    model = onnx_model(tmp_path / "model.onnx", card((2, 2, 2), 3, (16, 16)))
    command = exec_form("ENTRYPOINT") + exec_form("CMD")
    program = Path(sys.executable).with_name(command[0])
    swap = {"/opt/udean/model.onnx": str(model), "0.0.0.0": "127.0.0.1", "9002": "0", "9003": "0"}
    server = subprocess.Popen(
        [program, *(swap.get(part, part) for part in command[1:])], stdout=subprocess.PIPE, text=True
    )
    try:
        said = "".join(server.stdout.readline() for _ in range(3))
        health, port = re.findall(r"127\.0\.0\.1:(\d+)", said)
        plane = np.ones((1, 8, 8), np.uint16)
        stack = [pack_image(plane, field_of_view=(8, 8, 2), position=(0, 0, 2 * n)) for n in range(2)]
        assert len(images(talk(("127.0.0.1", int(port)), *stack, pack_close()))) == 6
        python, *rest = exec_form("HEALTHCHECK")
        assert python == "python"
        check_health = [sys.executable, *(part.replace("9003", health) for part in rest)]
        assert subprocess.run(check_health, capture_output=True).returncode == 0
        server.terminate()
        assert server.wait(30) == 0
        assert subprocess.run(check_health, capture_output=True).returncode != 0
    finally:
        server.kill()
        server.communicate()


@pytest.mark.parametrize("word", ["udean-serve", "docker build", "RESEARCH", "--max-memory"])
def test_the_readme_speaks_of_what_is_there(word):
    assert word in (ROOT / "deploy" / "README.md").read_text()
