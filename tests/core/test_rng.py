"""Philox written out in Python integers, and streams that never meet."""

import itertools

import numpy as np
import pytest

from patterning.core.rng import Stream, generator, reused_generator

MASK = (1 << 64) - 1


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 (Salmon et al. 2011), one block."""
    a, b, c, d = counter
    k0, k1 = key
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
        a, b, c, d = (right >> 64) ^ b ^ k0, right & MASK, (left >> 64) ^ d ^ k1, left & MASK
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return [a, b, c, d]


def test_philox_gives_the_authors_known_answer() -> None:
    assert philox([0, 0, 0, 0], [0, 0]) == [
        0x16554D9ECA36314C,
        0xDB20FE9D672D0FDC,
        0xD7E772CEE186176B,
        0x7E68B68AEC7BA23B,
    ]


@pytest.mark.parametrize(
    ("seed", "stream", "replica", "step"),
    [(0, Stream.DATA, 0, 0), (1, Stream.NOISE, 5, 1000), (2**62 + 3, Stream.EPOCH, 2**40, 2**50)],
)
def test_numbers_are_philox_of_seed_stream_replica_and_step(seed: int, stream: Stream, replica: int, step: int) -> None:
    found = generator(seed, stream, replica, step).bit_generator.random_raw(12).tolist()
    blocks = [philox([block, step, replica, 0], [seed, int(stream)]) for block in (1, 2, 3)]
    assert found == list(itertools.chain(*blocks))


def test_every_argument_changes_the_numbers() -> None:
    arguments = itertools.product((0, 1), Stream, (0, 1, 2), (0, 1, 2))
    firsts = [tuple(generator(*each).bit_generator.random_raw(2).tolist()) for each in arguments]
    assert len(firsts) == 2 * len(Stream) * 9
    assert len(set(firsts)) == len(firsts)


def test_neighbouring_steps_and_replicas_share_no_number() -> None:
    raw = [generator(0, Stream.NOISE, r, s).bit_generator.random_raw(20_000) for r in (0, 1) for s in (0, 1)]
    assert len(np.unique(np.concatenate(raw))) == 80_000


def test_numbers_do_not_depend_on_what_was_drawn_elsewhere() -> None:
    first = generator(4, Stream.INIT, 1, 2).standard_normal(5)
    other = generator(4, Stream.INIT)
    other.standard_normal(1000)
    np.random.default_rng(0).standard_normal(3)
    np.testing.assert_array_equal(generator(4, Stream.INIT, 1, 2).standard_normal(5), first)


def test_stream_numbers_are_fixed() -> None:
    # Changing one would change every stored result under the same seed.
    assert {stream.name: int(stream) for stream in Stream} == {
        "DATA": 1,
        "TEST_DATA": 2,
        "INIT": 3,
        "EPOCH": 4,
        "MINIBATCH": 5,
        "NOISE": 6,
        "CONTROL": 7,
        "BOOTSTRAP": 8,
        "GROUPS": 9,
        "PHASE": 10,
        "TRIAL": 11,
    }


def test_the_moved_generator_has_the_same_numbers_wherever_it_was_before() -> None:
    places = [(0, Stream.NOISE, 0, 0), (2**62 + 3, Stream.MINIBATCH, 2**40, 2**50), (7, Stream.NOISE, 1, 0)]
    for place in [*places, *places[::-1]]:
        for count in (5, 6):  # an odd number of float32 leaves half a word behind
            expected = generator(*place).standard_normal(count, dtype=np.float32)
            np.testing.assert_array_equal(reused_generator(*place).standard_normal(count, dtype=np.float32), expected)
        np.testing.assert_array_equal(reused_generator(*place).random(9), generator(*place).random(9))
