"""Forecasts as a job: what readings expect of every arm is on the disk before the first arm is trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from patterning.core.jobs import Job
from patterning.core.store import Arrays
from patterning.study.bench import Forecast
from patterning.study.subject import Rho


@dataclass(frozen=True)
class ForecastJob(Job):
    """What each forecast expects of `weights`: name of the reading → (arms, 3) value, low, high."""

    forecasts: Mapping[str, Forecast]
    weights: Sequence[Rho]

    def run(self, scratch: Path) -> Arrays:
        """All of them."""
        del scratch
        return {name: forecast(self.weights) for name, forecast in self.forecasts.items()}
