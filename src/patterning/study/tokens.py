"""Subjects whose samples are the tokens of a text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from patterning.core.arrays import Bools, Floats
from patterning.models.language import LanguageModel
from patterning.study.subject import Ints, Parameters, Subject
from patterning.tasks.induction import Part

Curves = Mapping[str, NDArray[np.floating]]
"""Measures (c, …) of one run along training."""


@dataclass(frozen=True)
class Stages:
    """Steps `at` which a run stands at a named stage; `formed`: whether the structure came; `notes` for people."""

    at: Mapping[str, int]
    formed: bool
    notes: tuple[str, ...] = ()


class TokenSubject(Subject):
    """Samples are the next-token predictions of rows of tokens (n, t): base weights (n, t - 1), all equal.

    The structure that is asked for is known by measures that can be differentiated (`structure`), by `stages` of a run,
    by a score for each head (`head_scores`), and by the group of tokens that it serves, `groups[served]`.
    """

    served: str = ""

    @property
    def tokens(self) -> Tensor:
        """Training rows int64 (n, t)."""
        raise NotImplementedError

    @property
    def base_weights(self) -> Floats:
        """Every token alike."""
        rows, length = self.tokens.shape
        return np.full((rows, length - 1), 1 / (rows * (length - 1)))

    def network(self, flat: Parameters) -> LanguageModel:
        """The model of parameters (P,)."""
        raise NotImplementedError

    def stand_for_all(self, count: int, among: Ints | None = None) -> Ints:
        """`count` rows that stand for all, or for those `among`: places in these."""
        total = self.tokens.shape[0] if among is None else len(among)
        return np.linspace(0, total - 1, count).astype(np.int64)

    def structure(self, rows: Ints, half: int) -> Mapping[str, Sequence[Part]]:
        """Measures of the structure, by name, as sums of parts, on half 0 or 1 of their data.

        `rows`: the training rows to use, where a measure is one of the text itself.
        """
        raise NotImplementedError

    def stages(self, curves: Curves) -> Stages:
        """The stages of one run."""
        raise NotImplementedError

    def head_scores(self, curves: Curves) -> Mapping[str, float]:
        """By component name, how much of the structure each head is at the end of a run."""
        raise NotImplementedError

    def heads(self, curves: Curves) -> tuple[str, ...]:
        """The heads that count as the structure."""
        scores = self.head_scores(curves)
        return (max(scores, key=lambda name: scores[name]),)

    def piece(self, token: int) -> str:
        """A token as text."""
        return f" {token}"

    def domains(self) -> Mapping[str, Bools]:
        """Groups that exclude each other and cover all tokens, by where a row is from."""
        return {}
