"""The predictor: features mean what they say, and held-out R² is what it would be if the rows were really new."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from patterning.core.errors import PatterningError
from patterning.models.language import LanguageConfig, LanguageModel, next_token_losses
from patterning.response.predictor import PENALTIES, Predictor, feature_groups, features, fit_in_batches, fit_predictor


def made(rows: int = 80, length: int = 20, seed: int = 0, noise: float = 1.0) -> tuple[np.ndarray, ...]:
    """x (n, F), one constant, one in other units; y (n, 3): easy, half noise, all noise and the same for a row."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(rows), length)
    x = rng.standard_normal((rows * length, 12)) + rng.standard_normal((rows, 12))[groups]
    x[:, 3] = 7.0
    x[:, 4] *= 1e4
    signal = (x[:, 0] - 2 * x[:, 1] + x[:, 4] / 1e4) / np.sqrt(12)  # variance about 1
    shared = rng.standard_normal(rows)[groups]
    y = np.stack([3 + signal, signal + noise * rng.standard_normal(len(x)), shared], axis=1)
    return x, y, groups


def test_the_fit_is_ridge_on_standardised_features() -> None:
    x, y, groups = made()
    fit = fit_predictor(x, y, groups, penalties=[0.3])
    spread = np.where(x.std(0) > 0, x.std(0), 1.0)
    z = (x - x.mean(0)) / spread
    expected = Ridge(alpha=0.3 * len(x)).fit(z, y).predict(z)
    np.testing.assert_allclose(fit.predict(x), expected, rtol=1e-8, atol=1e-8)
    assert fit.samples == len(x)
    np.testing.assert_array_equal(fit.penalties, 0.3)


def test_held_out_r2_is_that_of_new_rows() -> None:
    x, y, groups = made()
    fit = fit_predictor(x, y, groups)
    x_new, y_new, _ = made(rows=400, seed=1)
    new = 1 - ((fit.predict(x_new) - y_new) ** 2).sum(0) / ((y_new - y.mean(0)) ** 2).sum(0)
    np.testing.assert_allclose(fit.r2, new, atol=0.05)
    assert fit.r2[0] > 0.999
    assert fit.r2[1] == pytest.approx(0.5, abs=0.06)
    assert fit.r2[2] < 0.02
    np.testing.assert_allclose(fit.against_truth(np.array([1.0, 0.5, 1.0]))[:2], 1, atol=0.12)
    assert fit.penalties[0] == PENALTIES[0]
    assert fit.penalties[2] > fit.penalties[0]


def test_r2_by_hand_over_the_same_folds() -> None:
    """One row that copies another's noise would be predicted if rows were split between folds; they are not."""
    rng = np.random.default_rng(2)
    groups = np.repeat(np.arange(30), 40)
    x = np.eye(30)[groups] + 0.01 * rng.standard_normal((1200, 30))  # the features name the row
    y = rng.standard_normal(30)[groups][:, None]
    assert fit_predictor(x, y, groups).r2[0] < 0.1
    assert fit_predictor(x, y, np.arange(1200)).r2[0] > 0.9


def test_batches_and_their_order_do_not_matter() -> None:
    x, y, groups = made()
    whole = fit_predictor(x, y, groups)
    cuts = [slice(0, 100), slice(100, 101), slice(101, 1600)]
    parts = fit_in_batches((torch.from_numpy(x[cut]), y[cut], groups[cut]) for cut in reversed(cuts))
    np.testing.assert_allclose(parts.weights, whole.weights, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(parts.r2, whole.r2, atol=1e-9)


def test_bad_input_is_named() -> None:
    x, y, groups = made(rows=10)
    broken = x.copy()
    broken[3, 2] = np.inf
    for arguments, words in (
        ((x[:5], y, groups), "features"),
        ((x, y[:, 0], groups), "targets"),
        ((broken, y, groups), "NaN"),
        ((x, y, np.zeros_like(groups)), "one fold"),
    ):
        with pytest.raises(PatterningError, match=words):
            fit_predictor(*arguments)
    for settings in ({"folds": 1}, {"penalties": [0.0]}, {"penalties": []}):
        with pytest.raises(PatterningError, match="at least 2 folds"):
            fit_predictor(x, y, groups, **settings)


# --- features


def model(mlp_ratio: int = 0, positions: str = "shortformer") -> LanguageModel:
    torch.manual_seed(0)
    built = LanguageModel(LanguageConfig(17, 12, 2, 2, 8, mlp_ratio, positions))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return built.eval()


TOKENS = torch.randint(17, (3, 12), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("mlp_ratio", "positions"), [(0, "shortformer"), (2, "added")])
def test_features_know_the_loss_and_the_error(mlp_ratio: int, positions: str) -> None:
    lm = model(mlp_ratio, positions)
    groups = feature_groups(lm, TOKENS)
    whole = features(lm, TOKENS)
    assert whole.shape == (3 * 11, sum(part.shape[2] for part in groups.values()))
    assert whole.dtype == torch.float32
    losses = next_token_losses(lm, TOKENS)
    torch.testing.assert_close(groups["prediction"][..., 0], losses.detach())
    final = groups["stream"][..., -8:].clone().requires_grad_()
    logits = lm.unembed(final)
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), TOKENS[:, 1:], reduction="sum")
    (slope,) = torch.autograd.grad(loss, final)
    torch.testing.assert_close(groups["error"][..., :8], -slope, atol=1e-5, rtol=1e-4)


def test_a_prediction_knows_no_later_token() -> None:
    lm, changed = model(), TOKENS.clone()
    changed[:, 8:] = (changed[:, 8:] + 5) % 17
    before, after = feature_groups(lm, TOKENS), feature_groups(lm, changed)
    for name, part in before.items():
        torch.testing.assert_close(part[:, :7], after[name][:, :7], msg=name)


@pytest.mark.parametrize("head", [0, 1, 2, 3])
def test_ablation_is_the_loss_without_the_head(head: int) -> None:
    lm = model()
    found = feature_groups(lm, TOKENS)["ablation"][..., head]
    layer, own = divmod(head, 2)
    with torch.no_grad():
        before = next_token_losses(lm, TOKENS)
        lm.blocks[layer].attention.out.weight[:, own * 4 : own * 4 + 4] = 0  # type: ignore[union-attr]
        torch.testing.assert_close(found, next_token_losses(lm, TOKENS) - before, atol=1e-5, rtol=1e-4)


def test_attribution_is_the_slope_of_the_loss_in_the_size_of_a_last_layer_head() -> None:
    """At a frozen LayerNorm scale; the curvature is the one at that scale as well."""
    lm = model()
    groups = feature_groups(lm, TOKENS)
    stream = groups["stream"][..., 16:24]  # after the last block
    scale = lm.ln_final.weight / (stream.var(-1, unbiased=False, keepdim=True) + lm.ln_final.eps).sqrt()
    x = lm.start(TOKENS[:, :-1])
    first = lm.layers()[0](*x)
    second = lm.layers()[1].attention
    q, k, v = second.project(lm.layers()[1].ln1(first), x[1])
    own = torch.einsum("bts,bse,de->btd", second.pattern(q, k)[:, 1], v[:, 1], second.out.weight[:, 4:])
    written = (own - own.mean(-1, keepdim=True)) * scale
    size = torch.zeros((), requires_grad=True)
    logits = lm.unembed(lm.ln_final(stream) + size * written)
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), TOKENS[:, 1:], reduction="none").flatten()
    slopes = [torch.autograd.grad(loss, size, create_graph=True)[0] for loss in each]
    bends = [torch.autograd.grad(slope, size, retain_graph=True)[0] for slope in slopes]
    torch.testing.assert_close(groups["attribution"][..., 3].flatten(), -torch.stack(slopes), atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(groups["attribution"][..., 7].flatten(), torch.stack(bends), atol=1e-5, rtol=1e-3)


def test_copies_and_attention_on_a_text_known_by_heart() -> None:
    lm = model()
    tokens = torch.tensor([[3, 5, 9, 3, 5, 2, 3, 5]])
    groups = feature_groups(lm, tokens)
    names = ("same", "follows", "seen", "hit", "latest", "miss", "target", "position")
    found = {name: groups["copies"][0, :, i] for i, name in enumerate(names)}
    # predictions: 3→5 5→9 9→3 3→5 5→2 2→3 3→5
    assert found["seen"].tolist() == [0, 0, 0, 1, 1, 0, 1]
    assert found["hit"].tolist() == [0, 0, 0, 1, 0, 0, 1]
    assert found["miss"].tolist() == [0, 0, 0, 0, 1, 0, 0]
    assert found["latest"].tolist() == [0, 0, 0, 1, 0, 0, 1]
    np.testing.assert_allclose(found["same"].exp() - 1, [0, 0, 0, 1, 1, 0, 2], atol=1e-6)
    np.testing.assert_allclose(found["target"].exp() - 1, [0, 0, 1, 1, 0, 2, 2], atol=1e-6)
    heads = 4
    parts = groups["attention"][0].unflatten(1, (7, heads))  # copied, matched, both, leads, previous, own, spread
    x, positions = lm.start(tokens[:, :-1])
    block = lm.layers()[0]
    q, k, _ = block.attention.project(block.ln1(x), positions)
    pattern = block.attention.pattern(q, k)[0, 0]
    torch.testing.assert_close(parts[3, 0, 0], pattern[3, 1])  # predicting 5 after 3: the one 5 read
    torch.testing.assert_close(parts[6, 1, 0], pattern[6, 1] + pattern[6, 4])  # what follows an earlier 3
    torch.testing.assert_close(parts[6, 2, 0], pattern[6, 1] + pattern[6, 4])
    torch.testing.assert_close(parts[4, 1, 0], pattern[4, 2])  # after an earlier 5 came 9
    assert parts[4, 2, 0] == 0  # which is not the 2 to be predicted
    torch.testing.assert_close(parts[6, 3, 0], pattern[6, 0] + pattern[6, 3])  # the 3s before a 5
    torch.testing.assert_close(parts[3, 4, 0], pattern[3, 2])
    torch.testing.assert_close(parts[3, 5, 0], pattern[3, 3])
    torch.testing.assert_close(parts[0, 6], torch.zeros(heads))  # one token to read: no spread


def test_a_predictor_is_applied_to_batches() -> None:
    lm = model()
    found = features(lm, TOKENS)
    fit = Predictor(np.ones((found.shape[1], 2)), np.array([1.0, 2.0]), np.ones(2), np.ones(2), 5)
    whole = fit.predict(found)
    np.testing.assert_allclose(fit.predict(features(lm, TOKENS[1:2])), whole[11:22], rtol=1e-4)
    np.testing.assert_allclose(whole[:, 1] - whole[:, 0], 1)
