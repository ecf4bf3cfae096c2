"""Outputs of submodules, recorded in one call of a module and given back in another."""

from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def recorded(module: nn.Module, only: Container[str] | None = None) -> Iterator[dict[str, list[Any]]]:
    """What every submodule (of `only` these) returns while the context lasts, by name, in the order of its calls."""
    outputs: dict[str, list[Any]] = {}

    def keep(name: str, output: Any) -> None:
        changes = isinstance(output, Tensor) and not output.requires_grad  # the module may write into it later
        outputs.setdefault(name, []).append(output.clone() if changes else output)

    handles = [
        part.register_forward_hook(lambda _module, _inputs, output, name=name: keep(name, output))
        for name, part in module.named_modules()
        if name and (only is None or name in only)
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replayed(module: nn.Module, constants: Mapping[str, Tensor]) -> Iterator[None]:
    """Submodules named in `constants` give these outputs instead of computing them."""
    parts = [module.get_submodule(name) for name in constants]
    for part, value in zip(parts, constants.values(), strict=True):
        part.__dict__["forward"] = lambda *_args, _value=value, **_kwargs: _value
    try:
        yield
    finally:
        for part in parts:
            del part.__dict__["forward"]
