"""Philox in torch's integer operations, against Random123's published answers and plain integers."""

import random

import numpy as np
import pytest
import torch
from scipy import stats

from patterning.core.errors import PatterningError
from patterning.core.philox import normal, philox, uniform, words
from patterning.core.rng import Stream

CPU = torch.device("cpu")
ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES, ONES), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_the_known_answers_of_random123(counter, key, answer) -> None:
    """philox4x32-10 of its file kat_vectors."""
    found = philox(tuple(torch.tensor([word]) for word in counter), key)  # type: ignore[arg-type]
    assert tuple(int(word) for word in found) == answer


def by_integers(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """The same, in Python's whole numbers: Salmon et al., SC 2011, section 3.3."""
    a, b, c, d = counter
    for turn in range(10):
        k = [(word + turn * step) % 2**32 for word, step in zip(key, (0x9E3779B9, 0xBB67AE85), strict=True)]
        high0, low0 = divmod(0xD2511F53 * a, 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c, 2**32)
        a, b, c, d = high1 ^ b ^ k[0], low1, high0 ^ d ^ k[1], low0
    return a, b, c, d


def test_words_are_those_of_plain_integers_at_their_counters() -> None:
    rng = random.Random(0)
    for _ in range(20):
        seed, step, replica = rng.randrange(2**63), rng.randrange(2**32 - 2), rng.randrange(2**32 - 3)
        found = words(seed, Stream.NOISE, range(replica, replica + 3), range(step, step + 2), 5, CPU)
        i, r, place = rng.randrange(2), rng.randrange(3), rng.randrange(5)
        counter = (place, step + i, replica + r, int(Stream.NOISE))
        assert tuple(int(w[i, r, place]) for w in found) == by_integers(counter, (seed % 2**32, seed >> 32))


def test_a_number_depends_on_its_place_alone() -> None:
    for draw in (normal, uniform):
        whole = draw(7, Stream.NOISE, range(4), range(10), 9, CPU)
        assert whole.shape == (10, 4, 9)
        assert torch.equal(draw(7, Stream.NOISE, range(2, 3), range(6, 8), 6, CPU), whole[6:8, 2:3, :6])
        for other in ((8, Stream.NOISE), (7, Stream.MINIBATCH)):
            assert not torch.equal(draw(*other, range(4), range(10), 9, CPU), whole)


def test_the_laws() -> None:
    """Kolmogorov-Smirnov distances of 400,000 numbers, tails, and the correlation of neighbours."""
    z = normal(1, Stream.NOISE, range(2), range(2), 100_000, CPU)
    u = uniform(1, Stream.MINIBATCH, range(2), range(2), 100_000, CPU)
    assert z.dtype == torch.float32
    assert u.dtype == torch.float64
    assert stats.kstest(z.numpy().ravel(), "norm").pvalue > 1e-3
    assert stats.kstest(u.numpy().ravel(), "uniform").pvalue > 1e-3
    assert 0 <= float(u.min()) < 1e-4
    assert float(u.max()) < 1
    expected = 2 * stats.norm.sf(4) * z.numel()  # 25 past four standard deviations
    assert abs(int((z.abs() > 4).sum()) - expected) < 4 * np.sqrt(expected)
    for x, y in ((z[..., 1:], z[..., :-1]), (z[:, 0], z[:, 1]), (z[0], z[1])):
        r = np.corrcoef(x.numpy().ravel(), y.numpy().ravel())[0, 1]
        assert abs(r) < 4 / np.sqrt(x.numel())


def test_smallest_chance_and_largest_make_finite_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    from patterning.core import philox as module

    for word in (0, ONES):
        monkeypatch.setattr(module, "words", lambda *_, word=word: (torch.tensor([[[word]]]),) * 4)
        assert torch.isfinite(normal(0, Stream.NOISE, range(1), range(1), 4, CPU)).all()
        assert float(uniform(0, Stream.NOISE, range(1), range(1), 2, CPU).max()) < 1


def test_counters_past_their_words_are_refused() -> None:
    for replicas, steps in ((range(2**32, 2**32 + 1), range(1)), (range(1), range(2**32 - 1, 2**32 + 1))):
        with pytest.raises(PatterningError, match="at most"):
            normal(0, Stream.NOISE, replicas, steps, 4, CPU)
    with pytest.raises(PatterningError, match=r"seed is 1\.5"):
        normal(1.5, Stream.NOISE, range(1), range(1), 4, CPU)  # type: ignore[arg-type]


def test_nothing_is_read_off_the_device() -> None:
    meta = torch.device("meta")
    assert normal(0, Stream.NOISE, range(3), range(2), 7, meta).shape == (2, 3, 7)
    assert uniform(0, Stream.NOISE, range(3), range(2), 7, meta).shape == (2, 3, 7)
