"""Every start has a right end: versions, empty arguments, readers that leave, full disks, plain terminals."""

import os
import re
import resource
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import udean

from ...support.commands import here

BIN = Path(sys.executable).parent
SETTINGS = tomllib.loads((Path(udean.__file__).parent / "pyproject.toml").read_text())["project"]
COMMANDS = SETTINGS["entry-points"]["udean.commands"]


def run(*command, **options):
    options = {"capture_output": True, "text": True} | options
    return subprocess.run([BIN / command[0], *map(str, command[1:])], **options)


def scan(path, shape=(8, 8, 6)):
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(0).integers(0, 1000, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(data, np.diag([1, 1, 2, 1])), path)
    return path


@pytest.fixture
def scans(tmp_path):
    for name in "abc":
        scan(tmp_path / "scans" / f"{name}.nii.gz")
    return tmp_path / "scans"


def made(folder):
    return sorted(path.name for path in folder.glob("*_sr.nii.gz"))


ALL = ["a_sr.nii.gz", "b_sr.nii.gz", "c_sr.nii.gz"]


def test_every_program_is_a_command_and_starts_by_the_one_guarded_way():
    programs = {name.removeprefix("udean-"): target for name, target in SETTINGS["scripts"].items()}
    assert set(programs.values()) == {"udean.__main__:main"}, "scripts start at udean.__main__:main"
    assert set(programs) - {"udean"} <= set(COMMANDS), "a script needs an entry point of udean.commands"
    extras = {target.partition("[")[2].rstrip("]") for target in COMMANDS.values()} - {""}
    assert extras <= set(SETTINGS["optional-dependencies"])


def test_versions():
    said = run("udean", "--version").stdout
    assert re.fullmatch(rf"udean {re.escape(udean.__version__)} \(Python .*OpenVINO \d.*\)\n", said)
    for command in (
        ["udean-run", "--version"],
        ["udean", "eval", "--version"],
        ["udean-export", "--version"],
    ):
        done = run(*command)
        assert done.returncode == 0 and udean.__version__ in done.stdout
    done = run("python", "-m", "udean", cwd="/")
    assert done.returncode == 0 and udean.__version__ in done.stdout
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w", done.stdout, re.MULTILINE), "each is listed with a line about it"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_every_help_has_examples(name):
    done = here("udean", name, "--help")
    assert done.returncode == 0 and "Usage: udean " in done.stdout and "Example: " in done.stdout
    assert not re.search(r"<(list|str|path|int|float|bool)\b", done.stdout), "no Python in the user's words"


@pytest.mark.parametrize("columns", [80, 140])
def test_the_options_of_a_run_have_sections_and_the_common_ones_come_first(columns):
    done = here("udean", "run", "--help", COLUMNS=columns)
    words = "Options", "--engine", "--report", "Network", "--library", "Windows", "--overlap", "Scans", "--to"
    words += "BIDS", "--suffix", "Cohort", "--ray"
    places = [re.search(rf"^\W*{word}\b", done.stdout, re.MULTILINE).start() for word in words]
    assert places == sorted(places)


def test_a_run_loads_no_library_that_it_does_not_use(scans):
    """Each would make every start longer: nibabel loads pydicom, and OpenVINO its converter of models."""
    code = """if True:
        import atexit, sys
        from udean.__main__ import main
        unused = ("pydicom", "openvino.tools.ovc.convert", "torch", "onnx", "matplotlib", "ray")
        atexit.register(lambda: print([name for name in unused if sys.modules.get(name)], file=sys.stderr))
        main()
    """
    done = subprocess.run(
        [sys.executable, "-c", code, "run", scans / "a.nii.gz"], capture_output=True, text=True
    )
    assert done.returncode == 0 and "1 written" in done.stdout and done.stderr == "[]\n"


def test_an_unknown_command_is_a_sentence():
    done = here("udean", "rnu")
    assert done.returncode == 2 and done.stderr == "Error: udean has no command rnu: did you mean run?\n"


@pytest.mark.parametrize("command", ["udean-run", "udean-simulate", "udean-view"])
@pytest.mark.parametrize("arguments", [[""], ["scans", "-o", ""], ["scans", "--out="]])
def test_an_empty_argument_is_refused(command, arguments, tmp_path, monkeypatch):
    scan(tmp_path / "scans" / "a.nii.gz")
    monkeypatch.chdir(tmp_path)
    done = here(command, *arguments)
    assert done.returncode == 2 and "empty" in done.stderr and os.listdir(tmp_path) == ["scans"]


@pytest.mark.parametrize(
    "command",
    [
        ["udean-run", "none.nii.gz"],
        ["udean-run", "a.nii.gz", "none"],
        ["udean-simulate", "none", "-o", "lr"],
        ["udean-eval", "--sr", "none", "--hr", "a.nii.gz"],
        ["udean-view", "none"],
        ["udean-export", "none.pt"],
        ["udean-serve", "--engine", "none.onnx", "--port", "0"],
        ["udean-train", "--source", "none", "--target", "a.nii.gz"],
    ],
    ids=" ".join,
)
def test_a_mistyped_path_is_a_sentence_and_nothing_is_written(command, tmp_path, monkeypatch):
    scan(tmp_path / "a.nii.gz")
    monkeypatch.chdir(tmp_path)
    done = here(*command)
    assert done.returncode == 2 and "none" in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("udean-manifest*")) and not (tmp_path / "lr").exists()


def test_a_reader_that_leaves_does_not_end_the_work(scans):
    with subprocess.Popen(
        [BIN / "udean-run", scans], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read()
        assert process.wait() == 0 and said == b""
    assert made(scans.with_name("scans-sr")) == ALL


def test_a_full_disk_under_stdout_is_told_once_and_does_not_end_the_work(scans):
    with open("/dev/full", "w") as full:
        done = run("udean-run", scans, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 0 and done.stderr.count("No space left") == 1 == len(done.stderr.splitlines())
    assert made(scans.with_name("scans-sr")) == ALL


@pytest.mark.parametrize("closed", [[1], [0, 1, 2]], ids=str)
def test_closed_streams_do_not_end_the_work_nor_write_into_results(closed, scans):
    def close():
        for number in closed:
            os.close(number)

    done = subprocess.run([BIN / "udean-run", scans], preexec_fn=close, stdin=subprocess.DEVNULL)
    assert done.returncode == 0 and made(scans.with_name("scans-sr")) == ALL
    assert nib.load(scans.with_name("scans-sr") / "a_sr.nii.gz").get_fdata().shape == (16, 16, 12)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_terminals_without_unicode(encoding, scans):
    (scans / "a.nii.gz").rename(scans / "größe–1.nii.gz")
    env = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    for command in (["udean-run", scans, "--report"], ["udean-run", "--help"], ["udean"]):
        done = run(*command, env=env, text=False)
        assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
        done.stdout.decode(encoding)


def test_names_that_are_not_unicode(tmp_path):
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(folder)
    os.rename(scan(tmp_path / "x.nii.gz", (24, 24, 16)), folder + b"/m\xfcde.nii.gz")
    done = subprocess.run([BIN / "udean-run", folder, "--report"], capture_output=True)
    assert done.returncode == 0 and b"Traceback" not in done.stderr, done.stderr
    name = os.fsdecode(folder)  # as Python has it among a command's arguments
    for command in (
        ["udean-status", f"{name}-sr"],
        ["udean-run", "status", f"{name}-sr"],
        ["udean-simulate", name, "-o", f"{name}-lr"],
        ["udean-eval", "--sr", "tricubic", "--lr", f"{name}-lr", "--hr", name, "--csv", f"{name}/f.csv"],
    ):
        told = here(*command)
        assert told.returncode == 0 and "Traceback" not in told.stderr, told.stderr
    assert os.path.exists(folder + b"-sr/m\xfcde_sr.nii.gz") and os.path.exists(
        folder + b"-lr/m\xfcde.nii.gz"
    )
    assert b"m\xfcde" in Path(os.fsdecode(folder + b"/f.csv")).read_bytes()


def test_a_name_neither_breaks_a_line_nor_commands_the_terminal(capsys):
    from udean.runtime.commands.streams import say
    from udean.runtime.commands.tables import show_table

    say("a\nb\x1b[31m\u202ec\t größe🧠 \udcff.nii -> x", error=True)
    assert capsys.readouterr().err == r"a\nb\x1b[31m\u202ec\t größe🧠 \udcff.nii -> x" + "\n"
    show_table(["scan", "dB"], [["[a]\nb\x1b[31m", "[b]1[/b]"], ["c", "2"]])
    table = capsys.readouterr().out
    assert r"[a]\nb\x1b[31m" in table and "[b]1[/b]" in table
    done = here("udean-run", "no\nsuch\x1b.nii")
    assert done.stderr.count("\n") == 1 and r"no\nsuch\x1b.nii" in done.stderr


@pytest.mark.parametrize("columns", [30, 80, 300])
def test_no_figure_is_cut_off_by_a_narrow_terminal(columns, capsys, monkeypatch):
    from udean.runtime.commands.tables import show_table

    monkeypatch.setenv("COLUMNS", str(columns))
    names = [f"figure {n} of some name" for n in range(9)]
    rows = [[f"sub-{n}_ses-baseline_acq-mprage_T1w", *(f"{n}.{m}234" for m in range(9))] for n in range(3)]
    rows += [["mean ± sd", *(f"{m}.1234 ± 0.5678" for m in range(9))]]
    show_table(["scan", *names], rows)
    said = capsys.readouterr().out
    assert "…" not in said and max(map(len, said.splitlines())) <= max(columns, 40)
    for row in rows:
        for cell in row[1:]:
            assert cell in said


def test_too_little_memory_is_a_sentence(tmp_path):
    source = tmp_path / "a.nii"
    data = np.resize(np.arange(1000, dtype=np.int16), (400, 400, 200))
    nib.save(nib.Nifti1Image(data, np.diag([1, 1, 2, 1])), source)

    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (700 << 20, 700 << 20))

    for command in (
        ["udean-run", "--dtype", "float32", source],
        ["udean-simulate", source, "-o", tmp_path / "lr"],
        ["udean-eval", "--sr", source, "--hr", source],
    ):
        done = run(*command, preexec_fn=limit, env=os.environ | {"OPENBLAS_NUM_THREADS": "1"})
        # OpenBLAS ends a process itself, in words of its own: "Memory allocation still failed".
        assert done.returncode in (1, 2) and "memory" in done.stderr.lower(), done
        assert "Traceback" not in done.stderr and "should not" not in done.stderr, done


def test_an_interruption_is_a_word_and_leaves_nothing_half_written(tmp_path):
    for n in range(40):
        scan(tmp_path / "hr" / f"{n}.nii.gz", (32, 32, 32))
    pipe = subprocess.PIPE
    command = [BIN / "udean-simulate", "hr", "-o", "lr"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=pipe, stdout=pipe, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "lr").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGHUP)  # its terminal was closed
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and said.endswith("Interrupted.\n") and "Traceback" not in said
    assert not list((tmp_path / "lr").glob(".*"))


@pytest.mark.parametrize(
    ("module", "stop"),
    [
        ("typer", signal.SIGINT),
        ("pydantic_core", signal.SIGTERM),
        ("openvino", signal.SIGINT),
        ("nibabel.loadsave", signal.SIGTERM),
    ],
)
def test_an_interruption_inside_a_library_is_one_all_the_same(module, stop, tmp_path, scans):
    """It comes while the module is imported, which makes an error of its own of it, as compiled ones do."""
    (tmp_path / "sitecustomize.py").write_text(f"""
import os, sys

class Interrupting:
    def find_spec(self, name, *_):
        if name == "{module}":
            try:
                os.kill(os.getpid(), {stop.value})
            except KeyboardInterrupt:
                raise ImportError("initialization failed")

sys.meta_path.insert(0, Interrupting())
""")
    done = run("udean-run", scans, "-o", tmp_path / "out", env=os.environ | {"PYTHONPATH": str(tmp_path)})
    assert (done.returncode, done.stderr.splitlines()[-1]) == (130, "Interrupted.") and not done.stdout
    assert "Traceback" not in done.stderr and not list(tmp_path.glob("out/*"))


@pytest.mark.parametrize(
    ("server", "stop"),
    [("serve", signal.SIGTERM), ("view", signal.SIGINT), ("dicom-node", signal.SIGTERM)],
)
def test_a_server_ends_whichever_of_its_threads_the_system_hands_the_signal(server, stop, tmp_path):
    """To the main thread, if it can; under strace or a debugger it often cannot."""
    scan(tmp_path / "scans" / "a.nii")
    if server == "view":
        assert here("udean-run", tmp_path / "scans", "-o", tmp_path / "out").returncode == 0
    arguments = {
        "serve": "--port 0 --metrics-port 0",
        "view": "out",
        "dicom-node": "--to A@127.0.0.1:9 --allow B --spool spool --port 0 --metrics-port 0",
    }
    last = {"serve": "Listening", "view": "Ctrl-C", "dicom-node": "Health"}[server]
    command = [BIN / f"udean-{server}", *arguments[server].split()]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        while last not in (line := process.stdout.readline()):
            assert line, "it has ended"
        while not (others := {*os.listdir(f"/proc/{process.pid}/task")} - {str(process.pid)}):
            time.sleep(0.01)
        os.kill(max(map(int, others)), stop)  # by its own number, a thread is the first to be asked
        try:
            assert process.wait(30) == 0
        finally:
            process.kill()


def test_the_shell_completes_commands_and_options():
    script = """
    eval "$(udean completion bash)"
    try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); $COMPLETE "$1"; echo "${COMPREPLY[*]}"; }
    COMPLETE=_udean_completion try udean ru
    COMPLETE=_udean_completion try udean run --overw
    COMPLETE=_udean_run_completion try udean-run --libr
    """
    env = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=env)
    assert done.stdout.split("\n")[:3] == ["run", "--overwrite", "--library"], done


def test_the_doctor_says_what_would_run_and_why():
    done = here("udean", "doctor")
    assert done.returncode == 0
    for word in ("openvino", "cores", "GPU: ", "udean-run would use", "because"):
        assert word in done.stdout


@pytest.mark.parametrize("command", ["udean-run --overwite s", "udean-run", "udean-view s --port 70000"])
def test_what_is_not_understood_is_one_line_however_narrow_the_terminal(command):
    done = here(*command.split(), COLUMNS=30)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2 and line.startswith("Error: ") and "--help" in line


@pytest.mark.parametrize("name", ["dicom-node", "train"])
def test_a_narrow_terminal_cuts_no_option_off(name):
    done = here("udean", name, "--help", COLUMNS=40)
    assert done.returncode == 0 and "…" not in done.stdout
    assert "--max-associations-per-peer" in done.stdout or "--validation-hr" in done.stdout
