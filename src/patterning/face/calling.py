"""How a language model or classifier is called: what its `forward` takes, what it has room for, and its logits."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from patterning.core.batch import Batch
from patterning.core.errors import PatterningError
from patterning.face.token_batch import IGNORED

LONGEST = ("max_position_embeddings", "n_positions", "max_seq_len")
"""What configurations call the number of positions."""


def config_of(model: nn.Module) -> Any:
    """The model's configuration, or None."""
    return getattr(model, "config", None)


def vocabulary_of(model: nn.Module) -> int | None:
    """How many tokens the model has, where its configuration says so."""
    value = getattr(config_of(model), "vocab_size", None)
    return value if isinstance(value, int) else None


def longest_of(model: nn.Module) -> int | None:
    """Most tokens of a row, where the configuration says so.

    Models of RoBERTa's kind count positions from `padding_idx` + 1 on, so that their first positions serve no token.
    """
    config = config_of(model)
    stated = [getattr(config, name, None) for name in LONGEST]
    longest = next((value for value in stated if isinstance(value, int) and value > 0), None)  # -1: no limit
    for name, part in model.named_modules() if longest is not None else ():
        if name.endswith("position_embeddings") and getattr(part, "padding_idx", None) is not None:
            rows: Any = getattr(part, "num_embeddings", longest)
            return min(longest, rows) - int(part.padding_idx) - 1  # pyright: ignore[reportArgumentType]
    return longest


def inside(model: nn.Module) -> nn.Module | None:
    """What a wrapper calls: the base model of an adapter, what was compiled, or the only child; else None."""
    base: Any = getattr(model, "get_base_model", None)
    if callable(base):
        found = base()
        return found if isinstance(found, nn.Module) and found is not model else None
    children = [part for part in model.children() if not isinstance(part, nn.ModuleList | nn.Sequential)]
    return children[0] if len(children) == 1 and len(list(model.children())) == 1 else None


def unwrapped(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """The module within `torch.compile` and `nn.DataParallel`, neither of which can be copied; and a note."""
    notes: tuple[str, ...] = ()
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        what = "torch.compile" if hasattr(model, "_orig_mod") else type(model).__name__
        inner: Any = model._orig_mod if hasattr(model, "_orig_mod") else model.module
        model, notes = inner, (*notes, f"the task takes the module within {what}")
    return model, notes


def forward_names(model: nn.Module) -> tuple[str, ...]:
    """What `forward` takes by name; where it passes **kwargs on, to a parent class or a wrapped model, theirs too."""
    names = dict[str, None]()
    for kind in type(model).__mro__:
        if kind is nn.Module:
            break
        if "forward" not in vars(kind):
            continue
        parameters = inspect.signature(vars(kind)["forward"]).parameters.values()
        passed_on = False
        for parameter in parameters:
            passed_on |= parameter.kind is parameter.VAR_KEYWORD
            if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) and parameter.name != "self":
                names[parameter.name] = None
        if not passed_on:
            return tuple(names)
    inner = inside(model)
    return tuple(names | dict.fromkeys(forward_names(inner) if inner is not None else ()))


def predicts_masked(model: nn.Module) -> bool:
    """Whether the model's class, one that it is made of, or that of a wrapped model is called `…ForMaskedLM`."""
    if any(kind.__name__.endswith("MaskedLM") for kind in type(model).__mro__):
        return True
    inner = inside(model)
    return inner is not None and predicts_masked(inner)


def logits_of(model: nn.Module, batch: Batch, arguments: tuple[str, ...]) -> Tensor:
    """The logits of a batch; raises `PatterningError` where the model returns none."""
    options: dict[str, Any] = {name: batch[name] for name in arguments if name in batch}
    if "use_cache" in arguments:
        options["use_cache"] = False
    output = model(**options)
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if not isinstance(logits, Tensor):
        raise PatterningError(
            f"{type(model).__name__} returned {type(output).__name__} without logits: use the model with its output "
            "layer (AutoModelForCausalLM, AutoModelForSequenceClassification), or pt.Task with a loss of your own"
        )
    return logits


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model without dropout, and afterwards as it was."""
    training = [part for part in model.modules() if part.training]
    try:
        for part in training:
            part.training = False
        yield
    finally:
        for part in training:
            part.training = True


def check_batch(model: nn.Module, batch: dict[str, Tensor]) -> None:
    """Raise `PatterningError` for tokens, lengths or masks that the model has no place for."""
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    vocabulary, longest = vocabulary_of(model), longest_of(model)
    if vocabulary is not None and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise PatterningError(
            f"input_ids hold {int(ids.min())} to {int(ids.max())}, and the model has {vocabulary} tokens: the "
            "tokenizer is not the model's"
        )
    if longest is not None and ids.shape[1] > longest:
        raise PatterningError(
            f"the rows have {ids.shape[1]} tokens, and the model has {longest} positions: "
            f"tokenizer(texts, truncation=True, max_length={longest})"
        )
    if mask is not None and bool((mask == 0).all(1).any()):
        raise PatterningError(f"row {int((mask == 0).all(1).nonzero()[0])} of the data is padding alone: leave it out")


def check_below(most: int | None, what: str, values: Tensor | None) -> None:
    """Raise `PatterningError` for classes or tokens other than 0 to `most` - 1, and -100."""
    if values is None or most is None:
        return
    bad = (values != IGNORED) & ((values < 0) | (values >= most))
    if bool(bad.any()):
        place = bad.nonzero()[0].tolist()
        raise PatterningError(
            f"{what} of row {place[0]} hold {int(values[tuple(place)])}: they must be 0 to {most - 1}, or -100 for no "
            "sample"
        )
