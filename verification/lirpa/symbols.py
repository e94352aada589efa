"""Which torch functions enter auto_LiRPA's graph as operators of our own, and attention modules written out for tracing.

The library traces a model with torch's TorchScript exporter at opset 12. For the time of a translation its symbolic functions are replaced, so that an
activation stays one node however the model calls it (module, functional, inside another layer); they are put back afterwards.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

OPSET = 12  # what the library exports at


def _helper() -> Any:
    try:
        from torch.onnx._internal.torchscript_exporter import symbolic_helper
    except ImportError:  # torch < 2.9
        from torch.onnx import symbolic_helper  # type: ignore[no-redef]
    return symbolic_helper


def _number(value: Any) -> float:
    return float(_helper()._maybe_get_const(value, "f"))


def _curve(g: Any, x: Any, name: str, *numbers: float) -> Any:
    return g.op("lde::Curve", x, name_s=name, **{f"n{k}_f": number for k, number in enumerate(numbers)}).setType(x.type())


def _constant(g: Any, value: float) -> Any:
    return g.op("Constant", value_t=torch.tensor(value, dtype=torch.float64))


def _plain(name: str) -> Callable[..., Any]:
    return lambda g, x, *_: _curve(g, x, name)


def _softplus(g: Any, x: Any, beta: Any, threshold: Any) -> Any:
    return _curve(g, x, "softplus", _number(beta), _number(threshold))


def _elu(g: Any, x: Any, alpha: Any, scale: Any = 1.0, speed: Any = 1.0) -> Any:
    return _curve(g, x, "elu", *(v if isinstance(v, float) else _number(v) for v in (alpha, scale, speed)))


def _selu(g: Any, x: Any) -> Any:
    return _curve(g, x, "elu", 1.6732632423543772848170429916717, 1.0507009873554804934193349852946, 1.0)


def _celu(g: Any, x: Any, alpha: Any) -> Any:
    return _curve(g, x, "elu", _number(alpha), 1.0, 1 / _number(alpha))


def _gelu(g: Any, x: Any, approximate: Any) -> Any:
    return _curve(g, x, "tanh gelu" if _helper()._maybe_get_const(approximate, "s") == "tanh" else "gelu")


def _hardtanh(g: Any, x: Any, low: Any, high: Any) -> Any:
    return _curve(g, x, "clipped", _number(low), _number(high))


def _clamp(g: Any, x: Any, low: Any = None, high: Any = None) -> Any:
    none = _helper()._is_none
    return _curve(
        g, x, "clipped", -math.inf if low is None or none(low) else _number(low), math.inf if high is None or none(high) else _number(high)
    )


def _pow(g: Any, x: Any, exponent: Any) -> Any:
    value = _helper()._maybe_get_const(exponent, "f")
    return _curve(g, x, "square") if value in (2, 2.0) else g.op("Pow", x, exponent)


def _softmax(g: Any, x: Any, dim: Any, dtype: Any = None) -> Any:
    axis = dim if isinstance(dim, int) else int(_helper()._maybe_get_const(dim, "i"))
    return g.op("lde::Softmax", x, axis_i=axis).setType(x.type())


def _normalised(g: Any, x: Any, count: int, eps: float) -> Any:
    """(x − mean)/√(variance + ε) over the last `count` axes."""
    rest = g.op("Sub", x, g.op("ReduceMean", x, axes_i=[-k for k in range(count, 0, -1)]))
    return g.op("lde::Normal", rest, count_i=count, eps_f=eps)


def _scaled(g: Any, x: Any, weight: Any, bias: Any) -> Any:
    none = _helper()._is_none
    x = x if weight is None or none(weight) else g.op("Mul", x, weight)
    return x if bias is None or none(bias) else g.op("Add", x, bias)


def _layer_norm(g: Any, x: Any, shape: Any, weight: Any, bias: Any, eps: Any, *_: Any) -> Any:
    count = len(_helper()._maybe_get_const(shape, "is"))
    return _scaled(g, _normalised(g, x, count, _number(eps)), weight, bias)


def _per_channel(g: Any, value: Any, axes: int) -> Any:
    """A vector over the channels, of shape (channels, 1, …)."""
    for axis in range(1, 1 + axes):
        value = g.op("Unsqueeze", value, axes_i=[axis])
    return value


def _group_norm(g: Any, x: Any, groups: Any, weight: Any, bias: Any, eps: Any, *_: Any) -> Any:
    sizes = _helper()._get_tensor_sizes(x)
    parts = groups if isinstance(groups, int) else int(_helper()._maybe_get_const(groups, "i"))
    shape = [-1, parts, math.prod(sizes[1:]) // parts]
    rows = g.op("Reshape", x, g.op("Constant", value_t=torch.tensor(shape)))
    rows.setType(x.type().with_sizes([sizes[0], *shape[1:]]))
    back = g.op("Reshape", _normalised(g, rows, 1, _number(eps)), g.op("Constant", value_t=torch.tensor([-1, *sizes[1:]])))
    none = _helper()._is_none
    return _scaled(g, back, *(v if none(v) else _per_channel(g, v, len(sizes) - 2) for v in (weight, bias)))


def _attention(g: Any, q: Any, k: Any, v: Any, mask: Any, dropout: Any, causal: Any, scale: Any = None, *_: Any) -> Any:
    helper = _helper()
    if not helper._is_none(mask) or helper._maybe_get_const(causal, "b"):
        raise NotImplementedError("masked attention")
    sizes = helper._get_tensor_sizes(q)
    axes = list(range(len(sizes)))
    factor = _number(scale) if scale is not None and not helper._is_none(scale) else 1 / math.sqrt(sizes[-1])
    turned = g.op("Transpose", k, perm_i=[*axes[:-2], axes[-1], axes[-2]])
    weights = g.op("lde::Softmax", g.op("MatMul", g.op("Mul", q, _constant(g, factor)), turned), axis_i=len(sizes) - 1)
    return g.op("MatMul", weights, v)


SYMBOLS: dict[str, Callable[..., Any]] = {
    "aten::celu": _celu,
    "aten::clamp": _clamp,
    "aten::elu": _elu,
    "aten::elu_": _elu,
    "aten::gelu": _gelu,
    "aten::group_norm": _group_norm,
    "aten::hardsigmoid": _plain("hard sigmoid"),
    "aten::hardswish": _plain("hard swish"),
    "aten::hardswish_": _plain("hard swish"),
    "aten::hardtanh": _hardtanh,
    "aten::hardtanh_": _hardtanh,
    "aten::layer_norm": _layer_norm,
    "aten::log_sigmoid": _plain("log sigmoid"),
    "aten::mish": _plain("mish"),
    "aten::pow": _pow,
    "aten::relu6": lambda g, x: _curve(g, x, "clipped", 0.0, 6.0),
    "aten::scaled_dot_product_attention": _attention,
    "aten::selu": _selu,
    "aten::silu": _plain("silu"),
    "aten::silu_": _plain("silu"),
    "aten::softmax": _softmax,
    "aten::softplus": _softplus,
    "aten::square": _plain("square"),
}


@contextlib.contextmanager
def symbols() -> Iterator[None]:
    """Our symbolic functions inside, torch's outside; attention is traced step by step, not by its fused kernel."""
    exporter: Any = importlib.import_module("torch.onnx")
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for name, function in SYMBOLS.items():
        exporter.register_custom_op_symbolic(name, function, OPSET)
    try:
        yield
    finally:
        for name in SYMBOLS:
            exporter.unregister_custom_op_symbolic(name, OPSET)
        torch.backends.mha.set_fastpath_enabled(fused)


class Attention(nn.Module):
    """`nn.MultiheadAttention` with the batch first, without masks, in steps whose bounds are known."""

    def __init__(self, of: nn.MultiheadAttention) -> None:
        super().__init__()
        if not of.batch_first or of.bias_k is not None or of.add_zero_attn:
            raise NotImplementedError("MultiheadAttention with batch_first=False, bias_k or add_zero_attn")
        self.heads, self.out_proj, self.batch_first = of.num_heads, of.out_proj, True
        weights = of.in_proj_weight.chunk(3) if of.in_proj_weight is not None else (of.q_proj_weight, of.k_proj_weight, of.v_proj_weight)
        biases = of.in_proj_bias.chunk(3) if of.in_proj_bias is not None else (None, None, None)
        layers = []
        for weight, bias in zip(weights, biases, strict=True):
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype, device=weight.device)
            layer.weight.data = weight.detach().clone()
            if bias is not None:
                layer.bias.data = bias.detach().clone()
            layers.append(layer.requires_grad_(False))
        self.query, self.key, self.value = layers

    def forward(self, query: Tensor, key: Tensor, value: Tensor, key_padding_mask: Any = None, need_weights: bool = True, attn_mask: Any = None,
                average_attn_weights: bool = True, is_causal: bool = False) -> tuple[Tensor, Tensor | None]:  # fmt: skip
        if key_padding_mask is not None or attn_mask is not None or is_causal:
            raise NotImplementedError("masked attention")
        q, k, v = self._split(self.query(query)), self._split(self.key(key)), self._split(self.value(value))
        weights = torch.softmax((q * (1 / math.sqrt(q.shape[-1]))) @ k.transpose(-1, -2), -1)
        out = (weights @ v).transpose(1, 2)
        return self.out_proj(out.reshape(-1, query.shape[1], out.shape[2] * out.shape[3])), weights.mean(1) if need_weights else None

    def _split(self, x: Tensor) -> Tensor:
        return x.reshape(-1, x.shape[1], self.heads, x.shape[2] // self.heads).transpose(1, 2)


def written_out(model: nn.Module) -> nn.Module:
    """The model with every attention module replaced; itself when it has none."""
    if not any(isinstance(m, nn.MultiheadAttention) for m in model.modules()):
        return model
    twin = copy.deepcopy(model)
    if isinstance(twin, nn.MultiheadAttention):
        return Attention(twin)
    for module in list(twin.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.MultiheadAttention):
                setattr(module, name, Attention(child))
    return twin
