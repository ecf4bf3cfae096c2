"""A folder with weights and their card, which others can train under without this package.

`rho.parquet` has a row for each row of the data: `id`, `rho` (a list where tokens have weights of their own),
`base_weight`, `free`, where known `sample_hash` (the first 16 hex digits of SHA-256 of the row's numbers), `chi` and
`chi_se`, and `swapped` for preference pairs with exchanged labels. `README.md` says in words what the weights ask for,
what they were seen to do, and how to use them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from patterning.core.arrays import Floats, as_floats
from patterning.core.batch import Batch, count_rows, leaves, take_rows
from patterning.core.errors import PatterningError
from patterning.core.store import cannot_write, write_whole
from patterning.intervention.change import what_rows_keep
from patterning.intervention.weights_file import write_weights

TABLE, CARD = "rho.parquet", "README.md"
TITLE = "# Weights on training data"


def save_card(
    weights: Any,
    folder: str | Path,
    *,
    target: str | None = None,
    evidence: Any = None,
    arm: str | None = None,
    task: Any = None,
    chi: Any = None,
    chi_se: Any = None,
    licence: str = "not stated",
) -> Path:
    """Write `rho.parquet` and `README.md` for `weights` into `folder`, and return it.

    `target`: the wish in words, with its sign (default: as the weights were made). `evidence`: what `verify` found;
    `arm`: which of its arms these weights were (default: its only one). `task`: its rows are hashed, so that others can
    tell whether they have the same ones. `chi`, `chi_se` (n,): the response and its standard error. An earlier card in
    the folder is replaced. Raises `PatterningError` for what does not fit the weights, and for a folder with a README
    that is no such card.
    """
    rows, folder = len(weights.rho), Path(folder)
    if (card := folder / CARD).exists() and TITLE.encode() not in card.read_bytes().splitlines():
        raise PatterningError(f"{folder} has a {CARD} that is no card of weights, and would be lost: give a new folder")
    more: dict[str, Any] = {}
    if task is not None:
        weights.check(task)
        more["sample_hash"] = np.array(row_hashes(task.data))
    for name, values in (("chi", chi), ("chi_se", chi_se)):
        if values is not None:
            more[name] = _column(name, values, rows)
    text = _card(weights, target, evidence, arm, sorted(more), licence)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(folder, error) from None
    write_weights(weights, folder / TABLE, more)
    write_whole(folder / CARD, text.encode())
    return folder


def push_card(folder: str | Path, repo_id: str, api: Any = None, *, private: bool = False) -> Any:
    """Upload a folder that `save_card` wrote as a data set of the Hugging Face hub.

    `api`: a `huggingface_hub.HfApi` (default: one with the token of this machine).
    """
    folder = Path(folder)
    if not ((folder / TABLE).is_file() and (folder / CARD).is_file()):
        raise PatterningError(f"{folder} holds no weights with a card: write it with weights.save_card first")
    if api is None:
        try:
            from huggingface_hub import HfApi  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise PatterningError(
                f"huggingface_hub cannot be imported ({error}): pip install 'patterning[hf]'"
            ) from None
        api = HfApi()
    api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
    return api.upload_folder(
        folder_path=str(folder), repo_id=repo_id, repo_type="dataset", allow_patterns=[TABLE, CARD]
    )


def row_hashes(data: Batch) -> list[str]:
    """The first 16 hex digits of SHA-256 of each row: for each of its parts, type, shape and bytes (little-endian)."""
    found = []
    for row in range(count_rows(data)):
        total = hashlib.sha256()
        for part in leaves(take_rows(data, torch.tensor([row]))):
            values = part[0].contiguous().cpu().numpy()
            total.update(f"{values.dtype.name}{list(values.shape)}".encode())
            total.update(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())
        found.append(total.hexdigest()[:16])
    return found


def _column(name: str, values: Any, rows: int) -> Floats:
    column = as_floats(name, values)
    if len(column) != rows or column.ndim > 2:
        raise PatterningError(f"{name} has shape {column.shape}, and the weights are of {rows} rows")
    return column


def _card(weights: Any, target: str | None, evidence: Any, arm: str | None, more: Sequence[str], licence: str) -> str:
    facts, pull = weights.facts, weights.summary()
    what = target or facts.get("what") or "not stated"
    lines = [TITLE, "", f"**Asked for:** {what}", ""]
    if wanted := facts.get("target"):
        lines += [*(_sign(name, value) for name, value in wanted.items()), ""]
    known = [(name, facts[name]) for name in ("policy", "strength", "per", "rho_by_group") if name in facts]
    lines += [
        f"* Rows: {len(weights.rho)}; one weight for each {'token' if weights.per_token else 'row'}; "
        f"ρ from {pull.smallest:.4g} to {pull.largest:.4g}, mean 1",
        f"* Effective sample size: {100 * pull.effective_sample_size:.1f} % of the data that may move; "
        f"{100 * pull.share_at_zero:.1f} % of it has weight 0",
        *([f"* {kept[0].upper()}{kept[1:]}"] if (kept := what_rows_keep(facts)) else []),
        *(f"* {name}: {value:.4g}" if isinstance(value, float) else f"* {name}: {value}" for name, value in known),
        f"* Fingerprint of the data: {weights.data or 'not known'}",
        f"* Licence: {licence}",
    ]
    if weights.swapped is not None:
        lines.append(f"* Preference pairs with exchanged labels: {int(weights.swapped.sum())} (column `swapped`)")
    lines += ["", "## What retraining showed", "", *_outcome(evidence, arm)]
    extra = f", {', '.join(f'`{name}`' for name in more)}" if more else ""
    lines += [
        "", "## How to train under them", "",
        f"`{TABLE}` has the columns `id`, `rho`, `base_weight`, `free`{extra}. Multiply the loss of row `id` by `rho`,",
        "and average over the minibatch as without weights; or draw rows in proportion to `base_weight * rho`, and",
        "leave the loss as it is. With pandas:", "",
        "    import pandas as pd",
        f'    rho = pd.read_parquet("{TABLE}").set_index("id")["rho"]',
        "    loss = (torch.tensor(rho.loc[ids].to_numpy()) * losses).mean()", "",
        "With the package `patterning`: `Weights.from_folder(folder)`.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def _sign(name: str, value: float) -> str:
    words = "held where it is" if value == 0 else "higher" if value > 0 else "lower"
    return f"* `{name}`: {words} ({value:+g})"


def _outcome(evidence: Any, arm: str | None) -> list[str]:
    """The rows of an arm and of its control, as a table with intervals, and the verdict in words."""
    if evidence is None:
        return ["Not verified: no retraining is recorded here."]
    if not hasattr(evidence, "verdicts"):
        raise PatterningError(f"evidence is {type(evidence).__name__}: it must be what verify returned")
    arms = [own.name for own in evidence.arms if own.kind == "arm"]
    name = arms[0] if arm is None and len(arms) == 1 else arm
    if name not in arms:
        raise PatterningError(f"arm is {arm!r}: the evidence has {', '.join(arms)}; say which one these weights were")
    lines = [
        f"{len(evidence.seeds)} paired seeds; differences with 95 % intervals.", "",
        "| measure | mean | against unweighted | against the same weights permuted | finding |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in evidence.rows():
        if row["arm"] == name:
            versus = [_interval(row[key]) for key in ("against_unweighted", "against_permuted")]
            lines.append(
                f"| {row['measure']} | {row['mean']:.4g} | {versus[0]} | {versus[1]} | {row['finding'] or ''} |"
            )
    own = [f"* {measure}: {verdict}" for (one, measure), verdict in evidence.verdicts.items() if one == name]
    others = [one.name for one in evidence.arms if one.kind in ("control", "extra")]
    return [*lines, "", *own, *([f"* Compared with: {', '.join(others)}"] if others else [])]


def _interval(effect: Mapping[str, float] | None) -> str:
    return "" if effect is None else f"{effect['difference']:+.3g} [{effect['low']:+.3g}, {effect['high']:+.3g}]"
