"""Hundreds of chains of a small problem at the price of a few, as one `SampledResponse` of φ = nβ (L - L(w*))."""

import numpy as np
import torch
from torch import Tensor

from patterning.core.flat import FlatTask
from patterning.posterior.chains import ChainConfig, Kernel, run_chains
from patterning.response.moments import Moments
from patterning.response.sample import Draws, SampledResponse, summarise
from zoo.known import Copies


def many_chains(
    task: FlatTask, anchor: Tensor, kernel: Kernel, config: ChainConfig, copies: int, batches: int = 4
) -> SampledResponse:
    """From `config.chains` · `copies` chains around `anchor` (P,); minibatches must be without noise (zoo.known)."""
    q = task.base_weights.numpy()
    if config.batch_size % len(task.draws):
        raise ValueError("minibatches with noise would tie the copies together")
    rows, every = config.chains * copies, torch.arange(len(q))
    at_anchor = task.losses(anchor[None], every[None])[0].double().numpy()
    moments = Moments.empty(rows, batches, at_anchor, np.zeros(1))
    losses = np.empty((config.draws, rows, len(q)))

    def on_draw(draw: int, flat: Tensor) -> None:
        losses[draw] = task.losses(flat.reshape(rows, -1), every.expand(rows, -1)).double().numpy()
        phi = kernel.n_beta * (losses[draw] - at_anchor) @ q[:, None]
        moments.add(draw * batches // config.draws, phi, losses[draw])

    ran = run_chains(Copies(task, copies), anchor.repeat(copies), kernel, config, on_draw)
    if ran.diverged:
        raise ValueError(str(ran.diverged))
    watched = np.arange(len(q))
    phi = kernel.n_beta * (losses - at_anchor) @ q
    draws = Draws(moments, phi[:, :, None], losses[:, :, watched], watched, ran.losses.numpy(), {})
    return summarise(draws, ("llc",), q, kernel.n_beta)
