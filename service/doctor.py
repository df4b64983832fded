"""COMMAND python -m service.doctor: what this machine gives, what would break training on it, and the flags to use."""

# What is imported here needs only the standard library: this command must be able to say that a package is missing.
import json
import sys
import textwrap
from contextlib import nullcontext
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipeline.command import EXIT_DONE, EXIT_FAULTS, InputError, end_on_signals, run_command

if TYPE_CHECKING:
    from service.diagnostics.checks import CheckResult
    from service.diagnostics.finding import Finding, Status

SCHEMA_VERSION: Final = 1
MARKS: Final = {"ok": ("ok", "green"), "warning": ("warn", "yellow"), "failed": ("FAIL", "bold red")}
INDENT: Final = 18  # columns before what was found


def lines_of(finding: "Finding", width: int | None) -> list[str]:
    """A finding as text after its mark: what was found, what follows, and what to do; width None: unwrapped."""
    paragraphs = [finding.found, finding.follows, finding.remedy and f"-> {finding.remedy}"]
    lines = []
    for text in filter(None, paragraphs):
        after = "   " if text.startswith("-> ") else ""
        lines += textwrap.wrap(
            text,
            max(20, width - INDENT) if width else 10**6,
            subsequent_indent=after,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


def report(checked: "list[CheckResult]", status: "Status", line: str) -> dict[str, Any]:
    """What --json holds."""
    fields = "check", "status", "found", "follows", "remedy"
    return {
        "schema_version": SCHEMA_VERSION,
        "status": status,
        "findings": [{name: getattr(each.finding, name) for name in fields} for each in checked],
        "command": line,
        "facts": {each.finding.check: plain(each.facts) for each in checked if each.facts is not None},
    }


def plain(facts: Any) -> Any:
    """A check's facts as plain values for JSON."""
    if is_dataclass(facts) and not isinstance(facts, type):
        return asdict(facts)
    return facts._asdict() if isinstance(facts, tuple) else facts  # pyright: ignore[reportAttributeAccessIssue]


def write_report(place: str, value: dict[str, Any]) -> None:
    """Write the report to a file, or to stdout for -; ASCII, whatever characters paths have."""
    from pipeline.files import write_atomic

    text = json.dumps(value, indent=1) + "\n"
    if place == "-":
        sys.stdout.write(text)
        return
    try:
        write_atomic(Path(place), text.encode("ascii"))
    except OSError as error:
        raise InputError(f"json is {place}, which cannot be written ({error.strerror}); give another file") from error


def main() -> int:
    """Run every check, and print each finding as soon as it is known."""
    try:
        import tyro
        from rich.text import Text

        from pipeline.progress import console
        from service.diagnostics.checks import STDOUT, CheckResult, Options, run_checks, verdict
        from service.diagnostics.finding import Finding, worst
    except ImportError as error:
        what = f"{sys.executable} lacks what the project needs ({error}), expected its environment"
        raise InputError(f"{what}; call .venv/bin/python, which make demo makes") from error
    options = tyro.cli(Options, prog="python -m service.doctor")
    end_on_signals()
    screen = console(highlight=False, soft_wrap=True, quiet=options.json == STDOUT)
    width = screen.width if screen.is_terminal else None

    def show(finding: "Finding") -> None:
        mark, style = MARKS[finding.status]
        for number, text in enumerate(lines_of(finding, width)):
            head = (mark if number == 0 else "").ljust(6), (finding.check if number == 0 else "").ljust(INDENT - 6)
            screen.print(Text.assemble((head[0], style), (head[1], "bold"), (text, "" if number == 0 else "dim")))

    checked: list[CheckResult] = []
    with screen.status("", spinner="line") if screen.is_terminal else nullcontext() as status:
        try:
            for each in run_checks(options, lambda what: status.update(f"looking at {what}") if status else None):
                checked.append(each)
                show(each.finding)
        except Exception as error:  # whatever is missing or broken, there is no traceback
            told = f"a check after {checked[-1].finding.check if checked else 'the start'} failed ({error!r})"
            checked.append(
                CheckResult(Finding("failed", "doctor", told, "the rest is not looked at", "report this"), None)
            )
            show(checked[-1].finding)
    overall = worst(each.finding for each in checked)
    lines, line = verdict(options, checked)
    screen.print()
    for text in lines:
        screen.print(Text(text))
    if options.json:
        write_report(options.json, report(checked, overall, line))
    return EXIT_FAULTS if overall == "failed" else EXIT_DONE


if __name__ == "__main__":
    run_command(main, results=True)
