"""Pathwise χ in three jobs: chains leave every position on the disk, the way back leaves λ, shards of probes are read.

Another observable costs a way back and no sampling; other probes cost neither, where φ is not their own loss. A worker
holds the positions of a few steps and one shard: its memory depends neither on the probes nor on the draws.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from patterning.core.arrays import Floats
from patterning.core.identity import digest
from patterning.core.progress import portion, report_progress
from patterning.core.store import Arrays, fingerprint
from patterning.models.probe import Probe
from patterning.models.restricted import ENOUGH_CELLS, Restricted
from patterning.posterior.chains import StepNumbers
from patterning.posterior.sgld import SGLD
from patterning.response.adjoint import ModelObservable, ModelReading, Reading, forward
from patterning.response.blocks import Blocks, written
from patterning.response.draws import Chains, facts_of
from patterning.response.observables import at_two_places
from patterning.response.shards import Shard
from patterning.response.way_back import DATA, WayBack


def path_of(chains: Chains) -> Path:
    """The file of every position: blocks (replicas, P_C), before each step and after the last."""
    return chains.path.with_suffix(".steps")


def path_unit(*, chains: Chains, scratch: Path) -> Arrays:
    """Sample, and write every position to `path_of(chains)`: `sums`, their checksums, and `facts` (`draws.sampled`)."""
    del scratch  # a killed component is sampled again whole
    free, band = chains.restricted(), chains.band()
    with written(path_of(chains)) as file:
        diverged = forward(
            free, _kernel(chains), chains.config, _numbers(chains, free), band.loss, chains.first_chain,
            lambda _, position: file.add(position),
        )  # fmt: skip
    chains.task.check_still_the_same()
    places = {chain - chains.first_chain: why for chain, why in diverged.items()}
    return {"sums": file.sums, "losses": np.zeros((0, chains.config.chains)), "facts": facts_of(places, band)}


def _kernel(chains: Chains) -> SGLD:
    assert isinstance(chains.kernel, SGLD)
    return chains.kernel


def _numbers(chains: Chains, free: Restricted) -> StepNumbers:
    return StepNumbers(free.base_weights, chains.config, chains.first_chain, free.anchor)


@dataclass(frozen=True)
class LossOf:
    """φ: the mean loss of the samples in `shards`, under their `weights` q, which sum to 1 over all of them."""

    shards: tuple[Shard, ...]
    weights: tuple[Floats, ...]


@dataclass(frozen=True)
class Adjoints:
    """The way back for one φ, and all that it depends on: `phi` None is L of all the data. `sums`: of the positions."""

    chains: Chains
    sums: np.ndarray
    phi: LossOf | ModelObservable | None

    @property
    def fingerprint(self) -> str:
        """Covers a function by what it holds and by its values, and rows by their numbers and weights."""
        if isinstance(self.phi, LossOf):
            parts = zip(self.phi.shards, self.phi.weights, strict=True)
            what = [part for shard, q in parts for part in (shard.rows.numpy(), q)]
        elif self.phi is None:
            what = ["all the data"]
        else:
            values = at_two_places(self.phi, self.chains.anchor)
            what = [digest({"phi": self.phi}), np.array(values, dtype=np.float32)]
        return fingerprint(self.chains, self.sums, "adjoints", *what)

    @property
    def path(self) -> Path:
        """Of the file of derivatives: blocks (2, replicas, P_C), where each is taken and along what."""
        return self.chains.folder / f"{self.fingerprint}.adjoints"

    @property
    def shape(self) -> tuple[int, int]:
        """(replicas, P_C)."""
        return self.chains.config.replicas, self.chains.component.count(self.chains.task.module)


def adjoint_unit(*, work: Adjoints, scratch: Path) -> Arrays:
    """Go back, and write the derivatives that are to be taken.

    Returns the file's `sums`; `at_draw` (derivatives,); `expansion` (r,); φ - φ(w*) at the draws, `phi` (draws, r),
    which is empty for L of all the data: there the shards show their loss. Of a mean loss also `losses` (r, n), the
    mean of each of its samples over the draws.
    """
    del scratch
    free, config = work.chains.restricted(), work.chains.config
    path = Blocks(path_of(work.chains), work.shape, work.sums, free.anchor)
    with portion(0.0, 0.5 if isinstance(work.phi, LossOf) else 0.0):
        reading = _reading(work, free, path)
    way = WayBack(
        free, _kernel(work.chains), config, _numbers(work.chains, free), path, reading, work.chains.first_chain
    )  # fmt: skip
    at_draw: list[bool] = []
    with portion(0.5 if isinstance(work.phi, LossOf) else 0.0, 1.0), written(work.path) as file:
        for derivative in way:
            file.add(torch.stack([derivative.at, derivative.along]))
            at_draw.append(derivative.at_draw)
            report_progress(1 - derivative.left)
    phi = np.zeros((0, config.replicas))
    if not isinstance(reading, str):
        phi = (torch.stack(way.phi[::-1]).double() - reading.at_anchor).cpu().numpy()
    expansion = way.expansion.double().cpu().numpy()
    found = {"sums": file.sums, "at_draw": np.array(at_draw), "expansion": expansion, "phi": phi}
    return found | ({"losses": reading.losses.cpu().numpy()} if isinstance(reading, _StoredSlopes) else {})


def _reading(work: Adjoints, free: Restricted, path: Blocks) -> Reading | str:
    if work.phi is None:
        return DATA
    if isinstance(work.phi, LossOf):
        return _StoredSlopes(work.phi, work.chains, free, path)
    return ModelReading("φ", free, work.phi)


class _StoredSlopes:
    """∇φ of a mean loss at the draws, summed over shards in a file; given out from the last draw to the first.

    `losses` (r, n): the mean loss of each of its samples over the draws.
    """

    def __init__(self, phi: LossOf, chains: Chains, free: Restricted, path: Blocks) -> None:
        config = chains.config
        draws = [config.burn_in + (i + 1) * config.steps_between_draws for i in range(config.draws)]
        kind = torch.empty(0, dtype=free.anchor.dtype).numpy().dtype
        shape = (config.draws, config.replicas, free.num_parameters)
        with tempfile.TemporaryFile(dir=chains.folder) as file:
            self._slopes = np.memmap(file, kind, "w+", shape=shape)
        self._values = np.zeros((config.draws, config.replicas))
        losses: list[Tensor] = []
        self._like, self._next, self.at_anchor = free.anchor, config.draws, 0.0
        for number, (shard, weights) in enumerate(zip(phi.shards, phi.weights, strict=True)):
            probe = Probe(free, shard.rows, config.replicas, shard.of)
            q = torch.from_numpy(weights).to(free.anchor.device)
            self.at_anchor += float(probe.at_anchor.double() @ q)
            total = torch.zeros(config.replicas, len(q), dtype=torch.float64, device=q.device)
            for i, step in enumerate(draws):
                values, mean, slope = probe.slope(path[step], q)
                total += values
                self._slopes[i] += slope.cpu().numpy()
                self._values[i] += mean.cpu().numpy()
                report_progress((number + (i + 1) / len(draws)) / len(phi.shards))
            losses.append(total / config.draws)
        self.losses = torch.cat(losses, dim=1)

    def __call__(self, flat: Tensor) -> tuple[None, Tensor, Tensor]:
        """φ and its gradient at the draw before the one that was asked for last."""
        del flat
        self._next -= 1
        slope = torch.from_numpy(self._slopes[self._next].copy()).to(self._like)
        return None, torch.from_numpy(self._values[self._next]).to(self._like.device), slope


@dataclass(frozen=True)
class Tangents:
    """A shard of the probes, read along the way back `work`; `weights` q of its samples among all the probed ones."""

    work: Adjoints
    sums: np.ndarray
    at_draw: np.ndarray
    shard: Shard
    weights: Floats

    @property
    def fingerprint(self) -> str:
        """`work` and the shard, with its share of the probes."""
        together = self.shard.of * self.work.chains.task.samples_per_row < ENOUGH_CELLS
        return fingerprint(self.work, self.sums, self.shard.rows.numpy(), together, self.weights)


def tangents_unit(*, reading: Tangents, scratch: Path) -> Arrays:
    """Sums over the derivatives: of the shard's losses, `tangents` (r, n), and of their mean under q, `share` (r,).

    And over the draws: `losses` (r, n), the mean; `phi` (draws, r), Σ q ℓ; `at_anchor` (n,), the losses at w*.
    """
    del scratch
    chains = reading.work.chains
    free, replicas = chains.restricted(), chains.config.replicas
    probe = Probe(free, reading.shard.rows, replicas, reading.shard.of)
    q = torch.from_numpy(reading.weights).to(free.anchor.device)
    tangents = torch.zeros(replicas, len(q), dtype=torch.float64, device=free.anchor.device)
    share, sums, phi = torch.zeros_like(tangents[:, 0]), torch.zeros_like(tangents), list[Tensor]()
    blocks = Blocks(reading.work.path, (2, *reading.work.shape), reading.sums, free.anchor)
    for i in range(len(blocks)):
        at, along = blocks[i]
        losses, tangent = (part.detach().double() for part in probe.along(at, along))
        tangents += tangent
        share += (tangent * q).sum(1)
        if reading.at_draw[i]:
            sums += losses
            phi.append((losses * q).sum(1))
        report_progress((i + 1) / len(blocks))
    return {
        "tangents": tangents.cpu().numpy(),
        "share": share.cpu().numpy(),
        "losses": (sums / chains.config.draws).cpu().numpy(),
        "phi": torch.stack(phi[::-1]).cpu().numpy(),
        "at_anchor": probe.at_anchor.double().cpu().numpy(),
    }
