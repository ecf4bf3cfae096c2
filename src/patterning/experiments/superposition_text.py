"""What the superposition page says in words, from the plain values in `results.json`: verdict and explanations."""

from collections.abc import Mapping
from typing import Any

from patterning.report.shapes import percent

Results = Mapping[str, Any]

ENOUGH = 0.95
"""The correlation from which on predictions are said to have held."""


def long_name(solution: str) -> str:
    """A solution in words; features count from 1."""
    return solution if solution == "hexagon" else f"pentagon with feature {solution[-1]} dead"


def interval(outcome: Mapping[str, Any]) -> str:
    """A share with its interval, in per cent: "57.5 [50.6, 64.1]"."""
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * outcome[part] for part in ("share", "low", "high")))


def points(effect: Mapping[str, Any]) -> str:
    """A difference of shares with its interval, in points: "+39.0 [+31.5, +46.2]"."""
    return f"{100 * effect['difference']:+.1f} [{100 * effect['low']:+.1f}, {100 * effect['high']:+.1f}]"


def verdict(results: Results) -> list[str]:
    """Two sentences: whether each ask was obtained, and how the predictions fared."""
    return [asks_sentence(results), predictions_sentence(results)]


def asks_sentence(results: Results) -> str:
    """An ask is obtained if its share's interval and that of the paired difference lie above the unweighted share."""
    base, seeds = results["arms"][0], results["config"]["seeds"]
    obtained, parts = [], []
    for arm in results["arms"]:
        if arm["kind"] != "ask":
            continue
        outcome, before = arm["outcomes"][arm["ask"]], base["outcomes"][arm["ask"]]["share"]
        obtained.append(outcome["low"] > before and outcome["effect"]["low"] > 0)
        parts.append(
            f"asked for the {long_name(arm['ask'])}, {interval(outcome)} % of {seeds} runs become one, against "
            f"{percent(before)} of the same runs unweighted (difference {points(outcome['effect'])} points)"
        )
    if all(obtained):
        who = "Both asks were" if len(obtained) == 2 else "What was asked for was"
        lead = f"{who} obtained, with intervals that exclude the unweighted share"
    else:
        lead = f"Obtained with an interval that excludes the unweighted share: {sum(obtained)} of {len(obtained)} asks"
    return f"{lead}: {'; '.join(parts)}."


def predictions_sentence(results: Results) -> str:
    """Predicted against realised shares over the unweighted, the asked and the permuted arms."""
    fits = results["agreement"]
    held = all(fit["r"] is not None and fit["r"] >= ENOUGH for fit in fits)
    numbers = " and ".join(
        f"r = {fit['r']:.3f} [{fit['low']:.3f}, {fit['high']:.3f}] for the {long_name(fit['target'])}"
        for fit in fits
        if fit["r"] is not None
    )
    mean = sum(fit["mean_error"] for fit in fits) / len(fits)
    largest = max(fit["largest_error"] for fit in fits)
    return (
        f"The shares under all {fits[0]['arms']} sets of weights, permuted ones included, were predicted before any "
        f"of these runs was trained, and the prediction {'held' if held else 'did not hold'}: predicted against "
        f"realised, {numbers or 'r is not defined'}, off by {100 * mean:.0f} points on average and "
        f"{100 * largest:.0f} at most."
    )


def left_out(results: Results) -> list[str]:
    """At most one sentence: how many chains were left out, and which."""
    reasons = [reason for solution in results["solutions"] for reason in solution["excluded"]]
    names = "; ".join(reason.partition(":")[0] for reason in reasons)
    verb = "chain was" if len(reasons) == 1 else "chains were"
    return (
        [f"{len(reasons)} {verb} left out, having visited another solution or overflowed: {names}"] if reasons else []
    )


def legend() -> str:
    """How to read the polygons and the bars."""
    return (
        "Each drawing is one run: the six columns of W as points in the plane, live ones joined, dead ones hollow. "
        "The same place in two galleries is the same seed: same start, same noise, other weights. Blue outline: "
        "hexagon. Orange: the pentagon asked for (pentagon-3: its third feature is dead). Grey: another pentagon. "
        "Bars: shares of all runs in per cent with 95 % intervals; diamond: predicted before training; dotted: "
        "unweighted."
    )


def prediction_text(results: Results) -> str:
    """Where the predictions come from, and what was calibrated."""
    counts, pilots = results["pilot_counts"], results["config"]["pilot_seeds"]
    return (
        "A table of seven free energies gives the shares: share(B) ∝ exp(-F_B), and weights change F_B by nβ Σ q (ρ "
        "- 1) E_B[ℓ], where E_B is the mean over chains around solution B. One number is not sampled: how much more "
        f"volume the hexagon has than a pentagon (six pentagons are alike by symmetry). It is calibrated on {pilots} "
        f"unweighted pilot runs with other seeds than the runs counted here ({counts[0]} hexagons, {sum(counts[1:])} "
        f"pentagons, {pilots - sum(counts)} neither), because the basins are too far from Gaussian to compute it from "
        "curvatures. So the unweighted row is no test of the table; every other row is. Discs: hexagon; squares: "
        "pentagon. Filled: unweighted, asked and permuted weights; hollow: heuristics and parts of the gap. "
        "Intervals are 95 %: of shares over runs, of predictions over chains and pilot runs. Differences to "
        "unweighted are in points, over the same seeds."
    )


def control_text(results: Results) -> str:
    """What permuted weights and plain heuristics do, beside the gap."""
    sentences, enough = [], True
    for arm in results["arms"]:
        if arm["kind"] != "ask":
            continue
        beyond = arm["outcomes"][arm["ask"]]["beyond"]
        name, plain = long_name(arm["ask"]), beyond["heuristic"]
        rival = next(other for other in results["arms"] if other["label"] == plain["label"])["outcomes"][arm["ask"]]
        enough = enough and rival["effect"]["low"] > 0
        sentences.append(
            f"The {name}: the gap gives it {points(beyond['permuted'])} points more often than the best of its "
            f"permuted draws; {plain['label']} gives it in {interval(rival)} % of the runs, from which the gap differs "
            f"by {points(plain)} points."
        )
    verdict = "So whoever knows the model needs no gap for these asks; the gap finds such data without being told. "
    return (
        "Permuted: the same weights dealt to other groups at random; what they do varies much from draw to draw, and "
        f"is predicted like the rest. {' '.join(sentences)} {verdict if enough else ''}Two tests take the heuristic "
        "out of the gap: each feature's frequency held fixed, and what is orthogonal to the ramp, both ways."
    )


def parts_text(results: Results) -> str:
    """Which part of the gap carries its direction."""
    cosines = "; ".join(
        f"{direction['target']}: cosine of the gap with its energy part {direction['cosines']['gap_energy']:+.3f}, "
        f"with its entropic part {direction['cosines']['gap_entropic']:+.3f}"
        for direction in results["directions"]
    )
    return (
        "The gap, E[ℓ] around the rivals less E[ℓ] around the target, is the sum of an energy part (the losses at "
        "the minima themselves) and an entropic part (what the posterior around them adds). Each is centred and "
        f"scaled to 1 here, so that only its direction shows. {cosines}. A part with a negative cosine would alone "
        "point the other way. Rivals are weighted by their pilot shares."
    )


def chain_text(config: Mapping[str, Any]) -> str:
    """How the chains were made, and what their step size does."""
    sampling = config["sampling"]
    widening = sampling["step_size"] * (2.0 * config["n_beta"] + sampling["localization"]) / 4
    return (
        f"{sampling['chains']} chains of {sampling['steps']} SGLD steps around each solution, nβ "
        f"{config['n_beta']:g}, γ {sampling['localization']:g}, ε {sampling['step_size']:g}, exact gradients. The "
        f"step size widens the variance of the stiffest direction by {100 * widening / (1 - widening):.0f} %, of all "
        f"others by less. Every {10 * sampling['steps_between_draws']} steps a descent without noise tells which "
        "solution a chain is at; a chain that was elsewhere even once is left out, by name. λ̂ = nβ (E[L] - L(w*)) "
        "depends on nβ, γ and ε; as nβ grows and γ falls, both kinds of solution have λ = 8.5 (Chen et al., arXiv "
        "2310.06301)."
    )


def method_text(config: Mapping[str, Any]) -> str:
    """The model, its data, its training and the weights."""
    train = config["train"]
    asks = ", ".join(f"{ask['target']} α {ask['alpha']:g}" for ask in config["asks"])
    return (
        "f(x) = ReLU(WᵀWx + b) with W 2 × 6 reconstructs x = μ e_i: one of six features at a time, μ uniform on [0, "
        "1]; the loss is |f(x) - x|², taken exactly. Samples are 24 groups: feature by quarter of μ. Features count "
        "from 1: feature 3 is the third. A feature is live when its column of W is longer than 0.6. Hexagon: six "
        f"live; pentagon with feature 3 dead: all but the third. Training is noisy (SGLD at nβ {config['n_beta']:g}, "
        f"prior N(0, 1), learning rate {train['learning_rate']:g}, start N(0, {train['init_scale']:g}²), "
        f"{train['steps']} steps, then {train['quiet_steps']} without noise), so that runs move between solutions. "
        f"Weights are ρ = 1 + α s ({asks}), where s is the free-energy gap with max |s| = 1: data on which the target "
        "loses less than its rivals, on average over the posterior around each, weighs more. Shares have Wilson "
        "intervals, paired differences Newcombe's (1998), predictions a bootstrap over chains and pilot runs."
    )
