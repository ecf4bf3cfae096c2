"""χ by component from chains that are sampled once and read in shards: what is run, in which order."""

from collections.abc import Sequence

from patterning.core.errors import PatterningError
from patterning.core.workers import Workers
from patterning.models.components import Component
from patterning.response.draws import sampled
from patterning.response.one_component import stop_note
from patterning.response.sample import SampledResponse
from patterning.response.sharded_covariance import CovarianceComponent
from patterning.response.sharded_jobs import Leaving, ShardedComponent, ShardedPlan
from patterning.response.sharded_pathwise import PathwiseComponent

KINDS: dict[str, type[ShardedComponent]] = {"covariance": CovarianceComponent, "pathwise": PathwiseComponent}


def sharded_response(
    plan: ShardedPlan, components: Sequence[Component], pool: Workers
) -> tuple[dict[str, SampledResponse], dict[str, str]]:
    """χ by component, and refusals, by the estimators of `KINDS`.

    Each round samples all components that go on, reads φ, and then the shards: every chain set and every (component,
    shard) is a unit of work. Results are joined one component at a time.
    """
    jobs: dict[str, ShardedComponent] = {}
    responses: dict[str, SampledResponse] = {}
    refused: dict[str, str] = {}
    for component in components:
        try:
            jobs[component.name] = KINDS[plan.settings.estimator](plan, component, pool)
        except PatterningError as error:
            refused[component.name] = str(error)
    for number in range(plan.settings.rounds):
        rest = [job for name, job in jobs.items() if name not in responses and name not in refused]
        for job in rest:
            job.start()
        _complete([job.chains_unit() for job in rest], "sampling", pool)
        for job in rest:
            job.known.append(sampled(job.stored(job.chains_unit().unit)))
        for stage in rest[0].stages if rest else ():
            _complete([unit for job in rest for unit in job.units_of(stage)], f"{stage}, round {number + 1}", pool)
        for job in rest:
            try:
                response = job.joined(stop_note)
            except PatterningError as error:
                refused[job.component.name] = str(error)
                continue
            if response is not None:
                responses[job.component.name] = response
    return {name: responses[name] for name in jobs if name in responses}, refused


def _complete(work: Sequence[Leaving], stage: str, pool: Workers) -> None:
    """Do what is not done, or what has left a file that is not there."""
    for leaving in work:
        if leaving.file is not None and not leaving.file.exists():
            pool.run.file_of(leaving.unit).unlink(missing_ok=True)
    pool.complete([leaving.unit for leaving in work], stage)
