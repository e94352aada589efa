"""auto_LiRPA's own nodes, mended where they are wrong, missing a case, or lose precision.

    Cast                   casts to float64 stay in float64
    Add, Sub, Mul          stored values of any shape, and patches
    MaxPool, AveragePool   windows that overlap or are padded

Importing this file imports the library.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from verification.lirpa.compat import library
from verification.lirpa.curves import ROUNDING

DOUBLE = 11  # ONNX's number of float64
lib = library()


class BoundMul(lib.BoundMul):  # type: ignore[misc, name-defined]
    """The library's, but for patches times one stored number a channel, of any shape (0.3 takes four axes only)."""

    def bound_backward(self, last_lA: Any, last_uA: Any, x: Any, y: Any) -> Any:
        scaled = patches_scaled(self, last_lA, last_uA, x, y)
        return super().bound_backward(last_lA, last_uA, x, y) if scaled is None else scaled


class Sum:
    """x + y or x − y; what does not depend on the input enters the bias here, whatever its shape (0.3 stumbles over stored values of shape (1, …))."""

    sign = 1.0

    def bound_backward(self, last_lA: Any, last_uA: Any, x: Any, y: Any) -> Any:
        stored = [v for v in (x, y) if not v.perturbed]
        patches = any(isinstance(A, lib.Patches) for A in (last_lA, last_uA))
        if len(stored) != 1 or not all(A is None or isinstance(A, Tensor | lib.Patches) for A in (last_lA, last_uA)):
            return super().bound_backward(last_lA, last_uA, x, y)  # type: ignore[misc]
        other, (constant,) = (y if stored[0] is x else x), stored
        if patches and tuple(other.output_shape[1:]) != tuple(self.output_shape[1:]):  # type: ignore[attr-defined]
            raise NotImplementedError("patches over a value that is spread out")
        value, sides, biases = _stored(constant) * (1.0 if constant is x else self.sign), [], []
        for A in (last_lA, last_uA):
            if isinstance(A, lib.Patches):  # outside the image a patch meets zeros, not the stored value
                biases.append(A.matmul(value, input_shape=(A.patches.shape[1], *self.output_shape[1:])).transpose(0, 1))  # type: ignore[attr-defined]
                sides.append(A if other is x or self.sign > 0 else A.create_similar(-A.patches))
                continue
            biases.append(0 if A is None else (A * value).flatten(2).sum(-1))
            sides.append(None if A is None else self.broadcast_backward(A if other is x else self.sign * A, other))  # type: ignore[attr-defined]
        lines_ = [(sides[0], sides[1]), (None, None)]
        return lines_ if other is x else lines_[::-1], *biases


class BoundAdd(Sum, lib.BoundAdd):  # type: ignore[misc, name-defined]
    pass


class BoundSub(Sum, lib.BoundSub):  # type: ignore[misc, name-defined]
    sign = -1.0


class BoundMaxPool(lib.BoundMaxPool):  # type: ignore[misc, name-defined]
    """The library's where windows do not overlap; elsewhere (its own refuses) max z ≥ z_i with the largest lower bound, and above

        max z ≤ γ + Σ_i s_i (z_i − l_i),  γ = max l,  s_i = (u_i − γ)⁺/(u_i − l_i)        each z_i is below its own term, the others are ≥ 0

    or the constant max u where that is nearer at the middle.
    """

    def init_opt_parameters(self, start_nodes: Any) -> None:
        super().init_opt_parameters(start_nodes)
        for name, alpha in self.alpha.items():  # 0.3 makes them float32, and then cannot keep the best ones
            self.alpha[name] = alpha.detach().to(self.inputs[0].lower.dtype).requires_grad_(True)

    def bound_backward(self, last_lA: Any, last_uA: Any, x: Any, **rest: Any) -> Any:
        apart = list(self.stride) == list(self.kernel_size) and not any(self.padding)
        if apart and all(a % k == 0 for a, k in zip(self.input_shape[-2:], self.kernel_size, strict=True)):
            return super().bound_backward(last_lA, last_uA, x, **rest)
        with torch.no_grad():
            lower, upper = x.lower.detach(), x.upper.detach()
            gamma, at = torch.nn.functional.max_pool2d(lower, self.kernel_size, self.stride, self.padding, return_indices=True)
            l, u = self._windows(lower), self._windows(upper)  # (n, C, k, windows)
            top = gamma.flatten(2).unsqueeze(2)
            inside = torch.isfinite(l) & (u > top)
            slope = torch.where(inside, (u - top).clamp(min=0) / (u - l).clamp(min=1e-300), 0.0)
            const = unflat(top.squeeze(2) - torch.where(inside, slope * l, 0.0).sum(2), -1, gamma.shape[-2:])
            l, u = torch.where(inside, l, 0.0), torch.where(inside, u, 0.0)
            sloped = unflat((slope * (l + u) / 2).sum(2), -1, gamma.shape[-2:]) + const
            most = torch.nn.functional.max_pool2d(upper, self.kernel_size, self.stride, self.padding)
            flat = (most < sloped).flatten(2).unsqueeze(2)
            slope = torch.where(flat, 0.0, slope)
            const = torch.where(most < sloped, most, const)
            const = const + ROUNDING * 10 * (
                1 + const.abs() + unflat((slope * torch.maximum(l.abs(), u.abs())).sum(2), -1, gamma.shape[-2:])
            )
        sides: list[Any] = []
        for A, below in ((last_lA, True), (last_uA, False)):
            if A is None:
                sides.append((None, 0))
                continue
            if not isinstance(A, Tensor):
                raise NotImplementedError("patches")
            one, spread = (A.clamp(min=0), A.clamp(max=0)) if below else (A.clamp(max=0), A.clamp(min=0))
            rows, where = one.flatten(3), at.flatten(2).expand(A.shape[0], -1, -1, -1)
            single = torch.zeros(*rows.shape[:3], lower.shape[-2] * lower.shape[-1], dtype=A.dtype, device=A.device).scatter_add(
                -1, where, rows
            )
            many = self._fold(spread.flatten(3).unsqueeze(3) * slope)
            sides.append((unflat(single, -1, lower.shape[-2:]) + many, (spread * const).flatten(2).sum(-1)))
        return [(sides[0][0], sides[1][0])], sides[0][1], sides[1][1]

    def _windows(self, v: Tensor) -> Tensor:
        """(n, C, kernel, windows), −∞ outside."""
        a, b = self.padding
        padded = torch.nn.functional.pad(v, (b, b, a, a), value=-torch.inf)
        tall = padded.unfold(2, self.kernel_size[0], self.stride[0]).unfold(3, self.kernel_size[1], self.stride[1])  # (n, C, H', W', k, k)
        return tall.flatten(4).flatten(2, 3).transpose(2, 3)

    def _fold(self, v: Tensor) -> Tensor:
        """Sums of (S, n, C, kernel, windows) back at the inputs (S, n, C, H, W)."""
        rows = v.flatten(0, 1).flatten(1, 2)
        back = torch.nn.functional.fold(rows, tuple(self.input_shape[-2:]), self.kernel_size, 1, tuple(self.padding), self.stride)
        return unflat(back, 0, v.shape[:2])


class BoundAveragePool(lib.BoundAveragePool):  # type: ignore[misc, name-defined]
    """The library's where windows tile the input; elsewhere (its own is wrong there) the transpose of the pooling."""

    def __init__(self, attr: Any, inputs: Any, output_index: int, options: Any) -> None:
        super().__init__(attr, inputs, output_index, options)
        self.ceil_mode, self.count_include_pad = bool(attr.get("ceil_mode", 0)), bool(attr.get("count_include_pad", 0))

    def bound_backward(self, last_lA: Any, last_uA: Any, x: Any) -> Any:
        tiles = all(a % k == 0 for a, k in zip(self.input_shape[-2:], self.kernel_size, strict=True))
        if tiles and list(self.stride) == list(self.kernel_size) and not any(self.padding):
            return super().bound_backward(last_lA, last_uA, x)
        if not all(A is None or isinstance(A, Tensor) for A in (last_lA, last_uA)):
            raise NotImplementedError("patches")
        return [tuple(None if A is None else self._transposed(A) for A in (last_lA, last_uA))], 0, 0

    def _transposed(self, A: Tensor) -> Tensor:
        rows, like = A.flatten(0, 1), A.new_zeros(1).expand(A.shape[0] * A.shape[1], *self.input_shape[1:])
        how = (list(self.kernel_size), list(self.stride), list(self.padding), self.ceil_mode, self.count_include_pad, None)
        back: Tensor = torch.ops.aten.avg_pool2d_backward(rows.contiguous(), like.contiguous(), *how)
        return unflat(back, 0, A.shape[:2])


class BoundCast(lib.BoundCast):  # type: ignore[misc, name-defined]
    """The library's, but that casts to float64 are none to float32 (0.3 takes ONNX's type 11 for it), which would round stored values."""

    def __init__(self, attr: Any, inputs: Any, output_index: int, options: Any) -> None:
        super().__init__(attr, inputs, output_index, options)
        if self.to == DOUBLE:
            self.type = torch.float64


def patches_scaled(node: Any, last_lA: Any, last_uA: Any, x: Any, y: Any, inverse: bool = False) -> Any:
    """A (z c) as (A c) z for patches A and a stored c with one number a channel; None where this is not the case."""
    patches = library().Patches
    held = [v for v in (x, y) if not v.perturbed]
    if len(held) != 1 or not all(A is None or isinstance(A, patches) for A in (last_lA, last_uA)):
        return None
    other = y if held[0] is x else x
    shape = tuple(node.output_shape[1:])
    if len(shape) != 3 or tuple(other.output_shape[1:]) != shape:
        return None
    value = _stored(held[0])
    value = value.reshape((1,) * (4 - value.ndim) + tuple(value.shape)) if value.ndim < 4 else value
    if value.shape[0] != 1 or tuple(value.shape[2:]) != (1, 1):
        return None
    c = value.expand(1, shape[0], 1, 1).reshape(shape[0], 1, 1)
    c = 1 / c if inverse else c
    sides = [None if A is None else A.create_similar(A.patches * c) for A in (last_lA, last_uA)]
    lines_ = [(sides[0], sides[1]), (None, None)]
    return lines_ if other is x else lines_[::-1], 0, 0


def unflat(v: Tensor, axis: int, sizes: Sequence[int]) -> Tensor:
    out: Tensor = v.unflatten(axis, tuple(sizes))  # type: ignore[no-untyped-call]
    return out


def _stored(node: Any) -> Tensor:
    """The value of a node that does not depend on the input."""
    if not hasattr(node, "forward_value"):
        node.forward_value = node.forward(*(_stored(v) for v in node.inputs))
    return node.forward_value  # type: ignore[no-any-return]


OPERATORS: dict[str, Any] = {
    "onnx::Cast": BoundCast,
    "onnx::Add": BoundAdd,
    "onnx::Sub": BoundSub,
    "onnx::Mul": BoundMul,
    "onnx::MaxPool": BoundMaxPool,
    "onnx::AveragePool": BoundAveragePool,
}
