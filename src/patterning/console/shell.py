"""Between commands and the shell: what goes to which stream, what errors become, and the exit status.

0: done. 2: refused or failed, with one sentence on standard error. 130 and 143: stopped by Ctrl-C or `kill`. A
traceback is left for what can only be an error of this package.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
from rich.console import Console

from patterning.console.stopping import RESUMES, Stopped, leave, stoppable
from patterning.core.errors import PatterningError
from patterning.core.progress import Progress
from patterning.core.store import strict_json
from patterning.core.terminal import make_console, make_progress, silence
from patterning.core.user_code import explain, started_here

ANEW = "stopped: nothing was written, the same command starts anew"
_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


class Output:
    """Standard output for results, standard error for all else."""

    def __init__(self) -> None:
        self.out, self.err = make_console(), make_console(stderr=True)
        self.on_stop = RESUMES

    def progress(self) -> Progress:
        """How progress is shown: as a bar, or as lines where standard error is no terminal."""
        return make_progress(self.err)

    def note(self, sentence: str) -> None:
        """Something that the user should know, and need not act on."""
        self.err.print(f"note: {sentence}", style="yellow", highlight=False, markup=False, soft_wrap=True)

    def error(self, sentence: str) -> None:
        """Why the command failed, on one line."""
        with suppress(OSError):  # standard error may be closed
            line = f"error: {' '.join(sentence.split())}"
            self.err.print(line, style="bold red", highlight=False, markup=False, soft_wrap=True)

    def stopped(self) -> None:
        """That the command was stopped, and what to do."""
        with suppress(OSError):
            self.err.print(self.on_stop, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def starting_anew(self) -> Iterator[None]:
        """A stop inside this context leaves nothing to go on from."""
        before, self.on_stop = self.on_stop, ANEW
        yield
        self.on_stop = before

    @contextmanager
    def reserved(self, json_only: bool) -> Iterator[None]:
        """With `json_only`, what the user's code prints meanwhile goes to standard error."""
        if not json_only:
            yield
            return
        kept = os.dup(1)
        os.dup2(2, 1)  # also what C code and child processes print
        try:
            with redirect_stdout(sys.stderr):
                yield
        finally:
            os.dup2(kept, 1)
            os.close(kept)

    def show(
        self, results: Any, print_table: Callable[[Any, Console], None], json_only: bool, page: Path | None
    ) -> None:
        """The results: as JSON alone, or as a table with the place of the page."""
        if sys.stdout.closed:  # by the user's code
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the process ends
        if json_only:
            sys.stdout.write(json.dumps(strict_json(results), indent=1, allow_nan=False) + "\n")
            return
        print_table(results, self.out)
        if page is not None:
            self.out.print(f"page: {page}", highlight=False, markup=False, soft_wrap=True)


def main_of(command: Callable[[], Any], output: Output) -> int:
    """Run a command to its exit status."""
    _open_standard_streams()
    with stoppable(), _notes_to(output):
        try:
            _check_place()
            with started_here():
                status = int(command() or 0)
            sys.stdout.flush()
            _flush_or_drop()
        except (Stopped, KeyboardInterrupt) as stop:
            output.stopped()
            leave(stop.status if isinstance(stop, Stopped) else 130)
            raise  # not reached
        except BrokenPipeError:  # the reader of the results has left, and they are on the disk
            silence(1)
            return 0
        except Exception as error:
            sentence = sentence_of(error)
            if sentence is None:
                raise
            if sentence:  # none after a help page
                output.error(sentence)
            _flush_or_drop()
            return 2
    return status


_LISTS = ("components", "sources")
"""Options of several names in one, separated by commas: of two, the last alone would be taken."""


def _at_home(argument: str) -> str:
    """`--out=~/chi` with the home folder in place of ~, which a shell leaves alone after the sign."""
    name, sign, value = argument.partition("=")
    return f"{name}={os.path.expanduser(value)}" if sign and name.startswith("--") and value[:1] == "~" else argument


class _OnceEach(typer.core.TyperCommand):
    """A command that refuses a list of names given twice; of a plain setting the last counts, as in other programs."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Raises `PatterningError`."""
        args = [_at_home(arg) for arg in args]
        given = [arg.partition("=")[0] for arg in (args[: args.index("--")] if "--" in args else args)]
        for option in self.params:
            if option.name in _LISTS and sum(given.count(name) for name in option.opts) > 1:
                raise PatterningError(f"{option.opts[0]} was given twice: give its names once, separated by commas")
        return super().parse_args(ctx, args)


def once_each(*apps: typer.Typer) -> typer.Typer:
    """The first of the apps, with commands of all of them that take a list of names once."""
    for app in apps:
        for command in app.registered_commands:
            command.cls = _OnceEach
    return apps[0]


def sentence_of(error: Exception) -> str | None:
    """The one sentence for an error; None for what can only be a fault of this package."""
    words = " ".join(str(error).split())
    if isinstance(error, PatterningError):
        return words
    if (described := _of_typer(error)) is not None:
        return described
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in words.lower() for sign in _MEMORY)
    ):
        return (
            f"memory ran out ({words[:200] or 'MemoryError'}): use fewer --workers, --chains or --probes, or a smaller "
            "--batch-size; what is finished is kept"
        )
    sentence = explain(error)
    if sentence is None and isinstance(error, OSError):
        place = f"{error.filename}" if error.filename is not None else "a file, or standard output,"
        return f"{place} cannot be read or written: {error.strerror or words}"
    return sentence


def _of_typer(error: Exception) -> str | None:
    """The sentence of an error of the parser (an unknown option, say); None for any other."""
    if type(error).__name__ == "Abort":
        return "it asked for input, and there is none"
    describe = getattr(error, "format_message", None)
    if describe is not None and type(error).__name__ == "NoArgsIsHelpError":
        print(describe())  # a command without arguments: its help page is the answer
        return ""
    return None if describe is None else describe()


class _Notes(logging.Handler):
    """The package's warnings as notes."""

    def __init__(self, output: Output) -> None:
        super().__init__()
        self.output = output

    def emit(self, record: logging.LogRecord) -> None:
        with suppress(OSError):
            self.output.note(record.getMessage())


@contextmanager
def _notes_to(output: Output) -> Iterator[None]:
    log, handler = logging.getLogger("patterning"), _Notes(output)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)


def _check_place() -> None:
    """Raise where the current folder was deleted: neither relative paths nor torch's libraries work there."""
    try:
        os.getcwd()
    except OSError as error:
        raise PatterningError(f"the current folder is gone ({error.strerror}): go to another one with cd") from None


def _open_standard_streams() -> None:
    """Make streams that the caller closed (`>&-`) harmless, and ones of a narrow alphabet print all the same.

    A file opened later would otherwise take the place of standard output, and get what is printed.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - until the process ends
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _flush_or_drop() -> None:
    """Streams that cannot be written must not fail once more when Python ends, which would change the exit status."""
    for descriptor, stream in ((1, sys.stdout), (2, sys.stderr)):
        try:
            stream.flush()
        except (OSError, ValueError):
            silence(descriptor)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"patterning {metadata.version('patterning')}")
        raise typer.Exit


Version = Annotated[
    bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and leave.")
]
