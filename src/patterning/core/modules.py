"""Handling a user's module: copies, fresh ones, and tied parameters."""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from patterning.core.errors import PatterningError
from patterning.core.libraries import is_library
from patterning.core.module_reads import names_in
from patterning.core.rng import Stream, generator
from patterning.core.seen import tensors
from patterning.core.tensors import as_float32

MOST_NOISE = 100_003
"""Entries of a tensor that are displaced by noise of their own; a prime, so that no row's length divides it."""
SETS_VALUES = frozenset(
    {"normal_", "uniform_", "zero_", "fill_", "copy_", "mul_", "div_", "xavier_uniform_", "xavier_normal_",
     "kaiming_uniform_", "kaiming_normal_", "orthogonal_", "trunc_normal_", "constant_", "eye_", "ones_", "zeros_",
     "dirac_", "sparse_"}
)  # fmt: skip
"""Calls that change a tensor in place, as `torch.nn.init` has them."""
COMPILED = "the module was compiled by torch.compile: what it was compiled from is used, since torch.func needs that"


def copy_module(module: nn.Module, *, convert: bool = True) -> nn.Module:
    """A copy of a module that may hold tensors of an earlier forward pass; in evaluation mode, and in float32.

    `convert` False leaves number types and mode as they are. Raises `PatterningError` for what cannot be copied.
    """
    if not isinstance(module, nn.Module):
        raise PatterningError(f"the model must be a torch.nn.Module (found {type(module).__name__})")
    memo: dict[int, Any] = {}
    _check_parameters(module)
    for part in module.modules():
        for tensor in tensors(part.__dict__):
            if tensor.requires_grad and not tensor.is_leaf:  # deepcopy refuses these: results of a computation
                # As a leaf: a loss that reads it, past the parameters that it was made of, is found by that.
                memo[id(tensor)] = tensor.detach().clone().requires_grad_()
    try:
        copy = deepcopy(module, memo)
        if not convert:
            return copy
        numbers = [*copy.parameters(), *copy.buffers()]
        if any(value.is_floating_point() and value.dtype != torch.float32 for value in numbers):
            copy = copy.float()
        copy.eval()  # its own eval() may return nothing
        _drop_input_hooks(copy)
    except Exception as error:
        raise PatterningError(
            f"the module cannot be copied or converted to float32 ({type(error).__name__}: {_first_line(error)}): "
            f"{_what_hinders(module)}, or give it in float32"
        ) from error
    return copy


def eager(module: nn.Module) -> nn.Module:
    """The module that `torch.compile` was given, where this is what it returned; else the module itself."""
    inner = getattr(module, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else module


def other_names(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Tied parameters: the name a parameter is listed under → its names in other modules.

    A module that stands under two names has its parameters once. Raises `PatterningError` for a module whose parameters
    cannot be set from outside.
    """
    if isinstance(module, torch.jit.ScriptModule):
        raise PatterningError(
            "the module was compiled by torch.jit, which lets nobody set its parameters for a call: give the module "
            "that it was made from"
        )
    places: dict[int, dict[tuple[int, str], str]] = {}
    for name, p in module.named_parameters(remove_duplicate=False):
        path, _, attribute = name.rpartition(".")
        places.setdefault(id(p), {}).setdefault((id(module.get_submodule(path)), attribute), name)
    listed = {id(p): name for name, p in module.named_parameters()}
    found = {}
    for key, names in places.items():
        others = tuple(name for name in names.values() if name != listed[key])
        if len(names) > 1:
            found[listed[key]] = others
    return found


def fresh_module(
    module: nn.Module, make: Callable[[int], nn.Module] | None, seed: int, names: Sequence[str]
) -> nn.Module:
    """A module of the same kind with parameters `names` as a seed sets them.

    By `make(seed)`; by the constructor of a Hugging Face model, which starts it as its authors say; by the module's own
    `_init_weights`; or by each submodule's `reset_parameters`, children before their parents. The global random state
    is left as it was. Raises `PatterningError` where nothing sets some parameter.
    """
    own_seed = int(generator(seed, Stream.INIT).integers(2**63))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(own_seed)
        if make is not None:
            return _made(make, seed)
        if hasattr(module, "_init_weights") and hasattr(module, "config"):
            return _constructed_again(module)
        fresh = deepcopy(module).cpu()
        for p in fresh.parameters():
            p.detach().fill_(torch.nan)  # what nothing sets is found by its NaN
        for part in reversed(list(fresh.modules())):
            for method in ("_reset_parameters", "reset_parameters"):  # the first is MultiheadAttention's
                getattr(part, method, lambda: None)()
        if hasattr(fresh, "_init_weights"):
            rule: Any = fresh._init_weights
            fresh.apply(rule)
    values = dict(fresh.named_parameters())
    if unset := [name for name in names if bool(values[name].isnan().any())]:
        raise PatterningError(
            f"{', '.join(unset[:5])}: no reset_parameters() sets these parameters, so a seed cannot. Give the task "
            "make=..., a function of a seed that returns a fresh module"
        )
    return fresh


def sets_own_start(module: nn.Module) -> list[str]:
    """Classes of the user's whose constructor sets parameters, which `fresh_module` does not see: their names.

    A class with a `reset_parameters` or `_init_weights` of its own says there how it starts. So does a Hugging Face
    model.
    """
    if hasattr(module, "_init_weights"):
        return []
    found = []
    for kind in dict.fromkeys(type(part) for part in module.modules()):
        own = vars(kind)
        if is_library(kind.__module__) or {"reset_parameters", "_reset_parameters"} & set(own):
            continue
        code = {name: method.__code__ for name, method in own.items() if isinstance(method, FunctionType)}
        names = names_in(code["__init__"]) if "__init__" in code else set[str]()
        for called in names & set(code):
            names |= names_in(code[called])
        if names & SETS_VALUES:
            found.append(kind.__name__)
    return found


def spread(n: int, count: int) -> Tensor:
    """`count` row numbers (at most n), evenly spread over 0..n-1."""
    count = min(n, count)
    return torch.arange(count) * n // count


def displaced(parameters: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """Parameters away from `parameters` (any shapes): each tensor's entries plus noise of their own size.

    Very large tensors get the same noise again and again, which is drawn in a fraction of the time.
    """
    rng = generator(number, Stream.TRIAL)
    moved = {}
    for name, value in parameters.items():
        if value.numel() <= MOST_NOISE:
            size = float(value.detach().double().square().mean().sqrt()) + 0.05
            noise = torch.from_numpy(rng.standard_normal(tuple(value.shape), dtype=np.float32))
        else:
            size = float(value.detach().norm()) / value.numel() ** 0.5 + 0.05
            block = torch.from_numpy(rng.standard_normal(MOST_NOISE, dtype=np.float32))
            noise = block.repeat(-(-value.numel() // MOST_NOISE))[: value.numel()].view(value.shape)
        moved[name] = value.detach() + size * noise.to(value)
    return moved


def _made(make: Callable[[int], nn.Module], seed: int) -> nn.Module:
    fresh = make(seed)
    if not isinstance(fresh, nn.Module):
        raise PatterningError(f"make({seed}) returned {type(fresh).__name__}: it must return a module")
    return fresh


def _constructed_again(module: nn.Module) -> nn.Module:
    """A Hugging Face model from its configuration: some of its scales are set by its constructor alone."""
    try:
        fresh = type(module)(deepcopy(module.config))
    except Exception as error:
        raise PatterningError(
            f"{type(module).__name__} cannot be made again from its configuration ({_first_line(error)}): give the "
            "task make=..., a function of a seed that returns a fresh module"
        ) from error
    return fresh.float()


def _check_parameters(module: nn.Module) -> None:
    """Raise `PatterningError` for numbers that a row of float32 cannot hold, or that are not there yet."""
    for name, p in module.named_parameters():
        if is_lazy(p) or p.is_meta:
            raise PatterningError(f"parameter {name} has no numbers yet: load the weights, or run the module once")
        if p.requires_grad and p.is_complex():
            as_float32(f"parameter {name}", p)
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        if value.dtype == torch.float64:
            as_float32(name, value.detach())
    _check_memory(module)


def _check_memory(module: nn.Module) -> None:
    """Raise `PatterningError` for a trainable parameter that shares numbers with another parameter or a buffer.

    A copy, a sampler or an optimiser would move such numbers apart; a row would hold them twice.
    """
    spans: list[tuple[str, int, int, str, bool]] = []
    for name, value in (*module.named_buffers(), *module.named_parameters()):
        if value.layout != torch.strided or not value.numel() or value.is_meta:
            continue
        steps = list(zip(value.shape, value.stride(), strict=True))
        if value.requires_grad and any(stride == 0 and size > 1 for size, stride in steps):
            raise PatterningError(
                f"parameter {name} repeats the same numbers (it was expanded): make it nn.Parameter(values.clone()), "
                "or keep the few numbers as the parameter and expand them in the forward pass"
            )
        reach = 1 + sum((size - 1) * stride for size, stride in steps)
        start = value.data_ptr()
        spans.append((str(value.device), start, start + reach * value.itemsize, name, value.requires_grad))
    spans.sort(key=lambda span: span[:2])
    ends: dict[tuple[str, bool], tuple[int, str]] = {}  # how far those before reach: (device, trainable) → end, name
    for device, start, end, name, trainable in spans:
        for other in (True, False) if trainable else (True,):
            reached, before = ends.get((device, other), (start, ""))
            if start < reached:
                raise PatterningError(
                    f"{before} and {name} share memory, but are two objects, which a copy, a sampler or an optimiser "
                    "moves apart. To tie them, assign the same Parameter to both (b.weight = a.weight); else give each "
                    "its own numbers (values.clone())"
                )
        if end > ends.get((device, trainable), (0, ""))[0]:
            ends[device, trainable] = end, name


def _attributes(module: nn.Module) -> dict[tuple[str, str], object]:
    """What every submodule holds besides parameters, submodules and hooks."""
    standard = vars(nn.Module())
    return {
        (path, key): value
        for path, part in module.named_modules()
        for key, value in (*vars(part).items(), *part._buffers.items())
        if key not in standard
    }


def _what_hinders(module: nn.Module) -> str:
    """What to remove, for a module that cannot be copied."""
    for (path, name), value in _attributes(module).items():
        try:
            deepcopy(value, {id(value): None} if isinstance(value, Tensor) else {})
        except Exception:  # whatever keeps it from being copied
            where = f"{path}.{name}" if path else name
            return f"remove its attribute {where} (a {type(value).__name__}), or make it where it is used"
    return "remove what its modules hold besides parameters and buffers"


def _drop_input_hooks(module: nn.Module) -> None:
    """Take away the hooks that make embeddings require a gradient, which no transformed function may do.

    transformers and peft set them (`enable_input_require_grads`), together with gradient checkpointing, for models
    whose embeddings are frozen. They change no number.
    """
    for part in module.modules():
        for key, hook in list(part._forward_hooks.items()):
            if getattr(hook, "__name__", "") in ("make_inputs_require_grads", "make_inputs_require_grad"):
                del part._forward_hooks[key]


def _first_line(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]
