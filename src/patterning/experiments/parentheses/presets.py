"""The sizes the experiment comes in."""

from typing import Any, get_args

from patterning.core.errors import PatterningError
from patterning.experiments.parentheses.config import DirectionName, ParenthesesConfig, load_config

_QUICK: dict[str, Any] = {
    "task": {"max_length": 20, "draws": 20_000, "layers": 2, "heads": 4},
    "train": {"steps": 400, "batch_size": 64, "learning_rate": 1e-3, "weight_decay": 1e-3},
    "seeds": 5,
    "pilot_seeds": 8,
    "sampling": {
        "n_beta": 300.0,
        "rise": 0.003,
        "chains": 4,
        "draws": 24,
        "burn_in": 100,
        "steps_between_draws": 8,
        "batch_size": 128,
    },
    "early": {"steps": (100, 300)},
    "retraining": {"seeds_per_split": 1},
    "sweep": {"policies": ("rank-tilt",), "alphas": (1.0,)},
    "adaptive": None,
    "solution_accuracy": 0.99,
    "directions": ("llc-posterior", "gap", "ood", "retraining"),
    "permuted": ("retraining",),
}

_STANDARD: dict[str, Any] = _QUICK | {
    "train": _QUICK["train"] | {"steps": 1500},
    "seeds": 16,
    "pilot_seeds": 24,
    "sampling": _QUICK["sampling"] | {"draws": 48, "steps_between_draws": 10},
    "retraining": {"seeds_per_split": 4},
    "sweep": {"policies": ("clip", "rank", "rank-tilt"), "alphas": (1.0, 2.0), "seeds": 2},
    "solution_accuracy": 0.999,
    "directions": ("llc-posterior", "gap", "ood", "retraining"),
    "permuted": ("ood", "retraining"),
}

# Three layers take 1.6 times as long a step: fewer pilots, steps and candidates make this too an hour on two cores.
_STANDARD_3: dict[str, Any] = _STANDARD | {
    "task": _STANDARD["task"] | {"layers": 3},
    "train": _STANDARD["train"] | {"steps": 1000},
    "pilot_seeds": 12,
    "sampling": _STANDARD["sampling"] | {"draws": 40, "steps_between_draws": 8},
    "early": None,
    "retraining": {"seeds_per_split": 2},
    "sweep": {"policies": ("rank-tilt",), "alphas": (1.0, 2.0), "seeds": 2},
    "directions": ("llc-posterior", "ood", "retraining"),
    "permuted": ("retraining",),
}

# Every reading there is, and the adaptive arm: about four times as many runs.
_WIDE: dict[str, Any] = _STANDARD | {
    "adaptive": {"marks": (150, 300, 600, 900)},
    "directions": get_args(DirectionName),
    "permuted": ("ood", "runs-groups", "early-covariance", "retraining"),
}

# Full size of Li et al.: 200,000 strings up to length 40, batch 8 at 1e-4, five epochs.
_PAPER: dict[str, Any] = _WIDE | {
    "task": {"max_length": 40, "draws": 200_000, "layers": 2, "heads": 4},
    "train": {"steps": 125_000, "batch_size": 8, "learning_rate": 1e-4, "weight_decay": 1e-3},
    "early": {"steps": (8_000, 25_000)},
    "adaptive": {"marks": (12_500, 25_000, 50_000, 75_000)},
}

PRESETS: dict[str, dict[str, Any]] = {
    "quick": _QUICK,
    "standard": _STANDARD,
    "standard-3-layers": _STANDARD_3,
    "wide": _WIDE,
    "paper": _PAPER,
    "paper-3-layers": _PAPER | {"task": _PAPER["task"] | {"layers": 3}},
}
DEFAULT = "quick"


def preset_config(name: str) -> ParenthesesConfig:
    """The configuration of a preset; raises `PatterningError` for a name that is none."""
    if name not in PRESETS:
        raise PatterningError(f"unknown preset {name!r}: choose from {', '.join(PRESETS)}")
    return load_config({"preset": name, **PRESETS[name]}, f"preset {name}")
