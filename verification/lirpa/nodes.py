"""Operators that auto_LiRPA lacks, in its custom-operator registration: relaxations of ours (curves.py, planes.py) as its nodes.

    lde::Curve          an elementwise function, by name and numbers
    lde::Softmax        over one axis
    lde::Normal         z·(mean z² + ε)^{−½} over the last axes, for z of mean 0
    onnx::MatMul        of two computed values, by McCormick's planes; of one, the library's
    onnx::Div           by a computed value: McCormick's planes over lines of the reciprocal; by a constant, the library's
    onnx::Sqrt, Log     curves: the library's bounds of them are wrong, of the logarithm below 1e-12

and those of its own that are mended (mended.py, sigmoids.py). symbols.py says which torch functions become which. Importing this file imports the library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from verification.lirpa import curves, mended, planes, sigmoids
from verification.lirpa.compat import library
from verification.lirpa.mended import patches_scaled, unflat

lib = library()
CURVES: dict[str, Callable[..., curves.Curve]] = {
    "softplus": curves.softplus,
    "elu": curves.elu,
    "clipped": curves.clipped,
    "gelu": lambda: curves.GELU,
    "tanh gelu": lambda: curves.TANH_GELU,
    "silu": lambda: curves.SILU,
    "mish": lambda: curves.MISH,
    "hard swish": lambda: curves.HARD_SWISH,
    "hard sigmoid": lambda: curves.HARD_SIGMOID,
    "square": lambda: curves.SQUARE,
    "root": lambda: curves.ROOT,
    "log": lambda: curves.LOG,
    "log sigmoid": lambda: curves.LOG_SIGMOID,
}


class BoundCurve(lib.BoundActivation):  # type: ignore[misc, name-defined]
    own_interval = True  # that of its inputs' bounds may be tighter than what the pass found

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


class BoundLog(BoundCurve):
    def __init__(self, attr: Any, inputs: Any, output_index: int, options: Any) -> None:
        super().__init__({**attr, "name": "log"}, inputs, output_index, options)


class Planes(lib.Bound):  # type: ignore[misc, name-defined]
    """z ↦ y with L z + l0 ≤ y ≤ U z + u0: `relax` gives the planes, `offset` and `times` say how their axes lie in y."""

    own_interval = True  # that of its inputs' bounds may be tighter than what the pass found

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
        low, high = planes.softmax_range(v[0][0].movedim(self.axis, -1), v[0][1].movedim(self.axis, -1))
        return low.movedim(-1, self.axis), high.movedim(-1, self.axis)

    def relax(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, ...]:
        return planes.softmax_planes(lower.movedim(self.axis, -1), upper.movedim(self.axis, -1))

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
        low, high = planes.normal_range(v[0][0].flatten(-self.count), v[0][1].flatten(-self.count), self.eps)
        return self.offset(low), self.offset(high)

    def relax(self, lower: Tensor, upper: Tensor) -> tuple[Tensor, ...]:
        return planes.normal_planes(lower.flatten(-self.count), upper.flatten(-self.count), self.eps)

    def offset(self, p0: Tensor) -> Tensor:
        return unflat(p0, -1, self.whole)

    def times(self, A: Tensor, P: Tensor) -> Tensor:
        return self.offset(torch.einsum("s...i,...ij->s...j", A.flatten(-self.count), P))


class BoundMatMul(lib.BoundMatMul):  # type: ignore[misc, name-defined]
    """x y of two computed values: x_ij y_jk between McCormick's planes, halfway between the two on either side."""

    own_interval = True  # that of its inputs' bounds may be tighter than what the pass found

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


class BoundDiv(lib.BoundDiv):  # type: ignore[misc, name-defined]
    """x / y for y away from 0: with r = 1/y between lines, x r between McCormick's planes. Division by a stored constant is the library's."""

    own_interval = True  # that of its inputs' bounds may be tighter than what the pass found

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
            scaled = None if x is not self.inputs[0] or not x.perturbed else patches_scaled(self, last_lA, last_uA, x, y, inverse=True)
            return super().bound_backward(last_lA, last_uA, x, y) if scaled is None else scaled
        (lAx, lAy, lbias), (uAx, uAy, ubias) = self._side(last_lA, x, y, True), self._side(last_uA, x, y, False)
        return [(lAx, uAx), (lAy, uAy)], lbias, ubias

    def _side(self, A: Any, x: Any, y: Any, below: bool) -> Any:
        if A is None:
            return None, None, 0
        A = _dense(A)
        plus, minus = (A.clamp(min=0), A.clamp(max=0)) if below else (A.clamp(max=0), A.clamp(min=0))
        xl, xu, yl, yu = (v.detach() for v in (x.lower, x.upper, y.lower, y.upper))
        kl, bl, ku, bu = curves.reciprocal_lines(yl, yu)
        rl, ru = 1 / yu * (1 - curves.ROUNDING * yu.sign()), 1 / yl * (1 + curves.ROUNDING * yl.sign())
        # x r ≥ r_l x + x_l r − x_l r_l and ≥ r_u x + x_u r − x_u r_u; ≤ r_u x + x_l r − x_l r_u and ≤ r_l x + x_u r − x_u r_l: halfway between
        Ax = (plus + minus) * (rl + ru) / 2
        Ar = (plus + minus) * (xl + xu) / 2
        bias = -(plus * (xl * rl + xu * ru) + minus * (xl * ru + xu * rl)) / 2
        up, down = (Ar.clamp(min=0), Ar.clamp(max=0)) if below else (Ar.clamp(max=0), Ar.clamp(min=0))
        Ay, bias = up * kl + down * ku, bias + up * bl + down * bu
        bias = bias.flatten(2).sum(-1)
        return self.broadcast_backward(Ax, x), self.broadcast_backward(Ay, y), bias


def _dense(A: Any) -> Tensor:
    """The library's abstract identities as matrices (rows, batch, *shape)."""
    if isinstance(A, Tensor):
        return A
    lib = library()
    if isinstance(A, lib.eyeC):
        rows = A.shape[0]
        return torch.eye(rows, device=A.device, dtype=torch.float64).reshape(rows, 1, *A.shape[2:]).expand(A.shape)
    raise NotImplementedError(f"bounds that start as {type(A).__name__}")


OPERATORS: dict[str, Any] = {
    "lde::Curve": BoundCurve,
    "onnx::Sqrt": BoundRoot,
    "onnx::Log": BoundLog,
    "lde::Softmax": BoundSoftmax,
    "lde::Normal": BoundNormal,
    "onnx::MatMul": BoundMatMul,
    "onnx::Div": BoundDiv,
    **mended.OPERATORS,
    **sigmoids.OPERATORS,
}
"""Operator → node class, as `BoundedModule(custom_ops=…)` takes them."""
