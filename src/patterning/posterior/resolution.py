"""Is a rise of the loss larger than what its floating point numbers can tell apart?

A loss ℓ in float32 is known to about ε |ℓ|, ε = 1.2e-7, however small its change is. Where E[L] - L(w*) is that small,
λ̂ = nβ (E[L] - L(w*)) and χ are rounding, and no chain is long enough.
"""

import numpy as np
import torch

from patterning.core.arrays import Floats

LARGE = 1000.0
"""A mean loss above this many nats is not that of data in their own units: targets far from unit size, say."""
FEW = 10.0
"""A rise of fewer units in the last place of the loss than this is called rounding."""


def resolution(at_anchor: Floats, weights: Floats, dtype: torch.dtype = torch.float32) -> float:
    """What losses ℓ(w*) (n,) of weights q can tell apart in their mean, in nats."""
    return float(torch.finfo(dtype).eps * (np.abs(at_anchor) @ weights))


def below_resolution(rise: float, least: float, dtype: torch.dtype = torch.float32) -> str | None:
    """A sentence where a rise of the mean loss cannot be told from rounding, else None; `least`: `resolution`."""
    if not 0 < abs(rise) < FEW * least:
        return None
    kind = str(dtype).removeprefix("torch.")
    size = least / torch.finfo(dtype).eps
    remedy = (
        f"the mean of |loss| is {size:.2g}: standardise the targets, or divide a squared error by twice its variance"
        if size > LARGE
        else "subtract from the loss what does not depend on the parameters, or let it rise further (a lower "
        "localization γ)"
    )
    return (
        f"the loss rises by {rise:.2g} nats, and numbers of type {kind} of the size of the loss lie {least:.2g} apart: "
        f"λ̂ and χ are rounding noise; {remedy}"
    )
