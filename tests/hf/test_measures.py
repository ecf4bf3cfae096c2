"""Structure measures: against computations of their own, and as observables of every estimator."""

from copy import deepcopy

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

import patterning as pt
from patterning.models.components import find_component
from patterning.models.language import LanguageConfig, LanguageModel
from patterning.tasks.induction import prefix_matching_scores, previous_token_scores, repeated_random_gap

from .models import CAUSAL, VOCABULARY, build, labelled, texts

M = pt.measures
BLOCKS = M.repeated_random(VOCABULARY, 12, 6, 0)
ROWS = texts()


def own_model() -> LanguageModel:
    model = LanguageModel(LanguageConfig(VOCABULARY, 32, 2, 4, 16))
    noise = torch.Generator().manual_seed(3)
    for p in model.parameters():
        p.detach().copy_(0.3 * torch.randn(p.shape, generator=noise))
    return model.eval()


def padded() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row["input_ids"]) for row in ROWS], True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row["input_ids"])) for row in ROWS], True)
    return ids, mask.long()


def eager(model):
    copy = deepcopy(model)
    copy.set_attn_implementation("eager")
    return copy


@pytest.mark.parametrize("name", CAUSAL)
def test_attention_is_that_of_the_model_by_a_loop(name: str) -> None:
    model = build(name)
    ids, mask = padded()
    with torch.no_grad():
        pattern = eager(model)(input_ids=ids, attention_mask=mask, output_attentions=True).attentions[1][:, 2]
        of_blocks = eager(model)(input_ids=BLOCKS, output_attentions=True).attentions[1][:, 2]
        previous = [float(pattern[i, t, t - 1]) for i in range(12) for t in range(1, len(ROWS[i]["input_ids"]))]
        successor = [float(of_blocks[i, 6 + t, t + 1]) for i in range(6) for t in range(6)]
        assert float(M.previous_token("l1h2", ROWS)(model)) == pytest.approx(np.mean(previous), rel=1e-4)
        assert float(M.prefix_matching("l1h2", BLOCKS)(model)) == pytest.approx(np.mean(successor), rel=1e-4)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("name", CAUSAL)
def test_ablation_by_zero_is_zeroing_what_the_head_writes(name: str) -> None:
    model, by_hand = build(name), build(name)
    component = find_component(model, "l1h2")
    (written,) = [key for key in component.masks if key.endswith(("o_proj.weight", "c_proj.weight", "dense.weight"))]
    p = by_hand.get_parameter(written).detach()
    p[component.masks[written]] = 0
    loss = M.loss_on(ROWS)
    with torch.no_grad():
        worth = float(loss(by_hand) - loss(model))
        assert abs(worth) > 1e-4
        assert float(M.head_ablation("l1h2", ROWS)(model)) == pytest.approx(worth, rel=1e-3, abs=1e-6)
        assert float(M.head_ablation("l1h2", ROWS, "mean")(model)) != pytest.approx(worth, rel=1e-2)


def test_ablation_by_the_mean_leaves_what_does_not_depend_on_the_text() -> None:
    model = build("llama")
    attention = model.model.layers[1].self_attn
    attention.v_proj.weight.detach().zero_()  # every head reads its bias, whatever it attends to
    with torch.no_grad():
        assert float(M.head_ablation("l1h2", ROWS, "mean")(model)) == pytest.approx(0, abs=1e-6)
        assert abs(float(M.head_ablation("l1h2", ROWS)(model))) > 1e-3


def test_measures_of_the_own_model_are_those_of_the_induction_study() -> None:
    model = own_model()
    tokens = torch.randint(VOCABULARY, (5, 10), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        previous = float(M.previous_token("l1h2", tokens)(model))
        assert previous == pytest.approx(previous_token_scores(model, tokens)[1, 2], rel=1e-4)
        successor = float(M.prefix_matching("l0h3", BLOCKS)(model))
        assert successor == pytest.approx(prefix_matching_scores(model, BLOCKS)[0, 3], rel=1e-4)
        gap = float(M.repeated_gap(BLOCKS)(model))
        assert gap == pytest.approx(repeated_random_gap(model, BLOCKS), rel=1e-4)


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_logits_projections_and_losses_are_those_of_the_model(name: str) -> None:
    model = build(name)
    ids, mask = padded()
    direction = torch.randn(16, generator=torch.Generator().manual_seed(4))
    where = "transformer.h.0" if name == "gpt2" else "model.layers.0"
    with torch.no_grad():
        output = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
        along = (output.hidden_states[1] @ direction)[mask > 0].mean()
        assert float(M.projection(where, direction, ROWS)(model)) == pytest.approx(float(along), rel=1e-4)
        last = torch.tensor([len(row["input_ids"]) - 1 for row in ROWS])
        after = output.logits[torch.arange(12), last]
        difference = float((after[:, 7] - after[:, 9]).mean())
        assert float(M.logit_difference(ROWS, 7, 9)(model)) == pytest.approx(difference, rel=1e-4)
        theirs = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        assert float(M.loss_on(ROWS)(model)) == pytest.approx(float(theirs), rel=1e-5)
    classifier = build("bert")
    with torch.no_grad():
        batch = pt.classifier_task(classifier, labelled()).data
        assert float(M.loss_on(labelled())(classifier)) == pytest.approx(float(classifier(**batch).loss), rel=1e-5)


def every(name: str) -> dict:
    where = {"gpt2": "transformer.h.0", "neox": "gpt_neox.layers.0", "own": "blocks.0"}.get(name, "model.layers.0")
    return {
        "previous": M.previous_token("l0h1", BLOCKS),
        "prefix": M.prefix_matching("l1h1", BLOCKS),
        "zero": M.head_ablation("l1h1", BLOCKS),
        "mean": M.head_ablation("l1h1", BLOCKS, "mean"),
        "gap": M.repeated_gap(BLOCKS),
        "logits": M.logit_difference(BLOCKS, BLOCKS[:, 0], 3),
        "loss": M.loss_on(BLOCKS),
        "projection": M.projection(where, torch.ones(16), BLOCKS),
    }


@pytest.mark.long
@pytest.mark.parametrize("name", ["gpt2", *(pytest.param(n, marks=pytest.mark.slow) for n in ("own", "qwen2", "neox"))])
def test_every_measure_is_an_observable_of_every_estimator(name: str) -> None:
    if name == "own":
        from patterning.models.language import next_token_losses

        task = pt.Task(own_model(), next_token_losses, torch.tensor([row["input_ids"][:5] for row in ROWS]))
    else:
        task = pt.language_task(build(name), ROWS)
    sampler = pt.SGLD(n_beta=10, localization=30_000, step_size=1e-6)
    rows = {}
    for estimator in ("covariance", "pathwise", "first-order"):
        chi = pt.measure(
            task, every(name), "full", sampler=sampler, estimator=estimator, draws=4, burn_in=2, batch_size=4,
            steps_between_draws=1, probes=range(6), budget=1, progress=False,
        )  # fmt: skip
        rows[estimator] = chi.chi
        assert chi.chi.shape[0] == 8
        assert np.isfinite(chi.chi).all()
        assert (chi.chi.std(1) > 0).all()
    for a, b in zip(rows["pathwise"], rows["first-order"], strict=True):  # close to w* the two are nearly the same
        assert np.corrcoef(a, b)[0, 1] > 0.9


def test_measures_leave_the_model_as_it_was_and_switch_dropout_off() -> None:
    model = build("gpt2").train()
    with torch.no_grad():
        for measure in every("gpt2").values():
            assert float(measure(model)) == float(measure(model))
    assert all(part.training for part in model.modules())
    hooks = [
        hook for part in model.modules() for hook in (*part._forward_pre_hooks.values(), *part._forward_hooks.values())
    ]
    assert not any(hook.__module__.startswith("patterning") for hook in hooks)  # transformers leaves its own


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: M.previous_token("head 3", ROWS), "is no head: write l1h3"),
        (lambda: M.previous_token("l0h9", ROWS)(build("gpt2")), "2 layers of 4 heads"),
        (lambda: M.head_ablation("l0h1", ROWS)(torch.nn.Linear(2, 2)), "not known by name"),
        (lambda: M.prefix_matching("l0h1", torch.arange(8)[None]), "not blocks repeated twice"),
        (lambda: M.projection("model.layer", torch.ones(16), ROWS)(build("llama")), "is no submodule"),
        (lambda: M.projection("lm_head", torch.ones(16), ROWS)(build("llama")), "give a direction of its width"),
        (lambda: M.projection("lm_head", torch.ones(2, 2), ROWS), r"must be \(d,\)"),
        (lambda: M.head_ablation("l0h1", ROWS, "median"), "'zero' or 'mean'"),
    ],
)
def test_what_cannot_be_measured_is_refused(make, says: str) -> None:
    with pytest.raises(pt.PatterningError, match=says):
        make()
