"""Parts of a model by name: which coordinates are free while all others stay clamped at w*."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from patterning.core.errors import PatterningError
from patterning.core.modules import other_names

Masks = Mapping[str, Tensor | None]
"""Parameter name → which of its entries are free, bool of its shape; None: all of them."""


@dataclass(frozen=True)
class Component:
    """A named set of coordinates; `note`: what a reader should know of it."""

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
    architectures known here (`LanguageModel`, Hugging Face GPT-2, TransformerLens), in capital or small letters; for
    every module a parameter name or a pattern of them (`blocks.1.*`); or a ready `Component`. Raises `PatterningError`
    for what selects nothing, masks of another shape, and a tied weight that is stored under another name. A pattern
    that means any place of a tied weight means the weight, and the component's note names its other places.
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
    for know in _ARCHITECTURES:
        if (known := know(module, name)) is not None:
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
    for layout in (_own_layout, _gpt2_layout, _lens_layout):
        if (found := layout(module)) is not None:
            break
    else:
        return []
    names = ["embed"]
    for layer in range(found.layers):
        names += [f"l{layer}h{head}" for head in range(found.heads)]
        names += [f"l{layer} mlp"] if found.mlp else []
    tied = "unembed" in found.parts and _tied_to(module, found.parts["unembed"][0])
    return names + ([] if tied else ["unembed"])


@dataclass(frozen=True)
class _Layout:
    """Where an architecture keeps its parts.

    `head(layer, i)` gives masks; `parts` lists of parameter names; `shares` heads that share keys and values (1: none).
    """

    layers: int
    heads: int
    mlp: bool
    head: Callable[[int, int], dict[str, Tensor | None]]
    attention: str
    mlp_prefix: str
    parts: dict[str, list[str]]
    shares: int = 1

    def note(self, layer: int, head: int) -> str:
        """That the keys and values of a head are those of others, too."""
        first = head - head % self.shares
        others = [f"l{layer}h{i}" for i in range(first, first + self.shares) if i != head]
        return f"its keys and values are shared with {', '.join(others)}" if others else ""


def _known(
    layout: Callable[[nn.Module], _Layout | None],
) -> Callable[[nn.Module, str], Component | None]:
    def component(module: nn.Module, what: str) -> Component | None:
        found = layout(module)
        if found is None:
            return None
        if what in found.parts:
            for name in found.parts[what]:
                _say_if_tied(module, name)
            return Component(what, dict.fromkeys(name for name in found.parts[what] if not _left_out(module, name)))
        match = re.fullmatch(r"l(\d+)(?:h(\d+)| (attn|mlp))", what)
        if match is None:
            return None
        layer = int(match[1])
        if layer >= found.layers or (match[2] and int(match[2]) >= found.heads):
            raise PatterningError(f"{what!r}: the model has {found.layers} layers of {found.heads} heads, from 0")
        if match[2]:
            return Component(what, found.head(layer, int(match[2])), found.note(layer, int(match[2])))
        prefix = (found.attention if match[3] == "attn" else found.mlp_prefix).format(layer)
        return Component(what, dict.fromkeys(_listed(module, lambda name: name.startswith(prefix))))

    return component


def _left_out(module: nn.Module, name: str) -> bool:
    """Whether a module was made without this parameter, a bias; raises `PatterningError` where it has no such place."""
    path, _, attribute = name.rpartition(".")
    try:
        own = module.get_submodule(path)._parameters
    except AttributeError:
        own = {}
    if attribute not in own:
        raise PatterningError(
            f"{type(module).__name__} has no parameter {name}, where this architecture keeps it: name the parameters "
            "yourself, by a pattern or a Component with masks"
        )
    return own[attribute] is None


def _rows(module: nn.Module, name: str, rows: Sequence[slice], axis: int = 0) -> dict[str, Tensor | None]:
    """Mask of slices along an axis of a parameter; nothing for a bias that the module was made without."""
    if _left_out(module, name):
        return {}
    mask = torch.zeros(module.get_parameter(name).shape, dtype=torch.bool)
    for part in rows:
        mask.transpose(0, axis)[part] = True
    return {name: mask}


def _own_layout(module: nn.Module) -> _Layout | None:
    from patterning.models.language import LanguageModel

    if not isinstance(module, LanguageModel):
        return None
    config = module.config
    size = config.width // config.heads

    def head(layer: int, i: int) -> dict[str, Tensor | None]:
        name, own = f"blocks.{layer}.attention", slice(i * size, (i + 1) * size)
        thirds = [slice(k * config.width + own.start, k * config.width + own.stop) for k in range(3)]
        return {
            **_rows(module, f"{name}.qkv.weight", thirds),
            **_rows(module, f"{name}.qkv.bias", thirds),
            **_rows(module, f"{name}.out.weight", [own], axis=1),
        }

    parts = {
        "embed": ["embed.weight"],
        "positions": ["positions.weight"],
        "unembed": ["unembed.weight", "unembed.bias"],
    }
    return _Layout(
        config.layers, config.heads, config.mlp_ratio > 0, head, "blocks.{}.attention.", "blocks.{}.mlp.", parts
    )


def _gpt2_layout(module: nn.Module) -> _Layout | None:
    config: Any = getattr(module, "config", None)
    if getattr(config, "model_type", None) != "gpt2" or not hasattr(module, "transformer"):
        return None
    width, size = config.n_embd, config.n_embd // config.n_head

    def head(layer: int, i: int) -> dict[str, Tensor | None]:
        name, own = f"transformer.h.{layer}.attn", slice(i * size, (i + 1) * size)
        thirds = [slice(k * width + own.start, k * width + own.stop) for k in range(3)]
        return {  # Conv1D keeps (in, out)
            **_rows(module, f"{name}.c_attn.weight", thirds, axis=1),
            **_rows(module, f"{name}.c_attn.bias", thirds),
            **_rows(module, f"{name}.c_proj.weight", [own]),
        }

    parts = {
        "embed": ["transformer.wte.weight"],
        "positions": ["transformer.wpe.weight"],
        "unembed": ["lm_head.weight"],
    }
    return _Layout(config.n_layer, config.n_head, True, head, "transformer.h.{}.attn.", "transformer.h.{}.mlp.", parts)


def _lens_layout(module: nn.Module) -> _Layout | None:
    config: Any = getattr(module, "cfg", None)
    if config is None or not hasattr(config, "n_heads") or not hasattr(module, "blocks"):
        return None

    # Under grouped-query attention several heads read the keys and values of one.
    groups = getattr(config, "n_key_value_heads", None) or config.n_heads
    shares, mark = config.n_heads // groups, "" if groups == config.n_heads else "_"

    def head(layer: int, i: int) -> dict[str, Tensor | None]:
        own: dict[str, Tensor | None] = {}
        of_head = {"W_Q": i, "W_O": i, "b_Q": i}
        of_group = {f"{mark}{name}": i // shares for name in ("W_K", "W_V", "b_K", "b_V")}
        for name, place in {**of_head, **of_group}.items():
            own |= _rows(module, f"blocks.{layer}.attn.{name}", [slice(place, place + 1)])
        return own

    parts = {"embed": ["embed.W_E"], "positions": ["pos_embed.W_pos"], "unembed": ["unembed.W_U", "unembed.b_U"]}
    mlp = not getattr(config, "attn_only", False)
    prefixes = ("blocks.{}.attn.", "blocks.{}.mlp.")
    return _Layout(config.n_layers, config.n_heads, mlp, head, *prefixes, parts, shares)


_ARCHITECTURES = tuple(_known(layout) for layout in (_own_layout, _gpt2_layout, _lens_layout))


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
