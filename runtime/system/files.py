"""Files and folders that are whole or absent: atomic writes, sidecars, hashes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import secrets
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import DiskError, RunError

try:
    import fcntl
except ImportError:  # Windows: an open file cannot be removed, which serves as well
    fcntl = None

DEVICES = ("/dev/", "/proc/")  # where no file is made: /dev/stdout, /dev/fd/63
POINTER = 1 << 10  # bytes; pointers to a file are shorter
LARGEST = 1 << 28  # bytes of a file that is looked through for a mark
PART = re.compile(r"\.(?P<name>.*)\.\d+\.part")

log = logging.getLogger("udean")


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Write a file that appears under its name only when it is complete and on disk.

    The bytes go to a temporary name in the same folder, are synced, and replace the target in one step.
    On any failure, interruption included, the temporary file is removed and an older target stays. What is
    no file, such as a pipe or /dev/stdout, is written to as it is and never replaced.
    Raises DiskError if the system refuses: no permission, no space.
    """
    if _is_stream(path):
        try:
            with open(path, "wb") as stream:
                yield stream
        except OSError as error:
            raise DiskError(f"Cannot write {path}: {error.strerror or error}.") from error
        return
    partial = _partial(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "w+b") as file:
            with contextlib.suppress(OSError):  # some file systems have no locks
                lock(file)  # whoever sweeps knows by it that the writer lives
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise DiskError(f"Cannot write {path}: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Fill a folder that appears under its name only when it is complete and on disk.

    Yields an empty folder beside it, whose files the caller writes and syncs; then it takes the place of an
    older one of the name. On any failure it is removed and the older one stays. Killed between the two
    renames, it leaves no folder of the name, and both as temporary ones. Raises DiskError as `atomic`.
    """
    partial, older = _partial(path), _partial(path)
    with contextlib.ExitStack() as locks:
        try:
            partial.mkdir(parents=True)
            with contextlib.suppress(OSError):  # some file systems have no locks
                locks.enter_context(_locked_folder(partial))
            yield partial
            _sync_folder(partial)
            if path.exists():
                os.replace(path, older)
            try:
                os.replace(partial, path)
            except OSError:
                if older.exists():
                    os.replace(older, path)
                raise
            _sync_folder(path.parent)
        except OSError as error:
            raise DiskError(f"Cannot write {path}: {error.strerror or error}.") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            shutil.rmtree(older, ignore_errors=True)


def refuse_foreign(path: Path, mark: str) -> None:
    """Raise RunError if a file is there that does not hold this text, by which our own of its kind are known.

    For places where a result is to be written: nothing of others is replaced. Empty files are nobody's.
    """
    if _is_stream(path) or not os.path.lexists(path):
        return
    try:
        foreign = path.stat().st_size > LARGEST or ((data := path.read_bytes()) and mark.encode() not in data)
    except OSError as error:
        raise RunError(f"Cannot write {path}: {error.strerror or error}.") from error
    if foreign:
        raise RunError(f"{path} already exists and was not made by udean: move it, or choose another place.")


def _is_stream(path: Path) -> bool:
    """Whether a path is a pipe, a device or another that holds no file."""
    if os.path.abspath(path).startswith(DEVICES):
        return os.path.exists(path)
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def make_folder(path: Path) -> None:
    """Make a folder, if it is not there. Raises RunError if that cannot be, or it cannot be written to."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(
            f"Cannot make the output folder {path}: {error.strerror}. Choose another with -o."
        ) from error
    if not os.access(path, os.W_OK | os.X_OK):
        raise RunError(f"The output folder {path} is not writable: choose another with -o.")


def sweep(folder: Path, names: set[str]) -> None:
    """Remove what killed processes have left of these files and folders; those of living ones stay."""
    short = {_short(name) for name in names}
    with contextlib.suppress(OSError):
        for partial in folder.glob(".*.part"):
            match = PART.fullmatch(partial.name)
            if match and match["name"] in short:
                with contextlib.suppress(OSError):
                    if partial.is_dir():
                        with _locked_folder(partial):
                            shutil.rmtree(partial, ignore_errors=True)
                        continue
                    with open(partial, "rb") as file:
                        lock(file)
                        partial.unlink(missing_ok=True)


def _partial(path: Path) -> Path:
    # A random number: machines that share the folder may have processes of one number.
    return path.with_name(f".{_short(path.name)}.{secrets.randbits(48)}.part")


@contextlib.contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, if the system has such locks. Raises OSError if another process has it."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _short(name: str) -> str:
    """A name, or so much of it that a temporary one is no longer than the system allows (255 bytes)."""
    return os.fsencode(name)[:200].decode(sys.getfilesystemencoding(), "ignore")


def lock(file: BinaryIO, wait: bool = False) -> None:
    """Lock a file while it is open, on this machine and others.

    Raises OSError if another process has it (without `wait`), or if the file system has no locks.
    """
    if fcntl:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def is_locked(path: Path) -> bool:
    """Whether a living process has locked this file; False if unknown."""
    try:
        with open(path, "rb") as file:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def write_json(path: Path, value: dict[str, Any], indent: int | None = 2) -> None:
    """Write JSON atomically, keys in the order given. What JSON has no number for (NaN, Inf) becomes null."""
    with atomic(path) as file:
        file.write((json.dumps(_finite(value), indent=indent, allow_nan=False) + "\n").encode())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; empty if the file is missing, unreadable or something else."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hex. Raises DiskError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DiskError(f"Cannot read {path}: {error.strerror or error}.") from error


def cache_folder() -> Path:
    """The user's folder for what udean can make again; it need not exist.

    Source: XDG Base Directory Specification, by which an empty or relative XDG_CACHE_HOME is ignored.
    Raises RunError if there is none: a container's user without a home folder.
    """
    asked = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(asked):
        return Path(asked) / "udean"
    try:
        return Path.home() / ".cache" / "udean"
    except RuntimeError:
        raise RunError("This user has no home folder for what is cached: set XDG_CACHE_HOME.") from None


def check_file(path: Path) -> None:
    """Raise RunError if a path is not a file that holds what its name says.

    Datasets under git-annex (DataLad) and Git LFS have links to nowhere, or pointers, in the place of files
    that have not been fetched.
    """
    if path.is_file():
        pointer = b""
        if path.stat().st_size < POINTER:
            with open(path, "rb") as file:
                pointer = file.read(64)
        if pointer.startswith(b"/annex/objects/"):
            raise RunError(f"{path} has not been fetched: datalad get, or git annex get, does so.")
        if pointer.startswith(b"version https://git-lfs"):
            raise RunError(f"{path} has not been fetched: git lfs pull does so.")
        return
    if path.exists():
        raise RunError(f"{path} is not a file.")
    if not path.is_symlink():
        raise RunError(f"{path} does not exist.")
    link = os.readlink(path)
    if ".git/annex/" in link:
        raise RunError(f"{path} has not been fetched: datalad get, or git annex get, does so.")
    raise RunError(f"{path} is a link to {link}, which does not exist.")


def real_path(*parts: str | Path) -> Path:
    """A path without links; what cannot be followed, such as a loop of links, stays as it is."""
    return Path(os.path.realpath(os.path.join(*parts)))


def walk(folder: Path) -> Iterator[Path]:
    """The files below a folder that are not hidden, nor in a hidden one.

    Through links, each real folder once: links may go round in circles. The user is told of a folder that is
    removed meanwhile. Raises RunError if one cannot be read.
    """
    seen = set()

    def refuse(error: OSError) -> None:
        if isinstance(error, FileNotFoundError) and error.filename != str(folder):
            log.warning("%s has disappeared while it was searched: what it held is left out.", error.filename)
            return
        raise RunError(f"Cannot read {error.filename}: {error.strerror}.") from error

    for path, below, names in os.walk(folder, onerror=refuse, followlinks=True):
        below[:] = sorted(name for name in below if not name.startswith("."))
        if (real := real_path(path)) in seen:
            below.clear()
            continue
        seen.add(real)
        yield from (Path(path, name) for name in names if not name.startswith("."))


def _sync_folder(folder: Path) -> None:
    """Make the new name itself durable, if the system lets a folder be opened."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def printable(text: str) -> str:
    """A text in one line without codes that terminals obey."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
