"""What `patterning doctor` says: what is installed, which devices there are, and whether a task can be measured."""

import platform
from importlib.metadata import PackageNotFoundError, version

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from patterning.console.request import load_task
from patterning.core.errors import PatterningError
from patterning.core.plain import Document
from patterning.core.workers import default_workers
from patterning.models.components import list_components

NEEDED = ("torch", "numpy", "scipy", "xarray", "zarr", "pydantic", "pyarrow", "safetensors", "cloudpickle")
OPTIONAL = {"transformers": "hf", "datasets": "hub", "transformer_lens": "lens", "devinterp": "peer", "ray": "cluster"}


def examine(task: str | None) -> Document:
    """Versions, devices, and, for a task (FILE.py:NAME), what trying it found."""
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "patterning": version("patterning"),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": default_workers(),
        "gpus": cuda,
        "packages": {name: _version(name) for name in NEEDED},
        "optional": {name: _version(name) for name in OPTIONAL},
        "task": None if task is None else _try(task),
    }


def _try(where: str) -> Document:
    """A task is tried when it is made: alone, in company, twice, with masks, and its gradient."""
    try:
        task = load_task(where)
    except PatterningError as error:
        return {"works": False, "why": str(error)}
    return {
        "works": True,
        "rows": len(task.base_weights),
        "samples_per_row": task.samples_per_row,
        "masked": task.trial.masked,
        "parameters": task.num_parameters,
        "replicas": {"rows": "together", "parameters": "together on the same rows", "none": "one after the other"}[
            task.trial.vectorise
        ],
        "components": list(list_components(task.module)),
        "notes": list(task.notes),
    }


def print_examination(results: Document, console: Console) -> None:
    """As a table and sentences."""
    gpus = ", ".join(results["gpus"]) or "no GPU"
    console.print(
        f"patterning {results['patterning']}, Python {results['python']} on {results['platform']}, "
        f"{results['cpus']} CPUs, {gpus}",
        highlight=False,
    )
    table = Table("package", "version")
    for name, found in (*results["packages"].items(), *results["optional"].items()):
        remedy = f"not installed: pip install 'patterning[{OPTIONAL[name]}]'" if name in OPTIONAL else "missing"
        table.add_row(name, found or escape(remedy))  # [hf] is the name of an extra, and no markup
    console.print(table)
    task = results["task"]
    if task is None:
        return
    if not task["works"]:
        console.print(f"the task does not work: {task['why']}", style="red", highlight=False, markup=False)
        return
    console.print(
        f"the task works: {task['rows']:,} rows of {task['samples_per_row']} samples, {task['parameters']:,} "
        f"parameters; chains run {task['replicas']}; a row's loss is the same alone and in a minibatch"
        + (", and masked samples are left out" if task["masked"] else ""),
        highlight=False,
        markup=False,
    )
    named = ", ".join(task["components"][:12]) or "none by name: use parameter patterns or masks"
    console.print(f"components: {named}{' …' if len(task['components']) > 12 else ''}", highlight=False, markup=False)
    for note in task["notes"]:
        console.print(f"note: {note}", style="yellow", highlight=False, markup=False)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
