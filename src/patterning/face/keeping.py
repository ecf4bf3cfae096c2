"""What `measure` keeps in its folder: finished components, what they depend on, and χ for `patterning report`."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from patterning.core.code import code_version
from patterning.core.dependencies import parts_of
from patterning.core.errors import PatterningError
from patterning.core.executors import Executor
from patterning.core.functions import OfModule
from patterning.core.identity import digest_of
from patterning.core.progress import Progress
from patterning.core.store import RunFolder, remove_tree
from patterning.core.task import Task
from patterning.core.workers import Workers
from patterning.response.store import is_kept, save_tree

if TYPE_CHECKING:
    import xarray


def keep(tree: "xarray.DataTree", out: str | Path) -> None:
    """χ as `out`/chi.zarr, for `patterning report`, in place of that of an earlier call."""
    place = Path(out) / "chi.zarr"
    with RunFolder(Path(out)).lock():
        refuse_folder_of_command(out)
        remove_tree(place)
        save_tree(tree, place, kept=True)


def refuse_folder_of_command(out: str | Path) -> None:
    """Raise `PatterningError` where χ could not be stored in the folder `out`, as another command's results are."""
    out = Path(out)
    if (out / "config.yaml").exists():
        raise PatterningError(f"{out} holds a run of `patterning run`: name another folder, out=...")
    if (out / "chi.zarr").exists() and not is_kept(out / "chi.zarr"):
        raise PatterningError(
            f"{out / 'chi.zarr'} was stored by a command or by save, or is damaged: delete it, or name another "
            "folder, out=..."
        )


def parts_of_chi(
    task: Task, anchor: Tensor, functions: Mapping[str, OfModule], settings: Mapping[str, object]
) -> dict[str, str]:
    """What χ depends on, part by part: to say what changed where nothing of an earlier call serves."""
    found = parts_of("the model", task.module) | parts_of("the loss", task.loss_fn)
    for name, function in functions.items():
        found |= parts_of(f"the observable {name!r}", function.function)
    found |= {f"the setting {name}": digest_of(value)[0] for name, value in settings.items()}
    found |= {"the data": task.data_fingerprint, "the checkpoint": digest_of(anchor)[0]}
    return found | {"this package's code, or torch's version": code_version("response.one_component")}


@contextmanager
def pool_for(
    out: str | Path | None, where: Executor | int, progress: bool, parts: Callable[[], Mapping[str, str]]
) -> Iterator[Workers]:
    """What computes into the folder `out`, or into one that is gone afterwards."""
    from patterning.core.terminal import make_console, make_progress

    shown = make_progress(make_console(stderr=True)) if progress else Progress()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "run" if out is None else Path(out)
        with Workers(RunFolder(place), where, shown, parts if out else None) as pool:
            yield pool
