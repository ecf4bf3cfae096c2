"""Forward derivatives at their least cost: `fused_tangents` swaps in formulas that PyTorch has, but does not use here.

PyTorch's own forward formula of `linear` multiplies by a weight's tangent even where it is zero, and takes softmax and
LayerNorm apart. Softmax and normalisation have symmetric Jacobians, so their fused backward kernels are their forward
derivatives too. Exact, for any module that calls these functions; a layer whose weights do move is left as it is.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import FunctionCtx
from torch.overrides import TorchFunctionMode


def fused_tangents() -> TorchFunctionMode:
    """A context in which `torch.func.jvp` costs less. For forward derivatives alone: nothing in it has a backward."""
    return _Fused()


class _Fused(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        del types
        swap = _SWAPS.get(func)
        # Under autocast a tangent may have another type than its value: PyTorch's own formulas know what to do.
        found = None if swap is None or _rounds(args[0].device.type) else swap(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {})) if found is None else found


def _rounds(kind: str) -> bool:
    """Whether autocast is on for a kind of device; some have none."""
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def in_transform(value: Tensor | None) -> bool:
    """Whether a tensor is of a function transform that is under way: with a tangent or a replica axis, say."""
    return value is not None and torch._C._functorch.is_functorch_wrapped_tensor(value)  # pyright: ignore[reportAttributeAccessIssue]


class _Linear(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: FunctionCtx, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        (weight,) = ctx.saved_tensors
        return F.linear(tangents[0], weight)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor | None:
    return None if in_transform(weight) or in_transform(bias) else _Linear.apply(x, weight, bias)


class _LayerNorm(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor | None, bias: Tensor | None, dims: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.native_layer_norm(x, x.shape[-dims:], weight, bias, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, _, ctx.dims, _ = inputs
        ctx.scaled = weight is not None
        ctx.save_for_forward(x, output[1], output[2], *([weight] if ctx.scaled else []))

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, mean, rstd, *weight = ctx.saved_tensors
        found = torch.ops.aten.native_layer_norm_backward(
            tangents[0], x, x.shape[-ctx.dims :], mean, rstd, None, None, [True, False, False]
        )[0]
        nothing = torch.zeros_like(mean)  # no one reads these two outputs
        return found * weight[0] if ctx.scaled else found, nothing, nothing


def _layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor | None:
    if in_transform(weight) or in_transform(bias):
        return None
    return _LayerNorm.apply(input, weight, bias, len(normalized_shape), eps)[0]


class _Softmax(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, dim: int) -> Tensor:
        return x.softmax(dim)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.dim = inputs[1]
        ctx.save_for_forward(output)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        (p,) = ctx.saved_tensors
        return torch.ops.aten._softmax_backward_data(tangents[0], p, ctx.dim, p.dtype)


def _softmax(input: Tensor, dim: int | None = None, *rest: Any, **named: Any) -> Tensor | None:
    given = [*rest, *named.values()]
    return None if dim is None or any(value is not None for value in given) else _Softmax.apply(input, dim)


_SWAPS: dict[Any, Callable[..., Tensor | None]] = {
    F.linear: _linear,
    F.layer_norm: _layer_norm,
    torch.softmax: _softmax,
    torch.Tensor.softmax: _softmax,
}
