"""Chains as an artifact: their positions at every draw on the disk, written and read one draw at a time.

What positions depend on is the checkpoint, the component, the sampler and the settings of the chains, and neither the
probed rows nor the observables: χ of other rows, or of another observable, is read from the same draws.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from patterning.core.store import Arrays, fingerprint
from patterning.core.task import Task
from patterning.models.components import Component
from patterning.models.restricted import Restricted
from patterning.posterior.band import Band, find_band
from patterning.posterior.chains import ChainConfig, Kernel, run_chains
from patterning.response.blocks import Blocks, written


@dataclass(frozen=True)
class Chains:
    """All that the positions of one component's chains depend on. `folder`: where they lie, which is in no key.

    `first_chain` numbers them for the random streams. `loss_band` None: that of a model that knows nothing, told from
    128 rows.
    """

    task: Task
    anchor: Tensor
    component: Component
    kernel: Kernel
    config: ChainConfig
    loss_band: float | None
    first_chain: int
    task_key: str
    folder: Path

    @property
    def fingerprint(self) -> str:
        """Covers weights, data, mask, loss and settings."""
        masks = {name: "all" if mask is None else mask.cpu().numpy() for name, mask in self.component.masks.items()}
        settings = [type(self.kernel).__name__, asdict(self.kernel), asdict(self.config), str(self.loss_band)]
        return fingerprint(self.task_key, self.anchor.cpu().numpy(), masks, settings, self.first_chain)

    @property
    def path(self) -> Path:
        """Of the positions: float32, (draws, chains, P_C), without a header."""
        return self.folder / f"{self.fingerprint}.float32"

    def band(self) -> Band:
        """The loss past which a chain has left w*."""
        if self.loss_band is not None:
            return Band(self.loss_band)
        return find_band(self.task, self.anchor, self.config.batch_size, self.kernel.n_beta)

    def restricted(self) -> Restricted:
        """The task with the component free."""
        return Restricted(self.task, self.anchor, self.component)


@dataclass(frozen=True)
class Sampled:
    """What is known of chains beside their positions: `sums` (draws,) checksums, minibatch `losses` (steps, chains).

    `diverged`: place of a chain → why; `band`: the loss past which a chain is left out.
    """

    sums: np.ndarray
    losses: np.ndarray
    diverged: dict[int, str]
    band: Band


def chains_unit(*, chains: Chains, scratch: Path) -> Arrays:
    """Sample, and write the positions to `chains.path`: a unit of work that returns what `sampled` unpacks."""
    del scratch  # a killed component is sampled again whole
    free = chains.restricted()
    band = chains.band()
    with written(chains.path) as file:
        trace = run_chains(
            free, free.anchor, chains.kernel, chains.config, lambda _, flat: file.add(flat.float()),
            loss_band=band.loss, first_chain=chains.first_chain,
        )  # fmt: skip
    chains.task.check_still_the_same()
    return {"sums": file.sums, "losses": trace.losses.cpu().numpy(), "facts": facts_of(trace.diverged, band)}


def facts_of(diverged: dict[int, str], band: Band) -> np.ndarray:
    """Which chains diverged and why, and the band, as bytes."""
    facts = {"diverged": {str(c): why for c, why in diverged.items()}, "band": band.loss, "note": band.note}
    return np.frombuffer(json.dumps(facts).encode(), np.uint8)


def sampled(arrays: Arrays) -> Sampled:
    """What `chains_unit` returned."""
    facts = json.loads(arrays["facts"].tobytes())
    diverged = {int(c): why for c, why in facts["diverged"].items()}
    return Sampled(arrays["sums"], arrays["losses"], diverged, Band(facts["band"], facts["note"]))


def read_draws(chains: Chains, like: Tensor, sums: np.ndarray) -> Iterator[tuple[int, Tensor]]:
    """Each draw with its positions (chains, P_C), on the device of `like` (P_C,).

    Raises `PatterningError` where the file is missing or a byte of it has changed.
    """
    blocks = Blocks(chains.path, (chains.config.chains, len(like)), sums, like.float())
    for draw in range(chains.config.draws):
        yield draw, blocks[draw].to(like)
