"""README, docs/ and the guides: every link leads somewhere, every command and option exists."""

import importlib
import importlib.util
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config

from .support.commands import here

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")]
SCRIPTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
LINK = re.compile(r"\[[^]]*\]\((?P<to>[^)#\s]+)(?:#[^)]*)?\)")
COMMAND = re.compile(r"\budean-[a-z-]+")


def command_lines(script):
    """The lines of all pages' code that call a command, and the page of each."""
    for page in PAGES:
        for line in page.read_text().splitlines():
            for code in [line] if line.startswith("    ") else re.findall(r"`([^`]+)`", line):
                name = script.replace("-", "[- ]", 1)  # udean run is udean-run
                for call in re.finditer(rf"(?:^|[\s(/]){name}(?=\s|\))(?P<rest>[^#]*)", code):
                    yield page.name, call["rest"]


def help_of(script, capsys, monkeypatch, *commands):
    """A command's help, in wide lines."""
    module, _, function = SCRIPTS[script].partition(":")
    monkeypatch.setenv("COLUMNS", "400")
    monkeypatch.setattr(sys, "argv", [script, *commands, "--help"])
    with pytest.raises(SystemExit) as end:
        getattr(importlib.import_module(module), function)()
    assert not end.value.code
    return capsys.readouterr().out


def test_the_site_is_built_without_a_warning(tmp_path):
    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    assert (tmp_path / "index.html").is_file() and (tmp_path / "api" / "index.html").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_is_dead(page):
    links = [match["to"] for match in LINK.finditer(page.read_text())]
    dead = [to for to in links if "://" not in to and not (page.parent / to).exists()]
    assert not dead


def test_udean_lists_every_command():
    told = here("udean", "--help").stdout
    assert all(re.search(rf"^ *{s.removeprefix('udean-')} ", told, re.M) for s in SCRIPTS if s != "udean")


@pytest.mark.parametrize("script", sorted(SCRIPTS.keys() - {"udean"}))
def test_the_pages_name_only_options_that_there_are(script, capsys, monkeypatch):
    told = help_of(script, capsys, monkeypatch)
    for page, rest in command_lines(script):
        words = shlex.split(rest, comments=True)
        asked = {word.split("=")[0] for word in words if re.match("--[a-z]", word)}
        assert all(re.search(rf"{option}\b", told) for option in asked), (page, asked)


def test_the_pages_name_only_commands_modules_and_targets_that_there_are():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        text = page.read_text()
        assert set(COMMAND.findall(text)) <= set(SCRIPTS) | NAMES, page.name
        for module in re.findall(r"python -m (udean[\w.]+)", text):
            assert importlib.util.find_spec(module), (page.name, module)
        assert set(re.findall(r"(?:`|^    )make ([a-z-]+)", text, re.MULTILINE)) <= targets, page.name


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 130 and len(text.split()) <= 1000


NAMES = {"udean-manifest", "udean-array", "udean-group"}  # files, not commands


def test_files_that_newcomers_are_sent_to_are_there():
    """A path is the checkout's, or lies in a folder that the same page names."""
    for page in ("CONTRIBUTING.md", "ARCHITECTURE.md"):
        text = (ROOT / page).read_text()
        named = set(re.findall(r"`((?:[a-z_]+/)+(?:[a-z_]+\.(?:py|cu|js|toml))?)`", text))
        assert len(named) > 5
        homes = [ROOT, *(ROOT / house for house in ("runtime", "trainer", "export", "benchmarks", "tests"))]
        assert [path for path in named if not any((home / path).exists() for home in homes)] == [], page
