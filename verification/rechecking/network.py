r"""A network as the checker reads it: from a model file, without torch. It needs numpy and nothing else.

The file is safetensors: 8 bytes with the length n of the header (little-endian), n bytes of JSON {name: {"dtype", "shape", "data_offsets": [begin, end]}, …,
"__metadata__": {str: str}}, then the tensors' bytes. Its metadata holds, under "architecture", the layers:

    {"format": "lde-layers-1", "model": {"kind": "Sequential", "layers": [{"kind": "Linear", "in_features": 61, …}, {"kind": "ReLU"}, …]}}

Layer i of a Sequential owns the tensors "i.weight", "i.bias", …, nested ones "i.j.weight". Beyond what the writer of these files knows, a Residual
{"kind": "Residual", "layers": […], "shortcut": […]} is read: x ↦ layers(x) + shortcut(x), both lists as in a Sequential, with tensors "i.layers.j.…" and
"i.shortcut.j.…"; an empty shortcut is the identity.

The function meant is the real-valued one: weights as they are stored (float16, bfloat16 and float32 are exact in float64), layers in evaluation mode,
no rounding. Layers that level B does not know raise `LayerError`, which names them.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from verification.certificate_format import FormatError, decode, weights_hash
from verification.rechecking.layers import (
    TINY,
    Activation,
    Add,
    Affine,
    Array,
    Conv,
    Dense,
    MaxPool,
    Rectifier,
    Reshape,
    Scale,
    Shape,
    Sigmoid,
    Tanh,
    U,
)  # fmt: skip

__all__ = ["LayerError", "ModelFile", "Network", "Node", "read_model"]

LAYERS_FORMAT = "lde-layers-1"
MAX_HEADER = 100_000_000
MAX_DEPTH = 20
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}

Layer = Affine | Add | Activation | MaxPool


class LayerError(ValueError):
    """A layer that level B does not cover, or whose arguments do not fit; the message names it."""


@dataclass(frozen=True, eq=False)
class Node:
    """One value of the network: a layer applied to earlier values (−1: the input)."""

    name: str
    layer: Layer
    sources: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Network:
    """Values in the order of evaluation; the last one is the output."""

    shape_in: Shape
    nodes: tuple[Node, ...]

    def shape(self, i: int) -> Shape:
        return self.shape_in if i < 0 else self.nodes[i].layer.shape

    def activations(self) -> list[int]:
        """Places of the elementwise nonlinear layers, in order: the k-th of them is "layer k" of a certificate's relaxation."""
        return [i for i, node in enumerate(self.nodes) if not isinstance(node.layer, Affine | Add | MaxPool)]


@dataclass(frozen=True, eq=False)
class ModelFile:
    """What a model file says: the layers as plain values, and the tensors by name."""

    layers: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]

    def network(self, shape_in: Shape) -> Network:
        """The layers for inputs of this shape. Raises LayerError."""
        builder = _Builder(self.tensors, shape_in)
        last = builder.add(self.layers, "", -1, 0)
        if not builder.nodes or last != len(builder.nodes) - 1:
            last = builder.put("output", Reshape(builder.shape(last), builder.shape(last)), last)
        return Network(shape_in, tuple(builder.nodes))

    def lines(self) -> list[str] | None:
        """The layers in a certificate's words, "name: Kind(arguments)"; None where they are no Sequential and have no such words."""
        try:
            return _describe(self.layers, "")
        except (KeyError, TypeError, LayerError):
            return None

    def hash(self, architecture: str) -> str:
        return weights_hash(architecture, self.tensors)


def read_model(path: str | Path) -> ModelFile:
    """Reads a model file; the last one stays in memory, for many certificates of one model. Raises FormatError with one line when it is none."""
    try:
        stat = Path(path).stat()
        return _read(str(path), stat.st_mtime_ns, stat.st_size)
    except OSError as error:
        raise FormatError(f"the model file cannot be read: {error.strerror or error}") from None


@functools.lru_cache(maxsize=1)
def _read(path: str, _changed: int, _size: int) -> ModelFile:
    data = Path(path).read_bytes()
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > min(len(data) - 8, MAX_HEADER):
        raise FormatError("the model file is no safetensors file")
    header, body = decode(data[8 : 8 + size]), memoryview(data)[8 + size :]
    about = header.pop("__metadata__", None)
    spec = about.get("architecture") if isinstance(about, dict) else None
    if not isinstance(spec, str):
        raise FormatError("the model file has no layers in its metadata")
    record = decode(spec.encode("utf-8", "replace"))
    if record.get("format") != LAYERS_FORMAT or not isinstance(record.get("model"), dict):
        raise FormatError(f"the model file's layers are not in the format '{LAYERS_FORMAT}'")
    return ModelFile(record["model"], {name: _tensor(name, entry, body) for name, entry in header.items()})


def _tensor(name: str, entry: Any, body: memoryview) -> np.ndarray:
    try:
        dtype, shape, (begin, end) = entry["dtype"], [int(s) for s in entry["shape"]], (int(o) for o in entry["data_offsets"])
        if not 0 <= begin <= end <= len(body) or min(shape, default=1) < 0:
            raise ValueError
        if dtype == "BF16":
            values = (np.frombuffer(body[begin:end], dtype="<u2").astype("<u4") << 16).view("<f4")
        else:
            values = np.frombuffer(body[begin:end], dtype=DTYPES[dtype])
        return values.reshape(shape)
    except (KeyError, TypeError, ValueError):
        raise FormatError(f"the model file's tensor {name[:60]!r} is damaged, or of a type that is not known") from None


# --------------------------------------------------------------------------------------------------------------------- layers


class _Builder:
    """Appends nodes, layer by layer."""

    def __init__(self, tensors: Mapping[str, np.ndarray], shape_in: Shape) -> None:
        self.tensors, self.shape_in, self.nodes = tensors, shape_in, list[Node]()

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
        conv = Conv.of(W, bias, shape, groups=a["groups"], stride=a.pair("stride", dims), dilation=dilation, pads=pads)
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
        total = Conv.of(ones, None, shape, groups=shape[0], stride=stride, dilation=(1, 1), pads=(pads[0], pads[0], pads[1], pads[1]))
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
        total = Conv.of(ones, None, shape, groups=shape[0], stride=kernel, dilation=(1, 1), pads=(0, 0, 0, 0))
        return _restored([*before, total, Scale.of(np.full(total.shape, 1.0 / (kernel[0] * kernel[1])), None, None, 2 * U)], back)

    return build


def _max(dims: int) -> Callable[[_Arguments], list[Layer]]:
    def build(a: _Arguments) -> list[Layer]:
        shape, back, before = a.image(dims)
        if a["ceil_mode"]:
            raise a.refuse("has ceil_mode=True, which is not covered")
        kernel = a.pair("kernel_size", dims)
        stride = kernel if a["stride"] is None else a.pair("stride", dims)
        return _restored([*before, MaxPool.of(shape, kernel, stride, a.pair("padding", dims), a.pair("dilation", dims))], back)

    return build


def _restored(layers: list[Layer], back: Callable[[Shape], Shape]) -> list[Layer]:
    shape = layers[-1].shape
    return layers if back(shape) == shape else [*layers, Reshape(shape, back(shape))]


def _zero_pad(a: _Arguments) -> list[Layer]:
    left, right, top, bottom = a["padding"] if isinstance(a["padding"], list | tuple) else [a["padding"]] * 4
    ones = np.ones((a.shape[0], 1, 1, 1))
    return [Conv.of(ones, None, a.image(2)[0], groups=a.shape[0], stride=(1, 1), dilation=(1, 1), pads=(top, bottom, left, right))]


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


# ---------------------------------------------------------------------------------------------------- the layers in words


def _describe(record: Mapping[str, Any], name: str) -> list[str]:
    kind = record["kind"]
    if kind == "Sequential":
        own = [f"{name or 'model'}: Sequential()"]
        return own + [line for i, layer in enumerate(record["layers"]) for line in _describe(layer, f"{name}.{i}".lstrip("."))]
    if kind == "Residual":
        raise LayerError("a Residual has no words")
    head = "Identity" if "Dropout" in kind else kind
    return [f"{name or 'model'}: {head}({_words(kind, record)})"]


def _words(kind: str, r: Mapping[str, Any]) -> str:
    """The arguments as `repr` of the layer shows them, as far as they change the function; "inplace" is dropped."""
    if kind == "Linear":
        return f"in_features={r['in_features']}, out_features={r['out_features']}, bias={r['bias']}"
    if kind in ("Conv1d", "Conv2d"):
        k, p, d = _tuple(r["kernel_size"]), _tuple(r["padding"]), _tuple(r["dilation"])
        out = f"{r['in_channels']}, {r['out_channels']}, kernel_size={k}, stride={_tuple(r['stride'])}"
        out += f", padding={p}" if p != (0,) * len(k) else ""
        out += f", dilation={d}" if d != (1,) * len(k) else ""
        out += f", groups={r['groups']}" if r["groups"] != 1 else ""
        out += "" if r["bias"] else ", bias=False"
        return out + (f", padding_mode={r['padding_mode']}" if r["padding_mode"] != "zeros" else "")
    if kind.startswith("BatchNorm"):
        return (
            f"{r['num_features']}, eps={r['eps']}, momentum={r['momentum']}, affine={r['affine']}, "
            f"track_running_stats={r['track_running_stats']}"
        )
    if kind.startswith("MaxPool"):
        return ", ".join(f"{k}={_tuple(r[k])}" for k in ("kernel_size", "stride", "padding", "dilation", "ceil_mode"))
    if kind.startswith("AvgPool"):
        return ", ".join(f"{k}={_tuple(r[k])}" for k in ("kernel_size", "stride", "padding"))
    if kind.startswith("Adaptive"):
        return f"output_size={_tuple(r['output_size'])}"
    if kind == "ZeroPad2d":
        return str(_tuple(r["padding"]))
    if kind == "Flatten":
        return f"start_dim={r['start_dim']}, end_dim={r['end_dim']}"
    if kind == "Normalize":
        return f"shape={_tuple(r['shape'])}"
    return f"negative_slope={r['negative_slope']}" if kind == "LeakyReLU" else ""


def _tuple(v: Any) -> Any:
    return tuple(v) if isinstance(v, list) else v


def same_words(told: str, found: list[str]) -> bool:
    """Do two descriptions name the same layers? Words that change nothing (inplace, a batch norm's bias flag) may be there or not.

    A module that is used twice is described once: the lines told may lack one whose layer, under another name, came before.
    """
    lines = [re.sub(r"(, )?inplace=True", "", line).replace("bias=True, track", "track") for line in told.split("\n")]
    at, seen = 0, set[str]()
    for line in found:
        if at < len(lines) and lines[at] == line:
            at += 1
        elif line.partition(": ")[2] not in seen:
            return False
        seen.add(line.partition(": ")[2])
    return at == len(lines)


def to_json(layers: Mapping[str, Any]) -> str:
    """The text under "architecture" in a model file's metadata."""
    return json.dumps({"format": LAYERS_FORMAT, "model": layers})
