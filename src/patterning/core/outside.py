"""Whether a loss depends on parameters that a chain does not move: those of the original module, of another, or hidden.

A task holds a copy of the module and gives the loss that copy, at other parameters for each replica. What the loss
reaches in another way stays where it is, and χ would lack it without a word.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from patterning.core.answers import Triable, identical, kept, run_plain
from patterning.core.errors import PatterningError, PatterningWarning
from patterning.core.modules import displaced
from patterning.core.seen import tensors
from patterning.core.state import Place

GIVEN = "it must use the one that it is given, loss(module, batch)"


def check_views(module: nn.Module, changing: Sequence[Place]) -> None:
    """Tensors that a module keeps must not be views of its parameters: a copy holds what they were once."""
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad and p.numel()]
    storages = {p.untyped_storage().data_ptr() for _, p in trained}
    parameters = {id(p) for p in module.parameters()}
    standard = vars(nn.Module())
    for path, part in module.named_modules():
        for key, held in vars(part).items():
            if key in standard or (path, key) in changing:
                continue
            for value in tensors(held):
                if id(value) in parameters or value.layout != torch.strided or not value.numel():
                    continue
                if value.untyped_storage().data_ptr() not in storages:
                    continue
                name = next((name for name, p in trained if _overlap_of(value, p)), None)
                if name is not None:
                    raise PatterningError(
                        f"attribute {f'{path}.{key}'.removeprefix('.')} is a view of parameter {name}: other values of "
                        "the parameter would not reach it. Take the view in forward, or keep a clone"
                    )


def check_copy(module: nn.Module, copy: nn.Module) -> None:
    """The copy in evaluation mode must have the parameters of the module that was given, and share none with it."""
    given, own = (dict(part.named_parameters(remove_duplicate=False)) for part in (module, copy))
    if given.keys() != own.keys():
        changed = ", ".join(sorted(given.keys() ^ own.keys())[:3])
        raise PatterningError(f"eval() adds or removes parameters of the module ({changed}): {_SWITCH}")
    for name, p in given.items():
        if own[name] is p:
            raise PatterningError(
                f"a copy of the module holds parameter {name} of the module itself (its __deepcopy__ does not copy), "
                "so that what is done to one is done to the other"
            )
        if p.shape != own[name].shape or p.requires_grad != own[name].requires_grad:
            raise PatterningError(f"eval() changes the shape of parameter {name}, or whether it is trained: {_SWITCH}")
        if not torch.equal(p.detach().float().nan_to_num(), own[name].detach().float().nan_to_num()):
            raise PatterningError(f"eval() changes the values of parameter {name}: {_SWITCH}")
    hooked = [name for name, p in given.items() if p.requires_grad and _has_hooks(p)]
    if hooked:
        warnings.warn(
            f"gradient hooks of {', '.join(hooked[:3])} are not followed: chains, χ and pt.fit move all of such a "
            "parameter. To hold entries of it still, measure a pt.Component with a mask, and train in your own loop",
            PatterningWarning,
            stacklevel=4,
        )


def _has_hooks(parameter: Tensor) -> bool:
    return any(getattr(parameter, kind, None) for kind in ("_backward_hooks", "_post_accumulate_grad_hooks"))


_SWITCH = (
    "a module that switches its parameters with its mode (merged adapters, say) must be given in the state that is to "
    "be sampled: call module.eval() first, and unmerge what is to be free"
)


@contextmanager
def watched(module: nn.Module) -> Iterator[list[str]]:
    """Calls of a module and its parts while the context lasts: the name of each part that is called."""
    calls = list[str]()
    handles = [
        part.register_forward_pre_hook(lambda *_, name=name: calls.append(name))
        for name, part in module.named_modules()
        if not isinstance(part, torch.jit.ScriptModule)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def check_calls(calls: list[str]) -> None:
    """The loss must not have called the original module, or a part of it."""
    if calls:
        part = f" (its part {calls[0]!r})" if calls[0] else ""
        raise PatterningError(
            f"the loss calls the module it was written with{part}: it must call the one that it is given, "
            "loss(module, batch). So must hooks and functions that the module holds. For a teacher that stays as it "
            "is, give the loss a copy.deepcopy of it"
        )


def check_reads(task: Triable, original: nn.Module, rows: Tensor) -> None:
    """The loss at given parameters must be the same wherever the original's, and the copy's own ones, lie."""
    own = {name: value[0].clone() for name, value in task.named(task.own_row()[None]).items()}
    before, mask = run_plain(task, rows, own)
    for elsewhere, text in (
        (_moved(original), f"the loss reads parameters of the module it was written with: {GIVEN}"),
        (
            _overwritten(task.module),
            "the loss reads parameters of the module past their names (from a list or a view made earlier, say), where "
            "other values cannot be put in: read them as attributes (self.weight) in forward",
        ),
    ):
        with elsewhere:
            after, _ = run_plain(task, rows, own)
        if not identical(after[kept(before, mask)], before[kept(before, mask)]):
            raise PatterningError(f"{text}. For values that stay as they are, keep weight.detach().clone()")


def leaves_of(total: Tensor) -> list[Tensor]:
    """Every tensor that requires a gradient and that `total` was computed from."""
    found, seen, waiting = list[Tensor](), set[object](), [total.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            found.append(variable)
        waiting += [following for following, _ in node.next_functions]
    return found


def check_leaves(task: Triable, original: nn.Module, strangers: list[Tensor]) -> None:
    """Raise for the first of these: tensors that require a gradient and that every call of the loss has met."""
    for leaf in strangers:
        if (name := _name(leaf, original.named_parameters())) is not None:
            raise PatterningError(f"the loss reads parameter {name} of the module it was written with: {GIVEN}")
        if (name := _name(leaf, task.module.named_parameters())) is not None:
            raise PatterningError(
                f"the loss reads parameter {name} of the module past its name (from a list made in __init__, say), "
                "where no other value can be put in: read it as an attribute (self.weight) in forward"
            )
        raise PatterningError(
            f"the loss depends on a tensor of shape {tuple(leaf.shape)} that requires a gradient and is no parameter "
            "of the module: a chain would not move it. Register it (nn.Parameter as an attribute, nn.ParameterList in "
            "place of a list), put the other module into this one, or freeze it with requires_grad_(False)"
        )


@contextmanager
def _moved(module: nn.Module) -> Iterator[None]:
    """The user's own parameters hold other values while it lasts; their memory is not written to."""
    before = {name: p.data for name, p in module.named_parameters() if p.requires_grad}
    parameters = dict(module.named_parameters())
    try:
        for name, value in displaced(before, 2).items():
            parameters[name].data = value
        yield
    finally:
        for name, value in before.items():
            parameters[name].data = value


@contextmanager
def _overwritten(module: nn.Module) -> Iterator[None]:
    """The memory of the trainable parameters holds other values while it lasts."""
    parameters = {name: p.data for name, p in module.named_parameters() if p.requires_grad}
    before = {name: p.clone() for name, p in parameters.items()}
    try:
        for name, value in displaced(before, 2).items():
            parameters[name].copy_(value)
        yield
    finally:
        for name, value in before.items():
            parameters[name].copy_(value)


def _overlap(a: Tensor, b: Tensor) -> bool:
    spans = []
    for value in (a, b):
        first = value.storage_offset() * value.element_size()
        reach = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride(), strict=True))
        spans.append((first, first + reach * value.element_size()))
    return max(spans[0][0], spans[1][0]) < min(spans[0][1], spans[1][1])


def _overlap_of(a: Tensor, b: Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() and _overlap(a, b)


def _name(leaf: Tensor, named: Iterator[tuple[str, nn.Parameter]]) -> str | None:
    return next((name for name, p in named if p is leaf), None)


def inert_note(names: Mapping[str, object], rows: int) -> str:
    """A sentence on parameters that the loss does not feel."""
    shown = ", ".join(list(names)[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return (
        f"no effect on the loss of {rows} rows at w* and at displaced parameters: {shown}. Chains move these by noise "
        "alone"
    )
