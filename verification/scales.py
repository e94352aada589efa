r"""One margin seen at several scales: smoothed gradients, secants and sound minorants, and the largest radius that one of them proves.

    smoothed    m(0) + ḡ_r·δ,   ḡ_r = E ∇m(Z),  Z Gaussian with E‖WZ‖ = r        LEG's estimand at that scale (Stein: E∇m(Z) = Σ⁻¹E Z m(Z))
    secant      m(0) + a·δ,     a = g − (m(0) + g·δ_w) W²δ_w/‖Wδ_w‖²             the row nearest to the gradient g that falls at the witness δ_w (Broyden 1965)
    minorant    a_r·δ + b_r ≤ m(δ)  for ‖Wδ‖ ≤ r, δ ∈ C                          sound: proves min(r, w_r),  w_r = min { ‖Wδ‖ : a_r·δ + b_r ≤ 0, δ ∈ C }
    capped      the same where rows of scales ≥ r fall too                       sound, and far tighter (verification/capped.py)

The first two are pictures and prove nothing; their values against r show where the margin bends. A small r has tight rows but proves little, a large r the reverse:
the largest proof lies where w_r crosses r, and `refine` more scales are put there, input by input. From there `caps` scales are tried whose rows only have to
hold where no larger scale's row rules a flip out; each rival keeps the best that any scale proves of it. (Asking a flip to obey the rows of all larger scales
at once, without bounding the layers anew there, was tried: on the digits network it never proved more.) The grid holds r = the linearised radius, so the
answer is never below that single scale's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.norms import INF, Norm
from formulations.programs import check_inside, relative_parts
from formulations.sets.base import ConvexSet
from formulations.support import Region
from verification.capped import CappedRows
from verification.decision import Decision
from verification.lirpa import BoundEngine, BoundMethod
from verification.model import batch_of, decide, linearise, margins, outputs, stack
from verification.radius import ASCENT
from verification.radius_search import FAR

if TYPE_CHECKING:
    import pandas as pd

SCALES = (
    0.25,
    0.5,
    0.65,
    0.75,
    0.8,
    0.85,
    0.9,
    0.95,
    1.0,
    1.15,
    1.35,
    1.7,
)  # of the linearised radius; 1, the single scale, is always among them
SAMPLES = 256
REFINE = 3
CAPS = 5


class RowKind(Enum):
    """Where a row comes from; the value says what its number is."""

    SMOOTHED = "The gradient averaged at this scale: a picture, not certified."
    SECANT = "The row through the margin at x0 and at the witness: a picture, not certified."
    MINORANT = "A sound row on the ball of this radius: certified."
    CAPPED = "Sound rows on that part of the ball of this radius where those of larger scales fall: certified."


@dataclass(frozen=True)
class ScaleRow:
    """`value` in the norm at `scale` (a radius): of the row's program for pictures, min(scale, program) where `certified`."""

    kind: RowKind
    scale: float
    value: float

    @property
    def certified(self) -> bool:
        return self.kind in (RowKind.MINORANT, RowKind.CAPPED)


@dataclass(frozen=True, eq=False)
class MultiScale:
    """One input: every row, the largest certified one `chosen`, `single` (the minorant's at r = the linearised radius), and `linear` (an estimate)."""

    rows: tuple[ScaleRow, ...]
    chosen: ScaleRow
    single: float
    linear: float

    @property
    def lower(self) -> float:
        """Certified: no allowed change nearer than this flips the decision."""
        return self.chosen.value

    def to_frame(self) -> pd.DataFrame:
        """One line per row: kind, scale, value, certified, chosen."""
        import pandas as pd

        return pd.DataFrame(
            [
                {"kind": r.kind.name.lower(), "scale": r.scale, "value": r.value, "certified": r.certified, "chosen": r is self.chosen}
                for r in self.rows
            ]
        )


def multiscale(
    model: nn.Module | BoundEngine,
    x0: ArrayLike | Tensor,
    norm: Norm | float | str = 2,
    constraints: ConvexSet | None = None,
    *,
    decisions: Decision | Sequence[Decision] | None = None,
    scales: Sequence[float] = SCALES,
    method: BoundMethod | str = "crown",
    witnesses: ArrayLike | None = None,
    samples: int = SAMPLES,
    refine: int = REFINE,
    caps: int = CAPS,
    seed: int = 0,
    device: torch.device | str | None = None,
) -> list[MultiScale]:
    """``lower_i ≤ min { ‖Wδ‖ : some margin of decision i ≤ 0 at x0_i + δ, δ ∈ C }`` from rows at many scales, with the pictures beside them.

    x0 (n, *shape); `scales` in units of each input's linearised radius; `witnesses` changes (n, d), NaN rows where there is none; `samples` gradients per
    scale (0: no smoothed rows). Raises InputError as `certified_radius` does, and on scales that are not positive.
    """
    if not all(np.isfinite(v) and v > 0 for v in scales):
        raise InputError(f"multiscale: scales={tuple(scales)} must be positive; they are parts of the linearised radius.")
    norm, how = Norm.of(norm), BoundMethod.of(method)
    x = batch_of(x0, model.input_shape, model.device) if isinstance(model, BoundEngine) else batch_of(x0, None, device)
    engine = model if isinstance(model, BoundEngine) else BoundEngine(model, tuple(x.shape[1:]), device)
    x = x.to(engine.device)
    chosen = decide(outputs(engine.model, x), decisions)
    Q, s, real = stack(chosen, x)
    n, flat = len(x), x.flatten(1).cpu().numpy()
    parts = relative_parts(constraints, engine.dim, flat, n)
    check_inside(parts, n)
    region = Region.build(norm, parts, np.zeros(n), engine.dim, count=n, steps=ASCENT, device=x.device)
    a, b = linearise(engine.model, x, Q, s)
    by_row = torch.where(real, region.distance(a, b), INF)
    linear, near = by_row.min(1)
    unit = _unit(linear, region, x)
    grid = torch.tensor(sorted({1.0, *map(float, scales)}), dtype=x.dtype, device=x.device)[:, None] * unit
    sound = _Sound(engine, x, Q, s, real, region, how)
    for r in (*grid, *([None] * refine)):
        sound.look(sound.between() if r is None else r)
    everyone = torch.arange(n, device=x.device)
    rows: list[list[ScaleRow]] = [[] for _ in range(n)]
    if samples:
        for r in grid:
            slope = _smoothed(engine.model, x, Q[everyone, near], norm, r, samples, seed)
            _note(rows, RowKind.SMOOTHED, r, region.distance(slope[:, None], b[everyone, near][:, None])[:, 0])
    if witnesses is not None:
        _secants(rows, engine.model, x, Q, s, real, a, b, region, norm, witnesses)
    for r, proved in zip(sound.radii, sound.proved, strict=True):
        _note(rows, RowKind.MINORANT, r, proved)
    capped = CappedRows(engine, x, Q, s, real, region, how, sound.by_row)
    for _ in range(caps if how is not BoundMethod.IBP else 0):  # intervals have no slope to cut with
        r = capped.between()
        _note(rows, RowKind.CAPPED, r, capped.look(r))
    answers = []
    for i in range(n):
        best = max((row for row in rows[i] if row.certified), key=lambda row: row.value)
        single = sound.proved[int((grid[:, i] == unit[i]).nonzero()[0])][i]
        answers.append(
            MultiScale(tuple(sorted(rows[i], key=lambda row: (row.kind.name, row.scale))), best, float(single), float(linear[i]))
        )
    return answers


class _Sound:
    """The minorants: `radii` looked at, lists of (n,), and what each `proved`; the crossing of w_r and r lies between `low` and `high`."""

    def __init__(self, engine: BoundEngine, x: Tensor, Q: Tensor, s: Tensor, real: Tensor, region: Region, how: BoundMethod) -> None:
        self.engine, self.x, self.Q, self.s, self.real, self.region, self.how = engine, x, Q, s, real, region, how
        self.radii: list[Tensor] = []
        self.proved: list[Tensor] = []
        self.low, self.high = torch.zeros_like(s[:, 0]), torch.full_like(s[:, 0], INF)
        self.by_row = torch.zeros_like(s)  # the best that any scale proves of each rival

    def look(self, r: Tensor) -> None:
        rows = self.engine.rows(self.x, self.Q, self.s, self.region.with_radius(r), self.how)
        known = torch.isfinite(rows.b)
        far = self.region.distance(rows.a, torch.where(known, rows.b, 0.0))  # where there is no bound: a row that always falls
        far = torch.where(self.real, torch.where(known, far, 0.0), INF)
        covers = (r >= self.region.reach() * (1 + 1e-9))[:, None]  # the ball holds all of C: the program's value counts by itself
        each = torch.where(covers, far, torch.minimum(r[:, None], far))
        self.by_row = torch.maximum(self.by_row, each)
        w, proved = far.amin(1), each.amin(1)
        self.radii.append(r)
        self.proved.append(proved)
        self.low = torch.maximum(self.low, proved)
        self.high = torch.where(w < r, torch.minimum(self.high, r), self.high)

    def between(self) -> Tensor:
        """The next radius, (n,): half way to the least one that did not hold; where all held, twice the largest."""
        top = torch.stack(self.radii).amax(0)
        held = torch.minimum(self.low, top)
        return torch.where(torch.isfinite(self.high), (held + torch.maximum(self.high, held)) / 2, 2 * top)


def _unit(linear: Tensor, region: Region, x: Tensor) -> Tensor:
    """The linearised radius, or where no linear model falls the reach of C, or far out."""
    far = torch.where(torch.isfinite(region.reach()), region.reach(), FAR * (1 + x.flatten(1).norm(dim=-1)))
    return torch.where(torch.isfinite(linear), linear, far).clamp(min=1e-9)


def _note(rows: list[list[ScaleRow]], kind: RowKind, radii: Tensor, values: Tensor) -> None:
    """A row for every input whose radius is a number."""
    for mine, r, v in zip(rows, radii.tolist(), values.tolist(), strict=True):
        if not np.isnan(r):
            mine.append(ScaleRow(kind, r, v))


def _smoothed(model: nn.Module, x: Tensor, q: Tensor, norm: Norm, radius: Tensor, samples: int, seed: int) -> Tensor:
    """E ∇m(Z) (n, d) over antithetic Gaussian pairs Z = ±W⁻¹ξ·r/E‖ξ‖."""
    n, d = len(x), x[0].numel()
    generator = torch.Generator().manual_seed(seed)
    half = torch.randn(max(samples // 2, 1), d, generator=generator, dtype=x.dtype).to(x.device)
    scale = torch.as_tensor(np.array(norm.scale(d)), dtype=x.dtype, device=x.device)
    size = torch.as_tensor(np.atleast_1d(norm.value((half / scale).cpu().numpy())), device=x.device).mean()
    Z = torch.cat([half, -half]) / scale / size
    total = torch.zeros(n, d, dtype=x.dtype, device=x.device)
    for part in torch.split(Z, max(1, (1 << 21) // (n * d))):
        points = (x.flatten(1)[:, None] + radius[:, None, None] * part).reshape(-1, *x.shape[1:]).requires_grad_(True)
        with torch.enable_grad():
            value = (model(points).reshape(n, len(part), -1) * q[:, None]).sum()
            (slope,) = torch.autograd.grad(value, points)
        total += slope.reshape(n, len(part), d).sum(1)
    return total / len(Z)


def _secants(
    rows: list[list[ScaleRow]], model: nn.Module, x: Tensor, Q: Tensor, s: Tensor, real: Tensor, a: Tensor, b: Tensor, region: Region, norm: Norm,
    witnesses: ArrayLike,
) -> None:  # fmt: skip
    """The secant row of the margin that is lowest at the witness, at scale ‖Wδ_w‖; none where there is no witness."""
    n, d = len(x), x[0].numel()
    delta = torch.as_tensor(np.asarray(witnesses, dtype=float).reshape(n, d), device=x.device)
    there = torch.isfinite(delta).all(1)
    step = torch.where(there[:, None], delta, 1.0)
    with torch.no_grad():
        values = torch.where(real, margins(model, x + step.view_as(x), Q, s), INF)
    k = values.argmin(1)
    g, level = a[torch.arange(n), k], b[torch.arange(n), k]
    weight = torch.as_tensor(np.array(norm.scale(d)), dtype=x.dtype, device=x.device).square()
    along = weight * step
    slope = g - ((level + (g * step).sum(1)) / (step * along).sum(1).clamp(min=1e-300))[:, None] * along
    value = region.distance(slope[:, None], level[:, None])[:, 0]
    size = np.atleast_1d(norm.value(step.cpu().numpy()))
    for i in range(n):
        if bool(there[i]):
            rows[i].append(ScaleRow(RowKind.SECANT, float(size[i]), float(value[i])))
