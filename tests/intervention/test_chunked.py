"""Inversion in chunks against the singular value decomposition of all of χ, and against `Response.invert`."""

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo.gaussian_task import KERNEL, OBSERVABLES, Known, known

import patterning as pt
from patterning.intervention.chunked import Chunk, invert_chunks
from patterning.intervention.factor import Factor
from patterning.intervention.solve import solve
from patterning.intervention.weights import standardise

N_BETA = 30.0
EPS = np.finfo(np.float64).eps


def by_svd(chi, q, target, noise, free) -> tuple[np.ndarray, int]:
    """s and rank by numpy's decomposition of the whole matrix, as the formula is written."""
    own = np.where(free, q, 0.0)
    root = np.sqrt(own)

    def weighted(matrix: np.ndarray) -> np.ndarray:
        return (matrix - (matrix @ own)[:, None] / own.sum()) * root

    scale = np.linalg.norm(weighted(chi), axis=1)
    u, sizes, v = np.linalg.svd(weighted(chi) / scale[:, None], full_matrices=False)
    floor = np.linalg.svd(weighted(noise) / scale[:, None], compute_uv=False)[0]
    kept = sizes > floor
    tilted = (u.T @ (target / scale))[kept] / sizes[kept] @ v[kept] / N_BETA
    return np.divide(tilted, root, out=np.zeros(len(q)), where=root > 0), int(kept.sum())


@given(st.integers(0, 10_000), st.integers(1, 6), st.lists(st.integers(1, 40), min_size=1, max_size=5))
@settings(max_examples=40)
def test_chunks_give_what_the_whole_gives(seed: int, k: int, sizes: list[int]) -> None:
    rng = np.random.default_rng(seed)
    n = sum(sizes) + 3 * k
    sizes = [*sizes, 3 * k]
    q = rng.uniform(0, 1, n) / n
    chi = (rng.standard_normal((k, n)) + rng.standard_normal((k, 1))) * 10.0 ** rng.integers(-3, 3, k)[:, None]
    noise = 0.3 * rng.standard_normal((k, n)) * np.abs(chi - chi.mean(1, keepdims=True)).max(1, keepdims=True)
    free, target = rng.random(n) < 0.8, rng.standard_normal(k)
    ends = np.cumsum([0, *sizes])

    def chunks() -> Iterator[Chunk]:
        for a, b in pairwise(ends):
            yield Chunk(chi[:, a:b], noise[:, a:b], 5 * q[a:b], free[a:b])

    try:
        whole = solve(chi, q, target, N_BETA, noise=noise, free=free)
    except pt.PatterningError as error:
        with pytest.raises(pt.PatterningError, match=str(error)[:30]):
            invert_chunks(chunks, target, N_BETA)
        return
    expected, rank = by_svd(chi, q / q.sum(), target, noise, free)
    found = invert_chunks(chunks, target, N_BETA)
    assert (found.inverse.rank, found.samples) == (rank, n) == (whole.rank, n)
    s = np.concatenate(list(found.scores(chunks)))
    close = {"rtol": 0, "atol": 1e-12 * whole.condition}
    size = float(np.abs(expected).max())
    np.testing.assert_allclose(found.inverse.root_mean_square * s / size, expected / size, **close)
    np.testing.assert_allclose(whole.s / size, expected / size, **close)
    np.testing.assert_allclose(s, standardise(whole.s, q / q.sum(), free), **close)
    np.testing.assert_allclose(
        found.inverse.predicted, whole.predicted, atol=1e-12 * whole.condition * np.abs(target).max()
    )


def test_the_condition_number_is_not_squared() -> None:
    """Rows that are alike to one part in 1e9: the Gram matrix cannot tell them apart, the triangular factor can."""
    rng = np.random.default_rng(0)
    k, n = 4, 5000
    orthogonal = np.linalg.qr(rng.standard_normal((n, k)))[0].T
    orthogonal -= orthogonal.mean(1, keepdims=True)
    rotation = np.linalg.qr(rng.standard_normal((k, k)))[0]
    chi = rotation @ np.diag([1, 1e-3, 1e-6, 1e-9]) @ orthogonal
    chi -= chi.mean(1, keepdims=True)
    q, target = np.full(n, 1 / n), rng.standard_normal(k)
    found = invert_chunks(
        lambda: [Chunk(chi[:, :3000], None, q[:3000]), Chunk(chi[:, 3000:], None, q[3000:])], target, 1
    )
    expected = np.linalg.svd(chi / np.linalg.norm(chi, axis=1, keepdims=True), compute_uv=False)
    error = np.abs(found.inverse.singular_values - expected)
    assert error.max() < 20 * EPS  # of the largest, which is about 1
    assert found.inverse.condition > 1e8
    gram = chi * q @ chi.T
    lost = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0))[
        0
    ]  # the smallest singular value of √q χ, by the Gram matrix
    kept = np.linalg.svd(chi * np.sqrt(q), compute_uv=False)[-1]
    assert abs(lost / kept - 1) > 0.1


def test_the_mean_of_a_row_costs_no_digits() -> None:
    rng = np.random.default_rng(1)
    values, q = rng.standard_normal((2, 9000)), rng.uniform(0.5, 1.5, 9000)
    factor = Factor(2)
    factor.add(values + np.array([[0.0], [1e3]]), q)
    mean = values @ q / q.sum()
    np.testing.assert_allclose(factor.mean, mean + np.array([0, 1e3]), rtol=1e-12, atol=1e-12)
    centred = (values - mean[:, None]) * np.sqrt(q)
    np.testing.assert_allclose(factor.centred.T @ factor.centred, centred @ centred.T, rtol=1e-10, atol=1e-7)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "there is no chunk"),
        ([(np.ones((2, 3)), None, np.ones(4))], r"χ \(2, 3\): for 2 rows and 4 samples"),
        ([(np.ones((2, 3)), None, -np.ones(3))], "numbers >= 0"),
        ([(np.ones((2, 3)), None, np.ones(3))], "its row of χ is zero"),
        ([(np.full((2, 3), np.nan), None, np.ones(3))], "NaN or infinite"),
        ([(np.eye(2, 3), None, np.ones(3)), (np.eye(2, 3), np.eye(2, 3), np.ones(3))], "some chunks hold noise"),
        ([(np.eye(2, 3), None, np.zeros(3))], "no free sample has a base weight"),
    ],
)
def test_chunks_that_cannot_be_inverted_are_refused(parts: list, message: str) -> None:
    with pytest.raises(pt.PatterningError, match=message):
        invert_chunks(lambda: parts, [1.0, 0.0], 1.0)


@pytest.fixture(scope="module")
def problem() -> Known:
    return known()


@pytest.fixture(scope="module")
def stored(problem: Known, tmp_path_factory: pytest.TempPathFactory) -> tuple[pt.Response, Path]:
    chi = pt.measure(
        problem.task, OBSERVABLES, sampler=KERNEL, batch_size=problem.batch_size, draws=60, burn_in=20, chains=6,
        steps_between_draws=8, budget=1, estimator="covariance", progress=False,
    )  # fmt: skip
    path = tmp_path_factory.mktemp("store") / "chi.zarr"
    chi.save(path)
    return chi, path


@pytest.mark.parametrize("free", [None, "half"])
def test_a_store_is_inverted_as_the_response_is(
    problem: Known, stored: tuple[pt.Response, Path], free, tmp_path
) -> None:
    chi, path = stored
    mask = None if free is None else np.arange(len(chi.row)) % 4 > 0
    whole = chi.invert({"first": -1}, hold="rest", free=mask)
    found = pt.invert_store(path, {"first": -1}, hold="rest", free=mask, samples=7)
    assert (found.refused, found.rank, found.wanted) == (whole.refused, whole.rank, whole.wanted)
    assert found.noise_floor == pytest.approx(whole.noise_floor, rel=1e-9)
    for name, change in found.predicted.items():
        np.testing.assert_allclose(
            [*vars(change).values()], [*vars(whole.predicted[name]).values()], rtol=1e-8, atol=1e-12
        )
    assert str(found).partition(".")[0] == str(whole).partition(".")[0]
    for policy in ("clip", "tilt"):
        rho = whole.weights(0.8, policy, free=mask, force=True).rho
        table = pyarrow.parquet.read_table(found.write(tmp_path / f"{policy}.parquet", 0.8, policy, force=True))
        np.testing.assert_allclose(table["s"].to_numpy(), whole.s, atol=1e-9)
        np.testing.assert_allclose(table["rho"].to_numpy(), rho[chi.row], rtol=1e-9)
        assert pyarrow.parquet.ParquetFile(tmp_path / f"{policy}.parquet").num_row_groups == -(-len(chi.row) // 7)


def test_what_a_stored_direction_cannot_do_is_refused(stored: tuple[pt.Response, Path], tmp_path: Path) -> None:
    path = stored[1]
    with pytest.raises(pt.PatterningError, match="χ has no row 'third'"):
        pt.invert_store(path, {"third": 1})
    with pytest.raises(pt.PatterningError, match="free must be a mask"):
        pt.invert_store(path, {"first": 1}, free=[1, 2])
    refused = pt.invert_store(path, {"first": 1}, min_reliability=0.9999999)
    assert refused.refused is not None
    assert "χ is too noisy" in refused.refused
    with pytest.raises(pt.PatterningError, match="was refused"):
        refused.write(tmp_path / "rho.parquet", 0.5)
    with pytest.raises(pt.PatterningError, match="policy 'rank' is not one of clip, tilt"):
        refused.write(tmp_path / "rho.parquet", 0.5, "rank", force=True)  # type: ignore[arg-type]
    with pytest.raises(pt.PatterningError, match="strength is -1"):
        refused.write(tmp_path / "rho.parquet", -1, force=True)


MEMORY = """
import resource, sys
import numpy as np
from patterning.intervention.chunked import Chunk, invert_chunks

folder, count = sys.argv[1], int(sys.argv[2])
k, m = 30, 40_000

def chunks():
    for _ in range(count):
        part = np.load(f"{folder}/chunk.npy")
        chunk = Chunk(part[0], part[1], np.full(m, 1.0))
        del part
        yield chunk
        del chunk

next(chunks()), next(invert_chunks(lambda: [Chunk(np.eye(2, 9), None, np.ones(9))], [1, 1], 1).scores(lambda: []), None)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = invert_chunks(chunks, np.eye(k)[0], 1.0)
total = sum(float(s.sum()) for s in found.scores(chunks))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print((after - before) * 1024 / (2 * k * m * 8), found.samples)
"""


def test_memory_is_that_of_a_chunk(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "chunk.npy", rng.standard_normal((2, 30, 40_000)) * np.array([1.0, 0.01])[:, None, None])
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), "8"], capture_output=True, text=True, check=True
    )  # the peak over reading one chunk: less than one more, where eight went by
    more, samples = done.stdout.split()
    assert int(samples) == 320_000
    assert float(more) < 0.9
