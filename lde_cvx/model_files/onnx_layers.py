r"""ONNX operators as torch layers: one function per operator, which reads a node's attributes and constants.

Layers keep the batch on axis 0; a node that would move or mix it is refused. Constants are float64 (float32 weights convert exactly).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from formulations.errors import InputError


@dataclass(frozen=True, eq=False)
class Node:
    """One operator of the graph: attributes, inputs (the constant, or None where the value is computed), known shapes of its first input."""

    where: str
    op: str
    attributes: dict[str, Any]
    constants: tuple[Tensor | None, ...]
    shape: tuple[int | None, ...] | None
    opset: int

    def fail(self, what: str) -> InputError:
        return InputError(f"{self.where}: operator {self.op}: {what}.")

    def constant(self, k: int, role: str) -> Tensor:
        value = self.constants[k] if k < len(self.constants) else None
        if value is None:
            raise self.fail(f"{role} is computed in the graph; only a stored constant is read")
        return value

    def optional(self, k: int, role: str) -> Tensor | None:
        return self.constant(k, role) if k < len(self.constants) and self.constants[k] is not None else None


class Arithmetic(nn.Module):
    """x ∘ y for ∘ in + − × ÷; with a stored constant, x ∘ c or c ∘ x."""

    _OPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div}

    def __init__(self, op: str, constant: Tensor | None, constant_first: bool) -> None:
        super().__init__()
        self.op, self.constant_first = op, constant_first
        self.constant: Tensor | None
        self.register_buffer("constant", constant)

    def forward(self, x: Tensor, *rest: Tensor) -> Tensor:
        y = rest[0] if self.constant is None else self.constant
        return self._OPS[self.op](y, x) if self.constant_first else self._OPS[self.op](x, y)

    def extra_repr(self) -> str:
        return self.op


class Reshape(nn.Module):
    """(n, …) → (n, *sizes); one size may be −1, and 0 copies the size of the same axis."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, x: Tensor) -> Tensor:
        sizes = [x.shape[k + 1] if s == 0 else s for k, s in enumerate(self.sizes)]
        return x.reshape(x.shape[0] if -1 in sizes else -1, *sizes)


class Permute(nn.Module):
    """Axes in another order."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


class Concat(nn.Module):
    """Several values one after the other along an axis that is not the batch."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *xs: Tensor) -> Tensor:
        return torch.cat(xs, dim=self.axis)


class Product(nn.Module):
    """Matrix product of two computed values."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.matmul(x, y)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """x ↦ x·weight + bias for weight (in, out)."""
    layer = nn.Linear(weight.shape[0], weight.shape[1], bias=bias is not None, dtype=torch.float64)
    layer.weight.data = weight.T.contiguous()
    if bias is not None:
        layer.bias.data = bias.expand(weight.shape[1]).contiguous()
    return layer


def _gemm(node: Node) -> nn.Module:
    if node.attributes.get("transA", 0):
        raise node.fail("transA=1 moves the batch axis")
    weight = node.constant(1, "the matrix B").to(torch.float64)
    weight = (weight.T if node.attributes.get("transB", 0) else weight) * float(node.attributes.get("alpha", 1.0))
    c = node.optional(2, "the bias C")
    bias = None if c is None else as_bias(c.to(torch.float64) * float(node.attributes.get("beta", 1.0)), weight.shape[1])
    if c is not None and bias is None:
        raise node.fail(f"its bias of shape {tuple(c.shape)} is not one number per output")
    if len(node.constants) > 2 and c is None:
        raise node.fail("its bias is computed in the graph; only a stored constant is read")
    return _linear(weight, bias)


def as_bias(c: Tensor, outputs: int) -> Tensor | None:
    """c as a vector (outputs,) when it is one number per output (or one for all), else None."""
    return c.reshape(-1).expand(outputs) if c.numel() in (1, outputs) and (c.numel() == 1 or c.shape[-1] == outputs) else None


def _matmul(node: Node) -> nn.Module:
    if node.constants[0] is not None:
        raise node.fail("a constant on the left would mix the batch; write it as x·W")
    if node.constants[1] is None:
        return Product()
    weight = node.constants[1].to(torch.float64)
    if weight.ndim != 2:
        raise node.fail(f"its matrix has shape {tuple(weight.shape)}; two axes are read")
    return _linear(weight, None)


def _arithmetic(node: Node) -> nn.Module:
    first, second = node.constants
    constant = second if first is None else first
    return Arithmetic(node.op, None if constant is None else constant.to(torch.float64), first is not None)


def _conv(node: Node) -> nn.Module:
    weight, bias = node.constant(1, "the kernel").to(torch.float64), node.optional(2, "the bias")
    axes = weight.ndim - 2
    if axes not in (1, 2):
        raise node.fail(f"its kernel has {axes} spatial axes; 1 and 2 are read")
    begin, end = _pads(node, tuple(weight.shape[2:]))
    groups = int(node.attributes.get("group", 1))
    conv = (nn.Conv1d if axes == 1 else nn.Conv2d)(
        weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]),  # type: ignore[arg-type]
        stride=_sizes(node, "strides", axes), dilation=_sizes(node, "dilations", axes), groups=groups,  # type: ignore[arg-type]
        padding=begin if begin == end else 0, bias=bias is not None, dtype=torch.float64,  # type: ignore[arg-type]
    )  # fmt: skip
    conv.weight.data = weight.contiguous()
    if bias is not None and conv.bias is not None:
        conv.bias.data = bias.to(torch.float64).contiguous()
    if begin == end:
        return conv
    if axes == 1:
        return nn.Sequential(nn.ConstantPad1d((begin[0], end[0]), 0.0), conv)
    return nn.Sequential(nn.ZeroPad2d((begin[1], end[1], begin[0], end[0])), conv)


def _sizes(node: Node, name: str, axes: int) -> tuple[int, ...]:
    return tuple(int(v) for v in node.attributes.get(name, [1] * axes))


def _pads(node: Node, kernel: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(begin, end) zeros per spatial axis, from `pads` or from `auto_pad`."""
    axes, mode = len(kernel), node.attributes.get("auto_pad", b"NOTSET").decode()
    if mode == "VALID":
        return (0,) * axes, (0,) * axes
    if mode == "NOTSET":
        pads = [int(v) for v in node.attributes.get("pads", [0] * (2 * axes))]
        return tuple(pads[:axes]), tuple(pads[axes:])
    if mode not in ("SAME_UPPER", "SAME_LOWER"):
        raise node.fail(f"auto_pad={mode} is not known")
    begin, end = [], []
    strides, dilations = _sizes(node, "strides", axes), _sizes(node, "dilations", axes)
    for k in range(axes):
        size = node.shape[2 + k] if node.shape is not None and len(node.shape) == axes + 2 else None
        if size is None:
            raise node.fail(f"auto_pad={mode} needs a known input size; run onnx.shape_inference and store the model again")
        total = max((-(-size // strides[k]) - 1) * strides[k] + dilations[k] * (kernel[k] - 1) + 1 - size, 0)
        small, large = total // 2, total - total // 2
        begin.append(small if mode == "SAME_UPPER" else large)
        end.append(large if mode == "SAME_UPPER" else small)
    return tuple(begin), tuple(end)


def _pool(node: Node) -> nn.Module:
    kernel = tuple(int(v) for v in node.attributes["kernel_shape"])
    axes = len(kernel)
    if axes not in (1, 2):
        raise node.fail(f"its kernel has {axes} axes; 1 and 2 are read")
    begin, end = _pads(node, kernel)
    if begin != end:
        raise node.fail(f"its padding {begin} before and {end} after differ; pad with a convolution or choose an even size")
    stride, ceil = _sizes(node, "strides", axes), bool(node.attributes.get("ceil_mode", 0))
    dilation = _sizes(node, "dilations", axes)
    if node.op == "MaxPool":
        pool = nn.MaxPool1d if axes == 1 else nn.MaxPool2d
        return pool(kernel, stride, begin, dilation, ceil_mode=ceil)  # type: ignore[arg-type]
    if set(dilation) != {1}:
        raise node.fail(f"dilations={dilation} are not read")
    average = nn.AvgPool1d if axes == 1 else nn.AvgPool2d
    return average(kernel, stride, begin, ceil, bool(node.attributes.get("count_include_pad", 0)))  # type: ignore[arg-type]


def _global_average(node: Node) -> nn.Module:
    rank = _rank(node)
    if rank not in (3, 4):
        raise node.fail(f"its input has {rank} axes; 3 and 4 are read")
    return nn.AdaptiveAvgPool1d(1) if rank == 3 else nn.AdaptiveAvgPool2d((1, 1))


def _batch_norm(node: Node) -> nn.Module:
    if node.attributes.get("training_mode", 0):
        raise node.fail("training_mode=1 depends on the batch; export the model in evaluation mode")
    scale, shift, mean, variance = (node.constant(k, r).to(torch.float64) for k, r in enumerate(("scale", "shift", "mean", "variance"), 1))
    rank = _rank(node)
    if rank not in (2, 3, 4):
        raise node.fail(f"its input has {rank} axes; 2 to 4 are read")
    layer = (nn.BatchNorm2d if rank == 4 else nn.BatchNorm1d)(
        len(scale), eps=float(node.attributes.get("epsilon", 1e-5)), dtype=torch.float64
    )
    layer.load_state_dict(
        {"weight": scale, "bias": shift, "running_mean": mean, "running_var": variance, "num_batches_tracked": torch.tensor(0)}
    )
    return layer


def _rank(node: Node) -> int:
    if node.shape is None:
        raise node.fail("the number of its input's axes is unknown; run onnx.shape_inference and store the model again")
    return len(node.shape)


def _reshape(node: Node) -> nn.Module:
    sizes = tuple(int(v) for v in node.constant(1, "the shape").tolist())
    if node.attributes.get("allowzero", 0):
        raise node.fail("allowzero=1 is not read")
    if len(sizes) < 2 or sizes[0] not in (-1, 0, 1, None if node.shape is None else node.shape[0]):
        raise node.fail(f"the shape {list(sizes)} does not keep the batch on the first axis")
    rest = sizes[1:]
    return nn.Flatten(1) if len(rest) == 1 and rest[0] != 0 else Reshape(rest)


def _flatten(node: Node) -> nn.Module:
    if node.attributes.get("axis", 1) != 1:
        raise node.fail(f"axis={node.attributes['axis']} does not keep the batch on the first axis")
    return nn.Flatten(1)


def _transpose(node: Node) -> nn.Module:
    order = tuple(int(v) for v in node.attributes.get("perm", ()))
    if node.constants[0] is None and (not order or order[0] != 0):
        raise node.fail(f"perm={list(order)} moves the batch axis")
    if not order:
        order = tuple(reversed(range(node.constants[0].ndim if node.constants[0] is not None else 0)))
    return Permute(order)


def _softmax(node: Node) -> nn.Module:
    axis = int(node.attributes.get("axis", 1 if node.opset < 13 else -1))
    if node.opset < 13 and (node.shape is None or len(node.shape) != 2):
        raise node.fail("before opset 13 only two axes are read; convert the model with onnx.version_converter")
    if axis == 0:
        raise node.fail("axis=0 mixes the batch")
    return nn.Softmax(dim=axis)


def _concat(node: Node) -> nn.Module:
    axis = int(node.attributes["axis"])
    if axis == 0 or any(c is not None for c in node.constants):
        raise node.fail("joins along the batch, or joins a constant; neither is read")
    return Concat(axis)


def _single(layer: Callable[[], nn.Module]) -> Callable[[Node], nn.Module]:
    return lambda node: layer()


LAYERS: dict[str, Callable[[Node], nn.Module]] = {
    "Add": _arithmetic,
    "AveragePool": _pool,
    "BatchNormalization": _batch_norm,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _arithmetic,
    "Dropout": _single(nn.Identity),
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average,
    "Identity": _single(nn.Identity),
    "LeakyRelu": lambda node: nn.LeakyReLU(float(node.attributes.get("alpha", 0.01))),
    "MatMul": _matmul,
    "MaxPool": _pool,
    "Mul": _arithmetic,
    "Relu": _single(nn.ReLU),
    "Reshape": _reshape,
    "Sigmoid": _single(nn.Sigmoid),
    "Softmax": _softmax,
    "Sub": _arithmetic,
    "Tanh": _single(nn.Tanh),
    "Transpose": _transpose,
}


def tensor(array: Any) -> Tensor:
    """A stored constant: floats as float64, whole numbers as they are."""
    values = np.array(array)
    return torch.from_numpy(values.astype(np.float64) if values.dtype.kind == "f" else values)
