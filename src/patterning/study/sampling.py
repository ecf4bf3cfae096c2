"""Sampling around solutions as jobs: γ and ε for a wanted rise, one chain a job, and chains joined and judged."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field

from patterning.core.errors import PatterningError
from patterning.core.jobs import Job
from patterning.core.settings import Frozen
from patterning.core.store import Arrays
from patterning.core.workers import Workers
from patterning.posterior.calibrate import calibrate
from patterning.posterior.chains import ChainConfig
from patterning.posterior.sgld import SGLD
from patterning.posterior.short_chain import ShortChain, step_warnings, try_chain
from patterning.response.moments import Moments
from patterning.response.sample import (
    Draws,
    Observable,
    Readout,
    SampledResponse,
    join_draws,
    llc_observable,
    sample_draws,
    summarise,
)
from patterning.study.subject import Parameters, Subject

LLC = "llc"
"""The observable nβ (L(w) - L(w*)), which every sampling has as its first row."""


class Sampling(Frozen):
    """The localized posterior around a solution.

    nβ is stated. γ and ε are stated as well (`localization`, `step_size`), or found for the wanted `rise` of the mean
    loss, as a share of `constant_loss` (`posterior.calibrate`).
    """

    n_beta: float = Field(gt=0)
    localization: float | None = Field(default=None, gt=0)
    step_size: float | None = Field(default=None, gt=0)
    rise: float = Field(default=0.003, gt=0, lt=1)
    chains: int = Field(default=4, ge=2)
    draws: int = Field(default=32, ge=8)
    burn_in: int = Field(default=100, ge=0)
    steps_between_draws: int = Field(default=8, ge=1)
    batch_size: int = Field(default=128, ge=1)
    pilot_steps: int = Field(default=120, ge=50)
    batches: int = Field(default=4, ge=2)
    seed: int = Field(default=0, ge=0)

    @property
    def chain(self) -> ChainConfig:
        """One chain's settings."""
        return ChainConfig(1, self.draws, self.burn_in, self.steps_between_draws, self.batch_size, self.seed)


@dataclass(frozen=True)
class ChainJob(Job):
    """Chain number `chain` of a subject's posterior around `anchor` (P,): `Draws` of one chain, as arrays.

    Past `loss_band` a chain has left the solution; it then leaves no sums, and is named by why.
    """

    subject: Subject
    anchor: Parameters
    kernel: SGLD
    config: ChainConfig
    chain: int
    batches: int
    loss_band: float

    def run(self, scratch: Path) -> Arrays:
        """Sample. A chain is short: a killed one is run again whole."""
        del scratch
        task = self.subject.flat
        anchor = torch.from_numpy(self.anchor).to(self.subject.device)
        observables: dict[str, Observable] = {
            LLC: llc_observable(task, anchor, self.kernel.n_beta),
            **self.subject.observables(),
        }
        draws = sample_draws(
            task, anchor, observables, self.kernel, self.config, batches=self.batches, loss_band=self.loss_band,
            first_chain=self.chain,
        )  # fmt: skip
        why = "; ".join(draws.excluded.values()).encode()
        return {
            **{f"moments:{name}": value for name, value in draws.moments.as_arrays().items()},
            "phi_trace": draws.phi_trace,
            "loss_trace": draws.loss_trace,
            "watched": draws.watched,
            "step_losses": draws.step_losses,
            "excluded": np.frombuffer(why, dtype=np.uint8),
        }

    def read(self, arrays: Arrays) -> Draws:
        """What `run` returned."""
        why = bytes(arrays["excluded"]).decode()
        return Draws(
            Moments(**{entry.name: arrays[f"moments:{entry.name}"] for entry in fields(Moments)}),
            arrays["phi_trace"], arrays["loss_trace"], arrays["watched"], arrays["step_losses"],
            {self.chain: why} if why else {},
        )  # fmt: skip


@dataclass(frozen=True)
class TryJob(Job):
    """A short chain around `anchor` (P,): are its steps short enough, and its minibatches large enough?"""

    subject: Subject
    anchor: Parameters
    kernel: SGLD
    config: ChainConfig

    def run(self, scratch: Path) -> Arrays:
        """`ShortChain` as an array, empty where the chain blows up: the long ones are then left out by name."""
        del scratch
        anchor = torch.from_numpy(self.anchor).to(self.subject.device)
        short = try_chain(self.subject.flat, anchor, self.kernel, self.config)
        own = None if short is None else short.measured()
        return {"short": np.array([] if own is None else [own.length, own.noise, own.step_size, own.error])}

    def read(self, arrays: Arrays) -> ShortChain | None:
        """What `run` returned."""
        own = arrays["short"].tolist()
        return ShortChain(own[0], own[1], own[2], error=own[3]) if own else None


@dataclass(frozen=True)
class CalibrateJob(Job):
    """γ and ε around `anchor` (P,) for the wanted rise."""

    subject: Subject
    anchor: Parameters
    n_beta: float
    rise: float
    steps: int
    batch_size: int
    constant_loss: float

    def run(self, scratch: Path) -> Arrays:
        """Settings, and what was tried."""
        del scratch
        found = calibrate(
            self.subject.flat, torch.from_numpy(self.anchor).to(self.subject.device), constant_loss=self.constant_loss,
            n_beta=self.n_beta, rise=self.rise, steps=self.steps, batch_size=self.batch_size,
        )  # fmt: skip
        return {
            "localization": np.array(found.kernel.localization),
            "step_size": np.array(found.kernel.step_size),
            "rise": np.array(found.rise),
        }


@dataclass(frozen=True)
class Sampled:
    """A solution's response, the sampler that gave it, and what to know of its steps and minibatches."""

    response: SampledResponse
    kernel: SGLD
    warnings: tuple[str, ...] = ()


def sample_around(
    subject: Subject,
    pool: Workers,
    sampling: Sampling,
    anchors: Mapping[str, Parameters],
    loss_band: float,
) -> dict[str, Sampled]:
    """Chains around each anchor (P,), by name, joined; the rows of χ are `LLC` and the subject's observables.

    `loss_band`: the loss of a model that knows nothing; a chain past it has left the solution. Raises
    `PatterningError` where fewer than 2 chains are left around an anchor.
    """
    subject = subject.for_sampling()
    kernels = _kernels(subject, pool, sampling, anchors, loss_band)
    jobs = {
        name: [
            ChainJob(
                subject, anchor, kernels[name], sampling.chain, chain, sampling.batches, loss_band,
                label=f"chain-{name}-{chain}",
            )
            for chain in range(sampling.chains)
        ]
        for name, anchor in anchors.items()
    }  # fmt: skip
    tries = {
        name: TryJob(subject, anchor, kernels[name], sampling.chain, label=f"short-{name}")
        for name, anchor in anchors.items()
    }  # fmt: skip
    short = dict(zip(tries, pool.compute(list(tries.values()), "short chains"), strict=True))
    done = iter(pool.compute([job for own in jobs.values() for job in own], "posterior chains"))
    weights = Readout.of(subject.flat).weights
    result = {}
    for name, own in jobs.items():
        draws = join_draws([job.read(next(done)) for job in own])
        try:
            response = summarise(draws, (LLC, *subject.observables()), weights, sampling.n_beta)
        except PatterningError as error:
            raise PatterningError(f"around {name}: {error}: raise sampling.localization or sampling.chains") from None
        more = step_warnings(tries[name].read(short[name]), response.rise, sampling.chain)
        result[name] = Sampled(response, kernels[name], tuple(f"around {name}: {line}" for line in more))
    return result


def _kernels(
    subject: Subject, pool: Workers, sampling: Sampling, anchors: Mapping[str, Parameters], constant_loss: float
) -> dict[str, SGLD]:
    """The sampler of each anchor: as stated, or found for the wanted rise."""
    if sampling.localization is not None and sampling.step_size is not None:
        kernel = SGLD(n_beta=sampling.n_beta, localization=sampling.localization, step_size=sampling.step_size)
        return dict.fromkeys(anchors, kernel)
    if sampling.localization is not None or sampling.step_size is not None:
        raise PatterningError("sampling: state localization (γ) and step_size (ε) both, or neither")
    jobs = [
        CalibrateJob(
            subject, anchor, sampling.n_beta, sampling.rise, sampling.pilot_steps, sampling.batch_size, constant_loss,
            label=f"calibrate-{name}",
        )
        for name, anchor in anchors.items()
    ]  # fmt: skip
    found = pool.compute(jobs, "sampler settings")
    return {
        name: SGLD(n_beta=sampling.n_beta, localization=float(part["localization"]), step_size=float(part["step_size"]))
        for name, part in zip(anchors, found, strict=True)
    }


def reliability_of(sampled: Sampled, free: NDArray[np.bool_]) -> dict[str, float]:
    """Split-half reliability of each row of χ over the free samples."""
    return sampled.response.susceptibility.reliability(free)
