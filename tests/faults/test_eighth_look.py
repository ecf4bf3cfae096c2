"""What the ninth round of ordinary inputs found."""

import re

import pytest
import torch
from torch import nn
from torch.nn.functional import logsigmoid

import patterning as pt
from faults.test_chain_bias import GAMMA, N_BETA, exact_chi_of_w0, regression, step_size


@pytest.mark.parametrize("shards", [None, 2])
@pytest.mark.parametrize(
    ("estimator", "settings"),
    [
        ("pathwise", {"burn_in": 0, "chains": 4}),
        ("pathwise", {"burn_in": 40, "chains": 4, "length": 0.01}),
        ("covariance", {"burn_in": 400, "chains": 64}),
    ],
)
def test_what_short_chains_miss_of_a_response_is_said_as_large_as_it_is(
    estimator: str, settings: dict, shards: int | None, tmp_path
) -> None:
    task, design, residual = regression(60, 0.3)
    settings = dict(settings)
    length = settings.pop("length", 0.05)
    chi = pt.measure(
        task, {"w0": lambda m: m.weight[0, 0] * 1}, sampler=pt.SGLD(N_BETA, GAMMA, step_size(design, length)), draws=20,
        steps_between_draws=4, batch_size=60, budget=1, reliability=None, estimator=estimator, progress=False,
        shards=shards, out=tmp_path if shards else None, **settings,
    )  # fmt: skip
    exact = exact_chi_of_w0(design, residual)
    missing = 1 - float(chi.chi[0] @ exact / (exact @ exact))
    (said,) = [line for line in chi.warnings if "chains are short for w0" in line]
    assert missing > 0.1
    assert abs(int(re.findall(r"about (\d+)% too small", said)[0]) / 100 - missing) < (
        0.04 if estimator == "pathwise" else 0.09
    )  # the noise of 64 chains
    assert not any("not quite settled on w0" in line for line in chi.warnings)  # which would give another number


def test_the_settings_that_are_advised_are_long_enough() -> None:
    task, design, residual = regression(60, 0.3)
    exact = exact_chi_of_w0(design, residual)
    sampler = pt.SGLD(N_BETA, GAMMA, step_size(design, 0.05))
    settings = {"draws": 20, "batch_size": 60, "budget": 1, "reliability": None, "progress": False}
    short = pt.measure(task, {"w0": lambda m: m.weight[0, 0] * 1}, sampler=sampler, burn_in=0, **settings)
    (advised,) = re.findall(r"burn_in=(\d+) leaves", " ".join(short.warnings))
    longer = pt.measure(task, {"w0": lambda m: m.weight[0, 0] * 1}, sampler=sampler, burn_in=int(advised), **settings)
    assert not any("short for" in line for line in longer.warnings)
    assert float(longer.chi[0] @ exact / (exact @ exact)) > 0.96


def test_answers_that_are_padded_on_the_left_have_the_rewards_that_they_have_alone() -> None:
    hf = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = hf.GPT2Config(vocab_size=40, n_positions=16, n_embd=32, n_layer=1, n_head=4, num_labels=1, pad_token_id=0)
    model = hf.GPT2ForSequenceClassification(config).eval()
    rng = torch.Generator().manual_seed(0)
    sides = [[torch.randint(3, 40, (size,), generator=rng) for size in sizes] for sizes in ((8, 5, 3), (4, 7, 2))]

    def padded(rows: list[torch.Tensor], left: bool) -> dict[str, torch.Tensor]:
        longest = max(map(len, rows))
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(rows):
            place = slice(longest - len(row), None) if left else slice(len(row))
            ids[i, place], mask[i, place] = row, 1
        return {"input_ids": ids, "attention_mask": mask}

    with torch.no_grad():
        first, second = ([model(input_ids=row[None]).logits[0, 0] for row in rows] for rows in sides)
        alone = torch.stack([-logsigmoid(a - b) for a, b in zip(first, second, strict=True)])
        for left in (False, True):
            task = pt.preference_task(model, *(padded(rows, left) for rows in sides))
            torch.testing.assert_close(task.loss_fn(task.module, task.data), alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_masked_losses_that_are_not_finite_are_told_to_be_replaced(value: float) -> None:
    x = torch.randn(12, 2, generator=torch.Generator().manual_seed(0))
    y, mask = torch.ones(12), torch.arange(12) % 3 > 0
    y[~mask] = value
    with pytest.raises(pt.PatterningError, match=r"4 masked losses are, the first in row 0, .* torch\.where"):
        pt.Task(nn.Linear(2, 1), lambda m, b: ((m(b[0])[:, 0] - b[1]).square(), b[2]), (x, y, mask))
