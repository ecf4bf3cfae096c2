"""Token-weighted training: the loss is the model's own, weights do exactly what they say, pauses change no bit."""

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.core.task import Task
from patterning.models.language import LanguageConfig, LanguageModel, next_token_losses
from patterning.training import language
from patterning.training.language import (
    LanguageRun,
    LanguageTraining,
    flatten_language,
    init_language,
    load_language,
    log_spaced,
    train_language,
)
from patterning.training.language_loss import weighted_loss

CONFIG = LanguageConfig(11, 8, 2, 2, 8, mlp_ratio=0, positions="shortformer")
TRAINING = LanguageTraining(steps=9, batch_size=4, learning_rate=1e-2, warmup=2)
RNG = np.random.default_rng(0)
ROWS = torch.from_numpy(RNG.integers(0, 11, (20, 8)))  # batches of 4: an epoch is 5 steps, a run crosses one
RHO = torch.from_numpy(RNG.uniform(0.2, 3, (20, 7)))


def trained(scale: float, config: LanguageConfig = CONFIG) -> LanguageModel:
    """A model far enough from its start that attention is not uniform."""
    model = init_language(config, 1)
    for p in model.parameters():
        if p.ndim > 1:
            p.detach().mul_(scale)
    return model


def gradients(loss: Tensor, model: LanguageModel) -> list[Tensor]:
    return list(torch.autograd.grad(loss, list(model.parameters())))


def measure(model: LanguageModel) -> dict[str, NDArray[np.float64]]:
    return {
        "sum": np.asarray(flatten_language(model).double().sum()),
        "norms": np.ones(2) * model.embed.weight[0, 0].item(),
    }


def train(seed: int = 3, **changed: object) -> LanguageRun:
    settings = {"weights": None, "training": TRAINING, "checkpoints": [0, 4, 9], "measure": measure, "keep": [5]}
    settings |= changed
    return train_language(CONFIG, ROWS, seed=seed, **settings)


def assert_same(a: LanguageRun, b: LanguageRun) -> None:
    assert a.steps.tolist() == b.steps.tolist()
    assert torch.equal(a.final, b.final)
    assert a.kept.keys() == b.kept.keys()
    assert all(torch.equal(a.kept[step], b.kept[step]) for step in a.kept)
    assert a.measures.keys() == b.measures.keys()
    assert all(np.array_equal(a.measures[name], b.measures[name]) for name in a.measures)


@pytest.mark.parametrize("positions", ["added", "shortformer"])
@pytest.mark.parametrize("mlp_ratio", [0, 4])
def test_the_training_loss_and_its_gradient_are_the_models_own(positions: str, mlp_ratio: int) -> None:
    config = LanguageConfig(11, 8, 2, 2, 8, mlp_ratio, positions)  # pyright: ignore[reportArgumentType]
    model = trained(10, config).double()
    rows, rho = ROWS.repeat(3, 1), RHO.repeat(3, 1)  # 420 predictions: two slices of the unembedding, one incomplete
    plain = (rho * next_token_losses(model, rows)).mean()
    fast = weighted_loss(model, rows, rho)
    assert fast.item() == pytest.approx(plain.item(), rel=1e-12)
    for mine, theirs in zip(gradients(fast, model), gradients(plain, model), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_bfloat16_stays_close() -> None:
    model = trained(10)
    exact, rounded = weighted_loss(model, ROWS, RHO), weighted_loss(model, ROWS, RHO, bfloat16=True)
    assert rounded.dtype == torch.float32
    assert 0 < abs(exact.item() - rounded.item()) < 0.01 * exact.item()
    a, b = (torch.cat([g.flatten() for g in gradients(loss, model)]) for loss in (exact, rounded))
    assert b.dtype == torch.float32
    assert float(torch.cosine_similarity(a, b, dim=0)) > 0.999


def test_the_gradient_is_the_finite_difference_of_the_weighted_loss() -> None:
    model = trained(10).double()
    grads = gradients(weighted_loss(model, ROWS, RHO), model)
    rng = np.random.default_rng(1)
    direction = [torch.from_numpy(rng.standard_normal(p.shape)) for p in model.parameters()]
    expected = sum(float((g * d).sum()) for g, d in zip(grads, direction, strict=True))
    values = []
    for sign in (1, -1):
        for p, d in zip(model.parameters(), direction, strict=True):
            p.detach().add_(d, alpha=sign * 1e-5)
        with torch.no_grad():
            values.append(float((RHO * next_token_losses(model, ROWS)).mean()))
        for p, d in zip(model.parameters(), direction, strict=True):
            p.detach().sub_(d, alpha=sign * 1e-5)
    assert (values[0] - values[1]) / 2e-5 == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_prediction_of_weight_0_gives_exactly_no_gradient(bfloat16: bool) -> None:
    # Predictions from position 4 on have weight 0, so tokens that only they read or predict must not matter at all.
    model, rho = trained(10), RHO.clone().float()
    rho[:, 4:] = 0
    other = ROWS.clone()
    other[:, 5:] = (other[:, 5:] + 1 + torch.arange(20)[:, None] % 10) % 11
    assert bool((other[:, 5:] != ROWS[:, 5:]).all())
    there = gradients(weighted_loss(model, ROWS, rho, bfloat16), model)
    here = gradients(weighted_loss(model, other, rho, bfloat16), model)
    named = dict(zip([name for name, _ in model.named_parameters()], zip(there, here, strict=True), strict=True))
    assert named.keys() == dict(model.named_parameters()).keys()
    assert all(torch.equal(a, b) for a, b in named.values())
    changed = gradients(weighted_loss(model, other, RHO.float(), bfloat16), model)
    assert not all(torch.equal(a, b) for a, b in zip(there, changed, strict=True))


def test_only_the_ratio_of_weights_counts_and_constant_ones_are_none_to_the_bit() -> None:
    unweighted = train()
    assert_same(unweighted, train(weights=torch.full((20, 7), 0.3)))
    weighted = train(weights=RHO)
    assert_same(weighted, train(weights=4 * RHO))
    assert not torch.equal(weighted.final, unweighted.final)


def test_weights_follow_their_rows_and_are_scaled_over_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def spy(model: LanguageModel, tokens: Tensor, rho: Tensor, bfloat16: bool) -> Tensor:
        seen.extend(zip(tokens.tolist(), rho.tolist(), strict=True))
        return weighted_loss(model, tokens, rho, bfloat16)

    monkeypatch.setattr(language, "weighted_loss", spy)
    train(weights=RHO)
    rho = {tuple(row): values for row, values in zip(ROWS.tolist(), (RHO / RHO.mean()).float().tolist(), strict=True)}
    assert len(seen) == 36
    for row, values in seen:
        assert values == pytest.approx(rho[tuple(row)], rel=1e-6)
    assert sorted(row for row, _ in seen[:20]) == sorted(ROWS.tolist())  # an epoch sees every row once


def test_one_step_is_adamw_by_hand() -> None:
    training = LanguageTraining(1, 20, 1e-2, warmup=3, weight_decay=0.1, clip=0.05)
    run = train(weights=RHO, training=training, checkpoints=[], keep=[0])
    model = load_language(CONFIG, run.kept[0])
    grads = gradients((RHO / RHO.mean() * next_token_losses(model, ROWS)).mean().float(), model)
    norm = torch.cat([g.flatten() for g in grads]).norm()
    assert norm > 0.05
    rate = 1e-2 / 4  # the first of a warm-up of 3
    after = []
    for p, g in zip(model.parameters(), grads, strict=True):
        clipped = g * 0.05 / norm
        decayed = p.detach() * (1 - rate * 0.1 * (p.ndim > 1))
        after.append((decayed - rate * clipped / (clipped.abs() + 1e-8)).flatten())  # the first Adam step: m/√v = g/|g|
    # key biases have no gradient but rounding noise, whose sign Adam follows
    biases = torch.cat(
        [torch.full_like(p, name.endswith("qkv.bias")).flatten() for name, p in model.named_parameters()]
    )
    expected = torch.cat(after)
    small = torch.cat([(g.abs() < 1e-6).flatten() for g in grads])
    assert float(small.float().mean()) < 0.2
    ok = (biases == 0) & ~small
    torch.testing.assert_close(run.final[ok], expected[ok], rtol=0, atol=2e-5)
    assert not torch.equal(run.final, run.kept[0])


def test_initial_weights_and_batches_depend_on_the_seed_alone() -> None:
    state = torch.get_rng_state()
    a, b, other = train(keep=[0]), train(keep=[0], weights=RHO), train(seed=4, keep=[0])
    assert torch.equal(a.kept[0], b.kept[0])
    assert not torch.equal(a.kept[0], other.kept[0])
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(a, train(keep=[0]))


def test_measures_and_kept_rows_are_those_of_their_step() -> None:
    run = train()
    assert run.steps.tolist() == [0, 4, 9]
    assert run.measures["sum"].shape == (3,)
    assert run.measures["norms"].shape == (3, 2)
    assert run.measures["sum"][2] == float(run.final.double().sum())
    short = train(training=LanguageTraining(5, 4, 1e-2, 2), checkpoints=[0])
    assert torch.equal(run.kept[5], short.final)
    task = Task(load_language(CONFIG, run.final), next_token_losses, ROWS)
    assert torch.equal(task.flatten(task.module), run.final)


@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bfloat16: bool) -> None:
    monkeypatch.setattr(language, "SAVE_EVERY", 0.0)  # a state after every step
    training = LanguageTraining(9, 4, 1e-2, 2, bfloat16=bfloat16)
    whole = train(weights=RHO, training=training)
    for stop in (1, 4, 5, 6, 9):
        scratch, calls = tmp_path / f"{stop}.state", [0]

        def killed(model: LanguageModel, tokens: Tensor, rho: Tensor, bf: bool, *, stop=stop, calls=calls) -> Tensor:
            calls[0] += 1
            if calls[0] == stop + 1:
                raise KeyboardInterrupt
            return weighted_loss(model, tokens, rho, bf)

        with monkeypatch.context() as patch:
            patch.setattr(language, "weighted_loss", killed)
            if stop < 9:
                with pytest.raises(KeyboardInterrupt):
                    train(weights=RHO, training=training, scratch=scratch)
            else:
                train(weights=RHO, training=training, scratch=scratch)
        steps = []

        def counted(model: LanguageModel, tokens: Tensor, rho: Tensor, bf: bool, *, steps=steps) -> Tensor:
            steps.append(1)
            return weighted_loss(model, tokens, rho, bf)

        with monkeypatch.context() as patch:
            patch.setattr(language, "weighted_loss", counted)
            assert_same(train(weights=RHO, training=training, scratch=scratch), whole)
        assert len(steps) == 9 - stop  # it did not start again


def test_a_state_of_another_run_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(language, "SAVE_EVERY", 0.0)
    scratch = tmp_path / "run.state"
    train(weights=RHO, scratch=scratch)
    assert scratch.exists()
    assert_same(train(scratch=scratch), train())
    assert_same(train(seed=4, scratch=scratch), train(seed=4))


def test_log_spaced() -> None:
    assert log_spaced(100, 4) == [0, 1, 10, 100]
    assert log_spaced(1, 5) == [0, 1]
    assert log_spaced(800, 5, first=100) == [0, 100, 200, 400, 800]
    for count, first in ((1, 1), (5, 0), (5, 801)):
        with pytest.raises(PatterningError, match=f"{count} checkpoints from {first} to 800 steps"):
            log_spaced(800, count, first)
    found = log_spaced(3000, 30)
    assert found == sorted(set(found))
    assert (found[0], found[-1]) == (0, 3000)
    assert 20 <= len(found) <= 30


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights": torch.ones(20, 8)}, r"weights have shape \(20, 8\).*\(20, 7\)"),
        ({"weights": -RHO}, "140 weights are negative"),
        ({"weights": torch.zeros(20, 7)}, "nothing left to train on"),
        ({"weights": RHO / 0}, "140 of 140 weights are NaN or infinite"),
        ({"checkpoints": [10]}, r"checkpoints \[10\] are outside of the run's 9 steps"),
        ({"keep": [-1]}, "outside"),
        ({"training": LanguageTraining(2, 21, 1e-2, 0)}, "batch_size 21 is larger than the 20"),
    ],
)
def test_what_does_not_fit_is_refused(changed: dict[str, object], message: str) -> None:
    with pytest.raises(PatterningError, match=message):
        train(**{"checkpoints": [0], "keep": [], **changed})


def test_bad_rows_settings_and_divergence_are_refused() -> None:
    arguments = {"training": TRAINING, "seed": 0, "checkpoints": [9], "measure": measure}
    with pytest.raises(PatterningError, match="tokens 0 to 11: the model's vocabulary is 11"):
        train_language(CONFIG, ROWS.clamp(0, 11).index_fill(0, torch.tensor(0), 11).clamp_min(0), None, **arguments)
    with pytest.raises(PatterningError, match="context of 8"):
        train_language(CONFIG, torch.zeros(20, 9, dtype=torch.long), None, **arguments)
    for wrong in ({"steps": 0}, {"learning_rate": 0.0}, {"betas": (0.9, 1.0)}, {"clip": -1.0}):
        with pytest.raises(PatterningError, match=next(iter(wrong))):
            LanguageTraining(**{"steps": 1, "batch_size": 1, "learning_rate": 1e-3, "warmup": 0, **wrong})
    with pytest.raises(PatterningError, match="diverged before step 9"):
        train_language(CONFIG, ROWS, None, **{**arguments, "training": LanguageTraining(9, 4, 1e38, 0)})
    with pytest.raises(PatterningError, match=r"shape \(3,\)"):
        load_language(CONFIG, torch.zeros(3))


def test_short_integer_rows_train_to_the_same_bits() -> None:
    run = train_language(
        CONFIG, ROWS.to(torch.uint8), None, TRAINING, seed=3, checkpoints=[0, 4, 9], measure=measure, keep=[5]
    )
    assert_same(run, train())
