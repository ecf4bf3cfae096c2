"""What `patterning invert` and `patterning verify` do: weights from a stored χ, and the proof of weights."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from patterning.console.request import load_task
from patterning.core.errors import PatterningError
from patterning.core.executors import Executor, executor_of
from patterning.core.plain import Document
from patterning.core.user_code import as_given, call, load_object
from patterning.core.workers import Progress
from patterning.face.load import load
from patterning.intervention.change import what_rows_keep
from patterning.intervention.data_weights import Weights
from patterning.intervention.weights import Policy
from patterning.verification.stored import publish_claim
from patterning.verification.verify import Measure, verify

MOST_SEEDS = 10_000
"""More seeds in one range are a slip of the hand."""


@dataclass(frozen=True)
class Wish:
    """The arguments of `patterning invert`: what is asked of a stored χ, and how strongly to weight.

    `want`: "ROW=SIGN" for each row of χ that is to move ("8s=-1"); `hold`: rows to hold.
    """

    folder: Path
    task: str
    want: Sequence[str]
    hold: Sequence[str] = ()
    strength: float = 0.25
    policy: str = "clip"
    cap: float | None = None
    min_ess: float | None = None
    per: str = "sample"
    force: bool = False


def invert_to(wish: Wish, out: Path) -> Document:
    """Weights for the wish, written to `out` as parquet; returns what was asked, expected and made.

    Raises `PatterningError` for rows that χ has not, for other data, and for a direction that is refused.
    """
    wanted, task = _parsed(wish.want), load_task(wish.task)
    folder, out = as_given(wish.folder), as_given(out)
    store = folder / "chi.zarr" if (folder / "chi.zarr").exists() else folder
    response = load(store, task)
    direction = response.invert(wanted, hold=list(wish.hold))
    try:
        weights = direction.weights(
            wish.strength, cast("Policy", wish.policy), cap=wish.cap, min_ess=wish.min_ess, per=wish.per,
            force=wish.force,
        )  # fmt: skip
    except PatterningError as error:
        raise PatterningError(str(error).replace("force=True", "--force")) from None
    weights.to_parquet(out)
    return {"direction": str(direction), "refused": direction.refused, "weights": dict(weights.facts), "file": str(out)}


def print_wish(results: Document, console: Console) -> None:
    """What was asked, what is to be expected, and where the weights are."""
    console.print(results["direction"], highlight=False)
    facts = results["weights"]
    if kept := what_rows_keep(facts):
        console.print(f"note: {kept}", style="yellow", highlight=False, markup=False)
    console.print(
        f"{facts['policy']}, strength {facts['strength']:.3g}: effective sample size "
        f"{100 * facts['effective_sample_size']:.0f} % of the data that may move",
        highlight=False,
    )
    console.print(f"weights: {results['file']}", highlight=False, markup=False, soft_wrap=True)


def _parsed(want: Sequence[str]) -> dict[str | tuple[str, str], float]:
    wanted: dict[str | tuple[str, str], float] = {}
    for part in want:
        name, equals, value = part.rpartition("=")
        if name in wanted:
            raise PatterningError(f"--want names the row {name!r} twice: one change of a row can be asked for")
        try:
            wanted[name] = float(value)
        except ValueError:
            equals = ""
        if not equals or not name:
            raise PatterningError(f'--want {part!r}: write the name of a row and a sign, as in --want "8s=-1"')
    return wanted


@dataclass(frozen=True)
class Claim:
    """The arguments of `patterning verify`: `train` and `measures` as FILE.py:NAME, arms as NAME=FILE.parquet."""

    train: str
    measures: str
    arms: Sequence[str]
    seeds: str = "0-7"
    controls: Sequence[str] = field(default_factory=lambda: ("permuted",))
    recheck: bool = True


def verify_to(claim: Claim, out: Path, where: Executor | int, progress: Progress | None) -> Document:
    """Retrain every arm over the seeds, into the folder `out`: `results.json` and `report.html`."""
    seeds, train = _seeds(claim.seeds), load_object(claim.train)
    if not callable(train):
        raise PatterningError(f"{claim.train} is a {type(train).__name__}: it must be a function train(weights, seed)")
    found = load_object(claim.measures)
    found = call(claim.measures, found) if callable(found) else found
    if not isinstance(found, Mapping):
        raise PatterningError(
            f"{claim.measures} gave a {type(found).__name__}: it must be a dict (or a function without arguments that "
            "returns one) of names and functions of what train returns"
        )
    measures = cast("Mapping[str, Measure | Callable[[Any], Any]]", found)
    out = as_given(out).absolute()  # train may change the working folder as well
    verify(
        cast("Callable[[Weights, int], Any]", train), _arms(claim.arms), measures,
        seeds, controls=claim.controls, out=out, executor=executor_of(where), progress=progress,
        recheck=claim.recheck,
    )  # fmt: skip
    return publish_claim(out)


def _arms(parts: Sequence[str]) -> dict[str, Weights]:
    arms = dict[str, Weights]()
    for part in parts:
        name, weights = _arm(part)
        if name in arms:
            raise PatterningError(f"--arm names {name!r} twice: give each set of weights a name, --arm NAME={part}")
        arms[name] = weights
    return arms


def _arm(part: str) -> tuple[str, Weights]:
    name, equals, path = part.partition("=")
    if not equals:
        name, path = Path(part).stem, part
    place = as_given(path)
    return name, Weights.from_folder(place) if place.is_dir() else Weights.from_parquet(place)


def _seeds(text: str) -> list[int]:
    """Seeds as written: "0-7", or "3,5,8"."""
    try:
        first, dash, last = text.partition("-")
        found = range(int(first), int(last) + 1) if dash else [int(part) for part in text.split(",")]
    except ValueError:
        raise PatterningError(f'--seeds {text!r}: write "0-7", or numbers separated by commas') from None
    if isinstance(found, range) and not 0 < found.stop - found.start <= MOST_SEEDS:
        raise PatterningError(
            f"--seeds {text} names {max(0, found.stop - found.start)} seeds, from the first to the last: every arm is "
            f"trained with each of them, so that 1 to {MOST_SEEDS} are taken"
        )
    return list(found)
