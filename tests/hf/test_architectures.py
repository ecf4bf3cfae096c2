"""Components of Hugging Face models by name, checked against the unwrapped models."""

import re
from copy import deepcopy

import pytest
import torch

pytest.importorskip("transformers")

import patterning as pt
from patterning.core.calls import WithLoss
from patterning.face.calling import logits_of
from patterning.models.architectures import layout_of
from patterning.models.components import find_component
from patterning.models.restricted import Restricted

from .models import CAUSAL, CLASSIFIERS, VOCABULARY, build, labelled, read_by_heads, texts

EVERY = [*CAUSAL, *CLASSIFIERS]
IDS = torch.randint(3, VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(0))


def task_of(name: str) -> pt.Task:
    return pt.language_task(build(name), texts()) if name in CAUSAL else pt.classifier_task(build(name), labelled())


def perturbed(model, masks, prefixes: tuple[str, ...] = ()):
    """A copy with noise on the masked entries; with `prefixes`: on all others below them that no other part owns."""
    copy, noise = deepcopy(model), torch.Generator().manual_seed(2)
    for name, p in copy.named_parameters():
        mask = masks.get(name, torch.zeros(p.shape, dtype=torch.bool))
        if prefixes:
            mask = ~mask if name.startswith(prefixes) and "norm" not in name.lower() else torch.zeros_like(mask)
        p.detach().add_(torch.randn(p.shape, generator=noise) * mask)
    return copy


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("name", EVERY)
def test_a_head_is_what_moves_its_output_and_nothing_else(name: str, layer: int) -> None:
    model = build(name)
    layout = layout_of(model)
    here = read_by_heads(model, layer, IDS)
    prefixes = tuple(prefix.format(layer) for prefix in layout.attention)
    for i in range(4):
        masks = find_component(model, f"l{layer}h{i}").masks
        moved = (read_by_heads(perturbed(model, masks), layer, IDS) != here).any(3).any(1).any(0)
        group = [i, i ^ 1] if layout.shares == 2 else [i]  # of two heads that read the same keys and values
        assert moved.nonzero()[:, 0].tolist() == sorted(group)
        others = read_by_heads(perturbed(model, masks, prefixes), layer, IDS)
        assert torch.equal(others[:, :, i], here[:, :, i])
        assert (others != here).any(3).any(1).any(0).sum() == 3


@pytest.mark.parametrize("name", EVERY)
def test_heads_make_up_all_that_belongs_to_heads_in_their_layer(name: str) -> None:
    model = build(name)
    layout = layout_of(model)
    covered: dict[str, torch.Tensor] = {}
    for i in range(4):
        for key, mask in find_component(model, f"l1h{i}").masks.items():
            covered[key] = covered.get(key, torch.zeros_like(mask)) | mask
    assert all(bool(mask.all()) for mask in covered.values())
    prefixes = tuple(prefix.format(1) for prefix in layout.attention)
    rest = {key for key, _ in model.named_parameters() if key.startswith(prefixes)} - set(covered)
    written = f"{layout.output.format(1)}.bias"  # the output bias, and gains of norms, belong to no head
    assert all(key == written or "norm" in key for key in rest)


@pytest.mark.parametrize("name", EVERY)
def test_the_task_computes_what_the_model_does(name: str) -> None:
    model, task = build(name), task_of(name)
    batch, arguments = task.data, task.loss_fn.arguments
    with torch.no_grad():
        theirs = model(**{key: batch[key] for key in arguments if key in batch}).logits
        own = {key: value[0] for key, value in task.named(task.own_row()[None]).items()}
        named = {other: own[key] for key in own for other in task.all_names(key)}
        ours = WithLoss(task.module, lambda module, rows: logits_of(module, rows, arguments)).at(named, batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    labels = batch.get("labels", batch["input_ids"]).clone()
    if name in CAUSAL:
        labels[batch["attention_mask"] == 0] = -100
    with torch.no_grad():
        expected = model(**{key: batch[key] for key in arguments if key in batch}, labels=labels).loss
        losses = task.sample_losses(task.own_row()[None], torch.arange(12)[None])[0]
    samples = task.samples(torch.arange(12))
    ours = float((losses[torch.from_numpy(samples.place)].double() * torch.from_numpy(samples.weight)).sum())
    assert ours == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("part", ["l1h2", "l0 mlp", "l1 attn", "embed"])
def test_freeing_a_part_is_changing_its_parameters_in_the_model(name: str, part: str) -> None:
    task = task_of(name)
    free = Restricted(task, task.own_row(), part)
    by_hand = build(name)
    for key, mask in free.component.masks.items():
        p = by_hand.get_parameter(key).detach()
        p.copy_(torch.where(torch.ones_like(p, dtype=torch.bool) if mask is None else mask, 0.0, p))
    arguments = {key: task.data[key] for key in task.loss_fn.arguments if key in task.data}
    with torch.no_grad():
        logits = by_hand(**arguments).logits
        found = free.sample_losses(torch.zeros(1, free.num_parameters), torch.arange(12)[None])[0]
        if name in CAUSAL:
            expected = torch.nn.functional.cross_entropy(
                logits[:, :-1].transpose(1, 2), task.data["input_ids"][:, 1:], reduction="none"
            )
            expected = (expected * task.data["attention_mask"][:, 1:]).flatten()
        else:
            expected = torch.nn.functional.cross_entropy(logits, task.data["labels"], reduction="none")
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    before = task.sample_losses(task.own_row()[None], torch.arange(12)[None])[0]
    assert (found - before).abs().max() > 1e-3


def test_notes_say_what_is_shared_and_what_is_left_out() -> None:
    note = find_component(build("qwen3"), "l1h2").note
    assert "its keys and values are shared with l1h3" in note
    assert "the gains of q_norm and k_norm belong to all heads of the layer and stay at w*" in note
    assert find_component(build("gpt2"), "l1h2").note == ""
    assert "lm_head.weight" in find_component(build("qwen2"), "embed").note


@pytest.mark.parametrize(("name", "tied"), [("gpt2", True), ("smollm2", True), ("llama", False), ("neox", False)])
def test_a_tied_output_layer_goes_by_the_name_of_the_embedding(name: str, tied: bool) -> None:
    model = build(name)
    assert ("unembed" in pt.components(model)) == (not tied)
    if tied:
        embedding = next(iter(find_component(model, "embed").masks))
        with pytest.raises(pt.PatterningError, match=f"is tied: it is the same tensor as {re.escape(embedding)}"):
            find_component(model, "unembed")
    else:
        assert find_component(model, "unembed").count(model) == VOCABULARY * 16


def test_every_listed_name_is_a_component_and_others_are_refused() -> None:
    for name in EVERY:
        model = build(name)
        listed = pt.components(model)
        assert [part for part in listed if part.startswith("l")][:5] == ["l0h0", "l0h1", "l0h2", "l0h3", "l0 mlp"]
        assert all(find_component(model, part).count(model) > 0 for part in listed)
        with pytest.raises(pt.PatterningError, match="2 layers of 4 heads"):
            find_component(model, "l2h0")
