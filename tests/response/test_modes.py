"""Planted modes are found to the error that the noise allows, and the noise is told from them."""

import numpy as np
import pytest

from patterning.core.errors import PatterningError
from patterning.response.modes import Modes, find_modes, induction_mode

NAMES = ("embed", "l0h0", "l0h1", "l0h2", "l1h0", "l1h1", "l1h2", "unembed")
K, N = len(NAMES), 3000


def planted(
    sizes: tuple[float, ...], noise: float = 0.02, uniform: float = 3.0, seed: int = 0
) -> tuple[np.ndarray, ...]:
    """χ (k, n) = a uniform mode + Σ σ u vᵀ with orthogonal u ⟂ 1 and v ⟂ 1 of mean square 1, and noisy halves of it.

    `noise` is the standard deviation of an entry of the mean of the halves. Rows have nearly one variance.
    """
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(np.column_stack([np.ones(K), rng.standard_normal((K, len(sizes)))]))[0][:, 1:]
    score = np.linalg.qr(np.column_stack([np.ones(N), rng.standard_normal((N, len(sizes) + 1))]))[0][:, 1:] * np.sqrt(N)
    chi = uniform * score[:, -1] + (basis * np.array(sizes)) @ score[:, :-1].T
    halves = chi + noise * np.sqrt(2) * rng.standard_normal((2, K, N))
    return chi, halves, basis, score[:, :-1].T


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return abs(float(a @ b / np.linalg.norm(a) / np.linalg.norm(b)))


def test_planted_modes_come_back_in_order() -> None:
    _, halves, u, v = planted((0.3, 0.15))
    modes = find_modes(5 + 2 * halves.mean(0), 5 + 2 * halves, NAMES)  # scale and offset of χ do not matter
    assert modes.loadings.shape == (K, K - 1)
    assert modes.scores.shape == (K - 1, N)
    for a in range(2):
        # 1 - cos² is (noise/σ)² for scores: 0.0044 and 0.018; for loadings n/k times less
        assert cosine(modes.loadings[:, a], u[:, a]) > 0.9999
        assert cosine(modes.scores[a], v[a]) == pytest.approx([0.9978, 0.9912][a], abs=0.001)
    np.testing.assert_allclose(modes.singular_values[:2], np.array([0.3, 0.15]) / 3, rtol=0.05)
    assert modes.above_noise[:2].all()
    np.testing.assert_allclose(modes.singular_values[2:], modes.noise_floor, rtol=0.08)
    assert (modes.stability_loadings[:2] > 0.99).all()
    assert (modes.stability_scores[:2] > [0.98, 0.95]).all()
    assert (modes.stability_scores[2:] < 0.2).all()
    assert (modes.stability_subspace[:2] > 0.99).all()


def test_scores_and_loadings_rebuild_the_standardised_matrix() -> None:
    chi, halves, *_ = planted((0.3, 0.2, 0.1))
    modes = find_modes(chi, halves, NAMES)
    rows = (chi - chi.mean(1, keepdims=True)) / chi.std(1, keepdims=True)
    rows -= rows.mean(0)
    np.testing.assert_allclose((modes.loadings * modes.singular_values) @ modes.scores, rows, atol=1e-10)
    np.testing.assert_allclose((modes.scores**2).mean(1), 1)
    np.testing.assert_allclose(modes.scores[:3].mean(1), 0, atol=1e-12)  # the others have no variance to speak of
    assert modes.shares.sum() == pytest.approx(1)
    assert (np.diff(modes.singular_values) <= 0).all()
    np.testing.assert_array_less(0, modes.loadings[np.abs(modes.loadings).argmax(0), np.arange(K - 1)])
    opposite = find_modes(-chi, -halves, NAMES)
    np.testing.assert_allclose(opposite.loadings[:, :3], modes.loadings[:, :3], atol=1e-9)
    np.testing.assert_allclose(opposite.scores[:3], -modes.scores[:3], atol=1e-9)


def test_the_uniform_mode_is_first_when_kept() -> None:
    chi, halves, _, _ = planted((0.3,))
    modes = find_modes(chi, halves, NAMES, uniform=True)
    assert modes.loadings.shape == (K, K)
    assert modes.shares[0] > 0.95
    np.testing.assert_allclose(modes.loadings[:, 0], 1 / np.sqrt(K), atol=0.02)


def test_a_mode_below_the_floor_is_shown_as_such() -> None:
    """The floor is the edge of a k × n noise matrix: noise · (1 + √(k/n)) in units of a row, less the uniform part."""
    noise = 0.2
    chi, halves, *_ = planted((0.6, 0.01), noise)
    modes = find_modes(halves.mean(0), halves, NAMES)
    expected = noise * (1 + np.sqrt((K - 1) / N)) / np.hypot(3, noise)
    assert modes.noise_floor == pytest.approx(expected, rel=0.03)
    np.testing.assert_array_equal(modes.above_noise, [True] + [False] * 6)
    assert modes.stability_loadings[0] > 0.98
    exact = find_modes(chi, None, NAMES, noise=np.full((K, N), 1e-9) * np.random.default_rng(0).standard_normal((K, N)))
    assert exact.above_noise[:2].all()
    assert np.isnan(exact.stability_loadings).all()


def test_two_modes_of_one_size_rotate_but_their_plane_stays() -> None:
    _, halves, u, _ = planted((0.3, 0.3 * (1 + 1e-4), 0.12), noise=0.05, seed=3)
    modes = find_modes(halves.mean(0), halves, NAMES)
    assert (modes.stability_loadings[:2] < 0.999).all()
    assert modes.stability_subspace[1] > 0.998
    assert modes.stability_subspace[0] < modes.stability_subspace[1]
    overlap = modes.loadings[:, :2].T @ u[:, :2]
    np.testing.assert_allclose((overlap**2).sum(0), 1, atol=0.01)


def test_halves_are_matched_even_where_their_order_differs() -> None:
    chi, _, u, v = planted((0.3, 0.28), noise=0)
    tilt = 0.02 * (np.outer(u[:, 1], v[1]) - np.outer(u[:, 0], v[0]))
    modes = find_modes(chi, np.stack([chi + tilt, chi - tilt]), NAMES)
    assert (modes.stability_loadings[:2] > 0.95).all()
    assert modes.stability_subspace[0] < 0.1


def test_unshared_structure_is_under_the_permutation_floor() -> None:
    rng = np.random.default_rng(1)
    chi = rng.standard_t(4, size=(K, N))  # exactly known, but every component goes its own way
    own = find_modes(chi, np.stack([chi, chi]), NAMES, permutations=40)
    assert own.above_noise.all()
    assert (own.singular_values <= own.permutation_floor * 1.02).all()
    chi, halves, *_ = planted((3.0,), uniform=1.0)
    shared = find_modes(chi, halves, NAMES)
    assert shared.singular_values[0] > shared.permutation_floor[0]
    assert np.isnan(find_modes(chi, halves, NAMES, permutations=0).permutation_floor).all()


def test_ranks_do_not_let_a_few_samples_make_the_modes() -> None:
    _, halves, u, v = planted((0.5, 0.25))
    halves = halves.copy()
    halves[:, 3, :3] = [500, -500, 500]
    plain, ranked = (find_modes(halves.mean(0), halves, NAMES, transform=t) for t in ("none", "rank"))
    assert cosine(plain.scores[0], v[0]) < 0.3
    assert cosine(ranked.scores[0], v[0]) > 0.85  # three samples still stand 3.5 σ out in one row
    assert cosine(plain.loadings[:, 0], u[:, 0]) < 0.8
    assert cosine(ranked.loadings[:, 0], u[:, 0]) > 0.95
    assert (ranked.stability_scores[:2] > 0.9).all()
    assert ranked.above_noise[:2].all()
    noise = (halves[0] - halves[1]) / 2
    given = find_modes(halves.mean(0), None, NAMES, noise=noise, transform="rank")
    assert given.noise_floor == pytest.approx(ranked.noise_floor, rel=0.05)


def test_bad_input_is_named() -> None:
    chi, halves, *_ = planted((0.3,))
    broken = chi.copy()
    broken[2, 5] = np.nan
    flat = chi.copy()
    flat[4] = 1.0
    for arguments, words in (
        ((chi, halves, NAMES[:3]), "3 components"),
        ((chi, None, NAMES), "noise sample"),
        ((chi, halves[:1], NAMES), "halves has shape"),
        ((chi, halves, NAMES, chi[:2]), "noise has shape"),
        ((broken, halves, NAMES), "NaN"),
        ((flat, halves, NAMES), "χ of l1h0 is the same"),
    ):
        with pytest.raises(PatterningError, match=words):
            find_modes(*arguments)
    with pytest.raises(PatterningError, match="transform"):
        find_modes(chi, halves, NAMES, transform="log")  # type: ignore[arg-type]


# --- the induction mode


PREFIX = {"l0h0": 0.02, "l0h1": 0.03, "l0h2": 0.01, "l1h0": 0.8, "l1h1": 0.05, "l1h2": 0.6}


def with_induction(place: int, expressed: bool = True, noise: float = 0.02, seed: int = 0) -> tuple[Modes, np.ndarray]:
    """Three modes, of which number `place` loads on the heads that match prefixes and is high on labelled samples."""
    rng = np.random.default_rng(seed)
    label = rng.random(N) < 0.25
    known = np.array([PREFIX.get(name, 0.3) for name in NAMES])
    head = (known - known.mean()) / np.linalg.norm(known - known.mean())
    others = np.linalg.qr(np.column_stack([np.ones(K), head, rng.standard_normal((K, 2))]))[0][:, 2:]
    score = 1.0 * label + rng.standard_normal(N)
    columns, sizes = [others[:, 0], others[:, 1]], [0.5, 0.4, 0.3]
    columns.insert(place, -head if expressed else head)
    scores = [rng.standard_normal(N), rng.standard_normal(N)]
    scores.insert(place, score)
    chi = 3 * rng.standard_normal(N) + sum(s * np.outer(u, v) for s, u, v in zip(sizes, columns, scores, strict=True))
    halves = chi + noise * np.sqrt(2) * rng.standard_normal((2, K, N))
    return find_modes(halves.mean(0), halves, NAMES), label


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("expressed", [True, False])
def test_the_induction_mode_is_found_wherever_it_is(place: int, expressed: bool) -> None:
    modes, label = with_induction(place, expressed)
    choice = induction_mode(modes, PREFIX, label)
    assert choice.index == place
    assert choice.agrees
    assert choice.above_noise
    assert choice.expressed == expressed
    assert abs(choice.loading_agreement) > 0.95
    assert choice.enrichment > 10
    direction = choice.direction(modes)
    assert direction[label].mean() > direction[~label].mean()
    # χ of an induction head on induction tokens, relative to other tokens and components, is negative if expressed
    assert (choice.loadings(modes)[NAMES.index("l1h0")] < 0) == expressed
    assert len(choice.candidates) == K - 1
    assert choice.candidates[place].auc == pytest.approx(0.76 if choice.sign > 0 else 0.24, abs=0.03)


def test_disagreeing_signs_are_reported() -> None:
    modes, label = with_induction(1)
    other = np.argsort(modes.scores[0]) >= N // 2  # positions, not values: no relation to anything
    assert induction_mode(modes, PREFIX, label).agrees
    elsewhere = modes.scores[0] > 0.5  # a label that another mode tells perfectly
    choice = induction_mode(modes, PREFIX, elsewhere)
    assert not choice.agrees
    assert choice.index in (0, 1)
    chance = induction_mode(modes, PREFIX, other)
    assert abs(chance.enrichment) < 5


def test_modes_under_the_noise_are_no_candidates() -> None:
    modes, label = with_induction(2)
    floors = {place: float(modes.singular_values[place - 1 : place + 1].mean()) for place in (2, 3)}
    without, including = (Modes(**{**vars(modes), "noise_floor": floors[place]}) for place in (2, 3))
    assert induction_mode(including, PREFIX, label).index == 2
    choice = induction_mode(without, PREFIX, label)
    assert choice.above_noise
    assert choice.index != 2
    nothing = induction_mode(Modes(**{**vars(modes), "noise_floor": 10.0}), PREFIX, label)
    assert nothing.index == 2
    assert not nothing.above_noise


def test_the_standard_error_counts_rows_not_tokens() -> None:
    """Copies of each token in its row add no evidence: enrichment stays, where the naive one would grow by √copies."""
    modes, label = with_induction(1)
    copies = 9
    many = Modes(**{**vars(modes), "scores": np.repeat(modes.scores, copies, axis=1)})
    rows = np.repeat(np.arange(N), copies)
    once = induction_mode(modes, PREFIX, label)
    clustered = induction_mode(many, PREFIX, np.repeat(label, copies), rows)
    naive = induction_mode(many, PREFIX, np.repeat(label, copies))
    assert clustered.enrichment == pytest.approx(once.enrichment, rel=1e-3)
    assert naive.enrichment == pytest.approx(once.enrichment * 3, rel=1e-2)


def test_the_enrichment_of_nothing_is_standard_normal() -> None:
    rng = np.random.default_rng(5)
    rows = np.repeat(np.arange(100), 30)
    found = []
    for _ in range(100):
        shared = np.repeat(rng.standard_normal((K - 1, 100)), 30, axis=1)  # rows differ, in scores and in labels
        modes = Modes(**{**vars(MODES), "scores": shared + rng.standard_normal((K - 1, N))})
        label = rng.random(N) < np.repeat(rng.random(100), 30)
        found += [c.enrichment for c in induction_mode(modes, PREFIX, label, rows).candidates]
    assert np.std(found) == pytest.approx(1, abs=0.15)


MODES, LABEL = with_induction(1)


def test_bad_labels_are_named() -> None:
    for arguments, words in (
        ((MODES, PREFIX, LABEL[:5]), "labels for"),
        ((MODES, PREFIX, np.ones(N, dtype=bool)), "all alike"),
        ((MODES, {"l0h0": 0.1, "l1h0": 0.9}, LABEL), "2 of the components"),
        ((MODES, dict.fromkeys(PREFIX, 0.1), LABEL), "that differ"),
        ((MODES, PREFIX, LABEL, np.zeros(3, dtype=int)), "row numbers"),
    ):
        with pytest.raises(PatterningError, match=words):
            induction_mode(*arguments)
