"""The edge of every command, as real processes: status and what is printed."""

import subprocess
import sys

import pytest

START = """
import signal, sys, time
from pipeline.command import EXIT_DONE, InputError, end_on_sigterm, run_command

class Finalised:
    def __del__(self):
        signal.raise_signal(NUMBER)

def main():
    end_on_sigterm()
    BODY
    time.sleep(60)
    return EXIT_DONE

run_command(main)
"""


def run(body: str, number: str = "signal.SIGINT") -> tuple[int, str, str]:
    code = START.replace("BODY", body).replace("NUMBER", number)
    # A shell's background jobs, tests too, ignore Ctrl-C.
    command = ["env", "--default-signal=INT", sys.executable, "-c", code]
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
