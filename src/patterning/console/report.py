"""What `patterning report` does: table and page of whatever a command or a call of the Python interface has written."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from patterning.core.errors import PatterningError
from patterning.core.plain import Document
from patterning.core.store import IDENTITY, RunFolder
from patterning.intervention.card import CARD, TABLE

Shown = tuple[Any, Callable[[Any, Console], None], Path | None]
"""Results, what prints them, and the page that was written."""
KINDS = (
    "the folder of patterning run, measure, llc or verify, or of pt.verify(out=...) or pt.measure(out=...); what "
    "chi.save wrote; weights (a folder of save_card, or a .parquet file)"
)


def report_of(place: Path) -> Shown:
    """Table and page again, from what is stored. Raises `PatterningError` for what is unfinished or unknown."""
    if not place.exists():
        raise PatterningError(f"{place} does not exist: name {KINDS}")
    if place.is_file():
        if place.suffix != ".parquet":
            raise PatterningError(f"{place} is a file: name {KINDS}")
        return _weights(place, None)
    if (place / "config.yaml").exists():
        return _study(place)
    from patterning.response.store import is_kept
    from patterning.verification.stored import is_claim, print_claim, publish_claim

    chi = place / "chi.zarr"
    both = chi.exists() and is_kept(chi) and is_claim(place)  # of pt.measure and pt.verify with the same out
    if chi.exists() and not both:
        from patterning.console.response import print_results, publish

        with RunFolder(place).lock():
            return publish(place.absolute()), print_results, place / "report.html"  # the task's file may go elsewhere
    if is_claim(place):
        with RunFolder(place).lock():
            return publish_claim(place), print_claim, place / "report.html"
    if (place / TABLE).exists():
        return _weights(place / TABLE, place / CARD)
    if any((place / name).exists() for name in (".zgroup", ".zattrs", "zarr.json")):
        return _chi(place)
    raise _unfinished(place)


def _study(folder: Path) -> Shown:
    from patterning.core.store import open_run
    from patterning.experiments.registry import experiment_of
    from patterning.study.conduct import keeping_results

    run = open_run(folder)
    chosen, _ = experiment_of(folder / "config.yaml")
    with run.lock():
        results = chosen.read_results(run)
        with keeping_results(folder, folder / "results.json"):
            chosen.write_page(run, results)
    return results, chosen.print_table, folder / "report.html"


def _chi(place: Path) -> Shown:
    """χ as `Response.save` writes it: the page goes beside it, as its own files are sealed."""
    from patterning.console.response import print_results, results_of
    from patterning.face.response_page import response_page
    from patterning.report.page import write_page
    from patterning.response.store import open_response

    tree = open_response(place)
    page = place.with_name(f"{place.name}.report.html")
    write_page(page, lambda: response_page(tree, "Susceptibilities"))
    return results_of(tree, None), print_results, page


def _weights(table: Path, card: Path | None) -> Shown:
    from patterning.intervention.data_weights import Weights
    from patterning.verification.page import facts_in_words

    weights = Weights.from_parquet(table)
    results = {
        "weights": str(weights),
        "how_they_were_made": facts_in_words(weights.facts),
        "facts": dict(weights.facts),
        "card": None if card is None or not card.exists() else str(card),
    }
    return results, _print_weights, None


def _print_weights(results: Document, console: Console) -> None:
    for line in (results["weights"], f"how they were made: {results['how_they_were_made']}"):
        console.print(line, highlight=False, markup=False)
    if results["card"]:
        console.print(f"card: {results['card']}", highlight=False, markup=False, soft_wrap=True)


def _unfinished(folder: Path) -> PatterningError:
    """Why a folder has nothing to show yet, with the remedy of its kind."""
    units = [path.name for path in (folder / "units").glob("*.safetensors")]
    retraining = any(name.startswith("train-") for name in units)
    if retraining:
        return PatterningError(
            f"{folder} holds {len(units)} runs of a verify that is not finished: give the same command, or run the "
            "script that calls verify(..., out=...), again; it goes on from there, and then there is a table"
        )
    if (folder / "units").exists() or (folder / IDENTITY).exists():
        return PatterningError(
            f"{folder} has no chi.zarr yet: give the command, or run the script, that began it again; it resumes"
        )
    return PatterningError(f"{folder} is not a folder that this package wrote: name {KINDS}")
