"""The text of a certificate: its one spelling, its hashes, and how the bytes of a stranger become a JSON object."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MAX_BYTES, MAX_DEPTH = 512 * 2**20, 32


class FormatError(ValueError):
    """The document is not a certificate of a known version; the message is one line."""


def canonical(record: Mapping[str, Any]) -> bytes:
    """The one spelling of a record. Raises FormatError on what JSON cannot hold (NaN, infinities, other types)."""
    try:
        return json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")
    except (ValueError, TypeError, RecursionError) as error:
        raise FormatError(f"not canonical JSON ({error})") from None


def self_hash(record: Mapping[str, Any]) -> str:
    """sha256 of the canonical form of everything but "sha256"."""
    return hashlib.sha256(canonical({k: v for k, v in record.items() if k != "sha256"})).hexdigest()


def input_hash(x0: Sequence[float]) -> str:
    """sha256 of the little-endian float64 values."""
    return hashlib.sha256(np.asarray(x0, dtype="<f8").tobytes()).hexdigest()


def weights_hash(architecture: str, arrays: Mapping[str, np.ndarray]) -> str:
    """sha256 over the architecture and, by sorted name, kind, shape and little-endian values of every array.

    Floats are widened to float64 and integers to int64 first (exactly), so that a float32 network and its float64 copy, the same function, share a hash.
    """
    h = hashlib.sha256(architecture.encode())
    for name in sorted(arrays):
        v = np.asarray(arrays[name])
        wide = v.astype("<f8" if v.dtype.kind == "f" else "<i8")
        h.update(f"\0{name}\0{wide.dtype.str}\0{v.shape}\0".encode())
        h.update(wide.tobytes())
    return h.hexdigest()


def read(path: str | Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The JSON object in a file. Raises FormatError when it cannot be read, is too large or is not one."""
    if not Path(path).is_file():  # a pipe or a device could keep us waiting
        raise FormatError("there is no such file")
    try:
        with open(path, "rb") as handle:
            data = handle.read(max_bytes + 1)
    except OSError as error:
        raise FormatError(f"the file cannot be read: {error.strerror or error}") from None
    if len(data) > max_bytes:
        raise FormatError(f"the file is larger than {max_bytes} bytes")
    return decode(data)


def decode(data: bytes, max_depth: int = MAX_DEPTH) -> dict[str, Any]:
    """Bytes to a JSON object, refusing duplicates, NaN, deep nesting and anything that is not JSON. Raises FormatError."""
    raw = np.frombuffer(data.replace(b"\\\\", b"").replace(b'\\"', b""), dtype=np.uint8)
    outside = np.bitwise_xor.accumulate((raw == ord('"')).astype(np.uint8)) == 0
    steps = (np.isin(raw, (ord("["), ord("{"))).astype(np.int8) - np.isin(raw, (ord("]"), ord("}"))))[outside]
    if len(steps) and int(np.cumsum(steps, dtype=np.int32).max()) > max_depth:
        raise FormatError(f"nested deeper than {max_depth} levels")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        out = dict(pairs)
        if len(out) < len(pairs):
            raise FormatError("a key appears twice in one object")
        return out

    def constant(name: str) -> None:
        raise FormatError(f"{name} is not a JSON number")

    try:
        record = json.loads(data.decode("utf-8"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"not a JSON document ({str(error).splitlines()[0][:120]}); the file may be truncated") from None
    if not isinstance(record, dict):
        raise FormatError("the document is not a JSON object")
    return record
