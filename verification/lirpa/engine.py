r"""Sound minorants of a network's margins over { ‖Wδ‖ ≤ r_i } ∩ C_i, by auto_LiRPA.

The library relaxes the layers; every linear function it meets on the way is bounded over the region itself by `Region.support`, not over a bigger
ball or box. To that end its perturbation class is replaced (it ignores boxes at p = 2), and so is its shortcut that answers the first linear layer
from the box hull, which is exact for a box only. A pass is CROWN (Zhang et al. 2018): bounds of every layer's inputs, then

    m_k(δ) ≥ a_k·δ + b_k   on R_i,      lower_k = b_k − σ_{R_i}(−a_k)

Everything runs in float64 with round-to-nearest; b_k is lowered by `SLACK` of its terms, far above the rounding of a forward pass. While the
library works, torch's default dtype is float64 (its α tensors ask for it): the one global setting touched, restored afterwards, not thread-safe.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from enum import Enum
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from formulations.errors import InputError
from formulations.support import Region
from verification.evidence import STEPS
from verification.lirpa.compat import library
from verification.lirpa.translate import blame, convert, float64_default, forget
from verification.minorant import Minorant
from verification.model import float64_copy, outputs

SLACK = 1e-11  # of |b| + Σ|a||x0| and the margin's size, taken off every row: float64 rounding of the passes, and the checker's bound of its own
INNER = 1 << 22  # pairs of neurons of which slopes of intermediate bounds are handed on
CARRIED = 1 << 17  # slopes of the margin rows of one input that are handed on: a certificate reads and hashes them all
WIDE = (
    1 << 23
)  # neurons of a convolution × coordinates, above which its own bounds use only the ball and the box of C: the dual ascent over the rest would take minutes
MEMORY = 1 << 30  # bytes of bound matrices in one chunk of inputs

Slopes = tuple[Tensor, ...]
Inner = dict[tuple[int, int], Tensor]


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
        self._bounded = convert(self.model, probe[:1])
        self._check_parity(probe)
        self._row_bytes = _bytes_per_input(self._bounded, self.dim)

    def rows(
        self, x0: Tensor, Q: Tensor, s: Tensor, region: Region, method: BoundMethod | str = BoundMethod.CROWN, *, part: bool = False
    ) -> Minorant:
        """Minorants of the margins Q f(x0 + δ) + s on the region, for inputs x0 (n, *shape), Q (n, K, m), s (n, K).

        `part`: the region is one of several whose union holds x0, so that it need not hold x0 itself, and may be empty. Inputs are taken in chunks of
        bounded memory. Raises InputError on shapes that do not fit, a region without x0 and a layer that cannot be bounded, and RuntimeError when a row
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
            raise RuntimeError(f"bounds: row {k} of input {i} exceeds its margin at x0 ({float(b[i, k]):g} > {float(value[i, k]):g}); "
                               "a fault of the bound library.")  # fmt: skip
        nothing = torch.full_like(b, -torch.inf)
        a, b, lower = torch.where(broken[..., None], 0.0, a), torch.where(broken, nothing, b), torch.where(broken, nothing, lower)
        return Minorant(a, b, lower, slopes, inner)

    def _linear_bounds(self, x: Tensor, Q: Tensor, region: Region, how: BoundMethod) -> tuple[Tensor, Tensor, Slopes, Inner]:
        """(A (n, K, d), bias (n, K), slopes, inner slopes) with A·z + bias ≤ Q f(z) for z ∈ x0 + R."""
        net, n, K = self._bounded, len(x), Q.shape[1]
        net.repaired = not region.is_box
        watch = _set_perturbation()(x, region)
        asked: dict[str, Any] = {"x": (library().BoundedTensor(x, watch),), "C": Q, "bound_upper": False}
        with float64_default(), torch.set_grad_enabled(how is BoundMethod.ALPHA_CROWN):
            try:
                if how is BoundMethod.ALPHA_CROWN:
                    net.compute_bounds(method="alpha-CROWN", **asked)
                    _round_slopes(net)
                    asked["reuse_alpha"] = True
                watch.last = None
                lower = net.compute_bounds(method=_ASKED[how], **asked)[0].reshape(n, K)
                fixed = (
                    how is BoundMethod.CROWN
                    and region.coupling is None
                    and all("Relu" in type(node).__name__ for node in _activations(net))
                )
                slopes = () if fixed or how is BoundMethod.IBP else _slopes(net, n, K)
                inner = _inner_slopes(net, n) if how is BoundMethod.ALPHA_CROWN else {}
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


@functools.cache
def _set_perturbation() -> Any:
    """The perturbation class: the library's ℓ∞ box for intervals, and the region's support function wherever a linear function is concretized."""
    lib = library()

    class SetPerturbation(lib.PerturbationLpNorm):  # type: ignore[misc, name-defined]
        def __init__(self, x: Tensor, region: Region) -> None:
            lo, hi = region.hull()
            super().__init__(norm=torch.inf, x_L=x + lo.view_as(x), x_U=x + hi.view_as(x))
            self.region, self.flat = region, x.flatten(1)
            self.last: tuple[Tensor, Tensor] | None = (
                None  # (A, its bound over the region) as concretized last: the output's, when a pass has ended
            )

        def concretize_matrix(self, x: Tensor, A: Any, sign: int, extra_constr: Any = None) -> Tensor:
            if isinstance(A, lib.eyeC):  # single coordinates: the hull
                return super().concretize_matrix(x, A, sign, extra_constr)  # type: ignore[no-any-return]
            rows = A.reshape(A.shape[0], A.shape[1], -1)
            if self.region.is_box:
                bound: Tensor = super().concretize_matrix(x, rows, sign, extra_constr)
            else:
                bound = torch.einsum("nsd,nd->ns", rows, self.flat) + sign * self.region.support(sign * rows)
            self.last = rows, bound
            return bound

        def concretize_patches(self, x: Tensor, A: Any, sign: int, extra_constr: Any = None) -> Tensor:
            if A.identity == 1 or self.region.is_box:  # intermediate bounds only: margins come as matrices
                return super().concretize_patches(x, A, sign, extra_constr)  # type: ignore[no-any-return]
            rows = A.patches.shape[0] * (1 if A.unstable_idx is not None else prod(A.patches.shape[2:4]))
            few = prod(A.patches.shape[-3:]) < self.region.dim
            if few and (self.region.coupling is None or rows * self.region.dim > WIDE):
                return self._narrow(x, A, sign)
            matrix = lib.patches_to_matrix(A.patches, x.shape, A.stride, A.padding, A.output_shape, A.unstable_idx)
            bound = self.concretize_matrix(x, matrix, sign)
            return bound if A.unstable_idx is not None else bound.reshape(len(x), A.patches.shape[0], *A.patches.shape[2:4])

        def _narrow(self, x: Tensor, A: Any, sign: int) -> Tensor:
            """Rows that see one window of the image each: the ball and the box of that window say all there is to say."""
            every = A.unstable_idx is None
            rows = A.patches.transpose(0, 1).flatten(-3)  # (n, channels, height, width, k), or (n, unstable, k)
            count = A.patches.shape[0]

            def windows(v: Tensor) -> Tensor:
                seen: Tensor = lib.inplace_unfold(
                    v.reshape(-1, *x.shape[1:]), kernel_size=A.patches.shape[-2:], stride=A.stride, padding=A.padding,
                    inserted_zeros=A.inserted_zeros, output_padding=A.output_padding,
                ).flatten(3)  # (n, height, width, k)  # fmt: skip
                if every:
                    return seen.unsqueeze(1).expand(-1, count, -1, -1, -1).flatten(1, 3)
                place: tuple[Tensor, ...] = A.unstable_idx
                return seen[:, place[1], place[2]]

            flat = rows.flatten(1, 3) if every else rows
            bound = torch.einsum("nsk,nsk->ns", flat, windows(x)) + sign * self.region.window_support(sign * flat, windows)
            return bound.reshape(len(x), count, *A.patches.shape[2:4]) if every else bound

    return SetPerturbation


def _slopes(net: Any, n: int, K: int) -> Slopes:
    """Per activation (n, K, neurons): coefficient after the pass went through it over coefficient before, 0 where there is none; () where not kept, or too many."""
    out = []
    for node in _activations(net):
        before, after, alone = getattr(node, "lA", None), getattr(node.inputs[0], "lA", None), len(node.inputs[0].output_name) == 1
        if not (isinstance(before, Tensor) and isinstance(after, Tensor) and before.shape == after.shape and alone):
            return ()
        slope = torch.where(before == 0, 0.0, after / torch.where(before == 0, 1.0, before)).detach()
        out.append(slope.transpose(0, 1).reshape(n, K, -1))
    return tuple(out) if sum(s[0].numel() for s in out) <= CARRIED else ()


def _pairs(net: Any) -> Iterator[tuple[int, int, Any, Any, Tensor]]:
    """(t, s, target, source, α) of the ReLUs whose slopes the library keeps for the bounds of what enters another one."""
    relus = _activations(net)
    for t, target in enumerate(relus):
        for s, source in enumerate(relus[:t]):
            alpha = getattr(source, "alpha", {}).get(target.inputs[0].name) if type(source).__name__ == "BoundRelu" else None
            if alpha is not None:
                yield t, s, target, source, alpha


def _round_slopes(net: Any) -> None:
    """The α of intermediate bounds as a certificate will write them; any are sound."""
    with torch.no_grad():
        for *_, alpha in _pairs(net):
            alpha.copy_((alpha.clamp(0, 1) * STEPS).round() / STEPS)


def _inner_slopes(net: Any, n: int) -> Inner:
    """The α of intermediate bounds in units of 1/255, −1 where the usual slope does: where α never moved, or is beyond the window that a convolution sees."""
    found: Inner = {}
    for t, s, target, source, alpha in _pairs(net):
        above, below = (v.lower.flatten(1).shape[1] for v in (target.inputs[0], source.inputs[0]))
        own = alpha.numel() // (2 * n * below)  # one α a neuron, or, for a batch, one a channel
        if above * below > INNER or own == 0 or alpha.numel() != 2 * n * own * below or above % own:
            continue
        low, high = (getattr(source.inputs[0], side).flatten(1) for side in ("lower", "upper"))
        code = (alpha.detach().reshape(2, own, n, below).permute(2, 0, 1, 3) * STEPS).round().to(torch.int16)
        code = code.repeat_interleave(above // own, 2)
        open_, usual = ((low < 0) & (high > 0))[:, None, :], ((high + low > 0).to(torch.int16) * STEPS)[:, None, None, :]
        moved = (code != usual).any(1) & open_ & _window(target.inputs[0], source)
        whole = moved.any(2, keepdim=True) & open_
        kept = whole if 2 * int(moved.sum()) > int(whole.sum()) else moved
        found[t, s] = torch.where(kept[:, None], code, -1)
    return found


def _window(node: Any, source: Any) -> Tensor:
    """(neurons of `node`, neurons of `source`): which a neuron can see; all, where `node` is no convolution of `source`."""
    if type(node).__name__ != "BoundConv" or node.inputs[0] is not source:
        return torch.ones(1, 1, dtype=torch.bool, device=source.inputs[0].lower.device)
    weight = torch.ones_like(node.inputs[1].lower)
    every = torch.eye(prod(source.output_shape[1:]), dtype=weight.dtype, device=weight.device).reshape(-1, *source.output_shape[1:])
    seen: Tensor = node.forward(every, weight, *[weight.new_zeros(len(weight))] * int(node.has_bias))
    return seen.flatten(1).T != 0


def _activations(net: Any) -> list[Any]:
    """The elementwise nonlinear layers that the checker knows, in the order of evaluation."""
    return [node for node in net._modules.values() if type(node).__name__ in ("BoundRelu", "BoundLeakyRelu", "BoundTanh", "BoundSigmoid")]


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
