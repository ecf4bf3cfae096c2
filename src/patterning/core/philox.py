r"""Random numbers on any device: Philox4x32-10 (Salmon et al., SC 2011) in torch's integer operations.

Each number is a function of (seed, stream, replica, step, place): the key is the seed, and the counter holds the four
others. So a chain has the same numbers alone or in company, before or after a resume, and however many steps are drawn
at once. The integers are the same on every kind of device, which `torch.Generator` does not promise: its numbers follow
the card's number of processors. Nothing is read back, and the host waits for nothing.

The CPU does not use these: there the numbers are numpy's (`core.rng`), which are drawn faster.
"""

import math

import torch
from torch import Tensor

from patterning.core.errors import check_whole
from patterning.core.rng import LARGEST, Stream

WORD = 2**32
"""Each word of the counter, and each result, is below this."""
_LOW = WORD - 1
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

Word = Tensor | int


def philox(counter: tuple[Word, Word, Word, Word], key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Four words of 32 random bits, int64, for counters of four words (of shapes that broadcast) under a key of two.

    int64 products wrap around at 2⁶⁴, as unsigned ones do: shifted and masked, their halves are right.
    """
    a, b, c, d = counter
    for turn in range(ROUNDS):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        k0, k1 = ((word + turn * step) & _LOW for word, step in zip(key, _WEYL, strict=True))
        a, c = (second >> 32) & _LOW, (first >> 32) & _LOW
        a, b, c, d = a ^ b ^ k0, second & _LOW, c ^ d ^ k1, first & _LOW
    return tuple(torch.broadcast_tensors(*(torch.as_tensor(word) for word in (a, b, c, d))))  # pyright: ignore[reportReturnType]


def words(
    seed: int, stream: Stream, replicas: range, steps: range, count: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Words of `count` counters for each step and replica: four of (steps, replicas, count) int64.

    Raises `PatterningError` for a replica or a step from 2³² on, or a seed from 2⁶³ on.
    """
    check_whole("seed", seed, 0, LARGEST)
    for name, numbers in (("replica", replicas), ("step", steps)):
        check_whole(name, numbers.start, 0, WORD - 1)
        check_whole(name, max(numbers.start, numbers.stop - 1), 0, WORD - 1)
    place = torch.arange(count, device=device)
    step = torch.arange(steps.start, steps.stop, device=device)[:, None, None]
    replica = torch.arange(replicas.start, replicas.stop, device=device)[:, None]
    return philox((place, step, replica, int(stream)), (seed & _LOW, seed >> 32))


def uniform(seed: int, stream: Stream, replicas: range, steps: range, count: int, device: torch.device) -> Tensor:
    """Numbers in [0, 1) with 53 random bits, float64 (steps, replicas, count)."""
    a, b, c, d = words(seed, stream, replicas, steps, -(-count // 2), device)
    high, low = torch.stack([a, c], dim=-1), torch.stack([b, d], dim=-1)
    return (((high << 21) ^ (low >> 11)).double() * 2.0**-53).flatten(2)[..., :count]


def normal(seed: int, stream: Stream, replicas: range, steps: range, count: int, device: torch.device) -> Tensor:
    """Standard normal float32 numbers (steps, replicas, count), by the rule of Box and Muller (1958).

    Their integers are the same everywhere; logarithm and sine may differ between devices in the last bit.
    """
    a, b, c, d = words(seed, stream, replicas, steps, -(-count // 4), device)
    chance, turn = torch.stack([a, c], dim=-1).float(), torch.stack([b, d], dim=-1).float()
    radius = ((chance + 0.5) / WORD).log().mul(-2).sqrt()  # at most 6.8: the chance is at least 2⁻³³
    angle = turn * (2 * math.pi / WORD)
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=-1).flatten(2)[..., :count]
