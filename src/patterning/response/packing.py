"""A `SampledResponse` as named arrays and back, for units of work."""

import json
from dataclasses import asdict, replace

import numpy as np

from patterning.core.store import Arrays
from patterning.posterior.diagnostics import MOST_R_HAT, diagnose
from patterning.posterior.preconditioned import RMSPropSGLD
from patterning.posterior.sgld import SGLD
from patterning.response.moments import Moments
from patterning.response.sample import SampledResponse
from patterning.response.susceptibility import Susceptibility

KERNELS = {kind.__name__: kind for kind in (SGLD, RMSPropSGLD)}
ARRAYS = ("base_weights", "chi", "standard_error", "halves", "mean_losses", "mean_losses_error")


def pack(found: SampledResponse) -> Arrays:
    """A `SampledResponse` as arrays, for a unit of work."""
    response = found.susceptibility
    facts = {
        "observables": response.observables,
        "n_beta": response.n_beta,
        "degrees_of_freedom": response.degrees_of_freedom,
        "excluded": {str(chain): why for chain, why in found.excluded.items()},
        "watched": list(found.sample_diagnostics),
        "r_hat_limits": {name: one.r_hat_limit for name, one in found.diagnostics.items()},
        "rise": found.rise,
        "estimator": found.estimator,
        "note": found.note,
        "expansion": found.expansion,
        "warnings": list(found.warnings),
        "kernel": None if found.kernel is None else [type(found.kernel).__name__, asdict(found.kernel)],
        "phi": found.phi,
    }
    return {
        "facts": np.frombuffer(json.dumps(facts).encode(), dtype=np.uint8),
        **{key: getattr(response, key) for key in ARRAYS},
        **({} if response.by_chain is None else {"by_chain": response.by_chain}),
        "traces": np.stack(list(found.traces.values())),
        "watched_traces": found.watched_traces,
        **({f"moments.{key}": value for key, value in found.moments.as_arrays().items()} if found.moments else {}),
    }


def pack_refusal(why: str) -> Arrays:
    """Why a component has no result, as arrays, for a unit of work."""
    return {"refused": np.frombuffer(why.encode(), dtype=np.uint8)}


def refusal(arrays: Arrays) -> str | None:
    """What `pack_refusal` packed, or None for a result."""
    return arrays["refused"].tobytes().decode() if "refused" in arrays else None


def unpack(arrays: Arrays) -> SampledResponse:
    """The inverse of `pack`."""
    facts = json.loads(arrays["facts"].tobytes())
    names = tuple(facts["observables"])
    traces = dict(zip(names, arrays["traces"], strict=True))
    watched = arrays["watched_traces"]
    limits = facts.get("r_hat_limits", {})  # units of earlier versions have none
    sums = {key.removeprefix("moments."): value for key, value in arrays.items() if key.startswith("moments.")}
    return SampledResponse(
        susceptibility=Susceptibility(
            observables=names,
            n_beta=facts["n_beta"],
            degrees_of_freedom=facts["degrees_of_freedom"],
            **{key: arrays[key] for key in ARRAYS},
            by_chain=arrays.get("by_chain"),
        ),
        traces=traces,
        diagnostics={
            name: replace(diagnose(values), r_hat_limit=limits.get(name, MOST_R_HAT)) for name, values in traces.items()
        },
        sample_diagnostics={j: diagnose(watched[:, :, i]) for i, j in enumerate(facts["watched"])},
        watched_traces=watched,
        excluded={int(chain): why for chain, why in facts["excluded"].items()},
        rise=facts["rise"],
        estimator=facts["estimator"],
        note=facts["note"],
        expansion=facts["expansion"],
        warnings=tuple(facts["warnings"]),
        moments=Moments(**sums) if sums else None,
        kernel=None if facts["kernel"] is None else KERNELS[facts["kernel"][0]](**facts["kernel"][1]),
        phi=facts["phi"],
    )
