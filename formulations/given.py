"""Reading what callers hand over: numbers and whole numbers, told apart from what only looks like them."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from formulations.errors import InputError


def array(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """A float64 copy. Raises InputError, with the argument's name, on text, complex numbers, ragged lists and tensors with gradients."""
    try:
        held = np.asarray(values)
        if values is None or held.dtype.kind in "cSUmM":
            raise TypeError("no real numbers")
        return np.array(held, dtype=float)
    except (TypeError, ValueError, RuntimeError):  # torch raises RuntimeError for tensors that require gradients
        raise InputError(
            f"{name}={values!r:.60} is no array of real numbers; give numbers (a tensor: detached).".replace("\n", " ")
        ) from None


def whole(name: str, value: Any) -> int:
    """An integer: 3, np.int64(3), 3.0. Raises InputError on 2.5, True, None: nothing is rounded, and a mask is no list of positions."""
    if not isinstance(value, bool | np.bool_):
        try:
            return operator.index(value)
        except TypeError:
            pass
        try:
            if float(value).is_integer():
                return int(value)
        except (TypeError, ValueError):
            pass
    mask = " (np.flatnonzero turns a mask into positions)" if isinstance(value, bool | np.bool_) else ""
    raise InputError(f"{name}={value!r:.60} is not a whole number; give an int{mask}.")


def seed_of(value: Any) -> int:
    """A seed: a whole number of at most 63 bits. Raises InputError on another."""
    seed = whole("seed", value)
    if not -(2**63) <= seed < 2**63:
        raise InputError(f"seed={seed!s:.40} does not fit into 64 bits; give a smaller number.")
    return seed


def wholes(name: str, values: Iterable[Any]) -> list[int]:
    """`whole` of each. Raises InputError on what cannot be gone through."""
    try:
        given = list(values)
    except TypeError:
        raise InputError(f"{name}={values!r:.60} is no list of whole numbers; give one such as [0, 3].") from None
    return [whole(f"{name}[{i}]", v) for i, v in enumerate(given)]
