"""Short calls of two versions of this library, in turns on one core, so that drifts of the machine's speed fall out.

    git worktree add ../old d125002
    python benchmarks/in_turns.py ../old .        # six minutes of one idle core

Each version has a process of its own, with `src` and `benchmarks` of its folder. One call runs at a time: that of the
old version, then that of the new one, and in the next turn the other way around. Prints medians of CPU seconds, and how
many times as fast as the old version the new one is: a median over the turns, ± from a bootstrap of them.
"""

import argparse
import json
import os
import subprocess
import sys

import numpy as np

CALLS = {
    "width 16": (("full", "l0h0", "l1h0", "l1 mlp"), 24),
    "width 64": (("l0h0", "l0 mlp", "l1h0", "l1 mlp", "full"), 6),
}
"""Components of each model, and turns."""


def answer() -> None:
    """The process of one version: a line of JSON [model, component] in, CPU seconds out."""
    import response
    import torch

    from patterning.core.task import Task
    from patterning.models.language import LanguageConfig, LanguageModel, next_token_losses
    from patterning.posterior.chains import ChainConfig

    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = response.sequences(np.random.default_rng(1), 256, 64, 16)
    small = Task(LanguageModel(LanguageConfig(64, 16, 2, 4, 16)), next_token_losses, rows)
    models = {
        "width 16": (small, ChainConfig(8, 40, 4, 1, 8, matched=True), 16),
        "width 64": (response.wide(1400)[0], ChainConfig(4, 10, 2, 1, 32, matched=True), 192),
    }
    for line in sys.stdin:
        model, name = json.loads(line)
        task, chains, probes = models[model]
        seconds = response.cpu_seconds(lambda t=task, n=name, c=chains, p=probes: response.ours(t, n, c, p))
        print(json.dumps(seconds), flush=True)


class Version:
    """The process of the version in `folder`."""

    def __init__(self, folder: str) -> None:
        paths = [os.path.abspath(os.path.join(folder, part)) for part in ("benchmarks", "src")]
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--answer"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "PYTHONSAFEPATH": "1"},
        )  # fmt: skip

    def seconds(self, model: str, name: str) -> float:
        """CPU seconds of one call."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([model, name]) + "\n")
        self._process.stdin.flush()
        return float(json.loads(self._process.stdout.readline()))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help="the old version and the new one")
    parser.add_argument("--turns", type=int, help="of every call; the standard numbers where it is left out")
    parser.add_argument("--answer", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.answer:
        return answer()
    if len(given.folders) != 2:
        parser.error("name two folders: that of the old version and that of the new one")
    if given.turns is not None and given.turns < 2:
        parser.error("--turns must be at least 2, for an error")
    versions, rng = [Version(folder) for folder in given.folders], np.random.default_rng(0)
    print("| call | before, CPU s | after, CPU s | times as fast as before |\n|---|---|---|---|")
    for model, (names, turns) in CALLS.items():
        for version in versions:
            version.seconds(model, names[0])  # imports
        for name in names:
            found = np.zeros((2, given.turns or turns))
            for turn in range(found.shape[1]):
                for which in (0, 1) if turn % 2 == 0 else (1, 0):
                    found[which, turn] = versions[which].seconds(model, name)
            ratio = np.log(found[0] / found[1])
            error = np.std([np.median(rng.choice(ratio, len(ratio))) for _ in range(1000)])
            old, new = np.median(found, axis=1)
            print(
                f"| {model}: `{name}` | {old:.2f} | {new:.2f} | {np.exp(np.median(ratio)):.2f} ± {error:.2f} |",
                flush=True,
            )
    return None


if __name__ == "__main__":
    main()
