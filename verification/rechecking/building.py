"""The layers of a model file, built from their arguments and tensors. It needs numpy and python-flint only.

Every kind that level B covers has one line in `_KINDS`; another kind, or an option that changes the function and is not read, raises `LayerError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from verification.rechecking.activations import Rectifier, Sigmoid, Tanh
from verification.rechecking.affine import Add, Conv, Dense, Reshape, Scale
from verification.rechecking.graph import Layer, LayerError, Network, Node
from verification.rechecking.pooling import MaxPool
from verification.rechecking.rounding import TINY, Array, Shape, U
from verification.rechecking.sliding import Sliding

__all__ = ["Builder"]

MAX_DEPTH = 20


class Builder:
    """Appends nodes, layer by layer."""

    def __init__(self, tensors: Mapping[str, np.ndarray], shape_in: Shape) -> None:
        self.tensors, self.shape_in, self.nodes = tensors, shape_in, list[Node]()

    def network(self, layers: Mapping[str, Any]) -> Network:
        """All of a model; its last value is the output."""
        last = self.add(layers, "", -1, 0)
        if not self.nodes or last != len(self.nodes) - 1:
            self.put("output", Reshape(self.shape(last), self.shape(last)), last)
        return Network(self.shape_in, tuple(self.nodes))

    def shape(self, i: int) -> Shape:
        return self.shape_in if i < 0 else self.nodes[i].layer.shape

    def put(self, name: str, layer: Layer, *sources: int) -> int:
        self.nodes.append(Node(name, layer, sources))
        return len(self.nodes) - 1

    def add(self, record: Any, name: str, source: int, depth: int) -> int:
        """Appends a layer after `source`; the place of its value."""
        kind = record.get("kind") if isinstance(record, Mapping) else None
        if not isinstance(kind, str) or depth > MAX_DEPTH:
            raise LayerError(f"layer {name or 'model'!r} is no table of layers")
        if kind == "Sequential":
            return self._chain(record, "layers", name, source, depth)
        if kind == "Residual":
            ends = [self._chain(record, key, f"{name}.{key}".lstrip("."), source, depth) for key in ("layers", "shortcut")]
            if self.shape(ends[0]) != self.shape(ends[1]):
                raise LayerError(f"layer {name!r} (Residual) adds shapes {self.shape(ends[0])} and {self.shape(ends[1])}")
            return self.put(name, Add(self.shape(ends[0])), *ends)
        if kind in ("Identity", "Dropout"):
            return source
        if kind not in _KINDS:
            raise LayerError(f"layer {name or 'model'!r} ({kind}) is not covered")
        try:
            for layer in _KINDS[kind](_Arguments(record, self.tensors, name, self.shape(source))):
                source = self.put(name or "model", layer, source)
        except (KeyError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, LayerError):
                raise
            raise LayerError(f"layer {name or 'model'!r} ({kind}) cannot be read: {error}") from None
        return source

    def _chain(self, record: Mapping[str, Any], key: str, name: str, source: int, depth: int) -> int:
        if not isinstance(record.get(key, []), list):
            raise LayerError(f"layer {name or 'model'!r} is no table of layers")
        for i, layer in enumerate(record.get(key, [])):
            source = self.add(layer, f"{name}.{i}".lstrip("."), source, depth + 1)
        return source


@dataclass(frozen=True, eq=False)
class _Arguments:
    """One layer's arguments and tensors, and the shape that comes in."""

    record: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]
    name: str
    shape: Shape

    def __getitem__(self, key: str) -> Any:
        return self.record[key]

    def refuse(self, why: str) -> LayerError:
        return LayerError(f"layer {self.name or 'model'!r} ({self.record['kind']}) {why}")

    def tensor(self, key: str, *shape: int) -> Array:
        """A tensor of this layer in float64. Raises LayerError on another shape or on values that are not finite."""
        full = f"{self.name}.{key}".lstrip(".")
        if full not in self.tensors or self.tensors[full].shape != shape:
            raise self.refuse(f"needs a tensor {full!r} of shape {shape}")
        out = np.ascontiguousarray(self.tensors[full], dtype=np.float64)
        if not np.isfinite(out).all():
            raise self.refuse(f"has a value in {full!r} that is not finite")
        return out

    def pair(self, key: str, dims: int, default: Any = None) -> tuple[int, int]:
        """Integers along height and width; in one dimension the height is trivial (1, or 0 for padding)."""
        value = self.record.get(key, default)
        values = list(value) if isinstance(value, list | tuple) else [value] * dims
        if len(values) != dims or not all(type(v) is int for v in values):
            raise self.refuse(f"has {key}={value!r}")
        return (values[0], values[1]) if dims == 2 else (0 if key == "padding" else 1, values[0])

    def image(self, dims: int) -> tuple[Shape, Callable[[Shape], Shape], list[Layer]]:
        """The shape as (channels, height, width), how to go back, and the layer that does it before one-dimensional layers."""
        if len(self.shape) != dims + 1:
            raise self.refuse(f"does not take inputs of shape {self.shape}")
        if dims == 2:
            return self.shape, lambda s: s, []
        flat = (self.shape[0], 1, self.shape[1])
        return flat, lambda s: (s[0], s[2]), [Reshape(self.shape, flat)]


def _linear(a: _Arguments) -> list[Layer]:
    if not a.shape or a.shape[-1] != a["in_features"]:
        raise a.refuse(f"does not take inputs of shape {a.shape}")
    W = a.tensor("weight", a["out_features"], a["in_features"])
    return [Dense.of(W, a.tensor("bias", a["out_features"]) if a["bias"] else None, a.shape)]


def _conv(dims: int) -> Callable[[_Arguments], list[Layer]]:
    def build(a: _Arguments) -> list[Layer]:
        shape, back, before = a.image(dims)
        if a["padding_mode"] != "zeros":
            raise a.refuse(f"has padding_mode={a['padding_mode']!r}, which is not covered")
        kernel, dilation = a.pair("kernel_size", dims), a.pair("dilation", dims)
        if a["padding"] == "same":
            total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
            pads = (total[0] // 2, total[0] - total[0] // 2, total[1] // 2, total[1] - total[1] // 2)
        else:
            p = (0, 0) if a["padding"] == "valid" else a.pair("padding", dims)
            pads = (p[0], p[0], p[1], p[1])
        W = a.tensor("weight", a["out_channels"], a["in_channels"] // a["groups"], *kernel[2 - dims :]).reshape(
            a["out_channels"], a["in_channels"] // a["groups"], *kernel
        )
        bias = a.tensor("bias", a["out_channels"]) if a["bias"] else None
        conv = Conv.of(W, bias, shape, Sliding(kernel, a.pair("stride", dims), dilation, pads), a["groups"])
        return _restored([*before, conv], back)

    return build


def _batch_norm(a: _Arguments) -> list[Layer]:
    n = a["num_features"]
    if not a.shape or a.shape[0] != n or not a["track_running_stats"]:
        raise a.refuse(f"does not take inputs of shape {a.shape}, or keeps no statistics")
    weight, bias = (a.tensor("weight", n), a.tensor("bias", n)) if a["affine"] else (np.ones(n), np.zeros(n))
    variance = a.tensor("running_var", n)
    if variance.min() < 0 or not a["eps"] > 0:
        raise a.refuse("has a variance that is negative, or no eps")
    return [Scale.batch_norm(a.tensor("running_mean", n), variance, float(a["eps"]), weight, bias, a.shape)]


def _average(dims: int) -> Callable[[_Arguments], list[Layer]]:
    def build(a: _Arguments) -> list[Layer]:
        shape, back, before = a.image(dims)
        kernel = a.pair("kernel_size", dims)
        stride = kernel if a["stride"] is None else a.pair("stride", dims)
        pads = a.pair("padding", dims)
        if a["ceil_mode"]:
            raise a.refuse("has ceil_mode=True, which is not covered")
        ones = np.ones((shape[0], 1, *kernel))
        total = Conv.of(ones, None, shape, Sliding(kernel, stride, pads=(pads[0], pads[0], pads[1], pads[1])), shape[0])
        count = np.full(total.shape, float(kernel[0] * kernel[1]))
        if not a["count_include_pad"]:
            count = total.apply(np.ones((1, *shape)))[0]
        if a.record.get("divisor_override"):
            count = np.full(total.shape, float(a["divisor_override"]))
        return _restored([*before, total, Scale.of(1 / count, None, None, 2 * U)], back)

    return build


def _adaptive(dims: int) -> Callable[[_Arguments], list[Layer]]:
    def build(a: _Arguments) -> list[Layer]:
        shape, back, before = a.image(dims)
        size = a.pair("output_size", dims)
        if shape[1] % size[0] or shape[2] % size[1]:
            raise a.refuse(f"averages windows of different sizes (inputs {shape}), which is not covered")
        kernel = (shape[1] // size[0], shape[2] // size[1])
        ones = np.ones((shape[0], 1, *kernel))
        total = Conv.of(ones, None, shape, Sliding(kernel, kernel), shape[0])
        return _restored([*before, total, Scale.of(np.full(total.shape, 1.0 / (kernel[0] * kernel[1])), None, None, 2 * U)], back)

    return build


def _max(dims: int) -> Callable[[_Arguments], list[Layer]]:
    def build(a: _Arguments) -> list[Layer]:
        shape, back, before = a.image(dims)
        if a["ceil_mode"]:
            raise a.refuse("has ceil_mode=True, which is not covered")
        kernel = a.pair("kernel_size", dims)
        stride = kernel if a["stride"] is None else a.pair("stride", dims)
        p = a.pair("padding", dims)
        return _restored([*before, MaxPool.of(shape, Sliding(kernel, stride, a.pair("dilation", dims), (p[0], p[0], p[1], p[1])))], back)

    return build


def _restored(layers: list[Layer], back: Callable[[Shape], Shape]) -> list[Layer]:
    shape = layers[-1].shape
    return layers if back(shape) == shape else [*layers, Reshape(shape, back(shape))]


def _zero_pad(a: _Arguments) -> list[Layer]:
    left, right, top, bottom = a["padding"] if isinstance(a["padding"], list | tuple) else [a["padding"]] * 4
    ones = np.ones((a.shape[0], 1, 1, 1))
    return [Conv.of(ones, None, a.image(2)[0], Sliding((1, 1), pads=(top, bottom, left, right)), a.shape[0])]


def _flatten(a: _Arguments) -> list[Layer]:
    start, end = a["start_dim"], a["end_dim"]
    axes = len(a.shape) + 1  # with the batch
    start, end = start % axes, end % axes
    if not 1 <= start <= end:
        raise a.refuse(f"flattens from {a['start_dim']} to {a['end_dim']}: the batch must stay")
    return [Reshape(a.shape, (*a.shape[: start - 1], math.prod(a.shape[start - 1 : end]), *a.shape[end:]))]


def _normalize(a: _Arguments) -> list[Layer]:
    """(x − mean)/std, whose tensors broadcast against x: 1/std is off by one rounding, mean/std by another."""
    small = tuple(a["shape"])
    if np.broadcast_shapes(small, a.shape) != a.shape:
        raise a.refuse(f"does not take inputs of shape {a.shape}")
    mean, std = (np.ascontiguousarray(np.broadcast_to(a.tensor(key, *small), a.shape)) for key in ("mean", "std"))
    if not std.min() > 0:
        raise a.refuse("has a std that is not positive")
    shift = mean / std
    if not (np.isfinite(1 / std).all() and np.isfinite(shift).all()):
        raise a.refuse("has a std too small for float64")
    return [Scale.of(1 / std, -shift, 2 * U * np.abs(shift) + TINY, 2 * U)]


def _leaky(a: _Arguments) -> list[Layer]:
    slope = float(a["negative_slope"])
    if not 0 <= slope <= 1:
        raise a.refuse(f"has negative_slope={slope!r}, which is not covered")
    return [Rectifier(a.shape, slope)]


_KINDS: dict[str, Callable[[_Arguments], list[Layer]]] = {
    "Linear": _linear, "Conv1d": _conv(1), "Conv2d": _conv(2), "BatchNorm1d": _batch_norm, "BatchNorm2d": _batch_norm,
    "AvgPool1d": _average(1), "AvgPool2d": _average(2), "AdaptiveAvgPool1d": _adaptive(1), "AdaptiveAvgPool2d": _adaptive(2),
    "MaxPool1d": _max(1), "MaxPool2d": _max(2), "ZeroPad2d": _zero_pad, "Flatten": _flatten, "LeakyReLU": _leaky, "Normalize": _normalize,
    "ReLU": lambda a: [Rectifier(a.shape)], "Tanh": lambda a: [Tanh(a.shape)], "Sigmoid": lambda a: [Sigmoid(a.shape)],
}  # fmt: skip
