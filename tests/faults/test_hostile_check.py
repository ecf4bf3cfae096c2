"""`patterning llc --check`: what was sampled is stored whatever becomes of its check, and the check is made later."""

import json
from pathlib import Path

import pytest

from patterning.console import response as console
from patterning.console.request import Request
from patterning.core.errors import PatterningError

FILE = """
import torch
from patterning.core.task import Task

def task():
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(32, 3, generator=rng)
    net = torch.nn.Linear(3, 1, bias=False)
    net.weight.data.fill_(1.0)
    return Task(net, lambda call, b: (call(b[0])[:, 0] - b[1]).square(), (x, x.sum(1)))
"""


def test_results_are_there_before_the_check_and_the_check_is_made_up_for(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    request = Request(
        f"{tmp_path / 'mine.py'}:task", "full", 30, 10, 1e-3, 2, 12, 10, 2, 32, 0, "covariance", None, 1, 0, check=True
    )
    out = tmp_path / "out"

    def breaks(*_arguments) -> None:
        raise PatterningError("the check broke")

    with monkeypatch.context() as patch:
        patch.setattr(console, "check_components", breaks)
        with pytest.raises(PatterningError, match="the check broke"):
            console.sample_to(request, out, 1)
    stored = json.loads((out / "results.json").read_text())
    assert stored["table"][0]["component"] == "full"
    assert stored["check"] is None
    assert (out / "report.html").exists()
    again = console.sample_to(request, out, 1)
    assert again["table"] == stored["table"]
    assert [row["localization"] for row in again["check"]["rows"]] == [10, 10, 100, 1]
