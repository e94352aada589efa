"""Operators of our own for auto_LiRPA, in its custom-operator registration: the relaxations of verification/relaxations.py as its nodes.

    lde::Curve          an elementwise function, by name and numbers
    lde::Softmax        over one axis
    lde::Normal         z·(mean z² + ε)^{−½} over the last axes, for z of mean 0
    onnx::MatMul        of two computed values, by McCormick's planes; of one, the library's
    onnx::Div           by a computed value: McCormick's planes over lines of the reciprocal; by a constant, the library's
    onnx::Sqrt          a curve: the library's bounds of it are wrong
    onnx::Cast          the library's, but for float64
    onnx::Add, Sub      the library's, but for stored values
    onnx::Mul           the library's, but for stored values and patches
    onnx::MaxPool, AveragePool  the library's where windows tile the input; its own is wrong or missing where they overlap or are padded

`verification/_lirpa_symbols.py` says which torch functions become which.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from verification import relaxations as lines
from verification._lirpa_compat import library

DOUBLE = 11  # ONNX's number of float64
OWN = (
    "BoundCurve",
    "BoundRoot",
    "BoundSoftmax",
    "BoundNormal",
    "BoundMatMul",
    "BoundDiv",
)  # whose interval from their inputs' bounds may be the tighter one
CURVES: dict[str, Callable[..., lines.Curve]] = {
    "softplus": lines.softplus,
    "elu": lines.elu,
    "clipped": lines.clipped,
    "gelu": lambda: lines.GELU,
    "tanh gelu": lambda: lines.TANH_GELU,
    "silu": lambda: lines.SILU,
    "mish": lambda: lines.MISH,
    "hard swish": lambda: lines.HARD_SWISH,
    "hard sigmoid": lambda: lines.HARD_SIGMOID,
    "square": lambda: lines.SQUARE,
    "root": lambda: lines.ROOT,
}


@functools.cache
def custom_operators() -> dict[str, Any]:
    """Operator → node class, as `BoundedModule(custom_ops=…)` takes them."""
    lib = library()

    class BoundCurve(lib.BoundActivation):  # type: ignore[misc, name-defined]
        def __init__(self, attr: Any, inputs: Any, output_index: int, options: Any) -> None:
            super().__init__(attr, inputs, output_index, options)
            self.curve = CURVES[attr["name"]](*(attr[f"n{k}"] for k in range(3) if f"n{k}" in attr))
            self.seen: tuple[Tensor, Tensor] | None = None

        def forward(self, x: Tensor) -> Tensor:
            return self.curve.value(x)

        def interval_propagate(self, *v: Any) -> tuple[Tensor, Tensor]:
            return self.curve.range(v[0][0], v[0][1])

        def bound_backward(self, last_lA: Any, last_uA: Any, x: Any) -> Any:
            if self.seen is None or self.seen[0] is not x.lower or self.seen[1] is not x.upper:  # once for the passes from all later layers
                self.lw, self.lb, self.uw, self.ub = self.curve.lines(x.lower, x.upper)
                self.seen, self.relaxed = (x.lower, x.upper), True
            return super().bound_backward(last_lA, last_uA, x)

        def clear(self) -> None:
            self.seen, self.relaxed = None, False

    class BoundRoot(BoundCurve):
        def __init__(self, attr: Any, inputs: Any, output_index: int, options: Any) -> None:
            super().__init__({**attr, "name": "root"}, inputs, output_index, options)

    class Planes(lib.Bound):  # type: ignore[misc, name-defined]
        """z ↦ y with L z + l0 ≤ y ≤ U z + u0 along one axis, the last of what `_last` makes of z."""

        def __init__(self, attr: Any, inputs: Any, output_index: int, options: Any) -> None:
            super().__init__(attr, inputs, output_index, options)
            self.requires_input_bounds = [0]
            self.seen: tuple[Tensor, Tensor] | None = None
            self.planes: tuple[Tensor, ...] = ()

        def clear(self) -> None:
            self.seen = None

        def bound_backward(self, last_lA: Any, last_uA: Any, x: Any) -> Any:
            if self.seen is None or self.seen[0] is not x.lower or self.seen[1] is not x.upper:
                self.planes, self.seen = self.relax(x.lower.detach(), x.upper.detach()), (x.lower, x.upper)
            L, l0, U, u0 = self.planes
            (lA, lbias), (uA, ubias) = self._side(last_lA, L, l0, U, u0), self._side(last_uA, U, u0, L, l0)
            return [(lA, uA)], lbias, ubias

        def _side(self, A: Any, P: Tensor, p0: Tensor, N: Tensor, n0: Tensor) -> Any:
            """A y ≥ A⁺(P z + p0) + A⁻(N z + n0) for P, p0 below and N, n0 above y; the other way round the upper bound."""
            if A is None:
                return None, 0
            if not isinstance(A, Tensor):
                raise NotImplementedError("patches")
            plus, minus = A.clamp(min=0), A.clamp(max=0)
            bias = (plus * self.offset(p0) + minus * self.offset(n0)).flatten(2).sum(-1)
            return self.times(plus, P) + self.times(minus, N), bias

        def infer_batch_dim(self, batch_size: int, *x: Any) -> Any:
            return x[0]

    class BoundSoftmax(Planes):
        def __init__(self, attr: Any, inputs: Any, output_index: int, options: Any) -> None:
            super().__init__(attr, inputs, output_index, options)
            self.axis = int(attr["axis"])

        def forward(self, x: Tensor) -> Tensor:
            if self.axis % x.ndim == 0:
                raise NotImplementedError("softmax over the batch")
            self.axis %= x.ndim
            return torch.softmax(x, self.axis)

        def interval_propagate(self, *v: Any) -> tuple[Tensor, Tensor]:
            low, high = lines.softmax_range(v[0][0].movedim(self.axis, -1), v[0][1].movedim(self.axis, -1))
            return low.movedim(-1, self.axis), high.movedim(-1, self.axis)

        def relax(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, ...]:
            return lines.softmax_planes(lower.movedim(self.axis, -1), upper.movedim(self.axis, -1))

        def offset(self, p0: Tensor) -> Tensor:
            return p0.movedim(-1, self.axis)

        def times(self, A: Tensor, P: Tensor) -> Tensor:
            turned = A.movedim(self.axis + 1, -1)
            return torch.einsum("s...i,...ij->s...j", turned, P).movedim(-1, self.axis + 1)

    class BoundNormal(Planes):
        """z·(mean z² + ε)^{−½} over the last axes, for z that sum to 0 there."""

        def __init__(self, attr: Any, inputs: Any, output_index: int, options: Any) -> None:
            super().__init__(attr, inputs, output_index, options)
            self.count, self.eps = int(attr["count"]), float(attr["eps"])

        def forward(self, x: Tensor) -> Tensor:
            if self.count >= x.ndim:
                raise NotImplementedError("normalisation over the batch")
            self.whole, rows = x.shape[-self.count :], x.flatten(-self.count)
            return self.offset(rows * (rows.square().mean(-1, keepdim=True) + self.eps).rsqrt())

        def interval_propagate(self, *v: Any) -> tuple[Tensor, Tensor]:
            low, high = lines.normal_range(v[0][0].flatten(-self.count), v[0][1].flatten(-self.count), self.eps)
            return self.offset(low), self.offset(high)

        def relax(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, ...]:
            return lines.normal_planes(lower.flatten(-self.count), upper.flatten(-self.count), self.eps)

        def offset(self, p0: Tensor) -> Tensor:
            return _unflat(p0, -1, self.whole)

        def times(self, A: Tensor, P: Tensor) -> Tensor:
            return self.offset(torch.einsum("s...i,...ij->s...j", A.flatten(-self.count), P))

    class BoundMatMul(lib.BoundMatMul):  # type: ignore[misc, name-defined]
        """x y of two computed values: x_ij y_jk between McCormick's planes, halfway between the two on either side."""

        def bound_backward(self, last_lA: Any, last_uA: Any, *x: Any) -> Any:
            if not (self.is_input_perturbed(0) and self.is_input_perturbed(1)):
                return super().bound_backward(last_lA, last_uA, *x)
            (lAx, lAy, lbias), (uAx, uAy, ubias) = self._side(last_lA, x, True), self._side(last_uA, x, False)
            return [(lAx, uAx), (lAy, uAy), (None, None)], lbias, ubias

        def _side(self, A: Any, x: Any, below: bool) -> Any:
            if A is None:
                return None, None, 0
            if not isinstance(A, Tensor):
                A = _dense(A)
            if x[0].lower.ndim != x[1].lower.ndim or x[0].lower.shape[:-2] != x[1].lower.shape[:-2]:
                raise NotImplementedError("a product of values of different ranks")
            xl, xu, yl, yu = (v.detach() for v in (x[0].lower, x[0].upper, x[1].lower, x[1].upper))
            plus, minus = (A.clamp(min=0), A.clamp(max=0)) if below else (A.clamp(max=0), A.clamp(min=0))
            half, yt = (plus + minus) / 2, (yl + yu).transpose(-1, -2)
            # xy ≥ y_l x + x_l y − x_l y_l and ≥ y_u x + x_u y − x_u y_u;  xy ≤ y_u x + x_l y − x_l y_u and ≤ y_l x + x_u y − x_u y_l
            Ax, Ay = half @ yt, (xl + xu).transpose(-1, -2) @ half
            bias = -(plus * (xl @ yl + xu @ yu) + minus * (xl @ yu + xu @ yl)).flatten(2).sum(-1) / 2
            return Ax, Ay, bias

        def interval_propagate(self, *v: Any) -> Any:
            if not (self.is_input_perturbed(0) and self.is_input_perturbed(1)):
                return super().interval_propagate(*v)
            (xl, xu), (yl, yu) = v[0], v[1]
            m, r, c, e = (xl + xu) / 2, (xu - xl) / 2, (yl + yu) / 2, (yu - yl) / 2
            centre, radius = m @ c, r @ (c.abs() + e) + m.abs() @ e
            return centre - radius, centre + radius

    class BoundMul(lib.BoundMul):  # type: ignore[misc, name-defined]
        """The library's, but for patches times one stored number a channel, of any shape (0.3 takes four axes only)."""

        def bound_backward(self, last_lA: Any, last_uA: Any, x: Any, y: Any) -> Any:
            scaled = _patches_scaled(self, last_lA, last_uA, x, y)
            return super().bound_backward(last_lA, last_uA, x, y) if scaled is None else scaled

    class BoundDiv(lib.BoundDiv):  # type: ignore[misc, name-defined]
        """x / y for y away from 0: with r = 1/y between lines, x r between McCormick's planes. Division by a stored constant is the library's."""

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            self.x, self.y = x, y
            return x / y

        def interval_propagate(self, *v: Any) -> tuple[Tensor, Tensor]:
            (xl, xu), (yl, yu) = v[0], v[1]
            across = (yl <= 0) & (yu >= 0)
            ends = torch.stack(torch.broadcast_tensors(xl / yl, xl / yu, xu / yl, xu / yu))  # type: ignore[no-untyped-call]
            return torch.where(across, -torch.inf, ends.amin(0)), torch.where(across, torch.inf, ends.amax(0))

        def bound_backward(self, last_lA: Any, last_uA: Any, x: Any, y: Any) -> Any:
            if self.is_constant_op:
                scaled = None if x is not self.inputs[0] or not x.perturbed else _patches_scaled(self, last_lA, last_uA, x, y, inverse=True)
                return super().bound_backward(last_lA, last_uA, x, y) if scaled is None else scaled
            (lAx, lAy, lbias), (uAx, uAy, ubias) = self._side(last_lA, x, y, True), self._side(last_uA, x, y, False)
            return [(lAx, uAx), (lAy, uAy)], lbias, ubias

        def _side(self, A: Any, x: Any, y: Any, below: bool) -> Any:
            if A is None:
                return None, None, 0
            A = _dense(A)
            plus, minus = (A.clamp(min=0), A.clamp(max=0)) if below else (A.clamp(max=0), A.clamp(min=0))
            xl, xu, yl, yu = (v.detach() for v in (x.lower, x.upper, y.lower, y.upper))
            kl, bl, ku, bu = lines.reciprocal_lines(yl, yu)
            rl, ru = 1 / yu * (1 - lines.ROUNDING * yu.sign()), 1 / yl * (1 + lines.ROUNDING * yl.sign())
            # x r ≥ r_l x + x_l r − x_l r_l and ≥ r_u x + x_u r − x_u r_u; ≤ r_u x + x_l r − x_l r_u and ≤ r_l x + x_u r − x_u r_l: halfway between
            Ax = (plus + minus) * (rl + ru) / 2
            Ar = (plus + minus) * (xl + xu) / 2
            bias = -(plus * (xl * rl + xu * ru) + minus * (xl * ru + xu * rl)) / 2
            up, down = (Ar.clamp(min=0), Ar.clamp(max=0)) if below else (Ar.clamp(max=0), Ar.clamp(min=0))
            Ay, bias = up * kl + down * ku, bias + up * bl + down * bu
            bias = bias.flatten(2).sum(-1)
            return self.broadcast_backward(Ax, x), self.broadcast_backward(Ay, y), bias

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
                const = _unflat(top.squeeze(2) - torch.where(inside, slope * l, 0.0).sum(2), -1, gamma.shape[-2:])
                l, u = torch.where(inside, l, 0.0), torch.where(inside, u, 0.0)
                sloped = _unflat((slope * (l + u) / 2).sum(2), -1, gamma.shape[-2:]) + const
                most = torch.nn.functional.max_pool2d(upper, self.kernel_size, self.stride, self.padding)
                flat = (most < sloped).flatten(2).unsqueeze(2)
                slope = torch.where(flat, 0.0, slope)
                const = torch.where(most < sloped, most, const)
                const = const + lines.ROUNDING * 10 * (
                    1 + const.abs() + _unflat((slope * torch.maximum(l.abs(), u.abs())).sum(2), -1, gamma.shape[-2:])
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
                sides.append((_unflat(single, -1, lower.shape[-2:]) + many, (spread * const).flatten(2).sum(-1)))
            return [(sides[0][0], sides[1][0])], sides[0][1], sides[1][1]

        def _windows(self, v: Tensor) -> Tensor:
            """(n, C, kernel, windows), −∞ outside."""
            a, b = self.padding
            padded = torch.nn.functional.pad(v, (b, b, a, a), value=-torch.inf)
            tall = padded.unfold(2, self.kernel_size[0], self.stride[0]).unfold(
                3, self.kernel_size[1], self.stride[1]
            )  # (n, C, H', W', k, k)
            return tall.flatten(4).flatten(2, 3).transpose(2, 3)

        def _fold(self, v: Tensor) -> Tensor:
            """Sums of (S, n, C, kernel, windows) back at the inputs (S, n, C, H, W)."""
            rows = v.flatten(0, 1).flatten(1, 2)
            back = torch.nn.functional.fold(rows, tuple(self.input_shape[-2:]), self.kernel_size, 1, tuple(self.padding), self.stride)
            return _unflat(back, 0, v.shape[:2])

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
            return _unflat(back, 0, A.shape[:2])

    class BoundCast(lib.BoundCast):  # type: ignore[misc, name-defined]
        """The library's, but that casts to float64 are none to float32 (0.3 takes ONNX's type 11 for it), which would round stored values."""

        def __init__(self, attr: Any, inputs: Any, output_index: int, options: Any) -> None:
            super().__init__(attr, inputs, output_index, options)
            if self.to == DOUBLE:
                self.type = torch.float64

    return {
        "onnx::Cast": BoundCast,
        "onnx::MaxPool": BoundMaxPool,
        "onnx::AveragePool": BoundAveragePool,
        "onnx::Add": BoundAdd,
        "onnx::Sub": BoundSub,
        "lde::Curve": BoundCurve,
        "onnx::Sqrt": BoundRoot,
        "lde::Softmax": BoundSoftmax,
        "lde::Normal": BoundNormal,
        "onnx::MatMul": BoundMatMul,
        "onnx::Mul": BoundMul,
        "onnx::Div": BoundDiv,
    }


def _patches_scaled(node: Any, last_lA: Any, last_uA: Any, x: Any, y: Any, inverse: bool = False) -> Any:
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


def _dense(A: Any) -> Tensor:
    """The library's abstract identities as matrices (rows, batch, *shape)."""
    if isinstance(A, Tensor):
        return A
    lib = library()
    if isinstance(A, lib.eyeC):
        rows = A.shape[0]
        return torch.eye(rows, device=A.device, dtype=torch.float64).reshape(rows, 1, *A.shape[2:]).expand(A.shape)
    raise NotImplementedError(f"bounds that start as {type(A).__name__}")


def _unflat(v: Tensor, axis: int, sizes: Sequence[int]) -> Tensor:
    out: Tensor = v.unflatten(axis, tuple(sizes))  # type: ignore[no-untyped-call]
    return out


def _stored(node: Any) -> Tensor:
    """The value of a node that does not depend on the input."""
    if not hasattr(node, "forward_value"):
        node.forward_value = node.forward(*(_stored(v) for v in node.inputs))
    return node.forward_value  # type: ignore[no-any-return]
