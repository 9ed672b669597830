"""A file is whole or absent, whatever happens while it is written."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from udean.runtime import RunError
from udean.runtime.scan.scan import open_scan
from udean.runtime.system.files import (
    atomic,
    cache_folder,
    read_json,
    refuse_foreign,
    sha256,
    walk,
    write_json,
)


def test_the_name_appears_only_when_the_file_is_whole(tmp_path):
    path = tmp_path / "new" / "a.bin"
    with atomic(path) as file:
        file.write(b"whole")
        assert not path.exists()
    assert path.read_bytes() == b"whole" and os.listdir(path.parent) == ["a.bin"]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, OSError])
def test_failure_keeps_the_old_file_and_leaves_no_part(tmp_path, failure):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(RunError if failure is OSError else failure), atomic(path) as file:
        file.write(b"half")
        raise failure
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.bin"]


def test_a_folder_that_cannot_be_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="Cannot write"), atomic(tmp_path / "file" / "a.bin"):
        pass


def test_json_and_hash(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1, 2]})
    assert read_json(path) == {"a": [1, 2]}
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()
    write_json(path, {"a": [np.inf, {"b": (float("nan"), 2.5)}]})
    assert read_json(path) == {"a": [None, {"b": [None, 2.5]}]} and "NaN" not in path.read_text()
    path.write_text("[1")
    assert read_json(path) == {} == read_json(tmp_path / "none.json")
    with pytest.raises(RunError, match="Cannot read"):
        sha256(tmp_path / "none.json")


@pytest.mark.parametrize("asked", [None, "", "relative/cache"])
def test_what_is_cached_never_lands_in_the_working_folder(tmp_path, monkeypatch, asked):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if asked is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", asked)
    assert cache_folder() == tmp_path / ".cache" / "udean"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    assert cache_folder() == tmp_path / "elsewhere" / "udean"


def test_a_file_is_written_under_a_name_that_the_locale_cannot_read(tmp_path):
    """Python then holds each byte of it apart."""
    name = "İ" * 120 + ".json"
    (tmp_path / name).touch()
    write = (
        "import os, sys; from pathlib import Path; from udean.runtime.system.files import write_json\n"
        "write_json(Path(sys.argv[1], os.listdir(sys.argv[1])[0]), {})"
    )
    plain = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    subprocess.run([sys.executable, "-c", write, tmp_path], env=plain, check=True)
    assert (tmp_path / name).read_text() == "{}\n" and len(os.listdir(tmp_path)) == 1


def test_a_pipe_or_a_device_is_written_to_and_never_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    with atomic(tmp_path / "pipe") as file:
        file.write(b"through it")
    assert os.read(reader, 99) == b"through it" and os.listdir(tmp_path) == ["pipe"]
    os.close(reader)
    with atomic(Path(f"/dev/fd/{os.open(tmp_path / 'a', os.O_CREAT | os.O_WRONLY)}")) as file:
        file.write(b"shell's own")
    assert (tmp_path / "a").read_bytes() == b"shell's own"


def test_what_others_have_made_is_not_replaced(tmp_path):
    path = tmp_path / "page.html"
    refuse_foreign(path, "<title>Ours")
    path.write_text("")
    refuse_foreign(path, "<title>Ours")
    path.write_text("<!doctype html><title>Ours")
    refuse_foreign(path, "<title>Ours")
    path.write_text("notes")
    with pytest.raises(RunError, match="was not made by udean"):
        refuse_foreign(path, "<title>Ours")
    path.unlink()
    path.mkdir()
    with pytest.raises(RunError, match="Cannot write"):
        refuse_foreign(path, "<title>Ours")


def test_what_is_hidden_is_not_looked_into(tmp_path):
    for name in ("a", "b/c", ".d", ".e/f", "b/.g/h"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert {str(path.relative_to(tmp_path)) for path in walk(tmp_path)} == {"a", "b/c"}


def test_a_folder_that_disappears_while_it_is_searched_takes_no_other_with_it(tmp_path, caplog):
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").touch()
    found = []
    for path in walk(tmp_path):
        if not found:
            shutil.rmtree(tmp_path / "b")
        found.append(path.relative_to(tmp_path).as_posix())
    assert found == ["a/x", "c/x"] and f"{tmp_path / 'b'} has disappeared" in caplog.text
    with pytest.raises(RunError, match="No such file"):
        list(walk(tmp_path / "none"))


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mgz"])
def test_files_that_were_not_fetched_are_told_from_missing_and_damaged_ones(name, tmp_path):
    contents = {
        b"/annex/objects/MD5E-s9--d41d8cd9.nii.gz\n": "datalad get",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n": "git lfs pull",
    }
    for content, word in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RunError, match=word):
            open_scan(tmp_path / name)
    for link, word in (
        ("../.git/annex/objects/x/y/MD5E-s9--0.nii.gz", "datalad get"),
        ("nowhere", "link to nowhere, which does not exist"),
        (name, "link to"),
    ):
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to(link)
        with pytest.raises(RunError, match=word):
            open_scan(tmp_path / name)
