r"""Second-order pictures of a margin at an input: level, gradient and Hessian of m(δ) = q·f(x₀ + δ) + s, batched, in float64.

Hessian-vector products are forward-over-reverse derivatives of the summed margins (torch.func): inputs of a batch do not see each other, so one product
serves the whole batch. Up to 256 features the Hessian is filled column by column; beyond, Lanczos (1950; full reorthogonalisation) started at the
gradient gives the eigenpairs of largest |eigenvalue| in the space that the radius depends on: −λ(I + λH)⁻¹g lies in span{g, Hg, H²g, …}.

A network of ReLUs is piecewise linear: its Hessian is zero wherever it exists, and the quadratic model is then the linear one; that of its softened twin
(verification/softened.py) shows the kinks within a distance of about its temperature.

None of this is certified: a quadratic model is a local picture.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.norms import INF, Array, GroupNorm, Norm
from formulations.programs import min_norm
from formulations.quadratic import QuadraticModel, QuadraticSolution, min_norm_quadratic, s_lemma
from formulations.sets.base import ConvexSet
from verification.decision import Decision
from verification.model import batch_of, decide, float64_copy, outputs, stack
from verification.softened import Softened

FULL = 256  # features up to which the whole Hessian is formed
CHUNK = 1 << 22  # input numbers in one pass


@dataclass(frozen=True, eq=False)
class Curvature:
    """n second-order models. level (n,), gradient (n, d); `matrix` (n, d, d), or None with eigenpairs `values` (n, k), `vectors` (n, d, k).

    flat (n,)       the Hessian is zero: the margin is linear around the input (a ReLU network, almost everywhere)
    neglected (n,)  largest |Ritz value| that the k eigenpairs leave out; 0 where the Hessian is full. An estimate, not a bound.
    """

    level: Array
    gradient: Array
    matrix: Array | None
    values: Array
    vectors: Array
    flat: Array
    neglected: Array

    def __len__(self) -> int:
        return len(self.level)

    def __getitem__(self, i: int) -> QuadraticModel:
        """The quadratic model of input i."""
        if self.matrix is not None:
            return QuadraticModel.dense(float(self.level[i]), self.gradient[i], self.matrix[i])
        return QuadraticModel.low_rank(float(self.level[i]), self.gradient[i], self.vectors[i], self.values[i])


def margin_curvature(
    model: nn.Module,
    x0: ArrayLike | Tensor,
    rows: ArrayLike,
    shifts: ArrayLike,
    *,
    at: ArrayLike | None = None,
    rank: int | None = None,
    temperature: float | None = None,
    device: torch.device | str | None = None,
) -> Curvature:
    """Level, gradient and Hessian of ``q·f(x₀ + δ) + s`` in δ, at δ = `at` (0 unless given), for n inputs with one row each.

    x0 (n, *shape); rows (n, m) or (m,); shifts (n,) or a number; `at` (n, d). `rank` None forms the whole Hessian up to 256 features and 10 eigenpairs
    beyond; a number asks for that many eigenpairs. `temperature` softens ReLUs. Raises InputError on shapes that do not fit.
    """
    inner = float64_copy(model, device)
    net = inner if temperature is None else Softened(inner, temperature)
    x = batch_of(x0, None, next((p.device for p in inner.parameters()), device))
    n, d = len(x), x[0].numel()
    width = outputs(net, x).shape[1]
    Q = torch.as_tensor(np.broadcast_to(np.asarray(rows, dtype=float), (n, width)).copy(), device=x.device)
    s = torch.as_tensor(np.broadcast_to(np.asarray(shifts, dtype=float), (n,)).copy(), device=x.device)
    start = x.flatten(1) if at is None else x.flatten(1) + torch.as_tensor(np.asarray(at, dtype=float).reshape(n, d), device=x.device)
    margin = _Margin(net, tuple(x.shape[1:]), Q, s)
    level, gradient = margin.value_and_gradient(start)
    if rank is None and d <= FULL:
        H = _full(margin, start)
        none = np.zeros((n, 0))
        return Curvature(_np(level), _np(gradient), _np(H), none, np.zeros((n, d, 0)), _np(H.abs().amax((1, 2)) == 0), np.zeros(n))
    k = min(10 if rank is None else int(rank), d)
    if k < 1:
        raise InputError(f"margin_curvature: rank={rank} must be at least 1.")
    values, vectors, neglected = _lanczos(margin, start, gradient, k)
    return Curvature(_np(level), _np(gradient), None, _np(values), _np(vectors), _np((values == 0).all(1)), _np(neglected))


@dataclass(frozen=True, eq=False)
class QuadraticRadius:
    """The smallest radius over the rows of one decision, by their quadratic models: `value` (None where none was found), `lower` its bound *of the model*,
    the `row` and the rival it falls to, and the row's `solution`. `flat`: the Hessian vanished, so this is the linear radius. Never certified."""

    value: float | None
    lower: float
    row: int
    rival: int
    solution: QuadraticSolution
    flat: bool


def quadratic_radii(
    model: nn.Module,
    x0: ArrayLike | Tensor,
    norm: Norm | float | str = 2,
    constraints: ConvexSet | None = None,
    *,
    decisions: Decision | Sequence[Decision] | None = None,
    rivals: int | None = 3,
    rank: int | None = None,
    temperature: float | None = None,
    device: torch.device | str | None = None,
) -> list[QuadraticRadius]:
    """``min_k min ‖Wδ‖ s.t. q_k(δ) ≤ 0, δ ∈ C`` with the second-order models q_k of the margin rows, one answer per input.

    Only the `rivals` rows of smallest linear radius are looked at (None: all). With a `temperature` slopes and Hessians come from the softened network,
    levels from the true one. Raises InputError as `decide` does.
    """
    norm = Norm.of(norm)
    inner = float64_copy(model, device)
    x = batch_of(x0, None, next((p.device for p in inner.parameters()), device))
    chosen = decide(outputs(inner, x), decisions)
    Q, s, real = stack(chosen, x)
    n, K, m = Q.shape
    shape = tuple(x.shape[1:])
    flat_x = x.flatten(1).repeat_interleave(K, 0)
    level, gradient = _Margin(inner, shape, Q.reshape(n * K, m), s.reshape(-1)).value_and_gradient(flat_x)
    first = (_np(level) / np.maximum(norm.dual_value(_np(gradient)), 1e-300)).reshape(n, K)
    first = np.where(real.cpu().numpy(), first, INF)
    keep = min(K, K if rivals is None else rivals)
    order = np.argsort(first, axis=1, kind="stable")[:, :keep]
    who, row = np.repeat(np.arange(n), keep), order.ravel()
    curved = margin_curvature(inner, x[who], _np(Q)[who, row], _np(s)[who, row], rank=rank, temperature=temperature)
    answers: list[QuadraticRadius] = []
    for i in range(n):
        models: list[tuple[float, int, bool, QuadraticModel]] = []
        for j in np.flatnonzero(who == i):
            k = int(row[j])
            if not real[i, k]:
                continue
            q = curved[int(j)]
            if temperature is not None:
                q = QuadraticModel(float(_np(level)[i * K + k]), q.gradient, q.matrix, q.vectors, q.values)
            models.append((_without_constraints(q, norm), k, bool(curved.flat[j]), q))
        found: list[QuadraticRadius] = []
        best = INF
        for free, k, flat, q in sorted(models, key=lambda m: m[0]):
            if free >= best:  # the set only adds to it: this row and all after it fall later
                break
            solved = _solve(q, norm, constraints, _np(x[i].flatten()), flat)
            found.append(QuadraticRadius(solved.value, solved.lower, k, chosen[i].rivals[k], solved, flat))
            best = min(best, INF if solved.value is None else solved.value)
        nearest = min(found, key=lambda r: INF if r.value is None else r.value)
        answers.append(
            QuadraticRadius(nearest.value, min(r.lower for r in found), nearest.row, nearest.rival, nearest.solution, nearest.flat)
        )
    return answers


def _solve(model: QuadraticModel, norm: Norm, constraints: ConvexSet | None, x0: Array, flat: bool) -> QuadraticSolution:
    """The model over the set; without curvature it is the linear program, which is exact and quick."""
    if not flat:
        return min_norm_quadratic(model, norm, constraints, x0)
    s = min_norm(model.gradient, model.level, norm, constraints, x0)[0]
    value = float(s.value) if np.isfinite(s.value) else None
    return QuadraticSolution(value, s.lower, s.delta, s.multipliers, s.duals, s.status, "linear", s.residuals, s.seconds)


def _without_constraints(model: QuadraticModel, norm: Norm) -> float:
    """A lower bound of the model's radius over any set: the S-lemma's value at p = 2, and 0 elsewhere."""
    return s_lemma(model, norm).lower if norm.p == 2.0 and not isinstance(norm, GroupNorm) else 0.0


class _Margin:
    """m_i = q_i·f(x_i) + s_i of flat inputs X (n, d), with gradients and Hessian-vector products; `take` repeats or picks rows."""

    def __init__(self, net: nn.Module, shape: tuple[int, ...], Q: Tensor, s: Tensor) -> None:
        self.net, self.shape, self.Q, self.s = net, shape, Q, s

    def take(self, index: Tensor) -> _Margin:
        return _Margin(self.net, self.shape, self.Q[index], self.s[index])

    def __call__(self, X: Tensor) -> Tensor:
        answers: Tensor = self.net(X.reshape(len(X), *self.shape))
        return (answers * self.Q).sum(1) + self.s

    def value_and_gradient(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """(m (n,), ∇m (n, d)) in chunks."""
        values, slopes = [], []
        for index in torch.split(torch.arange(len(X), device=X.device), max(1, CHUNK // X.shape[1])):
            part = self.take(index)
            slope, value = torch.func.grad_and_value(lambda Z, part=part: _summed(part(Z)), has_aux=True)(X[index])
            slopes.append(slope)
            values.append(value[1])
        return torch.cat(values).detach(), torch.cat(slopes).detach()

    def product(self, X: Tensor, V: Tensor) -> Tensor:
        """∇²m(x_i) v_i (n, d): the derivative of the gradient along V, forward over reverse; twice reverse where an operator lacks the former."""
        slope: Callable[[Tensor], Tensor] = torch.func.grad(lambda Z: self(Z).sum())
        try:
            moved: Tensor = torch.func.jvp(slope, (X,), (V,))[1]
        except NotImplementedError:
            moved = torch.func.vjp(slope, X)[1](V)[0]
        return moved.detach()


def _summed(m: Tensor) -> tuple[Tensor, Tensor]:
    return m.sum(), m


def _full(margin: _Margin, X: Tensor) -> Tensor:
    """(n, d, d): every column a product with a unit vector, many (input, column) pairs in one pass; symmetrised."""
    n, d = X.shape
    pairs = torch.cartesian_prod(torch.arange(n, device=X.device), torch.arange(d, device=X.device))
    columns = []
    for part in torch.split(pairs, max(1, CHUNK // d)):
        V = torch.zeros(len(part), d, dtype=X.dtype, device=X.device)
        V[torch.arange(len(part), device=X.device), part[:, 1]] = 1.0
        columns.append(margin.take(part[:, 0]).product(X[part[:, 0]], V))
    H = torch.cat(columns).reshape(n, d, d)
    return (H + H.transpose(1, 2)) / 2


def _lanczos(margin: _Margin, X: Tensor, gradient: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """(values (n, k), vectors (n, d, k), largest |Ritz value| left out (n,)), ordered by |value|; a run that ends early has zeros for the rest."""
    n, d = X.shape
    steps = min(d, max(2 * k + 10, 3 * k))
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(n, d, generator=generator, dtype=X.dtype).to(X.device)
    size = gradient.norm(dim=1, keepdim=True)
    v = torch.where(size > 0, gradient / size.clamp(min=1e-300), 0.0) + 0.01 * noise / noise.norm(dim=1, keepdim=True)
    v = v / v.norm(dim=1, keepdim=True)
    basis, images = [], []
    for _ in range(steps):
        basis.append(v)
        image = margin.product(X, v)
        images.append(image)
        B = torch.stack(basis, 2)
        w = image
        for _ in range(2):  # twice is enough (Kahan; Parlett 1980)
            w = w - (B @ (B.transpose(1, 2) @ w[:, :, None]))[:, :, 0]
        beta = w.norm(dim=1, keepdim=True)
        v = torch.where(beta > 1e-12 * image.norm(dim=1, keepdim=True).clamp(min=1e-300), w / beta.clamp(min=1e-300), 0.0)
    B, A = torch.stack(basis, 2), torch.stack(images, 2)
    T = B.transpose(1, 2) @ A
    theta, S = torch.linalg.eigh((T + T.transpose(1, 2)) / 2)
    order = theta.abs().argsort(dim=1, descending=True)
    theta = theta.gather(1, order)
    vectors = B @ S.gather(2, order[:, None, :].expand_as(S))
    left_out = theta[:, k].abs() if steps > k else torch.zeros(n, dtype=X.dtype, device=X.device)
    return theta[:, :k], vectors[:, :, :k], left_out


def _np(v: Tensor) -> Array:
    return np.asarray(v.detach().cpu().numpy())
