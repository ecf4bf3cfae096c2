"""Everything that numbers depend on changes a task's key; what they do not depend on does not."""

import textwrap
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from patterning.core.errors import PatterningWarning
from patterning.core.identity import digest
from patterning.core.supervised import ModuleTask
from patterning.core.task import Task
from tests.faults.common import X, Y, chi, classify, seeded

SMOOTHING = 0.0
FACTORS = {"scale": 1.0}


def helper(losses: Tensor) -> Tensor:
    return losses * 1.0


def other_helper(losses: Tensor) -> Tensor:
    return losses * 1.5


def with_global(model, batch) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none", label_smoothing=SMOOTHING)


def with_global_dict(model, batch) -> Tensor:
    return classify(model, batch) * FACTORS["scale"]


def with_helper(model, batch) -> Tensor:
    return helper(classify(model, batch))


class Scaled:
    """A callable object."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, model, batch) -> Tensor:
        return self.scale * classify(model, batch)


class Biased(nn.Module):
    """Reads an attribute, a buffer that is not stored, and whatever a hook does."""

    def __init__(self, shift: float = 0.0, hidden: float = 0.0) -> None:
        super().__init__()
        self.layer, self.shift = nn.Linear(6, 3), shift
        self.register_buffer("hidden", torch.tensor([hidden, 0.0, 0.0]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.hidden + torch.tensor([self.shift, 0.0, 0.0])


def made(source: str, name: str = "loss", **names) -> Callable:
    """A function as typed into a prompt."""
    space = {"F": F, "classify": classify, "torch": torch, **names}
    exec(textwrap.dedent(source), space)
    return space[name]


def key(loss=classify, module: nn.Module | None = None, data=(X, Y), weights=None) -> str:
    return Task(seeded(nn.Linear(6, 3)) if module is None else module, loss, data, weights).fingerprint


def smoothed(value: float) -> str:
    criterion = nn.CrossEntropyLoss(reduction="none", label_smoothing=value)
    return ModuleTask(seeded(nn.Linear(6, 3)), criterion, X, Y).fingerprint


def with_default(value: float) -> Callable:
    def loss(model, batch, scale=value) -> Tensor:
        return scale * classify(model, batch)

    return loss


def with_closure(value) -> Callable:
    return lambda model, batch: classify(model, batch) * (value.sum() if isinstance(value, Tensor) else value)


def hooked(value: float) -> nn.Module:
    net = seeded(nn.Linear(6, 3))
    net.register_forward_hook(lambda _m, _i, output: output * value)
    return net


@pytest.mark.parametrize(
    "change",
    [
        lambda v: smoothed(0.9 * v),
        lambda v: key(partial(lambda scale, model, batch: scale * classify(model, batch), 1.0 + v)),
        lambda v: key(Scaled(1.0 + v)),
        lambda v: key(Scaled(1.0 + v).__call__),
        lambda v: key(with_default(1.0 + v)),
        lambda v: key(with_closure(1.0 + v)),
        lambda v: key(with_closure(torch.full((2000,), 1.0 + v))),
        lambda v: key(made(f"def loss(model, batch): return classify(model, batch) * {1.0 + v}")),
        lambda v: key(made("def loss(model, batch): return classify(model, batch) * SCALE", SCALE=1.0 + v)),
        lambda v: key(made("loss = lambda model, batch: inner(model, batch)", inner=Scaled(1.0 + v))),
        lambda v: key(module=seeded(Biased(shift=v))),
        lambda v: key(module=seeded(Biased(hidden=v))),
        lambda v: key(module=hooked(1.0 + v)),
        lambda v: key(module=seeded(nn.Linear(6, 3), int(v))),
        lambda v: key(data=(X + v, Y)),
        lambda v: key(data=(X, (Y + int(v)) % 3)),
        lambda v: key(weights=torch.ones(128) + v * torch.arange(128)),
        lambda v: key(lambda model, batch: (classify(model, batch), torch.arange(128)[: len(batch[1])] >= 0)
                      if v else classify(model, batch)),
        lambda v: key(module=seeded(nn.Sequential(nn.Linear(6, 3), nn.Identity() if v else nn.Tanh()))),
    ],
)  # fmt: skip
def test_ways_to_change_a_loss_a_module_or_the_data(change) -> None:
    before, again, after = change(0.0), change(0.0), change(1.0)
    assert before == again
    assert after != before


def test_globals_helpers_and_methods_that_change_between_two_calls(monkeypatch) -> None:
    """In one process: the same function object, which now does something else."""
    for loss, target, value in (
        (with_global, "SMOOTHING", 0.5),
        (with_helper, "helper", other_helper),
    ):
        before = key(loss)
        with monkeypatch.context() as patch:
            patch.setattr(f"{__name__}.{target}", value)
            assert key(loss) != before
        assert key(loss) == before
    before = key(with_global_dict)
    monkeypatch.setitem(FACTORS, "scale", 2.0)
    assert key(with_global_dict) != before
    task = Task(seeded(nn.Linear(6, 3)), Scaled(1.0), (X, Y))
    before = task.fingerprint
    task.loss_fn.scale = 2.0  # type: ignore[union-attr]
    assert task.fingerprint != before
    before = key(Scaled(1.0))
    monkeypatch.setattr(Scaled, "__call__", lambda self, model, batch: 3 * classify(model, batch))
    assert key(Scaled(1.0)) != before


def test_what_has_no_key_is_never_found_again() -> None:
    """A generator has no value but its address: two digests differ, so that nothing is reused."""
    numbers = (i for i in range(3))
    loss = with_closure(1.0)
    assert digest(loss) == digest(with_closure(1.0))
    with pytest.warns(PatterningWarning, match="a generator, which has no value"):
        assert digest(numbers) != digest(numbers)


@given(st.floats(0.1, 3.0), st.floats(0.1, 3.0))
def test_two_numbers_in_a_lambda_have_two_keys(a: float, b: float) -> None:
    assert (digest(with_closure(a)) == digest(with_closure(b))) == (a == b)
    assert (digest(partial(classify, a)) == digest(partial(classify, b))) == (a == b)
    assert (digest(Scaled(a)) == digest(Scaled(b))) == (a == b)


def test_names_comments_and_places_of_code_do_not_matter() -> None:
    one = made("def loss(model, batch):\n    return classify(model, batch)")
    two = made("\n\n# a comment\ndef loss(model, batch):\n    # another\n    return classify(model, batch)")
    assert digest(one) == digest(two)
    ring: list[object] = [1]
    ring.append(ring)
    assert digest(ring) == digest(ring)


def test_observables_and_settings_are_part_of_a_components_key() -> None:
    from patterning.response import one_component

    seen = []
    original = one_component.Work.fingerprint.fget  # type: ignore[attr-defined]
    task = Task(seeded(nn.Linear(6, 3)), classify, (X, Y))

    def work(scale: float, **options) -> str:
        settings = one_component.Settings(
            torch.arange(4), {"phi": lambda flat: scale * flat.sum(1)}, "covariance", "probes", None, 1, 4, None
        )
        from dataclasses import replace

        from patterning.models.components import find_component
        from tests.faults.common import CHAINS, KERNEL

        found = one_component.Work(
            task,
            task.own_row(),
            find_component(task.module, "full"),
            KERNEL,
            CHAINS,
            replace(settings, **options),
            "key",
        )
        return original(found)

    seen = [work(1.0), work(2.0), work(1.0, batches=2), work(1.0, phi=torch.arange(3)), work(1.0, loss_band=2.0)]
    assert len(set(seen)) == 5
    assert work(1.0) == seen[0]
    assert chi(task).fingerprint == task.fingerprint


OWN_CLASS = """
import enum
from torch import nn
import patterning as pt
import torch

class Kind(enum.Enum):
    MEAN = "mean"

class Net(nn.Linear):
    def forward(self, x):
        return 2.0 * super().forward(x)

def loss(model, batch):
    assert Kind.MEAN
    return model(batch[0]).square().mean(1)

def task():
    torch.manual_seed(0)
    return pt.Task(Net(3, 2), loss, (torch.eye(3),))
"""


def test_a_class_of_the_users_has_one_key_however_often_its_file_is_loaded(tmp_path) -> None:
    from patterning.core.user_code import load_object

    for name, text in (("mine", OWN_CLASS), ("copy", OWN_CLASS), ("other", OWN_CLASS.replace("2.0 *", "3.0 *"))):
        (tmp_path / f"{name}.py").write_text(text)
    keys = [load_object(f"{tmp_path}/{name}.py:task")().fingerprint for name in ("mine", "mine", "copy", "other")]
    assert keys[0] == keys[1] == keys[2]
    assert keys[3] != keys[0]
