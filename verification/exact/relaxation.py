r"""One activation region's convex program, and the verified bound that its multipliers give.

Neurons with one sign are affine; where both signs are left, h stands for relu(z) in its triangle

    h ≥ 0,   h ≥ z,   h ≤ s (z − l),        s = u/(u − l)                       multipliers η0, η1, η2 ≥ 0

and a neuron that is held active (inactive) adds the row z ≥ 0 (z ≤ 0) with a multiplier β ≥ 0. With margin row λ(q·f + σ) ≤ 0:

    minimise ‖Wδ‖   over (δ, z, h),   δ ∈ C .

The solver's multipliers are not believed. They are walked back through the network: for *any* λ, β, η2 ≥ 0 and any share ρ ∈ [0, 1], with ν the coefficient
of h found by the walk (ν = W_{l+1}ᵀ μ_{l+1}) and η2 raised to at least −ν,

    ν h  ≥  ρ (ν + η2) z − η2 s (z − l)      since h ≥ ρz (both h ≥ 0 and h ≥ z hold) and  −h ≥ −s(z − l)
    active:  ν h ≥ (ν − β) z  as z ≥ 0       inactive:  0 ≥ β z  as z ≤ 0

so every δ of the region with a fallen margin satisfies one affine row  a·δ + b ≤ 0 , and `weak_dual_bound` of that row over C bounds ‖Wδ‖.
A region whose signs are all fixed has no slack left: its program is exact.

Rounding: every entry of the walk is a sum of products of at most K = Σ n_l + 10 L + d factors deep, hence within γ_K of the same walk over absolute
values (Higham 2002, §3.1); b is lowered by that error, and by a's error times the largest |δ_i| of the region.
"""

from __future__ import annotations

from dataclasses import dataclass

import clarabel
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from formulations.cones import ConeProgram
from formulations.dual_bound import gamma, weak_dual_bound
from formulations.norms import INF, Array, GroupNorm
from formulations.pieces import BoxPiece, Part
from formulations.solve import solver_settings
from verification.exact.bounds import Bounds
from verification.exact.question import Question

Index = NDArray[np.intp]
Splits = dict[tuple[int, int], bool]  # (layer, neuron) → active?
ROUNDING = 1 + 1e-9  # magnitudes are themselves computed in floats


@dataclass(frozen=True, eq=False)
class RegionAnswer:
    """lower: verified bound for the region (+inf: no point of it flips). delta (d,): the relaxation's minimiser, NaN without one.

    score: one array (n_l,) per layer, how much the triangle of each free neuron is used there (0 where it is not, or the sign is known).
    """

    lower: float
    delta: Array
    score: tuple[Array, ...]


class Relaxation(ConeProgram):
    """The programs of all regions of one question; what does not depend on the region is written once."""

    def __init__(self, question: Question) -> None:
        super().__init__(question.norm, question.parts, question.dim, rows=0)
        self.question = question
        self._rhs = self.numbers(np.zeros((0, question.dim)), np.zeros(0), question.parts)[1]
        self._wide = self._A.shape[1]
        base = self._A.tocoo()
        self._base = (base.row.astype(np.intp), base.col.astype(np.intp), base.data)
        self._square = question.norm.p == 2.0 and not isinstance(question.norm, GroupNorm)

    def bound(self, row: int, bounds: Bounds, splits: Splits, hull: Array, *, time_limit: float | None = None) -> RegionAnswer:
        """The region's program for margin row `row`, with the largest |δ_i|, (d,), of the points asked about in `hull`."""
        layout = _Layout(bounds, splits)
        x, z = self._solve(layout, row, bounds, 0.0, time_limit)
        delta = x[: self.dim]
        value = float(self.question.norm.value(delta)) if np.isfinite(delta).all() else INF
        if self._square and 0 < value < INF:
            z = z / value  # multipliers of the norm from those of half its square
        size = float(np.abs(z).max(initial=0.0))
        if not np.isfinite(size) or size == 0:
            return RegionAnswer(0.0, delta, self._score(layout, x, None))
        if value == INF or size > 2.0**40:
            z = z * 2.0 ** -np.frexp(size)[1]  # a ray comes in any length
        duals, at = [], 0
        for block in self._blocks:
            m = block.on_delta.shape[0]
            duals.append(block.read(z[at : at + m]))
            at += m
        lam, walk = self._multipliers(layout, z[at:])
        a, b, error_a, error_b, nus = self._walk(row, bounds, layout, lam, walk)
        slack = float(error_a @ hull) * ROUNDING + error_b
        # no row of the program, but of the region: it absorbs the residual of an infeasible region's ray where C has no box
        parts = (*self.question.parts, Part("radius", BoxPiece(-hull, hull), "change"))
        duals = [*duals[1:], np.zeros((2, self.dim))]
        lower = weak_dual_bound(self.question.norm, a[None], np.array([b - slack]), np.ones(1), parts, duals).value
        return RegionAnswer(lower, delta, self._score(layout, x, nus))

    def minimiser(self, row: int, bounds: Bounds, splits: Splits, *, shift: float = 0.0) -> Array:
        """The program's minimiser δ alone, NaN without one, with the margin asked to lie `shift` below 0."""
        return self._solve(_Layout(bounds, splits), row, bounds, shift, None)[0][: self.dim]

    def _solve(self, layout: _Layout, row: int, bounds: Bounds, shift: float, time_limit: float | None) -> tuple[Array, Array]:
        """(x, multipliers of all rows) as the solver returns them; NaN where it returns nothing."""
        q = self.question
        entries, rhs, cones, height = [self._base], [self._rhs], list(self._cones[1:]), self._A.shape[0]
        used = [len(u) for u in layout.z_used]
        for layer, use in enumerate(layout.z_used):  # z − W h = β
            entries += [(height + np.arange(len(use)), layout.z_at[layer][use] + self._wide, np.ones(len(use)))]
            entries += [self._entries(-q.weights[layer][use], layer, layout, height)]
            rhs.append(q.shifts[layer][use])
            height += len(use)
        if sum(used):
            cones.append(clarabel.ZeroConeT(sum(used)))
        (rows, columns, values), right = layout.inequalities(bounds)
        entries.append((rows + height, columns + self._wide, values))
        height += len(right)
        direction, const = q.margin_row(row)
        scale = float(np.abs(direction).max(initial=0.0)) or max(abs(const), 1.0)
        entries.append(self._entries(direction[None] / scale, q.depth, layout, height))
        rhs += [right, np.array([-(const + shift) / scale])]
        cones.append(clarabel.NonnegativeConeT(len(right) + 1))
        i, j, v = (np.concatenate(parts) for parts in zip(*entries, strict=True))
        A = sp.csc_matrix((v, (i, j)), shape=(height + 1, self._wide + layout.columns))
        beyond = np.full(layout.columns, self._P.indptr[-1])
        P = sp.csc_matrix((self._P.data, self._P.indices, np.concatenate([self._P.indptr, beyond])), shape=(A.shape[1], A.shape[1]))
        settings = clarabel.DefaultSettings()
        settings.verbose = False
        for key, number in solver_settings("CLARABEL", time_limit).items():
            setattr(settings, key, number)
        settings.presolve_enable = False
        self._solver = clarabel.DefaultSolver(
            P, np.concatenate([self._q, np.zeros(layout.columns)]), A, np.concatenate(rhs), cones, settings
        )
        answer = self._solver.solve()
        z = np.array(answer.z)
        z[-1] /= scale
        x = np.array(answer.x)
        if "Infeasible" in str(answer.status):
            x = np.full(len(x), np.nan)
        return x, z

    def _entries(self, W: Array, layer: int, layout: _Layout, height: int) -> tuple[Index, Index, Array]:
        """W (m, n) at rows `height` …, acting on what enters affine map `layer`: δ for the first, else the h (the z where active) of the layer before."""
        at = np.arange(self.dim) if layer == 0 else np.where(layout.h_at[layer - 1] >= 0, layout.h_at[layer - 1] + self._wide, -1)
        i, j = np.nonzero((W != 0) & (at >= 0))
        return i + height, at[j], W[i, j]

    def _multipliers(self, layout: _Layout, z: Array) -> tuple[float, list[dict[str, Array]]]:
        """(λ, per layer: share ρ, η2 and β as arrays (n_l,)) from the multipliers of the network's rows."""
        z = z[sum(len(u) for u in layout.z_used) :]
        walk = []
        for layer, state in enumerate(layout.state):
            n = len(state)
            share, eta2, beta = np.zeros(n), np.zeros(n), np.zeros(n)
            free, held = layout.free[layer], layout.held[layer]
            k = len(free)
            e0, e1, e2 = (np.maximum(z[i * k : (i + 1) * k], 0.0) for i in range(3))
            total = e0 + e1
            share[free] = np.where(total > 0, e1 / np.where(total > 0, total, 1.0), 0.0)
            eta2[free] = e2
            beta[held] = np.maximum(z[3 * k : 3 * k + len(held)], 0.0)
            z = z[3 * k + len(held) :]
            walk.append({"share": share, "eta2": eta2, "beta": beta})
        return max(float(z[-1]), 0.0), walk

    def _walk(
        self, row: int, bounds: Bounds, layout: _Layout, lam: float, walk: list[dict[str, Array]]
    ) -> tuple[Array, float, Array, float, list[Array]]:
        """(a, b, error of a, error of b, ν per layer) of the affine row that these multipliers prove."""
        q = self.question
        mu = lam * q.decision.rows[row]
        const = lam * float(q.decision.shifts[row]) + float(mu @ q.shifts[-1])
        size = np.abs(mu)
        const_size = lam * abs(float(q.decision.shifts[row])) + float(size @ np.abs(q.shifts[-1]))
        nus: list[Array] = []
        for layer in range(q.depth - 1, -1, -1):
            nu, nu_size = mu @ q.weights[layer + 1], size @ np.abs(q.weights[layer + 1])
            nus.append(nu)
            state, own = layout.state[layer], walk[layer]
            l, u = bounds.lower[layer], bounds.upper[layer]
            free, on = state == FREE, state == ACTIVE
            s = _slope(l, u, free)
            eta2 = np.where(free, np.maximum(own["eta2"], -nu), 0.0)
            mu = np.where(free, own["share"] * (nu + eta2) - eta2 * s, np.where(on, nu - own["beta"], own["beta"]))
            const += float((eta2 * s) @ np.where(free, l, 0.0))
            eta_size = np.where(free, own["eta2"] + nu_size, 0.0)
            size = np.where(free, nu_size + 2 * eta_size, np.where(on, nu_size, 0.0) + own["beta"])
            const_size += float((eta_size * s) @ np.where(free, np.abs(l), 0.0))
            const += float(mu @ q.shifts[layer])
            const_size += float(size @ np.abs(q.shifts[layer]))
        a, a_size = mu @ q.weights[0], size @ np.abs(q.weights[0])
        depth = gamma(sum(len(b) + 10 for b in q.shifts) + q.dim + 10) * ROUNDING
        # x0 is folded into the first shift: |β_1 + W_1 x0| is itself rounded, relative to |β_1| + |W_1||x0|
        const_size += float(size @ q.first_shift_size)
        return a, const, depth * a_size, depth * const_size, nus[::-1]

    def _score(self, layout: _Layout, x: Array, nus: list[Array] | None) -> tuple[Array, ...]:
        """|ν_j| (h_j − relu(z_j)) where the triangle is used, for every free neuron; its distance from being exact without a minimiser."""
        out = []
        for layer, state in enumerate(layout.state):
            score = np.zeros(len(state))
            free = layout.free[layer]
            if len(free) and np.isfinite(x).all():
                z, h = x[self._wide + layout.z_at[layer][free]], x[self._wide + layout.h_at[layer][free]]
                weight = np.ones(len(free)) if nus is None else np.abs(nus[layer][free])
                score[free] = weight * np.maximum(h - np.maximum(z, 0.0), 0.0)
            out.append(score)
        return tuple(out)


INACTIVE, ACTIVE, FREE = 0, 1, 2


def _slope(l: Array, u: Array, free: Array) -> Array:
    """s ≥ u/(u − l), rounded up: then relu(z) ≤ s (z − l) holds on [l, u] whatever s's own error is. 0 where a neuron is not free."""
    return np.where(free, u / np.where(free, u - l, 1.0) * (1 + 2.0**-50), 0.0)


class _Layout:
    """Which neurons have columns: z for every neuron that is not inactive or is held, h for the free ones (an active neuron's h is its z)."""

    def __init__(self, bounds: Bounds, splits: Splits) -> None:
        self.state, self.free, self.held = [], [], []
        self.z_at, self.h_at, self.z_used = [], [], []
        self.columns = 0
        by_layer: list[list[tuple[int, bool]]] = [[] for _ in bounds.lower]
        for (layer, j), active in sorted(splits.items()):
            by_layer[layer].append((j, active))
        for layer, (l, u) in enumerate(zip(bounds.lower, bounds.upper, strict=True)):
            state = np.where(l >= 0, ACTIVE, np.where(u <= 0, INACTIVE, FREE))
            for j, active in by_layer[layer]:
                state[j] = ACTIVE if active else INACTIVE
            held = np.array([j for j, _ in by_layer[layer]], dtype=int)
            use = state != INACTIVE
            use[held] = True
            z_used, free = np.flatnonzero(use), np.flatnonzero(state == FREE)
            z_at, h_at = np.full(len(state), -1), np.full(len(state), -1)
            z_at[z_used] = self.columns + np.arange(len(z_used))
            self.columns += len(z_used)
            h_at[state == ACTIVE] = z_at[state == ACTIVE]
            h_at[free] = self.columns + np.arange(len(free))
            self.columns += len(free)
            self.state.append(state)
            self.free.append(free)
            self.held.append(held)
            self.z_at.append(z_at)
            self.h_at.append(h_at)
            self.z_used.append(z_used)

    def inequalities(self, bounds: Bounds) -> tuple[tuple[Index, Index, Array], Array]:
        """Rows ≤ right-hand side of all layers: −h ≤ 0, z − h ≤ 0, h − s z ≤ −s l for free neurons, then ∓z ≤ 0 for held ones."""
        r: list[Index] = []
        c: list[Index] = []
        v: list[Array] = []
        right: list[Array] = []
        at = 0
        for layer, free in enumerate(self.free):
            z, h, k = self.z_at[layer][free], self.h_at[layer][free], len(free)
            l, u = bounds.lower[layer][free], bounds.upper[layer][free]
            s = _slope(l, u, np.ones(k, dtype=bool))
            i = at + np.arange(k)
            for rows, columns, values in (
                (i, h, -np.ones(k)),
                (i + k, z, np.ones(k)),
                (i + k, h, -np.ones(k)),
                (i + 2 * k, h, np.ones(k)),
                (i + 2 * k, z, -s),
            ):
                r.append(rows)
                c.append(columns)
                v.append(values)
            held = self.held[layer]
            j = at + 3 * k + np.arange(len(held))
            r.append(j)
            c.append(self.z_at[layer][held])
            v.append(np.where(self.state[layer][held] == ACTIVE, -1.0, 1.0))
            right += [np.zeros(2 * k), -s * l, np.zeros(len(held))]
            at += 3 * k + len(held)
        if not r:
            return (np.zeros(0, dtype=int), np.zeros(0, dtype=int), np.zeros(0)), np.zeros(0)
        return (np.concatenate(r), np.concatenate(c), np.concatenate(v)), np.concatenate(right)
