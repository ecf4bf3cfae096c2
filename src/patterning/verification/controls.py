"""Control weights: what an intervention must be told apart from."""

import math
import zlib
from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from patterning.core.arrays import as_floats, as_mask
from patterning.core.errors import PatterningError, check_whole
from patterning.core.rng import Stream, generator

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]


def thinned(classes: Bools, base_weights: Floats, free: Bools | None, keep: float) -> Floats:
    """Oracle weights (n,): samples of `classes` weigh `keep` times the other free samples, at the same total weight.

    Raises `PatterningError` when `classes` leaves no other free sample, or none at all: nothing would move.
    """
    base_weights = as_floats("base_weights", base_weights, 1)
    classes, free = as_mask("classes", classes, len(base_weights)), as_mask("free", free, len(base_weights))
    if (
        isinstance(keep, bool)
        or not isinstance(keep, int | float | np.number)
        or not (math.isfinite(keep) and keep >= 0)
    ):
        raise PatterningError(f"keep is {keep!r}: a sample's relative weight must be finite and >= 0")
    if not (np.isfinite(base_weights).all() and (base_weights >= 0).all()):
        raise PatterningError("base_weights must be finite and >= 0")
    if not (classes & free).any() or not (free & ~classes).any():
        raise PatterningError("the classes to thin out hold no free sample, or every one: nothing would move")
    rho = np.where(classes & free, keep, 1.0)
    if not (base_weights * rho)[free].sum() > 0:
        raise PatterningError("nothing would be left: every free sample outside of the classes has base weight 0")
    rho[free] *= base_weights[free].sum() / (base_weights * rho)[free].sum()
    return rho


def random_direction_like(s: Floats, seed: int, profiles: NDArray[np.floating] | None = None) -> Floats:
    """A direction (n,) with exactly the values of `s`, dealt out without regard to them.

    Independently from sample to sample; or, with `profiles` (n, f) (activations, say), in the order of a random linear
    function of them: a direction as smooth over samples as a real one, which is much the harder control.
    """
    rng, s = generator(seed, Stream.CONTROL), as_floats("the direction", s, 1)
    if not np.isfinite(s).all():
        raise PatterningError("the direction holds NaN or infinite entries")
    if profiles is None:
        return rng.permutation(s)
    profiles = as_floats("profiles", profiles)
    if not np.isfinite(profiles).all():
        raise PatterningError("the profiles hold NaN or infinite entries: samples cannot be put in order by them")
    if profiles.ndim != 2 or len(profiles) != len(s):
        raise PatterningError(f"profiles {profiles.shape} are not (n, f) for {len(s)} samples")
    spread = profiles.std(axis=0, dtype=np.float64)
    along = rng.standard_normal(profiles.shape[1]) / np.where(spread > 0, spread, np.inf)
    result = np.empty_like(s)
    # samples of one profile (a repeated text) are ordered at random among themselves
    result[np.lexsort((rng.random(len(s)), profiles @ along))] = np.sort(s)
    return result


def frequency_bands(tokens: Ints, vocabulary: int, bands: int) -> Ints:
    """Band 0 (rarest tokens) to `bands` - 1 of each of `tokens` (n,), by how often its kind occurs among them.

    Bands hold nearly equal numbers of samples; a kind of token is never split, so a very common one may fill more than
    its share and leave a band empty. For `permuted_within`, pass the *predicted* tokens.
    """
    tokens = np.asarray(tokens)
    if tokens.dtype.kind not in "iu" or tokens.ndim != 1:
        raise PatterningError(f"tokens are {tokens.dtype} of shape {tokens.shape}: they must be whole numbers (n,)")
    check_whole("bands", bands, 0)
    check_whole("vocabulary", vocabulary, 1)
    if bands < 1 or len(tokens) == 0 or tokens.min() < 0 or tokens.max() >= vocabulary:
        raise PatterningError(f"{bands} bands of {len(tokens)} tokens: at least 1 of each, tokens below {vocabulary}")
    count = np.bincount(tokens, minlength=vocabulary)
    order = np.argsort(count, kind="stable")
    middle = np.cumsum(count[order]) - count[order] / 2
    band = np.empty(vocabulary, dtype=np.int64)
    band[order] = np.minimum((middle * bands / len(tokens)).astype(np.int64), bands - 1)
    return band[tokens]


def compressibility(texts: Sequence[bytes]) -> Floats:
    """Bytes after compression / bytes before (n,), each text by itself: low for a repetitive one.

    Raw DEFLATE at its highest level, without the 18 bytes of a gzip file's frame, which would drown short texts. The
    ratio still falls with length, so compare texts of about one length. Raises `PatterningError` for an empty text.
    """
    result = np.empty(len(texts))
    for i, text in enumerate(texts):
        if not isinstance(text, bytes | bytearray | memoryview):
            raise PatterningError(f"text {i} is {type(text).__name__}: it must be bytes (text.encode())")
        if not text:
            raise PatterningError(f"text {i} is empty: it has no compression ratio")
        packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
        result[i] = (len(packer.compress(text)) + len(packer.flush())) / len(text)
    return result


def labelled(labels: Bools, factor: float) -> Floats:
    """Plain heuristic weights (n,), mean 1: labelled samples weigh `factor` times the others (< 1: less of them)."""
    return thinned(labels, np.full(len(labels), 1 / len(labels)), None, factor)


def labelled_like(rho: Floats, labels: Bools, toward: Literal["more", "less"]) -> Floats:
    """Heuristic weights (n,), mean 1, that pull as hard as the arm `rho` (same effective sample size), by label alone.

    Two values whose mean square deviation is that of ρ (scaled to mean 1). Where that would take more than all the
    weight from one side, that side has weight 0, and the control pulls less: check with `weights.summarise`.
    """
    rho = as_floats("the weights", rho, 1)
    if toward not in ("more", "less"):
        raise PatterningError(f"toward is {toward!r}: it must be 'more' or 'less'")
    if not (np.isfinite(rho).all() and (rho >= 0).all() and rho.any()):
        raise PatterningError("the weights must be finite and >= 0, not all 0")
    labels = as_mask("labels", labels, len(rho))
    share = labels.mean()
    if not 0 < share < 1:
        raise PatterningError("the labels are all alike: there is nothing to weigh them by")
    size = np.std(rho / rho.mean()) * (1 if toward == "more" else -1)
    up = np.clip(1 + size * np.sqrt((1 - share) / share), 0, 1 / share)
    return np.where(labels, up, (1 - share * up) / (1 - share))
