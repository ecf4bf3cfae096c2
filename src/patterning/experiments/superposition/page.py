"""The superposition experiment's part of the page: polygons, weights, the gap's parts, chains; from plain results."""

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from patterning.core.plain import Document
from patterning.experiments.superposition.subject import QUARTERS, long_name
from patterning.report import shapes
from patterning.report.page import Row, Section, Table
from patterning.study.findings import interval, points, rows_of
from patterning.study.shares_page import chain_table, chain_text, colour_of
from patterning.tasks.superposition import FEATURES, SOLUTIONS, end_states, live_features
from patterning.verification.proportions import paired_share_difference

LEGEND = (
    "Each drawing is one run: the six columns of W as points in the plane, live ones joined, dead ones hollow. The "
    "same place in two galleries is the same seed: same start, same noise, other weights. Blue outline: the first "
    "shape that was asked for; orange: the others; grey: a shape that was not."
)


def drawings(results: Document) -> dict[str, Markup]:
    """A gallery for each arm, half as large for those that are only compared with."""
    return {
        arm["name"]: shapes.gallery(_polygons(results, arm)[: None if arm["kind"] in ("base", "arm") else 12])
        for arm in results["arms"]
    }


def figure(results: Document) -> Markup:
    """Twelve runs of the unweighted and of each asked arm, as one picture."""
    rows, strips = rows_of(results), []
    for arm in results["arms"]:
        if arm["kind"] in ("base", "arm"):
            mine = [(one["measure"], rows[arm["name"], one["measure"]]) for one in results["subject"]["outcomes"]]
            shares = ", ".join(f"{name} {interval(row['mean'], row['low'], row['high'])} %" for name, row in mine)
            strips.append((f"{arm['name']}: {shares}", _polygons(results, arm)[:12]))
    return shapes.poster(strips, "the six columns of W after training, twelve runs a row")


def _polygons(results: Document, arm: Document) -> list[shapes.Polygon]:
    columns, shown = np.array(results["columns"][arm["name"]]), []
    for seed, row, live, state in zip(
        arm["seeds"], columns, live_features(columns), end_states(columns), strict=False
    ):  # the first seeds are drawn
        name = (*SOLUTIONS, "other")[state]
        words = long_name(name) if name in SOLUTIONS else "another state"
        places = list(zip(row[:FEATURES].tolist(), row[FEATURES:].tolist(), strict=True))
        shown.append(shapes.Polygon(places, live.tolist(), colour_of(results, name), f"seed {seed}: {words}"))
    return shown


def sections(results: Document) -> list[Section]:
    """What is of this experiment alone."""
    config, weights = results["config"], []
    told = [one for one in results["directions"] if not one["refused"]]
    reach = max(abs(rho - 1) for arm in results["arms"] for rho in arm["weight_by_group"].values())
    for arm in results["arms"][1:]:
        weights.append((arm["name"], _grid(list(arm["weight_by_group"].values()), arm["name"], 1.0, reach)))
    parts = [
        (f"{one['name']}: {what}", _grid(one[key], f"{one['name']}: {what}", 0.0, 1.0))
        for one in told
        for key, what in (("gap", "free-energy gap"), ("energy", "energy part"), ("entropic", "entropic part"))
    ]
    relative = "Relative weight ρ of each group: feature (rows) by quarter of μ (columns); 1 is unweighted."
    return [
        Section("The experiment in words", _method(results)),
        Section("Plain heuristics", _heuristics(results)),
        Section("The weights", relative, html=[shapes.tiles(weights)]),
        Section("What the gap is made of", GAP, html=[shapes.tiles(parts)], tables=[_cosines(told)]),
        Section(
            "The chains around the seven solutions", chain_text(config, stiffest=2.0), tables=[chain_table(results)]
        ),
    ]


def _grid(values: Sequence[float], label: str, middle: float, reach: float) -> Markup:
    lines = np.reshape(values, (FEATURES, len(QUARTERS))).tolist()
    rows, columns = [f"feature {i + 1}" for i in range(FEATURES)], [name.removeprefix("μ ") for name in QUARTERS]
    return shapes.heat_map(lines, rows, columns, label, middle=middle, reach=reach)


GAP = (
    "The gap, E[ℓ] around the rivals less E[ℓ] around the target, is the sum of an energy part (the losses at the "
    "minima themselves) and an entropic part (what the posterior around them adds). Each is centred and scaled to 1 "
    "here, so that only its direction shows. A part with a negative cosine would alone point the other way."
)


def _method(results: Document) -> str:
    config, counts = results["config"], results["pilot_counts"]
    train, pilots = config["train"], config["pilots"]
    return (
        "f(x) = ReLU(WᵀWx + b) with W 2 × 6 reconstructs x = μ e_i, one of six features at a time, μ uniform on [0, "
        "1]. The loss is |f(x) - x|², taken exactly. Samples are 24 groups: feature by quarter of μ. A feature is live "
        "when its column of W is longer than 0.6; features count from 1, and pentagon-3 has a dead third one. Training "
        f"is noisy (SGLD at nβ {config['n_beta']:g}, prior N(0, 1), learning rate {train['learning_rate']:g}, start "
        f"N(0, {train['init_scale']:g}²), {train['steps']} steps, then {train['quiet_steps']} without noise), so that "
        "runs move between solutions. Weights are ρ = 1 + α s with max |s| = 1. Shares are predicted by share(B) ∝ "
        "exp(-F_B), where weights change F_B by nβ Σ q (ρ - 1) E_B[ℓ], the mean over chains around solution B. One "
        "number is not sampled: how much more volume the hexagon has than a pentagon. It is calibrated on "
        f"{pilots} unweighted pilot runs with other seeds ({counts[0]} hexagons, {sum(counts[1:])} pentagons, "
        f"{pilots - sum(counts)} neither): the basins are too far from Gaussian for curvatures."
    )


def _heuristics(results: Document) -> str:
    """What whoever knows the model would have done, beside the gap."""
    rows, sentences, enough = rows_of(results), [], True
    for arm in results["arms"]:
        name = arm["facts"].get("ask")
        if name and (f"{name}, asked", name) in rows:
            row, asked = rows[arm["name"], name], rows[f"{name}, asked", name]
            less = vars(paired_share_difference(np.array(asked["values"]) > 0, np.array(row["values"]) > 0))
            enough = enough and row["against_unweighted"]["low"] > 0
            plain, share = arm["name"].removeprefix("heuristic: "), interval(row["mean"], row["low"], row["high"])
            sentences.append(
                f"Plain weights ({plain}) give the {long_name(name)} in {share} % of the runs, from which the gap "
                f"differs by {points(less)} points."
            )
    if enough and sentences:
        sentences.append("So whoever knows the model needs no gap for these asks.")
    rest = (
        "The gap finds such data without being told of the model. Two tests take the heuristic out of it: each "
        "feature's frequency held fixed, and what is orthogonal to the ramp, both ways."
    )
    return " ".join([*sentences, rest])


def _cosines(told: Sequence[Document]) -> Table:
    keys = ("gap_energy", "gap_entropic", "energy_entropic")
    rows = [Row([one["name"], *(f"{one['cosines'][key]:+.3f}" for key in keys)]) for one in told]
    return Table(("cosine of", "gap and energy part", "gap and entropic part", "energy and entropic part"), rows)
