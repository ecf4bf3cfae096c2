"""One set of weights over the seeds, with its outcomes and effects."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from patterning.core.arrays import Floats
from patterning.core.plain import Facts
from patterning.verification.effects import Effect

UNWEIGHTED = "unweighted"
"""The arm with ρ = 1."""


@dataclass(frozen=True)
class Arm:
    """One set of weights over the seeds.

    `values` by measure (seeds,), `effects` against unweighted and `beyond` its permuted control (95 % intervals), and
    `facts` of how its weights were made. `kind`: base, arm, control or extra.
    """

    name: str
    kind: str
    values: Mapping[str, Floats]
    effects: Mapping[str, Effect]
    beyond: Mapping[str, Effect]
    facts: Facts = field(default_factory=dict)


def order_of(arms: Sequence[Arm]) -> list[Arm]:
    """The arms as figures show them: unweighted, then each arm beside its control, then the others."""
    named = {arm.name: arm for arm in arms}
    result = [arm for arm in arms if arm.kind == "base"]
    for arm in arms:
        if arm.kind == "arm":
            result += [arm, *([named[permuted_name(arm.name)]] if permuted_name(arm.name) in named else [])]
    return result + [arm for arm in arms if arm not in result]


def permuted_name(arm: str) -> str:
    """The name of an arm's permuted control."""
    return f"{arm}, permuted"
