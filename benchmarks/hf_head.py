"""χ of one head of a three-layer GPT-2 for 512 rows of 64 tokens: what a first look and a pathwise χ cost, and say.

The model comes from a configuration and is trained for 300 steps on the bytes of the text that ships with the package;
nothing is fetched. CPU seconds of one thread, as other work may be on the machine. Prints a markdown table.

    OMP_NUM_THREADS=1 python benchmarks/hf_head.py
"""

import argparse
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch

torch.set_num_threads(1)

import patterning as pt  # noqa: E402
from patterning.models.components import find_component  # noqa: E402
from patterning.posterior.chains import ChainConfig  # noqa: E402
from patterning.response.estimate import estimate_cost  # noqa: E402
from patterning.tasks.text.embedded import sample_documents  # noqa: E402

ROWS, TOKENS, STEPS, HEAD = 512, 64, 300, "l1h1"
KERNEL = pt.SGLD(n_beta=30, localization=1000, step_size=3e-4)
CHAINS = ChainConfig(2, 4, 24, 4, 32, matched=True, antithetic=True)
"""A step goes εγ/2 = 0.15 of the way back to w*: after 24 steps 2 % of where a chain began is left."""


def trained() -> tuple[torch.nn.Module, torch.Tensor, float]:
    """The model, its rows of bytes, and its loss in nats."""
    import transformers

    transformers.logging.set_verbosity_error()
    text = " ".join(part.text[:6000] for kind in sample_documents() for part in kind.documents[:40]).encode()
    ids = torch.tensor(list(text[: ROWS * TOKENS])).reshape(ROWS, TOKENS)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=256, n_positions=TOKENS, n_embd=64, n_layer=3, n_head=4, bos_token_id=0, eos_token_id=0
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    loss = torch.zeros(())
    for _ in range(STEPS):
        rows = torch.randint(ROWS, (16,))
        optimizer.zero_grad()
        loss = model(input_ids=ids[rows], labels=ids[rows]).loss
        loss.backward()
        optimizer.step()
    return model.eval(), ids, float(loss.detach())


@dataclass
class Timed:
    """What a call returned, with its CPU and wall seconds."""

    value: object
    cpu: float
    wall: float


def timed(call: Callable[[], object]) -> Timed:
    """Call it."""
    wall, cpu = time.perf_counter(), time.process_time()
    value = call()
    return Timed(value, time.process_time() - cpu, time.perf_counter() - wall)


def main(budget: int) -> None:
    """Measure and print."""
    model, ids, loss = trained()
    print(f"loss after {STEPS} steps: {loss:.2f} nats", flush=True)
    task = timed(lambda: pt.language_task(model, {"input_ids": ids}))
    assert isinstance(task.value, pt.Task)
    print(f"task: {task.cpu:.1f} CPU s, {task.wall:.1f} s wall", flush=True)
    whole = task.value
    first = timed(lambda: pt.measure(whole, components=[HEAD], sampler=KERNEL, estimator="first-order", progress=False))
    print(f"first look: {first.cpu:.1f} CPU s, {first.wall:.1f} s wall", flush=True)
    anchor, head = whole.own_row(), find_component(whole.module, HEAD)
    (cost,) = estimate_cost(whole, anchor, [head], CHAINS, estimator="pathwise", kernel=KERNEL, clock=time.process_time)
    print(f"expected of a round: {cost.seconds:.0f} CPU s", flush=True)
    chi = timed(
        lambda: pt.measure(
            whole,
            components=[HEAD],
            sampler=KERNEL,
            estimator="pathwise",
            reliability=0.9,
            budget=budget,
            chains=CHAINS.chains,
            draws=CHAINS.draws,
            burn_in=CHAINS.burn_in,
        )
    )
    assert isinstance(chi.value, pt.Response)
    assert isinstance(first.value, pt.Response)
    said = re.search(r"after (\d+) round", str(chi.value.data["note"].values[0]))
    rounds = int(said[1]) if said else budget
    agree = torch.corrcoef(torch.stack([_ranks(chi.value.chi[0]), _ranks(first.value.chi[0])]))[0, 1]
    print(chi.value)
    print(f"\n| | CPU s | wall s | reliability |\n|---|---|---|---|\n| the task | {task.cpu:.1f} | {task.wall:.1f} | |")
    print(f"| first look | {first.cpu:.1f} | {first.wall:.1f} | {first.value.reliability[HEAD]:.2f} |")
    print(f"| pathwise, {rounds} round(s) | {chi.cpu:.0f} | {chi.wall:.0f} | {chi.value.reliability[HEAD]:.2f} |")
    print(
        f"\nexpected of {rounds} round(s): {rounds * cost.seconds:.0f} CPU s, "
        f"{rounds * cost.seconds / chi.cpu:.2f} of what they took; rank correlation of the two χ: {agree:.2f}"
    )


def _ranks(values: object) -> torch.Tensor:
    return torch.as_tensor(values).argsort().argsort().double()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=int, default=4, help="most rounds of chains")
    main(parser.parse_args().budget)
