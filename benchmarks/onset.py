"""When does the induction circuit appear? Trains tiny language models on real text and prints one line a run.

python benchmarks/onset.py --seeds 0 1 2 --set steps=1500 learning_rate=8e-3 …

A run is done when some head has prefix-matching >= 0.3 and the repeated-random gap is >= 1 nat. One thread.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from patterning.models.language import LanguageConfig, LanguageModel
from patterning.tasks.induction import measure_structure, onset, repeated_random
from patterning.tasks.text import mixed_rows, sample_corpus
from patterning.tasks.text.source import most_to_copy
from patterning.training.language import LanguageTraining, multiplies_bfloat16, train_language

DEFAULTS = {  # the nano setting
    "vocabulary": 512, "context": 128, "layers": 2, "heads": 2, "width": 64, "positions": "shortformer",
    "init_std": 0.08, "position_init": "sinusoidal", "position_scale": 3.0,
    "steps": 1250, "batch_size": 16, "learning_rate": 8e-3, "warmup": 100, "weight_decay": 0.2, "beta2": 0.95,
    "clip": 1.0, "bfloat16": multiplies_bfloat16(), "code": 0.8, "docs": 0.13, "prose": 0.07, "rows": 20000,
    "top": 0.25,
}  # fmt: skip


def sample_rows(settings: dict, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Training and test rows (n, context) of the text in the package, mixed by share; `rows` 0: an epoch is the run.

    `top`: the share of rows kept of each domain, those of the highest copy gain.
    """
    corpus = sample_corpus(settings["vocabulary"], folder / f"sample-{settings['vocabulary']}")
    shares = {name: settings[name] for name in corpus.domains if settings[name]}
    count = settings["rows"] or settings["steps"] * settings["batch_size"]
    train, test = (
        mixed_rows(split, settings["context"], shares, number, 0, corpus.domains, repeat=True)
        for split, number in ((corpus.train, count), (corpus.test, 64))
    )
    train = most_to_copy(train, settings["vocabulary"], round(count * settings["top"]))
    return torch.from_numpy(train.tokens), torch.from_numpy(test.tokens)


def measure_onset(settings: dict, seed: int, folder: Path, every: int, verbose: bool = False) -> dict:
    """One run: where both signs of induction cross their thresholds, and where they end."""
    train, test = sample_rows(settings, folder)
    config = LanguageConfig(
        settings["vocabulary"], settings["context"], settings["layers"], settings["heads"], settings["width"],
        mlp_ratio=0, positions=settings["positions"], init_std=settings["init_std"],
        position_init=settings["position_init"], position_scale=settings["position_scale"],
    )  # fmt: skip
    training = LanguageTraining(
        steps=settings["steps"], batch_size=settings["batch_size"], learning_rate=settings["learning_rate"],
        warmup=settings["warmup"], betas=(0.9, settings["beta2"]), weight_decay=settings["weight_decay"],
        clip=settings["clip"], bfloat16=settings["bfloat16"],
    )  # fmt: skip
    repeated = repeated_random(config.vocabulary, config.context, 64, 0)
    spent, seconds = [0.0], []
    start = time.process_time()

    def measure(model: LanguageModel) -> dict[str, np.ndarray]:
        before = time.process_time()
        seconds.append(before - start - spent[0])
        found = measure_structure(model, test[:64], {}, repeated)
        if verbose:
            line = [found[name].max() for name in ("previous_token", "prefix_matching", "repeated_gap", "loss")]
            print(
                f"  {len(seconds) * every - every:6d} {seconds[-1]:6.1f} s",
                *(f"{value:.2f}" for value in line),
                flush=True,
            )
        spent[0] += time.process_time() - before
        return found

    checkpoints = range(0, training.steps + 1, every)
    run = train_language(config, train, None, training, seed=seed, checkpoints=checkpoints, measure=measure)
    prefix, gap = run.measures["prefix_matching"].max((1, 2)), run.measures["repeated_gap"]
    step = onset(run.steps, np.minimum(prefix / 0.3, gap / 1.0), 1.0)
    at = list(run.steps).index(step) if step in run.steps else -1
    per_step = settings["batch_size"] * settings["context"]
    return {
        "settings": settings, "seed": seed, "onset_step": step, "onset_tokens": step * per_step,
        "onset_seconds": seconds[at] if at > 0 else float("inf"), "seconds": seconds[-1],
        "tokens_per_second": training.steps * per_step / seconds[-1], "rows": len(train),
        "prefix_matching": float(prefix[-1]), "gap": float(gap[-1]), "loss": float(run.measures["loss"][-1]),
        "previous_token": float(run.measures["previous_token"][-1].max()),
        "steps": run.steps.tolist(), "gaps": gap.round(3).tolist(), "prefixes": prefix.round(3).tolist(),
    }  # fmt: skip


def main() -> None:
    """Read the settings, run the seeds, print and log."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--every", type=int, default=100, help="steps between measurements")
    parser.add_argument("--folder", type=Path, default=Path("runs/onset"), help="for tokenised text and the log")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--verbose", action="store_true", help="print every measurement")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    settings = dict(DEFAULTS)
    for pair in arguments.set:
        name, _, value = pair.partition("=")
        settings[name] = value if isinstance(DEFAULTS[name], str) else type(DEFAULTS[name])(json.loads(value))
    changed = {name: value for name, value in settings.items() if value != DEFAULTS[name]}
    for seed in arguments.seeds:
        found = measure_onset(settings, seed, arguments.folder, arguments.every, arguments.verbose)
        with (arguments.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(found) + "\n")
        print(
            f"seed {seed} onset {found['onset_step']:6.0f} steps {found['onset_tokens'] / 1e6:6.2f} M tokens "
            f"{found['onset_seconds']:6.1f} s | {found['seconds']:5.0f} s, {found['tokens_per_second']:6.0f} tok/s | "
            f"prefix {found['prefix_matching']:.2f} gap {found['gap']:.2f} prev {found['previous_token']:.2f} "
            f"loss {found['loss']:.3f} | {changed}",
            flush=True,
        )


if __name__ == "__main__":
    main()
