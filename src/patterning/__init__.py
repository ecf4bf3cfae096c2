"""Which training data makes a neural network grow the internal structure you want?

    import patterning as pt

    task = pt.Task(model, loss, data)                        # loss(model, batch) -> (b,) or (b, t) nats
    chi = pt.measure(task, {"8s": loss_on_eights}, sampler=pt.SGLD(300, 1000, 1e-4))
    rho = chi.invert({"8s": -1}).weights(0.25)
    pt.verify(train, {"fewer errors on 8s": rho}, {"8s": test_loss}, seeds=range(8)).show()

Names are imported when they are first used, so that importing the package takes no time.
"""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from patterning.core.errors import PatterningError, PatterningWarning
    from patterning.core.executors import Ray
    from patterning.core.task import Task
    from patterning.face import measures
    from patterning.face.fit import fit
    from patterning.face.language_task import classifier_task, language_task
    from patterning.face.load import from_devinterp, load
    from patterning.face.measure import measure
    from patterning.face.response import Response
    from patterning.face.stored import invert_store
    from patterning.intervention.data_weights import Weights
    from patterning.intervention.direction import Direction
    from patterning.models.components import Component
    from patterning.models.components import list_components as components
    from patterning.posterior.preconditioned import RMSPropSGLD
    from patterning.posterior.sgld import SGLD
    from patterning.tasks.preference import preference_task
    from patterning.verification.evidence import Evidence
    from patterning.verification.verify import Measure, verify

    __version__: str

_PLACES = {
    "Task": ("core.task", "Task"),
    "PatterningError": ("core.errors", "PatterningError"),
    "PatterningWarning": ("core.errors", "PatterningWarning"),
    "Ray": ("core.executors", "Ray"),
    "measure": ("face.measure", "measure"),
    "measures": ("face.measures", ""),
    "Response": ("face.response", "Response"),
    "load": ("face.load", "load"),
    "from_devinterp": ("face.load", "from_devinterp"),
    "invert_store": ("face.stored", "invert_store"),
    "Weights": ("intervention.data_weights", "Weights"),
    "Direction": ("intervention.direction", "Direction"),
    "Component": ("models.components", "Component"),
    "components": ("models.components", "list_components"),
    "RMSPropSGLD": ("posterior.preconditioned", "RMSPropSGLD"),
    "SGLD": ("posterior.sgld", "SGLD"),
    "fit": ("face.fit", "fit"),
    "preference_task": ("tasks.preference", "preference_task"),
    "classifier_task": ("face.language_task", "classifier_task"),
    "language_task": ("face.language_task", "language_task"),
    "Evidence": ("verification.evidence", "Evidence"),
    "Measure": ("verification.verify", "Measure"),
    "verify": ("verification.verify", "verify"),
}

__all__ = [
    "SGLD", "Component", "Direction", "Evidence", "Measure", "PatterningError", "PatterningWarning", "RMSPropSGLD",
    "Ray", "Response", "Task", "Weights", "classifier_task", "components", "fit", "from_devinterp", "invert_store",
    "language_task", "load", "measure", "measures", "preference_task", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return metadata.version("patterning")
    if name == "hf":
        return import_module("patterning.hf")
    if name not in _PLACES:
        raise AttributeError(f"module 'patterning' has no attribute {name!r}")
    module, attribute = _PLACES[name]
    there = import_module(f"patterning.{module}")
    value = getattr(there, attribute) if attribute else there
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
