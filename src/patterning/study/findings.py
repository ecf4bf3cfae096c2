"""What a study of yes-or-no outcomes found, in two sentences: what was obtained, and how the forecast fared."""

from patterning.core.plain import Document
from patterning.report.shapes import percent
from patterning.verification.rule import ENOUGH_PAIRS

HELD = 0.95
"""The correlation from which on a forecast is said to have held."""


def rows_of(results: Document) -> dict[tuple[str, str], Document]:
    """The rows of the evidence, by arm and measure."""
    return {(row["arm"], row["measure"]): row for row in results["rows"]}


def interval(value: float, low: float, high: float) -> str:
    """A share with its interval, in per cent: "57.5 [50.6, 64.1]"."""
    return f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def points(effect: Document) -> str:
    """A difference of shares with its interval, in points: "+39.0 [+31.5, +46.2]"."""
    return f"{100 * effect['difference']:+.1f} [{100 * effect['low']:+.1f}, {100 * effect['high']:+.1f}]"


def share_findings(results: Document) -> list[str]:
    """Whether each ask was obtained, by the one rule, and how forecasts of shares agree with what came."""
    return [asks_sentence(results), *forecast_sentence(results)]


def asks_sentence(results: Document) -> str:
    """An ask is obtained where its arm steers, by the one rule (`verification.rule`)."""
    rows, names = rows_of(results), _names(results)
    base, obtained, parts = results["arms"][0]["name"], [], []
    for arm in results["arms"]:
        for measure, sign in (arm["wanted"] if arm["kind"] == "arm" else {}).items():
            row, plain = rows[arm["name"], measure], rows[base, measure]["mean"]
            obtained.append(row["finding"] == "steers")
            asked = f"{'the' if sign > 0 else 'less of the'} {names[measure]}"
            parts.append(
                f"asked for {asked}, {interval(row['mean'], row['low'], row['high'])} % of {len(row['values'])} runs "
                f"become one, against {percent(plain)} of the same runs unweighted (difference "
                f"{points(row['against_unweighted'])} points)"
            )
    few = f"{len(results['arms'][0]['seeds'])} paired seeds are a look, not evidence. "
    return (few if len(results["arms"][0]["seeds"]) < ENOUGH_PAIRS else "") + f"{_lead(obtained)}: {'; '.join(parts)}."


def _lead(obtained: list[bool]) -> str:
    rule = "with intervals that exclude the unweighted share and that of permuted weights"
    if not all(obtained):
        return f"{sum(obtained)} of {len(obtained)} asks obtained, {rule}"
    who = {1: "What was asked for was", 2: "Both asks were"}.get(len(obtained), f"All {len(obtained)} asks were")
    return f"{who} obtained, {rule}"


def forecast_sentence(results: Document) -> list[str]:
    """Forecast against realised shares over the unweighted, the asked and the permuted arms; none without forecasts."""
    names = _names(results)
    told = [one for one in results["foretold"] if one.get("of_shares")]
    if not told:
        return []
    fits = [one["agreement"] for one in told]
    held = all(fit["r"] is not None and fit["r"] >= HELD for fit in fits)
    numbers = " and ".join(
        f"r = {fit['r']:.3f} [{fit['low']:.3f}, {fit['high']:.3f}] for the {names[one['measure']]}"
        for one, fit in zip(told, fits, strict=True)
        if fit["r"] is not None
    )
    mean, largest = sum(fit["mean_error"] for fit in fits) / len(fits), max(fit["largest_error"] for fit in fits)
    return [
        f"The shares under {fits[0]['arms']} sets of weights (unweighted, asked and permuted) were predicted before "
        f"any of these runs was trained, and the prediction {'held' if held else 'did not hold'}: predicted against "
        f"realised, {numbers or 'r is not defined'}, off by {100 * mean:.0f} points on average and "
        f"{100 * largest:.0f} at most."
    ]


def _names(results: Document) -> dict[str, str]:
    """What a run is called for which a measure is true."""
    return {one["measure"]: one["up"] for one in results["subject"]["outcomes"]}
