"""The edge of every command, as real processes: status and what is printed."""

import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pipeline.command import InputError

START = """
import signal, sys, time
from pipeline.command import EXIT_DONE, InputError, end_on_signals, run_command

class Finalised:
    def __del__(self):
        signal.raise_signal(NUMBER)

def main():
    end_on_signals()
    BODY
    time.sleep(60)
    return EXIT_DONE

run_command(main)
"""


def run(body: str, number: str = "signal.SIGINT") -> tuple[int, str, str]:
    code = START.replace("BODY", body).replace("NUMBER", number)
    # A shell's background jobs ignore Ctrl-C, those of nohup SIGHUP; tests may be either.
    command = ["env", "--default-signal=INT,HUP", sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(("number", "status"), [("signal.SIGINT", 130), ("signal.SIGTERM", 143)])
@pytest.mark.parametrize("body", ["signal.raise_signal(NUMBER)", "Finalised()"])
def test_a_signal_ends_a_command_even_in_a_finaliser(body: str, number: str, status: int) -> None:
    assert run(f"print('before'); {body}", number) == (status, "before\n", "")


def test_a_wrong_call_is_one_line() -> None:
    assert run("raise InputError('wrong')") == (2, "", "error: wrong\n")


def test_other_faults_of_a_finaliser_are_told_and_do_not_end_it() -> None:
    body = "Finalised.__del__ = lambda self: 1 / 0; Finalised(); print('after'); return EXIT_DONE"
    status, printed, errors = run(body)
    assert (status, printed) == (0, "after\n") and "ZeroDivisionError" in errors


def test_the_error_comes_last_where_both_streams_are_one() -> None:
    code = START.replace("BODY", "print('before'); raise InputError('wrong')").replace("NUMBER", "signal.SIGINT")
    command = ["env", "--unset=PYTHONUNBUFFERED", sys.executable, "-c", code]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=50)
    assert (done.returncode, done.stdout) == (2, "before\nerror: wrong\n")


# Prints on both streams, with a child that prints too; keeps a file open meanwhile, which must not get what is printed.
PRINTING = """
import os, subprocess, sys
from pipeline.command import EXIT_FAULTS, output_of, run_command

def main():
    kept = open(sys.argv[1], "wb")
    for _ in range(3):
        sys.stdout.write("out" * 1000 + "\\n")
        sys.stderr.write("err" * 1000 + "\\n")
        sys.stdout.flush()
    child = subprocess.run([sys.executable, "-c", "import os; os.fstat(0), os.fstat(1), os.fstat(2)"])
    lost = [output_of(stream).lost for stream in (sys.stdout, sys.stderr)]
    kept.write(f"{child.returncode} {sys.stdin.read()} {lost}".encode())
    return EXIT_FAULTS

run_command(main, results=RESULTS)
"""


def printing(tmp_path: Path, shell: str, results: bool = False, **options: Any) -> tuple[int, str, str]:
    """Its status and what it kept and printed, with its streams as a shell redirects them."""
    code, kept = PRINTING.replace("RESULTS", str(results)), tmp_path / "kept"
    words = ["bash", "-c", f'exec "$@" {shell}', "bash", sys.executable, "-c", code, str(kept)]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, timeout=50, **options)
    return done.returncode, kept.read_text(), done.stderr


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_dev_null(tmp_path: Path, closed: str) -> None:
    status, kept, _ = printing(tmp_path, closed)
    assert status == 1 and kept == "0  [0, 0]"


@pytest.mark.parametrize("full", [">/dev/full", "2>/dev/full", ">/dev/full 2>&1"])
def test_a_full_disk_costs_what_is_printed_and_not_the_work(tmp_path: Path, full: str) -> None:
    status, kept, errors = printing(tmp_path, full)
    assert status == 1 and "Traceback" not in errors
    assert kept.startswith("0 ") and not kept.endswith("[0, 0]")


def test_results_that_do_not_fit_are_a_fault_of_the_command(tmp_path: Path) -> None:
    status, _, errors = printing(tmp_path, ">/dev/full", results=True)
    last = errors.splitlines()[-1]
    assert status == 2 and last.startswith("error: stdout cannot be written (No space left on device), expected room")


@pytest.mark.parametrize("results", [False, True])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_reader_that_has_gone_changes_nothing(tmp_path: Path, stream: str, results: bool) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    code, kept = PRINTING.replace("RESULTS", str(results)), tmp_path / "kept"
    nowhere = subprocess.DEVNULL
    streams: dict[str, Any] = {"stdin": nowhere, "stdout": nowhere, "stderr": nowhere, stream: writing}
    assert subprocess.run([sys.executable, "-c", code, kept], **streams, timeout=50).returncode == 1
    os.close(writing)
    assert not kept.read_text().endswith("[0, 0]")


def test_a_terminal_that_is_closed_changes_nothing(tmp_path: Path) -> None:
    terminal, device = pty.openpty()
    os.close(terminal)  # what is written to the device fails with EIO now
    code, kept = PRINTING.replace("RESULTS", "True"), tmp_path / "kept"
    done = subprocess.run([sys.executable, "-c", code, kept], stdin=subprocess.DEVNULL, stdout=device, stderr=device)
    os.close(device)
    assert done.returncode == 1 and "[0, 0]" not in kept.read_text()


def test_a_pipe_that_does_not_block_gets_everything(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    code = "import sys; from pipeline.command import run_command\n"
    code += "run_command(lambda: sys.stdout.write('x' * 300_000) - 300_000)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=writing) as process:
        os.close(writing)
        with os.fdopen(reading, "rb") as stream:
            assert stream.read() == b"x" * 300_000
    assert process.returncode == 0


@pytest.fixture
def wide_name(tmp_path: Path) -> str:
    """A name that ASCII has no letters for."""
    (tmp_path / "großer Hai").mkdir()
    return "großer Hai"


LISTING = """
import os, subprocess, sys
from pipeline.command import run_command

IN_UTF8 = "import sys; sys.exit(sys.getfilesystemencoding() != 'utf-8')"

def main():
    (name,) = os.listdir(sys.argv[1])
    sys.stdout.write(f"{sys.argv[2] == name} {os.fsencode(name) == 'großer Hai'.encode()} {name}\\n")
    return subprocess.run([sys.executable, "-c", IN_UTF8]).returncode

run_command(main)
"""


@pytest.mark.parametrize(
    ("environment", "shown"),
    [
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, "großer Hai"),
        (
            {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"},
            "gro\\xdfer Hai",
        ),
        ({"PYTHONIOENCODING": "ascii"}, "gro\\xdfer Hai"),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else "",
)
def test_names_are_utf_8_in_any_locale(tmp_path: Path, wide_name: str, environment: dict[str, str], shown: str) -> None:
    script = tmp_path.parent / "listing.py"
    script.write_text(LISTING, encoding="utf-8")
    words = [sys.executable, script, tmp_path, wide_name]
    env = {**os.environ, "PYTHONPATH": str(Path.cwd()), **environment}
    done = subprocess.run(words, capture_output=True, env=env, timeout=50)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, f"True True {shown}\n", b"")


def test_a_home_that_no_shell_has_expanded_is(tmp_path: Path) -> None:
    code = "import sys; from pipeline.command import run_command\n"
    code += "run_command(lambda: print(*sys.argv[1:], sep='|') or 0)"
    given = ["~/a", "--out=~/b", "--word=a~/c", "./~/d", "--~", "x=~/e", "--out=s3://~/f"]
    done = subprocess.run(
        [sys.executable, "-c", code, *given], capture_output=True, text=True, env=os.environ | {"HOME": "/h"}
    )
    assert done.stdout == "/h/a|--out=/h/b|--word=a~/c|./~/d|--~|x=~/e|--out=s3://~/f\n"


def test_an_error_stays_on_its_line_whatever_a_path_holds() -> None:
    assert run("raise InputError('no a\\nb\\x1b[2J\\udcff')") == (2, "", "error: no a\\nb\\x1b[2J\\udcff\n")


HANGING_UP = "signal.raise_signal(signal.SIGHUP); print('after'); return EXIT_DONE"


def test_a_closed_terminal_ends_a_command_in_order() -> None:
    assert run(f"print('before'); {HANGING_UP}") == (129, "before\n", "")


def test_nohup_is_respected() -> None:
    code = START.replace("BODY", HANGING_UP).replace("NUMBER", "0")
    words = ["env", "--ignore-signal=HUP", sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (0, "after\n", "")


def test_no_line_waits_where_python_is_unbuffered() -> None:
    """As under torchrun and in containers, where a process may be killed at any time."""
    code = "import os, sys; from pipeline.command import run_command, say\n"
    code += "run_command(lambda: (say('told'), print('shown'), os.abort()))"
    done = subprocess.run([sys.executable, "-u", "-c", code], capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (-6, "shown\n", "told\n")


def test_an_error_is_one_printable_line_whatever_is_named_in_it() -> None:
    assert str(InputError("no folder pêche\n\x1b[0m\udcff")) == r"no folder pêche\n\x1b[0m\udcff"
