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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from verification.checking.text import FormatError, decode, weights_hash
from verification.rechecking.building import Builder
from verification.rechecking.graph import LayerError, Network, Node
from verification.rechecking.rounding import Shape
from verification.rechecking.words import describe

__all__ = ["LayerError", "ModelFile", "Network", "Node", "read_model"]

LAYERS_FORMAT = "lde-layers-1"
MAX_HEADER = 100_000_000
MAX_DEPTH = 20
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1", "BOOL": "?"}


@dataclass(frozen=True, eq=False)
class ModelFile:
    """What a model file says: the layers as plain values, and the tensors by name."""

    layers: Mapping[str, Any]
    tensors: Mapping[str, np.ndarray]

    def network(self, shape_in: Shape) -> Network:
        """The layers for inputs of this shape. Raises LayerError."""
        return Builder(self.tensors, shape_in).network(self.layers)

    def lines(self) -> list[str] | None:
        """The layers in a certificate's words, "name: Kind(arguments)"; None where they are no Sequential and have no such words."""
        try:
            return describe(self.layers, "")
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


def to_json(layers: Mapping[str, Any]) -> str:
    """The text under "architecture" in a model file's metadata."""
    return json.dumps({"format": LAYERS_FORMAT, "model": layers})
