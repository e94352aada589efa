r"""Multipliers of  min f(v)  s.t.  â·v ≤ h,  v ∈ box,  K v ∈ S  for polyhedral S, by a primal–dual interior point method on a batch (Mehrotra 1992)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from formulations.coupling import Ball, Coupling, Rows
from formulations.norms import INF
from verification.dual_network.bands import Bands

TINY = 1e-300
OPT = {}
WIDEN = 1e-9
BACK = 0.995
DONE = 1e-6


def interior_multipliers(
    a: Tensor, b: Tensor, lo: Tensor, hi: Tensor, p: float, link: Coupling, value: Callable[[Tensor, Tensor], Tensor], steps: int, log=None
) -> tuple[Tensor, Tensor]:
    R, d = a.shape
    m = link.size
    size = torch.linalg.vector_norm(a, dim=-1).clamp(min=TINY)
    cut, h = a / size[:, None], -b / size
    dense = link.K.to_dense().cpu().numpy()
    K = sp.csr_matrix(dense)
    bands = Bands.of(K, a.device)
    at = torch.arange(R, device=a.device)
    best = torch.zeros(R, m, dtype=a.dtype, device=a.device)
    bound = value(best, at)
    # constraint table
    one = [(w, q) for w, q in link.blocks if isinstance(q, Ball) and q.p == 1]
    ranges = []
    for w, q in link.blocks:
        if isinstance(q, Rows):
            u = q.h[:, 0].expand(R, -1)
            ranges.append((w, -u if q.equality else torch.full_like(u, INF), u))  # lower given as bound on -Kv
        elif q.p == INF:
            e, rho = q.e[:, 0].expand(R, -1), q.rho.expand(R, 1)
            ranges.append((w, rho + e, rho - e))
    start = torch.minimum(torch.maximum(cut * h[:, None], lo), hi)
    unit = start.abs().amax(-1, keepdim=True).clamp(min=1e-9)  # (R,1)
    up, down = [hi], [-lo]
    for w, l, u in ranges:
        up.append(u); down.append(l)
    # variables: v (d), g (d | 1 | 0), s per ball
    G = _Cons(K=link, p=p, d=d, ranges=[w for w, _, _ in ranges], ones=[w for w, _ in one], cut=cut)
    hs = [hi, -lo]
    if p != 2:
        zero = torch.zeros(R, d, dtype=a.dtype, device=a.device); hs += [zero, zero]
    for w, l, u in ranges: hs += [u, l]
    for w, q in one:
        e = q.e[:, 0].expand(R, -1); hs += [-e, e]
    for w, q in one: hs.append(q.rho.expand(R, 1))
    hs.append(h[:, None])
    H = torch.cat(hs, -1)
    mask = torch.isfinite(H)
    H = torch.where(mask, H, 0.0)
    H = H + torch.where(mask, WIDEN * unit, 0.0)
    # start
    v = start.clone()
    g = v.abs() + unit if p == 1 else (2 * v.abs().amax(-1, keepdim=True) if p == INF else v[:, :0])
    w_ = link.apply(v)
    s = []
    for (w, q) in one:
        e = q.e[:, 0].expand(R, -1); s.append((w_[:, w] + e).abs() + q.rho.expand(R,1) / (w.stop - w.start))
    Gx = G.apply(v, g, s)
    floor = 0.1 * unit
    for_floor = torch.ones_like(H)
    y = torch.maximum(H - Gx, 0.1 * unit * for_floor)
    n1 = d if p == INF else 1
    if p == 2:
        mu = (0.1*unit * v.abs().mean(-1, keepdim=True)).clamp(min=1e-12)
    else:
        mu = unit * 0.5 / n1
    z = mu / y
    if p == 1: z[:, G.pos] = 0.5; z[:, G.neg] = 0.5
    if p == INF: z[:, G.pos] = 0.5 / d; z[:, G.neg] = 0.5 / d
    y = torch.where(mask, y, 1.0); z = torch.where(mask, z, 0.0)
    st = dict(v=v, g=g, s=s, y=y, z=z)
    N = mask.sum(-1, keepdim=True).to(a.dtype)
    ap_old = None
    for it in range(steps):
        # residuals
        q_ = v if p == 2 else torch.zeros_like(v)
        gv, gg, gs = G.back(z)
        rv = q_ + gv
        rg = (1 + gg) if p != 2 else gg
        rs = gs
        Gx = G.apply(v, g, s)
        rp = (Gx + y - H) * mask
        mu = (y * z).sum(-1, keepdim=True) / N
        f = v.abs().sum(-1) if p == 1 else v.abs().amax(-1) if p == INF else v.norm(dim=-1)
        # look
        lam = z[:, -1:] / size[at, None]
        u = G.multipliers(z) / lam.clamp(min=TINY)
        fo = f if p != 2 else f*f/2
        near = ((mu * N)[:, 0] <= 0.05 * fo)
        new = bound[at]
        if bool(near.any()):
            ix = torch.nonzero(near).flatten()
            new = new.clone(); new[ix] = value(torch.nan_to_num(u[ix], 0., 0., 0.), at[ix])
            better = new > bound[at]
            best[at[better]], bound[at[better]] = u[better], new[better]
        if log is not None:
            log.append((it, at.clone(), mu[:, 0].clone(), rp.abs().amax(-1), rv.abs().amax(-1), f.clone(), bound[at].clone()))
        settled = ((rp.abs().amax(-1) <= 1e-6 * f) & (bound[at] >= f * (1 - DONE))) | ~torch.isfinite(bound[at]) | ~torch.isfinite(mu[:, 0]) | ((mu*N)[:,0] <= 1e-9 * fo)
        if bool(settled.all()): break
        if settled.float().mean() > 0.2:
            k = torch.nonzero(~settled).flatten()
            v, g, y, z, H, mask, N, at, unit = (t[k] for t in (v, g, y, z, H, mask, N, at, unit))
            if ap_old is not None: ap_old, ad_old = ap_old[k], ad_old[k]
            s = [t[k] for t in s]; rv, rg, rp, mu = rv[k], rg[k], rp[k], mu[k]; rs = [t[k] for t in rs]
            G = G.take(k)
        W = z / y
        fac = G.factor(W, 1 / y, z, bands)
        # predictor
        rc = y * z
        dv, dg, ds, dz = fac(rv, rg, rs, rp, rc)
        dy = (-(rc + y * dz) / z.clamp(min=TINY)) * mask
        dz = dz * mask
        ap, ad = _length(y, dy, mask), _length(z, dz, mask)
        if p == 2: ap = ad = torch.minimum(ap, ad)
        mua = ((y + ap * dy) * (z + ad * dz) * mask).sum(-1, keepdim=True) / N
        sigma = ((mua / mu).clamp(0, 1) ** OPT.get('pow',3)).clamp(min=OPT.get('smin',0.))
        if OPT.get('fb') and it and ap_old is not None:
            short = torch.minimum(ap_old, ad_old) < OPT['fb']
            sigma = torch.where(short, torch.maximum(sigma, sigma*0 + OPT['fs']), sigma); so_ = torch.where(short, 0., 1.)
        else: so_ = 1.
        rc = (y * z + so_ * OPT.get('so',lambda a,b:1.)(ap,ad) * dy * dz - sigma * mu) * mask
        dv, dg, ds, dz = fac(rv, rg, rs, rp, rc)
        dy = (-(rc + y * dz) / z.clamp(min=TINY)) * mask
        dz = dz * mask
        ap, ad = (OPT.get('back',BACK) * _length(y, dy, mask)).clamp(max=1), (OPT.get('back',BACK) * _length(z, dz, mask)).clamp(max=1)
        for _ in range(OPT.get('gond', 0)):
            apt, adt = (ap + OPT.get('gd', .3)).clamp(max=1), (ad + OPT.get('gd', .3)).clamp(max=1)
            yt, zt = y + apt * dy, z + adt * dz
            vt = yt * zt
            goal = sigma * mu
            tt = torch.where(vt < .1 * goal, .1 * goal - vt, torch.where(vt > 10 * goal, 10 * goal - vt, 0.)) * mask
            tt = torch.maximum(tt, -10 * goal)
            rc2 = rc - tt
            c_ = fac(rv, rg, rs, rp, rc2)
            dy2 = (-(rc2 + y * c_[3]) / z.clamp(min=TINY)) * mask
            dz2 = c_[3] * mask
            ap2, ad2 = (BACK * _length(y, dy2, mask)).clamp(max=1), (BACK * _length(z, dz2, mask)).clamp(max=1)
            ok = (torch.minimum(ap2,ad2) >= torch.minimum(ap,ad)*1.01) | (ap2 + ad2 > ap + ad)
            pick = lambda new, old: torch.where(ok, new, old)
            dv, dg, ds = pick(c_[0], dv), pick(c_[1], dg), [pick(x, o) for x, o in zip(c_[2], ds)]
            dy, dz, ap, ad, rc = pick(dy2, dy), pick(dz2, dz), pick(ap2, ap), pick(ad2, ad), pick(rc2, rc)
        ap_old, ad_old = ap, ad
        if OPT.get('eq'): ap = ad = torch.minimum(ap, ad)
        if log is not None: log[-1] = (*log[-1], ap, ad, sigma)
        if p == 2: ap = ad = torch.minimum(ap, ad)
        v, g, y = v + ap * dv, g + ap * dg, y + ap * dy
        s = [t + ap * dt for t, dt in zip(s, ds)]
        z = z + ad * dz
    return best, bound


def _length(y, dy, mask):
    r = torch.where(mask & (dy < 0), -y / dy, INF).amin(-1, keepdim=True)
    return r.clamp(max=1.0)


@dataclass(eq=False)
class _Cons:
    K: Coupling
    p: float
    d: int
    ranges: list
    ones: list
    cut: Tensor

    def __post_init__(self):
        i = 0
        def nxt(n):
            nonlocal i
            r = slice(i, i + n); i += n; return r
        d = self.d
        self.hi, self.lo = nxt(d), nxt(d)
        if self.p != 2: self.pos, self.neg = nxt(d), nxt(d)
        self.rng = [(nxt(w.stop - w.start), nxt(w.stop - w.start)) for w in self.ranges]
        self.pairs = [(nxt(w.stop - w.start), nxt(w.stop - w.start)) for w in self.ones]
        self.budgets = [nxt(1) for w in self.ones]
        self.row = nxt(1)
        self.n = i

    def take(self, k):
        return _Cons(self.K, self.p, self.d, self.ranges, self.ones, self.cut[k])

    def apply(self, v, g, s):
        w = self.K.apply(v)
        out = [v, -v]
        if self.p != 2: out += [v - g, -v - g]
        for r in self.ranges: out += [w[:, r], -w[:, r]]
        for r, t in zip(self.ones, s): out += [w[:, r] - t, -w[:, r] - t]
        out += [t.sum(-1, keepdim=True) for t in s]
        out.append((self.cut * v).sum(-1, keepdim=True))
        return torch.cat(out, -1)

    def multipliers(self, z):
        u = torch.zeros(len(z), self.K.size, dtype=z.dtype, device=z.device)
        for r, (i, j) in zip(self.ranges, self.rng): u[:, r] = z[:, i] - z[:, j]
        for r, (i, j) in zip(self.ones, self.pairs): u[:, r] = z[:, i] - z[:, j]
        return u

    def back(self, z):
        v = z[:, self.hi] - z[:, self.lo] + self.K.back(self.multipliers(z)) + z[:, self.row] * self.cut
        if self.p == 2: g = z[:, :0]
        else:
            v = v + z[:, self.pos] - z[:, self.neg]
            g = -(z[:, self.pos] + z[:, self.neg])
            if self.p == INF: g = g.sum(-1, keepdim=True)
        s = [z[:, q] - z[:, i] - z[:, j] for q, (i, j) in zip(self.budgets, self.pairs)]
        return v, g, s

    def factor(self, W, iy, zz, bands):
        R = len(W)
        tot = lambda i, j: W[:, i] + W[:, j]
        dif = lambda i, j: W[:, i] - W[:, j]
        diag = tot(self.hi, self.lo)
        om = torch.zeros(R, self.K.size, dtype=W.dtype, device=W.device)
        C, Hd = [], []
        if self.p == 2: diag = diag + 1
        elif self.p == 1:
            t = tot(self.pos, self.neg); diag = diag + 4 * W[:, self.pos] * W[:, self.neg] / t; thg = dif(self.pos, self.neg) / t
        else:
            t = tot(self.pos, self.neg); diag = diag + t; C.append(-dif(self.pos, self.neg)); Hd.append(t.sum(-1))
        for r, (i, j) in zip(self.ranges, self.rng): om[:, r] = tot(i, j)
        T, TH = [], []
        for r, (i, j), q in zip(self.ones, self.pairs, self.budgets):
            t = tot(i, j); om[:, r] = 4 * W[:, i] * W[:, j] / t; th = dif(i, j) / t
            T.append(t); TH.append(th)
            full = torch.zeros_like(om); full[:, r] = th
            C.append(self.K.back(full)); Hd.append(-((1 / t).sum(-1) + 1 / W[:, q][:, 0]))
        C.append(self.cut); Hd.append(-1 / W[:, self.row][:, 0])
        F = bands.factor(torch.cat([diag, om], -1))
        C = torch.stack(C, -1)  # R,d,k
        Hm = torch.diag_embed(torch.stack(Hd, -1))
        MC = F.solve(C)
        S = Hm - C.mT @ MC
        LU = torch.linalg.lu_factor_ex(S)[:2]

        def solve(rv, rg, rs, rp, rc):
            # dz = W G dx + q, q = W rp - rc/y ; rc/y with y>0 -> need y: W = z/y ; rc/y
            q = W * rp - rc * iy
            qd = lambda i, j: q[:, i] - q[:, j]
            qs = lambda i, j: q[:, i] + q[:, j]
            r1 = -rv - qd(self.hi, self.lo)
            edge = torch.zeros_like(om)
            r2 = []
            if self.p == 1:
                tg = tot(self.pos, self.neg)
                g0 = (qs(self.pos, self.neg) - rg) / tg  # dg = thg dv + g0
                r1 = r1 - (qd(self.pos, self.neg) - dif(self.pos, self.neg) * g0)
            elif self.p == INF:
                r1 = r1 - qd(self.pos, self.neg)
                r2.append(qs(self.pos, self.neg).sum(-1) - rg[:, 0])
            for r, (i, j) in zip(self.ranges, self.rng): edge[:, r] = qd(i, j)
            S0 = []
            for r, (i, j), b, t, th, r_s in zip(self.ones, self.pairs, self.budgets, T, TH, rs):
                s0 = (qs(i, j) - r_s) / t  # ds = th dw + s0 - dzeta/t
                S0.append(s0)
                edge[:, r] = qd(i, j) - dif(i, j) * s0
                r2.append(-rp[:, b][:, 0] + (rc[:, b] / zz[:, b])[:, 0] - s0.sum(-1))
            r1 = r1 - self.K.back(edge)
            r2.append(-rp[:, self.row][:, 0] + (rc[:, self.row] / zz[:, self.row])[:, 0])
            r2 = torch.stack(r2, -1)
            Mr = F.solve(r1[..., None])
            db = torch.linalg.lu_solve(*LU, r2[..., None] - C.mT @ Mr)
            dv = (Mr - MC @ db)[..., 0]
            db = db[..., 0]
            dw = self.K.apply(dv)
            k = 0
            if self.p == 1: dg = thg * dv + g0
            elif self.p == INF: dg = db[:, :1]; k = 1
            else: dg = dv[:, :0]
            ds = []
            for n_, (r, t, th, s0) in enumerate(zip(self.ones, T, TH, S0)):
                ds.append(th * dw[:, r] + s0 - db[:, k + n_, None] / t)
            Gdx = self.apply(dv, dg, ds)
            dz = W * Gdx + q
            for n_, b in enumerate(self.budgets): dz[:, b] = db[:, k + n_, None]
            dz[:, self.row] = db[:, -1:]
            return dv, dg, ds, dz
        return solve
