"""`measure` against closed forms: χ by every estimator, coverage of its intervals, when it stops, and resume."""

import os
import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from zoo.gaussian_task import GAMMA, KERNEL, N_BETA, OBSERVABLES, STEP, Known, known

import patterning as pt
from patterning.posterior.diagnostics import MOST_R_HAT

SHORT = {"draws": 8, "burn_in": 20, "steps_between_draws": 4, "budget": 1, "progress": False}
REPEATS = 8


@pytest.fixture(scope="module")
def problem() -> Known:
    return known()


def measured(problem: Known, observables=None, **settings) -> pt.Response:
    chosen = {"sampler": KERNEL, "batch_size": problem.batch_size, **SHORT, **settings}
    return pt.measure(problem.task, observables, **chosen)


def test_pathwise_is_the_slope_of_the_chains_mean(problem: Known) -> None:
    response = measured(problem, OBSERVABLES, estimator="pathwise", burn_in=50)
    assert response.names == ("first", "rest")
    # φ and every gradient are linear in w: the derivative hardly depends on the noise, and float32 is what is left
    np.testing.assert_allclose(response.chi, problem.slope, atol=2e-4 * np.abs(problem.slope).max())
    assert (response.half_width() < 1e-3 * np.abs(problem.slope).max()).all()


def test_chains_that_have_not_settled_are_sure_of_another_number(problem: Known) -> None:
    """Reliability and ± are about the chains that were run: R-hat of φ alone says that these are still on their way."""
    short = {"sampler": pt.SGLD(N_BETA, GAMMA, STEP / 50), "burn_in": 0, "steps_between_draws": 2}
    early = measured(problem, OBSERVABLES, estimator="pathwise", **short)
    assert min(early.reliability.values()) > 0.99
    assert min(early.r_hat.values()) > MOST_R_HAT
    assert (np.abs(early.chi) + early.half_width() < 0.5 * np.abs(problem.slope)).mean() > 0.9
    plan = early.invert({"first": 1})
    assert "the chains have not settled: R-hat of φ first" in str(plan)
    with pytest.raises(pt.PatterningError, match=r"R-hat of φ first .* force=True"):
        plan.weights(0.1)
    assert plan.weights(0.1, force=True).rho.std() > 0
    settled = measured(problem, OBSERVABLES, estimator="pathwise", burn_in=50, draws=20, steps_between_draws=8)
    assert max(settled.r_hat.values()) < MOST_R_HAT
    assert settled.invert({"first": 1}).refused is None


def test_first_order_is_the_product_of_gradients(problem: Known) -> None:
    response = measured(problem, OBSERVABLES, estimator="first-order")
    np.testing.assert_allclose(response.chi, problem.first_order, atol=1e-5 * np.abs(problem.first_order).max())
    assert response.estimator == {"full": "first-order"}
    assert any("a first look" in line for line in response.warnings)
    assert "n/a" in str(response)  # neither R-hat nor an interval


@pytest.mark.parametrize(
    ("estimator", "truth", "settings"),
    [
        ("pathwise", "loss_slope", {}),
        ("covariance", "loss_chi", {"draws": 40, "steps_between_draws": 8, "chains": 4}),
    ],
)
def test_intervals_cover_the_truth(problem: Known, estimator: str, truth: str, settings: dict) -> None:
    known_chi = getattr(problem, truth)
    errors, widths = [], []
    for seed in range(REPEATS):
        response = measured(problem, estimator=estimator, seed=seed, **settings)
        errors.append(np.abs(response.chi - known_chi))
        widths.append(response.half_width())
    # 8 independent measurements of 20 samples with correlated errors
    assert 0.85 <= np.mean(np.array(errors) <= np.array(widths)) <= 1.0
    assert np.mean(np.array(errors) <= np.array(widths) / 4) < 0.75  # the intervals are not merely wide
    mean = np.mean([np.abs(error).max() for error in errors]) / np.abs(known_chi).max()
    assert mean < 0.3


def test_auto_leaves_pathwise_for_a_sampler_it_cannot_go_back_through(problem: Known) -> None:
    sampler = pt.RMSPropSGLD(30.0, 200.0, 1e-4)
    response = measured(problem, sampler=sampler)
    assert response.estimator == {"full": "covariance"}
    assert measured(problem).estimator == {"full": "pathwise"}


def test_rounds_go_on_until_rows_are_reliable_or_the_budget_is_used(problem: Known) -> None:
    def note(**settings) -> str:
        response = measured(problem, estimator="covariance", **{"draws": 4, "steps_between_draws": 1, **settings})
        return str(response.data["note"].values[0])

    easy, never = note(reliability=0.01, budget=3), note(reliability=0.9999, budget=3)
    assert "reached after 1 round" in easy
    assert "budget of 3 round(s) used" in never
    assert "budget of 2 round(s) used" in note(reliability=None, budget=2)
    value = float(re.search(r"reliability (-?[\d.]+)", never)[1])
    assert value < 0.9999
    more = measured(problem, estimator="covariance", reliability=None, budget=3, draws=4)
    assert len(more.by_chain()) == 12  # 3 rounds of 4 chains


def test_the_time_it_will_take_is_said_before_it_starts(problem: Known, capsys: pytest.CaptureFixture[str]) -> None:
    measured(problem, progress=True, budget=2)
    err = capsys.readouterr().err
    said = r"1 component, 20 rows probed: about .* a round on one worker, up to 2 rounds, .*; about \d+ MB of memory"
    assert re.search(said, err)
    measured(problem)
    assert capsys.readouterr().err == ""


def blobs() -> pt.Task:
    """A trained classifier of two blobs."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(64) % 2
    x = torch.randn(64, 2, generator=generator) + 2.0 * y[:, None]
    net = nn.Linear(2, 2)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[-1.0, -1.0], [1.0, 1.0]]))
        net.bias.copy_(torch.tensor([2.0, -2.0]))
    return pt.Task(net, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none"), (x, y))


def test_calibrate_says_what_it_chose_and_its_verdict(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    response = pt.measure(blobs(), sampler="calibrate", **{**SHORT, "progress": True})
    assert response.calibration.startswith("calibrated: nβ 15.4, γ ")  # 64 / ln 64
    printed = capsys.readouterr().err
    assert response.calibration in printed
    assert re.search(r"calibrating full: 1 of at most 9 pilots, at most \d+ s left", printed)
    assert "calibrating on 1 of 1 components" in printed
    verdict = re.search(r"verdict: ([a-z ]+)", response.calibration)[1].strip()
    assert verdict in {"steps too long", "chains disagree", "spikes", "too noisy", "too little signal", "healthy"}
    assert (response.calibration in response.warnings) == (verdict != "healthy")
    assert response.data.attrs["verdict"] == verdict
    response.save(tmp_path / "chi")
    assert pt.load(tmp_path / "chi").calibration == response.calibration


def test_calibrate_of_what_the_loss_does_not_feel_has_too_little_signal() -> None:
    task = blobs()
    dead = pt.Task(task.module, lambda m, b: 1.0 + 3e-5 * m(b[0]).square().sum(1), task.data)
    response = pt.measure(dead, sampler="calibrate", estimator="covariance", **SHORT)
    assert "verdict: too little signal (the loss hardly answers" in response.calibration
    assert response.calibration in response.warnings


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"estimator": "exact"}, "estimator 'exact' is not one of auto, pathwise, covariance, first-order"),
        ({"sampler": "sgld"}, "sampler 'sgld' is no sampler: give SGLD"),
        ({"budget": 0}, "budget is 0: it must be at least 1"),
        ({"workers": 0}, "workers is 0: it must be at least 1"),
        ({"reliability": 1.0}, "reliability is 1.0: it must be between 0 and 1"),
        ({"components": []}, "components must be named once each, and at least one (got none)"),
        ({"components": ["full", "full"]}, "components must be named once each"),
        ({"components": "l7h3"}, "l7h3"),
        ({"probes": [3, 3]}, "probes names some rows twice"),
        ({"probes": [99]}, "probes must be row numbers from 0 to 19"),
        ({"observables": {"first": 3}}, "observable 'first' is int: it must be a function of the module"),
        ({"observables": {"component loss": OBSERVABLES["first"]}}, "rename yours"),
        ({"observables": {"first": lambda m: m.weight}}, "observable 'first' returned torch.float32 (1, 3)"),
        ({"observables": OBSERVABLES, "phi": "data"}, "phi says whose loss the component loss is"),
        ({"estimator": "covariance", "phi": "data"}, "phi"),
        ({"at": torch.zeros(7)}, "7"),
        ({"chains": 1}, "chain"),
    ],
)
@pytest.mark.parametrize("first_order", [False, True])
def test_what_cannot_serve_is_one_sentence(problem: Known, settings: dict, says: str, first_order: bool) -> None:
    chosen = dict(settings)
    if first_order:
        if chosen.get("estimator") or "chains" in chosen:
            pytest.skip("of other estimators")
        chosen["estimator"] = "first-order"
    with pytest.raises(pt.PatterningError, match=re.escape(says)):
        measured(problem, chosen.pop("observables", None), **chosen)


def test_one_probed_row_does_not_decide_where_chains_may_go() -> None:
    """The loss of a row may lie far under that of the minibatches, which the chain is judged by."""
    torch.manual_seed(0)
    x, y = torch.rand(16, 64), torch.arange(16) % 3
    task = pt.Task(nn.Linear(64, 3), lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none"), (x, y))
    losses = task.losses(task.own_row()[None], torch.arange(16)[None])[0]
    assert losses.min() < np.log(3) < losses.mean()  # of a model that knows nothing: ln 3
    chi = pt.measure(task, sampler=pt.SGLD(30, 300, 1e-3), probes=[int(losses.argmin())], batch_size=16, **SHORT)
    assert chi.chi.shape == (1, 1)
    assert not chi.refused


SCRIPT = """
import sys
import torch
from torch import nn
import patterning as pt

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3))
x, y = torch.randn(60, 6), torch.randint(3, (60,))
task = pt.Task(net, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none"), (x, y))
chi = pt.measure(task, None, ["0.*", "2.*", "4.*"], sampler=pt.SGLD(30, 300, 1e-3), draws=12, budget=1, out=sys.argv[1])
chi.save(sys.argv[2])
"""


@pytest.mark.long
def test_a_killed_measurement_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(SCRIPT)

    def start(chi: str) -> subprocess.Popen[bytes]:
        line = [sys.executable, str(tmp_path / "mine.py"), str(tmp_path / "run"), str(tmp_path / chi)]
        return subprocess.Popen(line, stderr=subprocess.DEVNULL, start_new_session=True)

    monkeypatch.setattr(sys, "argv", ["mine.py", str(tmp_path / "whole"), str(tmp_path / "chi")])
    runpy.run_path(str(tmp_path / "mine.py"))
    process, units = start("none"), tmp_path / "run" / "units"
    while not list(units.glob("*.safetensors")):
        assert process.poll() is None
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in units.glob("*.safetensors")}
    assert 1 <= len(done) < 3
    assert not (tmp_path / "none").exists()
    assert start("again").wait() == 0
    a, b = pt.load(tmp_path / "chi"), pt.load(tmp_path / "again")
    np.testing.assert_array_equal(a.chi, b.chi)
    np.testing.assert_array_equal(a.standard_error, b.standard_error)
    assert a.names == b.names == ("0.*", "2.*", "4.*")
    assert all((units / name).stat().st_mtime_ns == then for name, then in done.items())  # not computed again


def test_a_second_call_is_answered_from_the_folder(
    problem: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from patterning.response import one_component

    once = measured(problem, OBSERVABLES, out=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(one_component, "sample_component", lambda _: pytest.fail("sampled again"))
        again = measured(problem, OBSERVABLES, out=tmp_path)
    np.testing.assert_array_equal(once.chi, again.chi)
    assert len(list((tmp_path / "units").glob("*.safetensors"))) == 1
    other = measured(problem, OBSERVABLES, out=tmp_path, seed=5)  # another question is not
    assert (other.by_chain() != once.by_chain()).any()
    assert len(list((tmp_path / "units").glob("*.safetensors"))) == 2


class Checkpointed(nn.Module):
    """A layer that is computed again in the backward pass, by then with other parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.unused = nn.Linear(6, 6), nn.Linear(6, 3), nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(checkpoint(self.first, x, use_reentrant=False).tanh())


@pytest.mark.parametrize("sampler", [pt.SGLD(30, 100, 1e-3), "calibrate"])
@pytest.mark.parametrize(
    ("component", "says"), [("first.*", "has no gradient in it"), ("unused.*", "nothing in the loss depends on it")]
)
def test_a_component_without_a_gradient_is_refused_by_name(sampler: object, component: str, says: str) -> None:
    x, y = torch.randn(64, 6, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 3
    task = pt.Task(
        Checkpointed(), lambda model, batch: cross_entropy(model(batch[0]), batch[1], reduction="none"), (x, y)
    )
    with pytest.raises(pt.PatterningError, match=f"component .{component[:-1]}.*{says}"):
        pt.measure(task, components=[component, "last.*"], sampler=sampler, progress=False)  # pyright: ignore[reportArgumentType]
