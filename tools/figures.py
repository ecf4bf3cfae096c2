"""Draws the figures of the documentation: `python tools/figures.py` writes docs/figures/*.svg.

The grounds are white and the ink is dark, as an image in a page cannot follow the reader's light or dark mode.
"""

import re
from pathlib import Path

import numpy as np

from patterning.posterior.langevin import walk
from patterning.posterior.sgld import SGLD
from patterning.report.charts import BLUE, COLOURS, GREY, ORANGE, Curve, curves

FOLDER = Path(__file__).parents[1] / "docs" / "figures"
LOW, HIGH = 0.01, 2.0


def panels(drawn: list[tuple[str, str]], columns: int) -> str:
    """Charts in a grid, each under its title, as one SVG with a white ground."""
    found = [(title, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)".*?>(.*)</svg>', str(chart), re.DOTALL))
             for title, chart in drawn]  # fmt: skip
    sizes = [(float(match.group(1)), float(match.group(2)) + 22) for _, match in found if match]
    wide, high = max(size[0] for size in sizes) + 12, max(size[1] for size in sizes)
    parts = []
    for i, (title, match) in enumerate(found):
        assert match is not None
        place = f"translate({12 + wide * (i % columns):g} {high * (i // columns):g})"
        parts.append(f'<g transform="{place}"><text x="40" y="16" font-size="13" font-weight="600">{title}</text>'
                     f'<g transform="translate(0 20)">{match.group(3)}</g></g>')  # fmt: skip
    width, height = wide * columns + 12, high * -(-len(found) // columns) + 6
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" color="#1b1f24" fill="#1b1f24" '
        f'font-family="system-ui, sans-serif"><rect width="100%" height="100%" fill="#fff"/>{"".join(parts)}</svg>\n'
    )


def covariance() -> str:
    """The posterior of the worked number in docs/concepts.md, with weight h moved onto the sample."""
    n_beta, localization = 30.0, 10.0
    variance, w = 1 / (2 * n_beta + localization), np.linspace(-0.7, 0.5, 121)

    def density(mean: float) -> list[float]:
        return (np.exp(-((w - mean) ** 2) / 2 / variance) / np.sqrt(2 * np.pi * variance)).tolist()

    means = {h: -0.5 * h * n_beta * variance for h in (0.0, 0.5, 1.0)}
    names = {0.0: "as it is", 0.5: "half of the weight on the sample", 1.0: "all of it"}
    densities = [
        Curve(names[h], w.tolist(), density(mean), colour, width=2)
        for (h, mean), colour in zip(means.items(), (GREY, BLUE, ORANGE), strict=True)
    ]
    shift = [Curve("", w.tolist(), (0.5 * w).tolist(), BLUE, width=2)]
    return panels(
        [
            ("the sample's loss less the mean loss", curves(shift, "w", "nats", width=360, height=230)),
            ("posterior, 0 / 50 / 100 % of the weight moved",
             curves(densities, "w", "density", width=420, height=230)),
        ],
        2,
    )  # fmt: skip


def responses() -> str:
    """λ̂ of the bowl in docs/llc-responses.md against the weight that is moved: slopes P and T at 0."""
    n_beta, gamma, h2, k = 30.0, 5.0, 2.0, 1.0
    h = np.linspace(-1, 1, 81)
    precision = n_beta * (h2 + k * h) + gamma
    anew, old = n_beta * (h2 + k * h) / precision / 2, n_beta * h2 / precision / 2
    lines = [Curve("anew", h.tolist(), anew.tolist(), BLUE, width=2.2),
             Curve("old", h.tolist(), old.tolist(), ORANGE, width=2.2)]  # fmt: skip
    chart = curves(lines, "weight moved onto sample j", "mean of φ", marks={"": 0.0}, width=480, height=250)
    return panels([("blue: new loss inside φ (slope T); orange: old loss (slope P)", chart)], 1)


def loss_traces(step: float, gamma: float, chains: int, steps: int) -> list[list[float]]:
    """L along SGLD chains on a bowl of 40 directions whose curvatures run from 0.01 to 2; nβ 100."""
    curvatures = np.geomspace(LOW, HIGH, 40)
    kernel, losses = SGLD(100.0, gamma, step), []
    walk(lambda w: curvatures * w, np.zeros((chains, 40)), np.zeros(40), kernel, [(3, c) for c in range(chains)], steps,
         lambda _, w: losses.append(0.5 * (curvatures * w * w).sum(1)))  # fmt: skip
    return np.minimum(np.array(losses).T, 5.0).tolist()


def health() -> str:
    """Four pilots: healthy, too short, steps too long, and past the edge."""
    top, steps = 100 * HIGH + 20, 400
    cases = {
        "healthy: ελ = 0.2": (0.2 / top, 20.0, steps),
        "not settled: ελ = 0.01": (0.01 / top, 20.0, steps),
        "steps too long: ελ = 3.8": (3.8 / top, 20.0, steps),
        "explodes: ελ = 4.04": (4.04 / top, 20.0, steps),
    }
    drawn = []
    for title, (step, gamma, count) in cases.items():
        lines = [
            Curve("", list(range(0, count, 4)), trace[::4], COLOURS[c], width=1)
            for c, trace in enumerate(loss_traces(step, gamma, 3, count))
        ]
        drawn.append((title, curves(lines, "step", "L, nats", width=380, height=190)))
    return panels(drawn, 2)


FIGURES = {"covariance": covariance, "four-responses": responses, "chain-health": health}


def main() -> None:
    """Write all of them."""
    FOLDER.mkdir(exist_ok=True)
    for name, draw in FIGURES.items():
        (FOLDER / f"{name}.svg").write_text(draw(), encoding="utf-8")


if __name__ == "__main__":
    main()
