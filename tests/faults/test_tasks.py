"""What a model, a loss or data may do is tried before anything is sampled: it works, or is refused by name."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patterning.core.errors import PatterningError
from patterning.core.task import Task
from patterning.intervention.solve import solve
from patterning.models.components import find_component
from patterning.posterior.chains import ChainConfig
from tests.faults.common import (
    CE,
    PAIRED,
    TOKENS,
    X,
    Y,
    chi,
    classify,
    ignoring,
    language_model,
    masked,
    seeded,
)


def test_padding_that_a_loss_ignores_is_refused_with_the_remedy() -> None:
    with pytest.raises(PatterningError, match=r"192 of 448 samples .* ignore_index .* \(losses, mask\)"):
        Task(language_model(), ignoring, TOKENS)


def test_masked_tokens_are_no_samples() -> None:
    """Everything is as if only the real tokens existed: L, row means, χ, columns, LLC and what `solve` moves."""
    task = Task(language_model(), masked, TOKENS)
    cut = Task(language_model(), ignoring, TOKENS[:, :5])
    flat, every = task.flatten(task.module)[None], torch.arange(64)[None]
    mean = float(task.losses(flat, every)[0].double() @ task.base_weights)
    with torch.no_grad():
        logits = language_model()(TOKENS)[:, :4]
        real = CE(logits.flatten(0, 1), TOKENS[:, 1:5].flatten())
    assert mean == pytest.approx(float(real.mean()), rel=1e-5)
    padded, plain = (chi(own, estimator="covariance") for own in (task, cut))
    np.testing.assert_allclose(padded.chi(), plain.chi(), rtol=2e-3, atol=1e-7)
    np.testing.assert_array_equal(padded.rows, plain.rows)
    assert padded.positions.max() == 3
    assert padded.by_component["full"].rise == pytest.approx(plain.by_component["full"].rise, rel=1e-3)
    weights = padded.by_component["full"].susceptibility.base_weights
    assert solve(padded.chi(), weights, np.array([1.0]), 30).s.shape == (4 * 64,)


@pytest.mark.parametrize("estimator", ["covariance", "pathwise"])
def test_rows_of_unequal_length_weigh_by_their_tokens(estimator: str) -> None:
    """Padded rows of 2 and 5 tokens give the same χ as the same tokens one to a row, sampled by the same chain."""
    lengths = torch.arange(64) % 4 + 1
    tokens = torch.where(torch.arange(8) <= lengths[:, None], TOKENS.clamp(min=1), 0)
    task = Task(language_model(), masked, tokens)
    count = (tokens[:, 1:] != 0).sum(1).double()
    assert torch.allclose(task.base_weights, count / count.sum())
    place = (tokens[:, 1:] != 0).nonzero()
    pairs = torch.stack([tokens[place[:, 0], place[:, 1]], tokens[place[:, 0], place[:, 1] + 1]], 1)
    flat_task = Task(language_model(), lambda model, batch: CE(model(batch[:, 0]), batch[:, 1]), pairs)
    assert float(task.losses(task.own_row()[None], torch.arange(64)[None])[0].double() @ task.base_weights) == (
        pytest.approx(float(flat_task.losses(task.own_row()[None], torch.arange(len(pairs))[None]).mean()), rel=1e-5)
    )
    # a minibatch that holds every row in proportion is the whole data: then both chains take the same steps
    config = ChainConfig(2, 8, 4, 2, int(count.sum()), matched=True)
    one, other = (chi(own, chains=config, estimator=estimator) for own in (task, flat_task))
    np.testing.assert_allclose(one.chi(), other.chi(), rtol=0.02, atol=2e-3 * np.abs(other.chi()).max())


def test_weights_of_tokens_may_be_numbers_and_whole_rows_may_be_masked() -> None:
    def weighted(model, batch: Tensor) -> tuple[Tensor, Tensor]:
        return ignoring(model, batch), (batch[:, 1:] != 0) * torch.arange(1.0, 8.0)

    task = Task(language_model(), weighted, TOKENS)
    losses = ignoring(language_model(), TOKENS)[:, :4]
    expected = (losses * torch.arange(1.0, 5.0)).sum(1) / 10
    torch.testing.assert_close(task.losses(task.own_row()[None], torch.arange(64)[None])[0], expected)

    tokens = TOKENS.clone()
    tokens[10] = 0
    some = Task(language_model(), masked, tokens)
    assert some.base_weights[10] == 0
    assert 10 not in some.draws.tolist()
    response = chi(some)
    assert 10 not in response.rows.tolist()
    assert np.isfinite(response.chi()).all()
    with pytest.raises(PatterningError, match="no sample"):
        Task(language_model(), masked, torch.zeros(8, 8, dtype=torch.int64))


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (lambda losses, _: torch.ones(3), "mask that the loss returns is"),
        (lambda losses, _: -torch.ones_like(losses), "finite and >= 0"),
        (lambda losses, _: losses > losses.mean(), "mask (of a row depends|changes)"),
        (lambda losses, _: losses > 2.0, "mask changes with the model's parameters"),
    ],
)
def test_a_bad_mask_is_refused(mask, message: str) -> None:
    with pytest.raises(PatterningError, match=message):
        Task(language_model(), lambda model, batch: (losses := ignoring(model, batch), mask(losses, 0)), TOKENS)


def test_a_hook_below_the_component_that_feeds_the_loss() -> None:
    """What a probe keeps would silence the hook: χ must be that of the plain loss."""

    def build() -> tuple[nn.Module, dict[str, Tensor]]:
        net, seen = seeded(nn.Sequential(nn.Sequential(nn.Linear(6, 6), nn.Tanh()), nn.Linear(6, 3))), {}
        net[0][0].register_forward_hook(lambda _m, _i, output: seen.update(z=output))
        return net, seen

    net, seen = build()
    hooked = Task(net, lambda model, batch: CE(model(batch[0]), batch[1]) * (1 + seen["z"].square().mean(1)), (X, Y))
    first = net[0][0]
    frozen = (X @ first.weight.detach().T + first.bias.detach()).square().mean(1)
    plain = Task(net, lambda model, batch: CE(model(batch[0]), batch[1]) * (1 + batch[2]), (X, Y, frozen))
    rows = torch.arange(0, 128, 2)
    one, other = (chi(task, ["1.*"], probes=rows).chi() for task in (hooked, plain))
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "loss",
    [
        lambda model, batch: (model(batch[0]) - batch[1]).square(),
        lambda model, batch: (model(batch[0]) - batch[1]).square().mean(0),
    ],
)
def test_outputs_with_an_axis_too_many_are_refused(loss) -> None:
    with pytest.raises(PatterningError, match=r"outputs \(b, 1\) subtracted from targets \(b,\)"):
        Task(nn.Linear(6, 1), loss, (X, torch.randn(128)))


class Grouped(nn.Module):
    """The names and shapes of a TransformerLens model with grouped-query attention."""

    class Config:
        n_heads, n_layers, n_key_value_heads, attn_only = 4, 1, 2, True

    def __init__(self) -> None:
        super().__init__()
        self.cfg = self.Config()
        block = nn.Module()
        attn = block.attn = nn.Module()
        for name, heads in {"W_Q": 4, "_W_K": 2, "_W_V": 2}.items():
            setattr(attn, name, nn.Parameter(torch.randn(heads, 8, 2)))
        attn.W_O = nn.Parameter(torch.randn(4, 2, 8))
        for name, heads in {"b_Q": 4, "_b_K": 2, "_b_V": 2}.items():
            setattr(attn, name, nn.Parameter(torch.zeros(heads, 2)))
        self.blocks = nn.ModuleList([block])


def test_a_head_under_grouped_queries_has_the_keys_and_values_it_shares() -> None:
    component = find_component(Grouped(), "l0h3")
    assert component.count(Grouped()) == 4 * 16 + 3 * 2
    assert component.note == "its keys and values are shared with l0h2"
    keys = component.masks["blocks.0.attn._W_K"]
    assert keys is not None
    assert keys.flatten(1).all(1).tolist() == [False, True]


def test_a_parameter_that_is_missing_is_never_skipped() -> None:
    model = Grouped()
    model.cfg.n_key_value_heads = 4  # the names of ordinary attention, which this model has not
    try:
        with pytest.raises(PatterningError, match=r"has no parameter blocks\.0\.attn\.W_K"):
            find_component(model, "l0h3")
    finally:
        Grouped.Config.n_key_value_heads = 2


class Twice(nn.Module):
    """One module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.a = self.b = nn.Linear(6, 6)
        self.c = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(torch.tanh(self.a(x))))


class Keeping(nn.Module):
    """Keeps a tensor of its last call."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.last = torch.tanh(self.a(x))
        return self.c(self.last)


@pytest.mark.parametrize("kind", [Twice, Keeping])
def test_modules_under_two_names_and_modules_that_keep_tensors(kind) -> None:
    module = seeded(kind())
    module(X)  # a trained module comes with what its last call left
    task = Task(module, classify, (X, Y))
    key = task.fingerprint
    response = chi(task, ["full", "c.*"], chains=PAIRED, estimator="auto")
    assert all(found.estimator == "pathwise" for found in response.by_component.values())
    assert task.init([1, 1]).shape == (2, task.num_parameters)
    assert task.fingerprint == key
    flat = task.flatten(module)[None].expand(2, -1) * torch.tensor([[1.0], [1.1]])
    with torch.no_grad():
        expected = torch.stack([classify(task.load(kind(), row), (X, Y)) for row in flat])
    torch.testing.assert_close(task.losses(flat, torch.arange(128).expand(2, -1)), expected)


class Attending(nn.Module):
    """Looks at its mask with an `if`, as the attention of Hugging Face models does."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(9, 6), nn.Linear(6, 3)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x.mean(1) if bool((mask == 1).all()) else (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.out(x)


@pytest.mark.parametrize("full", [True, False])
def test_attention_masks_that_steer_the_forward_pass(full: bool) -> None:
    mask = torch.ones(64, 8, dtype=torch.long) if full else (TOKENS != 0).long()
    data = {"i": TOKENS, "a": mask, "y": Y[:64]}
    task = Task(seeded(Attending()), lambda model, b: CE(model(b["i"], mask=b["a"]), b["y"]), data)
    assert "one after the other" in " ".join(task.notes)
    response = chi(task, ["out.*"], chains=PAIRED, estimator="auto")
    assert response.by_component["out.*"].estimator == "pathwise"
    own = ChainConfig(2, 8, 4, 2, 16)  # rows of their own for each chain
    assert np.isfinite(chi(task, ["out.*"], chains=own).chi()).all()
    with torch.no_grad():
        expected = CE(seeded(Attending())(TOKENS, mask), Y[:64])
    torch.testing.assert_close(task.losses(task.own_row()[None], torch.arange(64)[None])[0], expected)


def test_a_component_that_nothing_uses_is_refused_before_sampling() -> None:
    net = seeded(nn.ModuleDict({"used": nn.Linear(6, 3), "spare": nn.Linear(6, 3)}))
    task = Task(net, lambda model, batch: CE(model["used"](batch[0]), batch[1]), (X, Y))
    with pytest.raises(PatterningError, match="nothing in the loss depends on it"):
        chi(task, ["used.*", "spare.*"])
    assert chi(task, ["used.*"]).chi().shape == (1, 128)


def test_randomness_and_batch_statistics_in_the_loss_are_refused() -> None:
    with pytest.raises(PatterningError, match="not the same twice"):
        Task(nn.Linear(6, 3), lambda model, b: CE(F.dropout(model(b[0]), 0.5), b[1]), (X, Y))
    with pytest.raises(PatterningError, match="depends on the other rows of its batch"):
        Task(nn.Linear(6, 3), lambda model, b: CE(model(b[0] - b[0].mean(0)), b[1]), (X, Y))


class WithRule(nn.Module):
    """Says itself how it starts, as Hugging Face models do: reset_parameters of its layers would be another law."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(50, 50)

    def _init_weights(self, part: nn.Module) -> None:
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


def test_init_follows_the_modules_own_rule_or_a_factory() -> None:
    x = torch.randn(16, 50)

    def loss(model, batch: Tensor) -> Tensor:
        return model(batch).square().mean(1)

    row = Task(WithRule(), loss, x).init([3])[0]
    assert float(row[:2500].std()) == pytest.approx(0.02, rel=0.1)

    def make(seed: int) -> nn.Module:
        return seeded(nn.Linear(50, 50), seed)

    task = Task(nn.Linear(50, 50), loss, x, make=make)
    assert torch.equal(task.init([7])[0], task.flatten(make(7)))
