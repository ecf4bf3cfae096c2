"""Parts of a model by name: which coordinates are free while all others stay clamped at w*."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from patterning.core.errors import PatterningError
from patterning.core.modules import other_names
from patterning.models.architectures import layout_of
from patterning.models.architectures.layout import Masks, left_out


@dataclass(frozen=True)
class Component:
    """A head, a layer or any other named part of the parameters, as masks; `note`: what a reader should know of it."""

    name: str
    masks: Masks
    note: str = ""

    def count(self, module: nn.Module) -> int:
        """P_C, the number of free coordinates."""
        return sum(
            module.get_parameter(name).numel() if mask is None else int(mask.sum()) for name, mask in self.masks.items()
        )


ComponentLike = str | Component


def find_component(module: nn.Module, what: ComponentLike) -> Component:
    """The component called `what` of a module, checked against its parameters that require a gradient.

    `full`; `l1h3` (queries, keys, values and output of a head), `l1 attn`, `l1 mlp`, `embed`, `unembed` for the
    architectures in `models.architectures` (`LanguageModel`, TransformerLens, Hugging Face GPT-2, Llama and its like,
    GPT-NeoX, BERT and DistilBERT), in capital or small letters; for every module a parameter name or a pattern of them
    (`blocks.1.*`); or a ready `Component`. Raises `PatterningError` for what selects nothing, masks of another shape,
    and a tied weight that is stored under another name. A pattern that means any place of a tied weight means the
    weight, and the component's note names its other places.
    """
    if isinstance(what, Component):
        _check_kind(what)
        return _checked(module, _with_ties(module, what))
    if not isinstance(what, str):
        raise PatterningError(f"a component is a name or a Component with masks (found {type(what).__name__})")
    free = [name for name, p in module.named_parameters() if p.requires_grad]
    name = " ".join(what.lower().split())  # L1H0 and "l1  MLP" are meant as well
    if name == "full":
        return _checked(module, Component(name, dict.fromkeys(free)))
    if (known := _known(module, name)) is not None:
        return _checked(module, _with_ties(module, known))
    if what in free:
        return _checked(module, _with_ties(module, Component(what, {what: None})))
    _say_if_tied(module, what)
    if names := _listed(module, lambda parameter: fnmatchcase(parameter, what)):
        return _checked(module, _with_ties(module, Component(what, dict.fromkeys(names))))
    known_names = list_components(module)
    offer = f"{', '.join(known_names[:12])}{', …' if len(known_names) > 12 else ''}, " if known_names else ""
    raise PatterningError(
        f"{what!r} is no component of {type(module).__name__}: use full, {offer}a parameter name, a pattern such as "
        f"{free[0].rpartition('.')[0] or free[0]}.*, or a Component with masks (parameters: {', '.join(free[:4])}, …)"
    )


def list_components(module: nn.Module) -> list[str]:
    """The heads, MLPs, embedding and unembedding of a module of a known architecture; empty for any other."""
    layout = layout_of(module)
    if layout is None:
        return []
    names = ["embed"]
    for layer in range(layout.layers):
        names += [f"l{layer}h{head}" for head in range(layout.heads)]
        names += [f"l{layer} mlp"] if layout.mlp else []
    unembed = layout.parts.get("unembed", [])
    return names + (["unembed"] if unembed and _tied_to(module, unembed[0]) is None else [])


def _known(module: nn.Module, what: str) -> Component | None:
    """The part of a known architecture that is called `what`; None where there is none of this name."""
    layout = layout_of(module)
    named = re.fullmatch(r"l(\d+)(?:h(\d+)| (attn|mlp))", what)
    if layout is None:
        if named is not None and hasattr(module, "original_model"):
            raise PatterningError(
                f"{type(module).__name__} takes another model's parts apart, so that {what!r} is in several places: "
                "make the task of the Hugging Face model itself, whose parts are known by name, or give a pattern of "
                "parameter names"
            )
        return None
    if what in layout.parts:
        for name in layout.parts[what]:
            _say_if_tied(module, name)
        return Component(what, dict.fromkeys(name for name in layout.parts[what] if not left_out(module, name)))
    if named is None:
        return None
    layer = int(named[1])
    if layer >= layout.layers or (named[2] and int(named[2]) >= layout.heads):
        raise PatterningError(f"{what!r}: the model has {layout.layers} layers of {layout.heads} heads, from 0")
    if named[2]:
        return Component(what, layout.head(layer, int(named[2])), layout.note_of(layer, int(named[2])))
    prefixes = tuple(prefix.format(layer) for prefix in (layout.attention if named[3] == "attn" else layout.mlp))
    return Component(what, dict.fromkeys(_listed(module, lambda name: name.startswith(prefixes))))


def _listed(module: nn.Module, meant: Callable[[str], bool]) -> list[str]:
    """Trainable parameters with any name that is meant: tied ones go by the name they are listed under."""
    listed = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
    names = (listed.get(id(p)) for name, p in module.named_parameters(remove_duplicate=False) if meant(name))
    return list(dict.fromkeys(name for name in names if name is not None))


def _with_ties(module: nn.Module, component: Component) -> Component:
    """The component with a note of the other places that its parameters are used in."""
    others = other_names(module)
    shared = [f"{name} is tied to {', '.join(others[name])}" for name in component.masks if name in others]
    if not shared:
        return component
    note = f"{'; '.join(shared)}: free in all of these places"
    return replace(component, note="; ".join(dict.fromkeys(filter(None, [component.note, note]))))


def _tied_to(module: nn.Module, name: str) -> str | None:
    """The name under which a tied parameter is listed, if `name` is a second name of it."""
    every = dict(module.named_parameters(remove_duplicate=False))
    listed = dict(module.named_parameters())
    if name not in every or name in listed:
        return None
    return next(other for other, p in listed.items() if p is every[name])


def _say_if_tied(module: nn.Module, name: str) -> None:
    if (other := _tied_to(module, name)) is not None:
        raise PatterningError(
            f"{name} is tied: it is the same tensor as {other}, and freeing it frees both uses. Name {other} instead"
        )


def _check_kind(component: Component) -> None:
    name = component.name
    if not isinstance(name, str) or not name.strip() or not name.isprintable():
        raise PatterningError(f"a component is called {name!r}: a name is a line of text")
    if not isinstance(component.masks, Mapping):
        raise PatterningError(
            f"component {name!r}: its masks are {type(component.masks).__name__}: they must be a dict, "
            "parameter name → mask (or None for all of it)"
        )


def _checked(module: nn.Module, component: Component) -> Component:
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for name, mask in component.masks.items():
        if name not in parameters:
            _say_if_tied(module, name)
            raise PatterningError(f"component {component.name!r}: {name} is no parameter that requires a gradient")
        shape = parameters[name].shape
        if mask is not None and not isinstance(mask, Tensor):
            raise PatterningError(
                f"component {component.name!r}: the mask of {name} is {type(mask).__name__}: it must be a tensor of "
                "bool, or None for all entries"
            )
        if mask is not None and (mask.shape != shape or mask.dtype != torch.bool):
            raise PatterningError(
                f"component {component.name!r}: the mask of {name} is {mask.dtype} {tuple(mask.shape)}: it must be "
                f"bool {tuple(shape)}"
            )
    if not component.count(module):
        raise PatterningError(f"component {component.name!r} selects no parameter: there is nothing to sample")
    return component
