"""What is deployed: metadata as OpenRecon reads it, a Dockerfile without known faults, its entry point."""

import dataclasses
import json
import re
import shlex
import subprocess
import sys
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
LABEL = "com.siemens-healthineers.magneticresonance.openrecon.metadata:1.1.0"


def text(value):
    return isinstance(value, dict) and isinstance(value.get("en"), str) and bool(value["en"])


def string(value):
    return isinstance(value, str)


def count(value):
    return type(value) is int and value >= 0


def flag(value):
    return isinstance(value, bool)


REGULATORY = [
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
]
# Field by field what the label's schema, version 1.1.0, asks for; all of these have to be there.
SCHEMA = {
    "general": {
        "name": text,
        "version": lambda v: re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}(-[0-9A-Za-z.-]+)?", v),
        "vendor": string,
        "information": text,
        "id": string,
        "regulatory_information": dict.fromkeys(REGULATORY, string),
    },
    "reconstruction": {
        "transfer_protocol": {"protocol": "ISMRMRD".__eq__, "version": "1.4.1".__eq__},
        "port": count,
        "emitter": "image".__eq__,
        "injector": "image".__eq__,
        "can_process_adjustment_data": flag,
        "can_use_gpu": flag,
        "min_count_required_gpus": count,
        "min_required_gpu_memory": count,
        "min_required_memory": count,
        "min_count_required_cpu_cores": count,
        "content_qualification_type": "RESEARCH".__eq__,
    },
    "parameters": lambda v: isinstance(v, list) and len(v) <= 14,
}
PARAMETER = {"id": lambda v: re.fullmatch("[A-Za-z0-9]+", v), "label": text, "information": text}
BOOLEAN = PARAMETER | {"type": "boolean".__eq__, "default": flag}
CHOICE = PARAMETER | {"type": "choice".__eq__, "default": string, "values": lambda v: len(v) > 0}


def check(value, schema, place=""):
    if callable(schema):
        assert schema(value), f"{place}: {value!r}"
        return
    assert set(value) == set(schema), place
    for name in schema:
        check(value[name], schema[name], f"{place}.{name}")


def test_the_metadata_fit_the_label_schema():
    check(METADATA, SCHEMA)
    for parameter in METADATA["parameters"]:
        check(parameter, BOOLEAN if parameter["type"] == "boolean" else CHOICE, parameter["id"])
        for value in parameter.get("values", []):
            check(value, {"id": string, "name": text}, parameter["id"])


def test_the_metadata_say_what_the_server_takes():
    assert METADATA["general"]["version"] == udean.__version__
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
    assert dict(steps)["LABEL"] == f'"{LABEL}"="${{METADATA}}"'
    for name in ("HEALTHCHECK", "ENTRYPOINT", "CMD"):
        assert exec_form(name)


def test_the_image_gets_all_that_the_package_lists():
    lines = (OPENRECON / "Dockerfile.dockerignore").read_text().split()
    let_in = {line[1:] for line in lines if line.startswith("!")}
    rooms = {p.parent.relative_to(ROOT).parts[0] for p in ROOT.glob("*/__init__.py")} - {"tests", ".venv"}
    assert rooms | {"pyproject.toml", "constraints.txt", "__init__.py", "LICENSE", "README.md"} <= let_in
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
