"""How the strength is chosen: by how far the two targets part, not by how a few unweighted runs happened to end."""

from itertools import product

from patterning.experiments.parentheses_old.steering import Strength, _merit


def rows(results: dict[tuple[str, float], tuple[float, float, float]]) -> list[dict]:
    """(policy, α) → change asked for Nested, for Equal-Count, lowest ID accuracy."""
    return [
        {"direction": "ood", "toward": toward, "policy": policy, "alpha": alpha, "id_accuracy": accuracy,
         "difference": nested if toward == "nested" else equal}
        for ((policy, alpha), (nested, equal, accuracy)), toward in product(results.items(), ("nested", "equal_count"))
    ]  # fmt: skip


def best(results: dict[tuple[str, float], tuple[float, float, float]]) -> tuple[str, float]:
    merits = {key: _merit(rows(results), "ood", Strength(*key), 0.97) for key in results}
    return max(merits, key=lambda key: merits[key])


def test_targets_that_part_win_over_changes_that_go_one_way() -> None:
    """Both fell together by 0.4: the unweighted seeds were high, nothing was steered."""
    assert best({("clip", 1.0): (-0.40, -0.42, 1.0), ("rank", 1.0): (0.05, -0.10, 1.0)}) == ("rank", 1.0)


def test_the_task_must_still_be_learned() -> None:
    assert best({("clip", 3.0): (0.4, -0.5, 0.9), ("rank", 1.0): (0.05, -0.1, 0.98)}) == ("rank", 1.0)
    assert best({("clip", 3.0): (0.4, -0.5, 0.9), ("rank", 1.0): (0.0, 0.1, 0.95)}) == ("rank", 1.0)
