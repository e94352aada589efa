r"""Multipliers of  min ‖v‖  s.t.  a·v + b ≤ 0,  v ∈ box,  K v ∈ S  by operator splitting, for a batch of programs (‖·‖²/2 for p = 2: the same multipliers).

With s the point, its image and its row, (v, Kv, â·v) for â = a/‖a‖, and step sizes T = t·(1, 1/c², 1/w²) for the three, both halves of a step are cheap:

    z = prox_{t(‖·‖ + box)} × P_S × P_{· ≤ −b/‖a‖} (s)
    q = (x, Kx, â·x),  x = (I + c²KᵀK + w²ââᵀ)⁻¹ (1, c²Kᵀ, w²â)(2z − s)            [the nearest such point in the metric T⁻¹]
    s ← s + 2(q − z)                                                              Peaceman–Rachford; multipliers (s − z)/T, those of K over that of the row

Iterates are drawn towards where the round began, s ← s₀/(k+2) + (s + 2(q − z))(k+1)/(k+2) (Halpern), and a round ends when ‖q − z‖ has fallen far, rises again
or takes long; then t and c are brought towards the ratios of the ways that points and multipliers went (restarts as Lu & Yang 2024, Chen et al. 2024 for linear
programs, where they converge linearly, which plain splitting does not show before many steps). One eigendecomposition of KᵀK serves every c. Any multiplier
gives a bound, so nothing here has to be exact: `value`, the verified bound, judges the iterates, and the best is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from formulations.coupling import Coupling, CutCoupling, Rows

EVERY = 20  # steps between looks at the bound
DONE = 1e-6  # relative gap of the bound to ‖z‖ of a nearly feasible z, below which a program leaves
FAR, RISING, LONG = (
    0.2,
    0.8,
    0.3,
)  # a round ends: residual at this part of its first; at this part and rising; steps as this part of all so far
LEAST = 8  # steps of a round
SPAN = 10  # by which t may leave the size of the change for p = 1, ∞, and c its first value: early ways say little of later ones
IMAGE, ROW = 3.0, 3.0  # first c, and w
NEWTON = 6  # steps for the ceiling
TINY = 1e-300


@dataclass(frozen=True, eq=False)
class _State:
    """Per program, (R, 1, …): coupling, box, step sizes t and c², iterate s; of the round its first s, z and multipliers, steps k, first and last residual."""

    link: CutCoupling
    lo: Tensor
    hi: Tensor
    t: Tensor
    image: Tensor  # c²
    tilt: Tensor  # (I + c²KᵀK)⁻¹ â, and what of it a step takes off: Sherman and Morrison
    pull: Tensor
    s: Tensor
    first: Tensor
    z0: Tensor
    m0: Tensor
    k: Tensor
    begun: Tensor
    last: Tensor
    roots: tuple[Tensor, ...]  # soft thresholds of the proximal maps, from one step to the next
    spectrum: tuple[Tensor, Tensor]  # of KᵀK, shared

    def take(self, index: Tensor) -> _State:
        shared = ("link", "roots", "spectrum")
        tensors = {field.name: getattr(self, field.name)[index] for field in fields(self) if field.name not in shared}
        return replace(self, link=self.link.take(index), roots=tuple(root[index] for root in self.roots), **tensors)

    def sizes(self) -> Tensor:
        """T (R, 1, d + m + 1)."""
        d, m = self.lo.shape[-1], self.link.size - 1
        return torch.cat([self.t.expand(-1, 1, d), (self.t / self.image).expand(-1, 1, m), self.t / ROW**2], -1)

    def nearest(self, back: Tensor) -> Tensor:
        """q."""
        d, link = self.lo.shape[-1], self.link
        rhs = back[..., :d] + self.image * Coupling.back(link, back[..., d:-1]) + ROW**2 * back[..., -1:] * link.cut
        x = _solve(self.spectrum, rhs, self.image) - (rhs * self.tilt).sum(-1, keepdim=True) * self.pull * self.tilt
        return torch.cat([x, link.apply(x)], -1)


def split_multipliers(
    a: Tensor, b: Tensor, lo: Tensor, hi: Tensor, p: float, link: Coupling, value: Callable[[Tensor, Tensor], Tensor], steps: int
) -> tuple[Tensor, Tensor]:
    """(u (R, m), bound (R,)): the best multipliers of the pieces of C, over the row's own, that were met in so many steps.

    a (R, d), b (R,), box (R, d); `link` for the same programs; `value(u, index)` the verified bound of the programs at `index` under u.
    """
    size = torch.linalg.vector_norm(a, dim=-1).clamp(min=TINY)
    at = torch.arange(len(a), device=a.device)
    best = torch.zeros(len(a), link.size, dtype=a.dtype, device=a.device)
    bound = value(best, at)
    now = _start(CutCoupling.of(link, (a / size[:, None])[:, None], (-b / size)[:, None, None]), lo[:, None], hi[:, None], p)
    for done in range(0, steps, EVERY):
        z, gap, found = now.s, now.t, (now.m0, now.m0)
        for j in range(min(EVERY, steps - done)):
            now, z, gap, found = _step(now, p, done + j)
        for m in found:
            u = m[:, 0, a.shape[1] :]
            price = u[:, -1:] / size[at, None]  # of the row
            u = torch.where(price > 0, u[:, :-1] / price.clamp(min=TINY), 0.0)
            new = value(torch.nan_to_num(u, 0.0, 0.0, 0.0), at)
            better = new > bound[at]
            best[at[better]], bound[at[better]] = u[better], new[better]
        length = torch.linalg.vector_norm(z[:, 0, : a.shape[1]], p, dim=-1)
        settled = (gap[:, 0, 0] <= DONE * z[:, 0].norm(dim=-1)) & (bound[at] >= length * (1 - DONE))
        left = torch.nonzero(~settled & torch.isfinite(bound[at])).flatten()
        if not len(left):
            break
        if len(left) < 0.8 * len(at):
            now, at = now.take(left), at[left]
    return best, bound


def _start(link: CutCoupling, lo: Tensor, hi: Tensor, p: float) -> _State:
    """From the row's nearest point, brought into the box."""
    row = link.blocks[-1][1]
    assert isinstance(row, Rows)
    z = torch.minimum(torch.maximum(link.cut * row.h, lo), hi)
    t = _natural(z, p)
    s = torch.cat([z, link.apply(z)], -1)
    share, basis = torch.linalg.eigh(link.inverse)  # 1/(1 + λ), and vectors
    spectrum = (1 / share.clamp(min=TINY) - 1).clamp(min=0), basis
    image, none = torch.full_like(t, IMAGE**2), torch.zeros_like(t)
    tilt, pull = _tilt(spectrum, link.cut, image)
    roots = (none,) + (none[..., 0],) * len(link.blocks)
    return _State(link, lo, hi, t, image, tilt, pull, s, s, s, torch.zeros_like(s), none, none, none, roots, spectrum)


def _natural(z: Tensor, p: float) -> Tensor:
    """t: half of the change for p = ∞, of a coordinate of it for p = 1, where multipliers of a point are about one in sum or each; 1 for ‖·‖²/2."""
    if p == 2:
        return torch.ones_like(z[..., :1])
    half: Tensor = 0.5 * z.norm(dim=-1, keepdim=True).clamp(min=1e-12)
    return half * z.shape[-1] ** -0.5 if p == 1 else half


def _solve(spectrum: tuple[Tensor, Tensor], x: Tensor, image: Tensor) -> Tensor:
    """(I + c²KᵀK)⁻¹ x."""
    values, basis = spectrum
    inner: Tensor = x @ basis / (1 + image * values)
    return inner @ basis.T


def _tilt(spectrum: tuple[Tensor, Tensor], cut: Tensor, image: Tensor) -> tuple[Tensor, Tensor]:
    tilt = _solve(spectrum, cut, image)
    return tilt, ROW**2 / (1 + ROW**2 * (tilt * cut).sum(-1, keepdim=True))


def _step(now: _State, p: float, done: int) -> tuple[_State, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """(the state after one step, z, ‖q − z‖, multipliers: (s − z)/T, within the domains, and (q − 2z + s)/T, which balance; both are optimal where q = z)."""
    T = now.sizes()
    z, roots = _prox(now, p)
    q = now.nearest(2 * z - now.s)
    m = (now.s - z) / T
    gap = ((q - z) / T.sqrt()).norm(dim=-1, keepdim=True)
    fresh = now.k == 0
    k, begun = now.k + 1, torch.where(fresh, gap, now.begun)
    z0, m0 = torch.where(fresh, z, now.z0), torch.where(fresh, m, now.m0)
    s = (now.first + (now.s + 2 * (q - z)) * k) / (k + 1)
    over = (k > LEAST) & ((gap <= FAR * begun) | ((gap <= RISING * begun) & (gap > now.last)) | (k >= LONG * (done + 1)))
    after = replace(now, s=s, z0=z0, m0=m0, k=k, begun=begun, last=gap, roots=roots)
    ended = torch.nonzero(over[:, 0, 0]).flatten()
    if len(ended):
        after = _restart(after, ended, z, m, T, p)
    return after, z, (q - z).norm(dim=-1, keepdim=True), (m, (q - 2 * z + now.s) / T)


def _restart(now: _State, ended: Tensor, z: Tensor, m: Tensor, T: Tensor, p: float) -> _State:
    """A new round of the programs `ended` from z and m, under new step sizes."""
    old = now.take(ended)
    z, m, T, d = z[ended], m[ended], T[ended], old.lo.shape[-1]
    way, turn = z - old.z0, m - old.m0

    def ratio(points: Tensor, multipliers: Tensor) -> Tensor:
        out = points.norm(dim=-1, keepdim=True) / multipliers.norm(dim=-1, keepdim=True).clamp(min=TINY)
        return torch.where(torch.isfinite(out) & (out > 0), out, 1.0)

    root = T.sqrt()
    t = old.t * ratio(way / root, turn * root).sqrt()
    if p != 2:
        size = _natural(z[..., :d], p)
        t = torch.minimum(torch.maximum(t, size / SPAN), size * SPAN)
    own = root[..., d:-1]
    image = t / (old.t / old.image * ratio(way[..., d:-1] / own, turn[..., d:-1] * own).sqrt())
    image = image.clamp((IMAGE / SPAN) ** 2, (IMAGE * SPAN) ** 2)
    tilt, pull = _tilt(old.spectrum, old.link.cut, image)
    s = z + m * replace(old, t=t, image=image).sizes()  # the same point and multipliers
    new = {"t": t, "image": image, "tilt": tilt, "pull": pull, "s": s, "first": s, "k": torch.zeros_like(t)}
    return replace(now, **{name: getattr(now, name).index_copy(0, ended, part) for name, part in new.items()})


def _prox(now: _State, p: float) -> tuple[Tensor, tuple[Tensor, ...]]:
    """(z, roots), block by block; thresholds are found by Newton steps from where they were last."""
    d = now.lo.shape[-1]
    w, t, root = now.s[..., :d], now.t, now.roots[0]
    if p == 2:
        point = torch.minimum(torch.maximum(w / (1 + t), now.lo), now.hi)
    elif p == 1:
        point = torch.minimum(torch.maximum(w.sign() * (w.abs() - t).clamp(min=0), now.lo), now.hi)
    else:
        root = _ceiling(w.abs(), torch.where(w >= 0, now.hi, -now.lo), t, root)
        point = torch.minimum(torch.maximum(w, torch.maximum(now.lo, -root)), torch.minimum(now.hi, root))
    parts, roots = [point], [root]
    for (where, block), warm in zip(now.link.blocks, now.roots[1:], strict=True):
        v = now.s[..., d:][..., where]
        _, near = block.project(v, now.t[..., 0], warm)
        part, near = block.project(v, now.t[..., 0], near)
        parts.append(part)
        roots.append(near)
    return torch.cat(parts, -1), tuple(roots)


def _ceiling(size: Tensor, cap: Tensor, t: Tensor, guess: Tensor) -> Tensor:
    """c ≥ 0 with Σ (size − c) over min(size, cap) > c equal to t, or 0 when that is below it: the ceiling of prox t‖·‖_∞ in a box."""
    top = torch.minimum(size, cap)
    low, high = torch.zeros_like(t), top.amax(-1, keepdim=True)
    c = torch.minimum(guess, high)
    for _ in range(NEWTON):
        over = top > c
        excess = torch.where(over, size - c, 0.0).sum(-1, keepdim=True) - t
        low, high = torch.where(excess > 0, c, low), torch.where(excess > 0, high, c)
        step = c + excess / over.sum(-1, keepdim=True).clamp(min=1)
        c = torch.where((step >= low) & (step <= high), step, (low + high) / 2)
    return c
