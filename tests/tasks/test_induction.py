"""Structure measures against hand-built attention, closed forms and losses counted by hand."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.models.language import LanguageConfig, LanguageModel, next_token_losses
from patterning.response.slopes import parameter_gradient
from patterning.tasks import induction
from patterning.tasks.induction import (
    attention_patterns,
    copy_gain,
    gap_parts,
    icl_score,
    interpolated_onset,
    loss_parts,
    measure_structure,
    onset,
    prefix_matching_scores,
    previous_token_scores,
    repeated_random,
    repeated_random_gap,
    token_losses,
)
from patterning.tasks.text.classes import induction_labels
from patterning.training.language import flatten_language, init_language, load_language

CONTEXT, VOCABULARY = 8, 20


def uniform(layers: int = 2, heads: int = 2) -> LanguageModel:
    """Keys are 0: every position reads all earlier ones and itself alike. No head writes anything."""
    model = init_language(LanguageConfig(VOCABULARY, CONTEXT, layers, heads, 8, 0, "shortformer"), 0)
    for block in model.blocks:
        for p in block.attention.parameters():
            p.detach().zero_()
    return model


def circuit() -> LanguageModel:
    """An induction circuit by hand, one head a layer, exact to the rounding of float32.

    The stream has three parts of d = max(V, t) coordinates: the token (one-hot), the previous token (written by layer
    0), the prediction (written by layer 1). Positions are one-hot in the first part of what queries and keys read, so
    layer 0 asks for its own position minus one; layer 1 asks for positions whose previous token is its own.
    """
    d = max(VOCABULARY, CONTEXT)
    config = LanguageConfig(VOCABULARY, CONTEXT, 2, 1, 4 * d, 0, "shortformer")
    model = init_language(config, 0)
    for p in model.parameters():
        p.detach().zero_()
    eye = torch.eye(d)
    token, place, before, guess = (slice(i * d, (i + 1) * d) for i in range(4))
    width = 4 * d
    model.embed.weight.detach()[:, token] = eye[:VOCABULARY]
    model.positions.weight.detach()[:, place] = eye[:CONTEXT]
    first, second = (block.attention for block in model.blocks)
    sharp = 1000.0
    # Layer 0: the query at position i looks for i - 1 (at 0: for nothing), values carry the token.
    first.qkv.weight.detach()[place, place] = sharp * torch.diag(torch.ones(d - 1), 1)
    first.qkv.weight.detach()[width:][place, place] = sharp * eye
    first.qkv.weight.detach()[2 * width :][before, token] = eye
    first.out.weight.detach()[before, before] = eye / 9  # back to the size of the token: LayerNorm made it 9
    # Layer 1: the query is the token, the key the previous token; the value is the token itself.
    second.qkv.weight.detach()[token, token] = sharp * eye
    second.qkv.weight.detach()[width : 2 * width][token, before] = sharp * eye
    # Layer 0 can only read itself at position 0, so that key would pass for a match of the first token with itself.
    second.qkv.weight.detach()[width : 2 * width][token, place.start] = -10 * sharp
    second.qkv.weight.detach()[2 * width :][guess, token] = eye
    second.out.weight.detach()[guess, guess] = eye
    model.unembed.weight.detach()[:, guess] = 30 * eye[:VOCABULARY]
    for part in (model.blocks[0].ln1, model.blocks[1].ln1, model.ln_final):
        part.weight.detach().fill_(1.0)
    return model


def test_a_hand_built_circuit_scores_one() -> None:
    model, tokens = circuit(), repeated_random(VOCABULARY, CONTEXT, 16, 0)
    assert previous_token_scores(model, tokens)[0, 0] == 1.0
    assert prefix_matching_scores(model, tokens)[1, 0] == 1.0
    assert prefix_matching_scores(model, tokens)[0, 0] == 0.0
    assert repeated_random_gap(model, tokens) > math.log(VOCABULARY) - 0.5  # it knows nothing of the first copy


def test_uniform_attention_has_closed_forms() -> None:
    tokens = repeated_random(VOCABULARY, CONTEXT, 5, 0)
    model = uniform()
    patterns = attention_patterns(model, tokens)
    assert patterns.shape == (2, 5, 2, CONTEXT, CONTEXT)
    rows = torch.ones(CONTEXT, CONTEXT).tril() / torch.arange(1, CONTEXT + 1)[:, None]
    torch.testing.assert_close(patterns, rows.expand_as(patterns))
    harmonic = sum(1 / i for i in range(2, CONTEXT + 1)) / (CONTEXT - 1)
    np.testing.assert_allclose(previous_token_scores(model, tokens), np.full((2, 2), harmonic), rtol=1e-6)
    second = sum(1 / (i + 1) for i in range(CONTEXT // 2, CONTEXT)) / (CONTEXT // 2)
    np.testing.assert_allclose(prefix_matching_scores(model, tokens), np.full((2, 2), second), rtol=1e-6)


@pytest.mark.parametrize("positions", ["added", "shortformer"])
def test_patterns_are_what_the_model_attends_with(positions: str) -> None:
    config = LanguageConfig(VOCABULARY, CONTEXT, 2, 2, 8, 4, positions)  # pyright: ignore[reportArgumentType]
    model = init_language(config, 1)
    for p in model.parameters():
        p.detach().mul_(10)
    seen: list[Tensor] = []
    for block in model.blocks:
        block.attention.pattern = lambda q, k, own=block.attention.pattern: seen.append(own(q, k)) or seen[-1]
    tokens = torch.from_numpy(np.random.default_rng(0).integers(0, VOCABULARY, (3, CONTEXT)))
    model(tokens)
    expected = torch.stack(seen).detach()
    assert torch.equal(attention_patterns(model, tokens), expected)
    torch.testing.assert_close(expected.sum(-1), torch.ones(2, 3, 2, CONTEXT))
    assert bool((expected.triu(1) == 0).all())
    assert float((expected - expected.mean(1, keepdim=True)).abs().max()) > 0.05  # it depends on the tokens


def test_scores_read_the_right_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    # Attention that is exactly on the cells of one definition scores 1 there, and 0 in the other.
    tokens = repeated_random(VOCABULARY, CONTEXT, 3, 0)
    half = CONTEXT // 2
    previous, matching = torch.zeros(2, CONTEXT, CONTEXT)
    for i in range(1, CONTEXT):
        previous[i, i - 1] = 1
    for row in tokens:
        for i in range(half, CONTEXT):
            matching[i, int((row[:half] == row[i]).nonzero()) + 1] = 1
    cells = torch.stack([previous, matching])[None, None].expand(1, 3, 2, CONTEXT, CONTEXT)
    monkeypatch.setattr(induction, "attention_patterns", lambda model, rows: cells)
    model = uniform()
    assert previous_token_scores(model, tokens).tolist() == [[1.0, 0.0]]
    assert prefix_matching_scores(model, tokens).tolist() == [[0.0, 1.0]]


def test_repeated_random_is_distinct_blocks_twice() -> None:
    tokens = repeated_random(VOCABULARY, 17, 200, 3)
    assert tokens.shape == (200, 16)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens[:, :8], tokens[:, 8:])
    assert all(len(set(row)) == 8 for row in tokens[:, :8].tolist())
    assert torch.equal(tokens, repeated_random(VOCABULARY, 17, 200, 3))
    assert not torch.equal(tokens, repeated_random(VOCABULARY, 17, 200, 4))
    counts = torch.bincount(tokens[:, :8].flatten(), minlength=VOCABULARY)
    assert int(counts.min()) > 40  # 80 expected of each of the 20
    assert len(repeated_random(4, 8, 1, 0)) == 1
    with pytest.raises(PatterningError, match="5 distinct tokens out of 4"):
        repeated_random(4, 10, 1, 0)


def test_the_gap_compares_the_same_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = repeated_random(VOCABULARY, CONTEXT, 2, 0)
    losses = np.array([[5.0, 6.0, 7.0, 1000.0, 1.0, 2.0, 3.0]] * 2)  # the first token of the second copy does not count
    monkeypatch.setattr(induction, "token_losses", lambda model, rows: losses)
    assert repeated_random_gap(uniform(), tokens) == 4.0


def test_a_model_without_attention_has_no_gap() -> None:
    assert repeated_random_gap(uniform(), repeated_random(VOCABULARY, CONTEXT, 9, 0)) == pytest.approx(0, abs=1e-6)


def test_other_rows_are_refused_for_copy_measures() -> None:
    tokens = repeated_random(VOCABULARY, CONTEXT, 2, 0).clone()
    tokens[1, 6] = (tokens[1, 6] + 1) % VOCABULARY
    for function in (repeated_random_gap, prefix_matching_scores):
        with pytest.raises(PatterningError, match="repeated_random"):
            function(uniform(), tokens)


def test_chunks_of_rows_do_not_change_the_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    model = init_language(LanguageConfig(VOCABULARY, CONTEXT, 2, 2, 8, 0, "shortformer"), 1)
    tokens = repeated_random(VOCABULARY, CONTEXT, 7, 0)
    whole = measure_structure(model, tokens, {}, tokens)
    monkeypatch.setattr(induction, "CHUNK", 3)
    parts = measure_structure(model, tokens, {}, tokens)
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-5, atol=1e-7)
    assert torch.allclose(torch.from_numpy(token_losses(model, tokens)).float(), next_token_losses(model, tokens))


def test_icl_score_by_hand() -> None:
    losses = np.arange(12.0).reshape(2, 6) ** 2
    assert icl_score(losses, 1, 6) == ((25 + 121) - (0 + 36)) / 2
    assert icl_score(losses, 2, 4, window=2) == ((4 + 9 + 64 + 81) - (0 + 1 + 36 + 49)) / 4
    for early, late, window in ((0, 3, 1), (3, 3, 1), (1, 7, 1), (1, 3, 2)):
        with pytest.raises(PatterningError, match="early"):
            icl_score(losses, early, late, window)


def test_losses_by_class() -> None:
    model = uniform()
    for p in model.unembed.parameters():
        p.detach().mul_(50)
    tokens = repeated_random(VOCABULARY, CONTEXT, 4, 0)
    losses = token_losses(model, tokens)
    label = np.random.default_rng(0).random(losses.shape) < 0.4
    found = measure_structure(model, tokens, {"induction": label, "never": np.zeros_like(label)}, tokens)
    assert found["loss:induction"] == pytest.approx(losses[label].mean())
    assert found["loss:not induction"] == pytest.approx(losses[~label].mean())
    assert found["loss"] == pytest.approx(losses.mean())
    assert np.isnan(found["loss:never"])
    np.testing.assert_allclose(found["previous_token"], previous_token_scores(model, tokens), rtol=1e-6)
    np.testing.assert_allclose(found["prefix_matching"], prefix_matching_scores(model, tokens), rtol=1e-6)
    assert found["repeated_gap"] == pytest.approx(repeated_random_gap(model, tokens))
    assert found["loss:induction"] != pytest.approx(float(found["loss:not induction"]), rel=1e-3)
    assert {name: value.shape for name, value in found.items()} == {
        "previous_token": (2, 2), "prefix_matching": (2, 2), "repeated_gap": (), "icl": (), "loss": (),
        "loss:induction": (), "loss:not induction": (), "loss:never": (),
    }  # fmt: skip
    with pytest.raises(PatterningError, match="'wrong' is float64"):
        measure_structure(model, tokens, {"wrong": losses}, tokens)


def test_onset() -> None:
    assert onset([0, 10, 20, 40], [0.0, 0.3, 0.2, 0.9], 0.3) == 10
    assert onset([0, 10], [0.0, 0.1], 0.3) == math.inf
    assert onset(np.array([0, 10]), np.array([np.nan, 1.0]), 0.5) == 10


def test_copy_gain_by_hand() -> None:
    rows = np.array([[1, 2, 1, 2, 1, 2], [1, 3, 0, 2, 0, 3], [3, 0, 1, 2, 3, 1]], dtype=np.uint16)
    # Pairs in all: after 1: 2 ×4, 3 ×1; after 2: 1 ×2, 0 ×1, 3 ×1. Row 0 repeats (1, 2) twice and (2, 1) once.
    expected = (2 * math.log(5 / 4) + math.log(4 / 2)) / 5
    np.testing.assert_allclose(copy_gain(rows, 4), [expected, 0, 0], rtol=1e-12)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 30, (50, 40))
    slow = np.zeros(50)
    pairs = [list(itertools.pairwise(row)) for row in rows.tolist()]
    every = [pair for row in pairs for pair in row]
    for i, row in enumerate(pairs):
        for j, pair in enumerate(row):
            if pair in row[:j]:
                slow[i] -= math.log(every.count(pair) / sum(first == pair[0] for first, _ in every)) / 39
    np.testing.assert_allclose(copy_gain(rows, 30), slow, rtol=1e-12)


def test_onset_is_interpolated_in_log_steps() -> None:
    ratio, steps = np.array([0.0, 1 / 3, 2 / 3, 4 / 3]), np.array([0, 10, 100, 1000])
    assert interpolated_onset(steps, ratio) == pytest.approx(100 * 10**0.5)  # 1 lies halfway between 2/3 and 4/3
    assert interpolated_onset(steps[:3], ratio[:3]) == float("inf")
    assert interpolated_onset(steps, ratio + 1) == 0


def test_gradients_of_measures_are_those_of_the_measures() -> None:
    """A step along ∇φ moves the measure, taken by other code, by |∇φ|² times the step."""
    model = init_language(LanguageConfig(20, 12, 2, 2, 16, init_std=0.2), 0)
    blocks = repeated_random(20, 12, 40, 1)
    tokens = torch.randint(20, (40, 12), generator=torch.Generator().manual_seed(0))
    other = ~induction_labels(tokens.numpy())

    def measures(shift: Tensor) -> list[float]:
        moved = load_language(model.config, flatten_language(model) + shift)
        return [repeated_random_gap(moved, blocks), float(token_losses(moved, tokens)[other].mean())]

    for i, parts in enumerate((gap_parts(blocks), loss_parts(tokens, other))):
        assert len(parts) == 2  # of 32 and of 8 rows
        gradient = parameter_gradient(model, [lambda part=part: part(model) for part in parts])
        step = 0.02 * gradient / gradient.norm()
        rise = measures(step)[i] - measures(-step)[i]
        assert rise == pytest.approx(2 * 0.02 * float(gradient.norm()), rel=0.02)
