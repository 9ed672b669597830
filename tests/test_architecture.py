"""Who may import whom (ARCHITECTURE.md), and what an import may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import udean

ROOT = Path(udean.__file__).parent
ROOMS = ("runtime", "trainer", "export", "benchmarks")  # each may import those before it
# What opens a checkpoint needs the trainer: it alone looks up, and says so.
EXCEPTIONS = {("runtime/engines/checkpoint.py", "trainer")}
FILES = sorted(p for room in ROOMS for p in (ROOT / room).rglob("*.py"))


def imported_rooms(file):
    """Rooms that a file imports, relatively or by the name udean."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            package = list(file.relative_to(ROOT).parts[:-1])
            base = package[: len(package) - node.level + 1] if node.level else []
            path = [*base, *(node.module or "").split(".")] if node.level else (node.module or "").split(".")
            if not node.level and path[0] != "udean":
                continue
            path = [p for p in path if p not in ("", "udean")]
            yield from [path[0]] if path else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (a.name.split(".")[1] for a in node.names if a.name.startswith("udean."))


@pytest.mark.parametrize("file", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_downwards_only(file):
    place = str(file.relative_to(ROOT))
    room = ROOMS.index(file.relative_to(ROOT).parts[0])
    for other in imported_rooms(file):
        if other in ROOMS and (place, other) not in EXCEPTIONS:
            assert ROOMS.index(other) <= room, f"{place} imports {other}"


def test_the_import_reader_sees_what_it_should():
    assert "trainer" in set(imported_rooms(ROOT / "runtime/engines/checkpoint.py"))
    assert "runtime" in set(imported_rooms(ROOT / "trainer/checkpoint.py"))


@pytest.mark.parametrize(
    "module", ["udean", "udean.runtime", "udean.runtime.commands.run", "udean.trainer.simulation.kspace"]
)
def test_light_imports_stay_light(module):
    heavy = "torch,onnx,onnxruntime,openvino,lightning_fabric,matplotlib,nilearn,skimage"
    code = f"import sys, {module}; print([m for m in '{heavy}'.split(',') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_room_is_in_the_distribution():
    import tomllib

    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {"udean"} | {f"udean.{'.'.join(p.parent.relative_to(ROOT).parts)}" for p in FILES}
    assert set(settings["packages"]) == found | set(settings["package-data"])
    for package, patterns in settings["package-data"].items():
        folder = ROOT.joinpath(*package.split(".")[1:])
        assert all(list(folder.glob(pattern)) for pattern in patterns), package
