# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
# ---
# %% [markdown]
# # Weights on superposition, small
#
# A network that stores six features in a plane ends as a hexagon, or as a pentagon with one dead feature. Here we make
# weights that favour the hexagon and see whether training follows. This is the [first
# result](../results/superposition.md)
# with fewer runs and shorter chains, in a few seconds.
#
# The data are 24 groups: six features, each in four quarters of its size μ. Training is noisy, so that runs move
# between shapes, and weights can decide which they end in.

# %%
import numpy as np

from patterning.core.rng import Stream, generator
from patterning.posterior.langevin import descend, walk
from patterning.posterior.sgld import SGLD
from patterning.tasks import superposition as toy

N_BETA, RUNS = 300.0, 60


def train(rho: np.ndarray, seeds: range, steps: int = 4000) -> np.ndarray:
    """The shape that each seed ends in, as its place in `toy.SOLUTIONS`, after noisy training under weights ρ (24,)."""
    gradient = toy.gradient_under(rho)
    start = 0.1 * np.stack([generator(seed, Stream.INIT).standard_normal(toy.PARAMETERS) for seed in seeds])
    kernel = SGLD(N_BETA, localization=1.0, step_size=2 * 0.3 / N_BETA)
    noisy = walk(gradient, start, np.zeros(toy.PARAMETERS), kernel, [(seed, 0) for seed in seeds], steps)
    return toy.end_states(descend(gradient, noisy, toy.RATE, 200))


unweighted = train(np.ones(toy.GROUPS), range(RUNS))
print(f"hexagons without weights: {np.mean(unweighted == 0):.0%} of {RUNS} runs")

# %% [markdown]
# **Measure.** A chain around each of the seven solutions gives ⟨ℓ_j⟩, the mean loss of group j there. Training that
# moves between solutions ends in each in proportion to exp(-F), where F is its *free energy*. Its derivative by the
# weight of group j is nβ ⟨ℓ_j⟩ ([four responses](../llc-responses.md)). So weight on groups that pentagons fit worse
# than the hexagon favours the hexagon.

# %%
minima, chains = toy.find_minima(), 16
kernel = SGLD(N_BETA, localization=30.0, step_size=5e-4)
gradient = toy.gradient_under(np.ones(toy.GROUPS))
position = np.repeat(minima, chains, axis=0)
streams = [(2000, k) for k in range(len(position))]
losses = np.zeros((len(minima), chains, toy.GROUPS))
anchor, draws = position.copy(), 40
for draw in range(draws + 10):
    position = walk(gradient, position, anchor, kernel, [(seed + draw, k) for seed, k in streams], 25)
    if draw >= 10:
        losses += toy.group_losses(position).reshape(losses.shape) / draws
stayed = np.mean(toy.end_states(position) == np.repeat(np.arange(len(minima)), chains))
print(f"chains that are still at their solution: {stayed:.0%}")

# %% [markdown]
# **Invert.** The gap is the mean over the six pentagons less the hexagon. Its largest entry is scaled to 1.

# %%
at_solution = losses.mean(1)
gap = at_solution[1:].mean(0) - at_solution[0]
s = gap - gap.mean()
s /= np.abs(s).max()
rho = 1 + 0.6 * s
print("mean ρ by quarter of μ:", np.round(rho.reshape(toy.FEATURES, toy.QUARTERS).mean(0), 2))

# %% [markdown]
# **Verify.** The same seeds are trained again under ρ, and under the same weights dealt to other groups (*permuted*).

# %%
from patterning.report.charts import BLUE, GREY, Difference, forest
from patterning.verification.proportions import paired_share_difference

permuted = train(rho[np.random.default_rng(1).permutation(toy.GROUPS)], range(RUNS))
asked = train(rho, range(RUNS))
rows = []
for name, states, colour in (("asked for the hexagon", asked, BLUE), ("the same weights, permuted", permuted, GREY)):
    change = paired_share_difference(states == 0, unweighted == 0)
    print(
        f"{name}: {np.mean(states == 0):.0%} hexagons, {change.difference:+.0%} [{change.low:+.0%}, {change.high:+.0%}]"
    )
    rows.append(Difference(name, 100 * change.difference, 100 * change.low, 100 * change.high, colour))
forest(rows, "change of the share of hexagons, percentage points (95 % interval)")

# %%
beyond = paired_share_difference(asked == 0, permuted == 0)
assert beyond.low > 0, "the weights do not beat their permuted control"
print(f"beyond the permuted weights: {beyond.difference:+.0%} [{beyond.low:+.0%}, {beyond.high:+.0%}]")

# %% [markdown]
# Both intervals leave out 0, so the weights *steer* by the rule that all pages use
# ([interpretation](../interpretation.md)). With 60 runs an interval is about 30 points wide. The
# [full result](../results/superposition.md) has 200 runs of each arm and asks for a pentagon as well.
