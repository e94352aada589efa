r"""Sound minorants of a network's margins over { ‖Wδ‖ ≤ r_i } ∩ C_i, by auto_LiRPA.

The library relaxes the layers; every linear function it meets on the way is bounded over the region itself by `Region.support`, not over a bigger
ball or box. To that end its perturbation class is replaced (it ignores boxes at p = 2), and so is its shortcut that answers the first linear layer
from the box hull, which is exact for a box only. A pass is CROWN (Zhang et al. 2018): bounds of every layer's inputs, then

    m_k(δ) ≥ a_k·δ + b_k   on R_i,      lower_k = b_k − σ_{R_i}(−a_k)

Everything runs in float64 with round-to-nearest; b_k is lowered by `SLACK` of its terms, far above the rounding of a forward pass. While the
library works, torch's default dtype is float64 (its α tensors ask for it): the one global setting touched, restored afterwards, not thread-safe.
"""

from __future__ import annotations

from enum import Enum
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from formulations.errors import InputError, SoundnessError
from formulations.support import Region
from verification.lirpa.compat import library
from verification.lirpa.slopes import Inner, Slopes, activations, inner_slopes, round_slopes, slopes_of
from verification.lirpa.translate import blame, convert, float64_default, forget
from verification.minorant import Minorant
from verification.model import check_alone, float64_copy, outputs

SLACK = 1e-11  # of |b| + Σ|a||x0| and the margin's size, taken off every row: float64 rounding of the passes, and the checker's bound of its own
MEMORY = 1 << 30  # bytes of bound matrices in one chunk of inputs


class BoundMethod(Enum):
    """How layers are bounded; the value says what to expect."""

    IBP = "Intervals: fast, loose, and only a constant row."
    CROWN_IBP = "Intervals up to the last layer, linear relaxations from there back: rows at the price of one pass, for networks that CROWN takes minutes on."
    CROWN = "Linear relaxations with fixed slopes."
    ALPHA_CROWN = (
        "Linear relaxations whose slopes in the margin rows are raised for this region; the bounds under them keep CROWN's slopes."
    )

    @staticmethod
    def of(name: BoundMethod | str) -> BoundMethod:
        """From "ibp", "crown-ibp", "crown" or "alpha-crown". Raises InputError on another name."""
        if isinstance(name, BoundMethod):
            return name
        known = {m.label: m for m in BoundMethod}
        if str(name).lower() not in known:
            raise InputError(f"method={name!r} is not known; use one of {', '.join(known)}.")
        return known[str(name).lower()]

    @property
    def label(self) -> str:
        """The name that callers write."""
        return self.name.lower().replace("_", "-")


_ASKED = {BoundMethod.IBP: "IBP", BoundMethod.CROWN_IBP: "CROWN-IBP", BoundMethod.CROWN: "CROWN", BoundMethod.ALPHA_CROWN: "CROWN"}


class BoundEngine:
    """Bounds of one network. The caller's model is copied (float64, evaluation mode), never changed.

    `passes` counts bound passes. Raises DependencyError when auto_LiRPA is missing, and InputError that names the layer it cannot bound.
    """

    def __init__(
        self, model: nn.Module, input_shape: tuple[int, ...], device: torch.device | str | None = None, *, memory: int = MEMORY
    ) -> None:
        self.model = float64_copy(model, device)
        self.device = next((p.device for p in self.model.parameters()), torch.device("cpu" if device is None else device))
        self.input_shape, self.dim, self.memory, self.passes = tuple(input_shape), prod(input_shape), memory, 0
        probe = torch.linspace(-1, 1, 2 * self.dim, dtype=torch.float64, device=self.device).reshape(2, *self.input_shape)
        self.outputs = int(outputs(self.model, probe).shape[1])
        check_alone(self.model, probe)
        self._bounded = convert(self.model, probe[:1])
        self._check_parity(probe)
        self._row_bytes = _bytes_per_input(self._bounded, self.dim)

    def rows(
        self, x0: Tensor, Q: Tensor, s: Tensor, region: Region, method: BoundMethod | str = BoundMethod.CROWN, *, part: bool = False
    ) -> Minorant:
        """Minorants of the margins Q f(x0 + δ) + s on the region, for inputs x0 (n, *shape), Q (n, K, m), s (n, K).

        `part`: the region is one of several whose union holds x0, so that it need not hold x0 itself, and may be empty. Inputs are taken in chunks of
        bounded memory. Raises InputError on shapes that do not fit, a region without x0 and a layer that cannot be bounded, and SoundnessError when a row
        lies above the network at δ = 0: a fault of the bound library.
        """
        how, n = BoundMethod.of(method), len(x0)
        if tuple(x0.shape[1:]) != self.input_shape or Q.shape[-1] != self.outputs or region.count != n or region.dim != self.dim:
            raise InputError(
                f"rows: inputs {tuple(x0.shape)}, margin rows {tuple(Q.shape)} and a region of {region.count} × {region.dim} do not fit "
                f"inputs of shape {self.input_shape} and {self.outputs} outputs."
            )
        without = torch.nonzero(~region.holds_zero()).flatten()
        if len(without) and not part:
            raise InputError(f"rows: the region of input {int(without[0])} does not hold x0; an empty region would certify anything.")
        per_input = self._row_bytes * (3 if how is BoundMethod.ALPHA_CROWN else 1)
        width = max(1, int(self.memory // max(per_input, 1)))
        done = [self._chunk(x0[i : i + width], Q[i : i + width], s[i : i + width],
                            region if width >= n else region.take(range(i, min(i + width, n))), how) for i in range(0, n, width)]  # fmt: skip
        self.passes += 1
        if len(done) == 1:
            return done[0]
        slopes = tuple(torch.cat(v) for v in zip(*(m.slopes for m in done), strict=False))
        inner = {pair: torch.cat([m.inner[pair] for m in done]) for pair in done[0].inner}
        a, b, lower = (torch.cat([getattr(m, f) for m in done]) for f in ("a", "b", "lower"))
        return Minorant(a, b, lower, slopes, inner)

    def _chunk(self, x: Tensor, Q: Tensor, s: Tensor, region: Region, how: BoundMethod) -> Minorant:
        a, b, slopes, inner = self._linear_bounds(x, Q, region, how)
        a, b = a.detach(), b.detach() + s
        flat = x.flatten(1)
        b = b + torch.einsum("nkd,nd->nk", a, flat)  # rows over the input become rows over the change
        with torch.no_grad():
            value = torch.einsum("nkm,nm->nk", Q, self.model(x)) + s
        size = 1 + b.abs() + value.abs() + torch.einsum("nkd,nd->nk", a.abs(), flat.abs())
        b = b - SLACK * size
        lower = b - region.support(-a)
        broken = ~(torch.isfinite(a).all(-1) & torch.isfinite(b) & torch.isfinite(lower))
        above = ~broken & (b > value + 1e-6 * size) & region.holds_zero()[:, None]
        if bool(above.any()):
            i, k = (int(v) for v in torch.nonzero(above)[0])
            raise SoundnessError(f"bounds: row {k} of input {i} exceeds its margin at x0 ({float(b[i, k]):g} > {float(value[i, k]):g}); "
                                 "a fault of the bound library.")  # fmt: skip
        nothing = torch.full_like(b, -torch.inf)
        a, b, lower = torch.where(broken[..., None], 0.0, a), torch.where(broken, nothing, b), torch.where(broken, nothing, lower)
        return Minorant(a, b, lower, slopes, inner)

    def _linear_bounds(self, x: Tensor, Q: Tensor, region: Region, how: BoundMethod) -> tuple[Tensor, Tensor, Slopes, Inner]:
        """(A (n, K, d), bias (n, K), slopes, inner slopes) with A·z + bias ≤ Q f(z) for z ∈ x0 + R."""
        net, n, K = self._bounded, len(x), Q.shape[1]
        net.repaired = not region.is_box
        from verification.lirpa.perturbation import SetPerturbation  # this imports the library, which may be missing

        watch = SetPerturbation(x, region)
        asked: dict[str, Any] = {"x": (library().BoundedTensor(x, watch),), "C": Q, "bound_upper": False}
        with float64_default(), torch.set_grad_enabled(how is BoundMethod.ALPHA_CROWN):
            try:
                if how is BoundMethod.ALPHA_CROWN:
                    net.compute_bounds(method="alpha-CROWN", **asked)
                    round_slopes(net)
                    asked["reuse_alpha"] = True
                watch.last = None
                lower = net.compute_bounds(method=_ASKED[how], **asked)[0].reshape(n, K)
                fixed = (
                    how is BoundMethod.CROWN and region.coupling is None and all("Relu" in type(node).__name__ for node in activations(net))
                )
                slopes = () if fixed or how is BoundMethod.IBP else slopes_of(net, n, K)
                inner = inner_slopes(net, n) if how is BoundMethod.ALPHA_CROWN else {}
            except (NotImplementedError, AssertionError, AttributeError, TypeError, IndexError, KeyError, ValueError) as error:
                raise InputError(blame(self.model, self.input_shape, error)) from error
            finally:
                forget(net)
        if how is BoundMethod.IBP or watch.last is None:  # nothing linear is left of the input: the bound is a constant
            return torch.zeros(n, K, self.dim, dtype=x.dtype, device=x.device), lower, (), {}
        # The library's own record of the bias (0.3: `lbias`) leaves out what constants in the graph add, so the bias is what the bound is besides A's part.
        A, part = watch.last
        return A.reshape(n, K, self.dim), lower - part.reshape(n, K), slopes, inner

    def _check_parity(self, probe: Tensor) -> None:
        """The library's graph must compute the same function as the model."""
        with float64_default(), torch.no_grad():
            ours, theirs = self.model(probe), self._bounded(probe)
        if not torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9):
            gap = float((ours - theirs).abs().max())
            raise InputError(f"model: {type(self.model).__name__} is translated wrongly for bounding (outputs differ by {gap:g}); "
                             "avoid layers that depend on the batch size or on random numbers.")  # fmt: skip


def _bytes_per_input(net: Any, dim: int) -> int:
    """A crude upper estimate of what bounding one input keeps at once: a few matrices of (neurons bounded) × (neurons or inputs that they depend on).

    Convolutions keep patches, and a matrix over the inputs only where the region is asked.
    """
    largest, wide = 0, dim
    for node in net._modules.values():
        shape = tuple(getattr(node, "output_shape", None) or ())
        if len(shape) < 2 or not getattr(node, "inputs", None):
            continue
        size = prod(int(v) for v in shape[1:])
        largest = max(largest, size * dim // 3 if len(shape) == 4 else size * wide)
        wide = max(wide, size)
    return 8 * 6 * largest
