"""Progress from inside a unit to the terminal or the log."""

import io
import os
import sys
import threading
import time
from types import ModuleType, SimpleNamespace
from typing import cast

import pytest
import torch
from rich.console import Console

from patterning.core import progress
from patterning.core.progress import listening, report_progress
from patterning.core.terminal import BarProgress, LineProgress, Stage, clock, make_progress


def test_nobody_listens() -> None:
    report_progress(0.5)
    report_progress(float("nan"))
    report_progress("no number")  # type: ignore[arg-type]


def test_fractions_are_clipped_thinned_and_never_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[float] = []
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    with listening(heard.append):
        for value in (0.1, torch.tensor(0.25), -3, 7, float("nan"), float("inf"), None, "x"):
            report_progress(value)  # type: ignore[arg-type]
    assert heard == [0.1, 0.25, 0.0, 1.0]
    monkeypatch.setattr(progress, "INTERVAL", 10.0)
    heard.clear()
    with listening(heard.append):
        for step in range(1001):
            report_progress(step / 1000)
    assert heard == [0.0, 1.0]  # the first, and the end

    def broken(_: float) -> None:
        raise RuntimeError("the bar is gone")

    with listening(broken):
        report_progress(0.5)


def test_the_innermost_hears_and_the_outer_one_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    outer: list[float] = []
    inner: list[float] = []
    with listening(outer.append):
        with listening(inner.append):
            thread = threading.Thread(target=report_progress, args=(0.5,))
            thread.start()
            thread.join()
        report_progress(0.75)
    report_progress(0.9)
    assert (inner, outer) == ([0.5], [0.75])


def test_a_forked_child_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[float] = []
    with listening(heard.append):
        monkeypatch.setattr(os, "getpid", lambda: -1)
        report_progress(0.5)
    assert heard == []


def test_time_left_follows_what_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    stage = Stage("χ", total=5, done=1)
    assert stage.left is None
    now[0] += 30
    stage.within = 0.5
    assert stage.left == pytest.approx(30 * 3.5 / 0.5)
    assert stage.line() == "χ: 1/5 done, 30%, 0:30 gone, 3:30 left"
    stage.whole, stage.within = 5, 0.0
    assert stage.left == 0
    assert Stage("nothing", 0, 0).line() == "nothing: 0/0 done, 100%, 0:00 gone, not yet known left"


def test_clock() -> None:
    assert [clock(s) for s in (0, 59.6, 61, 3600, 7325)] == ["0:00", "1:00", "1:01", "1:00:00", "2:02:05"]


def test_a_log_gets_a_plain_line_now_and_then() -> None:
    log = io.StringIO()
    console = Console(file=log, force_terminal=False, width=80)
    assert isinstance(make_progress(console), LineProgress)
    lines = LineProgress(console, interval=0.2)
    lines.start("short", 3, 0)
    lines.finish()
    lines.start("long", 4, 1)
    lines.within(0.5)
    time.sleep(0.5)
    lines.advance()
    lines.finish()
    time.sleep(0.3)
    written = log.getvalue().splitlines()
    assert 1 <= len(written) <= 3
    assert all(line.startswith("long: 1/4 done, 38%") for line in written)
    assert "\r" not in log.getvalue()
    assert "\x1b" not in log.getvalue()


def test_a_terminal_gets_a_bar_that_moves_within_a_unit() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    bar = make_progress(console)
    assert isinstance(bar, BarProgress)
    bar.start("χ by component", 2, 0)
    bar.within(0.5)
    time.sleep(0.4)
    bar.advance()
    bar.within(0.0)
    bar.finish()
    bar.advance()  # after the end: nothing
    text = screen.getvalue()
    assert "0/2" in text
    assert "25%" in text
    assert "1/2" in text


class _Notebook:
    """Stands for IPython: a kernel, and displays that are updated in place."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def get_ipython(self) -> SimpleNamespace:
        return SimpleNamespace(kernel=object())

    def display(self, content: str, display_id: bool) -> "_Notebook":
        assert display_id
        self.shown.append(content)
        return self

    def update(self, content: str) -> None:
        self.shown[-1] = content


def test_a_notebook_has_one_bar_a_stage_redrawn_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = _Notebook()
    monkeypatch.setitem(sys.modules, "IPython", cast(ModuleType, notebook))
    monkeypatch.setitem(
        sys.modules, "IPython.display", cast(ModuleType, SimpleNamespace(HTML=str, display=notebook.display))
    )
    stream = io.StringIO()
    bar = make_progress(Console(file=stream))
    for stage in ("heads <l0>", "retraining"):
        bar.start(stage, 4, 1)
        bar.within(0.5)
        bar.advance()
        bar.finish()
        bar.advance()  # after the end nothing is drawn
    assert len(notebook.shown) == 2
    assert 'value="0.625"' in notebook.shown[0]
    assert "heads &lt;l0&gt;: 2/4 done" in notebook.shown[0]
    assert stream.getvalue() == ""


def test_a_script_has_no_notebook_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "IPython", cast(ModuleType, SimpleNamespace(get_ipython=lambda: None)))
    assert isinstance(make_progress(Console(file=io.StringIO())), LineProgress)
