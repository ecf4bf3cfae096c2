"""What a second attempt to break it found: each input gave a wrong number without a word, or a bare traceback."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

import patterning as pt
from patterning.core.identity import digest_of
from patterning.models.language import LanguageConfig, LanguageModel, next_token_losses

X = torch.randn(24, 6, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
FEW = {"chains": 2, "draws": 4, "burn_in": 2, "steps_between_draws": 2, "batch_size": 8, "budget": 1}
SETTINGS = {**FEW, "sampler": pt.SGLD(30, 300, 1e-3), "progress": False, "reliability": None}


def losses(model: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def small(module: nn.Module | None = None) -> pt.Task:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return pt.Task(module or nn.Linear(6, 2), losses, (X, Y))


FILE = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from patterning.core.task import Task

def task():
    torch.manual_seed(0)
    x = torch.randn(24, 6)
    y = (x[:, 0] > 0).long()
    return Task(nn.Linear(6, 2), lambda call, b: cross_entropy(call(b[0]), b[1], reduction="none"), (x, y))

observables = {"a": lambda model: 1.0 * model.weight.sum(), "b": lambda model: model.weight.square().sum()}
"""
LINE = ["--n-beta", "30", "--localization", "300", "--step-size", "1e-3", "--draws", "4", "--burn-in", "2",
        "--rounds", "1", "--batch-size", "8", "--components", "full", "--workers", "1"]  # fmt: skip


def test_a_command_given_again_notices_that_an_observable_has_changed(tmp_path: Path, in_process) -> None:
    file = tmp_path / "mine.py"
    file.write_text(FILE)
    line = ["measure", f"{file}:task", "--observables", f"{file}:observables", *LINE, "--out", str(tmp_path / "out")]
    assert in_process(*line).returncode == 0
    assert in_process(*line).returncode == 0
    file.write_text(FILE.replace("1.0 * model", "-4.0 * model"))
    answer = in_process(*line)
    assert answer.returncode == 2
    assert "of other observables than" in " ".join(answer.stderr.split())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--estimator", "nonsense"], "not one of auto, pathwise, covariance, first-order"),
        (["--phi", "junk"], "not one of probes, data"),
        (["--phi", "probes", "--observables", "mine.py:observables"], "does nothing beside observables"),
        (["--reliability", "2", "--estimator", "first-order"], "between 0 and 1"),
        (["--chains", "1"], "1 chain gives no error bar"),
        (["--observables", "mine.py:task"], "must be a dict"),
    ],
)
def test_a_dry_run_refuses_what_the_run_would(
    more: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_process
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(FILE)
    answer = in_process("measure", "mine.py:task", *LINE, "--out", "out", *more, "--dry-run")
    assert answer.returncode == 2
    assert said in " ".join(answer.stderr.split())


def test_what_a_function_reads_from_a_module_is_in_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "scales.py").write_text("SCALE = 1.0\nOTHER = 1.0\n")
    scales: ModuleType = __import__("scales")

    def make(module: ModuleType):
        exec("def f(model):\n    return scales.SCALE * model.weight.sum()", names := {"scales": module})
        return names["f"]

    function = make(scales)
    before = digest_of(function)[0]
    scales.OTHER = 2.0
    assert digest_of(function)[0] == before
    scales.SCALE = -4.0
    assert digest_of(function)[0] != before
    sys.modules.pop("scales")


@pytest.mark.parametrize(
    "line", ["import inner_scales\n    k = inner_scales.SCALE", "from inner_scales import SCALE as k"]
)
def test_what_a_function_imports_in_its_body_is_in_its_key(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "inner_scales", raising=False)
    (tmp_path / "inner_scales.py").write_text("SCALE = 1.0\nOTHER = 1.0\n")
    exec(f"def f(model):\n    {line}\n    return k * model.weight.sum()", names := {})
    before = digest_of(names["f"])[0]
    assert digest_of(names["f"])[0] == before
    sys.modules["inner_scales"].OTHER = 3.0
    assert digest_of(names["f"])[0] == before
    sys.modules["inner_scales"].SCALE = 2.0
    changed = digest_of(names["f"])[0]
    assert changed != before
    (tmp_path / "inner_scales.py").write_text("SCALE = 2.0\nOTHER = 3.0\n\ndef more(): return 1\n")
    assert digest_of(names["f"])[0] not in (before, changed)
    monkeypatch.delitem(sys.modules, "inner_scales")


def test_a_module_without_a_file_is_told_by_what_is_read_from_it() -> None:
    settings = ModuleType("settings_of_mine")
    settings.k = 1.0
    function = lambda model: settings.k  # noqa: E731
    exec("def f(model):\n    return settings.k", names := {"settings": settings})
    before = digest_of(names["f"])[0], digest_of(function)[0]
    settings.k = 2.0
    assert digest_of(names["f"])[0] != before[0]
    assert digest_of(function)[0] != before[1]


def test_a_mask_below_zero_is_refused() -> None:
    weights = pt.Weights.of_rows([1.0, 1.0])
    with pytest.raises(pt.PatterningError, match="numbers below 0"):
        weights.loss(torch.ones(2, 2), [0, 1], torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
    with pytest.raises(pt.PatterningError, match="must be a tensor"):
        weights.loss(np.ones(2), [0, 1])


def test_the_doctor_fails_where_the_task_does_not_work(tmp_path: Path, in_process) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    assert in_process("doctor", f"{tmp_path / 'mine.py'}:task").returncode == 0
    answer = in_process("doctor", f"{tmp_path / 'mine.py'}:observables")
    assert (answer.returncode, "the task does not work" in answer.stdout) == (2, True)


@pytest.mark.parametrize("name", ["", 1])
def test_names_of_arms_and_measures_are_text(name: object) -> None:
    weights = pt.Weights.of_rows([1.5, 1.0, 0.5])
    with pytest.raises(pt.PatterningError, match="names are text, and not empty"):
        pt.verify(lambda weights, seed: 1.0, {name: weights}, {"y": float}, range(6))
    with pytest.raises(pt.PatterningError, match="names are text, and not empty"):
        pt.verify(lambda weights, seed: 1.0, {"a": weights}, {name: float}, range(6))
    with pytest.raises(pt.PatterningError, match="controls is None"):
        pt.verify(lambda weights, seed: 1.0, {"a": weights}, {"y": float}, range(6), controls=None)
    with pytest.raises(pt.PatterningError, match="wanted is list"):
        pt.verify(lambda weights, seed: 1.0, {"a": weights}, {"y": float}, range(6), wanted=[1])


class Recurrent(nn.Module):
    """An LSTM has no forward derivative on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(x.view(len(x), 2, 3))[0][:, -1])


@pytest.mark.parametrize("shards", [None, 2])
def test_a_first_look_without_a_forward_derivative_says_so(shards: int | None) -> None:
    with pytest.raises(pt.PatterningError, match=r"no forward derivative, which a first look takes .*covariance"):
        pt.measure(small(Recurrent()), estimator="first-order", shards=shards, **SETTINGS)


def test_the_estimate_passes_over_rows_without_samples() -> None:
    tokens, mask = torch.randint(20, (12, 300), generator=torch.Generator().manual_seed(0)), torch.ones(12, 299)
    mask[:5] = 0
    model = LanguageModel(LanguageConfig(20, 300, 1, 1, 8))
    task = pt.Task(model, lambda call, b: (next_token_losses(call, b[0]), b[1]), (tokens, mask))
    chi = pt.measure(task, components=["l0h0"], estimator="covariance", **{**SETTINGS, "batch_size": 4})
    assert chi.row.min() == 5


def test_load_says_what_it_is_given(tmp_path: Path) -> None:
    with pytest.raises(pt.PatterningError, match="its path comes first"):
        pt.load(small())
    with pytest.raises(pt.PatterningError, match="it must be the Task"):
        pt.load(tmp_path, nn.Linear(2, 2))


def test_shapes_of_weights_that_are_none() -> None:
    for rho in (3.0, []):
        with pytest.raises(pt.PatterningError, match="it must be"):
            pt.Weights.of_rows(rho)
    with pytest.raises(pt.PatterningError, match="the path is NoneType"):
        pt.Weights.of_rows([1.0, 2.0]).to_parquet(None)


def head_loss(model: nn.Module) -> torch.Tensor:
    return nn.functional.cross_entropy(model(X[:12]), Y[:12])


def detached(model: nn.Module) -> torch.Tensor:
    return head_loss(model) + 0.5 * model(X[:12]).detach().square().mean()


def scaled_by_no_grad(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        size = model(X[:12]).std()
    return head_loss(model) / size


def written_in_place(model: nn.Module) -> torch.Tensor:
    model.weight.data.mul_(1.1)
    return head_loss(model)


def with_accuracy(model: nn.Module) -> torch.Tensor:
    return (model(X).argmax(1) == Y).float().mean() + 0.1 * head_loss(model)


def accuracy(model: nn.Module) -> torch.Tensor:
    return (model(X).argmax(1) == Y).float().mean()


PARTLY = [detached, scaled_by_no_grad, written_in_place, with_accuracy]
WIDE = {**SETTINGS, "sampler": pt.SGLD(30, 30, 1e-3)}


@pytest.mark.parametrize("observable", [*PARTLY, accuracy])
def test_an_observable_whose_gradient_is_partly_there_is_read_by_covariance(observable) -> None:
    """The estimator that `auto` takes is the one that is right."""
    task = small()
    chi = pt.measure(task, {"phi": observable}, **WIDE)
    assert chi.data["estimator"].values.item() == "covariance"
    assert "gradient" in chi.data["note"].values.item()
    whole = pt.measure(task, {"phi": observable}, estimator="covariance", **{**WIDE, "chains": 4})
    np.testing.assert_array_equal(chi.chi, whole.chi)  # two chains and their mirror images are four chains


@pytest.mark.parametrize("shards", [None, 2])
@pytest.mark.parametrize("estimator", ["pathwise", "first-order"])
@pytest.mark.parametrize("observable", PARTLY)
def test_where_the_gradient_is_asked_for_what_it_leaves_out_is_said(observable, estimator: str, shards) -> None:
    try:
        chi = pt.measure(small(), {"phi": observable}, estimator=estimator, shards=shards, **WIDE)
    except pt.PatterningError as error:
        said = str(error)
    else:
        said = " ".join(chi.warnings)
    assert "gradient of observable 'phi' misses" in said


@pytest.mark.parametrize("observable", [head_loss, lambda model: model.weight.square().sum() / model.weight.norm()])
def test_a_smooth_observable_is_let_pass_however_much_it_bends(observable) -> None:
    chi = pt.measure(small(), {"phi": observable}, **WIDE)
    assert chi.data["estimator"].values.item() == "pathwise"
    assert "gradient" not in " ".join(chi.warnings)
