"""Typed fields of a stranger's JSON object, or a FormatError that names the field."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from verification.checking.text import FormatError


class Fields:
    """One JSON object whose keys are exactly `keys` (those with "?" may be missing); reads typed fields or raises FormatError."""

    def __init__(self, value: Any, where: str, keys: str) -> None:
        known = keys.split()
        if not isinstance(value, Mapping):
            raise FormatError(f"{where} is not an object")
        missing = [k for k in known if not k.endswith("?") and k not in value]
        unknown = sorted(set(value) - {k.rstrip("?") for k in known})
        if missing or unknown:
            raise FormatError(f"{where}: {'missing' if missing else 'unknown'} field {short((missing or unknown)[0])}")
        self.value, self.where = value, where

    def _wrong(self, key: str, what: str) -> FormatError:
        return FormatError(f"{self.where}.{key} is not {what}".removeprefix("certificate."))

    def fields(self, key: str, keys: str) -> Fields:
        return Fields(self.value[key], f"{self.where}.{key}".removeprefix("certificate."), keys)

    def items(self, key: str) -> list[Any]:
        if not isinstance(self.value[key], list):
            raise self._wrong(key, "a list")
        return list(self.value[key])

    def text(self, key: str) -> str:
        if not isinstance(self.value[key], str):
            raise self._wrong(key, "a string")
        return str(self.value[key])

    def digest(self, key: str) -> None:
        if len(self.text(key)) != 64 or set(self.text(key)) - set("0123456789abcdef"):
            raise self._wrong(key, "a sha256 in lower-case hexadecimal")

    def integers(self, key: str) -> list[int]:
        values = self.items(key)
        if not all(type(v) is int and abs(v) < 2**53 for v in values):
            raise self._wrong(key, "a list of integers")
        return values

    def real(self, key: str, *, infinite: bool = False) -> float:
        return real(
            self.value[key], infinite, lambda: self._wrong(key, "a finite float.hex() string" if not infinite else "a float.hex() string")
        )

    def reals(self, key: str, length: int | None = None, *, infinite: bool = False) -> list[float]:
        values = self.items(key)
        out = [real(v, infinite, lambda: self._wrong(key, "a list of finite float.hex() strings")) for v in values]
        if length is not None and len(out) != length:
            raise self._wrong(key, f"{length} numbers long but {len(out)}")
        return out

    def table(self, key: str, columns: int) -> list[list[float]]:
        return [Fields({"row": r}, f"{self.where}.{key}", "row").reals("row", columns) for r in self.items(key)]


def real(value: Any, infinite: bool, error: Callable[[], FormatError]) -> float:
    if not isinstance(value, str) or len(value) > 32:
        raise error()
    try:
        number = float.fromhex(value)
    except (ValueError, OverflowError):
        raise error() from None
    if number != number or (not infinite and math.isinf(number)) or number.hex() != value:
        raise error()
    return number


def short(value: Any) -> str:
    return repr(value)[:60]
