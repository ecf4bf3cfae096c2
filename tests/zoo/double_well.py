"""Two solutions in one posterior: L = h (w² - 1)² + t (1 - w), with a barrier between w = 1 and w = -1.

Half of the samples fit one well better, half the other, so that at tilt t = 0 the mean loss knows nothing of a switch.
"""

import torch

from zoo.singular import Polynomials


def double_well(barrier: float, tilt: float = 0.0, difference: float = 0.5) -> Polynomials:
    """`barrier` h and `tilt` t in nats; samples differ by ± `difference` · (1 - w), ± `difference` · (w² - 1)² / 5."""
    side = torch.tensor([1.0, 1.0, -1.0, -1.0], dtype=torch.float64) * difference
    bend = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64) * difference / 5
    coefficients = torch.stack([barrier + bend, tilt + side], 1)
    return Polynomials(coefficients, lambda w: torch.cat([(w**2 - 1) ** 2, 1 - w], 1), 1)
