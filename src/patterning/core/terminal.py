"""What is shown of progress: a bar that moves on a terminal or in a notebook, a plain line now and then in a log."""

import html
import os
import sys
import threading
import time
from collections.abc import Sequence
from typing import IO, Any

from rich.cells import cell_len
from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from rich.table import Table
from rich.text import Text

from patterning.core.progress import INTERVAL, Progress

LOG_INTERVAL = 30.0
"""Seconds between two lines in a log."""
LOG_WIDTH = 140
"""Columns of a table in a log, which is not a narrow terminal."""


class QuietConsole(Console):
    """A console whose reader may leave (`| head -1`): what is left to print is dropped, and nothing fails."""

    def on_broken_pipe(self) -> None:
        """Print no more."""
        self.quiet = True
        silence(1)


def silence(descriptor: int) -> None:
    """Send what this process still writes to `descriptor` nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


def make_console(*, stderr: bool = False, file: IO[str] | None = None) -> Console:
    """A console of standard output, standard error or a file; not on a terminal, as wide as COLUMNS says or a log."""
    console = QuietConsole(stderr=stderr, file=file)
    if console.is_terminal and file is None:
        return console
    given = os.environ.get("COLUMNS", "")
    width = int(given) if given.isdecimal() and int(given) > 0 else LOG_WIDTH
    if file is not None and not given:  # what `print` will show, where that is a terminal
        width = Console().width if Console().is_terminal else LOG_WIDTH
    return QuietConsole(stderr=stderr, file=file, width=width)


def print_fitting(
    console: Console, head: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", *, left: int = 1
) -> None:
    """A table whose cells are never broken; where it is wider than the console, a block of lines for each row.

    The first `left` columns are aligned to the left. In a block the first cell is the heading, and empty ones are left
    out.
    """
    table = Table(title=title or None)
    for i, name in enumerate(head):
        table.add_column(Text(name), justify="left" if i < left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    lines = [head, *rows]
    needed = 1 + sum(3 + max(cell_len(line[i]) for line in lines) for i in range(len(head)))
    if needed <= console.width:
        console.print(table)
        return
    if title:
        console.print(title, highlight=False, markup=False)
    widest = max(len(name) for name in head)
    for row in rows:
        console.print(f"\n{row[0]}", style="bold", highlight=False, markup=False)
        for name, cell in zip(head[1:], row[1:], strict=True):
            if cell:
                console.print(Padding(Text(f"{name:{widest}}  {cell}", overflow="fold"), (0, 0, 0, 2), expand=False))
    console.print()


def make_progress(console: Console) -> Progress:
    """A bar in a notebook and where `console` is a terminal, lines where it is a file or a pipe."""
    if in_notebook():
        return NotebookProgress()
    return BarProgress(console) if console.is_terminal else LineProgress(console)


def in_notebook() -> bool:
    """Whether this process is the kernel of a Jupyter notebook (or of what speaks its language: Colab, VS Code)."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def clock(seconds: float) -> str:
    """Seconds as 0:07, 12:30 or 1:05:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Stage:
    """A stage in work: how much of it is done, and how long the rest will take at the speed so far."""

    def __init__(self, name: str, total: int, done: int) -> None:
        self.name, self.total = name, total
        self.at_start = done
        self.whole = done
        self.within = 0.0
        self.where = ""
        self.begun = time.monotonic()

    @property
    def done(self) -> float:
        """Units, with what is done of those in work."""
        return min(self.whole + self.within, float(self.total))

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began."""
        return time.monotonic() - self.begun

    @property
    def left(self) -> float | None:
        """Seconds to go; None before there is anything to tell it by."""
        gained = self.done - self.at_start
        return self.elapsed * (self.total - self.done) / gained if gained > 0 else None

    def line(self) -> str:
        """The stage in one plain line."""
        share = self.done / self.total if self.total else 1.0
        left = "not yet known" if self.left is None else clock(self.left)
        line = f"{self.name}: {self.whole}/{self.total} done, {share:.0%}, {clock(self.elapsed)} gone, {left} left"
        return f"{line}; {self.where}" if self.where else line


class _Left(ProgressColumn):
    """Time left, by all that was done since the stage began."""

    max_refresh = 0.5

    def __init__(self, owner: "BarProgress") -> None:
        super().__init__()
        self.owner = owner

    def render(self, task: Task) -> Text:
        left = None if self.owner.stage is None else self.owner.stage.left
        return Text("-:--" if left is None else clock(left), style="progress.remaining")


class _Percent(TextColumn):
    """The share that is done: whole units alone would stand still for minutes."""

    def __init__(self) -> None:
        super().__init__("{task.percentage:>3.0f}%")


class _Staged(Progress):
    """Counts the units of the stage that is in work, and shows them anew after each change."""

    stage: Stage | None = None

    def advance(self) -> None:
        """One unit further."""
        if self.stage is not None:
            self.stage.whole += 1
            self._draw()

    def within(self, units: float) -> None:
        """A fraction of a unit further."""
        if self.stage is not None:
            self.stage.within = units
            self._draw()

    def where(self, words: str) -> None:
        """Where it is computed."""
        if self.stage is not None:
            self.stage.where = words
            self._draw()

    def _draw(self) -> None:
        """Show where the stage stands; a log speaks at its own times."""


class BarProgress(_Staged):
    """One bar a stage, with the units and the share that are done, and elapsed and remaining time."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar: Bar | None = None

    def start(self, stage: str, total: int, done: int) -> None:
        """A new bar."""
        self.finish()
        self.stage = Stage(stage, total, done)
        columns: list[Any] = [
            TextColumn("{task.description:<34}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            _Percent(),
            TimeElapsedColumn(),
            TextColumn("left"),
            _Left(self),
            TextColumn("{task.fields[where]}", markup=False),
        ]
        self._bar = Bar(*columns, console=self.console)
        self._bar.start()
        self._bar.add_task(f"{stage} ({done} found)" if done else stage, total=total, completed=done, where="")

    def finish(self) -> None:
        """Leave the bar as it stands."""
        if self._bar is not None:
            self._bar.stop()
        self._bar = self.stage = None

    def _draw(self) -> None:
        if self._bar is not None and self.stage is not None:
            self._bar.update(self._bar.task_ids[0], completed=self.stage.done, where=self.stage.where)


class NotebookProgress(_Staged):
    """One bar a stage below the cell, redrawn in place at most five times a second; its last state stays."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._due = 0.0

    def start(self, stage: str, total: int, done: int) -> None:
        """A new bar."""
        from IPython.display import HTML, display  # pyright: ignore[reportMissingImports] (a notebook has it)

        self.finish()
        self.stage = Stage(stage, total, done)
        self._as_html = HTML
        self._handle = display(HTML(self._bar()), display_id=True)

    def finish(self) -> None:
        """Leave the bar as it stands."""
        self._draw(at_once=True)
        self._handle = self.stage = None

    def _draw(self, at_once: bool = False) -> None:
        now = time.monotonic()
        if self._handle is not None and (at_once or now >= self._due):
            self._due = now + INTERVAL
            self._handle.update(self._as_html(self._bar()))

    def _bar(self) -> str:
        assert self.stage is not None
        share = self.stage.done / self.stage.total if self.stage.total else 1.0
        words = html.escape(self.stage.line())
        return f'<progress max="1" value="{share:.3f}" aria-label="{words}"></progress> <code>{words}</code>'


class LineProgress(_Staged):
    """A line every `interval` seconds while a stage is in work: for logs, where a bar would be redrawn line by line."""

    def __init__(self, console: Console, interval: float = LOG_INTERVAL) -> None:
        self.console = console
        self.interval = interval
        self._over = threading.Event()
        self._due = time.monotonic() + interval

    def start(self, stage: str, total: int, done: int) -> None:
        """A stage begins; short ones leave no line."""
        self.finish()
        self.stage, self._over = Stage(stage, total, done), threading.Event()
        threading.Thread(target=self._speak, args=(self.stage, self._over), daemon=True).start()

    def finish(self) -> None:
        """No more lines of this stage."""
        self._over.set()
        self.stage = None

    def _speak(self, stage: Stage, over: threading.Event) -> None:
        while not over.wait(max(self._due - time.monotonic(), 0.0)):
            self._due = time.monotonic() + self.interval
            self.console.print(stage.line(), highlight=False, markup=False, soft_wrap=True)
