"""Where ``codex-state`` starts: run a command, and turn whatever goes wrong into one line and an exit status."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

from codex_state.cli import FAILED, HELD, INTERRUPTED, READER_GONE, TOO_NEW, USAGE
from codex_state.cli.output import flush, mishaps, one_line, tell
from codex_state.errors import BackfillTimeoutError, InvalidInputError, StateError

PROGRAM = "codex-state"

_NEEDED = {"typer", "rich"}


def main() -> None:
    """Run the command line of this process and exit."""
    _have_streams()
    for name in ("SIGTERM", "SIGHUP"):
        if (number := getattr(signal, name, None)) is not None:
            signal.signal(number, _end)
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit status. Nothing but a programming error is raised."""
    try:
        with mishaps():  # help pages are written by typer
            status = _run_command(list(arguments))
        flush()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _NEEDED:
            raise
        return _report(f"the command line needs {package}: pip install 'codex-state[cli]'", FAILED)
    except StateError as error:
        return _report(str(error), status_of(error))
    except SystemExit as stop:
        if stop.code == FAILED and isinstance(stop.__context__, BrokenPipeError):
            return READER_GONE  # of a help page, where typer ends by itself
        return stop.code if isinstance(stop.code, int) else FAILED
    except KeyboardInterrupt:
        status = INTERRUPTED
    except Exception as error:
        if (usage := _usage_of(error)) is None:
            raise
        return usage
    if status == INTERRUPTED:
        # The shell's line has "^C" in it.
        sys.stderr.write("\n")
    return status


def _have_streams() -> None:
    """Give a process that was started without one a stream that can't be written, and never a file's number."""
    for number, name, flags in ((0, "stdin", os.O_RDONLY), (1, "stdout", os.O_RDONLY), (2, "stderr", os.O_WRONLY)):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, flags)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _end(number: int, _frame: object) -> None:
    # As an exception, so that a lease is given back and nobody has to wait for its end.
    raise SystemExit(128 + number)


def status_of(error: StateError) -> int:
    """The exit status that an error deserves."""
    if isinstance(error, InvalidInputError):
        return USAGE
    # Here, and not above, because it brings SQLAlchemy.
    from codex_state.errors import DatabaseBusyError, SchemaTooNewError

    if isinstance(error, SchemaTooNewError):
        return TOO_NEW
    return HELD if isinstance(error, DatabaseBusyError | BackfillTimeoutError) else FAILED


def _run_command(arguments: list[str]) -> int:
    from codex_state.cli.app import command_of

    # Not standalone: typer would end the process, and print usage errors over many lines.
    status = _command(command_of(arguments)).main(args=arguments, prog_name=PROGRAM, standalone_mode=False)
    return status if isinstance(status, int) else 0


@cache
def _command(only: str | None) -> Any:
    from typer.main import get_command

    from codex_state.cli.app import program

    return get_command(program(only))


def _usage_of(error: Exception) -> int | None:
    """Report a usage error, or answer ``None`` when it is something else."""
    # Typer's classes of usage errors have moved between its versions; what they offer hasn't.
    describe = getattr(error, "format_message", None)
    if describe is None:
        return None
    message = str(describe()).replace("Value error, ", "")
    if type(error).__name__ == "NoArgsIsHelpError":
        sys.stderr.write(f"{message}\n")
        return USAGE
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else PROGRAM
    if type(error).__name__ == "NoSuchOption" and path == f"{PROGRAM} search":
        message = f"{message.rstrip('.')}; what threads must not hold is told by --not WORD"
    return _report(f"{message.rstrip('.')} (see `{path} --help`)", USAGE)


def _report(message: str, status: int) -> int:
    # One line without a terminal's commands, whatever a driver or a file's name put into its text.
    tell(f"{PROGRAM}: error: {one_line(message)}")
    return status
