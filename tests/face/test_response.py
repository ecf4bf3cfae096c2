"""`Response`: names, the samples behind χ, row means, modes, inversion by hand, and what is stored."""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import t as student
from torch import nn
from zoo.gaussian_task import KERNEL, OBSERVABLES, Known, known

import patterning as pt

SHORT = {"draws": 8, "burn_in": 20, "steps_between_draws": 4, "budget": 1, "progress": False}


@pytest.fixture(scope="module")
def problem() -> Known:
    return known()


@pytest.fixture(scope="module")
def response(problem: Known) -> pt.Response:
    """Two observables, by covariance, with Monte Carlo errors."""
    settings = {**SHORT, "draws": 60, "steps_between_draws": 8, "estimator": "covariance", "chains": 6}
    return pt.measure(problem.task, OBSERVABLES, sampler=KERNEL, batch_size=problem.batch_size, **settings)


@pytest.fixture(scope="module")
def exact(problem: Known) -> pt.Response:
    """The same without noise: to first order in 1/γ."""
    return pt.measure(problem.task, OBSERVABLES, sampler=KERNEL, estimator="first-order", **SHORT)


def with_chains(response: pt.Response, by_chain: np.ndarray, reliability: float = 0.9) -> pt.Response:
    """The response as if its chains had given `by_chain` (c, k, n), for c chains of the response's own number."""
    tree = response.tree.copy(deep=True)
    data = tree["susceptibility"]
    places = [(0, list(data["observable"].values).index(phi)) for _, phi in response.rows_of]
    for k, (c, o) in enumerate(places):
        for name, values in (
            ("chi_of_chain", by_chain[:, k]),
            ("chi", by_chain[:, k].mean(0)),
            ("standard_error", by_chain[:, k].std(0, ddof=1) / np.sqrt(len(by_chain))),
        ):
            variable = data[name]
            variable.values[(slice(None), c, o) if name == "chi_of_chain" else (c, o)] = values
        for half in (0, 1):
            data["halves"].transpose("half", "component", "observable", "sample").values[half, c, o] = by_chain[
                half::2, k
            ].mean(0)
        data["reliability"].values[c, o] = reliability
    return pt.Response(tree, response.task)


def test_a_first_look_says_that_its_errors_are_unknown(exact: pt.Response, tmp_path: Path) -> None:
    assert "(error unknown)" in str(exact.top(1, "first")[0])
    plan = exact.invert({"first": -1})
    assert plan.refused is None
    assert all(np.isnan((change.low, change.high)).all() for change in plan.predicted.values())
    assert plan.predicted["first"].value < 0
    assert "(error unknown)" in str(plan)
    assert plan.reversed().predicted["first"].value > 0
    plan.weights(0.3).to_parquet(tmp_path / "rho.parquet")
    kept = pt.Weights.from_parquet(tmp_path / "rho.parquet")  # JSON has no word for NaN
    assert kept.facts["predicted_per_strength"]["first"]["low"] is None  # type: ignore[index, call-overload]


def test_the_table_in_words(response: pt.Response) -> None:
    lines = str(response).splitlines()
    assert lines[0] == f"χ: 2 rows, 20 samples, nβ 30, γ {KERNEL.localization:g}, ε {KERNEL.step_size:g}"
    assert lines[1].split() == ["row", "estimator", "reliability", "R-hat", "median", "|χ|", "median", "±"]
    assert lines[2].split()[:3] == ["first", "covariance", f"{response.reliability['first']:.2f}"]
    assert float(lines[2].split()[-1]) == pytest.approx(np.median(response.half_width()[0]), rel=0.05)
    weak = with_chains(response, response.by_chain(), reliability=0.2)
    assert "! reliability of χ under 0.5, mostly noise: first, rest" in str(weak)


def test_rows_are_found_by_name_and_by_pair(response: pt.Response, problem: Known) -> None:
    assert response.names == ("first", "rest")
    assert response.rows_of == (("full", "first"), ("full", "rest"))
    assert response.index("rest") == response.index(("full", "rest")) == 1
    assert response.n_beta == KERNEL.n_beta
    np.testing.assert_allclose(response.base_weights, problem.task.base_weights)
    for wrong in ("third", ("l0h0", "first"), ""):
        with pytest.raises(pt.PatterningError, match=r"χ has no row .*: it has first, rest"):
            response.index(wrong)


def test_half_widths_are_students_t(response: pt.Response) -> None:
    freedom = float(response.data["degrees_of_freedom"][0])
    for level in (0.5, 0.95):
        expected = student.ppf((1 + level) / 2, freedom) * response.standard_error
        np.testing.assert_allclose(response.half_width(level), expected)
    with pytest.raises(pt.PatterningError, match="level"):
        response.half_width(95)


def test_top_has_both_ends_in_order(response: pt.Response, problem: Known) -> None:
    chi, width = response.chi[1], response.half_width()[1]
    examples = response.top(3, "rest", decode=lambda row, position: f"x {row[1]:.2f} at {position}")
    order = np.argsort(-chi)
    assert [example.row for example in examples] == [*order[:3], *order[-3:]]
    assert [example.chi for example in examples] == sorted((example.chi for example in examples), reverse=True)
    for example in examples:
        assert (example.chi, example.half_width) == (chi[example.row], width[example.row])
        assert example.text == f"x {problem.task.data[1][example.row]:.2f} at 0"
        assert str(example) == f"{example.chi:+.3g} ± {example.half_width:.2g}  [{example.id}] {example.text}"
    assert len(response.top(15)) == 20  # all of them, once
    assert response.top(1)[0].chi == response.chi[0].max()  # of the first row, unless named
    with pytest.raises(pt.PatterningError, match="count is 0"):
        response.top(0)
    with pytest.raises(pt.PatterningError, match="decode must be a tokenizer or a function"):
        response.top(1, decode=3)


def test_chains_are_the_independent_units(response: pt.Response) -> None:
    chains = response.by_chain()
    assert chains.shape == (6, 2, 20)
    np.testing.assert_allclose(chains.mean(0), response.chi, atol=1e-12)
    spread = chains.std(0, ddof=1) / np.sqrt(6)
    assert 0.4 < np.median(response.standard_error / spread) < 2.5


class Words:
    """A tokenizer of numbers."""

    def decode(self, tokens: list[int]) -> str:
        return " ".join(f"w{token}" for token in tokens)


def texts() -> tuple[pt.Task, np.ndarray]:
    """Texts of 6 tokens of which the last ones are padding (0), with a mask beside the losses; and the mask."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 7, (10, 6), generator=generator)
    for row in range(10):
        tokens[row, 3 + row % 4 :] = 0
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(7, 5), nn.Linear(5, 7))

    def loss(module: nn.Module, batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        target = batch[:, 1:]
        return nn.functional.cross_entropy(module(batch[:, :-1]).mT, target, reduction="none"), target > 0

    return pt.Task(net, loss, tokens), (tokens[:, 1:] > 0).numpy()


def test_masked_tokens_are_no_samples_and_in_no_row_mean() -> None:
    task, mask = texts()
    response = pt.measure(task, sampler=pt.SGLD(30, 100, 1e-3), batch_size=5, **SHORT)
    cells = set(zip(response.row.tolist(), response.position.tolist(), strict=True))
    assert cells == set(zip(*(axis.tolist() for axis in np.nonzero(mask)), strict=True))
    np.testing.assert_allclose(response.base_weights, 1 / mask.sum())
    means = response.rows()
    assert means.row.tolist() == list(range(10))
    for row in range(10):
        own = response.by_chain()[:, 0, response.row == row].mean(1)  # alike within a row: a plain mean
        assert own.shape == (4,)
        assert means.chi[0, row] == pytest.approx(own.mean(), rel=1e-9, abs=1e-15)
    assert means.chi.shape == means.standard_error.shape == means.half_width().shape == (1, 10)
    np.testing.assert_allclose(means.chi[0] @ (mask.sum(1) / mask.sum()), 0, atol=1e-9)  # Σ q χ = 0
    weights = response.invert({"full": -1}, min_reliability=-1).weights(0.1, force=True)
    assert weights.rho.shape == mask.shape
    assert (weights.rho[~mask] == 1).all()
    assert (weights.base_weights[~mask] == 0).all()
    example = response.top(1, decode=Words())[0]
    tokens = task.data[example.row].tolist()
    said = " ".join(f"w{token}" for token in tokens[: example.position + 1])
    assert example.text == f"{said}⟦w{tokens[example.position + 1]}⟧"


def test_row_means_cover_the_truth(response: pt.Response, problem: Known) -> None:
    means = response.rows()  # one sample a row: χ itself
    np.testing.assert_allclose(means.chi, response.chi, atol=1e-12)
    error = np.abs(means.chi - problem.chi)
    assert (error <= means.half_width()).mean() > 0.7
    assert (error <= means.half_width() / 10).mean() < 0.5


def test_modes_of_known_rows(response: pt.Response) -> None:
    # two rows that are opposite in one pattern: with the uniform mode removed, that pattern is the one mode
    wave = np.where(np.arange(20) % 4 < 2, 1.0, -1.0)
    noise = 0.01 * np.random.default_rng(0).standard_normal((6, 2, 20))
    known_rows = with_chains(response, np.stack([wave, -wave]) + noise)
    modes = known_rows.modes()
    assert modes.components == ("first", "rest")
    assert len(modes.singular_values) == 1
    assert abs(np.corrcoef(modes.scores[0], wave)[0, 1]) > 0.999
    assert modes.loadings[0, 0] * modes.loadings[1, 0] == pytest.approx(-0.5, rel=1e-3)
    assert modes.singular_values[0] == pytest.approx(np.sqrt(2), rel=1e-2)
    assert modes.above_noise.tolist() == [True]
    with pytest.raises(pt.PatterningError, match="modes need 2 of them"):
        pt.measure(blank(), sampler=KERNEL, batch_size=4, **SHORT).modes()


def blank() -> pt.Task:
    return pt.Task(nn.Linear(2, 1), lambda m, b: m(b).square().sum(1), torch.randn(8, 2, generator=None))


def test_the_prediction_is_chi_times_the_weights_by_hand(exact: pt.Response) -> None:
    q, chi = exact.base_weights, exact.chi
    direction = exact.invert({"first": -1, "rest": 0.5})
    assert direction.refused is None
    by_hand = chi.T @ np.linalg.solve((chi * q) @ chi.T, np.array([-1.0, 0.5]))  # χᵀ (χ Q χᵀ)⁻¹ dμ
    assert np.corrcoef(direction.s, by_hand)[0, 1] == pytest.approx(1, abs=1e-9)
    assert q @ direction.s == pytest.approx(0, abs=1e-12)
    assert q @ direction.s**2 == pytest.approx(1)
    strength = 0.9 / np.abs(direction.s).max()  # nothing is clipped
    weights = direction.weights(strength)
    moved = exact.n_beta * chi @ (q * (weights.rho - 1))
    for name, value in zip(exact.names, moved, strict=True):
        predicted = direction.predicted[name]
        assert predicted.value * strength == pytest.approx(value, rel=1e-9)
        assert np.isnan(predicted.low)  # a first look has no error
    assert moved[0] / moved[1] == pytest.approx(-2)
    assert direction.needed("first", 2 * moved[0]) == pytest.approx(2 * strength)
    assert sum(direction.theta[name] * (chi[i] @ (q * chi[0])) for i, name in enumerate(exact.names)) == pytest.approx(
        direction.s @ (q * chi[0])
    )
    assert weights.facts["target"] == {"first": -1.0, "rest": 0.5}
    assert weights.facts["what"] == "lower first (-1); higher rest (+0.5)"
    with pytest.raises(pt.PatterningError, match="χ has no row 'third'"):
        direction.needed("third", 1.0)


@pytest.mark.parametrize("hold", ["rest", ["rest"], [("full", "rest")]])
def test_held_rows_do_not_move(exact: pt.Response, hold) -> None:
    direction = exact.invert({"first": 1}, hold=hold)
    assert direction.wanted == {"first": 1.0, "rest": 0.0}
    assert abs(direction.predicted["rest"].value) < 1e-9 * direction.predicted["first"].value
    assert "higher first (+1), rest held. Expected for each unit of strength" in str(direction)
    free_of_it = exact.invert({"first": 1})
    assert abs(free_of_it.predicted["rest"].value) > 1e-3 * abs(free_of_it.predicted["first"].value)


def test_what_may_not_move_does_not(exact: pt.Response) -> None:
    free = np.arange(20) < 12
    direction = exact.invert({"first": -1}, free=free)
    assert (direction.s[~free] == 0).all()
    assert (direction.weights(0.1, free=free).rho[~free] == 1).all()


def test_the_cross_fitted_interval_covers(response: pt.Response, problem: Known) -> None:
    rng = np.random.default_rng(0)
    q, size = response.base_weights, 0.4 * np.abs(problem.chi).mean()
    covered = np.zeros((60, 2), dtype=bool)
    for trial in range(len(covered)):
        chains = problem.chi + size * rng.standard_normal((6, 2, 20))
        direction = with_chains(response, chains).invert({"first": -1}, min_reliability=-1)
        truth = response.n_beta * problem.chi @ (q * direction.s)
        for k, name in enumerate(response.names):
            change = direction.predicted[name]
            covered[trial, k] = change.low <= truth[k] <= change.high
    assert (covered.mean(0) > 0.87).all()


def test_directions_that_noise_made_are_refused_by_name(response: pt.Response) -> None:
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(20):
        noise = with_chains(response, rng.standard_normal((6, 2, 20)))
        direction = noise.invert({"first": -1})
        if direction.refused is not None:
            refused += 1
            assert "first is expected at" in direction.refused or "noise" in direction.refused
    assert refused >= 18  # 95 % intervals, one side
    noisy = with_chains(response, response.by_chain(), reliability=0.1)
    direction = noisy.invert({"first": -1})
    assert "χ is too noisy: split-half reliability first 0.10 (at least 0.3)" in direction.refused
    with pytest.raises(pt.PatterningError, match=r"this direction was refused .*force=True"):
        direction.weights(0.1)
    assert "refused" in str(direction)


def test_an_interval_that_includes_0_is_named(response: pt.Response, problem: Known) -> None:
    rng = np.random.default_rng(1)
    sizes = 40 * np.abs(problem.chi).mean() * rng.standard_normal((6, 2, 20))
    direction = with_chains(response, problem.chi + sizes).invert({"first": -1}, min_reliability=-1)
    change = direction.predicted["first"]
    assert change.low <= 0 <= change.high
    assert "which includes 0" in direction.refused


@pytest.mark.parametrize(
    ("wanted", "hold", "says"),
    [
        ({"third": 1}, (), "χ has no row 'third'"),
        ({"first": 1}, ["third"], "χ has no row 'third'"),
        ({"first": 1}, ["first"], "asked for and held at the same time"),
        ({"first": 0}, (), "must be finite and not 0"),
        ({"first": float("nan")}, (), "must be finite"),
        ({}, (), "must be finite and not 0 for some row"),
        ("first", (), "give rows and signs"),
    ],
)
def test_wishes_that_ask_for_nothing(exact: pt.Response, wanted, hold, says: str) -> None:
    with pytest.raises(pt.PatterningError, match=says):
        exact.invert(wanted, hold)


def test_what_is_saved_comes_back(response: pt.Response, problem: Known, tmp_path: Path) -> None:
    response.save(tmp_path / "chi")
    back = pt.load(tmp_path / "chi", problem.task)
    np.testing.assert_array_equal(back.chi, response.chi)
    np.testing.assert_array_equal(back.by_chain(), response.by_chain())
    assert str(back) == str(response)
    assert back.invert({"first": -1}).weights(0.1).data == problem.task.data_fingerprint
    alone = pt.load(tmp_path / "chi")
    with pytest.raises(pt.PatterningError, match="load the response with its task"):
        alone.invert({"first": -1}).weights(0.1)
    with pytest.raises(pt.PatterningError, match="load the response with its task"):
        alone.top(1, decode=lambda row, position: "")
    assert alone.top(1)[0].row == response.top(1)[0].row
    with pytest.raises(pt.PatterningError, match="was measured on another task"):
        pt.load(tmp_path / "chi", blank())
    with pytest.raises(pt.PatterningError, match="exists: name another folder"):
        response.save(tmp_path / "chi")
    with pytest.raises(pt.PatterningError, match="holds no susceptibilities"):
        pt.load(tmp_path)


def test_more_weight_on_a_sample_of_positive_chi_raises_phi(problem: Known) -> None:
    """The sign in words, against the exact posterior mean under other weights."""
    task, chi = problem.task, problem.slope[0]
    x, y = (part.double().numpy() for part in task.data)
    q, anchor = task.base_weights.numpy(), task.own_row().double().numpy()

    def first_weight(weights: np.ndarray) -> float:
        precision = KERNEL.n_beta * (x.T * weights) @ x + KERNEL.localization * np.eye(3)
        return float(np.linalg.solve(precision, KERNEL.n_beta * (x.T * weights) @ y + KERNEL.localization * anchor)[0])

    for j in (int(chi.argmax()), int(chi.argmin())):
        more = q * (1 + 0.01 * (np.eye(20)[j] / q[j] - 1))
        assert np.sign(first_weight(more) - first_weight(q)) == np.sign(chi[j])
