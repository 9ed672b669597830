"""Who may import whom (ARCHITECTURE.md), and what an import may cost."""

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import udean

ROOT = Path(udean.__file__).parent
ROOMS = ("runtime", "trainer", "export", "benchmarks", "recipes")  # each may import those before it
# The rooms inside runtime/, from the ground up; rooms on one floor do not know each other.
FLOORS = (
    ("errors",),
    ("system",),
    ("models",),
    ("scan",),
    ("pipeline", "job"),
    ("cuda",),
    ("engines",),
    ("task",),
    ("stages", "arguments"),
    ("resolver",),
    ("dicom", "mrd"),
    ("run",),
    ("view", "cluster", "trust"),
    ("commands",),
    ("cli",),  # `python -m udean.runtime.cli`
)
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}
# What opens a checkpoint needs the trainer: it alone looks up, and says so.
EXCEPTIONS = {("runtime/engines/checkpoint.py", "trainer")}
FILES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))
RUNTIME = [p for p in FILES if p.is_relative_to(ROOT / "runtime") and p.parent != ROOT / "runtime"]
RUNTIME += [ROOT / f"runtime/{name}.py" for name in ("cli", "resolver", "arguments", "task", "job", "errors")]


def imports(file):
    """The imports of this package in a file, as paths: ("runtime", "scan", "scan", "Scan")."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            package = list(file.relative_to(ROOT).parts[:-1])
            base = package[: len(package) - node.level + 1] if node.level else []
            path = [*base, *(node.module or "").split(".")] if node.level else (node.module or "").split(".")
            if not node.level and path[0] != "udean":
                continue
            path = [p for p in path if p not in ("", "udean")]
            yield from ((*path, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (tuple(a.name.split(".")[1:]) for a in node.names if a.name.startswith("udean."))


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_downwards_only(file):
    place = str(file.relative_to(ROOT))
    room = ROOMS.index(file.relative_to(ROOT).parts[0])
    for other, *_ in imports(file):
        if other in ROOMS and (place, other) not in EXCEPTIONS:
            assert ROOMS.index(other) <= room, f"{place} imports {other}"


def floor_of(path):
    return FLOOR[Path(path[1]).stem] if len(path) > 1 and Path(path[1]).stem in FLOOR else None


@pytest.mark.parametrize("file", RUNTIME, ids=lambda p: str(p.relative_to(ROOT / "runtime")))
def test_inside_the_runtime_imports_go_down_the_floors(file):
    own = file.relative_to(ROOT).parts
    for path in imports(file):
        if path[0] == "runtime" and Path(path[1]).stem != Path(own[1]).stem and floor_of(path) is not None:
            assert floor_of(path) < floor_of(own), f"{'/'.join(own)} imports {'.'.join(path)}"


def test_every_room_of_the_runtime_has_a_floor():
    rooms = {
        p.stem for p in (ROOT / "runtime").iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()
    }
    assert rooms - {"__init__"} == set(FLOOR)


def test_the_order_of_the_rooms_can_be_drawn(capsys):
    """Prints how often each room imports each other one: `pytest -s -k drawn`."""
    arrows = {}
    for file in RUNTIME:
        own = Path(file.relative_to(ROOT).parts[1]).stem
        for path in imports(file):
            other = Path(path[1]).stem if path[0] == "runtime" and len(path) > 1 else own
            if other != own and other in FLOOR:
                arrows[own, other] = arrows.get((own, other), 0) + 1
    with capsys.disabled():
        for floor in reversed(FLOORS):
            for room in floor:
                below = ", ".join(f"{b} {n}" for (a, b), n in sorted(arrows.items()) if a == room)
                print(f"\n  {room:>9} -> {below}", end="")
        print(f"\n  {len(FLOOR)} rooms, {len(arrows)} arrows, none up")
    assert not [(a, b) for a, b in arrows if (b, a) in arrows], "no circles"


def test_the_import_reader_sees_what_it_should():
    assert "trainer" in {path[0] for path in imports(ROOT / "runtime/engines/checkpoint.py")}
    assert "runtime" in {path[0] for path in imports(ROOT / "trainer/checkpoint.py")}
    assert ("runtime", "errors", "RunError") in set(imports(ROOT / "runtime/scan/slices.py"))


LIGHT = ["udean", "udean.runtime", "udean.runtime.commands.run", "udean.trainer.simulation.kspace"]


def test_light_imports_stay_light():
    """All of them in one process: what is loaded by none is loaded by no single one."""
    heavy = "torch,onnx,onnxruntime,openvino,lightning_fabric,matplotlib,nilearn,skimage"
    code = f"import sys, {', '.join(LIGHT)}; print([m for m in '{heavy}'.split(',') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_room_is_in_the_distribution():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {"udean"} | {f"udean.{'.'.join(p.parent.relative_to(ROOT).parts)}" for p in FILES}
    assert set(settings["packages"]) == found | set(settings["package-data"])
    for package, patterns in settings["package-data"].items():
        folder = ROOT.joinpath(*package.split(".")[1:])
        assert all(list(folder.glob(pattern)) for pattern in patterns), package
