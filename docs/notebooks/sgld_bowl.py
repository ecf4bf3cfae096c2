# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---
# %% [markdown]
# # SGLD on a bowl, with its exact variance
#
# Before a sampler is trusted on a network, look at it where the answer is known. The simplest loss is a bowl,
# `L(w) = ½ h w²`. Around its minimum w* = 0 the [localized posterior](../concepts.md) is a Gaussian, and everything
# that Stochastic Gradient Langevin Dynamics (SGLD, gradient descent with noise) should do has a formula.
#
# One step of size ε at inverse temperature nβ, with a pull γ to w*:
#
#     w ← w - ε/2 (nβ h w + γ w) + √ε · noise
#
# Write λ = nβ h + γ. The posterior has variance 1/λ. The *chain* has a little more, because its steps are finite:
# `1 / (λ (1 - ελ/4))`. At ελ = 4 it explodes.

# %%
import torch

from patterning.posterior.sgld import SGLD, State, init, update

n_beta, curvature, localization = 30.0, 2.0, 40.0
total = n_beta * curvature + localization  # λ = 100


def variance_of_chains(step_size: float, chains: int = 20_000, steps: int = 150) -> tuple[float, float]:
    """Variance over many independent chains after `steps` steps, and its standard error."""
    kernel = SGLD(n_beta, localization, step_size)
    state = init(torch.zeros(1, dtype=torch.float64), chains)
    noise = torch.Generator().manual_seed(0)
    for _ in range(steps):
        xi = torch.randn(chains, 1, generator=noise, dtype=torch.float64)
        state = update(state, curvature * state.position, xi, kernel)
    found = float(state.position.var())
    return found, found * (2 / (chains - 1)) ** 0.5


# %% [markdown]
# The variance of 20,000 chains beside the formula, in units of the posterior's 1/λ:

# %%
products = [0.1, 0.2, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
measured = [variance_of_chains(product / total) for product in products]
exact = [1 / (1 - product / 4) for product in products]
for product, (found, error), formula in zip(products, measured, exact, strict=True):
    print(f"ελ = {product:3.1f}: {found * total:.3f} ± {error * total:.3f}, formula {formula:.3f}")
    assert abs(found * total - formula) < 4 * error * total

# %%
from patterning.report.charts import BLUE, ORANGE, Curve, curves

curves(
    [
        Curve("formula: 1 / (1 - ελ/4)", products, exact, ORANGE, width=2),
        Curve("20,000 chains", products, [found * total for found, _ in measured], BLUE, dashed=True, width=2),
    ],
    "ελ, step size times curvature",
    "variance × λ",
)

# %% [markdown]
# **What to take from it.** Keep ελ at 0.2 or less, and the variance is within 5 % of the posterior's. In a network λ
# is nβ times the *largest* curvature of the loss, plus γ. `sampler="calibrate"` measures that curvature and sets ε to
# match ([sampler settings](../sampler-settings.md)).
#
# How long must a chain run before it has forgotten its start at w*? The distance shrinks by 1 - ελ/2 a step. So
# `burn_in` should be a few times 2/(ελ): the flattest direction, in which λ is about γ, takes the longest.

# %%
step_size = 0.2 / total
kernel = SGLD(n_beta, localization, step_size)
state, noise = State(torch.full((20_000, 1), 0.5), torch.zeros(20_000, 1)), torch.Generator().manual_seed(1)
for step in range(1, 61):
    state = update(state, curvature * state.position, torch.randn(20_000, 1, generator=noise), kernel)
    if step in (10, 30, 60):
        mean, formula = float(state.position.mean()), 0.5 * (1 - step_size * total / 2) ** step
        print(f"step {step:2}: mean {mean:.4f}, formula {formula:.4f}")
        assert abs(mean - formula) < 4 * (1 / total / 20_000) ** 0.5 * 1.1
