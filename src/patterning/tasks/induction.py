"""Structure measures of induction in a language model: none of them uses χ.

An induction circuit is a previous-token head whose output a later head matches against: at a token it reads what
followed the token's earlier occurrence, and predicts it (Olsson et al., arXiv 2209.11895). On random blocks repeated
twice nothing else helps, so the gap between the losses of the two copies measures what the circuit does.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from patterning.core.errors import PatterningError
from patterning.core.rng import Stream, generator
from patterning.models.language import LanguageModel, losses_of_logits, mix, next_token_losses

CHUNK = 64
"""Rows that go through a model together; the measures are means over rows and change in the last bits at most."""

PART = 32
"""Rows of one part of a measure that is differentiated."""


def attention_patterns(model: LanguageModel, tokens: Tensor) -> Tensor:
    """Attention of every head on `tokens` (b, t): (layers, b, heads, t, t), from query (row) to key (column)."""
    return _passed(model, tokens)[0]


def _passed(model: LanguageModel, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Patterns, as `attention_patterns`, and the stream (b, t, d) after the last block: both of one pass."""
    found = []
    with torch.no_grad():
        x, positions = model.start(tokens)
        for block in model.layers():
            q, k, v = block.attention.project(block.ln1(x), positions)
            pattern = block.attention.pattern(q, k)
            found.append(pattern)
            x = block.after_attention(x + block.attention.out(mix(pattern, v)))
    return torch.stack(found), x


def previous_token_scores(model: LanguageModel, tokens: Tensor) -> NDArray[np.float64]:
    """Mean attention from position i to i - 1, i = 1..t-1, over rows `tokens` (b, t): (layers, heads)."""
    return _mean_over_rows(_to_previous(attention_patterns(model, rows)) for rows in tokens.split(CHUNK))


def _to_previous(patterns: Tensor) -> Tensor:
    """Attention from each position i ≥ 1 to i - 1: (layers, b, heads, t - 1)."""
    return patterns.diagonal(-1, dim1=3, dim2=4)


def prefix_matching_scores(model: LanguageModel, tokens: Tensor) -> NDArray[np.float64]:
    """Mean attention from a token of the second copy to the token after its first occurrence: (layers, heads).

    `tokens` (b, 2L) are blocks of L distinct tokens repeated twice (`repeated_random`): from L + i to i + 1.
    """
    length = block_length(tokens)
    return _mean_over_rows(_to_successor(attention_patterns(model, rows), length) for rows in tokens.split(CHUNK))


def _to_successor(patterns: Tensor, length: int) -> Tensor:
    """Attention from each token of the second copy to the one after its first occurrence: (layers, b, heads, L - 1)."""
    return patterns.diagonal(1 - length, dim1=3, dim2=4)[..., 1:]


def repeated_random(vocabulary: int, context: int, count: int, seed: int) -> Tensor:
    """`count` rows of context // 2 distinct tokens drawn uniformly, written twice: int64 (count, 2 (context // 2))."""
    length = context // 2
    if not 2 <= length <= vocabulary or count < 1:
        raise PatterningError(
            f"{count} blocks of {length} distinct tokens out of {vocabulary}: there must be at least 1 block, of at "
            "least 2 tokens, and a vocabulary as large as half the context"
        )
    order = generator(seed, Stream.TEST_DATA).random((count, vocabulary)).argsort(axis=1)[:, :length]
    return torch.from_numpy(np.concatenate([order, order], axis=1))


def repeated_random_gap(model: LanguageModel, tokens: Tensor) -> float:
    """Loss on the first copy minus loss on the second, nats, on rows of `repeated_random` (b, 2L).

    The same L - 1 tokens in both: each copy's first token has nothing before it that could tell.
    """
    return _gap(token_losses(model, tokens), block_length(tokens))


def _gap(losses: NDArray[np.float64], length: int) -> float:
    return float(losses[:, : length - 1].mean() - losses[:, length:].mean())


def token_losses(model: LanguageModel, tokens: Tensor) -> NDArray[np.float64]:
    """Cross-entropy in nats of every prediction in `tokens` (n, t): (n, t - 1)."""
    with torch.no_grad():
        return torch.cat([next_token_losses(model, rows).cpu() for rows in tokens.split(CHUNK)]).double().numpy()


def icl_score(losses: NDArray[np.floating], early: int, late: int, window: int = 1) -> float:
    """In-context learning score: mean loss where `late` tokens have been read, minus where `early` have, nats.

    `losses` (n, t - 1); column i was predicted from i + 1 tokens. Each is the mean of the `window` columns that end
    there. Negative: the context helps.
    """
    if not 1 <= window <= early < late <= losses.shape[1]:
        raise PatterningError(
            f"window {window}, early {early} and late {late} must rise, between 1 and the {losses.shape[1]} predictions"
        )
    return float(losses[:, late - window : late].mean() - losses[:, early - window : early].mean())


def copy_gain(tokens: NDArray[np.integer], vocabulary: int) -> NDArray[np.float64]:
    """How much a perfect copier could gain on each row of `tokens` (n, t), nats a prediction: (n,). No model is needed.

    A prediction counts where its pair (token, next token) stood in the row before; it counts -log p(next | token), p
    from the pairs of all rows. What the bigram predicts anyway counts little. Rows rich in it grow induction soonest.
    """
    pairs = tokens[:, :-1].astype(np.int64) * vocabulary + tokens[:, 1:]
    counts = np.bincount(pairs.ravel(), minlength=vocabulary**2).reshape(vocabulary, vocabulary)
    surprise = -np.log(np.maximum(counts, 1) / np.maximum(counts.sum(1, keepdims=True), 1)).ravel()
    order = np.argsort(pairs, axis=1, kind="stable")
    ranked = np.take_along_axis(pairs, order, 1)
    again = np.zeros(pairs.shape, dtype=bool)
    np.put_along_axis(again, order[:, 1:], ranked[:, 1:] == ranked[:, :-1], 1)
    return (again * surprise[pairs]).mean(1)


def measure_structure(
    model: LanguageModel, test_tokens: Tensor, classes: Mapping[str, NDArray[np.bool_] | Tensor], repeated: Tensor
) -> dict[str, NDArray[np.float64]]:
    """All measures at once, on `test_tokens` (n, t) of real text and `repeated` random blocks (m, 2L).

    `classes` are labels (n, t - 1) of the predicted tokens. Keys: "previous_token" and "prefix_matching" (layers,
    heads); "repeated_gap", "icl" (last eighth of the predictions against the first), "loss", "loss:<class>" and, where
    there is a class "induction", "loss:not induction": scalars in nats, NaN for a class without a token.
    """
    device = next(model.parameters()).device
    test_tokens, repeated = test_tokens.to(device), repeated.to(device)
    length = block_length(repeated)
    previous, losses = _read(model, test_tokens, _to_previous)
    successor, of_blocks = _read(model, repeated, lambda patterns: _to_successor(patterns, length))
    eighth = max(1, losses.shape[1] // 8)
    found: dict[str, float | NDArray[np.float64]] = {
        "previous_token": previous,
        "prefix_matching": successor,
        "repeated_gap": _gap(of_blocks, length),
        "icl": icl_score(losses, early=eighth, late=losses.shape[1], window=eighth),
        "loss": float(losses.mean()),
    }
    labels = {name: np.asarray(label) for name, label in classes.items()}
    if "induction" in labels:
        labels["not induction"] = ~labels["induction"]
    for name, label in labels.items():
        if label.shape != losses.shape or label.dtype != np.bool_:
            raise PatterningError(f"class {name!r} is {label.dtype} {label.shape}: it must be bool {losses.shape}")
        found[f"loss:{name}"] = float(losses[label].mean()) if label.any() else float("nan")
    return {name: np.asarray(value, dtype=np.float64) for name, value in found.items()}


def _read(
    model: LanguageModel, tokens: Tensor, part: Callable[[Tensor], Tensor]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (layers, heads) of a `part` of the attention patterns, and losses (n, t - 1), in one pass over `tokens`."""
    parts: list[Tensor] = []
    losses: list[Tensor] = []
    with torch.no_grad():
        for rows in tokens.split(CHUNK):
            patterns, x = _passed(model, rows)
            parts.append(part(patterns))
            losses.append(losses_of_logits(model.unembed(model.ln_final(x)), rows).cpu())
    return _mean_over_rows(iter(parts)), torch.cat(losses).double().numpy()


Part = Callable[[LanguageModel], Tensor]
"""A scalar of a model that autograd can differentiate."""


def gap_parts(blocks: Tensor) -> list[Part]:
    """The repeated-random gap on `blocks` (m, 2L), nats, as the sum of parts of few rows each."""
    length = block_length(blocks)

    def part(model: LanguageModel, rows: Tensor) -> Tensor:
        losses = next_token_losses(model, rows)
        return (losses[:, : length - 1].mean(1) - losses[:, length:].mean(1)).sum() / len(blocks)

    return [lambda model, rows=rows: part(model, rows) for rows in blocks.split(PART)]


def loss_parts(tokens: Tensor, label: NDArray[np.bool_]) -> list[Part]:
    """The mean loss of the predictions in `tokens` (n, t) that `label` (n, t - 1) names, nats, as a sum of parts."""
    mask = torch.from_numpy(label)
    count = mask.sum()
    pieces = zip(tokens.split(PART), mask.split(PART), strict=True)
    return [lambda model, rows=rows, own=own: (next_token_losses(model, rows) * own).sum() / count
            for rows, own in pieces]  # fmt: skip


def onset(steps: Sequence[float] | NDArray[np.integer], values: ArrayLike, threshold: float) -> float:
    """The first of `steps` (c,) at which `values` (c,) is at or over the threshold; inf if it never is."""
    over = np.asarray(values) >= threshold
    return float(np.asarray(steps)[over.argmax()]) if over.any() else float("inf")


def interpolated_onset(steps: NDArray[np.int64], ratio: NDArray[np.float64]) -> float:
    """The step at which `ratio` (c,) first reaches 1; inf if it never does.

    Between the last checkpoint below 1 and the first one at or above it, interpolated linearly in log(step).
    """
    if not (ratio >= 1).any():
        return float("inf")
    i = int((ratio >= 1).argmax())
    if i == 0:
        return float(steps[0])
    low, high = np.log(np.maximum(steps[i - 1 : i + 1].astype(np.float64), 1.0))
    part = (1 - ratio[i - 1]) / (ratio[i] - ratio[i - 1])
    return float(np.exp(low + part * (high - low)))


def block_length(tokens: Tensor) -> int:
    """L of blocks repeated twice (n, 2L); raises `PatterningError` for other rows."""
    length = tokens.shape[1] // 2
    if tokens.shape[1] % 2 or not torch.equal(tokens[:, :length], tokens[:, length:]):
        raise PatterningError("these rows are not blocks repeated twice: make them with repeated_random")
    return length


def _mean_over_rows(parts: Iterator[Tensor]) -> NDArray[np.float64]:
    """Parts (layers, b, heads, positions) → their mean over rows and positions, (layers, heads)."""
    means = torch.cat([part.double().mean(-1) for part in parts], dim=1)  # (layers, rows, heads)
    return means.mean(1).cpu().numpy()
